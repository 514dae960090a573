"""A VM that is there, reachable and has its GPU; and its release."""

from __future__ import annotations

import pytest

from fakes import HOST_KEY, ZONE, FakeStack, Stage, done, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.processes import Done
from glgpu.steps.door import Guest
from glgpu.steps.ready import claim, is_claimed, make_ready, new_vm
from glgpu.steps.release import release


def minutes(stage: Stage) -> list[str]:
    return [call[1] for call in stage.machine.calls if call[0] == "ends"]


def test_a_new_vm_is_seen_to_have_its_gpu_and_is_armed_to_go(stage: Stage) -> None:
    instance = new_vm(stage.run)
    assert instance.status == "RUNNING"
    assert "GPU: NVIDIA L4" in stage.log
    # Five minutes on top: for so long before a power-off nobody may log in.
    assert minutes(stage) == ["25"]
    assert stage.events()[-1] == "vm-ready"


def test_a_driver_that_is_still_loading_is_waited_for(stage: Stage) -> None:
    stage.machine.said["gpu"] = done("", 9, "NVIDIA-SMI has failed")
    stage.clock.at(10, stage.machine.said.clear)
    new_vm(stage.run)
    assert sum(stage.clock.slept) >= 10
    assert stage.events()[-1] == "vm-ready"


@pytest.mark.parametrize(
    "answer", [done("", 127, "nvidia-smi: not found"), done("one GPU\n", 1, "nvidia-smi shows fewer than 1 GPUs")]
)
def test_a_gpu_that_will_never_be_there_is_not_waited_for(stage: Stage, answer: Done) -> None:
    stage.machine.said["gpu"] = answer
    with pytest.raises(Failure) as caught:
        new_vm(stage.run)
    assert caught.value.exit_code == 16
    assert sum(stage.clock.slept) < 10


def test_a_driver_that_never_loads_is_a_failure(stage: Stage) -> None:
    stage.machine.said["gpu"] = done("", 9, "NVIDIA-SMI has failed because it couldn't communicate")
    with pytest.raises(Failure, match="NVIDIA-SMI has failed") as caught:
        new_vm(stage.run)
    assert caught.value.klass is ErrorClass.DRIVER


def test_a_power_off_that_a_busy_vm_does_not_take_is_ordered_again(stage: Stage) -> None:
    stage.machine.said["ends"] = done("", 255, "Connection reset by peer")
    stage.clock.at(4, stage.machine.said.clear)
    new_vm(stage.run)
    assert set(minutes(stage)) == {"25"}
    assert stage.events()[-1] == "vm-ready"


def test_a_run_without_gpu_asks_for_none(stage: Stage) -> None:
    stage.set(machine={"gpu": ["none"], "type": "e2-small"})
    new_vm(stage.run)
    assert "gpu" not in stage.machine.verbs()


def test_a_vm_that_is_of_no_use_is_ended_at_once(stage: Stage) -> None:
    stage.machine.reachable = False
    with pytest.raises(Failure) as caught:
        new_vm(stage.run)
    assert caught.value.exit_code == 13
    assert stage.cloud.vms == {}


def test_a_vm_that_comes_late_is_ended_too(stage: Stage) -> None:
    def hangs(stack: FakeStack) -> None:
        stack.is_over = False
        stage.insert(stack, status="PROVISIONING")

    stage.applies = hangs
    with pytest.raises(Failure):
        new_vm(stage.run)
    assert stage.cloud.vms == {}


def test_a_vm_that_another_job_of_the_run_has_made_is_not_ended(stage: Stage) -> None:
    stage.cloud.vms[stage.name, ZONE] = stage.vm(id="1", status="STAGING")

    def exists(stack: FakeStack) -> None:
        stack.failure = refusal(ErrorClass.CONFLICT)

    stage.applies = exists
    with pytest.raises(Failure) as caught:
        new_vm(stage.run)
    assert caught.value.klass is ErrorClass.CONFLICT
    assert (stage.name, ZONE) in stage.cloud.vms


def test_after_a_signal_the_vm_is_left_to_after_script(stage: Stage) -> None:
    stage.machine.refuse["gpu"] = refusal(ErrorClass.INTERRUPTED)
    with pytest.raises(Failure):
        new_vm(stage.run)
    assert stage.cloud.vms != {}


def test_a_vm_that_cannot_be_ended_does_not_hide_what_went_wrong(stage: Stage) -> None:
    stage.machine.reachable = False
    stage.cloud.refuse["delete_instance"] = refusal(ErrorClass.PERMISSION)
    with pytest.raises(Failure) as caught:
        new_vm(stage.run)
    assert caught.value.exit_code == 13


def test_a_claimed_vm_lives_to_its_hard_end(stage: Stage) -> None:
    vm = stage.vm()
    stage.cloud.insert(vm)
    assert not is_claimed(vm)
    claim(stage.run, vm, Guest(stage.machine, "/home/glgpu/glgpu"))
    claimed = stage.cloud.vms[stage.name, ZONE]
    assert is_claimed(claimed)
    assert claimed.labels["glgpu-expires"] == str(int(stage.clock.now()) + 3600)
    assert minutes(stage) == ["80"]


@pytest.mark.parametrize("ahead", [-600, 600])
def test_a_claim_by_a_machine_whose_clock_is_off_is_a_claim_and_never_powers_off_before_the_hard_end(
    stage: Stage, ahead: int
) -> None:
    vm = stage.vm()
    stage.cloud.insert(vm)
    stage.clock.time += ahead
    claim(stage.run, vm, Guest(stage.machine, "/home/glgpu/glgpu"))
    assert is_claimed(stage.cloud.vms[stage.name, ZONE])
    assert int(minutes(stage)[0]) >= 65


def test_a_claimed_vm_is_not_armed_again_by_a_retried_provision(stage: Stage) -> None:
    vm = stage.vm()
    stage.cloud.insert(vm)
    claim(stage.run, vm, Guest(stage.machine, "/home/glgpu/glgpu"))
    make_ready(stage.run, stage.cloud.vms[stage.name, ZONE])
    assert minutes(stage) == ["80"]


def test_a_vm_that_was_not_claimed_is_armed_by_a_retried_provision(stage: Stage) -> None:
    stage.cloud.insert(stage.vm())
    make_ready(stage.run, stage.vm())
    assert minutes(stage) == ["25"]


def released(stage: Stage) -> None:
    stage.cloud.insert(stage.vm())
    release(stage.run, stage.vm(), Guest(stage.machine, "/home/glgpu/glgpu"))


def test_a_release_notes_that_all_is_home_wipes_and_deletes(stage: Stage) -> None:
    released(stage)
    assert stage.machine.verbs() == ["set-home", "wipe"]
    assert stage.cloud.calls[-1] == ("delete_instance", stage.name, ZONE)
    assert stage.events() == ["gpu-released"]


def test_a_vm_that_cannot_be_wiped_is_deleted_all_the_same(stage: Stage) -> None:
    stage.machine.reachable = False
    released(stage)
    assert stage.cloud.vms == {}


def test_a_delete_that_is_refused_is_left_to_destroy(stage: Stage) -> None:
    stage.cloud.refuse["delete_instance"] = refusal(ErrorClass.PERMISSION)
    released(stage)
    assert "destroy will end it" in stage.log
    assert stage.events() == []


@pytest.mark.parametrize("where", ["set-home", "wipe"])
def test_a_signal_during_the_release_is_not_passed_over(stage: Stage, where: str) -> None:
    stage.machine.refuse[where] = refusal(ErrorClass.INTERRUPTED)
    with pytest.raises(Failure):
        released(stage)


def test_the_host_key_of_a_vm_taken_over_stays(stage: Stage) -> None:
    stage.cloud.insert(stage.vm())
    make_ready(stage.run, stage.vm())
    assert stage.cloud.vms[stage.name, ZONE].metadata["glgpu-host-key"] == f"ssh-ed25519 {HOST_KEY}"
