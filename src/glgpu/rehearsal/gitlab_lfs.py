"""Large files of the stand-in GitLab: the batch API of git-lfs, and the way to it from SSH.

The protocol is git-lfs' own (docs/api in git-lfs/git-lfs); paths and the SSH answer are GitLab's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from glgpu.rehearsal.gitlab_http import ApiError, Host, basic_credentials
from glgpu.rehearsal.gitlab_model import DeployKey, Project, secret

MEDIA_TYPE = "application/vnd.git-lfs+json"
TICKET_SECONDS = 7200
MISSING = {"code": 404, "message": "Object does not exist on the server or you don't have permissions to access it"}


@dataclass(frozen=True)
class Ticket:
    """What an SSH login was given for HTTP."""

    key: DeployKey
    project: Project
    expires_at: float


def store(folder: Path, project: Project) -> Path:
    """Where a project's large files lie, each under its SHA-256."""
    path = folder / "lfs" / str(project.id)
    path.mkdir(parents=True, exist_ok=True)
    return path


def import_objects(folder: Path, project: Project, source: Path) -> None:
    """Take over the large files that a local repository (bare or not) has."""
    for root in (source / ".git" / "lfs" / "objects", source / "lfs" / "objects"):
        for file in root.glob("??/??/*"):
            shutil.copyfile(file, store(folder, project) / file.name)


class Lfs:
    """Tickets for SSH logins, and the requests that come with them or with any other credentials."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.tickets: dict[tuple[str, str], Ticket] = {}

    def ticket(self, key: DeployKey, project: Project) -> bytes:
        """The answer to ``git-lfs-authenticate`` over SSH."""
        login, password = f"lfs+deploy-key-{key.id}", secret("")
        self.tickets[login, password] = Ticket(key, project, self.host.state.clock.now() + TICKET_SECONDS)
        header = {"Authorization": "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode()}
        href = f"{self.host.url}/{project.path}.git/info/lfs"
        return json.dumps({"header": header, "href": href, "expires_in": TICKET_SECONDS}).encode()

    def admit(self, request: web.Request, *, write: bool) -> Project | None:
        """The project that the request's ticket opens; None where there is no ticket.

        Raises:
            ApiError: The ticket is over, or its key may not do this any more.
        """
        ticket = self.tickets.get(basic_credentials(request) or ("", ""))
        if ticket is None:
            return None
        may_push = ticket.key.projects.get(ticket.project.id)
        if self.host.state.clock.now() >= ticket.expires_at or may_push is None:
            raise ApiError.message(401, "Access denied")
        if ticket.project.path != request.match_info["project"] or (write and not may_push):
            raise ApiError.message(403, "Access forbidden. Check your access level.")
        return ticket.project

    async def batch(self, request: web.Request, project: Project) -> web.StreamResponse:
        """Say where each wanted file is, or is to go."""
        asked: dict[str, Any] = await request.json()
        objects = []
        for wanted in asked["objects"]:
            oid, size = str(wanted["oid"]), int(wanted["size"])
            there = (store(self.host.state.folder, project) / oid).is_file()
            href = f"{self.host.url}/{project.path}.git/gitlab-lfs/objects/{oid}"
            header = {"Authorization": request.headers["Authorization"]}
            shown: dict[str, Any] = {"oid": oid, "size": size}
            if asked["operation"] == "download" and there:
                shown |= {"authenticated": True, "actions": {"download": {"href": href, "header": header}}}
            elif asked["operation"] == "download":
                shown["error"] = MISSING
            elif not there:
                header["Content-Type"] = "application/octet-stream"
                shown |= {"authenticated": True, "actions": {"upload": {"href": f"{href}/{size}", "header": header}}}
            objects.append(shown)
        return web.json_response({"objects": objects}, content_type=MEDIA_TYPE)

    async def download(self, request: web.Request, project: Project) -> web.StreamResponse:
        """One file."""
        path = store(self.host.state.folder, project) / request.match_info["oid"]
        if not path.is_file():
            return web.json_response({"message": MISSING["message"]}, status=404, content_type=MEDIA_TYPE)
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    async def upload(self, request: web.Request, project: Project) -> web.StreamResponse:
        """Keep one file, if it is what its name says."""
        oid, size = request.match_info["oid"], int(request.match_info["size"])
        path = store(self.host.state.folder, project) / oid
        part, digest, got = path.with_suffix(".part"), hashlib.sha256(), 0
        with part.open("wb") as target:
            async for chunk in request.content.iter_chunked(1 << 18):
                digest.update(chunk)
                got += len(chunk)
                target.write(chunk)
        if (digest.hexdigest(), got) != (oid, size):
            part.unlink()
            return web.json_response({"message": "SHA256 or size mismatch"}, status=400, content_type=MEDIA_TYPE)
        part.rename(path)
        return web.Response(status=200)

    async def locks(self, _: web.Request, __: Project) -> web.StreamResponse:
        """Nobody holds a file lock here."""
        return web.json_response({"ours": [], "theirs": [], "next_cursor": None}, content_type=MEDIA_TYPE)
