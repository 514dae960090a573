"""API of the stand-in GitLab: Terraform states, as lib/api/terraform/state.rb and its services have them.

What surprises: a held lock is 409 and its answer mixes the holder's ID and time with the asker's own operation; a
locked state is not deleted although the answer is 200; an unlock without an ID always works; a state that was locked
once exists, so that it is 204 rather than 404 afterwards.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from aiohttp import web

from glgpu.rehearsal.gitlab_http import (
    Answer,
    ApiError,
    Call,
    Host,
    check_token,
    not_found,
    serves,
    strike,
)
from glgpu.rehearsal.gitlab_model import Project, Role, State, User, timestamp

STATE = "/projects/{id}/terraform/state/{name}"
LONGEST_ID = 255


def _name(call: Call) -> str:
    """The state's name; a slash in it comes encoded, or the path is another one. Lock IDs have a greatest length."""
    if len(call.params.get("ID") or "") > LONGEST_ID:
        raise ApiError(400, {"error": "ID is too long (maximum is 255)"})
    return call.path["name"]


def _find(call: Call) -> State:
    state = call.project.states.get(_name(call))
    if state is None:
        raise not_found()
    return state


def _find_or_create(call: Call) -> State:
    now = call.state.clock.now()
    return call.project.states.setdefault(_name(call), State(_name(call), now, now))


@serves(f"GET {STATE}", "state.get", Role.DEVELOPER, job_token="basic")
async def get_state(call: Call) -> Answer:
    """The newest document."""
    state = _find(call)
    return Answer(200, state.versions[-1][1]) if state.versions else Answer(204)


@serves(f"POST {STATE}", "state.save", Role.DEVELOPER, job_token="basic")
async def save_state(call: Call) -> Answer:
    """Save a document: the holder of the lock only, each serial once."""
    call.require(Role.MAINTAINER)
    if not call.body:
        return Answer(204)
    try:
        serial = int(json.loads(call.body)["serial"])
    except (ValueError, TypeError, KeyError):
        raise ApiError.message(422, "Validation failed: Version can't be blank, Version is not a number") from None
    state = _find_or_create(call)
    if state.lock_id != call.params.get("ID"):
        # Nothing in GitLab rescues StateLockedError here, so that it comes out as an internal error.
        raise ApiError.message(500, "500 Internal Server Error")
    if any(serial == version for version, _ in state.versions):
        raise ApiError.message(422, "Validation failed: Version has already been taken")
    state.versions.append((serial, call.body))
    state.updated_at = call.state.clock.now()
    return Answer(200)


@serves(f"DELETE {STATE}", "state.delete", Role.DEVELOPER, job_token="basic")
async def delete_state(call: Call) -> Answer:
    """Delete a state for good; a locked one stays, and the answer does not say so."""
    call.require(Role.MAINTAINER)
    state = _find(call)
    if state.lock_id is None:
        del call.project.states[state.name]
    return Answer(200)


@serves(f"POST {STATE}/lock", "state.lock", Role.DEVELOPER, job_token="basic")
async def lock_state(call: Call) -> Answer:
    """Take the lock, or learn who holds it."""
    call.require(Role.MAINTAINER)
    state, status = _find_or_create(call), 409
    if state.lock_id is None:
        state.lock_id, state.locked_by, state.locked_at = call.params["ID"], call.user, call.state.clock.now()
        status = 200
    info = {name: call.params[name] for name in ("Operation", "Info", "Version", "Path")}
    holder = {
        "ID": state.lock_id,
        "Who": state.locked_by.username if state.locked_by else "",
        "Created": timestamp(state.locked_at),
    }
    return Answer(status, json.dumps(info | holder).encode())


@serves(f"DELETE {STATE}/lock", "state.unlock", Role.DEVELOPER, job_token="basic")
async def unlock_state(call: Call) -> Answer:
    """Give the lock back; ``terraform force-unlock`` sends no ID, and needs none."""
    call.require(Role.MAINTAINER)
    state = _find_or_create(call)
    if call.params.get("ID") not in (None, state.lock_id):
        return Answer(409)
    state.lock_id = state.locked_by = state.locked_at = None
    return Answer(200)


# GraphQL: the only way in which GitLab lists its states

PAGE = 100
"""The most that GitLab shows of a list at once, and its default (https://docs.gitlab.com/api/graphql/)."""
_QUERY = re.compile(
    r"\s*(?:query\s*(?:\w+\s*)?(?:\(\s*\$\w+\s*:\s*ID!\s*(?:,?\s*\$\w+\s*:\s*String\s*)?\)\s*)?)?\{\s*"
    r"project\s*\(\s*fullPath\s*:\s*(?:\"(?P<path>[^\"]+)\"|\$(?P<variable>\w+))\s*\)\s*\{\s*"
    r"terraformStates\s*(?:\(\s*first\s*:\s*(?P<first>\d+)\s*(?:,?\s*after\s*:\s*\$(?P<after>\w+)\s*)?\))?\s*"
    r"\{\s*nodes\s*\{(?P<fields>[\w\s,]+)\}\s*(?P<paged>pageInfo\s*\{\s*hasNextPage\s+endCursor\s*\}\s*)?"
    r"\}\s*\}\s*\}\s*"
)


def _node(state: State) -> dict[str, Any]:
    return {
        "name": state.name, "lockedAt": timestamp(state.locked_at), "createdAt": timestamp(state.created_at),
        "updatedAt": timestamp(state.updated_at),
    }  # fmt: skip


def _readable(host: Host, user: User | None, path: str) -> Project | None:
    project = host.state.find_project(path)
    return project if project is not None and user is not None and project.role(user) > Role.NONE else None


async def graphql(host: Host, request: web.Request) -> web.StreamResponse:
    """Answer ``{project(fullPath:){terraformStates{nodes{name lockedAt} pageInfo{...}}}}`` and no other question."""
    rule = host.faults.at("gitlab.request") or host.faults.at("gitlab.graphql")
    text = (await request.read()).decode("utf-8", "replace")
    status, body = 200, {}
    if rule is None:
        try:
            body = _answer(host, request, text)
        except ApiError as error:
            status, body = error.status, error.body
    host.calls.add(
        "gitlab", "POST", str(request.rel_url), at=host.state.clock.now(), status=None if rule else status,
        headers=dict(request.headers), body=text, source=host.network.caller_address,
    )  # fmt: skip
    return web.json_response(body, status=status) if rule is None else await strike(host, request, rule)


def _answer(host: Host, request: web.Request, text: str) -> dict[str, Any]:
    value = request.headers.get("Private-Token") or request.headers.get("Authorization", "").removeprefix("Bearer ")
    token = host.state.find_token(value) if value else None
    if value and token is None:
        raise ApiError(401, {"errors": [{"message": "Invalid token"}]})
    if token is not None:
        check_token(host.state, token, ("api", "read_api"))
    try:
        asked = json.loads(text)
        query, variables = str(asked["query"]), asked.get("variables") or {}
    except (ValueError, KeyError, TypeError):
        return {"errors": [{"message": "No query string was present"}]}
    match = _QUERY.fullmatch(query)
    if match is None:
        return {"errors": [{"message": "This GitLab answers no such query"}]}
    fields = match["fields"].replace(",", " ").split()
    path = match["path"] or variables.get(match["variable"])
    user = token.user if token else None
    project = _readable(host, user, str(path))
    if project is None or user is None:
        return {"data": {"project": None}}
    states = list(project.states.values()) if project.role(user) >= Role.DEVELOPER else []
    start = _start(variables.get(match["after"]) if match["after"] else None)
    end = start + min(int(match["first"] or PAGE), PAGE)
    nodes = []
    for state in states[start:end]:
        node = _node(state)
        unknown = [name for name in fields if name not in node]
        if unknown:
            return {"errors": [{"message": f"Field '{unknown[0]}' doesn't exist on type 'TerraformState'"}]}
        nodes.append({name: node[name] for name in fields})
    shown: dict[str, Any] = {"nodes": nodes}
    if match["paged"]:
        cursor = base64.urlsafe_b64encode(str(start + len(nodes)).encode()).decode() if nodes else None
        shown["pageInfo"] = {"hasNextPage": end < len(states), "endCursor": cursor}
    return {"data": {"project": {"terraformStates": shown}}}


def _start(cursor: str | None) -> int:
    """Where a page begins: behind the thing that a cursor stands for."""
    return int(base64.urlsafe_b64decode(cursor)) if cursor else 0
