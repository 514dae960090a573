"""Where Terraform's state of a run lives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fakes import FakeStates, Stage, make_stage, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.settings import load_settings
from glgpu.stages.provision import provision
from glgpu.steps.state import state_for
from glgpu.steps.tear_down import tear_down


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return make_stage(tmp_path)


def places(stage: Stage, **settings: object) -> str | None:
    stage.set(**settings)
    backend = state_for(stage.run)
    return backend.kind if backend else None


def bucket_is_used(stage: Stage) -> bool:
    return "state_writable" in stage.buckets["weights"].verbs() if stage.buckets else False


def test_it_lives_in_gitlab_where_there_is_no_bucket(stage: Stage) -> None:
    backend = state_for(stage.run)
    assert backend is not None
    assert backend.environment["TF_HTTP_ADDRESS"].endswith(stage.name)


@pytest.mark.parametrize("state", ["auto", "gcs"])
def test_it_lives_in_the_bucket_where_there_is_one(stage: Stage, state: str) -> None:
    assert places(stage, state=state, storage={"bucket": "weights"}) == "gcs"
    assert bucket_is_used(stage)
    assert stage.forge.verbs() == []


def test_a_bucket_does_not_keep_those_from_gitlab_who_want_it_there(stage: Stage) -> None:
    assert places(stage, state="gitlab", storage={"bucket": "weights"}) == "http"
    assert not bucket_is_used(stage)


def test_a_bucket_that_does_not_let_us_write_is_passed_over_for_gitlab(stage: Stage) -> None:
    stage.run.bucket_for("weights")
    stage.buckets["weights"].writable = False
    assert places(stage, storage={"bucket": "weights"}) == "http"
    assert "the bucket weights does not let this job write" in stage.log


def test_a_state_that_nobody_lets_us_write_is_thrown_away(stage: Stage) -> None:
    stage.forge.writable = False
    assert state_for(stage.run) is None
    assert "thrown away" in stage.log


@pytest.mark.parametrize(
    ("settings", "refuses"),
    [
        ({"state": "gitlab"}, lambda stage: stage.forge),
        ({"state": "gcs"}, lambda stage: stage.run.bucket_for("weights")),
    ],
)
def test_a_place_that_settings_insist_on_is_a_failure_without_rights(
    stage: Stage, settings: dict[str, str], refuses: Callable[[Stage], FakeStates]
) -> None:
    refuses(stage).writable = False
    with pytest.raises(Failure) as caught:
        places(stage, storage={"bucket": "weights"}, **settings)
    assert caught.value.klass is ErrorClass.STATE_ACCESS


def test_gcs_without_a_bucket_is_refused_at_the_door() -> None:
    with pytest.raises(Failure, match=r"`state: gcs` needs storage\.bucket"):
        load_settings(None, {"GLGPU_STATE": "gcs"})


def test_a_teardown_without_settings_finds_the_bucket_on_the_vm(stage: Stage) -> None:
    stage.set(state="gcs", storage={"bucket": "weights"})
    provision(stage.run)
    bucket = stage.buckets["weights"]
    assert bucket.states == {stage.name: "empty"}
    bucket.states[stage.name] = "held"
    stage.set(state="auto", storage={})
    tear_down(stage.run)
    assert bucket.states == {}
    assert [stack.state.kind for stack in stage.stacks if stack.state] == ["gcs", "gcs"]


def test_a_teardown_whose_vm_is_gone_knows_the_bucket_from_provision(stage: Stage) -> None:
    stage.set(state="gcs", storage={"bucket": "weights"})
    provision(stage.run)
    lines = (stage.run.job.project_dir / "glgpu.env").read_text().splitlines()
    assert "GLGPU_STORAGE_BUCKET=weights" in lines


def test_a_bucket_that_cannot_be_asked_does_not_stop_the_teardown(stage: Stage) -> None:
    stage.set(storage={"bucket": "weights"})
    provision(stage.run)
    stage.buckets["weights"].refuse["state"] = refusal(ErrorClass.NETWORK)
    with pytest.raises(Failure) as caught:
        tear_down(stage.run)
    assert caught.value.klass is ErrorClass.NETWORK
    assert stage.cloud.vms == {}
