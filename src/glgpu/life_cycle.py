"""The whole life of a run in one process, for a laptop: whatever happens, it ends with the teardown."""

from __future__ import annotations

from collections.abc import Callable

from glgpu.errors import ErrorClass, Failure, gravest
from glgpu.stages.destroy import destroy
from glgpu.stages.provision import provision
from glgpu.stages.train import train
from glgpu.steps.context import Run


def whole_life(run: Run, give_up: Callable[[], bool]) -> None:
    """provision, train, destroy.

    Args:
        run: The run.
        give_up: Asked after Ctrl-C: True ends the run; False goes on, which is possible because the training runs
            detached on the VM.

    Raises:
        Failure: the gravest of what went wrong.
    """
    failures: list[Failure] = []
    try:
        provision(run)
        _train(run, give_up)
    except Failure as failure:
        run.console.failure(failure)
        failures.append(failure)
    finally:
        # In a `finally`, so that a mistake of our own leaves no VM behind either.
        try:
            destroy(run)
        except Failure as failure:
            failures.append(failure)
    worst = gravest(failures)
    if worst is not None:
        raise worst


def _train(run: Run, give_up: Callable[[], bool]) -> None:
    while True:
        try:
            train(run, ends_own_vm=False)
            return
        except Failure as failure:
            if failure.klass is not ErrorClass.INTERRUPTED or give_up():
                raise
