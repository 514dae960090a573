"""Everything of a run in one folder again: joined, checked, gone on with, and nothing written anywhere else."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes import Entry, FakeBucket, Stage, make_stage, refusal
from glgpu.console import Console
from glgpu.elsewhere import Bundle, Elsewhere, MovedFile, Part, read_elsewhere
from glgpu.errors import ErrorClass, Failure
from glgpu.masking import Masker
from glgpu.run_names import RunName
from glgpu.run_record import RunRecord
from glgpu.saved import HANDED_OVER
from glgpu.stages.fetch import Origin, fetch
from glgpu.steps import move_out as module
from glgpu.steps.bring_back import bring_back
from glgpu.steps.bring_together import run_in
from glgpu.steps.collect import collect
from glgpu.steps.move_out import move_out
from glgpu.steps.sums import read_sums

BIG = os.urandom(5_000_000)
FILES = {"weights/big": BIG, "weights/a": b"a" * 200_000, "weights/ünï": b"small", "weights/b": b"b" * 300_000}


def archive(folder: Path, extra: dict[str, bytes] | None = None, links: dict[str, str] | None = None) -> bytes:
    """What the Runner makes of outputs/."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for path in sorted(folder.rglob("*")):
            made.write(path, f"outputs/{path.relative_to(folder)}")
        for name, data in (extra or {}).items():
            made.writestr(name, data)
        for name, target in (links or {}).items():
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            made.writestr(entry, target)
    return buffer.getvalue()


@pytest.fixture
def trained(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A run whose train job has moved out what was too big, and left the rest as artifacts."""
    monkeypatch.setattr(module, "PART_BYTES", 1_500_000)
    stage.set(storage={"artifact_mb": 1})
    stage.machine.files = {name: Entry(data) for name, data in FILES.items()}
    collect(stage.run, stage.machine, "/home/glgpu/glgpu", ["weights"])
    stage.run.record.add("trained")
    move_out(stage.run, last_copy=False)
    stage.forge.archives["5"] = ("train", archive(stage.run.outputs))
    stage.forge.calls.clear()
    return stage


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "fetched"


def origin(stage: Stage, **changes: Any) -> Origin:
    run = stage.run
    return replace(Origin(run.name, run.forge, run.bucket_for, None, run.console, run.clock), **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "glgpu" not in path.relative_to(folder).parts
    }


def got(stage: Stage) -> list[str]:
    return [call[1] for call in stage.forge.calls if call[0] == "get_part"]


def test_everything_is_there_again_joined_and_summed(trained: Stage, to: Path) -> None:
    fetch(origin(trained), to)
    assert contents(to) == FILES
    assert read_sums(to) == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert not (to / ".glgpu-fetch").exists()


def test_what_is_there_is_not_got_again(trained: Stage, to: Path) -> None:
    fetch(origin(trained), to)
    trained.forge.calls.clear()
    fetch(origin(trained), to)
    assert not {"get_part", "get_artifacts"} & set(trained.forge.verbs())
    (to / "weights/big").write_bytes(b"damaged")
    fetch(origin(trained), to)
    assert contents(to) == FILES


def test_it_goes_on_after_a_drop_and_in_a_later_try(trained: Stage, to: Path) -> None:
    trained.forge.get_breaks = [100, None, 700_000, 0, None]  # the archive, then the first part
    fetch(origin(trained), to)
    assert contents(to) == FILES
    begun = [call[1:] for call in trained.forge.calls if call[0] == "get_part"]
    assert begun[1][1] == 700_000

    note = read_elsewhere((to / "glgpu/elsewhere.json").read_bytes())
    parts = note.bundles[0].parts
    (to / "weights/big").unlink()
    trained.forge.calls.clear()
    trained.forge.get_breaks = [None, *[10_000] * 1, *[0] * 20]
    with pytest.raises(Failure) as caught:
        fetch(origin(trained), to)
    assert caught.value.klass is ErrorClass.NETWORK
    trained.forge.get_breaks = []
    trained.forge.calls.clear()
    fetch(origin(trained), to)
    assert contents(to) == FILES
    again = [call[1:] for call in trained.forge.calls if call[0] in ("get_part", "get_artifacts")]
    assert again[0] == (parts[1].name, 10_000)


def test_what_lies_there_from_an_earlier_try_is_believed_only_if_its_checksum_says_so(trained: Stage, to: Path) -> None:
    note = read_elsewhere((trained.run.outputs / "glgpu/elsewhere.json").read_bytes())
    (to / ".glgpu-fetch").mkdir(parents=True)
    (to / ".glgpu-fetch" / note.bundles[0].parts[0].name).write_bytes(b"!" * 2_000_000)
    fetch(origin(trained), to)
    assert contents(to) == FILES


def test_a_part_that_is_damaged_where_it_is_kept_is_never_taken_for_a_weight(trained: Stage, to: Path) -> None:
    note = read_elsewhere((trained.run.outputs / "glgpu/elsewhere.json").read_bytes())
    key = trained.name, note.bundles[0].parts[0].name
    part, data = trained.forge.kept[key]
    trained.forge.kept[key] = part, data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(Failure) as caught:
        fetch(origin(trained), to)
    assert caught.value.klass is ErrorClass.TRANSIENT
    assert "not as its checksum says" in caught.value.cause
    assert not (to / "weights/big").exists()


def test_a_job_finds_the_artifacts_by_the_note_beside_the_parts(trained: Stage, to: Path) -> None:
    trained.forge.may_administer = False
    fetch(origin(trained), to)
    assert contents(to) == FILES
    assert "artifact_jobs" not in trained.forge.verbs()


def test_a_later_job_that_has_the_artifacts_gets_the_rest(trained: Stage) -> None:
    trained.forge.may_administer = False
    fetch(origin(trained), trained.run.outputs)
    assert contents(trained.run.outputs) == FILES
    assert "get_artifacts" not in trained.forge.verbs()


def collected(folder: Path, *, token: bool, bucket: bool, artifact_mb: int = 1) -> Stage:
    """A run that was left to its VM, and that a job of another pipeline has collected."""
    stage = make_stage(folder / "cleanup", CI_PIPELINE_ID="2002", CI_JOB_ID="77")
    stage.set(storage={"artifact_mb": artifact_mb, "bucket": "team" if bucket else None})
    stage.forge.may_administer = token
    home = stage.run.bucket_for("team") if bucket else stage.forge
    name = RunName(stage.run.name.server_url, stage.run.name.project_id, "1001")
    log = {"glgpu/train.log": b"the end\n"}
    lines = ["glgpu-save 1", "what all", "reason ended", 'state {"ExitCode": 0, "OOMKilled": false}']
    for index, (path, data) in enumerate({**FILES, **log}.items()):
        digest = hashlib.sha256(data).hexdigest()
        part = Part(f"save-1-{index}-1-1", len(data), digest)
        home.put_part(name, part, io.BytesIO(data))
        lines += ["bundle", f"file {len(data)} {digest}  ./{path}", f"part {part.name} {part.size} {digest}"]
    for part_name, data in (("save-1.manifest", "\n".join([*lines, ""]).encode()), (HANDED_OVER, b"{}")):
        part = Part(part_name, len(data), hashlib.sha256(data).hexdigest())
        home.put_part(name, part, io.BytesIO(data))
    outputs = stage.run.outputs / "glgpu" / str(name)
    record = RunRecord(outputs / "glgpu/run.json", str(name), "77", stage.clock, stage.run.console.masker)
    own = replace(stage.run, name=name, outputs=outputs, record=record)
    assert bring_back(stage.run, stage.clock.now, lambda _: own) == []
    stage.run.record.add("cleaned-up")
    stage.forge.archives["77"] = ("cleanup", archive(stage.run.outputs))
    stage.use(name=name)
    return stage


@pytest.mark.parametrize("bucket", [False, True])
def test_of_a_run_that_was_left_to_its_vm_what_was_collected_comes_too_and_nothing_of_the_collecting_job(
    bucket: bool, tmp_path: Path, to: Path
) -> None:
    stage = collected(tmp_path, token=True, bucket=bucket)
    for _ in range(2):
        fetch(origin(stage, bucket="team" if bucket else None), to)
        assert contents(to) == FILES
        assert (to / "glgpu/train.log").read_bytes() == b"the end\n"
        assert run_in(to) == stage.name


def test_without_any_token_of_gitlab_s_all_of_it_comes_from_the_bucket(tmp_path: Path, to: Path) -> None:
    stage = collected(tmp_path, token=False, bucket=True, artifact_mb=100)
    stage.forge.refuse["get_artifacts"] = refusal(ErrorClass.GITLAB_AUTH, "there is no token")
    fetch(origin(stage, bucket="team"), to)
    assert contents(to) == FILES
    assert "there is no token; what is in the bucket comes all the same" in stage.log
    stage.forge.refuse["get_artifacts"] = refusal(ErrorClass.NETWORK, "nobody answers")
    with pytest.raises(Failure, match="nobody answers"):
        fetch(origin(stage, bucket="team"), to.with_name("again"))


def test_what_lies_in_a_bucket_comes_from_there(stage: Stage, to: Path) -> None:
    stage.set(storage={"artifact_mb": 1, "bucket": "team"})
    stage.machine.files = {name: Entry(data) for name, data in FILES.items()}
    collect(stage.run, stage.machine, "/home/glgpu/glgpu", ["weights"])
    move_out(stage.run, last_copy=False)
    stage.forge.archives["5"] = ("train", archive(stage.run.outputs))
    fetch(origin(stage), to)  # a laptop whose settings name no bucket
    assert contents(to) == FILES
    stage.forge.may_administer = False
    fetch(origin(stage, bucket="team"), to.with_name("again"))
    assert contents(to.with_name("again")) == FILES


def test_a_laptop_may_know_the_server_by_another_address(trained: Stage, to: Path) -> None:
    name = trained.run.name
    fetch(origin(trained, name=RunName("https://gitlab", name.project_id, name.run, name.kind)), to)
    assert contents(to) == FILES


def test_a_run_of_which_nothing_was_too_big_is_its_artifacts(stage: Stage, to: Path) -> None:
    stage.machine.files = {"weights/w": Entry(b"w")}
    collect(stage.run, stage.machine, "/home/glgpu/glgpu", ["weights"])
    stage.forge.archives["5"] = ("train", archive(stage.run.outputs))
    fetch(origin(stage), to)
    assert contents(to) == {"weights/w": b"w"}


def test_what_destroy_saved_comes_after_what_train_left(stage: Stage, to: Path) -> None:
    stage.forge.archives["6"] = ("destroy", archive(to, {"outputs/weights/w": b"new", "outputs/glgpu/run.json": b"{}"}))
    stage.forge.archives["5"] = ("train", archive(to, {"outputs/weights/w": b"old", "outputs/weights/x": b"x"}))
    fetch(origin(stage), to)
    assert contents(to) == {"weights/w": b"new", "weights/x": b"x"}


@pytest.mark.parametrize(("may", "said"), [(True, "artifacts expire"), (False, "set GLGPU_GITLAB_TOKEN")])
def test_a_run_of_which_nobody_knows_is_said_to_be_unknown(stage: Stage, to: Path, may: bool, said: str) -> None:
    stage.forge.may_administer = may
    with pytest.raises(Failure) as caught:
        fetch(origin(stage), to)
    assert caught.value.klass is ErrorClass.NOT_FOUND
    assert said in caught.value.remedy


def test_a_folder_that_holds_another_run_is_left_alone(trained: Stage, to: Path) -> None:
    (to / "glgpu").mkdir(parents=True)
    (to / "glgpu/run.json").write_text('{"run": "glgpu-abcdef-42-7-train"}')
    with pytest.raises(Failure) as caught:
        fetch(origin(trained), to)
    assert caught.value.klass is ErrorClass.USAGE
    assert contents(to) == {}


def test_json_tells_what_came_from_where(trained: Stage, to: Path) -> None:
    said = io.BytesIO()
    fetch(origin(trained), to, json_to=Console(Masker(), stream=said))
    told = json.loads(said.getvalue())
    assert told["run"] == "1001"
    assert {one["path"]: one["from"] for one in told["files"]}["weights/big"] == "packages"
    assert {one["path"]: one["size"] for one in told["files"]} == {name: len(data) for name, data in FILES.items()}


@pytest.mark.parametrize("path", ["../out", "/tmp/glgpu-out", "weights/../../out", ""])
def test_a_note_that_leads_out_of_the_folder_is_refused(stage: Stage, to: Path, path: str) -> None:
    digest = hashlib.sha256(b"evil").hexdigest()
    bundle = Bundle((MovedFile(path, 4, digest),), (Part("evil", 4, digest),))
    note = Elsewhere(stage.name, "5", "packages", "", "", (bundle,))
    stage.forge.kept[stage.name, "evil"] = Part("evil", 4, digest), b"evil"
    stage.forge.archives["5"] = ("train", archive(to, {"outputs/glgpu/elsewhere.json": note.text()}))
    with pytest.raises(Failure) as caught:
        fetch(origin(stage), to)
    assert caught.value.klass is ErrorClass.CONFIG
    assert not (to.parent / "out").exists()


def test_an_archive_that_leads_out_of_the_folder_leads_nowhere(stage: Stage, to: Path) -> None:
    outside = to.parent / "outside"
    outside.mkdir()
    made = archive(
        to,
        {"outputs/../evil": b"1", "evil": b"2", "outputs/weights/w": b"3", "outputs/trap/x": b"4"},
        {"outputs/away": "../..", "outputs/near": "weights/w"},
    )
    to.mkdir()
    (to / "trap").symlink_to(outside)
    stage.forge.archives["5"] = ("train", made)
    fetch(origin(stage), to)
    assert contents(to) == {"weights/w": b"3", "near": b"3", "trap/x": b"4"}
    assert not (to / "away").exists()
    assert not (to / "trap").is_symlink()
    assert list(outside.iterdir()) == []
    assert sorted(path.name for path in to.parent.iterdir() if "evil" in path.name) == []


@pytest.mark.parametrize("name", ["../out", "/tmp/glgpu-out", "..", "a/b", ""])
def test_a_note_whose_parts_have_no_names_of_ours_is_refused(stage: Stage, to: Path, name: str) -> None:
    digest = hashlib.sha256(b"evil").hexdigest()
    bundle = Bundle((MovedFile("weights/w", 4, digest),), (Part(name, 4, digest),))
    note = Elsewhere(stage.name, "5", "packages", "", "", (bundle,))
    stage.forge.kept[stage.name, name] = Part(name, 4, digest), b"evil"
    stage.forge.archives["5"] = ("train", archive(to, {"outputs/glgpu/elsewhere.json": note.text()}))
    with pytest.raises(Failure) as caught:
        fetch(origin(stage), to)
    assert caught.value.klass is ErrorClass.CONFIG
    assert "get_part" not in stage.forge.verbs()


def test_something_in_the_way_of_what_was_moved_out_is_said(stage: Stage, to: Path) -> None:
    digest = hashlib.sha256(b"data").hexdigest()
    bundle = Bundle((MovedFile("weights/w", 4, digest),), (Part("data", 4, digest),))
    note = Elsewhere(stage.name, "5", "packages", "", "", (bundle,))
    stage.forge.kept[stage.name, "data"] = Part("data", 4, digest), b"data"
    stage.forge.archives["5"] = ("train", archive(to, {"outputs/glgpu/elsewhere.json": note.text()}))
    to.mkdir()
    (to / "weights").write_text("a file, where a folder has to be")
    with pytest.raises(Failure) as caught:
        fetch(origin(stage), to)
    assert caught.value.klass is ErrorClass.DISK_FULL
    assert "weights" in caught.value.cause
    (to / "weights").unlink()
    fetch(origin(stage), to)
    assert contents(to) == {"weights/w": b"data"}


def with_bytes_changed(data: bytes) -> bytes:
    """An archive as long as it was, with a hole in one of its files."""
    with zipfile.ZipFile(io.BytesIO(data)) as made:
        entry = max(made.infolist(), key=lambda one: one.compress_size)
    begin = entry.header_offset + 30 + len(entry.filename.encode())
    return data[:begin] + b"\xff" * 8 + data[begin + 8 :]


@pytest.mark.parametrize("change", [lambda data: data[:-30], lambda _: b"<html>502</html>", with_bytes_changed])
def test_an_archive_that_is_none_is_thrown_away(trained: Stage, to: Path, change: Callable[[bytes], bytes]) -> None:
    stage, good = trained.forge.archives["5"]
    trained.forge.archives["5"] = stage, change(good)
    with pytest.raises(Failure) as caught:
        fetch(origin(trained), to)
    assert caught.value.klass is ErrorClass.TRANSIENT
    trained.forge.archives["5"] = stage, good
    fetch(origin(trained), to)
    assert contents(to) == FILES


def test_a_note_of_a_newer_glgpu_is_not_guessed_at(trained: Stage, to: Path) -> None:
    text = json.dumps({"schema_version": 2}).encode()
    trained.forge.archives["5"] = ("train", archive(to, {"outputs/glgpu/elsewhere.json": text}))
    with pytest.raises(Failure) as caught:
        fetch(origin(trained), to)
    assert caught.value.klass is ErrorClass.CONFIG


def test_a_refusal_is_not_tried_again(trained: Stage, to: Path) -> None:
    trained.forge.refuse["get_part"] = refusal(ErrorClass.GITLAB_AUTH)
    with pytest.raises(Failure) as caught:
        fetch(origin(trained), to)
    assert caught.value.klass is ErrorClass.GITLAB_AUTH
    assert trained.forge.verbs().count("get_part") == 1


def test_an_empty_file_that_was_moved_out_is_made_again(stage: Stage, to: Path) -> None:
    empty = hashlib.sha256(b"").hexdigest()
    note = Elsewhere(stage.name, "5", "packages", "", "", (Bundle((MovedFile("weights/none", 0, empty),), ()),))
    stage.forge.archives["5"] = ("train", archive(to, {"outputs/glgpu/elsewhere.json": note.text()}))
    fetch(origin(stage), to)
    assert contents(to) == {"weights/none": b""}
    assert isinstance(stage.forge, FakeBucket)
