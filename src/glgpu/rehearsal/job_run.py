"""The GitLab Runner as we play it, with one job: its folder, scripts, artifacts, and every way in which it ends.

Measured on the Runner 17.5, for the docker executor (default) and the shell executor. A container of the docker
executor is a process tree here: its main shell is the container's PID 1, it has a home and a temporary folder of its
own, and no process of it outlives it. Only the project folder is shared by the containers of one job, and, with
``GIT_STRATEGY: none``, by jobs that come after each other on the same runner slot.

Where this departs from the Runner: the shell is no login shell, so that the given PATH holds; ``/tmp`` and ``$HOME``
are fresh folders named by TMPDIR and HOME; and one variable more than the Runner sets marks the processes of a
container, so that every one of them is found.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from glgpu.rehearsal.ci_yaml import Artifacts, Variable, expand, expand_all
from glgpu.rehearsal.ci_yaml import parse_duration as duration_in_seconds
from glgpu.rehearsal.job_artifacts import UploadRefused, find, pack, unpack
from glgpu.rehearsal.job_log import JobLog
from glgpu.rehearsal.job_turn import Turn

RUNNER_VERSION = "17.5.0"
AFTER_SCRIPT_SECONDS = 5 * 60
CANCEL_NOTICE_SECONDS = 3.0
"""The Runner learns of a cancel from the answer to its next trace update."""
DOCKER_LOOKS = 6
"""How often, a second apart, the docker executor looks whether a process that got SIGTERM is gone."""
DOCKER_STOP_SECONDS = 10
SHELL_GRACE_SECONDS = 10 * 60
DEFAULT_GIT_DEPTH = "20"
SUBSHELL_FLAG = "FF_USE_NEW_BASH_EVAL_STRATEGY"
"""The Runner's flag for reporting a script's real exit code (gitlab-runner, shells/bash.go); off by default."""
MARK_VARIABLE = "RUNNER_CONTAINER"
"""What every process of a container inherits."""

Executor = Literal["docker", "shell"]


@dataclass(frozen=True)
class Container:
    """Where processes of a job live; every one inherits the mark.

    Attributes:
        mark: Value of MARK_VARIABLE.
        folder: Its home and temporary folder, gone with it.
    """

    mark: str
    folder: Path

    @property
    def home(self) -> Path:
        """Its HOME."""
        return self.folder / "home"

    @property
    def tmp(self) -> Path:
        """Its TMPDIR."""
        return self.folder / "tmp"

    def processes(self) -> list[psutil.Process]:
        """Its living processes, by falling PID."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK_VARIABLE) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return sorted(found, key=lambda process: -process.pid)

    def kill(self) -> None:
        """End every process, also one that is being made just now."""
        while processes := self.processes():
            for process in processes:
                _signal(process, signal.SIGKILL)
            time.sleep(0.01)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def _is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that has ended counts as gone, whoever may have to collect it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class _Ended(Exception):
    """A job ends before its script has decided: status ``failed`` with this reason."""

    def __init__(self, reason: str, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.exit_code = exit_code


class PlayedRunner:
    """A runner of our own.

    Args:
        folder: Its own: build folders and containers.
        path: PATH of all jobs; nothing else of the caller's environment reaches one.
        executor: Whose way of ending jobs is played.
        time_scale: Factor on every limit and delay (timeouts, grace periods), for tests.
        prepare_seconds: How long a job's executor takes to get ready: a machine that starts, an image that is pulled.
    """

    def __init__(
        self,
        folder: Path,
        path: str,
        executor: Executor = "docker",
        *,
        time_scale: float = 1.0,
        prepare_seconds: float = 0.0,
    ) -> None:
        self.folder = folder
        self.path = path
        self.executor: Executor = executor
        self.orphans: list[asyncio.Task[None]] = []
        self.prepare_seconds = prepare_seconds
        self._time_scale = time_scale
        self._turns: set[Turn] = set()
        self._containers: list[Container] = []

    async def run(self, turn: Turn, slot: int) -> None:
        """Take a job, run it and report its end; after ``kill`` there is no report."""
        self._turns.add(turn)
        try:
            await JobRun(self, turn, slot).play()
        finally:
            self._turns.discard(turn)

    def stop(self) -> None:
        """SIGTERM to the runner: its jobs get SIGTERM, have no after_script, and fail as runner_system_failure."""
        for turn in self._turns:
            turn.attempt.interrupt_with("runner stopped")

    def kill(self) -> None:
        """SIGKILL to the runner: its jobs live on with a dead pipe."""
        for turn in self._turns:
            turn.attempt.interrupt_with("runner killed")

    async def lost(self, within: float) -> None:
        """Wait until the jobs are over that a killed runner has left, and end them after so many seconds."""
        if self.orphans:
            await asyncio.wait(self.orphans, timeout=within)
        for container in self._containers:
            await asyncio.to_thread(container.kill)

    def processes(self, *programs: str) -> list[psutil.Process]:
        """The living processes of these programs in the jobs' containers."""
        found = []
        for process in (process for container in self._containers for process in container.processes()):
            with contextlib.suppress(psutil.Error):
                if process.name() in programs:
                    found.append(process)
        return found

    def scaled(self, seconds: float) -> float:
        """Seconds of the machine's clock that stand for so many seconds of the Runner's."""
        return seconds * self._time_scale

    def new_container(self) -> Container:
        """Start an empty container."""
        container = Container(uuid.uuid4().hex, self.folder / f"c{len(self._containers)}")
        container.home.mkdir(parents=True)
        container.tmp.mkdir()
        self._containers.append(container)
        return container

    async def remove(self, container: Container) -> None:
        """End a container's processes and forget its folder."""
        await asyncio.to_thread(container.kill)
        await asyncio.to_thread(shutil.rmtree, container.folder, ignore_errors=True)

    async def close(self) -> None:
        """End whatever still runs, at once, and remove the containers. Build folders stay."""
        for container in self._containers:
            await self.remove(container)
        await asyncio.gather(*self.orphans)


class JobRun:
    """The runner with one job."""

    def __init__(self, runner: PlayedRunner, turn: Turn, slot: int) -> None:
        self.runner = runner
        self.turn = turn
        self.player = turn.player
        self.job = turn.job
        self.attempt = turn.attempt
        self.entry = turn.entry
        self.slot = slot
        self.project_folder = runner.folder / "builds" / str(slot) / turn.player.occasion.project.path
        self.files_folder = Path(f"{self.project_folder}.tmp")
        self.container = runner.new_container()
        self.variables: dict[str, str] = {}
        self.log: JobLog
        self.deadline = 0.0

    async def play(self) -> None:
        """Run the job from the moment the runner takes it until the last word is said."""
        runner, turn, attempt = self.runner, self.turn, self.attempt
        self.deadline = asyncio.get_running_loop().time() + runner.scaled(turn.timeout)
        turn.begin()
        self._settle_variables()
        ended: _Ended | None = None
        try:
            await self._stages()
        except _Ended as why:
            ended = why
        finally:
            if attempt.interrupt != "runner killed":
                shutil.rmtree(self.files_folder, ignore_errors=True)
                if runner.executor == "docker":
                    await runner.remove(self.container)
        if attempt.interrupt == "runner killed":
            return
        if ended is None:
            turn.end(None, 0)
            return
        self.log.say(f"\x1b[31;1mERROR: Job failed: {ended}\x1b[0;m")
        turn.end(ended.reason, ended.exit_code)

    # Variables

    def _settle_variables(self) -> None:
        """Put the runner's own variables below those of GitLab, expand them all, and write those that are files."""
        own = {
            "CI_BUILDS_DIR": str(self.runner.folder / "builds" / str(self.slot)),
            "CI_CONCURRENT_ID": str(self.slot),
            "CI_CONCURRENT_PROJECT_ID": str(self.slot),
            "CI_JOB_STATUS": "running",
            "CI_PROJECT_DIR": str(self.project_folder),
            "CI_RUNNER_EXECUTABLE_ARCH": "linux/amd64",
            "CI_RUNNER_VERSION": RUNNER_VERSION,
        }
        given = self.turn.variables
        files = {name: one.value for name, one in given.items() if one.is_file}
        layers = {name: Variable(value, expand=False) for name, value in own.items()}
        layers |= {name: Variable(one.value, one.expand) for name, one in given.items()}
        layers |= {name: Variable(str(self.files_folder / name), expand=False) for name in files}
        self.variables = expand_all(layers)
        self._write_files(files)
        self.log = JobLog((one.value for one in given.values() if one.masked), self.turn.append)

    def _write_files(self, files: Mapping[str, str]) -> None:
        shutil.rmtree(self.files_folder, ignore_errors=True)
        self.files_folder.mkdir(parents=True, mode=0o700)
        for name, value in files.items():
            path = self.files_folder / name
            path.touch(mode=0o600)
            path.write_text(value, encoding="utf-8", newline="")

    def _environ(self, container: Container) -> dict[str, str]:
        return self.variables | {
            "PATH": self.runner.path,
            "HOME": str(container.home),
            "TMPDIR": str(container.tmp),
            MARK_VARIABLE: container.mark,
        }

    # The stages of a job

    async def _stages(self) -> None:
        """Sources, artifacts, script, after_script, upload: the order of the Runner's shell."""
        attempt = self.attempt
        self.log.say(f"Running with gitlab-runner {RUNNER_VERSION}")
        self.log.say(f'Preparing the "{self.runner.executor}" executor')
        await self._unless_interrupted(asyncio.sleep(self.runner.scaled(self.runner.prepare_seconds)))
        await self._unless_interrupted(self._get_sources())
        await self._unless_interrupted(self._download_artifacts())
        ended = await self._script()
        status = {"cancel": "canceled", "script timeout": "timedout"}.get(ended.how or "", "")
        status = status or ("success" if ended.exit_code == 0 else "failed")
        if ended.how in ("job timeout", "force cancel", "runner stopped", "runner killed"):
            raise self._why(ended)
        if self.job.after_script and attempt.interrupt != "force cancel":
            if ended.how and self.runner.executor == "docker":
                await self.runner.remove(self.container)
                self.container = self.runner.new_container()
            await self._after_script(status)
        if attempt.interrupt in ("force cancel", "runner stopped", "runner killed"):
            raise self._why(_StageEnd(attempt.interrupt, None))
        try:
            await self._upload(successful=status == "success")
        except _Ended:
            # Of both, the script's own end is what the Runner reports (``Build.pickPriorityError``).
            if not (ended.how or ended.exit_code):
                raise
        if ended.how or ended.exit_code:
            raise self._why(ended)
        self.log.say("\x1b[32;1mJob succeeded\x1b[0;m")

    def _why(self, ended: _StageEnd) -> _Ended:
        """The failure that the Runner reports for the end of a stage."""
        code = ended.exit_code
        match ended.how:
            case None:
                word = "exit code" if self.runner.executor == "docker" else "exit status"
                return _Ended("script_failure", f"{word} {code}", code)
            case "job timeout":
                return _Ended("job_execution_timeout", f"execution took longer than {self.turn.timeout}s seconds")
            case "script timeout":
                limit = self.variables.get("RUNNER_SCRIPT_TIMEOUT", "")
                return _Ended("job_execution_timeout", f"execution took longer than {limit} seconds")
            case "runner stopped":
                return _Ended("runner_system_failure", "aborted: terminated")
            case "runner killed":
                return _Ended("stuck_or_timeout_failure", "the runner is gone")
        return _Ended("unknown_failure", "canceled")

    async def _unless_interrupted(self, work: Coroutine[None, None, None]) -> None:
        """Do what the helper container does, which a cancel or the job's timeout cuts short."""
        task = asyncio.get_running_loop().create_task(work)
        how = await self._wait_for(task, [(self.deadline, "job timeout")])
        if how is None:
            await task
            return
        task.cancel()
        await asyncio.wait([task])
        raise self._why(_StageEnd(how, None))

    async def _wait_for(self, done: asyncio.Task[None], limits: list[tuple[float, str]]) -> str | None:
        """Wait until something is done (None), a limit is reached (its name), or the job is interrupted (how)."""
        loop = asyncio.get_running_loop()
        when, name = min(limits)
        interrupted = loop.create_task(self.attempt.interrupted.wait())
        try:
            await asyncio.wait(
                {done, interrupted}, timeout=max(0.0, when - loop.time()), return_when=asyncio.FIRST_COMPLETED
            )
            if done.done():
                return None
            if not interrupted.done():
                return name
        finally:
            interrupted.cancel()
        if self.attempt.interrupt in ("cancel", "force cancel", "script timeout"):
            # What comes after the script is not interrupted by it.
            self.attempt.interrupted.clear()
        if self.attempt.interrupt in ("cancel", "force cancel"):
            notice = loop.create_task(asyncio.sleep(self.runner.scaled(CANCEL_NOTICE_SECONDS)))
            await asyncio.wait({done, notice}, return_when=asyncio.FIRST_COMPLETED)
            notice.cancel()
            if done.done():
                return None
        return self.attempt.interrupt

    # Sources

    async def _get_sources(self) -> None:
        strategy = self.variables.get("GIT_STRATEGY", "fetch")
        folder = self.project_folder
        if strategy not in ("clone", "fetch", "none", "empty"):
            raise _Ended("runner_system_failure", f"unknown GIT_STRATEGY {strategy}")
        if strategy in ("clone", "empty"):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        if strategy in ("none", "empty"):
            self.log.say("Skipping Git repository setup")
            return
        self.log.say("\x1b[32;1mFetching changes...\x1b[0;m")
        depth = self.variables.get("GIT_DEPTH", DEFAULT_GIT_DEPTH)
        event = self.player.occasion.event
        sha, ref = event.sha, event.ref
        await self._git("init", "--quiet", ".")
        await self._git("config", "remote.origin.url", self.variables["CI_REPOSITORY_URL"])
        await self._git("config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
        kind = "tags" if event.tag else "heads"
        local = f"refs/tags/{ref}" if event.tag else f"refs/remotes/origin/{ref}"
        await self._git(
            "fetch", "--prune", "--quiet", *(["--depth", depth] if depth != "0" else []), "origin",
            f"+{sha}:refs/pipelines/{self.player.entry.id}", f"+refs/{kind}/{ref}:{local}",
        )  # fmt: skip
        await self._git("checkout", "--force", "--quiet", sha)
        await self._git("clean", *shlex.split(self.variables.get("GIT_CLEAN_FLAGS", "-ffdx")))
        self.log.say(f"Checking out {sha[:8]} as detached HEAD (ref is {ref})...")
        await self._submodules(depth)

    async def _submodules(self, depth: str) -> None:
        strategy = self.variables.get("GIT_SUBMODULE_STRATEGY", "none")
        if strategy in ("normal", "recursive"):
            recursive = ["--recursive"] if strategy == "recursive" else []
            depth = self.variables.get("GIT_SUBMODULE_DEPTH", depth)
            shallow = ["--depth", depth] if depth != "0" else []
            await self._git("submodule", "sync", "--quiet", *recursive)
            await self._git("submodule", "update", "--init", "--force", "--quiet", *shallow, *recursive)
        attributes = self.project_folder / ".gitattributes"
        if attributes.exists() and "filter=lfs" in attributes.read_text(errors="replace"):
            await self._git("lfs", "pull")

    async def _git(self, *arguments: str) -> None:
        """Run git as the helper container does: own home, no prompt, no LFS on checkout."""
        occasion, project = self.player.occasion, self.player.occasion.project
        settings = [("safe.directory", "*"), ("protocol.file.allow", "always")]
        for other in occasion.state.projects.values():
            # The stand-in's repositories are folders; a job token opens its own project and those that list it.
            if other is project or project.id in other.job_token_allowlist:
                for token in ("", self.turn.token):
                    settings.append((f"url.{other.repository}.insteadOf", occasion.server.repository_url(other, token)))
        environment = self._environ(self.container) | {
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_CONFIG_COUNT": str(len(settings)),
        }
        for number, (key, value) in enumerate(settings):
            environment[f"GIT_CONFIG_KEY_{number}"], environment[f"GIT_CONFIG_VALUE_{number}"] = key, value
        process = await asyncio.create_subprocess_exec(
            "git", "-C", str(self.project_folder), *arguments,
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, umask=0o022,
        )  # fmt: skip
        try:
            output, _ = await process.communicate()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):  # it may have ended in this very moment
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        self.log.output(output)
        self.log.flush()
        if process.returncode:
            raise _Ended("script_failure", "exit code 1", 1)

    async def _download_artifacts(self) -> None:
        for dependency in self.player.dependencies(self.job):
            attempt = dependency.last
            if attempt.artifacts is not None:
                self.log.say(f"Downloading artifacts for {dependency.job.name} ({attempt.entry.id})...")
                await asyncio.to_thread(unpack, attempt.artifacts, self.project_folder)

    # Scripts

    async def _script(self) -> _StageEnd:
        self.log.say('Executing "step_script" stage of the job script')
        limits = [(self.deadline, "job timeout")]
        own = duration_in_seconds(self.variables.get("RUNNER_SCRIPT_TIMEOUT", ""))
        if own:
            limits.append((asyncio.get_running_loop().time() + self.runner.scaled(own), "script timeout"))
        return await self._shell([*self.job.before_script, *self.job.script], {}, limits)

    async def _after_script(self, status: str) -> None:
        """Run after_script in a new shell; whatever comes of it changes nothing."""
        self.log.say("\x1b[32;1mRunning after script...\x1b[0;m")
        own = duration_in_seconds(self.variables.get("RUNNER_AFTER_SCRIPT_TIMEOUT", "")) or AFTER_SCRIPT_SECONDS
        limit = asyncio.get_running_loop().time() + self.runner.scaled(own)
        ended = await self._shell(
            list(self.job.after_script), {"CI_JOB_STATUS": status}, [(self.deadline, "job timeout"), (limit, "limit")]
        )
        if ended.how:
            self.log.say("\x1b[0;33mWARNING: after_script failed, but job will continue unaffected: context deadline "
                         "exceeded\x1b[0;m")  # fmt: skip
        elif ended.exit_code:
            self.log.say(f"\x1b[0;33mWARNING: after_script failed, but job will continue unaffected: exit code "
                         f"{ended.exit_code}\x1b[0;m")  # fmt: skip

    async def _shell(self, commands: list[str], extra: Mapping[str, str], limits: list[tuple[float, str]]) -> _StageEnd:
        """Run commands in one shell of the current container, until they end or are ended."""
        container, loop = self.container, asyncio.get_running_loop()
        script = container.folder / "script"
        in_subshell = self.variables.get(SUBSHELL_FLAG, "").lower() in ("1", "true")
        script.write_text(shell_script(commands, in_subshell=in_subshell), encoding="utf-8")
        out, into = os.pipe()
        with script.open("rb") as standard_input, os.fdopen(into, "wb") as output:
            process = await asyncio.create_subprocess_exec(
                "bash", cwd=self.project_folder, env=self._environ(container) | dict(extra), stdin=standard_input,
                stdout=output, stderr=output, start_new_session=True, umask=0o022,
            )  # fmt: skip
        stream = asyncio.StreamReader()
        pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(out, "rb"))
        over = loop.create_task(self._over(process, stream, container))
        try:
            how = await self._wait_for(over, limits)
            if how == "runner killed":
                pipe.close()
                self.runner.orphans.append(over)
                return _StageEnd(how, None)
            if how is not None:
                await self._terminate(process, over, container)
            await over
        except asyncio.CancelledError:
            await asyncio.to_thread(container.kill)
            await over
            raise
        finally:
            pipe.close()
        self.log.flush()
        code = process.returncode
        return _StageEnd(how, code if code is None or code >= 0 else 128 - code)

    async def _over(
        self, process: asyncio.subprocess.Process, stream: asyncio.StreamReader, container: Container
    ) -> None:
        """Pass output on until a shell is over in the sense of its executor.

        A docker container ends with its PID 1, and every other process with it. The shell executor waits until nobody
        holds the pipe any more.
        """

        async def read() -> None:
            while data := await stream.read(65536):
                self.log.output(data)

        reading = asyncio.get_running_loop().create_task(read())
        await process.wait()
        if self.runner.executor == "docker" and self.attempt.interrupt != "runner killed":
            await asyncio.to_thread(container.kill)
        await reading

    async def _terminate(
        self, process: asyncio.subprocess.Process, over: asyncio.Task[None], container: Container
    ) -> None:
        """SIGTERM, a grace period, SIGKILL, each as the executor does it."""
        if self.runner.executor == "docker":
            await self._terminate_one_by_one(process.pid, over, container)
            grace = DOCKER_STOP_SECONDS
        else:
            with contextlib.suppress(ProcessLookupError):  # it may have ended in this very moment
                os.killpg(process.pid, signal.SIGTERM)
            grace = SHELL_GRACE_SECONDS
        await asyncio.wait({over}, timeout=self.runner.scaled(grace))
        if not over.done():
            await asyncio.to_thread(container.kill)

    async def _terminate_one_by_one(self, first: int, over: asyncio.Task[None], container: Container) -> None:
        """SIGTERM to every process there is but PID 1, the highest PID first, each given six looks a second apart.

        So a program has about six seconds of its own before the shell that started it, with a lower PID, gets its
        SIGTERM and ends the container; and whatever it started got its SIGTERM earlier.
        """
        for one in await asyncio.to_thread(container.processes):
            if one.pid == first or not one.is_running():
                continue
            _signal(one, signal.SIGTERM)
            for _ in range(DOCKER_LOOKS):
                if over.done() or not _is_alive(one):
                    break
                await asyncio.wait({over}, timeout=self.runner.scaled(1))

    # Artifacts

    async def _upload(self, *, successful: bool) -> None:
        """Hand over the archive, where ``artifacts:when`` says so, and every report.

        Raises:
            _Ended: A file cannot be read, or GitLab does not take it: the upload fails, and with it the job.
        """
        artifacts = self.job.artifacts
        if artifacts is None:
            return
        wanted = {"on_success": successful, "on_failure": not successful, "always": True}[artifacts.when]
        uploads = {"archive": artifacts.paths} if artifacts.paths and wanted else {}
        uploads |= artifacts.reports
        if uploads:
            self.log.say(f"Uploading artifacts for {'successful' if successful else 'failed'} job")
        for kind, patterns in uploads.items():
            try:
                await self._store(kind, patterns, artifacts)
            except (OSError, UploadRefused) as error:
                self.log.say(f'\x1b[31;1mERROR: Uploading artifacts as "{kind}" to coordinator... {error}\x1b[0;m')
                if str(error).startswith("413"):
                    # It is not tried again (commands/helpers/artifacts_uploader.go), unlike what may pass.
                    self.log.say("\x1b[31;1mFATAL: too large\x1b[0;m")
                raise _Ended("script_failure", "exit code 1", 1) from error

    async def _store(self, kind: str, patterns: Iterable[str], artifacts: Artifacts) -> None:
        exclude = artifacts.exclude if kind == "archive" else ()
        found = await asyncio.to_thread(
            find,
            self.project_folder,
            [expand(pattern, self.variables) for pattern in patterns],
            [expand(pattern, self.variables) for pattern in exclude],
        )
        for line in found.lines:
            self.log.say(line)
        if not found.files:
            self.log.say("\x1b[31;1mERROR: No files to upload\x1b[0;m")
            return
        if kind == "archive":
            target = self.turn.upload("artifacts.zip")
            await asyncio.to_thread(pack, found.files, self.project_folder, target)
            self.turn.take_archive(target)
        else:
            target = self.turn.upload(f"{kind}.report")
            target.write_bytes(b"".join(file.read_bytes() for file in found.files))
            self.turn.take_report(kind, target)
        self.log.say(f'Uploading artifacts as "{kind}" to coordinator... 201 Created  id={self.entry.id}')


@dataclass(frozen=True)
class _StageEnd:
    """How a shell ended: by itself (``how`` is None), or by a limit or an interrupt of that name."""

    how: str | None
    exit_code: int | None


def shell_script(commands: Iterable[str], *, in_subshell: bool) -> str:
    """The script that the Runner's bash gets on standard input: each command shown, then run, the first error ends it.

    The commands run at the end of a pipe that gives nothing, as the Runner's do. Without a subshell around them bash
    makes 1 of whatever exit code the failing command had.
    """
    lines = []
    for command in commands:
        first, more, _ = command.strip("\n").partition("\n")
        shown = f"$ {first}{' # collapsed multi-line command' if more else ''}"
        lines += [f"echo {shlex.quote(f'{chr(27)}[32;1m{shown}{chr(27)}[0;m')}", command]
    body = f"eval {shlex.quote(chr(10).join(lines))}"
    return f"set -eo pipefail\nset +o noclobber\n: | {f'({body})' if in_subshell else body}\nexit 0\n"
