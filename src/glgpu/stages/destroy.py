"""destroy: whatever happened before, afterwards nothing of the run is alive, and that is proved."""

from __future__ import annotations

from collections.abc import Callable

from glgpu.errors import Failure, gravest
from glgpu.run_names import RunName, label_value
from glgpu.steps.context import Run
from glgpu.steps.tear_down import cut_short, rescue, tear_down


def destroy(run: Run) -> None:
    """Bring home what is not home, then remove everything of this run.

    Needs nothing from earlier jobs: names come from CI variables, settings from the VM.

    Raises:
        Failure: STILL_ALIVE, or the first thing that failed.
    """
    _take_over_record(run)
    with run.console.section("rescue", "What is not home yet"):
        rescue(run, run.settings.limits.rescue_minutes * 60.0)
    with run.console.section("destroy", f"Everything of {run.name} goes"):
        tear_down(run)


def destroy_cloud_only(run: Run) -> None:
    """The cancelled job's way: cloud credentials alone, by label, within after_script's five minutes.

    Raises:
        Failure: STILL_ALIVE when a delete was refused.
    """
    with run.console.section("destroy", f"The VM of {run.name} goes"):
        cut_short(run)


def destroy_branch(run: Run, named: Callable[[RunName], Run]) -> None:
    """The stop job's way: every run of this kind on this branch.

    Args:
        run: Any run of the branch.
        named: Makes the same run under another name.

    Raises:
        Failure: the gravest of what went wrong.
    """
    own = run.name.own_labels
    labels = {key: value for key, value in own.items() if key != "glgpu-run"}
    labels["glgpu-ref"] = label_value(run.job.ref)
    runs = sorted({one.labels["glgpu-run"] for one in run.cloud.labelled(labels)} | {run.name.run})
    failures = []
    for one in runs:
        try:
            destroy(named(RunName(run.name.server_url, run.name.project_id, one, run.name.kind)))
        except Failure as failure:
            failures.append(failure)
    worst = gravest(failures)
    if worst is not None:
        raise worst


def _take_over_record(run: Run) -> None:
    """The complete record is ours: take over what the train job wrote, if GitLab lets us see it."""
    try:
        text = run.forge.artifact(run.job.run, "train", "outputs/glgpu/run.json")
    except Failure as failure:
        run.console.say(f"the train job's record cannot be had: {failure.cause}")
        return
    if text:
        run.record.merge(text)
