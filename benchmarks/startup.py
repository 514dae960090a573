"""How long `glgpu --help` takes, against a bare click program."""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

from results import Line, medians, seconds

ROUNDS = 20
BARE = "import click\n@click.group()\ndef cli():\n    'Bare.'\ncli(prog_name='bare')\n"


def measure(scale: float) -> list[Line]:
    """Both are started in turns."""
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE, encoding="utf-8")
        rivals = {
            "glgpu": [sys.executable, "-c", "from glgpu.cli import main; main()", "--help"],
            "bare": [sys.executable, str(bare), "--help"],
        }
        found = medians({name: partial(seconds, argv) for name, argv in rivals.items()}, max(1, int(ROUNDS * scale)))
    figures = ", ".join(f"{one * 1000:.0f} ms" for one in found.values())
    return [Line("`glgpu --help`", "a bare click program's `--help`", found["glgpu"] / found["bare"], figures, most=2)]
