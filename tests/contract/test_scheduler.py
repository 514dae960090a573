"""What `glgpu init` may expect of GitLab: one suite over the fake and over the real client against the stand-in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes import FakeScheduler
from glgpu.clients.gitlab_project import GitlabProject
from glgpu.console import Console
from glgpu.errors import ErrorClass, Failure
from glgpu.git_remotes import Place
from glgpu.interfaces import Scheduler
from glgpu.job import read_job
from glgpu.masking import Masker
from glgpu.processes import run
from glgpu.rehearsal.command import occasion
from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.gitlab_model import Role
from glgpu.wiring import make_gitlab
from lab import Lab, lab

CLEANUP = {"GLGPU_TASK": "cleanup"}


@dataclass
class Bench:
    """A GitLab without schedules."""

    forge: Scheduler
    switch_off: Callable[[int], None]


@pytest.fixture(scope="module")
def one_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture
def world(one_lab: Lab) -> Lab:
    one_lab.adopted.project.schedules.clear()
    return one_lab


def client(world: Lab, token: str | None = None, **variables: str) -> GitlabProject:
    """The client as a laptop has it: the project is known by its path."""
    known = {
        "CI_SERVER_URL": world.world.gitlab.url,
        "CI_PROJECT_PATH": world.adopted.project.path,
        "GLGPU_GITLAB_TOKEN": world.adopted.token.value if token is None else token,
    }
    return GitlabProject(read_job({**known, **variables}, Path("/nowhere"), 0.0))


@pytest.fixture(params=["fake", "real"])
def bench(request: pytest.FixtureRequest) -> Bench:
    if request.param == "fake":
        fake = FakeScheduler()

        def deactivate(number: int) -> None:
            fake.made = [replace(one, active=False) if one.number == number else one for one in fake.made]

        return Bench(fake, deactivate)
    world: Lab = request.getfixturevalue("world")
    return Bench(client(world), lambda number: setattr(world.adopted.project.schedules[number], "active", False))


def test_a_schedule_is_born_inactive_and_runs_once_it_is_finished(bench: Bench) -> None:
    number = bench.forge.add_schedule("clean", "main", "7 * * * *")
    (born,) = bench.forge.schedules()
    assert (born.number, born.description, born.ref, born.active) == (number, "clean", "main", False)
    assert (born.variables, born.last_time) == ({}, None)
    bench.forge.finish_schedule(number, CLEANUP)
    (found,) = bench.forge.schedules()
    assert (found.active, found.variables) == (True, CLEANUP)
    bench.switch_off(number)
    bench.forge.finish_schedule(number, {})
    assert bench.forge.schedules() == [found]


def test_the_project_and_its_branch_are_known(bench: Bench) -> None:
    assert bench.forge.is_gitlab()
    assert bench.forge.project().default_branch == "main"


def test_a_text_is_judged_as_a_whole(bench: Bench) -> None:
    judged = bench.forge.judge("build: {script: [make], only: [pushes]}\n")
    assert judged.errors == ()
    assert yaml.safe_load(judged.merged) == {"build": {"script": ["make"], "only": ["pushes"]}}


def test_includes_are_merged_and_extended(world: Lab) -> None:
    home = "include: [{project: rehearsal/glgpu, ref: main, file: ci/train.yml, inputs: {image: x}}]\n"
    judged = client(world).judge(
        f"stages: [provision, train, destroy]\n{home}build: {{stage: train, script: [make]}}\n"
    )
    assert judged.errors == ()
    assert judged.includes == ("ci/train.yml",)
    merged: dict[str, Any] = yaml.safe_load(judged.merged)
    assert "rules" in merged["provision"]
    assert merged["build"] == {"stage": "train", "script": ["make"]}


def test_a_text_that_cannot_be_read_is_judged_without_a_merged_one(world: Lab) -> None:
    judged = client(world).judge("a: [")
    assert judged.errors
    assert judged.merged == ""


def test_a_private_home_is_closed_to_the_tokens_own_user(world: Lab) -> None:
    home = world.world.gitlab.find_project("rehearsal/glgpu")
    assert home is not None
    text = "include: [{project: rehearsal/glgpu, file: ci/train.yml, inputs: {image: x}}]\n"
    home.visibility = "private"
    try:
        (error,) = client(world).judge(text).errors
    finally:
        home.visibility = "internal"
    assert "not found or access denied" in error


def test_a_developer_may_not_schedule_a_protected_branch(world: Lab) -> None:
    gitlab, project = world.world.gitlab, world.adopted.project
    token = gitlab.create_project_token(project, "small", ["api"], Role.DEVELOPER).value
    with pytest.raises(Failure) as caught:
        client(world, token).add_schedule("d", "main", "0 * * * *")
    assert caught.value.klass is ErrorClass.GITLAB_AUTH
    assert client(world, token).judge("a: {script: [b]}").errors == ()
    assert project.schedules == {}


@pytest.mark.parametrize(("role", "scope"), [(Role.REPORTER, "api"), (Role.MAINTAINER, "read_api")])
def test_a_weak_token_is_refused(world: Lab, role: Role, scope: str) -> None:
    token = world.world.gitlab.create_project_token(world.adopted.project, "weak", [scope], role).value
    for call in (lambda it: it.judge("a: {script: [b]}"), lambda it: it.add_schedule("d", "main", "0 * * * *")):
        with pytest.raises(Failure) as caught:
            call(client(world, token))
        assert caught.value.klass is ErrorClass.GITLAB_AUTH


def test_what_is_no_gitlab_is_not_given_the_token(world: Lab) -> None:
    elsewhere = client(world, CI_SERVER_URL=world.world.google.endpoint)
    assert not elsewhere.is_gitlab()
    (call,) = [
        call for call in world.world.calls.lines() if (call["to"], call["target"]) == ("google", "/api/v4/version")
    ]
    assert [name for name in call["headers"] if "token" in name.lower()] == []


def test_a_gitlab_that_is_not_there_is_a_network_failure(world: Lab) -> None:
    with pytest.raises(Failure) as caught:
        client(world, CI_SERVER_URL="http://127.0.0.1:9").is_gitlab()
    assert caught.value.klass is ErrorClass.NETWORK


def test_a_server_that_fails_is_not_taken_for_something_else(world: Lab) -> None:
    world.world.faults.rules.append(Rule("gitlab.schedules.create", "unavailable", argument="503"))
    try:
        with pytest.raises(Failure) as caught:
            client(world).add_schedule("d", "main", "0 * * * *")
    finally:
        world.world.faults.lift("gitlab.schedules.create")
    assert caught.value.klass is ErrorClass.TRANSIENT


# Where a repository is


def checkout(folder: Path, origin: str | None) -> Path:
    assert run(["git", "init", "-q", str(folder)]).code == 0
    if origin:
        assert run(["git", "-C", str(folder), "remote", "add", "origin", origin]).code == 0
    return folder


def placed(folder: Path, environment: dict[str, str], server: str | None = None, project: str | None = None) -> Any:
    return make_gitlab(Console(Masker()), environment, folder, server=server, project=project)


TOKEN = {"GLGPU_GITLAB_TOKEN": "glpat-of-nobody"}


A, B = "https://a.example.com", "https://b.example.com"
NUMBER = {"CI_SERVER_URL": A, "CI_PROJECT_ID": "7"}


@pytest.mark.parametrize(
    ("variables", "server", "project", "expected"),
    [
        ({}, None, None, Place("https://git.example.com", "team/model")),
        ({"CI_SERVER_URL": A}, None, None, Place(A, "team/model")),
        ({"CI_SERVER_URL": A, "CI_PROJECT_PATH": "x/y"}, None, None, Place(A, "x/y")),
        (NUMBER, None, None, Place(A, "7")),
        (NUMBER, None, "x/z", Place(A, "x/z")),
        (NUMBER, f"{B}/", None, Place(B, "team/model")),
        ({}, "https://git.example.com/team", None, Place("https://git.example.com/team", "model")),
    ],
)
def test_options_go_before_variables_and_these_before_the_remote(
    tmp_path: Path, variables: dict[str, str], server: str | None, project: str | None, expected: Place
) -> None:
    folder = checkout(tmp_path, "git@git.example.com:team/model.git")
    found = placed(folder, TOKEN | variables, server, project)
    assert found.place == expected
    assert isinstance(found.forge, GitlabProject)


@pytest.mark.parametrize("origin", [None, "/srv/git/model.git"])
def test_where_nothing_tells_the_options_are_named(tmp_path: Path, origin: str | None) -> None:
    found = placed(checkout(tmp_path, origin), TOKEN)
    assert isinstance(found.forge, Failure)
    assert "--gitlab" in found.forge.remedy
    assert placed(tmp_path / "nowhere", TOKEN).place == Place("", "")


def test_without_a_token_nobody_is_asked(tmp_path: Path) -> None:
    found = placed(checkout(tmp_path, "git@git.example.com:team/model.git"), {})
    assert found.place == Place("https://git.example.com", "team/model")
    assert isinstance(found.forge, Failure)
    assert found.forge.cause == "GLGPU_GITLAB_TOKEN is not set"


def test_wrong_variables_are_told_and_stop_nothing(tmp_path: Path) -> None:
    found = placed(checkout(tmp_path, None), TOKEN | {"CI_PROJECT_ID": "seven"})
    assert isinstance(found.forge, Failure)
    assert "CI_PROJECT_ID" in found.forge.cause


def test_a_jobs_project_is_found_by_its_number(world: Lab) -> None:
    where = occasion(world.world, world.adopted)
    found = client(world, CI_PROJECT_ID=str(where.project.id), CI_PROJECT_PATH="")
    assert found.project().role == Role.MAINTAINER
