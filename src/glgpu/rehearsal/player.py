"""Plays a compiled pipeline as GitLab 17.5 does: which job runs when, and what is tried again.

The rules are those of GitLab's ``Ci::ProcessBuildService`` and ``Gitlab::Ci::Status::Composite``; what happens inside a
job is the Runner's half: ``job_run``, or the real one behind ``runner_api``. All that a person may do to jobs goes
through the state of the stand-in GitLab, which tells the player: a cancel by its API is the same as one by
``cancel_job``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from glgpu.rehearsal import gitlab_model
from glgpu.rehearsal.ci_yaml import Environment, Job, Pipeline, Variable, expand, expand_all
from glgpu.rehearsal.ci_yaml import parse_duration as duration_in_seconds
from glgpu.rehearsal.job_run import Executor, PlayedRunner
from glgpu.rehearsal.job_turn import Attempt, Limit, Outcome, Turn
from glgpu.rehearsal.occasion import Occasion, predefined_variables

"""GitLab's default for a self-managed instance; GitLab.com takes 1024."""
STUCK_SECONDS = 60 * 60
"""After this long without a sign of life GitLab drops a running job."""

COMPLETED = frozenset({"success", "failed", "canceled", "skipped"})
RUN_AFTER: Mapping[str, frozenset[str]] = {
    "on_success": frozenset({"success", "skipped"}),
    "manual": frozenset({"success", "skipped"}),
    "delayed": frozenset({"success", "skipped"}),
    "on_failure": frozenset({"failed"}),
    "always": frozenset({"success", "failed", "skipped"}),
}
"""What the jobs before must have come to. ``canceled`` is nowhere: after a cancel even ``when: always`` is skipped."""


def composite_status(statuses: Iterable[tuple[str, bool]], *, dag: bool = False) -> str:
    """The status of several jobs taken together, each given with its ``allow_failure``.

    With ``dag`` the jobs are the needs of one: a skipped one skips it, and one that still waits keeps it waiting.
    """
    found = set()
    for status, allow_failure in statuses:
        if allow_failure and status in ("failed", "canceled"):
            found.add("success with warnings")
        elif allow_failure and status == "manual":
            found.add("ignored")
        else:
            found.add(status)
    fine = {"success", "success with warnings", "skipped", "ignored"}
    if not found:
        return "success"
    if dag and "skipped" in found:
        return "skipped"
    if dag and not found <= {"success", "success with warnings", "failed", "canceled"}:
        return "pending"
    if found <= {"skipped", "ignored"}:
        return "skipped"
    if found <= fine:
        return "success"
    if found <= {"created", "success with warnings", "ignored"}:
        return "created"
    if found <= fine | {"canceled"}:
        return "canceled"
    if found <= {"pending", "created", "skipped", "success with warnings", "ignored"}:
        return "pending"
    for status in ("running", "pending", "manual", "created", "canceling"):
        if status in found:
            return "running" if status in ("pending", "created") else status
    return "failed"


class Runner(Protocol):
    """Who runs the jobs.

    Attributes:
        executor: How: what the Runner calls its executor.
    """

    executor: Executor

    async def run(self, turn: Turn, slot: int, /) -> None:
        """Take a job and run it to its last word; without one the runner is lost."""

    def stop(self) -> None:
        """End the runner by SIGTERM."""

    def kill(self) -> None:
        """End the runner by SIGKILL."""

    async def close(self) -> None:
        """End whatever still runs, and clear away what is not GitLab's."""


class Player:
    """Plays one pipeline.

    Use in an asyncio loop: ``await player.play()``, then, as a person would, ``retry_job``, ``play_job``,
    ``stop_environment``; during ``play``: ``cancel_job``, ``cancel_pipeline``, ``stop_runner``, ``kill_runner``. At the
    end ``await player.close()``: no process and no container folder is left.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        occasion: Occasion,
        *,
        folder: Path,
        path: str,
        executor: Executor = "docker",
        runner: Runner | None = None,
        concurrent: int = 4,
        time_scale: float = 1.0,
        missed_within: float | None = None,
        on_output: Callable[[Job, bytes], None] = lambda _job, _data: None,
        before_job: Callable[[Job], None] = lambda _job: None,
    ) -> None:
        """Prepare to play.

        Args:
            pipeline: What to play.
            occasion: For whom.
            folder: The player's own, made if it is not there: ``builds``, ``logs``, ``artifacts``, containers. Keep
                its path short: programs in jobs make sockets in their temporary folder.
            path: PATH of all jobs; nothing else of the caller's environment reaches one.
            executor: Whose way of ending jobs is played.
            runner: Who runs the jobs, where it is none of our own with that executor.
            concurrent: Jobs at the same time.
            time_scale: Factor on every limit and delay (timeouts, grace periods), for tests.
            missed_within: Seconds for which a job whose runner of our own is gone may go on before GitLab finds out; it
                does so at once when the job is over. None: GitLab's hour passes, by the world's clock.
            on_output: Called with each piece of a job's log.
            before_job: Called when a runner has taken a job.
        """
        self.pipeline = pipeline
        self.occasion = occasion
        self.state = occasion.state
        self.folder = folder
        self.runner: Runner = runner or PlayedRunner(folder, path, executor, time_scale=time_scale)
        self.time_scale = time_scale
        self.missed_within = missed_within
        self.on_output = on_output
        self.before_job = before_job
        self.outcomes: dict[str, Outcome] = {}
        self.predefined = predefined_variables(occasion)
        self._entry: gitlab_model.Pipeline | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = list(range(concurrent))
        self._slot_freed = asyncio.Condition()
        self._groups: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        for name in ("builds", "logs", "artifacts"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    # GitLab: what runs when

    @property
    def entry(self) -> gitlab_model.Pipeline:
        """The pipeline as GitLab has it.

        Raises:
            RuntimeError: It is not created yet.
        """
        if self._entry is None:
            raise RuntimeError("the pipeline has not been created")
        return self._entry

    async def play(self) -> dict[str, Outcome]:
        """Create the pipeline and play it until nothing runs any more; manual jobs are left waiting."""
        event, state = self.occasion.event, self.state
        self._loop = asyncio.get_running_loop()
        state.job_listeners.append(self._hear)
        self._entry = state.create_pipeline(
            self.occasion.project,
            event.ref,
            event.sha,
            event.source,
            self.occasion.user,
            [gitlab_model.Variable(key, value) for key, value in event.variables.items()],
            tag=event.tag,
        )
        self._entry.name = self.pipeline.name or None
        for job in self.pipeline.jobs:
            self._create(job)
        self._advance()
        return await self.rest()

    async def rest(self) -> dict[str, Outcome]:
        """Wait until no job runs or waits for a runner.

        Raises:
            Exception: A bug of the player or of the state, met while a job was played.
        """
        await asyncio.sleep(0)  # What GitLab has just told is heard first.
        while self._tasks:
            await asyncio.wait(self._tasks)
            await asyncio.sleep(0)
        if self._errors:
            raise self._errors[0]
        return self.outcomes

    def cancel_job(self, name: str, *, force: bool = False) -> None:
        """Cancel one job, as its button does; with ``force`` as the button for Maintainers does."""
        self.state.cancel_job(self.outcomes[name].last.entry, force=force)

    def cancel_pipeline(self) -> None:
        """Cancel all that runs or waits; manual jobs stay as they are."""
        self.state.cancel_pipeline(self.entry)

    def reach(self, limit: Limit, name: str) -> None:
        """Let a job that runs have reached one of its time limits."""
        self.outcomes[name].last.interrupt_with(limit)

    async def retry_job(self, name: str) -> Outcome:
        """Run a job again, and after it only those later ones that were skipped (``Ci::ResetSkippedJobsService``)."""
        self.state.retry_job(self.outcomes[name].last.entry, self.occasion.user)
        await self.rest()
        return self.outcomes[name]

    async def play_job(self, name: str, user: gitlab_model.User | None = None) -> Outcome:
        """Start a manual job; by default it is whoever began the pipeline that clicks."""
        self.state.play_job(self.outcomes[name].last.entry, user or self.occasion.user)
        await self.rest()
        return self.outcomes[name]

    async def stop_environment(self, name: str) -> Outcome | None:
        """Stop an environment; the job that GitLab plays for it, or None where it finds none.

        Raises:
            KeyError: There is no such environment.
        """
        project = self.occasion.project
        environment = {e.name: e for e in project.environments.values()}[name]
        played = self.state.stop_environment(project, environment, self.occasion.user)
        await self.rest()
        return self.outcomes.get(played.name) if played else None

    def erase_artifacts(self, name: str) -> None:
        """Erase a job's artifacts, or let them expire: a job that depends on them cannot start any more."""
        self.outcomes[name].last.artifacts_erased = True

    def _create(self, job: Job) -> None:
        environment = self._expanded_environment(job)
        known = environment or Environment("")
        entry = self.state.create_job(
            self.entry,
            job.name,
            job.stage,
            when=job.when,
            allow_failure=job.allow_failure,
            environment=known.name or None,
            action=known.action,
            on_stop=known.on_stop,
            auto_stop_in=duration_in_seconds(known.auto_stop_in) if known.auto_stop_in else None,
            tags=job.tags,
        )
        # Also a manual job waits for the jobs before it; only then does it wait for a person.
        entry.status = "created"
        self.outcomes[job.name] = Outcome(job, environment, [self._attempt(entry)])

    def _attempt(self, entry: gitlab_model.Job) -> Attempt:
        return Attempt(entry, self.folder / "logs" / f"{entry.id}.log")

    def _hear(self, word: str, entry: gitlab_model.Job) -> None:
        """GitLab tells of a job, from whatever thread."""
        if self._loop is not None and entry.pipeline is self._entry and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._act_on, word, entry)

    def _act_on(self, word: str, entry: gitlab_model.Job) -> None:
        outcome = self.outcomes[entry.name]
        if word == "retried":
            entry.allow_failure = outcome.job.allow_failure
            outcome.attempts.append(self._attempt(entry))
        if word in ("played", "retried"):
            self._launch(outcome)
        elif word == "canceling":
            outcome.last.interrupt_with("cancel")
        elif word == "canceled":
            outcome.last.interrupt_with("force cancel")
            self._advance()

    def _advance(self) -> None:
        """Start, skip or offer every job whose predecessors are done, until nothing changes."""
        changed = True
        while changed:
            changed = False
            for outcome in self.outcomes.values():
                if outcome.status != "created" or (before := self._status_before(outcome.job)) not in COMPLETED:
                    continue
                changed = True
                dag = outcome.job.needs is not None and outcome.job.when not in ("always", "on_failure")
                allowed = frozenset({"success"}) if dag else RUN_AFTER[outcome.job.when]
                if before not in allowed:
                    self.state.skip_job(outcome.last.entry)
                elif outcome.job.when == "manual":
                    outcome.last.entry.status = "manual"
                else:
                    outcome.last.entry.status = "pending"
                    self._launch(outcome)

    def _status_before(self, job: Job) -> str:
        if job.needs is not None:
            needed = [self.outcomes[need.job] for need in job.needs]
            return composite_status(((o.status, o.allow_failure) for o in needed), dag=True)
        index = self.pipeline.stage_index(job)
        earlier = [o for o in self.outcomes.values() if self.pipeline.stage_index(o.job) < index]
        return composite_status((o.status, o.allow_failure) for o in earlier)

    def _launch(self, outcome: Outcome) -> None:
        task = asyncio.get_running_loop().create_task(self._take(outcome))
        self._tasks.add(task)
        task.add_done_callback(self._taken)

    def _taken(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._errors.append(error)

    async def _take(self, outcome: Outcome) -> None:
        """Wait for the resource group and a runner, run the job, and let GitLab look at the pipeline again."""
        group = outcome.job.resource_group
        name = expand(group, self._creation_variables(outcome.job)) if group else ""
        lock = self._groups.setdefault(name, asyncio.Lock()) if group else contextlib.nullcontext()
        async with lock, self._slot() as slot:
            if outcome.status == "pending":
                await self._run(outcome, slot)
        if self._to_be_retried(outcome):
            self.state.retry_job(outcome.last.entry, outcome.last.entry.user)
        else:
            self._advance()

    async def _run(self, outcome: Outcome, slot: int) -> None:
        if any(dependency.last.artifacts_erased for dependency in self.dependencies(outcome.job)):
            self.state.finish_job(outcome.last.entry, "failed", failure_reason="missing_dependency_failure")
            return
        turn = Turn(self, outcome)
        await self.runner.run(turn, slot)
        if not turn.over.is_set():
            await self._runner_is_missed(turn)
            turn.end("stuck_or_timeout_failure", None)

    async def _runner_is_missed(self, turn: Turn) -> None:
        """Nobody tells GitLab that a runner is lost: it drops a job of which it has not heard for long."""
        if self.missed_within is not None:
            await self.own_runner.lost(self.missed_within)
            return
        noticed = asyncio.Event()
        self.state.clock.call_at(turn.heard_at + STUCK_SECONDS * self.time_scale, noticed.set)
        await noticed.wait()

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[int]:
        """A free place of the runner, the lowest one."""
        async with self._slot_freed:
            await self._slot_freed.wait_for(lambda: bool(self._slots))
            slot = self._slots.pop(0)
        try:
            yield slot
        finally:
            async with self._slot_freed:
                self._slots = sorted([*self._slots, slot])
                self._slot_freed.notify_all()

    def _to_be_retried(self, outcome: Outcome) -> bool:
        """Whether GitLab runs a failed job again by itself (``Gitlab::Ci::Build::AutoRetry``)."""
        retry, reason = outcome.job.retry, outcome.failure_reason
        if outcome.status != "failed" or reason == "missing_dependency_failure":
            return False
        wanted = "always" in retry.when or reason in retry.when or outcome.exit_code in retry.exit_codes
        return wanted and len(outcome.attempts) <= retry.max

    def _creation_variables(self, job: Job) -> dict[str, str]:
        """What GitLab expands a job's environment and resource group with when it creates the job.

        The pipeline has a number in its project by then, and no id yet
        (https://docs.gitlab.com/ci/variables/where_variables_can_be_used/#persisted-variables).
        """
        layers = {name: Variable(value, expand=False) for name, value in self.predefined.items()}
        layers["CI_PIPELINE_IID"] = Variable(str(self.entry.iid))
        layers |= job.variables
        layers |= {v.key: Variable(v.value, not v.raw) for v in self.occasion.settings_variables(None)}
        layers |= {name: Variable(value) for name, value in self.occasion.event.variables.items()}
        return expand_all(layers)

    def _expanded_environment(self, job: Job) -> Environment | None:
        if job.environment is None:
            return None
        known = self._creation_variables(job)
        return replace(
            job.environment,
            name=expand(job.environment.name, known),
            auto_stop_in=job.environment.auto_stop_in and expand(job.environment.auto_stop_in, known),
        )

    # The runner as a whole

    @property
    def executor(self) -> Executor:
        """How jobs are run."""
        return self.runner.executor

    @property
    def own_runner(self) -> PlayedRunner:
        """The runner, where it is one of our own.

        Raises:
            TypeError: It is not.
        """
        if not isinstance(self.runner, PlayedRunner):
            raise TypeError(f"{self.runner} is no runner of our own")
        return self.runner

    def stop_runner(self) -> None:
        """SIGTERM to the runner: its jobs get SIGTERM, have no after_script, and fail as runner_system_failure."""
        self.runner.stop()

    def kill_runner(self) -> None:
        """SIGKILL to the runner: its jobs live on with a dead pipe, and GitLab finds out much later."""
        self.runner.kill()

    async def close(self) -> None:
        """End whatever still runs, at once, and remove the containers. Logs, artifacts and build folders stay."""
        if self._hear in self.state.job_listeners:
            self.state.job_listeners.remove(self._hear)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.runner.close()

    def dependencies(self, job: Job) -> list[Outcome]:
        """The jobs whose artifacts and dotenv variables a job gets (``Ci::BuildDependencies``)."""
        if job.needs is not None:
            found = [self.outcomes[need.job] for need in job.needs if need.artifacts]
        else:
            index = self.pipeline.stage_index(job)
            found = [o for o in self.outcomes.values() if self.pipeline.stage_index(o.job) < index]
        if job.dependencies is not None:
            found = [o for o in found if o.job.name in job.dependencies]
        return found
