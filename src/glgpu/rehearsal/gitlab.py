"""The stand-in GitLab: API v4, git over SSH and HTTP, the page with its host keys. Everything on loopback."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import asyncssh
from aiohttp import web

from glgpu.rehearsal import gitlab_ci, gitlab_projects, gitlab_repository, gitlab_terraform
from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.faults import Faults
from glgpu.rehearsal.gitlab_description import load
from glgpu.rehearsal.gitlab_entities import fingerprints
from glgpu.rehearsal.gitlab_git import GitOverHttp, GitOverSsh, SshGate
from glgpu.rehearsal.gitlab_http import Api, Trigger
from glgpu.rehearsal.gitlab_lfs import Lfs, import_objects
from glgpu.rehearsal.gitlab_model import Project, User
from glgpu.rehearsal.gitlab_pushes import Pushes
from glgpu.rehearsal.gitlab_state import GitLabState
from glgpu.rehearsal.runner_api import RunnerApi
from glgpu.rehearsal.seams import Network
from glgpu.rehearsal.world_clock import WorldClock

HANDLERS = (gitlab_ci, gitlab_projects, gitlab_repository, gitlab_terraform)
"""The modules whose import registers the API's handlers."""

KEYS_PATH = "/oauth/discovery/keys"
WORKER_SECONDS = 3600.0
"""How often GitLab looks for environments whose time has come."""
LARGEST_BODY = 64 << 20
"""Bytes of a request that are held in memory; package files are streamed to disk and may be larger."""


class GitLab(GitLabState):
    """A GitLab of its own.

    Args:
        folder: Where it keeps what it cannot keep in memory.
        clock: The world's clock.
        faults: What goes wrong. Points: ``gitlab.request`` (every API request), ``gitlab.<resource>.<verb>`` as the
            handlers name them (``gitlab.deploy_keys.create``, ``gitlab.state.lock``), ``git.connect`` (each SSH
            connection and each request of git over HTTP). Actions: ``unauthorized``, ``forbidden``, ``not-found``,
            ``unavailable`` (argument: 502 or 503), ``down`` (closed without an answer), ``silence``.
        calls: Where requests are logged, as ``gitlab`` and ``git``.
        network: Under whose address callers are logged.
        trigger: Makes a pipeline for the API and for schedules: project, ref, source, user, variables.

    Attributes:
        url: Base address once started, for example ``http://127.0.0.1:40001``.
        ssh_host: Where git's SSH server listens.
        ssh_port: Its port.
        version: What ``GET /version`` says.
        shows_host_keys: Whether its help page has the fingerprints of its SSH host keys.
        runners: Its side towards runners.
    """

    def __init__(
        self,
        folder: Path,
        clock: WorldClock,
        faults: Faults,
        calls: CallLog,
        network: Network,
        *,
        trigger: Trigger | None = None,
    ) -> None:
        super().__init__(folder, clock)
        self.faults = faults
        self.calls = calls
        self.network = network
        self.trigger = trigger
        self.version = f"{load().gitlab_version}.0"
        self.shows_host_keys = True
        self.url = ""
        self.ssh_host = "127.0.0.1"
        self.ssh_port = 0
        self.stopping = asyncio.Event()
        self.runners = RunnerApi(self)
        self._hourly = False
        self._http_port = 0
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        self._runner: web.AppRunner | None = None
        self._ssh: asyncssh.SSHAcceptor | None = None
        self._lfs = Lfs(self)
        self._pushes = Pushes(self)
        self._over_ssh = GitOverSsh(self, self._lfs, self._pushes)

    def create_project(self, path: str, repository: Path | None = None, *, owner: User | None = None) -> Project:
        """Add a project with all refs and large files of ``repository`` (bare or not), if given."""
        project = super().create_project(path, repository, owner=owner)
        if repository is not None:
            import_objects(self.folder, project, repository)
        return project

    @property
    def state(self) -> GitLabState:
        """The model, for the handlers."""
        return self

    @property
    def host_key_lines(self) -> list[str]:
        """The SSH server's keys in the form of known_hosts."""
        key = self._host_key.export_public_key().decode().split()
        return [f"[{self.ssh_host}]:{self.ssh_port} {key[0]} {key[1]}"]

    async def start(self) -> None:
        """Listen; after a stop on the same ports as before."""
        self.stopping = asyncio.Event()
        if not self._hourly:
            self._hourly = True
            self._look_in_an_hour()
        app = web.Application(client_max_size=LARGEST_BODY, middlewares=[self.calls.interposer.middleware("gitlab")])
        app.on_response_prepare.append(self.clock.date)
        self.runners.add_routes(app)
        Api(self).add_routes(app)
        app.router.add_post("/api/graphql", partial(gitlab_terraform.graphql, self))
        app.router.add_get("/help/instance_configuration", self._instance_configuration)
        app.router.add_get("/.well-known/openid-configuration", self._openid_configuration)
        app.router.add_get(KEYS_PATH, self._keys)
        app.router.add_get("/object-storage/{signature}", self._stored)
        GitOverHttp(self, self._lfs, self._pushes).add_routes(app)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._http_port)
        await site.start()
        self._http_port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._http_port}"
        self._ssh = await asyncssh.create_server(
            lambda: SshGate(self),
            self.ssh_host,
            self.ssh_port,
            server_host_keys=[self._host_key],
            process_factory=self._over_ssh.handle,
            encoding=None,
            line_editor=False,
        )
        self.ssh_port = self._ssh.get_port()

    def _look_in_an_hour(self) -> None:
        def look() -> None:
            if self._runner is not None:
                self.auto_stop()
            self._look_in_an_hour()

        self.clock.call_at(self.clock.now() + WORKER_SECONDS, look)

    async def stop(self) -> None:
        """Close everything; what is silent or running is cut off."""
        self.stopping.set()
        self._over_ssh.stop()
        if self._ssh is not None:
            self._ssh.close()
            await self._ssh.wait_closed()
            self._ssh = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _openid_configuration(self, request: web.Request) -> web.StreamResponse:
        """What GitLab says of itself as an issuer of tokens (OpenID Connect Discovery 1.0)."""
        self._note(request)
        return web.json_response(
            {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/oauth/authorize",
                "token_endpoint": f"{self.url}/oauth/token",
                "userinfo_endpoint": f"{self.url}/oauth/userinfo",
                "jwks_uri": self.url + KEYS_PATH,
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
            }
        )

    async def _keys(self, request: web.Request) -> web.StreamResponse:
        """The keys by which identity tokens of jobs are believed."""
        self._note(request)
        return web.json_response({"keys": [self.id_tokens.public]})

    async def _stored(self, request: web.Request) -> web.StreamResponse:
        """The object storage behind GitLab; a stranger to whoever is sent here."""
        headers = dict(request.headers)
        self.calls.add("object storage", "GET", str(request.rel_url), at=self.clock.now(), status=200, headers=headers)
        path = self.signed.get(request.match_info["signature"])
        return web.FileResponse(path) if path else web.Response(status=403)

    def _note(self, request: web.Request) -> None:
        self.calls.add(
            "gitlab", "GET", str(request.rel_url), at=self.clock.now(), status=200, headers=dict(request.headers)
        )

    async def _instance_configuration(self, request: web.Request) -> web.StreamResponse:
        """What the instance tells of itself: SSH host keys and limits (app/views/help/instance_configuration/)."""
        md5, sha256 = fingerprints(self._host_key.export_public_key().decode().split()[1])
        row = f"<tr><td>ED25519</td><td><code>{md5}</code></td><td><code>{sha256}</code></td></tr>"
        row = row if self.shows_host_keys else ""
        page = f"""<!DOCTYPE html>
<html><body>
<h2 id="ssh-host-keys-fingerprints">SSH host key fingerprints</h2>
<p>Below are the fingerprints for the current instance SSH host keys.</p>
<div class="table-responsive">
<table>
<thead><tr><th>Algorithm</th><th>MD5</th><th>SHA256</th></tr></thead>
<tbody>{row}</tbody>
</table>
</div>
<h2 id="size-limits">Size Limits</h2>
<table>
<thead><tr><th>Setting</th><th>127.0.0.1</th></tr></thead>
<tbody>
<tr>
<td>Maximum push size</td>
<td>-</td>
</tr>
<tr>
<td>Maximum job artifact size</td>
<td>{self.artifact_limit_mb} MB</td>
</tr>
</tbody>
</table>
</body></html>
"""
        self._note(request)
        return web.Response(text=page, content_type="text/html")
