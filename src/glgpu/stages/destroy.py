"""destroy: whatever happened before, afterwards nothing of the run is alive, and that is proved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial

from glgpu.errors import ErrorClass, Failure, gravest
from glgpu.notebook import KIND
from glgpu.run_names import RunName, label_value
from glgpu.steps.annotate import begin_annotations
from glgpu.steps.bring_back import bring_saved
from glgpu.steps.context import Run, ref_of
from glgpu.steps.detach import left_to_itself, note_end
from glgpu.steps.persist import Attempts
from glgpu.steps.push_work import push_work
from glgpu.steps.report import take_over_charts, write_report
from glgpu.steps.rescue import rescue
from glgpu.steps.tear_down import cut_short, tear_down


def destroy(run: Run, *, detached_too: bool = False) -> None:
    """Bring home what is not home, then remove everything of this run.

    Needs nothing from earlier jobs: names come from CI variables, settings from the VM. A signal ends the step that it
    meets, not the teardown.

    Args:
        run: The run.
        detached_too: Whether to end a training that was left to its VM; else that one is left alone.

    Raises:
        Failure: STILL_ALIVE, or the first thing that failed.
    """
    attempts = Attempts(run)
    for step in (_clear_foreign_outputs, begin_annotations, _take_over_record):
        attempts.get(partial(step, run))
    detached = attempts.undisturbed(partial(left_to_itself, run))
    if detached and not detached_too:
        names = [f"{one.name} in {one.zone}" for one in detached]
        run.console.say(
            f"the training goes on without a job, on {', '.join(names)}: left alone. Its VM saves its outputs and "
            "powers off, and the scheduled `glgpu cleanup` collects them; the branch's stop job ends it before that"
        )
        run.record.add("left-to-itself", instances=names)
        return
    with run.console.section("rescue", "What is not home yet"):
        saved = attempts.get(partial(rescue, run)) or []
        hurry = _in_a_hurry(run, attempts)
        if run.name.kind == KIND:
            # Of one whose VM is gone already, or does not give it.
            attempts.get(partial(bring_saved, run, running_too=not (saved or hurry)))
            hurry = _in_a_hurry(run, attempts)
    with run.console.section("destroy", f"Everything of {run.name} goes"):
        attempts.get(partial(tear_down, run, hurry=hurry))
    # What is worth no delay of the teardown.
    for instance in saved if run.name.kind == KIND and not hurry else ():
        attempts.get(partial(push_work, run, instance))
    if detached:
        # Who is cut short before this has done nothing of it, for whoever collects: all of it is done once more.
        whole = bool(saved) and not _in_a_hurry(run, attempts)
        attempts.get(partial(note_end, run, detached, whole=whole))
    if not hurry:
        attempts.get(partial(take_over_charts, run))
    worst = gravest(attempts.failures)
    write_report(run, worst)
    if worst is not None:
        raise worst


def _in_a_hurry(run: Run, attempts: Attempts) -> bool:
    """Whether the job has been told to end: the Runner gives it little time then."""
    return run.job.in_ci and any(one.klass is ErrorClass.INTERRUPTED for one in attempts.failures)


def end_notebook(run: Run) -> None:
    """The way of a notebook's stop job: whoever clicks means the one that was left to its VM, and one yet to come.

    Raises:
        Failure: the gravest of what went wrong.
    """
    attempts = Attempts(run)
    # First, as for a branch.
    attempts.get(partial(_hold_back, run))
    attempts.get(partial(destroy, run, detached_too=True))
    worst = gravest(attempts.failures)
    if worst is not None:
        raise worst


def destroy_cloud_only(run: Run) -> None:
    """The cancelled job's way: cloud credentials alone, by label, within after_script's few minutes.

    A notebook that answers already is left alone: the click that failed may have been somebody's second one.

    Raises:
        Failure: STILL_ALIVE when a delete was refused.
    """
    if run.name.kind == KIND and (left := left_to_itself(run)):
        run.console.say(f"the notebook on {left[0].name} runs on: `stop notebook` ends it")
        return
    with run.console.section("destroy", f"The VM of {run.name} goes"):
        cut_short(run)


def destroy_branch(run: Run, named: Callable[[RunName], Run]) -> None:
    """The stop job's way: every run of this kind on this branch, also one that has yet to begin.

    Args:
        run: Any run of the branch.
        named: Makes the same run under another name.

    Raises:
        Failure: the gravest of what went wrong.
    """
    labels = {key: value for key, value in run.name.own_labels.items() if key != "glgpu-run"}
    labels["glgpu-ref"] = label_value(run.job.ref)
    attempts = Attempts(run)
    # First: a job that comes to its turn meanwhile would buy what is being ended.
    attempts.get(partial(_hold_back, run))
    # Two branches may have the same label value; the VM's own settings have the whole name.
    found = attempts.insist(partial(run.cloud.labelled, labels)) or []
    numbers = {one.labels.get("glgpu-run", "") for one in found if ref_of(one) in (run.job.ref, None)}
    for one in sorted(numbers | {run.name.run}):
        attempts.get(partial(_destroy_numbered, run, named, one))
    worst = gravest(attempts.failures)
    if worst is not None:
        raise worst


def _hold_back(run: Run) -> None:
    """Nothing of the branch, or of a notebook's pipeline, is to bring up a VM any more.

    Without a token a job that waits does: a training's ends it itself, a notebook's VM itself once nobody works on it.
    """
    if not (run.forge.may_administer and run.job.ref):
        return
    notebook = run.name.kind == KIND
    for job in run.forge.hold_back_notebook(run.job.run) if notebook else run.forge.hold_back(run.job.ref):
        run.console.say(f"cancelled: {job}, which would have brought up a VM")
        run.record.add("held-back", job=job)


def _destroy_numbered(run: Run, named: Callable[[RunName], Run], number: str) -> None:
    name = RunName(run.name.server_url, run.name.project_id, number, run.name.kind)
    destroy(named(name), detached_too=True)


def _clear_foreign_outputs(run: Run) -> None:
    """A build folder outlives jobs where nothing is fetched: another run's outputs are not this job's artifacts."""
    if run.job.in_ci and run.record.foreign:
        run.console.say("outputs/ holds what another run left in this build folder: cleared")
        shutil.rmtree(run.outputs, ignore_errors=True)


def _take_over_record(run: Run) -> None:
    """The complete record is ours: take over what the job before us wrote, if GitLab lets us see it."""
    before = "start notebook" if run.name.kind == KIND else "train"
    try:
        text = run.forge.artifact(run.job.run, before, "outputs/glgpu/run.json")
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        run.console.say(f"the record of the job {before} cannot be had: {failure.cause}")
        return
    if text:
        run.record.merge(text)
