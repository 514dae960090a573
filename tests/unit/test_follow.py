"""Following a training: in one job no line is lost and none comes twice, whatever happens to job and connection."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from docker_log import PIECE, DockerLog
from fakes import FakeMachine, FakeStream, Stage, make_stage, refusal, words_of
from glgpu.console import EARLIER_LINES, LIVE_REMARK, LONGEST_LINE
from glgpu.errors import ErrorClass, Failure
from glgpu.steps.container import Container, Ended
from glgpu.steps.door import Way
from glgpu.steps.follow import follow

HEADING = re.compile(
    r"glgpu: the last (\d+) lines of what the training printed before; all of it is in outputs/glgpu/train.log"
)


@dataclass(frozen=True)
class Moment:
    """What becomes of one connection to the log.

    Attributes:
        printed: How much of its output the program has printed by then, at least.
        breaks: After which part of what it would bring it breaks; None: not at all.
        dies: Whether the job dies with it.
    """

    printed: float
    breaks: float | None = None
    dies: bool = False


class Printing(FakeMachine):
    """A VM whose container prints while nobody looks, and ends once somebody has followed it to its end."""

    def __init__(self, log: DockerLog, moments: list[Moment]) -> None:
        super().__init__()
        self.container = {"Running": True, "ExitCode": 0, "OOMKilled": False}
        self.caught_up_with = 0
        """How many pieces had been printed when the last job had read what there was."""
        self._log = log
        self._moments = moments
        self._printed = 0

    @contextmanager
    def stream(self, script: str, *, timeout: float | None = None) -> Iterator[FakeStream]:
        self.allowed.append(timeout)
        verb, (since,) = words_of(script)
        moment = self._moments.pop(0) if self._moments else Moment(1.0)
        pieces = len(self._log.pieces)
        self._printed = max(self._printed, round(moment.printed * pieces))
        data = self._log.logs(since, self._printed if verb == "logged" else None)
        if verb == "logs":
            self._printed = pieces if moment.breaks is None else self._printed
        if moment.breaks is None:
            if verb == "logged":
                self.caught_up_with = self._printed
            else:
                self._end(self.exit_code)
            yield FakeStream(0, [data], "")
            return
        part = data[: round(len(data) * moment.breaks)]
        # What came over a connection has been printed, the piece that was cut off included.
        seen = part.count(b"\n") if verb == "logs" else 0
        self._printed = max(self._printed, min(pieces, seen + 1) if part and verb == "logs" else 0)
        stream = FakeStream(255, [part], "client_loop: send disconnect: Broken pipe")
        yield stream
        if moment.dies:
            raise refusal(ErrorClass.INTERRUPTED)


def follow_once(stage: Stage, machine: FakeMachine, *, taken_up: bool) -> Ended:
    vm = stage.vm()
    stage.cloud.insert(vm)
    way = Way(stage.run, vm)
    way.open()
    return follow(stage.run, Container(stage.run, machine, vm, way), taken_up=taken_up)


def whole_log(stage: Stage) -> bytes:
    return (stage.run.outputs / "glgpu/train.log").read_bytes()


def shown(line: bytes) -> str:
    text = line.removesuffix(b"\n").decode()
    more = len(text) - LONGEST_LINE
    return (
        text
        if more <= 0
        else f"{text[:LONGEST_LINE]} ... ({more} more bytes of this line are in outputs/glgpu/train.log)"
    )


def of_the_training(stage: Stage) -> list[str]:
    """What of the job log is the training's."""
    return [line for line in stage.log.splitlines() if not line.startswith("glgpu: ")]


MOMENTS = st.lists(st.builds(Moment, st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1)), st.booleans()), max_size=8)
LENGTHS = st.lists(
    st.tuples(st.sampled_from([6, 6, 6, 40, PIECE - 1, PIECE, 2 * PIECE + 5]), st.sampled_from([0, 1, 1])), max_size=130
)


@given(lengths=LENGTHS, moments=MOMENTS)
@example([(6, 0)] * 120, [Moment(0.9, 0.5), Moment(0.9, 0.3, dies=True), Moment(0.95), Moment(1.0, 0.1)])
@example([(6, 1)] * 3, [Moment(0.5, 0.0, dies=True), Moment(0.5, 0.7, dies=True), Moment(0.4)])
def test_no_line_is_lost_and_none_comes_twice_however_often_connections_break_and_jobs_die(
    lengths: list[tuple[int, int]], moments: list[Moment]
) -> None:
    lines = [
        (f"{number:05d}".encode() + b"x" * (length - 6) + b"\n", later)
        for number, (length, later) in enumerate(lengths)
    ]
    log = DockerLog(lines)
    machine = Printing(log, list(moments))
    taken_up = False
    for _ in range(len(moments) + 1):
        with tempfile.TemporaryDirectory() as folder:
            stage = make_stage(Path(folder))
            ended = None
            with suppress(Failure):  # the job dies
                ended = follow_once(stage, machine, taken_up=taken_up)
            if ended is None:
                assert log.content.startswith(whole_log(stage))
                taken_up = True
                continue
            assert ended == Ended(0, False)
            assert whole_log(stage) == log.content
            before = b"".join(piece for _, piece in log.pieces[: machine.caught_up_with if taken_up else 0]).count(
                b"\n"
            )
            assert of_the_training(stage) == [shown(line) for line, _ in lines[max(0, before - EARLIER_LINES) :]]
            heading = HEADING.search(stage.log)
            assert (int(heading[1]) if heading else 0) == min(before, EARLIER_LINES)
            assert (LIVE_REMARK in stage.log) == bool(before)
            return
    pytest.fail("no job saw the end")


def numbered(count: int) -> list[tuple[bytes, int]]:
    return [(f"line {number}\n".encode(), 1) for number in range(count)]


def test_a_job_that_starts_the_training_shows_all_of_it_without_a_heading(stage: Stage) -> None:
    log = DockerLog(numbered(80))
    follow_once(stage, Printing(log, []), taken_up=False)
    assert of_the_training(stage) == [f"line {number}" for number in range(80)]
    assert not HEADING.search(stage.log)


def test_a_job_that_takes_a_training_up_shows_its_last_fifty_lines_before_it_goes_on(stage: Stage) -> None:
    log = DockerLog(numbered(200))
    follow_once(stage, Printing(log, [Moment(0.5)]), taken_up=True)
    text = stage.log.splitlines()
    heading = next(at for at, line in enumerate(text) if HEADING.fullmatch(line))
    assert text[heading + 1 : heading + 52] == [*(f"line {number}" for number in range(50, 100)), LIVE_REMARK]
    assert text[heading + 52] == "line 100"
    assert text[-1] == "line 199"
    assert whole_log(stage) == log.content


def test_a_training_that_ended_meanwhile_is_told_by_its_last_lines_and_its_exit_code(stage: Stage) -> None:
    log = DockerLog(numbered(70))
    machine = Printing(log, [])
    machine.exit_code = 7
    assert follow_once(stage, machine, taken_up=True).code == 7
    assert of_the_training(stage) == [f"line {number}" for number in range(20, 70)]
    assert whole_log(stage) == log.content


def test_a_training_that_is_silent_shows_what_it_printed_before_without_waiting_for_more(stage: Stage) -> None:
    log, seen = DockerLog(numbered(3)), list[str]()

    class Silent(Printing):
        @contextmanager
        def stream(self, script: str, *, timeout: float | None = None) -> Iterator[FakeStream]:
            if words_of(script)[0] == "logs":
                seen.extend(of_the_training(stage))
            with super().stream(script, timeout=timeout) as stream:
                yield stream

    follow_once(stage, Silent(log, [Moment(1.0)]), taken_up=True)
    assert seen == ["line 0", "line 1", "line 2"]


def test_a_training_that_has_printed_nothing_yet_gets_no_heading(stage: Stage) -> None:
    follow_once(stage, Printing(DockerLog(numbered(3)), [Moment(0.0)]), taken_up=True)
    assert "the last" not in stage.log
    assert of_the_training(stage) == ["line 0", "line 1", "line 2"]


def test_megabytes_of_earlier_output_cost_the_job_log_fifty_lines(stage: Stage) -> None:
    log = DockerLog([(b"y" * 9_999 + b"\n", 1) for _ in range(500)])
    follow_once(stage, Printing(log, []), taken_up=True)
    assert len(stage.log) < EARLIER_LINES * (LONGEST_LINE + 100) + 1_000
    assert whole_log(stage) == log.content
