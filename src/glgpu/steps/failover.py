"""Which candidate is next after one has failed, what is told about all of them, and what it means when none is left."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glgpu.classify import zones_with_capacity
from glgpu.errors import ErrorClass, Failure
from glgpu.machines import Candidate

MOST_HICCUPS = 3
"""Troubles of Google's own that a search puts up with; what the clients repeat by themselves is not counted."""
HICCUP_SECONDS = 10.0
"""Pause after such a trouble."""
TROUBLE = (ErrorClass.TRANSIENT, ErrorClass.RATE_LIMIT)
SHORT: dict[ErrorClass, str] = {
    ErrorClass.STOCKOUT: "no capacity",
    ErrorClass.PREEMPTED: "preempted while it was created",
    ErrorClass.QUOTA_REGION: "the region's quota is used up",
    ErrorClass.QUOTA_GLOBAL: "the project's quota is used up",
    ErrorClass.NOT_AVAILABLE: "not offered there",
    ErrorClass.TRANSIENT: "trouble at Google",
    ErrorClass.RATE_LIMIT: "too many requests",
}
TOO_SLOW = "did not run within"
"""What a cause says where patience ended, and no answer of Google's was seen."""
WORST_LAST = (
    ErrorClass.STOCKOUT,
    ErrorClass.PREEMPTED,
    *TROUBLE,
    ErrorClass.QUOTA_REGION,
    ErrorClass.NOT_AVAILABLE,
)
"""Why candidates fail without ending the search. What a later try may cure comes first: a job that is retried for its
exit code should be retried if that can help."""
_METRIC = re.compile(r"Quota '(\w+)' exceeded")


@dataclass(frozen=True)
class Try:
    """What became of a candidate.

    Attributes:
        candidate: The candidate.
        failure: Why it is not the one; None: it runs.
        seconds: How long it took; None: it was not asked for.
    """

    candidate: Candidate
    failure: Failure | None
    seconds: float | None


class Queue:
    """Candidates in the order in which they are tried, changed by what Google says of those before.

    Args:
        candidates: In the user's order.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._left = list(candidates)
        self._hiccups = 0
        self._troubled: set[Candidate] = set()

    def next(self) -> Candidate | None:
        """The next one, or None."""
        return self._left.pop(0) if self._left else None

    def learn(self, failed: Candidate, failure: Failure) -> list[Candidate]:
        """Take in why a candidate failed.

        Returns:
            Those that need not be tried any more.

        Raises:
            Failure: This one: nothing that is left would fare better.
        """
        match failure.klass:
            case ErrorClass.STOCKOUT:
                self._bring_forward(failed, zones_with_capacity(failure.evidence))
                return []
            case ErrorClass.PREEMPTED:
                return []
            case ErrorClass.QUOTA_REGION:
                return self._drop(lambda other: _shares_quota(failed, failure, other))
            case ErrorClass.NOT_AVAILABLE:
                return self._drop(
                    lambda other: (
                        (other.gpu, other.machine_type, other.zone) == (failed.gpu, failed.machine_type, failed.zone)
                    )
                )
            case ErrorClass.TRANSIENT | ErrorClass.RATE_LIMIT if self._hiccups < MOST_HICCUPS:
                self._hiccups += 1
                if failed not in self._troubled:
                    self._troubled.add(failed)
                    self._left.insert(0, failed)
                return []
        raise failure

    def _bring_forward(self, failed: Candidate, zones: Sequence[str]) -> None:
        """Zones that Google itself names come first, where they are candidates for the same machine."""

        def rank(other: Candidate) -> int:
            same = (other.gpu, other.machine_type, other.spot) == (failed.gpu, failed.machine_type, failed.spot)
            return zones.index(other.zone) if same and other.zone in zones else len(zones)

        self._left.sort(key=rank)

    def _drop(self, concerns: Callable[[Candidate], bool]) -> list[Candidate]:
        dropped = [other for other in self._left if concerns(other)]
        self._left = [other for other in self._left if other not in dropped]
        return dropped


def region_of(zone: str) -> str:
    """``europe-west4`` for ``europe-west4-a``."""
    return zone.rpartition("-")[0]


def table_of(tries: Sequence[Try]) -> list[list[str]]:
    """Header and rows: every candidate that was tried or ruled out, and what became of it."""
    rows = [["machine", "zone", "model", "outcome", "time"]]
    for one in tries:
        candidate, failure = one.candidate, one.failure
        gpu = f"{candidate.count} x {candidate.gpu}" if candidate.gpu else "no GPU"
        outcome = "runs" if failure is None else f"{failure.klass}: {_short(failure)}"
        rows.append(
            [
                f"{gpu}, {candidate.machine_type}",
                candidate.zone,
                "spot" if candidate.spot else "standard",
                outcome if one.seconds is not None else f"not tried ({outcome})",
                f"{one.seconds:.1f} s" if one.seconds is not None else "-",
            ]
        )
    return rows


def none_left(tries: Sequence[Try]) -> Failure:
    """What it means that every candidate failed.

    One alone speaks for itself. Of several, the class is the first of ``WORST_LAST`` that occurred, and cause and
    remedy speak of all.
    """
    failures = [one.failure for one in tries if one.failure is not None and one.seconds is not None]
    worst = next(f for klass in WORST_LAST for f in failures if f.klass is klass)
    if len(tries) == 1:
        return worst
    counts = {klass: sum(f.klass is klass for f in failures) for klass in WORST_LAST}
    told = ", ".join(f"{count} {klass} ({SHORT[klass]})" for klass, count in counts.items() if count)
    untried = sum(one.seconds is None for one in tries)
    if untried:
        told += f", {untried} not tried for the same reasons"
    remedies = dict.fromkeys(f.remedy for klass in WORST_LAST for f in failures if f.klass is klass)
    return Failure(
        worst.klass,
        f"no VM in any of {len(tries)} candidates: {told}",
        "; ".join(remedies),
        worst.evidence,
    )


def _short(failure: Failure) -> str:
    metric = _metric(failure)
    if TOO_SLOW in failure.cause:
        return "not created in time"
    return f"{metric} is used up" if metric else SHORT.get(failure.klass, "see above")


def _metric(failure: Failure) -> str:
    """The quota that a failure names, or nothing."""
    found = _METRIC.search(failure.evidence) or _METRIC.search(failure.cause)
    return found[1] if found else ""


def _shares_quota(failed: Candidate, failure: Failure, other: Candidate) -> bool:
    """Whether the regional quota that one candidate ran into is the other's, too.

    GPUs are counted by model, and Spot VMs apart (``PREEMPTIBLE_``), unless the project has no such quota: then they
    count as all others do. CPUs are counted by machine family where the metric names one. Disks, addresses and
    whatever else there is are shared by all.
    """
    if region_of(other.zone) != region_of(failed.zone):
        return False
    metric = _metric(failure)
    if not metric:
        return (other.gpu, other.spot) == (failed.gpu, failed.spot)
    if metric.startswith("PREEMPTIBLE_") and not other.spot:
        return False
    if "GPUS" in metric:
        counted = other.spot == failed.spot or failed.spot
        return other.gpu == failed.gpu and counted
    family = metric.removeprefix("PREEMPTIBLE_").removesuffix("CPUS").rstrip("_").lower()
    if metric.endswith("_CPUS") and family:
        return other.machine_type.startswith(f"{family}-")
    return True
