"""What sees a detached training home, run for real in a stand-in VM, which leaves things in the stand-in GitLab."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance
from glgpu.rehearsal.faults import Rule
from glgpu.run_names import RunName
from glgpu.saved import HANDED_OVER, PROBE, Save, collected_mark, manifests, read_save
from glgpu.steps import detach
from glgpu.steps.bring_back import bring_back
from glgpu.steps.checkout import check_out
from glgpu.steps.container import Container, Workload
from glgpu.steps.context import Run, hard_end_of
from glgpu.steps.detach import hand_over, is_detached, leaves_it
from glgpu.steps.door import Guest, Way, log_in, open_door
from lab import IMAGE, Lab, end_vm, lab, vm_of

PART = 10 << 20


@dataclass
class Vm:
    """A VM with the code on it, and the door open."""

    lab: Lab
    run: Run
    instance: Instance
    guest: Guest
    way: Way

    def start(self, script: str, **secrets: str) -> None:
        told = {name: (value, False) for name, value in secrets.items()}
        work = Workload(IMAGE, ["python3", "-c", script], {}, told, ["weights"], "", False, None)
        Container(self.run, self.guest.machine, self.instance, self.way).start(work, self.guest.home)

    def status(self) -> str:
        found = self.run.cloud.get(self.instance.name, self.instance.zone)
        return found.status if found else "gone"

    def save(self) -> Save:
        """The newest save."""
        name, *_ = manifests(self.run.forge.parts(self.run.name))
        data = bytearray()
        self.run.forge.get_part(self.run.name, name, 0, data.extend)
        return read_save(bytes(data))

    def named(self, name: RunName) -> Run:
        assert name == self.run.name
        return self.run

    def dies(self) -> None:
        """As if it had been preempted without a word."""
        end_vm(self.run.cloud, self.instance.name, self.instance.zone)


def eventually(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vm]:
    monkeypatch.setattr(detach, "PART_BYTES", PART)
    with lab(tmp_path) as made:
        checkout = tmp_path / "checkout"
        subprocess.run(["git", "clone", "-q", str(made.adopted.project.repository), str(checkout)], check=True)
        run = made.run(checkout, GLGPU_TRAIN_FOLLOW="false", GLGPU_TRAIN_SECRETS="API_KEY", API_KEY="hush-hush/1")
        instance = vm_of(run)
        with open_door(run, instance) as way:
            guest = log_in(run, instance, way)
            check_out(run, guest.machine, hard_end_of(instance))
            yield Vm(made, run, instance, guest, way)


def test_what_a_detached_training_leaves_comes_home_as_it_was_and_nothing_of_it_is_left(vm: Vm) -> None:
    vm.start(
        "import os, pathlib, random\n"
        "random.seed(1)\n"
        "for name, size in ('a', 0), ('b c', 5), ('d/e', 100), ('big', 33 << 20):\n"
        "    path = pathlib.Path('weights', name)\n"
        "    path.parent.mkdir(parents=True, exist_ok=True)\n"
        "    path.write_bytes(random.randbytes(size))\n"
        "pathlib.Path('weights', 'odd\\\\name\\nof two lines').write_text('x')\n"
        "pathlib.Path('checkpoints').mkdir()\n"
        "pathlib.Path('checkpoints/last').write_text('step 7')\n"
        "print('my key is', os.environ['API_KEY'])\n",
        API_KEY="hush-hush/1",
    )
    assert leaves_it(vm.run, vm.instance, vm.guest)
    assert PROBE not in vm.run.forge.parts(vm.run.name)
    hand_over(vm.run, vm.instance, vm.guest)
    weights = Path(vm.guest.home) / "code" / "weights"
    eventually(lambda: vm.status() == "TERMINATED")
    there = {path.relative_to(weights.parent): path.read_bytes() for path in weights.rglob("*") if path.is_file()}
    save = vm.save()
    assert (save.whole, save.reason, save.exit_code, save.out_of_memory) == (True, "ended", 0, False)
    assert [token.name for token in vm.run.forge.deploy_tokens()] == [str(vm.run.name)]
    failures = bring_back(vm.run, vm.run.clock.now, vm.named)
    assert [str(one) for one in failures] == []
    home = vm.run.outputs
    assert {one: (home / one).read_bytes() for one in there} == there
    assert (home / "checkpoints/last").read_text() == "step 7"
    assert (home / "glgpu/train.log").read_bytes() == b"my key is [MASKED]\n"
    sums = subprocess.run(["sha256sum", "-c", "--quiet", "glgpu/SHA256SUMS"], cwd=home, check=False)
    assert sums.returncode == 0
    assert (vm.status(), vm.run.forge.deploy_tokens()) == ("gone", [])


def test_a_vm_that_does_not_get_out_lets_its_training_be_followed_only_where_that_is_allowed(vm: Vm) -> None:
    vm.lab.world.faults.rules.append(Rule("vm.egress", "refuse"))
    try:
        with pytest.raises(Failure) as caught:
            leaves_it(vm.run, vm.instance, vm.guest)
    finally:
        vm.lab.world.faults.lift("vm.egress")
    assert "proving the way home" in caught.value.cause
    assert vm.run.forge.deploy_tokens() == []


def test_what_opens_the_registry_is_told_to_nobody_else(vm: Vm) -> None:
    seen: list[str] = []
    vm.start("import time; time.sleep(600)")
    assert leaves_it(vm.run, vm.instance, vm.guest)
    hand_over(vm.run, vm.instance, vm.guest)
    (token,) = vm.lab.adopted.project.deploy_tokens.values()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            seen.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    assert not any(token.value in one for one in seen)
    log = vm.lab.said.getvalue().decode()
    assert token.value not in log
    assert not any(
        token.value in path.read_text(errors="replace") for path in Path("/dev/shm").rglob("*") if path.is_file()
    )
    found = vm.run.cloud.get(vm.instance.name, vm.instance.zone)
    assert found is not None
    assert is_detached(found)
    assert HANDED_OVER in vm.run.forge.parts(vm.run.name)


def test_a_vm_that_dies_without_a_word_is_told_of_once(vm: Vm) -> None:
    vm.start("import time; time.sleep(600)")
    assert leaves_it(vm.run, vm.instance, vm.guest)
    hand_over(vm.run, vm.instance, vm.guest)
    assert bring_back(vm.run, vm.run.clock.now, vm.named) == []
    vm.dies()
    failures = bring_back(vm.run, vm.run.clock.now, vm.named)
    assert [one.klass for one in failures] == [ErrorClass.PREEMPTED]
    assert collected_mark(vm.run.job.job_id) in vm.run.forge.parts(vm.run.name)


def test_the_stand_ins_curl_knows_what_the_keeper_uses_and_no_more(vm: Vm) -> None:
    nobody, metadata = "http://127.0.0.1:1/x", "http://metadata.google.internal/computeMetadata/v1/instance/name"
    for words, code in (
        (f"-sSf -T - {nobody}", 7),
        (f"-sS -T - {nobody}", 2),
        (f"-sSf -T file {nobody}", 2),
        (f"-sSf --upload-file - {nobody}", 2),
        (f"-sSf -T - {metadata}", 22),
        ("-sSf https://gitlab.example.com/", 6),
    ):
        assert vm.guest.machine.run(f"echo x | curl {words}").code == code


def test_of_a_vm_that_is_taken_away_the_checkpoints_come_home_first_and_then_the_rest(vm: Vm) -> None:
    vm.start(
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    pathlib.Path('checkpoints/last').write_text('step 8')\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "for name in 'checkpoints', 'weights':\n"
        "    pathlib.Path(name).mkdir()\n"
        "pathlib.Path('weights/half').write_text('half')\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(600)\n"
    )
    assert leaves_it(vm.run, vm.instance, vm.guest)
    hand_over(vm.run, vm.instance, vm.guest)
    eventually(lambda: (Path(vm.guest.home) / "code/ready").exists())
    # The metadata server says that the VM is taken away; who takes it is another story.
    instances = vm.lab.world.compute.instances
    vm.lab.world.soon(instances.get(vm.instance.zone, vm.instance.name).preempted.set)
    eventually(lambda: vm.status() == "TERMINATED")
    assert len(manifests(vm.run.forge.parts(vm.run.name))) == 2
    (failure,) = bring_back(vm.run, vm.run.clock.now, vm.named)
    assert failure.klass is ErrorClass.PREEMPTED
    assert (vm.run.outputs / "checkpoints/last").read_text() == "step 8"
    assert (vm.run.outputs / "weights/half").read_text() == "half"
