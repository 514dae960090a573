"""What a run spent its time and money on, by its record."""

from __future__ import annotations

from typing import Any

import pytest

from glgpu.phases import TRAINING, cost_of, phases_of, training_span, tries_of
from glgpu.run_record import Event


def event(at: float, what: str, **facts: Any) -> Event:
    return Event(at=at, what=what, facts=facts)


GREEN = [
    event(0, "candidate-tried", candidate="a", usd_per_hour=0.36), event(9, "candidate-failed", candidate="a",
    failure="STOCKOUT", cause="no capacity", seconds=9.0, usd_per_hour=0.36),
    event(9, "candidate-skipped", candidate="b", failure="QUOTA_REGION", cause="used up"),
    event(10, "candidate-tried", candidate="c", usd_per_hour=0.72), event(50, "instance-running", candidate="c",
    usd_per_hour=0.72, seconds=40.0), event(60, "door-opened"), event(70, "vm-ready"), event(80, "vm-claimed"),
    event(100, "container-started"), event(400, "training-ended", exit_code=0), event(410, "outputs-home"),
    event(411, "gpu-released"), event(420, "delete-requested"), event(450, "proof", left=[]),
]  # fmt: skip


def test_the_phases_follow_each_other_without_a_gap() -> None:
    phases = phases_of(GREEN, 500)
    assert [(one.begin, one.end) for one in phases] == [
        (0, 50), (50, 70), (70, 80), (80, 100), (100, 400), (400, 410), (410, 411), (411, 450),
    ]  # fmt: skip
    assert phases[4].name == TRAINING
    assert all(one.ended for one in phases)
    assert training_span(phases) == (100, 400)


def test_what_is_under_way_lasts_until_now() -> None:
    last = phases_of(GREEN[:9], 250)[-1]
    assert (last.name, last.seconds, last.ended) == (TRAINING, 150, False)
    assert training_span(phases_of(GREEN[:8], 250)) is None


def test_a_training_that_begins_again_on_another_vm_is_one_span_of_two_phases() -> None:
    again = [event(one.at + 1000, one.what, **one.facts) for one in GREEN]
    both = [*GREEN[:9], event(200, "preempted"), *again]
    assert cost_of(both, 2000).seconds == 150 + 361
    phases = phases_of(both, 2000)
    assert training_span(phases) == (100, 1400)
    assert [one.seconds for one in phases if one.name == TRAINING] == [100, 300]


def test_the_vm_costs_from_its_start_until_it_is_given_back() -> None:
    cost = cost_of(GREEN, 500)
    assert (cost.seconds, cost.rates) == (361, (0.72,))
    assert cost.usd == pytest.approx(0.72 * 361 / 3600)
    assert cost_of(GREEN[:9], 250).seconds == 200
    assert cost_of(GREEN[:4], 250) == cost_of([], 0)


def test_a_price_that_is_not_known_makes_no_cost_of_nothing() -> None:
    cost = cost_of([event(0, "instance-running", usd_per_hour=None)], 3600)
    assert (cost.usd, cost.seconds, cost.rates) == (None, 3600, (None,))


def test_each_candidate_is_told_once_with_its_outcome() -> None:
    told = [(one.candidate, one.outcome, one.why, one.seconds) for one in tries_of(GREEN)]
    assert told == [
        ("a", "failed", "STOCKOUT: no capacity", 9.0), ("b", "skipped", "QUOTA_REGION: used up", None),
        ("c", "ran", "", 40.0),
    ]  # fmt: skip
