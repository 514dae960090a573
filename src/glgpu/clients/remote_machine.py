"""The VM through the OpenSSH client: commands and streams; host key pinned, the host's own configuration left out."""

from __future__ import annotations

import os
import selectors
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from glgpu.disk import cannot_write
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Endpoint, Proxy
from glgpu.processes import Done, Running, TimedOut, attached, environment, need_tool, run
from glgpu.run_record import write_atomically

USER = "glgpu"
CONNECT_SECONDS = 10
LOST = 255
"""ssh's own exit code: there is no connection (ssh(1))."""


class RemoteMachine:
    """One VM, as the user ``glgpu``.

    Args:
        endpoint: Where its SSH server answers.
        folder: Holds the login key ``login`` and gets the file of known hosts.
        host_key: The pinned key as ``ssh-ed25519 AAAA...``.
        proxy: The way there, where it is not direct.
    """

    def __init__(self, endpoint: Endpoint, folder: Path, host_key: str, proxy: Proxy | None = None) -> None:
        address, port = endpoint.address or endpoint.name, endpoint.port
        self._env = environment(proxy.environment) if proxy else None
        known = folder / f"known_hosts-{address}-{port}"
        try:
            write_atomically(known, f"[{address}]:{port} {host_key}\n{address} {host_key}\n".encode("ascii"))
        except OSError as error:
            raise cannot_write(error, known) from None
        options = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "IdentityFile": f'"{folder / "login"}"',
            "UserKnownHostsFile": f'"{known}"',
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "HostKeyAlgorithms": "ssh-ed25519",
            "ConnectTimeout": str(CONNECT_SECONDS),
            # A dead connection is noticed after 15 s: silence looks like a long step of the training otherwise.
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "LogLevel": "ERROR",
        }
        if proxy:
            options["ProxyCommand"] = proxy.command
        self._argv = [need_tool("ssh", "to reach the VM"), "-F", "/dev/null", "-T", "-p", str(port), "-l", USER]
        for name, value in options.items():
            self._argv += ["-o", f"{name}={value}"]
        self._argv += [address]

    def run(self, script: str, *, stdin: bytes = b"", timeout: float = 60) -> Done:
        """Run a shell command to its end; 255 when there is no connection."""
        argv = [*self._argv, script]
        try:
            done = run(argv, stdin=stdin, timeout=timeout, env=self._env)
        except TimedOut:
            return Done(argv, LOST, b"", f"no answer within {timeout:.0f} s".encode())
        return replace(done, code=_code(done.code))

    def attached(self, script: str) -> int:
        """Run a shell command, or where it is empty a login shell, with what this process reads and writes; its code.

        255 when there is no connection. A login shell gets a terminal where this process has one.
        """
        argv = [*self._argv, script] if script else ["-t" if word == "-T" else word for word in self._argv]
        return _code(attached(argv, env=self._env))

    @contextmanager
    def stream(self, script: str, *, timeout: float | None = None) -> Iterator[RemoteStream]:
        """Start a shell command and talk to it; leaving the context ends the connection.

        Args:
            script: The command.
            timeout: Seconds after which the connection is cut, whatever it is about.
        """
        with Running([*self._argv, script], env=self._env, stdin=True, stderr=True) as process:
            cut = threading.Timer(timeout, process.popen.kill) if timeout is not None else None
            if cut is not None:
                cut.daemon = True
                cut.start()
            try:
                yield RemoteStream(process)
            finally:
                if cut is not None:
                    cut.cancel()


class RemoteStream:
    """A command that runs on the VM; its standard error is drained beside us so that it never blocks."""

    def __init__(self, process: Running) -> None:
        self._process = process
        self._tail: deque[bytes] = deque(maxlen=40)
        self._drain = threading.Thread(target=self._read_errors, daemon=True)
        self._drain.start()

    @property
    def stdin(self) -> IO[bytes]:
        """Its standard input."""
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """Its standard output."""
        return self._process.stdout

    @property
    def complaint(self) -> str:
        """The end of its standard error, complete once it has ended."""
        return b"".join(self._tail).decode("utf-8", "replace").strip()

    def chunks(self, quiet: float | None = None) -> Iterator[bytes]:
        """Its output as it comes, and an empty piece whenever there is none for ``quiet`` seconds."""
        # A plain read of the descriptor returns what is there; the buffered one waits for a whole block.
        source = self._process.stdout.fileno()
        with selectors.DefaultSelector() as ready:
            ready.register(source, selectors.EVENT_READ)
            while True:
                if not ready.select(quiet):
                    yield b""
                elif data := os.read(source, 65536):
                    yield data
                else:
                    return

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; 255 when the connection broke, or did not end within ``timeout`` seconds."""
        try:
            code = self._process.wait(timeout)
        except TimedOut:
            return LOST
        self._drain.join(5)
        return _code(code)

    def _read_errors(self) -> None:
        # The pipe is closed under us when the connection is given up.
        with suppress(ValueError):
            for line in self._process.stderr:
                self._tail.append(line)


def _code(code: int) -> int:
    """The exit code of a command on the VM; an ssh that a signal ended is a connection that broke."""
    return code if code >= 0 else LOST


def make_login_key(folder: Path, comment: str) -> str:
    """Make the key pair ``login`` in a folder, or take the one that is there; the public half.

    Raises:
        Failure: TOOL_MISSING or DISK_FULL.
    """
    key = folder / "login"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise cannot_write(error, folder) from None
    if not key.with_suffix(".pub").exists():
        key.unlink(missing_ok=True)
        keygen = need_tool("ssh-keygen", "to make the key that opens the VM")
        done = run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key)], timeout=30)
        if done.code != 0:
            raise Failure(
                ErrorClass.DISK_FULL, f"no login key could be made: {done.complaint}", "make room, then retry"
            )
    return " ".join(key.with_suffix(".pub").read_text(encoding="ascii").split()[:2])
