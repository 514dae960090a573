"""The rehearsal as people start it: a process, in a folder of its own, whose output they read."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from glgpu.console import Console
from glgpu.masking import Masker
from glgpu.rehearsal.ci_yaml import Job
from glgpu.rehearsal.command import Rehearsal, occasion
from glgpu.rehearsal.faults import Faults, Rule
from glgpu.rehearsal.job_turn import Outcome
from glgpu.rehearsal.occasion import Event
from glgpu.rehearsal.player import Player
from glgpu.rehearsal.world import Adopted, World

GLGPU = Path(sys.executable).with_name("glgpu")
WITH_CLEANUP = """\
stages: [provision, train, destroy]
include:
  - project: rehearsal/glgpu
    ref: main
    file: ci/train.yml
    inputs: {image: not-pulled-in-a-rehearsal}
  - project: rehearsal/glgpu
    ref: main
    file: ci/notebook.yml
    inputs: {image: not-pulled-in-a-rehearsal}
  - project: rehearsal/glgpu
    ref: main
    file: ci/cleanup.yml
    inputs: {image: not-pulled-in-a-rehearsal}
"""
"""A .gitlab-ci.yml with everything that is to be included."""
TINY = """\
machine:
  gpu: [nvidia-l4]
  zones: [europe-west4-a]
train:
  image: registry.example.com/team/train:1
  command: python train.py
  outputs: [weights]
"""
TINY_TRAINING = """\
import os, pathlib
print("training in", os.getcwd(), flush=True)
pathlib.Path("weights").mkdir()
pathlib.Path("weights/w.bin").write_bytes(bytes(100))
"""


@dataclass(frozen=True)
class Rehearsed:
    """A rehearsal that has ended."""

    code: int
    text: str
    folder: Path

    @property
    def jobs(self) -> list[tuple[str, str]]:
        """Each job in the order in which it began, with its log."""
        parts = re.split(r"^== (.*)\n", self.text, flags=re.MULTILINE)
        sections = zip(parts[1::2], parts[2::2], strict=True)
        return [(name.removeprefix("Job "), log) for name, log in sections if name.startswith("Job ")]

    def log(self, job: str) -> str:
        """The log of a job's first try."""
        return dict(reversed(self.jobs))[job]

    def line(self, beginning: str) -> str:
        """What follows in the one line that begins so."""
        (found,) = [line for line in self.text.splitlines() if line.startswith(beginning)]
        return found.removeprefix(beginning)

    def assert_nothing_is_left(self) -> None:
        """The raw read-back is empty."""
        assert not re.search(r"[1-9]", self.line("== Left behind: ")), self.text


def started(
    folder: Path,
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    umask: int = -1,
    apart: bool = False,
) -> subprocess.Popen[str]:
    """Begin `glgpu rehearse` in a folder; its temporary files and its notes lie in there too.

    With ``apart`` what it says on standard error is not mixed into the output.
    """
    own = {"TMPDIR": str(folder / "tmp"), "XDG_CACHE_HOME": str(folder / "cache")}
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    return subprocess.Popen(
        [GLGPU, "rehearse", *arguments], cwd=work, env={**os.environ, **own, **(environment or {})}, umask=umask,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=None if apart else subprocess.STDOUT, text=True,
        encoding="utf-8",
    )  # fmt: skip


def rehearse(
    folder: Path, *arguments: str | Path, environment: Mapping[str, str] | None = None, umask: int = -1
) -> Rehearsed:
    """Run `glgpu rehearse` to its end."""
    with started(folder, *arguments, environment=environment, umask=umask) as process:
        text, _ = process.communicate()
    return Rehearsed(process.returncode, text, folder / "work")


NOT_CLICKED = {"start notebook": "manual", "stop notebook": "manual"}
"""Status of the notebook's jobs in a pipeline in which nobody clicks them."""


def repository(folder: Path, files: Mapping[str, str] = {}) -> Path:
    """A folder with a glgpu.yml and a training that takes no time."""
    folder.mkdir(parents=True)
    for name, text in {"glgpu.yml": TINY, "train.py": TINY_TRAINING, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def remains(marks: Iterable[str]) -> list[str]:
    """What still bears one of these names: processes by command line or environment, shared memory, containers."""
    marks = list(marks)
    found = [str(path) for path in Path("/dev/shm").iterdir() if any(mark in path.name for mark in marks)]
    for process in psutil.process_iter():
        try:
            said = " ".join([*process.cmdline(), *process.environ().values()])
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(mark in said for mark in marks):
            found.append(f"process {process.pid}: {said[:300]}")
    listed = docker("ps", "-a", "--format", "{{.Names}} {{.Labels}}") or ""
    return found + [line for line in listed.splitlines() if any(mark in line for mark in marks)]


def docker(*words: str) -> str | None:
    """What the Docker engine answers; None where there is none, or where it refuses."""
    try:
        done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


@contextlib.contextmanager
def world(*rules: Rule, notebook: bool = False) -> Iterator[World]:
    """Running stand-ins in this process."""
    made = World(Faults(list(rules)), lambda _: None)
    try:
        made.start(None, notebook=notebook)
        yield made
    finally:
        made.stop()


class Played:
    """A pipeline in such a world, and what its jobs have printed so far."""

    def __init__(self, made: World, adopted: Adopted, **options: Any) -> None:
        self.world = made
        self.rehearsal = Rehearsal(Console(Masker(), stream=io.BytesIO()), made, adopted, **options)
        self.player = self.rehearsal.player
        self.logs: dict[str, str] = {}
        self._waiting: list[tuple[str, str, asyncio.Event]] = []
        self.player.on_output = self._hear

    def _hear(self, job: Job, data: bytes) -> None:
        self.logs[job.name] = self.logs.get(job.name, "") + data.decode("utf-8", "replace")
        for name, words, event in self._waiting:
            if name == job.name and words in self.logs[name]:
                event.set()

    async def printed(self, name: str, words: str) -> None:
        """Wait until a job has printed something."""
        event = asyncio.Event()
        self._waiting.append((name, words, event))
        try:
            await asyncio.wait_for(event.wait(), 120)
        except TimeoutError:
            raise AssertionError(f"{name} has not printed {words!r}\n{self._told()}") from None

    def play(self, meanwhile: Callable[[Played], Awaitable[None]] | None = None) -> Mapping[str, Outcome]:
        """Play the pipeline to its end, and something meanwhile."""

        async def story() -> Mapping[str, Outcome]:
            playing = asyncio.ensure_future(self.player.play())
            if meanwhile is not None:
                await meanwhile(self)
            return await playing

        try:
            return self.world.call(asyncio.wait_for(story(), 200))
        except TimeoutError:
            raise AssertionError(f"the pipeline did not end\n{self._told()}") from None

    def _told(self) -> str:
        return "\n".join(f"=== {name}\n{log[-4000:]}" for name, log in self.logs.items())

    def close(self) -> None:
        """End the player."""
        self.world.call(self.player.close())

    def left(self) -> dict[str, list[str]]:
        """What the read-back still finds."""
        return {kind: names for kind, names in self.rehearsal.read_back().items() if names}


def clean(played: Played, **variables: str) -> tuple[Outcome, str]:
    """What the schedule's pipeline comes to, and its log."""
    where = occasion(played.world, played.rehearsal.adopted)
    event = Event(where.event.ref, where.event.sha, "schedule", variables={"GLGPU_TASK": "cleanup", **variables})
    where = replace(where, event=event)
    log = bytearray()
    player = Player(
        where.compile(), where, folder=played.world.folder / "cleaner", path=played.world.job_path(),
        on_output=lambda _job, data: log.extend(data),
    )  # fmt: skip
    assert [job.name for job in player.pipeline.jobs] == ["cleanup"]

    async def story() -> Outcome:
        try:
            return (await asyncio.wait_for(player.play(), 200))["cleanup"]
        finally:
            await player.close()

    return played.world.call(story()), log.decode("utf-8", "replace")
