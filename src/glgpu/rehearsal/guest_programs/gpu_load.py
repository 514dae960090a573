"""What a VM's GPUs are busy with: a container that was given them computes there as much as it does on the CPU.

There is no GPU. So what nvidia-smi shows of one follows the container's processes: their share of a core is its use,
their memory is its memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from glgpu.rehearsal.guest_programs.guest import Guest

LABEL = "glgpu-gpus"
"""Of a container that was given the GPUs."""
WINDOW = 0.1
"""Seconds over which the use is measured; the driver takes between a sixth of a second and one."""
CONTEXT = 300
"""MiB that a process takes on a GPU before it has put anything there."""


@dataclass(frozen=True)
class Load:
    """What every GPU of the VM does.

    Attributes:
        use: Percent of the time in which something was computed.
        processes: Who has them open: process id and MiB.
    """

    use: int = 0
    processes: tuple[tuple[int, int], ...] = ()


NOTHING = Load()


def measure(guest: Guest) -> Load:
    """Look at the containers twice."""
    if guest.machine["gpu_idle"]:
        return NOTHING
    roots = [root for root in _containers(guest) if _ticks([root])]
    begun, before = time.monotonic(), _ticks(_below(roots))
    time.sleep(WINDOW)
    after = _ticks(_below(roots))
    worked = sum(ticks - before.get(pid, 0) for pid, ticks in after.items()) / os.sysconf("SC_CLK_TCK")
    use = min(100, round(100 * worked / (time.monotonic() - begun)))
    return Load(use, tuple((root, CONTEXT + sum(map(_resident, _below([root])))) for root in roots))


def _containers(guest: Guest) -> Iterator[int]:
    """The first process of every running container that was given the GPUs."""
    engine = guest.machine["engine"]
    if engine["client"] is None:
        for folder in (guest.folder / "docker/containers").glob("*"):
            # It may be removed while we look.
            with suppress(OSError, ValueError):
                labels = json.loads((folder / "config.json").read_text())["Config"]["Labels"]
                state = json.loads((folder / "state.json").read_text())
                if LABEL in labels and state["Running"]:
                    yield int(state["Pid"])
        return
    environment = {**os.environ, **({"DOCKER_HOST": engine["host"]} if engine["host"] else {})}

    def ask(*words: str) -> list[str]:
        told = subprocess.run([engine["client"], *words], capture_output=True, text=True, env=environment, check=False)
        return told.stdout.split()

    own = f"label=glgpu-vm={guest.machine['instance_id']}"
    ids = ask("ps", "-q", "--no-trunc", "--filter", own, "--filter", f"label={LABEL}")
    yield from map(int, ask("inspect", "--format", "{{.State.Pid}}", *ids) if ids else [])


def _below(roots: Iterable[int]) -> list[int]:
    """These processes and all that they started."""
    children = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            children[int(_stat(path)[1])].append(int(path.parent.name))
    found = list(roots)
    for pid in found:
        found += children[pid]
    return found


def _ticks(pids: Iterable[int]) -> dict[int, int]:
    """Processor time of each process that is there, in clock ticks."""
    ticks = {}
    for pid in pids:
        with suppress(OSError):
            fields = _stat(Path(f"/proc/{pid}/stat"))
            ticks[pid] = int(fields[11]) + int(fields[12])
    return ticks


def _stat(path: Path) -> list[str]:
    """The fields of /proc/PID/stat from the third on (proc(5)): a name may hold blanks and brackets."""
    return path.read_text().rpartition(")")[2].split()


def _resident(pid: int) -> int:
    """MiB of memory in use."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    return 0
