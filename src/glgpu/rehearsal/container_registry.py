"""The stand-in container registry: manifests, and the tokens that it wants for them.

The protocol is the distribution specification's (https://distribution.github.io/distribution/spec/api/,
https://distribution.github.io/distribution/spec/auth/token/): whoever comes without a token is told where to get one.
One server answers for every registry; the Host header says which one is meant.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.world_clock import WorldClock

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
HUB = "docker.io"
LAYER_BYTES = 2_000_000_000
"""What the one layer of an image weighs, packed."""


@dataclass
class Repository:
    """One image with all its tags.

    Attributes:
        platforms: What it is built for.
        login: User and password without which nobody gets it; None: everybody does.
        layer_bytes: What its layer weighs, packed.
    """

    platforms: tuple[str, ...] = ("linux/amd64",)
    login: tuple[str, str] | None = None
    layer_bytes: int = LAYER_BYTES


class ContainerRegistry:
    """The server.

    Attributes:
        endpoint: ``http://127.0.0.1:PORT``; known from ``start`` on.
        images: Image as people write it, with its tag, to what is there; may be changed at any time.
        down: Whether it cuts every connection.
    """

    def __init__(self, clock: WorldClock, calls: CallLog) -> None:
        self.endpoint = ""
        self.images: dict[str, Repository] = {}
        self.down = False
        self._clock = clock
        self._calls = calls
        self._tokens: dict[str, tuple[str, str] | None] = {}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Begin to serve."""
        app = web.Application(middlewares=[self._calls.interposer.middleware("registry")])
        app.router.add_get("/v2/{name:.+}/manifests/{reference}", self._manifest)
        app.router.add_get("/v2/{name:.+}/blobs/{digest}", self._blob)
        app.router.add_get("/token", self._token)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.endpoint = f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        found = self._admitted(request)
        if isinstance(found, web.StreamResponse):
            return found
        reference, indexed = request.match_info["reference"], len(found.platforms) > 1
        manifests = {_digest(_manifest(found, platform)): _manifest(found, platform) for platform in found.platforms}
        if reference.startswith("sha256:"):
            if reference not in manifests:
                return self._refuse(request, 404, "MANIFEST_UNKNOWN", "manifest unknown")
            return self._answer(request, manifests[reference], MANIFEST)
        accepted = [kind.strip() for field in request.headers.getall("Accept", []) for kind in field.split(",")]
        if indexed and INDEX in accepted:
            return self._answer(request, _index(found), INDEX)
        return self._answer(request, next(iter(manifests.values())), MANIFEST)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        found = self._admitted(request)
        if isinstance(found, web.StreamResponse):
            return found
        configs = {_digest(_config(platform)): _config(platform) for platform in found.platforms}
        if request.match_info["digest"] not in configs:
            return self._refuse(request, 404, "BLOB_UNKNOWN", "blob unknown to registry")
        return self._answer(request, configs[request.match_info["digest"]], CONFIG)

    async def _token(self, request: web.Request) -> web.StreamResponse:
        self._cut_if_down(request)
        login = _login(request)
        known = {one.login for one in self.images.values()}
        if login is not None and login not in known:
            return self._refuse(request, 401, "UNAUTHORIZED", "incorrect username or password")
        token = secrets.token_urlsafe(24)
        self._tokens[token] = login
        return self._answer(request, json.dumps({"token": token, "expires_in": 300}).encode(), "application/json")

    def _admitted(self, request: web.Request) -> Repository | web.StreamResponse:
        """What is asked for, or the refusal: first the token, then whether it is there, as registries do."""
        self._cut_if_down(request)
        name = request.match_info["name"]
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        found = self._find(request.host, name, request.match_info.get("reference", ""))
        if scheme.lower() != "bearer" or token not in self._tokens:
            return self._challenge(request, name)
        if found is not None and found.login is not None and self._tokens[token] != found.login:
            return self._challenge(request, name)
        return found or self._refuse(request, 404, "MANIFEST_UNKNOWN", "manifest unknown")

    def _find(self, host: str, name: str, reference: str) -> Repository | None:
        for image, repository in self.images.items():
            path, _, tag = image.rpartition(":")
            if path == f"{host}/{name}" and (reference in ("", tag) or reference.startswith("sha256:")):
                return repository
        return None

    def _challenge(self, request: web.Request, name: str) -> web.StreamResponse:
        challenge = f'Bearer realm="{self.endpoint}/token",service="{request.host}",scope="repository:{name}:pull"'
        return self._refuse(
            request, 401, "UNAUTHORIZED", "authentication required", headers={"WWW-Authenticate": challenge}
        )

    def _cut_if_down(self, request: web.Request) -> None:
        if self.down and request.transport is not None:
            self._log(request, None)
            request.transport.abort()
            raise web.HTTPServiceUnavailable

    def _answer(self, request: web.Request, body: bytes, kind: str) -> web.StreamResponse:
        self._log(request, 200)
        headers = {"Docker-Content-Digest": _digest(body), "Docker-Distribution-Api-Version": "registry/2.0"}
        return web.Response(body=body, content_type=kind, headers=headers)

    def _refuse(
        self, request: web.Request, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> web.StreamResponse:
        self._log(request, status)
        return web.json_response({"errors": [{"code": code, "message": message}]}, status=status, headers=headers)

    def _log(self, request: web.Request, status: int | None) -> None:
        self._calls.add(
            "registry",
            request.method,
            str(request.rel_url),
            at=self._clock.now(),
            status=status,
            headers=dict(request.headers),
        )


def full_name(image: str) -> str:
    """An image with its registry, its repository and its tag, as Docker completes it."""
    first, slash, _ = image.partition("/")
    if not (slash and ("." in first or ":" in first or first == "localhost")):
        image = f"{HUB}/{image}" if slash else f"{HUB}/library/{image}"
    return image if ":" in image.rpartition("/")[2] else f"{image}:latest"


def _login(request: web.Request) -> tuple[str, str] | None:
    scheme, _, rest = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return user, password


def _config(platform: str) -> bytes:
    system, _, architecture = platform.partition("/")
    return json.dumps({"architecture": architecture, "os": system, "rootfs": {"type": "layers"}}).encode()


def _manifest(repository: Repository, platform: str) -> bytes:
    config = _config(platform)
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "size": len(config), "digest": _digest(config)},
        "layers": [{"mediaType": LAYER, "size": repository.layer_bytes, "digest": _digest(platform.encode())}],
    }
    return json.dumps(document).encode()


def _index(repository: Repository) -> bytes:
    entries = []
    for platform in repository.platforms:
        manifest = _manifest(repository, platform)
        system, _, architecture = platform.partition("/")
        entries.append(
            {
                "mediaType": MANIFEST,
                "size": len(manifest),
                "digest": _digest(manifest),
                "platform": {"os": system, "architecture": architecture},
            }
        )
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
