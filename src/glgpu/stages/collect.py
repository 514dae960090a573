"""collect: detached trainings that are over come home, and nothing of them is left."""

from __future__ import annotations

from collections.abc import Callable

from glgpu.errors import gravest
from glgpu.run_names import RunName
from glgpu.steps.annotate import begin_annotations
from glgpu.steps.bring_back import bring_back
from glgpu.steps.context import Run


def collect(run: Run, now: Callable[[], float], named: Callable[[RunName], Run]) -> None:
    """Collect every detached run of the project that is over.

    Args:
        run: The run that collects.
        now: Google's clock.
        named: Makes a run of our own project under another name.

    Raises:
        Failure: the gravest of what went wrong, with the trainings themselves and with collecting them.
    """
    begin_annotations(run)
    worst = gravest(bring_back(run, now, named))
    if worst is not None:
        raise worst
