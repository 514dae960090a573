"""A `glgpu` whose libraries are loaded already: jobs of the campaign start it hundreds of times.

A parent that has imported everything forks one child for each command. The child is the command: a process of its own,
with the job's variables, folder and pipes, that signals reach and kill as they would any other. In front of it stands
a small program, which the job's shell starts by the name `glgpu`, and which ends as the child does; it also writes
down each command with its exit code.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from glgpu.rehearsal.job_run import MARK_VARIABLE

BLANK_MARK = "0" * 32
"""As long as the marks of containers; overwritten in place in each child, for that is where /proc shows it."""
FRONT = "glgpu-front"
"""Name of the program in front; the command itself is called `glgpu`, as it is where it is started plainly."""

FRONT_PROGRAM = """\
#!{python} -IS
import array, json, os, signal, socket, sys
with open("/proc/self/comm", "w") as name:
    name.write({front!r})
child, held = 0, []
def pass_on(number, _=None):
    try:
        os.kill(child, number) if child else held.append(number)
    except ProcessLookupError:
        pass  # it has ended, and its code is on its way
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, pass_on)
def note(**facts):
    with open({notes!r}, "a") as notes:
        notes.write(json.dumps(facts) + "\\n")
order = {{"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}}
note(began=sys.argv[1:], pid=os.getpid(), job=os.environ.get("CI_JOB_ID", ""))
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as parent:
    parent.connect({address!r})
    parent.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
    parent.sendall(json.dumps(order).encode() + b"\\n")
    answers = parent.makefile()
    child = json.loads(answers.readline())["pid"]
    for number in held:
        pass_on(number)
    line = answers.readline()
    code = json.loads(line)["code"] if line else -9
note(ended=sys.argv[1:], pid=os.getpid(), code=code)
os._exit(code if code >= 0 else 128 - code)
"""


class Warm:
    """The parent, as its starter sees it.

    Args:
        folder: Its own; a short path.
        source: The folder `src` whose glgpu it is; None: this one's.
    """

    def __init__(self, folder: Path, source: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.address = folder / "warm"
        # As bare as a job's: what Python reads of its environment at the start is the same.
        folders = [*([str(source)] if source else []), *filter(None, sys.path)]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": os.pathsep.join(folders)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "campaign.warm", str(self.address)],
            env=environment | {MARK_VARIABLE: BLANK_MARK}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"warm\n":
            raise RuntimeError("the warm parent did not come up")

    def program(self, folder: Path, notes: Path) -> None:
        """Write the program in front into a folder, which then goes first in a PATH."""
        text = FRONT_PROGRAM.format(python=sys.executable, front=FRONT, notes=str(notes), address=str(self.address))
        _write_program(folder, text)

    def stop(self) -> None:
        """End the parent; its children are their jobs'."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


COLD_PROGRAM = """\
#!/bin/sh
printf '{{"began": ["%s"], "pid": %d, "job": "%s"}}\\n' "$1" $$ "$CI_JOB_ID" >>{notes}
{source}exec {glgpu} "$@"
"""


def cold_program(folder: Path, notes: Path, source: Path | None) -> None:
    """The same for a `glgpu` that is started plainly."""
    text = COLD_PROGRAM.format(
        notes=shlex.quote(str(notes)),
        source=f"PYTHONPATH={shlex.quote(str(source))} " if source else "",
        glgpu=shlex.quote(str(Path(sys.executable).with_name("glgpu"))),
    )
    _write_program(folder, text)


def _write_program(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "glgpu"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def main() -> None:
    """Be the parent until standard input is closed."""
    load()
    gc.freeze()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(sys.argv[1])
    server.listen(64)
    print("warm", flush=True)
    children: dict[int, socket.socket] = {}
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    while True:
        ready, _, _ = select.select([server, sys.stdin, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
        collect(children)
        if sys.stdin in ready:
            return
        if server in ready:
            caller, _ = server.accept()
            begin(server, caller, children)


def load() -> None:
    """Import what any command may need."""
    for name in (
        "google.cloud.compute_v1", "google.cloud.storage", "python_terraform", "glgpu.cli", "glgpu.wiring",
        "glgpu.stages.provision", "glgpu.stages.train", "glgpu.stages.destroy", "requests", "yaml",
    ):  # fmt: skip
        importlib.import_module(name)


def collect(children: dict[int, socket.socket]) -> None:
    """Tell the programs in front how their commands ended."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        caller = children.pop(pid)
        with contextlib.suppress(OSError):  # it was killed with its job
            caller.sendall(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode() + b"\n")
        caller.close()


def begin(server: socket.socket, caller: socket.socket, children: dict[int, socket.socket]) -> None:
    """Fork one command."""
    files = array.array("i")
    _, ancillary, _, _ = caller.recvmsg(1, socket.CMSG_SPACE(3 * files.itemsize))
    for _, _, data in ancillary:
        files.frombytes(data)
    said = b""
    while not said.endswith(b"\n"):
        more = caller.recv(1 << 16)
        if not more:
            break
        said += more
    if len(files) == 3 and said.endswith(b"\n"):
        pid = os.fork()
        if pid == 0:
            server.close()
            for other in children.values():
                other.close()
            caller.close()
            become(json.loads(said), list(files))
        children[pid] = caller
        with contextlib.suppress(OSError):  # it was killed meanwhile
            caller.sendall(json.dumps({"pid": pid}).encode() + b"\n")
    else:
        caller.close()
    for file in files:
        os.close(file)


def become(order: dict[str, Any], files: list[int]) -> NoReturn:
    """Be the command."""
    code: Any = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(3, 256)
        Path("/proc/self/comm").write_text("glgpu", encoding="ascii")
        mark(order["env"].get(MARK_VARIABLE, BLANK_MARK))
        os.environ.clear()
        os.environ.update(order["env"])
        os.chdir(order["cwd"])
        os.umask(0o022)
        sys.argv = ["glgpu", *order["argv"]]
        importlib.import_module("glgpu.cli").main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)


def mark(value: str) -> None:
    """Put a container's mark where /proc/PID/environ shows it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    # proc(5): env_start and env_end are fields 50 and 51; the rest after the name begins with field 3.
    begin, end = int(fields[47]), int(fields[48])
    text = ctypes.string_at(begin, end - begin)
    at = text.index(f"{MARK_VARIABLE}={BLANK_MARK}".encode()) + len(MARK_VARIABLE) + 1
    ctypes.memmove(begin + at, value.encode(), len(BLANK_MARK))


if __name__ == "__main__":
    main()
