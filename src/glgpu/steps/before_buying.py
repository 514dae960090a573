"""Refuse what cannot work while it costs nothing."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.settings import Settings, check_secrets
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
    _refuse_what_has_no_effect_yet(run.settings)


def _refuse_what_has_no_effect_yet(settings: Settings) -> None:
    """A setting that is taken but does nothing would be a promise that nobody keeps."""
    without_effect = {
        "train.follow: false": settings.train.follow is False,
        "network.access: iap": settings.network.access == "iap",
        "machine.max_price": settings.machine.max_price is not None,
        "storage.bucket": settings.storage.bucket is not None,
        "state: gcs": settings.state == "gcs",
    }
    for setting, given in without_effect.items():
        if given:
            raise Failure(
                ErrorClass.CONFIG,
                f"{setting} is part of glgpu's settings, but this version cannot do it yet",
                "leave it out; README lists what is not there yet",
            )
