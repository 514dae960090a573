"""Refuse what cannot work while it costs nothing."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.settings import check_secrets
from glgpu.steps.bring_up import plan_lifetime
from glgpu.steps.context import Run


def check_before_buying(run: Run) -> None:
    """Refuse what cannot work while it costs nothing.

    Raises:
        Failure: CONFIG.
    """
    plan_lifetime(run)
    check_secrets(run.settings.train.secrets, run.job.variables)
    if run.settings.train.image is None:
        raise Failure(
            ErrorClass.CONFIG, "train.image is not set: there is nothing to train in", "name a container image there"
        )
    if run.settings.train.follow is False:
        raise Failure(
            ErrorClass.CONFIG,
            "train.follow is false, but detached training does not exist yet",
            "leave train.follow at auto: the job follows the training",
        )
