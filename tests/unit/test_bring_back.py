"""What detached trainings have left comes home: once, whole, whatever was killed in between."""

from __future__ import annotations

import errno
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

import glgpu.steps.bring_back as steps
from fakes import FakeBucket, Stage, make_stage, refusal
from glgpu.elsewhere import Part, read_elsewhere
from glgpu.errors import ErrorClass, Failure
from glgpu.run_names import RunName
from glgpu.saved import ENDED, HANDED_OVER, PROBE, collected_mark
from glgpu.stages.cleanup import cleanup
from glgpu.stages.collect import collect
from glgpu.steps.bring_back import bring_back
from glgpu.steps.context import Run

WEIGHTS = {"weights/a": b"aaa", "weights/b c": b"", "checkpoints/last": b"step 9"}


BUCKET = "team-glgpu"


@pytest.fixture(params=["packages", "bucket"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    """A scheduled job, in a project whose VMs leave what they have there."""
    made = make_stage(tmp_path)
    made.set(storage={"bucket": BUCKET} if request.param == "bucket" else {})
    return made


def home(stage: Stage) -> FakeBucket:
    """Where VMs leave it."""
    return stage.buckets.setdefault(BUCKET, FakeBucket(f"the bucket {BUCKET}")) if bucket(stage) else stage.forge


def bucket(stage: Stage) -> bool:
    return stage.run.settings.storage.bucket is not None


def leave(stage: Stage, name: str, data: bytes) -> Part:
    part = Part(name, len(data), hashlib.sha256(data).hexdigest())
    home(stage).put_part(stage.run.name, part, io.BytesIO(data))
    return part


def hand_over(stage: Stage, status: str = "TERMINATED", hours: float = 1) -> None:
    """A VM that was handed its training; of its run there are state, key and token."""
    labels = stage.vm().labels | {"glgpu-until": "deadline"}
    if status:
        stage.cloud.insert(stage.vm(status=status, labels=labels))
    stage.forge.tokens.append((stage.name, 0.0))
    stage.forge.add_deploy_key(stage.name, "ssh-ed25519 KEY", 0.0)
    leave(stage, HANDED_OVER, json.dumps({"hard_end": stage.clock.now() + hours * 3600}).encode())


def saved(
    stage: Stage,
    files: Mapping[str, bytes],
    *,
    number: int = 1,
    what: str = "all",
    reason: str = "ended",
    code: int = 0,
    killed: bool = False,
    piece: int = 4,
    log: bytes = b"epoch 1\nthe end\n",
) -> None:
    """What a VM saves: all files in one bundle, the log in another, the manifest last."""
    state = json.dumps({"ExitCode": code, "OOMKilled": killed})
    lines = ["glgpu-save 1", f"what {what}", f"reason {reason}", f"state {state}"]
    for index, bundle in enumerate(({**files}, {"glgpu/train.log": log})):
        lines += ["bundle"] if bundle else []
        lines += [f"file {len(data)} {hashlib.sha256(data).hexdigest()}  ./{name}" for name, data in bundle.items()]
        whole = b"".join(bundle.values())
        for begin in range(0, len(whole), piece):
            part = leave(stage, f"save-{number}-{index}-{begin // piece + 1}", whole[begin : begin + piece])
            lines.append(f"part {part.name} {part.size} {part.sha256}")
    leave(stage, f"save-{number}.manifest", "\n".join([*lines, ""]).encode())


def brought_back(stage: Stage) -> list[Failure]:
    def named(name: RunName) -> Run:
        assert name == stage.run.name
        return stage.run

    return bring_back(stage.run, stage.clock.now, named)


def test_what_was_saved_is_home_verified_and_everything_else_is_gone(stage: Stage) -> None:
    hand_over(stage)
    saved(stage, WEIGHTS)
    stage.forge.artifacts["1001", "train", "outputs/glgpu/run.json"] = json.dumps(
        {"run": stage.name, "events": [{"at": 1.0, "what": "handed-over"}]}
    )
    assert brought_back(stage) == []
    outputs = stage.run.outputs
    assert {name: (outputs / name).read_bytes() for name in WEIGHTS} == WEIGHTS
    assert (outputs / "glgpu/train.log").read_bytes() == b"epoch 1\nthe end\n"
    assert len((outputs / "glgpu/SHA256SUMS").read_text().splitlines()) == 3
    assert (stage.cloud.find(stage.name), stage.forge.tokens, stage.forge.keys) == ([], [], [])
    assert [stage.events()[0], *stage.events()[-2:]] == ["handed-over", "deploy-token-removed", "proof"]
    assert collected_mark("5") in home(stage).parts(stage.run.name)
    assert "  the end" in stage.log


def test_a_training_that_goes_on_is_left_alone(stage: Stage) -> None:
    hand_over(stage, "RUNNING")
    assert brought_back(stage) == []
    assert "its training goes on" in stage.log
    assert [vm.status for vm in stage.cloud.find(stage.name)] == ["RUNNING"]
    # One that has saved its checkpoints is about to save the rest.
    saved(stage, {"checkpoints/last": b"1"}, what="checkpoints", reason="preempted")
    assert brought_back(stage) == []
    assert [vm.status for vm in stage.cloud.find(stage.name)] == ["RUNNING"]


def test_a_run_that_its_pipeline_still_sees_to_is_none_of_ours(stage: Stage) -> None:
    stage.cloud.insert(stage.vm())
    leave(stage, PROBE, b"here")
    leave(stage, HANDED_OVER, b"{}")
    saved(stage, WEIGHTS)
    assert brought_back(stage) == []
    assert [vm.status for vm in stage.cloud.find(stage.name)] == ["RUNNING"]
    assert PROBE in home(stage).parts(stage.run.name)


@pytest.mark.parametrize(
    ("facts", "files", "klass"),
    [
        ({"code": 3}, WEIGHTS, ErrorClass.TRAINING_FAILED),
        ({"code": 137, "killed": True}, WEIGHTS, ErrorClass.OOM),
        ({"reason": "deadline", "code": 143}, WEIGHTS, ErrorClass.OUT_OF_TIME),
        ({"reason": "preempted", "code": 143}, WEIGHTS, ErrorClass.PREEMPTED),
        ({}, {}, ErrorClass.NO_WEIGHTS),
    ],
)
def test_a_training_that_went_wrong_is_told_of_and_still_comes_home(
    stage: Stage, facts: dict[str, Any], files: dict[str, bytes], klass: ErrorClass
) -> None:
    hand_over(stage)
    saved(stage, files, **facts)
    (failure,) = brought_back(stage)
    assert failure.klass is klass
    assert all((stage.run.outputs / name).is_file() for name in files)
    assert stage.cloud.find(stage.name) == []
    assert stage.events()[-1] == "failed"


def test_the_newest_whole_save_counts_and_without_one_the_checkpoints(stage: Stage) -> None:
    hand_over(stage, "")
    saved(stage, {"checkpoints/last": b"old"}, what="checkpoints", reason="preempted", code=143)
    leave(stage, "save-2-0-1", b"half")
    (failure,) = brought_back(stage)
    assert failure.klass is ErrorClass.PREEMPTED
    assert (stage.run.outputs / "checkpoints/last").read_bytes() == b"old"
    home(stage).kept = {key: value for key, value in home(stage).kept.items() if "collected" not in key[1]}
    saved(stage, WEIGHTS, number=3, reason="preempted", code=143)
    brought_back(stage)
    assert (stage.run.outputs / "checkpoints/last").read_bytes() == b"step 9"


@pytest.mark.parametrize(("hours", "klass"), [(1, ErrorClass.PREEMPTED), (-1, ErrorClass.OUT_OF_TIME)])
def test_a_vm_that_is_gone_without_a_word_is_told_of_with_its_class(
    stage: Stage, hours: float, klass: ErrorClass
) -> None:
    hand_over(stage, "", hours)
    (failure,) = brought_back(stage)
    assert failure.klass is klass
    assert stage.forge.tokens == []
    stage.forge.job_ends["5"] = "kept"
    assert brought_back(stage) == []
    assert home(stage).kept == {}


def test_a_vm_that_is_off_and_has_saved_nothing_keeps_its_disk(stage: Stage) -> None:
    hand_over(stage)
    (failure,) = brought_back(stage)
    assert failure.klass is ErrorClass.PREEMPTED
    assert f"gcloud compute instances start {stage.name}" in failure.remedy
    assert [vm.status for vm in stage.cloud.find(stage.name)] == ["TERMINATED"]


def test_a_run_that_somebody_has_ended_is_waited_for_no_longer(stage: Stage) -> None:
    hand_over(stage, "")
    leave(stage, ENDED, b"by job 9")
    assert brought_back(stage) == []
    assert home(stage).kept == {}


@pytest.mark.parametrize(("ended", "again"), [("kept", False), ("none", True), ("unfinished", False)])
def test_the_vms_copy_goes_only_once_gitlab_has_the_artifacts(
    stage: Stage, ended: Literal["unfinished", "none", "kept"], again: bool
) -> None:
    hand_over(stage)
    saved(stage, WEIGHTS)
    assert brought_back(stage) == []
    (stage.run.outputs / "weights/a").unlink()
    stage.forge.job_ends["5"] = ended
    assert brought_back(stage) == []
    assert (stage.run.outputs / "weights/a").is_file() is again
    assert (home(stage).kept == {}) is (ended == "kept")


@pytest.mark.parametrize("verb", ["get_part", "delete_instance", "put_part", "remove_deploy_tokens"])
def test_a_collection_that_is_cut_short_is_made_whole_by_the_next(stage: Stage, verb: str) -> None:
    hand_over(stage)
    saved(stage, WEIGHTS)
    where = {"delete_instance": stage.cloud, "remove_deploy_tokens": stage.forge}.get(verb, home(stage))
    where.refuse[verb] = refusal(ErrorClass.INTERRUPTED)
    assert brought_back(stage)
    del where.refuse[verb]
    home(stage).kept = {key: value for key, value in home(stage).kept.items() if "collected" not in key[1]}
    assert brought_back(stage) == []
    assert {name: (stage.run.outputs / name).read_bytes() for name in WEIGHTS} == WEIGHTS
    assert (stage.cloud.find(stage.name), stage.forge.tokens) == ([], [])


def test_bytes_that_changed_on_the_way_are_never_taken_for_weights(stage: Stage) -> None:
    hand_over(stage)
    saved(stage, WEIGHTS)
    part, _ = home(stage).kept[stage.name, "save-1-0-1"]
    home(stage).kept[stage.name, "save-1-0-1"] = part, b"xxxx"
    (failure,) = brought_back(stage)
    assert failure.retry
    assert [vm.status for vm in stage.cloud.find(stage.name)] == ["TERMINATED"]
    assert not (stage.run.outputs / "weights/a").exists()


def test_of_a_log_without_line_ends_no_more_than_its_end_is_shown(stage: Stage) -> None:
    hand_over(stage)
    saved(stage, WEIGHTS, log=b"x" * 100_000 + b"the end", piece=50_000)
    assert brought_back(stage) == []
    shown = max(stage.log.splitlines(), key=len)
    assert shown.endswith("xthe end")
    assert len(shown) < 25_000


def test_a_disk_that_fills_up_as_files_are_parted_is_said_and_the_vms_copy_stays(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_over(stage)
    saved(stage, WEIGHTS)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(steps, "split", full)
    assert [one.klass for one in brought_back(stage)] == [ErrorClass.DISK_FULL]
    monkeypatch.undo()
    assert brought_back(stage) == []
    assert (stage.run.outputs / "weights/a").read_bytes() == b"aaa"


def test_a_name_that_leads_out_of_the_outputs_is_refused(stage: Stage) -> None:
    hand_over(stage)
    saved(stage, {"../../escape": b"xxxx"})
    assert brought_back(stage)
    assert not (stage.run.outputs.parent.parent / "escape").exists()


def test_what_is_too_big_for_artifacts_stays_with_a_link_and_is_never_removed(stage: Stage) -> None:
    stage.set(storage={"artifact_mb": 1})
    hand_over(stage)
    saved(stage, {"weights/a": bytes(2 << 20)}, piece=1 << 20)
    assert brought_back(stage) == []
    outputs = stage.run.outputs
    assert not (outputs / "weights/a").exists()
    assert (outputs / "glgpu/train.log").is_file()
    note = read_elsewhere((outputs / "glgpu/elsewhere.json").read_bytes())
    assert [file.path for file in note.files] == ["weights/a"]
    stage.forge.job_ends["5"] = "kept"
    assert brought_back(stage) == []
    kept = {name for _, name in home(stage).kept}
    assert kept == {"elsewhere-5.json", *(part.name for bundle in note.bundles for part in bundle.parts)}
    # Nor by any later schedule.
    assert brought_back(stage) == []
    assert {name for _, name in home(stage).kept} == kept
    links = json.loads((stage.run.artifacts / "glgpu/annotations.json").read_bytes())["glgpu"]
    assert any("too big" in one["external_link"]["label"] for one in links)


def test_beside_a_note_of_another_version_nothing_is_removed(stage: Stage) -> None:
    leave(stage, "elsewhere-4.json", b'{"schema_version": 2}')
    leave(stage, "save-1-0-1", b"weights")
    assert brought_back(stage) == []
    assert {name for _, name in home(stage).kept} == {"elsewhere-4.json", "save-1-0-1"}
    assert "elsewhere-4.json of" in stage.log


def test_collect_and_cleanup_end_as_the_training_did_and_cleanup_cleans_up_first(stage: Stage) -> None:
    hand_over(stage)
    saved(stage, WEIGHTS, code=3)
    with pytest.raises(Failure) as caught:
        collect(stage.run, stage.clock.now, lambda _name: stage.run)
    assert caught.value.exit_code == 20
    hand_over(stage)
    home(stage).kept = {key: value for key, value in home(stage).kept.items() if "collected" not in key[1]}
    with pytest.raises(Failure) as caught:
        cleanup(stage.run, stage.clock.now, lambda _name: stage.run)
    assert caught.value.exit_code == 20
    assert "cleaned-up" in stage.events()


def test_without_a_token_nothing_is_collected_and_that_is_said(stage: Stage) -> None:
    hand_over(stage)
    stage.forge.may_administer = False
    (vm,) = stage.cloud.find(stage.name)
    stage.cloud.change(vm.name, vm.zone, metadata={})
    stage.set(storage={"bucket": None})
    assert brought_back(stage) == []
    assert "detached trainings, if there are any, are not collected" in stage.log
    assert [vm.status for vm in stage.cloud.find(stage.name)] == ["TERMINATED"]


def test_a_bucket_takes_no_token_and_keeps_what_nobody_sees_to_be_artifacts(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    stage.set(storage={"bucket": BUCKET})
    stage.forge.may_administer = False
    hand_over(stage)
    saved(stage, WEIGHTS)
    assert brought_back(stage) == []
    assert {name: (stage.run.outputs / name).read_bytes() for name in WEIGHTS} == WEIGHTS
    assert not (stage.run.outputs / "glgpu/elsewhere.json").exists()
    assert stage.cloud.find(stage.name) == []
    note = read_elsewhere(home(stage).kept[stage.name, "elsewhere-5.json"][1])
    assert {file.path for file in note.files} == {*WEIGHTS, "glgpu/train.log"}
    assert (note.store, note.bucket) == ("bucket", BUCKET)
    for _ in range(2):
        assert brought_back(stage) == []
        left = {name for _, name in home(stage).kept}
        assert left == {"elsewhere-5.json", *(part.name for bundle in note.bundles for part in bundle.parts)}
    assert stage.log.count("takes GLGPU_GITLAB_TOKEN to see") == 1
    assert "job_artifacts" not in stage.forge.verbs()


def test_a_schedule_that_knows_no_bucket_learns_it_from_the_vm(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    stage.set(storage={"bucket": BUCKET})
    hand_over(stage)
    saved(stage, WEIGHTS)
    stage.set(storage={"bucket": None})
    assert brought_back(stage) == []
    assert (stage.run.outputs / "weights/a").read_bytes() == b"aaa"
    assert collected_mark("5") in stage.buckets[BUCKET].parts(stage.run.name)


def test_a_place_that_cannot_be_seen_keeps_no_other_one_from_being_looked_at(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    stage.set(storage={"bucket": BUCKET})
    hand_over(stage, "")
    saved(stage, WEIGHTS)
    stage.forge.refuse["runs_with_parts"] = refusal(ErrorClass.GITLAB, "the registry is turned off")
    assert brought_back(stage) == []
    assert "in the project's package registry cannot be seen: the registry is turned off" in stage.log
    assert (stage.run.outputs / "weights/a").read_bytes() == b"aaa"


@pytest.mark.parametrize("status", ["", "TERMINATED"])
def test_a_gitlab_that_does_not_tell_is_a_failure_only_where_a_detached_vm_waits(stage: Stage, status: str) -> None:
    hand_over(stage, status)
    saved(stage, WEIGHTS)
    home(stage).refuse["runs_with_parts"] = refusal(ErrorClass.GITLAB_AUTH, "GitLab answers 401")
    assert len(brought_back(stage)) == bool(status)
    assert "GitLab answers 401" in stage.log
    assert [vm.status for vm in stage.cloud.find(stage.name)] == [status] * bool(status)
