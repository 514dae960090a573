"""The cancelled job's way with real clients: cloud credentials alone, and never longer than it may take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from glgpu.rehearsal.faults import Rule
from glgpu.steps import tear_down
from lab import SETTINGS, Lab, end_vm, lab, vm_of

LOST = 30.0
"""Seconds after which a client gives up a call that stays without an answer."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.mark.parametrize("point", ["compute.firewalls.get", "compute.instances.setMetadata"])
def test_a_google_that_does_not_answer_costs_a_cancelled_job_no_more_than_its_time(
    world: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(tear_down, "CANCEL_SAVE_SECONDS", 5.0)
    (tmp_path / "glgpu.yml").write_text(SETTINGS)
    run = world.run(tmp_path, GLGPU_STATE="local", CI_JOB_STATUS="canceled")
    vm_of(run)
    forge, begun = len(world.requests("gitlab")), time.monotonic()
    world.world.faults.rules.append(Rule(point, "silence"))
    try:
        tear_down.cut_short(run)
    finally:
        world.world.faults.lift(point)
    assert time.monotonic() - begun < LOST
    assert "not all of it was saved within 5 s" in world.said.getvalue().decode()
    assert len(world.requests("gitlab")) == forge
    end_vm(run.cloud, str(run.name), "europe-west4-a")
    assert run.cloud.find(str(run.name)) == []
