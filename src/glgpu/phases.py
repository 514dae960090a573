"""What a run spent its time on, from the events of its record: events in, phases, tries and costs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glgpu.run_record import Event

BEGINS: Mapping[str, str] = {
    "candidate-tried": "A VM is asked for",
    "instance-running": "The VM boots, its GPU is checked",
    "vm-ready": "The VM waits for its job",
    "vm-claimed": "Code and image come to it",
    "container-started": "Training",
    "training-taken-up": "Training",
    "training-ended": "Outputs come home",
    "outputs-home": "The VM is released",
    "gpu-released": "Until the proof that all is gone",
    "preempted": "Google took the VM away",
    "failed": "After a failure",
}
"""Which phase begins with an event; it lasts until another begins."""
ENDS = frozenset({"proof"})
TRAINING = BEGINS["container-started"]
VM_RUNS, VM_GOES = (
    "instance-running",
    frozenset({"gpu-released", "delete-requested", "preempted", "candidate-tried", "proof"}),
)
"""Between these a VM is paid for."""


@dataclass(frozen=True)
class Phase:
    """A stretch of a run.

    Attributes:
        name: What happens.
        begin: Unix time.
        end: Unix time.
        ended: Whether it is over.
    """

    name: str
    begin: float
    end: float
    ended: bool = True

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return max(0.0, self.end - self.begin)


@dataclass(frozen=True)
class Cost:
    """What a run's VMs cost, by estimate.

    Attributes:
        usd: US dollars; None where no price is known.
        seconds: For how long they ran, all of them together.
        rates: What an hour of each of them costs; None: not known.
    """

    usd: float | None
    seconds: float
    rates: tuple[float | None, ...]


@dataclass(frozen=True)
class Try:
    """One candidate.

    Attributes:
        candidate: What it is, in words.
        outcome: ``ran``, ``failed``, ``skipped`` or ``tried``.
        why: The error class and its cause; empty where it ran.
        seconds: How long it took; None: not told.
        usd_per_hour: Estimate; None: not known.
    """

    candidate: str
    outcome: str
    why: str
    seconds: float | None
    usd_per_hour: float | None


def phases_of(events: Sequence[Event], now: float) -> list[Phase]:
    """The phases in their order; the last one lasts until now where nothing has ended it."""
    found: list[Phase] = []
    name, begin = "", 0.0
    for event in events:
        begins = BEGINS.get(event.what, "")
        if (event.what not in ENDS and not begins) or begins == name:
            continue
        if name:
            found.append(Phase(name, begin, event.at))
        name, begin = begins, event.at
    if name:
        found.append(Phase(name, begin, max(now, begin), ended=False))
    return found


def training_span(phases: Sequence[Phase]) -> tuple[float, float] | None:
    """From when to when was trained, with all that lies between; None where nothing was."""
    spans = [one for one in phases if one.name == TRAINING]
    return (spans[0].begin, spans[-1].end) if spans else None


def cost_of(events: Sequence[Event], now: float) -> Cost:
    """What the VMs cost from the moment in which each was seen to run until it was given back."""
    usd, seconds, rates = 0.0, 0.0, list[float | None]()
    since: float | None = None
    for event in events:
        if event.what == VM_RUNS:
            since = event.at
            rates.append(number_of(event.facts.get("usd_per_hour")))
        elif event.what in VM_GOES and since is not None:
            usd, seconds = usd + (event.at - since) * (rates[-1] or 0.0) / 3600, seconds + event.at - since
            since = None
    if since is not None:
        usd, seconds = usd + (now - since) * (rates[-1] or 0.0) / 3600, seconds + now - since
    known = bool(rates) and None not in rates
    return Cost(usd if known else None, seconds, tuple(rates))


def tries_of(events: Sequence[Event]) -> list[Try]:
    """The candidates in the order in which they were tried or left out."""
    tries: list[Try] = []
    for event in events:
        facts = event.facts
        why = ": ".join(str(facts[key]) for key in ("failure", "cause") if facts.get(key))
        outcome = {"candidate-tried": "tried", "candidate-skipped": "skipped"}.get(event.what)
        made = Try(
            str(facts.get("candidate", "?")),
            outcome or {"candidate-failed": "failed", "instance-running": "ran"}.get(event.what, ""),
            why,
            number_of(facts.get("seconds")),
            number_of(facts.get("usd_per_hour")),
        )
        if outcome:
            tries.append(made)
        elif made.outcome and tries and tries[-1].outcome == "tried":
            tries[-1] = made
        elif made.outcome:
            tries.append(made)
    return tries


def number_of(value: Any) -> float | None:
    """A number that a record holds; None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
