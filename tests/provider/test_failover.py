"""glgpu's own way to a VM with the real hashicorp/google provider: stockout, stop, next zone."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from applying import Outside, Provider, Tally
from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.world import GOOGLE_PROJECT
from lab import IMAGE, Lab, lab, vm_of

EXHAUSTED, FREE = ["europe-west4-b", "europe-west4-c", "europe-west4-a"], "us-central1-a"
GPU = "nvidia-tesla-t4"
SETTINGS = f"""\
project: {GOOGLE_PROJECT}
machine: {{gpu: [{GPU}], zones: [{", ".join([*EXHAUSTED, FREE])}], spot: SPOT}}
train: {{image: "{IMAGE}", command: python3 train.py, outputs: [weights/]}}
"""


@pytest.fixture(autouse=True)
def _with_the_provider(provider: Provider, outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(provider.config))
    monkeypatch.setenv("HTTPS_PROXY", outside.address)


def brought_up(room: Lab, folder: Path, spot: str) -> tuple[str, list[dict[str, Any]]]:
    """The zone in which glgpu's own bring-up ends, and what its record says of the candidates."""
    room.world.compute.operations.latency = 0.3
    folder.mkdir()
    (folder / "glgpu.yml").write_text(SETTINGS.replace("SPOT", spot), encoding="utf-8")
    zone = vm_of(room.run(folder, GLGPU_TERRAFORM_MODULE="gpu-vm")).zone
    events = json.loads((folder / "outputs/glgpu/run.json").read_text(encoding="utf-8"))["events"]
    return zone, [event for event in events if event["what"] in ("candidate-tried", "candidate-failed")]


def test_a_stockout_stops_terraform_and_the_next_zone_is_asked(tmp_path: Path, tally: Tally) -> None:
    with lab(tmp_path) as room, tally.over(room.world.calls):
        compute = room.world.compute
        for zone in EXHAUSTED:
            compute.instances.capacity[zone, GPU] = 0
        zone, events = brought_up(room, tmp_path / "checkout", "never")
        assert zone == FREE
        for zone in EXHAUSTED:
            assert compute.instances.resources(zone) == compute.instances.disks(zone) == []
        assert re.search(r"Plugin did not respond|Request cancelled", room.said.getvalue().decode())
        answered = [ended(compute.operations.in_scope(f"zones/{zone}")) for zone in EXHAUSTED]
    failed = [event["facts"] for event in events if event["what"] == "candidate-failed"]
    assert [(facts["zone"], facts["failure"]) for facts in failed] == [(zone, "STOCKOUT") for zone in EXHAUSTED]
    # What it took, for the summary: a machine's speed is no property of the code.
    tried = [event["at"] for event in events if event["what"] == "candidate-tried"]
    for facts, answer, following in zip(failed, answered, tried[1:], strict=True):
        exit_seconds, start_seconds = facts["terraform_exit_seconds"], facts["terraform_start_seconds"]
        tally.notes.append(
            f"failover from {facts['zone']}: {following - answer - exit_seconds:.2f} s of our own between Google's "
            f"answer and the next Terraform; Terraform's exit {exit_seconds:.2f} s, its start and plan "
            f"{start_seconds:.2f} s"
        )


def test_a_vm_that_vanishes_before_it_runs_stops_terraform_and_the_next_zone_is_asked(
    tmp_path: Path, tally: Tally
) -> None:
    with lab(tmp_path, Rule("compute.instances.insert", "vanish", nth=1)) as room, tally.over(room.world.calls):
        zone, events = brought_up(room, tmp_path / "checkout", "only")
        assert zone == EXHAUSTED[1]
        assert room.world.compute.instances.resources(EXHAUSTED[0]) == []
    failed = [event["facts"] for event in events if event["what"] == "candidate-failed"]
    assert [(facts["zone"], facts["failure"]) for facts in failed] == [(EXHAUSTED[0], "PREEMPTED")]


def ended(operations: list[dict[str, Any]]) -> float:
    """When the one failed insert of a zone was over."""
    (insert,) = [one for one in operations if one["operationType"] == "insert"]
    assert insert["error"]
    return datetime.fromisoformat(insert["endTime"]).timestamp()
