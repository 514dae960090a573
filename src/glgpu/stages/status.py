"""status: what is alive now, for whom, since when, what it has cost, and what will end it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glgpu.console import Console
from glgpu.errors import Failure
from glgpu.leftovers import End, Thing, Vm, ends_of
from glgpu.lifetime import spoken
from glgpu.machines import dollars
from glgpu.notebook import AT_WORK_SECONDS, KIND, USED_ATTRIBUTE
from glgpu.run_names import ref_slug
from glgpu.steps.context import Run
from glgpu.steps.listing import COLUMNS, as_json, cells
from glgpu.steps.start_up import NAMESPACE
from glgpu.steps.survey import Survey, each, pool, survey, unix_time


@dataclass(frozen=True)
class Alive:
    """Something that costs money.

    Attributes:
        item: A VM, stopped ones too, or a disk without one.
        ends: What will end it, the soonest first.
        idle: Seconds since something was last at work in a notebook; None: it is none, or does not tell.
    """

    item: Vm | Thing
    ends: tuple[End, ...]
    idle: float | None = None


def status(run: Run, now: Callable[[], float], *, json_to: Console | None = None) -> None:
    """Look once at the cloud and at GitLab, and tell.

    Args:
        run: The run that looks.
        now: Google's clock.
        json_to: Where to print all of it for programs; None: a table for people.

    Raises:
        Failure: why the cloud, or a part of it, cannot be asked.
    """
    found = survey(run, now)
    alive = _alive(run, found)
    if json_to is not None:
        json_to.say(json.dumps(_json(run, found, alive), indent=2))
    else:
        _show(run, found, alive)
    if found.refusals:
        raise found.refusals[0]


def _alive(run: Run, found: Survey) -> list[Alive]:
    """VMs and disks without one: our own project's first, then our GitLab's, then the others'."""
    outlook = found.world.outlook
    jobs, used = _jobs(run, found), _used(run, found)
    stops: dict[str | int | None, float | None] = {}
    for one in found.environments:
        stops[one.name] = stops[one.pipeline] = unix_time(one.stops)
    items: list[Vm | Thing] = [*found.world.vms, *(thing for thing in found.world.things if thing.what == "disk")]
    items.sort(key=lambda one: (one.run.server != outlook.server, one.run.project_id != run.name.project_id, one.name))
    verdicts = dict(found.world.judged())
    alive = []
    for item in items:
        if isinstance(item, Vm):
            own = (item.run.server, item.run.project_id) == (outlook.server, run.name.project_id)
            # A branch has one environment for all its trainings, and every notebook one of its own.
            place = item.run.pipeline if item.run.kind == KIND else f"gpu/{ref_slug(item.ref)}"
            auto_stop = stops.get(place) if own else None
            where = (item.run.project_id, item.run.pipeline or 0)
            known = jobs.get(where, {}) if item.run.server == outlook.server else {}
            last = used.get((item.name, item.zone))
            idle = None if last is None else max(0.0, outlook.now - last)
            alive.append(Alive(item, tuple(ends_of(item, outlook, known, auto_stop)), idle))
        else:
            verdict = verdicts[item]
            word = "the next cleanup" if verdict.goes else "cleanup, later on"
            alive.append(Alive(item, (End(f"{word}: {verdict.why}"),)))
    return alive


def _jobs(run: Run, found: Survey) -> Mapping[tuple[int, int], Mapping[str, str]]:
    """The jobs of the pipelines that VMs are of; nothing of those that GitLab does not tell of."""
    outlook = found.world.outlook
    wanted = {(vm.run.project_id, vm.run.pipeline) for vm in found.world.vms if outlook.status(vm.run) is not None}
    with pool() as several:
        answers = each(several, lambda one: run.forge.pipeline_jobs(one[0], one[1] or 0), sorted(wanted))
    return {(one[0], one[1] or 0): jobs for one, jobs in answers.items() if not isinstance(jobs, Failure)}


def _used(run: Run, found: Survey) -> Mapping[tuple[str, str], float]:
    """When something was last at work in the notebooks that run, by name and zone, as far as their VMs have told."""

    def last(place: tuple[str, str]) -> str:
        return run.cloud.guest_attributes(*place, NAMESPACE).get(USED_ATTRIBUTE, "")

    running = [(vm.name, vm.zone) for vm in found.world.vms if vm.run.kind == KIND and vm.status == "RUNNING"]
    with pool() as several:
        answers = each(several, last, running)
    # What a VM tells is anybody's there; a Failure says that nobody tells.
    return {
        place: float(text)
        for place, text in answers.items()
        if isinstance(text, str) and re.fullmatch(r"\d{1,12}", text)
    }


def _show(run: Run, found: Survey, alive: Sequence[Alive]) -> None:
    now = found.world.outlook.now
    for note in found.notes:
        run.console.say(note)
    if not alive:
        run.console.say(f"nothing of glgpu's is alive in {run.cloud.project}")
        return
    rows = [[*_cells(run, found, one), "; then ".join(_spoken(end, now) for end in one.ends)] for one in alive]
    run.console.table([*COLUMNS, "ends by"], rows)
    vms = [one.item for one in alive if isinstance(one.item, Vm)]
    costs = [cost for vm in vms if (cost := vm.cost(now)) is not None]
    unknown = f", {len(vms) - len(costs)} not known" if len(costs) < len(vms) else ""
    run.console.say(f"{len(vms)} VMs in {run.cloud.project}, about {dollars(sum(costs))} USD so far{unknown}")


def _cells(run: Run, found: Survey, one: Alive) -> list[str]:
    told = cells(run, one.item, found.world.outlook.now)
    if one.idle is not None:
        told[0] += ", at work" if one.idle < AT_WORK_SECONDS else f", idle for {spoken(one.idle)}"
    if one.item.run.server != found.world.outlook.server:
        told[2] = f"another GitLab ({one.item.run.server}), project {one.item.run.project_id}"
    return told


def _spoken(end: End, now: float) -> str:
    if end.at is None:
        return end.by
    return f"{end.by} in {spoken(end.at - now)}" if end.at > now else f"{end.by}, {spoken(now - end.at)} ago"


def _json(run: Run, found: Survey, alive: Sequence[Alive]) -> dict[str, Any]:
    outlook = found.world.outlook
    return {
        "now": int(outlook.now),
        "google_project": run.cloud.project,
        "notes": list(found.notes),
        "alive": [
            {
                **as_json(one.item, outlook.now),
                "other_gitlab": one.item.run.server != outlook.server,
                "idle_seconds": None if one.idle is None else int(one.idle),
                "ends": [{"by": end.by, "at": None if end.at is None else int(end.at)} for end in one.ends],
            }
            for one in alive
        ],
    }
