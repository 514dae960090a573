"""authorize: the VM gets the right to the code and the code itself; train does the same by itself."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.steps.bring_up import standing
from glgpu.steps.checkout import check_out
from glgpu.steps.context import Run, hard_end_of
from glgpu.steps.door import log_in, open_door


def authorize(run: Run) -> None:
    """Bring the run's commit onto its VM.

    Raises:
        Failure: NOT_FOUND without a VM; CODE, GITLAB_AUTH, ...
    """
    instance = standing(run)
    if instance is None:
        raise Failure(ErrorClass.NOT_FOUND, f"there is no VM {run.name}", "run `glgpu provision` first")
    with run.console.section("authorize", "The code"), open_door(run, instance) as way:
        guest = log_in(run, instance, way)
        check_out(run, guest.machine, hard_end_of(instance))
