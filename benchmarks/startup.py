"""How long `glgpu --help` takes, as a ratio to a bare click program in the same run.

Run it: python benchmarks/startup.py [ROUNDS]. Both are started in turns, so that a busy machine slows both alike.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = "import click\n@click.group()\ndef cli():\n    'Bare.'\ncli(prog_name='bare')\n"


def seconds(argv: list[str]) -> float:
    """Wall-clock time of one start."""
    begun = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main(rounds: int) -> float:
    """The ratio of the medians."""
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE, encoding="utf-8")
        rivals = {
            "bare click": [sys.executable, str(bare), "--help"],
            "glgpu": [sys.executable, "-c", "from glgpu.cli import main; main()", "--help"],
        }
        times: dict[str, list[float]] = {name: [] for name in rivals}
        for argv in rivals.values():
            seconds(argv)
        for _ in range(rounds):
            for name, argv in rivals.items():
                times[name].append(seconds(argv))
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratio = medians["glgpu"] / medians["bare click"]
    for name, median in medians.items():
        print(f"{name}: median of {rounds}: {median * 1000:.0f} ms")
    print(f"glgpu --help / bare click --help: {ratio:.2f}")
    return ratio


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
