"""How long `glgpu doctor` takes by itself, as a ratio to importing google-cloud-compute alone in the same run.

Run it: python benchmarks/doctor.py [ROUNDS]. The answers come from stand-ins on this machine, which take no time worth
the name; both are started in turns, so that a busy machine slows both alike.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

GLGPU = [sys.executable, "-c", "from glgpu.cli import main; main()"]
SETTINGS = """\
machine: {gpu: [nvidia-l4, nvidia-tesla-t4], zones: [europe-west4-a, europe-west4-b, europe-west1-b]}
train: {image: "registry.example.com/team/train:1"}
"""


def seconds(argv: list[str], environment: Mapping[str, str], folder: str) -> float:
    """Wall-clock time of one start."""
    begun = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=environment, cwd=folder)
    return time.perf_counter() - begun


def main(rounds: int) -> float:
    """The ratio of the medians."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "glgpu.yml").write_text(SETTINGS, encoding="utf-8")
        with subprocess.Popen([*GLGPU, "rehearse", "--serve", folder], stdout=subprocess.PIPE) as served:
            assert served.stdout is not None
            environment = os.environ | json.loads(served.stdout.readline())["environment"]
            rivals = {
                "importing google-cloud-compute": [sys.executable, "-c", "import google.cloud.compute_v1"],
                "glgpu doctor": [*GLGPU, "doctor"],
            }
            times: dict[str, list[float]] = {name: [] for name in rivals}
            for argv in rivals.values():
                seconds(argv, environment, folder)
            for _ in range(rounds):
                for name, argv in rivals.items():
                    times[name].append(seconds(argv, environment, folder))
            served.terminate()
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratio = medians["glgpu doctor"] / medians["importing google-cloud-compute"]
    for name, median in medians.items():
        print(f"{name}: median of {rounds}: {median:.2f} s")
    print(f"glgpu doctor / importing google-cloud-compute: {ratio:.2f}")
    return ratio


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
