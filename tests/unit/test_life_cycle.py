"""The whole life from a laptop: whatever happens, it ends with the teardown."""

from __future__ import annotations

import pytest

from fakes import Stage, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.life_cycle import whole_life


@pytest.fixture
def laptop(stage: Stage) -> Stage:
    stage.job(job_id="")
    return stage


def never() -> bool:
    raise AssertionError("nobody is asked")


def left(stage: Stage) -> list[object]:
    return [*stage.cloud.vms, *stage.cloud.rules, *stage.forge.states, *stage.forge.keys]


def failing(stage: Stage) -> Failure:
    with pytest.raises(Failure) as caught:
        whole_life(stage.run, never)
    return caught.value


def test_a_good_run_leaves_weights_and_nothing_else(laptop: Stage) -> None:
    whole_life(laptop.run, never)
    assert (laptop.run.outputs / "weights/w.bin").exists()
    assert left(laptop) == []
    assert len(laptop.stacks) == 1


def test_a_failed_provision_ends_with_the_teardown(laptop: Stage) -> None:
    laptop.machine.reachable = False
    assert failing(laptop).exit_code == 13
    assert left(laptop) == []


def test_a_failed_training_ends_with_the_teardown(laptop: Stage) -> None:
    laptop.machine.exit_code = 3
    assert failing(laptop).exit_code == 20
    assert left(laptop) == []


def test_a_mistake_of_our_own_ends_with_the_teardown(laptop: Stage) -> None:
    def mistake() -> None:
        raise RuntimeError("a mistake")

    laptop.machine.before["start"] = mistake
    with pytest.raises(RuntimeError):
        whole_life(laptop.run, never)
    assert left(laptop) == []


def test_still_alive_counts_before_a_failed_training(laptop: Stage) -> None:
    laptop.machine.exit_code = 3
    laptop.cloud.stubborn = True
    assert failing(laptop).exit_code == 30


def test_ctrl_c_asks_and_yes_saves_and_tears_down(laptop: Stage) -> None:
    laptop.machine.refuse["logs"] = refusal(ErrorClass.INTERRUPTED)
    asked: list[bool] = []

    def yes() -> bool:
        asked.append(True)
        return True

    with pytest.raises(Failure) as caught:
        whole_life(laptop.run, yes)
    assert (caught.value.exit_code, asked) == (19, [True])
    assert (laptop.run.outputs / "weights/w.bin").exists()
    assert left(laptop) == []


def test_ctrl_c_asks_and_no_goes_on_with_the_same_training(laptop: Stage) -> None:
    laptop.machine.refuse["logs"] = refusal(ErrorClass.INTERRUPTED)

    def no() -> bool:
        laptop.machine.refuse.clear()
        return False

    whole_life(laptop.run, no)
    assert laptop.machine.verbs().count("start") == 1
    assert left(laptop) == []


def test_nobody_loses_a_vm_of_trains_own_before_being_asked(laptop: Stage) -> None:
    """The VM of provision is preempted; the one that train brings up must live until the answer."""
    laptop.machine.refuse["logs"] = refusal(ErrorClass.INTERRUPTED)
    laptop.machine.before["ends"] = lambda: laptop.cloud.before.update(find=laptop.cloud.vms.clear)
    alive: list[int] = []

    def yes() -> bool:
        alive.append(len(laptop.cloud.vms))
        return True

    with pytest.raises(Failure):
        whole_life(laptop.run, yes)
    assert alive == [1]
    assert left(laptop) == []


def test_ctrl_c_during_provision_asks_nothing_and_tears_down(laptop: Stage) -> None:
    laptop.machine.refuse["gpu"] = refusal(ErrorClass.INTERRUPTED)
    assert failing(laptop).exit_code == 19
    assert left(laptop) == []
