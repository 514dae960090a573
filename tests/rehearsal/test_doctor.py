"""`glgpu doctor` against the stand-ins: healthy, with each defect alone, and with ten of them at once."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from glgpu.console import Console
from glgpu.masking import Masker
from glgpu.rehearsal.command import adopt, job_by_hand
from glgpu.rehearsal.defects import DEFECTS, Defect, Scene, drawn, make_healthy
from glgpu.stages.doctor import doctor
from glgpu.steps.checks.catalogue import CHECKS
from glgpu.steps.checks.judging import Finding
from glgpu.wiring import make_sources
from rehearsing import GLGPU, repository, started, world
from remedies import helps, problems

THIS_PROCESS = {"PATH", "HOME", "PYTHONPATH"}
"""What a defect can only change for a process of its own."""
FILES = {
    "glgpu.yml": """\
machine:
  gpu: [nvidia-l4]
  zones: [europe-west4-a, europe-west4-b]
train:
  image: registry.example.com/team/train:1
  outputs: [weights/]
"""
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("doctor") / "repository", FILES)


@contextmanager
def scene_of(checkout: Path) -> Iterator[Scene]:
    """A healthy world, and a job in it."""
    with world() as made:
        adopted = adopt(made, checkout, [], None)
        environment = job_by_hand(made, adopted) | {"CI_PROJECT_DIR": str(checkout)}
        make_healthy(made, adopted)
        yield Scene(made, adopted, environment)


def asked(scene: Scene, checkout: Path) -> list[Finding]:
    """What doctor finds, in this process."""
    console = Console(Masker(), stream=io.BytesIO())
    return doctor(make_sources(console, {**os.environ, **scene.environment}, checkout))


def told(environment: Mapping[str, str], folder: Path, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """What doctor tells programs, in a process of its own."""
    done = subprocess.run(
        [GLGPU, "doctor", "--json", *words], cwd=folder, env={**os.environ, **environment}, capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def wrong(found: list[dict[str, Any]]) -> set[str]:
    return {one["check"] for one in found if one["status"] in ("error", "warning")}


def plain(found: list[Finding]) -> list[dict[str, Any]]:
    return [{"check": one.check.name, **dataclasses.asdict(one.verdict)} for one in found]


def found_with(defects: list[Defect], checkout: Path) -> list[dict[str, Any]]:
    with scene_of(checkout) as scene:
        for defect in defects:
            defect.draw(scene)
        if any(THIS_PROCESS & defect.touches for defect in defects):
            return told(scene.environment, checkout)[1]
        return plain(asked(scene, checkout))


def test_a_healthy_world_has_nothing_wrong_and_nothing_unasked(checkout: Path) -> None:
    with scene_of(checkout) as scene:
        code, found = told(scene.environment, checkout)
    assert [one for one in found if one["status"] != "ok"] == []
    assert code == 0
    assert [one["check"] for one in found] == [check.name for check in CHECKS]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_defect_is_found_by_its_check_and_by_no_other(defect: Defect, checkout: Path) -> None:
    found = found_with([defect], checkout)
    assert wrong(found) - defect.besides == defect.checks, [one for one in found if one["status"] != "ok"]
    unasked = {one["check"] for one in found if one["status"] == "not checked"}
    assert unasked <= defect.hides | defect.checks, unasked - defect.hides
    for one in found:
        if one["status"] != "ok":
            assert problems(one["remedy"]) == [], one["remedy"]
            assert helps(one["remedy"]), one["remedy"]


@pytest.mark.parametrize("seed", range(6))
def test_ten_drawn_defects_are_all_found_at_once(seed: int, checkout: Path) -> None:
    defects = drawn(10, seed)
    assert len(defects) == 10
    found = found_with(defects, checkout)
    expected = frozenset[str]().union(*(defect.checks for defect in defects))
    besides = frozenset[str]().union(*(defect.besides for defect in defects))
    assert wrong(found) - (besides - expected) == expected, [defect.name for defect in defects]


def test_every_check_has_a_defect_and_every_defect_a_check() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert frozenset[str]().union(*(defect.checks for defect in DEFECTS)) == set(names)
    for defect in DEFECTS:
        assert defect.hides | defect.besides <= set(names), defect.name
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS)


def test_the_stand_ins_alone_can_be_served_with_defects(tmp_path: Path, checkout: Path) -> None:
    words = ("--serve", "--defect", "disk-small", "--defect", "billing-off", checkout)
    with started(tmp_path, *words, apart=True) as process:
        assert process.stdout is not None
        served = json.loads(process.stdout.readline())
        code, found = told(served["environment"], checkout)
        process.terminate()
    assert (code, wrong(found)) == (2, {"disk-size", "billing"})


def test_the_defects_are_listed_for_programs_and_meant_for_doctor_alone(tmp_path: Path) -> None:
    listed = subprocess.run(
        [GLGPU, "rehearse", "--list-defects", "--json"], capture_output=True, check=True, timeout=60
    )
    assert {one["name"]: set(one["checks"]) for one in json.loads(listed.stdout)} == {
        defect.name: set(defect.checks) for defect in DEFECTS
    }
    for words in (["--defect", "disk-small"], ["--serve", "--defect", "no-such"]):
        done = subprocess.run([GLGPU, "rehearse", *words], capture_output=True, cwd=tmp_path, check=False, timeout=60)
        assert done.returncode == 2


def test_on_a_laptop_without_gitlab_the_rest_is_asked_all_the_same(checkout: Path) -> None:
    with scene_of(checkout) as scene:
        environment = {name: value for name, value in scene.environment.items() if not name.startswith("CI_")}
        del environment["GLGPU_GITLAB_TOKEN"]
        code, found = told(environment, checkout)
    assert code == 0
    assert wrong(found) == set()
    unasked = {one["check"] for one in found if one["status"] == "not checked"}
    assert {check.name for check in CHECKS if check.subject == "GitLab"} - {"host-keys"} <= unasked
    assert all(one["remedy"] for one in found if one["status"] == "not checked")


def test_people_see_what_is_wrong_with_its_remedy_and_a_count_of_what_is_not(checkout: Path) -> None:
    with scene_of(checkout) as scene:
        for defect in DEFECTS:
            if defect.name in ("gpu-quota-zero", "token-dies-soon"):
                defect.draw(scene)
        done = subprocess.run(
            [GLGPU, "doctor"], cwd=checkout, env={**os.environ, **scene.environment}, capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip
        assert scene.adopted.token.value not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "== GitLab"
    assert lines[1].startswith("warning: gitlab-token-days (GITLAB_AUTH, exit code 12): ")
    assert lines[2].startswith("   remedy: ")
    assert lines[3] == "== machine"
    assert "NVIDIA_L4_GPUS in europe-west4 has room for 0" in lines[4]
    assert lines[-1] == f"{len(CHECKS) - 2} checks good, 0 errors, 2 warnings, 0 not checked"
    assert done.returncode == 0


def test_a_broken_glgpu_yml_does_not_hide_the_rest(tmp_path: Path) -> None:
    folder = repository(tmp_path / "repository", FILES)
    with scene_of(folder) as scene:
        (folder / "glgpu.yml").write_text("machines: {}\n")
        scene.world.google.project.billing = False
        code, found = told(scene.environment, folder)
    assert code == 2
    assert wrong(found) == {"settings", "billing"}
