"""Unix sockets inside a folder whose path may be longer than the 107 bytes that an address can hold."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def _short(path: Path) -> Iterator[str]:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listen(path: Path) -> socket.socket:
    """Listen at ``path``, which is made anew; only its owner may connect."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        with _short(path) as address:
            server.bind(address)
    finally:
        os.umask(before)
    server.listen(64)
    return server


def connect(path: Path) -> socket.socket:
    """Connect to whoever listens at ``path``.

    Raises:
        OSError: Nobody does.
    """
    client = socket.socket(socket.AF_UNIX)
    try:
        with _short(path) as address:
            client.connect(address)
    except OSError:
        client.close()
        raise
    return client


def ask(path: Path, question: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
    """Send one JSON line, with file descriptors if given, and wait for the one that answers it.

    Raises:
        OSError: Nobody listens, or the other side ended without an answer.
    """
    with connect(path) as client:
        socket.send_fds(client, [json.dumps(question).encode() + b"\n"], fds)
        with client.makefile("rb") as answers:
            line = answers.readline()
    if not line:
        raise ConnectionResetError(f"no answer at {path}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def receive(client: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Read one JSON line and its file descriptors; None when the other side ended instead."""
    try:
        data, fds, _, _ = socket.recv_fds(client, 65536, 3)
    except ConnectionResetError:
        # A client that was killed with an answer unread.
        return None
    while data and not data.endswith(b"\n"):
        more = client.recv(65536)
        data = data + more if more else b""
    if not data:
        for fd in fds:
            with suppress(OSError):
                os.close(fd)
        return None
    return json.loads(data), list(fds)
