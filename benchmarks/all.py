"""Measure glgpu against its rivals and write benchmarks/RESULTS.md: python benchmarks/all.py [--only NAME] [--scale N].

Twenty minutes on an idle machine of two cores, with `.venv/bin/python` after `eval "$(ci/engine start)"`. Each section
is written as soon as it is measured. What needs something that this machine lacks (Docker, OpenSSH's sshd, gcloud, a
GPU) is left out, and RESULTS.md says so. With --scale, sizes and latencies are that part of the full ones: for trying
out, not for figures.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

import results  # noqa: E402

GROUPS = ("startup", "doctor", "next_try", "life_cycle", "log_lines", "transfer", "memory", "cleanup", "gpu")
"""The modules beside this one, each with a docstring that says what it does, and `measure(scale)`."""


def measured(name: str, scale: float) -> tuple[list[results.Line], bool]:
    """Measure one group and write its section; the figures, and whether it came to its end."""
    module = importlib.import_module(name)
    about = " ".join((module.__doc__ or "").split("\n\n", 1)[0].split())
    load, begun = os.getloadavg()[0], time.monotonic()
    print(f"== {name}: {about}", flush=True)
    lines, failed = list[results.Line](), False
    try:
        lines = module.measure(scale)
    except results.NotMeasured as missing:
        note = f"**Not measured**: {missing}."
    except Exception as error:
        # The others are measured all the same.
        traceback.print_exc()
        note, failed = f"**Failed**: {type(error).__name__}.", True
    else:
        note = results.machine(load, time.monotonic() - begun, scale)
    for line in lines:
        print("   " + " | ".join(line.cells()), flush=True)
    print(f"   {note}", flush=True)
    results.write(name, results.section(name, about, lines, note), GROUPS)
    return lines, not failed


def main() -> int:
    """Measure what was asked for; 1 where something fell short of its aim, or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", action="append", choices=GROUPS, help=f"one of {', '.join(GROUPS)}")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full sizes and latencies")
    chosen = parser.parse_args()
    found = [measured(name, chosen.scale) for name in chosen.only or GROUPS]
    lines = [line for one, _ in found for line in one]
    missed = [line for line in lines if line.missed]
    print(f"== {len(lines)} figures, {len(missed)} short of their aim; written to {results.RESULTS}")
    for line in missed:
        print("   " + " | ".join(line.cells()))
    return 0 if not missed and all(ended for _, ended in found) else 1


if __name__ == "__main__":
    sys.exit(main())
