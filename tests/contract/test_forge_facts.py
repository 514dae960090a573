"""What GitLab tells about token, project, variables, schedules and pipeline: the client against the stand-in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from glgpu.clients.gitlab_project import GitlabProject
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import ForgePipeline, ForgeProject, ForgeVariable
from glgpu.job import read_job
from glgpu.rehearsal.command import adopt, job_by_hand
from glgpu.rehearsal.defects import Scene, make_healthy
from glgpu.rehearsal.gitlab_model import Role, Variable
from rehearsing import repository, world


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with world() as made:
        adopted = adopt(made, repository(tmp_path / "repository"), [], None)
        environment = job_by_hand(made, adopted)
        make_healthy(made, adopted)
        yield Scene(made, adopted, environment)


def client(scene: Scene, **variables: str) -> GitlabProject:
    return GitlabProject(read_job({**scene.environment, **variables}, Path("/nowhere"), 0.0))


def test_a_healthy_project_tells_all_of_it(scene: Scene) -> None:
    forge = client(scene)
    assert forge.version().startswith("19.")
    token = forge.token()
    assert (token.name, token.scopes, token.expires) == ("glgpu", ("api",), None)
    assert forge.project() == ForgeProject("main", Role.MAINTAINER)
    assert ForgeVariable("GLGPU_GITLAB_TOKEN", protected=True, masked=True) in forge.variables()
    assert forge.protected_branches() == ["main"]
    (schedule,) = forge.schedules()
    assert (schedule.ref, schedule.active, schedule.last_status) == ("main", True, "success")
    assert schedule.variables == {"GLGPU_TASK": "cleanup"}
    assert schedule.last_time == pytest.approx(time.time(), abs=60)
    assert (schedule.owner, schedule.owner_state) == ("ada", "active")
    judged = forge.pipeline("main")
    assert replace(judged, merged="") == ForgePipeline((), ("ci/train.yml",))
    assert {"provision", "train", "destroy", "stop"} <= yaml.safe_load(judged.merged).keys()


def test_the_server_s_time_needs_no_token(scene: Scene) -> None:
    scene.world.clock.offset += 3600
    assert client(scene, GLGPU_GITLAB_TOKEN="").server_time() == pytest.approx(time.time() + 3600, abs=5)


def test_a_token_dies_at_the_beginning_of_its_day(scene: Scene) -> None:
    scene.adopted.token.expires_at = datetime(2099, 5, 6, tzinfo=UTC).date()
    assert client(scene).token().expires == datetime(2099, 5, 6, tzinfo=UTC).timestamp()


def test_more_than_a_page_of_variables_is_read_whole(scene: Scene) -> None:
    scene.adopted.project.variables += [Variable(f"X{number}", "x") for number in range(150)]
    assert {f"X{number}" for number in range(150)} <= {one.name for one in client(scene).variables()}


def test_a_broken_pipeline_is_told_in_gitlab_s_words(scene: Scene) -> None:
    scene.push("train:\n  stage: nowhere\n  script: [make]\n")
    (error,) = client(scene).pipeline("main").errors
    assert "chosen stage does not exist" in error


def test_schedules_hide_their_variables_from_developers(scene: Scene) -> None:
    scene.adopted.project.members[scene.adopted.token.user.id] = Role.DEVELOPER
    forge = client(scene)
    assert [one.variables for one in forge.schedules()] == [None]
    assert forge.project().role == Role.DEVELOPER
    with pytest.raises(Failure) as caught:
        forge.variables()
    assert caught.value.klass is ErrorClass.GITLAB_AUTH


def test_a_server_that_is_not_there_is_a_network_failure(scene: Scene) -> None:
    with pytest.raises(Failure) as caught:
        client(scene, CI_SERVER_URL="http://127.0.0.1:9", CI_API_V4_URL="http://127.0.0.1:9/api/v4").server_time()
    assert caught.value.klass is ErrorClass.NETWORK
