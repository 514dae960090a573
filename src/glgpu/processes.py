"""The only place that starts processes: each in a group of its own, so that it can be ended with all it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import IO, NoReturn

from glgpu.errors import ErrorClass, Failure

REPEAT_SECONDS = 2.0
"""Between two failures of a time that is over."""


@dataclass(frozen=True)
class Done:
    """A process that has ended.

    Attributes:
        argv: What was run.
        code: Exit code; negative: the signal that ended it.
        stdout: What it printed.
        stderr: What it complained about.
    """

    argv: Sequence[str]
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def complaint(self) -> str:
        """Standard error as text, without blanks at its ends."""
        return self.stderr.decode("utf-8", "replace").strip()


class TimedOut(Exception):
    """A process did not end in time; it and its group have been killed."""


def environment(extra: Mapping[str, str] | None = None, *, without: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a child: ours and ``extra``, less ``without``.

    ``LC_ALL=C.UTF-8`` because we read what children print.
    """
    child = {name: value for name, value in os.environ.items() if name not in without}
    return child | {"LC_ALL": "C.UTF-8"} | dict(extra or {})


def find_tool(name: str) -> str | None:
    """The path of a program, or None."""
    return shutil.which(name)


def need_tool(name: str, why: str) -> str:
    """The path of a program that glgpu cannot do without.

    Raises:
        Failure: TOOL_MISSING.
    """
    path = find_tool(name)
    if path is None:
        raise Failure(
            ErrorClass.TOOL_MISSING, f"the program {name} is not on PATH; it is needed {why}", f"install {name}"
        )
    return path


def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    grace: float = 0.0,
) -> Done:
    """Run a program to its end.

    Args:
        argv: The program and its arguments.
        stdin: What it gets by standard input.
        timeout: Seconds; None: as long as it takes.
        env: Its environment; ours by default.
        cwd: Its working directory.
        grace: Seconds between SIGTERM and SIGKILL when its time is over.

    Raises:
        TimedOut: It did not end within ``timeout`` seconds.
        Failure: TOOL_MISSING, when it cannot be started.
    """
    with Running(argv, env=env, cwd=cwd, stdin=True, stderr=True) as process:
        try:
            stdout, stderr = process.popen.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            if grace:
                process.terminate(grace)
            raise TimedOut(f"{argv[0]} did not end within {timeout} s") from None
        return Done(argv, process.popen.returncode, stdout, stderr)


def attached(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
    """Run a program with our own standard input, output and error, to its end; its exit code, negative for a signal.

    It stays in our process group, so that the keyboard's signals reach it.

    Args:
        argv: The program and its arguments.
        env: Its environment; ours by default.

    Raises:
        Failure: TOOL_MISSING, when it cannot be started.
    """
    try:
        process = subprocess.Popen(list(argv), env=dict(env) if env is not None else None)
    except OSError as error:
        raise _not_started(argv, error) from None
    with process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            raise


class Running:
    """A process that runs beside us; leaving the ``with`` block ends it and its whole group.

    Args:
        argv: The program and its arguments.
        env: Its environment; ours by default.
        cwd: Its working directory.
        stdin: Whether to keep a pipe to it.
        stderr: Whether to keep its standard error apart, or a file that it goes to; else it goes where standard output
            goes.
        buffer: Bytes that are read from it, or written to it, at once; -1: as Python likes.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: bool = False,
        stderr: bool | IO[bytes] = False,
        buffer: int = -1,
    ) -> None:
        self.argv = list(argv)
        try:
            self.popen: subprocess.Popen[bytes] = subprocess.Popen(
                self.argv,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=(subprocess.PIPE if stderr else subprocess.STDOUT) if isinstance(stderr, bool) else stderr,
                env=dict(env) if env is not None else environment(),
                cwd=cwd,
                start_new_session=True,
                bufsize=buffer,
            )
        except OSError as error:
            raise _not_started(argv, error) from None

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def stdin(self) -> IO[bytes]:
        """The pipe to it."""
        assert self.popen.stdin is not None
        return self.popen.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """What it prints."""
        assert self.popen.stdout is not None
        return self.popen.stdout

    @property
    def stderr(self) -> IO[bytes]:
        """What it complains about, where that is kept apart."""
        assert self.popen.stderr is not None
        return self.popen.stderr

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self.popen.poll()

    def lines(self) -> Iterator[bytes]:
        """What it prints, line by line, as it comes; it ends there when another thread ends the process."""
        with contextlib.suppress(ValueError):  # reading from a closed pipe
            yield from self.stdout

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            TimedOut: It still runs after ``timeout`` seconds; it is not touched.
        """
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimedOut(f"{self.argv[0]} did not end within {timeout} s") from None

    def terminate(self, grace: float) -> int:
        """Ask its group to end (SIGTERM), wait ``grace`` seconds, then kill what is left."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimedOut):
            self.wait(grace)
        self.kill()
        return self.popen.returncode

    def kill(self) -> None:
        """End its group at once."""
        self._signal(signal.SIGKILL)
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        # The group outlives its leader: children that the leader left behind are signalled too.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, number)


def _not_started(argv: Sequence[str], error: OSError) -> Failure:
    return Failure(
        ErrorClass.TOOL_MISSING, f"{argv[0]} cannot be started: {error}", f"install {argv[0]}, or mend its path"
    )


@contextmanager
def time_limit(seconds: float, told: str) -> Iterator[None]:
    """End a block after so many seconds, whatever it waits for: the failure comes as a signal's does.

    It comes again every few seconds, for as long as the block goes on: a piece of it may pass over what it takes for a
    failure of its own.

    Args:
        seconds: After how long.
        told: The failure's cause.

    Raises:
        Failure: OUT_OF_TIME, in the main thread, where alone it may be used.
    """
    over = False

    def ring(_number: int, _frame: FrameType | None) -> None:
        if not over:
            raise Failure(ErrorClass.OUT_OF_TIME, told, "raise limits.rescue_minutes, or fetch it before the VM goes")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), REPEAT_SECONDS)
    try:
        yield
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Interrupts:
    """SIGTERM and SIGINT as a failure in the main thread, once; later ones do not disturb the clean-up.

    Attributes:
        seen: Set as soon as the first signal has come; other threads may look at it.
    """

    def __init__(self) -> None:
        self.seen = threading.Event()

    def install(self) -> None:
        """Take over both signals."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def rearm(self) -> None:
        """Let the next signal interrupt again: the person has said to go on."""
        self.seen.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.seen.is_set():
            return
        self.seen.set()
        _interrupted(number)


def _interrupted(number: int) -> NoReturn:
    raise Failure(
        ErrorClass.INTERRUPTED,
        f"interrupted by {signal.Signals(number).name}",
        "nothing to do if the job was cancelled; else run it again",
    )
