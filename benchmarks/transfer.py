"""Weights come home, one file of 1 GiB and 10,000 small ones, against `ssh cat` and tar through the same sshd.

Once with checksums that cost nothing at either end, and once with SHA-256, for which the rival has one sha256sum in its
pipe at either end. The rivals only copy; glgpu also looks at what is home already, and each file is there whole or not
at all. Each logs in once. All files are in memory, where this machine has a file system there: no disk is measured.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

from loopback import Loopback, loopback
from results import Line, medians

import glgpu.steps.collect as steps

ROUNDS = 3
MEMORY = Path("/dev/shm")
BIG, FILES, SMALL = 1 << 30, 10_000, 4096
NO_SUMS = """\
#!/bin/sh
shift 2
printf "%064d  %s\\\\0" $(for name; do printf "0 %s " "$name"; done)
"""
SUMMED = "tee >(sha256sum >&2)"


class NoHashes:
    """What `hashlib` is where no content is to be summed up; a name still gets its digest."""

    def sha256(self, data: bytes = b"") -> object:
        """The digest of a name, or one of nothing."""
        return hashlib.sha256(data) if data else self

    def update(self, data: bytes) -> None:
        """Take more, for nothing."""

    def hexdigest(self) -> str:
        """What NO_SUMS says of every file."""
        return "0" * 64


def measure(scale: float) -> list[Line]:
    """Both without and with checksums, each in turns with its rival."""
    lines = []
    may_run = MEMORY.is_dir() and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC  # the server's programs are there, too
    with loopback(MEMORY if may_run else None) as vm:
        big, files = int(BIG * scale), int(FILES * scale)
        write_random(vm.code / "weights/w.bin", big)
        cat = ("`ssh cat`", "cat weights/w.bin", "cat >{}/w.bin")
        lines += [_against(vm, f"one file of {big >> 20} MiB", big, cat, summed=summed) for summed in (False, True)]
        shutil.rmtree(vm.code / "weights")
        for number in range(files):
            write_random(vm.code / f"weights/{number // 100}/{number}.bin", SMALL)
        tar = ("tar over ssh", "tar -c weights", "tar -x -C {}")
        what = f"{files} files of {SMALL >> 10} KiB"
        lines += [_against(vm, what, files * SMALL, tar, summed=summed) for summed in (False, True)]
    return lines


def write_random(path: Path, size: int) -> None:
    """A file that nothing compresses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Path("/dev/urandom").open("rb") as source, path.open("wb") as file:
        for begin in range(0, size, 1 << 24):
            file.write(source.read(min(1 << 24, size - begin)))


def _against(vm: Loopback, what: str, size: int, rival: tuple[str, str, str], *, summed: bool) -> Line:
    name, send, receive = rival
    send = f"cd {vm.code} && {send}"
    if summed:
        send, receive = f"bash -c {shlex.quote(f'{send} | {SUMMED}')}", f"{SUMMED} | {receive}"

    def pipe() -> float:
        with emptied(vm.folder / "rival") as folder:
            begun = time.perf_counter()
            shell(f"{vm.shell(send)} | {receive.format(folder)}")
            return time.perf_counter() - begun

    def collect() -> float:
        vm.machine.hang_up()
        with emptied(vm.outputs):
            begun = time.perf_counter()
            home = steps.collect(vm.stage.run, vm.machine, str(vm.home), ["weights"])
            spent = time.perf_counter() - begun
            assert home.size == size, home
            return spent

    with nullcontext() if summed else without_sums(vm):
        found = medians({"glgpu": collect, "rival": pipe}, ROUNDS)
    speeds = ", ".join(f"{size / seconds / 2**20:.0f} MiB/s" for seconds in found.values())
    against = f"{name}, through sha256sum at both ends" if summed else name
    what = f"{what}, {'SHA-256' if summed else 'no checksums'}"
    return Line(what, against, found["rival"] / found["glgpu"], speeds, least=0.95)


@contextmanager
def without_sums(vm: Loopback) -> Iterator[None]:
    """Checksums cost nothing, here and there."""
    vm.program("sha256sum", NO_SUMS)
    try:
        with patch.object(steps, "hashlib", NoHashes()):
            yield
    finally:
        (vm.folder / "bin/sha256sum").unlink()


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """An empty folder, gone afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def shell(command: str) -> None:
    """Run a pipe, all of which has to end well."""
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.returncode}: {done.stderr}")
