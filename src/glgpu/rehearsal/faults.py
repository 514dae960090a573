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
    """

    point: str
    action: str
    nth: int | None = None
    times: int | None = 1
    argument: str = ""


@dataclass
class Faults:
    """The rules of one rehearsal; thread-safe, since stand-ins and player ask from different threads."""

    rules: list[Rule] = field(default_factory=list)
    visits: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def at(self, point: str) -> Rule | None:
        """Count a visit of ``point`` and return the rule that applies to it, if any."""
        with self._lock:
            self.visits[point] += 1
            visit = self.visits[point]
            for rule in self.rules:
                if rule.point != point:
                    continue
                if rule.nth is None:
                    return rule
                if rule.nth <= visit and (rule.times is None or visit < rule.nth + rule.times):
                    return rule
            return None

    def lift(self, point: str) -> None:
        """Take every rule of ``point`` away: the fault is over."""
        with self._lock:
            self.rules = [rule for rule in self.rules if rule.point != point]

    def end(self) -> None:
        """Everything works again."""
        with self._lock:
            self.rules = []
