"""How a thing in the cloud project or in GitLab is told to people and to programs."""

from __future__ import annotations

from typing import Any

from glgpu.leftovers import Thing, Vm
from glgpu.lifetime import spoken
from glgpu.machines import dollars
from glgpu.steps.context import Run

COLUMNS = ("what", "name", "owner", "age", "USD so far")


def cells(run: Run, item: Vm | Thing, now: float) -> list[str]:
    """A row, for COLUMNS: what is not known is a question mark, what does not apply is empty.

    Args:
        run: Whose own project is told by its name and not by its number.
        item: The thing.
        now: Unix time by Google's clock.
    """
    age = age_of(item, now)
    cost = item.cost(now) if isinstance(item, Vm) else None
    return [
        f"VM, {item.status}" if isinstance(item, Vm) else item.what,
        f"{item.name} in {item.zone}" if item.zone else item.name,
        owner(run, item),
        "?" if age is None else spoken(age),
        "" if isinstance(item, Thing) else "?" if cost is None else f"~{dollars(cost)}",
    ]


def owner(run: Run, item: Vm | Thing) -> str:
    """The GitLab project, and as far as a VM tells the person and the branch."""
    own = item.run.project_id == run.name.project_id and bool(run.job.project_path)
    project = run.job.project_path if own else f"project {item.run.project_id}"
    whose = [item.user, item.ref] if isinstance(item, Vm) else []
    told = ", ".join(filter(None, whose))
    return f"{project} ({told})" if told else project


def age_of(item: Vm | Thing, now: float) -> float | None:
    """Seconds since it was made; None: not known."""
    return None if item.created is None else max(0.0, now - item.created)


def as_json(item: Vm | Thing, now: float) -> dict[str, Any]:
    """The same for programs; what is not known is null."""
    age = age_of(item, now)
    vm = item if isinstance(item, Vm) else None
    cost = vm.cost(now) if vm else None
    return {
        "what": "VM" if isinstance(item, Vm) else item.what,
        "name": item.name,
        "zone": item.zone or None,
        "status": vm.status if vm else None,
        "server": item.run.server,
        "project": item.run.project_id,
        "run": item.run.run,
        "kind": item.run.kind,
        "user": (vm.user or None) if vm else None,
        "ref": (vm.ref or None) if vm else None,
        "age_seconds": None if age is None else int(age),
        "usd_so_far": None if cost is None else round(cost, 2),
    }
