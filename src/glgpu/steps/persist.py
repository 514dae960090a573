"""Steps of which each is tried, whatever became of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from glgpu.errors import ErrorClass, Failure
from glgpu.steps.context import Run

T = TypeVar("T")


class Attempts:
    """Steps of which each is tried, whatever became of the others.

    Attributes:
        failures: What went wrong, in order.
        left: What is still there because a step failed.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.failures: list[Failure] = []
        self.left: list[str] = []

    def get(self, step: Callable[[], T]) -> T | None:
        """What a step returns; None where it failed."""
        try:
            return step()
        except Failure as failure:
            self._note(failure)
            return None

    def insist(self, step: Callable[[], T], *, removes: str = "") -> T | None:
        """The same of a step that nobody else may come to do: what a signal cut short is done over.

        Args:
            step: The step.
            removes: What stays if it fails.
        """
        try:
            return self.undisturbed(step)
        except Failure as failure:
            self._note(failure)
            self.left += [removes] if removes else []
            return None

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
