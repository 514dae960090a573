"""From a laptop: which run is meant, and a way in that disturbs nobody."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest

from fakes import ZONE, Stage, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import FirewallRule, Instance
from glgpu.run_names import RunName
from glgpu.stages.logs import logs
from glgpu.stages.ssh import ssh
from glgpu.steps.context import Run
from glgpu.steps.door import NOBODY, Way
from glgpu.steps.visit import Visitor

SERVER = "https://gitlab.example.com"
CALLER = "203.0.113.10/32"


def visitor(stage: Stage, asked: str = "") -> Visitor:
    def named(name: RunName) -> Run:
        return replace(stage.run, name=name)

    return Visitor(stage.run, asked, named)


def alive(stage: Stage, run: str, *, server: str = SERVER, project: int = 42, **facts: Any) -> RunName:
    name = RunName(server, project, run)
    labels = {**name.own_labels, "glgpu-ref": "main", **facts.pop("labels", {})}
    stage.cloud.insert(replace(stage.vm(), name=str(name), labels=labels, **{"metadata": {}, **facts}))
    return name


@pytest.fixture
def training(stage: Stage) -> Stage:
    """The run's own VM, on which a container runs."""
    alive(stage, "1001")
    stage.machine.container = {"Running": True, "ExitCode": 0}
    return stage


def shown(stage: Stage, asked: str = "", **options: Any) -> str:
    to = io.BytesIO()
    logs(visitor(stage, asked), to, **options)
    return to.getvalue().decode()


def sources(stage: Stage, run: str = "1001") -> tuple[str, ...]:
    rule = stage.cloud.rule(str(RunName(SERVER, 42, run)))
    assert rule is not None
    return () if rule.disabled else rule.sources


def test_the_only_living_run_is_meant(training: Stage) -> None:
    assert shown(training) == "epoch 1\n"
    assert "the training runs; -f stays with it" in training.log


def test_following_ends_with_the_exit_code_of_the_training(training: Stage) -> None:
    training.machine.exit_code = 3
    assert shown(training, follow=True) == "epoch 1\n"
    assert "the training has ended, its exit code is 3" in training.log
    assert ("docker logs", "-f", training.name) in training.machine.calls


def test_only_the_last_lines_are_asked_for(training: Stage) -> None:
    shown(training, last=7)
    assert ("docker logs", "--tail", "7", training.name) in training.machine.calls


def test_what_this_machine_knows_as_secret_is_masked(training: Stage) -> None:
    training.run.console.masker.add("s3cret-word")
    training.machine.log = [("2026-11-23T20:00:00Z", b"the key is s3cret-"), ("2026-11-23T20:00:00Z", b"word\n")]
    assert shown(training) == "the key is [MASKED]\n"


def test_a_reader_that_goes_away_is_the_end(training: Stage) -> None:
    class Gone(io.BytesIO):
        def write(self, _: Any) -> int:
            raise BrokenPipeError

    logs(visitor(training), Gone())
    assert sources(training) == ()


def test_a_log_that_breaks_off_is_no_end(training: Stage) -> None:
    training.machine.breaks_after = [1]
    with pytest.raises(Failure) as caught:
        shown(training, follow=True)
    assert caught.value.exit_code == 13
    assert "the training has ended" not in training.log


def test_a_vm_on_which_nothing_was_started_is_told_from_a_failure(stage: Stage) -> None:
    alive(stage, "1001")
    with pytest.raises(Failure) as caught:
        shown(stage)
    assert caught.value.klass is ErrorClass.NOT_FOUND
    stage.machine.said["docker inspect"] = replace(stage.machine.run("true"), code=1, stderr=b"the daemon is away")
    with pytest.raises(Failure) as caught:
        shown(stage)
    assert "the daemon is away" in caught.value.cause


def test_of_several_the_one_of_this_branch_is_meant(stage: Stage) -> None:
    alive(stage, "1001", labels={"glgpu-ref": "other"})
    alive(stage, "1002")
    stage.machine.container = {"Running": True}
    shown(stage)
    assert ("docker logs", str(RunName(SERVER, 42, "1002"))) in stage.machine.calls


def test_several_of_this_branch_are_listed_and_none_is_taken(stage: Stage) -> None:
    alive(stage, "1001")
    alive(stage, "1002")
    with pytest.raises(Failure) as caught:
        shown(stage)
    assert (caught.value.exit_code, caught.value.klass) == (2, ErrorClass.USAGE)
    assert [line.split()[0] for line in stage.log.splitlines()] == ["1001", "1002"]
    assert stage.machine.calls == []


def test_the_run_that_is_named_is_meant(stage: Stage) -> None:
    alive(stage, "1001")
    alive(stage, "1002")
    stage.machine.container = {"Running": True}
    shown(stage, asked="1001")
    assert ("docker logs", str(RunName(SERVER, 42, "1001"))) in stage.machine.calls


def test_a_run_that_is_named_and_not_alive_is_not_found(stage: Stage) -> None:
    alive(stage, "1001", status="TERMINATED")
    alive(stage, "1002")
    with pytest.raises(Failure) as caught:
        shown(stage, asked="1001")
    assert caught.value.exit_code == 11


def test_without_any_run_nothing_can_be_meant(stage: Stage) -> None:
    with pytest.raises(Failure) as caught:
        shown(stage)
    assert caught.value.exit_code == 2


def test_runs_of_other_projects_and_other_gitlabs_are_not_meant(stage: Stage) -> None:
    alive(stage, "1001", project=7)
    alive(stage, "1002", server="https://gitlab.example.org")
    stage.cloud.insert(Instance("somebody-elses", ZONE, "RUNNING"))
    with pytest.raises(Failure) as caught:
        shown(stage)
    assert caught.value.exit_code == 2


def test_a_run_of_a_laptop_without_gitlab_is_ours_too(stage: Stage) -> None:
    name = alive(stage, "u01234567-1763900000", server="", project=0)
    stage.machine.container = {"Running": True}
    shown(stage)
    assert ("docker logs", str(name)) in stage.machine.calls


def test_a_command_runs_there_and_its_exit_code_is_ours(training: Stage) -> None:
    training.machine.attached_code = 7
    assert ssh(visitor(training), ["ls", "|", "wc"]) == 7
    assert ("attached", "ls | wc") in training.machine.calls


def test_a_shell_needs_no_container(stage: Stage) -> None:
    alive(stage, "1001")
    assert ssh(visitor(stage)) == 0
    assert ("attached", "") in stage.machine.calls
    assert f"sudo docker exec -it {stage.name} sh" in stage.log


def test_a_broken_connection_is_13(training: Stage) -> None:
    training.machine.attached_code = 255
    with pytest.raises(Failure) as caught:
        ssh(visitor(training))
    assert caught.value.exit_code == 13


def test_the_helper_of_the_run_is_left_as_it_is(training: Stage) -> None:
    ssh(visitor(training))
    assert training.machine.verbs() == ["true", "attached", "hang-up"]


@pytest.mark.parametrize("klass", [ErrorClass.INTERRUPTED, ErrorClass.SSH])
def test_the_door_is_closed_behind_us_after_a_signal_too(training: Stage, klass: ErrorClass) -> None:
    training.machine.refuse["attached"] = refusal(klass)
    with pytest.raises(Failure) as caught:
        ssh(visitor(training))
    assert caught.value.klass is klass
    assert "change_rule" in training.cloud.verbs()
    assert sources(training) == ()


def test_a_job_with_the_same_address_keeps_its_way_in(training: Stage) -> None:
    """A runner and a laptop behind one router look alike to the firewall."""
    Way(training.run, training.cloud.find(training.name)[0]).open()
    ssh(visitor(training))
    assert sources(training) == (CALLER,)


@pytest.mark.parametrize("network", [{"access": "iap"}, {"allow": ["198.51.100.0/24"]}])
def test_what_all_callers_share_stays_listed(stage: Stage, network: dict[str, Any]) -> None:
    stage.set(network=network)
    alive(stage, "1001")
    ssh(visitor(stage))
    assert sources(stage) not in ((), (NOBODY,))


def test_a_door_that_stands_open_for_somebody_else_stays_open_for_him(training: Stage) -> None:
    name = training.name
    training.cloud.create_rule(FirewallRule(name, "allow", ("198.51.100.9/32",), name, 800, "default", ("22",)))
    ssh(visitor(training))
    assert sources(training) == ("198.51.100.9/32",)
