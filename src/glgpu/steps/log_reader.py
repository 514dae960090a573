"""Read ``docker logs --timestamps``: strip the time stamps, and go on after a break without losing or repeating a byte.

Docker keeps a long line in pieces of 16 KiB, and gives each piece a time stamp of its own in the middle of the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE = 16_384
_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d) ")
_LONGEST_STAMP = 36


class LogReader:
    """The position in a container's log, across any number of connections.

    Attributes:
        since: Time stamp from which the next connection has to ask; empty at the beginning.
    """

    def __init__(self) -> None:
        self.since = ""
        self._at_since = 0  # pieces seen that carry the time stamp `since`, the current one included
        self._in_piece = 0  # bytes of the current piece that were given out
        self.connection()

    def connection(self) -> None:
        """A new connection begins, with everything from `since` on."""
        self._repeats = self._at_since > 0
        self._pieces_to_skip = max(0, self._at_since - 1)
        self._bytes_to_skip = self._in_piece
        self._buffer = b""
        self._inside = False  # inside a piece, behind its time stamp
        self._length = 0  # bytes of the current piece so far
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take what came and yield the container's own bytes that are new."""
        came, at = self._buffer + data, 0
        self._buffer = b""
        while at < len(came):
            if not self._inside:
                stamp = _STAMP.match(came, at)
                if stamp is not None:
                    at = stamp.end()
                    self._enter(stamp[0][:-1].decode())
                    continue
                end = came.find(b"\n", at) + 1
                if not end and len(came) - at < _LONGEST_STAMP:
                    self._buffer = came[at:]  # the rest of the time stamp is still on its way
                    return
                # Not from the container: the engine itself says something. It ends with its line.
                end = end or len(came)
                yield came[at:end]
                at = end
                continue
            room = at + PIECE - self._length
            end = came.find(b"\n", at, room) + 1
            taken = came[at : end or room]
            at += len(taken)
            self._length += len(taken)
            new = self._new_part(taken)
            if new:
                yield new
            if end or self._length >= PIECE:
                self._inside = False

    def _enter(self, stamp: str) -> None:
        self._inside, self._length = True, 0
        if self._repeats and stamp == self.since:
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
        if stamp == self.since:
            self._at_since += 1
        else:
            self.since, self._at_since = stamp, 1
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
