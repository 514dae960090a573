"""The state of the stand-in GitLab and the rules by which it changes; no network in here.

Each method does what a person, the runner or GitLab's own workers would do, so the player of jobs calls them directly.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

from glgpu import processes
from glgpu.rehearsal.gitlab_model import (
    FINISHED,
    UNFINISHED,
    DeployKey,
    Deployment,
    DeployToken,
    Environment,
    Job,
    Pipeline,
    Project,
    Role,
    Schedule,
    Token,
    User,
    Variable,
    secret,
)
from glgpu.rehearsal.json_web_tokens import SigningKey
from glgpu.rehearsal.world_clock import WorldClock


class Refused(Exception):
    """GitLab would not do that; the message is what its API says."""


class GitLabState:
    """Users, projects and all that happens to their pipelines.

    Args:
        folder: Where repositories, artifacts and package files lie; made if missing.
        clock: The world's clock.

    Attributes:
        admin: The administrator.
        admin_token: Value of a token that may read and do everything.
        id_tokens: What signs the identity tokens of jobs.
        artifact_limit_mb: The setting ``max_artifacts_size``.
        package_limit: Bytes of a generic package file, the plan limit ``generic_packages_max_file_size``.
        direct_download: Whether files of packages and artifacts lie in an object storage to which downloads are sent.
        signed: What each address of that object storage that was given out stands for.
        job_listeners: Called with a word (``created``, ``started``, ``finished``, ``canceling``, ``canceled``,
            ``played``, ``retried``) and the job, in the caller's thread.
    """

    def __init__(self, folder: Path, clock: WorldClock) -> None:
        self.folder = folder
        self.clock = clock
        self.users: dict[int, User] = {}
        self.projects: dict[int, Project] = {}
        self.tokens: list[Token] = []
        self.deploy_keys: dict[int, DeployKey] = {}
        self.job_listeners: list[Callable[[str, Job], None]] = []
        self.artifact_limit_mb = 100
        self.package_limit = 5 << 30
        self.direct_download = False
        self.signed: dict[str, Path] = {}
        self._numbers = itertools.count(1001)
        self._iids: dict[tuple[int, str], itertools.count[int]] = {}
        for name in ("repositories", "artifacts", "packages"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        # A repository that somebody else owns can be taken over too; git refuses that unless told so here.
        self._git_config = folder / "gitconfig"
        self._git_config.write_text("[safe]\n\tdirectory = *\n", encoding="utf-8")
        self.id_tokens = SigningKey()
        self.admin = self.create_user("root", admin=True)
        self.admin_token = self.create_token(self.admin, "administration", ["api"]).value

    def number(self) -> int:
        """An id that nothing else has."""
        return next(self._numbers)

    def _iid(self, project: Project, kind: str) -> int:
        return next(self._iids.setdefault((project.id, kind), itertools.count(1)))

    def git_environment(self, **extra: str) -> dict[str, str]:
        """The environment of GitLab's own git: nothing of this machine's git configuration, nor of the caller's."""
        ours = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": str(self._git_config)}
        return processes.environment(ours | extra, without=[name for name in os.environ if name.startswith("GIT_")])

    def git(self, project: Project, *arguments: str) -> processes.Done:
        """Run git in a project's repository."""
        return self._git("--git-dir", str(project.repository), *arguments)

    def _git(self, *arguments: str) -> processes.Done:
        return processes.run(["git", *arguments], env=self.git_environment())

    # People and tokens

    def create_user(self, username: str, *, name: str = "", admin: bool = False, bot: bool = False) -> User:
        """Add a user."""
        user = User(self.number(), username, name or username.capitalize(), admin, bot)
        self.users[user.id] = user
        return user

    def create_token(
        self, user: User, name: str, scopes: Sequence[str], *, expires_at: date | None = None, description: str = ""
    ) -> Token:
        """Add a personal access token; its secret is ``value``."""
        value = secret("glpat-")
        token = Token(
            self.number(),
            user,
            name,
            tuple(scopes),
            value,
            self.clock.now(),
            expires_at,
            description=description or None,
        )
        self.tokens.append(token)
        return token

    def create_project_token(
        self, project: Project, name: str, scopes: Sequence[str], role: Role, *, expires_at: date | None = None
    ) -> Token:
        """Add a project access token together with its bot user, who becomes a member."""
        bot = self.create_user(f"project_{project.id}_bot_{self.number()}", name=name, bot=True)
        project.members[bot.id] = role
        token = self.create_token(bot, name, scopes, expires_at=expires_at)
        token.project_id, token.access_level = project.id, role
        return token

    def find_token(self, value: str) -> Token | None:
        """The token with this secret, dead or alive."""
        return next((token for token in self.tokens if token.value == value), None)

    def find_deploy_token(self, value: str) -> DeployToken | None:
        """The living deploy token with this secret, whatever project's."""
        now = self.clock.now()
        found = (token for project in self.projects.values() for token in project.deploy_tokens.values())
        return next((one for one in found if one.value == value and not (one.revoked or one.expired(now))), None)

    # Projects and their repositories

    def create_project(self, path: str, repository: Path | None = None, *, owner: User | None = None) -> Project:
        """Add a project, with all refs of ``repository`` (bare or not) if given, and a protected default branch."""
        number = self.number()
        bare = self.folder / "repositories" / f"{number}.git"
        project = Project(number, path, bare, self.clock.now())
        self._need(self._git("init", "--quiet", "--bare", "--initial-branch=main", str(bare)))
        # As on GitLab: partial clones, any commit that still exists can be fetched by its hash, pushes with options.
        for key in (
            "uploadpack.allowFilter",
            "uploadpack.allowAnySHA1InWant",
            "http.receivepack",
            "receive.advertisePushOptions",
        ):
            self._need(self.git(project, "config", key, "true"))
        if repository is not None:
            refspecs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
            self._need(self.git(project, "fetch", "--quiet", str(repository), *refspecs))
            head = self._git("-C", str(repository), "symbolic-ref", "--short", "HEAD").text.strip()
            project.default_branch = head or project.default_branch
            self._need(self.git(project, "symbolic-ref", "HEAD", f"refs/heads/{project.default_branch}"))
        project.protected_branches.append(project.default_branch)
        if owner is not None:
            project.members[owner.id] = Role.OWNER
        self.projects[number] = project
        return project

    def push(self, project: Project, source: Path, revision: str, branch: str) -> str:
        """Bring ``revision`` of a local repository onto a branch and return its hash."""
        ref = f"refs/heads/{branch}"
        self._need(self.git(project, "fetch", "--quiet", str(source), f"+{revision}:{ref}"))
        return self.git(project, "rev-parse", ref).text.strip()

    def find_project(self, id_or_path: str) -> Project | None:
        """A project by its number or full path."""
        if id_or_path.isdecimal():
            return self.projects.get(int(id_or_path))
        return next((p for p in self.projects.values() if p.path.lower() == id_or_path.lower()), None)

    @staticmethod
    def _need(done: processes.Done) -> None:
        if done.code:
            raise RuntimeError(f"{' '.join(done.argv)}: {done.complaint}")

    # Variables

    def variables_for(self, project: Project, ref: str, environment: str | None = None) -> list[Variable]:
        """The project's variables that a job gets: protected ones on protected refs only, the closest scope wins."""
        usable = [
            v for v in project.variables if v.in_scope(environment) and (not v.protected or project.protects(ref))
        ]
        closest = {
            v.key: v for v in sorted(usable, key=lambda v: (v.environment_scope != "*", len(v.environment_scope)))
        }
        return list(closest.values())

    # Pipelines and jobs

    def create_pipeline(
        self,
        project: Project,
        ref: str,
        sha: str,
        source: str,
        user: User,
        variables: Sequence[Variable] = (),
        *,
        schedule: Schedule | None = None,
        tag: bool = False,
    ) -> Pipeline:
        """Add a pipeline without jobs, and the ref by which a runner fetches its commit."""
        now = self.clock.now()
        pipeline = Pipeline(
            self.number(), self._iid(project, "pipeline"), project, ref, sha, source, user, now, now, tag,
            variables=list(variables),
        )  # fmt: skip
        if schedule is not None:
            pipeline.schedule_id, schedule.last_pipeline = schedule.id, pipeline
        self._need(self.git(project, "update-ref", f"refs/pipelines/{pipeline.id}", sha))
        project.pipelines[pipeline.id] = pipeline
        return pipeline

    def create_job(
        self,
        pipeline: Pipeline,
        name: str,
        stage: str,
        *,
        when: str = "on_success",
        allow_failure: bool = False,
        environment: str | None = None,
        action: str = "start",
        on_stop: str | None = None,
        auto_stop_in: float | None = None,
        tags: Sequence[str] = (),
    ) -> Job:
        """Add a job; a manual one waits to be played.

        Args:
            pipeline: Its pipeline.
            name: Its name.
            stage: Its stage.
            when: The keyword.
            allow_failure: The keyword.
            environment: The environment's name, already expanded; made on the first job that names it.
            action: ``environment:action``.
            on_stop: ``environment:on_stop``.
            auto_stop_in: ``environment:auto_stop_in`` in seconds.
            tags: Runner tags.
        """
        job = Job(
            self.number(), pipeline, name, stage, pipeline.user, self.clock.now(), when, allow_failure, tuple(tags),
            environment, action, on_stop, auto_stop_in,
        )  # fmt: skip
        if environment is not None:
            self._environment(pipeline.project, environment)
        pipeline.jobs.append(job)
        if when == "manual":
            job.status = "manual"
        self._tell("created", job)
        return job

    def start_job(self, job: Job) -> None:
        """A runner has taken the job; a job that starts its environment begins a deployment."""
        if job.status not in ("created", "pending"):
            raise Refused(f"a job that is {job.status} cannot start")
        job.status, job.started_at = "running", self.clock.now()
        if job.environment is not None and job.action == "start":
            environment = self._environment(job.pipeline.project, job.environment)
            environment.state, environment.updated_at = "available", self.clock.now()
            now = self.clock.now()
            job.pipeline.project.deployments.append(
                Deployment(self.number(), self._iid(job.pipeline.project, "deployment"), environment, job, now, now)
            )
        self._tell("started", job)

    def finish_job(
        self, job: Job, status: str, *, failure_reason: str | None = None, exit_code: int | None = None
    ) -> None:
        """A job's last word: ``success``, ``failed`` or ``canceled``; a canceling job can only be canceled."""
        if job.status == "canceling":
            status, failure_reason = "canceled", None
        job.status, job.finished_at = status, self.clock.now()
        job.failure_reason, job.exit_code = failure_reason, exit_code
        self._settle_environment(job)
        self._tell("finished", job)

    def skip_job(self, job: Job) -> None:
        """The jobs before it have decided that it does not run."""
        job.status = "skipped"
        self._tell("finished", job)

    def cancel_job(self, job: Job, *, force: bool = False) -> None:
        """Cancel: a running job becomes ``canceling`` until its after_script is through, any other ends at once.

        Raises:
            Refused: It is over, or already canceling and not forced.
        """
        if job.status == "running" and not force:
            job.status = "canceling"
            self._tell("canceling", job)
        elif (
            job.status in UNFINISHED - {"canceling"} or job.status == "manual" or (force and job.status == "canceling")
        ):
            job.status, job.finished_at = "canceled", self.clock.now()
            self._settle_environment(job)
            self._tell("canceled", job)
        else:
            raise Refused("Job cannot be canceled")

    def cancel_pipeline(self, pipeline: Pipeline) -> None:
        """Cancel every job that can be: those running, waiting and not yet begun; manual ones are left alone."""
        for job in pipeline.latest:
            if job.status in UNFINISHED - {"canceling"}:
                self.cancel_job(job)

    def play_job(self, job: Job, user: User) -> Job:
        """Somebody clicks a manual job; one that has already run is run again in a new job.

        Raises:
            Refused: It is not a job to be played.
        """
        if job.status == "manual":
            job.status, job.user = "pending", user
            self._tell("played", job)
            return job
        if job.when == "manual" and job.status in FINISHED:
            return self.retry_job(job, user)
        raise Refused("Unplayable Job")

    def retry_job(self, job: Job, user: User) -> Job:
        """Run a finished job again: a new job in its place; later jobs that were skipped are reset, others not.

        Raises:
            Refused: It has not finished, or has been retried.
        """
        if job.status not in FINISHED or job.retried:
            raise Refused("Job is not retryable")
        job.retried = True
        # For a manual job a retry is a click: it does not wait for another one.
        again = self.create_job(
            job.pipeline, job.name, job.stage, allow_failure=job.allow_failure, environment=job.environment,
            action=job.action, on_stop=job.on_stop, auto_stop_in=job.auto_stop_in, tags=job.tags,
        )  # fmt: skip
        again.when, again.user, again.status = job.when, user, "pending"
        stages = list(dict.fromkeys(each.stage for each in job.pipeline.jobs))
        for later in job.pipeline.latest:
            if later.status == "skipped" and stages.index(later.stage) > stages.index(job.stage):
                later.status = "created"
        self._tell("retried", again)
        return again

    def issue_job_token(self, job: Job) -> str:
        """The job's token; it has the rights of the job's user and lives exactly while the job runs."""
        job.token = job.token or secret("glcbt-64_")
        return job.token

    def find_running_job(self, token: str) -> Job | None:
        """The job whose token this is, if it runs; canceling ones have lost theirs (platform-facts 0.2)."""
        for project in self.projects.values():
            for job in project.jobs:
                if job.token == token and job.status == "running":
                    return job
        return None

    def find_job(self, project: Project, number: int) -> Job | None:
        """A job by its number."""
        return next((job for job in project.jobs if job.id == number), None)

    def save_artifacts(self, job: Job, archive: Path) -> None:
        """Keep a copy of the job's zip archive."""
        job.artifacts = self.folder / "artifacts" / f"{job.id}.zip"
        shutil.copyfile(archive, job.artifacts)

    # Environments

    def _environment(self, project: Project, name: str) -> Environment:
        for environment in project.environments.values():
            if environment.name == name:
                return environment
        now = self.clock.now()
        environment = Environment(self.number(), name, now, now)
        project.environments[environment.id] = environment
        return environment

    def _settle_environment(self, job: Job) -> None:
        if job.environment is None:
            return
        now = self.clock.now()
        environment = self._environment(job.pipeline.project, job.environment)
        for deployment in job.pipeline.project.deployments:
            if deployment.job is job:
                deployment.status, deployment.updated_at = job.status, now
        if job.action == "stop" and job.status == "success":
            environment.state, environment.auto_stop_at, environment.updated_at = "stopped", None, now
        elif job.action == "start" and job.status == "success" and job.auto_stop_in is not None:
            environment.auto_stop_at = now + job.auto_stop_in

    def last_deployment(self, project: Project, environment: Environment) -> Deployment | None:
        """The newest finished deployment of an environment."""
        mine = [d for d in project.deployments if d.environment is environment and d.status in FINISHED]
        return mine[-1] if mine else None

    def stop_action(self, project: Project, environment: Environment) -> Job | None:
        """The job that stops an environment, found as GitLab finds it (``Deployment#stop_action``).

        Only manual jobs of the newest finished deployment's pipeline are looked at, and only by the name that the
        deploying job gives in ``on_stop``: a job with ``when: always`` is never found.
        """
        deployment = self.last_deployment(project, environment)
        if deployment is None or deployment.job.on_stop is None:
            return None
        for job in deployment.job.pipeline.latest:
            playable = job.status == "manual" or job.status in FINISHED
            if job.name == deployment.job.on_stop and job.when == "manual" and playable:
                return job
        return None

    def stop_environment(
        self, project: Project, environment: Environment, user: User, *, force: bool = False
    ) -> Job | None:
        """Stop an environment: play its stop job and wait for it, or, where none is found, call it stopped."""
        if environment.state != "available":
            return None
        job = None if force else self.stop_action(project, environment)
        environment.updated_at = self.clock.now()
        environment.state = "stopped" if job is None else "stopping"
        return None if job is None else self.play_job(job, user)

    def auto_stop(self) -> list[Job]:
        """GitLab's hourly worker: stop the environments whose time has come, as the user who last deployed."""
        played = []
        for project in self.projects.values():
            for environment in list(project.environments.values()):
                if environment.auto_stop_at is not None and environment.auto_stop_at <= self.clock.now():
                    deployment = self.last_deployment(project, environment)
                    environment.auto_stop_at = None
                    job = self.stop_environment(project, environment, deployment.job.user if deployment else self.admin)
                    played += [job] if job else []
        return played

    def delete_branch(self, project: Project, branch: str, user: User) -> list[Job]:
        """Delete a branch; environments last deployed from it are stopped."""
        self._need(self.git(project, "update-ref", "-d", f"refs/heads/{branch}"))
        played = []
        for environment in list(project.environments.values()):
            deployment = self.last_deployment(project, environment)
            if deployment is not None and deployment.job.pipeline.ref == branch:
                job = self.stop_environment(project, environment, user)
                played += [job] if job else []
        return played

    # Schedules

    def create_schedule(self, project: Project, description: str, ref: str, cron: str, owner: User) -> Schedule:
        """Add a pipeline schedule; when it is due is the player's business."""
        now = self.clock.now()
        schedule = Schedule(self.number(), description, ref.removeprefix("refs/heads/"), cron, owner, now, now)
        project.schedules[schedule.id] = schedule
        return schedule

    def _tell(self, word: str, job: Job) -> None:
        job.pipeline.updated_at = self.clock.now()
        for listener in self.job_listeners:
            listener(word, job)
