"""Real processes: groups, signals, dead pipes, time limits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from glgpu import processes
from glgpu.errors import ErrorClass, Failure
from glgpu.processes import Interrupts, Running, TimedOut, attached, environment, find_tool, need_tool, run, time_limit

SOON = 20.0
"""Seconds in which what is said to happen has happened, on the slowest machine."""
LONG = "1000"


def gone(pid: int) -> None:
    """Wait until a process is no more, or nobody's any more but the one that has to bury it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        end = time.monotonic() + SOON
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, f"{process.cmdline()} is still alive"
            time.sleep(0.01)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """Give pytest its signal handlers back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_a_process_gets_its_input_and_gives_what_it_says_and_how_it_ended() -> None:
    done = run(["sh", "-c", "cat; echo complaint >&2; exit 7"], stdin=b"input \xff")
    assert (done.code, done.stdout, done.text) == (7, b"input \xff", "input \N{REPLACEMENT CHARACTER}")
    assert (done.stderr, done.complaint) == (b"complaint\n", "complaint")
    assert list(done.argv) == ["sh", "-c", "cat; echo complaint >&2; exit 7"]


def test_a_program_at_our_terminal_writes_where_we_write(capfd: pytest.CaptureFixture[str]) -> None:
    assert attached([sys.executable, "-c", "print('hi'); raise SystemExit(3)"]) == 3
    assert capfd.readouterr().out == "hi\n"
    assert attached([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"]) == -15
    with pytest.raises(Failure) as caught:
        attached(["/no/such/program"])
    assert caught.value.klass is ErrorClass.TOOL_MISSING


def test_arguments_arrive_as_they_are() -> None:
    words = ["", " ", "a b", "$HOME", "`id`", "*", "\n", "-n", "ümlaut", "\udcff", "'\""]
    shown = run(python("import sys; print(ascii(sys.argv[1:]))") + words)
    assert shown.text.strip() == ascii(words)


def test_input_that_nobody_reads_is_no_error() -> None:
    assert run(["true"], stdin=b"x" * 10_000_000).code == 0


def test_output_larger_than_any_pipe_comes_whole() -> None:
    assert len(run(python("print('x' * 5_000_000)")).stdout) == 5_000_001


def test_a_process_ended_by_a_signal_says_which() -> None:
    assert run(["sh", "-c", "kill -9 $$"]).code == -signal.SIGKILL


def test_a_process_in_time_trouble_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    begin = time.monotonic()
    with pytest.raises(TimedOut, match=r"sh did not end within 0\.5 s"):
        run(["sh", "-c", f"sleep {LONG} & echo $! > {note}; wait"], timeout=0.5)
    assert time.monotonic() - begin < SOON
    gone(int(note.read_text()))


def test_leaving_the_block_ends_the_group_whatever_went_wrong_in_it() -> None:
    with contextlib.suppress(KeyError), Running(["sh", "-c", f"sleep {LONG} & echo $!; wait"]) as process:
        child = int(next(process.lines()))
        raise KeyError
    assert process.poll() == -signal.SIGKILL
    gone(child)


def test_children_that_a_leader_left_behind_are_ended_too() -> None:
    with Running(["sh", "-c", f"sleep {LONG} & echo $!"]) as process:
        child = int(next(process.lines()))
        assert process.wait(SOON) == 0
        assert psutil.pid_exists(child)
    gone(child)


def test_a_process_is_first_asked_to_end() -> None:
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(3)); print('ready', flush=True); signal.pause()"
    with Running(python(code)) as process:
        next(process.lines())
        assert process.terminate(SOON) == 3


def test_the_whole_group_is_asked_and_not_its_leader_alone() -> None:
    child = "import signal, sys; signal.signal(15, lambda *_: sys.exit(3)); print('ready', flush=True); signal.pause()"
    leader = (
        "import signal, subprocess, sys\nsignal.signal(15, lambda *_: sys.exit(child.wait()))\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\nwhile True: signal.pause()"
    )
    with Running(python(leader)) as process:
        next(process.lines())
        assert process.terminate(SOON) == 3, "the leader ends with what its child ended with"


def test_a_process_that_will_not_hear_is_killed() -> None:
    code = "import signal; signal.signal(15, signal.SIG_IGN); print('ready', flush=True)\nwhile True: signal.pause()"
    with Running(python(code)) as process:
        next(process.lines())
        begin = time.monotonic()
        assert process.terminate(0.2) == -signal.SIGKILL
        assert 0.2 <= time.monotonic() - begin < SOON


def test_to_end_what_has_ended_is_no_error() -> None:
    with Running(["true"]) as process:
        process.wait(SOON)
        assert process.terminate(1) == 0
        process.kill()
        assert process.poll() == 0


def test_waiting_has_a_limit_and_does_not_touch_the_process() -> None:
    with Running(["sleep", LONG]) as process:
        with pytest.raises(TimedOut, match="sleep did not end within"):
            process.wait(0.05)
        assert process.poll() is None


def test_lines_come_while_the_process_goes_on() -> None:
    with Running(["sh", "-c", "echo one; read line; echo $line >&2"], stdin=True) as process:
        lines = process.lines()
        assert next(lines) == b"one\n"
        assert process.poll() is None
        process.stdin.write(b"two\n")
        process.stdin.close()
        assert list(lines) == [b"two\n"], "standard error goes where standard output goes"


def test_standard_error_is_kept_apart_where_that_is_wanted() -> None:
    with Running(["sh", "-c", "echo out; echo err >&2"], stderr=True) as process:
        assert process.stdout.read() == b"out\n"
        assert process.stderr.read() == b"err\n"


def test_a_pipe_to_a_dead_process_is_dead_and_leaving_is_still_no_error() -> None:
    with Running(["true"], stdin=True) as process:
        process.wait(SOON)
        process.stdin.write(b"x")
        with pytest.raises(BrokenPipeError):
            process.stdin.flush()


def test_a_reader_in_another_thread_ends_when_the_process_is_ended() -> None:
    read = []
    with Running(["sh", "-c", f"echo one; sleep {LONG}"]) as process:
        reader = threading.Thread(target=lambda: read.extend(process.lines()))
        reader.start()
        process.terminate(1)
    reader.join(SOON)
    assert not reader.is_alive()
    assert read in ([], [b"one\n"])


def test_reading_on_after_the_end_is_no_error() -> None:
    with Running(["sh", "-c", "echo one; echo two"]) as process:
        lines = process.lines()
        assert next(lines) == b"one\n"
    assert list(lines) == []


def test_children_are_out_of_reach_of_the_keyboard() -> None:
    """Ctrl-C goes to the terminal's foreground group; only we decide when a child ends."""
    with Running(["sleep", LONG]) as process:
        assert os.getpgid(process.popen.pid) == process.popen.pid
        assert os.getsid(process.popen.pid) != os.getsid(0)


def test_a_program_that_is_not_there_is_named_with_what_to_do() -> None:
    for start in (lambda: run(["glgpu-no-such-program"]), lambda: need_tool("glgpu-no-such-program", "for tests")):
        with pytest.raises(Failure) as caught:
            start()
        assert caught.value.klass is ErrorClass.TOOL_MISSING
        assert caught.value.exit_code == 40
        assert "install glgpu-no-such-program" in caught.value.remedy
    assert find_tool("glgpu-no-such-program") is None
    assert need_tool("sh", "for tests") == find_tool("sh")


def test_a_file_that_is_no_program_is_refused_the_same_way(tmp_path: Path) -> None:
    program = tmp_path / "terraform"
    program.write_text("not a program")
    with pytest.raises(Failure, match="cannot be started"):
        run([str(program)])


def test_a_process_whose_time_is_over_is_asked_to_end_where_that_is_wanted(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    code = f"trap 'touch {ended}; exit' TERM; echo up; while :; do sleep 0.05; done"
    with pytest.raises(TimedOut):
        run(["sh", "-c", code], timeout=1.0, grace=SOON)
    assert ended.exists()


def test_a_time_limit_ends_whatever_is_waited_for() -> None:
    begun = time.monotonic()
    with pytest.raises(Failure) as caught, time_limit(0.2, "too slow"):
        run(["sleep", LONG])
    assert (caught.value.klass, caught.value.cause) == (ErrorClass.OUT_OF_TIME, "too slow")
    assert time.monotonic() - begun < SOON


def test_a_time_limit_that_is_passed_over_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "REPEAT_SECONDS", 0.1)
    passed_over: list[Failure] = []

    def stubborn() -> None:
        with time_limit(0.1, "too slow"):
            try:
                run(["sleep", LONG])
            except Failure as failure:
                passed_over.append(failure)
            run(["sleep", LONG])

    with pytest.raises(Failure):
        stubborn()
    assert len(passed_over) == 1


def test_a_time_limit_that_was_not_reached_leaves_nothing_behind() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(1000, "too slow"):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 900
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_child_gets_what_it_needs_and_not_what_it_must_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("KEPT", "kept")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    env = environment({"MORE": "more"}, without=["WANDB_API_KEY"])
    shown = run(["env"], env=env).text.splitlines()
    assert {"KEPT=kept", "MORE=more", "LC_ALL=C.UTF-8"} <= set(shown)
    assert not [line for line in shown if line.startswith("WANDB_API_KEY")]


# Signals to us


def interrupted(interrupts: Interrupts, number: signal.Signals) -> Failure:
    with pytest.raises(Failure) as caught:
        signal.raise_signal(number)
    assert interrupts.seen.is_set()
    return caught.value


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_failure_and_later_ones_do_not_disturb_the_clean_up(number: signal.Signals) -> None:
    interrupts = Interrupts()
    interrupts.install()
    failure = interrupted(interrupts, number)
    assert (failure.klass, failure.exit_code) == (ErrorClass.INTERRUPTED, 19)
    assert number.name in failure.cause
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    interrupts.rearm()
    assert not interrupts.seen.is_set()
    interrupted(interrupts, number)


@pytest.mark.usefixtures("own_handlers")
def test_a_signal_gets_through_while_we_wait_for_a_child() -> None:
    interrupts = Interrupts()
    interrupts.install()
    with Running(["sh", "-c", f"echo ready; sleep {LONG}"]) as process:
        next(process.lines())
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Failure, match="SIGTERM"):
            process.wait(SOON)
        child = process.popen.pid
        assert process.poll() is None, "the signal was ours alone"
    gone(child)


@pytest.mark.usefixtures("own_handlers")
def test_children_do_not_inherit_what_we_do_with_signals() -> None:
    Interrupts().install()
    assert run(["sh", "-c", "kill -TERM $$; echo survived"]).code == -signal.SIGTERM


def test_a_dead_audience_does_not_change_the_exit_code() -> None:
    """The runner is killed, our standard output is a dead pipe: the clean-up goes on and its word counts."""
    code = (
        "import sys\nfrom glgpu.console import Console\nfrom glgpu.masking import Masker\nsys.stdin.read()\n"
        "console = Console(Masker())\nfor _ in range(3): console.say('anybody there?')\nsys.exit(23)"
    )
    process = subprocess.Popen(python(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    process.stdin.close()
    assert process.wait(SOON) == 23
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
