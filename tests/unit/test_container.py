"""The container: started once, followed through broken connections, its image pinned."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from fakes import IMAGE, ZONE, Stage, done, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.steps.container import Container, Workload
from glgpu.steps.door import Way

PIN = "registry.example.com/team/train@sha256:" + "1" * 64
HOME = "/home/glgpu/glgpu"


class Kept:
    """Keeps the output."""

    def __init__(self) -> None:
        self.data = b""

    def feed(self, data: bytes) -> None:
        self.data += data


@pytest.fixture
def container(stage: Stage) -> Container:
    return contain(stage)


def contain(stage: Stage) -> Container:
    vm = stage.vm()
    stage.cloud.insert(vm)
    way = Way(stage.run, vm)
    way.open()
    return Container(stage.run, stage.machine, vm, way)


def work(**facts: Any) -> Workload:
    plain = Workload(IMAGE, ["python", "train.py"], {}, {}, ["weights"], "", True, None)
    return replace(plain, **facts)


def handed_over(stage: Stage) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(stage.machine.stdin["secrets"])) as archive:
        read = {entry.name: archive.extractfile(entry) for entry in archive}
        return {name: file.read().decode() for name, file in read.items() if file is not None}


def test_the_gpu_has_to_answer_inside_the_image_before_the_training_starts(stage: Stage, container: Container) -> None:
    stage.machine.said["gpu-inside"] = done("", 125, "nvidia-container-cli: initialization error: nvml error")
    with pytest.raises(Failure) as caught:
        container.start(work(), HOME)
    assert caught.value.exit_code == 16
    assert ("gpu-inside", PIN) in stage.machine.calls
    assert "start" not in stage.machine.verbs()


def test_without_gpu_there_is_none_to_look_for(stage: Stage, container: Container) -> None:
    container.start(work(gpu=False), HOME)
    assert "gpu-inside" not in stage.machine.verbs()


def test_the_wall_stands_before_the_container_starts(stage: Stage, container: Container) -> None:
    container.start(work(), HOME)
    verbs = stage.machine.verbs()
    assert verbs.index("wall") < verbs.index("start")
    assert verbs[0] == "wall"


def test_a_wall_that_does_not_stand_is_no_place_for_a_container(stage: Stage, container: Container) -> None:
    stage.machine.said["wall"] = done("", 1, "iptables: Permission denied")
    with pytest.raises(Failure):
        container.start(work(), HOME)
    assert "start" not in stage.machine.verbs()


def test_the_image_is_pinned_to_what_was_pulled(stage: Stage, container: Container) -> None:
    container.start(work(), HOME)
    assert PIN in stage.machine.started
    assert IMAGE not in stage.machine.started
    event = stage.run.record.find("container-started")
    assert event is not None
    assert event.facts == {"image": IMAGE, "pinned": PIN}


def test_an_image_that_is_there_already_is_neither_pulled_nor_logged_in_for(stage: Stage) -> None:
    stage.machine.pulled.add(IMAGE)
    stage.job(registry_logins={"registry.example.com": ("u", "password-1")})
    contain(stage).start(work(), HOME)
    assert {"login", "pull", "logout"}.isdisjoint(stage.machine.verbs())
    assert PIN in stage.machine.started


def test_an_image_without_digest_is_pinned_by_its_id(stage: Stage, container: Container) -> None:
    stage.machine.images[IMAGE]["RepoDigests"] = []
    container.start(work(), HOME)
    assert "sha256:" + "0" * 64 in stage.machine.started


def test_what_runs_is_told_apart_from_what_docker_is_told(stage: Stage, container: Container) -> None:
    container.start(work(argv=["--gpus", "-v", "$(x)"], base="examples/text", shm_gb=1.5, gpu=False), HOME)
    words = stage.machine.started
    assert words[words.index(PIN) :] == [PIN, "/bin/sh", f"/dev/shm/{stage.name}/run/start", "--gpus", "-v", "$(x)"]
    docker = words[: words.index(PIN)]
    assert "--init" in docker
    assert "--gpus" not in docker
    assert docker[docker.index("--shm-size") + 1] == "1.5g"
    assert docker[docker.index("--workdir") + 1] == f"{HOME}/code/examples/text"
    assert "--ipc=host" not in docker


def test_a_container_with_a_gpu_has_the_hosts_shared_memory(stage: Stage, container: Container) -> None:
    container.start(work(), HOME)
    assert "--ipc=host" in stage.machine.started
    assert stage.machine.started[stage.machine.started.index("--gpus") + 1] == "all"


def test_secrets_go_by_standard_input_alone(stage: Stage) -> None:
    secret, file = "s3cr3t value", "-----BEGIN KEY-----\nline 2\n"
    stage.job(registry_logins={"registry.example.com": ("robot", "registry-password")})
    contain(stage).start(
        work(environment={"EPOCHS": "20"}, secrets={"TOKEN": (secret, False), "KEY": (file, True)}), HOME
    )
    said = repr(stage.machine.calls)
    for hidden in (secret, "line 2", "registry-password"):
        assert hidden not in said
    given = handed_over(stage)
    assert given["files/KEY"] == file
    assert f"export KEY=/dev/shm/{stage.name}/run/files/KEY\n" in given["env"]
    assert "export TOKEN='s3cr3t value'\n" in given["env"]
    assert "export EPOCHS=20\n" in given["env"]
    assert stage.machine.stdin["login"] == b"registry-password"


def test_a_private_registry_is_logged_in_to_and_out_of(stage: Stage) -> None:
    stage.job(registry_logins={"registry.example.com": ("robot", "registry-password")})
    contain(stage).start(work(), HOME)
    assert [verb for verb in stage.machine.verbs() if verb in ("login", "pull", "logout")] == [
        "login",
        "pull",
        "logout",
    ]
    assert ("login", "registry.example.com", "robot") in stage.machine.calls


@pytest.mark.parametrize("fails", ["login", "pull"])
def test_it_is_logged_out_also_when_nothing_came_of_it(stage: Stage, fails: str) -> None:
    stage.job(registry_logins={"registry.example.com": ("robot", "registry-password")})
    stage.machine.said[fails] = done("", 1, "Error response from daemon: pull access denied for team/train")
    with pytest.raises(Failure) as caught:
        contain(stage).start(work(), HOME)
    assert caught.value.exit_code == 17
    assert stage.machine.verbs()[-1] == "logout"


def test_our_own_pair_of_variables_goes_before_the_jobs_login(stage: Stage) -> None:
    stage.job(registry_logins={"registry.example.com": ("gitlab-ci-token", "x"), "": ("robot", "registry-password")})
    contain(stage).start(work(), HOME)
    assert ("login", "registry.example.com", "robot") in stage.machine.calls


def test_docker_hub_has_its_own_name_in_docker_auth_config(stage: Stage) -> None:
    stage.machine.images["python:3.12"] = stage.machine.images[IMAGE]
    stage.job(registry_logins={"https://index.docker.io/v1/": ("ada", "hub-password")})
    contain(stage).start(work(image="python:3.12"), HOME)
    assert ("login", "docker.io", "ada") in stage.machine.calls


def test_a_registry_that_is_not_ours_gets_no_password(stage: Stage) -> None:
    stage.job(registry_logins={"other.example.com": ("robot", "registry-password")})
    contain(stage).start(work(), HOME)
    assert "login" not in stage.machine.verbs()


def test_an_engine_that_cannot_be_asked_is_not_one_without_container(stage: Stage, container: Container) -> None:
    stage.machine.said["state"] = done("", 1, "Cannot connect to the Docker daemon")
    with pytest.raises(Failure):
        container.state()


def following(stage: Stage, container: Container) -> bytes:
    stage.machine.container = stage.machine.container or {"Running": True, "ExitCode": 0, "OOMKilled": False}
    kept = Kept()
    container.attach(kept)
    return kept.data


LOG = [(f"2026-11-23T20:00:00.{n:09d}Z", f"line {n}\n".encode()) for n in range(20)]


def test_an_attach_shows_the_whole_log_and_the_exit_code(stage: Stage, container: Container) -> None:
    stage.machine.log, stage.machine.exit_code = LOG, 3
    stage.machine.container = {"Running": True, "ExitCode": 0, "OOMKilled": False}
    kept = Kept()
    assert container.attach(kept).code == 3
    assert kept.data == b"".join(text for _, text in LOG)


def test_a_beat_comes_whether_there_is_output_or_none_and_never_twice_within_a_second(
    stage: Stage, container: Container
) -> None:
    stage.machine.container = {"Running": True, "ExitCode": 0, "OOMKilled": False}
    stage.machine.log = LOG
    beats: list[float] = []

    def beat() -> None:
        beats.append(stage.clock.now())
        stage.clock.time += 0.4

    kept = Kept()
    container.attach(kept, beat)
    assert kept.data == b"".join(text for _, text in LOG)
    assert len(beats) == 1
    stage.machine.container = {"Running": True, "ExitCode": 0, "OOMKilled": False}
    container.attach(Kept(), lambda: (beats.append(stage.clock.now()), stage.clock.sleep(1.5))[0])
    assert len(beats) > len(LOG)
    assert all(later - earlier >= 1 for earlier, later in pairwise(beats[1:]))


def test_a_connection_that_breaks_loses_no_line_and_repeats_none(stage: Stage, container: Container) -> None:
    stage.machine.log, stage.machine.breaks_after = LOG, [3, 1, 5, None]
    assert following(stage, container) == b"".join(text for _, text in LOG)
    assert "the training goes on, connecting again" in stage.log


def test_a_second_job_sees_the_whole_log_again(stage: Stage, container: Container) -> None:
    stage.machine.log = LOG
    assert following(stage, container) == following(stage, container)


def test_a_secret_split_over_two_connections_is_masked(stage: Stage, container: Container) -> None:
    stage.run.console.masker.add("wandb-0123456789")
    stage.machine.log = [(LOG[0][0], b"key wandb-01234\n"[:-1]), (LOG[1][0], b"56789 end\n")]
    assert b"0123456789" not in following(stage, container)


def test_a_container_out_of_memory_is_told_apart(stage: Stage, container: Container) -> None:
    stage.machine.exit_code, stage.machine.out_of_memory = 137, True
    stage.machine.container = {"Running": True, "ExitCode": 0, "OOMKilled": False}
    ended = container.attach(Kept())
    assert (ended.code, ended.out_of_memory) == (137, True)


def test_a_vm_that_is_gone_ends_the_wait_at_once(stage: Stage, container: Container) -> None:
    stage.machine.breaks_after = [1]
    stage.cloud.vms.clear()
    with pytest.raises(Failure) as caught:
        following(stage, container)
    assert caught.value.exit_code == 23
    assert sum(stage.clock.slept) < 2


def test_a_vm_at_its_hard_end_is_out_of_time(stage: Stage, container: Container) -> None:
    stage.machine.breaks_after = [1]
    stage.clock.time += 3600
    stage.cloud.change(stage.name, ZONE, status="STOPPING")
    with pytest.raises(Failure) as caught:
        following(stage, container)
    assert caught.value.exit_code == 22


def test_a_vm_that_cannot_be_reached_any_more_is_given_up_after_ten_minutes(stage: Stage, container: Container) -> None:
    stage.machine.reachable = False
    with pytest.raises(Failure) as caught:
        following(stage, container)
    assert caught.value.exit_code == 13
    assert 600 <= sum(stage.clock.slept) < 610


def test_a_changed_address_lets_the_job_in_again(stage: Stage, container: Container) -> None:
    stage.machine.breaks_after = [1, None]
    stage.address = "203.0.113.99"
    following(stage, container)
    assert stage.cloud.rules[stage.name].sources == ("203.0.113.99/32",)


def test_an_engine_that_ends_the_log_a_moment_early_is_no_lost_connection(stage: Stage, container: Container) -> None:
    running, ended = ({"Running": running, "ExitCode": 0, "OOMKilled": False} for running in (True, False))
    stage.machine.container = ended
    stage.machine.said["state"] = done('{"Running": true}')
    stage.clock.at(1, stage.machine.said.clear)
    assert following(stage, container) == b"epoch 1\n"
    assert "lost" not in stage.log
    assert running["Running"]


def test_a_container_that_somebody_removed_is_a_failed_training(stage: Stage, container: Container) -> None:
    stage.machine.container = None
    with pytest.raises(Failure) as caught:
        container.attach(Kept())
    assert caught.value.exit_code == 20


def test_a_signal_ends_the_following_at_once(stage: Stage, container: Container) -> None:
    stage.machine.refuse["logs"] = refusal(ErrorClass.INTERRUPTED)
    with pytest.raises(Failure) as caught:
        following(stage, container)
    assert caught.value.klass is ErrorClass.INTERRUPTED


def test_stopping_gives_the_container_its_grace(stage: Stage, container: Container) -> None:
    container.stop(7)
    assert stage.machine.calls[-1] == ("stop", "7")
