"""One case: a world of its own, a pipeline that is disturbed, the layers after it, and what must hold at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from campaign.calls import Boundary, Call, Tally
from campaign.plan import AGAIN, FOR_EVER, Layer, Plan
from campaign.warm import Warm, cold_program
from glgpu.errors import EXIT_MEANINGS
from glgpu.rehearsal import world as worlds
from glgpu.rehearsal.ci_yaml import Job
from glgpu.rehearsal.cloud_catalogue import ZONES
from glgpu.rehearsal.command import occasion, read_back
from glgpu.rehearsal.container_images import Engine
from glgpu.rehearsal.faults import Faults, Rule
from glgpu.rehearsal.interposer import Cut, Moment, Reached
from glgpu.rehearsal.job_run import CANCEL_NOTICE_SECONDS, DOCKER_LOOKS, PlayedRunner
from glgpu.rehearsal.job_turn import Outcome
from glgpu.rehearsal.occasion import Occasion
from glgpu.rehearsal.player import Player
from glgpu.rehearsal.world import Adopted, World
from glgpu.run_record import Record

SETTINGS = """\
machine:
  gpu: [nvidia-l4]
  zones: [europe-west4-a]
train:
  image: registry.example.com/team/train:1
  command: python train.py
  outputs: [weights]
limits:
  boot_minutes: 0.5
  create_minutes: 0.1
  rescue_minutes: 1
  delete_minutes: 0.2
"""
WEIGHTS = bytes(range(256)) * 256
TRAINING = """\
import pathlib, time
folder = pathlib.Path("weights")
folder.mkdir()
part = folder / ".part"
part.write_bytes(bytes(range(256)) * 256)
part.rename(folder / "w.bin")
print("written", flush=True)
time.sleep(0.5)
"""
OPERATION_SECONDS = 0.03
GONE_SECONDS = 30.0
LONGEST_CASE = 280.0
ORPHAN_SECONDS = 60.0
"""How long a job may live on whose runner is gone; GitLab finds out after an hour, when it is over in any case."""
KILLS: Mapping[str, tuple[frozenset[str], signal.Signals]] = {
    "kill glgpu": (frozenset({"glgpu"}), signal.SIGKILL),
    "kill terraform": (frozenset({"terraform", "tofu"}), signal.SIGKILL),
    "kill both": (frozenset({"glgpu", "terraform", "tofu"}), signal.SIGKILL),
    "terminate glgpu": (frozenset({"glgpu"}), signal.SIGTERM),
}
ENDS_JOB = (
    "cancel job",
    "cancel pipeline",
    "force cancel",
    "job timeout",
    "script timeout",
    "lose runner",
    "stop runner",
)
"""Strikes after which the runner itself ends the job's processes."""


@dataclass
class Result:
    """How a case went.

    Attributes:
        plan: The case.
        struck: Whether what was planned could happen.
        hit: The boundary at which it did.
        seconds: How long the case took.
        broken: Which promises were broken.
        left: How often something was left after the pipeline, for the layers.
        calls: The calls of the run.
        times: Seconds that each job took, by label.
        logs: The jobs' logs.
    """

    plan: Plan
    struck: bool = False
    hit: Boundary | None = None
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    logs: str = ""


class CampaignRunner(PlayedRunner):
    """Waits less where nobody does anything."""

    def scaled(self, seconds: float) -> float:
        """A cancel reaches the job soon; a look after SIGTERM takes a third of a second, six of them two."""
        if seconds == CANCEL_NOTICE_SECONDS:
            return 0.2
        return 2.0 / DOCKER_LOOKS if seconds == 1 else seconds


class Case:
    """One case in a world of its own.

    Args:
        plan: What happens.
        repository: What is trained.
        warm: The parent of the commands.
        times: Usual seconds of each job, by label.
        source: The folder `src` of the glgpu that the jobs run; None: this one's.
    """

    def __init__(
        self, plan: Plan, repository: Path, warm: Warm, times: Mapping[str, float], source: Path | None = None
    ) -> None:
        self.plan = plan
        self.result = Result(plan)
        self._repository = repository
        self._warm = warm
        self._times = times
        self._source = source
        self._tally = Tally()
        self._job = ""
        self._again = False
        self._ended = False
        self._logs: dict[str, bytes] = {}
        self._written = self._expired = False
        self._path = ""
        self._players: list[Player] = []
        self._player: Player
        self._world: World
        self._adopted: Adopted

    def play(self) -> Result:
        """Play it to its end, whatever comes."""
        begun = time.monotonic()
        world = self._world = World(Faults(list(self.plan.rules)), lambda _: None, latency=OPERATION_SECONDS)
        try:
            worlds.find_engine = lambda _: Engine()  # containers as processes start faster
            world.start(None)
            world.machines.boot_seconds = world.machines.agent_seconds = 0.02
            world.clock.offset = self.plan.skew
            self._prepare()
            world.call(asyncio.wait_for(self._story(), LONGEST_CASE))
        except TimeoutError:
            self._break(f"it was not over after {LONGEST_CASE:.0f} s")
        except Exception:
            self._break(f"the harness failed: {traceback.format_exc()}")
        finally:
            with contextlib.suppress(Exception):
                for player in self._players:
                    world.call(player.close())
            world.stop()
        self.result.seconds = time.monotonic() - begun
        self.result.calls = self._tally.calls
        self.result.logs = "\n".join(
            f"=== {name}\n{data.decode('utf-8', 'replace')}" for name, data in self._logs.items()
        )
        return self.result

    def _prepare(self) -> None:
        world = self._world
        self._adopted = world.adopt(self._repository, keep_pipeline=True)
        where = occasion(world, self._adopted)
        programs, self._notes = world.folder / "front", world.folder / "commands"
        self._notes.touch()
        if self.plan.cold:
            cold_program(programs, self._notes, self._source)
        else:
            self._warm.program(programs, self._notes)
        self._path = os.pathsep.join([str(programs), world.job_path()])
        self._player = self._make_player(where, "runner", before_job=self._begin_job)
        self._players = [self._player]
        world.calls.interposer.watch = self._watch

    def _make_player(self, where: Occasion, folder: str, before_job: Callable[[Job], None]) -> Player:
        place = self._world.folder / folder
        return Player(
            where.compile(),
            where,
            folder=place,
            path=self._path,
            runner=CampaignRunner(place, self._path, self.plan.executor),
            on_output=self._hear,
            before_job=before_job,
            missed_within=ORPHAN_SECONDS,
        )

    # The story

    async def _story(self) -> None:
        player = self._player
        await player.play()
        if self.plan.again and player.outcomes["train"].status in ("success", "failed", "canceled"):
            self._again = True
            await player.retry_job("train")
        await self._orphans_are_over()
        self._disturbances_end()
        self._note_times()
        self._check_promise_of_the_pipeline(await self._left("the pipeline"))
        for layer in self.plan.layers:
            left = await self._read_back()
            if not left and layer != "stop":
                break
            if not left and self.plan.strike:
                break
            await self._act(layer)
        await self._judge()

    async def _act(self, layer: Layer) -> None:
        if layer == "hard end":
            await self._hard_end()
            return
        outcome = await (self._stop() if layer == "stop" else self._clean())
        left = await self._left(layer)
        code = outcome.exit_code
        if self._world.faults.rules and self._instances():
            wanted = 30 if layer == "stop" else 31
            if code != wanted:
                self._break(f"{layer} ended with {code or outcome.status} beside a living VM, not with {wanted}")
        elif outcome.status != "success":
            self._break(f"{layer} ended with {code}, though nothing disturbed it")
        elif left:
            self._break(f"{layer} ended well, and left {left}")

    async def _hard_end(self) -> None:
        self._world.faults.end()
        alive = self._instances()
        self._expired = bool(alive)
        longest = max((int(one["scheduling"]["maxRunDuration"]["seconds"]) for one in alive), default=0)
        self._world.clock.advance(longest + 60.0)
        try:
            async with asyncio.timeout(GONE_SECONDS):
                while self._instances():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self._break("the VM outlives its max_run_duration")
        self._world.clock.offset = 0.0  # the jobs' clock has not moved

    async def _clean(self) -> Outcome:
        """The scheduled pipeline with `glgpu cleanup`."""
        where = occasion(self._world, self._adopted)
        event = replace(where.event, source="schedule", variables={"GLGPU_TASK": "cleanup"})
        cleaner = self._make_player(replace(where, event=event), f"cleaner{len(self._players)}", lambda _: None)
        self._players.append(cleaner)
        return (await cleaner.play())["cleanup"]

    async def _stop(self) -> Outcome:
        """What GitLab does after `auto_stop_in`; where it finds no deployment, a person does it."""
        player, project = self._player, self._adopted.project
        for environment in project.environments.values():
            found = await player.stop_environment(environment.name)
            if found is not None:
                return found
        return await player.play_job("stop")

    def _disturbances_end(self) -> None:
        """The pipeline is over, and so is what disturbed it, but for what is for ever."""
        self._ended = True
        self._world.network.change()
        if self.plan.ambient not in FOR_EVER:
            self._world.faults.end()
        else:
            for point in ("compute.request", "gitlab.request"):
                self._world.faults.lift(point)

    async def _orphans_are_over(self) -> None:
        orphans = self._player.own_runner.orphans
        if orphans:
            await asyncio.wait(orphans, timeout=ORPHAN_SECONDS)

    # Calls

    def _watch(self, reached: Reached) -> Cut | None:
        if self._ended or not self._job:
            return None
        call = self._tally.add(self._label, reached)
        self._see_weights(reached)
        boundary = self.plan.boundary
        if boundary is None or self.result.struck or call != boundary.call:
            return None
        return self._cut_of(boundary, reached)

    def _cut_of(self, boundary: Boundary, reached: Reached) -> Cut:
        victims: list[psutil.Process] = []

        async def cut(moment: Moment) -> bool:
            nonlocal victims
            last = moment == "after answer"
            if moment == "before answer" and boundary.moment == "after answer":
                # Looked for beforehand, so that nothing is lost after the answer.
                victims = await asyncio.to_thread(self._victims)
            if moment != boundary.moment or self.result.struck:
                return False
            if not last:
                victims = await asyncio.to_thread(self._victims)
            caller = 0 if last or not victims else await asyncio.to_thread(caller_of, reached.port)
            self._strike(victims)
            self.result.hit = boundary if self.result.struck else None
            killed = self.plan.strike in KILLS and KILLS[self.plan.strike][1] is signal.SIGKILL
            names = {one for one in victims if one.pid == caller}
            # A command on the VM is glgpu's call, though ssh makes it.
            by_ssh = reached.to == "vm" and "glgpu" in KILLS.get(self.plan.strike, ((), 0))[0]
            return killed and bool(names or by_ssh)

        return cut

    @property
    def _label(self) -> str:
        return AGAIN if self._again and self._job == "train" else self._job

    def _victims(self) -> list[psutil.Process]:
        names, _ = KILLS.get(self.plan.strike, (frozenset(), signal.SIGKILL))
        return self._player.own_runner.processes(*names) if names else []

    def _begin_job(self, job: Job) -> None:
        self._job = job.name
        self._look_for_weights()
        # Hosted runners give every job a new machine, and so a new address.
        self._world.network.change(caller_address=f"203.0.113.{10 + len(self._logs) % 80}")
        plan = self.plan
        if (
            plan.strike
            and plan.boundary is None
            and not self._ended
            and not self.result.struck
            and plan.job == self._label
        ):
            seconds = plan.fraction * self._times.get(plan.job, 3.0)
            asyncio.get_running_loop().create_task(self._strike_later(seconds, self._label))

    async def _strike_later(self, seconds: float, label: str) -> None:
        await asyncio.sleep(seconds)
        if self._label != label or self._ended or self.result.struck:
            return
        victims = await asyncio.to_thread(self._victims)
        if self._label == label and not self.result.struck:
            self._strike(victims)

    # Strikes

    def _strike(self, victims: list[psutil.Process]) -> None:
        plan, player = self.plan, self._player
        outcome = player.outcomes[self._job]
        if outcome.status != "running":
            return
        self.result.struck = True
        self._look_for_weights()
        match plan.strike:
            case "cancel job":
                player.cancel_job(self._job)
            case "force cancel":
                player.cancel_job(self._job, force=True)
            case "cancel pipeline":
                player.cancel_pipeline()
            case "job timeout" | "script timeout":
                player.reach(plan.strike, self._job)
            case "lose runner":
                player.kill_runner()
            case "stop runner":
                player.stop_runner()
            case "lose cloud, reset" | "lose cloud, silence":
                self._lose("compute.request", plan.strike.rpartition(" ")[2])
            case "lose gitlab, reset" | "lose gitlab, silence":
                self._lose("gitlab.request", {"reset": "down"}.get(word := plan.strike.rpartition(" ")[2], word))
            case "lose vm, reset" | "lose vm, silence":
                self._world.network.change(dropped=plan.strike.rpartition(" ")[2])
                asyncio.get_running_loop().call_later(plan.seconds, self._world.network.change)
            case _:
                self.result.struck = bool(victims)
                for victim in victims:
                    with contextlib.suppress(psutil.Error):
                        victim.send_signal(KILLS[plan.strike][1])

    def _lose(self, point: str, action: str) -> None:
        self._world.faults.rules.append(Rule(point, action))
        asyncio.get_running_loop().call_later(self.plan.seconds, self._world.faults.lift, point)

    # Promises

    def _break(self, what: str) -> None:
        self.result.broken.append(what)

    def _check_promise_of_the_pipeline(self, left: str) -> None:
        """Whatever ended well as the last word has left nothing."""
        outcomes = self._player.outcomes
        last = "train" if self._again else "destroy"
        if outcomes[last].status == "success" and left:
            self._break(f"{last} ended well as the pipeline's last job, and left {left}")

    async def _judge(self) -> None:
        left = await self._read_back()
        if left:
            self._break(f"after all layers there is still {left}")
        self._judge_commands()
        self._judge_records()
        # What has not come home by its hard end goes with it.
        if self._written and not self._expired and not self._weights_are_home():
            self._break("weights that had been written are nowhere")
        for name, data in self._logs.items():
            if b"Traceback" in data or b"glgpu: BUG" in data:
                self._break(f"{name} shows a traceback")

    def _judge_commands(self) -> None:
        """Each command ended by itself, with a documented exit code, unless it or its job was ended."""
        notes = [json.loads(line) for line in self._notes.read_text().splitlines()]
        began = Counter(note["pid"] for note in notes if "began" in note)
        ended = {note["pid"]: note for note in notes if "ended" in note}
        excused = {"kill glgpu": 1, "kill both": 1}.get(self.plan.strike, 0) if self.result.struck else 0
        if self.result.struck and self.plan.strike in ENDS_JOB:
            excused = 2  # the command and, after a second limit, its after_script's
        unfinished = [pid for pid in began if pid not in ended] if not self.plan.cold else []
        killed = [note for note in ended.values() if note["code"] < 0]
        if len(unfinished) + len(killed) > excused:
            self._break(f"commands did not end by themselves: {len(unfinished)} vanished, {killed}")
        for note in ended.values():
            if note["code"] >= 0 and (note["code"] not in EXIT_MEANINGS or note["code"] == 1):
                self._break(f"glgpu {' '.join(note['ended'])} ended with {note['code']}")
        if self.plan.cold:
            for name, outcome in self._player.outcomes.items():
                code = outcome.exit_code
                if code is not None and code not in EXIT_MEANINGS and not (excused and code > 128):
                    self._break(f"{name} ended with {code}")

    def _judge_records(self) -> None:
        for name, data in self._handed_over("glgpu/run.json"):
            try:
                Record.model_validate_json(data)
            except ValueError as error:
                self._break(f"{name} is torn: {error}")

    def _weights_are_home(self) -> bool:
        return any(data == WEIGHTS for _, data in self._handed_over("weights/w.bin"))

    def _handed_over(self, ending: str) -> Iterator[tuple[str, bytes]]:
        """The files of that name in every archive that was handed over, and in the build folders."""
        for player in self._players:
            for name, outcome in player.outcomes.items():
                for attempt in [one for one in outcome.attempts if one.artifacts is not None]:
                    with zipfile.ZipFile(attempt.artifacts) as archive:
                        for entry in archive.namelist():
                            if entry.endswith(ending):
                                yield f"{entry} of {name}", archive.read(entry)
            for path in (player.folder / "builds").rglob(f"outputs/**/{ending}"):
                yield str(path), path.read_bytes()

    # What there is

    def _see_weights(self, reached: Reached) -> None:
        """A teardown asks what is home: what is written by then must come home."""
        if reached.to == "vm" and " is-home " in reached.target:
            self._look_for_weights()

    def _look_for_weights(self) -> None:
        for path in self._world.machines.folder.glob("*/home/glgpu/glgpu/code/weights/w.bin"):
            with contextlib.suppress(OSError):
                self._written = self._written or path.stat().st_size == len(WEIGHTS)

    def _instances(self) -> list[Any]:
        return [one for zone in ZONES for one in self._world.compute.instances.resources(zone)]

    def _inserts(self) -> list[Any]:
        found = [one for zone in ZONES for one in self._world.compute.operations.in_scope(f"zones/{zone}")]
        return [one for one in found if one["operationType"] == "insert" and one["status"] != "DONE"]

    async def _left(self, by: str) -> str:
        found = await self._read_back()
        if found:
            self.result.left.append(f"{by}: {found}")
        return found

    async def _read_back(self) -> str:
        """What is left, once no VM can come any more: what nobody sees yet is left all the same."""
        async with asyncio.timeout(GONE_SECONDS):
            while any(self._inserts()):
                await asyncio.sleep(0.02)
        found = await asyncio.to_thread(read_back, self._world, self._adopted)
        return ", ".join(f"{kind} {' '.join(names)}" for kind, names in found.items() if names)

    def _note_times(self) -> None:
        for name, outcome in self._player.outcomes.items():
            for number, attempt in enumerate(outcome.attempts):
                label = AGAIN if name == "train" and self._again and number == len(outcome.attempts) - 1 else name
                self.result.times[label] = attempt.seconds

    def _hear(self, job: Job, data: bytes) -> None:
        outcome = next(one for player in reversed(self._players) for one in player.outcomes.values() if one.job is job)
        name = f"{outcome.last.entry.id} {job.name}"
        self._logs[name] = self._logs.get(name, b"") + data


def caller_of(port: int) -> int:
    """The process at the other end of a connection; 0 where there is none any more."""
    if not port:
        return 0
    with contextlib.suppress(psutil.Error):
        for end in psutil.net_connections("tcp4"):
            if end.laddr and end.laddr[1] == port and end.pid:
                return int(end.pid)
    return 0


def story_of(log: str) -> str:
    """A log without its colours."""
    return re.sub(r"\x1b\[[0-9;]*[mK]", "", log)
