"""Refuse what cannot work while it costs nothing."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.job_times import misfits
from glgpu.machines import cuts
from glgpu.processes import need_tool
from glgpu.settings import Settings, check_secrets
from glgpu.steps.context import Run


def check_before_buying(run: Run, *, trains: bool = False) -> None:
    """Refuse what cannot work while it costs nothing.

    Args:
        run: The run.
        trains: Whether this is the train job itself, whose own limit counts then.

    Raises:
        Failure: CONFIG; NOT_AVAILABLE, when no GPU of the settings can be had as they want it.
    """
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
    for setting in settings_without_effect(run.settings):
        raise Failure(
            ErrorClass.CONFIG,
            f"{setting} is part of glgpu's settings, but this version cannot do it yet",
            "leave it out; README lists what is not there yet",
        )


def settings_without_effect(settings: Settings) -> list[str]:
    """A setting that is taken but does nothing would be a promise that nobody keeps."""
    without_effect = {
        "train.follow: false": settings.train.follow is False,
    }
    return [setting for setting, given in without_effect.items() if given]
