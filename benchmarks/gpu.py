"""The example on a GPU (CuPy) against the same on the CPU (NumPy): steps per second, and how busy the GPU was."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from results import Line, NotMeasured

EXAMPLE = Path(__file__).parents[1] / "examples/text-generation"
SETTINGS = {"EPOCHS": "1", "HIDDEN": "512", "BATCH": "256", "LEARNING_RATE": "0.002"}
"""What the example takes on a GPU, for both."""
STEPS = {"gpu": 1000, "cpu": 20}
USE = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=500"]


def measure(scale: float) -> list[Line]:
    """One epoch on each; the CPU's is shorter."""
    if shutil.which("nvidia-smi") is None:
        raise NotMeasured("there is no GPU on this machine (no nvidia-smi on PATH)")
    if subprocess.run([sys.executable, "-c", "import cupy"], capture_output=True, check=False).returncode:
        raise NotMeasured(f"there is no CuPy for {sys.executable} (pip install cupy-cuda12x)")
    with subprocess.Popen(USE, stdout=subprocess.PIPE, text=True) as watch:
        device, on_gpu = _steps_per_second("gpu", scale)
        watch.terminate()
        use = [int(line) for line in watch.communicate()[0].split()]
    cpu, on_cpu = _steps_per_second("cpu", scale, CUDA_VISIBLE_DEVICES="")
    figures = f"{on_gpu:.1f} and {on_cpu:.2f} steps/s; GPU use {statistics.median(use):.0f} %"
    return [Line(f"the example's steps on {device}", f"NumPy on {cpu}, same sizes", on_gpu / on_cpu, figures, "{:.0f}")]


def _steps_per_second(kind: str, scale: float, **own: str) -> tuple[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "example"
        shutil.copytree(EXAMPLE, folder)
        steps = {"STEPS": str(max(1, int(STEPS[kind] * scale)))}
        subprocess.run(
            [sys.executable, "train.py"], cwd=folder, env=os.environ | SETTINGS | steps | own, check=True,
            stdout=sys.stderr,
        )  # fmt: skip
        metrics = json.loads((folder / "metrics.json").read_text())
        return metrics["device"], metrics["steps"] / metrics["seconds"]
