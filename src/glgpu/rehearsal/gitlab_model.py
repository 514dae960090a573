"""What a GitLab holds, as plain values: users, projects, tokens, pipelines, jobs, environments, states, packages."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import IntEnum
from fnmatch import fnmatchcase
from pathlib import Path


class Role(IntEnum):
    """Access levels, by GitLab's numbers (doc/api/access_requests.md)."""

    NONE = 0
    GUEST = 10
    REPORTER = 20
    DEVELOPER = 30
    MAINTAINER = 40
    OWNER = 50


UNFINISHED = frozenset({"created", "waiting_for_resource", "preparing", "pending", "running", "canceling", "scheduled"})
"""Statuses of a job or pipeline that is not over; ``manual`` waits for a person and counts as over."""
FINISHED = frozenset({"success", "failed", "canceled"})
"""Statuses of a deployment that has finished, canceled ones since GitLab 17.0 (platform-facts)."""


def timestamp(seconds: float | None) -> str | None:
    """Unix time in GitLab's form: ISO 8601 in UTC with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(eq=False)
class User:
    """A person or a bot."""

    id: int
    username: str
    name: str
    admin: bool = False
    bot: bool = False
    state: str = "active"


@dataclass(eq=False)
class Token:
    """A personal access token; with a project, that project's access token, whose user is its bot.

    Attributes:
        value: The secret.
        expires_at: The day from whose beginning (UTC) it is dead, or None.
    """

    id: int
    user: User
    name: str
    scopes: tuple[str, ...]
    value: str
    created_at: float
    expires_at: date | None = None
    revoked: bool = False
    project_id: int | None = None
    access_level: Role = Role.NONE
    description: str | None = None
    last_used_at: float | None = None

    def expired(self, now: float) -> bool:
        """Whether its last day is over."""
        return self.expires_at is not None and datetime.fromtimestamp(now, UTC).date() >= self.expires_at


@dataclass(eq=False)
class DeployToken:
    """A project's deploy token."""

    id: int
    name: str
    username: str
    scopes: tuple[str, ...]
    value: str
    expires_at: float | None = None
    revoked: bool = False

    def expired(self, now: float) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and now >= self.expires_at


@dataclass(eq=False)
class DeployKey:
    """A public key and the projects that it opens.

    Attributes:
        key: The key as it was posted, comment included.
        projects: Project id to whether the key may push there.
    """

    id: int
    title: str
    key: str
    created_at: float
    creator: User
    projects: dict[int, bool]
    expires_at: float | None = None
    last_used_at: float | None = None

    @property
    def blob(self) -> str:
        """The base64 part, which identifies the key whatever its comment."""
        return self.key.split()[1]

    def expired(self, now: float) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and now >= self.expires_at


@dataclass(eq=False)
class Variable:
    """A CI/CD variable of a project, a schedule or a pipeline."""

    key: str
    value: str
    variable_type: str = "env_var"
    protected: bool = False
    masked: bool = False
    hidden: bool = False
    raw: bool = False
    environment_scope: str = "*"
    description: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether a job gets the path of a file with the value."""
        return self.variable_type == "file"

    def in_scope(self, environment: str | None) -> bool:
        """Whether a job of this environment (or of none) gets it: ``*`` matches any run of characters."""
        if self.environment_scope == "*":
            return True
        return environment is not None and fnmatchcase(environment, self.environment_scope.replace("[", "[[]"))


@dataclass(eq=False)
class State:
    """A Terraform state.

    Attributes:
        versions: Each saved document with its serial, oldest first.
        lock_id: Who holds the lock, or None.
    """

    name: str
    created_at: float
    updated_at: float
    versions: list[tuple[int, bytes]] = field(default_factory=list)
    lock_id: str | None = None
    locked_by: User | None = None
    locked_at: float | None = None


@dataclass(eq=False)
class PackageFile:
    """One file of a package; its bytes lie at ``path``."""

    id: int
    name: str
    path: Path
    size: int
    sha256: str
    created_at: float


@dataclass(eq=False)
class Package:
    """A generic package."""

    id: int
    name: str
    version: str
    created_at: float
    creator: User | None
    files: list[PackageFile] = field(default_factory=list)


@dataclass(eq=False)
class Environment:
    """An environment; ``state`` is available, stopping or stopped."""

    id: int
    name: str
    created_at: float
    updated_at: float
    state: str = "available"
    external_url: str | None = None
    auto_stop_at: float | None = None

    @property
    def slug(self) -> str:
        """The name as part of a host name (at most 24 characters)."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:24].rstrip("-")


@dataclass(eq=False)
class Job:
    """A job.

    Attributes:
        when: The keyword that it was created with, for example ``manual`` or ``always``.
        user: Who triggered it; the one who clicked, for a manual job.
        environment: Its environment's name, expanded, or None.
        action: What it does to its environment: start, stop, prepare, ...
        on_stop: Name of the job that stops the environment.
        token: Its job token, once issued.
        artifacts: The zip archive, once uploaded.
        retried: Whether a newer job has taken its place.
    """

    id: int
    pipeline: Pipeline
    name: str
    stage: str
    user: User
    created_at: float
    when: str = "on_success"
    allow_failure: bool = False
    tags: tuple[str, ...] = ()
    environment: str | None = None
    action: str = "start"
    on_stop: str | None = None
    auto_stop_in: float | None = None
    status: str = "created"
    token: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    failure_reason: str | None = None
    exit_code: int | None = None
    trace: bytes = b""
    artifacts: Path | None = None
    retried: bool = False


@dataclass(eq=False)
class Deployment:
    """A job's deployment to an environment."""

    id: int
    iid: int
    environment: Environment
    job: Job
    created_at: float
    updated_at: float
    status: str = "running"


@dataclass(eq=False)
class Pipeline:
    """A pipeline; its status follows from its jobs.

    Attributes:
        skipped: Whether it was never to have any (``ci.skip``).
    """

    id: int
    iid: int
    project: Project
    ref: str
    sha: str
    source: str
    user: User
    created_at: float
    updated_at: float
    tag: bool = False
    name: str | None = None
    variables: list[Variable] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    schedule_id: int | None = None
    skipped: bool = False

    @property
    def latest(self) -> list[Job]:
        """Its jobs without those that a retry has replaced."""
        return [job for job in self.jobs if not job.retried]

    @property
    def status(self) -> str:
        """As GitLab composes it (lib/gitlab/ci/status/composite.rb)."""
        return "skipped" if self.skipped else composite_status(self.latest)


def composite_status(jobs: list[Job]) -> str:
    """The status of jobs taken together."""
    words: set[str] = set()
    for job in jobs:
        if job.allow_failure and job.status in ("failed", "canceled"):
            words.add("warning")
        elif job.allow_failure and job.status == "manual":
            words.add("ignored")
        else:
            words.add(job.status)
    over = {"skipped", "warning", "ignored", "success"}
    if words <= {"skipped", "ignored"}:
        return "skipped" if jobs else "created"
    if words <= over:
        return "success"
    if words <= over | {"canceled"}:
        return "canceled"
    if "canceling" in words:
        return "canceling"
    if words <= {"created", "skipped", "ignored"}:
        return "created"
    if words <= {"pending", "created", "skipped", "ignored"}:
        return "pending"
    if words & {"running", "pending", "waiting_for_resource"}:
        return "running"
    if "manual" in words:
        return "manual"
    if "created" in words:
        return "running"
    return "failed"


@dataclass(eq=False)
class Schedule:
    """A pipeline schedule."""

    id: int
    description: str
    ref: str
    cron: str
    owner: User
    created_at: float
    updated_at: float
    cron_timezone: str = "UTC"
    active: bool = True
    variables: list[Variable] = field(default_factory=list)
    last_pipeline: Pipeline | None = None


@dataclass(eq=False)
class Note:
    """A comment on a commit."""

    sha: str
    text: str
    author: User
    created_at: float


@dataclass(eq=False)
class Project:
    """A project and everything in it.

    Attributes:
        path: Full path, for example ``team/model``.
        repository: Its bare repository.
        visibility: ``private`` (members), ``internal`` (whoever has a login) or ``public``.
        protected_branches: Patterns with ``*``; the default branch is protected from the start.
        job_token_allowlist: Ids of other projects whose job tokens may come in.
    """

    id: int
    path: str
    repository: Path
    created_at: float
    default_branch: str = "main"
    visibility: str = "private"
    protected_branches: list[str] = field(default_factory=list)
    members: dict[int, Role] = field(default_factory=dict)
    job_token_allowlist: set[int] = field(default_factory=set)
    deploy_tokens: dict[int, DeployToken] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    states: dict[str, State] = field(default_factory=dict)
    packages: dict[int, Package] = field(default_factory=dict)
    pipelines: dict[int, Pipeline] = field(default_factory=dict)
    environments: dict[int, Environment] = field(default_factory=dict)
    deployments: list[Deployment] = field(default_factory=list)
    schedules: dict[int, Schedule] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def role(self, user: User) -> Role:
        """What this user is here; an administrator counts as Owner."""
        return Role.OWNER if user.admin else self.members.get(user.id, Role.NONE)

    def protects(self, ref: str) -> bool:
        """Whether a branch is protected."""
        return any(fnmatchcase(ref, pattern.replace("[", "[[]")) for pattern in self.protected_branches)

    def may_run_on(self, ref: str, user: User) -> bool:
        """Whether somebody may have pipelines on a branch: who may push there, Maintainers where it is protected."""
        return self.role(user) >= (Role.MAINTAINER if self.protects(ref) else Role.DEVELOPER)

    @property
    def jobs(self) -> list[Job]:
        """All jobs, newest first."""
        found = [job for pipeline in self.pipelines.values() for job in pipeline.jobs]
        return sorted(found, key=lambda job: -job.id)


def secret(prefix: str) -> str:
    """A new token with GitLab's prefix for its kind."""
    return prefix + secrets.token_urlsafe(20)[:20].replace("-", "x").replace("_", "y")
