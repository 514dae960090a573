"""Whether GPUs sit idle, for how long, and the likely reason: samples in, a verdict out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from glgpu.gpu_samples import Sample

IDLE_PERCENT = 3.0
"""Use up to which a GPU counts as idle: a display or a monitoring tool takes as much."""
BUSY_CPU_PERCENT = 60.0
"""CPU use from which something computes there: data loaders often keep one core busy, whatever the machine has."""

Reason = Literal["some", "unused", "loading", "waiting", "unknown"]
SPOKEN: Mapping[Reason, str] = {
    "some": "the program uses the others only: let it use them all, or set machine.count to what it uses",
    "unused": "no process has opened it: the program computes on the CPU, or has not come to its GPU part; check that "
    "the image's framework is built for CUDA and that model and data are moved to the GPU",
    "loading": "the CPUs are busy meanwhile: it waits for data, most likely; try more loader workers, data prepared "
    "beforehand, or a machine.type with more vCPUs",
    "waiting": "the CPUs are idle as well: the program waits for something, a download, a lock or input, or it sleeps",
    "unknown": "a process has opened it, but nothing is computed",
}
"""What each reason means, and what may help."""


@dataclass(frozen=True)
class Idle:
    """GPUs that do nothing.

    Attributes:
        gpus: Their numbers.
        seconds: For how long all of them have done nothing.
        reason: The likely reason.
    """

    gpus: tuple[int, ...]
    seconds: float
    reason: Reason


@dataclass
class _Stretch:
    """A time in which one GPU did nothing."""

    since: float
    until: float
    processes: float = 0.0
    cpu_sum: float = 0.0
    cpu_count: int = 0
    told: bool = False

    def add(self, one: Sample) -> None:
        self.until = one.at
        if one.processes is not None:
            self.told = True
            self.processes = max(self.processes, one.processes)
        if one.cpu is not None:
            self.cpu_sum += one.cpu
            self.cpu_count += 1


class Idling:
    """Keeps an eye on every GPU of a VM."""

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}
        self._stretches: dict[int, _Stretch] = {}

    def add(self, one: Sample) -> None:
        """Take a sample; one that is told again, or whose driver does not tell the use, says nothing."""
        if one.at <= self._seen.get(one.gpu, -math.inf) or one.use is None:
            return
        self._seen[one.gpu] = one.at
        if one.use > IDLE_PERCENT:
            self._stretches.pop(one.gpu, None)
            return
        self._stretches.setdefault(one.gpu, _Stretch(one.at, one.at)).add(one)

    def verdict(self, seconds: float) -> Idle | None:
        """The GPUs that have done nothing for at least so long; None where there are none."""
        idle = {gpu: one for gpu, one in self._stretches.items() if one.until - one.since >= seconds}
        if not idle:
            return None
        lasts = min(one.until - one.since for one in idle.values())
        return Idle(tuple(sorted(idle)), lasts, self._reason(idle))

    def _reason(self, idle: Mapping[int, _Stretch]) -> Reason:
        if len(idle) < len(self._seen):
            return "some"
        if all(one.told and one.processes == 0 for one in idle.values()):
            return "unused"
        counts = sum(one.cpu_count for one in idle.values())
        if not counts:
            return "unknown"
        cpu = sum(one.cpu_sum for one in idle.values()) / counts
        return "loading" if cpu >= BUSY_CPU_PERCENT else "waiting"
