"""The end of a run: saved, removed, proved; every step tried."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fakes import ZONE, Entry, Stage, done, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import FirewallRule, Operation
from glgpu.lifetime import SKEW_SECONDS
from glgpu.run_names import RunName
from glgpu.steps.context import Run
from glgpu.steps.end_vms import MOST_DELETES
from glgpu.steps.rescue import CLOSING_SECONDS, RESCUE_SHARE, rescue
from glgpu.steps.tear_down import WAIT_SHARE, cut_short, tear_down

RAN = {"Running": False, "ExitCode": 0, "OOMKilled": False}
RUNS = {"Running": True, "ExitCode": 0, "OOMKilled": False}


@pytest.fixture
def whole(stage: Stage) -> Stage:
    """A run with everything that a run can have."""
    stage.cloud.insert(stage.vm())
    for name in (stage.name, f"{stage.name}-closed"):
        stage.cloud.rules[name] = FirewallRule(name, "deny", ("0.0.0.0/0",), name, 900, "default")
    stage.forge.keys = [(stage.name, "ssh-ed25519 K", 0.0), ("somebody else's", "ssh-ed25519 L", 0.0)]
    stage.forge.states[stage.name] = "held"
    stage.machine.container = dict(RAN)
    return stage


def left(stage: Stage) -> dict[str, object]:
    everything = {
        "vms": list(stage.cloud.vms), "disks": stage.cloud.boot_disks, "rules": list(stage.cloud.rules),
        "keys": [key for key in stage.forge.keys if key[0] == stage.name], "states": list(stage.forge.states),
    }  # fmt: skip
    return {kind: found for kind, found in everything.items() if found}


def failure_of(stage: Stage) -> Failure:
    with pytest.raises(Failure) as caught:
        tear_down(stage.run)
    return caught.value


def test_nothing_of_the_run_is_left_and_that_is_written_down(whole: Stage) -> None:
    tear_down(whole.run)
    assert left(whole) == {}
    assert [key[0] for key in whole.forge.keys] == ["somebody else's"]
    proof = whole.run.record.find("proof")
    assert proof is not None
    assert proof.facts["left"] == []
    assert proof.facts["found"] == [f"{whole.name} in {ZONE} (RUNNING)"]


def test_destroying_twice_is_as_good_as_once(whole: Stage) -> None:
    tear_down(whole.run)
    tear_down(whole.run)
    assert left(whole) == {}


def test_with_neither_state_nor_record_the_vm_goes(stage: Stage) -> None:
    stage.cloud.insert(stage.vm())
    tear_down(stage.run)
    assert left(stage) == {}
    assert stage.stacks == []


def test_before_provision_there_is_nothing_to_do(stage: Stage) -> None:
    tear_down(stage.run)
    assert "found: no VM" in stage.log


def test_a_vm_without_labels_is_found_by_its_name(stage: Stage) -> None:
    stage.cloud.insert(stage.vm(labels={}))
    tear_down(stage.run)
    assert stage.cloud.vms == {}


def test_a_vm_with_another_name_is_found_by_its_labels(stage: Stage) -> None:
    stage.cloud.insert(stage.vm(name="renamed"))
    tear_down(stage.run)
    assert stage.cloud.vms == {}


def test_a_vm_of_another_run_stays(stage: Stage) -> None:
    other = stage.name.replace("1001", "1002")
    stage.cloud.insert(stage.vm(name=other, labels={**stage.run.name.own_labels, "glgpu-run": "1002"}))
    tear_down(stage.run)
    assert [name for name, _ in stage.cloud.vms] == [other]


def test_a_disk_that_was_left_alone_goes_too(stage: Stage) -> None:
    stage.cloud.boot_disks.add((stage.name, ZONE))
    tear_down(stage.run)
    assert stage.cloud.boot_disks == set()


@pytest.mark.parametrize("verb", ["of_run", "operations", "delete_instance", "disks", "delete_rule"])
def test_every_other_step_is_tried_when_one_of_the_clouds_fails(whole: Stage, verb: str) -> None:
    whole.cloud.refuse[verb] = refusal(ErrorClass.TRANSIENT)
    failure_of(whole)
    tried = set(whole.cloud.verbs())
    assert {"disks", "delete_rule"} <= tried
    assert "remove_deploy_keys" in whole.forge.verbs()
    if verb in ("disks", "delete_rule"):
        assert whole.cloud.vms == {}


@pytest.mark.parametrize("verb", ["state", "remove_deploy_keys", "delete_state"])
def test_without_gitlab_the_cloud_is_cleared_all_the_same(whole: Stage, verb: str) -> None:
    whole.forge.refuse[verb] = refusal(ErrorClass.NETWORK, "GitLab cannot be reached")
    assert failure_of(whole).exit_code == 18
    assert not whole.cloud.vms
    assert not whole.cloud.rules
    what = "the deploy key in GitLab" if verb == "remove_deploy_keys" else "the state in GitLab"
    assert f"left for cleanup: {what}\n" in whole.log
    left_over = whole.run.record.find("left-for-cleanup")
    assert left_over is not None
    assert left_over.facts == {"things": [what]}


def test_a_terraform_that_fails_is_done_without(whole: Stage) -> None:
    whole.refuses["destroy"] = refusal(ErrorClass.STATE_LOCK)
    tear_down(whole.run)
    assert left(whole) == {}
    assert "going on without it" in whole.log


def test_terraforms_word_is_not_taken_for_it(whole: Stage) -> None:
    tear_down(whole.run)
    assert whole.stacks[0].verbs() == ["prepare", "destroy"]
    assert "delete_instance" in whole.cloud.verbs()


def test_a_vm_that_lives_on_is_said_with_a_link_and_a_command(whole: Stage) -> None:
    whole.cloud.stubborn = True
    failure = failure_of(whole)
    assert failure.exit_code == 30
    assert f"zones/{ZONE}/instances/{whole.name}?project=my-dl" in failure.cause
    assert failure.remedy == f"`gcloud compute instances delete {whole.name} --zone {ZONE} --project my-dl`"
    assert whole.forge.states == {whole.name: "held"}


def test_still_alive_counts_before_what_failed_first(whole: Stage) -> None:
    whole.cloud.stubborn = True
    whole.forge.refuse["state"] = refusal(ErrorClass.NETWORK)
    assert failure_of(whole).exit_code == 30


def test_a_delete_that_is_refused_leaves_the_vm_alive(whole: Stage) -> None:
    whole.cloud.refuse["delete_instance"] = refusal(ErrorClass.PERMISSION)
    assert failure_of(whole).exit_code == 30


def test_one_vm_that_is_refused_does_not_save_the_other(whole: Stage) -> None:
    whole.cloud.insert(whole.vm(zone="europe-west1-b"))
    refused = whole.cloud.refuse

    def once() -> None:
        refused["delete_instance"] = refusal(ErrorClass.PERMISSION)
        whole.cloud.before["delete_instance"] = refused.clear

    whole.cloud.before["delete_instance"] = once
    failure_of(whole)
    assert len(whole.cloud.vms) == 1


def test_a_disk_that_stays_is_alive(stage: Stage) -> None:
    stage.cloud.boot_disks.add((stage.name, ZONE))
    stage.cloud.stubborn = True
    failure = failure_of(stage)
    assert failure.exit_code == 30
    assert "gcloud compute disks delete" in failure.remedy


def test_a_cloud_that_cannot_be_asked_proves_nothing(whole: Stage) -> None:
    whole.cloud.refuse["of_run"] = refusal(ErrorClass.API_DISABLED)
    assert failure_of(whole).exit_code == 15
    proof = whole.run.record.find("proof")
    assert proof is not None
    assert proof.facts["left"] == "unknown"


def test_a_signal_does_not_end_the_teardown(whole: Stage) -> None:
    whole.cloud.refuse["delete_rule"] = refusal(ErrorClass.INTERRUPTED)
    assert failure_of(whole).exit_code == 19
    assert whole.cloud.vms == {}


def test_on_a_laptop_without_gitlab_there_is_no_state_to_look_for(whole: Stage) -> None:
    whole.job(server_url="")
    whole.forge.may_administer = False
    tear_down(whole.run)
    assert whole.forge.verbs() == []


# Saving what is not home.


def saved(stage: Stage) -> list[str]:
    return sorted(str(p.relative_to(stage.run.outputs)) for p in stage.run.outputs.rglob("*.bin"))


def test_what_is_not_home_comes_home_checkpoints_too(whole: Stage) -> None:
    whole.machine.files["checkpoints/1.bin"] = Entry(b"c")
    rescue(whole.run)
    assert saved(whole) == ["checkpoints/1.bin", "weights/w.bin"]


def test_what_is_home_is_not_fetched_again(whole: Stage) -> None:
    whole.machine.home = True
    rescue(whole.run)
    assert "send-all" not in whole.machine.verbs()


def test_a_vm_that_trained_nothing_has_nothing_to_save(whole: Stage) -> None:
    whole.machine.container = None
    rescue(whole.run)
    assert "no training was started" in whole.log


def test_a_training_that_still_runs_is_ended_first(whole: Stage) -> None:
    whole.machine.container = dict(RUNS)
    rescue(whole.run)
    assert whole.machine.verbs().index("stop") < whole.machine.verbs().index("send-all")


def test_a_training_that_cannot_be_ended_is_saved_as_it_is(whole: Stage) -> None:
    whole.machine.container = dict(RUNS)
    whole.machine.said["stop"] = done("", 1, "Error response from daemon: tried to kill container")
    rescue(whole.run)
    assert saved(whole) == ["weights/w.bin"]


def test_a_vm_that_lets_nobody_in_holds_up_the_teardown_for_half_a_minute_at_most(whole: Stage) -> None:
    whole.machine.reachable = False
    rescue(whole.run)
    assert sum(whole.clock.slept) <= 31
    assert "does not let us in" in whole.log


def test_saving_is_bounded_by_settings(whole: Stage) -> None:
    whole.machine.sums_wrong = 99
    whole.machine.before["send-all"] = lambda: whole.clock.sleep(601)
    rescue(whole.run)
    assert "did not come home in time" in whole.log
    assert whole.machine.verbs().count("send-all") == 1
    assert all(seconds is not None and seconds <= 600 for seconds in whole.machine.allowed)


@pytest.mark.parametrize("ahead", [-600, 600])
def test_a_clock_that_is_off_costs_no_weights_shortly_before_the_hard_end(whole: Stage, ahead: int) -> None:
    whole.clock.time += 3500 + ahead
    rescue(whole.run)
    assert saved(whole) == ["weights/w.bin"]
    assert whole.machine.allowed[0] is not None
    assert whole.machine.allowed[0] <= 100 + SKEW_SECONDS - ahead


def test_nothing_is_saved_from_a_vm_that_must_be_gone_by_any_clock(whole: Stage) -> None:
    whole.clock.time += 3600 + SKEW_SECONDS
    rescue(whole.run)
    assert whole.machine.calls == []


def test_settings_come_from_the_vm_and_not_from_the_job(stage: Stage) -> None:
    stage.set(train={"outputs": ["models/"]}, limits={"rescue_minutes": 3})
    stage.cloud.insert(stage.vm())
    stage.set(train={"outputs": ["weights/"]}, limits={"rescue_minutes": 99})
    stage.machine.container = dict(RAN)
    stage.machine.files = {"models/m.bin": Entry(b"m"), "weights/w.bin": Entry(b"w")}
    rescue(stage.run)
    assert saved(stage) == ["models/m.bin"]
    assert stage.machine.allowed == [180 - CLOSING_SECONDS]


def test_no_minutes_means_no_rescue(whole: Stage) -> None:
    rescue(whole.run, most=0)
    assert whole.machine.calls == []


def test_a_signal_during_a_rescue_is_not_passed_over(whole: Stage) -> None:
    whole.machine.refuse["send-all"] = refusal(ErrorClass.INTERRUPTED)
    with pytest.raises(Failure) as caught:
        rescue(whole.run)
    assert caught.value.klass is ErrorClass.INTERRUPTED


# The cancelled job's way.


def test_a_cancelled_job_saves_and_asks_for_the_delete_without_gitlab_and_without_waiting(whole: Stage) -> None:
    cut_short(whole.run)
    assert saved(whole) == ["weights/w.bin"]
    assert ("delete_instance", whole.name, ZONE) in whole.cloud.calls
    assert whole.forge.verbs() == []
    assert all(seconds is not None and seconds <= 60 for seconds in whole.machine.allowed)


def test_a_cancelled_job_that_drops_saves_nothing(stage: Stage) -> None:
    stage.set(train={"on_cancel": "drop"})
    stage.cloud.insert(stage.vm())
    stage.set(train={"on_cancel": "save"})
    cut_short(stage.run)
    assert stage.machine.calls == []
    assert stage.cloud.vms == {}


def test_a_cancelled_job_without_vm_has_nothing_to_do(stage: Stage) -> None:
    cut_short(stage.run)
    assert "no VM of this run is alive" in stage.log


def test_a_cancelled_job_asks_for_every_vm_and_says_which_was_refused(whole: Stage) -> None:
    whole.cloud.insert(whole.vm(zone="europe-west1-b"))
    whole.cloud.refuse["delete_instance"] = refusal(ErrorClass.PERMISSION)
    with pytest.raises(Failure) as caught:
        cut_short(whole.run)
    assert caught.value.exit_code == 30
    assert whole.cloud.verbs().count("delete_instance") == 2


def test_a_signal_during_the_save_does_not_keep_the_vm(whole: Stage) -> None:
    whole.machine.refuse["send-all"] = refusal(ErrorClass.INTERRUPTED)
    with pytest.raises(Failure) as caught:
        cut_short(whole.run)
    assert caught.value.exit_code == 19
    assert whole.cloud.vms == {}


def test_a_refused_delete_is_named_and_its_disk_in_use_is_let_be(whole: Stage) -> None:
    whole.cloud.refuse["delete_instance"] = refusal(ErrorClass.ORG_POLICY)
    failure = failure_of(whole)
    assert failure.klass is ErrorClass.STILL_ALIVE
    assert whole.cloud.refuse["delete_instance"].cause in failure.cause
    assert "delete_disk" not in whole.cloud.verbs()


# What is on its way, and what takes its time.


def test_a_vm_of_another_gitlab_with_the_same_ids_is_never_touched(whole: Stage) -> None:
    name = RunName("https://other.example.com", 42, "1001")
    other = whole.vm(name=str(name), labels=name.own_labels)
    whole.cloud.insert(other)
    whole.cloud.rules[str(name)] = FirewallRule(str(name), "allow", ("0.0.0.0/0",), str(name), 800, "default")
    tear_down(whole.run)
    assert list(whole.cloud.vms.values()) == [other]
    assert whole.cloud.boot_disks == {(str(name), ZONE)}
    assert list(whole.cloud.rules) == [str(name)]


def test_a_vm_is_looked_for_in_one_list(whole: Stage) -> None:
    tear_down(whole.run)
    assert not {"find", "labelled"} & set(whole.cloud.verbs())


@pytest.mark.parametrize("end", [tear_down, cut_short])
def test_an_insert_in_flight_is_waited_for_and_its_vm_deleted(stage: Stage, end: Callable[[Run], None]) -> None:
    stage.cloud.insert_late(stage.vm(), 45)
    end(stage.run)
    assert sum(stage.clock.slept) >= 45
    assert left(stage) == {}


def test_an_insert_that_does_not_end_is_alive_and_waited_for_no_longer_than_settings_say(stage: Stage) -> None:
    stage.set(limits={"delete_minutes": 2})
    stage.cloud.insert_late(stage.vm(zone="us-east1-b"), 10_000)
    failure = failure_of(stage)
    assert failure.exit_code == 30
    assert "being created, us-east1-b" in failure.cause
    assert "--zone us-east1-b" in failure.remedy
    assert 120 <= sum(stage.clock.slept) <= 125


def test_a_vm_that_was_deleted_while_it_came_up_is_not_waited_for(stage: Stage) -> None:
    stage.cloud.insert(stage.vm(id="7", status="PROVISIONING"))
    stage.cloud.under_way.add("operation-0")
    tear_down(stage.run)
    assert left(stage) == {}
    assert sum(stage.clock.slept) < 2


def test_a_cancelled_job_waits_for_an_insert_no_longer_than_it_can(stage: Stage) -> None:
    stage.cloud.insert_late(stage.vm(), 10_000)
    with pytest.raises(Failure) as caught:
        cut_short(stage.run)
    assert caught.value.exit_code == 30
    assert sum(stage.clock.slept) <= 91


def test_a_delete_that_takes_its_time_is_waited_for_and_told(whole: Stage) -> None:
    whole.cloud.delete_seconds = 300
    tear_down(whole.run)
    assert left(whole) == {}
    assert "still under way after 5 s: the delete of" in whole.log
    assert whole.cloud.verbs().count("delete_instance") == 1


def test_a_vm_that_stays_stopping_is_alive_and_a_retry_finds_it_gone(whole: Stage) -> None:
    whole.cloud.delete_seconds = 900
    failure = failure_of(whole)
    assert failure.exit_code == 30
    assert "(STOPPING, " in failure.cause
    assert sum(whole.clock.slept) <= 700
    tear_down(whole.run)
    assert left(whole) == {}


@pytest.mark.parametrize("deletes", [True, False])
def test_a_cancelled_job_asks_for_what_is_stopping_unless_that_is_a_delete(stage: Stage, deletes: bool) -> None:
    stage.cloud.insert(stage.vm(id="7", status="STOPPING"))
    stage.cloud.deletes.append(Operation("d", "delete" if deletes else "stop", ZONE, "7", False))
    cut_short(stage.run)
    assert ("delete_instance" in stage.cloud.verbs()) is not deletes


def test_a_vm_that_was_stopped_is_as_alive_as_any_other(stage: Stage) -> None:
    stage.cloud.insert(stage.vm(status="TERMINATED"))
    tear_down(stage.run)
    assert left(stage) == {}


def test_a_vm_that_powers_itself_off_while_it_is_looked_for_goes_too(stage: Stage) -> None:
    stage.cloud.insert(stage.vm(status="STOPPING"))
    stage.clock.at(30, lambda: stage.cloud.change(stage.name, ZONE, status="TERMINATED"))
    tear_down(stage.run)
    assert left(stage) == {}


def test_a_delete_that_is_accepted_and_fails_is_tried_again(whole: Stage) -> None:
    whole.cloud.delete_failures = [refusal(ErrorClass.TRANSIENT, "Internal error")] * 2
    tear_down(whole.run)
    assert left(whole) == {}


def test_a_delete_that_fails_time_and_again_says_why_the_vm_lives(whole: Stage) -> None:
    whole.cloud.delete_failures = [refusal(ErrorClass.TRANSIENT, "Internal error")] * 9
    failure = failure_of(whole)
    assert failure.exit_code == 30
    assert "Internal error" in failure.cause
    assert whole.cloud.verbs().count("delete_instance") == MOST_DELETES


def test_a_vm_that_is_busy_is_asked_for_again_until_it_is_ready(whole: Stage) -> None:
    busy = Failure(ErrorClass.UNKNOWN, "not ready", "wait", "resourceNotReady")
    whole.cloud.refuse["delete_instance"] = busy
    whole.clock.at(20, whole.cloud.refuse.clear)
    tear_down(whole.run)
    assert left(whole) == {}


# The lock of the state.


def test_a_lock_whose_holder_lives_is_waited_for(whole: Stage) -> None:
    whole.forge.locks[whole.name] = "somebody since 20:00"
    whole.clock.at(20, whole.forge.locks.clear)
    tear_down(whole.run)
    assert left(whole) == {}
    assert "break_lock" not in whole.forge.verbs()
    assert whole.stacks[0].verbs() == ["prepare", "destroy"]


def test_a_lock_whose_holder_is_dead_is_broken_after_a_minute(whole: Stage) -> None:
    whole.forge.locks[whole.name] = "somebody since 20:00"
    tear_down(whole.run)
    assert left(whole) == {}
    assert 60 <= sum(whole.clock.slept) <= 65
    verbs = whole.forge.verbs()
    assert verbs.index("break_lock") < verbs.index("delete_state")
    broken = whole.run.record.find("lock-broken")
    assert broken is not None
    assert broken.facts["holder"] == "somebody since 20:00"


def test_what_the_holder_of_the_lock_writes_meanwhile_terraform_destroys(stage: Stage) -> None:
    stage.forge.states[stage.name] = "empty"
    stage.forge.locks[stage.name] = "an orphan"
    stage.clock.at(20, lambda: stage.forge.states.update({stage.name: "held"}))
    stage.clock.at(21, stage.forge.locks.clear)
    tear_down(stage.run)
    assert stage.stacks[0].verbs() == ["prepare", "destroy"]


def test_a_lock_that_our_own_terraform_left_does_not_keep_the_state(whole: Stage) -> None:
    whole.refuses["destroy"] = refusal(ErrorClass.TERRAFORM)
    whole.cloud.before["delete_instance"] = lambda: whole.forge.locks.update({whole.name: "us"})
    tear_down(whole.run)
    assert left(whole) == {}


@pytest.mark.parametrize("late", [False, True])
def test_a_vm_that_somebody_buys_while_the_run_is_torn_down_goes_too(whole: Stage, late: bool) -> None:
    """A train job between two Spot VMs, which has looked for the run's rules before they went."""
    another = whole.vm(zone="europe-west1-b", id="another")
    buys = (lambda: whole.cloud.insert_late(another, 30)) if late else (lambda: whole.cloud.insert(another))
    whole.cloud.before["delete_rule"] = buys
    tear_down(whole.run)
    assert left(whole) == {}


# Signals, and the time that there is.


@pytest.mark.parametrize("verb", ["operations", "of_run", "delete_instance", "disks", "delete_rule"])
def test_what_a_signal_cuts_short_is_done_over(whole: Stage, verb: str) -> None:
    def once() -> None:
        whole.cloud.refuse[verb] = refusal(ErrorClass.INTERRUPTED)
        whole.cloud.before[verb] = whole.cloud.refuse.clear

    whole.cloud.before[verb] = once
    assert failure_of(whole).exit_code == 19
    assert left(whole) == {}


def test_in_a_hurry_the_delete_goes_out_before_anything_else(whole: Stage) -> None:
    tear_down(whole.run, hurry=True)
    assert whole.cloud.verbs()[:3] == ["operations", "of_run", "delete_instance"]
    assert left(whole) == {}


def test_a_teardown_in_after_script_takes_no_more_than_the_runner_gives_it(whole: Stage) -> None:
    whole.job(status="timedout", after_script_timeout=900.0)
    whole.machine.before["send-all"] = lambda: whole.clock.sleep(5000)
    rescue(whole.run)
    assert whole.machine.allowed == [900 * RESCUE_SHARE - CLOSING_SECONDS]
    whole.clock.slept.clear()
    whole.forge.locks[whole.name] = "somebody"
    whole.cloud.delete_seconds = 10_000
    assert failure_of(whole).exit_code == 30
    assert sum(whole.clock.slept) <= 60 + 900 * WAIT_SHARE
    assert all(call[1] <= 900 * WAIT_SHARE for call in whole.stacks[0].calls if call[0] == "destroy")


def test_two_vms_are_saved_within_the_time_of_one(whole: Stage) -> None:
    whole.cloud.insert(whole.vm(zone="europe-west1-b"))
    whole.machine.before["send-all"] = lambda: whole.clock.sleep(58)
    cut_short(whole.run)
    assert whole.machine.verbs().count("send-all") == 1
    assert whole.cloud.vms == {}


def test_the_proof_says_what_was_found_deleted_and_left(whole: Stage) -> None:
    tear_down(whole.run)
    proof = whole.run.record.find("proof")
    assert proof is not None
    assert proof.facts["deleted"] == [f"{whole.name} in {ZONE}"]
    assert whole.events().index("delete-requested") < whole.events().index("proof")
