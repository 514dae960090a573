"""bring_up: Terraform creates, Compute Engine testifies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes import FakeStack, Stage, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance
from glgpu.steps.bring_up import bring_up, plan_lifetime, standing, state_for


def brought_up(stage: Stage) -> Instance:
    with bring_up(stage.run, plan_lifetime(stage.run)) as instance:
        return instance


def failure_of(stage: Stage) -> Failure:
    with pytest.raises(Failure) as caught, bring_up(stage.run, plan_lifetime(stage.run)):
        pass
    return caught.value


def test_the_vm_that_terraform_makes_is_the_one_that_is_used(stage: Stage) -> None:
    instance = brought_up(stage)
    assert (instance.name, instance.zone, instance.status) == (stage.name, "europe-west4-a", "RUNNING")
    assert stage.stacks[0].verbs() == ["prepare", "start_apply", "result", "outputs"]
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


def test_max_hours_that_the_script_cannot_hold_are_refused(stage: Stage) -> None:
    stage.set(machine={"max_hours": 2.7})
    with pytest.raises(Failure) as caught:
        plan_lifetime(stage.run)
    assert caught.value.exit_code == 2
    assert "2 h 35 min" in caught.value.cause


def test_max_hours_that_the_job_cannot_hold_are_refused(stage: Stage) -> None:
    stage.job(script_timeout=None)
    stage.set(machine={"max_hours": 3})
    with pytest.raises(Failure, match="2 h 55 min"):
        plan_lifetime(stage.run)


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


def test_a_state_that_gitlab_does_not_let_us_write_is_thrown_away(stage: Stage) -> None:
    stage.forge.writable = False
    assert state_for(stage.run) is None
    assert "thrown away" in stage.log


def test_a_state_that_settings_insist_on_is_a_failure_without_rights(stage: Stage) -> None:
    stage.forge.writable = False
    stage.set(state="gitlab")
    with pytest.raises(Failure) as caught:
        state_for(stage.run)
    assert caught.value.exit_code == 12


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
