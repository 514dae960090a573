"""What is alive, for whom, since when, at what cost, and what will end it."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from fakes import ZONE, Stage, refusal
from glgpu.console import Console
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import ForgeEnvironment, Instance
from glgpu.leftovers import Outlook, Vm, ends_of
from glgpu.masking import Masker
from glgpu.run_names import RunName, read_name, server_hash
from glgpu.stages.status import status
from glgpu.steps.context import SETTINGS_ITEM, left_settings

SERVER = "https://gitlab.example.com"
NOW, HOUR = 1_763_900_000.0, 3600.0


def rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def vm(run: str = "1001", *, until: str = "pipeline", soft: float = HOUR, **facts: Any) -> Vm:
    name = str(RunName(SERVER, 42, run))
    read = read_name(name)
    assert read is not None
    labels = {**read.own_labels, "glgpu-until": until, "glgpu-expires": f"{NOW + soft:.0f}"}
    whole = {"created": NOW - HOUR, "max_run": 2 * HOUR, "hard_end": NOW + HOUR, **facts}
    return Vm(name, ZONE, read, labels=labels, **whole)


def ends(one: Vm, pipeline: str | None, jobs: dict[str, str], auto_stop: float | None = None) -> list[str]:
    outlook = Outlook(server_hash(SERVER), NOW, {(42, 1001): pipeline})
    told = ends_of(one, outlook, jobs, auto_stop)
    return [end.by if end.at is None else f"{end.by} {end.at - NOW:.0f}" for end in told]


@pytest.mark.parametrize("name", ["gpu-destroy", "destroy: [2]"])
def test_a_claimed_vm_ends_with_its_destroy_job_and_at_last_by_google(name: str) -> None:
    jobs = {"train": "running", name: "created", "stop": "manual"}
    assert ends(vm(), "running", jobs) == [
        f"the job {name} of its pipeline (created)", "Google, at its hard end 3600",
    ]  # fmt: skip


def test_an_unclaimed_one_powers_itself_off_before() -> None:
    assert ends(vm(soft=600.0), "running", {"destroy": "created"}) == [
        "the job destroy of its pipeline (created)", "its own power-off, unless a job claims it 600",
        "Google, at its hard end 3600",
    ]  # fmt: skip


def test_what_is_over_ends_with_the_next_cleanup() -> None:
    assert ends(vm(), "success", {"destroy": "success"}) == [
        "the next cleanup: its pipeline is over (success)", "Google, at its hard end 3600",
    ]  # fmt: skip


def test_a_detached_training_ends_its_vm_itself_and_its_deadline_is_cleanup_s_business() -> None:
    assert ends(vm(until="deadline", soft=1800.0), "success", {}, auto_stop=NOW + 900) == [
        "its own power-off, once its training is over and saved", "its environment's stop job 900",
        "cleanup, at its deadline 1800", "Google, at its hard end 3600",
    ]  # fmt: skip
    assert ends(vm(until="deadline", status="TERMINATED"), "success", {}) == [
        "the next cleanup, which collects what it has saved", "cleanup, at its deadline 3600",
    ]  # fmt: skip


def test_a_vm_that_is_off_has_neither_a_hard_end_nor_a_power_off_before_it() -> None:
    """Compute Engine counts a VM's longest run only while it runs."""
    assert ends(vm(soft=600.0, status="TERMINATED"), "running", {"destroy": "created"}) == [
        "the job destroy of its pipeline (created)"
    ]


def test_a_laptop_s_vm_is_its_starter_s() -> None:
    run = f"u01234567-{NOW:.0f}"
    assert ends(vm(run), None, {})[0] == "whoever started it, with `glgpu destroy`"


@pytest.fixture
def running(stage: Stage) -> Stage:
    """A VM in use, one of another project, one of another GitLab."""
    stage.forge.pipelines[42, 1001] = "running"
    stage.forge.jobs[42, 1001] = {"train": "running", "destroy": "created"}
    now = stage.clock.now()
    stage.forge.environment_list = [ForgeEnvironment(1, "gpu/main", 1001, "provision", "", rfc3339(now + 86400))]
    stage.cloud.insert(stage.vm(created=rfc3339(now - 7200), max_run_seconds=10800))
    item = {SETTINGS_ITEM: left_settings(stage.run, now + 3600, 0.71)}
    labels = {**stage.cloud.vms[stage.name, ZONE].labels, "glgpu-expires": f"{now + 3600:.0f}"}
    stage.cloud.change(stage.name, ZONE, metadata=item, labels=labels)
    other = RunName(SERVER, 7, "5")
    stage.cloud.insert(Instance(str(other), ZONE, "TERMINATED", labels=other.own_labels, created=rfc3339(now - 60)))
    foreign = RunName("https://gitlab.example.org", 42, "1001")
    stage.cloud.insert(Instance(str(foreign), ZONE, "RUNNING", labels=foreign.own_labels, created=rfc3339(now - 60)))
    return stage


def test_people_see_their_own_project_first_and_what_it_costs(running: Stage) -> None:
    status(running.run, running.clock.now)
    rows = [line for line in running.log.splitlines() if line.startswith("VM")]
    assert [row.split()[1] for row in rows] == ["RUNNING", "TERMINATED", "RUNNING"]
    mine, theirs, foreign = rows
    assert "team/model (ada, main)" in mine
    assert "2 h 0 min" in mine
    assert "~1.42" in mine
    assert "the job destroy of its pipeline (created); then Google, at its hard end in 1 h 0 min; then its env" in mine
    assert "project 7" in theirs
    assert "another GitLab" in foreign
    assert "3 VMs in my-dl, about 1.42 USD so far, 2 not known" in running.log
    assert "delete_instance" not in running.cloud.verbs()


def test_programs_see_the_same(running: Stage) -> None:
    heard = io.BytesIO()
    status(running.run, running.clock.now, json_to=Console(Masker(), stream=heard))
    told = json.loads(heard.getvalue())
    mine, _, foreign = told["alive"]
    assert (mine["name"], mine["usd_so_far"], mine["age_seconds"]) == (running.name, 1.42, 7200)
    assert mine["ends"][1] == {"by": "Google, at its hard end", "at": int(running.clock.now()) + 3600}
    assert (mine["other_gitlab"], foreign["other_gitlab"]) == (False, True)


@pytest.mark.parametrize(
    ("told", "seen", "seconds"),
    [
        ({"notebook-used": -20}, "VM, RUNNING, at work", 20),
        ({"notebook-used": -720}, "VM, RUNNING, idle for 12 min", 720),
        ({"notebook-used": 5}, "VM, RUNNING, at work", 0),
        ({"state": "ready"}, "VM, RUNNING ", None),
        ({"notebook-used": "\x1b[31m"}, "VM, RUNNING ", None),
        (None, "VM, RUNNING ", None),
    ],
)
def test_a_notebook_is_told_of_with_how_long_it_has_been_idle(
    stage: Stage, told: dict[str, int | str] | None, seen: str, seconds: int | None
) -> None:
    name, now = RunName(SERVER, 42, "1001", "notebook"), int(stage.clock.now())
    stage.cloud.insert(Instance(str(name), ZONE, "RUNNING", labels=name.own_labels, created=rfc3339(now - 3600)))
    if told is None:
        stage.cloud.refuse["guest_attributes"] = refusal(ErrorClass.PERMISSION)
    else:
        given = {key: str(now + value) if isinstance(value, int) else value for key, value in told.items()}
        stage.cloud.start_up.clear()
        stage.cloud.start_up.update(given)
    status(stage.run, stage.clock.now)
    (row,) = [line for line in stage.log.splitlines() if line.startswith("VM")]
    assert row.startswith(seen)
    heard = io.BytesIO()
    if told is None:
        stage.cloud.refuse["guest_attributes"] = refusal(ErrorClass.PERMISSION)
    status(stage.run, stage.clock.now, json_to=Console(Masker(), stream=heard))
    (one,) = json.loads(heard.getvalue())["alive"]
    assert one["idle_seconds"] == seconds


def test_only_notebooks_are_asked_how_idle_they_are(running: Stage) -> None:
    status(running.run, running.clock.now)
    assert "guest_attributes" not in running.cloud.verbs()


def test_a_disk_without_a_vm_costs_too(stage: Stage) -> None:
    stage.forge.pipelines[42, 1001] = "failed"
    stage.cloud.boot_disks.add((stage.name, ZONE))
    status(stage.run, stage.clock.now)
    assert f"{stage.name} in {ZONE}" in stage.log
    assert "the next cleanup: no VM, and its pipeline is over (failed)" in stage.log


def test_nothing_alive_is_said(stage: Stage) -> None:
    status(stage.run, stage.clock.now)
    assert "nothing of glgpu's is alive in my-dl" in stage.log


def test_a_cloud_that_cannot_be_asked_is_no_nothing(stage: Stage) -> None:
    stage.cloud.refuse["instances_named"] = refusal(ErrorClass.NETWORK)
    with pytest.raises(Failure) as caught:
        status(stage.run, stage.clock.now)
    assert caught.value.exit_code == 18
    assert "nothing of glgpu's" not in stage.log
