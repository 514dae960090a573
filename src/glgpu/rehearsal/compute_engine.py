"""The stand-in Compute Engine: an HTTP server on the loopback interface that answers as Google's API does.

Every request and every answer is held to Google's own API description. A request that breaks it is refused as Google
would; an answer of ours that breaks it becomes a 500 that names the field, so that a test finds the mistake.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import email.parser
import email.policy
import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import psutil
from aiohttp import web

from glgpu.rehearsal import cloud_catalogue as catalogue
from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.compute_errors import (
    ApiError,
    api_disabled,
    denied_by_policy,
    malformed,
    may_not_act_as,
    not_found,
    permission_denied,
    rate_limited,
    unauthenticated,
    unavailable,
)
from glgpu.rehearsal.compute_instances import SSH_PORT_ITEM, Instances, TokenOfVm
from glgpu.rehearsal.compute_methods import INSERT_FAULTS, Firewalls, Methods, Request, resource_path
from glgpu.rehearsal.compute_operations import Operations
from glgpu.rehearsal.compute_permissions import permission, permissions
from glgpu.rehearsal.compute_resources import Links, Resource, fingerprint, new_id
from glgpu.rehearsal.faults import Faults, Rule
from glgpu.rehearsal.google_api import Method, Violation, compute_api
from glgpu.rehearsal.seams import MachineRoom, Network
from glgpu.rehearsal.world_clock import WorldClock

API_ROOT = "/compute/v1/"
BATCH_PATH = "/batch/compute/v1"
ECHO_PATH = "/echo"
STATE_ROOT = "/rehearsal/v1/instances/"

LATER_FAULTS = INSERT_FAULTS | {"address"}
"""Actions that spoil what a method does or says, and not the request."""

TRACED = frozenset({"instances", "firewalls"})
"""Collections whose inserts are logged with the calling process and its ancestors."""

LARGEST_BODY = 16 * 1024 * 1024

NOT_IMPLEMENTED = 501

IMAGE_PROJECTS = frozenset(image.project for image in catalogue.IMAGES)


class _ConnectionCut(Exception):
    """The caller is to see its connection closed without an answer."""


class _Unforeseen(ApiError):
    """A refusal that Google would not give: this stand-in does not know what to do."""


@dataclass(frozen=True)
class Call:
    """One request, whether it came alone or in a batch.

    Attributes:
        verb: HTTP method.
        target: Path and query, as sent.
        headers: Header fields, names in lower case.
        body: As sent.
        peer: Address and port of the caller's end of the connection.
    """

    verb: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    peer: tuple[str, int]

    @property
    def path(self) -> str:
        """The path alone, decoded."""
        return unquote(urlsplit(self.target).path)


class ComputeEngine:
    """The server.

    Args:
        folder: Where it keeps what it cannot keep in memory.
        clock: The world's clock.
        faults: What goes wrong, by the methods' names.
        calls: Where requests are logged, as ``compute``.
        network: Under whose address callers are seen.
        machines: Whoever runs the VMs.
        project: Id of the one project.
        tokens: The access tokens that it takes.
        allows: Whether whoever has a token has a permission in the project, or on a service account.
        token_of_vm: What a VM's service account logs in with.
        latency: Seconds that each operation takes.

    Attributes:
        endpoint: ``http://127.0.0.1:PORT``; known from ``start`` on.
        operations: Its ``latency`` may be changed at any time.
        instances: Its limits and capacities may be changed at any time.
        amendments: Change an answer, by the method's name: for a catalogue that differs from the one that is built in.
    """

    def __init__(
        self,
        folder: Path,
        clock: WorldClock,
        faults: Faults,
        calls: CallLog,
        network: Network,
        machines: MachineRoom,
        *,
        project: str,
        tokens: Container[str],
        allows: Callable[[str, str, str], bool] = lambda _token, _permission, _account: True,
        token_of_vm: TokenOfVm = lambda _email, _scopes: None,
        latency: float = 0.0,
    ) -> None:
        self.endpoint = ""
        self.amendments: list[Callable[[str, Resource], Resource]] = []
        self._folder = folder
        self._clock = clock
        self._faults = faults
        self._calls = calls
        self._network = network
        self._machines = machines
        self._project = project
        self._tokens = tokens
        self._allows = allows
        self._token_of_vm = token_of_vm
        self._latency = latency
        self._api = compute_api()
        self._runner: web.AppRunner | None = None
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Begin to serve, with an empty project."""
        self._folder.mkdir(parents=True, exist_ok=True)
        app = web.Application(client_max_size=LARGEST_BODY, middlewares=[self._calls.interposer.middleware("compute")])
        app.router.add_route("*", "/{path:.*}", self._receive)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.endpoint = f"http://{host}:{port}"
        self._links = Links(self.endpoint + API_ROOT, self._project)
        user = f"glgpu@{self._project}.iam.gserviceaccount.com"
        self.operations = Operations(self._clock, self._links, user, self._latency)
        firewalls = Firewalls()
        self.instances = Instances(
            self._folder, self._clock, self._links, self.operations, self._machines, firewalls.admits, self._faults,
            self._token_of_vm,
        )  # fmt: skip
        self._methods = Methods(self._api, self._clock, self._links, self.operations, self.instances, firewalls)

    async def stop(self) -> None:
        """Stop serving. The VMs are the machine room's to end."""
        self._stopping.set()
        if self._runner is not None:
            await self.operations.stop()
            await self._runner.cleanup()

    # From the wire to the API

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        call = Call(
            verb=request.method,
            target=request.raw_path,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.read(),
            peer=tuple(peer[:2]) if peer else ("", 0),
        )
        try:
            if call.path == BATCH_PATH:
                return await self._batch(call)
            if call.path == ECHO_PATH:
                self._log(call, 200)
                return web.Response(text=self._network.caller_address + "\n")
            status, body = await self._serve(call)
        except _ConnectionCut:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        return web.json_response(body, status=status, dumps=_as_google)

    async def _batch(self, call: Call) -> web.Response:
        """Several calls in one: each is served as if it had come alone, in order."""
        self._log(call, 200)
        head = f"Content-Type: {call.headers.get('content-type', '')}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + call.body)
        if not message.is_multipart():
            return web.json_response(malformed("Failed to parse batch request.").body(), status=400)
        boundary = f"batch_{new_id()}"
        parts = []
        for part in message.iter_parts():
            payload = part.get_payload(decode=True)
            status, body = await self._serve(_inner_call(payload if isinstance(payload, bytes) else b"", call))
            text = _as_google(body)
            length = len(text.encode())
            content_id = str(part.get("Content-ID", "")).strip("<>")
            parts.append(
                f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: <response-{content_id}>\r\n\r\n"
                f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\n"
                f"Content-Type: application/json; charset=UTF-8\r\nContent-Length: {length}\r\n\r\n{text}\r\n"
            )
        return web.Response(
            body="".join([*parts, f"--{boundary}--\r\n"]).encode(),
            headers={"Content-Type": f"multipart/mixed; boundary={boundary}"},
        )

    async def _serve(self, call: Call) -> tuple[int, Resource]:
        """Serve one call; writes it to the log before it is answered, or when it stays without an answer."""
        caller: list[str] = []
        if call.verb == "POST" and call.path.rpartition("/")[2] in TRACED:
            caller = await asyncio.to_thread(ancestry, call.peer)
        unserved = ""
        try:
            status, body = 200, await self._answer(call)
        except ApiError as refusal:
            status, body = refusal.code, refusal.body()
            unserved = str(refusal) if isinstance(refusal, _Unforeseen) or status == NOT_IMPLEMENTED else ""
        except Violation as violation:
            status, body = 400, malformed(str(violation)).body()
            unserved = str(violation)
        except _ConnectionCut:
            self._log(call, None, caller)
            raise
        self._log(call, status, caller, unserved)
        return status, body

    async def _answer(self, call: Call) -> Resource:
        await self._unless_broken(self._faults.at("compute.request"), "compute.request", self._project)
        if call.path.startswith(STATE_ROOT):
            return await self._state_document(call)
        found = self._api.find(call.verb, call.path.removeprefix(API_ROOT)) if call.path.startswith(API_ROOT) else None
        if found is None:
            raise _Unforeseen(404, "notFound", f"The requested URL {call.path} was not found on this server.")
        method, names = found
        token = self._authenticate(call)
        pairs = parse_qsl(urlsplit(call.target).query, keep_blank_values=True)
        self._api.check_query(method, pairs)
        body = self._api.read_request(method, _json(call.body))
        path = resource_path(names, method, body or {})
        fault = self._faults.at(method.id, names.get("zone") or names.get("region") or "")
        await self._unless_broken(fault, permission(method), path)
        if names.get("project") != self._project and not _is_public(method, names):
            raise permission_denied(permission(method), f"projects/{names.get('project')}")
        for needed in [] if _is_public(method, names) else permissions(method, body or {}):
            if not self._allows(token, needed, ""):
                raise permission_denied(needed, path)
        for account in (body or {}).get("serviceAccounts", []) if method.id == "compute.instances.insert" else []:
            if not self._allows(token, "iam.serviceAccounts.actAs", account["email"]):
                raise may_not_act_as(account["email"])
        answer = await self._methods.answer(Request(method, names, dict(pairs), body or {}, fault))
        if fault is not None and fault.action == "address":
            answer = with_address(answer, fault.argument)
        for amend in self.amendments:
            answer = amend(method.id, answer)
        return self._checked(method, answer)

    def _checked(self, method: Method, answer: Resource) -> Resource:
        try:
            self._api.check_response(method, answer)
        except Violation as violation:
            raise _Unforeseen(
                500,
                "backendError",
                f"The stand-in's answer breaks the API description at {violation.field}: {violation}",
            ) from violation
        return answer

    async def _unless_broken(self, fault: Rule | None, permission_name: str, path: str) -> None:
        """Act on a fault that any request may meet, and leave the others to whom they concern.

        Raises:
            ApiError: The fault is a refusal, or nobody knows its action.
            _ConnectionCut: The fault is a lost connection.
        """
        if fault is None or fault.action in LATER_FAULTS:
            return
        match fault.action:
            case "permission-denied":
                raise permission_denied(permission_name, path)
            case "api-disabled":
                raise api_disabled(self._project)
            case "refuse":
                raise denied_by_policy(path)
            case "unavailable":
                raise unavailable()
            case "rate-limit":
                raise rate_limited(int(fault.argument or 429))
            case "not-found":
                raise not_found(path)
            case "unauthenticated":
                raise unauthenticated(given=True)
            case "reset":
                raise _ConnectionCut
            case "silence":
                await self._stopping.wait()
                raise _ConnectionCut
            case "slow":
                await asyncio.sleep(float(fault.argument))
            case unknown:
                raise _Unforeseen(500, "backendError", f"The stand-in knows no fault '{unknown}' at {fault.point}.")

    def _authenticate(self, call: Call) -> str:
        scheme, _, token = call.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or token not in self._tokens:
            raise unauthenticated(given=bool(scheme))
        return token

    def _log(self, call: Call, status: int | None, caller: list[str] | None = None, unserved: str = "") -> None:
        self._calls.add(
            "compute",
            call.verb,
            call.target,
            at=self._clock.now(),
            status=status,
            headers=dict(call.headers),
            body=call.body.decode(errors="replace"),
            caller=caller,
            unserved=unserved,
        )

    # For the Terraform module that needs no provider

    async def _state_document(self, call: Call) -> Resource:
        """An instance as a Terraform state document, which the data source ``terraform_remote_state`` reads.

        Raises:
            ApiError: Another path, or credentials that were not meant for this address.
        """
        words = call.path.removeprefix(STATE_ROOT).split("/")
        nobody = "Basic " + base64.b64encode(b"none:none").decode()
        if call.verb != "GET" or len(words) != 3 or words[2] != "state":
            raise ApiError(404, "notFound", f"The requested URL {call.path} was not found on this server.")
        if call.headers.get("authorization", nobody) != nobody:
            raise unauthenticated(given=True)
        zone, name, _ = words
        point = "compute.instances.state"
        fault = self._faults.at(point)
        await self._unless_broken(fault, point, f"projects/{self._project}/zones/{zone}/instances/{name}")
        instance = self.instances.find(zone, name)
        outputs: Resource = {}
        if instance is not None:
            resource = instance.resource
            if fault is not None and fault.action == "address":
                resource = with_address(resource, fault.argument)
            outputs["instance"] = _state_output(resource, zone, instance.metadata())
        return {
            "version": 4,
            "terraform_version": "1.3.0",
            "serial": 1,
            "lineage": fingerprint([zone, name]),
            "outputs": outputs,
            "resources": [],
        }


def with_address(answer: Resource, address: str) -> Resource:
    """A copy of an answer in which every external address is another one."""
    changed = copy.deepcopy(answer)
    todo: list[Any] = [changed]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if "natIP" in value:
                value["natIP"] = address
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)
    return changed


def ancestry(peer: tuple[str, int]) -> list[str]:
    """Command lines of the process at the other end of a connection and of its ancestors, nearest first.

    Best effort: another user's process may not be seen, and one that has ended is not there any more.
    """
    try:
        ends = psutil.net_connections("tcp4")
        process = next((psutil.Process(e.pid) for e in ends if e.laddr == peer and e.pid), None)
        return [] if process is None else [" ".join(p.cmdline()) for p in [process, *process.parents()]]
    except psutil.Error:
        return []


def _state_output(resource: Resource, zone: str, metadata: dict[str, str]) -> Resource:
    interface = resource["networkInterfaces"][0]
    internal = interface["networkIP"]
    external = [config["natIP"] for config in interface.get("accessConfigs", []) if "natIP" in config]
    value = {
        "name": resource["name"],
        "zone": zone,
        "status": resource["status"],
        "address": external[0] if external else internal,
        "internal_address": internal,
        "instance_id": resource["id"],
        "ssh_port": int(metadata.get(SSH_PORT_ITEM, 22)),
    }
    types = {key: "number" if isinstance(entry, int) else "string" for key, entry in value.items()}
    return {"value": value, "type": ["object", types]}


def _inner_call(text: bytes, outer: Call) -> Call:
    """Read one call out of a batch; what it does not say of credentials, the batch said."""
    head, _, body = text.partition(b"\r\n\r\n") if b"\r\n\r\n" in text else text.partition(b"\n\n")
    first, *lines = head.decode().splitlines()
    verb, target, *_ = first.split()
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "authorization" in outer.headers:
        headers.setdefault("authorization", outer.headers["authorization"])
    parts = urlsplit(target)
    return Call(verb, parts.path + (f"?{parts.query}" if parts.query else ""), headers, body.strip(), outer.peer)


def _json(body: bytes) -> Any:
    if not body.strip():
        return None
    try:
        return json.loads(body)
    except ValueError:
        raise malformed("Invalid JSON payload received. Parse error.") from None


def _as_google(body: Any) -> str:
    return json.dumps(body, indent=2, ensure_ascii=False)


def _is_public(method: Method, names: dict[str, str]) -> bool:
    return method.resource == "images" and method.http_method == "GET" and names.get("project") in IMAGE_PROJECTS
