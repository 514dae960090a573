"""The git side of the stand-in GitLab: SSH for deploy keys, HTTP for job tokens and access tokens. git itself serves.

Refusals have GitLab's texts (lib/gitlab/git_access.rb) in gitlab-shell's frame (internal/console/console.go).
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol

import asyncssh
from aiohttp import web

from glgpu.rehearsal.gitlab_http import UNAVAILABLE_PAGE, ApiError, Host, basic_credentials, check_token, strike
from glgpu.rehearsal.gitlab_lfs import MEDIA_TYPE, Lfs
from glgpu.rehearsal.gitlab_model import DeployKey, Project, Role
from glgpu.rehearsal.gitlab_pushes import Pushes

UNKNOWN_PROJECT = "The project you were looking for could not be found or you don't have permission to view it."
READ_ONLY_KEY = "This deploy key does not have write access to this project."
ACCESS_DENIED = (
    "HTTP Basic: Access denied. If a password was provided for Git authentication, the password was incorrect or "
    "you're required to use a token instead of a password. If a token was provided, it was either incorrect, expired, "
    "or improperly scoped. See {url}/help/topics/git/troubleshooting_git.md"
    "#error-on-git-fetch-http-basic-access-denied"
)
READING = frozenset({"git-upload-pack", "git-upload-archive"})
LFS = "git-lfs-authenticate"
WRITING = frozenset({"git-receive-pack"})
CHUNK = 1 << 18


LargeHandler = Callable[[web.Request, Project], Awaitable[web.StreamResponse]]


class Reader(Protocol):
    """Where bytes come from."""

    async def read(self, n: int = -1) -> bytes:
        """Up to ``n`` bytes; none at the end."""


class Writer(Protocol):
    """Where bytes go to."""

    def write(self, data: bytes) -> Any:
        """Take bytes."""

    async def drain(self) -> None:
        """Wait until there is room again."""


async def _pump(source: Reader, target: Writer) -> None:
    with contextlib.suppress(ConnectionError, asyncssh.Error):
        while chunk := await source.read(CHUNK):
            target.write(chunk)
            await target.drain()


def framed(text: str) -> str:
    """A refusal as gitlab-shell prints it."""
    ruler = "remote: \nremote: " + "=" * 72 + "\nremote: \n"
    return f"{ruler}remote: ERROR: {text}\n{ruler}"


class SshGate(asyncssh.SSHServer):
    """Who may log in: the user ``git`` with a registered deploy key."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.connection: asyncssh.SSHServerConnection | None = None
        self.fault = ""

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """A fault of the point ``git.connect`` strikes before anything is said."""
        self.connection = conn
        rule = self.host.faults.at("git.connect")
        self.fault = rule.action if rule else ""
        if self.fault == "down":
            conn.abort()

    async def begin_auth(self, username: str) -> bool:
        """Everybody has to authenticate; a silent GitLab never gets so far."""
        del username
        if self.fault == "silence":
            await self.host.stopping.wait()
        return True

    def public_key_auth_supported(self) -> bool:
        """Keys only."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Called twice for each login, so that it has no effect but to remember the key."""
        if username != "git" or self.fault == "unauthorized" or self.connection is None:
            return False
        blob = key.export_public_key().split()[1].decode()
        for known in self.host.state.deploy_keys.values():
            if known.blob == blob:
                self.connection.set_extra_info(deploy_key=known, fault=self.fault)
                return True
        return False


def _exit(process: asyncssh.SSHServerProcess[bytes], status: int) -> None:
    """Tell a caller, who may be gone, how its command ended."""
    with contextlib.suppress(asyncssh.Error, OSError):
        process.exit(status)


class GitOverSsh:
    """Runs what gitlab-shell would run."""

    def __init__(self, host: Host, lfs: Lfs, pushes: Pushes) -> None:
        self.host = host
        self.lfs = lfs
        self.pushes = pushes
        self.running: set[Process] = set()

    async def handle(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """One command of one login."""
        await self.host.calls.interposer.session("git", process, lambda: self._serve(process))

    async def _serve(self, process: asyncssh.SSHServerProcess[bytes]) -> Callable[[], None]:
        """Serve it; what tells the caller how it ended."""
        key = process.get_extra_info("deploy_key")
        status, text = 1, ""
        try:
            if process.command is None:
                process.stdout.write(b"Welcome to GitLab, Anonymous!\n")
                status = 0
            elif process.get_extra_info("fault") in ("unavailable", "forbidden", "not-found"):
                text = "Internal API unreachable"
            else:
                verb, project, text = self._judge(process.command, key)
                if project is not None and verb == LFS:
                    process.stdout.write(self.lfs.ticket(key, project))
                    status = 0
                elif project is not None:
                    status = await self._run(process, verb, project, key)
            if text:
                process.stderr.write(framed(text).encode())
        except BaseException:
            _exit(process, 1)
            raise
        finally:
            state = self.host.state
            self.host.calls.add(
                "git", "ssh", process.command or "", at=state.clock.now(), status=status, key=key.title, refusal=text
            )
        return lambda: _exit(process, status)

    def _judge(self, command: str, key: DeployKey) -> tuple[str, Project | None, str]:
        """The verb and the project that may be served, or why not."""
        state = self.host.state
        try:
            words = shlex.split(command)
        except ValueError:
            words = []
        if words and words[0] == "git" and len(words) > 1:
            words = [f"git-{words[1]}", *words[2:]]
        lfs = len(words) == 3 and words[0] == LFS and words[2] in ("download", "upload")
        if not lfs and (len(words) != 2 or words[0] not in READING | WRITING):
            return "", None, "Disallowed command"
        now = state.clock.now()
        if key.expired(now):
            return "", None, "Your SSH key has expired."
        project = state.find_project(words[1].strip("/").removesuffix(".git"))
        if project is None or project.id not in key.projects:
            return "", None, UNKNOWN_PROJECT
        if (words[0] in WRITING or words[-1] == "upload") and not key.projects[project.id]:
            return "", None, READ_ONLY_KEY
        key.last_used_at = now
        return words[0], project, ""

    async def _run(self, process: asyncssh.SSHServerProcess[bytes], verb: str, project: Project, key: DeployKey) -> int:
        protocol = process.env.get("GIT_PROTOCOL", "")
        extra = {"GIT_PROTOCOL": str(protocol)} if protocol else {}
        if verb in WRITING:
            extra |= self.pushes.environment(project, key)
        child = await asyncio.create_subprocess_exec(
            "git", verb.removeprefix("git-"), str(project.repository),
            stdin=PIPE, stdout=PIPE, stderr=PIPE, env=self.host.state.git_environment(**extra),
        )  # fmt: skip
        self.running.add(child)
        try:
            if child.stdin is None or child.stdout is None or child.stderr is None:
                raise RuntimeError("git was started without pipes")
            feeding = asyncio.ensure_future(self._feed(process, child.stdin))
            telling = [
                asyncio.ensure_future(_pump(child.stdout, process.stdout)),
                asyncio.ensure_future(_pump(child.stderr, process.stderr)),
            ]
            gone = asyncio.ensure_future(process.channel.wait_closed())
            ended = asyncio.ensure_future(asyncio.wait(telling))
            await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                child.kill()
                await ended
            gone.cancel()
            feeding.cancel()
            status = await child.wait()
            if verb in WRITING:
                self.pushes.ended(project, key, extra)
            return status
        finally:
            self.running.discard(child)

    @staticmethod
    async def _feed(process: asyncssh.SSHServerProcess[bytes], target: asyncio.StreamWriter) -> None:
        await _pump(process.stdin, target)
        with contextlib.suppress(ConnectionError):
            target.close()

    def stop(self) -> None:
        """End what still runs."""
        for child in list(self.running):
            with contextlib.suppress(ProcessLookupError):
                child.kill()


class GitOverHttp:
    """git's smart HTTP protocol by way of ``git http-backend``."""

    ROUTE = r"/{project:.+}.git/{service:(info/refs|git-upload-pack|git-receive-pack)}"

    def __init__(self, host: Host, lfs: Lfs, pushes: Pushes) -> None:
        self.host = host
        self.lfs = lfs
        self.pushes = pushes

    def add_routes(self, app: web.Application) -> None:
        """Add the protocol itself and that of large files."""
        app.router.add_route("*", self.ROUTE, self.handle)
        for method, path, serve in (
            ("POST", "/info/lfs/objects/batch", self.lfs.batch),
            ("POST", "/info/lfs/locks/verify", self.lfs.locks),
            ("GET", "/gitlab-lfs/objects/{oid:[0-9a-f]{64}}", self.lfs.download),
            ("PUT", "/gitlab-lfs/objects/{oid:[0-9a-f]{64}}/{size:[0-9]+}", self.lfs.upload),
        ):
            app.router.add_route(method, "/{project:.+}.git" + path, partial(self._large, serve))

    async def _large(self, serve: LargeHandler, request: web.Request) -> web.StreamResponse:
        """Serve a request for large files, with a ticket from SSH or with what git itself takes."""
        write = request.method == "PUT" or b'"upload"' in (await request.read() if request.method == "POST" else b"")
        try:
            project = self.lfs.admit(request, write=write)
            if project is None:
                project, _ = self._admit(request, "git-receive-pack" if write else "git-upload-pack")
        except ApiError as error:
            self._log(request, error.status)
            headers = {"LFS-Authenticate": 'Basic realm="GitLab"'} if error.status == 401 else {}
            return web.json_response(error.body, status=error.status, headers=headers, content_type=MEDIA_TYPE)
        response = await serve(request, project)
        self._log(request, response.status)
        return response

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one request; it is logged with the answer's status."""
        rule = self.host.faults.at("git.connect")
        if rule is not None:
            self._log(request, None)
            return await strike(self.host, request, rule)
        service = request.match_info["service"]
        verb = request.query.get("service", "") if service == "info/refs" else service
        try:
            project, user = self._admit(request, verb)
        except ApiError as error:
            self._log(request, error.status)
            headers = {"WWW-Authenticate": 'Basic realm="GitLab"'} if error.status == 401 else {}
            return web.Response(status=error.status, text=str(error.body["message"]), headers=headers)
        pusher = next((one for one in self.host.state.users.values() if one.username == user), None)
        pushing = self.pushes.environment(project, pusher) if pusher and service in WRITING else {}
        response = await self._backend(request, project, user, pushing)
        if pusher and pushing:
            self.pushes.ended(project, pusher, pushing)
        self._log(request, response.status)
        return response

    def _admit(self, request: web.Request, verb: str) -> tuple[Project, str]:
        """The project, if this caller may do that with it.

        Raises:
            ApiError: With GitLab's text in ``message``.
        """
        state = self.host.state
        if verb not in ("git-upload-pack", "git-receive-pack"):
            raise ApiError.message(403, "Git access over HTTP is not allowed")
        credentials = basic_credentials(request)
        denied = ApiError.message(401, ACCESS_DENIED.format(url=self.host.url))
        if credentials is None:
            raise denied
        login, password = credentials
        project = state.find_project(request.match_info["project"])
        unknown = ApiError.message(404, UNKNOWN_PROJECT)
        if login == "gitlab-ci-token":
            job = state.find_running_job(password)
            if job is None:
                raise denied
            if project is None or project.role(job.user) < Role.REPORTER:
                raise unknown
            home = job.pipeline.project
            if home is not project and home.id not in project.job_token_allowlist:
                text = f"Authentication by CI/CD job token not allowed from {home.path} to {project.path}."
                raise ApiError.message(403, text)
            if verb in WRITING:
                raise ApiError.message(403, "You are not allowed to upload code.")
            return project, job.user.username
        if project is not None:
            for deploy_token in project.deploy_tokens.values():
                if (deploy_token.username, deploy_token.value) == credentials:
                    dead = deploy_token.revoked or deploy_token.expired(state.clock.now())
                    if dead or "read_repository" not in deploy_token.scopes:
                        raise denied
                    if verb in WRITING:
                        raise ApiError.message(403, "You are not allowed to upload code.")
                    return project, login
        token = state.find_token(password)
        if token is None:
            raise denied
        scopes = ("api", "write_repository") if verb in WRITING else ("api", "read_repository", "write_repository")
        try:
            check_token(state, token, scopes)
        except ApiError:
            raise denied from None
        if project is None or project.role(token.user) == Role.NONE:
            raise unknown
        if project.role(token.user) < (Role.DEVELOPER if verb in WRITING else Role.REPORTER):
            text = "push code to" if verb in WRITING else "download code from"
            raise ApiError.message(403, f"You are not allowed to {text} this project.")
        return project, token.user.username

    async def _backend(
        self, request: web.Request, project: Project, user: str, pushing: Mapping[str, str]
    ) -> web.StreamResponse:
        """Run git as a CGI program; the request's body has already been unpacked, and its length is not known."""
        extra = {
            "GIT_PROJECT_ROOT": str(project.repository), "GIT_HTTP_EXPORT_ALL": "1", "REMOTE_USER": user,
            "REQUEST_METHOD": request.method, "QUERY_STRING": request.query_string,
            "PATH_INFO": f"/{request.match_info['service']}", "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""), **pushing,
        }  # fmt: skip
        child = await asyncio.create_subprocess_exec(
            "git", "http-backend", stdin=PIPE, stdout=PIPE, env=self.host.state.git_environment(**extra)
        )
        if child.stdin is None or child.stdout is None:
            raise RuntimeError("git was started without pipes")
        feeding = asyncio.ensure_future(self._feed(request, child.stdin))
        try:
            status, headers = 200, {}
            while line := (await child.stdout.readline()).decode("latin-1").strip():
                name, _, value = line.partition(":")
                if name.lower() == "status":
                    status = int(value.split()[0])
                else:
                    headers[name] = value.strip()
            if not headers:
                return web.Response(status=502, text=UNAVAILABLE_PAGE, content_type="text/html")
            response = web.StreamResponse(status=status, headers=headers)
            await response.prepare(request)
            while chunk := await child.stdout.read(CHUNK):
                await response.write(chunk)
            await response.write_eof()
            return response
        finally:
            feeding.cancel()
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    @staticmethod
    async def _feed(request: web.Request, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            async for chunk in request.content.iter_chunked(CHUNK):
                target.write(chunk)
                await target.drain()
            target.close()

    def _log(self, request: web.Request, status: int | None) -> None:
        self.host.calls.add(
            "git", request.method, str(request.rel_url), at=self.host.state.clock.now(), status=status,
            headers=dict(request.headers), source=self.host.network.caller_address,
        )  # fmt: skip
