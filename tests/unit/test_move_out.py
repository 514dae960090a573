"""What GitLab would not take as artifacts goes elsewhere before the job ends, and is there, or the job is not green."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from typing import Any

import pytest

from fakes import Entry, FakeForge, Stage, refusal
from glgpu.elsewhere import read_elsewhere
from glgpu.errors import ErrorClass, Failure
from glgpu.stages.train import train
from glgpu.steps import move_out as module
from glgpu.steps.annotate import begin_annotations
from glgpu.steps.collect import collect
from glgpu.steps.move_out import move_out
from glgpu.steps.rescue import rescue
from glgpu.steps.sums import read_sums

MB = 1 << 20
BIG = os.urandom(2 * MB)


@pytest.fixture
def full(stage: Stage) -> Stage:
    """A run whose outputs are home, too big for a GitLab that takes 1 MB."""
    stage.set(storage={"artifact_mb": 1})
    stage.machine.files = {"weights/big": Entry(BIG), "weights/small": Entry(b"s" * 100), "weights/none": Entry()}
    collect(stage.run, stage.machine, "/home/glgpu/glgpu", ["weights"])
    return stage


def kept(stage: Stage, store: Any = None) -> dict[str, bytes]:
    return {name: content for (_, name), (_, content) in (store or stage.forge).kept.items()}


def outputs(stage: Stage) -> set[str]:
    return {str(path.relative_to(stage.run.outputs)) for path in (stage.run.outputs).rglob("*") if path.is_file()} - {
        "glgpu/run.json",
        "glgpu/SHA256SUMS",
    }


def annotations(stage: Stage) -> Any:
    return json.loads((stage.run.outputs / "glgpu/annotations.json").read_bytes())


def test_what_fits_stays_and_nobody_is_asked_about_little(stage: Stage) -> None:
    collect(stage.run, stage.machine, "/home/glgpu/glgpu", ["weights"])
    move_out(stage.run, last_copy=False)
    assert outputs(stage) == {"weights/w.bin"}
    assert stage.forge.calls == []


def test_what_is_too_big_is_kept_by_the_package_registry_and_the_rest_fits(full: Stage) -> None:
    begin_annotations(full.run)
    move_out(full.run, last_copy=False)
    assert outputs(full) == {
        "weights/small", "weights/none", "glgpu/elsewhere.json", "glgpu/annotations.json",
    }  # fmt: skip
    note = read_elsewhere((full.run.outputs / "glgpu/elsewhere.json").read_bytes())
    (file,) = note.files
    assert (file.path, file.size, file.sha256) == ("weights/big", len(BIG), hashlib.sha256(BIG).hexdigest())
    (part,) = note.bundles[0].parts
    stored = kept(full)
    assert stored.pop(part.name) == BIG
    assert stored == {"elsewhere-5.json": note.text()}
    assert (note.run, note.job, note.store, note.bucket) == (full.name, "5", "packages", "")
    assert annotations(full) == {
        "glgpu": [{"external_link": {"label": "1 file (2.0 MB) in the project's package registry", "url": note.page}}]
    }
    assert "outputs-moved" in full.events()
    assert note.page in full.log


def test_sha256sums_speaks_of_what_is_there_alone(full: Stage) -> None:
    assert set(read_sums(full.run.outputs)) == {"weights/big", "weights/small", "weights/none"}
    move_out(full.run, last_copy=False)
    assert set(read_sums(full.run.outputs)) == {"weights/small", "weights/none"}


def test_a_bucket_goes_before_the_registry(full: Stage) -> None:
    full.set(storage={"artifact_mb": 1, "bucket": "team"})
    move_out(full.run, last_copy=False)
    assert BIG in kept(full, full.buckets["team"]).values()
    assert full.forge.kept == {}
    note = read_elsewhere((full.run.outputs / "glgpu/elsewhere.json").read_bytes())
    assert (note.store, note.bucket) == ("bucket", "team")


def test_a_big_file_is_cut_and_small_ones_are_put_together(full: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 700_000)
    for n in range(50):
        (full.run.outputs / f"weights/{n}").write_bytes(bytes([n]) * 100_000)
    move_out(full.run, last_copy=False)
    note = read_elsewhere((full.run.outputs / "glgpu/elsewhere.json").read_bytes())
    stored = kept(full)
    assert len(note.bundles) < 5
    for bundle in note.bundles:
        data = b"".join(stored[part.name] for part in bundle.parts)
        for file in bundle.files:
            assert hashlib.sha256(data[: file.size]).hexdigest() == file.sha256
            data = data[file.size :]
        assert data == b""
    assert len(note.bundles[0].parts) > 2


def test_a_big_log_goes_too_but_record_and_checksums_stay(full: Stage) -> None:
    (full.run.outputs / "glgpu/train.log").write_bytes(b"x" * 3 * MB)
    full.run.record.add("something")
    move_out(full.run, last_copy=False)
    assert not (full.run.outputs / "glgpu/train.log").exists()
    assert (full.run.outputs / "glgpu/run.json").exists()
    note = read_elsewhere((full.run.outputs / "glgpu/elsewhere.json").read_bytes())
    assert [file.path for file in note.files] == ["glgpu/train.log", "weights/big"]


@pytest.mark.parametrize(
    ("server", "told", "size", "goes"),
    [
        ("https://gitlab.example.com", None, 90 * MB, False),
        ("https://gitlab.example.com", None, 110 * MB, True),
        ("https://gitlab.example.com", 500 * MB, 110 * MB, False),
        ("https://gitlab.example.com", 50 * MB, 90 * MB, True),
        ("https://gitlab.com", None, 900 * MB, False),
        ("https://gitlab.com", None, 1100 * MB, True),
        ("https://gitlab.com.example.com", None, 900 * MB, True),
    ],
)
def test_the_limit_is_gitlab_s_own_word_or_the_usual_one(
    stage: Stage, server: str, told: int | None, size: int, goes: bool
) -> None:
    stage.job(server_url=server)
    stage.forge.limit = told
    path = stage.run.outputs / "weights/w"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(size)
    stage.forge.refuse["parts"] = refusal(ErrorClass.GITLAB_AUTH)
    if not goes:
        move_out(stage.run, last_copy=False)
        assert path.exists()
        return
    with pytest.raises(Failure):
        move_out(stage.run, last_copy=False)


def test_on_a_laptop_there_are_no_artifacts(full: Stage) -> None:
    full.job(job_id="")
    move_out(full.run, last_copy=False)
    assert full.forge.kept == {}
    assert (full.run.outputs / "weights/big").exists()


def test_a_part_that_is_there_is_not_sent_again(full: Stage) -> None:
    move_out(full.run, last_copy=False)
    sent = [call for call in full.forge.calls if call[0] == "put_part"]
    collect(full.run, full.machine, "/home/glgpu/glgpu", ["weights"])
    move_out(full.run, last_copy=False)
    again = [call for call in full.forge.calls if call[0] == "put_part"][len(sent) :]
    assert [name for _, name in again] == []
    assert "is there already" in full.log


def test_what_passes_is_tried_again_and_what_arrived_without_an_answer_is_seen(full: Stage) -> None:
    class Flaky(FakeForge):
        tries = 0

        def put_part(self, run: Any, part: Any, data: Any) -> None:
            self.tries += 1
            if self.tries == 1:
                raise refusal(ErrorClass.TRANSIENT, "502")
            super().put_part(run, part, data)
            if self.tries == 2:
                raise refusal(ErrorClass.NETWORK, "the answer was lost")

    forge = Flaky()
    full.use(forge=forge)
    move_out(full.run, last_copy=False)
    assert forge.tries == 3  # lost, arrived unseen, and the note
    assert BIG in kept(full, forge).values()


@pytest.mark.parametrize(
    ("klass", "code", "tries"),
    [(ErrorClass.GITLAB_AUTH, 12, 1), (ErrorClass.GITLAB, 12, 1), (ErrorClass.TRANSIENT, 18, 3)],
)
def test_a_refusal_ends_the_job_and_leaves_the_vm_and_what_fits(
    stage: Stage, klass: ErrorClass, code: int, tries: int
) -> None:
    stage.set(storage={"artifact_mb": 1})
    stage.machine.files = {"weights/big": Entry(BIG), "weights/small": Entry(b"s")}
    stage.cloud.insert(stage.vm())
    stage.forge.refuse["put_part"] = refusal(klass, "no")
    with pytest.raises(Failure) as caught:
        train(stage.run)
    assert caught.value.exit_code == code
    assert stage.forge.verbs().count("put_part") == tries
    assert "gpu-released" not in stage.events()
    assert not stage.machine.home
    assert stage.cloud.vms
    assert set(read_sums(stage.run.outputs)) == {"weights/small"}
    assert not (stage.run.outputs / "weights/big").exists()
    assert not (stage.run.outputs / "glgpu/elsewhere.json").exists()


def test_the_destroy_job_s_rescue_brings_them_home_after_that(stage: Stage) -> None:
    stage.set(storage={"artifact_mb": 1})
    stage.machine.files = {"weights/big": Entry(BIG)}
    stage.cloud.insert(stage.vm())
    stage.forge.refuse["put_part"] = refusal(ErrorClass.GITLAB_AUTH, "no")
    with pytest.raises(Failure):
        train(stage.run)
    stage.forge.refuse.clear()
    rescue(stage.run)
    assert BIG in kept(stage).values()


def test_what_a_job_that_was_cut_off_between_two_vms_has_at_home_is_made_to_fit(full: Stage) -> None:
    """In its after_script there is no VM to save anything from, and the upload is yet to come."""
    rescue(full.run)
    assert not (full.run.outputs / "weights/big").exists()
    assert [part.size for part, _ in full.forge.kept.values()].count(len(BIG)) == 1


def test_the_last_copy_that_nobody_takes_is_put_aside_and_the_rescue_fails(stage: Stage) -> None:
    stage.set(storage={"artifact_mb": 1})
    stage.machine.files = {"weights/big": Entry(BIG), "weights/small": Entry(b"s")}
    stage.machine.container = {"Running": False, "ExitCode": 0, "OOMKilled": False}
    stage.cloud.insert(stage.vm())
    stage.forge.refuse["put_part"] = refusal(ErrorClass.GITLAB_AUTH, "no")
    with pytest.raises(Failure) as caught:
        rescue(stage.run)
    assert caught.value.klass is ErrorClass.GITLAB_AUTH
    aside = stage.run.job.project_dir / "outputs-left-out" / stage.name / "weights/big"
    assert aside.read_bytes() == BIG
    assert set(read_sums(stage.run.outputs)) == {"weights/small"}


def test_a_signal_leaves_everything_where_after_script_finds_it(full: Stage) -> None:
    full.forge.refuse["put_part"] = refusal(ErrorClass.INTERRUPTED, "SIGTERM")
    with pytest.raises(Failure):
        move_out(full.run, last_copy=False)
    assert (full.run.outputs / "weights/big").exists()
    assert "weights/big" in read_sums(full.run.outputs)


def test_a_file_that_the_disk_has_changed_is_no_weight(full: Stage) -> None:
    (full.run.outputs / "weights/big").write_bytes(BIG[:-1] + bytes([BIG[-1] ^ 1]))
    with pytest.raises(Failure) as caught:
        move_out(full.run, last_copy=False)
    assert caught.value.klass is ErrorClass.DISK_FULL
    assert "no longer as it came home" in caught.value.cause
    assert full.forge.kept == {}


def test_several_runs_of_one_job_share_one_archive(full: Stage) -> None:
    other = replace(full.run, outputs=full.run.outputs / "glgpu" / "glgpu-abcdef-42-7-train")
    (other.outputs / "weights").mkdir(parents=True)
    (other.outputs / "weights/w").write_bytes(b"w" * 900_000)
    # Its own 0.9 MB would fit; beside the first one's, which are not its to move, nothing does.
    move_out(other, last_copy=False)
    assert (full.run.outputs / "weights/big").exists()
    assert not (other.outputs / "weights/w").exists()
    assert (other.outputs / "glgpu/elsewhere.json").exists()
