"""cleanup: whatever is left of runs that are over goes, of every run of our GitLab in the cloud project."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from glgpu.console import Console
from glgpu.errors import ErrorClass, Failure, gravest
from glgpu.leftovers import Vm
from glgpu.run_names import RunName
from glgpu.steps.annotate import begin_annotations
from glgpu.steps.bring_back import bring_back
from glgpu.steps.context import Run
from glgpu.steps.listing import COLUMNS, as_json, cells
from glgpu.steps.survey import Survey, survey
from glgpu.steps.sweep import Outcome, sweep


def cleanup(
    run: Run,
    now: Callable[[], float],
    named: Callable[[RunName], Run],
    *,
    older_than: float = 0.0,
    dry_run: bool = False,
    json_to: Console | None = None,
) -> None:
    """Collect what detached trainings have left; then look, judge, remove, prove, tell.

    Args:
        run: The run that cleans up.
        now: Google's clock.
        named: Makes a run of our own project under another name, to save its outputs.
        older_than: Seconds; what is younger is left alone.
        dry_run: Whether to tell only.
        json_to: Where to print all of it for programs; None: a table for people.

    Raises:
        Failure: LEFT_BEHIND, when something that should be gone is still there; why the cloud, or a part of it,
            cannot be asked; what became of a detached training.
    """
    begin_annotations(run)
    unwell = [] if dry_run else bring_back(run, now, named)
    with run.console.section("survey", "What there is of runs"):
        found = survey(run, now, older_than=older_than)
        for note in found.notes:
            run.console.say(note)
    if dry_run:
        outcomes = [Outcome(item, verdict) for item, verdict in found.world.judged()]
    else:
        with run.console.section("cleanup", "What is over goes"):
            outcomes = sweep(run, found, named)
        run.record.add("cleaned-up", removed=_names(one for one in outcomes if one.removed))
    if json_to is not None:
        json_to.say(json.dumps(_json(run, found, outcomes, dry_run), indent=2))
    else:
        _show(run, found, outcomes, dry_run)
    left = [one for one in outcomes if one.left_behind]
    if left and not dry_run:
        run.record.add("left-behind", left=_names(left))
        raise _left_behind(run, left)
    if found.refusals:
        raise found.refusals[0]
    worst = gravest(unwell)
    if worst is not None:
        raise worst


def _show(run: Run, found: Survey, outcomes: Sequence[Outcome], dry_run: bool) -> None:
    outlook = found.world.outlook
    ours = [one for one in outcomes if one.item.run.server == outlook.server]
    if ours:
        run.console.table(
            [*COLUMNS, "outcome"], [[*cells(run, one.item, outlook.now), _told(one, dry_run)] for one in ours]
        )
    if foreign := len(outcomes) - len(ours):
        run.console.say(f"{foreign} things of other GitLab servers: never touched")
    doomed = [one for one in ours if one.verdict.goes]
    if dry_run:
        run.console.say(f"{len(doomed)} of {len(ours)} would go; nothing was changed")
    else:
        run.console.say(f"{sum(one.removed for one in doomed)} of {len(doomed)} that were to go are gone")


def _told(outcome: Outcome, dry_run: bool) -> str:
    return f"would go: {outcome.verdict.why}" if dry_run and outcome.verdict.goes else outcome.told


def _json(run: Run, found: Survey, outcomes: Sequence[Outcome], dry_run: bool) -> dict[str, Any]:
    outlook = found.world.outlook
    return {
        "now": int(outlook.now),
        "google_project": run.cloud.project,
        "dry_run": dry_run,
        "notes": list(found.notes),
        "items": [
            {
                **as_json(one.item, outlook.now),
                "goes": one.verdict.goes,
                "why": one.verdict.why,
                "removed": one.removed,
                "problem": one.problem if one.left_behind else "",
            }
            for one in outcomes
        ],
    }


def _names(outcomes: Any) -> list[str]:
    return [f"{_what(one)} {one.item.name}" for one in outcomes]


def _what(outcome: Outcome) -> str:
    return "VM" if isinstance(outcome.item, Vm) else outcome.item.what


def _left_behind(run: Run, left: Sequence[Outcome]) -> Failure:
    first = next((one for one in left if isinstance(one.item, Vm)), left[0])
    more = f", and {len(left) - 1} more" if len(left) > 1 else ""
    cause = f"still there: the {_what(first)} {first.item.name} ({first.problem}){more}"
    if isinstance(first.item, Vm):
        project, zone = run.cloud.project, first.item.zone
        remedy = f"`gcloud compute instances delete {first.item.name} --zone {zone} --project {project}`"
    else:
        remedy = "mend what the table tells, then `glgpu cleanup`"
    return Failure(ErrorClass.LEFT_BEHIND, cause, remedy)
