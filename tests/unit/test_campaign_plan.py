"""The kill campaign's cases: drawn from seed and number alone, each boundary once before any twice."""

from __future__ import annotations

from collections import Counter

import pytest

from campaign.calls import Boundary, Call, Tally, boundaries, plain
from campaign.plan import AMBIENTS, STRIKES, draw
from glgpu.rehearsal.interposer import MOMENTS, Reached

KNOWN = [Boundary(Call("train", f"vm helper {verb}", 1), moment) for verb in "abcde" for moment in MOMENTS]


def test_a_case_is_the_same_whenever_it_is_drawn() -> None:
    assert [draw(7, number, KNOWN) for number in range(50)] == [draw(7, number, KNOWN) for number in range(50)]
    assert [str(draw(7, number, KNOWN)) for number in range(50)] != [
        str(draw(8, number, KNOWN)) for number in range(50)
    ]


def test_half_of_the_draws_fall_on_a_boundary_and_each_on_another_one() -> None:
    hit = Counter(
        plan.boundary for plan in (draw(1, number, KNOWN) for number in range(2 * len(KNOWN))) if plan.boundary
    )
    assert sorted(hit) == sorted(KNOWN)
    assert set(hit.values()) == {1}


def test_a_tenth_of_the_draws_kills_whoever_holds_the_lock_on_the_state() -> None:
    write = Boundary(Call("provision", "gitlab POST /api/v4/projects/N/terraform/state/RUN?ID", 1), "before answer")
    plans = [draw(1, number, [*KNOWN, write]) for number in range(5, 200, 10)]
    assert {plan.boundary for plan in plans} == {write}
    assert {plan.strike for plan in plans} == {"kill terraform", "kill both", "lose runner"}


def test_every_kind_is_drawn_sooner_or_later() -> None:
    plans = [draw(1, number, KNOWN) for number in range(1000)]
    assert {plan.strike for plan in plans} == set(STRIKES)
    assert {plan.ambient for plan in plans} == set(AMBIENTS)
    assert {plan.executor for plan in plans} == {"docker", "shell"}
    assert {plan.cold for plan in plans} == {False, True}


def test_what_is_for_ever_is_left_to_the_hard_end() -> None:
    plans = [draw(1, number, KNOWN) for number in range(300)]
    for plan in plans:
        if plan.ambient in ("delete refused for ever", "vm refuses to die"):
            assert plan.layers[1] == "hard end"


@pytest.mark.parametrize(
    ("to", "verb", "target", "expected"),
    [
        ("vm", "ssh", "sh glgpu/helper ends glgpu-0a1b2c-7-9-train 25", "vm helper ends"),
        ("vm", "ssh", "mkdir -p glgpu && cat >glgpu/.helper.$$", "vm helper hello"),
        ("git", "ssh", "git-upload-pack '/team/model.git'", "git git-upload-pack"),
        (
            "compute",
            "GET",
            "/compute/v1/projects/rehearsal-project/zones/z/operations/operation-17-4",
            "compute GET /zones/z/operations/OPERATION",
        ),
        (
            "compute",
            "GET",
            "/compute/v1/projects/rehearsal-project/aggregated/instances?filter=name%3Dglgpu-0a1b2c-7-9-train",
            "compute GET /aggregated/instances?filter=name=RUN",
        ),
        (
            "gitlab",
            "POST",
            "/api/v4/projects/7/terraform/state/glgpu-0a1b2c-7-9-train?ID=0a-1b",
            "gitlab POST /api/v4/projects/N/terraform/state/RUN?ID",
        ),
    ],
)
def test_a_call_is_named_without_what_differs_from_run_to_run(to: str, verb: str, target: str, expected: str) -> None:
    assert plain(Reached(to, verb, target, 4711)) == expected


def test_only_what_every_undisturbed_run_calls_is_on_the_list_and_polling_does_not_fill_it() -> None:
    runs = []
    for often in (3, 5):
        tally = Tally()
        for _ in range(often):
            tally.add("train", Reached("vm", "ssh", "sh glgpu/helper state r"))
        runs.append(tally.calls)
    runs[0].append(Call("train", "vm helper once", 1))
    assert boundaries(runs) == [
        Boundary(Call("train", "vm helper state", nth), moment) for nth in (1, 2) for moment in MOMENTS
    ]
