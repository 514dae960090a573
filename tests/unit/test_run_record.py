"""The run record informs, keeps secrets, and stops nobody."""

from __future__ import annotations

import base64
import itertools
import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glgpu import run_record
from glgpu.errors import ErrorClass
from glgpu.masking import Masker
from glgpu.run_record import RunRecord, record_schema, write_atomically

RUN = "glgpu-abcdef-1-77-train"
JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


class Ticking:
    def __init__(self, start: float = 1763930000.0) -> None:
        self.time = start

    def now(self) -> float:
        self.time += 1
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def record(path: Path, job: str = "1", *, run: str = RUN, start: float = 1763930000.0, secret: str = "") -> RunRecord:
    masker = Masker()
    masker.add(secret)
    return RunRecord(path, run, job, Ticking(start), masker)


def events(of: RunRecord) -> list[tuple[float, str, str]]:
    return [(event.at, event.job, event.what) for event in of.events]


def test_each_event_is_on_the_disk_as_soon_as_it_is_added(tmp_path: Path) -> None:
    path = tmp_path / "outputs/glgpu/run.json"
    one = record(path)
    for what in ("candidate-tried", "vm-ready"):
        one.add(what, zone="europe-west1-b")
        written = json.loads(path.read_text())
        assert written["run"] == RUN
        assert written["events"][-1]["what"] == what
        jsonschema.validate(written, record_schema())
    assert [entry.name for entry in path.parent.iterdir()] == ["run.json"]


def test_a_later_job_goes_on_where_the_earlier_one_stopped(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    record(path, "1").add("vm-ready", gpus=1)
    later = record(path, "2", start=1763931000)
    later.add("vm-claimed")
    later.add("vm-ready", gpus=2)
    assert [event.job for event in later.events] == ["1", "2", "2"]
    found = later.find("vm-ready")
    assert found is not None
    assert found.facts == {"gpus": 2}
    assert later.find("never") is None


@given(lengths=st.lists(st.integers(0, 4), min_size=2, max_size=3), starts=st.lists(st.integers(0, 3), min_size=3))
def test_merging_knows_neither_order_nor_repetition(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], starts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("records")
    snapshots: list[bytes] = []
    for job, (length, start) in enumerate(zip(lengths, starts, strict=False)):
        path = folder / f"{job}.json"
        writer = record(path, str(job), start=float(start))
        for number in range(length):
            writer.add(f"event-{number}", secret="hunter2", number=number)
            snapshots.append(path.read_bytes())
    results = []
    for order in itertools.islice(itertools.permutations(snapshots), 24):
        merged = record(folder / "none.json")
        for text in [*order, *order]:
            merged.merge(text)
        results.append(events(merged))
    assert all(result == results[0] for result in results)
    if results:
        assert len(results[0]) == sum(lengths[: len(starts)])
        assert results[0] == sorted(results[0])


def test_events_of_one_millisecond_keep_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    class Frozen(Ticking):
        def now(self) -> float:
            return 5.0

    one = RunRecord(tmp_path / "run.json", RUN, "1", Frozen(), Masker())
    for what in ("b", "a", "c"):
        one.add(what)
    again = record(tmp_path / "run.json")
    assert [event.what for event in again.events] == ["b", "a", "c"]


def test_merging_ones_own_record_adds_nothing_not_even_when_it_held_a_secret(tmp_path: Path) -> None:
    one = record(tmp_path / "run.json", secret="hunter2")
    one.add("failed", cause="hunter2 refused")
    one.merge((tmp_path / "run.json").read_bytes())
    assert len(one.events) == 1


@pytest.mark.parametrize(
    "torn",
    [
        *(b"", b"{", b"null", b"[]", b"\xff\xfe\x00", b"[" * 99999, b'{"run": "\xc3'),
        b'{"run": "%b", "events": [{"at": 1, "wh' % RUN.encode(),
        b'{"run": "%b", "events": [{"at": NaN, "what": "x"}]}' % RUN.encode(),
        b'{"schema_version": 2, "run": "%b", "events": [{"at": 1, "what": "x"}]}' % RUN.encode(),
    ],
)
def test_a_torn_record_counts_as_none(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(torn)
    one = record(path)
    assert one.events == []
    one.add("vm-ready")
    assert len(json.loads(path.read_text())["events"]) == 1


def test_another_runs_record_is_passed_over(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.json"
    record(foreign, run="glgpu-abcdef-1-78-train").add("vm-ready")
    assert record(foreign).events == []


def test_no_secret_is_written_wherever_it_stands(tmp_path: Path) -> None:
    secret = 'hunt"er2\nsecond line'
    one = record(tmp_path / "run.json", secret=secret)
    encoded = base64.b64encode(secret.encode()).decode()
    quoted = json.dumps(secret)
    one.add("failed", cause=f"<{secret}>", more=[{"deep": quoted}], several=(secret,), key={secret: encoded})
    text = (tmp_path / "run.json").read_text()
    for part in ('hunt"er2', 'hunt\\"er2', "second line", encoded):
        assert part not in text
    assert one.events[0].facts["cause"] == "<[MASKED]>"


def test_a_secret_of_digits_does_not_tear_the_record(tmp_path: Path) -> None:
    one = record(tmp_path / "run.json", secret="1763930001")
    one.add("failed", cause="pin 1763930001")
    written = json.loads((tmp_path / "run.json").read_text())
    assert written["events"][0]["at"] == 1763930001
    assert written["events"][0]["facts"] == {"cause": "pin [MASKED]"}


@given(value=JSON_VALUE)
def test_whatever_a_fact_is_it_is_written_and_read_again(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("facts") / "run.json"
    one = record(path)
    one.add("fact", value=value, path=Path("/x"), klass=ErrorClass.SSH, endless=math.inf, several=(1, "\ud800"))
    assert record(path).events == one.events
    json.loads(path.read_text(), parse_constant=pytest.fail)


def test_a_text_without_end_is_cut_behind_its_secrets(tmp_path: Path) -> None:
    one = record(tmp_path / "run.json", secret="hunter2hunter2")
    one.add("failed", cause="x" * (run_record.LONGEST_TEXT - 5) + "hunter2hunter2" + "y" * 10**6)
    assert one.events[0].facts["cause"] == "x" * (run_record.LONGEST_TEXT - 5) + "[MASK"


def test_a_full_disk_costs_the_record_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_record, "write_atomically", full)
    one = record(tmp_path / "run.json")
    one.add("vm-ready")
    assert len(one.events) == 1


def test_a_folder_in_the_records_place_costs_the_record_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "run.json", tmp_path / "file/run.json"):
        one = record(path)
        one.add("vm-ready")
        assert [event.what for event in one.events] == ["vm-ready"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "run.json"]


def test_who_reads_a_file_while_it_is_written_anew_reads_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "deeper/run.json"
    write_atomically(path, b"old and whole")
    with path.open("rb") as reader:
        write_atomically(path, b"new")
        assert reader.read() == b"old and whole"
    assert path.read_bytes() == b"new"


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, b"old")

    def torn(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
