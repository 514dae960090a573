"""Files as one stream, and checksums of its stretches."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

CHUNK = 1 << 20


class Strand(io.RawIOBase):
    """Files one after the other, and of that a stretch, as one file to read from; none of it lies in memory.

    Args:
        files: Each with its size.
        begin: Where in all of them the stretch begins.
        size: How long it is.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], begin: int, size: int) -> None:
        super().__init__()
        self._files = files
        self._begin = begin
        self._size = size
        self._position = 0
        self._open: tuple[Path, io.FileIO] | None = None

    def __len__(self) -> int:
        return self._size

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is: whoever uploads it may have to begin again."""
        return True

    def tell(self) -> int:
        """Where in the stretch."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go elsewhere in the stretch."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    # typeshed has the buffer as `collections.abc.Buffer`, which Python 3.11 lacks.
    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer; less only at the end."""
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        filled = 0
        while filled < len(view):
            path, within, left = self._at(self._begin + self._position)
            file = self._opened(path)
            file.seek(within)
            count = file.readinto(view[filled : filled + left])
            if not count:
                raise OSError(None, "has become shorter", str(path))
            filled += count
            self._position += count
        return filled

    def close(self) -> None:
        """No more of it."""
        if self._open is not None:
            self._open[1].close()
            self._open = None
        super().close()

    def _at(self, place: int) -> tuple[Path, int, int]:
        """Which file a byte of all of them is in, where in it, and how much of it is left."""
        for path, size in self._files:
            if place < size:
                return path, place, size - place
            place -= size
        raise EOFError

    def _opened(self, path: Path) -> io.FileIO:
        if self._open is None or self._open[0] != path:
            if self._open is not None:
                self._open[1].close()
            self._open = path, path.open("rb", buffering=0)
        return self._open[1]


class Stretches:
    """Checksums of stretches of a stream that is fed piece by piece.

    Args:
        sizes: How long each stretch is.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        self._sizes = list(sizes)
        self._digests: list[str] = []
        self._hash = hashlib.sha256()
        self._got = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Take more of the stream."""
        view = memoryview(data)
        while view:
            self._end_full_ones()
            piece = view[: self._sizes[len(self._digests)] - self._got]
            self._hash.update(piece)
            self._got += len(piece)
            view = view[len(piece) :]

    def digests(self) -> list[str]:
        """SHA-256 of each stretch, in hexadecimal, once the stream is over."""
        self._end_full_ones()
        return self._digests

    def _end_full_ones(self) -> None:
        while len(self._digests) < len(self._sizes) and self._got == self._sizes[len(self._digests)]:
            self._digests.append(self._hash.hexdigest())
            self._hash, self._got = hashlib.sha256(), 0
