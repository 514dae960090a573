"""Checkpoints on their way home and back: whole files, changed files, and nothing older over anything newer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fakes import Entry, Stage, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.steps import checkpoints as module
from glgpu.steps.checkpoints import Checkpoints, Home
from glgpu.steps.door import Guest

GUEST_HOME = "/home/glgpu/glgpu"


def following(stage: Stage, home: Home | None = None) -> Checkpoints:
    return Checkpoints(stage.run, Guest(stage.machine, GUEST_HOME), home if home is not None else Home())


def write(stage: Stage, name: str, data: bytes) -> None:
    """What the training does: the file is whole and closed."""
    stage.machine.files[name] = Entry(data, changed=stage.clock.now())


def at_home(stage: Stage) -> dict[str, bytes]:
    """What is here of the training."""
    found = [path for path in stage.run.outputs.rglob("*") if path.is_file()]
    return {str(path.relative_to(stage.run.outputs)): path.read_bytes() for path in found}


def test_only_what_has_changed_comes_home_and_only_below_the_path_of_the_checkpoints(stage: Stage) -> None:
    checkpoints = following(stage)
    write(stage, "checkpoints/a", b"1")
    write(stage, "checkpoints/deep/b", b"2")
    assert checkpoints.bring_home() == 2
    assert at_home(stage) == {"checkpoints/a": b"1", "checkpoints/deep/b": b"2"}
    stage.clock.time += 5
    write(stage, "checkpoints/a", b"3")
    assert checkpoints.bring_home() == 1
    assert at_home(stage)["checkpoints/a"] == b"3"
    stage.machine.calls.clear()
    assert checkpoints.bring_home() == 0
    assert stage.machine.verbs() == ["look"]


def test_a_file_that_comes_home_keeps_its_time(stage: Stage) -> None:
    write(stage, "checkpoints/a", b"1")
    written = stage.clock.now()
    stage.clock.time += 100
    following(stage).bring_home()
    assert (stage.run.outputs / "checkpoints/a").stat().st_mtime == pytest.approx(written)


def test_what_somebody_has_open_for_writing_is_left_alone(stage: Stage) -> None:
    checkpoints = following(stage)
    write(stage, "checkpoints/a", b"whole")
    checkpoints.bring_home()
    write(stage, "checkpoints/a", b"ha")
    stage.machine.open.add("checkpoints/a")
    assert checkpoints.bring_home() == 0
    assert at_home(stage) == {"checkpoints/a": b"whole"}


def test_what_changes_between_two_looks_is_left_for_the_next_time(stage: Stage) -> None:
    checkpoints = following(stage)
    write(stage, "checkpoints/a", b"hal")

    def go_on() -> None:
        stage.machine.kept["checkpoints/a"].data = b"half"

    stage.clock.at(0.5, go_on)
    assert checkpoints.bring_home() == 0
    assert at_home(stage) == {}
    write(stage, "checkpoints/a", b"whole")
    assert checkpoints.bring_home() == 1
    assert at_home(stage) == {"checkpoints/a": b"whole"}


@pytest.mark.parametrize("verb", ["sums", "send"])
def test_what_changes_while_it_is_sent_does_not_take_the_place_of_what_is_here(stage: Stage, verb: str) -> None:
    checkpoints = following(stage)
    write(stage, "checkpoints/a", b"whole")
    checkpoints.bring_home()
    write(stage, "checkpoints/a", b"newer")

    def go_on() -> None:
        stage.machine.kept["checkpoints/a"].data = b"newer, and more"

    stage.machine.before[verb] = go_on
    assert checkpoints.bring_home() == 0
    assert at_home(stage) == {"checkpoints/a": b"whole"}


def test_a_version_that_the_program_replaces_meanwhile_comes_home_all_the_same(stage: Stage) -> None:
    checkpoints = following(stage)
    write(stage, "checkpoints/a", b"one")
    stage.machine.before["send"] = lambda: write(stage, "checkpoints/a", b"another")
    assert checkpoints.bring_home() == 1
    assert at_home(stage) == {"checkpoints/a": b"one"}
    assert checkpoints.bring_home() == 1
    assert at_home(stage) == {"checkpoints/a": b"another"}


def test_a_transfer_that_breaks_changes_nothing_here(stage: Stage) -> None:
    checkpoints = following(stage)
    write(stage, "checkpoints/a", b"whole")
    checkpoints.bring_home()
    write(stage, "checkpoints/a", b"n" * 10_000)
    stage.machine.cut_at = [2000]
    with pytest.raises(Failure) as caught:
        checkpoints.bring_home()
    assert caught.value.klass is ErrorClass.SSH
    assert at_home(stage)["checkpoints/a"] == b"whole"
    assert checkpoints.bring_home() == 1
    assert at_home(stage)["checkpoints/a"] == b"n" * 10_000


def test_what_the_program_removes_stays_here_until_something_newer_has_come(stage: Stage) -> None:
    checkpoints = following(stage)
    write(stage, "checkpoints/1", b"1")
    checkpoints.bring_home()
    del stage.machine.files["checkpoints/1"]
    assert checkpoints.bring_home() == 0
    assert at_home(stage) == {"checkpoints/1": b"1"}
    write(stage, "checkpoints/2", b"2")
    checkpoints.bring_home()
    assert at_home(stage) == {"checkpoints/2": b"2"}


@pytest.mark.parametrize(("heeds", "expected"), [(True, b"last"), (False, b"first")])
def test_what_a_program_leaves_counts_if_it_ended_by_itself_and_else_only_what_was_seen_whole(
    stage: Stage, heeds: bool, expected: bytes
) -> None:
    checkpoints = following(stage)
    write(stage, "checkpoints/a", b"first")
    checkpoints.bring_home()
    stage.clock.time += 5
    write(stage, "checkpoints/a", b"last")
    checkpoints.bring_last(20, heeds=heeds, outputs=True)
    assert at_home(stage)["checkpoints/a"] == expected


def test_outputs_of_a_program_that_was_cut_off_come_home_if_two_looks_saw_them_the_same(stage: Stage) -> None:
    checkpoints = following(stage)
    write(stage, "weights/1", b"one")
    stage.machine.files.pop("weights/w.bin")
    checkpoints.bring_home()
    checkpoints.bring_home()
    write(stage, "weights/2", b"hal")
    assert checkpoints.bring_last(20, heeds=False, outputs=True) == 1
    assert at_home(stage) == {"weights/1": b"one"}


def test_what_is_home_goes_back_and_is_not_fetched_again(stage: Stage) -> None:
    home = Home()
    write(stage, "checkpoints/a", b"1")
    following(stage, home).bring_home()
    stage.machine.files, stage.machine.kept = {}, {}
    again = following(stage, home)
    assert again.put_back() == (1, 1)
    assert stage.machine.files == {"checkpoints/a": Entry(b"1")}
    assert again.bring_home() == 0


def test_a_vm_that_takes_nothing_is_not_waited_for_without_end(stage: Stage) -> None:
    home = Home()
    write(stage, "checkpoints/a", b"1")
    following(stage, home).bring_home()
    stage.machine.allowed.clear()
    following(stage, home).put_back()
    assert stage.machine.allowed == [module.BRING_SECONDS]


def test_nothing_goes_back_that_this_job_did_not_bring(stage: Stage) -> None:
    other = stage.run.outputs / "checkpoints/of-another-run"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"x")
    assert following(stage).put_back() == (0, 0)
    assert "put" not in stage.machine.verbs()


def test_what_arrives_otherwise_than_it_is_here_is_no_checkpoint(stage: Stage) -> None:
    home = Home()
    write(stage, "checkpoints/a", b"1")
    following(stage, home).bring_home()
    stage.machine.sums_wrong = 1
    with pytest.raises(Failure) as caught:
        following(stage, home).put_back()
    assert caught.value.klass is ErrorClass.SSH


def run_until_looked(checkpoints: Checkpoints, stage: Stage) -> None:
    """Let the time of a look come, and wait for whoever looks."""
    stage.clock.time += module.LOOK_SECONDS
    checkpoints.beat()
    for thread in threading.enumerate():
        if thread.name == "checkpoints":
            thread.join(10)
    checkpoints.beat()


def test_a_beat_sees_that_somebody_looks_and_does_not_wait_for_him(stage: Stage) -> None:
    write(stage, "checkpoints/a", b"1")
    checkpoints = following(stage)
    checkpoints.beat()
    assert stage.machine.verbs() == []
    run_until_looked(checkpoints, stage)
    assert at_home(stage) == {"checkpoints/a": b"1"}


def test_where_no_checkpoints_are_set_nobody_looks(stage: Stage) -> None:
    stage.set(train={"checkpoints": None})
    run_until_looked(following(stage), stage)
    assert stage.machine.verbs() == []


def test_a_full_disk_here_is_said_once_and_ends_nothing(stage: Stage, tmp_path: Path) -> None:
    write(stage, "checkpoints/a", b"1")
    (tmp_path / "outputs").mkdir(exist_ok=True)
    (tmp_path / "outputs/checkpoints").write_text("in the way")
    checkpoints = following(stage)
    run_until_looked(checkpoints, stage)
    run_until_looked(checkpoints, stage)
    assert stage.log.count("checkpoints do not come home") == 1


def test_a_connection_that_breaks_is_not_the_checkpoints_to_tell(stage: Stage) -> None:
    stage.machine.refuse["look"] = refusal(ErrorClass.SSH)
    run_until_looked(following(stage), stage)
    assert stage.log == ""


@pytest.mark.parametrize(("end_at", "verbs"), [("look", ["look"]), ("keep", ["look", "keep", "look"])])
def test_after_the_end_nothing_more_is_asked_of_the_vm(stage: Stage, end_at: str, verbs: list[str]) -> None:
    """Whoever brings the last of it home keeps and chooses there, too."""
    checkpoints = following(stage)
    write(stage, "checkpoints/a", b"1")
    stage.machine.before[end_at] = lambda: checkpoints.end(0)
    assert checkpoints.bring_home() == 0
    assert stage.machine.verbs() == verbs


def test_after_the_end_what_is_still_under_way_changes_nothing(stage: Stage) -> None:
    checkpoints = following(stage)
    write(stage, "checkpoints/a", b"1")
    stage.machine.before["send"] = lambda: checkpoints.end(0)
    assert checkpoints.bring_home() == 0
    assert at_home(stage) == {}
