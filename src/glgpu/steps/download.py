"""Get files in pieces: what was got before a drop, or by an earlier try, is not got again, and nothing is believed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from glgpu.clock import Clock
from glgpu.elsewhere import Part
from glgpu.errors import ErrorClass, Failure
from glgpu.steps.strand import CHUNK

Take = Callable[[bytes], object]
Get = Callable[[str, int, Take], None]
"""name, from which byte on, takes each piece -> all of it has come."""
TRIES = 5
"""In a row of which none brought anything."""
PAUSE_SECONDS = 3.0


def download(get: Get, parts: Sequence[Part], to: Path, clock: Clock, say: Callable[[str], None]) -> None:
    """Get parts, one after the other, into one file, which may hold the beginning of them already.

    Raises:
        Failure: what the other side says; NETWORK or TRANSIENT when it does not come through; DISK_FULL.
    """
    try:
        to.touch()
        with to.open("r+b") as file:
            begin = 0
            for part in parts:
                _get_part(get, part, _Stretch(file, begin, part.size), clock, say)
                begin += part.size
            file.truncate(begin)
    except OSError as error:
        raise _disk(error, to) from None


def download_whole(get: Callable[[int, Take], None], to: Path, clock: Clock, say: Callable[[str], None]) -> None:
    """Get something of which nobody says how long it is; its reader has to see whether it is whole.

    Raises:
        Failure: as above.
    """
    try:
        with to.open("ab") as file:
            _insist(lambda: get(file.tell(), file.write), file.tell, clock, say)
    except OSError as error:
        raise _disk(error, to) from None


class _Stretch:
    """The place of a part in the file, and what is known of what lies there."""

    def __init__(self, file: BinaryIO, begin: int, size: int) -> None:
        self._file = file
        self._begin = begin
        self._size = size
        self.got = 0
        self._hash = hashlib.sha256()
        file.seek(begin)
        while self.got < size and (piece := file.read(min(CHUNK, size - self.got))):
            self._hash.update(piece)
            self.got += len(piece)

    def clear(self) -> None:
        """What lies there is worth nothing."""
        self.got, self._hash = 0, hashlib.sha256()

    def take(self, data: bytes) -> None:
        """More of the part; beyond its end nothing is taken."""
        data = data[: self._size - self.got]
        self._file.seek(self._begin + self.got)
        self._file.write(data)
        self._hash.update(data)
        self.got += len(data)

    def digest(self) -> str:
        """Of what lies there."""
        return self._hash.hexdigest()


def _get_part(get: Get, part: Part, stretch: _Stretch, clock: Clock, say: Callable[[str], None]) -> None:
    for left in (2, 1, 0):

        def more() -> None:
            if stretch.got < part.size:
                get(part.name, stretch.got, stretch.take)
            if stretch.got < part.size:
                raise Failure(
                    ErrorClass.TRANSIENT,
                    f"{part.name} ended after {stretch.got} of {part.size} bytes",
                    "fetch again: it goes on where it ended",
                )

        _insist(more, lambda: stretch.got, clock, say)
        if stretch.digest() == part.sha256:
            return
        stretch.clear()
        if left:
            say(f"{part.name} is not as its checksum says: once more")
    raise Failure(
        ErrorClass.TRANSIENT,
        f"{part.name} is not as its checksum says, time after time",
        "fetch again later; if that does not help, what is kept there is damaged",
    )


def _insist(step: Callable[[], None], got: Callable[[], int], clock: Clock, say: Callable[[str], None]) -> None:
    """Do something again and again, for as long as that brings something."""
    tries = 0
    while True:
        before = got()
        try:
            step()
            return
        except Failure as failure:
            tries = 0 if got() > before else tries + 1
            if not failure.retry or failure.klass is ErrorClass.INTERRUPTED or tries >= TRIES:
                raise
            say(f"{failure.cause}; going on after {got()} bytes")
        clock.sleep(PAUSE_SECONDS * tries)


def _disk(error: OSError, path: Path) -> Failure:
    return Failure(
        ErrorClass.DISK_FULL,
        f"{path} cannot be written: {error.strerror or error}",
        "make room there, or name another folder with --to; then fetch again: it goes on where it ended",
    )
