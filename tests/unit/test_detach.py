"""Leaving a training to its VM: when, with what, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeBucket, Stage, done, make_stage, refusal
from glgpu.elsewhere import Part
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import ForgeSchedule
from glgpu.job_times import wants_to_detach
from glgpu.machines import Candidate
from glgpu.saved import ENDED, HANDED_OVER, PROBE
from glgpu.stages.destroy import destroy, destroy_branch
from glgpu.stages.train import train
from glgpu.steps.before_buying import check_before_buying
from glgpu.steps.bring_up import plan_lifetime, standing, terraform_variables
from glgpu.steps.detach import way_home

JOB_SECONDS = 2 * 3600 + 35 * 60


BUCKET, UPLOADER = "team-glgpu", "uploader@my-dl.iam.gserviceaccount.com"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return make_stage(tmp_path)


@pytest.fixture(params=["packages", "bucket"])
def either(request: pytest.FixtureRequest, stage: Stage) -> Stage:
    """With a Maintainer's token and no bucket; or with a bucket and no token."""
    if request.param == "bucket":
        stage.forge.may_administer = False
        stage.set(storage={"bucket": BUCKET, "uploader": UPLOADER})
    return stage


def home(stage: Stage) -> FakeBucket:
    """Where its VM leaves what it has."""
    named = stage.run.settings.storage.bucket
    return stage.buckets.setdefault(named, FakeBucket(f"the bucket {named}")) if named else stage.forge


def leaves_probe(stage: Stage) -> None:
    """Let the keeper's probe arrive."""

    def keep(verb: str) -> None:
        if verb == "probe":
            data = b"here"
            part = Part(PROBE, len(data), hashlib.sha256(data).hexdigest())
            home(stage).put_part(stage.run.name, part, io.BytesIO(data))

    stage.machine.keeps = keep


def detached(stage: Stage) -> None:
    """A training that was left to its VM."""
    stage.set(train={"follow": False})
    leaves_probe(stage)
    train(stage.run)


@pytest.mark.parametrize(
    ("follow", "hours", "wanted"),
    [
        ("auto", None, False), ("auto", 2, False), ("auto", 40, True), (True, None, False), (False, None, True),
        (False, 1, True),
    ],
)  # fmt: skip
def test_auto_leaves_it_where_no_job_could_wait(
    stage: Stage, follow: object, hours: float | None, wanted: bool
) -> None:
    stage.set(train={"follow": follow}, machine={"max_hours": hours})
    assert wants_to_detach(stage.run.settings, stage.run.job) is wanted


def test_a_detached_vm_has_the_hours_that_are_asked_for_or_a_day(stage: Stage) -> None:
    stage.set(machine={"max_hours": 40})
    assert plan_lifetime(stage.run).hard_end == stage.clock.now() + 40 * 3600
    stage.set(machine={"max_hours": None}, train={"follow": False})
    assert plan_lifetime(stage.run).hard_end == stage.clock.now() + 24 * 3600


def test_auto_without_a_token_follows_with_the_time_that_jobs_have_and_says_so(stage: Stage) -> None:
    stage.forge.may_administer = False
    stage.set(machine={"max_hours": 40})
    check_before_buying(stage.run)
    assert "the training is followed, and ends with its job after 2 h 35 min" in stage.log
    assert plan_lifetime(stage.run).hard_end < stage.clock.now() + 4 * 3600


@pytest.mark.parametrize(
    ("bucket", "says"),
    [(None, "storage.bucket is not set"), (BUCKET, "from the account of storage.uploader, which is not set")],
)
def test_false_without_token_and_bucket_is_refused_before_anything_is_bought(
    stage: Stage, bucket: str | None, says: str
) -> None:
    stage.forge.may_administer = False
    stage.set(train={"follow": False}, storage={"bucket": bucket})
    with pytest.raises(Failure, match=says) as caught:
        check_before_buying(stage.run)
    assert caught.value.exit_code == 2
    assert "GLGPU_GITLAB_TOKEN" in caught.value.remedy


@pytest.mark.parametrize(
    ("machine", "storage", "place"),
    [
        ({}, {}, "packages"),
        ({}, {"bucket": BUCKET}, "packages"),
        ({}, {"uploader": UPLOADER}, "packages"),
        ({}, {"bucket": BUCKET, "uploader": UPLOADER}, "bucket"),
        ({"service_account": "vm@my-dl.iam.gserviceaccount.com"}, {"bucket": BUCKET}, "bucket"),
    ],
)
def test_the_bucket_goes_first_where_the_vm_has_an_account_for_it(
    stage: Stage, machine: dict[str, Any], storage: dict[str, Any], place: str
) -> None:
    stage.set(machine=machine, storage=storage)
    found = way_home(stage.run)
    assert found is not None
    assert found.store == place


def account(stage: Stage) -> object:
    lifetime = plan_lifetime(stage.run)
    way = Candidate(None, 0, "e2-small", False, False, "europe-west4-a", "pd-balanced", "projects/p/global/images/i")
    machine = terraform_variables(stage.run, way, lifetime)["machine"]
    assert isinstance(machine, dict)
    return machine["service_account"]


@pytest.mark.parametrize(
    ("follow", "hours", "whole"),
    [(False, None, True), ("auto", 40, True), ("auto", 2, False), ("auto", None, False), (True, None, False)],
)
def test_only_a_vm_that_is_left_alone_gets_the_uploader_and_no_more_of_google_than_storage(
    stage: Stage, follow: object, hours: float | None, whole: bool
) -> None:
    stage.set(train={"follow": follow}, machine={"max_hours": hours})
    assert account(stage) is None
    stage.set(storage={"bucket": BUCKET, "uploader": UPLOADER})
    scopes = ["https://www.googleapis.com/auth/devstorage.read_write"]
    assert account(stage) == ({"email": UPLOADER, "scopes": scopes} if whole else None)
    stage.set(machine={"service_account": "vm@my-dl.iam.gserviceaccount.com"})
    assert account(stage) == {"email": "vm@my-dl.iam.gserviceaccount.com"}


def test_a_bucket_that_only_glgpu_yml_names_is_told_of_since_the_schedule_reads_none(stage: Stage) -> None:
    stage.set(train={"follow": False}, storage={"bucket": BUCKET, "uploader": UPLOADER})
    check_before_buying(stage.run)
    assert f"set the CI variable GLGPU_STORAGE_BUCKET to {BUCKET}" in stage.log
    said = stage.log
    stage.job(variables={**stage.run.job.variables, "GLGPU_STORAGE_BUCKET": BUCKET})
    check_before_buying(stage.run)
    assert stage.log.removeprefix(said).count(BUCKET) == 0


def test_a_laptop_leaves_no_training_to_its_vm(stage: Stage) -> None:
    stage.job(job_id="")
    stage.set(train={"follow": False})
    with pytest.raises(Failure, match="only a job can leave") as caught:
        check_before_buying(stage.run)
    assert caught.value.exit_code == 2


def schedule(**facts: Any) -> ForgeSchedule:
    now = 1_763_900_000.0
    whole = ForgeSchedule(
        "glgpu cleanup", "main", True, "ada", "active", {"GLGPU_TASK": "cleanup"}, "success", now, 1
    )  # fmt: skip
    return replace(whole, **facts)


@pytest.mark.parametrize(
    ("schedules", "says"),
    [
        ([], "no schedule cleans up"),
        ([schedule(active=False)], "the schedule for cleanup is not active"),
        ([schedule(last_time=None)], "the schedule 'glgpu cleanup' has not run yet"),
        ([schedule()], ""),
        ([schedule(description="nightly", variables=None)], ""),
    ],
)
def test_a_schedule_that_would_not_collect_is_told_of_at_the_start(
    stage: Stage, schedules: list[ForgeSchedule], says: str
) -> None:
    stage.set(train={"follow": False})
    stage.forge.schedule_list = schedules
    check_before_buying(stage.run)
    assert (f"a schedule has to collect the training: {says}" in stage.log) is bool(says)


def test_train_hands_the_training_over_and_leaves(either: Stage) -> None:
    detached(either)
    (vm,) = either.cloud.find(either.name)
    assert vm.labels["glgpu-until"] == "deadline"
    assert vm.labels["glgpu-expires"] == str(json.loads(vm.metadata["glgpu-settings"])["hard_end"])
    assert [part for _, part in home(either).kept] == [HANDED_OVER]
    assert [name for name, _ in either.forge.tokens] == [either.name] * either.forge.may_administer
    assert either.events()[-1] == "handed-over"
    assert "logs" not in either.machine.verbs()
    assert either.machine.container == {"Running": True, "ExitCode": 0, "OOMKilled": False}


def test_the_watch_begins_before_the_label_says_so(either: Stage) -> None:
    either.set(train={"follow": False})
    leaves_probe(either)
    either.machine.refuse["leave"] = refusal(ErrorClass.SSH)
    with pytest.raises(Failure):
        train(either.run)
    assert all(vm.labels["glgpu-until"] == "pipeline" for vm in either.cloud.find(either.name))


def test_the_deploy_token_goes_to_the_vm_by_standard_input_alone(stage: Stage) -> None:
    stage.set(train={"follow": False, "secrets": ["API_KEY"]})
    stage.job(variables={**stage.run.job.variables, "API_KEY": "hush/hush.1"})
    leaves_probe(stage)
    keep, given = stage.machine.keeps, b""

    def look(verb: str) -> None:
        nonlocal given
        given = stage.machine.stdin["see-home"] if verb == "take" else given
        keep(verb)

    stage.machine.keeps = look
    train(stage.run)
    files = tar_files(given)
    assert files["headers"] == b"Authorization: gitlab+deploy-token-1:gldt-made-up-secret\n"
    assert files["address"] == b"https://gitlab.example.com/packages/" + stage.name.encode() + b"/"
    assert rb"s/hush\/hush\.1/[MASKED]/g" in files["mask"].splitlines()
    # Only what the training itself has: no other secret of the job goes to the VM for the mask's sake.
    assert b"glpat" not in files["mask"]
    assert "gldt-made-up-secret" not in f"{stage.machine.calls} {stage.log}"


def test_a_vm_that_saves_to_a_bucket_is_told_no_secret(stage: Stage) -> None:
    stage.set(train={"follow": False}, storage={"bucket": BUCKET, "uploader": UPLOADER})
    leaves_probe(stage)
    keep, given = stage.machine.keeps, b""

    def look(verb: str) -> None:
        nonlocal given
        given = stage.machine.stdin["see-home"] if verb == "take" else given
        keep(verb)

    stage.machine.keeps = look
    train(stage.run)
    files = tar_files(given)
    assert files["address"] == f"https://storage.example.com/{BUCKET}/{stage.name}/".encode()
    assert (files["headers"], files["account"], files["authority"]) == (b"x-only: new\n", b"own\n", b"")
    assert stage.forge.tokens == []
    assert stage.events()[-1] == "handed-over"


def test_a_probe_that_a_killed_job_has_left_is_no_proof(either: Stage) -> None:
    either.set(train={"follow": False})
    leaves_probe(either)
    either.machine.keeps("probe")
    either.machine.keeps = lambda _verb: None
    with pytest.raises(Failure, match="nobody sees it in the "):
        train(either.run)


def test_without_a_probe_auto_follows_and_the_token_is_gone(either: Stage) -> None:
    either.set(machine={"max_hours": 40})
    either.machine.said["see-home"] = done("", 7, "curl: (7) Failed to connect to gitlab.example.com port 443")
    train(either.run)
    assert "there is no way home for a detached training" in either.log
    assert "training-ended" in either.events()
    assert either.forge.tokens == []


def test_without_a_probe_false_ends_before_the_training_begins(either: Stage) -> None:
    either.set(train={"follow": False})
    with pytest.raises(Failure, match="nobody sees it in the "):
        train(either.run)
    assert either.machine.container is None
    assert either.forge.tokens == []


def test_destroy_leaves_a_detached_training_alone(either: Stage) -> None:
    detached(either)
    destroy(either.run)
    assert either.events()[-1] == "left-to-itself"
    assert [vm.status for vm in either.cloud.find(either.name)] == ["RUNNING"]
    assert "the training goes on without a job" in either.log


def test_the_stop_job_ends_it_saving_first_and_notes_that(either: Stage) -> None:
    detached(either)
    destroy_branch(either.run, lambda _name: either.run)
    assert either.cloud.find(either.name) == []
    assert "outputs-home" in either.events()
    assert either.forge.tokens == []
    assert {part for _, part in home(either).kept} == {HANDED_OVER, ENDED}


def test_a_detached_training_that_is_over_is_not_trained_once_more(either: Stage) -> None:
    detached(either)
    (vm,) = either.cloud.find(either.name)
    either.cloud.change(vm.name, vm.zone, status="TERMINATED")
    with pytest.raises(Failure, match="is over, and its VM") as caught:
        standing(either.run)
    assert caught.value.exit_code == 2


def test_a_retried_job_finds_it_handed_over(either: Stage) -> None:
    detached(either)
    before = list(either.forge.tokens)
    either.forge.over = True
    train(either.run)
    assert "an earlier job has left the training to its VM" in either.log
    assert (either.forge.tokens, [vm.status for vm in either.cloud.find(either.name)]) == (before, ["RUNNING"])


def tar_files(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        read = {one.name: archive.extractfile(one) for one in archive}
        return {name: file.read() for name, file in read.items() if file is not None}
