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
from functools import partial
from itertools import dropwhile
from pathlib import Path, PurePosixPath
from typing import IO, Self

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
PART = ".glgpu-arriving.part"
"""Name of a file for as long as it is not whole."""


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
                told = _receive(run, machine, base, wanted, got, _left(run, end), verb="send-all")
                sums = {name: digest for name, digest in _read(told) if _may_come(name)}
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


def _read(told: bytes) -> Iterator[tuple[str, str]]:
    for entry in told.split(b"\0"):
        digest, _, raw = entry.partition(b"  ")
        yield _relative(raw.decode("utf-8", "surrogateescape")), digest.decode("ascii", "replace")


def _receive(
    run: Run,
    machine: Machine,
    base: str,
    paths: list[str],
    got: dict[str, tuple[str, int]],
    seconds: float,
    verb: str = "send",
) -> bytes:
    """Take what the VM sends; what it says behind the archive."""
    with machine.stream(command(run, verb, base, *paths), timeout=seconds) as stream:
        stream.stdin.close()
        try:
            told = _Arrivals(run, _Forward(stream.stdout), got).take_all()
            code = stream.wait(60)
        except (tarfile.TarError, EOFError) as error:
            code, reason = 255, str(error)
        else:
            reason = stream.complaint
        if code != 0:
            raise Failure(ErrorClass.SSH, f"the outputs did not come through whole: {reason}", "retry the job", reason)
        return told


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


class _Entry(tarfile.TarInfo):
    """What is told of an entry, without what nobody asks for: owner, mode and times take most of a header's reading."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read the header of a file, of the kind that nearly all are; of anything else tarfile reads all."""
        checksum = buf[148:154]
        if len(buf) != tarfile.BLOCKSIZE or buf[156:157] != tarfile.REGTYPE or not (checksum + buf[124:135]).isdigit():
            return super().frombuf(buf, encoding, errors)
        if int(checksum, 8) != 256 + sum(buf[:148]) + sum(buf[156:]):  # the checksum itself counts as eight blanks
            raise tarfile.ReadError("a header of the archive is damaged")
        entry = cls(buf[:100].split(b"\0", 1)[0].decode(encoding, errors))
        entry.size = int(buf[124:135], 8)
        return entry


class _Arrivals:
    """Unpacks what comes; each file is in ``got`` as soon as it is whole."""

    def __init__(self, run: Run, source: _Forward, got: dict[str, tuple[str, int]]) -> None:
        self._run = run
        self._source = source
        self._got = got
        self._outputs = str(run.outputs)
        self._room: set[str] = set()
        """Folders that are there: nothing that comes later takes the place of a folder."""

    def take_all(self) -> bytes:
        """Unpack everything; what comes behind the archive.

        Raises:
            tarfile.TarError: It is not whole.
            Failure: DISK_FULL.
        """
        with tarfile.TarFile(fileobj=self._source, errorlevel=2, encoding="utf-8", tarinfo=_Entry) as archive:
            for entry in archive:
                self._take(entry)
        # Behind its end an archive is filled up.
        return b"".join(iter(partial(self._source.read, CHUNK), b"")).lstrip(b"\0")

    def _take(self, entry: tarfile.TarInfo) -> None:
        run, name = self._run, _relative(entry.name)
        if not name:
            return
        if not _may_come(name):
            _leave_out(run, name)
            return
        # Ten thousand files are no rarity: what is done for each of them counts.
        target = os.path.join(self._outputs, name)
        folder = os.path.dirname(target)
        try:
            if folder not in self._room:
                make_room(run.outputs, Path(target))
                self._room.add(folder)
            if entry.isdir():
                os.makedirs(target, exist_ok=True)
            elif entry.isfile() and not entry.issparse():
                self._got[name] = (_write(self._source, entry.size, folder, target), entry.size)
            elif entry.issym():
                _link(run, name, entry.linkname, Path(target))
            else:
                run.console.say(f"left out: {name!r}: neither file, folder nor link")
        except OSError as error:
            raise cannot_write(error, repr(name)) from None


def _leave_out(run: Run, name: str) -> None:
    run.console.say(f"left out: {name!r}: its name leads out of the outputs, or into glgpu's own folder")


def _write(source: _Forward, size: int, folder: str, target: str) -> str:
    """Write a file so that it is there whole or not at all, and return its SHA-256."""
    part = f"{folder}/{PART}"
    try:
        file = _new_file(part)
        try:
            digest = hashlib.sha256()
            while size:
                data = source.read(min(CHUNK, size))
                if not data:
                    raise EOFError("it ends in the middle of a file")
                digest.update(data)
                size -= len(data)
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(file, rest) :]
            # The container's owner and mode mean nothing here: artifacts must be readable by whoever uploads them.
            os.fchmod(file, 0o644)
        finally:
            os.close(file)
        os.replace(part, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise
    return digest.hexdigest()


def _new_file(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError:
        # A killed job has left it, or it came from the VM, as a link perhaps.
        os.unlink(path)
        return os.open(path, flags, 0o600)


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
    return stays_inside(name) and next(_parts(name)) != OWN_FOLDER


def stays_inside(name: str) -> bool:
    """Whether a path leads nowhere else than below the folder that it is relative to."""
    return not name.startswith("/") and ".." not in name.split("/") and any(_parts(name))


def _parts(name: str) -> Iterator[str]:
    return (part for part in name.split("/") if part not in ("", "."))


def _relative(name: str) -> str:
    plain = name
    while plain.startswith("./"):
        plain = plain.removeprefix("./")
    return "" if plain == "." else plain
