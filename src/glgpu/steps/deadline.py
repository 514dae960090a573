"""A training is told to end before its job or its VM is ended by others, so that what it has comes home."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance
from glgpu.job_times import CLOSING_SECONDS, STOP_GRACE_SECONDS, ending_seconds, script_seconds
from glgpu.lifetime import spoken
from glgpu.steps.audience import insist_on_audience
from glgpu.steps.container import Container
from glgpu.steps.context import Run, hard_end_of

AGAIN_SECONDS = 5.0
"""Before a VM that did not take the word is told once more."""
LATE_SECONDS = 15.0
"""After the grace, until a container that should be gone is no longer waited for."""


@dataclass(frozen=True)
class End:
    """When everything has to be done.

    Attributes:
        at: Unix time by this machine's clock; infinite where nobody says.
        what: What happens then.
    """

    at: float
    what: str


class Deadline:
    """Goes along with a training, and tells it to end in time.

    Whoever ends by itself in its grace has ended by itself: its exit code counts.

    Args:
        run: The run.
        container: Its container.
        end: When everything has to be done.
    """

    def __init__(self, run: Run, container: Container, end: End) -> None:
        self._run = run
        self._container = container
        self._end = end
        self._stop_at = end.at - ending_seconds(run.settings)
        self._try_at = self._stop_at
        self._told_at: float | None = None

    @property
    def told(self) -> bool:
        """Whether the training was told to end."""
        return self._told_at is not None

    def announce(self) -> None:
        """Say how long the training may go on."""
        if math.isfinite(self._end.at):
            until = datetime.fromtimestamp(self._stop_at, UTC).strftime("%H:%M UTC")
            left = spoken(self._stop_at - self._run.clock.now())
            self._run.console.say(f"the training may go on for {left}, until {until}; {self._end.what} after that")

    @property
    def seconds_left(self) -> float:
        """How long outputs may still take to come home."""
        return max(1.0, self._end.at - CLOSING_SECONDS - self._run.clock.now())

    def beat(self) -> None:
        """Look whether it is time.

        Raises:
            Failure: OUT_OF_TIME, when the training has not ended although it was told to, or could not be told;
                INTERRUPTED, when another job may have taken it up, with time of its own.
        """
        now = self._run.clock.now()
        patience = STOP_GRACE_SECONDS + LATE_SECONDS
        if self._told_at is not None:
            if now > self._told_at + patience:
                raise _over("the training was told to end in time, and has not")
        elif now >= self._try_at and not self._tell():
            if now > self._stop_at + patience:
                raise _over("the training could not be told to end in time")
            self._try_at = self._run.clock.now() + AGAIN_SECONDS

    def _tell(self) -> bool:
        """Tell it; whether the VM took the word."""
        run = self._run
        insist_on_audience(run)
        try:
            self._container.end(STOP_GRACE_SECONDS)
        except Failure as failure:
            if failure.klass is ErrorClass.INTERRUPTED:
                raise
            run.console.say(f"glgpu: {failure.cause}")
            return False
        self._told_at = run.clock.now()
        left = self._end.at - run.clock.now()
        run.console.say(
            f"glgpu: {self._end.what} in {spoken(left)}: the training is told to end (SIGTERM, after "
            f"{STOP_GRACE_SECONDS} s SIGKILL), so that its outputs come home"
        )
        run.record.add("told-to-end", why=self._end.what, seconds_left=round(left))
        return True


def _over(cause: str) -> Failure:
    remedy = "nothing to do: the destroy job brings home what is there, if the VM answers"
    return Failure(ErrorClass.OUT_OF_TIME, cause, remedy)


def end_of(run: Run, instance: Instance) -> End:
    """When everything has to be done: the job's end or the VM's, whichever comes first."""
    vm = End(_vm_end(run, instance), "Compute Engine deletes the VM")
    job = End(_job_end(run), "the job's time is over")
    return min(job, vm, key=lambda end: end.at)


def _job_end(run: Run) -> float:
    """By this machine's clock; how long the job runs already, GitLab's tells, since it wrote down the beginning."""
    job, now = run.job, run.clock.now()
    if not job.in_ci:
        return math.inf
    seconds = script_seconds(job, run.settings, own=True)
    if job.started_at is None or math.isinf(seconds):
        return now + seconds
    try:
        gitlab = run.forge.server_time()
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        gitlab = now
    return now + seconds - max(0.0, gitlab - job.started_at)


def _vm_end(run: Run, instance: Instance) -> float:
    """By this machine's clock; Google's tells how old the VM is, else what the job wrote that brought it up counts."""
    now = run.clock.now()
    try:
        created = datetime.fromisoformat(instance.created).timestamp()
        if instance.max_run_seconds:
            return now + created + instance.max_run_seconds - run.google_time()
    except ValueError:
        pass
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
    return hard_end_of(instance)
