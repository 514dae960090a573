"""What the times of the train job and of its VM leave for the training itself."""

from __future__ import annotations

import math
from collections.abc import Iterator

from glgpu.errors import ErrorClass, Failure
from glgpu.job import AFTER_SCRIPT_SECONDS, HOSTED_SECONDS, Job
from glgpu.lifetime import spoken
from glgpu.settings import Settings

STOP_GRACE_SECONDS = 30
"""Between SIGTERM and SIGKILL, for a training that is told to end."""
CLOSING_SECONDS = 30.0
"""After the outputs are home: the VM is released, the door closed, the last words said."""


def home_seconds(settings: Settings) -> float:
    """How long outputs may take to come home, by estimate: as long as a teardown may take for the same."""
    return settings.limits.rescue_minutes * 60.0


def ending_seconds(settings: Settings) -> float:
    """What a training's end takes from the moment when it is told to end until nothing is left to do."""
    return STOP_GRACE_SECONDS + home_seconds(settings) + CLOSING_SECONDS


def script_seconds(job: Job, settings: Settings, *, own: bool) -> float:
    """How long after the job's beginning its script may work; infinite where nobody says.

    Where the job's own timeout strikes, nothing is uploaded: the upload has to be over by then, which takes as long
    as bringing the outputs home.

    Args:
        job: The job.
        settings: What the team set.
        own: Whether the job is the train job itself, so that what its runner grants counts too.
    """
    whole = [job.job_timeout, HOSTED_SECONDS if job.hosted else None, job.own_timeout if own else None]
    ends = [seconds - home_seconds(settings) for seconds in whole if seconds is not None]
    return max(0.0, min([*ends, job.script_timeout or math.inf], default=math.inf))


def wants_to_detach(settings: Settings, job: Job, *, own: bool = False) -> bool:
    """Whether the settings have the VM see the training home: always, or because no job could wait for it.

    Args:
        settings: What the team set.
        job: The job whose times count.
        own: As of `script_seconds`.
    """
    if settings.train.follow == "auto":
        hours = settings.machine.max_hours
        return job.in_ci and hours is not None and hours * 3600 > script_seconds(job, settings, own=own)
    return not settings.train.follow


def misfits(settings: Settings, job: Job | None, *, own: bool = False) -> Iterator[Failure]:
    """Times that cannot work together, each as CONFIG.

    Args:
        settings: What the team set.
        job: A job whose times count; None: none does, as on a laptop.
        own: Whether that is the train job itself.
    """
    hours = settings.machine.max_hours
    ending = ending_seconds(settings)
    told = f"{spoken(ending)} of it go into ending the training and bringing its outputs home"
    if hours is not None and hours * 3600 <= ending:
        yield Failure(
            ErrorClass.CONFIG,
            f"machine.max_hours is {hours:g}, but {told}",
            "raise machine.max_hours, or lower limits.rescue_minutes",
        )
    if job is None:
        return
    times = [time for time in (job.job_timeout, job.script_timeout) if time is not None]
    if hours is not None and times and hours * 3600 > min(times) and settings.train.follow is True:
        yield Failure(
            ErrorClass.CONFIG,
            f"machine.max_hours is {hours:g}, but the train job ends its script after {spoken(min(times))}",
            "lower machine.max_hours, or set `train.follow: auto`, which leaves the training to its VM then",
        )
    if job.job_timeout is not None and job.script_timeout is not None:
        whole = job.script_timeout + (job.after_script_timeout or AFTER_SCRIPT_SECONDS)
        if whole >= job.job_timeout:
            yield Failure(
                ErrorClass.CONFIG,
                f"script and after_script may take {spoken(whole)}, the job {spoken(job.job_timeout)}: a job that "
                "reaches its own timeout loses its after_script and its artifacts",
                "raise the include's input job_timeout, or lower script_timeout",
            )
    script = script_seconds(job, settings, own=own)
    if script <= ending:
        yield Failure(
            ErrorClass.CONFIG,
            f"the train job's script has to be over after {spoken(script)}, but {told}",
            "raise the include's inputs script_timeout and job_timeout, or lower limits.rescue_minutes",
        )
