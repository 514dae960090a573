"""A notebook is started: what is refused, what the VM is left with, and what is taken up."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fakes import Stage, done, make_stage, refusal
from glgpu.elsewhere import Bundle, Elsewhere, MovedFile, Part
from glgpu.errors import ErrorClass, Failure
from glgpu.notebook import KIND, WORKSPACE
from glgpu.run_names import RunName
from glgpu.run_record import RunRecord
from glgpu.saved import ENDED, HANDED_OVER, PROBE, collected_mark
from glgpu.stages.notebook_start import start
from glgpu.steps.bring_back import bring_back
from glgpu.steps.bring_up import plan_lifetime
from glgpu.steps.context import Run, starter_of
from glgpu.steps.notebook import saved_work
from glgpu.steps.push_work import ALLOWED

STATE = {"answers": True, "busy": False, "idle_seconds": 0, "soft_end": 2_000_000_000, "saved": None}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """The start job of a pipeline, on a VM where all goes well."""
    made = make_stage(tmp_path)
    made.use(name=replace(made.run.name, kind=KIND))
    made.machine.said |= {"notebook-jupyter": done("own\n"), "notebook-answers": done("yes\n")}
    made.machine.said["notebook-state"] = done(json.dumps(STATE))

    def keep(verb: str) -> None:
        if verb == "probe":
            put(made, made.run.name, PROBE, b"here")

    made.machine.keeps = keep
    return made


def put(stage: Stage, run: RunName, name: str, data: bytes) -> Part:
    part = Part(name, len(data), hashlib.sha256(data).hexdigest())
    stage.forge.put_part(run, part, io.BytesIO(data))
    return part


def work_of(stage: Stage, number: str, text: bytes, *, at: int, user: str, ref: str, ended: bool = True) -> RunName:
    """What a notebook has left; its one file is `mine`."""
    name = replace(stage.run.name, run=number)
    put(stage, name, HANDED_OVER, json.dumps({"user": user, "ref": ref}).encode())
    part = put(stage, name, f"save-{at}-0-1-1", text)
    lines = ["glgpu-save 1", "what all", "reason idle", "state null", "bundle"]
    lines += [
        f"file {part.size} {part.sha256}  ./{WORKSPACE}/./mine",
        f"part {part.name} {part.size} {part.sha256}",
        "",
    ]
    put(stage, name, f"save-{at}.manifest", "\n".join(lines).encode())
    if ended:
        put(stage, name, ENDED, b"by somebody\n")
    return name


def refused(stage: Stage) -> Failure:
    with pytest.raises(Failure) as caught:
        start(stage.run)
    return caught.value


def test_a_notebook_that_does_not_tell_yet_whether_it_is_at_work_is_waited_for(stage: Stage) -> None:
    stage.machine.said["notebook-state"] = done(json.dumps(STATE | {"answers": False}))

    def tell() -> None:
        stage.machine.said["notebook-state"] = done(json.dumps(STATE))

    def look_in_vain() -> None:
        stage.machine.before["notebook-answers"] = tell

    stage.machine.before["notebook-answers"] = look_in_vain
    start(stage.run)
    assert stage.machine.verbs().count("notebook-state") == 2


def test_a_notebook_is_left_to_its_vm_once_it_answers(stage: Stage) -> None:
    start(stage.run)
    (instance,) = stage.cloud.vms.values()
    labels = instance.labels
    assert (labels["glgpu-kind"], labels["glgpu-until"]) == (KIND, "deadline")
    assert stage.clock.now() < int(labels["glgpu-expires"]) < stage.clock.now() + 9 * 3600
    verbs = stage.machine.verbs()
    in_order = ["see-home", "notebook-mark", "start", "notebook-answers", "notebook-until", "leave"]
    assert sorted(in_order, key=verbs.index) == in_order
    note = bytearray()
    stage.forge.get_part(stage.run.name, HANDED_OVER, 0, note.extend)
    assert json.loads(note)["user"] == stage.run.job.user
    assert PROBE not in stage.forge.parts(stage.run.name)
    assert "glgpu notebook open" in stage.log


def test_nothing_is_bought_where_work_could_go_nowhere(stage: Stage) -> None:
    stage.forge.may_administer = False
    failure = refused(stage)
    assert (failure.klass, stage.stacks) == (ErrorClass.CONFIG, [])
    assert "GLGPU_GITLAB_TOKEN" in failure.remedy


def test_a_laptop_starts_none(stage: Stage) -> None:
    stage.use(job=replace(stage.run.job, job_id=""))
    failure = refused(stage)
    assert (failure.klass, stage.stacks) == (ErrorClass.CONFIG, [])
    assert "start the job `start notebook`" in failure.remedy


def test_a_second_user_is_told_whose_it_is_and_the_notebook_stays(stage: Stage) -> None:
    start(stage.run)
    stage.use(job=replace(stage.run.job, user="somebody-else"))
    before = len(stage.machine.verbs())
    failure = refused(stage)
    assert (failure.klass, failure.exit_code) == (ErrorClass.USAGE, 2)
    assert failure.cause.endswith("is ada's")
    # Nobody looked into it.
    assert (len(stage.cloud.vms), len(stage.machine.verbs())) == (1, before)


def test_the_same_user_is_told_that_it_runs(stage: Stage) -> None:
    start(stage.run)
    told = {"answers": True, "busy": False, "idle_seconds": 0, "soft_end": int(stage.clock.now()) + 60, "saved": None}
    stage.machine.said["notebook-state"] = done(json.dumps(told))
    before = stage.machine.verbs().count("start")
    start(stage.run)
    assert "your notebook runs already" in stage.log
    assert stage.machine.verbs().count("start") == before


def test_a_jupyterlab_that_never_answers_is_told_and_its_vm_goes(stage: Stage) -> None:
    stage.machine.said["notebook-answers"] = done("no\n")
    stage.machine.said["logged"] = done("2026-11-28T10:00:00.000000001Z No module named jupyter\n")
    failure = refused(stage)
    assert failure.klass is ErrorClass.OUT_OF_TIME
    assert "No module named jupyter" in failure.cause
    assert stage.cloud.vms == {}


def test_the_newest_work_of_the_same_user_on_the_same_branch_is_taken_up(stage: Stage) -> None:
    user, ref = stage.run.job.user, stage.run.job.ref
    old = work_of(stage, "900", b"old", at=100, user=user, ref=ref)
    work_of(stage, "901", b"new", at=200, user=user, ref=ref)
    work_of(stage, "902", b"other's", at=300, user="other", ref=ref)
    work_of(stage, "903", b"elsewhere", at=400, user=user, ref="other")
    assert [work.at for work in saved_work(stage.run, stage.forge)] == [200, 100]
    start(stage.run)
    assert b"new" in stage.machine.stdin["notebook-work"]
    assert stage.forge.parts(old) == {}
    assert "1 files that" in stage.log


def test_fresh_begins_without_it(stage: Stage) -> None:
    work_of(stage, "901", b"new", at=200, user=stage.run.job.user, ref=stage.run.job.ref)
    start(stage.run, fresh=True)
    assert "notebook-work" not in stage.machine.verbs()


def test_the_newest_save_of_a_notebook_that_was_stopped_stays_and_is_collected_by_nobody(stage: Stage) -> None:
    name = work_of(stage, "900", b"old", at=100, user="ada", ref="main")
    work_of(stage, "900", b"new", at=200, user="ada", ref="main")

    def named(one: RunName) -> Run:
        return replace(stage.run, name=one)

    for _ in range(2):
        assert bring_back(stage.run, stage.clock.now, named) == []
        assert set(stage.forge.parts(name)) == {HANDED_OVER, ENDED, "save-200-0-1-1", "save-200.manifest"}
    assert not (stage.run.outputs / "mine").exists()


MARK = collected_mark("7")
KEPT = {HANDED_OVER, "save-200-0-1-1", "save-200.manifest"}


def collected(stage: Stage) -> RunName:
    """A notebook of which job 7 has brought the work home."""
    name = work_of(stage, "900", b"old", at=100, user="ada", ref="main", ended=False)
    work_of(stage, "900", b"new", at=200, user="ada", ref="main", ended=False)
    put(stage, name, MARK, b"collected\n")
    return name


def scheduled(stage: Stage) -> None:
    """The next scheduled job, job 9."""
    stage.use(job=replace(stage.run.job, job_id="9"))
    assert bring_back(stage.run, stage.clock.now, lambda one: replace(stage.run, name=one)) == []


def test_work_that_a_job_brought_home_is_brought_home_again_where_gitlab_has_no_artifacts_of_that_job(
    stage: Stage,
) -> None:
    name = collected(stage)
    stage.forge.job_ends["7"] = "unfinished"
    scheduled(stage)
    assert not (stage.run.outputs / WORKSPACE).exists()
    assert MARK in stage.forge.parts(name)
    stage.forge.job_ends["7"] = "none"
    scheduled(stage)
    assert (stage.run.outputs / WORKSPACE / "mine").read_bytes() == b"new"
    assert collected_mark("9") in stage.forge.parts(name)
    stage.forge.job_ends["9"] = "kept"
    scheduled(stage)
    assert set(stage.forge.parts(name)) == {*KEPT, ENDED}
    before = stage.forge.verbs().count("job_artifacts")
    scheduled(stage)
    assert stage.forge.verbs().count("job_artifacts") == before


def test_a_cleanup_that_dies_between_its_note_and_the_marks_leaves_work_that_nobody_collects_twice(
    stage: Stage,
) -> None:
    name = collected(stage)
    stage.forge.job_ends["7"] = "kept"
    stage.forge.refuse["drop_parts"] = refusal(ErrorClass.INTERRUPTED)
    stage.use(job=replace(stage.run.job, job_id="8"))
    assert bring_back(stage.run, stage.clock.now, lambda one: replace(stage.run, name=one))
    assert {MARK, ENDED} < set(stage.forge.parts(name))
    del stage.forge.refuse["drop_parts"]
    # What was seen once is not asked again: artifacts expire.
    stage.forge.job_ends["7"] = "none"
    scheduled(stage)
    assert set(stage.forge.parts(name)) == {*KEPT, ENDED}
    assert not (stage.run.outputs / WORKSPACE).exists()


def test_of_a_notebook_whose_save_nobody_understands_nothing_is_left_once_it_is_settled(stage: Stage) -> None:
    name = collected(stage)
    for at in 100, 200:
        put(stage, name, f"save-{at}.manifest", b"glgpu-save 99\n")
    stage.forge.job_ends["7"] = "kept"
    scheduled(stage)
    assert stage.forge.parts(name) == {}


def test_older_work_goes_once_it_is_seen_to_be_artifacts_and_never_what_a_note_points_to(stage: Stage) -> None:
    name = collected(stage)
    bundle = Bundle((MovedFile("a", 3, "0" * 64),), (Part("save-200-0-1-1", 3, "0" * 64),))
    note = Elsewhere(str(name), "7", "packages", "", "https://gitlab.example.com", (bundle,)).text()
    put(stage, name, "elsewhere-7.json", note)
    newest = work_of(stage, "901", b"newest", at=300, user="ada", ref="main")
    start(stage.run)
    assert {*KEPT, MARK} < set(stage.forge.parts(name))
    stage.forge.job_ends["7"] = "kept"
    scheduled(stage)
    assert {*KEPT, ENDED} < set(stage.forge.parts(name))
    stage.cloud.vms.clear()
    stage.machine.container = None
    start(stage.run)
    assert set(stage.forge.parts(name)) == {"save-200-0-1-1", "elsewhere-7.json"}
    assert HANDED_OVER in stage.forge.parts(newest)


def test_no_job_s_time_limits_a_notebook_s_vm(stage: Stage) -> None:
    stage.use(job=replace(stage.run.job, job_timeout=600.0, script_timeout=300.0))
    assert plan_lifetime(stage.run).hard_end == stage.clock.now() + 24 * 3600
    stage.set(machine={"max_hours": 2})
    assert plan_lifetime(stage.run).hard_end == stage.clock.now() + 2 * 3600


def test_pushing_is_refused_before_anything_is_bought_where_no_key_could_be_registered(stage: Stage) -> None:
    stage.set(notebook={"can_push": True})
    stage.forge.may_administer = False
    failure = refused(stage)
    assert (failure.klass, failure.exit_code) == (ErrorClass.CONFIG, 2)
    assert "notebook.can_push is true, but there is no GLGPU_GITLAB_TOKEN" in failure.cause
    assert stage.cloud.verbs() == []


@pytest.mark.parametrize("allowed", [True, False])
def test_vm_and_record_say_whose_work_may_be_pushed_and_only_where_it_may(stage: Stage, allowed: bool) -> None:
    stage.set(notebook={"can_push": allowed})
    start(stage.run)
    (vm,) = stage.cloud.find(stage.name)
    whose = {"user": "ada", "ref": "main", "commit": stage.run.job.sha}
    assert starter_of(vm) == (whose if allowed else {"ref": "main"})
    event = stage.run.record.find(ALLOWED)
    assert (event.facts if event else None) == (whose if allowed else None)
    # A second click finds it running: the newest job of that name is the one whose record is looked at.
    stage.use(
        record=RunRecord(stage.run.outputs / "again.json", stage.name, "6", stage.clock, stage.run.console.masker)
    )
    start(stage.run)
    event = stage.run.record.find(ALLOWED)
    assert (event.facts if event else None) == (whose if allowed else None)
    # So does one of somebody else's, who is refused.
    stage.use(
        job=replace(stage.run.job, user="bob"),
        record=RunRecord(stage.run.outputs / "bob.json", stage.name, "7", stage.clock, stage.run.console.masker),
    )
    refused(stage)
    event = stage.run.record.find(ALLOWED)
    assert (event.facts if event else None) == (whose if allowed else None)
    # The start job itself makes no such key: what the VM has been given can read.
    assert stage.forge.pushing == []
