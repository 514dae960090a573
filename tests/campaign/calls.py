"""What a run calls, in a form that is the same in every run, and the boundaries of those calls."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from glgpu.rehearsal.interposer import MOMENTS, Moment, Reached

MOST = 2
"""How often the same call of one job counts: what is polled is not worth more."""

_OWN = [
    (re.compile(r"glgpu-[0-9a-f]{6}-[0-9]+-[0-9a-z-]+?-(train|notebook)"), "RUN"),
    (re.compile(r"operation-[0-9]+-[0-9]+"), "OPERATION"),
    (re.compile(r"\?ID=[0-9a-f-]+"), "?ID"),
    (re.compile(r"/(projects|pipelines|jobs|deploy_keys|schedules)/[0-9]+"), r"/\1/N"),
    (re.compile(r"labels\.glgpu=managed.*"), "labels"),
]


@dataclass(frozen=True, order=True)
class Call:
    """A call of one job.

    Attributes:
        job: The job's label: its name, with `again` behind it where it was retried after the pipeline's end.
        what: The call.
        nth: Which of the same, counted from 1.
    """

    job: str
    what: str
    nth: int

    def __str__(self) -> str:
        return f"{self.job}: {self.what}{f' ({self.nth})' if self.nth > 1 else ''}"


@dataclass(frozen=True, order=True)
class Boundary:
    """One boundary of a call."""

    call: Call
    moment: Moment

    def __str__(self) -> str:
        return f"{self.moment} of {self.call}"


def plain(reached: Reached) -> str:
    """A call without whatever differs from run to run."""
    if reached.to == "vm":
        found = re.match(r"sh glgpu/helper (\S+)", reached.target)
        return f"vm helper {found[1] if found else 'hello'}"
    if reached.to == "git":
        return f"git {reached.target.split()[0]}"
    text = unquote(reached.target).replace("/compute/v1/projects/rehearsal-project", "")
    for pattern, word in _OWN:
        text = pattern.sub(word, text)
    return f"{reached.to} {reached.verb} {text}"


class Tally:
    """Numbers the calls of a run."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._seen: Counter[tuple[str, str]] = Counter()

    def add(self, job: str, reached: Reached) -> Call:
        """The call, with its number."""
        what = plain(reached)
        self._seen[job, what] += 1
        call = Call(job, what, self._seen[job, what])
        self.calls.append(call)
        return call


def boundaries(runs: Sequence[Iterable[Call]]) -> list[Boundary]:
    """Every boundary of the calls that all of these runs made."""
    first, *others = [dict.fromkeys(run) for run in runs]
    common = [call for call in first if call.nth <= MOST and all(call in other for other in others)]
    return [Boundary(call, moment) for call in common for moment in MOMENTS]
