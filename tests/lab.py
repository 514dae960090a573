"""The real clients against the stand-ins, wired as a job wires them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from glgpu.clock import SystemClock, poll
from glgpu.console import Console
from glgpu.interfaces import Cloud, Instance
from glgpu.masking import Masker
from glgpu.rehearsal.command import occasion
from glgpu.rehearsal.faults import Faults, Rule
from glgpu.rehearsal.occasion import predefined_variables
from glgpu.rehearsal.world import GOOGLE_PROJECT, Adopted, World
from glgpu.run_names import Kind, RunName
from glgpu.steps.bring_up import bring_up, plan_lifetime
from glgpu.steps.context import Run
from glgpu.wiring import make_run

ZONE = "europe-west4-a"
IMAGE = "registry.example.com/team/train:latest"
SETTINGS = f"""\
project: {GOOGLE_PROJECT}
machine: {{gpu: [none], type: e2-small, zones: [{ZONE}], spot: never}}
train: {{image: "{IMAGE}", command: python3 train.py, outputs: [weights/]}}
"""
FILES = {"glgpu.yml": SETTINGS, "train.py": "print('hello')\n"}


class Lab:
    """A world with one adopted repository.

    Attributes:
        world: The stand-ins.
        adopted: The repository as GitLab has it.
        said: What glgpu printed.
    """

    def __init__(self, world: World, repository: Path) -> None:
        self.world = world
        self.adopted: Adopted = world.adopt(repository)
        self.said = io.BytesIO()
        self._runs = 5000

    def variables(self, **own: str) -> dict[str, str]:
        """What GitLab sets in a job, and what a job inherits from its machine."""
        where = occasion(self.world, self.adopted)
        settings = {one.key: one.value for one in self.world.gitlab.variables_for(self.adopted.project, "main")}
        self._runs += 1
        ids = {"CI_PIPELINE_ID": str(self._runs), "CI_JOB_ID": str(self._runs)}
        return {**os.environ, **predefined_variables(where), **settings, **ids, **own}

    def run(self, checkout: Path, *, kind: Kind = "train", **own: str) -> Run:
        """A run as a job in a checkout sees it."""
        environment = self.variables(CI_PROJECT_DIR=str(checkout), **own)
        return make_run(Console(Masker(), stream=self.said), environment, checkout, kind=kind)

    def other(self, run: Run) -> Run:
        """Another run of the same project."""
        self._runs += 1
        name = RunName(run.name.server_url, run.name.project_id, str(self._runs), run.name.kind)
        return replace(run, name=name, job=replace(run.job, run=name.run))

    def requests(self, to: str, verb: str = "") -> list[str]:
        """The targets of what reached a stand-in."""
        return [call["target"] for call in self.world.calls.lines() if call["to"] == to and verb in ("", call["verb"])]


@contextmanager
def lab(folder: Path, *rules: Rule, files: Mapping[str, str] = FILES) -> Iterator[Lab]:
    """Stand-ins that answer at once, with a repository of these files."""
    repository = folder / "repository"
    for name, text in files.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(text, encoding="utf-8")
    world = World(Faults(list(rules)), lambda _: None, latency=0.0)
    try:
        world.start(repository if "requirements.txt" in files else None)
        yield Lab(world, repository)
    finally:
        world.stop()


def vm_of(run: Run) -> Instance:
    """Bring the run's VM up."""
    with bring_up(run, plan_lifetime(run)) as instance:
        return instance


def end_vm(cloud: Cloud, name: str, zone: str) -> None:
    """Delete a VM and wait until nothing is left of it."""
    cloud.delete_instance(name, zone)
    assert poll(SystemClock(), lambda: cloud.get(name, zone) is None or None, seconds=60, every=0.05)
