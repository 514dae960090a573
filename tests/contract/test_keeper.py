"""What sees a detached training home, run for real in a stand-in VM, which leaves things in GitLab or in a bucket."""

from __future__ import annotations

import fcntl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from command_lines import Watch
from file_contents import contents
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import DropOff, Instance
from glgpu.rehearsal.faults import Rule
from glgpu.resources import resource_text
from glgpu.run_names import RunName
from glgpu.saved import HANDED_OVER, PROBE, Save, collected_mark, manifests, read_save
from glgpu.settings import Settings
from glgpu.steps import detach
from glgpu.steps.bring_back import bring_back
from glgpu.steps.checkout import check_out
from glgpu.steps.container import Container, Workload
from glgpu.steps.context import Run, hard_end_of
from glgpu.steps.detach import hand_over, is_detached, leaves_it, way_home
from glgpu.steps.door import Guest, Way, log_in, open_door
from glgpu.steps.guest import ask
from lab import FILES, IMAGE, SETTINGS, Lab, end_vm, lab, vm_of

PART = 10 << 20
BUCKET, UPLOADER = "team-glgpu", "uploader@my-dl.iam.gserviceaccount.com"
WITH_BUCKET = {**FILES, "glgpu.yml": f"{SETTINGS}storage: {{bucket: {BUCKET}, uploader: {UPLOADER}}}\n"}
EITHER = pytest.mark.parametrize("vm", ["packages", "bucket"], indirect=True)


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

    @property
    def home(self) -> DropOff:
        """Where it leaves what it has."""
        found = way_home(self.run)
        assert found is not None
        return found

    def save(self) -> Save:
        """The newest save."""
        name, *_ = manifests(self.home.parts(self.run.name))
        data = bytearray()
        self.home.get_part(self.run.name, name, 0, data.extend)
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
def vm(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vm]:
    """Of a project without a bucket; or of one with a bucket, whose jobs have no token of GitLab's."""
    monkeypatch.setattr(detach, "PART_BYTES", PART)
    bucket = getattr(request, "param", "packages") == "bucket"
    with lab(tmp_path, files=WITH_BUCKET if bucket else FILES) as made:
        checkout = tmp_path / "checkout"
        subprocess.run(["git", "clone", "-q", str(made.adopted.project.repository), str(checkout)], check=True)
        own = {"GLGPU_TRAIN_FOLLOW": "false", "GLGPU_TRAIN_SECRETS": "API_KEY", "API_KEY": "hush-hush/1"}
        run = made.run(checkout, **own, **({"GLGPU_GITLAB_TOKEN": ""} if bucket else {}))
        instance = vm_of(run)
        with open_door(run, instance) as way:
            guest = log_in(run, instance, way)
            check_out(run, guest.machine, hard_end_of(instance))
            yield Vm(made, run, instance, guest, way)


@EITHER
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
    assert PROBE not in vm.home.parts(vm.run.name)
    hand_over(vm.run, vm.instance, vm.guest)
    weights = Path(vm.guest.home) / "code" / "weights"
    eventually(lambda: vm.status() == "TERMINATED")
    there = {path.relative_to(weights.parent): path.read_bytes() for path in weights.rglob("*") if path.is_file()}
    save = vm.save()
    assert (save.whole, save.reason, save.exit_code, save.out_of_memory) == (True, "ended", 0, False)
    assert tokens(vm) == [str(vm.run.name)] * vm.run.forge.may_administer
    failures = bring_back(vm.run, vm.run.clock.now, vm.named)
    assert [str(one) for one in failures] == []
    home = vm.run.outputs
    assert {one: (home / one).read_bytes() for one in there} == there
    assert (home / "checkpoints/last").read_text() == "step 7"
    assert (home / "glgpu/train.log").read_bytes() == b"my key is [MASKED]\n"
    sums = subprocess.run(["sha256sum", "-c", "--quiet", "glgpu/SHA256SUMS"], cwd=home, check=False)
    assert sums.returncode == 0
    assert (vm.status(), tokens(vm)) == ("gone", [])


def tokens(vm: Vm) -> list[str]:
    """The deploy tokens that GitLab has."""
    return [token.name for token in vm.lab.adopted.project.deploy_tokens.values()]


def test_a_vm_that_does_not_get_out_lets_its_training_be_followed_only_where_that_is_allowed(vm: Vm) -> None:
    vm.lab.world.faults.rules.append(Rule("vm.egress", "refuse"))
    try:
        with pytest.raises(Failure) as caught:
            leaves_it(vm.run, vm.instance, vm.guest)
    finally:
        vm.lab.world.faults.lift("vm.egress")
    assert "proving the way home" in caught.value.cause
    assert tokens(vm) == []


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
    assert not any(token.value.encode() in data for _, data in contents(Path("/dev/shm")))
    found = vm.run.cloud.get(vm.instance.name, vm.instance.zone)
    assert found is not None
    assert is_detached(found)
    assert HANDED_OVER in vm.run.forge.parts(vm.run.name)


@pytest.mark.parametrize("vm", ["bucket"], indirect=True)
def test_the_token_that_opens_the_bucket_is_on_no_command_line_and_where_no_container_sees_it(vm: Vm) -> None:
    folder = Path(vm.guest.home).parents[2]
    vm.start("import time; time.sleep(600)")
    seen: list[str] = []
    with Watch() as watch:
        assert leaves_it(vm.run, vm.instance, vm.guest)
    seen += watch.commands
    issued = vm.lab.world.google.project.tokens._issued
    (token,) = [token for token, (principal, _) in issued.items() if principal.name == UPLOADER]
    assert any("curl" in one for one in seen)
    assert not any(token in one for one in seen)
    assert token not in vm.lab.said.getvalue().decode()
    # The container sees the code, /dev/shm and what it was mounted; /run is the VM's own.
    holding = {path.relative_to(folder) for path, data in contents(folder) if token.encode() in data}
    assert holding == {Path("run/glgpu/keeper/login")}
    assert (folder / "run/glgpu/keeper/login").stat().st_mode & 0o77 == 0
    assert not any(token.encode() in data for _, data in contents(Path("/dev/shm")))


@pytest.mark.parametrize("vm", ["bucket"], indirect=True)
@pytest.mark.parametrize("wrong", ["no account", "another account", "another scope"])
def test_without_an_account_that_may_add_to_the_bucket_there_is_no_way_home(vm: Vm, wrong: str) -> None:
    world = vm.lab.world
    instance = world.compute.instances.get(vm.instance.zone, vm.instance.name)
    if wrong == "another account":
        world.google.storage.buckets[BUCKET].policy.bindings[-1]["members"] = ["serviceAccount:other@example.com"]
    else:
        scopes = ["https://www.googleapis.com/auth/devstorage.read_only"]
        account = {"email": UPLOADER, "scopes": scopes}
        instance.resource["serviceAccounts"] = [] if wrong == "no account" else [account]
        machine = world.machines._machines[instance.id]
        machine._agent._hardware = replace(machine._agent._hardware, account=instance.account)
    with pytest.raises(Failure, match=f"proving the way home to the bucket {BUCKET}") as caught:
        leaves_it(vm.run, vm.instance, vm.guest)
    assert caught.value.exit_code == (2 if wrong == "no account" else 15)
    assert "storage.uploader" in caught.value.remedy
    settings = vm.run.settings.model_dump(mode="json")
    settings["train"]["follow"], settings["machine"]["max_hours"] = "auto", 40
    job = replace(vm.run.job, script_timeout=3600.0)
    run = replace(vm.run, job=job, settings=Settings.model_validate(settings))
    assert not leaves_it(run, vm.instance, vm.guest)
    assert "there is no way home for a detached training" in vm.lab.said.getvalue().decode()


@EITHER
def test_a_job_that_is_killed_before_it_labels_the_vm_leaves_one_watch_and_the_next_job_no_other(vm: Vm) -> None:
    vm.start("import pathlib, time\nwhile not pathlib.Path('go').exists():\n    time.sleep(0.05)\n")
    for _ in range(2):
        assert leaves_it(vm.run, vm.instance, vm.guest)
        refuse = vm.lab.world.faults
        refuse.rules.append(Rule("compute.instances.setLabels", "permission-denied"))
        with pytest.raises(Failure):
            hand_over(vm.run, vm.instance, vm.guest)
        refuse.lift("compute.instances.setLabels")
    hand_over(vm.run, vm.instance, vm.guest)
    # Each is left in the background: the other two have gone.
    said = Path(vm.guest.home) / "keeper.log"
    eventually(lambda: said.read_text().count("the watch that has begun goes on") == 2)
    watching = [one for one in processes(str(vm.run.name)) if "see-home" not in one and "watch" in one]
    assert len(watching) == 1, watching
    (Path(vm.guest.home) / "code/go").touch()
    eventually(lambda: vm.status() == "TERMINATED")
    assert len(manifests(vm.home.parts(vm.run.name))) == 1


def test_of_watches_that_begin_at_once_one_goes_on(vm: Vm) -> None:
    vm.start("import time; time.sleep(600)")
    assert leaves_it(vm.run, vm.instance, vm.guest)
    keep = Path(vm.guest.home).parents[2] / "run/glgpu/keeper"
    with (keep / "beginning").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _ in range(3):
            words = ["watch", "600", f"{vm.guest.home}/code", "", "weights"]
            ask(vm.run, vm.guest.machine, "leave", *words, doing="leaving it")
        eventually(lambda: len(waiting_for(keep / "beginning")) == 3)
        assert not (keep / "watcher").exists()
    said = Path(vm.guest.home) / "keeper.log"
    eventually(lambda: said.read_text().count("the watch that has begun goes on") == 2)


def waiting_for(path: Path) -> list[psutil.Process]:
    """The processes of `flock` that hold it open."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            folder = Path(f"/proc/{process.pid}/fd")
            if process.name() == "flock" and any(one.resolve() == path for one in folder.iterdir()):
                found.append(process)
    return found


def test_a_keeper_that_is_brought_again_leaves_the_one_that_is_being_read_as_it_was(vm: Vm) -> None:
    assert leaves_it(vm.run, vm.instance, vm.guest)
    with (Path(vm.guest.home) / "keeper").open("rb") as reading:
        ask(vm.run, vm.guest.machine, "keeper", stdin=b"another\n", doing="bringing another")
        assert reading.read() == resource_text("vm/keeper.sh")
    assert (Path(vm.guest.home) / "keeper").read_bytes() == b"another\n"


@pytest.mark.parametrize("vm", ["bucket"], indirect=True)
def test_a_part_that_came_to_the_bucket_as_something_else_is_sent_again_under_another_name(vm: Vm) -> None:
    vm.start("import pathlib, time\nwhile not pathlib.Path('go').exists():\n    time.sleep(0.05)\n" + WRITING)
    assert leaves_it(vm.run, vm.instance, vm.guest)
    begun = vm.run.clock.now()
    hand_over(vm.run, vm.instance, vm.guest)
    vm.lab.world.faults.visits.clear()
    vm.lab.world.faults.rules.append(Rule("storage.objects.insert", "corrupt", 1))
    (Path(vm.guest.home) / "code/go").touch()
    eventually(lambda: vm.status() == "TERMINATED")
    parts = [part.name for bundle in vm.save().bundles for part in bundle.parts]
    assert [name.rpartition("-")[2] for name in parts] == ["2", "1"]
    assert f"{parts[0][:-1]}1" in vm.home.parts(vm.run.name)
    # Another VM of this run, before it or after it, has other numbers.
    assert int(parts[0].split("-")[1]) >= int(begun)
    assert bring_back(vm.run, vm.run.clock.now, vm.named) == []
    assert (vm.run.outputs / "weights/w").read_text() == "weights"


WRITING = "print('done')\npathlib.Path('weights').mkdir()\npathlib.Path('weights/w').write_text('weights')\n"


def processes(mark: str) -> list[list[str]]:
    """Command lines of shells with this word in them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if mark in (words := process.cmdline()) and Path(words[0]).name == "sh":
                found.append(words)
    return found


def test_a_container_gets_at_the_vm_s_name_server_and_at_nothing_else_of_its_metadata_server(vm: Vm) -> None:
    vm.start("import time; time.sleep(600)")
    rules = vm.guest.machine.run("sudo -n iptables -S DOCKER-USER").text.splitlines()[1:]
    fates = {
        (address, protocol, port): fate(rules, address, protocol, port)
        for address in ("169.254.169.254/32", "10.0.0.1/32")
        for protocol, port in (("tcp", 80), ("tcp", 53), ("udp", 53), ("udp", 123))
    }
    assert {one for one, end in fates.items() if end == "REJECT"} == {
        ("169.254.169.254/32", "tcp", 80), ("169.254.169.254/32", "udp", 123),
    }  # fmt: skip


def fate(rules: list[str], address: str, protocol: str, port: int) -> str:
    """What becomes of a packet by rules as iptables shows them: the first one that fits decides."""
    for rule in rules:
        words = rule.split()
        said = {name: value for name, value in pairwise(words) if name.startswith("-")}
        wanted = (said.get("-d", address), said.get("-p", protocol), said.get("--dport", str(port)))
        if wanted == (address, protocol, str(port)):
            return said["-j"]
    return "RETURN"


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


@EITHER
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
    assert len(manifests(vm.home.parts(vm.run.name))) == 2
    (failure,) = bring_back(vm.run, vm.run.clock.now, vm.named)
    assert failure.klass is ErrorClass.PREEMPTED
    assert (vm.run.outputs / "checkpoints/last").read_text() == "step 8"
    assert (vm.run.outputs / "weights/half").read_text() == "half"
