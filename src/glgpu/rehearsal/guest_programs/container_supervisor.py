"""Watches one container of the process-based engine: its process, its log, its end. Started by ``docker run``.

It outlives the client that started it, is the root of everything in the container, and answers at ``control`` in the
container's folder: ``follow`` (a byte for every new log entry), ``wait``, ``kill`` and ``exec``.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import time_ns
from typing import Any

import psutil

from glgpu.rehearsal.guest_programs import folder_socket
from glgpu.rehearsal.guest_programs.process_tree import ProcessTree

LONGEST_ENTRY = 16 * 1024
"""Docker cuts longer lines into entries of this many bytes."""


def timestamp() -> str:
    """Now, in the form of the json-file driver: RFC 3339, nanoseconds, no trailing zeros."""
    seconds, nanoseconds = divmod(time_ns(), 1_000_000_000)
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


def as_go_text(data: bytes) -> str:
    """Decode as Go's JSON encoder does: every byte that is no UTF-8 becomes one replacement character."""
    return data.decode("utf-8", "surrogateescape").translate(REPLACEMENTS)


REPLACEMENTS = {0xDC00 + byte: "\ufffd" for byte in range(128, 256)}


def start_failure(argv: list[str], path: str) -> tuple[int, str, str] | None:
    """Tell why ``argv`` cannot start with that PATH: exit code, runc's words, the system's words; None if it can."""
    if "/" not in argv[0]:
        if shutil.which(argv[0], path=path) is None:
            return 127, f'exec: "{argv[0]}": executable file not found in $PATH', "No such file or directory"
    elif not Path(argv[0]).exists():
        return 127, f'exec: "{argv[0]}": stat {argv[0]}: no such file or directory', "No such file or directory"
    elif not os.access(argv[0], os.X_OK) or Path(argv[0]).is_dir():
        return 126, f'exec: "{argv[0]}": permission denied', "Permission denied"
    return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file as a whole."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(content), encoding="utf-8")
    new.replace(path)


class Stream:
    """One output stream of the container on its way into the log."""

    def __init__(self, name: str, add: Callable[[str, str, str], None]) -> None:
        self.name = name
        self.add = add
        self.buffer = b""
        self.entry_time = ""
        """When the line being cut began to be written; Docker gives all its pieces that time."""

    def feed(self, data: bytes) -> None:
        """Take what was read; whole lines and full pieces go to the log."""
        self.buffer += data
        while True:
            end = self.buffer.find(b"\n", 0, LONGEST_ENTRY)
            if end >= 0:
                piece, self.buffer = self.buffer[: end + 1], self.buffer[end + 1 :]
                self._write(piece)
                self.entry_time = ""
            elif len(self.buffer) >= LONGEST_ENTRY:
                piece, self.buffer = self.buffer[:LONGEST_ENTRY], self.buffer[LONGEST_ENTRY:]
                self._write(piece)
            else:
                return

    def finish(self) -> None:
        """Write the last line that no line break ended."""
        if self.buffer:
            self._write(self.buffer)

    def _write(self, piece: bytes) -> None:
        self.entry_time = self.entry_time or timestamp()
        self.add(self.name, as_go_text(piece), self.entry_time)


class Supervisor:
    """The life of one container, from its start to the last byte of its log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        self.env: dict[str, str] = dict(item.split("=", 1) for item in self.config["Config"]["Env"])
        self.tree = ProcessTree()
        self.selector = selectors.DefaultSelector()
        self.log = (folder / "container.log").open("ab", buffering=0)
        self.followers: list[socket.socket] = []
        self.waiters: list[socket.socket] = []
        self.code: int | None = None
        self.pid = 0

    def run(self, ready: int) -> None:
        """Start the container, tell ``ready`` (a file descriptor) how that went, and stay until it ends."""
        argv = [self.config["Path"], *self.config["Args"]]
        init = bool(self.config["HostConfig"]["Init"])
        failure = start_failure(argv, self.env.get("PATH", ""))
        if failure is not None and not init:
            self._report(ready, failure[0], f"unable to start container process: {failure[1]}")
            return
        control = folder_socket.listen(self.folder / "control")
        self.selector.register(control, selectors.EVENT_READ, lambda: self._greet(control))
        self.selector.register(self.tree.wakeup, selectors.EVENT_READ, self.tree.reap)
        self.state |= {"Status": "running", "Running": True, "StartedAt": timestamp()}
        if failure is None:
            self._spawn(argv)
        else:
            self._add("stderr", f"[FATAL tini (7)] exec {argv[0]} failed: {failure[2]}\n", timestamp())
            self.code = failure[0]
        self.state["Pid"] = self.pid
        me = psutil.Process()
        write_json(self.folder / "supervisor.json", {"pid": me.pid, "started": me.create_time()})
        write_json(self.folder / "state.json", self.state)
        os.write(ready, b"{}\n")
        while self.code is None:
            for key, _ in self.selector.select():
                key.data()
        self._finish()
        # The client that started the container may have gone long ago.
        with suppress(BrokenPipeError):
            os.write(ready, json.dumps({"code": self.code}).encode() + b"\n")

    def _report(self, ready: int, code: int, error: str) -> None:
        error = f"failed to create shim task: OCI runtime create failed: runc create failed: {error}: unknown"
        self.state |= {"ExitCode": code, "Error": error}
        write_json(self.folder / "state.json", self.state)
        os.write(ready, json.dumps({"code": code, "error": error}).encode() + b"\n")

    def _spawn(self, argv: list[str]) -> None:
        nothing = os.open(os.devnull, os.O_RDONLY)
        ends = {name: os.pipe() for name in ("stdout", "stderr")}
        self.pid = self.tree.spawn(
            argv, [nothing, ends["stdout"][1], ends["stderr"][1]], env=self.env,
            executable=shutil.which(argv[0], path=self.env.get("PATH", "")),
            cwd=self.config["Config"]["WorkingDir"] or "/", on_exit=self._main_exited,
        )  # fmt: skip
        os.close(nothing)
        for name, (read_end, write_end) in ends.items():
            os.close(write_end)
            self._listen_to(read_end, Stream(name, self._add))

    def _listen_to(self, fd: int, stream: Stream) -> None:
        def read() -> None:
            data = os.read(fd, 65536)
            stream.feed(data)
            if not data:
                stream.finish()
                self.selector.unregister(fd)
                os.close(fd)

        self.selector.register(fd, selectors.EVENT_READ, read)

    def _main_exited(self, code: int) -> None:
        self.code = code if code >= 0 else 128 - code

    def _add(self, stream: str, text: str, time: str) -> None:
        entry = {"log": text, "stream": stream, "time": time}
        self.log.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        for follower in self.followers:
            # A follower that is behind has unread bytes already; one that is gone is dropped at its end of file.
            with suppress(OSError):
                follower.send(b".", socket.MSG_DONTWAIT)

    def _finish(self) -> None:
        # The end of a PID namespace: nothing outlives its first process. Then both streams end by themselves.
        self.tree.end()
        streams = [key for key in self.selector.get_map().values() if isinstance(key.fd, int)]
        while any(key.fd in self.selector.get_map() for key in streams if self._is_stream(key)):
            for key, _ in self.selector.select():
                if self._is_stream(key):
                    key.data()
        self.state |= {
            "Status": "exited", "Running": False, "Pid": 0, "ExitCode": self.code, "FinishedAt": timestamp(),
        }  # fmt: skip
        write_json(self.folder / "state.json", self.state)
        if self.config["HostConfig"]["AutoRemove"]:
            (self.folder.parent.parent / "names" / self.config["Name"].removeprefix("/")).unlink(missing_ok=True)
            shutil.rmtree(self.folder)
        for waiter in self.waiters:
            self._answer(waiter, {"code": self.code})

    def _is_stream(self, key: selectors.SelectorKey) -> bool:
        return getattr(key.data, "__name__", "") == "read"

    def _greet(self, control: socket.socket) -> None:
        client, _ = control.accept()
        self.selector.register(client, selectors.EVENT_READ, lambda: self._serve(client))

    def _serve(self, client: socket.socket) -> None:
        received = folder_socket.receive(client)
        if received is None:
            self.selector.unregister(client)
            for group in (self.followers, self.waiters):
                if client in group:
                    group.remove(client)
            client.close()
            return
        order, fds = received
        match order["do"]:
            case "follow":
                self.followers.append(client)
                # For the entries written between the caller's last look and now; it may have been killed since.
                with suppress(OSError):
                    client.send(b".")
            case "wait":
                self.waiters.append(client)
            case "kill":
                self._signal(order["signal"])
                self._answer(client, {})
            case "exec":
                self._exec(client, order, fds)

    def _answer(self, client: socket.socket, answer: dict[str, Any]) -> None:
        with suppress(OSError):
            client.sendall(json.dumps(answer).encode() + b"\n")

    def _signal(self, number: int) -> None:
        """Send a signal as the kernel would: the first process of a container gets only what it has a handler for."""
        first = not self.config["HostConfig"]["Init"]
        if first and number not in (signal.SIGKILL, signal.SIGSTOP) and not catches(self.pid, number):
            return
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _exec(self, client: socket.socket, order: dict[str, Any], fds: list[int]) -> None:
        env = self.env | order["env"]
        failure = start_failure(order["argv"], env.get("PATH", ""))
        if failure is None:
            self.tree.spawn(
                order["argv"], fds, env=env, cwd=order["cwd"] or self.config["Config"]["WorkingDir"] or "/",
                executable=shutil.which(order["argv"][0], path=env.get("PATH", "")),
                on_exit=lambda code: self._answer(client, {"code": code if code >= 0 else 128 - code}),
            )  # fmt: skip
        else:
            # 126 whatever the reason: so does a 20.10 daemon, where later ones tell 127 for a missing command.
            self._answer(client, {"code": 126, "error": failure[1]})
        for fd in fds:
            os.close(fd)


def catches(pid: int, number: int) -> bool:
    """Tell whether a process has a handler for a signal (``SigCgt`` in /proc)."""
    with suppress(FileNotFoundError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


if __name__ == "__main__":
    Supervisor(Path(sys.argv[1])).run(int(sys.argv[2]))
