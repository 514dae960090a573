"""The log of a job as the GitLab Runner keeps it: masked and limited."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

LOG_LIMIT = 4_194_304
"""Bytes of a job log that the Runner keeps (its ``output_limit`` of 4096 KiB)."""
LIMIT_REACHED = (
    f"Job's log exceeded limit of {LOG_LIMIT} bytes. Job execution will continue but no more output will be collected."
)
MASK = b"[MASKED]"


class Masker:
    """Replaces secrets in a stream, also where one is split over several writes."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = sorted({secret.encode() for secret in secrets if secret}, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._secrets))) if self._secrets else None
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What may be shown of all that came so far; the beginning of a possible secret is held back."""
        if self._pattern is None:
            return data
        data = self._held + data
        shown, position = b"", 0
        while True:
            unsure = self._first_unsure(data, position)
            match = self._pattern.search(data, position)
            if match is None or match.start() >= unsure:
                self._held = data[unsure:]
                return shown + data[position:unsure]
            shown += data[position : match.start()] + MASK
            position = match.end()

    def flush(self) -> bytes:
        """What was held back, masked: nothing more will come."""
        held, self._held = self._held, b""
        return self._pattern.sub(MASK, held) if self._pattern else held

    def _first_unsure(self, data: bytes, position: int) -> int:
        """Where a secret begins whose end may yet come, or the end of the data."""
        longest = len(self._secrets[0])
        for start in range(max(position, len(data) - longest + 1), len(data)):
            rest = data[start:]
            if any(len(rest) < len(secret) and secret.startswith(rest) for secret in self._secrets):
                return start
        return len(data)


class JobLog:
    """A job's log: masked, limited and passed on."""

    def __init__(self, secrets: Iterable[str], pass_on: Callable[[bytes], None]) -> None:
        self._masker = Masker(secrets)
        self._pass_on = pass_on
        self._left = LOG_LIMIT

    def output(self, data: bytes) -> None:
        """What a process printed."""
        self._keep(self._masker.feed(data))

    def say(self, line: str) -> None:
        """A line of the Runner's own."""
        self._keep(self._masker.flush() + self._masker.feed(line.encode() + b"\n") + self._masker.flush())

    def flush(self) -> None:
        """A process is over: what looked like the beginning of a secret is none."""
        self._keep(self._masker.flush())

    def _keep(self, data: bytes) -> None:
        if not data or self._left < 0:
            return
        kept = data[: self._left]
        self._left -= len(data)
        if self._left < 0:
            kept += f"\n\x1b[33;1m{LIMIT_REACHED}\x1b[0;m\n".encode()
        self._pass_on(kept)
