"""Bring outputs home: whole files only, every byte checked against what the VM has, and nothing outside outputs/."""

from __future__ import annotations

import errno
import hashlib
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Machine
from glgpu.processes import TimedOut
from glgpu.run_record import write_atomically
from glgpu.steps.context import Run
from glgpu.steps.guest import ask, command

TRIES = 3
SUMS_SECONDS = 1800
OWN_FOLDER = "glgpu"
"""Folder below outputs/ that is ours: record, log, checksums."""


@dataclass(frozen=True)
class Home:
    """What came home.

    Attributes:
        files: How many files.
        size: Bytes.
    """

    files: int
    size: int


def collect(run: Run, machine: Machine, home: str, paths: Iterable[str]) -> Home:
    """Bring everything below ``paths`` from the VM into outputs/, paths kept, and write SHA256SUMS.

    Args:
        run: The run.
        machine: The VM.
        home: The helper's folder there.
        paths: Relative to the folder of glgpu.yml.

    Raises:
        Failure: DISK_FULL here, SSH when it does not come through whole.
    """
    wanted = [str(PurePosixPath(path)) for path in paths]
    base = f"{home}/code/{run.base}".rstrip("/")
    last: Failure | None = None
    for _ in range(TRIES):
        try:
            sums = _sums(run, machine, base, wanted)
            got = _receive(run, machine, base, wanted)
        except Failure as failure:
            if failure.klass is not ErrorClass.SSH:
                raise
            last = failure
            continue
        wrong = [name for name, digest in sums.items() if got.get(name, ("", 0))[0] != digest]
        if not wrong:
            return _noted(run, {name: got[name] for name in sums})
        last = Failure(
            ErrorClass.SSH,
            f"{len(wrong)} of {len(sums)} files did not come home as they are on the VM, the first is {wrong[0]!r}",
            "retry the job: nothing on the VM was touched",
        )
    assert last is not None
    raise last


def _noted(run: Run, got: dict[str, tuple[str, int]]) -> Home:
    lines = [_sum_line(digest, name) for name, (digest, _) in sorted(got.items())]
    try:
        write_atomically(run.outputs / OWN_FOLDER / "SHA256SUMS", b"".join(lines))
    except OSError as error:
        raise _disk(error, "SHA256SUMS") from None
    home = Home(len(got), sum(size for _, size in got.values()))
    run.record.add("outputs-home", files=home.files, bytes=home.size)
    return home


def _sum_line(digest: str, name: str) -> bytes:
    """A line as sha256sum writes and checks it: odd characters escaped, and said so by a leading backslash."""
    raw = name.encode("utf-8", "surrogateescape")
    escaped = raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != raw else b"") + digest.encode() + b"  " + escaped + b"\n"


def _sums(run: Run, machine: Machine, base: str, paths: list[str]) -> dict[str, str]:
    done = ask(run, machine, "sums", base, *paths, timeout=SUMS_SECONDS, doing="reading the outputs on the VM")
    sums = {}
    for entry in done.stdout.split(b"\0"):
        if entry:
            digest, _, name = entry.partition(b"  ")
            sums[_relative(name.decode("utf-8", "surrogateescape"))] = digest.decode("ascii")
    return sums


def _receive(run: Run, machine: Machine, base: str, paths: list[str]) -> dict[str, tuple[str, int]]:
    got: dict[str, tuple[str, int]] = {}
    with machine.stream(command(run, "send", base, *paths)) as stream:
        stream.stdin.close()
        try:
            with tarfile.open(fileobj=stream.stdout, mode="r|", errorlevel=2) as archive:
                for entry in archive:
                    _unpack(run, archive, entry, got)
            code = stream.wait(60)
        except (tarfile.ReadError, tarfile.StreamError, EOFError, TimedOut) as error:
            code, reason = 255, str(error)
        else:
            reason = stream.complaint
        if code != 0:
            raise Failure(
                ErrorClass.SSH, f"the outputs did not come through whole: {reason[-200:]}", "retry the job", reason
            )
    return got


def _unpack(run: Run, archive: tarfile.TarFile, entry: tarfile.TarInfo, got: dict[str, tuple[str, int]]) -> None:
    name = _relative(entry.name)
    if not name:
        return
    target = run.outputs / name
    if not _stays_inside(name) or PurePosixPath(name).parts[0] == OWN_FOLDER:
        run.console.say(f"left out: {name!r}: its name leads out of the outputs, or into glgpu's own folder")
        return
    try:
        if entry.isdir():
            target.mkdir(parents=True, exist_ok=True)
        elif entry.isfile():
            source = archive.extractfile(entry)
            assert source is not None
            got[name] = (_write(source, target), entry.size)
        elif entry.issym():
            _link(run, name, entry.linkname, target)
        else:
            run.console.say(f"left out: {name!r}: neither file, folder nor link")
    except OSError as error:
        raise _disk(error, name) from None


def _write(source: IO[bytes], target: Path) -> str:
    """Write a file so that it is there whole or not at all, and return its SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or target.is_dir():
        raise OSError(errno.EEXIST, "something else is in its place", str(target))
    part = target.with_name(f".glgpu-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.part")
    digest = hashlib.sha256()
    try:
        with part.open("wb") as file:
            while data := source.read(1 << 20):
                digest.update(data)
                file.write(data)
        # The container's owner and mode mean nothing here: artifacts must be readable by whoever uploads them.
        part.chmod(0o644)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return digest.hexdigest()


def _link(run: Run, name: str, points_to: str, target: Path) -> None:
    """Keep a link that stays within the outputs; leave out one that leads anywhere else."""
    aim = os.path.normpath(str(PurePosixPath(name).parent / points_to))
    if points_to.startswith("/") or not _stays_inside(aim):
        run.console.say(f"left out: the link {name!r}: it points outside, to {points_to!r}")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.unlink(missing_ok=True)
        target.symlink_to(points_to)


def _stays_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts


def _relative(name: str) -> str:
    return "" if name in (".", "./") else name.removeprefix("./")


def _disk(error: OSError, name: str) -> Failure:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return Failure(
        ErrorClass.DISK_FULL,
        f"{'the disk of this machine is full' if full else 'this machine cannot write'}: {name!r}: {error.strerror}",
        "make room on the runner, then retry the job: the weights are still on the VM",
    )
