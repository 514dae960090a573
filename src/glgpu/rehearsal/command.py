"""What ``glgpu rehearse`` does: stand-ins up, the pipeline played, results unpacked, everything read back, all gone."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glgpu import processes
from glgpu.console import Console
from glgpu.errors import EXIT_MEANINGS, ErrorClass, Failure
from glgpu.rehearsal.ci_yaml import Job, PipelineError
from glgpu.rehearsal.cloud_catalogue import ZONES
from glgpu.rehearsal.fault_catalogue import FAULTS, Afterwards, Fault, named
from glgpu.rehearsal.faults import Faults
from glgpu.rehearsal.job_run import Outcome
from glgpu.rehearsal.occasion import Event, Occasion, Server, predefined_variables
from glgpu.rehearsal.player import Player
from glgpu.rehearsal.world import Adopted, World, clean, settings_of
from glgpu.resources import resource
from glgpu.settings import process_environment

CONFIG = "glgpu.yml"
MADE_UP = "made-up-value-of-"
SECTION_START = re.compile(rb"\x1b\[0Ksection_start:\d+:[A-Za-z0-9_.-]+(?:\[[^\]]*\])?\r\x1b\[0K")
SECTION_END = re.compile(rb"\x1b\[0Ksection_end:\d+:[A-Za-z0-9_.-]+\r\x1b\[0K")
COLOUR = re.compile(rb"\x1b\[[0-9;]*[mK]")


def rehearse(
    console: Console,
    *,
    path: str | None,
    faults: Sequence[str],
    list_faults: bool,
    as_json: bool,
    image: str | None,
    keep: bool,
    clean: bool,
    serve: bool,
) -> int:
    """The command.

    Returns:
        The exit code: the first failing job's; 30 if something is left.

    Raises:
        Failure: USAGE or CONFIG, before anything is started; IMAGE_PULL.
    """
    if list_faults:
        _list(console, as_json)
        return 0
    if clean:
        return _clean(console)
    chosen = [_fault(name) for name in faults]
    repository = Path(path) if path else resource("examples") / "text-generation"
    settings_of(repository, CONFIG)
    world = World(Faults([rule for fault in chosen for rule in fault.rules]), console.say)
    try:
        if serve:
            world.start(repository)
            return _serve(console, world, repository, chosen, image)
        with console.section("stand-ins", "Stand-ins"):
            world.start(repository)
            rehearsal = Rehearsal(console, world, repository, chosen, image)
        return rehearsal.play()
    finally:
        world.stop(keep=keep)
        if keep:
            console.say(f"kept: {world.folder}")


def _fault(name: str) -> Fault:
    found = named(name)
    if found is None:
        known = ", ".join(fault.name for fault in FAULTS)
        raise Failure(ErrorClass.USAGE, f"there is no fault {name!r}", f"known: {known}")
    return found


def _list(console: Console, as_json: bool) -> None:
    if as_json:
        found = [
            {
                "name": fault.name,
                "exit_code": fault.exit_code,
                "class": fault.error_class,
                "what": fault.what,
                "afterwards": [
                    {"layer": after.layer, "exit_code": after.exit_code, "finds": after.finds}
                    for after in fault.afterwards
                ],
            }
            for fault in FAULTS
        ]
        console.say(json.dumps(found, indent=1))
        return
    rows = []
    for fault in FAULTS:
        after = "; ".join(
            f"{one.layer}{'' if one.exit_code is None else f' ({one.exit_code})'}: {one.finds}"
            for one in fault.afterwards
        )
        rows.append([fault.name, str(fault.exit_code), fault.error_class or "-", fault.what, after or "-"])
    console.table(["fault", "exit code", "class", "what goes wrong", "who acts afterwards, and finds"], rows)


def _clean(console: Console) -> int:
    count = clean_world(console)
    console.say(f"{count} rehearsals reaped")
    return 0


def clean_world(console: Console) -> int:
    """Reap what killed rehearsals left behind; how many there were."""
    return clean(console.say)


class Rehearsal:
    """One repository's pipeline in one world.

    Args:
        console: Where it is shown.
        world: The started stand-ins.
        repository: What is played.
        faults: What goes wrong.
        image: The container image to use instead of what the settings say.
    """

    def __init__(
        self, console: Console, world: World, repository: Path, faults: Sequence[Fault], image: str | None
    ) -> None:
        self._console = console
        self._world = world
        self._faults = faults
        self.adopted = adopt(world, repository, faults, image)
        for value in (world.google_token, *(v.value for v in self.adopted.project.variables if v.masked)):
            console.masker.add(value)
        self.occasion = occasion(world, self.adopted)
        try:
            pipeline = self.occasion.compile()
        except PipelineError as error:
            raise Failure(ErrorClass.CONFIG, f"GitLab makes no pipeline: {error}", "mend .gitlab-ci.yml") from None
        self._shown = ""
        self._during_done = False
        self._seen = b""
        self.player = Player(
            pipeline,
            self.occasion,
            folder=world.folder / "runner",
            path=world.job_path(),
            on_output=self._show,
            before_job=self._before,
        )
        self._jobs = 0

    def play(self) -> int:
        """Play the pipeline and the layers after it; the exit code."""
        begun = time.monotonic()
        names = ", ".join(job.name for job in self.player.pipeline.jobs)
        self._console.say(f"== Pipeline {self.adopted.branch} {self.adopted.sha[:12]}: {names}")
        try:
            outcomes = self._world.call(self.player.play())
            code = first_failure(outcomes)
            self._summary(outcomes)
            self._unpack(outcomes)
            for fault in self._faults:
                for after in fault.afterwards:
                    self._act(after)
            left = self.read_back()
        finally:
            self._world.call(self.player.close())
        self._console.say(f"== Read back: {_told(left)}")
        self._console.say(f"== {time.monotonic() - begun:.0f} s in all; exit code {code}: {EXIT_MEANINGS[code]}")
        return 30 if any(left.values()) else code

    def read_back(self) -> dict[str, list[str]]:
        """What is left in the stand-ins, read raw by a process that imports nothing of glgpu."""
        gitlab, project = self._world.gitlab, self.adopted.project
        admin = gitlab.create_token(gitlab.create_user("root", admin=True), "read back", ["api"])
        told = {
            "compute": self._world.compute.endpoint,
            "project": self.adopted_project(),
            "google_token": self._world.google_token,
            "gitlab": gitlab.url,
            "gitlab_token": admin.value,
            "gitlab_project": project.id,
            "gitlab_path": project.path,
            "known_tokens": ["glgpu"],
        }
        script = Path(__file__).with_name("read_back.py")
        done = processes.run([sys.executable, "-I", str(script)], stdin=json.dumps(told).encode(), timeout=60)
        if done.code:
            raise RuntimeError(f"the read-back failed: {done.complaint}")
        found: dict[str, list[str]] = json.loads(done.text)
        return found

    def adopted_project(self) -> str:
        """The Google Cloud project that the jobs use."""
        return self._world.endpoints()["GLGPU_PROJECT"]

    def _act(self, after: Afterwards) -> None:
        """Let a layer act after the pipeline."""
        for point in after.lifted:
            self._world.faults.lift(point)
        self._console.say(f"== Afterwards: {after.layer}, which still finds {after.finds}")
        if after.layer == "hard-end":
            self._world.soon(lambda: self._world.clock.advance(30 * 24 * 3600.0))
            self._world.call(self._until_gone())
            return
        job = {"destroy": "destroy", "stop": "stop", "retry-train": "train"}[after.layer]
        begin = self.player.play_job if after.layer == "stop" else self.player.retry_job
        outcome = self._world.call(begin(job))
        code = exit_code_of(outcome)
        if code != after.exit_code:
            raise RuntimeError(f"{after.layer} ended with {code} instead of {after.exit_code}")

    async def _until_gone(self) -> None:
        while any(self._world.compute.instances.resources(zone) for zone in ZONES):
            await asyncio.sleep(0.05)

    def _before(self, job: Job) -> None:
        # Hosted runners give every job a new machine, and so a new address.
        self._jobs += 1
        self._world.network.change(caller_address=f"203.0.113.{10 + self._jobs}")
        for fault in self._faults:
            self._world.faults.rules.extend(fault.before.get(job.name, ()))

    def _show(self, job: Job, data: bytes) -> None:
        if job.name != self._shown:
            self._shown = job.name
            self._console.say(f"== Job {job.name}")
        plain = SECTION_END.sub(b"", SECTION_START.sub(b"-- ", data))
        self._console.write(COLOUR.sub(b"", plain).replace(b"\r", b""))
        for fault in self._faults:
            if fault.during is not None and job.name == "train" and not self._during_done:
                self._seen = (self._seen + data)[-4096:]
                if fault.during.line.encode() in self._seen:
                    self._during_done = True
                    self._disturb(fault)

    def _disturb(self, fault: Fault) -> None:
        during, network = fault.during, self._world.network
        assert during is not None
        network.change(caller_address=during.caller_address, dropped=during.dropped)
        timer = threading.Timer(during.seconds, lambda: network.change(dropped=None))
        timer.daemon = True
        timer.start()

    def _summary(self, outcomes: Mapping[str, Outcome]) -> None:
        rows = []
        for name, outcome in outcomes.items():
            if outcome.status == "manual":
                rows.append([name, "manual", "", ""])
                continue
            code = exit_code_of(outcome)
            seconds = sum(attempt.seconds for attempt in outcome.attempts)
            rows.append([name, outcome.status, "" if code is None else str(code), f"{seconds:.1f} s"])
        self._console.say("== Jobs")
        self._console.table(["job", "status", "exit code", "time"], rows)

    def _unpack(self, outcomes: Mapping[str, Outcome]) -> None:
        """The artifacts of all jobs, in their order, as GitLab would show them: ./outputs/ and nothing else."""
        for outcome in outcomes.values():
            if outcome.last.artifacts is None:
                continue
            with zipfile.ZipFile(outcome.last.artifacts) as archive:
                for entry in archive.infolist():
                    if entry.filename.startswith("outputs/"):
                        archive.extract(entry, Path.cwd())


def adopt(world: World, repository: Path, faults: Sequence[Fault], image: str | None) -> Adopted:
    """Set the repository up in the stand-in GitLab, secrets from the caller's environment or made up."""
    own = process_environment()
    secrets = settings_of(repository, CONFIG).train.secrets
    masked = {name: own.get(name) or f"{MADE_UP}{name.lower()}" for name in secrets}
    variables: dict[str, str] = {}
    for fault in faults:
        variables |= fault.variables
    if image:
        variables["GLGPU_TRAIN_IMAGE"] = image
    branch = next((fault.branch for fault in faults if fault.branch != "main"), "main")
    return world.adopt(
        repository, config=CONFIG, branch=branch, variables=variables, masked=masked, keep_pipeline=False
    )


def occasion(world: World, adopted: Adopted) -> Occasion:
    """A push to the adopted repository."""
    server = Server(world.gitlab.url, world.gitlab.ssh_host, world.gitlab.ssh_port)
    event = Event(adopted.branch, adopted.sha)
    return Occasion(world.gitlab, server, adopted.project, adopted.user, event)


def exit_code_of(outcome: Outcome) -> int | None:
    """A job's exit code; 1 where the runner ended it without one."""
    if outcome.status == "success":
        return 0
    return outcome.exit_code if outcome.exit_code is not None else (1 if outcome.status == "failed" else None)


def first_failure(outcomes: Mapping[str, Outcome]) -> int:
    """The exit code of the first job that failed, 0 if none did; what is still alive counts before all."""
    codes = [exit_code_of(outcome) or 0 for outcome in outcomes.values() if outcome.status == "failed"]
    return 30 if 30 in codes else next((code for code in codes if code), 0)


def _told(left: Mapping[str, list[str]]) -> str:
    return ", ".join(
        f"{len(names)} {kind}{f' ({chr(32).join(names)})' if names else ''}" for kind, names in left.items()
    )


def _serve(console: Console, world: World, repository: Path, faults: Sequence[Fault], image: str | None) -> int:
    """Only the stand-ins: one line of JSON, then until SIGTERM."""
    adopted = adopt(world, repository, faults, image)
    where = occasion(world, adopted)
    gitlab = world.gitlab
    pipeline = gitlab.create_pipeline(adopted.project, adopted.branch, adopted.sha, "push", adopted.user)
    job = gitlab.create_job(pipeline, "by-hand", "train")
    gitlab.start_job(job)
    token = next(v.value for v in adopted.project.variables if v.key == "GLGPU_GITLAB_TOKEN")
    variables = {
        **predefined_variables(where),
        **{v.key: v.value for v in gitlab.variables_for(adopted.project, adopted.branch)},
        "CI_PIPELINE_ID": str(pipeline.id),
        "CI_JOB_ID": str(job.id),
        "CI_JOB_NAME": job.name,
        "CI_JOB_TOKEN": gitlab.issue_job_token(job),
    }
    told: dict[str, Any] = {
        "compute_endpoint": world.compute.endpoint,
        "google_project": world.endpoints()["GLGPU_PROJECT"],
        "google_access_token": world.google_token,
        "gitlab_url": gitlab.url,
        "gitlab_project": adopted.project.id,
        "gitlab_token": token,
        "repository_url": where.server.repository_url(adopted.project),
        "environment": variables,
    }
    console.say(json.dumps(told))
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    return 0
