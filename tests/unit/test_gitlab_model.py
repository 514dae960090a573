"""The stand-in GitLab's rules that need no server: statuses, variables, tokens, environments."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from glgpu.rehearsal.gitlab_model import Job, Pipeline, Project, Role, Variable, composite_status, timestamp
from glgpu.rehearsal.gitlab_state import GitLabState, Refused
from glgpu.rehearsal.world_clock import WorldClock


@pytest.fixture
def state(tmp_path: Path) -> GitLabState:
    return GitLabState(tmp_path, WorldClock())


@pytest.fixture
def pipeline(state: GitLabState, tmp_path: Path) -> Pipeline:
    user = state.create_user("maja")
    project = Project(1, "team/model", tmp_path / "none.git", 0.0, protected_branches=["main", "release-*"])
    project.members[user.id] = Role.MAINTAINER
    state.projects[1] = project
    made = Pipeline(10, 1, project, "main", "a" * 40, "push", user, 0.0, 0.0)
    project.pipelines[10] = made
    return made


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], "created"),
        (["success", "skipped"], "success"),
        (["skipped"], "skipped"),
        (["success", "failed", "skipped"], "failed"),
        (["success", "running", "created"], "running"),
        (["success", "created"], "running"),
        (["created", "created"], "created"),
        (["pending", "created"], "pending"),
        (["success", "canceled", "skipped"], "canceled"),
        (["canceling", "canceled", "created"], "canceling"),
        (["success", "manual"], "manual"),
        (["success", "failed?"], "success"),
        (["success", "canceled?"], "success"),
        (["success", "manual?"], "success"),
    ],
)
def test_a_pipeline_s_status_is_composed_of_its_jobs(
    state: GitLabState, pipeline: Pipeline, statuses: list[str], expected: str
) -> None:
    jobs = []
    for word in statuses:
        job = state.create_job(pipeline, "j", "s", allow_failure=word.endswith("?"))
        job.status = word.rstrip("?")
        jobs.append(job)
    assert composite_status(jobs) == expected


def test_protected_variables_are_absent_on_unprotected_branches(state: GitLabState, pipeline: Pipeline) -> None:
    project = pipeline.project
    project.variables += [Variable("TOKEN", "secret", protected=True), Variable("OPEN", "x")]

    def keys(ref: str) -> set[str]:
        return {variable.key for variable in state.variables_for(project, ref)}

    assert keys("main") == {"TOKEN", "OPEN"}
    assert keys("release-1") == {"TOKEN", "OPEN"}
    assert keys("feature") == {"OPEN"}


def test_the_closest_environment_scope_wins(state: GitLabState, pipeline: Pipeline) -> None:
    project = pipeline.project
    project.variables += [Variable("A", "gpu", environment_scope="gpu/*"), Variable("A", "all")]
    assert [v.value for v in state.variables_for(project, "main", "gpu/main")] == ["gpu"]
    assert [v.value for v in state.variables_for(project, "main", "web")] == ["all"]
    assert [v.value for v in state.variables_for(project, "main")] == ["all"]


def test_a_job_token_dies_with_the_cancel_and_with_the_end(state: GitLabState, pipeline: Pipeline) -> None:
    job = state.create_job(pipeline, "train", "train")
    token = state.issue_job_token(job)
    assert state.find_running_job(token) is None
    state.start_job(job)
    assert state.find_running_job(token) is job
    state.cancel_job(job)
    assert state.find_running_job(token) is None
    other = state.create_job(pipeline, "other", "train")
    state.start_job(other)
    state.finish_job(other, "success")
    assert state.find_running_job(state.issue_job_token(other)) is None


def test_a_canceling_job_ends_canceled_and_can_only_be_forced(state: GitLabState, pipeline: Pipeline) -> None:
    job = state.create_job(pipeline, "train", "train")
    state.start_job(job)
    state.cancel_job(job)
    with pytest.raises(Refused):
        state.cancel_job(job)
    state.finish_job(job, "failed", failure_reason="script_failure")
    assert (job.status, job.failure_reason) == ("canceled", None)
    forced = state.create_job(pipeline, "train", "train")
    state.start_job(forced)
    state.cancel_job(forced, force=True)
    assert forced.status == "canceled"


def test_a_job_that_is_not_manual_cannot_be_played(state: GitLabState, pipeline: Pipeline) -> None:
    job = state.create_job(pipeline, "train", "train")
    with pytest.raises(Refused, match="Unplayable"):
        state.play_job(job, pipeline.user)


def test_a_played_job_runs_as_the_one_who_clicked(state: GitLabState, pipeline: Pipeline) -> None:
    job = state.create_job(pipeline, "stop", "destroy", when="manual")
    clicker = state.create_user("dan")
    assert state.play_job(job, clicker) is job
    assert (job.status, job.user) == ("pending", clicker)


def _deploy(state: GitLabState, pipeline: Pipeline, stop_when: str) -> Job:
    train = state.create_job(pipeline, "train", "t", environment="gpu/main", on_stop="stop", auto_stop_in=60)
    stop = state.create_job(pipeline, "stop", "d", when=stop_when, environment="gpu/main", action="stop")
    state.start_job(train)
    state.finish_job(train, "success")
    return stop


def test_auto_stop_plays_the_manual_stop_job_when_its_time_has_come(state: GitLabState, pipeline: Pipeline) -> None:
    stop = _deploy(state, pipeline, "manual")
    assert state.auto_stop() == []
    state.clock.advance(61)
    assert state.auto_stop() == [stop]
    assert stop.status == "pending"
    assert state.auto_stop() == []


def test_auto_stop_never_finds_a_stop_job_that_is_not_manual(state: GitLabState, pipeline: Pipeline) -> None:
    stop = _deploy(state, pipeline, "always")
    state.start_job(stop)
    state.finish_job(stop, "failed")
    state.clock.advance(61)
    assert state.auto_stop() == []
    assert not stop.retried
    assert [environment.state for environment in pipeline.project.environments.values()] == ["stopped"]


def test_only_the_newest_finished_deployment_s_stop_job_is_found(state: GitLabState, pipeline: Pipeline) -> None:
    _deploy(state, pipeline, "manual")
    project = pipeline.project
    newer = Pipeline(11, 2, project, "main", "b" * 40, "push", pipeline.user, 0.0, 0.0)
    project.pipelines[11] = newer
    stop = _deploy(state, newer, "manual")
    running = state.create_job(newer, "again", "t", environment="gpu/main", on_stop="stop")
    state.start_job(running)
    assert state.stop_action(project, next(iter(project.environments.values()))) is stop


def test_a_token_is_dead_from_the_beginning_of_its_last_day(state: GitLabState) -> None:
    token = state.create_token(state.admin, "t", ["api"], expires_at=date(2026, 11, 23))
    assert not token.expired(1795391999.0)
    assert token.expired(1795392000.0)


def test_times_are_shown_as_gitlab_shows_them() -> None:
    assert timestamp(1795392000.5) == "2026-11-23T00:00:00.500Z"
    assert timestamp(None) is None
