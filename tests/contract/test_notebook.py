"""A real JupyterLab on a stand-in VM: how it starts, who reaches it, what it saves, and when it ends."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import DropOff, Instance
from glgpu.notebook import WORKSPACE, State, memory_of, socket_of
from glgpu.rehearsal.browser import Browser
from glgpu.rehearsal.gitlab_model import Job
from glgpu.saved import ENDED, HANDED_OVER, Save, collected_by, collected_mark, manifests, read_save
from glgpu.stages.destroy import destroy
from glgpu.stages.notebook_start import start
from glgpu.stages.status import status
from glgpu.steps import notebook as steps
from glgpu.steps.bring_back import bring_back
from glgpu.steps.context import Run
from glgpu.steps.detach import is_detached, way_home
from glgpu.steps.door import Guest, log_in, open_door
from glgpu.steps.guest import ask
from glgpu.steps.notebook import state_of
from lab import FILES, SETTINGS, Lab, end_vm, lab

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jupyterlab") is None, reason="jupyterlab: not installed here: no notebook is started"
)
MINE = {
    **FILES,
    "requirements.txt": "jupyterlab\n",
    "model.py": "def answer():\n    return 42\n",
    ".gitignore": "weights/\n",
}
BUCKET = "storage: {bucket: team-glgpu, uploader: uploader@my-dl.iam.gserviceaccount.com}\n"
EITHER = pytest.mark.parametrize(
    "desk", ["packages", pytest.param("bucket", marks=pytest.mark.every_fault)], indirect=True
)
"""Where saved work goes."""


EVERY_PROCESS = """\
import pathlib
for name in "cmdline", "environ":
    for path in pathlib.Path("/proc").glob(f"[0-9]*/{name}"):
        try:
            print(path.read_bytes())
        except OSError:
            pass
"""
"""A cell: what the processes that it sees were started with."""


@dataclass
class Desk:
    """A branch on which notebooks are started."""

    lab: Lab
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def job(self, user: str = "ada", pipeline: str = "", **variables: str) -> Run:
        """The start job of a pipeline, clicked by somebody."""
        checkout = self.folder / f"checkout-{time.monotonic_ns()}"
        subprocess.run(["git", "clone", "-q", str(self.lab.adopted.project.repository), str(checkout)], check=True)
        own = {"CI_PIPELINE_ID": pipeline} if pipeline else {}
        own |= self.variables
        return self.lab.run(checkout, kind="notebook", GITLAB_USER_LOGIN=user, **own, **variables)

    def known_job(self, user: str, pipeline: str) -> tuple[Run, Job]:
        """A job that GitLab knows, and that runs."""
        gitlab, adopted = self.lab.world.gitlab, self.lab.adopted
        made = gitlab.create_pipeline(adopted.project, "main", adopted.sha, "push", adopted.user)
        job = gitlab.create_job(made, "stop notebook", "destroy")
        gitlab.start_job(job)
        return self.job(user, pipeline, CI_JOB_ID=str(job.id)), job

    def uploads(self, run: Run, job: Job) -> None:
        """The job ends, and GitLab has its artifacts."""
        name = str(self.folder / f"artifacts-{job.id}")
        archive = Path(shutil.make_archive(name, "zip", run.outputs.parent, run.outputs.name))
        self.lab.world.gitlab.save_artifacts(job, archive)
        self.lab.world.gitlab.finish_job(job, "success")

    @property
    def said(self) -> str:
        return self.lab.said.getvalue().decode()


@dataclass
class Vm:
    """The VM of a notebook, and the door open."""

    run: Run
    instance: Instance
    guest: Guest

    @property
    def code(self) -> Path:
        return Path(self.guest.home) / "code"

    @property
    def state(self) -> State:
        found = state_of(self.run, self.guest)
        assert found is not None
        return found

    @property
    def token(self) -> str:
        return ask(self.run, self.guest.machine, "notebook-token", doing="asking for the token").text.strip()

    def browser(self) -> Browser:
        return Browser(Path(socket_of(self.run.name)), self.token)

    def status(self) -> str:
        found = self.run.cloud.get(self.instance.name, self.instance.zone)
        return found.status if found else "gone"

    @property
    def home(self) -> DropOff:
        found = way_home(self.run)
        assert found is not None
        return found

    def saves(self) -> list[Save]:
        """The newest first."""
        found = []
        for name in manifests(self.home.parts(self.run.name)):
            data = bytearray()
            self.home.get_part(self.run.name, name, 0, data.extend)
            found.append(read_save(bytes(data)))
        return found

    def saved(self) -> set[str]:
        """Names of the workspace's files in the newest save."""
        within = f"{WORKSPACE}/"
        return {file.path.removeprefix(within) for file in self.saves()[0].files if file.path.startswith(within)}


@contextmanager
def vm_of(run: Run) -> Iterator[Vm]:
    (instance,) = run.cloud.find(str(run.name))
    with open_door(run, instance) as way:
        yield Vm(run, instance, log_in(run, instance, way))


def eventually(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def desk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """Of a project without a bucket; or of one with a bucket, whose jobs have no token of GitLab's."""
    monkeypatch.setattr(steps, "SAVE_SECONDS", 2)
    bucket = getattr(request, "param", "packages") == "bucket"
    with desk_with(MINE | ({"glgpu.yml": SETTINGS + BUCKET} if bucket else {}), tmp_path) as made:
        made.variables |= {"GLGPU_GITLAB_TOKEN": ""} if bucket else {}
        yield made
        asked = made.lab.requests("google")
        assert any("/b/team-glgpu/o" in one for one in asked) is bucket


@contextmanager
def desk_with(files: dict[str, str], folder: Path) -> Iterator[Desk]:
    try:
        with lab(folder, files=files) as made:
            yield Desk(made, folder)
    except Failure as failure:
        if failure.klass is ErrorClass.IMAGE_PULL and "requirements.txt" in failure.cause:
            pytest.skip(f"jupyterlab: no image has it here, and no index gives it: {failure.cause}")
        raise


def test_a_notebook_runs_the_branch_s_code_and_is_reached_only_by_who_may_log_in_and_has_the_token(desk: Desk) -> None:
    run = desk.job()
    start(run)
    with vm_of(run) as vm, ExitStack() as opened:
        assert is_detached(vm.instance)
        assert int(vm.instance.labels["glgpu-expires"]) == vm.state.soft_end
        assert vm.state.answers
        browser, stranger = opened.enter_context(vm.browser()), opened.enter_context(Browser(vm_socket(vm), ""))
        assert stranger.ask("GET", "api/kernels")[0] == 403
        tab = browser.open_tab(browser.kernel())
        assert browser.cell(tab, "import model; print(model.answer())") == "42\n"
        assert Path(memory_of(run.name)).stat().st_mode & 0o77 == 0
        assert [address for process in served(run) for address in listening(process)] == []
        printed = browser.cell(tab, EVERY_PROCESS)
        assert "JUPYTER_PATH=" in printed
        assert "glgpu_notebook.py" in printed
        log = vm.guest.machine.run(f"sudo -n docker logs {run.name} 2>&1").text
        metadata = json.dumps(dict(vm.instance.metadata))
        record = (run.outputs / "glgpu/run.json").read_text()
        lines = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
        for told in (printed, log, desk.said, metadata, record, *lines):
            assert vm.token not in told
        assert "is listening" in log or "is running" in log
        # What `glgpu status` tells, which asks no VM.
        status(run, run.google_time)
        assert f"VM, RUNNING, at work  {run.name}" in desk.said


def vm_socket(vm: Vm) -> Path:
    return Path(socket_of(vm.run.name))


def served(run: Run) -> list[psutil.Process]:
    """The processes of a notebook's JupyterLab."""
    mark = f"{memory_of(run.name)}/door"
    found = [one for one in psutil.process_iter(["cmdline"]) if mark in (one.info["cmdline"] or [])]
    assert found
    return found


def listening(process: psutil.Process) -> list[str]:
    """The TCP addresses on which a process listens, in its container's network: psutil knows those in ours."""
    folder, held = Path(f"/proc/{process.pid}"), set()
    for path in (folder / "fd").iterdir():
        with suppress(OSError):
            held.add(os.readlink(path))
    lines = [line.split() for name in ("tcp", "tcp6") for line in (folder / "net" / name).read_text().splitlines()]
    return [words[1] for words in lines if words[3] == "0A" and f"socket:[{words[9]}]" in held]


@pytest.mark.every_fault
def test_a_second_click_tells_whose_notebook_it_is(desk: Desk) -> None:
    run = desk.job("ada", "7001")
    start(run)
    start(desk.job("ada", "7001"))
    assert "your notebook runs already" in desk.said
    with pytest.raises(Failure, match="the notebook of this pipeline is ada's") as caught:
        start(desk.job("bob", "7001"))
    assert (caught.value.klass, caught.value.exit_code) == (ErrorClass.USAGE, 2)
    assert "Build > Pipelines" in caught.value.remedy
    with vm_of(run) as vm:
        assert vm.state.answers
        assert len(served(run)) <= 2  # Docker's init has the same words


@EITHER
def test_what_somebody_has_worked_on_is_saved_whole_ends_in_the_artifacts_and_is_taken_up_again(desk: Desk) -> None:
    run = desk.job("ada", "7001")
    start(run)
    with vm_of(run) as vm, vm.browser() as browser:
        assert vm.state.saved is None
        tab = browser.open_tab(browser.kernel())
        write = (
            "import pathlib\n"
            "for name in 'weights/w', 'deep/er/odd name', 'glgpu/mine', '.ipynb_checkpoints/x', '__pycache__/y':\n"
            "    pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)\n"
            "    pathlib.Path(name).write_text(name)\n"
            "pathlib.Path('model.py').write_text('changed')\n"
            "half = open('half', 'w'); half.write('half of it'); half.flush()\n"
        )
        assert browser.cell(tab, write) == ""
        notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        status, _ = browser.ask("PUT", "api/contents/mine.ipynb", type="notebook", content=notebook)
        assert status == 201
        # A cell that does not end keeps nothing from being saved.
        browser.send(tab, "import time; time.sleep(600)")
        mine = {"weights/w", "deep/er/odd name", "glgpu/mine", "model.py", "mine.ipynb"}
        eventually(lambda: vm.state.saved is not None and vm.saved() == mine)
        assert vm.saves()[0].reason == "going"
        assert bring_back(run, run.clock.now, lambda _: run) == []
        assert vm.status() == "RUNNING"
        there = {name: (vm.code / name).read_bytes() for name in mine}
    stop, job = desk.known_job("ada", "7001")
    destroy(stop, detached_too=True)
    outputs = stop.outputs / WORKSPACE
    assert {name: (outputs / name).read_bytes() for name in there} == there
    assert (outputs / "half").read_text() == "half of it"
    home = way_home(stop)
    assert home is not None
    assert {HANDED_OVER, collected_mark(stop.job.job_id)} < home.parts(stop.name).keys()
    assert len(manifests(home.parts(stop.name))) > 1
    desk.uploads(stop, job)
    scheduled = desk.job("somebody", "7001")
    assert bring_back(scheduled, stop.clock.now, lambda _: scheduled) == []
    assert len(manifests(home.parts(stop.name))) == 1
    assert (ENDED in home.parts(stop.name), collected_by(home.parts(stop.name))) == (True, [])
    assert not (scheduled.outputs / WORKSPACE).exists()
    start(again := desk.job("ada"))
    assert "6 files that ada had worked on here are back" in desk.said
    with vm_of(again) as vm:
        assert {name: (vm.code / name).read_bytes() for name in there} == there
        assert (vm.code / "half").read_text() == "half of it"
        eventually(lambda: vm.state.saved is not None)
        assert vm.saved() == {*mine, "half"}
    start(other := desk.job("bob"))
    with vm_of(other) as vm:
        assert (vm.code / "model.py").read_text() == MINE["model.py"]


@pytest.mark.every_fault
def test_two_users_on_one_branch_work_at_the_same_time_and_each_goes_on_with_what_is_one_s_own(desk: Desk) -> None:
    pipelines = {"ada": "7001", "bob": "7002"}
    runs = {user: desk.job(user, pipeline) for user, pipeline in pipelines.items()}
    for run in runs.values():
        start(run)
    with ExitStack() as opened:
        vms = {user: opened.enter_context(vm_of(run)) for user, run in runs.items()}
        for user, vm in vms.items():
            browser = opened.enter_context(vm.browser())
            write = f"open('{user}', 'w').write('{user}'); open('model.py', 'w').write('by {user}')"
            browser.cell(browser.open_tab(browser.kernel()), write)
        for user, vm in vms.items():
            eventually(lambda vm=vm, user=user: vm.state.saved is not None and vm.saved() == {user, "model.py"})
        assert all(vm.state.answers for vm in vms.values())
    for user, pipeline in pipelines.items():
        destroy(stop := desk.job(user, pipeline), detached_too=True)
        work = {path.name for path in (stop.outputs / WORKSPACE).iterdir()}
        assert work == {user, "model.py"}
        assert (stop.outputs / WORKSPACE / "model.py").read_text() == f"by {user}"
        # The other one's goes on.
        alive = [other for other, run in runs.items() if run.cloud.find(str(run.name))]
        assert alive == (["bob"] if user == "ada" else [])
    for user in pipelines:
        start(again := desk.job(user))
        assert f"2 files that {user} had worked on here are back" in desk.said
        with vm_of(again) as vm:
            there = {path.name for path in vm.code.iterdir()} & set(pipelines)
            assert (there, (vm.code / "model.py").read_text()) == ({user}, f"by {user}")


@pytest.mark.every_fault
def test_work_is_pushed_where_that_is_allowed_and_each_end_adds_a_commit(desk: Desk) -> None:
    def branch(*words: str) -> str:
        done = desk.lab.world.gitlab.git(desk.lab.adopted.project, *words)
        assert done.code == 0, done.complaint
        return done.text

    def keys_that_may_push() -> list[str]:
        bodies = [call["body"] for call in desk.lab.world.calls.lines() if call["to"] == "gitlab"]
        return [body for body in bodies if '"can_push": true' in body]

    start(run := desk.job("ada", "8001"))
    with vm_of(run) as vm:
        (vm.code / "mine.ipynb").write_bytes(b"{}\r\n")
    destroy(desk.job("bob", "8001"), detached_too=True)
    assert branch("for-each-ref", "--format=%(refname)", "refs/heads").split() == ["refs/heads/main"]
    assert keys_that_may_push() == []

    start(run := desk.job("ada", "8002", GLGPU_NOTEBOOK_CAN_PUSH="true"))
    with vm_of(run) as vm:
        (vm.code / "model.py").write_text("changed\n")
        eventually(lambda: vm.state.saved is not None)
    # Whoever ends it has another login, and knows nothing of any setting.
    stop = desk.job("bob", "8002")
    destroy(stop, detached_too=True)
    work = "glgpu-notebook/ada/main"
    assert branch("show", f"{work}:mine.ipynb") == "{}\r\n"
    assert branch("show", f"{work}:model.py").encode() == (stop.outputs / WORKSPACE / "model.py").read_bytes()
    assert branch("rev-list", "--count", f"main..{work}") == "1\n"
    assert len(keys_that_may_push()) == 1

    # One that ends by itself, and whose VM is gone by the time that somebody looks.
    start(run := desk.job("ada", "8003", GLGPU_NOTEBOOK_CAN_PUSH="true", GLGPU_NOTEBOOK_IDLE_MINUTES="0.1"))
    with vm_of(run) as vm:
        (vm.code / "model.py").write_text("changed again\n")
        eventually(lambda: vm.status() == "TERMINATED", 90)
    assert bring_back(desk.job("bob", "8003"), run.clock.now, lambda _: desk.job("bob", "8003")) == []
    assert branch("show", f"{work}:model.py") == "changed again\n"
    assert branch("rev-list", "--count", f"main..{work}") == "2\n"
    assert [key.title for key in desk.lab.world.gitlab.deploy_keys.values() if "push" in key.title] == []


KILLED = """\
import json, os, signal, sys
from pathlib import Path
from glgpu.console import Console
from glgpu.masking import Masker
from glgpu.stages import destroy
from glgpu.wiring import make_run

setattr(destroy, sys.argv[1], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
run = make_run(Console(Masker()), json.load(sys.stdin), Path.cwd(), kind="notebook", needs_settings=False)
destroy.end_notebook(run)
"""
"""A stop job that is killed where it would begin one of its steps."""


@pytest.mark.every_fault
@pytest.mark.parametrize("step", ["push_work", "note_end", "take_over_charts"])
def test_a_stop_job_killed_once_the_vm_is_gone_leaves_it_to_the_scheduled_one_to_bring_the_work_home_and_push_it(
    desk: Desk, step: str
) -> None:
    gitlab, adopted = desk.lab.world.gitlab, desk.lab.adopted
    pipeline = gitlab.create_pipeline(adopted.project, "main", adopted.sha, "push", adopted.user)
    first = gitlab.create_job(pipeline, "start notebook", "provision")
    gitlab.start_job(first)
    run = desk.job("ada", str(pipeline.id), CI_JOB_ID=str(first.id), GLGPU_NOTEBOOK_CAN_PUSH="true")
    start(run)
    desk.uploads(run, first)
    with vm_of(run) as vm:
        (vm.code / "model.py").write_text("changed\n")
    stop, job = desk.known_job("ada", str(pipeline.id))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, step], input=json.dumps(dict(stop.job.variables)), text=True,
        cwd=stop.job.project_dir, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    gitlab.finish_job(job, "failed")
    assert run.cloud.find(str(run.name)) == []
    scheduled, _ = desk.known_job("somebody", str(pipeline.id))
    assert bring_back(scheduled, run.clock.now, lambda _: scheduled) == []
    assert (scheduled.outputs / WORKSPACE / "model.py").read_text() == "changed\n"
    work = "glgpu-notebook/ada/main"
    for words, told in ((("show", f"{work}:model.py"), "changed\n"), (("rev-list", "--count", f"main..{work}"), "1\n")):
        assert gitlab.git(adopted.project, *words).text == told
    assert [key.title for key in gitlab.deploy_keys.values() if "push" in key.title] == []


def test_an_open_tab_keeps_no_notebook_alive_and_a_long_cell_does(desk: Desk) -> None:
    run = desk.job(GLGPU_NOTEBOOK_IDLE_MINUTES="0.1")
    start(run)
    with vm_of(run) as vm, vm.browser() as browser:
        kernel = browser.kernel()
        tab = browser.open_tab(kernel)
        begun = time.monotonic()
        assert browser.cell(tab, "import time; time.sleep(15)") == ""
        assert vm.status() == "RUNNING"
        assert vm.state.idle_seconds < 6
        # Tabs that come and go, and what they ask.
        while vm.status() == "RUNNING":
            try:
                browser.open_tab(kernel)
                browser.ask("GET", "api/kernels")
                browser.ask("GET", "api/terminals")
            except (OSError, AssertionError):
                pass
            assert time.monotonic() < begun + 90
            time.sleep(0.5)
        eventually(lambda: vm.status() == "TERMINATED")
        assert vm.saves()[0].reason == "idle"
    assert bring_back(run, run.clock.now, lambda _: run) == []
    assert run.cloud.find(str(run.name)) == []


@pytest.mark.every_fault
def test_a_terminal_with_a_program_in_it_keeps_a_notebook_alive(desk: Desk) -> None:
    run = desk.job(GLGPU_NOTEBOOK_IDLE_MINUTES="0.07")
    start(run)
    with vm_of(run) as vm, vm.browser() as browser:
        status, terminal = browser.ask("POST", "api/terminals")
        assert status == 200
        browser.type(terminal["name"], "sleep 9\r")
        eventually(lambda: vm.state.busy)
        eventually(lambda: not vm.state.busy)
        assert vm.status() == "RUNNING"
        eventually(lambda: vm.status() == "TERMINATED")


WITH_GPU = SETTINGS.replace("gpu: [none], type: e2-small", "gpu: [nvidia-l4]")
COMPUTES = "import time\nwhile True: sum(range(1_000_000)); time.sleep(0.1)"


@pytest.mark.every_fault
def test_a_gpu_in_use_keeps_a_notebook_alive_and_one_that_falls_silent_lets_it_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "SAVE_SECONDS", 2)
    with desk_with({**MINE, "glgpu.yml": WITH_GPU}, tmp_path) as desk:
        run = desk.job(GLGPU_NOTEBOOK_IDLE_MINUTES="0.1")
        start(run)
        assert run.record.find("gpu-seen-inside") is not None
        with vm_of(run) as vm, vm.browser() as browser:
            # Beside the kernel, which has nothing to do any more.
            leave = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {COMPUTES!r}])"
            assert browser.cell(browser.open_tab(browser.kernel()), leave) == ""
            # JupyterLab goes on saying so, long after it would have been ended.
            seen = Path(memory_of(run.name)) / "door/seen"
            eventually(lambda: int(seen.read_text().split()[0]) - int(seen.read_text().split()[1]) > 20)
            state = vm.state
            assert (state.busy, state.answers, state.idle_seconds < 6) == (False, True, True)
            falls_silent(vm)
            eventually(lambda: vm.status() == "TERMINATED", 120)
            assert vm.saves()[0].reason == "idle"


def falls_silent(vm: Vm) -> None:
    """Whatever computes on the VM no longer does so on its GPU."""
    machine = Path(vm.guest.home).parents[2] / "machine.json"
    part = machine.with_suffix(".part")
    part.write_text(json.dumps(json.loads(machine.read_text()) | {"gpu_idle": True}))
    part.replace(machine)


@pytest.mark.every_fault
@EITHER
def test_at_its_soft_end_a_notebook_goes_though_jupyterlab_and_its_kernel_hang(desk: Desk) -> None:
    run = desk.job()
    start(run)
    with vm_of(run) as vm, vm.browser() as browser:
        later = int(time.time()) + 3600
        ask(run, vm.guest.machine, "notebook-until", str(later), doing="moving its end")
        assert vm.state.soft_end == later
        assert browser.ask("GET", "glgpu/until")[1]["until"] == later
        tab = browser.open_tab(browser.kernel())
        browser.cell(tab, "open('mine', 'w').write('mine')")
        hang = "import os, signal\nfor one in os.getppid(), os.getpid(): os.kill(one, signal.SIGSTOP)"
        browser.send(tab, hang)
        eventually(lambda: not vm.state.answers)
        ask(run, vm.guest.machine, "notebook-until", str(int(time.time())), doing="moving its end")
        eventually(lambda: vm.status() == "TERMINATED", 90)
        assert (vm.saves()[0].reason, vm.saved()) == ("deadline", {"mine"})
    assert bring_back(run, run.clock.now, lambda _: run) == []
    assert (run.outputs / WORKSPACE / "mine").read_text() == "mine"


@pytest.mark.every_fault
@pytest.mark.parametrize("gone", [False, True], ids=["off", "gone"])
def test_work_of_a_notebook_that_has_ended_by_itself_comes_home_with_its_stop_job_until_gitlab_has_it(
    desk: Desk, gone: bool
) -> None:
    run = desk.job("ada", "7001")
    start(run)
    with vm_of(run) as vm, vm.browser() as browser:
        browser.cell(browser.open_tab(browser.kernel()), "open('mine', 'w').write('mine')")
        ask(run, vm.guest.machine, "notebook-until", str(int(time.time())), doing="moving its end")
        eventually(lambda: vm.status() == "TERMINATED", 90)
        if gone:
            end_vm(run.cloud, vm.instance.name, vm.instance.zone)
    # GitLab has nothing of the first one: it died before it could upload.
    for died, work in (True, ["mine"]), (False, ["mine"]), (False, []):
        stop, job = desk.known_job("ada", "7001")
        destroy(stop, detached_too=True)
        assert [path.name for path in (stop.outputs / WORKSPACE).glob("*")] == work
        assert run.cloud.find(str(run.name)) == []
        desk.lab.world.gitlab.finish_job(job, "failed") if died else desk.uploads(stop, job)


@pytest.mark.every_fault
def test_an_image_without_jupyter_gets_it_beside_its_packages_and_cells_see_the_image_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    image = tmp_path / "image"
    venv.create(image, with_pip=True)
    (site,) = image.glob("lib/python*/site-packages")
    # A package that JupyterLab brings as well; the image's own is the one that counts in a cell.
    (site / "webencodings.py").write_text("VERSION = 'of the image'\n")
    before = {path: path.stat().st_mtime_ns for path in site.rglob("*") if "__pycache__" not in str(path)}
    with desk_with({**FILES, "tornado.py": "raise SystemExit('the workspace is no package')\n"}, tmp_path) as desk:
        run = desk.job(GLGPU_TRAIN_COMMAND=f"{image}/bin/python train.py")
        try:
            start(run)
        except Failure as failure:
            if "installing JupyterLab" in failure.cause:
                pytest.skip(f"jupyterlab: no index gives it to a VM here: {failure.cause}")
            raise
        assert "JupyterLab: beside the image's packages" in desk.said
        with vm_of(run) as vm, vm.browser() as browser:
            tab = browser.open_tab(browser.kernel())
            assert browser.cell(tab, "import webencodings; print(webencodings.VERSION)") == "of the image\n"
            assert browser.cell(tab, "import sys; print(sys.prefix)") == f"{image}\n"
            status, page = browser.ask("GET", "lab")
            assert (status, "glgpu-notebook" in page) == (200, True)
            assert browser.ask("GET", "lab/extensions/glgpu-notebook/static/remoteEntry.js")[0] == 200
    assert {path: path.stat().st_mtime_ns for path in site.rglob("*") if "__pycache__" not in str(path)} == before
