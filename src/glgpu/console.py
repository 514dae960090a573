"""Everything glgpu prints goes through here: masked, in GitLab's collapsible sections, within the job log's budget."""

from __future__ import annotations

import contextlib
import re
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from glgpu.clock import Clock, SystemClock
from glgpu.errors import ErrorClass, Failure
from glgpu.masking import Masker

LOG_BUDGET = 3_000_000
"""Bytes of training output shown in a job log, which the runner cuts at 4,194,304 (GitLab Runner, `output_limit`)."""
TAIL = 200_000
LONGEST_LINE = 8_192
PROGRESS_SECONDS = 10.0


class Console:
    """Where messages go.

    Args:
        masker: Hides secrets.
        stream: Binary stream; standard output by default.
        sections: Whether to print GitLab's section marks.
        clock: For the sections' times.
    """

    def __init__(
        self, masker: Masker, *, stream: BinaryIO | None = None, sections: bool = False, clock: Clock | None = None
    ) -> None:
        self.masker = masker
        self.clock = clock or SystemClock()
        self._stream = stream
        self._sections = sections

    def say(self, text: str = "") -> None:
        """Print one line (or several)."""
        self.write((text + "\n").encode("utf-8", "replace"))

    def write(self, data: bytes) -> None:
        """Print bytes, masked.

        A dead pipe is no reason to stop: when the runner is gone the clean-up has to go on without an audience.
        """
        stream = self._stream or sys.stdout.buffer
        with contextlib.suppress(BrokenPipeError, ValueError):
            stream.write(self.masker.mask_bytes(data))
            stream.flush()

    @contextlib.contextmanager
    def section(self, name: str, header: str) -> Iterator[None]:
        """Group lines under a header and say at the end how long it took.

        The marks are GitLab's (https://docs.gitlab.com/ci/jobs/job_logs/#custom-collapsible-sections).
        """
        begin = self.clock.now()
        mark = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
        if self._sections:
            self.say(f"\x1b[0Ksection_start:{int(begin)}:{mark}\r\x1b[0K\x1b[1m{header}\x1b[0m")
        else:
            self.say(f"== {header}")
        try:
            yield
        finally:
            end = self.clock.now()
            self.say(f"   {header}: {end - begin:.1f} s")
            if self._sections:
                self.write(f"\x1b[0Ksection_end:{int(end)}:{mark}\r\x1b[0K".encode())

    def failure(self, failure: Failure) -> None:
        """Print the evidence, then one line of cause and one of remedy, last so that they are seen."""
        if failure.evidence.strip():
            self.say("--- what the other side said")
            for line in failure.evidence.strip().splitlines()[-40:]:
                self.say(f"  {line}")
            self.say("---")
        self.say(f"glgpu: {failure.klass} (exit code {failure.exit_code}): {failure.cause}")
        self.say(f"glgpu: remedy: {failure.remedy}")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows in columns."""
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        for row in [header, *rows]:
            self.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class TrainingLog:
    """The training's output in the job log: progress lines collapsed, head and tail kept when it is too long.

    Args:
        console: Where it is shown.
        whole: Name of the file that holds all of it, for the line that says so.
        budget: Bytes that may be shown in all.
    """

    def __init__(self, console: Console, whole: str, *, budget: int = LOG_BUDGET, tail: int = TAIL) -> None:
        self._console = console
        self._whole = whole
        self._left = budget - tail
        self._tail_size = tail
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._skipped = 0
        self._full = False
        self._line = bytearray()
        self._cut = 0
        self._shown_at = console.clock.now()

    def feed(self, data: bytes) -> None:
        """Take output as it comes."""
        for piece in re.split(rb"(\r\n|\n|\r)", data):
            if piece in (b"\n", b"\r\n"):
                self._end_line()
            elif piece == b"\r":
                self._end_progress()
            else:
                room = max(0, LONGEST_LINE - len(self._line))
                self._line += piece[:room]
                self._cut += len(piece) - len(piece[:room])

    def close(self) -> None:
        """Show what is left; the output has ended."""
        if self._line or self._cut:
            self._end_line()
        if self._skipped:
            self._console.say(
                f"glgpu: {self._skipped} lines left out here, a job log holds 4 MB; all of them are in {self._whole}"
            )
        for line in self._tail:
            self._console.write(line)
        self._tail.clear()

    def _end_progress(self) -> None:
        # A progress bar rewrites its line; now and then one of its states is worth a line.
        if self._console.clock.now() - self._shown_at >= PROGRESS_SECONDS:
            self._end_line()
        self._line.clear()
        self._cut = 0

    def _end_line(self) -> None:
        text = bytes(self._line).decode("utf-8", "replace").encode()
        if self._cut:
            text += f" ... ({self._cut} more bytes of this line are in {self._whole})".encode()
        self._line.clear()
        self._cut = 0
        self._show(text + b"\n")

    def _show(self, line: bytes) -> None:
        self._shown_at = self._console.clock.now()
        if not self._full and len(line) <= self._left:
            self._left -= len(line)
            self._console.write(line)
            return
        if not self._full:
            self._full = True
            self._console.say(f"glgpu: the job log is nearly full; the training goes on, see {self._whole}")
        self._tail.append(line)
        self._tail_bytes += len(line)
        while self._tail_bytes > self._tail_size:
            self._tail_bytes -= len(self._tail.popleft())
            self._skipped += 1


def bug(error: BaseException, trace: str) -> Failure:
    """Describe an exception that nobody foresaw."""
    return Failure(
        ErrorClass.BUG,
        f"a bug in glgpu: {type(error).__name__}: {error}",
        "please report it with the lines above; run `glgpu destroy` if a VM may be alive",
        trace,
    )
