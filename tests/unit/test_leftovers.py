"""What goes and what stays, one rule at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from glgpu.leftovers import LONGEST_LIFE, OVER, Outlook, Thing, Verdict, Vm, World, judge_thing, judge_vm
from glgpu.run_names import RunName, read_name, server_hash

SERVER = "https://gitlab.example.com"
HERE, ELSEWHERE = server_hash(SERVER), server_hash("https://gitlab.example.org")
NOW = 1_763_900_000.0
HOUR = 3600.0
LAPTOP = f"u01234567-{NOW - HOUR:.0f}"


def outlook(status: str | None = "running", **changes: Any) -> Outlook:
    return replace(Outlook(HERE, NOW, {} if status is None else {(42, 1001): status}), **changes)


def vm(run: str = "1001", *, until: str = "pipeline", expires: str | None = None, **facts: Any) -> Vm:
    name = str(RunName(SERVER, 42, run))
    read = read_name(name)
    assert read is not None
    labels = {"glgpu": "managed", **read.own_labels, "glgpu-until": until}
    labels |= {"glgpu-expires": f"{NOW + HOUR:.0f}" if expires is None else expires}
    return replace(Vm(name, "europe-west4-a", read, created=NOW - HOUR, labels=labels), **facts)


def thing(run: str = "1001", **facts: Any) -> Thing:
    name = str(RunName(SERVER, 42, run))
    read = read_name(name)
    assert read is not None
    return replace(Thing("disk", name, read, "europe-west4-a", NOW - HOUR), **facts)


def goes(one: Vm, by: Outlook) -> bool:
    return judge_vm(one, by).goes


@pytest.mark.parametrize("status", sorted(OVER))
def test_a_vm_goes_with_its_pipeline(status: str) -> None:
    verdict = judge_vm(vm(), outlook(status))
    assert verdict.goes
    assert status in verdict.why


@pytest.mark.parametrize(
    "status",
    ["created", "waiting_for_resource", "preparing", "pending", "running", "scheduled", "canceling", "something new"],
)
def test_a_vm_stays_while_its_pipeline_is_anything_else(status: str) -> None:
    assert not goes(vm(), outlook(status))


def test_a_matrix_run_belongs_to_its_pipeline() -> None:
    assert goes(vm("1001-3"), outlook("success"))
    assert not goes(vm("1001-3"), outlook("running"))


def test_a_vm_past_its_end_goes_whatever_its_pipeline_does() -> None:
    late = f"{NOW:.0f}"
    for status in (None, "running", "success"):
        assert goes(vm(expires=late), outlook(status))
    assert not goes(vm(expires=f"{NOW + 1:.0f}"), outlook())


def test_a_deadline_run_goes_at_its_end_alone() -> None:
    assert not goes(vm(until="deadline"), outlook("success"))
    assert goes(vm(until="deadline", expires=f"{NOW - 1:.0f}"), outlook("running"))


def test_a_pipeline_that_gitlab_does_not_tell_of_leaves_the_vm_until_its_end() -> None:
    verdict = judge_vm(vm(), outlook(None))
    assert not verdict.goes
    assert "GitLab does not tell" in verdict.why
    assert not goes(vm(), outlook(None, pipelines={(42, 1001): None}))


def test_a_laptop_s_run_has_no_pipeline_and_only_its_end() -> None:
    assert not goes(vm(LAPTOP), outlook("success"))
    assert goes(vm(LAPTOP, expires=f"{NOW:.0f}"), outlook())


def test_another_server_s_vm_is_never_touched() -> None:
    assert not goes(vm(expires="1"), outlook("success", server=ELSEWHERE))


@pytest.mark.parametrize("label", ["glgpu-server", "glgpu-project", "glgpu-run", "glgpu-kind"])
def test_a_vm_whose_labels_and_name_tell_of_different_runs_is_left_alone(label: str) -> None:
    one = vm(expires="1")
    assert not goes(replace(one, labels={**one.labels, label: "other"}), outlook("success"))


def test_without_labels_the_name_decides() -> None:
    bare = vm(labels={})
    assert goes(bare, outlook("success"))
    assert not goes(bare, outlook("running"))
    assert not goes(bare, outlook(None))


@pytest.mark.parametrize("expires", ["", "soon", "-", "1e9"])
def test_with_an_unreadable_end_the_hard_one_counts(expires: str) -> None:
    assert not goes(vm(expires=expires, hard_end=NOW + 1), outlook(None))
    assert goes(vm(expires=expires, hard_end=NOW), outlook(None))
    assert goes(vm(expires=expires, max_run=HOUR), outlook(None))
    assert goes(vm(until="deadline", expires=expires, hard_end=NOW), outlook(None))
    assert not goes(vm(until="deadline", expires=expires, hard_end=NOW + 1), outlook("success"))


def test_without_any_end_nothing_is_for_ever() -> None:
    assert not goes(vm(expires="", created=NOW - LONGEST_LIFE + 1), outlook(None))
    assert goes(vm(expires="", created=NOW - LONGEST_LIFE), outlook(None))
    assert goes(vm(until="deadline", expires=""), outlook("success"))


@pytest.mark.parametrize("wrong", [-600.0, 600.0])
def test_a_runner_whose_clock_was_ten_minutes_wrong_ends_nothing_early(wrong: float) -> None:
    """The labels have its time; Google's own hard end, which it counts by its own clock, tells how wrong it was."""
    true_end, max_run = NOW + 30, HOUR + 30
    skewed = vm(expires=f"{true_end + wrong:.0f}", hard_end=true_end + wrong, max_run=max_run)
    assert not goes(skewed, outlook(None))
    assert goes(skewed, outlook(None, now=true_end))


def test_what_is_younger_than_asked_for_is_left_alone() -> None:
    assert not goes(vm(), outlook("success", older_than=HOUR + 1))
    assert goes(vm(), outlook("success", older_than=HOUR))


def test_things_follow_their_vms() -> None:
    stays, leaves = (vm(), Verdict(False, "")), (vm(), Verdict(True, ""))
    assert not judge_thing(thing(), [stays, leaves], outlook("success")).goes
    assert judge_thing(thing(), [leaves, leaves], outlook("failed")).goes
    assert judge_thing(thing(), [leaves], outlook(None)).goes
    assert not judge_thing(thing(), [leaves], outlook("running")).goes, "a retry may be creating another VM"
    # Not its own age counts then.
    assert judge_thing(thing(created=NOW), [leaves], outlook(None, older_than=HOUR)).goes


def test_things_without_a_vm_go_with_their_pipeline() -> None:
    assert judge_thing(thing(), [], outlook("failed")).goes
    assert not judge_thing(thing(), [], outlook("running")).goes, "a job may be creating the VM right now"
    assert not judge_thing(thing(), [], outlook("failed", older_than=2 * HOUR)).goes
    assert not judge_thing(thing(), [], outlook("failed", server=ELSEWHERE)).goes


def test_things_that_nobody_can_be_asked_about_go_when_no_vm_can_be_left() -> None:
    assert not judge_thing(thing(created=NOW - LONGEST_LIFE + 1), [], outlook(None)).goes
    assert judge_thing(thing(created=NOW - LONGEST_LIFE), [], outlook(None)).goes
    assert not judge_thing(thing(created=None), [], outlook(None)).goes
    old, young = (f"u01234567-{NOW - LONGEST_LIFE + wait:.0f}" for wait in (0, 1))
    assert judge_thing(thing(old, created=None), [], outlook(None)).goes
    assert not judge_thing(thing(young, created=None), [], outlook(None)).goes


def test_an_environment_goes_when_no_vm_of_its_branch_stays() -> None:
    place = thing(what="environment", name="gpu/feature-x", zone="")
    other = vm("1002", ref="feature/x")
    one_over = {(42, 1001): "success", (42, 1002): "running"}

    def verdict(*vms: Vm) -> bool:
        by = outlook("success", pipelines=one_over)
        return dict(World(vms, (place,), by).judged())[place].goes

    assert verdict()
    assert not verdict(other)
    assert verdict(replace(other, ref="main"))
    assert not verdict(replace(other, ref="")), "it may be of this branch"


def test_the_cost_is_price_times_age() -> None:
    assert vm(usd_per_hour=0.8).cost(NOW + HOUR) == pytest.approx(1.6)
    assert vm().cost(NOW) is None
    assert vm(usd_per_hour=0.8, created=None).cost(NOW) is None
    cost = vm(usd_per_hour=0.8).cost(NOW - 2 * HOUR)
    assert cost is not None
    assert math.isclose(cost, 0.0), "a VM of the future has cost nothing"
