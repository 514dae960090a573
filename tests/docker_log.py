"""What Docker keeps of a container's output, and what `docker logs --timestamps` makes of it."""

from __future__ import annotations

from collections.abc import Sequence

PIECE = 16_384
"""Bytes that Docker keeps together (moby: daemon/logger/copier.go, `defaultBufSize`)."""
STAMP = "2026-11-23T20:00:{:02d}.{:09d}Z"


class DockerLog:
    """Pieces of at most 16 KiB, each with a time stamp.

    A line's end is part of its last piece, and a piece of its own where the line fills its pieces exactly
    (moby: daemon/logger/copier.go, and `docker logs` of it).

    Args:
        lines: Each with its end, and how much later than the one before it was printed; 0: at the same time.

    Attributes:
        content: What the program printed.
        pieces: Time stamp and bytes of each piece.
    """

    def __init__(self, lines: Sequence[tuple[bytes, int]]) -> None:
        self.content = b"".join(line for line, _ in lines)
        self.pieces: list[tuple[str, bytes]] = []
        time = 0
        for line, later in lines:
            time += later
            self.pieces += [
                (STAMP.format(time // 10, time % 10), line[at : at + PIECE]) for at in range(0, len(line), PIECE)
            ]

    def logs(self, since: str, printed: int | None = None) -> bytes:
        """What is shown from a time on, of all or of the first pieces."""
        return b"".join(stamp.encode() + b" " + piece for stamp, piece in self.pieces[:printed] if stamp >= since)
