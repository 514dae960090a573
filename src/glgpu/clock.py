"""Time as glgpu sees it, replaceable by tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Unix time and the right to wait."""

    def now(self) -> float:
        """Unix time in seconds."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        """Unix time in seconds."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


def poll(clock: Clock, look: Callable[[], T | None], *, seconds: float, every: float) -> T | None:
    """Look until there is an answer or the time is up; the last look happens at the end, never before it.

    Args:
        clock: Whose time counts.
        look: Returns None as long as there is nothing to see.
        seconds: How long to go on.
        every: Seconds between two looks.
    """
    end = clock.now() + seconds
    while True:
        seen = look()
        if seen is not None:
            return seen
        left = end - clock.now()
        if left <= 0:
            return None
        clock.sleep(min(every, left))
