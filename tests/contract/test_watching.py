"""GPU samples: taken on the VM beside the container, looked at while it runs, brought home."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from glgpu.gpu_samples import MOST_MOMENTS, Sample, read_samples
from glgpu.steps.checkout import check_out
from glgpu.steps.container import Container, Workload
from glgpu.steps.context import Run, hard_end_of
from glgpu.steps.door import Guest, log_in, open_door
from glgpu.steps.guest import ask, command
from glgpu.steps.watch import SAMPLES_FILE, bring_samples
from lab import IMAGE, ZONE, lab, vm_of

SETTINGS = f"""\
machine: {{gpu: [nvidia-l4], zones: [{ZONE}], spot: never}}
train: {{image: "{IMAGE}", command: python3 train.py, outputs: [weights/]}}
"""
WAITS = "import os, time\nwhile not os.path.exists('weights/go'): time.sleep(0.05)"
WORKS = "import os\nwhile not os.path.exists('weights/go'): sum(range(10_000))"


class Vm:
    """A VM with a GPU, the code on it, and the door open."""

    def __init__(self, run: Run, guest: Guest, container: Container) -> None:
        self.run, self.guest, self.container = run, guest, container

    def start(self, program: str) -> None:
        self.sh("rm -rf glgpu/code/weights glgpu/gpu.csv && mkdir -p glgpu/code/weights")
        argv = ["python3", "-c", program]
        self.container.start(Workload(IMAGE, argv, {}, {}, ["weights"], "", True, None), self.guest.home)

    def go_on(self) -> None:
        self.sh("touch glgpu/code/weights/go")

    def sh(self, script: str) -> str:
        done = self.guest.machine.run(script)
        assert done.code == 0, done.complaint
        return done.text

    def samples(self) -> list[Sample]:
        return read_samples(ask(self.run, self.guest.machine, "samples", doing="looking").text)

    def end(self) -> None:
        self.go_on()
        ask(self.run, self.guest.machine, "wipe", doing="wiping")
        self.guest.machine.run(command(self.run, "hello"))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    folder = tmp_path_factory.mktemp("lab")
    with lab(folder, files={"glgpu.yml": SETTINGS, "train.py": "print('hello')\n"}) as world:
        checkout = folder / "checkout"
        subprocess.run(["git", "clone", "-q", str(world.adopted.project.repository), str(checkout)], check=True)
        run = world.run(checkout)
        instance = vm_of(run)
        with open_door(run, instance) as way:
            guest = log_in(run, instance, way)
            check_out(run, guest.machine, hard_end_of(instance))
            yield Vm(run, guest, Container(run, guest.machine, instance, way))


@pytest.fixture
def vm(room: Vm) -> Iterator[Vm]:
    yield room
    room.end()


def seen(look: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether something is seen within so long."""
    end = time.monotonic() + seconds
    while not look():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def test_samples_come_while_the_container_runs_and_end_with_it(vm: Vm) -> None:
    vm.start(WAITS)
    said = b""
    with vm.guest.machine.stream(command(vm.run, "sampling")) as stream:
        for data in stream.chunks():
            said += data
            if said.count(b"\n") == 2:
                vm.go_on()
    first, second, *_ = read_samples(said.decode())
    assert (first.gpu, first.memory_mib, first.cpu) == (0, 23034, None)
    assert second.at > first.at
    assert second.cpu is not None
    assert abs(first.at - time.time()) < 60
    sitting = vm.sh("cat glgpu/sitting").strip()
    assert seen(lambda: vm.guest.machine.run(f"kill -0 {sitting}").code != 0)
    count = len(vm.samples())
    bring_samples(vm.run, vm.guest.machine)
    assert len(read_samples((vm.run.outputs / SAMPLES_FILE).read_text())) == count >= 2


def test_a_container_that_computes_is_seen_on_its_gpu_and_one_that_waits_is_not(vm: Vm) -> None:
    def use() -> str:
        return vm.sh("nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits").strip()

    def users() -> int:
        return vm.sh("nvidia-smi --query-compute-apps=pid --format=csv,noheader").count("\n")

    assert (use(), users()) == ("0", 0)
    vm.start(WORKS)
    assert seen(lambda: int(use()) > 3)
    assert users() == 1
    vm.go_on()
    assert seen(lambda: users() == 0)
    assert use() == "0"


def test_samples_of_days_are_thinned_to_every_other_moment(vm: Vm) -> None:
    vm.start(WAITS)
    vm.end()
    begin = datetime(2026, 11, 20, tzinfo=UTC)
    moments = [begin + timedelta(seconds=2 * n) for n in range(MOST_MOMENTS)]
    (Path(vm.guest.home) / "gpu.csv").write_text(
        "".join(f"{one:%Y-%m-%dT%H:%M:%SZ},{gpu},1,2,3,4,5,6,7\n" for one in moments for gpu in (0, 1))
    )
    vm.sh("mkdir -p glgpu/code/weights && rm -f glgpu/code/weights/go")
    workload = Workload(IMAGE, ["python3", "-c", WAITS], {}, {}, ["weights"], "", True, None)
    vm.container.start(workload, vm.guest.home)
    assert seen(lambda: len(vm.samples()) < MOST_MOMENTS * 2)
    kept = vm.samples()
    assert [(one.at, one.gpu) for one in kept[:4]] == [(moments[n].timestamp(), gpu) for n in (0, 2) for gpu in (0, 1)]
    assert kept[-1].at > moments[-1].timestamp()
    assert len({one.at for one in kept}) in (MOST_MOMENTS // 2 + 1, MOST_MOMENTS // 2 + 2)
