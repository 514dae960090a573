"""The helper on the VM, run for real in a stand-in VM, by the steps that call it."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glgpu.errors import Failure
from glgpu.interfaces import Instance
from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.gitlab_model import Role
from glgpu.steps.checkout import check_out
from glgpu.steps.checkpoints import Checkpoints
from glgpu.steps.checkpoints import Home as CheckpointsHome
from glgpu.steps.collect import Home, collect
from glgpu.steps.container import Container, Ended, Workload
from glgpu.steps.context import Run, hard_end_of
from glgpu.steps.door import Guest, Way, log_in, open_door
from glgpu.steps.guest import ask, command
from lab import FILES, IMAGE, Lab, lab, vm_of

OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAfuCHKVTjquxvt6CM6tdG4SLp1Btn/nOeHHE5UOzRdf"
PRIVATE = "private.example.com/team/train:1"


@dataclass
class Vm:
    """A VM with the code on it, and the door open."""

    lab: Lab
    run: Run
    instance: Instance
    guest: Guest
    way: Way

    @property
    def code(self) -> Path:
        """The code's folder, which the stand-in VM has on this machine."""
        return Path(self.guest.home) / "code"

    def container(self) -> Container:
        return Container(self.run, self.guest.machine, self.instance, self.way)

    def collect(self, *paths: str) -> Home:
        return collect(self.run, self.guest.machine, self.guest.home, paths)

    def sh(self, script: str) -> None:
        done = self.guest.machine.run(script)
        assert done.code == 0, done.complaint


class Kept:
    """Keeps the output."""

    def __init__(self) -> None:
        self.data = b""
        self.first = threading.Event()

    def feed(self, data: bytes) -> None:
        self.data += data
        self.first.set()


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    folder = tmp_path_factory.mktemp("lab")
    with lab(folder) as world:
        world.world.machines.registries["private.example.com"] = ("robot", "registry-password")
        checkout = folder / "checkout"
        subprocess.run(["git", "clone", "-q", str(folder_of(world)), str(checkout)], check=True)
        run = world.run(checkout)
        instance = vm_of(run)
        with open_door(run, instance) as way:
            guest = log_in(run, instance, way)
            check_out(run, guest.machine, hard_end_of(instance))
            yield Vm(world, run, instance, guest, way)


@pytest.fixture
def fresh(vm: Vm) -> Iterator[Vm]:
    """The VM as one that has just heard nothing; what is said of a preemption is taken back afterwards."""
    yield vm
    instance = vm.lab.world.compute.instances.get(vm.instance.zone, vm.instance.name)
    vm.lab.world.soon(instance.preempted.clear)


def folder_of(world: Lab) -> Path:
    return world.adopted.project.repository


@pytest.fixture(autouse=True)
def _clean(vm: Vm) -> Iterator[None]:
    yield
    ask(vm.run, vm.guest.machine, "wipe", doing="wiping")
    vm.guest.machine.run(command(vm.run, "hello"))
    vm.sh("rm -rf glgpu/code/weights")


def work(*argv: str, **facts: Any) -> Workload:
    plain = Workload(IMAGE, argv, {}, {}, ["weights"], "", False, None)
    return replace(plain, **facts)


def ran(vm: Vm, workload: Workload) -> tuple[Ended, bytes]:
    container, kept = vm.container(), Kept()
    container.start(workload, vm.guest.home)
    return container.attach(kept), kept.data


def test_the_code_is_the_commit_and_the_way_is_said(vm: Vm) -> None:
    assert (vm.code / "train.py").read_text() == FILES["train.py"]
    assert "code: deploy-key" in vm.lab.said.getvalue().decode()


def test_a_container_runs_with_its_argv_exit_code_and_folder(vm: Vm) -> None:
    ended, said = ran(vm, work("python3", "-c", "import os, sys; print(os.getcwd()); sys.exit(3)"))
    assert ended == Ended(3, False)
    assert said.decode().strip() == str(vm.code)


SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('GIVEN')]))"
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=6, derandomize=True, suppress_health_check=list(HealthCheck))
@given(words=st.lists(TEXT, min_size=1, max_size=4), value=TEXT)
def test_argv_and_environment_arrive_as_they_are(vm: Vm, words: list[str], value: str) -> None:
    words = [*words, "$(touch /tmp/x)", "'\"`\\\n\t", "--", "*"]
    _, said = ran(vm, work("python3", "-c", SHOW, *words, environment={"GIVEN": value}))
    assert json.loads(said) == [words, value]
    ask(vm.run, vm.guest.machine, "wipe", doing="wiping")
    vm.guest.machine.run(command(vm.run, "hello"))


def test_secrets_reach_the_container_and_no_disk(vm: Vm) -> None:
    several = "line 1\nline 2 with 'quotes'\n"
    script = "import os; print(repr(os.environ['A'])); print(repr(open(os.environ['B']).read()))"
    _, said = ran(vm, work("python3", "-c", script, secrets={"A": (several, False), "B": (several, True)}))
    assert said.decode().splitlines() == [repr(several)] * 2
    found = subprocess.run(
        ["grep", "-rlF", "line 2 with", str(vm.lab.world.folder)], capture_output=True, text=True, check=False
    )
    logs = [line for line in found.stdout.splitlines() if "/containers/" not in line]
    assert logs == []


def test_the_container_survives_the_death_of_every_connection(vm: Vm) -> None:
    container, kept = vm.container(), Kept()
    script = "import time\nfor n in range(20): print('step', n, flush=True); time.sleep(0.1)"
    container.start(work("python3", "-c", script), vm.guest.home)
    network = vm.lab.world.network

    def drop() -> None:
        assert kept.first.wait(30)
        network.change(dropped="reset")
        time.sleep(0.5)
        network.change(dropped=None)

    dropper = threading.Thread(target=drop)
    dropper.start()
    ended = container.attach(kept)
    dropper.join()
    assert ended.code == 0
    assert kept.data.decode() == "".join(f"step {n}\n" for n in range(20))
    again = Kept()
    container.attach(again)
    assert again.data == kept.data


def test_what_a_running_container_has_printed_is_known_before_it_prints_more(vm: Vm) -> None:
    script = """
import pathlib, time
print("one", flush=True)
print("two, not yet", end="", flush=True)
while not pathlib.Path("go").exists(): time.sleep(0.02)
print(" ended")
print("three")
"""
    first, second = Kept(), Kept()
    vm.container().start(work("python3", "-c", script), vm.guest.home)
    before: list[bytes] = []

    def go() -> None:
        before.append(second.data)
        vm.sh("touch glgpu/code/go")

    follower = threading.Thread(target=lambda: vm.container().attach(first))
    follower.start()
    assert first.first.wait(30)
    assert vm.container().attach(second, caught_up=go).code == 0
    follower.join()
    assert before[0].startswith(b"one\n")
    assert b"three" not in before[0]
    assert first.data == second.data == b"one\ntwo, not yet ended\nthree\n"


def test_both_outputs_of_a_container_come_whole_and_in_the_engine_s_order(vm: Vm) -> None:
    script = (
        "import sys\nfor n in range(3000):\n"
        "    print('out', n, flush=True)\n    print('err', n, file=sys.stderr, flush=True)"
    )
    said = ran(vm, work("python3", "-c", script))[1]
    assert said == vm.guest.machine.run(f"sudo -n docker logs {vm.run.name} 2>&1").stdout
    lines = said.decode().splitlines()
    for one in "out", "err":
        assert [line for line in lines if line.startswith(one)] == [f"{one} {n}" for n in range(3000)]
    assert len(lines) == 6000


def test_what_the_engine_refuses_to_tell_is_no_log_that_has_ended(vm: Vm) -> None:
    done = vm.guest.machine.run(command(vm.run, "logged", ""))
    assert done.code == 1
    assert "No such container" in done.text


def test_a_vm_without_perl_tells_its_log_too(vm: Vm, tmp_path: Path) -> None:
    assert ran(vm, work("python3", "-c", "print('one'); print('two')"))[1] == b"one\ntwo\n"
    for folder in reversed(vm.guest.machine.run("echo $PATH").text.strip().split(":")):
        for program in Path(folder).iterdir() if Path(folder).is_dir() else ():
            (tmp_path / program.name).unlink(missing_ok=True)
            (tmp_path / program.name).symlink_to(program)
    (tmp_path / "perl").unlink()
    done = vm.guest.machine.run(f"PATH={tmp_path}; {command(vm.run, 'logged', '')}")
    assert (done.code, [line.split()[-1] for line in done.text.splitlines()]) == (0, ["one", "two"])


def test_a_training_is_told_to_end_without_anybody_waiting_for_it(vm: Vm) -> None:
    script = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1.5), print("saved"), sys.exit(9)))
print("ready", flush=True)
time.sleep(60)
"""
    container, kept = vm.container(), Kept()
    container.start(work("python3", "-c", script), vm.guest.home)
    attached: list[Ended] = []
    follower = threading.Thread(target=lambda: attached.append(container.attach(kept)))
    follower.start()
    assert kept.first.wait(30)
    container.end(30)
    assert vm.container().state() is not None
    assert not attached
    follower.join()
    assert attached == [Ended(9, False)]
    assert kept.data == b"ready\nsaved\n"


def test_a_container_that_ignores_sigterm_is_killed_after_the_grace(vm: Vm) -> None:
    container, kept = vm.container(), Kept()
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    container.start(work("python3", "-c", script), vm.guest.home)
    attached: list[Ended] = []
    follower = threading.Thread(target=lambda: attached.append(container.attach(kept)))
    follower.start()
    assert kept.first.wait(30)
    begun = time.monotonic()
    container.stop(1)
    follower.join(30)
    assert attached == [Ended(137, False)]
    assert 0.9 < time.monotonic() - begun < 20


def test_a_pull_that_the_boot_began_is_waited_for_and_not_doubled(vm: Vm) -> None:
    """Its lock is held by a process here, as by the start-up script's `docker pull`."""
    folder = next((vm.lab.world.folder / "vms").glob("*/run/glgpu"))
    pulls = len(vm.lab.requests("registry", "pull"))
    sought = command(vm.run, "image", IMAGE)
    with (folder / "pull.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with vm.guest.machine.stream(sought) as stream:
            assert select.select([stream.stdout], [], [], 1.0) == ([], [], [])
            assert vm.guest.machine.run(command(vm.run, "startup", "", "0")).text.startswith("ready ")
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert b"RepoDigests" in b"".join(stream.chunks())
            assert stream.wait(20) == 0
    assert len(vm.lab.requests("registry", "pull")) == pulls


def test_the_image_is_there_since_the_boot(vm: Vm) -> None:
    assert IMAGE in vm.guest.machine.run(command(vm.run, "image", IMAGE)).text
    assert vm.lab.requests("registry", "pull").count(IMAGE) == 1


def test_the_helper_holds_its_answer_until_there_is_news(vm: Vm) -> None:
    state = next((vm.lab.world.folder / "vms").glob("*/run/glgpu/state"))
    before = state.read_text()
    assert vm.guest.machine.run(command(vm.run, "startup", "something else", "60"), timeout=15).text == before
    with vm.guest.machine.stream(command(vm.run, "startup", before.strip(), "20")) as stream:
        state.write_text("working driver news\n")
        assert b"".join(stream.chunks()) == b"working driver news\n"
    state.write_text(before)


def test_a_private_registry_is_logged_in_to_and_out_again(vm: Vm) -> None:
    job = replace(vm.run.job, registry_logins={"private.example.com": ("robot", "registry-password")})
    private = replace(vm, run=replace(vm.run, job=job))
    ended, _ = ran(private, work("true", image=PRIVATE))
    assert ended.code == 0
    assert "registry-password" not in "\n".join(vm.lab.requests("vm"))
    config = Path(f"/dev/shm/{vm.run.name}/docker/config.json")
    assert not config.exists() or "private.example.com" not in json.loads(config.read_text()).get("auths", {})


def test_a_pull_that_is_denied_is_17_and_logged_out_of(vm: Vm) -> None:
    job = replace(vm.run.job, registry_logins={"private.example.com": ("robot", "registry-password")})
    vm.lab.world.faults.rules.append(Rule("vm.docker.pull", "denied"))
    try:
        with pytest.raises(Failure) as caught:
            ran(replace(vm, run=replace(vm.run, job=job)), work("true", image="private.example.com/team/other:1"))
    finally:
        vm.lab.world.faults.lift("vm.docker.pull")
    assert caught.value.exit_code == 17
    config = Path(f"/dev/shm/{vm.run.name}/docker/config.json")
    assert not config.exists() or "private.example.com" not in json.loads(config.read_text()).get("auths", {})


def test_the_digest_is_pinned_once_and_used_again_by_a_retried_job(vm: Vm) -> None:
    ran(vm, work("true"))
    first = vm.run.record.find("container-started")
    ask(vm.run, vm.guest.machine, "wipe", doing="wiping")
    vm.guest.machine.run(command(vm.run, "hello"))
    pulls = len(vm.lab.requests("registry", "pull"))
    ran(vm, work("true"))
    second = vm.run.record.find("container-started")
    assert first is not None
    assert second is not None
    assert first.facts == second.facts
    assert "sha256:" in first.facts["pinned"]
    assert len(vm.lab.requests("registry", "pull")) == pulls


def test_a_container_that_could_not_be_started_does_not_pass_for_one_that_ran(vm: Vm) -> None:
    with pytest.raises(Failure):
        ran(vm, work("true", gpu=True))
    assert vm.container().state() is None


@contextmanager
def odd_files(vm: Vm) -> Iterator[list[str]]:
    names = ["a b", "line\nbreak", "ünïcödé 火", "-rf", "back\\slash", "'\"$(x)", "sub dir/-x"]
    for name in names:
        path = vm.code / "weights" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1000))
    yield names


def test_odd_names_come_home_and_sha256sum_checks_them(vm: Vm) -> None:
    with odd_files(vm) as names:
        (vm.code / "weights/secret-mode").write_text("x")
        (vm.code / "weights/secret-mode").chmod(0o600)
        os.link(vm.code / "weights/a b", vm.code / "weights/hard")
        (vm.code / "weights/latest").symlink_to("a b")
        (vm.code / "weights/outside").symlink_to("/etc/passwd")
        home = vm.collect("weights")
    assert home.files == len(names) + 2
    outputs = vm.run.outputs
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "--quiet", "glgpu/SHA256SUMS"], cwd=outputs, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (outputs / "weights/hard").read_bytes() == (outputs / "weights/a b").read_bytes()
    assert (outputs / "weights/latest").is_symlink()
    assert not (outputs / "weights/outside").is_symlink()
    assert "'weights/outside'" in vm.lab.said.getvalue().decode()


def test_of_outputs_that_are_home_only_what_has_changed_is_sent_and_links_and_empty_folders_stay(vm: Vm) -> None:
    vm.sh("cd glgpu/code && mkdir -p weights/empty && echo 1 >weights/a && echo 2 >weights/b && ln -s a weights/l")
    assert vm.collect("weights").files == 2
    kept = (vm.run.outputs / "weights/a").stat().st_mtime_ns
    vm.sh("cd glgpu/code && echo 3 >weights/b && echo 4 >weights/c && rm weights/l && ln -s b weights/l")
    assert vm.collect("weights").files == 3
    assert (vm.run.outputs / "weights/a").stat().st_mtime_ns == kept
    assert [(vm.run.outputs / "weights" / name).read_text() for name in "abc"] == ["1\n", "3\n", "4\n"]
    assert (vm.run.outputs / "weights/l").readlink() == Path("b")
    assert (vm.run.outputs / "weights/empty").is_dir()


def test_outputs_that_are_not_there_are_none(vm: Vm) -> None:
    assert vm.collect("nothing", "weights") == Home(0, 0)


def test_a_new_helper_takes_the_old_ones_place_while_that_is_read(vm: Vm) -> None:
    before = os.stat(Path(vm.guest.home) / "helper").st_ino
    log_in(vm.run, vm.instance, vm.way)
    assert os.stat(Path(vm.guest.home) / "helper").st_ino != before


@pytest.fixture
def job_checkout(vm: Vm, tmp_path: Path) -> Run:
    """A shallow clone under umask 077, with an executable, a link and a file that the commit has otherwise."""
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    lib = tmp_path / "lib"
    for folder, name in ((lib, "lib.py"), (origin, "train.py")):
        subprocess.run([*git, "init", "-q", str(folder)], check=True)
        (folder / name).write_text("one\n")
        subprocess.run([*git, "-C", str(folder), "add", "."], check=True)
        subprocess.run([*git, "-C", str(folder), "commit", "-qm", "1"], check=True)
    subprocess.run([*git, "-C", str(origin), "submodule", "--quiet", "add", str(lib), "lib"], check=True)
    (origin / "run.sh").write_text("#!/bin/sh\n")
    (origin / "run.sh").chmod(0o755)
    (origin / "link").symlink_to("train.py")
    subprocess.run([*git, "-C", str(origin), "add", "."], check=True)
    subprocess.run([*git, "-C", str(origin), "commit", "-qm", "2"], check=True)
    words = ["clone", "-q", "--depth", "1", "--recurse-submodules", f"file://{origin}", str(clone)]
    subprocess.run([*git, *words], check=True, umask=0o077)
    sha = subprocess.run(["git", "-C", str(clone), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    (clone / "glgpu.yml").write_text("train: {}\n")
    return vm.lab.run(clone, CI_COMMIT_SHA=sha.stdout.strip(), GLGPU_CODE="job", GLGPU_TRAIN_IMAGE=IMAGE)


def with_deploy_key(run: Run, **job: Any) -> Run:
    """The same run, insisting on a deploy key."""
    settings = run.settings.model_copy(update={"code": "deploy-key"})
    return replace(run, job=replace(run.job, **job), settings=settings)


def test_the_jobs_own_checkout_arrives_whole(vm: Vm, job_checkout: Run) -> None:
    run = replace(job_checkout, name=vm.run.name)
    check_out(run, vm.guest.machine, hard_end_of(vm.instance))
    code = vm.code
    assert (code / "lib/lib.py").read_text() == "one\n"
    assert os.access(code / "run.sh", os.X_OK)
    assert not os.access(code / "train.py", os.X_OK)
    assert (code / "link").readlink() == Path("train.py")
    assert (code / "train.py").stat().st_mode & 0o044 == 0o044
    head = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(code), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert head.stdout.strip() == run.job.sha
    check_out(vm.run, vm.guest.machine, hard_end_of(vm.instance))


def test_a_commit_that_the_key_cannot_see_is_17(vm: Vm) -> None:
    run = with_deploy_key(vm.run, sha="f" * 40)
    with pytest.raises(Failure) as caught:
        check_out(run, vm.guest.machine, hard_end_of(vm.instance))
    assert caught.value.exit_code == 17
    check_out(vm.run, vm.guest.machine, hard_end_of(vm.instance))


def test_a_wrong_known_host_is_refused(vm: Vm) -> None:
    wrong = f"[{vm.run.job.ssh_host}]:{vm.run.job.ssh_port} {OTHER_KEY}"
    run = with_deploy_key(vm.run, gitlab_host_keys=wrong)
    with pytest.raises(Failure) as caught:
        check_out(run, vm.guest.machine, hard_end_of(vm.instance))
    assert caught.value.exit_code == 17
    assert "Host key verification failed" in caught.value.evidence
    check_out(vm.run, vm.guest.machine, hard_end_of(vm.instance))


@pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs: not on PATH, so large files are NOT cloned")
def test_a_deploy_key_brings_large_files_too(vm: Vm, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@b", "-C", str(origin)]
    subprocess.run(["git", "init", "-q", str(origin)], check=True)
    (origin / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    large = os.urandom(100_000)
    (origin / "large.bin").write_bytes(large)
    for words in (["lfs", "install", "--local"], ["add", "."], ["commit", "-qm", "large"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    pointer = subprocess.run([*git, "show", "HEAD:large.bin"], check=True, capture_output=True).stdout
    assert pointer.startswith(b"version https://git-lfs")
    sha = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    gitlab = vm.lab.world.gitlab
    project = gitlab.create_project("team/large", origin, owner=vm.lab.adopted.user)
    token = gitlab.create_project_token(project, "glgpu", ["api"], Role.MAINTAINER)
    (tmp_path / "glgpu.yml").write_text("train: {}\n")
    own = vm.lab.run(
        tmp_path,
        CI_COMMIT_SHA=sha,
        CI_PROJECT_ID=str(project.id),
        CI_PROJECT_PATH=project.path,
        GLGPU_GITLAB_TOKEN=token.value,
        GLGPU_TRAIN_IMAGE=IMAGE,
    )
    run = replace(with_deploy_key(own), name=vm.run.name)
    another_key = "rm -f glgpu/deploy-key glgpu/deploy-key.pub"
    vm.sh(another_key)
    check_out(run, vm.guest.machine, hard_end_of(vm.instance))
    assert (vm.code / "large.bin").read_bytes() == large
    vm.sh(another_key)
    check_out(vm.run, vm.guest.machine, hard_end_of(vm.instance))


def preempt(vm: Vm) -> None:
    """The metadata server says that the VM is taken away; who takes it is another story."""
    instances = vm.lab.world.compute.instances
    vm.lab.world.soon(instances.get(vm.instance.zone, vm.instance.name).preempted.set)


def until_locks(vm: Vm, count: int) -> None:
    """Wait until so many programs delay the VM's shutdown."""
    locks = Path(vm.guest.home).parents[2] / "run" / "inhibit"
    end = time.monotonic() + 20
    while len(list(locks.glob("*"))) != count:
        assert time.monotonic() < end
        time.sleep(0.05)


HEEDING = """\
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path("weights").mkdir(exist_ok=True)
    pathlib.Path("weights/last").write_text(str(time.time()))
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""
PLAIN = "import time; print('ready', flush=True); time.sleep(60)"


@pytest.mark.parametrize(("script", "kind"), [(HEEDING, "heeds"), (PLAIN, "plain")])
def test_a_vm_that_is_taken_away_ends_its_training_at_once_and_says_so(fresh: Vm, script: str, kind: str) -> None:
    vm = fresh
    container, kept = vm.container(), Kept()
    container.start(work("python3", "-c", script), vm.guest.home)
    assert vm.guest.machine.run(command(vm.run, "ending")).text == "no \n"
    attached: list[Ended] = []
    follower = threading.Thread(target=lambda: attached.append(container.attach(kept)))
    follower.start()
    assert kept.first.wait(30)
    begun = time.time()
    preempt(vm)
    follower.join(30)
    assert attached == [Ended(143, False)]
    if kind == "heeds":
        assert float((vm.code / "weights/last").read_text()) - begun < 5
    age, said = vm.guest.machine.run(command(vm.run, "ending")).text.split()
    assert 0 <= int(age) < 30
    assert said == kind


def test_the_shutdown_of_a_vm_that_is_taken_away_waits_until_all_is_home(fresh: Vm) -> None:
    vm = fresh
    container, kept = vm.container(), Kept()
    container.start(work("python3", "-c", PLAIN), vm.guest.home)
    follower = threading.Thread(target=lambda: container.attach(kept))
    follower.start()
    assert kept.first.wait(30)
    until_locks(vm, 1)
    preempt(vm)
    follower.join(30)
    time.sleep(1)
    until_locks(vm, 1)
    ask(vm.run, vm.guest.machine, "set-home", doing="noting")
    until_locks(vm, 0)


def test_what_sits_beside_a_container_ends_with_it(vm: Vm) -> None:
    ended, _ = ran(vm, work("python3", "-c", "print('done')"))
    assert ended.code == 0
    until_locks(vm, 0)
    assert vm.guest.machine.run(command(vm.run, "ending")).text == "no \n"


def checkpoints_of(vm: Vm) -> Checkpoints:
    return Checkpoints(vm.run, vm.guest, CheckpointsHome())


@pytest.fixture
def kept(vm: Vm) -> Iterator[Path]:
    """The folder of checkpoints on the VM."""
    folder = vm.code / "checkpoints"
    folder.mkdir(exist_ok=True)
    yield folder
    shutil.rmtree(folder)
    shutil.rmtree(vm.run.outputs / "checkpoints", ignore_errors=True)


def test_a_file_that_a_container_writes_to_stays_and_comes_once_it_is_closed(vm: Vm, kept: Path) -> None:
    script = (
        "import sys, time\nfile = open('checkpoints/in place', 'w')\nfile.write('half')\nfile.flush()\n"
        "print('half', flush=True)\ntime.sleep(6)\nfile.write(' whole')\nfile.close()\nprint('whole', flush=True)\n"
        "time.sleep(60)"
    )
    container, log = vm.container(), Kept()
    container.start(work("python3", "-c", script), vm.guest.home)
    follower = threading.Thread(target=lambda: container.attach(log))
    follower.start()
    assert log.first.wait(30)
    (kept / "odd\nname").write_text("whole")
    checkpoints = checkpoints_of(vm)
    assert checkpoints.bring_home() == 1
    assert (vm.run.outputs / "checkpoints/odd\nname").read_text() == "whole"
    end = time.monotonic() + 30
    while b"whole" not in log.data:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert checkpoints.bring_home() == 1
    assert (vm.run.outputs / "checkpoints/in place").read_text() == "half whole"
    assert checkpoints.bring_home() == 0
    container.stop(1)
    follower.join(30)


@contextmanager
def at_work(vm: Vm, script: str) -> Iterator[None]:
    """A container runs the script, which has printed something; it is ended with the block, however that ends."""
    container, log = vm.container(), Kept()
    container.start(work("python3", "-c", script), vm.guest.home)
    follower = threading.Thread(target=lambda: container.attach(log))
    follower.start()
    try:
        assert log.first.wait(30)
        yield
    finally:
        container.stop(1)
        follower.join(30)


@pytest.mark.usefixtures("kept")
def test_what_a_program_replaces_meanwhile_comes_home_as_it_was_looked_at(vm: Vm) -> None:
    """As fast as it can it writes beside its place and renames: what comes is one of its versions, and whole."""
    script = (
        "import itertools, os\nfor n in itertools.count():\n"
        "    open('checkpoints/new', 'w').write(f'{n} ' * 5000)\n    os.replace('checkpoints/new', 'checkpoints/a')\n"
        "    if n == 0: print('begun', flush=True)"
    )
    with at_work(vm, script):
        checkpoints = checkpoints_of(vm)
        came = [checkpoints.bring_home() for _ in range(3)]
    assert sum(came) > 0
    words = (vm.run.outputs / "checkpoints/a").read_text().split()
    assert (len(words), len(set(words))) == (5000, 1)


@pytest.mark.usefixtures("kept")
def test_files_that_come_and_go_while_somebody_looks_are_no_failure(vm: Vm) -> None:
    script = (
        "import itertools, os\nos.makedirs('checkpoints', exist_ok=True)\n"
        "open('checkpoints/stays', 'w').close()\nprint('begun', flush=True)\nfor n in itertools.count():\n"
        "    names = [f'checkpoints/{n}-{k}' for k in range(300)]\n"
        "    for name in names: open(name, 'w').close()\n    for name in names: os.remove(name)"
    )
    with at_work(vm, script):
        for _ in range(20):
            seen = ask(vm.run, vm.guest.machine, "look", str(vm.code), "checkpoints", doing="looking").stdout
            assert b"./checkpoints/stays" in seen


def test_checkpoints_go_back_and_a_container_may_write_over_them(vm: Vm, kept: Path) -> None:
    (kept / "deep").mkdir()
    (kept / "deep/a").write_text("one")
    checkpoints = checkpoints_of(vm)
    assert checkpoints.bring_home() == 1
    shutil.rmtree(kept)
    assert checkpoints.put_back() == (1, 3)
    assert (kept / "deep/a").read_text() == "one"
    assert (kept / "deep/a").stat().st_mode & 0o666 == 0o666
    assert (kept / "deep").stat().st_mode & 0o777 == 0o777
