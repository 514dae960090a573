"""The VM's start-up script as the waiting job hears of it."""

from __future__ import annotations

import pytest

from fakes import ZONE, Stage, done, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.steps.ready import make_ready
from glgpu.steps.start_up import StartUp


@pytest.fixture
def start_up(stage: Stage) -> StartUp:
    stage.cloud.insert(stage.vm())
    return StartUp(stage.run, stage.vm())


def test_each_step_is_said_once_and_the_end_is_waited_for(stage: Stage, start_up: StartUp) -> None:
    docker = "working docker installing Docker\n"
    stage.machine.start_up = [docker, docker, docker, "working driver waiting for the NVIDIA driver\n", "ready boot\n"]
    start_up.wait(stage.machine)
    assert stage.log.count("the VM: installing Docker") == 1
    assert stage.log.count("the VM: waiting for the NVIDIA driver") == 1


def test_the_vm_is_told_what_is_known_already_so_that_it_answers_only_with_news(
    stage: Stage, start_up: StartUp
) -> None:
    stage.machine.start_up = ["working docker installing\n", "ready boot\n"]
    start_up.wait(stage.machine)
    assert [call[1] for call in stage.machine.calls if call[0] == "startup"] == ["", "working docker installing"]


@pytest.mark.parametrize(("step", "code"), [("docker", 17), ("toolkit", 16), ("driver", 16), ("of-tomorrow", 17)])
def test_what_the_script_could_not_do_ends_it_at_once(stage: Stage, start_up: StartUp, step: str, code: int) -> None:
    stage.machine.start_up = [f"failed {step} there is no way\n"]
    with pytest.raises(Failure, match="there is no way") as caught:
        start_up.wait(stage.machine)
    assert caught.value.exit_code == code
    assert stage.events() == ["vm-start-up-failed"]
    assert not stage.clock.slept


def test_an_image_whose_agent_runs_no_start_up_script_is_taken_as_it_is(stage: Stage, start_up: StartUp) -> None:
    stage.machine.start_up = [""]
    start_up.wait(stage.machine)
    assert "has not run" in stage.log
    assert 60 <= sum(stage.clock.slept) <= 62


def test_a_script_that_never_ends_is_given_up(stage: Stage, start_up: StartUp) -> None:
    stage.machine.start_up = ["working driver waiting for the NVIDIA driver\n"]
    with pytest.raises(Failure, match="waiting for the NVIDIA driver") as caught:
        start_up.wait(stage.machine)
    assert caught.value.exit_code == 16
    assert 1200 <= sum(stage.clock.slept) <= 1210


def test_a_connection_that_breaks_while_the_vm_boots_is_made_again(stage: Stage, start_up: StartUp) -> None:
    stage.machine.said["startup"] = done("", 255, "Connection reset by peer")
    stage.clock.at(5, stage.machine.said.clear)
    start_up.wait(stage.machine)
    assert sum(stage.clock.slept) < 10


def test_one_that_stays_broken_is_a_failure(stage: Stage, start_up: StartUp) -> None:
    stage.machine.said["startup"] = done("", 255, "Connection reset by peer")
    with pytest.raises(Failure) as caught:
        start_up.wait(stage.machine)
    assert caught.value.exit_code == 13


def test_guest_attributes_are_asked_every_ten_seconds_at_most(stage: Stage, start_up: StartUp) -> None:
    stage.cloud.start_up["state"] = "working docker installing Docker"
    for _ in range(20):
        start_up.look()
        stage.clock.sleep(1.0)
    assert stage.cloud.verbs().count("guest_attributes") == 2
    assert stage.log.count("the VM: installing Docker") == 1


def test_guest_attributes_that_are_forbidden_are_no_failure(stage: Stage, start_up: StartUp) -> None:
    stage.cloud.refuse["guest_attributes"] = refusal(ErrorClass.ORG_POLICY)
    start_up.look()
    assert "guest_attributes" in stage.cloud.verbs()
    assert stage.log == ""


def test_a_signal_while_they_are_read_is_one(stage: Stage, start_up: StartUp) -> None:
    stage.cloud.refuse["guest_attributes"] = refusal(ErrorClass.INTERRUPTED)
    with pytest.raises(Failure):
        start_up.look()


def test_what_any_process_may_have_written_is_shown_as_one_short_line(stage: Stage, start_up: StartUp) -> None:
    stage.cloud.start_up["state"] = "working docker a\n\x1b[0Ksection_start:1:x\r" + "y" * 1000
    start_up.look()
    (line,) = stage.log.splitlines()
    assert "\x1b" not in line
    assert len(line) < 400


def test_a_vm_is_armed_to_go_before_it_is_waited_for_and_again_after_a_long_wait(stage: Stage) -> None:
    stage.cloud.insert(stage.vm())
    stage.machine.start_up = [f"working docker installing {n}\n" for n in range(3)] + ["ready boot\n"]
    stage.machine.before["startup"] = lambda: stage.clock.sleep(90)
    make_ready(stage.run, stage.cloud.vms[stage.name, ZONE])
    verbs = stage.machine.verbs()
    assert verbs.index("ends") < verbs.index("startup")
    assert verbs[-2:] == ["ends", "hang-up"]
    assert verbs.count("ends") == 2
