"""GitLab's half of one run of a job: what it tells a runner, and what becomes of what the runner answers.

A runner takes a turn, whoever plays it: the one of ``job_run`` or the real one behind ``runner_api``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from glgpu.rehearsal import gitlab_model
from glgpu.rehearsal.ci_yaml import Environment, Job, Variable, expand, expand_all
from glgpu.rehearsal.job_artifacts import UploadRefused, check_annotations, parse_dotenv
from glgpu.rehearsal.occasion import environment_slug, id_token, iso, slug

if TYPE_CHECKING:
    from glgpu.rehearsal.player import Player

PROJECT_TIMEOUT_SECONDS = 60 * 60
ID_TOKEN_SECONDS = 5 * 60
"""How long an ID token lives where the job has no timeout of its own, else as long as that."""
ARTIFACT_BYTES_PER_MB = 1024 * 1024

Limit = Literal["job timeout", "script timeout"]
Interrupt = Literal["cancel", "force cancel", "runner stopped", "runner killed"] | Limit


@dataclass
class Attempt:
    """One run of a job.

    Attributes:
        entry: The run as GitLab has it, with its status, failure reason and exit code.
        log: The log as GitLab shows it; not there before the run has begun.
        artifacts: The archive, if one was uploaded.
        artifacts_erased: Whether artifacts have been erased or have expired.
        reports: Kind to the uploaded file.
        dotenv: Variables of its dotenv report, for later jobs.
        seconds: How long it ran.
        interrupt: How it was interrupted, if it was.
    """

    entry: gitlab_model.Job
    log: Path
    artifacts: Path | None = None
    artifacts_erased: bool = False
    reports: dict[str, Path] = field(default_factory=dict)
    dotenv: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    interrupt: Interrupt | None = None
    interrupted: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def interrupt_with(self, how: Interrupt) -> None:
        """Let whoever waits for the run know."""
        self.interrupt = how
        self.interrupted.set()


@dataclass
class Outcome:
    """A job of the pipeline and what has become of it so far."""

    job: Job
    environment: Environment | None
    attempts: list[Attempt]

    @property
    def last(self) -> Attempt:
        """The run that counts."""
        return self.attempts[-1]

    @property
    def status(self) -> str:
        """Status of the run that counts."""
        return self.last.entry.status

    @property
    def failure_reason(self) -> str | None:
        """Why that run failed, as GitLab names it."""
        return self.last.entry.failure_reason

    @property
    def exit_code(self) -> int | None:
        """Exit code of that run's script."""
        return self.last.entry.exit_code

    @property
    def allow_failure(self) -> bool:
        """Whether its failure is only a warning."""
        return self.last.entry.allow_failure


@dataclass(frozen=True)
class Given:
    """A variable that GitLab gives to a job.

    Attributes:
        value: The text; of a file variable the file's.
        expand: Whether ``$NAME`` in it is replaced.
        is_file: Whether the job gets the path of a file with this text.
        masked: Whether the runner hides it in the log.
    """

    value: str
    expand: bool = True
    is_file: bool = False
    masked: bool = False


class Turn:
    """A runner's turn with one job.

    Attributes:
        variables: What GitLab gives the job, lowest rank first; what only the runner knows is not among them.
        timeout: Seconds after which the runner ends the job.
        token: The job's token.
        heard_at: When GitLab last heard of the job, in the world's time.
        over: Set with the last word.
    """

    def __init__(self, player: Player, outcome: Outcome) -> None:
        self.player = player
        self.outcome = outcome
        self.job = outcome.job
        self.attempt = outcome.last
        self.entry = outcome.last.entry
        self.timeout = self.job.timeout or PROJECT_TIMEOUT_SECONDS
        self.token = ""
        self.variables: Mapping[str, Given] = {}
        self.heard_at = player.state.clock.now()
        self.over = asyncio.Event()
        self._begun = 0.0

    def begin(self) -> None:
        """A runner has taken the job."""
        self._begun = asyncio.get_running_loop().time()
        self.player.state.start_job(self.entry)
        self.token = self.player.state.issue_job_token(self.entry)
        self.attempt.log.write_bytes(b"")
        self.player.before_job(self.job)
        self.variables = self._variables()

    def hear(self) -> None:
        """The runner gives a sign of life."""
        self.heard_at = self.player.state.clock.now()

    def append(self, data: bytes) -> None:
        """More of the job's log; what a runner still held when it was killed reaches nobody."""
        if self.attempt.interrupt == "runner killed":
            return
        self.hear()
        with self.attempt.log.open("ab") as file:
            file.write(data)
        self.entry.trace += data
        self.player.on_output(self.job, data)

    def upload(self, name: str) -> Path:
        """Where a file goes that the runner hands over."""
        folder = self.player.folder / "artifacts" / str(self.entry.id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def take_archive(self, archive: Path) -> None:
        """Take the job's archive.

        Raises:
            UploadRefused: It is too large.
        """
        self._check_size(archive)
        self.attempt.artifacts = archive
        self.player.state.save_artifacts(self.entry, archive)

    def take_report(self, kind: str, report: Path) -> None:
        """Take one of the job's reports.

        Raises:
            UploadRefused: It is too large, or not of its kind.
        """
        self._check_size(report)
        if kind == "dotenv":
            self.attempt.dotenv |= parse_dotenv(report.read_bytes())
        if kind == "annotations":
            check_annotations(report.read_bytes())
        self.attempt.reports[kind] = report

    def _check_size(self, upload: Path) -> None:
        if upload.stat().st_size > self.player.state.artifact_limit_mb * ARTIFACT_BYTES_PER_MB:
            upload.unlink()
            raise UploadRefused("413 Request Entity Too Large")

    def end(self, reason: str | None, exit_code: int | None) -> None:
        """The last word, unless a forced cancel has had it already.

        Args:
            reason: Why the job failed, in GitLab's words; None: it has not.
            exit_code: Of its script, where there is one.
        """
        self.attempt.seconds = asyncio.get_running_loop().time() - self._begun
        self.over.set()
        if self.entry.status == "canceled":
            return
        if exit_code in self.job.allow_failure_exit_codes:
            self.entry.allow_failure = True
        self.player.state.finish_job(
            self.entry, "failed" if reason else "success", failure_reason=reason, exit_code=exit_code
        )
        environment = self.outcome.environment
        if environment and environment.url and environment.action == "start" and self.entry.status == "success":
            # Only now, for the address may use what the job has written into its dotenv report.
            known = {name: Variable(given.value, given.expand) for name, given in self.variables.items()}
            known |= {name: Variable(value) for name, value in self.attempt.dotenv.items()}
            url = expand(environment.url, expand_all(known))
            for deployed in self.player.occasion.project.environments.values():
                if deployed.name == environment.name:
                    deployed.external_url = url

    def _variables(self) -> dict[str, Given]:
        player, job, environment, entry = self.player, self.job, self.outcome.environment, self.entry
        pipeline, server, event = player.entry, player.occasion.server, player.occasion.event
        url = f"{server.url}/{player.occasion.project.path}"
        plain = player.predefined | {
            "CI_JOB_ID": str(entry.id),
            "CI_JOB_NAME": job.name,
            "CI_JOB_NAME_SLUG": slug(job.name),
            "CI_JOB_STAGE": job.stage,
            "CI_JOB_STARTED_AT": iso(entry.started_at or 0.0),
            "CI_JOB_TIMEOUT": str(self.timeout),
            "CI_JOB_URL": f"{url}/-/jobs/{entry.id}",
            "CI_PIPELINE_CREATED_AT": iso(pipeline.created_at),
            "CI_PIPELINE_ID": str(pipeline.id),
            "CI_PIPELINE_IID": str(pipeline.iid),
            "CI_PIPELINE_NAME": player.pipeline.name,
            "CI_PIPELINE_URL": f"{url}/-/pipelines/{pipeline.id}",
            # A manual job's is who has clicked.
            "GITLAB_USER_ID": str(entry.user.id),
            "GITLAB_USER_LOGIN": entry.user.username,
            "GITLAB_USER_NAME": entry.user.name,
            "GITLAB_USER_EMAIL": f"{entry.user.username}@example.com",
            "CI_RUNNER_DESCRIPTION": f"{player.executor} runner",
            "CI_RUNNER_ID": "1",
            "CI_RUNNER_TAGS": str(list(job.tags)).replace("'", '"'),
        }
        if job.image:
            plain["CI_JOB_IMAGE"] = job.image
        if job.when == "manual":
            plain["CI_JOB_MANUAL"] = "true"
        layers = {name: Given(value, expand=False) for name, value in plain.items()}
        layers["CI_JOB_TOKEN"] = Given(self.token, expand=False, masked=True)
        layers["CI_REPOSITORY_URL"] = Given(server.repository_url(player.occasion.project, self.token), expand=False)
        if server.registry:
            layers["CI_REGISTRY_PASSWORD"] = Given(self.token, expand=False, masked=True)
        if environment is not None:
            named = {
                "CI_ENVIRONMENT_NAME": environment.name,
                "CI_ENVIRONMENT_SLUG": environment_slug(environment.name),
                "CI_ENVIRONMENT_ACTION": environment.action,
                "CI_ENVIRONMENT_TIER": "other",
            }
            layers |= {name: Given(value, expand=False) for name, value in named.items()}
            if environment.url:
                layers["CI_ENVIRONMENT_URL"] = Given(environment.url)
        layers |= {name: Given(variable.value, variable.expand) for name, variable in job.variables.items()}
        for dependency in player.dependencies(job):
            layers |= {name: Given(value) for name, value in dependency.last.dotenv.items()}
        for setting in player.occasion.settings_variables(environment.name if environment else None):
            layers[setting.key] = Given(setting.value, not setting.raw, setting.is_file, setting.masked)
        layers |= {name: Given(value) for name, value in event.variables.items()}
        known = expand_all({name: Variable(given.value, given.expand) for name, given in layers.items()})
        for name, audiences in job.id_tokens.items():
            expanded = tuple(expand(audience, known) for audience in audiences)
            made = id_token(player.occasion, entry, expanded, job.timeout or ID_TOKEN_SECONDS)
            layers[name] = Given(made, expand=False, masked=True)
        return layers
