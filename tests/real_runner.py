"""GitLab's own Runner as the one who runs the jobs: `gitlab-runner run`, pointed at the stand-in GitLab."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glgpu import processes
from glgpu.rehearsal.gitlab import GitLab
from glgpu.rehearsal.job_run import MARK_VARIABLE, Container, Executor
from glgpu.rehearsal.job_turn import Turn

SHORT_TOKEN = slice(len("glrt-"), len("glrt-") + 9)
"""The part of a runner's token by which the Runner names its containers, in lower case."""


@dataclass(frozen=True)
class Program:
    """A GitLab Runner.

    Attributes:
        path: The program `gitlab-runner`.
        executor: How it runs jobs.
        helper_image: The docker executor's helper image, which the engine must have.
    """

    path: str
    executor: Executor
    helper_image: str = ""


class NoRunner(Exception):
    """There is none here: what is missing."""


def find_program(executor: Executor) -> Program:
    """The GitLab Runner of this machine.

    Raises:
        NoRunner: There is none, or none with this executor.
    """
    path = shutil.which(os.environ.get("GLGPU_GITLAB_RUNNER") or "gitlab-runner")
    if path is None:
        raise NoRunner("neither on PATH nor named by GLGPU_GITLAB_RUNNER")
    if executor == "shell":
        return Program(path, executor)
    helper = os.environ.get("GLGPU_GITLAB_RUNNER_HELPER", "")
    if not helper:
        raise NoRunner("GLGPU_GITLAB_RUNNER_HELPER names no helper image, which its docker executor needs")
    if processes.run(["docker", "image", "inspect", helper]).code:
        raise NoRunner(f"the engine has no image {helper}, which GLGPU_GITLAB_RUNNER_HELPER names")
    return Program(path, executor, helper)


class RealRunner:
    """A runner of GitLab's, started with the first job and again after it has been lost.

    Args:
        program: What is run, and how.
        gitlab: Whose jobs it takes.
        folder: Its own: configuration, log, build folders of the shell executor.
        environment: Variables that it sets in each of its jobs.
        concurrent: Jobs at the same time.
    """

    def __init__(
        self, program: Program, gitlab: GitLab, folder: Path, environment: Mapping[str, str], *, concurrent: int = 4
    ) -> None:
        self.executor: Executor = program.executor
        self._program = program
        self._gitlab = gitlab
        self._environment = environment
        self._concurrent = concurrent
        # Not a container, but the same way to find each process of it.
        self._home = Container(uuid.uuid4().hex, folder)
        self._tokens: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()

    async def run(self, turn: Turn, _slot: int, /) -> None:
        """Offer a job and wait for its last word, or for the end of the runner."""
        async with self._starting:
            process = self._process if self._process and self._process.returncode is None else await self._start()
        await self._gitlab.runners.offer(turn)
        lost, over = asyncio.ensure_future(process.wait()), asyncio.ensure_future(turn.over.wait())
        try:
            await asyncio.wait({lost, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
            over.cancel()

    async def _start(self) -> asyncio.subprocess.Process:
        for token in self._tokens:
            await self._gitlab.runners.unregister(token)
        token = self._gitlab.runners.register()
        self._tokens.append(token)
        folder = self._home.folder
        for part in (self._home.home, self._home.tmp, folder / "builds", folder / "cache"):
            part.mkdir(parents=True, exist_ok=True)
        config = folder / "config.toml"
        config.write_text(self._config(token), encoding="utf-8")
        own = {"HOME": str(self._home.home), "TMPDIR": str(self._home.tmp), MARK_VARIABLE: self._home.mark}
        with (folder / "runner.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                self._program.path, "--log-level", "debug", "run", "--config", str(config), "--working-directory",
                str(folder), env=processes.environment(own), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        return self._process

    def _config(self, token: str) -> str:
        """The configuration; a JSON text is also a TOML one for what stands in it."""
        folder, program = self._home.folder, self._program
        general = {"concurrent": self._concurrent, "check_interval": 1, "shutdown_timeout": 30}
        runner = {
            "name": "rehearsal",
            "url": self._gitlab.url,
            "token": token,
            "executor": program.executor,
            "environment": [f"{name}={value}" for name, value in self._environment.items()],
        }
        docker: dict[str, object] = {}
        if program.executor == "shell":
            runner |= {"shell": "bash", "builds_dir": str(folder / "builds"), "cache_dir": str(folder / "cache")}
        else:
            docker = {
                "image": "none-of-its-own",
                "helper_image": program.helper_image,
                "pull_policy": ["never"],
                "network_mode": "host",
            }
        tables: dict[str, dict[str, object]] = {"": general, "[[runners]]": runner, "[runners.docker]": docker}
        lines = []
        for head, entries in tables.items():
            if entries:
                lines += [head, *(f"{key} = {json.dumps(value)}" for key, value in entries.items())]
        return "\n".join(lines) + "\n"

    def stop(self) -> None:
        """SIGTERM: it ends its jobs, reports them and goes."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL: what it has started lives on."""
        if self._process is not None:
            self._process.kill()

    async def close(self) -> None:
        """End it, whatever it has started, and the containers and volumes of its jobs."""
        await asyncio.to_thread(self._home.kill)
        if self._process is not None:
            await self._process.wait()
        for token in self._tokens:
            await self._gitlab.runners.unregister(token)
            if self.executor == "docker":
                await asyncio.to_thread(_remove_docker, f"runner-{token[SHORT_TOKEN].lower()}-")


def _remove_docker(name: str) -> None:
    """Remove every container and volume with this in its name."""
    for kind, flags in (("container", ["--all"]), ("volume", [])):
        listed = processes.run(["docker", kind, "ls", "--quiet", *flags, "--filter", f"name={name}"])
        if found := listed.text.split():
            processes.run(["docker", kind, "rm", "--force", *found], timeout=120)
