"""The API by which GitLab and its runners talk: a job is offered, its log and artifacts come, then its last word.

After lib/api/ci/runner.rb and lib/api/entities/ci/job_request in gitlabhq/gitlabhq. A request for a job is held until
there is one, as GitLab Workhorse holds it.
"""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import BodyPartReader, web

from glgpu.rehearsal.ci_yaml import RETRY_WHEN, Artifacts, Variable, expand_all
from glgpu.rehearsal.gitlab_http import Answer, ApiError, Host, forbidden, not_found, respond
from glgpu.rehearsal.gitlab_model import secret
from glgpu.rehearsal.job_artifacts import UploadRefused
from glgpu.rehearsal.job_turn import Given, Outcome, Turn

LONG_POLL_SECONDS = 50.0
"""How long a request for a job is held (``gitlab_workhorse['api_ci_long_polling_duration']`` of GitLab's packages)."""
TRACE_UPDATE_SECONDS = 3
"""How often a runner shall send the log while somebody watches it; else 60 (``Gitlab::Ci::Trace``)."""
DEFAULT_GIT_DEPTH = 20
CHUNK = 1 << 16
REPORT_FILES = {"dotenv": ".env", "junit": "junit.xml", "metrics": "metrics.txt", "annotations": "gl-annotations.json"}
"""What GitLab calls the reports (``Ci::JobArtifact::DEFAULT_FILE_NAMES``)."""
FAILURE_REASONS = RETRY_WHEN - {"always"} | {"image_pull_failure"}
"""Those that a runner may report; any other counts as unknown."""


class RunnerApi:
    """GitLab, as its runners see it.

    Args:
        host: The whole GitLab.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._tokens: set[str] = set()
        self._offered: list[Turn] = []
        self._taken: dict[int, Turn] = {}
        self._news = asyncio.Condition()

    def register(self) -> str:
        """A new runner; the token by which it is known."""
        token = secret("glrt-")
        self._tokens.add(token)
        return token

    async def unregister(self, token: str) -> None:
        """A runner is no more: nothing is offered to it, and whatever it asks for is refused."""
        self._tokens.discard(token)
        async with self._news:
            self._news.notify_all()

    async def offer(self, turn: Turn) -> None:
        """Let the next runner that asks have this job."""
        async with self._news:
            self._offered.append(turn)
            self._news.notify_all()

    def add_routes(self, app: web.Application) -> None:
        """Add what runners call; to be done before anything that takes the rest of /api/v4."""
        for method, path, serve in (
            ("POST", "/runners/verify", self._verify),
            ("POST", "/jobs/request", self._request),
            ("PUT", r"/jobs/{id:\d+}", self._update),
            ("PATCH", r"/jobs/{id:\d+}/trace", self._trace),
            ("POST", r"/jobs/{id:\d+}/artifacts", self._upload),
            ("GET", r"/jobs/{id:\d+}/artifacts", self._download),
        ):
            app.router.add_route(method, f"/api/v4{path}", self._served(serve))

    def _served(
        self, serve: Callable[[web.Request], Awaitable[Answer]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handler(request: web.Request) -> web.StreamResponse:
            try:
                answer = await serve(request)
            except ApiError as error:
                answer = Answer(error.status, error.body)
                turn = self._taken.get(int(request.match_info.get("id", 0)))
                if turn is not None:
                    answer.headers["Job-Status"] = turn.entry.status
            self._host.calls.add(
                "runners", request.method, str(request.rel_url), at=self._host.state.clock.now(), status=answer.status,
                headers=dict(request.headers), source=self._host.network.caller_address,
            )  # fmt: skip
            return respond(answer)

        return handler

    # The runner itself

    async def _verify(self, request: web.Request) -> Answer:
        token = (await request.json()).get("token")
        self._admit(token)
        return Answer(200, {"id": 1, "token": token, "token_expires_at": None})

    def _admit(self, token: object) -> None:
        if token not in self._tokens:
            raise forbidden()

    async def _request(self, request: web.Request) -> Answer:
        """A job, or after a while none."""
        token = (await request.json()).get("token")
        self._admit(token)
        async with self._news:
            try:
                async with asyncio.timeout(LONG_POLL_SECONDS):
                    await self._news.wait_for(lambda: bool(self._offered) or token not in self._tokens)
            except TimeoutError:
                return Answer(204, headers={"X-GitLab-Last-Update": secret("")})
            self._admit(token)
            turn = self._offered.pop(0)
        turn.begin()
        self._taken[turn.entry.id] = turn
        return Answer(201, job_response(turn))

    # A job that a runner has

    def _turn(self, request: web.Request, given: object = None) -> Turn:
        """The job of the path, for whoever has its token; it must not be over.

        Raises:
            ApiError: 403, on which the runner ends the job.
        """
        turn = self._taken.get(int(request.match_info["id"]))
        token = given or request.headers.get("Job-Token") or request.query.get("token")
        if turn is None or token != turn.token or turn.entry.status not in ("running", "canceling"):
            raise forbidden()
        return turn

    async def _update(self, request: web.Request) -> Answer:
        """A sign of life, or the last word."""
        word = await request.json()
        try:
            turn = self._turn(request, word.get("token"))
        except ApiError:
            ended = self._taken.get(int(request.match_info["id"]))
            if ended is not None:
                ended.over.set()  # A forced cancel has ended it before; now the runner knows.
            raise
        match word.get("state"):
            case "running":
                turn.hear()
            case "success":
                turn.end(None, 0)
            case "failed":
                reason = word.get("failure_reason")
                turn.end(reason if reason in FAILURE_REASONS else "unknown_failure", word.get("exit_code"))
            case _:
                raise ApiError(400, {"message": "400 Bad request"})
        headers = {"Job-Status": turn.entry.status}
        return Answer(200, b"200", "application/json", headers)

    async def _trace(self, request: web.Request) -> Answer:
        """The next piece of the log."""
        turn = self._turn(request)
        begin = re.match(r"(\d+)-\d+", request.headers.get("Content-Range", ""))
        if begin is None:
            raise ApiError(400, {"error": "400 Missing header Content-Range"})
        data = await request.read()
        held = len(turn.entry.trace)
        if int(begin[1]) != held:
            return Answer(416, {"error": "416 Range Not Satisfiable"}, headers={"Range": f"0-{held}"})
        turn.append(data)
        headers = {
            "Job-Status": turn.entry.status,
            "Range": f"0-{held + len(data)}",
            "X-GitLab-Trace-Update-Interval": str(TRACE_UPDATE_SECONDS),
        }
        return Answer(202, b"0", "text/plain", headers)

    async def _upload(self, request: web.Request) -> Answer:
        """An archive or a report."""
        turn = self._turn(request)
        kind, packing = request.query.get("artifact_type", "archive"), request.query.get("artifact_format", "zip")
        target = turn.upload("artifacts.zip" if kind == "archive" else f"{kind}.report")
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader) and part.name == "file":
                with target.open("wb") as file:
                    while chunk := await part.read_chunk(CHUNK):
                        file.write(chunk)
        if packing == "gzip":
            target.write_bytes(gzip.decompress(target.read_bytes()))
        try:
            if kind == "archive":
                turn.take_archive(target)
            else:
                turn.take_report(kind, target)
        except UploadRefused as refused:
            status = int(str(refused).split()[0])
            raise ApiError.message(status, str(refused)) from None
        return Answer(201, b"201", "application/json")

    async def _download(self, request: web.Request) -> Answer:
        """The archive of a job, for a running one that depends on it."""
        wanted, token = self._taken.get(int(request.match_info["id"])), request.headers.get("Job-Token", "")
        job = self._host.state.find_running_job(token)
        if wanted is None or job is None or job.pipeline is not wanted.entry.pipeline:
            raise forbidden()
        if wanted.attempt.artifacts is None or wanted.attempt.artifacts_erased:
            raise not_found()
        return Answer(200, wanted.attempt.artifacts)


def job_response(turn: Turn) -> dict[str, Any]:
    """What a runner is told of a job (``API::Entities::Ci::JobRequest::Response``)."""
    job, occasion = turn.job, turn.player.occasion
    values = _values(turn)
    depth = int(values.get("GIT_DEPTH", DEFAULT_GIT_DEPTH))
    return {
        "id": turn.entry.id,
        "token": turn.token,
        "allow_git_fetch": True,
        "job_info": {
            "id": turn.entry.id,
            "name": job.name,
            "stage": job.stage,
            "project_id": occasion.project.id,
            "project_name": occasion.project.path.rpartition("/")[2],
            "time_in_queue_seconds": 0.0,
            "project_jobs_running_on_instance_runners_count": "+Inf",
        },
        "git_info": {
            "repo_url": values["CI_REPOSITORY_URL"],
            "ref": occasion.event.ref,
            "sha": occasion.event.sha,
            "before_sha": occasion.event.before_sha,
            "ref_type": "tag" if occasion.event.tag else "branch",
            "refspecs": _refspecs(turn, depth),
            "depth": depth,
            "repo_object_format": "sha1",
        },
        "runner_info": {"timeout": turn.timeout, "runner_session_url": None},
        "variables": [_variable(name, values[name], given) for name, given in turn.variables.items()],
        "steps": _steps(turn),
        "image": {"name": job.image, "entrypoint": None, "ports": []} if job.image else None,
        "services": [],
        "artifacts": _artifacts(job.artifacts) if job.artifacts else None,
        "cache": [],
        "credentials": [],
        "dependencies": [_dependency(turn, other) for other in turn.player.dependencies(job)],
        "features": {
            "trace_sections": True,
            "token_mask_prefixes": ["glpat-"],
            "failure_reasons": sorted(FAILURE_REASONS),
        },
        "hooks": [],
    }


def _values(turn: Turn) -> dict[str, str]:
    """The values of all variables; what only the runner can replace stays as it is written, ``$$`` too."""
    texts = {name: one for name, one in turn.variables.items() if not one.is_file}
    known = {name: Variable(one.value, one.expand and "$$" not in one.value) for name, one in texts.items()}
    files = {name: one.value for name, one in turn.variables.items() if one.is_file}
    return expand_all(known, keep_unknown=True) | files


def _variable(name: str, value: str, given: Given) -> dict[str, Any]:
    shown: dict[str, Any] = {"key": name, "value": value, "public": not given.masked, "masked": given.masked}
    if given.is_file:
        shown["file"] = True
    if not given.expand:
        shown["raw"] = True
    return shown


def _refspecs(turn: Turn, depth: int) -> list[str]:
    event, own = turn.player.occasion.event, f"refs/pipelines/{turn.player.entry.id}"
    branch, tag = ("*", "*") if depth == 0 else ("" if event.tag else event.ref, event.ref if event.tag else "")
    found = [f"+{own}:{own}"]
    found += [f"+refs/heads/{branch}:refs/remotes/origin/{branch}"] if branch else []
    return found + ([f"+refs/tags/{tag}:refs/tags/{tag}"] if tag else [])


def _steps(turn: Turn) -> list[dict[str, Any]]:
    job = turn.job
    steps: list[dict[str, Any]] = [
        {"name": "script", "script": [*job.before_script, *job.script], "when": "on_success", "allow_failure": False}
    ]
    if job.after_script:
        after = {"name": "after_script", "script": list(job.after_script), "when": "always", "allow_failure": True}
        steps.append(after)
    return [step | {"timeout": turn.timeout} for step in steps]


def _artifacts(artifacts: Artifacts) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if artifacts.paths:
        archive = {
            "name": artifacts.name or None, "untracked": None, "paths": list(artifacts.paths), "when": artifacts.when,
            "expire_in": artifacts.expire_in, "artifact_type": "archive", "artifact_format": "zip",
        }  # fmt: skip
        found.append(archive | ({"exclude": list(artifacts.exclude)} if artifacts.exclude else {}))
    for kind, paths in artifacts.reports.items():
        report = {
            "name": REPORT_FILES.get(kind), "paths": list(paths), "when": "always", "expire_in": artifacts.expire_in,
            "artifact_type": kind, "artifact_format": "gzip",
        }  # fmt: skip
        found.append({name: value for name, value in report.items() if value is not None})
    return found


def _dependency(turn: Turn, other: Outcome) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": other.last.entry.id, "name": other.job.name, "token": turn.token}
    if other.last.artifacts is not None:
        size = other.last.artifacts.stat().st_size
        shown["artifacts_file"] = {"filename": "artifacts.zip", "size": size}
    return shown
