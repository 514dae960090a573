"""What a process of glgpu needs beyond what it had before, while 10 GiB of weights and 1 GiB of log pass through it.

The weights are ten files of 1 GiB, the log is of lines of about 100 bytes. It is resident memory, its peak as the
kernel has it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from results import Line

GIB = 1 << 30
FILES, CHUNKS, CHUNK_LINES = 10, 64, 160_000
DOCKER = """\
#!/bin/sh
case $* in
*logs*) i=0; while [ $i -lt {chunks} ]; do cat "{chunk}"; i=$((i + 1)); done ;;
*inspect*) echo '{{"Running": false, "ExitCode": 0, "OOMKilled": false}}' ;;
esac
"""
MOST_MIB = 32.0


def measure(scale: float) -> list[Line]:
    """In a process of its own."""
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([here, str(Path(here).parent / "tests")])
    done = subprocess.run(
        [sys.executable, __file__, str(scale)], stdout=subprocess.PIPE, text=True, check=True,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    lines = []
    for what, before, peak in json.loads(done.stdout):
        figures = f"{before:.0f} MiB before, {peak:.0f} MiB at its peak"
        lines.append(Line(what, "the same process before", peak - before, figures, "{:+.1f} MiB", most=MOST_MIB))
    return lines


def passing(scale: float) -> list[tuple[str, float, float]]:
    """Let both pass through this process: what it was, and resident MiB before and at the peak."""
    from log_lines import followed
    from loopback import loopback
    from transfer import emptied, write_random

    from glgpu.steps.collect import collect

    with loopback() as vm:
        one = vm.code / "weights/0.bin"
        write_random(one, int(GIB * scale))
        for number in range(1, FILES):
            os.link(one, one.with_name(f"{number}.bin"))
        chunk = vm.folder / "chunk"
        with chunk.open("w") as file:
            for number in range(CHUNK_LINES):
                file.write(f"2026-11-28T08:00:00.{number:09d}Z step {number:09d} {'loss 1.2345 ' * 7}.\n")
        vm.program("docker", DOCKER.format(chunk=chunk, chunks=max(1, int(CHUNKS * scale))))
        figures = []
        with emptied(vm.outputs):
            for what, work in (
                (
                    f"{FILES * scale:g} GiB of weights",
                    lambda: collect(vm.stage.run, vm.machine, str(vm.home), ["weights"]),
                ),
                (f"{scale:g} GiB of log", lambda: followed(vm)),
            ):
                before = _resident("VmRSS")
                Path("/proc/self/clear_refs").write_text("5")
                work()
                figures.append((what, before, _resident("VmHWM")))
        return figures


def _resident(name: str) -> float:
    """A figure of this process's memory, in MiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(passing(float(sys.argv[1]))))
