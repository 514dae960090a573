"""The loss as a training tells it: recognised in its output, kept in ``outputs/glgpu/loss.csv``.

Recognised are lines that hold `loss` and a number behind it (``loss 1.234``, ``loss=1.234``, ``'train_loss': 1.234``,
``validation loss: 1.234``), and ``training 1.234`` and ``held out 1.234`` as the example prints them. What a name with
`val`, `test`, `dev` or `held out` tells, or a line that begins so, is the validation's, all else the training's.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

COLUMNS = ("time", "series", "loss")
MOST_POINTS = 4000
"""Of one series which are kept."""
LONGEST_LINE = 16_384
MOST_AT_ONCE = 20
"""Of the lines that come at once which are looked at: a program that prints without end is not worth more."""
Series = Literal["training", "validation"]
_NUMBER = rb"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|[-+]?inf"
_LOSS = re.compile(
    rb"((?:[a-z]+[ _/.-])?loss)[\"'\]]?\s*[:=]?\s*(" + _NUMBER + rb")(?![\w.])"
    rb"|\b(training|held out) (\d+\.\d+)(?![\w.])",
    re.IGNORECASE,
)
_HINTS = (b"oss", b"OSS", b"raining ", b"eld out ")
"""One of them stands in every line that tells a loss: most output is not looked at any closer."""
_VALIDATION = re.compile(rb"val|test|held|\bdev[ _/.-]|\bout[ _/.-]", re.IGNORECASE)
_OF_VALIDATION = re.compile(rb"\W*(?:val|eval|test)", re.IGNORECASE)
"""How a line begins that is all about it."""


@dataclass(frozen=True, order=True)
class Loss:
    """What the program said its loss is.

    Attributes:
        at: Unix time by the VM's clock.
        series: Of what.
        value: The loss; may be no number or infinite, where a training goes astray.
    """

    at: float
    series: Series
    value: float


def told_in(line: bytes) -> dict[Series, float]:
    """The losses that a line of output tells, the first of each series."""
    found: dict[Series, float] = {}
    for match in _LOSS.finditer(line):
        name, number = (match[1], match[2]) if match[1] else (match[3], match[4])
        validation = _VALIDATION.search(name) or _OF_VALIDATION.match(line)
        found.setdefault("validation" if validation else "training", float(number))
    return found


def read_losses(text: str) -> list[Loss]:
    """The losses in a loss.csv; a line that is none is passed over."""
    found = []
    for row in csv.reader(text.splitlines()):
        if len(row) == len(COLUMNS) and row[1] in ("training", "validation"):
            try:
                at = datetime.fromisoformat(row[0]).timestamp()
                found.append(Loss(at, "training" if row[1] == "training" else "validation", float(row[2])))
            except ValueError:
                continue
    return found


class Losses:
    """Hears a training's output and keeps its losses; when they grow many, every other one of a series."""

    def __init__(self) -> None:
        self._known: dict[Series, dict[float, Loss]] = {"training": {}, "validation": {}}
        self._every: dict[Series, int] = {"training": 1, "validation": 1}
        self._seen: dict[Series, int] = {"training": 0, "validation": 0}
        self._rest = b""
        self._until: float | None = None

    def feed(self, data: bytes, stamp: str) -> None:
        """Take more output.

        Several losses that come at once are spread over the time since what came before, for only the last one's is
        known; of very many some are taken.

        Args:
            data: The output, from its very beginning on.
            stamp: When the last of it was printed, in the engine's form.
        """
        data = self._rest + data
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        whole, self._rest = data[:end], data[end:][-LONGEST_LINE:]
        several = [told for line in _candidates(whole) if (told := told_in(line[-LONGEST_LINE:]))]
        self._take(several, _unix_time(stamp))

    def add(self, losses: Iterable[Loss]) -> None:
        """Take what is known already, as from an earlier job's file."""
        for one in losses:
            self._known[one.series].setdefault(one.at, one)
        for series in self._known:
            self._thin(series)

    def __len__(self) -> int:
        return sum(map(len, self._known.values()))

    @property
    def text(self) -> str:
        """All of them as a file, the oldest first."""
        lines = [",".join(COLUMNS)]
        for one in sorted(self.all, key=lambda loss: (loss.at, loss.series)):
            when = datetime.fromtimestamp(one.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            lines.append(f"{when},{one.series},{one.value:.6g}")
        return "\n".join(lines) + "\n"

    @property
    def all(self) -> list[Loss]:
        """All of them."""
        return [one for known in self._known.values() for one in known.values()]

    def _take(self, several: Sequence[Mapping[Series, float]], at: float | None) -> None:
        if at is None or not several:
            return
        if self._until is None:
            # The same container's output from its beginning: an earlier job that followed it has heard this, too.
            for series, known in self._known.items():
                self._known[series] = {when: one for when, one in known.items() if when < at}
        begin = at if self._until is None else self._until
        for number, told in enumerate(several, 1):
            when = round(begin + (at - begin) * number / len(several), 3)
            for series, value in told.items():
                self._seen[series] += 1
                # One that is no number is never left out.
                if self._seen[series] % self._every[series] == 0 or not math.isfinite(value):
                    self._known[series][when] = Loss(when, series, value)
        self._until = at
        for series in self._known:
            self._thin(series)

    def _thin(self, series: Series) -> None:
        while len(self._known[series]) > MOST_POINTS:
            kept = sorted(self._known[series].items())
            self._known[series] = dict(kept[::2])
            self._every[series] *= 2


def _candidates(data: bytes) -> list[bytes]:
    """The lines that may tell a loss; of many, some from all over.

    Cheap: it is called with all that a training prints.
    """
    found, stride = dict[int, bytes](), len(data) // MOST_AT_ONCE
    data = data.replace(b"\r", b"\n")
    for hint in _HINTS:
        at = data.find(hint)
        while at >= 0:
            begin, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
            found[begin] = data[begin:end]
            at = data.find(hint, max(end, begin + stride))
    return [found[begin] for begin in sorted(found)]


def history_of(metrics: Any) -> dict[Series, list[float]]:
    """The losses in a metrics.json: its ``history``, a list with a mapping for each epoch; empty where it is none.

    The keys of such a mapping are read as names in the output are: `loss`, `val_loss`, `training`, `held_out`.
    """
    history = metrics.get("history") if isinstance(metrics, Mapping) else None
    found: dict[Series, list[float]] = {}
    for entry in history if isinstance(history, list) else []:
        told: dict[Series, float] = {}
        for name, value in entry.items() if isinstance(entry, Mapping) else []:
            plain = str(name).lower().replace("_", " ")
            is_loss = plain.endswith("loss") or plain in ("training", "held out", "validation")
            if is_loss and isinstance(value, int | float) and not isinstance(value, bool):
                series: Series = "validation" if _VALIDATION.search(plain.encode()) else "training"
                with suppress(OverflowError):  # JSON's integers have no end
                    told.setdefault(series, float(value))
        for series, number in told.items():
            found.setdefault(series, []).append(number)
    return found


def _unix_time(stamp: str) -> float | None:
    """Unix time of the engine's time stamp, which has nanoseconds, to the millisecond."""
    try:
        whole = datetime.fromisoformat(stamp[:19] + "+00:00").timestamp()
        return round(whole + float("0" + stamp[19:].rstrip("Z")), 3)
    except ValueError:
        return None
