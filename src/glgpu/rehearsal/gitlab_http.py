"""How the stand-in GitLab answers an API request: who asks, may they, are the parameters right, what went wrong.

The order is GitLab's: authentication, the project, the role, the parameters, the thing itself. Texts of refusals are
those of lib/api/helpers.rb and lib/api/api_guard.rb in gitlabhq/gitlabhq.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from aiohttp import web

from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.faults import Faults, Rule
from glgpu.rehearsal.gitlab_description import BadParameter, Operation, load
from glgpu.rehearsal.gitlab_model import DeployToken, Job, Pipeline, Project, Role, Token, User, Variable, secret
from glgpu.rehearsal.gitlab_state import GitLabState, Refused
from glgpu.rehearsal.seams import Network

Json = dict[str, Any] | list[Any]
Trigger = Callable[[Project, str, str, User, list[Variable]], Pipeline]

UNAVAILABLE_PAGE = (
    "<!DOCTYPE html>\n<html><head><title>GitLab is not responding (502)</title></head><body>502</body></html>"
)


class Host(Protocol):
    """What the HTTP side needs to know of the whole GitLab."""

    url: str
    ssh_host: str
    ssh_port: int
    version: str
    calls: CallLog
    faults: Faults
    network: Network
    stopping: asyncio.Event
    trigger: Trigger | None

    @property
    def state(self) -> GitLabState:
        """The model behind it."""


class ApiError(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = body

    @classmethod
    def message(cls, status: int, text: Any) -> ApiError:
        """In the form that most of GitLab's code uses."""
        return cls(status, {"message": text})


def unauthorized() -> ApiError:
    """No valid credentials."""
    return ApiError.message(401, "401 Unauthorized")


def forbidden() -> ApiError:
    """Known, but not allowed."""
    return ApiError.message(403, "403 Forbidden")


def not_found(what: str = "") -> ApiError:
    """No such thing, or none that the caller may know of."""
    return ApiError.message(404, f"404 {what} Not Found" if what else "404 Not found")


@dataclass
class Answer:
    """What a handler gives back.

    Attributes:
        body: Becomes JSON, unless it is bytes or a file; None: no body.
        content_type: Of bytes and files.
    """

    status: int
    body: Json | bytes | Path | None = None
    content_type: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """One request, as far as it has been understood."""

    host: Host
    request: web.Request
    operation: Operation
    path: dict[str, str]
    given: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""
    token: Token | None = None
    job: Job | None = None
    deploy_token: DeployToken | None = None
    caller: User | None = None
    found_project: Project | None = None

    @property
    def state(self) -> GitLabState:
        """The model."""
        return self.host.state

    @property
    def user(self) -> User:
        """Who asks."""
        if self.caller is None:
            raise unauthorized()
        return self.caller

    @property
    def project(self) -> Project:
        """The project of the path."""
        if self.found_project is None:
            raise not_found("Project")
        return self.found_project

    def require(self, role: Role) -> None:
        """Refuse a lower role in the project.

        Raises:
            ApiError: 403.
        """
        if self.project.role(self.user) < role:
            raise forbidden()

    def number(self, name: str) -> int:
        """A numeric part of the path."""
        return int(self.path[name])

    def page(self, items: list[Any], show: Callable[[Any], dict[str, Any]]) -> Answer:
        """One page of a list, with GitLab's pagination headers."""
        page = max(1, self.params.get("page") or 1)
        per_page = min(100, max(1, self.params.get("per_page") or 20))
        pages = max(1, -(-len(items) // per_page))
        shown = [show(item) for item in items[(page - 1) * per_page : page * per_page]]
        links = {"first": 1, "last": pages}
        if page > 1:
            links["prev"] = page - 1
        if page < pages:
            links["next"] = page + 1
        headers = {
            "X-Page": str(page), "X-Per-Page": str(per_page), "X-Total": str(len(items)), "X-Total-Pages": str(pages),
            "X-Next-Page": str(links.get("next", "")), "X-Prev-Page": str(links.get("prev", "")),
            "Link": ", ".join(f'<{self._url(n, per_page)}>; rel="{word}"' for word, n in links.items()),
        }  # fmt: skip
        return Answer(200, shown, headers=headers)

    def file(self, path: Path, headers: dict[str, str] | None = None) -> Answer:
        """A file, or the way to it where it lies in an object storage: an address that is its own credential."""
        if self.state.direct_download:
            signature = secret("")
            self.state.signed[signature] = path
            return Answer(302, headers={"Location": f"{self.host.url}/object-storage/{signature}"})
        return Answer(200, path, headers=headers or {})

    def _url(self, page: int, per_page: int) -> str:
        query = {name: value for name, value in self.request.query.items() if name not in ("page", "per_page")}
        changed = self.request.rel_url.with_query(query | {"page": str(page), "per_page": str(per_page)})
        return self.host.url + str(changed)


Handler = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True)
class Route:
    """A served operation.

    Attributes:
        point: Its fault point without the leading ``gitlab.``.
        role: What the caller must at least be in the project.
        job_token: Where GitLab takes a job token for it: nowhere, in a header, or by Basic authentication only.
        open_get: Whether a stranger is told 404 (the project is private) rather than 401.
        stream: Whether the handler reads the request's body itself.
        deploy_scopes: Scopes of which a deploy token needs one; none: GitLab takes no deploy token here.
    """

    operation: str
    point: str
    role: Role
    job_token: Literal["", "header", "basic"]
    open_get: bool
    stream: bool
    deploy_scopes: tuple[str, ...]
    handler: Handler


ROUTES: dict[str, Route] = {}


def serves(
    operation: str,
    point: str,
    role: Role = Role.NONE,
    *,
    job_token: Literal["", "header", "basic"] = "",
    open_get: bool = False,
    stream: bool = False,
    deploy_scopes: tuple[str, ...] = (),
) -> Callable[[Handler], Handler]:
    """Make a function the handler of a described operation."""

    def register(handler: Handler) -> Handler:
        ROUTES[operation] = Route(operation, point, role, job_token, open_get, stream, deploy_scopes, handler)
        return handler

    return register


def basic_credentials(request: web.Request) -> tuple[str, str] | None:
    """User and password of Basic authentication."""
    kind, _, rest = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        user, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return user, password


def check_token(state: GitLabState, token: Token, scopes: tuple[str, ...]) -> None:
    """Refuse a dead token, or one without any of the scopes.

    Raises:
        ApiError: 401 or 403 in the form of OAuth errors, which is GitLab's for these.
    """
    now = state.clock.now()
    if token.expired(now):
        text = "Token is expired. You can either do re-authorization or token refresh."
        raise ApiError(401, {"error": "invalid_token", "error_description": text})
    if token.revoked:
        text = "Token was revoked. You have to re-authorize from the user."
        raise ApiError(401, {"error": "invalid_token", "error_description": text})
    if scopes and not set(scopes) & set(token.scopes):
        text = "The request requires higher privileges than provided by the access token."
        raise ApiError(403, {"error": "insufficient_scope", "error_description": text, "scope": " ".join(scopes)})
    token.last_used_at = now


def authenticate(call: Call, route: Route) -> None:
    """Find out who asks; a job token where GitLab does not take one counts as no token at all.

    Raises:
        ApiError: A token was given and is wrong, dead or too weak.
    """
    state, headers = call.state, call.request.headers
    basic = basic_credentials(call.request)
    if route.job_token == "header":
        value = headers.get("Job-Token") or call.given.get("job_token")
    else:
        value = basic[1] if route.job_token == "basic" and basic and basic[0] == "gitlab-ci-token" else None
    if value:
        call.job = state.find_running_job(value)
        if call.job is None:
            raise unauthorized()
        call.caller = call.job.user
        return
    value = headers.get("Deploy-Token") or (basic[1] if basic else None)
    if route.deploy_scopes and value:
        # A dead one counts as none (lib/gitlab/auth/auth_finders.rb).
        call.deploy_token = state.find_deploy_token(value)
        if call.deploy_token is None:
            raise unauthorized()
        return
    bearer = headers.get("Authorization", "")
    value = headers.get("Private-Token") or call.given.get("private_token")
    if not value and bearer.lower().startswith("bearer "):
        value = bearer[7:].strip()
    # The state is the only thing here for which GitLab takes a personal token as a Basic password.
    if not value and route.job_token == "basic" and basic:
        value = basic[1]
    if not value:
        return
    call.token = state.find_token(value)
    if call.token is None:
        raise unauthorized()
    reading = call.request.method in ("GET", "HEAD")
    any_scope = route.operation == "GET /personal_access_tokens/self"
    extra = ("read_user",) if route.operation == "GET /user" else ()
    check_token(state, call.token, () if any_scope else ("api", "read_api", *extra) if reading else ("api",))
    call.caller = call.token.user


def find_project(call: Call, route: Route) -> None:
    """Find the path's project and check the caller's role in it.

    Raises:
        ApiError: 401, 404 (also for whoever is no member of a private project) or 403.
    """
    if call.deploy_token is not None:
        project = call.state.find_project(call.path["id"])
        if project is None or call.deploy_token not in project.deploy_tokens.values():
            raise not_found("Project")
        if not set(route.deploy_scopes) & set(call.deploy_token.scopes):
            raise forbidden()
        call.found_project = project
        return
    if call.caller is None:
        if route.open_get and call.request.method == "GET":
            raise not_found("Project")
        raise unauthorized()
    if "id" not in call.path:
        return
    project = call.state.find_project(call.path["id"])
    if project is None or (project.visibility == "private" and project.role(call.caller) == Role.NONE):
        raise not_found("Project")
    home = call.job.pipeline.project.id if call.job else project.id
    if home != project.id and home not in project.job_token_allowlist:
        raise not_found("Project")
    call.found_project = project
    call.require(route.role)


async def read_parameters(call: Call) -> None:
    """Collect what query and body give.

    Raises:
        ApiError: 400: the body is no JSON.
    """
    for name, value in call.request.query.items():
        if name.endswith("[]"):
            call.given.setdefault(name[:-2], []).append(value)
        else:
            call.given[name] = value
    if call.operation.raw or not call.body:
        return
    if "json" in call.request.content_type:
        try:
            document = json.loads(call.body)
        except ValueError:
            raise ApiError(400, {"error": "Problems parsing JSON"}) from None
        if isinstance(document, dict):
            call.given |= document
    elif call.request.content_type == "application/x-www-form-urlencoded":
        call.given |= dict(await call.request.post())


async def strike(host: Host, request: web.BaseRequest, rule: Rule) -> web.StreamResponse:
    """Let a fault happen to a request.

    Raises:
        ValueError: The rule's action means nothing here.
    """
    answers: dict[str, tuple[int, Any]] = {
        "unauthorized": (401, {"message": "401 Unauthorized"}),
        "forbidden": (403, {"message": "403 Forbidden"}),
        "not-found": (404, {"message": "404 Not Found"}),
    }
    if rule.action in answers:
        status, body = answers[rule.action]
        return web.json_response(body, status=status)
    if rule.action == "unavailable":
        return web.Response(status=int(rule.argument or 502), text=UNAVAILABLE_PAGE, content_type="text/html")
    if rule.action == "silence":
        await host.stopping.wait()
    elif rule.action != "down":
        raise ValueError(f"the action {rule.action} means nothing to GitLab")
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


class Api:
    """Serves every operation of the description that has a handler."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.description = load()

    def add_routes(self, app: web.Application) -> None:
        """Add one route for each operation, and a last one for all that GitLab's API does not know."""
        for name in sorted(ROUTES, key=lambda name: ("{file_name}" in name, name)):
            method, template = name.split(" ", 1)
            template = template.replace("{file_name}", "{file_name:.+}").replace(
                "{artifact_path}", "{artifact_path:.+}"
            )
            app.router.add_route(method, f"/api/v4{template}", self._serve(ROUTES[name]))
        app.router.add_route("*", "/api/v4/{rest:.*}", self._unknown)

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        self._log(request, 404, "")
        return web.json_response({"error": "404 Not Found"}, status=404)

    def _serve(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def serve(request: web.Request) -> web.StreamResponse:
            faults = self.host.faults
            rule = faults.at("gitlab.request") or faults.at(f"gitlab.{route.point}")
            call = Call(self.host, request, self.description.operations[route.operation], dict(request.match_info))
            if not route.stream:
                call.body = await request.read()
            text = "" if route.stream else call.body.decode("utf-8", "replace")
            if rule is not None:
                self._log(request, None, text, fault=rule.action)
                return await strike(self.host, request, rule)
            try:
                answer = await self._answer(call, route)
            except ApiError as error:
                answer = Answer(error.status, error.body)
            unknown = self.description.unknown(call.operation, call.given)
            findings = self.description.findings(call.operation, answer.status, answer.body)
            self._log(request, answer.status, text, unknown=unknown, findings=findings)
            return respond(answer)

        return serve

    async def _answer(self, call: Call, route: Route) -> Answer:
        await read_parameters(call)
        authenticate(call, route)
        find_project(call, route)
        call.given.pop("private_token", None)
        call.given.pop("job_token", None)
        try:
            for name, kind in call.operation.path.items():
                if kind == "integer" and not re.fullmatch(r"\d+", call.path[name]):
                    raise BadParameter(f"{name} is invalid")
            call.params = self.description.read(call.operation, call.given)
        except BadParameter as error:
            raise ApiError(400, {"error": str(error)}) from None
        try:
            return await route.handler(call)
        except Refused as error:
            raise ApiError.message(400, f"400 Bad request - {error}") from None

    def _log(self, request: web.Request, status: int | None, body: str, **facts: Any) -> None:
        self.host.calls.add(
            "gitlab",
            request.method,
            str(request.rel_url),
            at=self.host.state.clock.now(),
            status=status,
            headers=dict(request.headers),
            body=body,
            source=self.host.network.caller_address,
            **facts,
        )


def respond(answer: Answer) -> web.StreamResponse:
    """Turn a handler's answer into HTTP."""
    if isinstance(answer.body, Path):
        return web.FileResponse(answer.body, status=answer.status, headers=answer.headers)
    if isinstance(answer.body, bytes):
        return web.Response(
            status=answer.status, body=answer.body, content_type=answer.content_type, headers=answer.headers
        )
    if answer.status == 204:
        return web.Response(status=204, headers=answer.headers)
    if answer.body is None:
        return web.Response(status=answer.status, text="{}", content_type="application/json", headers=answer.headers)
    return web.json_response(answer.body, status=answer.status, headers=answer.headers)
