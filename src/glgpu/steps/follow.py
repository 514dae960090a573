"""Follow a training: its output comes here, whole to a file and to the job log within its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from glgpu.console import LOG_BUDGET, TAIL, TrainingLog
from glgpu.steps.container import Container, Ended
from glgpu.steps.context import Run
from glgpu.steps.sums import OWN_FOLDER

LOG_FILE = f"{OWN_FOLDER}/train.log"
LEAST_BUDGET = 50_000
"""Bytes of output that each VM may have shown in the job log, however much those before it have."""


class Companion(Protocol):
    """Goes along while a training is followed."""

    def beat(self) -> None:
        """Called about once a second by whoever follows, whether there is output or none; must not wait."""


class Listener(Protocol):
    """Hears what a training prints."""

    def feed(self, data: bytes, stamp: str) -> None:
        """Take more of its output, masked.

        Args:
            data: The output.
            stamp: When the last of it was printed, as the engine writes it.
        """


@dataclass
class Told:
    """What a training has printed on the VMs that it ran on before.

    Attributes:
        shown: Bytes of it that are in the job log, whose budget is one for all of them.
        heading: The line that goes before what comes next in train.log; empty: nothing was there before.
    """

    shown: int = 0
    heading: str = ""


def follow(
    run: Run,
    container: Container,
    companions: Sequence[Companion] = (),
    listeners: Sequence[Listener] = (),
    *,
    taken_up: bool = False,
    told: Told | None = None,
) -> Ended:
    """Follow the run's container to its end.

    Args:
        run: The run.
        container: The container, started.
        companions: What goes along.
        listeners: Who hears the output too.
        taken_up: Whether another job has followed it before: what it printed meanwhile goes to the file alone, but for
            the last lines.
        told: What the training has printed on other VMs before; None: nothing.

    Raises:
        Failure: PREEMPTED or OUT_OF_TIME when the VM is gone, SSH when it cannot be reached any more.
    """
    told = told or Told()
    budget = max(LEAST_BUDGET, LOG_BUDGET - told.shown)
    log = TrainingLog(run.console, f"outputs/{LOG_FILE}", budget=budget, tail=min(TAIL, budget // 2), earlier=taken_up)
    tee = _Tee(run, log, listeners, told.heading)

    def beat() -> None:
        for companion in companions:
            companion.beat()

    try:
        ended = container.attach(tee, beat, log.live if taken_up else None, tee.stamped)
    finally:
        tee.close()
        log.close()
        told.shown += log.shown
    run.record.add("training-ended", exit_code=ended.code, out_of_memory=ended.out_of_memory)
    return ended


class _Tee:
    """The output goes to the job log within its budget, and whole to a file.

    The training is worth more than its log: a file that cannot be written is said once, and is no failure.
    """

    def __init__(self, run: Run, log: TrainingLog, listeners: Sequence[Listener], heading: str) -> None:
        self._run = run
        self._log = log
        self._listeners = listeners
        self._stamp = ""
        self._file: BinaryIO | None = None
        path = run.outputs / LOG_FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what is shown is also kept, and closing it has nothing left to write.
            self._file = path.open("ab" if heading else "wb", buffering=0)
            if heading:
                self._file.write(f"{heading}\n".encode())
        except OSError as error:
            self._give_up(error)

    def stamped(self, stamp: str) -> None:
        """The last of what comes next was printed then."""
        self._stamp = stamp

    def feed(self, data: bytes) -> None:
        """Take more of the output."""
        self._log.feed(data)
        for listener in self._listeners:
            listener.feed(data, self._stamp)
        if self._file is None:
            return
        try:
            self._file.write(data)
        except OSError as error:
            self.close()
            self._give_up(error)

    def close(self) -> None:
        """The output has ended."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _give_up(self, error: OSError) -> None:
        self._run.console.say(f"glgpu: outputs/{LOG_FILE} cannot be written: {error.strerror}")
