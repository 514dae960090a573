"""Time is known: a training is told to end while there is time for its outputs to come home."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes import FakeMachine, FakeStream, Stage, done, refusal, words_of
from glgpu.errors import ErrorClass, Failure
from glgpu.job_times import CLOSING_SECONDS, STOP_GRACE_SECONDS
from glgpu.stages.provision import provision
from glgpu.stages.train import train
from glgpu.steps.deadline import AGAIN_SECONDS, LATE_SECONDS

SCRIPT = 2 * 3600 + 35 * 60
HOME = 10 * 60
ENDING = STOP_GRACE_SECONDS + HOME + CLOSING_SECONDS


class Lasting(FakeMachine):
    """A VM whose container runs until it is told to end, a second a look."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.ends_with = 143
        """What it makes of SIGTERM."""
        self.deaf = False
        """Whether it goes on all the same."""
        self.told_at: list[float] = []

    def _answer(self, verb: str, words: list[str]) -> Any:
        if verb == "end":
            self.told_at.append(self.stage.clock.now())
            if not self.deaf:
                self._end(self.ends_with)
            return done("")
        return super()._answer(verb, words)

    @contextmanager
    def stream(self, script: str, *, timeout: float | None = None) -> Iterator[FakeStream]:
        if words_of(script)[0] != "logs" or not self.reachable:
            with super().stream(script, timeout=timeout) as stream:
                yield stream
            return
        machine, stage = self, self.stage

        class Following(FakeStream):
            def chunks(self, quiet: float | None = None) -> Iterator[bytes]:
                assert quiet is not None
                while machine.container and machine.container["Running"]:
                    stage.clock.sleep(1.0)
                    if not machine.reachable:
                        self.code = 255
                        return
                    yield b""

        yield Following(0, [], "")


def long_training(stage: Stage, **job: Any) -> Lasting:
    """A run whose training goes on and on, with its VM brought up."""
    machine = Lasting(stage)
    stage.machine = machine
    stage.use(connect=lambda *_: machine)
    stage.job(started_at=stage.clock.now(), **job)
    provision(stage.run)
    return machine


def code_of(stage: Stage) -> int:
    with pytest.raises(Failure) as caught:
        train(stage.run)
    return caught.value.exit_code


def test_it_is_told_before_the_job_ends_its_outputs_come_home_and_the_vm_goes(stage: Stage) -> None:
    begun = stage.clock.now()
    machine = long_training(stage)
    assert code_of(stage) == 22
    assert machine.told_at == [pytest.approx(begun + SCRIPT - ENDING, abs=3)]
    assert (stage.run.outputs / "weights/w.bin").exists()
    assert stage.cloud.vms == {}
    told = stage.run.record.find("told-to-end")
    assert told is not None
    assert told.facts["why"] == "the job's time is over"
    assert ("end", str(STOP_GRACE_SECONDS)) in machine.calls
    assert "the training may go on for 2 h 24 min" in stage.log


def test_who_ends_well_in_the_grace_has_ended_well(stage: Stage) -> None:
    long_training(stage).ends_with = 0
    train(stage.run)
    assert stage.run.record.find("told-to-end") is not None
    assert stage.cloud.vms == {}


@pytest.mark.parametrize("ahead", [-3600.0, -600.0, 600.0, 3600.0])
def test_gitlabs_clock_tells_how_long_the_job_runs(stage: Stage, ahead: float) -> None:
    machine = long_training(stage)
    begun = stage.clock.now()
    stage.forge.time = lambda: stage.clock.now() + ahead
    stage.job(started_at=begun + ahead - 1000)
    assert code_of(stage) == 22
    assert machine.told_at == [pytest.approx(begun - 1000 + SCRIPT - ENDING, abs=3)]


def test_without_gitlab_this_machines_clock_has_to_do(stage: Stage) -> None:
    machine = long_training(stage)
    begun = stage.clock.now()
    stage.forge.refuse["server_time"] = refusal(ErrorClass.NETWORK)
    stage.job(started_at=begun - 1000)
    assert code_of(stage) == 22
    assert machine.told_at == [pytest.approx(begun - 1000 + SCRIPT - ENDING, abs=3)]


def test_a_beginning_that_is_yet_to_come_is_now(stage: Stage) -> None:
    machine = long_training(stage)
    begun = stage.clock.now()
    stage.forge.refuse["server_time"] = refusal(ErrorClass.NETWORK)
    stage.job(started_at=begun + 900)
    assert code_of(stage) == 22
    assert machine.told_at == [pytest.approx(begun + SCRIPT - ENDING, abs=3)]


def test_a_retried_job_has_its_own_time(stage: Stage) -> None:
    machine = long_training(stage)

    def dies() -> None:
        raise refusal(ErrorClass.INTERRUPTED)

    stage.clock.at(1800, dies)
    assert code_of(stage) == 19
    begun = stage.clock.now()
    stage.job(started_at=begun)
    assert code_of(stage) == 22
    assert machine.told_at == [pytest.approx(begun + SCRIPT - ENDING, abs=3)]


def test_the_runners_own_limit_counts(stage: Stage) -> None:
    machine = long_training(stage, own_timeout=3600.0)
    begun = stage.clock.now()
    assert code_of(stage) == 22
    assert machine.told_at == [pytest.approx(begun + 3600 - HOME - ENDING, abs=3)]


def test_a_limit_that_leaves_no_time_is_refused_before_the_training_starts(stage: Stage) -> None:
    machine = long_training(stage, own_timeout=900.0)
    assert code_of(stage) == 2
    assert "start" not in machine.verbs()


def test_the_vms_end_counts_where_it_comes_first(stage: Stage) -> None:
    stage.set(machine={"max_hours": 1})
    machine = long_training(stage)
    begun = stage.clock.now()
    assert code_of(stage) == 22
    assert machine.told_at == [pytest.approx(begun + 3600 - ENDING, abs=3)]
    told = stage.run.record.find("told-to-end")
    assert told is not None
    assert told.facts["why"] == "Compute Engine deletes the VM"


@pytest.mark.parametrize("ahead", [-600.0, 600.0])
def test_googles_clock_tells_how_old_the_vm_is(stage: Stage, ahead: float) -> None:
    machine = long_training(stage)
    begun = stage.clock.now()
    created = datetime.fromtimestamp(begun + ahead - 100, UTC).isoformat()
    stage.cloud.change(stage.name, "europe-west4-a", created=created, max_run_seconds=3600)
    stage.use(google_time=lambda: stage.clock.now() + ahead)
    assert code_of(stage) == 22
    assert machine.told_at == [pytest.approx(begun - 100 + 3600 - ENDING, abs=3)]


def test_without_google_what_bring_up_wrote_counts(stage: Stage) -> None:
    stage.set(machine={"max_hours": 1})
    machine = long_training(stage)
    begun = stage.clock.now()
    created = datetime.fromtimestamp(begun, UTC).isoformat()
    stage.cloud.change(stage.name, "europe-west4-a", created=created, max_run_seconds=7200)

    def nobody() -> float:
        raise refusal(ErrorClass.NETWORK)

    stage.use(google_time=nobody)
    assert code_of(stage) == 22
    assert machine.told_at == [pytest.approx(begun + 3600 - ENDING, abs=3)]


def test_a_vm_that_cannot_be_told_is_left_to_the_teardown(stage: Stage) -> None:
    machine = long_training(stage)
    begun = stage.clock.now()
    stage.clock.at(SCRIPT - ENDING - 60, lambda: setattr(machine, "reachable", False))
    assert code_of(stage) == 22
    patience = STOP_GRACE_SECONDS + LATE_SECONDS
    assert stage.clock.now() == pytest.approx(begun + SCRIPT - ENDING + patience, abs=AGAIN_SECONDS + 5)
    assert stage.cloud.vms != {}
    assert stage.log.count("glgpu: telling the training to end: the connection to the VM broke") > 3


def test_a_vm_that_can_be_reached_again_in_time_is_told_then(stage: Stage) -> None:
    machine = long_training(stage)
    stage.clock.at(SCRIPT - ENDING - 60, lambda: setattr(machine, "reachable", False))
    stage.clock.at(SCRIPT - ENDING + 20, lambda: setattr(machine, "reachable", True))
    assert code_of(stage) == 22
    assert len(machine.told_at) == 1
    assert stage.cloud.vms == {}


def test_a_container_that_does_not_end_is_left_to_the_teardown(stage: Stage) -> None:
    machine = long_training(stage)
    machine.deaf = True
    begun = stage.clock.now()
    assert code_of(stage) == 22
    assert stage.clock.now() < begun + SCRIPT - HOME
    assert len(machine.told_at) == 1
    assert stage.cloud.vms != {}


def test_outputs_have_until_the_end_of_the_job_and_no_longer(stage: Stage) -> None:
    machine = long_training(stage)
    assert code_of(stage) == 22
    sent = machine.allowed[-1]
    assert sent is not None
    assert HOME <= sent <= HOME + STOP_GRACE_SECONDS


def test_a_job_that_gitlab_has_given_up_does_not_end_what_another_one_follows(stage: Stage) -> None:
    machine = long_training(stage)
    stage.forge.own_job_over = True
    assert code_of(stage) == 19
    assert machine.told_at == []
    assert stage.cloud.vms != {}


def test_a_signal_while_it_is_told_is_a_signal(stage: Stage) -> None:
    machine = long_training(stage)
    machine.refuse["end"] = refusal(ErrorClass.INTERRUPTED)
    assert code_of(stage) == 19


def test_a_laptop_without_max_hours_has_a_day(stage: Stage) -> None:
    stage.job(job_id="")
    machine = long_training(stage)
    begun = stage.clock.now()
    assert code_of(stage) == 22
    assert machine.told_at == [pytest.approx(begun + 24 * 3600 - ENDING, abs=3)]


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(lost=st.lists(st.tuples(st.integers(0, SCRIPT), st.integers(1, 590)), max_size=4), deaf=st.booleans())
def test_whenever_the_network_drops_the_job_is_over_in_time_and_weights_are_home_or_on_the_vm(
    tmp_path_factory: pytest.TempPathFactory, lost: list[tuple[int, int]], deaf: bool
) -> None:
    from fakes import make_stage

    stage = make_stage(tmp_path_factory.mktemp("drops"))
    machine = long_training(stage)
    machine.deaf = deaf
    begun = stage.clock.now()
    for at, seconds in lost:
        stage.clock.at(at, lambda: setattr(machine, "reachable", False))
        stage.clock.at(at + seconds, lambda: setattr(machine, "reachable", True))
    assert code_of(stage) in (13, 22)
    assert stage.clock.now() <= begun + SCRIPT
    home = (stage.run.outputs / "weights/w.bin").exists()
    assert home or stage.cloud.vms, "neither at home nor on a VM"
    assert not (home and stage.cloud.vms)
