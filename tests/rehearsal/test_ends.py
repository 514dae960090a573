"""The ends that are not the planned one, each with the layer that then ends the VM.

Played by our own player and by GitLab's own Runner alike, with the docker and the shell executor.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from glgpu.rehearsal.player import STUCK_SECONDS
from job_image import NoImage, built
from real_runner import NoRunner, RealRunner, find_program
from rehearsing import Played, remains, repository, world

pytestmark = pytest.mark.timeout(600)  # the first test with the docker executor also builds the job image
AUTO_STOP_SECONDS = 7 * 24 * 3600.0
PIPELINE = """\
stages: [provision, train, destroy]
include:
  - project: rehearsal/glgpu
    ref: main
    file: ci/train.yml
    inputs: {{image: "{image}"}}
{more}
"""
# A quiet job hears of a cancel only every half minute, so this one talks.
TRAINING = """\
import pathlib, time
pathlib.Path("weights").mkdir()
weights = pathlib.Path("weights/w.bin")
weights.write_bytes(b"half")
print("half way", flush=True)
for step in range(SECONDS):
    print("step", step, flush=True)
    time.sleep(1)
weights.write_bytes(b"whole")
"""

LISTENING = """\
import pathlib, signal, sys

def save(*_):
    pathlib.Path("weights/w.bin").write_bytes(b"saved in time")
    print("saved", flush=True)
    sys.exit(3)

signal.signal(signal.SIGTERM, save)
"""

Play = Callable[..., Played]


@pytest.fixture(scope="module")
def job_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image that the docker executor runs the jobs in."""
    try:
        with built(tmp_path_factory.mktemp("base")) as image:
            yield image
    except NoImage as missing:
        pytest.skip(f"{missing.name}: {missing}")


@pytest.fixture(
    params=[
        pytest.param("player:docker"),
        pytest.param("player:shell", marks=pytest.mark.every_fault),
        pytest.param("runner:shell", marks=pytest.mark.real_runner),
        pytest.param("runner:docker", marks=pytest.mark.real_runner),
    ]
)
def played_by(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Play]:
    """Makes the pipeline of a push, to be played by one of those who can."""
    who, executor = request.param.split(":")
    try:
        program = find_program(executor) if who == "runner" else None
    except NoRunner as missing:
        pytest.skip(f"runner: {missing}")
    image = request.getfixturevalue("job_image") if request.param == "runner:docker" else "not-pulled-in-a-rehearsal"
    with world() as made:
        begun: list[Played] = []

        def make(*, seconds: int = 600, more: str = "", branch: str = "main", before: str = "") -> Played:
            own = repository(
                tmp_path / "repository",
                {
                    ".gitlab-ci.yml": PIPELINE.format(image=image, more=more),
                    "train.py": before + TRAINING.replace("SECONDS", str(seconds)),
                },
            )
            environment = {"PATH": made.job_path()} if executor == "shell" else {}
            runner = program and RealRunner(program, made.gitlab, made.folder / "runner", environment)
            adopted = made.adopt(own, keep_pipeline=True, branch=branch)
            begun.append(Played(made, adopted, executor=executor, runner=runner, missed_within=None))
            return begun[0]

        try:
            yield make
        finally:
            for played in begun:
                played.close()
                for job, log in played.logs.items():  # shown where the test fails
                    print(f"== {job}: {played.player.outcomes[job].status}\n{log}")
    assert remains([made.folder.name]) == []


def statuses(played: Played) -> dict[str, str]:
    return {name: outcome.status for name, outcome in played.player.outcomes.items()}


def kept(played: Played, job: str, name: str) -> bytes | None:
    """A file among a job's artifacts."""
    archive = played.player.outcomes[job].last.artifacts
    if archive is None:
        return None
    with zipfile.ZipFile(archive) as entries:
        return entries.read(name) if name in entries.namelist() else None


def saved(played: Played, job: str) -> bytes | None:
    """The weights among a job's artifacts."""
    return kept(played, job, "outputs/weights/w.bin")


def half_way(then: Callable[[Played], object]) -> Callable[[Played], object]:
    """Do something when the training is half way."""

    async def act(played: Played) -> None:
        await played.printed("train", "half way\n")
        then(played)

    return act


@pytest.mark.parametrize(
    "whole", [pytest.param(False, id="job"), pytest.param(True, id="pipeline", marks=pytest.mark.every_fault)]
)
def test_after_a_cancel_the_job_itself_saves_the_weights_and_ends_the_vm(played_by: Play, whole: bool) -> None:
    played = played_by()
    before: list[int] = []

    def cancel(it: Played) -> None:
        before.append(len(it.world.calls.lines()))
        if whole:
            it.player.cancel_pipeline()
        else:
            it.player.cancel_job("train")

    played.play(half_way(cancel))
    assert statuses(played) == {
        "provision": "success", "train": "canceled", "destroy": "canceled" if whole else "skipped", "stop": "manual",
    }, played.logs["train"]  # fmt: skip
    assert saved(played, "train") == b"half"
    assert "asked Compute Engine to delete" in played.logs["train"]
    since = {call["to"] for call in played.world.calls.lines()[before[0] :]}
    assert "compute" in since
    assert not {"gitlab", "git"} & since, "the job's token is dead"
    played.world.call(played.rehearsal.until_gone())
    assert not {"instances", "disks"} & set(played.left())
    # The job's token was dead: what GitLab and the firewall still hold goes when the environment's time has come.
    played.world.call(advance(played, AUTO_STOP_SECONDS))
    assert statuses(played)["stop"] == "success", played.logs["stop"]
    assert played.left() == {}


async def advance(played: Played, seconds: float) -> None:
    """Let the stand-ins' time pass, and the job run that GitLab plays then."""
    stopped = asyncio.Event()
    played.world.gitlab.job_listeners.append(
        lambda word, job: stopped.set() if (word, job.name) == ("finished", "stop") else None
    )
    played.world.clock.advance(seconds)
    await asyncio.wait_for(stopped.wait(), 120)
    await played.player.rest()


def test_after_the_jobs_timeout_destroy_saves_the_weights_and_ends_the_vm(played_by: Play) -> None:
    # A job that does not know its limit cannot end in time.
    played = played_by(more='train: {timeout: 40s, variables: {CI_JOB_TIMEOUT: "10500"}}')
    played.play()
    assert statuses(played) == {
        "provision": "success", "train": "failed", "destroy": "success", "stop": "manual",
    }, played.logs["train"]  # fmt: skip
    assert played.player.outcomes["train"].failure_reason == "job_execution_timeout"
    assert saved(played, "train") is None
    assert saved(played, "destroy") == b"half"
    assert played.left() == {}


@pytest.mark.every_fault
def test_after_a_lost_runner_a_retry_takes_the_training_up_and_destroy_ends_the_vm(played_by: Play) -> None:
    played = played_by(seconds=30)

    def lose(it: Played) -> None:
        it.player.kill_runner()
        it.world.clock.advance(STUCK_SECONDS + 60)

    played.play(half_way(lose))
    assert statuses(played) == {
        "provision": "success", "train": "success", "destroy": "success", "stop": "manual",
    }, played.logs["train"]  # fmt: skip
    first, _ = played.player.outcomes["train"].attempts
    assert first.entry.failure_reason == "stuck_or_timeout_failure"
    assert_taken_up(played, seconds=30)


def assert_taken_up(played: Played, seconds: int) -> None:
    """The second try of the train job went on with the training of the first, and brought it home."""
    trace = played.player.outcomes["train"].last.entry.trace.decode()
    assert "the training was started by an earlier job: attaching to it" in trace
    whole = ["half way", *(f"step {step}" for step in range(seconds))]
    shown = [line.rstrip("\r") for line in trace.splitlines() if line.startswith(("half way", "step "))]
    assert shown == whole
    heading = re.search(r"glgpu: the last (\d+) lines of what the training printed before", trace)
    assert heading is not None
    before, _, after = trace[heading.start() :].partition("glgpu: it goes on from here")
    assert before.count("step ") == int(heading[1]) - 1
    assert after
    assert kept(played, "train", "outputs/glgpu/train.log") == "".join(f"{line}\n" for line in whole).encode()
    assert saved(played, "train") == b"whole"
    assert played.left() == {}


def test_after_glgpu_was_killed_a_retry_takes_the_training_up(played_by: Play) -> None:
    played = played_by(seconds=30)

    def kill(it: Played) -> None:
        killed = 0
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                own = process.environ() if process.name() == "glgpu" else {}
                if own.get("CI_SERVER_URL") == it.world.gitlab.url and own.get("CI_JOB_NAME") == "train":
                    process.kill()
                    killed += 1
        assert killed == 1

    played.play(half_way(kill))
    assert statuses(played) == {
        "provision": "success", "train": "success", "destroy": "success", "stop": "manual",
    }, played.logs["train"]  # fmt: skip
    first, _ = played.player.outcomes["train"].attempts
    assert (first.entry.failure_reason, first.entry.exit_code) == ("script_failure", 137)
    assert_taken_up(played, seconds=30)


@pytest.mark.every_fault
def test_a_training_that_would_outlast_its_job_saves_in_time_and_comes_home_with_it(played_by: Play) -> None:
    short = 'train: {timeout: 110s, variables: {GLGPU_LIMITS_RESCUE_MINUTES: "0"}}'
    played = played_by(more=short, before=LISTENING)
    played.play()
    assert statuses(played) == {
        "provision": "success", "train": "failed", "destroy": "success", "stop": "manual",
    }, played.logs["train"]  # fmt: skip
    train = played.player.outcomes["train"]
    assert (train.failure_reason, train.exit_code, len(train.attempts)) == ("script_failure", 22, 1)
    assert saved(played, "train") == b"saved in time"
    assert "glgpu: OUT_OF_TIME (exit code 22)" in played.logs["train"]
    assert played.left() == {}


def assert_stopped(played: Played) -> None:
    """The job `stop` has saved the weights and ended the VM, and no retry has bought another one."""
    assert statuses(played) == {
        "provision": "success", "train": "failed", "destroy": "success", "stop": "success",
    }, played.logs["stop"]  # fmt: skip
    train = played.player.outcomes["train"]
    assert train.exit_code in (20, 23), "its container was ended, or its VM"
    assert len(train.attempts) == 1
    assert saved(played, "stop") == b"half"
    assert played.left() == {}


def test_the_stop_button_ends_the_vm_of_a_running_training(played_by: Play) -> None:
    played = played_by()

    def stop(it: Played) -> None:
        project = it.rehearsal.adopted.project
        (environment,) = project.environments.values()
        it.world.gitlab.stop_environment(project, environment, it.rehearsal.adopted.user)

    played.play(half_way(stop))
    assert_stopped(played)


@pytest.mark.every_fault
def test_the_deletion_of_its_branch_ends_the_vm_of_a_running_training(played_by: Play) -> None:
    played = played_by(branch="feature/x")

    def delete(it: Played) -> None:
        adopted = it.rehearsal.adopted
        it.world.gitlab.delete_branch(adopted.project, "feature/x", adopted.user)

    played.play(half_way(delete))
    assert_stopped(played)


@pytest.mark.every_fault
def test_the_stop_button_keeps_a_training_from_beginning_that_still_waits(played_by: Play) -> None:
    hold = "hold: {extends: .glgpu, stage: provision, script: [sleep 600]}\ntrain: {needs: [provision, hold]}"
    played = played_by(more=hold)
    provisioned, stopped = asyncio.Event(), asyncio.Event()

    def hear(word: str, name: str) -> None:
        if word == "finished":
            {"provision": provisioned, "stop": stopped}.get(name, asyncio.Event()).set()

    played.world.gitlab.job_listeners.append(lambda word, job: hear(word, job.name))

    async def stop(it: Played) -> None:
        await asyncio.wait_for(provisioned.wait(), 120)
        project = it.rehearsal.adopted.project
        (environment,) = project.environments.values()
        it.world.gitlab.stop_environment(project, environment, it.rehearsal.adopted.user)
        await asyncio.wait_for(stopped.wait(), 120)
        it.player.cancel_job("hold")

    played.play(stop)
    assert statuses(played) == {
        "provision": "success", "hold": "canceled", "train": "canceled", "destroy": "skipped", "stop": "success",
    }, played.logs["stop"]  # fmt: skip
    assert "train of pipeline" in played.logs["stop"]
    assert "train" not in played.logs, "it never began"
    assert played.left() == {}
