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
from glgpu.masking import Masker, to_bytes

LOG_BUDGET = 3_000_000
"""Bytes of training output shown in a job log, which the runner cuts at 4,194,304 (GitLab Runner, `output_limit`)."""
TAIL = 200_000
LIVE_REMARK = "glgpu: it goes on from here"
LONGEST_LINE = 8_192
LONGEST_NUMBER = 20
LONGEST_EVIDENCE = 1_000
"""Characters shown of one line of evidence, cause or remedy; forty such lines fit beside the training's output."""
PROGRESS_SECONDS = 10.0
EARLIER_LINES = 50
"""How many lines are repeated of what a training had printed before a job took it up."""


class Console:
    """Where messages go.

    Args:
        masker: Hides secrets.
        stream: Binary stream; standard output by default.
        sections: Whether to print GitLab's section marks.
        clock: For the sections' times.

    Attributes:
        unheard: Whether nobody reads any more what is printed.
    """

    def __init__(
        self, masker: Masker, *, stream: BinaryIO | None = None, sections: bool = False, clock: Clock | None = None
    ) -> None:
        self.masker = masker
        self.clock = clock or SystemClock()
        self.unheard = False
        self._stream = stream
        self._sections = sections

    def say(self, text: str = "") -> None:
        """Print one line (or several)."""
        self.write(to_bytes(text + "\n"))

    def write(self, data: bytes) -> None:
        """Print bytes, masked.

        A dead pipe is no reason to stop, nor is a full disk behind it: when the runner is gone the clean-up has to go
        on without an audience.
        """
        stream = self._stream or sys.stdout.buffer
        with contextlib.suppress(OSError, ValueError):
            try:
                stream.write(self.masker.mask_bytes(data))
                stream.flush()
            except BrokenPipeError:
                self.unheard = True

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
            for line in self.masker.mask(failure.evidence).strip().splitlines()[-40:]:
                self.say(f"  {_cut(line)}")
            self.say("---")
        self.say(f"glgpu: {failure.klass} (exit code {failure.exit_code}): {_cut(self.masker.mask(failure.cause))}")
        self.say(f"glgpu: remedy: {_cut(self.masker.mask(failure.remedy))}")

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
        budget: Bytes that may be shown in all, our own remarks included.
        tail: How many of them are kept for the end.
        earlier: Whether it begins with output that is not new; of that only the last lines are shown.

    Attributes:
        shown: Bytes of the output that have been shown.
    """

    def __init__(
        self, console: Console, whole: str, *, budget: int = LOG_BUDGET, tail: int = TAIL, earlier: bool = False
    ) -> None:
        self._console = console
        self._earlier: deque[bytes] | None = deque(maxlen=EARLIER_LINES) if earlier else None
        self._earlier_remark = (
            f"glgpu: the last {{}} lines of what the training printed before; all of it is in {whole}"
        )
        self._full_remark = f"glgpu: the job log is nearly full; the training goes on, see {whole}"
        self._skip_remark = f"glgpu: {{}} lines left out here, a job log holds 4 MB; all of them are in {whole}"
        self._cut_remark = f" ... ({{}} more bytes of this line are in {whole})"
        remarks = [self._full_remark, self._skip_remark, *([self._earlier_remark, LIVE_REMARK] if earlier else [])]
        self.shown = 0
        self._left = budget - tail - sum(len(remark) + 1 for remark in remarks) - LONGEST_NUMBER
        self._tail_size = tail
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._skipped = 0
        self._full = False
        self._shown: list[bytes] = []  # lines on their way to the console, which takes all of a piece at once
        self._line = bytearray()
        self._cut = 0
        self._returned = False
        self._shown_at = console.clock.now()

    def feed(self, data: bytes) -> None:
        """Take output as it comes."""
        *lines, rest = data.split(b"\n")
        if lines and (self._line or self._returned):
            self._take(lines.pop(0))
            self._end_line()
        if lines and b"\r" not in data and max(map(len, lines)) <= LONGEST_LINE:
            # All at once: a hundred thousand lines are no rarity.
            self._show(_readable(b"\n".join(lines)) + b"\n")
            lines.clear()
        for line in lines:
            if b"\r" in line or len(line) > LONGEST_LINE:
                self._take(line)
                self._end_line()
            else:
                self._show(_readable(line) + b"\n")
        self._take(rest)
        self._let_out()

    def live(self) -> None:
        """What comes from here on is new: first the last lines of what came before are shown."""
        lines, self._earlier = self._earlier, None
        if not lines:
            return
        self._console.say(self._earlier_remark.format(len(lines)))
        for line in lines:
            self._show(line)
        self._let_out()
        self._console.say(LIVE_REMARK)

    def close(self) -> None:
        """Show what is left; the output has ended."""
        self.live()
        if self._line:
            self._end_line()
        self._let_out()
        tail = b"".join(self._tail)
        self._tail.clear()
        if len(tail) > self._tail_size:
            # From a line's beginning on, and at least one line.
            begin = min(tail.find(b"\n", len(tail) - self._tail_size - 1), tail.rfind(b"\n", 0, -1)) + 1
            self._skipped += tail.count(b"\n", 0, begin)
            tail = tail[begin:]
        if self._skipped:
            self._console.say(self._skip_remark.format(self._skipped))
        self._write(tail)

    def _take(self, part: bytes) -> None:
        """Take a part of a line."""
        for piece in re.split(rb"(\r)", part):
            if piece == b"\r":
                # Either the first half of a line's end or a progress bar: what comes next tells.
                self._returned = True
            elif piece:
                if self._returned:
                    self._overwrite()
                room = max(0, LONGEST_LINE - len(self._line))
                self._line += piece[:room]
                self._cut += len(piece) - len(piece[:room])

    def _write(self, data: bytes) -> None:
        self.shown += len(data)
        self._console.write(data)

    def _overwrite(self) -> None:
        # A progress bar rewrites its line; now and then one of its states is worth a line.
        if self._line and self._console.clock.now() - self._shown_at >= PROGRESS_SECONDS:
            self._end_line()
        self._clear()

    def _end_line(self) -> None:
        text = _readable(bytes(self._line))
        if self._cut:
            text += self._cut_remark.format(self._cut).encode()
        self._clear()
        self._show(text + b"\n")

    def _clear(self) -> None:
        self._line.clear()
        self._cut = 0
        self._returned = False

    def _show(self, lines: bytes) -> None:
        """Show whole lines, or put them by for the end."""
        self._shown_at = self._console.clock.now()
        if self._earlier is not None:
            self._earlier.extend(lines.splitlines(keepends=True))
            return
        if not self._full and len(lines) <= self._left:
            self._left -= len(lines)
            self._shown.append(lines)
            return
        if not self._full:
            first, *others = lines.splitlines(keepends=True)
            if others:
                for line in (first, *others):
                    self._show(line)
                return
            self._full = True
            self._let_out()
            self._console.say(self._full_remark)
        self._tail.append(lines)
        self._tail_bytes += len(lines)
        while self._tail_bytes - len(self._tail[0]) > self._tail_size:
            gone = self._tail.popleft()
            self._tail_bytes -= len(gone)
            self._skipped += gone.count(b"\n")

    def _let_out(self) -> None:
        if self._shown:
            self._write(b"".join(self._shown))
            self._shown.clear()


def _readable(line: bytes) -> bytes:
    """The line as UTF-8, whatever the program wrote."""
    return line.decode("utf-8", "replace").encode()


def _cut(masked: str) -> str:
    """The beginning of a line; masked before it is cut, since half a secret is not recognised."""
    return masked if len(masked) <= LONGEST_EVIDENCE else f"{masked[:LONGEST_EVIDENCE]} ..."


def bug(error: BaseException, trace: str) -> Failure:
    """Describe an exception that nobody foresaw."""
    return Failure(
        ErrorClass.BUG,
        f"a bug in glgpu: {type(error).__name__}: {error}",
        "please report it with the lines above; run `glgpu destroy` if a VM may be alive",
        trace,
    )
