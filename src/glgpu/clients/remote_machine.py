"""The VM through the OpenSSH client: commands and streams over one login; host key pinned, settings only ours."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import selectors
import socket as socketlib
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from glgpu.clients.key_pair import make_key_pair
from glgpu.disk import cannot_write
from glgpu.interfaces import Endpoint, Proxy
from glgpu.processes import Done, Running, TimedOut, attached, environment, need_tool, run
from glgpu.run_record import write_atomically

USER = "glgpu"
CONNECT_SECONDS = 10
LOGIN_SECONDS = 30.0
"""How long a login may take in all: ssh watches over the connection before and after it, and not in between."""
LOST = 255
"""ssh's own exit code: there is no connection (ssh(1))."""
COMPLAINT_BYTES = 8192
AHEAD_BYTES = 1 << 20
"""How much of a command's output waits for us, and is read at once; what Linux lets anybody have."""
BREATH_SECONDS = 0.02
"""Between two looks at output that comes without a pause: whatever came meanwhile is read at once."""
STAY = "echo; exec cat"
"""The command of the shared login: a line as soon as there is one, and an end as soon as there is no glgpu any more."""
_NO_SOCKET = re.compile(r"unix_listener|mux listener|Control(?:Path|Socket)")
"""OpenSSH's complaints about a folder in which no socket can be (``muxserver_listen`` in its mux.c)."""


class RemoteMachine:
    """One VM, as the user ``glgpu``.

    A login takes ten times as long as a command, so all commands share one, as OpenSSH's ControlMaster. When it breaks,
    they break with it, and the next command logs in anew.

    Args:
        endpoint: Where its SSH server answers.
        folder: Holds the login key ``login`` and gets the file of known hosts.
        host_key: The pinned key as ``ssh-ed25519 AAAA...``.
        proxy: The way there, where it is not direct.
    """

    def __init__(self, endpoint: Endpoint, folder: Path, host_key: str, proxy: Proxy | None = None) -> None:
        address, port = endpoint.address or endpoint.name, endpoint.port
        self._env = environment(proxy.environment) if proxy else None
        self._folder = folder = folder.absolute()
        self._login: RemoteStream | None = None
        # Relative to the folder that every ssh runs in: a socket's path may have no more than a hundred characters.
        self._socket = "none"
        self._logging_in = threading.Lock()
        self._shares = True
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
            # Both ends' processors have instructions for it, and none for the default, which goes first otherwise.
            "Ciphers": "^aes128-gcm@openssh.com",
            "ConnectTimeout": str(CONNECT_SECONDS),
            # A dead connection is noticed after 15 s: silence looks like a long step of the training otherwise.
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "LogLevel": "ERROR",
        }
        if proxy:
            options["ProxyCommand"] = proxy.command
        self._options = {"HostName": address, "Port": str(port), "User": USER, **options}
        self._ssh = need_tool("ssh", "to reach the VM")
        self._argv = ["-F", "/dev/null", "-T", "-p", str(port), "-l", USER]
        for name, value in options.items():
            self._argv += ["-o", f"{name}={value}"]
        self._argv += [address]

    def run(self, script: str, *, stdin: bytes = b"", timeout: float = 60) -> Done:
        """Run a shell command to its end; 255 when there is no connection."""
        begun = time.monotonic()
        refused = self._log_in(timeout)
        argv = self._shared(script)
        if refused is not None:
            with refused:
                code = refused.wait(0)
                return Done(argv, code, b"", (refused.complaint or _silent(timeout)).encode())
        left = max(timeout - (time.monotonic() - begun), 0.0)
        try:
            done = run(argv, stdin=stdin, timeout=left, env=self._env, cwd=self._folder)
        except TimedOut:
            return Done(argv, LOST, b"", _silent(timeout).encode())
        return replace(done, code=_code(done.code))

    def attached(self, script: str) -> int:
        """Run a shell command, or where it is empty a login shell, with what this process reads and writes; its code.

        255 when there is no connection. A login shell gets a terminal where this process has one.
        """
        words = [*self._argv, script] if script else ["-t" if word == "-T" else word for word in self._argv]
        return _code(attached([self._ssh, *words], env=self._env))

    @contextmanager
    def stream(self, script: str, *, timeout: float | None = None) -> Iterator[RemoteStream]:
        """Start a shell command and talk to it; leaving the context ends the connection.

        Args:
            script: The command.
            timeout: Seconds after which the connection is cut, whatever it is about.
        """
        begun = time.monotonic()
        refused = self._log_in(timeout)
        if refused is not None:
            with refused:
                yield refused
            return
        with self._start(self._shared(script)) as stream:
            left = None if timeout is None else max(timeout - (time.monotonic() - begun), 0.0)
            cut = threading.Timer(left, stream.cut) if left is not None else None
            if cut is not None:
                cut.daemon = True
                cut.start()
            try:
                yield stream
            finally:
                if cut is not None:
                    cut.cancel()

    @contextmanager
    def forward(self, socket: str, port: int = 0) -> Iterator[Tunnel]:
        """Lead a port of this machine's loopback to a UNIX socket on the VM, by a login of its own.

        The one that the commands share would end with each command that breaks it.

        Args:
            socket: The socket's path there.
            port: The port here; 0: one that is free.
        """
        port = port or _free_port()
        leads = ["-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{port}:{socket}"]
        with self._start([self._ssh, *leads, *self._argv, STAY]) as stream:
            yield Tunnel(port, stream)

    def options(self) -> dict[str, str]:
        """OpenSSH's options for the way to the VM, ``HostName``, ``Port`` and ``User`` among them."""
        return dict(self._options)

    def hang_up(self) -> None:
        """End the login that the commands share; the next one logs in anew."""
        with self._logging_in:
            if self._login is not None:
                self._login.close()
                self._login = None

    def _log_in(self, timeout: float | None) -> RemoteStream | None:
        """Log in, where nobody is or the connection broke; the try that came to nothing, else None."""
        with self._logging_in:
            if not self._shares or (self._login is not None and self._login.lives):
                return None
            if self._login is not None:
                self._login.close()
            self._socket = f"login-{secrets.token_hex(4)}"
            login = self._start([self._ssh, "-M", "-S", self._socket, *self._argv, STAY])
            try:
                if next(login.chunks(min(LOGIN_SECONDS, LOGIN_SECONDS if timeout is None else timeout)), b""):
                    self._login = login
                    return None
                login.cut()
                login.wait(CONNECT_SECONDS)
            except BaseException:
                login.close()
                raise
            if _NO_SOCKET.search(login.complaint):
                self._shares = False
                login.close()
                return None
            return login

    def _shared(self, script: str) -> list[str]:
        """The command line of a command; without a login to share, ssh connects by itself."""
        return [self._ssh, "-S", self._socket, *self._argv, script]

    def _start(self, argv: Sequence[str]) -> RemoteStream:
        return RemoteStream(argv, self._folder, self._env)


class RemoteStream:
    """A command that runs on the VM.

    Args:
        argv: The command line of its ssh.
        folder: Where that runs.
        env: Its environment; None: ours.

    Raises:
        Failure: TOOL_MISSING or DISK_FULL.
    """

    def __init__(self, argv: Sequence[str], folder: Path, env: Mapping[str, str] | None) -> None:
        with ExitStack() as held:
            # A file and no pipe: the shared login has the other end of it too, for as long as the command runs.
            try:
                self._errors = held.enter_context(tempfile.TemporaryFile(dir=folder))
            except OSError as error:
                raise cannot_write(error, folder) from None
            self._process = held.enter_context(
                Running(argv, env=env, stdin=True, stderr=self._errors, cwd=folder, buffer=AHEAD_BYTES)
            )
            _widen(self._process.stdout)
            self._held = held.pop_all()

    def __enter__(self) -> RemoteStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

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
        # The place in the file is one with ssh's: it must not move.
        place = max(0, os.fstat(self._errors.fileno()).st_size - COMPLAINT_BYTES)
        return os.pread(self._errors.fileno(), COMPLAINT_BYTES, place).decode("utf-8", "replace").strip()

    def chunks(self, quiet: float | None = None) -> Iterator[bytes]:
        """Its output as it comes, and an empty piece whenever there is none for ``quiet`` seconds."""
        # A plain read of the descriptor returns what is there; the buffered one waits for a whole block.
        source, last = self._process.stdout.fileno(), 0.0
        with selectors.DefaultSelector() as ready:
            ready.register(source, selectors.EVENT_READ)
            while True:
                if not ready.select(quiet):
                    yield b""
                    continue
                time.sleep(max(0.0, last + BREATH_SECONDS - time.monotonic()))
                last = time.monotonic()
                data = os.read(source, AHEAD_BYTES)
                if not data:
                    return
                yield data

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; 255 when the connection broke, or did not end within ``timeout`` seconds."""
        try:
            return _code(self._process.wait(timeout))
        except TimedOut:
            return LOST

    def cut(self) -> None:
        """End it where it is; what it has said can still be read."""
        self._process.popen.kill()

    def close(self) -> None:
        """End it, and have done with it."""
        self._held.close()


class Tunnel:
    """A port of this machine's own loopback that leads to a socket on the VM.

    Args:
        port: The port.
        stream: The login that it goes through.
    """

    def __init__(self, port: int, stream: RemoteStream) -> None:
        self.port = port
        self._stream = stream

    def opens(self, seconds: float) -> bool:
        """Whether it leads there within so many seconds: ssh listens before it runs a command there."""
        return bool(next(self._stream.chunks(seconds), b""))

    def last(self) -> None:
        """Stay until it breaks."""
        for _ in self._stream.chunks():
            pass
        self._stream.wait(CONNECT_SECONDS)

    @property
    def complaint(self) -> str:
        """Why it broke, as far as anything tells."""
        return self._stream.complaint


def _free_port() -> int:
    """A port of the loopback on which nobody listens now."""
    with socketlib.socket(socketlib.AF_INET, socketlib.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _widen(pipe: IO[bytes]) -> None:
    """Let more of it wait for us than the 64 KiB of Linux: whoever writes need not wait for us as often."""
    with suppress(OSError, AttributeError):  # the user has too many already; not Linux
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, AHEAD_BYTES)


def _silent(seconds: float) -> str:
    return f"no answer within {seconds:.0f} s"


def _code(code: int) -> int:
    """The exit code of a command on the VM; an ssh that a signal ended is a connection that broke."""
    return code if code >= 0 else LOST


def make_login_key(folder: Path, comment: str) -> str:
    """Make the key pair ``login`` in a folder, or take the one that is there; the public half.

    Raises:
        Failure: TOOL_MISSING or DISK_FULL.
    """
    return make_key_pair(folder / "login", comment, "opens the VM")
