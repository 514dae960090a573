"""What a case is: drawn from the campaign's seed and the case's number alone, so that it can be played again."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from campaign.calls import Boundary
from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.job_run import Executor

Layer = Literal["stop", "cleanup", "hard end"]
AGAIN = "train again"
"""The train job, retried after the pipeline has ended."""
SKEW_SECONDS = 600.0
TERRAFORMS = re.compile(r"/terraform/state/RUN|POST /zones/[^/]+/instances$|/operations/OPERATION$|/rehearsal/v1/")
"""Calls while Terraform runs."""
LOCKED = re.compile(r"/terraform/state/RUN\?ID|DELETE .*/terraform/state/RUN/lock|POST /zones/[^/]+/instances$")
"""Calls while it holds the lock on its state: whoever dies there leaves it behind."""
LEAVE_LOCKS = ("kill terraform", "kill both", "lose runner")

STRIKES: Mapping[str, int] = {
    "kill glgpu": 5,
    "kill terraform": 3,
    "kill both": 4,
    "terminate glgpu": 4,
    "cancel job": 4,
    "cancel pipeline": 4,
    "force cancel": 2,
    "job timeout": 3,
    "script timeout": 2,
    "lose runner": 2,
    "stop runner": 2,
    "lose cloud, reset": 2,
    "lose cloud, silence": 1,
    "lose gitlab, reset": 2,
    "lose gitlab, silence": 1,
    "lose vm, reset": 2,
    "lose vm, silence": 2,
}
"""What can happen at an instant, with its weight."""

AMBIENTS: Mapping[str, int] = {
    "": 12,
    "delete refused": 2,
    "delete refused for ever": 1,
    "delete slow": 1,
    "vm refuses to die": 1,
    "insert late": 2,
    "insert late, unseen": 2,
    "clock ahead": 1,
    "clock behind": 1,
}
"""What is wrong all the while, with its weight; mostly nothing."""
FOR_EVER = ("delete refused for ever", "vm refuses to die")
"""What only the hard end gets over."""

LAYERS: Sequence[tuple[tuple[Layer, ...], int]] = [
    (("stop",), 4),
    (("cleanup",), 3),
    (("hard end", "stop"), 1),
    (("hard end", "cleanup"), 1),
]
"""Which layers act after the pipeline, in order."""


@dataclass(frozen=True)
class Plan:
    """One case.

    Attributes:
        number: Its number in the campaign.
        executor: Whose way of ending jobs is played.
        strike: What happens at an instant.
        boundary: At which boundary of which call; None: by time.
        job: In which job.
        fraction: After which part of the job's usual time, where it is by time.
        ambient: What is wrong all the while.
        rules: The same as rules of the stand-ins.
        skew: Seconds by which the world's clock is ahead of the job's.
        seconds: How long a lost network stays lost.
        again: Whether the train job is retried after the pipeline has ended.
        layers: Who acts after the pipeline.
        cold: Whether glgpu is started plainly and not from a warm parent.
    """

    number: int
    executor: Executor
    strike: str
    boundary: Boundary | None
    job: str
    fraction: float
    ambient: str
    rules: Sequence[Rule]
    skew: float
    seconds: float
    again: bool
    layers: Sequence[Layer]
    cold: bool = field(default=False)

    def __str__(self) -> str:
        where = str(self.boundary) if self.boundary else f"{self.job}: after {self.fraction:.0%} of its usual time"
        parts = [f"{self.strike} {where}", self.executor]
        parts += [self.ambient] if self.ambient else []
        parts += [f"for {self.seconds:.1f} s"] if self.strike.startswith("lose ") and "," in self.strike else []
        return ", ".join(parts)


def draw(seed: int, number: int, known: Sequence[Boundary]) -> Plan:
    """The case of that number."""
    chance = random.Random(f"{seed} {number}")
    at_boundary = number % 2 == 0
    boundary = None
    job = chance.choice(["provision", "provision", "train", "train", "destroy", AGAIN])
    if at_boundary and known:
        # Every boundary once before any twice.
        pile, turn = divmod(number // 2, len(known))
        deck = sorted(known)
        random.Random(f"{seed} pile {pile}").shuffle(deck)
        boundary = deck[turn]
    locked = [one for one in known if LOCKED.search(one.call.what)]
    if number % 10 == 5 and locked:
        boundary = chance.choice(locked)
    if boundary is not None:
        job = boundary.call.job
    strike = chance.choice(LEAVE_LOCKS) if number % 10 == 5 else _weighted(chance, STRIKES)
    if strike == "kill terraform" and boundary is not None and not TERRAFORMS.search(boundary.call.what):
        strike = "kill both"
    ambient = _weighted(chance, AMBIENTS)
    late = ambient.startswith("insert late") and boundary is None
    if late:
        # While it is on its way, and so that the teardown after it is the pipeline's own.
        job, strike = "provision", chance.choice(["job timeout", "terminate glgpu", "script timeout", "kill glgpu"])
    layers: Sequence[Layer] = chance.choices([one for one, _ in LAYERS], [weight for _, weight in LAYERS])[0]
    if ambient in FOR_EVER:
        layers = (layers[-1], "hard end", layers[-1])
    skew = {"clock ahead": SKEW_SECONDS, "clock behind": -SKEW_SECONDS}.get(ambient, 0.0)
    return Plan(
        number=number,
        executor=chance.choice(["docker", "docker", "shell"]),
        strike=strike,
        boundary=boundary,
        job=job,
        fraction=chance.uniform(0.5 if late else 0.0, 1.0),
        ambient=ambient,
        rules=_rules(chance, ambient),
        skew=skew,
        seconds=chance.uniform(0.5, 4.0),
        again=job == AGAIN or chance.random() < 0.05,
        layers=layers,
        cold=chance.random() < 0.05,
    )


def undisturbed(number: int) -> Plan:
    """A run to which nothing happens, for the list of its calls."""
    return Plan(number, "docker", "", None, "", 0.0, "", (), 0.0, 0.0, True, ("stop",))


def _weighted(chance: random.Random, weights: Mapping[str, int]) -> str:
    return chance.choices(list(weights), list(weights.values()))[0]


def _rules(chance: random.Random, ambient: str) -> Sequence[Rule]:
    match ambient:
        case "delete refused":
            return [Rule("compute.instances.delete", "refuse", 1, chance.choice([1, 2, 3]))]
        case "delete refused for ever":
            return [Rule("compute.instances.delete", "refuse")]
        case "delete slow":
            return [Rule("compute.instances.delete", "late", argument=f"{chance.uniform(1, 5):.1f}")]
        case "vm refuses to die":
            return [Rule("compute.immortal", "on")]
        case "insert late":
            return [Rule("compute.instances.insert", "late", 1, argument=f"{chance.uniform(10, 16):.1f}")]
        case "insert late, unseen":
            return [Rule("compute.instances.insert", "late-unseen", 1, argument=f"{chance.uniform(10, 16):.1f}")]
    return []
