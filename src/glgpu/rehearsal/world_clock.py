"""The stand-ins' clock: real time plus what a rehearsal has skipped, so that a hard end can be played."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any


class WorldClock:
    """Time as the stand-ins see it; timers fire in the loop in which they were set.

    Attributes:
        offset: Seconds by which this world runs ahead of the machine's clock.
    """

    def __init__(self) -> None:
        self.offset = 0.0
        self._timers: list[tuple[float, int, asyncio.AbstractEventLoop, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def now(self) -> float:
        """Unix time in seconds."""
        return time.time() + self.offset

    async def date(self, _request: Any, response: Any) -> None:
        """Put this clock's time into an HTTP response, as servers do; for ``on_response_prepare`` of aiohttp."""
        response.headers["Date"] = formatdate(self.now(), usegmt=True)

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` in the running loop at Unix time ``when`` of this clock."""
        loop = asyncio.get_running_loop()
        heapq.heappush(self._timers, (when, next(self._numbers), loop, callback))
        loop.call_later(max(0.0, when - self.now()), self._fire)

    def advance(self, seconds: float) -> None:
        """Skip ``seconds``; due timers fire soon after, each in its own loop. Callable from any thread."""
        self.offset += seconds
        self._fire()

    def _fire(self) -> None:
        while self._timers and self._timers[0][0] <= self.now():
            _, _, loop, callback = heapq.heappop(self._timers)
            if not loop.is_closed():
                loop.call_soon_threadsafe(callback)
