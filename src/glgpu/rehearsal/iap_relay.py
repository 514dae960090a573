"""The stand-in of Identity-Aware Proxy's TCP forwarding: a WebSocket that carries bytes to a VM's port.

The frames are those that gcloud speaks with ``tunnel.cloudproxy.app`` (its module ``iap_tunnel_websocket_utils``).
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
import struct
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from aiohttp import WSMsgType, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.compute_engine import ComputeEngine
from glgpu.rehearsal.compute_instances import SSH_PORT_ITEM, Instance
from glgpu.rehearsal.google_cloud import GoogleCloud
from glgpu.rehearsal.seams import IAP_SOURCE, Network
from glgpu.rehearsal.world_clock import WorldClock

SUBPROTOCOL = "relay.tunnel.cloudproxy.app"
PATH = "/v4"
CONNECT_SUCCESS, DATA, ACK = 0x0001, 0x0004, 0x0007
LARGEST_DATA = 16_384
"""Bytes of one frame's data."""
BACKEND_FAILED, NOT_AUTHORIZED, NO_INSTANCE = 4003, 4033, 4047
PERMISSION = "iap.tunnelInstances.accessViaIAP"


class IapRelay:
    """The server.

    Attributes:
        endpoint: ``wss://127.0.0.1:PORT/v4``; known from ``start`` on. gcloud wants TLS.
        certificate: File with the certificate that clients have to trust.
    """

    def __init__(
        self,
        folder: Path,
        clock: WorldClock,
        calls: CallLog,
        network: Network,
        google: GoogleCloud,
        compute: ComputeEngine,
    ) -> None:
        self.endpoint = ""
        self.certificate = folder / "certificate.pem"
        self._clock = clock
        self._calls = calls
        self._network = network
        self._google = google
        self._compute = compute
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Begin to serve."""
        app = web.Application()
        app.router.add_get(f"{PATH}/connect", self._connect)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        self.certificate.parent.mkdir(parents=True, exist_ok=True)
        key = self.certificate.with_name("key.pem")
        write_certificate(self.certificate, key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        host, port = self._runner.addresses[0][:2]
        self.endpoint = f"wss://{host}:{port}{PATH}"

    async def stop(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        principal = self._google.project.tokens.find(token) if scheme.lower() == "bearer" else None
        status = 101 if principal else 401
        self._calls.add("iap", "GET", request.raw_path, at=self._clock.now(), status=status)
        if principal is None:
            return web.Response(status=status)
        answer = web.WebSocketResponse(protocols=(SUBPROTOCOL,), max_msg_size=1 << 20)
        await answer.prepare(request)
        instance = self._compute.instances.find(request.query.get("zone", ""), request.query.get("instance", ""))
        if not self._google.project.access.allows(principal, PERMISSION):
            await answer.close(code=NOT_AUTHORIZED, message=b"not authorized")
        elif instance is None:
            await answer.close(code=NO_INSTANCE, message=b"Failed to lookup instance")
        else:
            await self._forward(answer, instance, request.query.get("port", ""))
        return answer

    async def _forward(self, caller: web.WebSocketResponse, instance: Instance, port: str) -> None:
        """Carry bytes both ways until one side ends."""
        known = instance.metadata().get(SSH_PORT_ITEM) == port
        if not (known and self._compute.instances.may_connect(instance, IAP_SOURCE, int(port))):
            await caller.close(code=BACKEND_FAILED, message=b"failed to connect to backend")
            return
        plug = socket.socket()
        plug.bind(("127.0.0.1", 0))
        own_port = int(plug.getsockname()[1])
        self._network.proxied[own_port] = IAP_SOURCE
        plug.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(plug, ("127.0.0.1", int(port)))
            reader, writer = await asyncio.open_connection(sock=plug)
        except OSError:
            plug.close()
            del self._network.proxied[own_port]
            await caller.close(code=BACKEND_FAILED, message=b"failed to connect to backend")
            return
        name = secrets.token_urlsafe(24).encode()
        await caller.send_bytes(struct.pack(">HI", CONNECT_SUCCESS, len(name)) + name)
        outward = asyncio.create_task(_to_caller(reader, caller))
        try:
            await _to_backend(caller, writer)
        finally:
            outward.cancel()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            del self._network.proxied[own_port]


def write_certificate(certificate: Path, key: Path) -> None:
    """A certificate for the loopback address that vouches for itself."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rehearsal")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    key.touch(mode=0o600)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


async def _to_caller(reader: asyncio.StreamReader, caller: web.WebSocketResponse) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(LARGEST_DATA):
            await caller.send_bytes(struct.pack(">HI", DATA, len(data)) + data)
    await caller.close()


async def _to_backend(caller: web.WebSocketResponse, writer: asyncio.StreamWriter) -> None:
    received = 0
    async for message in caller:
        if message.type is not WSMsgType.BINARY:
            return
        (tag,) = struct.unpack(">H", message.data[:2])
        if tag == DATA:
            data = message.data[6:]
            received += len(data)
            try:
                writer.write(data)
                await writer.drain()
            except ConnectionError:
                return
            await caller.send_bytes(struct.pack(">HQ", ACK, received))
