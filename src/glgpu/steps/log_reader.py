"""Read ``docker logs --timestamps``: strip the time stamps, and go on after a break without losing or repeating a byte.

Docker keeps a long line in pieces of 16 KiB, and gives each piece a time stamp of its own in the middle of the line.
"""

from __future__ import annotations

import re
from itertools import takewhile

PIECE = 16_384
_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d) ")
_LONGEST_STAMP = 36


class LogReader:
    """The position in a container's log, across any number of connections."""

    def __init__(self) -> None:
        self._since = b""
        self._at_since = 0  # pieces seen that carry the time stamp `since`, the current one included
        self._in_piece = 0  # bytes of the current piece that were given out
        self.connection()

    @property
    def since(self) -> str:
        """Time stamp from which the next connection has to ask; empty at the beginning."""
        return self._since.decode()

    def connection(self) -> None:
        """A new connection begins, with everything from `since` on."""
        self._repeats = self._at_since > 0
        self._pieces_to_skip = max(0, self._at_since - 1)
        self._bytes_to_skip = self._in_piece
        self._buffer = b""
        self._inside = False  # inside a piece, behind its time stamp
        self._length = 0  # bytes of the current piece so far
        self._skipping = False

    def feed(self, data: bytes) -> bytes:
        """Take what came and return the container's own bytes that are new."""
        data = self._buffer + data
        new, at, size = [], 0, len(data)
        while at < size:
            if not self._inside:
                if not self._repeats and (whole := self._whole(data, at)):
                    text, at = whole
                    new.append(text)
                    continue
                stamp = _STAMP.match(data, at)
                if stamp is None:
                    end = data.find(b"\n", at) + 1
                    if not end and size - at < _LONGEST_STAMP:
                        break  # the rest of the time stamp is still on its way
                    # Not from the container: the engine itself says something. It ends with its line.
                    new.append(data[at : end or size])
                    at = end or size
                    continue
                self._enter(stamp[0][:-1])
                at = stamp.end()
                if at == size:
                    break
            longest = at + PIECE - self._length
            end = data.find(b"\n", at, longest) + 1
            taken = data[at : end or longest]
            at += len(taken)
            self._length += len(taken)
            self._inside = not end and self._length < PIECE
            new.append(self._new_part(taken))
        self._buffer = data[at:]
        return b"".join(new)

    def _whole(self, data: bytes, at: int) -> tuple[bytes, int] | None:
        """The container's part of whole lines that are all new, which nearly all output comes as; and their end."""
        lines = data[at : data.rfind(b"\n", at) + 1].split(b"\n")[:-1]
        stamps = list(map(_STAMP.match, lines))
        if None in stamps or max(map(len, lines), default=0) >= PIECE:
            # A stamp may also be in the middle of a line that long.
            plain = (stamp is not None and len(line) < PIECE for line, stamp in zip(lines, stamps, strict=True))
            count = sum(1 for _ in takewhile(bool, plain))
            lines, stamps = lines[:count], stamps[:count]
        found = [stamp for stamp in stamps if stamp is not None]
        if not found:
            return None
        last = found[-1][0]
        run = sum(1 for _ in takewhile(lambda line: line.startswith(last), reversed(lines)))
        self._at_since = run + (self._at_since if run == len(lines) and last[:-1] == self._since else 0)
        self._since, self._in_piece, self._bytes_to_skip = last[:-1], len(lines[-1]) - len(last) + 1, 0
        text = b"\n".join([line[stamp.end() :] for line, stamp in zip(lines, found, strict=True)])
        return text + b"\n", at + sum(map(len, lines)) + len(lines)

    def _enter(self, stamp: bytes) -> None:
        self._inside, self._length = True, 0
        if self._repeats and stamp == self._since:
            if self._pieces_to_skip:
                self._pieces_to_skip -= 1
                self._skipping = True
                return
            # The piece in which the last connection ended: part of it was given out.
            self._skipping = False
            self._repeats = False
            return
        self._repeats = False
        self._skipping = False
        self._bytes_to_skip = 0
        if stamp == self._since:
            self._at_since += 1
        else:
            self._since, self._at_since = stamp, 1
        self._in_piece = 0

    def _new_part(self, taken: bytes) -> bytes:
        if self._skipping:
            return b""
        if self._bytes_to_skip:
            skipped = min(self._bytes_to_skip, len(taken))
            self._bytes_to_skip -= skipped
            taken = taken[skipped:]
        self._in_piece += len(taken)
        return taken
