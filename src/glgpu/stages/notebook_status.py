"""notebook status: which notebooks run, whose they are, since when nobody has used them, and what ends them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from glgpu.console import Console
from glgpu.errors import ErrorClass, Failure
from glgpu.leftovers import Vm
from glgpu.lifetime import spoken
from glgpu.notebook import KIND, State
from glgpu.steps.notebook_visit import notebook_state
from glgpu.steps.visit import Visitor, living, look_in, told_with_role

COLUMNS = ("run", "owner", "branch", "idle for", "saved", "soft end in", "hard end in")


def notebook_status(visitor: Visitor, now: Callable[[], float], *, json_to: Console | None = None) -> None:
    """Ask the VM of every notebook of the project, and tell.

    Args:
        visitor: Who looks in.
        now: Google's clock.
        json_to: Where to print it for programs; None: a table for people.

    Raises:
        Failure: the cloud cannot be asked.
    """
    run = visitor.run
    try:
        vms = [vm for vm, _ in living(run, KIND)]
    except Failure as failure:
        raise told_with_role(run, failure) from None
    states = [(vm, _asked(visitor, vm)) for vm in vms]
    moment = now()
    if json_to is not None:
        told = [_json(vm, state) for vm, state in states]
        facts = {"now": int(moment), "google_project": run.cloud.project, "notebooks": told}
        json_to.say(json.dumps(facts, indent=2))
    elif not states:
        run.console.say(f"no notebook of this project is alive in {run.cloud.project}")
    else:
        run.console.table(list(COLUMNS), [_cells(vm, state, moment) for vm, state in states])


def _asked(visitor: Visitor, vm: Vm) -> State | None:
    """What the VM says; None, with a line about it, where it does not."""
    try:
        with look_in(replace(visitor, asked=vm.run.run), KIND) as visited:
            return notebook_state(visited)
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        visitor.run.console.say(f"{vm.name} tells nothing: {failure.cause}")
        return None


def _cells(vm: Vm, state: State | None, now: float) -> list[str]:
    soft = state.soft_end if state else vm.soft_end
    saved = state.saved if state else None
    return [
        vm.run.run,
        vm.user or "?",
        vm.ref or "?",
        "?" if state is None else "at work" if state.busy else spoken(state.idle_seconds),
        "?" if state is None else "not yet" if saved is None else f"{spoken(now - saved)} ago",
        "?" if soft is None else spoken(soft - now),
        "?" if vm.google_end is None else spoken(vm.google_end - now),
    ]


def _json(vm: Vm, state: State | None) -> dict[str, Any]:
    """The same for programs; what is not known is null."""
    soft = state.soft_end if state else vm.soft_end
    return {
        "run": vm.run.run,
        "name": vm.name,
        "zone": vm.zone,
        "project": vm.run.project_id,
        "user": vm.user or None,
        "ref": vm.ref or None,
        "answers": state.answers if state else None,
        "busy": state.busy if state else None,
        "idle_seconds": state.idle_seconds if state else None,
        "saved": state.saved if state else None,
        "soft_end": None if soft is None else int(soft),
        "hard_end": None if vm.google_end is None else int(vm.google_end),
    }
