"""Bring outputs home: whole files only, every byte checked against what the VM has, and nothing outside outputs/.

What is home already is not sent again: a collection that was cut short goes on where it ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path, PurePosixPath
from typing import IO

from glgpu.disk import cannot_write
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Machine
from glgpu.steps.context import Run
from glgpu.steps.guest import ask, command
from glgpu.steps.sums import OWN_FOLDER, write_sums

TRIES = 3
READING = "reading the outputs on the VM"
COLLECT_SECONDS = 6 * 3600.0
CHUNK = 1 << 20
"""Bytes read at once."""


@dataclass(frozen=True)
class Home:
    """What came home.

    Attributes:
        files: How many files.
        size: Bytes.
    """

    files: int
    size: int


def collect(
    run: Run,
    machine: Machine,
    home: str,
    paths: Iterable[str],
    *,
    seconds: float = COLLECT_SECONDS,
    folder: str | None = None,
) -> Home:
    """Bring everything below ``paths`` from the VM into outputs/, paths kept, and write SHA256SUMS.

    Args:
        run: The run.
        machine: The VM.
        home: The helper's folder there.
        paths: Relative to the folder of glgpu.yml.
        seconds: How long it may take in all.
        folder: The folder that the paths are relative to; None: that of glgpu.yml.

    Raises:
        Failure: DISK_FULL here, SSH when it does not come through whole, OUT_OF_TIME.
    """
    wanted = [str(PurePosixPath(path)) for path in paths]
    base = f"{home}/code/{run.base}".rstrip("/") if folder is None else folder
    last: Failure | None = None
    end = run.clock.now() + seconds
    sums: dict[str, str] = {}
    got: dict[str, tuple[str, int]] = {}
    for _ in range(TRIES):
        try:
            if any(os.path.lexists(run.outputs / path) for path in wanted):
                sums = _sums(run, machine, base, wanted, _left(run, end))
                got = _at_home(run, sums)
                _choose(run, machine, [name for name in sums if name not in got], _left(run, end))
                _receive(run, machine, base, wanted, got, _left(run, end))
            else:
                # Nothing can be home: all of it is sent while it is summed up, and not after that.
                ask(run, machine, "begin", base, *wanted, timeout=_left(run, end), doing=READING)
                _receive(run, machine, base, wanted, got, _left(run, end))
                sums = _begun(run, machine, _left(run, end))
        except Failure as failure:
            if failure.klass is not ErrorClass.SSH:
                _note_part(run, sums, got)
                raise
            last = failure
            continue
        names = sums.keys() | got.keys()
        wrong = sorted(name for name in names if got.get(name, ("", 0))[0] != sums.get(name))
        if not wrong:
            return _noted(run, got)
        last = Failure(
            ErrorClass.SSH,
            f"{len(wrong)} of {len(names)} files did not come home as they are on the VM, the first is {wrong[0]!r}",
            "retry the job: nothing on the VM was touched",
        )
    assert last is not None
    _note_part(run, sums, got)
    raise last


def bring(run: Run, machine: Machine, folder: str, paths: Iterable[str], seconds: float) -> dict[str, tuple[str, int]]:
    """Bring what lies below ``paths`` of a folder on the VM, once, without a word and without SHA256SUMS.

    Returns:
        SHA-256 and size, by name, of what came as it was on the VM.

    Raises:
        Failure: DISK_FULL here, SSH when it does not come through, OUT_OF_TIME.
    """
    wanted, end = [str(PurePosixPath(path)) for path in paths], run.clock.now() + seconds
    sums = _sums(run, machine, folder, wanted, _left(run, end))
    got = _at_home(run, sums)
    _choose(run, machine, [name for name in sums if name not in got], _left(run, end))
    _receive(run, machine, folder, wanted, got, _left(run, end))
    return {name: entry for name, entry in got.items() if entry[0] == sums.get(name)}


def sums_of(run: Run, machine: Machine, folder: str, paths: Iterable[str], seconds: float) -> dict[str, str]:
    """SHA-256, by name, of every file below ``paths`` of a folder on the VM.

    Raises:
        Failure: SSH.
    """
    return _sums(run, machine, folder, [str(PurePosixPath(path)) for path in paths], seconds)


def _noted(run: Run, got: dict[str, tuple[str, int]]) -> Home:
    write_sums(run.outputs, {name: digest for name, (digest, _) in got.items()})
    home = Home(len(got), sum(size for _, size in got.values()))
    run.record.add("outputs-home", files=home.files, bytes=home.size)
    return home


def _note_part(run: Run, sums: dict[str, str], got: dict[str, tuple[str, int]]) -> None:
    """Say which files are whole, of a collection that was cut short.

    Where that was before the VM told its checksums, it is those that came in whole, by their checksums here.
    """
    whole = {name: entry for name, entry in got.items() if not sums or entry[0] == sums.get(name)}
    if whole:
        of = len(sums) or None
        write_sums(run.outputs, {name: digest for name, (digest, _) in whole.items()})
        run.console.say(f"{len(whole)} {f'of {of} ' if of else ''}files are home and whole")
        run.record.add("outputs-partly-home", files=len(whole), of=of)


def _at_home(run: Run, sums: dict[str, str]) -> dict[str, tuple[str, int]]:
    """The files that are here as they are on the VM; behind a link nothing counts as here."""
    found = {}
    for name, digest in sums.items():
        path = run.outputs / name
        try:
            if path.resolve() != run.outputs.resolve() / name or not path.is_file():
                continue
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                    found[name] = (digest, path.stat().st_size)
        except OSError:
            continue  # it is fetched, and whatever is wrong is seen then
    return found


def _choose(run: Run, machine: Machine, names: list[str], seconds: float) -> None:
    chosen = b"".join(b"./" + name.encode("utf-8", "surrogateescape") + b"\0" for name in names)
    ask(run, machine, "choose", stdin=chosen, timeout=seconds, doing="choosing what is to come home")


def _left(run: Run, end: float) -> float:
    left = end - run.clock.now()
    if left <= 0:
        raise Failure(
            ErrorClass.OUT_OF_TIME,
            "the outputs did not come home in time",
            "raise limits.rescue_minutes and the jobs' timeouts",
        )
    return left


def _sums(run: Run, machine: Machine, base: str, paths: list[str], seconds: float) -> dict[str, str]:
    done = ask(run, machine, "sums", base, *paths, timeout=seconds, doing=READING)
    sums = {}
    for name, digest in _read(done.stdout):
        if _may_come(name):
            sums[name] = digest
        elif name:
            _leave_out(run, name)
    return sums


def _begun(run: Run, machine: Machine, seconds: float) -> dict[str, str]:
    """The same of what was summed up meanwhile; what was left out has been said when it came."""
    done = ask(run, machine, "begun", timeout=seconds, doing=READING)
    return {name: digest for name, digest in _read(done.stdout) if _may_come(name)}


def _read(stdout: bytes) -> Iterator[tuple[str, str]]:
    for entry in stdout.split(b"\0"):
        digest, _, raw = entry.partition(b"  ")
        yield _relative(raw.decode("utf-8", "surrogateescape")), digest.decode("ascii", "replace")


def _receive(
    run: Run, machine: Machine, base: str, paths: list[str], got: dict[str, tuple[str, int]], seconds: float
) -> None:
    with machine.stream(command(run, "send", base, *paths), timeout=seconds) as stream:
        stream.stdin.close()
        try:
            arrivals = _Arrivals(run, _Forward(stream.stdout), got)
            arrivals.take_all()
            code = stream.wait(60)
        except (tarfile.TarError, EOFError) as error:
            code, reason = 255, str(error)
        else:
            reason = stream.complaint
        if code != 0:
            raise Failure(ErrorClass.SSH, f"the outputs did not come through whole: {reason}", "retry the job", reason)


class _Forward(io.RawIOBase):
    """What comes, as tarfile reads a file. Its own stream would copy everything four times."""

    def __init__(self, source: IO[bytes]) -> None:
        super().__init__()
        self._source = source
        self._at = 0

    def read(self, size: int = -1, /) -> bytes:
        """So many bytes; fewer only at the end."""
        data = self._source.read(size)
        self._at += len(data)
        return data

    def tell(self) -> int:
        """How many have been read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go on, to a place that is still to come."""
        assert whence == io.SEEK_SET
        while self._at < offset and self.read(min(CHUNK, offset - self._at)):
            pass
        return self._at


class _Arrivals:
    """Unpacks what comes; each file is in ``got`` as soon as it is whole."""

    def __init__(self, run: Run, source: _Forward, got: dict[str, tuple[str, int]]) -> None:
        self._run = run
        self._source = source
        self._got = got
        self._room: set[str] = set()
        """Folders that are there: nothing that comes later takes the place of a folder."""

    def take_all(self) -> None:
        """Unpack everything.

        Raises:
            tarfile.TarError: It is not whole.
            Failure: DISK_FULL.
        """
        with tarfile.TarFile(fileobj=self._source, errorlevel=2, encoding="utf-8") as archive:
            for entry in archive:
                self._take(entry)
        # Behind its end an archive is filled up, and whoever sends it waits until that has been read.
        while self._source.read(CHUNK):
            pass

    def _take(self, entry: tarfile.TarInfo) -> None:
        run, name = self._run, _relative(entry.name)
        if not name:
            return
        target = run.outputs / name
        if not _may_come(name):
            _leave_out(run, name)
            return
        try:
            folder = os.path.dirname(name)
            if folder not in self._room:
                make_room(run.outputs, target)
                self._room.add(folder)
            if entry.isdir():
                target.mkdir(exist_ok=True)
            elif entry.isfile() and not entry.issparse():
                self._got[name] = (_write(self._source, entry.size, target), entry.size)
            elif entry.issym():
                _link(run, name, entry.linkname, target)
            else:
                run.console.say(f"left out: {name!r}: neither file, folder nor link")
        except OSError as error:
            raise cannot_write(error, repr(name)) from None


def _leave_out(run: Run, name: str) -> None:
    run.console.say(f"left out: {name!r}: its name leads out of the outputs, or into glgpu's own folder")


def _write(source: _Forward, size: int, target: Path) -> str:
    """Write a file so that it is there whole or not at all, and return its SHA-256."""
    # Ten thousand files are no rarity: what is asked of the system for each of them counts.
    folder, name = os.path.split(target)
    part = os.path.join(folder, f".glgpu-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.part")
    digest = hashlib.sha256()
    try:
        with open(part, "wb") as file:
            while size:
                data = source.read(min(CHUNK, size))
                if not data:
                    raise EOFError("it ends in the middle of a file")
                digest.update(data)
                file.write(data)
                size -= len(data)
            # The container's owner and mode mean nothing here: artifacts must be readable by whoever uploads them.
            os.fchmod(file.fileno(), 0o644)
        os.replace(part, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise
    return digest.hexdigest()


def _link(run: Run, name: str, points_to: str, target: Path) -> None:
    """Keep a link that stays within the outputs; leave out one that leads anywhere else."""
    if leads_out(name, points_to):
        run.console.say(f"left out: the link {name!r}: it points outside, to {points_to!r}")
        return
    target.unlink(missing_ok=True)
    target.symlink_to(points_to)


def leads_out(name: str, points_to: str) -> bool:
    """Whether a link leads out of the folder that its name is relative to.

    Its way up comes first: `..` behind a name could climb from wherever a link of that name leads.
    """
    aim = os.path.normpath(str(PurePosixPath(name).parent / points_to))
    down = dropwhile("..".__eq__, PurePosixPath(points_to).parts)
    return points_to.startswith("/") or not stays_inside(aim) or ".." in down


def make_room(outputs: Path, target: Path) -> None:
    """Make the folder of an entry, through no link: one that an earlier collection left on the way is cleared away."""
    folder = outputs
    for part in target.relative_to(outputs).parts[:-1]:
        folder /= part
        if folder.is_symlink():
            folder.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    outputs.mkdir(parents=True, exist_ok=True)


def _may_come(name: str) -> bool:
    return stays_inside(name) and PurePosixPath(name).parts[0] != OWN_FOLDER


def stays_inside(name: str) -> bool:
    """Whether a path leads nowhere else than below the folder that it is relative to."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts


def _relative(name: str) -> str:
    plain = name
    while plain.startswith("./"):
        plain = plain.removeprefix("./")
    return "" if plain == "." else plain
