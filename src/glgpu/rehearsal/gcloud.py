"""A gcloud that can do one thing, for machines without the real one: ``compute start-iap-tunnel --listen-on-stdin``.

Speaks with the relay as the real one does, and refuses whatever else it is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import ssl
import struct
import sys
from contextlib import suppress
from pathlib import Path

from glgpu.settings import process_environment

SUBPROTOCOL = "relay.tunnel.cloudproxy.app"
CONNECT_SUCCESS, DATA, ACK = 0x0001, 0x0004, 0x0007
LARGEST_DATA = 16_384
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="gcloud", allow_abbrev=False)
    parser.add_argument("group", choices=["compute"])
    parser.add_argument("command", choices=["start-iap-tunnel"])
    parser.add_argument("instance")
    parser.add_argument("port", type=int)
    parser.add_argument("--listen-on-stdin", action="store_true", required=True)
    parser.add_argument("--project", required=True)
    parser.add_argument("--zone", required=True)
    parser.add_argument("--verbosity")
    parser.add_argument("--iap-tunnel-url-override", required=True)
    told = parser.parse_args()
    problem = asyncio.run(tunnel(told, access_token()))
    if problem:
        # The exit code stays 0, as with the real one (528.0.0).
        print(f"ERROR: [0] Error during local connection to [stdin]: {problem}", file=sys.stderr)


def access_token() -> str:
    """The token that the properties name, or that the credentials which they name are good for."""
    environment = process_environment()
    file = environment.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE")
    if file:
        return Path(file).read_text(encoding="utf-8").strip()
    import google.auth
    import google.auth.transport.requests

    path = environment.get("CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE")
    if not path:
        sys.exit("ERROR: (gcloud.compute.start-iap-tunnel) You do not currently have an active account selected.")
    found, _ = google.auth.load_credentials_from_file(path, scopes=[SCOPE])
    found.refresh(google.auth.transport.requests.Request())
    return str(found.token)


async def tunnel(told: argparse.Namespace, token: str) -> str:
    """Carry standard input and output through the tunnel; why it could not be opened, if so."""
    import aiohttp

    query = {
        "project": told.project,
        "port": str(told.port),
        "newWebsocket": "True",
        "zone": told.zone,
        "instance": told.instance,
        "interface": "nic0",
    }
    trusted = ssl.create_default_context(cafile=process_environment().get("CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE"))
    headers = {"Authorization": f"Bearer {token}"}
    address = f"{told.iap_tunnel_url_override}/connect"
    async with aiohttp.ClientSession() as session:
        try:
            socket = await session.ws_connect(
                address, params=query, headers=headers, protocols=[SUBPROTOCOL], ssl=trusted
            )
        except aiohttp.WSServerHandshakeError as error:
            return f"Error while connecting [Handshake status {error.status}]. (May be due to missing permissions)"
        first = await socket.receive()
        if first.type is not aiohttp.WSMsgType.BINARY or struct.unpack(">H", first.data[:2])[0] != CONNECT_SUCCESS:
            more = f" (Failed to connect to port {told.port})" if socket.close_code == 4003 else ""
            return f"Error while connecting [{socket.close_code}: {str(first.extra)!r}].{more}"
        sending = asyncio.create_task(_send(socket))
        await _receive(socket)
        sending.cancel()
    return ""


async def _send(socket: object) -> None:
    import aiohttp

    assert isinstance(socket, aiohttp.ClientWebSocketResponse)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    with suppress(ConnectionError):
        while data := await reader.read(LARGEST_DATA):
            await socket.send_bytes(struct.pack(">HI", DATA, len(data)) + data)
    await socket.close()


async def _receive(socket: object) -> None:
    import aiohttp

    assert isinstance(socket, aiohttp.ClientWebSocketResponse)
    received = 0
    async for message in socket:
        (tag,) = struct.unpack(">H", message.data[:2])
        if tag == DATA:
            data = message.data[6:]
            received += len(data)
            await asyncio.to_thread(_write, data)
            with suppress(ConnectionError):
                await socket.send_bytes(struct.pack(">HQ", ACK, received))


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
