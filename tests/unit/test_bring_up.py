"""bring_up: Terraform creates, Compute Engine testifies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from fakes import FakeStack, Stage, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance, Operation
from glgpu.steps.bring_up import bring_up, plan_lifetime, standing


def brought_up(stage: Stage) -> Instance:
    with bring_up(stage.run, plan_lifetime(stage.run)) as instance:
        return instance


def failure_of(stage: Stage) -> Failure:
    with pytest.raises(Failure) as caught, bring_up(stage.run, plan_lifetime(stage.run)):
        pass
    return caught.value


def test_the_vm_gets_its_start_up_script_and_what_it_has_to_know(stage: Stage) -> None:
    with bring_up(stage.run, plan_lifetime(stage.run)):
        variables = stage.stacks[0].variables
    assert str(variables["startup_script"]).startswith("#!/bin/sh\n")
    assert variables["metadata"]["glgpu-startup"] == f"1 {stage.run.settings.train.image}"


def test_a_vm_without_gpu_is_told_so(stage: Stage) -> None:
    stage.set(machine={"gpu": ["none"], "type": "e2-small"})
    with bring_up(stage.run, plan_lifetime(stage.run)):
        assert stage.stacks[0].variables["metadata"]["glgpu-startup"].startswith("0 ")


def test_the_vm_that_terraform_makes_is_the_one_that_is_used(stage: Stage) -> None:
    instance = brought_up(stage)
    assert (instance.name, instance.zone, instance.status) == (stage.name, "europe-west4-a", "RUNNING")
    assert stage.stacks[0].verbs() == ["prepare", "change", "start_apply", "result", "outputs"]
    assert stage.run.record.find("instance-running") is not None


def test_the_block_begins_before_terraform_is_done(stage: Stage) -> None:
    def slowly(stack: FakeStack) -> None:
        stack.is_over = False
        stage.insert(stack)

    stage.applies = slowly
    with bring_up(stage.run, plan_lifetime(stage.run)):
        assert "result" not in stage.stacks[0].verbs()
        stage.stacks[0].is_over = True
    assert "result" in stage.stacks[0].verbs()


def test_an_error_of_the_operation_stops_terraform_at_once(stage: Stage) -> None:
    def without_capacity(stack: FakeStack) -> None:
        stack.is_over = False
        stage.cloud.insert(stage.vm(), refusal(ErrorClass.STOCKOUT))

    stage.applies = without_capacity
    assert failure_of(stage).klass is ErrorClass.STOCKOUT
    assert stage.stacks[0].stopped
    assert sum(stage.clock.slept) < 5


def test_an_insert_that_failed_before_does_not_count_against_the_next(stage: Stage) -> None:
    stage.cloud.insert(stage.vm(), refusal(ErrorClass.STOCKOUT))

    def late(stack: FakeStack) -> None:
        stack.is_over = False
        stage.clock.at(3, lambda: stage.insert(stack))

    stage.applies = late
    assert brought_up(stage).status == "RUNNING"


def test_a_vm_that_vanishes_while_it_is_made_stops_terraform(stage: Stage) -> None:
    def preempted(stack: FakeStack) -> None:
        stack.is_over = False
        stage.insert(stack, status="STAGING")
        stage.clock.at(2, lambda: stage.cloud.vms.clear())

    stage.applies = preempted
    assert failure_of(stage).klass is ErrorClass.PREEMPTED
    assert stage.stacks[0].stopped


@pytest.mark.parametrize("status", ["STOPPING", "TERMINATED", "SUSPENDED"])
def test_a_vm_that_stops_while_it_is_made_is_preempted(stage: Stage, status: str) -> None:
    def stops(stack: FakeStack) -> None:
        stack.is_over = False
        stage.insert(stack, status="STAGING")
        stage.clock.at(2, lambda: stage.cloud.change(stage.name, "europe-west4-a", status=status))

    stage.applies = stops
    assert failure_of(stage).klass is ErrorClass.PREEMPTED


def test_a_terraform_that_makes_nothing_is_found_out(stage: Stage) -> None:
    stage.applies = lambda _: None
    failure = failure_of(stage)
    assert failure.klass is ErrorClass.TERRAFORM
    assert "knows no VM" in failure.cause


def test_a_terraform_that_fails_says_why(stage: Stage) -> None:
    def fails(stack: FakeStack) -> None:
        stack.failure = refusal(ErrorClass.PERMISSION)

    stage.applies = fails
    assert failure_of(stage).klass is ErrorClass.PERMISSION


def test_a_terraform_killed_while_the_vm_is_up_is_a_failure_all_the_same(stage: Stage) -> None:
    def killed(stack: FakeStack) -> None:
        stage.insert(stack)
        stack.failure = refusal(ErrorClass.TERRAFORM, "Terraform was killed by signal 9")

    stage.applies = killed
    assert failure_of(stage).klass is ErrorClass.TERRAFORM


def test_two_witnesses_who_disagree_are_not_believed(stage: Stage) -> None:
    def lies(stack: FakeStack) -> None:
        stage.insert(stack)
        stack.address = "198.51.100.99"

    stage.applies = lies
    failure = failure_of(stage)
    assert failure.klass is ErrorClass.TERRAFORM
    assert "198.51.100.99" in failure.cause
    assert "198.51.100.7" in failure.cause


def test_an_insert_that_never_ends_is_given_up(stage: Stage) -> None:
    def hangs(stack: FakeStack) -> None:
        stack.is_over = False
        stage.insert(stack, status="PROVISIONING")

    stage.applies = hangs
    assert failure_of(stage).klass is ErrorClass.STOCKOUT
    assert stage.stacks[0].stopped


def test_a_failure_in_the_block_ends_terraform(stage: Stage) -> None:
    def slowly(stack: FakeStack) -> None:
        stack.is_over = False
        stage.insert(stack)

    stage.applies = slowly
    with pytest.raises(Failure), bring_up(stage.run, plan_lifetime(stage.run)):
        raise refusal(ErrorClass.SSH)
    assert stage.stacks[0].stopped


# Candidate by candidate

ZONES = ["europe-west4-a", "europe-west4-b", "europe-west1-b"]


def plays(stage: Stage, **answers: Callable[[FakeStack], None] | Failure) -> None:
    """What becomes of an apply, by the zone it is for (dashes as underscores); elsewhere the VM comes up."""
    stage.set(machine={"zones": ZONES, "gpu": ["nvidia-l4"], "spot": "only"})

    def apply(stack: FakeStack) -> None:
        answer = answers.get(stack.variables["zone"].replace("-", "_"))
        if isinstance(answer, Failure):
            stack.is_over = False
            stage.cloud.insert(stage.vm(zone=stack.variables["zone"], id="77"), answer)
        elif answer is not None:
            stack.is_over = False
            answer(stack)
        else:
            stage.insert(stack)

    stage.applies = apply


def tried(stage: Stage) -> list[str]:
    (stack,) = stage.stacks
    return stack.tried


def facts(stage: Stage, what: str) -> list[dict[str, Any]]:
    return [event.facts for event in stage.run.record.events if event.what == what]


def test_a_zone_without_capacity_is_followed_by_the_next(stage: Stage) -> None:
    plays(stage, europe_west4_a=refusal(ErrorClass.STOCKOUT))
    assert brought_up(stage).zone == "europe-west4-b"
    assert stage.stacks[0].verbs().count("prepare") == 1
    assert sum(stage.clock.slept) < 1
    assert [fact["zone"] for fact in facts(stage, "candidate-tried")] == ZONES[:2]
    (failed,) = facts(stage, "candidate-failed")
    assert (failed["zone"], failed["failure"], failed["cause"]) == ("europe-west4-a", "STOCKOUT", "refused")
    assert facts(stage, "instance-running")[0]["zone"] == "europe-west4-b"
    assert facts(stage, "candidate-tried")[1]["own_seconds"] < 1


def test_every_try_stands_in_one_table(stage: Stage) -> None:
    plays(stage, europe_west4_a=refusal(ErrorClass.STOCKOUT))
    brought_up(stage)
    machine = "1 x nvidia-l4, g2-standard-4"
    assert re.search(rf"^{machine} +europe-west4-a +spot +STOCKOUT: no capacity +\d+\.\d s$", stage.log, re.MULTILINE)
    assert re.search(rf"^{machine} +europe-west4-b +spot +runs +\d+\.\d s$", stage.log, re.MULTILINE)
    assert stage.log.count("What was tried:") == 1


def test_one_candidate_that_runs_needs_no_table(stage: Stage) -> None:
    brought_up(stage)
    assert "What was tried" not in stage.log


def test_the_zone_that_the_error_names_is_asked_before_the_users_next(stage: Stage) -> None:
    plays(stage, europe_west4_a=Failure(ErrorClass.STOCKOUT, "none", "wait", "zonesAvailable: europe-west1-b"))
    assert brought_up(stage).zone == "europe-west1-b"


def test_a_regional_quota_skips_the_regions_other_zones_and_says_so(stage: Stage) -> None:
    plays(stage, europe_west4_a=refusal(ErrorClass.QUOTA_REGION))
    assert brought_up(stage).zone == "europe-west1-b"
    assert [fact["zone"] for fact in facts(stage, "candidate-skipped")] == ["europe-west4-b"]
    assert "not tried (QUOTA_REGION" in stage.log


def test_when_all_fail_it_is_said_of_all(stage: Stage) -> None:
    answers = {zone.replace("-", "_"): refusal(ErrorClass.STOCKOUT) for zone in ZONES}
    plays(stage, **answers)
    failure = failure_of(stage)
    assert (failure.klass, failure.exit_code) == (ErrorClass.STOCKOUT, 10)
    assert "no VM in any of 3 candidates: 3 STOCKOUT" in failure.cause
    assert tried(stage) == ZONES
    assert stage.log.count("STOCKOUT: no capacity") == 3


def test_a_refusal_that_no_zone_mends_ends_the_search(stage: Stage) -> None:
    plays(stage, europe_west4_a=refusal(ErrorClass.PERMISSION))
    assert failure_of(stage).klass is ErrorClass.PERMISSION
    assert tried(stage) == ["europe-west4-a"]


def test_an_insert_that_outlives_its_patience_is_deleted_before_the_next_zone(stage: Stage) -> None:
    def hangs(stack: FakeStack) -> None:
        stage.cloud.under_way.add("operation-0")
        stage.insert(stack, status="PROVISIONING")

    plays(stage, europe_west4_a=hangs)
    assert brought_up(stage).zone == "europe-west4-b"
    assert [zone for _, zone in stage.cloud.vms] == ["europe-west4-b"]
    assert [zone for _, zone in stage.cloud.boot_disks] == ["europe-west4-b"]
    assert facts(stage, "left-over-deleted")[0]["status"] == "PROVISIONING"
    verbs = [
        call[0] for call in stage.cloud.calls if call[0] == "delete_instance" or call[1:] == (stage.name, ZONES[1])
    ]
    assert verbs[0] == "delete_instance"


def test_a_vm_that_shows_only_after_all_patience_is_waited_for_and_deleted(stage: Stage) -> None:
    plays(stage, europe_west4_a=lambda _: stage.cloud.insert_late(stage.vm(zone="europe-west4-a", id="5"), 400))
    assert brought_up(stage).zone == "europe-west4-b"
    assert facts(stage, "left-over-deleted")[0]["zone"] == "europe-west4-a"
    assert [zone for _, zone in stage.cloud.vms] == ["europe-west4-b"]
    assert [zone for _, zone in stage.cloud.boot_disks] == ["europe-west4-b"]


def test_a_vm_that_shows_even_later_is_deleted_at_the_end(stage: Stage) -> None:
    plays(stage, europe_west4_a=lambda _: stage.cloud.insert_late(stage.vm(zone="europe-west4-a", id="5"), 700))
    with bring_up(stage.run, plan_lifetime(stage.run)):
        assert facts(stage, "insert-under-way")[0]["zone"] == "europe-west4-a"
        assert facts(stage, "left-over-deleted") == []
        stage.clock.sleep(200)
    assert facts(stage, "left-over-deleted")[0]["zone"] == "europe-west4-a"
    assert [zone for _, zone in stage.cloud.vms] == ["europe-west4-b"]


@pytest.mark.parametrize("klass", [ErrorClass.CONFLICT, ErrorClass.STOCKOUT])
def test_a_vm_that_this_try_did_not_make_is_left_alone(stage: Stage, klass: ErrorClass) -> None:
    theirs = stage.vm(zone="europe-west4-a", id="1", status="STAGING")
    stage.cloud.vms[stage.name, "europe-west4-a"] = theirs
    stage.cloud.boot_disks.add((stage.name, "europe-west4-a"))
    plays(stage, **{zone.replace("-", "_"): refusal(klass) for zone in ZONES})
    assert failure_of(stage).klass is klass
    assert stage.cloud.vms == {(stage.name, "europe-west4-a"): theirs}
    assert stage.cloud.disks(stage.name) == [(stage.name, "europe-west4-a")]


def test_what_cannot_be_deleted_ends_the_search(stage: Stage) -> None:
    plays(stage, europe_west4_a=lambda stack: stage.insert(stack, status="PROVISIONING"))
    stage.cloud.refuse["delete_instance"] = refusal(ErrorClass.PERMISSION)
    assert failure_of(stage).klass is ErrorClass.PERMISSION
    assert tried(stage) == ["europe-west4-a"]


def test_a_vm_that_is_taken_away_before_anybody_saw_it_is_preempted(stage: Stage) -> None:
    def vanishes(stack: FakeStack) -> None:
        stage.insert(stack)
        stage.cloud.vms.clear()

    plays(stage, europe_west4_a=vanishes)
    assert brought_up(stage).zone == "europe-west4-b"
    assert facts(stage, "candidate-failed")[0]["failure"] == "PREEMPTED"


@pytest.mark.parametrize(
    ("said_after", "failure", "klass"),
    [(3, refusal(ErrorClass.STOCKOUT), "STOCKOUT"), (3, None, "PREEMPTED"), (60, None, "PREEMPTED")],
)
def test_a_vm_that_goes_while_its_insert_is_under_way_gives_that_time_to_say_why(
    stage: Stage, said_after: float, failure: Failure | None, klass: str
) -> None:
    def goes(stack: FakeStack) -> None:
        stack.is_over = False
        stage.insert(stack, status="PROVISIONING")
        (operation,) = stage.cloud.insert_operations
        stage.cloud.under_way.add(operation)
        stage.clock.at(2, stage.cloud.vms.clear)
        stage.clock.at(said_after, lambda: stage.cloud.end_insert(operation, failure))

    plays(stage, europe_west4_a=goes)
    assert brought_up(stage).zone == "europe-west4-b"
    assert facts(stage, "candidate-failed")[0]["failure"] == klass


def test_an_insert_that_does_not_find_its_own_vm_is_preempted(stage: Stage) -> None:
    text = f"RESOURCE_NOT_FOUND: The resource 'projects/p/zones/europe-west4-a/instances/{stage.name}' was not found"
    plays(stage, europe_west4_a=Failure(ErrorClass.NOT_FOUND, "gone", "look", text))
    assert brought_up(stage).zone == "europe-west4-b"
    assert facts(stage, "candidate-failed")[0]["failure"] == "PREEMPTED"


def test_the_lock_of_a_terraform_that_had_to_be_killed_is_broken_before_the_next(stage: Stage) -> None:
    def stubborn(stack: FakeStack) -> None:
        stack.must_be_killed = True
        stage.cloud.insert(stage.vm(), refusal(ErrorClass.STOCKOUT))

    plays(stage, europe_west4_a=stubborn)
    brought_up(stage)
    assert stage.forge.verbs().count("state_writable") == 2


def test_a_terraform_that_ends_when_it_is_told_to_leaves_no_lock(stage: Stage) -> None:
    plays(stage, europe_west4_a=refusal(ErrorClass.STOCKOUT))
    brought_up(stage)
    assert stage.forge.verbs().count("state_writable") == 1


@pytest.mark.parametrize("klass", [ErrorClass.RATE_LIMIT, ErrorClass.TRANSIENT, ErrorClass.NETWORK])
def test_while_terraform_is_at_work_a_look_may_fail(stage: Stage, klass: ErrorClass) -> None:
    def slowly(stack: FakeStack) -> None:
        stack.is_over = False
        stage.insert(stack)
        stage.cloud.refuse["get"] = refusal(klass)
        stage.clock.at(5, stage.cloud.refuse.clear)

    stage.applies = slowly
    assert brought_up(stage).zone == "europe-west4-a"


def test_the_reason_of_a_terraform_that_is_over_counts_more_than_a_look_that_failed(stage: Stage) -> None:
    def fails(stack: FakeStack) -> None:
        stack.failure = refusal(ErrorClass.BILLING)
        stage.cloud.refuse["get"] = refusal(ErrorClass.NETWORK)
        stage.clock.at(1, stage.cloud.refuse.clear)

    stage.applies = fails
    assert failure_of(stage).klass is ErrorClass.BILLING


def test_a_vm_of_a_later_candidate_lives_as_long_as_that_of_the_first_would_have(stage: Stage) -> None:
    plays(stage, europe_west4_a=lambda stack: stage.insert(stack, status="PROVISIONING"))
    lifetime = plan_lifetime(stage.run)
    with bring_up(stage.run, lifetime) as instance:
        passed = facts(stage, "candidate-failed")[0]["seconds"]
        assert passed > 300
        assert stage.stacks[0].variables["machine"]["max_run_seconds"] >= lifetime.hard_end - (
            stage.clock.now() - passed
        )
        assert int(instance.labels["glgpu-expires"]) >= int(lifetime.soft_end + passed)


def test_a_slow_insert_is_spoken_of_ever_more_rarely(stage: Stage) -> None:
    def slowly(stack: FakeStack) -> None:
        stack.is_over = False
        stage.insert(stack, status="PROVISIONING")
        stage.clock.at(60, lambda: stage.cloud.change(stage.name, "europe-west4-a", status="RUNNING"))

    stage.applies = slowly
    brought_up(stage)
    assert re.findall(r"still creating the VM after (\d+) s", stage.log) == ["5", "10", "20", "40"]


def test_a_signal_ends_the_search_at_once(stage: Stage) -> None:
    plays(stage, europe_west4_a=refusal(ErrorClass.INTERRUPTED))
    assert failure_of(stage).klass is ErrorClass.INTERRUPTED
    assert tried(stage) == ["europe-west4-a"]
    assert facts(stage, "candidate-failed") == []


def others(stage: Stage, count: int, **facts: str) -> None:
    for number in range(count):
        name = stage.name.replace("1001", str(2000 + number))
        labels = {**stage.run.name.own_labels, "glgpu-run": str(2000 + number)}
        stage.cloud.insert(stage.vm(name=name, labels=labels, **facts))


def test_a_project_has_no_more_vms_than_its_limit(stage: Stage) -> None:
    others(stage, 2)
    failure = failure_of(stage)
    assert (failure.klass, failure.exit_code) == (ErrorClass.LIVE_VMS, 14)
    assert stage.stacks == []


def test_a_vm_that_is_being_deleted_does_not_count_as_alive(stage: Stage) -> None:
    others(stage, 2, status="STOPPING")
    assert brought_up(stage).status == "RUNNING"


def test_a_powered_off_vm_counts_as_alive(stage: Stage) -> None:
    others(stage, 2, status="TERMINATED")
    assert failure_of(stage).klass is ErrorClass.LIVE_VMS


def test_a_terraform_that_never_gets_an_answer_about_its_state_is_ended(stage: Stage) -> None:
    def hangs(stack: FakeStack) -> None:
        stack.is_over, stack.hangs = False, True
        stage.insert(stack)

    stage.applies = hangs
    assert failure_of(stage).klass is ErrorClass.NETWORK
    assert stage.stacks[0].stopped


def test_regions_stand_for_their_zones(stage: Stage) -> None:
    stage.set(machine={"zones": [], "regions": ["europe-west1"]})
    assert brought_up(stage).zone == "europe-west1-a"


def test_a_running_vm_of_the_run_is_taken_over(stage: Stage) -> None:
    stage.cloud.insert(stage.vm())
    assert standing(stage.run) == stage.vm()


def test_a_vm_that_was_powered_off_is_removed_first(stage: Stage) -> None:
    stage.cloud.insert(stage.vm(status="TERMINATED"))
    assert standing(stage.run) is None
    assert stage.cloud.vms == {}


def test_a_vm_that_is_being_deleted_is_waited_for(stage: Stage) -> None:
    stage.cloud.delete_seconds = 20
    stage.cloud.insert(stage.vm(status="TERMINATED"))
    assert standing(stage.run) is None
    assert stage.cloud.vms == {}


def test_a_vm_whose_delete_is_under_way_is_not_asked_for_again(stage: Stage) -> None:
    vm = stage.vm(status="STOPPING")
    stage.cloud.insert(vm)
    stage.cloud.deletes.append(Operation("d1", "delete", vm.zone, vm.id, False))
    stage.clock.at(5, stage.cloud.vms.clear)
    assert standing(stage.run) is None
    assert "delete_instance" not in stage.cloud.verbs()


def test_a_vm_that_is_stopping_and_then_stopped_is_deleted(stage: Stage) -> None:
    not_ready = replace(refusal(ErrorClass.CONFLICT), evidence="resourceNotReady")
    stage.cloud.refuse["delete_instance"] = not_ready
    stage.clock.at(4, stage.cloud.refuse.clear)
    stage.cloud.insert(stage.vm(status="STOPPING"))
    stage.clock.at(5, lambda: stage.cloud.change(stage.name, stage.vm().zone, status="TERMINATED"))
    assert standing(stage.run) is None
    assert stage.cloud.vms == {}


def test_a_vm_that_does_not_go_is_not_waited_for_without_end(stage: Stage) -> None:
    stage.set(limits={"delete_minutes": 2})
    stage.cloud.stubborn = True
    stage.cloud.insert(stage.vm(status="STOPPING"))
    with pytest.raises(Failure) as caught:
        standing(stage.run)
    assert caught.value.exit_code == 30
    assert 120 <= sum(stage.clock.slept) < 123


def test_max_hours_that_fit_are_the_hard_end(stage: Stage) -> None:
    stage.set(machine={"max_hours": 2.5})
    assert plan_lifetime(stage.run).hard_end == stage.clock.now() + 9000


def test_without_max_hours_the_hard_end_lies_behind_the_jobs(stage: Stage) -> None:
    job = 2 * 3600 + 55 * 60
    assert plan_lifetime(stage.run).hard_end - stage.clock.now() == 20 * 60 + job + 10 * 60 + 15 * 60


def test_on_a_laptop_no_job_limits_max_hours(stage: Stage) -> None:
    stage.job(job_id="")
    stage.set(machine={"max_hours": 48})
    assert plan_lifetime(stage.run).hard_end == stage.clock.now() + 48 * 3600


def secret_places(stack: FakeStack) -> Iterator[str]:
    yield repr(stack.variables)


def test_no_secret_is_a_terraform_variable(stage: Stage) -> None:
    secret = "wandb-0123456789"
    stage.job(variables={**stage.run.job.variables, "WANDB_API_KEY": secret})
    stage.set(train={"secrets": ["WANDB_API_KEY"]})
    brought_up(stage)
    for text in secret_places(stage.stacks[0]):
        assert stage.name in text
        for hidden in (secret, stage.run.job.gitlab_token, stage.run.job.job_token):
            assert hidden not in text


@pytest.mark.parametrize(("gpu", "gvnic"), [("nvidia-l4", False), ("nvidia-h100-80gb", True)])
def test_a_machine_that_insists_on_googles_own_network_card_gets_it(stage: Stage, gpu: str, gvnic: bool) -> None:
    stage.set(machine={"gpu": [gpu]})
    with bring_up(stage.run, plan_lifetime(stage.run)):
        assert stage.stacks[0].variables["machine"]["gvnic"] is gvnic
