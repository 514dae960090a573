"""Faults as rules: at which point of which stand-in, at which visit, what goes wrong."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rule:
    """One thing that goes wrong.

    Attributes:
        point: Where: ``<stand-in>.<resource>.<verb>``, for example ``compute.instances.insert``,
            ``vm.docker.pull`` or ``gitlab.deploy_keys.create``.
        action: What: a word that the stand-in owning the point understands, for example ``refuse``,
            ``silence``, ``stockout``.
        nth: At which visit of the point, counted from 1; None: at every visit.
        times: For how many visits from ``nth`` on; None: for ever.
        argument: A number or word that the action needs (seconds, a status, an address).
        where: Only in this zone, or in the zones of this region; empty: everywhere.
    """

    point: str
    action: str
    nth: int | None = None
    times: int | None = 1
    argument: str = ""
    where: str = ""


@dataclass
class Faults:
    """The rules of one rehearsal; thread-safe, since stand-ins and player ask from different threads."""

    rules: list[Rule] = field(default_factory=list)
    visits: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def at(self, point: str, place: str = "") -> Rule | None:
        """Count a visit of ``point``, in a zone or region where it has one; the rule that applies to it, if any."""
        with self._lock:
            for where in _places(place):
                self.visits[point, where] += 1
            for rule in self.rules:
                if rule.point != point or rule.where not in _places(place):
                    continue
                if rule.nth is None:
                    return rule
                visit = self.visits[point, rule.where]
                if rule.nth <= visit and (rule.times is None or visit < rule.nth + rule.times):
                    return rule
            return None

    def holds(self, point: str, place: str = "") -> bool:
        """Whether a rule of ``point`` is in force in a zone or region; for what is a state and not a visit."""
        with self._lock:
            return any(rule.point == point and rule.where in _places(place) for rule in self.rules)

    def lift(self, point: str) -> None:
        """Take every rule of ``point`` away: the fault is over."""
        with self._lock:
            self.rules = [rule for rule in self.rules if rule.point != point]

    def end(self) -> None:
        """Everything works again."""
        with self._lock:
            self.rules = []


def _places(place: str) -> set[str]:
    """What a rule may call a zone: itself, its region, or everywhere; a region: itself, or everywhere."""
    region, _, letter = place.rpartition("-")
    return {"", place, region if len(letter) == 1 else ""}
