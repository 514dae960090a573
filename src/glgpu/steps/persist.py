"""Steps of which each is tried, whatever became of the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from glgpu.errors import ErrorClass, Failure
from glgpu.steps.context import Run

T = TypeVar("T")


class Attempts:
    """Steps of which each is tried, whatever became of the others.

    Attributes:
        failures: What went wrong, in order.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.failures: list[Failure] = []

    def get(self, step: Callable[[], T]) -> T | None:
        """What a step returns; None where it failed."""
        try:
            return step()
        except Failure as failure:
            self._note(failure)
            return None

    def insist(self, step: Callable[[], T]) -> T | None:
        """The same of a step that nobody else may come to do: what a signal cut short is done over."""
        return self.get(partial(self.undisturbed, step))

    def undisturbed(self, step: Callable[[], T]) -> T:
        """What a step returns; done over where a signal cut it short, which is noted and comes once.

        Raises:
            Failure: of the step.
        """
        try:
            return step()
        except Failure as failure:
            if failure.klass is not ErrorClass.INTERRUPTED:
                raise
            self._note(failure)
        return step()

    def _note(self, failure: Failure) -> None:
        self._run.console.say(f"{failure.klass}: {failure.cause}")
        self.failures.append(failure)
