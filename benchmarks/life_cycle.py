"""A whole run (VM, code, image, live log, weights, teardown) against rival.sh, on the same stand-ins.

The rival is what a shell script can do: one job, curl against the Compute API, one SSH connection. A variant of it lets
the VM pull the image as it boots. Both rivals and glgpu's three jobs are played by the same player of jobs. Time counts
from the first job's script; a VM is billed from the moment it runs to the moment it is gone.
"""

from __future__ import annotations

import io
import json
import secrets
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from results import Line, medians, seconds

from glgpu.clients.terraform_program import terraform_program
from glgpu.console import Console
from glgpu.masking import Masker
from glgpu.rehearsal.ci_yaml import Job
from glgpu.rehearsal.command import Rehearsal
from glgpu.rehearsal.faults import Faults, Rule
from glgpu.rehearsal.gitlab_model import Variable
from glgpu.rehearsal.job_run import PlayedRunner
from glgpu.rehearsal.job_turn import Outcome
from glgpu.rehearsal.world import GOOGLE_PROJECT, Adopted, World
from rehearsing import repository

RIVAL = Path(__file__).with_name("rival.sh")
BOOT, DRIVER, PULL, DELETE, JOB_START, TRAINING = 40.0, 20.0, 90.0, 30.0, 20.0, 10.0
"""Seconds of the realistic latencies, and of the training in them."""
OVERHEAD = 5.0
"""Seconds for which a VM may be billed beyond what cannot overlap."""
ROUNDS = 3
APART = 9.0
"""Seconds between the beginnings of runs that are played at the same time, so that each has the processor to itself."""
SCRIPT_BEGINS, FIRST_LINE = b'Executing "step_script"', b"the first line"
TRAIN = """\
import os, pathlib, time
print("the first line", flush=True)
time.sleep(float("{seconds}"))
pathlib.Path("weights").mkdir()
pathlib.Path("weights/w.bin").write_bytes(os.urandom(1 << 20))
"""
IMAGE = "registry.example.com/team/train:1"
SCRIPT_PIPELINE = """\
train:
  variables: {{PULL: "{pull}"}}
  script: ["./rival.sh {name} {image} 'python train.py' {zones}"]
  artifacts: {{paths: [weights/]}}
"""
FOUNDATIONS = f"""{sys.executable} -c '
from glgpu.clients.compute_library import lighten
lighten()
from google.cloud.compute_v1 import InstancesClient, Instance'"""
"""A job that has ready what glgpu asks for instances with."""
GLGPU, SCRIPT, SCRIPT_AT_BOOT = "glgpu", "rival.sh", "rival.sh, pulling at boot"


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        first_line: Seconds to the first line of the training's log.
        whole: Seconds in all.
        billed: Seconds for which its VM ran.
        inserts: When a VM was asked for.
        trains: When the training's first line was heard, once for each VM.
    """

    first_line: float
    whole: float
    billed: float
    inserts: list[float]
    trains: list[float]


def play(
    who: str,
    rules: list[Rule],
    *,
    zones: Sequence[str] = ("europe-west4-a",),
    job_start: float = 0.0,
    training: float = 0.0,
    latency: float = 0.0,
    preempted: bool = False,
) -> Run:
    """Play one run in a world of its own, and check that its weights are home and that nothing is left.

    Args:
        who: Whose.
        rules: What takes its time, or goes wrong.
        zones: Where a VM may be, in this order.
        job_start: Seconds that each job's executor takes to get ready.
        training: Seconds that the training takes.
        latency: Seconds that each operation of Compute Engine takes; 0: nothing takes longer than it must.
        preempted: Whether the VM is taken away when the training has begun.
    """
    world = World(Faults(rules), lambda _: None, latency=latency)
    with tempfile.TemporaryDirectory() as folder:
        try:
            world.start(None)
            if not latency:
                world.machines.boot_seconds = world.machines.agent_seconds = 0.02
            return _played(world, Path(folder), who, zones, job_start, training, preempted=preempted)
        finally:
            world.stop()


def _played(
    world: World, folder: Path, who: str, zones: Sequence[str], job_start: float, training: float, *, preempted: bool
) -> Run:
    files = {"train.py": TRAIN.format(seconds=training)}
    if who != GLGPU:
        pull = "boot" if who == SCRIPT_AT_BOOT else ""
        files[".gitlab-ci.yml"] = SCRIPT_PIPELINE.format(
            name=f"rival-{secrets.token_hex(4)}", pull=pull, image=IMAGE, zones=" ".join(zones)
        )
        files["rival.sh"] = RIVAL.read_text()
        _let_in(world)
    made = repository(folder / "repository", files)
    if who != GLGPU:
        (made / "rival.sh").chmod(0o755)
    variables = [Variable("GLGPU_MACHINE_ZONES", ",".join(zones))]
    instances = world.compute.instances
    adopted = world.adopt(made, keep_pipeline=True, variables=variables)
    trains: list[float] = []

    def hear(log: bytearray) -> None:
        if log.count(FIRST_LINE) > len(trains):
            trains.append(time.time())
            for instance in instances.spot_running() if preempted and len(trains) == 1 else []:
                instances.preempt(instance)

    rehearsal, heard = _pipeline(world, adopted, job_start, hear)
    outcomes, log = heard.outcomes, heard.log
    failed = [name for name, outcome in outcomes.items() if outcome.status not in ("success", "manual")]
    left = {kind: names for kind, names in rehearsal.read_back().items() if names}
    left.pop("firewall rules", None) if who != GLGPU else None
    archive = outcomes["train"].last.artifacts
    if failed or left or archive is None or archive.stat().st_size < 1 << 20:
        raise RuntimeError(f"{who}: failed: {failed}, left: {left}\n{log.decode(errors='replace')[-5000:]}")
    calls = world.calls.lines()
    at = {one["verb"]: one["at"] for one in calls if one["to"] == "vm"}
    inserts = [one["at"] for one in calls if one["verb"] == "POST" and one["target"].endswith("/instances")]
    return Run(trains[0] - heard.begun, heard.end - heard.begun, at["power-off"] - at["boot"], inserts, trains)


@dataclass(frozen=True)
class Heard:
    """A pipeline that was played.

    Attributes:
        begun: When its first job's script began.
        end: When its last job had ended.
        outcomes: How the jobs ended, by name.
        log: What they printed.
    """

    begun: float
    end: float
    outcomes: Mapping[str, Outcome]
    log: bytearray


def _pipeline(
    world: World, adopted: Adopted, job_start: float, more: Callable[[bytearray], None]
) -> tuple[Rehearsal, Heard]:
    """Play the pipeline of a push; ``more`` is called whenever there is more of the log."""
    runner = PlayedRunner(world.folder / "runner", world.job_path(), prepare_seconds=job_start)
    rehearsal = Rehearsal(Console(Masker(), stream=io.BytesIO()), world, adopted, runner=runner)
    begins: list[float] = []
    log = bytearray()

    def hear(_job: Job, data: bytes) -> None:
        log.extend(data)
        if not begins and SCRIPT_BEGINS in log:
            begins.append(time.time())
        more(log)

    rehearsal.player.on_output = hear
    try:
        outcomes = world.call(rehearsal.player.play())
        end = time.time()
    finally:
        world.call(rehearsal.player.close())
    return rehearsal, Heard(begins[0], end, outcomes, log)


def _let_in(world: World) -> None:
    """A rule that lets the rival in, as the network `default` has one: there for port 22, which its VMs share here."""
    rule = {"name": "rival", "allowed": [{"IPProtocol": "tcp"}], "sourceRanges": ["0.0.0.0/0"]}
    request = urllib.request.Request(
        f"{world.compute.endpoint}/compute/v1/projects/{GOOGLE_PROJECT}/global/firewalls",
        json.dumps(rule).encode(),
        {"Authorization": f"Bearer {world.google_token}"},
    )
    urllib.request.urlopen(request).close()


def measure(scale: float) -> list[Line]:
    """Both without latencies, in turns; then all three with realistic ones."""
    return [*without_latencies(), *with_latencies(scale)]


def without_latencies() -> list[Line]:
    """What glgpu itself takes, and what of it the least is that its foundations take."""
    runs: dict[str, list[Run]] = {GLGPU: [], SCRIPT: []}

    def once(who: str) -> float:
        runs[who].append(play(who, []))
        print(f"   latency 0: {who}: {runs[who][-1]}", flush=True)
        return runs[who][-1].whole

    medians({who: partial(once, who) for who in runs}, ROUNDS, warm_up=False)
    lines = []
    for what, field in (("to the first log line", "first_line"), ("end to end", "whole")):
        mine, its = (sorted(getattr(run, field) for run in runs[who])[ROUNDS // 2] for who in (GLGPU, SCRIPT))
        lines.append(
            Line(f"latency 0: {what}", SCRIPT, mine - its, f"{mine:.1f} s, {its:.1f} s", "{:+.1f} s", most=2.5)
        )
    more = jobs([FOUNDATIONS] * 3) - jobs(["true"])
    made = terraform()
    what = "of that: three jobs that import Google's library for one; Terraform making and destroying nothing"
    return [*lines, Line(what, "one job", more + made, f"jobs {more:.1f} s, Terraform {made:.1f} s", "{:.1f} s")]


def jobs(scripts: Sequence[str]) -> float:
    """Seconds that jobs take which do nothing else, one after the other, from the first one's script on."""
    pipeline: dict[str, Any] = {"stages": [f"stage {number}" for number, _ in enumerate(scripts)]}
    pipeline |= {f"job {number}": {"stage": f"stage {number}", "script": [one]} for number, one in enumerate(scripts)}
    return medians({"": partial(_jobs, json.dumps(pipeline))}, ROUNDS)[""]


def _jobs(pipeline: str) -> float:
    world = World(Faults([]), lambda _: None, latency=0.0)
    with tempfile.TemporaryDirectory() as folder:
        try:
            world.start(None)
            made = repository(Path(folder) / "repository", {".gitlab-ci.yml": pipeline})
            _, heard = _pipeline(world, world.adopt(made, keep_pipeline=True), 0.0, lambda _: None)
        finally:
            world.stop()
    if any(outcome.status != "success" for outcome in heard.outcomes.values()):
        raise RuntimeError(heard.log.decode(errors="replace"))
    return heard.end - heard.begun


def terraform() -> float:
    """Seconds that Terraform takes to make what is nothing, and to destroy it: of a state that is here."""
    program, _ = terraform_program("")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "main.tf").write_text('resource "terraform_data" "nothing" {}\n')
        verbs = (["init"], ["apply", "-auto-approve"], ["init"], ["destroy", "-auto-approve"])
        return sum(seconds([program, *verb], folder=folder) for verb in verbs)


def with_latencies(scale: float) -> list[Line]:
    """What overlaps, and what a VM is billed for."""
    boot, driver, pull, delete, job_start, training = (
        seconds * scale for seconds in (BOOT, DRIVER, PULL, DELETE, JOB_START, TRAINING)
    )
    rules = [
        Rule("vm.boot", "slow", argument=str(boot)),
        Rule("vm.gpu", "late", argument=str(driver)),
        Rule("vm.docker.pull", "slow", argument=str(pull)),
        Rule("compute.instances.delete", "late", argument=str(delete)),
    ]

    def one(number: int, who: str) -> Run:
        threading.Event().wait(number * APART * scale)
        run = play(who, list(rules), job_start=job_start, training=training, latency=0.3)
        print(f"   latencies: {who}: {run}", flush=True)
        return run

    names = (GLGPU, SCRIPT, SCRIPT_AT_BOOT)
    with ThreadPoolExecutor(len(names)) as together:
        mine, script, at_boot = together.map(one, range(len(names)), names)
    told = f"boot {boot:g} s, driver {driver:g} s, pull {pull:g} s, delete {delete:g} s, a job's start {job_start:g} s"
    lines = [
        Line(
            f"{told}: to the first log line", name, mine.first_line / rival.first_line,
            f"{mine.first_line:.1f} s, {rival.first_line:.1f} s", most=1.0 if rival is script else None,
        )
        for name, rival in ((SCRIPT, script), (SCRIPT_AT_BOOT, at_boot))
    ]  # fmt: skip
    bound = boot + max(driver, pull) + delete + OVERHEAD
    idle = {name: run.billed - training for name, run in zip(names, (mine, script, at_boot), strict=True)}
    figures = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in idle.items())
    what = "the same: seconds billed that did not train"
    lines.append(Line(what, "boot + the longer of driver and pull + delete", idle[GLGPU], figures, "{:.1f} s", bound))
    return lines
