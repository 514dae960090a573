"""What the benchmarks have in common: a line of RESULTS.md, a section of it, and how long a command takes."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """\
# Measured

Ratios against named rivals in the same run, glgpu's figure by the rival's; absolute figures, glgpu's first, are this
machine's alone. `python benchmarks/all.py` measures everything again, `--only NAME` one section. **Bold** where the aim
is missed.
"""


class NotMeasured(Exception):
    """Something that a benchmark needs is not on this machine."""


@dataclass(frozen=True)
class Line:
    """One figure.

    Attributes:
        what: What was measured.
        rival: Against whom.
        value: The figure.
        form: How it is shown, a format string.
        figures: The absolute ones behind it.
        most: The aim, where it is an upper bound.
        least: The aim, where it is a lower bound.
    """

    what: str
    rival: str
    value: float
    figures: str = ""
    form: str = "{:.2f}"
    most: float | None = None
    least: float | None = None

    @property
    def missed(self) -> bool:
        """Whether it falls short of its aim."""
        over = self.most is not None and self.value > self.most
        return over or (self.least is not None and self.value < self.least)

    def cells(self) -> list[str]:
        """The cells of its row."""
        shown = self.form.format(self.value)
        aim = "" if self.most is None else f"<= {self.form.format(self.most)}"
        aim = aim if self.least is None else f">= {self.form.format(self.least)}"
        return [self.what, self.rival, f"**{shown}**" if self.missed else shown, aim, self.figures]


def section(name: str, about: str, lines: Sequence[Line], note: str) -> str:
    """A section of RESULTS.md."""
    head = ["what", "against", "measured", "aim", "figures"]
    rows = [head, ["---"] * len(head), *(line.cells() for line in lines)] if lines else []
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"## {name}\n\n{about}\n\n{table}{chr(10) if table else ''}{note}\n"


def write(name: str, text: str, order: Sequence[str]) -> None:
    """Put a section in the place of the one that is there; the others stay."""
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    sections = {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in re.split(r"^## ", old, flags=re.M)[1:]}
    sections[name] = text
    kept = [sections[known] for known in order if known in sections]
    RESULTS.write_text("\n".join([HEAD, *kept]), encoding="utf-8")


def machine(load_before: float, seconds: float, scale: float) -> str:
    """The machine, the day, and how busy it was."""
    release = Path("/etc/os-release")
    named = re.search(r'^PRETTY_NAME="(.*)"', release.read_text(), re.M) if release.exists() else None
    cpu = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    size = "" if scale == 1 else f", sizes and latencies scaled by {scale:g}"
    load = f"load {load_before:.1f} before, {os.getloadavg()[0]:.1f} after {seconds:.0f} s"
    return (
        f"{os.cpu_count()} cores{f' ({cpu[1]})' if cpu else ''}, {named[1] if named else platform.platform()}, "
        f"Python {platform.python_version()}; {load}; {time.strftime('%Y-%m-%d', time.gmtime())}{size}."
    )


def medians(rivals: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: bool = True) -> dict[str, float]:
    """The median of what each rival takes, in turns, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(int(warm_up)):
        for once in rivals.values():
            once()
    for _ in range(rounds):
        for name, once in rivals.items():
            times[name].append(once())
    return {name: statistics.median(found) for name, found in times.items()}


def seconds(
    argv: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, folder: str | Path | None = None
) -> float:
    """Wall-clock time of one command, which has to end well."""
    begun = time.perf_counter()
    done = subprocess.run(
        argv, env=environment and os.environ | environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{argv[:4]}: {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - begun
