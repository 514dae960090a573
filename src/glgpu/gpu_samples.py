"""What was sampled of a VM's GPUs while it trained: ``outputs/glgpu/gpu.csv``, and its lines as the VM writes them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

COLUMNS = (
    "time", "gpu", "use_percent", "memory_used_mib", "memory_mib", "temperature_c", "power_w", "processes",
    "cpu_percent",
)  # fmt: skip
MOST_MOMENTS = 4000
"""Of which samples are kept; more than a picture shows."""


@dataclass(frozen=True, order=True)
class Sample:
    """One GPU at one moment; what the driver does not tell is None.

    Attributes:
        at: Unix time by the VM's clock.
        gpu: Its number on the VM.
        use: Percent of the last second or less in which something was computed.
        used_mib: Its memory that is in use, in MiB.
        memory_mib: All of its memory, in MiB.
        celsius: Its temperature.
        watts: What it draws.
        processes: How many processes have a GPU of the VM open.
        cpu: What the VM's CPUs did since the moment before, in percent of one of them.
    """

    at: float
    gpu: int
    use: float | None = None
    used_mib: float | None = None
    memory_mib: float | None = None
    celsius: float | None = None
    watts: float | None = None
    processes: float | None = None
    cpu: float | None = None


def read_samples(text: str) -> list[Sample]:
    """The samples in a text, in their order; a line that is none, torn ones and the header too, is passed over."""
    return [sample for row in csv.reader(text.splitlines()) if (sample := _sample(row)) is not None]


def csv_text(samples: Iterable[Sample]) -> str:
    """The samples as a file, with a header, the oldest first."""
    lines = [",".join(COLUMNS)]
    for one in sorted(samples, key=lambda sample: (sample.at, sample.gpu)):
        when = datetime.fromtimestamp(one.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        values = (one.use, one.used_mib, one.memory_mib, one.celsius, one.watts, one.processes, one.cpu)
        lines.append(",".join([when, str(one.gpu), *("" if value is None else f"{value:g}" for value in values)]))
    return "\n".join(lines) + "\n"


class Samples:
    """Samples from several tellings of them, each kept once; thinned to every other moment when they grow many."""

    def __init__(self) -> None:
        self._known: dict[tuple[float, int], Sample] = {}

    def add(self, samples: Iterable[Sample]) -> list[Sample]:
        """Take samples; those that are new, in the order given."""
        new = []
        for one in samples:
            if (one.at, one.gpu) not in self._known:
                self._known[one.at, one.gpu] = one
                new.append(one)
        moments = sorted({at for at, _ in self._known}) if new else []
        while len(moments) > MOST_MOMENTS:
            moments = moments[::2]
            kept = set(moments)
            self._known = {key: one for key, one in self._known.items() if key[0] in kept}
        return new

    def __len__(self) -> int:
        return len(self._known)

    @property
    def text(self) -> str:
        """All of them as a file."""
        return csv_text(self._known.values())


def _sample(row: list[str]) -> Sample | None:
    if len(row) != len(COLUMNS) or not row[1].isdigit():
        return None
    try:
        at = datetime.strptime(row[0], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
    return Sample(at, int(row[1]), *map(_number, row[2:]))


def _number(text: str) -> float | None:
    """A number; None where the driver said ``N/A`` or the like."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
