"""Candidate by candidate, through the real pipeline: what is tried, what is told, and that nothing stays behind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rehearsing import Rehearsed, rehearse, repository

ZONES = ["europe-west4-a", "europe-west4-b", "europe-west4-c", "europe-west1-b", "us-central1-a"]
SETTINGS = f"""\
machine:
  gpu: [nvidia-l4]
  zones: {ZONES}
train:
  image: registry.example.com/team/train:1
  command: python train.py
  outputs: [weights]
"""
SCARCE = [f"--fault=stockout:{zone}" for zone in ZONES[:3]] + ["--fault=quota-region:europe-west1"]


def events(played: Rehearsed, what: str) -> list[dict[str, Any]]:
    record = json.loads((played.folder / "outputs/glgpu/run.json").read_text(encoding="utf-8"))
    return [event for event in record["events"] if event["what"] == what]


def zones(played: Rehearsed, what: str) -> list[str]:
    return [event["facts"]["zone"] for event in events(played, what)]


def calls(played: Rehearsed, verb: str, end: str) -> list[dict[str, Any]]:
    lines = (Path(played.line("kept: ")) / "calls.jsonl").read_text(encoding="utf-8").splitlines()
    return [call for call in map(json.loads, lines) if call["verb"] == verb and call["target"].endswith(end)]


@pytest.fixture(scope="module")
def fifth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsed]:
    """No capacity in three zones, no quota in the region of the fourth."""
    folder = tmp_path_factory.mktemp("fifth")
    played = rehearse(folder, "--keep", *SCARCE, repository(folder / "team", {"glgpu.yml": SETTINGS}))
    yield played
    shutil.rmtree(folder / "tmp")


def test_the_fifth_candidate_trains(fifth: Rehearsed) -> None:
    assert fifth.code == 0, fifth.text
    assert zones(fifth, "candidate-tried") == ZONES
    assert zones(fifth, "candidate-failed") == ZONES[:4]
    assert zones(fifth, "instance-running") == ZONES[4:]
    assert (fifth.folder / "outputs/weights/w.bin").stat().st_size == 100


def test_the_table_names_every_try_and_its_reason(fifth: Rehearsed) -> None:
    _, _, table = fifth.log("provision").partition("What was tried:\n")
    assert re.match(r"machine +zone +model +outcome +time\n", table), table
    rows = [re.split(r" {2,}", line) for line in table.splitlines()[1:6]]
    scarce, used_up = "STOCKOUT: no capacity", "QUOTA_REGION: PREEMPTIBLE_NVIDIA_L4_GPUS is used up"
    assert [row[:4] for row in rows] == [
        ["1 x nvidia-l4, g2-standard-4", zone, "spot", outcome]
        for zone, outcome in zip(ZONES, [scarce, scarce, scarce, used_up, "runs"], strict=True)
    ]
    assert all(re.fullmatch(r"\d+\.\d s", row[4]) for row in rows)


def test_each_candidate_is_asked_for_once_and_alone(fifth: Rehearsed) -> None:
    inserts = calls(fifth, "POST", "/instances")
    assert [re.sub(".*/zones/|/instances", "", call["target"]) for call in inserts] == ZONES


def test_nothing_is_left_in_the_zones_that_failed(fifth: Rehearsed) -> None:
    fifth.assert_nothing_is_left()


def test_the_record_tells_terraforms_time_and_our_own_apart(fifth: Rehearsed) -> None:
    """How long each may take is measured by ci/test-provider, which prints both."""
    failed = [event["facts"] for event in events(fifth, "candidate-failed")]
    tried = [event["facts"] for event in events(fifth, "candidate-tried")]
    assert all(0 < facts["terraform_start_seconds"] <= facts["seconds"] for facts in failed)
    assert all(facts["terraform_exit_seconds"] >= 0 for facts in failed)
    assert [facts["own_seconds"] >= 0 for facts in tried[1:]] == [True] * 4


def test_inserts_that_succeed_late_leave_nothing_in_the_zones_that_were_given_up(tmp_path: Path) -> None:
    settings = SETTINGS.replace("gpu: [nvidia-l4]", "gpu: [nvidia-l4]\n  spot: never")
    played = rehearse(
        tmp_path, "--fault", "insert-late-success", repository(tmp_path / "team", {"glgpu.yml": settings})
    )
    assert played.code == 0, played.text
    assert zones(played, "instance-running") == [ZONES[2]]
    assert zones(played, "left-over-deleted") == ZONES[:2]
    first, second = (event["facts"]["status"] for event in events(played, "left-over-deleted"))
    assert first == "PROVISIONING"
    assert second in ("STAGING", "RUNNING"), "of this one nothing is seen before it comes up"
    tried = {event["facts"]["zone"]: event["at"] for event in events(played, "candidate-tried")}
    for deleted, following in zip(events(played, "left-over-deleted"), ZONES[1:3], strict=True):
        assert deleted["at"] <= tried[following], "the next try began before the last one was cleared away"
    played.assert_nothing_is_left()


def test_the_job_that_finds_no_candidate_says_what_was_wrong_with_each(tmp_path: Path) -> None:
    settings = SETTINGS.replace(str(ZONES), str(ZONES[:4])).replace(
        "gpu: [nvidia-l4]", "gpu: [nvidia-l4]\n  spot: only"
    )
    played = rehearse(tmp_path, *SCARCE, repository(tmp_path / "team", {"glgpu.yml": settings}))
    assert played.code == 10, played.text
    assert "no VM in any of 4 candidates: 3 STOCKOUT (no capacity), 1 QUOTA_REGION" in played.log("provision")
    played.assert_nothing_is_left()
