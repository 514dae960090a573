"""What ``glgpu rehearse`` does: stand-ins up, the pipeline played, results unpacked, everything read back, all gone."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glgpu import processes
from glgpu.console import Console
from glgpu.errors import EXIT_MEANINGS, ErrorClass, Failure
from glgpu.lifetime import spoken
from glgpu.rehearsal import world as worlds
from glgpu.rehearsal.ci_yaml import Job, PipelineError
from glgpu.rehearsal.cloud_catalogue import ZONES
from glgpu.rehearsal.container_images import BASE
from glgpu.rehearsal.container_registry import Repository, full_name
from glgpu.rehearsal.defects import DEFECTS, Defect, Scene, make_healthy
from glgpu.rehearsal.fault_catalogue import (
    FAULTS,
    KILLED,
    LIMIT_REACHED,
    Afterwards,
    During,
    Fault,
    Strike,
    exemplary,
    named,
)
from glgpu.rehearsal.faults import Faults
from glgpu.rehearsal.gitlab_model import Variable
from glgpu.rehearsal.job_run import RUNNER_VERSION, Executor
from glgpu.rehearsal.job_turn import Outcome
from glgpu.rehearsal.notebook_visit import NotebookVisit
from glgpu.rehearsal.occasion import Event, Occasion, Server, predefined_variables
from glgpu.rehearsal.player import Player, Runner
from glgpu.rehearsal.stranger import Stranger
from glgpu.rehearsal.world import GOOGLE_PROJECT, Adopted, World, settings_of
from glgpu.resources import resource
from glgpu.settings import process_environment

CONFIG = "glgpu.yml"
MADE_UP = "made-up-value-of-"
MASKABLE = re.compile(r"\S{8,}")
"""What GitLab can mask: one line without blanks, eight characters at least
(https://docs.gitlab.com/ci/variables/#mask-a-cicd-variable)."""
GONE_SECONDS = 60.0
MISSED_SECONDS = 60.0
"""How long a job is left alone whose runner is gone; GitLab takes an hour to find out, and by then it is over."""
HARD_END_SECONDS = 30 * 24 * 3600.0
"""Later than the hard end of any VM."""
SECTION_START = re.compile(rb"\x1b\[0Ksection_start:\d+:[A-Za-z0-9_.-]+(?:\[[^\]]*\])?\r\x1b\[0K")
SECTION_END = re.compile(rb"\x1b\[0Ksection_end:\d+:[A-Za-z0-9_.-]+\r\x1b\[0K")
COLOUR = re.compile(rb"\x1b\[[0-9;]*[mK]")


def rehearse(
    console: Console,
    *,
    path: str | None,
    faults: Sequence[str],
    list_faults: bool,
    defects: Sequence[str],
    list_defects: bool,
    as_json: bool,
    image: str | None,
    keep: bool,
    clean: bool,
    serve: bool,
    notebook: bool,
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
    if list_defects:
        _list_defects(console, as_json)
        return 0
    drawn = [_defect(name) for name in defects]
    if drawn and not serve:
        raise Failure(
            ErrorClass.USAGE, "--defect is for `glgpu doctor`, which plays no pipeline", "add --serve, or use --fault"
        )
    if clean:
        console.say(f"{worlds.clean(console.say)} rehearsals reaped")
        return 0
    chosen = [_fault(name) for name in faults]
    repository = Path(path) if path else resource("examples") / "text-generation"
    settings_of(repository, CONFIG)
    # Of --serve, standard output is one line for programs.
    talk = Console(console.masker, stream=sys.stderr.buffer) if serve else console
    world = World(Faults([rule for fault in chosen for rule in fault.rules]), talk.say)
    ahead = max((fault.clock_ahead for fault in chosen), default=0.0)
    if ahead:
        world.clock.offset = ahead
        talk.say(f"the clocks of GitLab and Google are {spoken(ahead)} ahead of this machine's")
    befalls = [fault.notebook for fault in chosen if fault.notebook]
    notebook = notebook or bool(befalls)
    try:
        if serve:
            world.start(repository, notebook=notebook)
            return _serve(console, world, adopt(world, repository, chosen, image), drawn)
        with console.section("stand-ins", "Stand-ins"):
            world.start(repository, notebook=notebook)
            adopted = adopt(world, repository, chosen, image, federated=True, notebook=notebook)
            rehearsal = Rehearsal(console, world, adopted, chosen)
            visit = NotebookVisit(console, world, adopted, rehearsal.player, befalls) if notebook else None
        return rehearsal.play(visit)
    finally:
        # What is being cleared away is cleared away, however impatient somebody gets.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        world.stop(keep=keep)
        if keep:
            talk.say(f"kept: {world.folder}")


def _fault(name: str) -> Fault:
    found = named(name)
    if found is None:
        known = ", ".join(fault.form for fault in FAULTS)
        raise Failure(ErrorClass.USAGE, f"there is no fault {name!r}", f"known: {known}")
    return found


def _defect(name: str) -> Defect:
    found = next((defect for defect in DEFECTS if defect.name == name), None)
    if found is None:
        known = ", ".join(defect.name for defect in DEFECTS)
        raise Failure(ErrorClass.USAGE, f"there is no defect {name!r}", f"known: {known}")
    return found


def _list_defects(console: Console, as_json: bool) -> None:
    if as_json:
        told = [{"name": one.name, "checks": sorted(one.checks), "what": one.what} for one in DEFECTS]
        console.say(json.dumps(told, indent=1))
        return
    rows = [[one.name, ", ".join(sorted(one.checks)), one.what] for one in DEFECTS]
    console.table(["defect", "checks that find it", "what is wrong"], rows)


def _list(console: Console, as_json: bool) -> None:
    if as_json:
        console.say(json.dumps([_listed(fault) for fault in FAULTS], indent=1))
        return
    rows = []
    for fault in FAULTS:
        codes = ", ".join(f"{code} ({place})" for place, code in _by_stage(fault).items()) or str(fault.exit_code)
        after = "; ".join(
            f"{one.layer}{'' if one.exit_code is None else f' ({one.exit_code})'}: {_told_finds(one)}"
            for one in exemplary(fault).afterwards
        )
        rows.append([fault.form, codes, fault.error_class or "-", fault.what, after or "-"])
    console.table(["fault", "exit code", "class", "what goes wrong", "who acts afterwards, and finds"], rows)


def _listed(fault: Fault) -> dict[str, Any]:
    """A fault for programs: with a place, what is said of it holds for its example."""
    played = exemplary(fault)
    listed = {
        "name": fault.form,
        "example": f"{fault.name}:{fault.example}" if fault.place else fault.name,
        "exit_code": played.exit_code,
        "class": played.error_class,
        "what": fault.what,
        "afterwards": [
            {"layer": after.layer, "exit_code": after.exit_code, "finds": after.finds} for after in played.afterwards
        ],
    }
    return listed | ({"exit_codes": _by_stage(fault)} if fault.stages else {})


def _by_stage(fault: Fault) -> dict[str, int]:
    return {stage: fault.at(stage).exit_code for stage in fault.stages}


def _told_finds(after: Afterwards) -> str:
    return "it depends" if after.finds is None else ", ".join(after.finds) or "nothing"


def adopt(
    world: World,
    repository: Path,
    faults: Sequence[Fault],
    image: str | None,
    *,
    federated: bool = False,
    notebook: bool = False,
) -> Adopted:
    """Set the repository up in the stand-in GitLab, secrets from the caller's environment or made up."""
    own = process_environment()
    variables = []
    for name in settings_of(repository, CONFIG).train.secrets:
        value = own.get(name) or f"{MADE_UP}{name.lower()}"
        variables.append(Variable(name, value, masked=MASKABLE.fullmatch(value) is not None))
    for fault in faults:
        variables += [Variable(name, value) for name, value in fault.variables.items()]
    if image:
        variables.append(Variable("GLGPU_TRAIN_IMAGE", image))
    for known in (settings_of(repository, CONFIG).train.image, image):
        if known:
            world.registry.images[full_name(known)] = Repository()
    branch = next((fault.branch for fault in faults if fault.branch != worlds.BRANCH), worlds.BRANCH)
    adopted = world.adopt(
        repository, config=CONFIG, branch=branch, variables=variables, federated=federated, notebook=notebook
    )
    for fault in faults:
        world.gitlab.artifact_limit_mb = fault.artifact_limit_mb or world.gitlab.artifact_limit_mb
    adopted.token.revoked = any(fault.token_revoked for fault in faults)
    return adopted


def occasion(world: World, adopted: Adopted) -> Occasion:
    """A push to the adopted repository."""
    server = Server(world.gitlab.url, world.gitlab.ssh_host, world.gitlab.ssh_port)
    event = Event(adopted.branch, adopted.sha)
    return Occasion(world.gitlab, server, adopted.project, adopted.user, event)


class Rehearsal:
    """One repository's pipeline in one world.

    Args:
        console: Where it is shown.
        world: The started stand-ins.
        adopted: What is played.
        faults: What goes wrong.
        executor: Whose way of ending jobs is played.
        runner: Who runs the jobs, where it is none of our own with that executor.
        missed_within: When GitLab finds out that a runner is gone, as ``Player`` takes it.

    Raises:
        Failure: CONFIG, when GitLab would make no pipeline.
    """

    def __init__(
        self,
        console: Console,
        world: World,
        adopted: Adopted,
        faults: Sequence[Fault] = (),
        *,
        executor: Executor = "docker",
        runner: Runner | None = None,
        missed_within: float | None = MISSED_SECONDS,
    ) -> None:
        self._console = console
        self._world = world
        self._faults = faults
        self.adopted = adopted
        for value in (world.google_token, *(v.value for v in adopted.project.variables if v.masked)):
            console.masker.add(value)
        where = occasion(world, adopted)
        try:
            pipeline = where.compile()
        except PipelineError as error:
            raise Failure(ErrorClass.CONFIG, f"GitLab makes no pipeline: {error}", "mend .gitlab-ci.yml") from None
        world.calls.listeners.append(self._hear)
        self.player = Player(
            pipeline,
            where,
            folder=world.folder / "runner",
            path=world.job_path(),
            executor=executor,
            runner=runner,
            on_output=self._show,
            before_job=self._before,
            missed_within=missed_within,
        )
        self._begun: list[str] = []
        self._shown = ""
        self._unfinished: dict[str, bytes] = {}
        self._to_come = [fault.during for fault in faults if fault.during]
        self._stranger: Stranger | None = None
        self._moving_in: asyncio.Future[None] | None = None
        self._touched: list[str] = []
        self._strikes = [fault.strike for fault in faults if fault.strike]

    def play(self, visit: NotebookVisit | None = None) -> int:
        """Play the pipeline, what somebody does with it by hand, and the layers after it; the exit code."""
        begun = time.monotonic()
        adopted, names = self.adopted, ", ".join(job.name for job in self.player.pipeline.jobs)
        self._console.say(f"== Pipeline of {adopted.branch} at {adopted.sha[:12]}: {names}")
        try:
            outcomes = self._world.call(self.player.play())
            if self._moving_in is not None:
                self._world.call(_ended(self._moving_in))
            lost = visit.pay() if visit else []
            self._summary(outcomes)
            if any(outcome.status == "canceled" for outcome in outcomes.values()):
                # A cancelled job asks for the delete and does not wait for it.
                self._world.call(self.until_gone())
            code = first_failure(outcomes) or int(bool(lost))
            for fault in self._faults:
                for after in fault.afterwards:
                    self._act(after)
        finally:
            self._world.call(self.player.close())
        # Whoever audits is not the one for whom things go wrong.
        self._world.faults.end()
        left = self.read_back()
        self._unpack(outcomes)
        for package in self.adopted.project.packages.values():
            self._console.say(f"== Kept as package {package.name} {package.version}: {len(package.files)} files")
        for what in lost:
            self._console.say(f"== Lost: {what}")
        self._console.say(f"== Left behind: {_told(left)}")
        code = 30 if any(left.values()) else code
        if self._stranger is not None:
            touched = ", ".join(self._touched)
            self._console.say(f"== another GitLab server's run with the same ids: {touched or 'untouched'}")
            code = 1 if touched else code
        meanings = {**EXIT_MEANINGS, KILLED: "glgpu was killed"}
        if any(outcome.failure_reason == "job_execution_timeout" for outcome in outcomes.values()):
            meanings[LIMIT_REACHED] = "a runner ended a job at its limit"
        meaning = meanings[code]
        self._console.say(f"== {time.monotonic() - begun:.0f} s in all; exit code {code}: {meaning}")
        return code

    def read_back(self) -> dict[str, list[str]]:
        """What is left in the stand-ins, read raw by a process that imports nothing of glgpu."""
        found = read_back(self._world, self.adopted)
        if self._stranger is not None:
            found, self._touched = self._stranger.apart(found)
        return found

    def _act(self, after: Afterwards) -> None:
        """Let a layer act after the pipeline."""
        for point in after.lifted:
            self._world.faults.lift(point)
        found = [kind for kind, names in self.read_back().items() if names]
        self._console.say(f"== Afterwards: {after.layer}; there still: {', '.join(found) or 'nothing'}")
        if after.layer == "hard-end":
            self._world.soon(lambda: self._world.clock.advance(HARD_END_SECONDS))
            self._world.call(self.until_gone())
            return
        job = {"destroy": "destroy", "stop": "stop", "retry-train": "train"}[after.layer]
        begin = self.player.play_job if after.layer == "stop" else self.player.retry_job
        outcome = self._world.call(begin(job))
        self._end_line(job)
        self._console.say(f"   {after.layer}: exit code {exit_code_of(outcome)}, expected {after.exit_code}")

    async def until_gone(self) -> None:
        """Wait until Compute Engine has no instance any more.

        Raises:
            TimeoutError: One stays.
        """
        async with asyncio.timeout(GONE_SECONDS):
            while any(self._world.compute.instances.resources(zone) for zone in ZONES):
                await asyncio.sleep(0.05)

    def _hear(self, call: Mapping[str, Any]) -> None:
        """An image that is pulled is one that the engine does not have."""
        if (call["to"], call["verb"], call["status"]) == ("registry", "pull", 200):
            self._console.say(f"rehearsal: {call['target']} is not pulled; {BASE} (Python, numpy) answers for it")

    def _before(self, job: Job) -> None:
        self._begun.append(job.name)
        # Hosted runners give every job a new machine, and so a new address.
        self._world.network.change(caller_address=f"203.0.113.{10 + len(self._begun) % 80}")
        again = self._begun.count(job.name)
        self._end_line(self._shown)
        self._shown = job.name
        self._console.say(f"== Job {job.name}" + (f", try {again}" if again > 1 else ""))
        if again > 1:
            return
        for fault in self._faults:
            self._world.faults.rules.extend(fault.before.get(job.name, ()))
            if fault.locked_before == job.name:
                self._lock_states()
            if fault.stranger and self._stranger is None:
                self._let_in()

    def _lock_states(self) -> None:
        """A Terraform of this project took its states' locks, and was killed."""
        for state in self.adopted.project.states.values():
            state.lock_id, state.locked_by = str(uuid.uuid4()), self.adopted.user
            state.locked_at = self._world.clock.now()

    def _let_in(self) -> None:
        """Let another server's run into the cloud project, beside the one that is played."""
        world, ids = self._world, (self.adopted.project.id, self.player.entry.id)
        stranger = Stranger(world.compute.endpoint, world.google_token, GOOGLE_PROJECT, *ids)
        self._stranger = stranger
        loop = asyncio.get_running_loop()
        self._moving_in = loop.run_in_executor(None, stranger.move_in, world.clock.now())

    def _show(self, job: Job, data: bytes) -> None:
        """Print whole lines: the marks of sections come in pieces."""
        lines, newline, rest = (self._unfinished.pop(job.name, b"") + data).rpartition(b"\n")
        self._unfinished[job.name] = rest
        if not newline:
            return
        if job.name != self._shown:
            self._end_line(self._shown)
            self._shown = job.name
            self._console.say(f"== Job {job.name}, which goes on")
        self._print(lines + newline)
        for during in [one for one in self._to_come if job.name == "train" and one.line.encode() in lines]:
            self._to_come.remove(during)
            self._disturb(during)
        for strike in [one for one in self._strikes if job.name == one.job and one.line.encode() in lines]:
            self._strikes.remove(strike)
            self._strike(strike)

    def _end_line(self, job: str) -> None:
        rest = self._unfinished.pop(job, b"")
        if rest:
            self._print(rest + b"\n")

    def _print(self, lines: bytes) -> None:
        plain = SECTION_END.sub(b"", SECTION_START.sub(b"-- ", lines))
        self._console.write(COLOUR.sub(b"", plain).replace(b"\r", b""))

    def _disturb(self, during: During) -> None:
        network = self._world.network
        network.change(caller_address=during.caller_address, dropped=during.dropped)
        asyncio.get_running_loop().call_later(during.seconds, network.change)

    def _strike(self, strike: Strike) -> None:
        if strike.then is not None:
            self._strikes.append(strike.then)
        match strike.what:
            case "preempt" | "vanish":
                instances = self._world.compute.instances
                for instance in instances.spot_running():
                    instances.preempt(instance, notice=strike.what == "preempt")
            case "cancel":
                self.player.cancel_job(strike.job)
            case "kill":
                for process in self.player.own_runner.processes("glgpu"):
                    process.kill()
            case "lose runner":
                self.player.kill_runner()
            case "reach limit":
                self.player.reach("job timeout", strike.job)

    def _summary(self, outcomes: Mapping[str, Outcome]) -> None:
        self._end_line(self._shown)
        rows = []
        for name, outcome in outcomes.items():
            code, tries = exit_code_of(outcome), len(outcome.attempts)
            seconds = sum(attempt.seconds for attempt in outcome.attempts)
            shown = "" if outcome.last.entry.started_at is None else f"{seconds:.1f} s"
            status = outcome.status + (f", {tries} tries" if tries > 1 else "")
            rows.append([name, status, "" if code is None else str(code), shown])
        self._console.say("== Jobs")
        self._console.table(["job", "status", "exit code", "time"], rows)

    def _unpack(self, outcomes: Mapping[str, Outcome]) -> None:
        """The artifacts of all jobs, in their order, as GitLab would show them: ./outputs/ and nothing else.

        Raises:
            Failure: DISK_FULL, when they cannot be written.
        """
        count = set()
        try:
            for outcome in outcomes.values():
                if outcome.last.artifacts is None:
                    continue
                with zipfile.ZipFile(outcome.last.artifacts) as archive:
                    for entry in archive.infolist():
                        if entry.filename.startswith("outputs/"):
                            archive.extract(entry, Path.cwd())
                            count.add(entry.filename)
        except OSError as error:
            raise Failure(
                ErrorClass.DISK_FULL, f"./outputs cannot be written: {error}", "make room there, or rehearse elsewhere"
            ) from None
        self._console.say(f"== Results: {len([name for name in count if not name.endswith('/')])} files in ./outputs")


async def _ended(work: asyncio.Future[None]) -> None:
    await work


def read_back(world: World, adopted: Adopted) -> dict[str, list[str]]:
    """What is left in the stand-ins of an adopted repository, read raw by a process that imports nothing of glgpu."""
    gitlab, project = world.gitlab, adopted.project
    told = {
        "compute": world.compute.endpoint,
        "google": world.google.endpoint,
        "buckets": list(world.google.storage.buckets),
        "project": GOOGLE_PROJECT,
        "google_token": world.google_token,
        "gitlab": gitlab.url,
        "gitlab_token": gitlab.admin_token,
        "gitlab_project": project.id,
        "gitlab_path": project.path,
        "known_tokens": [adopted.token.name],
    }
    script = Path(__file__).with_name("read_back.py")
    done = processes.run([sys.executable, "-I", str(script)], stdin=json.dumps(told).encode(), timeout=60)
    if done.code:
        raise RuntimeError(f"the read-back failed: {done.complaint}")
    found: dict[str, list[str]] = json.loads(done.text)
    return found


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


def job_by_hand(world: World, adopted: Adopted) -> dict[str, str]:
    """A job that no player runs, and its variables: what any other client needs."""
    where, gitlab = occasion(world, adopted), world.gitlab
    pipeline = gitlab.create_pipeline(adopted.project, adopted.branch, adopted.sha, "push", adopted.user)
    job = gitlab.create_job(pipeline, "by-hand", "train")
    gitlab.start_job(job)
    return {
        **predefined_variables(where),
        **{v.key: v.value for v in gitlab.variables_for(adopted.project, adopted.branch)},
        "CI_PIPELINE_ID": str(pipeline.id),
        "CI_JOB_ID": str(job.id),
        "CI_JOB_NAME": job.name,
        "CI_JOB_TOKEN": gitlab.issue_job_token(job),
        "CI_RUNNER_VERSION": RUNNER_VERSION,
    }


def _serve(console: Console, world: World, adopted: Adopted, defects: Sequence[Defect]) -> int:
    """Only the stand-ins: one line of JSON, then until SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    variables = job_by_hand(world, adopted)
    make_healthy(world, adopted)
    scene = Scene(world, adopted, variables)
    for defect in defects:
        defect.draw(scene)
    told: dict[str, Any] = {
        "compute_endpoint": world.compute.endpoint,
        "google_project": GOOGLE_PROJECT,
        "google_access_token": world.google_token,
        "gitlab_url": world.gitlab.url,
        "gitlab_project": adopted.project.id,
        "gitlab_token": adopted.token.value,
        "repository_url": occasion(world, adopted).server.repository_url(adopted.project),
        "environment": variables,
    }
    console.say(json.dumps(told))
    ended.wait()
    return 0
