"""How long things may live: durations as GitLab writes them, and the ends of a VM."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from glgpu.errors import ErrorClass, Failure

UNIT_SECONDS = {
    "w": 604800, "wk": 604800, "wks": 604800, "week": 604800, "weeks": 604800,
    "d": 86400, "day": 86400, "days": 86400,
    "h": 3600, "hr": 3600, "hrs": 3600, "hour": 3600, "hours": 3600,
    "m": 60, "min": 60, "mins": 60, "minute": 60, "minutes": 60,
    "s": 1, "sec": 1, "secs": 1, "second": 1, "seconds": 1,
}  # fmt: skip
_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,12})?"
_UNIT = "|".join(sorted(UNIT_SECONDS, key=len, reverse=True))
_PART = re.compile(rf"\s*({_NUMBER})\s*({_UNIT})(?![a-z])", re.IGNORECASE)
_JOINT = re.compile(r"\s*(?:,|\band\b)(?=\s*[0-9])", re.IGNORECASE)

Until = Literal["pipeline", "deadline"]

SKEW_SECONDS = 15 * 60.0
"""How far two machines' clocks may lie apart. Runners, laptops, GitLab and Google each have one of their own, so what
one has written for another to compare holds this much longer wherever too early would harm."""


@dataclass(frozen=True)
class Lifetime:
    """When a VM goes.

    Attributes:
        until: What ends it in the ordinary case: the end of its pipeline, or its soft end.
        soft_end: Unix time of the movable end (label ``glgpu-expires``); a claim moves it.
        hard_end: Unix time at which Compute Engine itself deletes it (``max_run_duration``); nothing moves it.
    """

    until: Until
    soft_end: float
    hard_end: float

    def claimed(self) -> Lifetime:
        """The lifetime once a job uses the VM: the hard end is the only one left."""
        return Lifetime(self.until, self.hard_end, self.hard_end)


def parse_duration(text: str) -> float:
    """Read a duration as GitLab and its runner write them.

    Args:
        text: ``2h35m``, ``90 minutes``, ``1 day and 2 hours``, or plain seconds as in ``CI_JOB_TIMEOUT``.

    Returns:
        Seconds.

    Raises:
        Failure: CONFIG, when it is no duration.
    """
    stripped = text.strip()
    if re.fullmatch(r"[0-9]{1,12}", stripped):
        return float(stripped)
    seconds, position = 0.0, 0
    while part := _PART.match(stripped, position):
        seconds += float(part[1]) * UNIT_SECONDS[part[2].lower()]
        joint = _JOINT.match(stripped, part.end())
        position = joint.end() if joint else part.end()
    if not stripped or position < len(stripped):
        raise Failure(ErrorClass.CONFIG, f"{text!r} is no duration", "write it like 2h35m, 90 minutes or 3600")
    return seconds


def spoken(seconds: float) -> str:
    """A duration for people: ``2 h 35 min``, ``40 s``."""
    if math.isinf(seconds):
        return "an unknown time"
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
