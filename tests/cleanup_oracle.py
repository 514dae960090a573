"""What a cleanup may remove, said a second time: from docs/how-to/clean-up.md alone, without a line of glgpu.

A world is a list of runs as plain facts; `doomed` tells by name what has to be gone afterwards, and nothing else may.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

MONTHS = 120 * 24 * 3600
DONE = ("success", "failed", "canceled", "skipped", "manual")


@dataclass
class Machine:
    """A VM: its zone, Compute Engine's status, what its labels say, and Unix times."""

    zone: str
    status: str
    created: float
    until: str | None
    expires: str | None
    foreign_label: bool = False


@dataclass
class Facts:
    """A run and what there is of it.

    Attributes:
        pipeline: The status of its pipeline in its GitLab; None: GitLab has none of that number.
        machines: Its VMs, each in another zone.
        disk: When a disk without VM was made, or None.
        rules: When its rules were made, or None.
        key: Whether there is a deploy key of its name in our project.
        state: The same for a state.
    """

    server: str
    project: int
    run: str
    kind: str
    pipeline: str | None
    machines: list[Machine] = field(default_factory=list)
    disk: float | None = None
    rules: float | None = None
    key: bool = False
    state: bool = False

    @property
    def name(self) -> str:
        """As design and docs have it."""
        short = hashlib.sha256(self.server.encode()).hexdigest()[:6]
        return "-".join(("glgpu", short, str(self.project), self.run, self.kind))


@dataclass
class Asked:
    """Who cleans up, when, and what GitLab lets it see.

    Attributes:
        visible: The projects that the token sees; None: there is no token.
    """

    server: str
    project: int
    now: float
    visible: list[int] | None
    younger_stays: float = 0.0


def doomed(runs: Iterable[Facts], asked: Asked) -> set[str]:
    """Everything that has to go, as ``kind name`` or ``kind name zone``."""
    gone: set[str] = set()
    for run in runs:
        if run.server != asked.server:
            continue
        told = asked.visible is not None and run.project in asked.visible
        status = run.pipeline if told and not run.run.startswith("u") else None
        ends = {machine.zone: _ends(machine, status, asked) for machine in run.machines}
        gone |= {f"vm {run.name} {zone}" for zone, over in ends.items() if over}
        gone |= {f"disk {run.name} {zone}" for zone, over in ends.items() if over}
        rest = set()
        if run.disk is not None and _rest_ends(run.disk, run, ends, status, asked):
            rest.add(f"disk {run.name} orphan")
        if run.rules is not None and _rest_ends(run.rules, run, ends, status, asked):
            rest |= {f"rule {run.name}", f"rule {run.name}-closed"}
        if asked.visible is not None and run.project == asked.project and _rest_ends(None, run, ends, status, asked):
            rest |= ({f"key {run.name}"} if run.key else set()) | ({f"state {run.name}"} if run.state else set())
        gone |= rest
    return gone


def _ends(machine: Machine, status: str | None, asked: Asked) -> bool:
    young = asked.now - machine.created < asked.younger_stays
    if young or machine.foreign_label:
        return False
    readable = machine.expires is not None and machine.expires.isdigit()
    end = float(machine.expires or 0) if readable else machine.created + MONTHS
    if end <= asked.now:
        return True
    if machine.until == "deadline" and readable:
        return False
    return status in DONE


def _rest_ends(made: float | None, run: Facts, ends: dict[str, bool], status: str | None, asked: Asked) -> bool:
    if ends:
        return all(ends.values()) and (status is None or status in DONE)
    if made is not None and asked.now - made < asked.younger_stays:
        return False
    if status is not None:
        return status in DONE
    born = float(run.run.split("-")[1]) if run.run.startswith("u") else made
    return born is not None and born + MONTHS <= asked.now
