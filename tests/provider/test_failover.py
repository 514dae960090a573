"""glgpu's own way to a VM with the real hashicorp/google provider: stockout, stop, next zone."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from applying import Outside, Provider, Tally
from glgpu.rehearsal.world import GOOGLE_PROJECT
from lab import IMAGE, lab, vm_of

EXHAUSTED, FREE = ["europe-west4-b", "europe-west4-c", "europe-west4-a"], "us-central1-a"
GPU = "nvidia-tesla-t4"
SETTINGS = f"""\
project: {GOOGLE_PROJECT}
machine: {{gpu: [{GPU}], zones: [{", ".join([*EXHAUSTED, FREE])}], spot: never}}
train: {{image: "{IMAGE}", command: python3 train.py, outputs: [weights/]}}
"""


def test_a_stockout_stops_terraform_and_the_next_zone_is_asked(
    tmp_path: Path, provider: Provider, outside: Outside, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(provider.config))
    monkeypatch.setenv("HTTPS_PROXY", outside.address)
    with lab(tmp_path, files={"glgpu.yml": SETTINGS}) as room, tally.over(room.world.calls):
        compute = room.world.compute
        compute.operations.latency = 0.3
        for zone in EXHAUSTED:
            compute.instances.capacity[zone, GPU] = 0
        checkout = tmp_path / "checkout"
        checkout.mkdir()
        (checkout / "glgpu.yml").write_text(SETTINGS, encoding="utf-8")
        run = room.run(checkout, GLGPU_TERRAFORM_MODULE="gpu-vm")
        instance = vm_of(run)
        assert instance.zone == FREE
        for zone in EXHAUSTED:
            assert compute.instances.resources(zone) == compute.instances.disks(zone) == []
        record = json.loads((checkout / "outputs/glgpu/run.json").read_text(encoding="utf-8"))
        events = [event for event in record["events"] if event["what"].startswith("candidate-")]
        failed = [event["facts"] for event in events if event["what"] == "candidate-failed"]
        assert [facts["zone"] for facts in failed] == EXHAUSTED
        assert {facts["failure"] for facts in failed} == {"STOCKOUT"}
        assert "Plugin did not respond" in room.said.getvalue().decode()
        # What it took, for the summary: a machine's speed is no property of the code.
        tried = [event["at"] for event in events if event["what"] == "candidate-tried"]
        answered = [ended(compute.operations.in_scope(f"zones/{zone}")) for zone in EXHAUSTED]
    for facts, answer, following in zip(failed, answered, tried[1:], strict=True):
        exit_seconds, start_seconds = facts["terraform_exit_seconds"], facts["terraform_start_seconds"]
        tally.notes.append(
            f"failover from {facts['zone']}: {following - answer - exit_seconds:.2f} s of our own between Google's answer "
            f"and the next Terraform; Terraform's exit {exit_seconds:.2f} s, its start and plan {start_seconds:.2f} s"
        )


def ended(operations: list[dict[str, Any]]) -> float:
    """When the one failed insert of a zone was over."""
    (insert,) = [one for one in operations if one["operationType"] == "insert"]
    assert insert["error"]
    return datetime.fromisoformat(insert["endTime"]).timestamp()
