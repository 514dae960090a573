"""The stages: provision, authorize, train, destroy, each retried at any time."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes import SHA, ZONE, Entry, FakeMachine, FakeStack, Stage, done, make_stage, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.run_names import RunName
from glgpu.run_record import RunRecord
from glgpu.stages.authorize import authorize
from glgpu.stages.destroy import destroy, destroy_branch, destroy_cloud_only
from glgpu.stages.provision import provision
from glgpu.stages.train import train
from glgpu.steps.annotate import annotate
from glgpu.steps.context import Run


def code_of(work: Any, *words: Any) -> int:
    with pytest.raises(Failure) as caught:
        work(*words)
    return caught.value.exit_code


def things(stage: Stage) -> list[object]:
    return [*stage.cloud.vms, *stage.cloud.boot_disks, *stage.cloud.rules, *stage.forge.keys, *stage.forge.states]


@pytest.fixture
def provisioned(stage: Stage) -> Stage:
    provision(stage.run)
    return stage


# provision


def test_provision_leaves_a_vm_and_says_where_it_is(provisioned: Stage, tmp_path: Path) -> None:
    assert (tmp_path / "glgpu.env").read_text() == (
        f"GLGPU_INSTANCE={provisioned.name}\nGLGPU_ZONE={ZONE}\nGLGPU_GOOGLE_PROJECT=my-dl\n"
    )


def test_provision_says_where_the_vm_is_that_another_zone_had(stage: Stage, tmp_path: Path) -> None:
    stage.set(machine={"zones": [ZONE, "europe-west1-b"]})

    def scarce(stack: FakeStack) -> None:
        if stack.variables["zone"] == ZONE:
            stage.cloud.insert(stage.vm(), refusal(ErrorClass.STOCKOUT))
        else:
            stage.insert(stack)

    stage.applies = scarce
    provision(stage.run)
    assert "GLGPU_ZONE=europe-west1-b\n" in (tmp_path / "glgpu.env").read_text()
    destroy(stage.run)
    assert stage.cloud.vms == {}


def test_a_retried_provision_takes_over_its_own_vm_and_sees_that_it_is_ready(provisioned: Stage) -> None:
    provisioned.machine.calls.clear()
    provision(provisioned.run)
    assert len(provisioned.stacks) == 1
    assert provisioned.machine.verbs() == ["hello", "ends", "startup", "gpu", "hang-up"]


def test_a_retried_provision_removes_a_vm_that_has_powered_itself_off(provisioned: Stage) -> None:
    provisioned.cloud.change(provisioned.name, ZONE, status="TERMINATED")
    provision(provisioned.run)
    assert len(provisioned.stacks) == 2


def test_a_provision_after_the_pipelines_end_buys_nothing(stage: Stage) -> None:
    stage.forge.over = True
    assert code_of(provision, stage.run) == 2
    assert stage.stacks == []


@pytest.mark.parametrize(
    "settings",
    [
        {"train": {"image": None}},
        {"train": {"secrets": ["MISSING"]}},
        {"machine": {"max_hours": 24}, "train": {"follow": True}},
    ],
)
def test_what_cannot_work_is_refused_while_it_costs_nothing(stage: Stage, settings: dict[str, Any]) -> None:
    stage.set(**settings)
    assert code_of(provision, stage.run) == 2
    assert stage.cloud.calls == []


def test_a_full_disk_at_the_end_of_provision_is_this_machines(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "glgpu.env").mkdir()
    assert code_of(provision, stage.run) == 40


# authorize


def test_authorize_brings_the_code(provisioned: Stage) -> None:
    authorize(provisioned.run)
    assert "overlay" in provisioned.machine.stdin


def test_authorize_needs_a_vm(stage: Stage) -> None:
    assert code_of(authorize, stage.run) == 11


# train


def test_train_brings_weights_home_and_gives_the_vm_back(provisioned: Stage) -> None:
    train(provisioned.run)
    assert (provisioned.run.outputs / "weights/w.bin").exists()
    assert (provisioned.run.outputs / "glgpu/train.log").read_bytes() == b"epoch 1\n"
    assert provisioned.cloud.vms == {}
    assert provisioned.events()[-2:] == ["outputs-home", "gpu-released"]


def test_the_claim_comes_before_the_container(provisioned: Stage) -> None:
    train(provisioned.run)
    events = provisioned.events()
    assert events.index("vm-claimed") < events.index("container-started")


@pytest.mark.parametrize(
    ("exit_code", "out_of_memory", "files", "expected"),
    [
        (3, False, {"weights/w.bin": Entry(b"w")}, 20),
        (137, True, {"weights/w.bin": Entry(b"w")}, 20),
        (0, False, {}, 21),
        (0, False, {"weights": Entry(folder=True)}, 21),
    ],
)
def test_a_training_that_fails_brings_home_what_there_is(
    provisioned: Stage, exit_code: int, out_of_memory: bool, files: dict[str, Entry], expected: int
) -> None:
    machine = provisioned.machine
    machine.exit_code, machine.out_of_memory, machine.files = exit_code, out_of_memory, files
    assert code_of(train, provisioned.run) == expected
    assert (provisioned.run.outputs / "weights/w.bin").exists() == ("weights/w.bin" in files)
    assert (provisioned.run.outputs / "glgpu/SHA256SUMS").exists()
    assert provisioned.cloud.vms == {}


def test_a_retried_train_attaches_to_the_training_that_runs(provisioned: Stage) -> None:
    provisioned.machine.refuse["logs"] = refusal(ErrorClass.SSH)
    assert code_of(train, provisioned.run) == 13
    provisioned.machine.refuse.clear()
    train(provisioned.run)
    assert provisioned.machine.verbs().count("start") == 1
    assert "attaching to it" in provisioned.log


def test_weights_that_do_not_come_home_keep_the_vm(provisioned: Stage) -> None:
    provisioned.machine.sums_wrong = 99
    assert code_of(train, provisioned.run) == 13
    assert provisioned.cloud.vms != {}
    assert "wipe" not in provisioned.machine.verbs()


def test_a_vm_that_somebody_ends_under_the_training_is_no_broken_connection(provisioned: Stage) -> None:
    """ci/train.yml retries 13, and a retried train buys a VM where there is none: even after a click on Stop."""

    def ended() -> None:
        provisioned.cloud.vms.clear()
        provisioned.machine.reachable = False

    provisioned.machine.before["send-all"] = ended
    assert code_of(train, provisioned.run) == 23


@pytest.mark.parametrize("fails", [False, True])
def test_a_train_retried_after_the_end_brings_up_a_vm_and_sees_to_its_end(stage: Stage, fails: bool) -> None:
    stage.machine.exit_code = 3 if fails else 0
    if fails:
        assert code_of(train, stage.run) == 20
    else:
        train(stage.run)
    assert len(stage.stacks) == 1
    assert things(stage) == []
    assert stage.run.record.find("proof") is not None


def test_a_train_retried_after_such_a_train_had_died_sees_to_the_end_of_its_vm(provisioned: Stage) -> None:
    provisioned.forge.over = True
    train(provisioned.run)
    assert things(provisioned) == []
    assert "The destroy job is over, so this job ends the VM" in provisioned.log


def test_a_train_leaves_the_end_to_the_destroy_job_if_gitlab_cannot_be_asked(provisioned: Stage) -> None:
    provisioned.forge.refuse["destroy_is_over"] = refusal(ErrorClass.NETWORK)
    train(provisioned.run)
    assert provisioned.run.record.find("proof") is None


@pytest.mark.parametrize("verb", ["hello", "gpu", "unpack", "start", "send"])
def test_it_sees_to_the_end_wherever_it_fails(stage: Stage, verb: str) -> None:
    stage.machine.said[verb] = stage.machine.said[f"{verb}-all"] = done("", 1, "it went wrong")
    code_of(train, stage.run)
    assert things(stage) == []


def test_it_sees_to_the_end_also_after_a_mistake_of_our_own(stage: Stage) -> None:
    def mistake() -> None:
        raise RuntimeError("a mistake")

    stage.machine.before["start"] = mistake
    with pytest.raises(RuntimeError):
        train(stage.run)
    assert things(stage) == []


def test_what_went_wrong_first_counts_before_what_the_teardown_says(stage: Stage) -> None:
    stage.machine.exit_code = 3
    stage.forge.refuse["delete_state"] = refusal(ErrorClass.NETWORK)
    assert code_of(train, stage.run) == 20


def test_a_vm_that_lives_on_counts_before_a_failed_training(stage: Stage) -> None:
    stage.machine.exit_code = 3
    stage.cloud.stubborn = True
    assert code_of(train, stage.run) == 30


def test_a_jobs_signal_leaves_the_end_to_after_script(stage: Stage) -> None:
    stage.machine.refuse["logs"] = refusal(ErrorClass.INTERRUPTED)
    assert code_of(train, stage.run) == 19
    assert stage.cloud.vms != {}


def test_on_a_laptop_a_signal_ends_the_vm_too(stage: Stage) -> None:
    stage.job(job_id="")
    stage.machine.refuse["logs"] = refusal(ErrorClass.INTERRUPTED)
    assert code_of(train, stage.run) == 19
    assert stage.cloud.vms == {}


def test_a_job_whose_runner_is_gone_leaves_vm_and_training_to_the_next_try(provisioned: Stage) -> None:
    provisioned.run.console.unheard = True
    assert code_of(train, provisioned.run) == 19
    assert "collect" not in provisioned.machine.verbs()
    assert provisioned.machine.container is not None
    assert provisioned.cloud.vms != {}
    assert not provisioned.cloud.rules[provisioned.name].disabled, "the next try may come from the same address"


def test_a_job_that_gitlab_has_given_up_does_not_take_the_vm_from_its_next_try(provisioned: Stage) -> None:
    provisioned.forge.own_job_over = True
    assert code_of(train, provisioned.run) == 19
    assert provisioned.cloud.vms != {}
    assert "wipe" not in provisioned.machine.verbs()
    provisioned.forge.own_job_over = False
    train(provisioned.run)
    assert provisioned.cloud.vms == {}
    assert provisioned.machine.verbs().count("start") == 1


def test_without_an_answer_of_gitlab_a_job_counts(provisioned: Stage) -> None:
    provisioned.forge.refuse["job_is_over"] = refusal(ErrorClass.NETWORK)
    train(provisioned.run)
    assert provisioned.cloud.vms == {}


def test_on_a_laptop_nobody_has_to_listen(provisioned: Stage) -> None:
    provisioned.job(job_id="")
    provisioned.run.console.unheard = provisioned.forge.own_job_over = True
    train(provisioned.run)
    assert provisioned.cloud.vms == {}


def test_a_door_that_cannot_be_closed_behind_the_weights_does_not_have_it_all_trained_again(provisioned: Stage) -> None:
    def refuse() -> None:
        provisioned.cloud.refuse["change_rule"] = refusal(ErrorClass.NETWORK)

    provisioned.machine.before["wipe"] = refuse
    train(provisioned.run)
    assert "the door could not be closed" in provisioned.log


def test_a_log_that_cannot_be_kept_does_not_end_the_training(provisioned: Stage) -> None:
    kept = provisioned.run.outputs / "glgpu/train.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.symlink_to("/dev/full")
    train(provisioned.run)
    assert "cannot be written: No space left on device" in provisioned.log
    assert "epoch 1" in provisioned.log


# destroy


def test_destroy_saves_and_removes_and_takes_over_the_train_jobs_record(provisioned: Stage) -> None:
    provisioned.machine.container = {"Running": False, "ExitCode": 0, "OOMKilled": False}
    event = {"at": 1.0, "job": "6", "what": "container-started", "facts": {}}
    provisioned.forge.artifacts["1001", "train", "outputs/glgpu/run.json"] = json.dumps(
        {"schema_version": 1, "run": provisioned.name, "events": [event]}
    )
    destroy(provisioned.run)
    assert provisioned.events()[0] == "container-started"
    assert provisioned.events()[-1] == "proof"
    assert (provisioned.run.outputs / "weights/w.bin").exists()
    assert things(provisioned) == []


def test_destroy_without_gitlab_clears_the_cloud_and_ends_with_18(provisioned: Stage) -> None:
    for verb in ("artifact", "state", "remove_deploy_keys", "delete_state"):
        provisioned.forge.refuse[verb] = refusal(ErrorClass.NETWORK)
    assert code_of(destroy, provisioned.run) == 18
    assert not provisioned.cloud.vms
    assert not provisioned.cloud.rules
    provisioned.forge.refuse.clear()
    destroy(provisioned.run)
    assert things(provisioned) == []


def test_destroy_before_provision_and_twice_is_fine(stage: Stage) -> None:
    destroy(stage.run)
    destroy(stage.run)
    assert things(stage) == []


def test_destroy_while_provision_waits_for_its_vm(stage: Stage) -> None:
    """The apply is under way; destroy comes first, then the VM: the next destroy finds it."""

    def slowly(stack: FakeStack) -> None:
        stack.is_over = False
        stage.clock.at(1, lambda: destroy(stage.run))
        stage.clock.at(2, lambda: stage.insert(stack))
        stage.clock.at(3, lambda: setattr(stack, "is_over", True))

    stage.applies = slowly
    provision(stage.run)
    destroy(stage.run)
    assert things(stage) == []


def test_destroy_while_provision_makes_its_vm_ready(stage: Stage) -> None:
    """The VM goes under provision's hands: that is a vanished VM, and nothing is left."""
    stage.machine.before["hello"] = lambda: setattr(stage.machine, "reachable", False)
    stage.clock.at(0.5, lambda: destroy(stage.run))
    stage.machine.said["hello"] = done("", 255, "Connection reset by peer")
    assert code_of(provision, stage.run) == 23
    destroy(stage.run)
    assert things(stage) == []


def test_a_signal_during_the_rescue_does_not_end_the_teardown(provisioned: Stage) -> None:
    provisioned.machine.container = {"Running": False, "ExitCode": 0, "OOMKilled": False}
    provisioned.machine.refuse["send-all"] = refusal(ErrorClass.INTERRUPTED)
    assert code_of(destroy, provisioned.run) == 19
    assert provisioned.cloud.vms == {}


@pytest.mark.parametrize(("status", "kept"), [("timedout", True), ("", False)])
def test_after_script_keeps_the_links_of_its_own_job_and_another_job_begins_without(
    stage: Stage, status: str, kept: bool
) -> None:
    annotate(stage.run, "train's", "https://example.com/weights")
    stage.job(status=status)
    destroy(stage.run)
    text = (stage.run.outputs / "glgpu/annotations.json").read_text()
    assert ("https://example.com/weights" in text) is kept


@pytest.mark.parametrize("strikes", ["shutil.rmtree", "of_run", "artifact"])
def test_a_signal_at_the_very_beginning_does_not_end_the_teardown_either(
    provisioned: Stage, monkeypatch: pytest.MonkeyPatch, strikes: str
) -> None:
    if strikes == "shutil.rmtree":
        provisioned.run.record.foreign = True
        monkeypatch.setattr(strikes, lambda *_, **__: interrupt())
    else:
        asked = provisioned.forge if strikes == "artifact" else provisioned.cloud
        asked.before[strikes] = interrupt
    assert code_of(destroy, provisioned.run) == 19
    assert things(provisioned) == []


def interrupt() -> None:
    raise refusal(ErrorClass.INTERRUPTED)


def test_cloud_only_asks_gitlab_nothing(provisioned: Stage) -> None:
    provisioned.forge.calls.clear()
    destroy_cloud_only(provisioned.run)
    assert provisioned.forge.calls == []
    assert provisioned.cloud.vms == {}


def others(stage: Stage, number: str, **facts: Any) -> None:
    """Another run of the project."""
    ref, kind = facts.get("ref", "main"), facts.get("kind", "train")
    name = RunName(stage.run.job.server_url, facts.get("project", 42), number, kind)
    other = replace(stage, run=replace(stage.run, name=name, job=replace(stage.run.job, ref=ref)))
    stage.cloud.insert(other.vm())


def test_a_vm_whose_labels_make_no_sense_does_not_keep_the_stop_job_from_the_others(stage: Stage) -> None:
    for number, (zone, labels) in enumerate(
        {"a": {"glgpu-run": "nonsense"}, "b": {}, "c": {"glgpu-run": "1001"}}.items()
    ):
        own = {key: value for key, value in stage.vm().labels.items() if key != "glgpu-run"}
        name = stage.name if zone == "c" else f"odd-{number}"
        stage.cloud.insert(stage.vm(name=name, zone=f"europe-west4-{zone}", labels={**own, **labels}))
    assert code_of(destroy_branch, stage.run, lambda name: replace(stage.run, name=name)) == 2
    assert [name for name, _ in stage.cloud.vms] == ["odd-0", "odd-1"]


def test_a_cloud_that_cannot_list_the_branch_does_not_keep_the_stop_job_from_its_own_run(provisioned: Stage) -> None:
    provisioned.cloud.refuse["labelled"] = refusal(ErrorClass.TRANSIENT)
    assert code_of(destroy_branch, provisioned.run, lambda name: replace(provisioned.run, name=name)) == 18
    assert provisioned.cloud.vms == {}


def test_the_stop_job_ends_every_run_of_the_branch_and_no_other(stage: Stage) -> None:
    stage.job(ref="feature/x")
    others(stage, "1001", ref="feature/x")
    others(stage, "1002", ref="feature/x")
    others(stage, "1003", ref="main")
    others(stage, "1004", ref="feature-x")
    others(stage, "1005", ref="feature/x", kind="notebook")
    others(stage, "1006", ref="feature/x", project=43)
    ended = []

    def named(name: RunName) -> Run:
        ended.append(name.run)
        return replace(stage.run, name=name, job=replace(stage.run.job, run=name.run))

    destroy_branch(stage.run, named)
    assert ended == ["1001", "1002"]
    assert sorted(name.split("-")[3] for name, _ in stage.cloud.vms) == ["1003", "1004", "1005", "1006"]


def test_the_stop_job_first_cancels_what_would_bring_up_another_vm(stage: Stage) -> None:
    stage.job(ref="feature/x")
    others(stage, "1001", ref="feature/x")
    stage.forge.refs[42, 1002] = "feature/x"
    stage.forge.jobs[42, 1002] = {"provision": "success", "train": "pending"}
    destroy_branch(stage.run, lambda name: replace(stage.run, name=name))
    assert stage.forge.jobs[42, 1002]["train"] == "canceled"
    assert "cancelled: train of pipeline 1002, which would have brought up a VM" in stage.log
    assert stage.forge.verbs()[0] == "hold_back"


def test_a_gitlab_that_is_away_does_not_keep_the_stop_job_from_what_there_is(stage: Stage) -> None:
    stage.job(ref="feature/x")
    others(stage, "1001", ref="feature/x")
    stage.forge.refuse["hold_back"] = refusal(ErrorClass.NETWORK)
    assert code_of(destroy_branch, stage.run, lambda name: replace(stage.run, name=name)) == 18
    assert stage.cloud.vms == {}


def test_without_a_token_the_stop_job_cancels_nothing(stage: Stage) -> None:
    stage.job(ref="feature/x")
    others(stage, "1001", ref="feature/x")
    stage.forge.may_administer = False
    destroy_branch(stage.run, lambda name: replace(stage.run, name=name))
    assert "hold_back" not in stage.forge.verbs()
    assert stage.cloud.vms == {}


def test_one_run_of_the_branch_that_lives_on_does_not_save_the_others(stage: Stage) -> None:
    for number in ("1001", "1002"):
        others(stage, number)
    stage.cloud.refuse["delete_instance"] = refusal(ErrorClass.PERMISSION)
    stage.cloud.before["delete_instance"] = lambda: stage.cloud.before.update(delete_instance=stage.cloud.refuse.clear)

    def named(name: RunName) -> Run:
        return replace(stage.run, name=name, job=replace(stage.run.job, run=name.run))

    assert code_of(destroy_branch, stage.run, named) == 30
    assert len(stage.cloud.vms) == 1


def test_a_job_that_takes_a_training_up_reports_the_losses_that_it_hears(provisioned: Stage) -> None:
    machine = provisioned.machine
    machine.log = [(f"2026-11-23T20:00:0{n}.000000001Z", b"loss %d.5\n" % (9 - n)) for n in range(5)]
    machine.refuse["logs"] = refusal(ErrorClass.INTERRUPTED)
    assert code_of(train, provisioned.run) == 19
    machine.refuse.clear()
    # The next try is another job, which has nothing of the first one.
    shutil.rmtree(provisioned.run.outputs)
    path = provisioned.run.outputs / "glgpu/run.json"
    run = provisioned.run
    provisioned.use(record=RunRecord(path, str(run.name), "6", provisioned.clock, run.console.masker))
    train(provisioned.run)
    report = (provisioned.run.outputs / "glgpu/report.html").read_text()
    assert "Loss over time" in report
    assert "<th>Training</th>" in report
    assert "The training ended well" in report


def test_the_commit_in_the_record_is_the_pipelines(provisioned: Stage) -> None:
    train(provisioned.run)
    event = provisioned.run.record.find("code-checked-out")
    assert event is not None
    assert event.facts["commit"] == SHA


def test_destroy_clears_what_another_run_left_in_the_build_folder(stage: Stage) -> None:
    record = stage.run.outputs / "glgpu" / "run.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text('{"schema_version": 1, "run": "glgpu-ffffff-1-1-train", "events": []}')
    (stage.run.outputs / "weights").write_bytes(b"another run's")
    job = stage.run.job.job_id
    stage.use(record=RunRecord(record, str(stage.run.name), job, stage.clock, stage.run.console.masker))
    destroy(stage.run)
    assert not (stage.run.outputs / "weights").exists()


def test_destroy_keeps_what_this_run_has_brought_home(stage: Stage) -> None:
    stage.run.record.add("outputs-home", files=1)
    (stage.run.outputs / "weights").write_bytes(b"ours")
    destroy(stage.run)
    assert (stage.run.outputs / "weights").read_bytes() == b"ours"


def test_a_price_that_nothing_has_is_refused_before_anything_is_bought(stage: Stage) -> None:
    stage.set(machine={"max_price": 0.01})
    with pytest.raises(Failure, match="the cheapest that the settings allow") as caught:
        provision(stage.run)
    assert caught.value.exit_code == 2
    assert stage.cloud.calls == []


def test_a_gpu_that_was_shut_down_is_refused_before_anything_is_bought(stage: Stage) -> None:
    stage.set(machine={"gpu": ["nvidia-tesla-k80"]})
    with pytest.raises(Failure, match="shut down") as caught:
        provision(stage.run)
    assert caught.value.exit_code == 2
    assert stage.cloud.calls == []


def test_what_is_left_out_is_said(stage: Stage) -> None:
    stage.set(machine={"max_price": 0.5})
    provision(stage.run)
    assert "left out: 1 x nvidia-l4 on g2-standard-4, standard, europe-west4: about" in stage.said.getvalue().decode()


class Mortal(FakeMachine):
    """A VM at one of whose questions the job that asks it dies."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = None
        self.of = ErrorClass.INTERRUPTED

    def visit(self, verb: str, *words: Any) -> None:
        super().visit(verb, *words)
        if self.left is not None and verb != "hang-up":  # which asks the VM nothing
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise refusal(self.of)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    deaths=st.lists(
        st.tuples(st.integers(0, 25), st.sampled_from([ErrorClass.INTERRUPTED, ErrorClass.SSH])), max_size=3
    )
)
def test_wherever_jobs_die_the_last_try_brings_the_weights_of_one_training_home(
    tmp_path_factory: pytest.TempPathFactory, deaths: list[tuple[int, ErrorClass]]
) -> None:
    stage = make_stage(tmp_path_factory.mktemp("tries"))
    machine = Mortal()
    stage.use(connect=lambda *_: machine)
    provision(stage.run)
    for left, of in [*deaths, (None, ErrorClass.SSH)]:
        machine.left, machine.of = left, of
        with suppress(Failure):
            train(stage.run)
            break
    assert (stage.run.outputs / "weights/w.bin").read_bytes() == b"w" * 100
    assert stage.events().count("container-started") == 1
    assert len(stage.stacks) == 1
    assert stage.cloud.vms == {}
    destroy(stage.run)
    assert things(stage) == []
