"""Whether anybody takes what this job brings home: the runner may be dead, and another job at the same training."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.steps.context import Run

REMEDY = "nothing to do: the next try of the job takes the training up"
UNHEARD = "nobody reads this job's output any more: its runner is gone"


class Audience:
    """Goes along with a training, and ends the following when nobody reads what this job says.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def beat(self) -> None:
        """Look whether the job's output is read.

        Raises:
            Failure: INTERRUPTED, when it is not: what this job would bring home nobody uploads.
        """
        if self._run.job.in_ci and self._run.console.unheard:
            raise Failure(ErrorClass.INTERRUPTED, UNHEARD, REMEDY)


def insist_on_audience(run: Run) -> None:
    """See that this job is still GitLab's, before it ends what another one may have taken up.

    Raises:
        Failure: INTERRUPTED, when nobody takes what this job brings home.
    """
    why = lost_audience(run)
    if why:
        raise Failure(ErrorClass.INTERRUPTED, why, REMEDY)


def lost_audience(run: Run) -> str:
    """Why nobody takes what this job brings home; empty where somebody does.

    A job may outlive its runner, and GitLab lets another one try. A GitLab that cannot be asked is no reason to stop.
    """
    if not run.job.in_ci:
        return ""
    if run.console.unheard:
        return UNHEARD
    try:
        over = run.forge.job_is_over()
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        run.console.say(f"GitLab cannot be asked whether this job still counts: {failure.cause}")
        return ""
    return "for GitLab this job is over: cancelled, or its runner was lost" if over else ""
