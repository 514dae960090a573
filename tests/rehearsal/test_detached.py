"""A training that outlasts its job: left to its VM, and collected by the schedule."""

from __future__ import annotations

import asyncio
import json
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.gitlab_model import Variable
from glgpu.rehearsal.job_turn import Outcome
from rehearsing import NOT_CLICKED, WITH_CLEANUP, Played, clean, repository, world

GREEN = {"provision": "success", "train": "success", "destroy": "success", "stop": "manual", **NOT_CLICKED}
SETTINGS = """\
machine:
  gpu: [nvidia-l4]
  zones: [europe-west4-a]
train:
  image: registry.example.com/team/train:1
  command: python train.py
  outputs: [weights]
  follow: false
"""
BUCKET = "team-glgpu"
# The state is kept elsewhere, so that what reaches the bucket can be counted.
WITH_BUCKET = f"{SETTINGS}state: local\nstorage: {{bucket: {BUCKET}, uploader: vm@my-dl.iam.gserviceaccount.com}}\n"
TRAINING = """\
import pathlib, time
pathlib.Path("weights").mkdir()
print("waiting for a word", flush=True)
while not pathlib.Path("go").exists():
    time.sleep(0.05)
pathlib.Path("weights/w.bin").write_bytes(b"trained")
raise SystemExit(int(pathlib.Path("go").read_text()))
"""


@contextmanager
def detached(
    folder: Path, *rules: Rule, settings: str = SETTINGS, variables: Sequence[Variable] = (), token: bool = True
) -> Iterator[Played]:
    """A repository with a training that ends when it is told to, in a project with or without GLGPU_GITLAB_TOKEN."""
    files = {"glgpu.yml": settings, "train.py": TRAINING, ".gitlab-ci.yml": WITH_CLEANUP}
    own = repository(folder / "repository", files)
    with world(*rules) as made:
        adopted = made.adopt(own, keep_pipeline=True, variables=variables)
        if not token:
            adopted.project.variables = [one for one in adopted.project.variables if one.key != "GLGPU_GITLAB_TOKEN"]
        played = Played(made, adopted)
        try:
            yield played
        finally:
            played.close()


def end_training(played: Played, code: int = 0) -> None:
    """Tell the training to end."""
    (code_folder,) = played.world.folder.glob("**/home/glgpu/glgpu/code")
    (code_folder / "go.new").write_text(str(code))
    (code_folder / "go.new").rename(code_folder / "go")


def kept(played: Played) -> list[str]:
    """What there is in the package registry, which the read-back passes over as the team's."""
    return [file.name for package in played.rehearsal.adopted.project.packages.values() for file in package.files]


def in_bucket(played: Played) -> list[str]:
    """What there is of runs in the bucket, which is the team's, too."""
    return [name.rpartition("/")[2] for name in played.world.google.storage.buckets[BUCKET].objects]


def status(played: Played) -> str:
    instances = played.left().get("instances", ["gone (gone)"])
    (one,) = instances
    return one.partition("(")[2].rstrip(")")


def until(played: Played, wanted: str) -> None:
    end = time.monotonic() + 60
    while status(played) != wanted:
        assert time.monotonic() < end, status(played)
        time.sleep(0.2)


def archived(outcome: Outcome, run: str, name: str) -> bytes:
    assert outcome.last.artifacts is not None
    with zipfile.ZipFile(outcome.last.artifacts) as archive:
        return archive.read(f"outputs/glgpu/{run}/{name}")


def test_the_pipeline_ends_while_the_training_runs_and_the_schedule_brings_it_home(tmp_path: Path) -> None:
    with detached(tmp_path) as played:
        outcomes = played.play()
        told = {name: outcome.status for name, outcome in outcomes.items()}
        assert told == GREEN, played.logs
        assert "the way home is proved" in played.logs["train"]
        assert "the training goes on without a job" in played.logs["destroy"]
        left = played.left()
        (run,) = left["deploy tokens"]
        assert status(played) == "RUNNING"
        outcome, log = clean(played)
        assert outcome.status == "success", log
        assert "its training goes on" in log
        assert status(played) == "RUNNING"
        end_training(played)
        until(played, "TERMINATED")
        outcome, log = clean(played)
        assert outcome.status == "success", log
        assert archived(outcome, run, "weights/w.bin") == b"trained"
        assert archived(outcome, run, "glgpu/train.log") == b"waiting for a word\n"
        record = json.loads(archived(outcome, run, "glgpu/run.json"))
        events = [event["what"] for event in record["events"]]
        for what in ("instance-running", "handed-over", "left-to-itself", "outputs-home", "proof"):
            assert what in events
        assert record["events"][-1]["facts"].get("left", []) == [] or "proof" in events
        assert played.left() == {}
        assert kept(played)
        # Only now is it known that GitLab has the artifacts.
        outcome, log = clean(played)
        assert outcome.status == "success", log
        assert "its VM's copy is removed" in log
        assert (played.left(), kept(played)) == ({}, [])


@pytest.mark.every_fault
def test_with_a_bucket_it_takes_neither_token_nor_registry(tmp_path: Path) -> None:
    variables = [Variable("GLGPU_STORAGE_BUCKET", BUCKET)]
    with detached(tmp_path, settings=WITH_BUCKET, variables=variables, token=False) as played:
        outcomes = played.play()
        told = {name: outcome.status for name, outcome in outcomes.items()}
        assert told == GREEN, played.logs
        assert f"the VM can leave its outputs in the bucket {BUCKET}" in played.logs["train"]
        (account,) = next(iter(played.world.compute.instances.resources("europe-west4-a")))["serviceAccounts"]
        assert account["scopes"] == ["https://www.googleapis.com/auth/devstorage.read_write"]
        assert (in_bucket(played), kept(played)) == (["detached.json"], [])
        (run,) = {name.split("/")[2] for name in played.world.google.storage.buckets[BUCKET].objects}
        end_training(played)
        until(played, "TERMINATED")
        outcome, log = clean(played)
        assert outcome.status == "success", log
        assert archived(outcome, run, "weights/w.bin") == b"trained"
        assert archived(outcome, run, "glgpu/train.log") == b"waiting for a word\n"
        assert played.left() == {}
        # Nobody sees whether GitLab has these artifacts: what is needed to get it all again stays.
        outcome, log = clean(played)
        assert (outcome.status, "takes GLGPU_GITLAB_TOKEN to see" in log) == ("success", True), log
        left = in_bucket(played)
        assert {name.partition("-")[0] for name in left} == {"elsewhere", "save"}
        outcome, log = clean(played)
        assert (outcome.status, in_bucket(played), "takes GLGPU_GITLAB_TOKEN to see" in log) == ("success", left, False)
        assert kept(played) == []


@pytest.mark.every_fault
def test_a_job_that_is_killed_while_it_hands_over_to_a_bucket_is_made_whole_by_its_next_try(tmp_path: Path) -> None:
    # The watch has begun and the label is there; the probe was the first to come, the note is not there yet.
    with detached(tmp_path, Rule("storage.objects.insert", "silence", 2), settings=WITH_BUCKET) as played:
        outcomes = played.play(killed_in_silence)
        assert (outcomes["train"].status, len(outcomes["train"].attempts)) == ("success", 2), played.logs["train"]
        assert outcomes["destroy"].status == "success", played.logs["destroy"]
        assert status(played) == "RUNNING"
        end_training(played)
        until(played, "TERMINATED")
        # The schedule reads no glgpu.yml: it learns from the VM which bucket there is.
        outcome, log = clean(played)
        assert outcome.status == "success", log
        outcome, log = clean(played, GLGPU_STORAGE_BUCKET=BUCKET)
        assert "its VM's copy is removed" in log
        assert (played.left(), kept(played), in_bucket(played)) == ({}, [], [])


async def killed_in_silence(played: Played) -> None:
    """Kill the train job where a stand-in does not answer it."""
    loop, reached = asyncio.get_running_loop(), asyncio.Event()

    def hear(call: dict[str, Any]) -> None:
        if call.get("fault") == "silence":
            loop.call_soon_threadsafe(reached.set)

    played.world.calls.listeners.append(hear)
    await asyncio.wait_for(reached.wait(), 120)
    for process in played.player.own_runner.processes("glgpu"):
        process.kill()


@pytest.mark.every_fault
@pytest.mark.parametrize(
    "rule",
    [
        # GitLab may have made the token, and nobody knows its secret.
        Rule("gitlab.deploy_tokens.create", "silence", 1),
        # The watch has begun and the label is there, the note in the registry is not.
        Rule("gitlab.packages.upload", "silence", 2),
    ],
)
def test_a_job_that_is_killed_while_it_hands_over_is_made_whole_by_its_next_try(tmp_path: Path, rule: Rule) -> None:
    with detached(tmp_path, rule) as played:
        outcomes = played.play(killed_in_silence)
        assert (outcomes["train"].status, len(outcomes["train"].attempts)) == ("success", 2), played.logs["train"]
        assert outcomes["destroy"].status == "success", played.logs["destroy"]
        assert status(played) == "RUNNING"
        assert len(played.left()["deploy tokens"]) == 1
        end_training(played)
        until(played, "TERMINATED")
        outcome, log = clean(played)
        assert outcome.status == "success", log
        clean(played)
        assert (played.left(), kept(played)) == ({}, [])


@pytest.mark.every_fault
def test_a_hand_over_that_fails_before_the_label_is_there_ends_as_any_other_training_does(tmp_path: Path) -> None:
    # The first label is the claim's.
    with detached(tmp_path, Rule("compute.instances.setLabels", "permission-denied", 2)) as played:
        outcomes = played.play()
        assert outcomes["train"].exit_code == 15, played.logs["train"]
        assert outcomes["destroy"].status == "success", played.logs["destroy"]
        assert "saved " in played.logs["destroy"]
        assert played.left() == {}
        clean(played)
        clean(played)
        assert kept(played) == []


@pytest.mark.every_fault
def test_a_collection_that_is_cut_short_is_done_over_by_the_next_schedule(tmp_path: Path) -> None:
    with detached(tmp_path) as played:
        played.play()
        (run,) = played.left()["deploy tokens"]
        end_training(played, 3)
        until(played, "TERMINATED")
        for point in ("gitlab.packages.download", "compute.instances.delete", "gitlab.packages.upload"):
            played.world.faults.rules.append(Rule(point, "refuse" if "compute" in point else "unavailable"))
            outcome, log = clean(played)
            played.world.faults.lift(point)
            assert outcome.status == "failed", log
            assert kept(played)
        outcome, log = clean(played)
        assert outcome.exit_code == 20, log
        assert archived(outcome, run, "weights/w.bin") == b"trained"
        assert "the detached training failed, its exit code is 3" in log
        outcome, log = clean(played)
        assert outcome.status == "success", log
        assert (played.left(), kept(played)) == ({}, [])


@pytest.mark.every_fault
def test_a_detached_training_that_cannot_come_home_is_refused_and_its_vm_ended(tmp_path: Path) -> None:
    with detached(tmp_path, Rule("vm.egress", "refuse")) as played:
        outcomes = played.play()
        assert outcomes["train"].status == "failed"
        assert "proving the way home" in played.logs["train"]
        assert outcomes["destroy"].status == "success", played.logs["destroy"]
        assert (played.left(), kept(played)) == ({}, [])
