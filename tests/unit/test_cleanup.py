"""The whole of a cleanup over fakes: what is gone afterwards, what is told, how it ends."""

from __future__ import annotations

import io
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanup_oracle import MONTHS, Asked, Facts, Machine, doomed
from fakes import ZONE, Stage, make_stage, refusal
from glgpu.console import Console
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import FirewallRule, ForgeEnvironment, Instance
from glgpu.leftovers import OVER
from glgpu.masking import Masker
from glgpu.run_names import RunName
from glgpu.stages.cleanup import cleanup
from glgpu.steps.context import SETTINGS_ITEM, left_settings
from glgpu.steps.survey import unix_time

SERVERS = ("https://gitlab.example.com", "https://gitlab.example.org")
PROJECTS = [*range(30, 50)]
ZONES = [
    f"{region}-{letter}"
    for region in ("europe-west1", "europe-west4", "us-central1", "us-east1", "asia-east1")
    for letter in "abc"
]
STATUSES = ["running", "pending", "created", "canceling", "success", "failed", "canceled", "skipped", "manual", None]
VM_STATUSES = ["RUNNING", "TERMINATED", "STOPPING", "PROVISIONING"]


def rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def put(stage: Stage, runs: list[Facts]) -> None:
    """Let a world of facts stand in the fakes."""
    for run in runs:
        if not run.run.startswith("u") and run.pipeline is not None and run.server == SERVERS[0]:
            stage.forge.pipelines[run.project, int(run.run.split("-")[0])] = run.pipeline
        for machine in run.machines:
            own = RunName(run.server, run.project, run.run, "train" if run.kind == "train" else "notebook").own_labels
            labels = dict(own)
            if machine.foreign_label:
                labels["glgpu-run"] = "99999"
            labels |= {"glgpu-until": machine.until} if machine.until is not None else {}
            labels |= {"glgpu-expires": machine.expires} if machine.expires is not None else {}
            vm = Instance(run.name, machine.zone, machine.status, labels=labels, created=rfc3339(machine.created))
            stage.cloud.insert(vm)
        if run.disk is not None:
            stage.cloud.boot_disks.add((run.name, "orphan"))
            stage.cloud.made[f"disk {run.name}"] = rfc3339(run.disk)
        if run.rules is not None:
            for name in (run.name, f"{run.name}-closed"):
                stage.cloud.rules[name] = FirewallRule(name, "deny", ("0.0.0.0/0",), run.name, 900, "default")
                stage.cloud.made[f"rule {name}"] = rfc3339(run.rules)
        if run.key:
            stage.forge.keys.append((run.name, "ssh-ed25519 K", 0.0))
        if run.state:
            stage.forge.states[run.name] = "held"


def there(stage: Stage) -> set[str]:
    """Everything that there is, as the oracle names it."""
    return {
        *(f"vm {name} {zone}" for name, zone in stage.cloud.vms),
        *(f"disk {name} {zone}" for name, zone in stage.cloud.boot_disks),
        *(f"rule {name}" for name in stage.cloud.rules),
        *(f"key {key[0]}" for key in stage.forge.keys),
        *(f"state {name}" for name in stage.forge.states),
    }


def clean(stage: Stage, **options: Any) -> None:
    cleanup(stage.run, lambda: stage.clock.now(), lambda name: replace(stage.run, name=name), **options)


def small_world(draw: Callable[..., Any], now: float, most: int) -> list[Facts]:
    """Runs of few projects, so that much of what can meet does meet."""
    runs: dict[str, Facts] = {}
    for _ in range(draw(st.integers(most // 3, most))):
        laptop = draw(st.integers(0, 9)) == 0
        begun = now - draw(st.sampled_from([0, 3600, MONTHS - 1, MONTHS, MONTHS + 1]))
        pipeline = draw(st.integers(1, 12))
        run = (
            f"u0123456{pipeline % 10}-{begun:.0f}"
            if laptop
            else draw(st.sampled_from([f"{pipeline}", f"{pipeline}-{pipeline}"]))
        )
        facts = Facts(
            draw(st.sampled_from([SERVERS[0], *SERVERS, SERVERS[0]])), draw(st.sampled_from(PROJECTS[10:14])), run,
            draw(st.sampled_from(["train", "notebook"])), draw(st.sampled_from(STATUSES)),
        )  # fmt: skip
        ends = [*(f"{now + later:.0f}" for later in (1, 0, -5, 9000)), "", "soon", None]
        ages = [0, 60, 7200, MONTHS, MONTHS + 60]
        zones = draw(st.lists(st.sampled_from(ZONES[:3]), max_size=2, unique=True))
        facts.machines = [
            Machine(
                zone, draw(st.sampled_from(VM_STATUSES)), now - draw(st.sampled_from(ages)),
                draw(st.sampled_from(["pipeline", "deadline", "", None])),
                draw(st.sampled_from(ends)),
                draw(st.integers(0, 19)) == 0,
            )
            for zone in zones
        ]  # fmt: skip
        births = st.sampled_from([None, None, now - 60, now - 7200, now - MONTHS])
        facts.disk, facts.rules = draw(births), draw(births)
        # Deploy keys and states are seen in our own project, whoever's names they bear.
        facts.key, facts.state = draw(st.booleans()), draw(st.booleans())
        runs.setdefault(facts.name, facts)
    # A pipeline has one status, whatever runs and kinds it has.
    known: dict[tuple[str, int, str], str | None] = {}
    for facts in runs.values():
        facts.pipeline = known.setdefault((facts.server, facts.project, facts.run.split("-")[0]), facts.pipeline)
    return list(runs.values())


def thousand(seed: int, now: float) -> list[Facts]:
    """1,000 VMs of 20 projects on two GitLab servers in 15 zones, most of them orphans, with what hangs on them."""
    pick = random.Random(seed)
    runs = []
    for number in range(1000):
        over = pick.random() < 0.8
        machine = Machine(
            ZONES[number % 15], pick.choice(VM_STATUSES), now - pick.uniform(60, 1e6),
            pick.choice(["pipeline", "pipeline", "deadline"]), f"{now + pick.uniform(-90000, 90000):.0f}",
        )  # fmt: skip
        runs.append(
            Facts(
                SERVERS[number % 2],
                PROJECTS[number // 2 % 20],
                str(1000 + number),
                pick.choice(["train", "notebook"]),
                pick.choice(["success", "failed", "canceled"] if over else ["running", "pending", None]),
                [machine],
                rules=now - 60 if pick.random() < 0.5 else None,
                key=pick.random() < 0.2,
                state=pick.random() < 0.2,
            )
        )
    return runs


def check(runs: list[Facts], visible: list[int] | None, older_than: float) -> None:
    """A cleanup of this world leaves exactly what the oracle leaves."""
    with tempfile.TemporaryDirectory() as folder:
        stage = make_stage(Path(folder))
        stage.forge.may_administer = visible is not None
        stage.forge.visible = None if visible is None else set(visible)
        put(stage, runs)
        before, now = there(stage), stage.clock.now()
        clean(stage, older_than=older_than)
        wanted = doomed(runs, Asked(SERVERS[0], 42, now, visible, older_than))
        gone = before - there(stage)
        assert gone == wanted, (sorted(gone - wanted), sorted(wanted - gone), stage.log[-3000:])
        # To save the outputs of a VM that is past its end, its door was opened; while its pipeline runs, the closed
        # rules stay for the retry that may be at work.
        running = {run.name for run in runs if run.project == 42 and run.pipeline not in OVER}
        assert there(stage) - before <= {f"rule {name}{end}" for name in running for end in ("", "-closed")}
        clean(stage, dry_run=True)


@settings(max_examples=60)
@given(data=st.data())
def test_exactly_what_should_go_goes(data: st.DataObject) -> None:
    now = 1_763_900_000.0
    visible = data.draw(st.sampled_from([PROJECTS, PROJECTS, [42], PROJECTS, [], None]))
    check(small_world(data.draw, now, 24), visible, data.draw(st.sampled_from([0.0, 0.0, 3600.0])))


@pytest.mark.parametrize("seed", range(3))
def test_of_a_thousand_vms_of_twenty_projects_on_two_servers_the_right_ones_go(seed: int) -> None:
    runs = thousand(seed, 1_763_900_000.0)
    assert len({(run.server, run.project) for run in runs}) == 40
    assert len({machine.zone for run in runs for machine in run.machines}) == 15
    check(runs, [[42], PROJECTS, None][seed], 0.0)


@pytest.fixture
def orphan(stage: Stage) -> Stage:
    """A run that is over, with everything that a run can leave; its VM was stopped."""
    stage.forge.pipelines[42, 1001] = "canceled"
    stage.cloud.insert(stage.vm(status="TERMINATED", created=rfc3339(stage.clock.now() - 7200)))
    for name in (stage.name, f"{stage.name}-closed"):
        stage.cloud.rules[name] = FirewallRule(name, "deny", ("0.0.0.0/0",), name, 900, "default")
    stage.forge.keys = [(stage.name, "ssh-ed25519 K", 0.0), ("somebody else's", "ssh-ed25519 L", 0.0)]
    stage.forge.states[stage.name] = "held"
    stage.forge.environment_list = [ForgeEnvironment(7, "gpu/main", 1001, "gpu-provision", "", "")]
    return stage


def ending(stage: Stage, **options: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        clean(stage, **options)
    return caught.value


@pytest.mark.parametrize("provision", ["gpu-provision", "provision: [2]"])
def test_everything_of_a_run_that_is_over_goes(orphan: Stage, provision: str) -> None:
    orphan.forge.environment_list = [replace(orphan.forge.environment_list[0], job=provision)]
    clean(orphan)
    assert there(orphan) == {"key somebody else's"}
    assert orphan.forge.environment_list == []
    assert "removed: its pipeline is over (canceled)" in orphan.log
    assert "6 of 6 that were to go are gone" in orphan.log
    (event,) = [one for one in orphan.run.record.events if one.what == "cleaned-up"]
    assert f"VM {orphan.name}" in event.facts["removed"]


def test_a_dry_run_tells_and_changes_nothing(orphan: Stage) -> None:
    before = there(orphan)
    clean(orphan, dry_run=True)
    assert there(orphan) == before
    assert "would go: its pipeline is over (canceled)" in orphan.log
    assert "6 of 6 would go; nothing was changed" in orphan.log
    changes = [
        verb for verb in orphan.cloud.verbs() + orphan.forge.verbs() if verb.startswith(("delete", "stop", "remove"))
    ]
    assert changes == []


def test_the_same_is_told_to_programs(orphan: Stage) -> None:
    heard = io.BytesIO()
    clean(orphan, json_to=Console(Masker(), stream=heard), dry_run=True)
    told = json.loads(heard.getvalue())
    vm = next(item for item in told["items"] if item["what"] == "VM")
    assert (told["dry_run"], told["google_project"], told["notes"]) == (True, "my-dl", [])
    assert (vm["name"], vm["status"], vm["project"], vm["run"]) == (orphan.name, "TERMINATED", 42, "1001")
    assert (vm["user"], vm["ref"], vm["age_seconds"]) == ("ada", "main", 7200)
    assert (vm["goes"], vm["removed"], vm["problem"]) == (True, False, "")


def test_what_it_has_cost_so_far_is_told(orphan: Stage) -> None:
    end = orphan.clock.now() + 3600
    item = {SETTINGS_ITEM: left_settings(orphan.run, end, 0.71)}
    orphan.cloud.change(orphan.name, ZONE, metadata=item)
    clean(orphan, dry_run=True)
    (row,) = [line for line in orphan.log.splitlines() if line.startswith("VM, TERMINATED")]
    assert "team/model (ada, main)" in row
    assert "2 h 0 min" in row
    assert "~1.42" in row


def test_a_refusal_is_31_and_stops_nothing_else(orphan: Stage) -> None:
    orphan.cloud.insert(Instance("glgpu-000000-1-2-train", ZONE, "RUNNING", labels={"glgpu": "managed"}))
    orphan.cloud.refuse["delete_rule"] = refusal(ErrorClass.PERMISSION, "no compute.firewalls.delete")
    failure = ending(orphan)
    assert (failure.klass, failure.exit_code) == (ErrorClass.LEFT_BEHIND, 31)
    assert "no compute.firewalls.delete" in failure.cause
    assert there(orphan) == {
        f"rule {orphan.name}", f"rule {orphan.name}-closed", "key somebody else's",
        f"vm glgpu-000000-1-2-train {ZONE}", f"disk glgpu-000000-1-2-train {ZONE}",
    }  # fmt: skip
    assert "1 things of other GitLab servers: never touched" in orphan.log


def test_a_vm_that_cannot_be_deleted_keeps_what_hangs_on_it(orphan: Stage) -> None:
    before = there(orphan)
    orphan.cloud.refuse["delete_instance"] = refusal(ErrorClass.PERMISSION, "no compute.instances.delete")
    failure = ending(orphan)
    assert failure.exit_code == 31
    assert f"gcloud compute instances delete {orphan.name} --zone {ZONE} --project my-dl" in failure.remedy
    assert there(orphan) == before
    assert "its VM is still there" in orphan.log


def test_a_vm_that_says_yes_and_stays_is_31(orphan: Stage) -> None:
    orphan.cloud.stubborn = True
    failure = ending(orphan)
    assert failure.exit_code == 31
    assert "asked to go" in failure.cause
    assert sum(orphan.clock.slept) >= 300


def test_what_was_refused_for_the_moment_is_asked_once_more(orphan: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    orphan.cloud.refuse["delete_instance"] = refusal(ErrorClass.RATE_LIMIT)
    real, asked = orphan.cloud.visit, list[str]()

    def visit(verb: str, *facts: Any) -> None:
        asked.append(verb)
        if asked.count("delete_instance") == 2:
            orphan.cloud.refuse.pop("delete_instance", None)
        real(verb, *facts)

    monkeypatch.setattr(orphan.cloud, "visit", visit)
    clean(orphan)
    assert asked.count("delete_instance") == 2


def test_a_vm_that_was_claimed_meanwhile_stays_with_all_that_hangs_on_it(orphan: Stage) -> None:
    """A retried job claims the VM, and its pipeline runs again, after we looked."""
    before = there(orphan)

    def claim() -> None:
        orphan.forge.pipelines[42, 1001] = "running"

    orphan.cloud.before["get"] = claim
    clean(orphan)
    assert there(orphan) == before
    assert "stays: its pipeline is running" in orphan.log


def test_a_deadline_that_was_moved_meanwhile_counts(orphan: Stage) -> None:
    before, now = there(orphan), orphan.clock.now()
    vm = orphan.cloud.vms[orphan.name, ZONE]
    labels = {**vm.labels, "glgpu-until": "deadline", "glgpu-expires": f"{now - 5:.0f}"}
    orphan.cloud.change(orphan.name, ZONE, labels=labels)
    later = {**labels, "glgpu-expires": f"{now + 3600:.0f}"}
    orphan.cloud.before["get"] = lambda: orphan.cloud.change(orphan.name, ZONE, labels=later)
    clean(orphan)
    assert f"vm {orphan.name} {ZONE}" in there(orphan)
    assert there(orphan) == before


def test_a_vm_that_came_up_meanwhile_keeps_what_hangs_on_it(orphan: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = orphan.cloud.vms.pop((orphan.name, ZONE))
    orphan.cloud.boot_disks.clear()
    before = there(orphan)
    looks = iter(range(9))
    real = orphan.cloud.instances_named

    def named(prefix: str) -> list[Instance]:
        return real(prefix) if next(looks) == 0 else [vm]

    monkeypatch.setattr(orphan.cloud, "instances_named", named)
    clean(orphan)
    assert there(orphan) == before


@pytest.mark.parametrize("why", ["no token", "401", "404", "away"])
def test_a_gitlab_that_cannot_be_asked_leaves_what_is_not_past_its_end_and_that_is_said(
    orphan: Stage, why: str
) -> None:
    before = there(orphan)
    if why == "no token":
        orphan.forge.may_administer = False
    elif why == "404":
        orphan.forge.visible = set()
    else:
        klass = ErrorClass.GITLAB_AUTH if why == "401" else ErrorClass.NETWORK
        for verb in ("sees_project", "pipeline_status", "deploy_keys", "all_states", "environments"):
            orphan.forge.refuse[verb] = refusal(klass, f"GitLab answers {why}")
    clean(orphan)
    assert there(orphan) == before
    said = {"no token": "GLGPU_GITLAB_TOKEN is not set", "404": "no project 42"}.get(why, f"GitLab answers {why}")
    assert sum(said in line for line in orphan.log.splitlines()) == 1
    orphan.clock.time += 7200
    clean(orphan)
    assert f"vm {orphan.name} {ZONE}" not in there(orphan)


def test_a_cloud_that_cannot_be_asked_is_no_success(orphan: Stage) -> None:
    orphan.cloud.refuse["instances_named"] = refusal(ErrorClass.NETWORK)
    assert ending(orphan).exit_code == 18


def test_a_list_that_is_refused_hides_its_things_and_is_no_success(orphan: Stage) -> None:
    orphan.cloud.refuse["rules_named"] = refusal(ErrorClass.PERMISSION, "no compute.firewalls.list")
    assert ending(orphan).exit_code == 15
    assert there(orphan) == {f"rule {orphan.name}", f"rule {orphan.name}-closed", "key somebody else's"}
    assert "no compute.firewalls.list: none of them goes" in orphan.log


def test_what_is_not_home_comes_home_first(orphan: Stage) -> None:
    orphan.cloud.change(orphan.name, ZONE, status="RUNNING")
    orphan.machine.container = {"Running": False, "ExitCode": 0, "OOMKilled": False}
    clean(orphan)
    assert (orphan.run.outputs / "weights/w.bin").read_bytes() == b"w" * 100
    assert there(orphan) == {"key somebody else's"}


def test_a_vm_that_cannot_be_reached_goes_all_the_same(orphan: Stage) -> None:
    orphan.cloud.change(orphan.name, ZONE, status="RUNNING")
    orphan.machine.reachable = False
    clean(orphan)
    assert there(orphan) == {"key somebody else's"}
    assert "saving the outputs" in orphan.log or "not all of it was saved" in orphan.log


def test_the_door_that_was_opened_to_save_is_removed_with_the_rest(orphan: Stage) -> None:
    orphan.cloud.change(orphan.name, ZONE, status="RUNNING")
    orphan.cloud.rules.clear()
    clean(orphan)
    assert "create_rule" in orphan.cloud.verbs()
    assert orphan.cloud.rules == {}


def test_a_late_twin_goes_without_disturbing_the_vm_that_is_in_use(orphan: Stage) -> None:
    """Saving ends the training on every VM of a run: the one that stays is not to be touched."""
    now, used = orphan.clock.now(), f"{ZONE[:-1]}b"
    orphan.forge.pipelines[42, 1001] = "running"
    vm = orphan.cloud.vms[orphan.name, ZONE]
    late = {**vm.labels, "glgpu-expires": f"{now - 5:.0f}"}
    orphan.cloud.change(orphan.name, ZONE, status="RUNNING", labels=late)
    orphan.cloud.insert(replace(orphan.cloud.vms[orphan.name, ZONE], zone=used, labels=vm.labels))
    orphan.machine.container = {"Running": True, "ExitCode": 0, "OOMKilled": False}
    clean(orphan)
    assert list(orphan.cloud.vms) == [(orphan.name, used)]
    assert orphan.machine.calls == []


def test_what_there_was_no_time_to_save_is_left_to_the_next_cleanup(orphan: Stage) -> None:
    orphan.cloud.change(orphan.name, ZONE, status="RUNNING")
    orphan.job(script_timeout=60.0)
    failure = ending(orphan)
    assert failure.exit_code == 31
    assert "no time was left to save its outputs" in failure.cause
    assert f"vm {orphan.name} {ZONE}" in there(orphan)


def test_a_state_in_a_bucket_that_the_vm_names_goes_with_it(orphan: Stage) -> None:
    orphan.set(storage={"bucket": "our-states"})
    item = {SETTINGS_ITEM: left_settings(orphan.run, orphan.clock.now() + 3600)}
    orphan.cloud.change(orphan.name, ZONE, metadata=item)
    orphan.set(storage={"bucket": None})
    orphan.run.bucket_for("our-states").state_writable(orphan.name)
    clean(orphan)
    assert orphan.buckets["our-states"].states == {}


def test_a_disk_that_outlives_its_vm_goes_too(orphan: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = (orphan.name, ZONE)
    real = orphan.cloud.delete_instance

    def delete(name: str, zone: str) -> None:
        real(name, zone)
        orphan.cloud.boot_disks.add(disk)

    monkeypatch.setattr(orphan.cloud, "delete_instance", delete)
    clean(orphan)
    assert disk not in orphan.cloud.boot_disks


def test_what_only_looks_like_ours_is_left_alone(orphan: Stage) -> None:
    orphan.cloud.insert(Instance("glgpu-of-somebody", ZONE, "RUNNING", labels={"glgpu": "managed"}))
    orphan.cloud.boot_disks.add(("glgpu-data", ZONE))
    clean(orphan)
    assert ("glgpu-of-somebody", ZONE) in orphan.cloud.vms
    assert ("glgpu-data", ZONE) in orphan.cloud.boot_disks
    assert "labelled glgpu=managed, but of no run's name" in orphan.log


def test_times_are_read_as_google_writes_them() -> None:
    assert unix_time("2026-11-23T00:00:00.000-08:00") == 1795420800.0
    assert unix_time("") is None


def test_a_whole_sweep_asks_the_cloud_no_more_than_it_must(orphan: Stage) -> None:
    clean(orphan)
    lists = [verb for verb in orphan.cloud.verbs() if verb.endswith("_named")]
    assert len(lists) <= 8, "none of the lists is asked for once a run"
