"""Every fault of the table: its end, its class, its cause and remedy, and who clears up afterwards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from glgpu.processes import run
from glgpu.rehearsal.fault_catalogue import FAULTS, LIMIT_REACHED, Fault, named
from rehearsing import GLGPU, rehearse

pytestmark = pytest.mark.timeout(600)  # a network may be away for five minutes
PLAYED = [
    (f"{fault.name}:{stage}" if stage else fault.name, fault.at(stage) if stage else fault)
    for fault in FAULTS
    for stage in fault.stages or [""]
]
"""What each is called by, and what it is: one that strikes a stage is played in every stage."""
QUICK = {fault.exit_code: name for name, fault in reversed(PLAYED) if fault.exit_code not in (0, LIMIT_REACHED)}
"""The first of each exit code of ours but 0, which other tests end with; the others are played by ci/test-faults."""


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param(name, fault, id=name, marks=[] if QUICK.get(fault.exit_code) == name else pytest.mark.every_fault)
        for name, fault in PLAYED
    ],
)
def test_a_fault_ends_as_the_table_says(name: str, fault: Fault, tmp_path: Path) -> None:
    played = rehearse(tmp_path, "--fault", name)
    assert played.code == fault.exit_code, played.text
    assert fault.shows in played.text
    if fault.error_class:
        end = rf"^glgpu: {fault.error_class} \(exit code {fault.exit_code}\): \S.*\nglgpu: remedy: \S.*$"
        assert re.search(end, played.text, re.MULTILINE), played.text
    assert "Traceback" not in played.text
    assert "glgpu: BUG" not in played.text
    layers = re.findall(r"^== Afterwards: (\S+); there still: (.*)$", played.text, re.MULTILINE)
    assert [layer for layer, _ in layers] == [after.layer for after in fault.afterwards]
    for (_, finds), after in zip(layers, fault.afterwards, strict=True):
        assert after.finds is None or finds == (", ".join(after.finds) or "nothing")
    ends = re.findall(r"^   \S+: exit code (\S+), expected (\S+)$", played.text, re.MULTILINE)
    assert len(ends) == sum(after.exit_code is not None for after in fault.afterwards)
    assert all(got == expected for got, expected in ends), played.text
    if fault.during:
        kept = (tmp_path / "work/outputs/glgpu/train.log").read_text(encoding="utf-8").splitlines()
        assert kept == [f"step {number}" for number in range(len(kept))]
        assert len(kept) in (60, 600)
        assert [line for line in played.text.splitlines() if re.fullmatch(r"step \d+", line)] == kept
    played.assert_nothing_is_left()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_list_names_every_fault_with_its_exit_code_and_the_layers_that_act_after_it() -> None:
    listed = json.loads(run([str(GLGPU), "rehearse", "--list-faults", "--json"]).text)
    assert [(one["name"], one["exit_code"], one["class"]) for one in listed] == [
        (fault.form, fault.exit_code, fault.error_class) for fault in FAULTS
    ]
    (refused,) = [one for one in listed if one["name"] == "delete-refused"]
    assert [(after["layer"], after["exit_code"]) for after in refused["afterwards"]] == [
        ("destroy", 30), ("stop", 30), ("hard-end", None), ("destroy", 0),
    ]  # fmt: skip
    table = run([str(GLGPU), "rehearse", "--list-faults"]).text
    for fault in FAULTS:
        codes = ", ".join(rf"{fault.at(stage).exit_code} \({stage}\)" for stage in fault.stages) or fault.exit_code
        assert re.search(rf"^{fault.form} +{codes} ", table, re.MULTILINE), fault.form


@pytest.mark.parametrize("name", ["bad-luck", "stockout:nowhere", "quota-region:europe-west4-a", "train-fails:x"])
def test_an_unknown_fault_or_place_is_refused_before_anything_starts(tmp_path: Path, name: str) -> None:
    played = rehearse(tmp_path, "--fault", name)
    assert played.code == 2
    assert f"there is no fault '{name}'" in played.text
    assert "known: train-fails, " in played.text
    assert "==" not in played.text


def test_a_fault_may_be_given_a_place_or_left_to_its_example() -> None:
    elsewhere, example, as_listed = (named(name) for name in ("stockout:us-east1-b", "stockout", "stockout:ZONE"))
    assert elsewhere is not None
    assert [rule.where for rule in elsewhere.rules] == ["us-east1-b"]
    assert example is not None
    assert [rule.where for rule in example.rules] == [example.example]
    assert as_listed == example


@pytest.mark.every_fault
def test_two_faults_at_once_end_with_the_first_failing_job(tmp_path: Path) -> None:
    played = rehearse(tmp_path, "--fault", "api-disabled", "--fault", "image-pull-denied")
    assert played.code == 15, played.text
