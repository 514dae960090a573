"""Whoever tells a caller the address it is seen under."""

from __future__ import annotations

import requests

from glgpu.errors import ErrorClass, Failure
from glgpu.job import Job
from glgpu.settings import Settings


def caller_address(settings: Settings, job: Job) -> str:
    """This machine's own public address: a setting, else what the echo service says.

    Raises:
        Failure: NETWORK, when nobody says.
    """
    if job.caller_address:
        return job.caller_address
    try:
        answer = requests.get(settings.network.echo, timeout=15)
        answer.raise_for_status()
        return answer.text.strip()[:100]
    except requests.RequestException as error:
        raise Failure(
            ErrorClass.NETWORK,
            f"{settings.network.echo} does not tell this machine's public address: {error}",
            "set network.allow to the ranges your runners use, or network.echo to another service",
        ) from None
