"""What a step may expect of GitLab: one suite over the fake and over the real client against the stand-in."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fakes import FakeForge
from glgpu.clients.gitlab_project import GitlabProject
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Forge, ForgeEnvironment
from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.gitlab_model import Job, Role
from lab import SETTINGS, Lab, lab

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + base64.b64encode(bytes(range(31))).decode()[:43]
LOCK = {
    "ID": "b0c865e7-a024-efe8-7726-f5794d3d4569", "Operation": "OperationTypeApply", "Info": "", "Who": "root@dead",
    "Version": "1.11.4", "Created": "2026-11-23T20:00:00Z", "Path": "",
}  # fmt: skip
SOON = 1_900_000_000.0


@dataclass
class Bench:
    """A GitLab.

    Attributes:
        forge: The client.
        titles: The titles of the deploy keys that there are.
        ends: Lets the pipeline's destroy job end with a status; returns the pipeline's id.
        lock: Lets somebody else hold the lock of a state.
        deploys: Lets a pipeline's provision job deploy to an environment; returns the pipeline's id.
        runs: Lets a branch have a pipeline with jobs of these statuses; returns the pipeline's id.
        project: The project's id.
    """

    forge: Forge
    titles: Callable[[], list[str]]
    ends: Callable[[str], str]
    lock: Callable[[str], None]
    deploys: Callable[[str], int]
    runs: Callable[[str, dict[str, str]], int]
    project: int


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture(params=["fake", "real"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    if request.param == "fake":
        forge = FakeForge()

        def ends(status: str) -> str:
            forge.over = status in ("success", "failed", "canceled")
            forge.pipelines[42, 1001] = status
            forge.jobs[42, 1001] = {"destroy": status}
            return "1001"

        def lock(name: str) -> None:
            forge.states.setdefault(name, "empty")
            forge.locks[name] = "root@dead"

        def deploys(environment: str) -> int:
            number = len(forge.environment_list) + 1
            forge.environment_list.append(ForgeEnvironment(number, environment, 1001, "provision", "", ""))
            return 1001

        def runs(ref: str, jobs: dict[str, str]) -> int:
            number = 2001 + len(forge.refs)
            forge.refs[42, number], forge.jobs[42, number] = ref, dict(jobs)
            return number

        forge.visible = {42}
        return Bench(forge, lambda: [key[0] for key in forge.keys], ends, lock, deploys, runs, 42)
    return real(request.getfixturevalue("world"), tmp_path)


def client(world: Lab, folder: Path, **own: str) -> GitlabProject:
    forge = world.run(folder_with_settings(folder), **own).forge
    assert isinstance(forge, GitlabProject)
    return forge


def folder_with_settings(folder: Path) -> Path:
    (folder / "glgpu.yml").write_text(SETTINGS)
    return folder


def destroy_job(world: Lab, name: str, status: str) -> Job:
    gitlab, adopted = world.world.gitlab, world.adopted
    pipeline = gitlab.create_pipeline(adopted.project, "main", adopted.sha, "push", adopted.user)
    job = gitlab.create_job(pipeline, name, "destroy")
    job.status = status
    return job


def real(world: Lab, folder: Path) -> Bench:
    project = world.adopted.project
    forge = client(world, folder)

    def titles() -> list[str]:
        keys = world.world.gitlab.deploy_keys.values()
        return [key.title for key in keys if project.id in key.projects]

    def lock(name: str) -> None:
        answer = forge._state_request("POST", f"{forge._state_path(name)}/lock", LOCK)
        assert answer.status_code == 200

    def deploys(environment: str) -> int:
        gitlab, adopted = world.world.gitlab, world.adopted
        pipeline = gitlab.create_pipeline(adopted.project, "feature/x", adopted.sha, "push", adopted.user)
        job = gitlab.create_job(pipeline, "provision", "provision", environment=environment)
        gitlab.start_job(job)
        gitlab.finish_job(job, "success")
        return pipeline.id

    def ends(status: str) -> str:
        return str(destroy_job(world, "destroy", status).pipeline.id)

    def runs(ref: str, jobs: dict[str, str]) -> int:
        gitlab, adopted = world.world.gitlab, world.adopted
        pipeline = gitlab.create_pipeline(adopted.project, ref, adopted.sha, "push", adopted.user)
        for name, status in jobs.items():
            gitlab.create_job(pipeline, name, name).status = status
        return pipeline.id

    return Bench(forge, titles, ends, lock, deploys, runs, project.id)


def test_the_jobs_of_a_branch_that_would_yet_bring_up_a_vm_are_cancelled_and_no_others(bench: Bench) -> None:
    first = bench.runs("hold", {"lint": "running", "provision": "running", "train": "created", "destroy": "created"})
    second = bench.runs("hold", {"provision": "success", "train": "running", "destroy": "created"})
    third = bench.runs("hold", {"provision": "success", "train": "pending", "destroy": "created"})
    bench.runs("hold", {"provision": "success", "train": "success", "destroy": "success"})
    bench.runs("other", {"provision": "pending", "train": "created"})
    expected = {f"provision of pipeline {first}", f"train of pipeline {first}", f"train of pipeline {third}"}
    assert set(bench.forge.hold_back("hold")) == expected
    assert bench.forge.pipeline_jobs(bench.project, first)["train"] == "canceled"
    assert bench.forge.pipeline_jobs(bench.project, first)["destroy"] == "created"
    assert bench.forge.pipeline_jobs(bench.project, second)["train"] == "running"
    assert bench.forge.pipeline_jobs(bench.project, third)["train"] == "canceled"


@pytest.mark.parametrize(
    ("status", "cancelled"),
    [("pending", True), ("running", True), ("manual", False), ("success", False)],
)
def test_a_notebook_that_would_yet_start_is_cancelled_in_its_own_pipeline_alone(
    bench: Bench, status: str, cancelled: bool
) -> None:
    other = bench.runs("notes", {"start notebook": "pending"})
    jobs = {"provision": "pending", "start notebook": status, "stop notebook": "running"}
    pipeline = bench.runs("notes", jobs)
    held = [f"start notebook of pipeline {pipeline}"] if cancelled else []
    assert bench.forge.hold_back_notebook(str(pipeline)) == held
    found = dict(bench.forge.pipeline_jobs(bench.project, pipeline))
    # One that runs is told to end first.
    assert found.pop("start notebook") in (("canceled", "canceling") if cancelled else (status,))
    assert found == {"provision": "pending", "stop notebook": "running"}
    assert bench.forge.pipeline_jobs(bench.project, other) == {"start notebook": "pending"}
    assert bench.forge.hold_back_notebook("999999") == []


def test_deploy_keys_come_and_go_by_their_title(bench: Bench) -> None:
    bench.forge.add_deploy_key("run-a", KEY, SOON)
    assert bench.titles() == ["run-a"]
    assert bench.forge.remove_deploy_keys("run-b") == 0
    assert bench.forge.remove_deploy_keys("run-a") == 1
    assert bench.forge.remove_deploy_keys("run-a") == 0
    assert bench.titles() == []


def test_deploy_tokens_come_and_go_by_their_name(bench: Bench) -> None:
    user, secret = bench.forge.add_deploy_token("glgpu-abc123-42-7-train", SOON)
    assert user
    assert secret.startswith("gldt-")
    bench.forge.add_deploy_token("somebody-else-s", SOON)
    assert [one.name for one in bench.forge.deploy_tokens()] == ["glgpu-abc123-42-7-train", "somebody-else-s"]
    assert bench.forge.remove_deploy_tokens("glgpu-abc123-42-7-train") == 1
    assert bench.forge.remove_deploy_tokens("glgpu-abc123-42-7-train") == 0
    assert bench.forge.remove_deploy_tokens("somebody-else-s") == 1


def test_a_job_that_is_not_there_has_no_artifacts(bench: Bench) -> None:
    assert bench.forge.job_artifacts("99999999") == "none"


def test_whether_gitlab_has_a_job_s_artifacts_counts_once_the_job_has_ended(world: Lab, tmp_path: Path) -> None:
    gitlab, forge = world.world.gitlab, client(world, tmp_path)
    job = destroy_job(world, "stop notebook", "created")
    gitlab.start_job(job)
    archive = tmp_path / "artifacts.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("outputs/glgpu/run.json", "{}")
    gitlab.save_artifacts(job, archive)
    assert forge.job_artifacts(str(job.id)) == "unfinished"
    gitlab.finish_job(job, "failed")
    assert forge.job_artifacts(str(job.id)) == "kept"
    job.artifacts = None
    assert forge.job_artifacts(str(job.id)) == "none"


def test_a_state_that_was_only_asked_for_is_empty_and_can_be_removed(bench: Bench) -> None:
    assert bench.forge.state("run-1") == "absent"
    assert bench.forge.state_writable("run-1")
    assert bench.forge.state("run-1") == "empty"
    for _ in range(2):
        bench.forge.delete_state("run-1")
    assert bench.forge.state("run-1") == "absent"


def test_a_lock_that_a_dead_job_left_is_broken(bench: Bench) -> None:
    bench.lock("run-2")
    assert bench.forge.state_writable("run-2")
    assert bench.forge.state_writable("run-2")


def test_a_lock_has_a_holder_until_it_is_broken_and_keeps_its_state(bench: Bench) -> None:
    assert bench.forge.lock_holder("run-5") == ""
    bench.lock("run-5")
    for _ in range(2):
        assert bench.forge.lock_holder("run-5")
    with pytest.raises(Failure) as caught:
        bench.forge.delete_state("run-5")
    assert caught.value.klass is ErrorClass.STATE_LOCK
    for _ in range(2):
        bench.forge.break_lock("run-5")
    assert bench.forge.lock_holder("run-5") == ""
    bench.forge.delete_state("run-5")
    assert bench.forge.state("run-5") == "absent"


def test_the_states_environment_names_it(bench: Bench) -> None:
    assert bench.forge.state_backend("run-3").environment["TF_HTTP_ADDRESS"].endswith("/run-3")


@pytest.mark.parametrize(
    ("status", "over"),
    [("success", True), ("failed", True), ("canceled", True), ("skipped", False), ("running", False)],
)
def test_a_destroy_is_over_once_nothing_lets_it_run_again_by_itself(bench: Bench, status: str, over: bool) -> None:
    assert bench.forge.destroy_is_over(bench.ends(status)) is over


@pytest.mark.parametrize("status", ["success", "failed", "running"])
def test_a_pipeline_tells_its_status_and_its_jobs(bench: Bench, status: str) -> None:
    pipeline = int(bench.ends(status))
    project = bench.project
    assert bench.forge.sees_project(project)
    assert bench.forge.pipeline_status(project, pipeline) == status
    assert bench.forge.pipeline_jobs(project, pipeline) == {"destroy": status}


def test_a_pipeline_or_a_project_that_gitlab_does_not_show_is_none(bench: Bench) -> None:
    assert bench.forge.pipeline_status(bench.project, 999_999) is None
    assert not bench.forge.sees_project(999_999)
    assert bench.forge.pipeline_status(999_999, 1) is None
    assert bench.forge.pipeline_jobs(999_999, 1) == {}


def test_deploy_keys_and_states_are_listed(bench: Bench) -> None:
    names = [f"run-{number:03}" for number in range(103)]
    for name in names:
        assert bench.forge.state_writable(name)
    bench.forge.add_deploy_key("run-000", KEY, SOON)
    assert [one.name for one in bench.forge.deploy_keys()] == ["run-000"]
    assert {one.name for one in bench.forge.all_states()} >= set(names)
    for name in names:
        bench.forge.delete_state(name)
    bench.forge.remove_deploy_keys("run-000")
    assert not {one.name for one in bench.forge.all_states()} & set(names)
    assert bench.forge.deploy_keys() == []


def test_an_environment_is_found_until_it_is_stopped(bench: Bench) -> None:
    pipeline = bench.deploys("gpu/feature-x")
    bench.deploys("web/feature-x")
    (found,) = bench.forge.environments("gpu/")
    assert (found.name, found.pipeline, found.job) == ("gpu/feature-x", pipeline, "provision")
    for _ in range(2):
        bench.forge.stop_environment(found.id)
    assert bench.forge.environments("gpu/") == []
    bench.forge.stop_environment(999_999)


def test_what_no_job_left_is_none(bench: Bench) -> None:
    assert bench.forge.artifact("1001", "train", "outputs/glgpu/run.json") is None


def test_the_host_keys_that_gitlab_shows_are_its_own(world: Lab, tmp_path: Path) -> None:
    shown = client(world, tmp_path).host_key_fingerprints()
    assert len(shown) == 1
    assert next(iter(shown)).startswith("SHA256:")


def test_job_names_with_a_prefix_are_found(world: Lab, tmp_path: Path) -> None:
    pipeline = str(destroy_job(world, "gpu-destroy", "success").pipeline.id)
    assert client(world, tmp_path, CI_JOB_NAME="gpu-train").destroy_is_over(pipeline)
    assert not client(world, tmp_path, CI_JOB_NAME="train").destroy_is_over(pipeline)


def test_of_a_matrix_each_job_means_those_of_its_own_run_and_the_stop_job_all(world: Lab, tmp_path: Path) -> None:
    pipeline = str(destroy_job(world, "gpu-destroy: [2]", "success").pipeline.id)
    assert client(world, tmp_path, CI_JOB_NAME="gpu-train: [2]").destroy_is_over(f"{pipeline}-2")
    assert not client(world, tmp_path, CI_JOB_NAME="gpu-train: [1]").destroy_is_over(f"{pipeline}-1")
    gitlab, adopted = world.world.gitlab, world.adopted
    waiting = gitlab.create_pipeline(adopted.project, "matrix", adopted.sha, "push", adopted.user)
    names = [f"gpu-train: [{number}]" for number in (1, 2)]
    for name in names:
        gitlab.create_job(waiting, name, "train").status = "pending"
    held = client(world, tmp_path, CI_JOB_NAME="gpu-stop").hold_back("matrix")
    assert sorted(held) == [f"{name} of pipeline {waiting.id}" for name in names]


@pytest.mark.parametrize(
    ("run", "own", "expected"),
    [
        ("", "gpu-train", ["gpu-train", "gpu-destroy"]),
        ("", "", ["gpu-train", "gpu-destroy"]),
        ("-2", "", ["gpu-train: [2]"]),
    ],
)
def test_the_jobs_of_a_run_are_found_by_their_names_or_by_what_they_left(
    world: Lab, tmp_path: Path, run: str, own: str, expected: list[str]
) -> None:
    gitlab, adopted = world.world.gitlab, world.adopted
    pipeline = gitlab.create_pipeline(adopted.project, "main", adopted.sha, "push", adopted.user)
    jobs = {}
    for name, left in {
        "pretrain": None, "gpu-train": "", "gpu-destroy": "", "gpu-train: [1]": "-1", "gpu-train: [2]": "-2",
    }.items():  # fmt: skip
        job = gitlab.create_job(pipeline, name, "any")
        job.artifacts = tmp_path / f"{job.id}.zip"
        with zipfile.ZipFile(job.artifacts, "w") as archive:
            archive.writestr("outputs/model", b"m")
            if left is not None:
                record = {"run": f"glgpu-abcdef-{adopted.project.id}-{pipeline.id}{left}-train"}
                archive.writestr("outputs/glgpu/run.json", json.dumps(record))
        jobs[str(job.id)] = name
    forge = client(world, tmp_path, CI_JOB_NAME=own)
    assert [jobs[one] for one in forge.artifact_jobs(f"{pipeline.id}{run}", ["train", "destroy"])] == expected


def test_a_run_of_a_laptop_has_no_pipeline_to_ask_for(world: Lab, tmp_path: Path) -> None:
    before = len(world.requests("gitlab"))
    assert not client(world, tmp_path).destroy_is_over("u01234567-1763900000")
    assert len(world.requests("gitlab")) == before


@pytest.mark.parametrize(
    ("action", "argument", "code", "klass"),
    [
        ("unauthorized", "", 12, ErrorClass.GITLAB_AUTH),
        ("forbidden", "", 12, ErrorClass.GITLAB_AUTH),
        ("not-found", "", 12, ErrorClass.GITLAB),
        ("unavailable", "503", 18, ErrorClass.TRANSIENT),
        ("down", "", 18, ErrorClass.NETWORK),
    ],
)
def test_a_refusal_has_its_class(
    world: Lab, tmp_path: Path, action: str, argument: str, code: int, klass: ErrorClass
) -> None:
    forge = client(world, tmp_path)
    world.world.faults.rules.append(Rule("gitlab.request", action, argument=argument))
    try:
        with pytest.raises(Failure) as caught:
            forge.add_deploy_key("run", KEY, SOON)
    finally:
        world.world.faults.lift("gitlab.request")
    assert (caught.value.exit_code, caught.value.klass) == (code, klass)


def test_a_developers_job_may_not_write_states_and_is_told_apart_from_a_failure(world: Lab, tmp_path: Path) -> None:
    gitlab, adopted = world.world.gitlab, world.adopted
    developer = gitlab.create_user("dev")
    adopted.project.members[developer.id] = Role.DEVELOPER
    pipeline = gitlab.create_pipeline(adopted.project, "main", adopted.sha, "push", developer)
    job = gitlab.create_job(pipeline, "provision", "provision")
    gitlab.start_job(job)
    forge = client(world, tmp_path, GLGPU_GITLAB_TOKEN="", CI_JOB_TOKEN=gitlab.issue_job_token(job))
    assert not forge.may_administer
    assert not forge.state_writable("run-4")
    assert forge.state("run-4") == "absent"


def test_without_a_gitlab_nobody_may_administer(world: Lab, tmp_path: Path) -> None:
    forge = client(world, tmp_path)
    laptop = GitlabProject(replace(forge._job, server_url=""))
    assert not laptop.may_administer


def test_a_job_is_over_when_its_token_is_dead(world: Lab, tmp_path: Path) -> None:
    gitlab = world.world.gitlab
    job = destroy_job(world, "train", "pending")
    gitlab.start_job(job)
    forge = client(world, tmp_path, CI_JOB_TOKEN=gitlab.issue_job_token(job))
    assert not forge.job_is_over()
    gitlab.finish_job(job, "failed", failure_reason="stuck_or_timeout_failure")
    assert forge.job_is_over()


def test_a_gitlab_that_fails_does_not_say_that_a_job_is_over(world: Lab, tmp_path: Path) -> None:
    world.world.faults.rules.append(Rule("gitlab.jobs.own", "unavailable", argument="502"))
    try:
        with pytest.raises(Failure) as caught:
            client(world, tmp_path).job_is_over()
        assert caught.value.exit_code in (12, 18)
    finally:
        world.world.faults.end()
    with pytest.raises(Failure) as caught:
        client(world, tmp_path, CI_API_V4_URL="http://127.0.0.1:9/api/v4").job_is_over()
    assert caught.value.klass is ErrorClass.NETWORK
