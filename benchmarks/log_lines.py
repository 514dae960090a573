"""100,000 lines of a container's log, against `ssh docker logs -f` through the same sshd.

To the last byte in a file, which is the same in both. glgpu has Docker put time stamps before the lines, by which it
goes on after a break and knows when a loss was printed; it strips them, masks, and shows what fits into a job log. The
second rival has the time stamps too, and leaves them where they are. What makes up for their price: the VM sends
together what comes within 20 ms.
"""

from __future__ import annotations

import subprocess
import time
from functools import partial
from pathlib import Path

from loopback import Loopback, loopback
from results import Line, NotMeasured, medians
from transfer import emptied, shell

from glgpu.steps.container import Container
from glgpu.steps.door import Way
from glgpu.steps.follow import LOG_FILE, follow

ROUNDS = 5
LINES = 100_000
BASE = "glgpu-rehearsal-base"
PROGRAM = "for n in range({lines}): print('step', n, 'loss 1.2345, accuracy 0.6789, 1234 examples a second')"


def measure(scale: float) -> list[Line]:
    """Both read the log of a container that has ended, in turns."""
    lines = int(LINES * scale)
    with loopback() as vm:
        _docker("run", "-d", "--name", vm.stage.name, BASE, "python3", "-c", PROGRAM.format(lines=lines))
        try:
            _docker("wait", vm.stage.name)
            return _against(vm, lines)
        finally:
            _docker("rm", "-f", "-v", vm.stage.name)


def _against(vm: Loopback, lines: int) -> list[Line]:
    kept = vm.folder / "rival.log"

    def logs(*options: str) -> float:
        command = " ".join(["docker logs -f", *options, vm.stage.name])
        begun = time.time()
        shell(f"{vm.shell(command)} >{kept}{''.join(options)}")
        return Path(f"{kept}{''.join(options)}").stat().st_mtime - begun

    def mine() -> float:
        vm.machine.hang_up()  # whoever measures against it logs in, too
        with emptied(vm.outputs):
            begun, whole = time.time(), vm.outputs / LOG_FILE
            followed(vm)
            assert whole.read_bytes() == kept.read_bytes(), "train.log is not what docker logs says"
            return whole.stat().st_mtime - begun

    found = medians({"rival": logs, "stamped": partial(logs, "--timestamps"), "glgpu": mine}, ROUNDS)
    assert len(kept.read_bytes().splitlines()) == lines
    told = []
    for name, options in (("rival", ""), ("stamped", " --timestamps")):
        figures = f"{lines / found['glgpu']:.0f} and {lines / found[name]:.0f} lines/s, order kept, none lost"
        rival = f"`ssh docker logs -f{options}`"
        told.append(Line(f"{lines} log lines", rival, found[name] / found["glgpu"], figures, least=0.95))
    return told


def followed(vm: Loopback) -> None:
    """Follow the run's container to its end."""
    instance = vm.stage.vm()
    follow(vm.stage.run, Container(vm.stage.run, vm.machine, instance, Way(vm.stage.run, instance)))


def _docker(*words: str) -> None:
    try:
        done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NotMeasured("no docker on PATH") from None
    if done.returncode:
        raise NotMeasured(f'docker {words[0]}: {done.stderr.strip()} (`eval "$(ci/engine start)"`)')
