"""Refuse what cannot work while it costs nothing."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.job_times import misfits
from glgpu.machines import cuts
from glgpu.processes import need_tool
from glgpu.settings import check_secrets
from glgpu.steps.context import Run
from glgpu.steps.detach import check_detaching


def check_before_buying(run: Run, *, trains: bool = False) -> None:
    """Refuse what cannot work while it costs nothing.

    Args:
        run: The run.
        trains: Whether this is the train job itself, whose own limit counts then.

    Raises:
        Failure: CONFIG; NOT_AVAILABLE, when no GPU of the settings can be had as they want it.
    """
    check_detaching(run, trains=trains)
    for misfit in misfits(run.settings, run.job if run.job.in_ci else None, own=trains):
        raise misfit
    cuts(run.settings.machine)
    check_secrets(run.settings.train.secrets, run.job.variables)
    if run.settings.train.image is None:
        raise Failure(
            ErrorClass.CONFIG, "train.image is not set: there is nothing to train in", "name a container image there"
        )
    if run.settings.network.access == "iap":
        need_tool("gcloud", "for network.access: iap; the job image `job-iap` has it")
