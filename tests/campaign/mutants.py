"""Whether the campaign would notice: old mistakes are put back into a copy of glgpu, one after another."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATCHES = ROOT / "tests" / "mutants"
CASES = 100
"""Within so many cases each has to be found."""


def main(seed: int, workers: int) -> int:
    """Let the campaign look for each; the last line tells how many it found."""
    missed = []
    patches = sorted(PATCHES.glob("*.patch"))
    for patch in patches:
        begun = time.monotonic()
        first = first_red(patch, seed, workers)
        found = f"found by case {first}" if first is not None else f"NOT found within {CASES} cases"
        print(f"{patch.stem}: {found}, after {time.monotonic() - begun:.0f} s", flush=True)
        missed += [patch] if first is None else []
    print(f"{len(patches) - len(missed)} passed, {len(missed)} failed")
    return 1 if missed else 0


def first_red(patch: Path, seed: int, workers: int) -> int | None:
    """The first case that fails with a mistake; None where none does."""
    with tempfile.TemporaryDirectory(prefix="glgpu-mutant-") as folder:
        source = mutated(patch, Path(folder))
        done = subprocess.run(
            [sys.executable, "-m", "campaign", "--cases", str(CASES), "--seed", str(seed), "--workers", str(workers),
             "--until-red", "--source", source],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT / "tests")}, stdout=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    red = re.search(r"^ *(\d+) FAILED (.*)", done.stdout, re.MULTILINE)
    if red is None:
        return None
    broken = re.search(r"^ *broken: (.*)", done.stdout, re.MULTILINE)
    print(f"{patch.stem}: {red[2].strip()}\n    {broken[1] if broken else ''}")
    return int(red[1])


def mutated(patch: Path, folder: Path) -> Path:
    """A copy of glgpu with a mistake in it; its folder `src`.

    Raises:
        subprocess.CalledProcessError: The patch does not apply any more.
    """
    for name in ("src", "terraform", "ci", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    subprocess.run(["git", "apply", "--whitespace=nowarn", str(patch)], cwd=folder, check=True)
    return folder / "src"
