"""What is printed: masked, within the job log's budget, and never a reason to stop."""

from __future__ import annotations

import contextlib
import errno
import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glgpu.console import LOG_BUDGET, LONGEST_EVIDENCE, LONGEST_LINE, PROGRESS_SECONDS, Console, TrainingLog, bug
from glgpu.errors import ErrorClass, Failure
from glgpu.masking import Masker

JOB_LOG = 4_194_304
"""What GitLab Runner keeps of a job's log (its `output_limit`)."""


class Clock:
    def __init__(self) -> None:
        self.time = 1763930000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class Screen:
    """A console and what stands on it."""

    def __init__(self, secret: str = "", *, sections: bool = False) -> None:
        self.stream, self.clock = io.BytesIO(), Clock()
        masker = Masker()
        masker.add(secret)
        self.console = Console(masker, stream=self.stream, sections=sections, clock=self.clock)

    @property
    def data(self) -> bytes:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[str]:
        return self.data.decode().splitlines()

    def log(self, budget: int = LOG_BUDGET, tail: int = 200_000) -> TrainingLog:
        return TrainingLog(self.console, "outputs/glgpu/train.log", budget=budget, tail=tail)


def shown(*writes: bytes, wait: float = 0, **options: int) -> list[str]:
    screen = Screen()
    log = screen.log(**options)
    for data in writes:
        log.feed(data)
        screen.clock.time += wait
    log.close()
    return screen.lines


def test_a_line_is_printed_without_the_secrets_in_it() -> None:
    screen = Screen("hunter2")
    screen.console.say("the password is hunter2")
    screen.console.say("a name \udcff and a \ud800 are no obstacle")
    assert screen.data == b"the password is [MASKED]\n" + b"a name ? and a ? are no obstacle\n"


def test_a_section_bears_gitlabs_marks_and_its_duration() -> None:
    screen = Screen(sections=True)
    with contextlib.suppress(KeyError), screen.console.section("bring up/1", "A VM"):
        screen.clock.time += 7
        raise KeyError
    text = screen.data.decode()
    begin = re.match(r"\x1b\[0Ksection_start:(\d+):([A-Za-z0-9_.-]+)\r\x1b\[0K.*A VM", text)
    end = re.search(r"\x1b\[0Ksection_end:(\d+):([A-Za-z0-9_.-]+)\r\x1b\[0K$", text)
    assert begin
    assert end
    assert begin[2] == end[2]
    assert int(end[1]) - int(begin[1]) == 7
    assert "A VM: 7.0 s" in text


def test_outside_gitlab_a_section_is_a_plain_header() -> None:
    screen = Screen()
    with screen.console.section("vm", "A VM"):
        pass
    assert screen.lines == ["== A VM", "   A VM: 0.0 s"]


def test_a_failure_ends_with_its_cause_and_its_remedy() -> None:
    screen = Screen("hunter2")
    screen.console.failure(Failure(ErrorClass.SSH, "no\nway hunter2", "try\tagain", "first\nlast hunter2\n"))
    assert screen.lines[-2:] == ["glgpu: SSH (exit code 13): no way [MASKED]", "glgpu: remedy: try again"]
    assert "  last [MASKED]" in screen.lines


def test_a_failure_fits_into_the_log_beside_a_training_that_used_all_of_it() -> None:
    screen = Screen("hunter2" * 3)
    endless = ("x" * (LONGEST_EVIDENCE - 3) + "hunter2" * 3 + "y" * 5_000_000 + "\n") * 3
    screen.console.failure(Failure(ErrorClass.UNKNOWN, endless, endless, endless + "line\n" * 1000))
    assert len(screen.data) < (JOB_LOG - LOG_BUDGET) / 4
    screen.console.failure(Failure(ErrorClass.UNKNOWN, endless, endless, endless))
    assert b"hunter2" not in screen.data
    assert not re.search(rb"xhun[^t]", screen.data), "half a secret"


def test_an_unforeseen_exception_keeps_its_trace_as_evidence() -> None:
    failure = bug(ValueError("odd\nvalue"), "Traceback ...")
    assert (failure.klass, failure.exit_code, failure.evidence) == (ErrorClass.BUG, 1, "Traceback ...")
    assert "ValueError: odd value" in failure.cause
    assert "glgpu destroy" in failure.remedy


def test_a_table_has_columns() -> None:
    screen = Screen()
    screen.console.table(["name", "zone"], [["a", "europe-west1-b"], ["longer", ""]])
    assert screen.lines == ["name    zone", "a       europe-west1-b", "longer"]
    Screen().console.table(["empty"], [])


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left"), ValueError("closed file")])
def test_an_audience_that_is_gone_does_not_stop_the_work(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Gone:
        def write(self, data: bytes) -> None:
            tried.append(data)
            raise error

    console = Console(Masker(), stream=io.BytesIO())
    monkeypatch.setattr(console, "_stream", Gone())
    console.say("anybody there?")
    assert tried == [b"anybody there?\n"]


# The training's output


def test_a_broken_pipe_is_remembered_and_a_full_disk_is_none() -> None:
    class Refusing(io.BytesIO):
        def __init__(self, error: OSError) -> None:
            super().__init__()
            self.error = error

        def write(self, _data: object, /) -> int:
            raise self.error

    for error, unheard in ((OSError(errno.ENOSPC, "full"), False), (BrokenPipeError(errno.EPIPE, "gone"), True)):
        console = Console(Masker(), stream=Refusing(error))
        console.say("hello?")
        assert console.unheard is unheard


def test_ordinary_lines_are_shown_as_they_come() -> None:
    screen = Screen()
    log = screen.log()
    log.feed(b"epoch 1\nepo")
    assert screen.lines == ["epoch 1"]
    log.feed(b"ch 2\n\n")
    assert screen.lines == ["epoch 1", "epoch 2", ""]


def test_the_last_line_is_shown_even_without_an_end() -> None:
    assert shown(b"epoch 1\nTraceback: no memory") == ["epoch 1", "Traceback: no memory"]
    assert shown(b"50%\r100%\r") == ["100%"]
    assert shown(b"50%\r100%") == ["100%"]


def test_a_line_of_5_mb_is_cut_and_says_so() -> None:
    lines = shown(*[b"x" * 50_000] * 100, b"\nnext\n")
    assert lines[0] == "x" * LONGEST_LINE + f" ... ({5_000_000 - LONGEST_LINE} more bytes of this line are in " + (
        "outputs/glgpu/train.log)"
    )
    assert lines[1:] == ["next"]


def test_bytes_that_are_no_utf_8_become_what_gitlab_can_show() -> None:
    screen = Screen()
    log = screen.log()
    log.feed(bytes(range(14, 256)) + b"\n" + "grün".encode()[:3] + b"\n")
    log.close()
    text = screen.data.decode("utf-8", "strict")
    assert text.splitlines()[-1] == "gr\N{REPLACEMENT CHARACTER}"
    assert len(text.split("\n")) == 3


@given(data=st.data())
def test_it_does_not_matter_where_the_writes_are_cut(data: st.DataObject) -> None:
    whole = b"".join(data.draw(st.lists(st.sampled_from([b"a", b"bc", b"\r", b"\n", b"\r\n", b"\xff"]), max_size=25)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert shown(*pieces) == shown(whole)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r\r\n"])
def test_a_windows_line_end_is_a_line_end_also_across_two_writes(end: bytes) -> None:
    assert shown(b"one" + end[:-1], end[-1:] + b"two" + end, wait=PROGRESS_SECONDS) == ["one", "two"]


def test_a_progress_bar_becomes_a_line_now_and_then_and_its_last_state_always() -> None:
    states = [f"\r{percent}%".encode() for percent in range(101)]
    assert shown(*states, b"\ndone\n", wait=1) == [f"{n}%" for n in range(9, 100, 10)] + ["100%", "done"]


def test_a_progress_bar_without_hurry_shows_its_end_only() -> None:
    assert shown(b"10%\r20%\r30%\n") == ["30%"]


@settings(max_examples=50)
@given(
    lines=st.lists(st.tuples(st.binary(max_size=300), st.integers(1, 60)), max_size=60),
    budget=st.integers(1500, 6000),
)
def test_the_budget_holds_whatever_comes_and_head_and_tail_are_shown(
    lines: list[tuple[bytes, int]], budget: int
) -> None:
    screen = Screen()
    log = screen.log(budget=budget, tail=900)
    written = []
    for line, times in lines:
        clean = line.replace(b"\r", b"").replace(b"\n", b"")
        for _ in range(times):
            log.feed(clean + b"\n")
            written.append(clean.decode("utf-8", "replace"))
    log.close()
    assert len(screen.data) <= budget
    seen = screen.data.decode().split("\n")[:-1]
    if seen == written:
        return
    (full,) = [number for number, line in enumerate(seen) if line.startswith("glgpu: the job log is nearly full")]
    head, tail = seen[:full], seen[full + 1 :]
    skipped = re.match(r"glgpu: (\d+) lines left out here", tail[0])
    left_out = int(skipped[1]) if skipped else 0
    tail = tail[1:] if skipped else tail
    assert tail
    assert head == written[: len(head)]
    assert tail == written[len(head) + left_out :]


def test_a_training_that_prints_far_too_much_stays_below_3_mb() -> None:
    screen = Screen()
    log = screen.log()
    for number in range(100_000):
        log.feed(b"%08d " % number + b"x" * 90 + b"\n")
    log.close()
    assert 2_900_000 < len(screen.data) <= LOG_BUDGET
    assert screen.lines[0].startswith("00000000")
    assert screen.lines[-1].startswith("00099999")
    assert sum("outputs/glgpu/train.log" in line for line in screen.lines) == 2
