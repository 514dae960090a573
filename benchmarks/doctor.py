"""How long `glgpu doctor` takes by itself, against importing google-cloud-compute alone.

The answers come from stand-ins on this machine, which take no time worth the name.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

from results import Line, medians, seconds

from rehearsing import GLGPU
from serving import stand_ins

ROUNDS = 8
SETTINGS = """\
machine: {gpu: [nvidia-l4, nvidia-tesla-t4], zones: [europe-west4-a, europe-west4-b, europe-west1-b]}
train: {image: "registry.example.com/team/train:1"}
"""


def measure(scale: float) -> list[Line]:
    """Both are started in turns."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "glgpu.yml").write_text(SETTINGS, encoding="utf-8")
        with stand_ins(GLGPU, Path(folder)) as served:
            rivals = {"glgpu": [GLGPU, "doctor"], "import": [sys.executable, "-c", "import google.cloud.compute_v1"]}
            rounds = max(1, int(ROUNDS * scale))
            once = partial(seconds, environment=served.environment, folder=folder)
            found = medians({name: partial(once, argv) for name, argv in rivals.items()}, rounds)
    figures = ", ".join(f"{one:.2f} s" for one in found.values())
    ratio = found["glgpu"] / found["import"]
    return [Line("`glgpu doctor`, all checks", "`import google.cloud.compute_v1` alone", ratio, figures)]
