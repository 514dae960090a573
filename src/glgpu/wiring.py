"""The only place that knows which real client serves which interface."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from glgpu.clients.address_echo import caller_address
from glgpu.clients.billing_catalogue import BillingCatalogue
from glgpu.clients.cloud_storage import CloudStorage
from glgpu.clients.compute_catalogue import ComputeCatalogue
from glgpu.clients.compute_engine import ComputeEngine
from glgpu.clients.container_registry import ContainerRegistry
from glgpu.clients.gitlab_project import GitlabProject
from glgpu.clients.google_login import terraform_environment
from glgpu.clients.google_project import GoogleProject
from glgpu.clients.iap_tunnel import iap_proxy
from glgpu.clients.local_repository import LocalRepository
from glgpu.clients.local_tools import LocalTools
from glgpu.clients.remote_machine import RemoteMachine, make_login_key
from glgpu.clients.terraform_stack import TerraformStack
from glgpu.clients.work_branch import WorkBranch
from glgpu.clock import Clock, SystemClock
from glgpu.console import Console
from glgpu.disk import cannot_write
from glgpu.errors import ErrorClass, Failure
from glgpu.git_remotes import Place, place_of
from glgpu.interfaces import Backend, Endpoint, Stack
from glgpu.job import Job, hide_tokens, read_job
from glgpu.masking import Masker
from glgpu.run_names import Kind, RunName
from glgpu.run_record import RunRecord
from glgpu.settings import Machine, Settings, load_settings, read_secret
from glgpu.stages.fetch import Origin
from glgpu.stages.init import GitLab
from glgpu.steps.checks.facts import Sources
from glgpu.steps.context import Run
from glgpu.steps.visit import Visitor

DEFAULT_CONFIG = "glgpu.yml"


def make_console(environment: Mapping[str, str], *, errors: bool = False) -> Console:
    """Where messages go, in GitLab's sections where GitLab runs us; ``errors``: standard error instead."""
    return Console(
        Masker(), stream=sys.stderr.buffer if errors else None, sections=environment.get("GITLAB_CI") == "true"
    )


def make_run(
    console: Console,
    environment: Mapping[str, str],
    folder: Path,
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
    kind: Kind = "train",
    needs_settings: bool = True,
    clock: Clock | None = None,
) -> Run:
    """Everything that a stage needs.

    Args:
        console: Where messages go; its masker learns every secret before anything is printed.
        environment: The process's variables.
        folder: The working directory.
        config: Path of glgpu.yml from the command line.
        overrides: ``section.key=value`` from the command line.
        kind: What the run's VM is for.
        needs_settings: Whether glgpu.yml must be there; a teardown works without.
        clock: Time; the machine's own by default.

    Raises:
        Failure: CONFIG or USAGE.
    """
    clock = clock or SystemClock()
    job = read_job(environment, folder, clock.now())
    hide_tokens(job, console.masker)
    path = _config_path(job, config or environment.get("GLGPU_CONFIG") or DEFAULT_CONFIG)
    settings = _settings(console, path, environment, overrides, needed=needs_settings)
    for name in settings.train.secrets:
        console.masker.add(read_secret(name, environment)[0])
    if not settings.project:
        raise _no_project()
    base = _base(job, path) if needs_settings else ""
    return _wire(console, job, settings, job.name(kind), base, clock, job.project_dir / "outputs")


def make_sources(
    console: Console,
    environment: Mapping[str, str],
    folder: Path,
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
) -> Sources:
    """Whom `glgpu doctor` asks; what is wrong with variables and settings is an answer, and no failure."""
    clock = SystemClock()
    job, wrong = _readable_job(environment, folder, clock.now())
    hide_tokens(job, console.masker)
    path = _config_path(job, config or environment.get("GLGPU_CONFIG") or DEFAULT_CONFIG)
    settings: Settings | Failure
    project = job.google_project
    try:
        settings = load_settings(path, environment, overrides)
        _base(job, path)
        project = settings.project or ""
    except Failure as failure:
        settings = failure
    else:
        for name in settings.train.secrets:
            console.masker.add(read_secret(name, environment)[0])
    return Sources(
        job=job,
        wrong_variables=wrong,
        settings=settings,
        now=clock.now,
        forge=GitlabProject(job),
        rights=GoogleProject(job, project),
        catalogue=ComputeCatalogue(job, project),
        registry=ContainerRegistry(job),
        tools=LocalTools(job.terraform),
        caller_address=caller_address,
    )


def make_gitlab(
    console: Console, environment: Mapping[str, str], folder: Path, *, server: str | None, project: str | None
) -> GitLab:
    """The GitLab on which a repository is to train, and who can be asked there; that nobody can is no failure.

    What is given goes before the variables of a job, and those before the remote ``origin``.

    Args:
        console: Its masker learns the tokens.
        environment: The process's variables.
        folder: Root of the repository.
        server: Address of the GitLab, if it is given.
        project: Path of the project there, if it is given.
    """
    place = Place("", "")
    try:
        job = read_job({**environment, **_given(server, project)}, folder, SystemClock().now())
        hide_tokens(job, console.masker)
        job = _placed(job, folder)
        place = Place(job.server_url, job.project_path or str(job.project_id))
        if not job.gitlab_token:
            raise Failure(
                ErrorClass.GITLAB_AUTH,
                "GLGPU_GITLAB_TOKEN is not set",
                "set GLGPU_GITLAB_TOKEN to a token of yours or of the project (Maintainer, scope api)",
            )
    except Failure as failure:
        return GitLab(place, failure)
    return GitLab(place, GitlabProject(job))


def make_origin(
    console: Console,
    environment: Mapping[str, str],
    folder: Path,
    *,
    run: str | None,
    server: str | None,
    project: str | None,
    config: str | None = None,
    overrides: Sequence[str] = (),
) -> Origin:
    """Where `glgpu fetch` looks for a run.

    Args:
        console: Its masker learns the tokens.
        environment: The process's variables.
        folder: The working directory; its remote ``origin`` tells of GitLab where nothing else does.
        run: The run, if it is given; else that of the variables.
        server: Address of the GitLab, if it is given.
        project: Path of the project there, if it is given.
        config: Path of glgpu.yml from the command line.
        overrides: ``section.key=value`` from the command line.

    Raises:
        Failure: USAGE, where nothing says which run of which project is meant; GITLAB_AUTH; CONFIG.
    """
    own = {**environment, **_given(server, project), **({"GLGPU_RUN": run} if run else {})}
    clock = SystemClock()
    job = read_job(own, folder, clock.now())
    hide_tokens(job, console.masker)
    if not (own.get("GLGPU_RUN") or own.get("CI_PIPELINE_ID")):
        raise Failure(
            ErrorClass.USAGE,
            "nothing says which run is meant",
            "name its pipeline: `glgpu fetch 1234`; the number stands in the pipeline's address",
        )
    job = _placed(job, folder)
    if not (job.project_id or job.gitlab_token):
        raise Failure(
            ErrorClass.GITLAB_AUTH,
            f"GLGPU_GITLAB_TOKEN is not set: without it GitLab tells nothing of {job.project_path}",
            "set GLGPU_GITLAB_TOKEN to a token of your own; the scope read_api will do",
        )
    forge = GitlabProject(job)
    if not job.project_id:
        job = replace(job, project_id=forge.number())
    path = _config_path(job, config or environment.get("GLGPU_CONFIG") or DEFAULT_CONFIG)
    settings = _settings(console, path, environment, overrides, needed=config is not None)
    return Origin(job.name(), forge, lambda name: CloudStorage(job, name), settings.storage.bucket, console, clock)


@contextmanager
def visiting(
    console: Console,
    environment: Mapping[str, str],
    folder: Path,
    *,
    run: str | None,
    config: str | None = None,
    overrides: Sequence[str] = (),
    keep_in: Path | None = None,
) -> Iterator[Visitor]:
    """Who looks in on a run, from a laptop or a job; keys and work files of it are gone afterwards.

    Args:
        console: Where messages go; its masker learns the secrets that this machine knows.
        environment: The process's variables.
        folder: The working directory; its remote ``origin`` and its branch tell what nothing else does.
        run: The run, if it is given; else that of the variables.
        config: Path of glgpu.yml from the command line.
        overrides: ``section.key=value`` from the command line.
        keep_in: A folder in which they stay instead.

    Raises:
        Failure: CONFIG or USAGE.
    """
    own = {**environment, **({"GLGPU_RUN": run} if run else {})}
    job = read_job(own, folder, SystemClock().now())
    hide_tokens(job, console.masker)
    with suppress(Failure):  # a run of `glgpu run` needs no GitLab
        job = _placed(job, folder)
        if not job.project_id and job.gitlab_token:
            job = replace(job, project_id=GitlabProject(job).number())
    job = replace(job, ref=job.ref or LocalRepository(folder).branch())
    settings = _settings(console, _config_path(job, config or own.get("GLGPU_CONFIG") or DEFAULT_CONFIG), own,
                         overrides, needed=config is not None)  # fmt: skip
    for name in set(settings.train.secrets) & own.keys():
        console.masker.add(read_secret(name, own)[0])
    if not settings.project:
        raise _no_project()
    asked = job.run if own.get("GLGPU_RUN") or own.get("CI_PIPELINE_ID") else ""
    with nullcontext(str(keep_in)) if keep_in else TemporaryDirectory(prefix="glgpu-") as work:
        # Another run may be under way in this folder: its key and its record are left alone.
        elsewhere = replace(job, project_dir=Path(work))
        clock = SystemClock()
        any_run = _wire(console, elsewhere, settings, elsewhere.name(), "", clock, Path(work) / "outputs")
        yield Visitor(any_run, asked, lambda name: under_name(any_run, name))


def _given(server: str | None, project: str | None) -> dict[str, str]:
    """What options say in place of a job's variables, which speak of its own project alone."""
    given = {"CI_SERVER_URL": server, "CI_API_V4_URL": "", "CI_PROJECT_ID": "", "CI_PROJECT_PATH": ""} if server else {}
    return given | ({"CI_PROJECT_ID": "", "CI_PROJECT_PATH": project} if project else {})


def _placed(job: Job, folder: Path) -> Job:
    """The job, on a laptop with what the remote ``origin`` tells of GitLab.

    Raises:
        Failure: USAGE, where that tells nothing either.
    """
    if job.server_url and (job.project_id or job.project_path):
        return job
    origin = place_of(LocalRepository(folder).origin())
    if origin and not job.server_url:
        job = replace(job, server_url=origin.server, api_url=f"{origin.server}/api/v4")
    if origin and not (job.project_id or job.project_path):
        # A GitLab that does not live at the root of its host shows that in addresses of its projects.
        root = urlsplit(job.server_url).path.strip("/")
        job = replace(job, project_path=origin.project.removeprefix(f"{root}/"))
    if not job.server_url or not (job.project_id or job.project_path):
        raise Failure(
            ErrorClass.USAGE,
            f"no remote `origin` of {folder.resolve()} tells which project on which GitLab this is",
            "name both with --gitlab and --project",
        )
    return job


def _readable_job(environment: Mapping[str, str], folder: Path, now: float) -> tuple[Job, tuple[Failure, ...]]:
    """The job without the variables that cannot be understood, and what is wrong with each."""
    left, wrong = dict(environment), list[Failure]()
    while True:
        try:
            return read_job(left, folder, now), tuple(wrong)
        except Failure as failure:
            named = [name for name in left if re.search(rf"\b{re.escape(name)}\b", failure.cause)]
            if not named:
                raise
            wrong.append(failure)
            for name in named:
                del left[name]


@contextmanager
def offer_sources(
    console: Console,
    environment: Mapping[str, str],
    folder: Path,
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
) -> Iterator[tuple[Machine, ComputeCatalogue | None, BillingCatalogue | None]]:
    """The settings of the machine, and whom to ask about offers; nobody where no project is set.

    Args:
        console: Where messages go; its masker learns the tokens.
        environment: The process's variables.
        folder: The working directory.
        config: Path of glgpu.yml from the command line.
        overrides: ``section.key=value`` from the command line.

    Raises:
        Failure: CONFIG or USAGE.
    """
    job = read_job(environment, folder, SystemClock().now())
    hide_tokens(job, console.masker)
    path = _config_path(job, config or environment.get("GLGPU_CONFIG") or DEFAULT_CONFIG)
    settings = _settings(console, path, environment, overrides, needed=config is not None)
    if not settings.project:
        yield settings.machine, None, None
        return
    another_s = job.scratch.exists()  # a run that is under way here has its key in it
    _make_scratch(job.scratch)
    try:
        yield settings.machine, ComputeCatalogue(job, settings.project), BillingCatalogue(job)
    finally:
        if not another_s:
            shutil.rmtree(job.scratch, ignore_errors=True)


def under_name(run: Run, name: RunName) -> Run:
    """The same wiring for a run of the same project; another one's outputs have a folder of their own."""
    if name == run.name:
        return run
    job = replace(run.job, run=name.run)
    return _wire(run.console, job, run.settings, name, run.base, run.clock, run.outputs / "glgpu" / str(name))


def _no_project() -> Failure:
    return Failure(
        ErrorClass.CONFIG,
        "the Google Cloud project is not set",
        "set the CI variable GLGPU_PROJECT, or `project` in glgpu.yml",
    )


def _settings(
    console: Console, path: Path, environment: Mapping[str, str], overrides: Sequence[str], *, needed: bool
) -> Settings:
    """The settings; a teardown does without a glgpu.yml, and is not stopped by one that is wrong."""
    if needed or path.exists():
        try:
            return load_settings(path, environment, overrides)
        except Failure as failure:
            if needed:
                raise
            console.say(f"going on without {path}: {failure.cause}")
    return load_settings(None, environment, overrides)


def _wire(console: Console, job: Job, settings: Settings, name: RunName, base: str, clock: Clock, outputs: Path) -> Run:
    def stack_for(variables: Mapping[str, object], state: Backend | None) -> Stack:
        return TerraformStack(
            job.terraform_module,
            job.scratch,
            variables,
            state=state,
            credentials=terraform_environment(job),
            program=job.terraform,
            secrets=tuple(settings.train.secrets),
            say=lambda line: console.say(f"terraform: {line}"),
        )

    def connect(endpoint: Endpoint, folder: Path, host_key: str) -> RemoteMachine:
        proxy = iap_proxy(job, settings.project or "", endpoint) if endpoint.through_iap else None
        return RemoteMachine(endpoint, folder, host_key, proxy)

    _make_scratch(job.scratch)
    return Run(
        name=name,
        job=job,
        settings=settings,
        base=base,
        cloud=ComputeEngine(job, settings.project or "", console.say),
        catalogue=ComputeCatalogue(job, settings.project or ""),
        forge=GitlabProject(job),
        bucket_for=lambda name: CloudStorage(job, name),
        connect=connect,
        stack_for=stack_for,
        make_login_key=make_login_key,
        repository=LocalRepository(job.project_dir),
        branch_at=WorkBranch,
        outputs=outputs,
        google_time=GoogleProject(job, settings.project or "").server_time,
        caller_address=caller_address,
        console=console,
        record=RunRecord(outputs / "glgpu/run.json", str(name), job.job_id, clock, console.masker),
        clock=clock,
    )


def _make_scratch(scratch: Path) -> None:
    """A folder for keys and work files, for our eyes only, which neither git nor artifacts take along."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        scratch.chmod(0o700)
        (scratch / ".gitignore").write_text("*\n", encoding="ascii")
    except OSError as error:
        raise cannot_write(error, scratch) from None


def _config_path(job: Job, config: str) -> Path:
    path = Path(config)
    return path if path.is_absolute() else job.project_dir / path


def _base(job: Job, config: Path) -> str:
    """The folder of glgpu.yml within the repository: the container's working directory.

    Raises:
        Failure: CONFIG, when it lies outside.
    """
    try:
        base = config.parent.resolve().relative_to(job.project_dir.resolve())
    except ValueError:
        raise Failure(
            ErrorClass.CONFIG,
            f"{config} lies outside the repository at {job.project_dir}",
            "keep glgpu.yml in the repository; its folder is where the training runs",
        ) from None
    return "" if str(base) == "." else str(base)


def clear_scratch(run: Run) -> None:
    """Remove keys and work files: build folders outlive jobs."""
    shutil.rmtree(run.job.scratch, ignore_errors=True)
