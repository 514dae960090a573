"""A Spot VM that Google takes away under a training: another one goes on, in the same job, from what is home."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes import ZONE, Entry, FakeMachine, FakeStack, FakeStream, Stage, done, make_stage, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Operation
from glgpu.processes import Done
from glgpu.stages.train import train
from glgpu.steps import preemption

OTHER, THIRD = "europe-west4-b", "europe-west1-b"
STEPS = 12
"""Of the training, which saves every third of them, and ends with weights that know all of them."""


class Trainer(FakeMachine):
    """A VM with a training on it, which goes on from its checkpoint; and Google, who takes the VM away.

    Attributes:
        notices: For each VM: after which step Google says that it takes it away; None: it does not.
        vanishes: At which call of ours a VM is gone without a word, each counted from the last one's.
        heeds: Whether the program saves when it is told to end.
        code: Its exit code then.
        deaf: Whether the VM does not hear the notice: the guest's shutdown ends the program.
        seen: The checkpoints with which the program began.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.notices: list[int | None] = []
        self.vanishes: list[int] = []
        self.heeds = True
        self.code = 143
        self.deaf = False
        self.seen: list[bytes | None] = []
        self.files = {}

    def fresh(self) -> None:
        """Another VM."""
        self.files, self.kept, self.container, self.home = {}, {}, None, False
        self.ending, self.reachable = "no \n", True

    def visit(self, verb: str, *facts: Any) -> None:
        super().visit(verb, *facts)
        if self.vanishes and self.stage.cloud.vms:
            self.vanishes[0] -= 1
            if self.vanishes[0] < 0:
                self.vanishes.pop(0)
                self.taken()

    def taken(self) -> None:
        (vm,) = self.stage.cloud.vms.values()
        self.stage.cloud.preempt(vm.name, vm.zone)
        self.reachable = False

    def shut_down(self) -> None:
        """The VM is on its way out, and may be talked to for a second yet."""
        cloud = self.stage.cloud
        (vm,) = cloud.vms.values()
        cloud.taken.append(Operation("p", preemption.TAKEN_AWAY, vm.zone, vm.id, False))
        cloud.change(vm.name, vm.zone, status="STOPPING")
        self.stage.clock.at(1, lambda: cloud.vms.pop((vm.name, vm.zone)) and None)

    def run(self, script: str, *, stdin: bytes = b"", timeout: float = 60) -> Done:
        said = super().run(script, stdin=stdin, timeout=timeout)
        # It went while it was asked.
        return said if self.reachable else Done([], 255, b"", b"Connection reset by peer")

    @contextmanager
    def stream(self, script: str, *, timeout: float | None = None) -> Iterator[FakeStream]:
        with super().stream(script, timeout=timeout) as stream:
            yield stream if self.reachable else FakeStream(255, [], "Connection reset by peer")

    def _logs(self, since: str, *, follow: bool) -> FakeStream:
        del since, follow
        begun = self.files.get("checkpoints/step")
        self.seen.append(begun.data if begun else None)
        told = self.notices.pop(0) if self.notices else None
        first = int(begun.data.split()[-1]) if begun else 0
        lines = []
        for step in range(first + 1, STEPS + 1):
            lines.append(f"step {step}")
            if step % 3 == 0 or (step == told and self.heeds):
                self._save(step)
            if step == told:
                if not self.heeds:
                    # It was in the middle of writing.
                    self.files["checkpoints/step"] = Entry(b"half", changed=self.stage.clock.now())
                if self.deaf:
                    self.shut_down()
                else:
                    self.ending = f"1 {'heeds' if self.heeds else 'plain'}\n"
                return self._ended(self.code, lines)
        self.files["weights/w"] = Entry(" ".join(map(str, range(1, STEPS + 1))).encode())
        return self._ended(0, lines)

    def _save(self, step: int) -> None:
        self.files["checkpoints/step"] = Entry(b"whole %d" % step, changed=self.stage.clock.now())
        self.companion()

    def companion(self) -> None:
        """What the thread beside the follower does in time."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.stage.clock, "sleep", lambda _: None)
            self.followed.bring_home()

    def _ended(self, code: int, lines: list[str]) -> FakeStream:
        self._end(code)
        stamped = [f"2026-11-23T20:00:00.{number:09d}Z {line}\n" for number, line in enumerate(lines)]
        return FakeStream(0, ["".join(stamped).encode()], "")


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    return training_on(make_stage(tmp_path), monkeypatch)


def training_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """A run in which Terraform's apply brings up a fresh VM each time, in the zone that it is asked for."""
    stage.set(machine={"zones": [ZONE, OTHER, THIRD], "spot": "only"})
    trainer = Trainer(stage)
    count = iter(range(100))

    def apply(stack: FakeStack) -> None:
        assert not stage.cloud.vms, "two VMs at once"
        trainer.fresh()
        stage.insert(stack, id=str(next(count)))

    stage.applies = apply
    stage.use(connect=lambda *_: trainer)
    made = preemption.Checkpoints

    def remember(*words: Any) -> Any:
        trainer.followed = made(*words)
        return trainer.followed

    monkeypatch.setattr(preemption, "Checkpoints", remember)
    return trainer


def weights(stage: Stage) -> str:
    return (stage.run.outputs / "weights/w").read_text()


WHOLE = " ".join(map(str, range(1, STEPS + 1)))


def test_a_training_that_is_told_to_end_goes_on_in_another_zone_from_what_it_saved(trainer: Trainer) -> None:
    stage = trainer.stage
    trainer.notices = [5]
    train(stage.run)
    assert weights(stage) == WHOLE
    assert trainer.seen == [None, b"whole 5"]
    assert [zone for stack in stage.stacks for zone in stack.tried] == [ZONE, OTHER]
    verbs = trainer.verbs()
    assert verbs.index("unpack") < verbs.index("put") < len(verbs) - 1 - verbs[::-1].index("start")


def test_the_record_says_what_was_lost_and_the_log_holds_both_tries(trainer: Trainer) -> None:
    stage = trainer.stage
    trainer.notices, trainer.heeds = [5], False
    train(stage.run)
    event = stage.run.record.find("preempted")
    assert event is not None
    assert (event.facts["zone"], event.facts["noticed"]) == (ZONE, True)
    assert event.facts["lost_seconds"] >= 0
    resumed = stage.run.record.find("training-resumed")
    assert resumed is not None
    assert (resumed.facts["zone"], resumed.facts["files"]) == (OTHER, 1)
    steps = stage.run.record.find("steps-repeated")
    assert steps is not None
    assert steps.facts["last"] == 5
    log = (stage.run.outputs / "glgpu/train.log").read_text().splitlines()
    (heading,) = [line for line in log if line.startswith("glgpu:")]
    assert heading in stage.log
    assert log.index("step 5") == log.index(heading) - 1
    assert log[log.index(heading) + 1] == "step 4"


def test_a_program_that_is_cut_off_goes_on_from_what_was_seen_whole(trainer: Trainer) -> None:
    trainer.notices, trainer.heeds = [5], False
    train(trainer.stage.run)
    assert trainer.seen == [None, b"whole 3"]
    assert weights(trainer.stage) == WHOLE


def test_two_preemptions_are_survived_like_one(trainer: Trainer) -> None:
    trainer.notices = [4, 8]
    train(trainer.stage.run)
    assert trainer.seen == [None, b"whole 4", b"whole 8"]
    assert [zone for stack in trainer.stage.stacks for zone in stack.tried] == [ZONE, OTHER, THIRD]
    assert weights(trainer.stage) == WHOLE


def test_a_program_that_ends_with_0_when_it_is_told_to_end_has_not_ended_well_and_goes_on(trainer: Trainer) -> None:
    trainer.notices, trainer.code = [5], 0
    train(trainer.stage.run)
    assert trainer.seen == [None, b"whole 5"]
    assert weights(trainer.stage) == WHOLE


@pytest.mark.parametrize(("heeds", "checkpoints"), [("plain", "checkpoints"), ("heeds", None), ("heeds", "others")])
def test_a_training_that_ends_well_at_the_notice_has_ended_well_where_nothing_can_go_on(
    trainer: Trainer, heeds: str, checkpoints: str | None
) -> None:
    trainer.stage.set(train={"checkpoints": checkpoints})
    trainer.before["logs"] = lambda: setattr(trainer, "ending", f"0 {heeds}\n")
    train(trainer.stage.run)
    assert len(trainer.seen) == 1
    assert weights(trainer.stage) == WHOLE


def test_a_vm_that_has_not_heard_of_it_is_known_by_what_google_does(trainer: Trainer) -> None:
    trainer.notices, trainer.heeds, trainer.deaf = [5], False, True
    train(trainer.stage.run)
    assert trainer.seen == [None, b"whole 3"]
    assert weights(trainer.stage) == WHOLE


def test_without_checkpoints_it_starts_anew_and_says_so(trainer: Trainer) -> None:
    trainer.stage.set(train={"checkpoints": None})
    trainer.notices = [5]
    train(trainer.stage.run)
    assert trainer.seen == [None, None]
    assert "the training starts anew: there is no train.checkpoints" in trainer.stage.log
    assert weights(trainer.stage) == WHOLE


def test_a_failed_training_is_no_preemption_and_its_checkpoints_come_home(trainer: Trainer) -> None:
    trainer.notices, trainer.heeds = [4], False
    trainer.before["ending"] = lambda: setattr(trainer, "ending", "no \n")
    with pytest.raises(Failure) as caught:
        train(trainer.stage.run)
    assert caught.value.exit_code == 20
    assert (trainer.stage.run.outputs / "checkpoints/step").read_bytes() == b"whole 3"


def test_without_another_vm_it_is_preempted_and_the_checkpoints_are_home(trainer: Trainer) -> None:
    stage = trainer.stage
    trainer.notices = [5]
    first = stage.applies

    def scarce(stack: FakeStack) -> None:
        if len([zone for one in stage.stacks for zone in one.tried]) > 1:
            stage.cloud.insert(stage.vm(zone=stack.variables["zone"]), refusal(ErrorClass.STOCKOUT))
        else:
            first(stack)

    stage.applies = scarce
    with pytest.raises(Failure) as caught:
        train(stage.run)
    assert caught.value.exit_code == 23
    assert (stage.run.outputs / "checkpoints/step").read_bytes() == b"whole 5"
    tried = [zone for one in stage.stacks for zone in one.tried]
    assert list(dict.fromkeys(tried[1:])) == [OTHER, THIRD, ZONE]
    assert not stage.cloud.vms


def test_it_does_not_go_on_for_ever(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "MOST_VMS", 3)
    moved: list[bool] = []
    monkeypatch.setattr(preemption, "move_out", lambda _, *, last_copy: moved.append(last_copy))
    trainer.notices = [2, 4, 6, 8]
    with pytest.raises(Failure) as caught:
        train(trainer.stage.run)
    assert caught.value.exit_code == 23
    assert trainer.seen == [None, b"whole 2", b"whole 4"]
    assert (trainer.stage.run.outputs / "checkpoints/step").read_bytes() == b"whole 6"
    assert moved == [True]


def test_whatever_ends_it_after_a_preemption_what_is_home_has_to_fit_into_the_artifacts(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[bool] = []
    monkeypatch.setattr(preemption, "move_out", lambda _, *, last_copy: moved.append(last_copy))
    trainer.notices = [5]
    code_is_gone = done("", 1, "fatal: could not read from remote repository")
    trainer.before["put"] = lambda: trainer.said.update(start=code_is_gone)
    with pytest.raises(Failure) as caught:
        train(trainer.stage.run)
    assert caught.value.exit_code not in (19, 23)
    assert (trainer.stage.run.outputs / "checkpoints/step").read_bytes() == b"whole 5"
    assert moved == [True]


def breaks_for_a_while(trainer: Trainer, verb: str) -> Callable[[], None]:
    """Something that happens: from then on the connection breaks at a question, until somebody waits."""

    def broken() -> None:
        trainer.said[verb] = done("", 255, "Connection reset by peer")
        trainer.stage.clock.at(1, lambda: trainer.said.pop(verb) and None)

    return broken


@pytest.mark.parametrize("verb", ["unpack", "put", "start"])
def test_a_connection_that_breaks_before_the_training_goes_on_loses_no_checkpoint(trainer: Trainer, verb: str) -> None:
    """A later try of the job would find this VM, and have nothing to put back there."""
    trainer.notices = [5]
    trainer.before["set-home"] = breaks_for_a_while(trainer, verb)
    train(trainer.stage.run)
    assert trainer.seen == [None, b"whole 5"]
    assert weights(trainer.stage) == WHOLE
    assert len(trainer.stage.stacks) == 2


def test_a_second_vm_that_lets_nobody_in_is_replaced_by_a_third(trainer: Trainer) -> None:
    stage = trainer.stage
    trainer.notices = [5]
    buys = stage.applies

    def deaf(stack: FakeStack) -> None:
        buys(stack)
        trainer.reachable = len(stage.stacks) != 2

    stage.applies = deaf
    train(stage.run)
    assert trainer.seen == [None, b"whole 5"]
    assert len(stage.stacks) == 3
    assert weights(stage) == WHOLE


@pytest.mark.parametrize("first", [True, False])
def test_what_breaks_time_after_time_ends_the_job(trainer: Trainer, first: bool) -> None:
    trainer.notices = [5]
    broken = done("", 255, "Connection reset by peer")
    trainer.before["unpack" if first else "set-home"] = lambda: trainer.said.update(unpack=broken)
    with pytest.raises(Failure) as caught:
        train(trainer.stage.run)
    assert caught.value.klass is ErrorClass.SSH
    assert trainer.verbs().count("unpack") == (1 if first else 2 + preemption.MOST_AGAIN)


def end_the_run(stage: Stage) -> None:
    """What a stop job does that finds no VM."""
    stage.cloud.rules.clear()


def test_a_run_that_somebody_has_ended_while_it_had_no_vm_gets_no_other_one(trainer: Trainer) -> None:
    stage = trainer.stage
    trainer.notices = [5]
    trainer.before["set-home"] = lambda: end_the_run(stage)
    with pytest.raises(Failure) as caught:
        train(stage.run)
    assert caught.value.exit_code == 23
    assert "somebody has ended" in caught.value.cause
    assert len(stage.stacks) == 1
    assert not stage.cloud.rules


def test_a_vm_that_was_bought_while_somebody_ended_the_run_goes_at_once(trainer: Trainer) -> None:
    stage = trainer.stage
    trainer.notices = [5]
    bought = stage.applies

    def stopped_meanwhile(stack: FakeStack) -> None:
        bought(stack)
        if trainer.seen:
            end_the_run(stage)

    stage.applies = stopped_meanwhile
    with pytest.raises(Failure) as caught:
        train(stage.run)
    assert caught.value.exit_code == 23
    assert len(stage.stacks) == 2
    assert not stage.cloud.vms
    assert not stage.cloud.rules
    assert (stage.run.outputs / "checkpoints/step").read_bytes() == b"whole 5"


@pytest.mark.parametrize("bought", [False, True])
def test_a_job_that_is_over_for_gitlab_keeps_no_other_vm(trainer: Trainer, bought: bool) -> None:
    stage = trainer.stage
    trainer.notices = [5]
    buys = stage.applies

    def over(stack: FakeStack) -> None:
        buys(stack)
        stage.forge.own_job_over = bool(trainer.seen)

    if bought:
        stage.applies = over
    else:
        trainer.before["set-home"] = lambda: setattr(stage.forge, "own_job_over", True)
    with pytest.raises(Failure) as caught:
        train(stage.run)
    assert "this job is over" in caught.value.cause
    assert len(stage.stacks) == (2 if bought else 1)
    assert not stage.cloud.vms


def test_no_third_vm_is_bought_when_the_second_has_used_up_the_time(trainer: Trainer) -> None:
    stage = trainer.stage
    trainer.notices = [5]
    buys = stage.applies

    def late(stack: FakeStack) -> None:
        buys(stack)
        if trainer.seen:
            stage.clock.time += 2400
            trainer.taken()

    stage.applies = late
    with pytest.raises(Failure) as caught:
        train(stage.run)
    assert caught.value.exit_code == 23
    assert "too short" in caught.value.cause
    assert len(stage.stacks) == 2


def test_no_vm_is_bought_for_the_last_minutes_of_the_job(trainer: Trainer) -> None:
    stage = trainer.stage
    trainer.notices = [5]

    def late() -> None:
        (vm,) = stage.cloud.vms.values()
        stage.clock.time = preemption.hard_end_of(vm) - preemption.LEAST_SECONDS

    trainer.before["ending"] = late
    with pytest.raises(Failure) as caught:
        train(stage.run)
    assert caught.value.exit_code == 23
    assert len(trainer.seen) == 1


def test_what_somebody_ends_is_not_brought_up_again(trainer: Trainer) -> None:
    stage = trainer.stage

    def ended() -> None:
        stage.cloud.vms.clear()
        trainer.reachable = False

    trainer.before["sums"] = ended
    with pytest.raises(Failure) as caught:
        train(stage.run)
    assert caught.value.exit_code == 23
    assert len(stage.stacks) == 1


def calls_of_an_undisturbed_run(folder: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        trainer = training_on(make_stage(folder), patch)
        train(trainer.stage.run)
        return len(trainer.calls)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> int:
    return calls_of_an_undisturbed_run(tmp_path_factory.mktemp("undisturbed"))


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whenever_vms_are_taken_away_the_weights_are_those_of_an_undisturbed_run(
    data: st.DataObject, calls: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        trainer = training_on(make_stage(tmp_path_factory.mktemp("run")), patch)
        stage = trainer.stage
        trainer.heeds = data.draw(st.booleans(), "heeds")
        trainer.notices = data.draw(st.lists(st.none() | st.integers(1, STEPS), max_size=3), "notices")
        trainer.vanishes = data.draw(st.lists(st.integers(0, calls), max_size=3), "vanishes")
        train(stage.run)
        assert weights(stage) == WHOLE
        # Nothing but whole checkpoints was ever put back, and none was older than one before.
        steps = [int(one.split()[-1]) if one else 0 for one in trainer.seen]
        assert steps == sorted(steps)
        assert not stage.cloud.vms
