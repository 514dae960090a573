"""Checkpoints come home while the training runs, and go back to the VM that goes on from them: whole files only.

A file counts as whole when nobody has it open for writing and it has not changed between two looks. What is sent are
hard links made in between: whatever the program does to its files meanwhile, a link's content is the one that was
looked at, or it is left for the next time. After the program's end there are no two looks any more: `bring_last`.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from glgpu.disk import cannot_write
from glgpu.errors import ErrorClass, Failure
from glgpu.steps.collect import bring, make_room, sums_of
from glgpu.steps.context import Run
from glgpu.steps.door import Guest
from glgpu.steps.guest import ask, command

LOOK_SECONDS = 10.0
"""Between two looks for what has changed: one command on the VM, which reads no content."""
SETTLE_SECONDS = 1.0
"""For how long a file has to stay as it is."""
BRING_SECONDS = 3600.0
END_SECONDS = 5.0
"""For how long a transfer that is under way at the training's end is waited for."""


@dataclass(frozen=True)
class Seen:
    """A file on the VM.

    Attributes:
        state: What tells it from every other version: device and inode, size, time of its last change.
        changed: That time, by the VM's clock.
        written: Whether somebody has it open for writing.
    """

    state: str
    changed: float
    written: bool


@dataclass
class Home:
    """What this job has brought home of a training, over all VMs that it ran on.

    Attributes:
        times: Time of the last change, by the VM's clock, of each file that is here.
    """

    times: dict[str, float] = field(default_factory=dict)

    def newest(self, path: str | None) -> float | None:
        """When the newest file below a path was written; None where there is none."""
        below = [time for name, time in self.times.items() if path and _is_below(name, [path])]
        return max(below, default=None)


class Checkpoints:
    """A training's checkpoints on one VM; a companion of whoever follows it.

    Args:
        run: The run.
        guest: The VM.
        home: What is here of them; goes on from VM to VM.
    """

    def __init__(self, run: Run, guest: Guest, home: Home) -> None:
        train = run.settings.train
        self._run = run
        self._machine = guest.machine
        self._code = f"{guest.home}/code/{run.base}".rstrip("/")
        self._kept = f"{guest.home}/kept"
        self._paths = [str(PurePosixPath(train.checkpoints))] if train.checkpoints else []
        self._outputs = [str(PurePosixPath(path)) for path in train.outputs]
        self._home = home
        self._at_home: dict[str, str] = {}
        self._before: dict[str, Seen] = {}
        self._whole: dict[str, str] = {}
        self._due = run.clock.now() + LOOK_SECONDS
        self._work: threading.Thread | None = None
        self._moving = threading.Lock()
        self._over = False
        self._trouble = self._told = ""

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        # Nobody waits here: whoever does has called `end`.
        self.end(0)

    def beat(self) -> None:
        """See that somebody looks, time after time, in a thread of his own."""
        if self._work is not None and self._work.is_alive():
            return
        self._tell()
        if not self._paths or self._run.clock.now() < self._due:
            return
        self._due = self._run.clock.now() + LOOK_SECONDS
        self._work = threading.Thread(target=self._try, name="checkpoints", daemon=True)
        self._work.start()

    def end(self, patience: float = END_SECONDS) -> None:
        """The program has ended: nobody looks any more.

        Args:
            patience: Seconds for which a transfer that is under way is waited for.
        """
        if self._work is not None:
            self._work.join(patience)
        with self._moving:
            self._over = True
        self._tell()

    def _tell(self) -> None:
        if self._trouble not in ("", self._told):
            self._told = self._trouble
            self._run.console.say(f"glgpu: checkpoints do not come home: {self._told}")

    def _try(self) -> None:
        try:
            self.bring_home()
            self._trouble = ""
        except Failure as failure:
            # A connection that breaks is for whoever follows to tell.
            if failure.klass is not ErrorClass.SSH:
                self._trouble = f"{failure.cause}; {failure.remedy}"

    def bring_home(self) -> int:
        """Bring home what has changed and is whole; the number of files.

        Raises:
            Failure: DISK_FULL here, SSH, OUT_OF_TIME.
        """
        seen = self._look(self._code, [*self._paths, *self._outputs])
        self._whole |= {name: one.state for name, one in _unchanged(self._before, seen).items()}
        self._before = seen
        own = {name: one for name, one in seen.items() if _is_below(name, self._paths)}
        new = {name: one for name, one in own.items() if not one.written and one.state != self._at_home.get(name)}
        # After the end others keep and choose on the VM: what was not begun by then stays so.
        if not new or self._over:
            return 0
        first = self._keep(new, self._paths)
        self._run.clock.sleep(SETTLE_SECONDS)
        whole = _unchanged(first, self._look(self._kept, self._paths))
        self._whole |= {name: one.state for name, one in whole.items()}
        gone = [name for name in self._at_home if _is_below(name, self._paths) and name not in seen]
        return self._fetch(self._paths, whole, BRING_SECONDS, gone)

    def bring_last(self, seconds: float, *, heeds: bool, outputs: bool) -> int:
        """Bring home what a program has left in its checkpoints that did not end well; how many files.

        A program with a handler for SIGTERM has ended by itself: its files are as it wanted them. One without is cut
        off wherever it is, as every program is by SIGKILL: of those only what was seen whole while it ran, and is
        still the same, is trusted.

        Args:
            seconds: How long it may take.
            heeds: Whether the program ended by itself.
            outputs: Whether its outputs come too, afterwards.

        Raises:
            Failure: DISK_FULL here, SSH, OUT_OF_TIME.
        """
        end, count = self._run.clock.now() + seconds, 0
        for paths in (self._paths, self._outputs if outputs else []):
            seen = self._look(self._code, paths)
            trusted = {
                name: one
                for name, one in seen.items()
                if not one.written
                and one.state != self._at_home.get(name)
                and (heeds or one.state == self._whole.get(name))
            }
            if trusted:
                self._keep(trusted, paths)
                count += self._fetch(paths, trusted, end - self._run.clock.now(), last=True)
        return count

    def put_back(self) -> tuple[int, int]:
        """Put what is here where the program has left it, before it starts again; number of files, and bytes.

        Raises:
            Failure: SSH, when it does not arrive as it is here.
        """
        run, times = self._run, self._home.times
        here = {name: run.outputs / name for name in sorted(times, key=times.__getitem__)}
        here = {name: path for name, path in here.items() if path.is_file() and not path.is_symlink()}
        if not here:
            return 0, 0
        paths = [*self._paths, *self._outputs]
        with self._machine.stream(command(run, "put", self._code, *paths), timeout=BRING_SECONDS) as stream:
            with suppress(BrokenPipeError):  # the exit code and its reason tell more
                with tarfile.open(fileobj=stream.stdin, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                    for name, path in here.items():
                        archive.add(path, f"./{name}")
                stream.stdin.close()
            if stream.wait(BRING_SECONDS) != 0:
                raise _not_back(stream.complaint)
        there = sums_of(run, self._machine, self._code, paths, BRING_SECONDS)
        wrong = [name for name, path in here.items() if there.get(name) != _sha256(path)]
        if wrong:
            raise _not_back(f"{len(wrong)} of {len(here)} files arrived otherwise, the first is {wrong[0]!r}")
        seen = self._look(self._code, paths)
        self._at_home = {name: one.state for name, one in seen.items() if name in here}
        self._whole = dict(self._at_home)
        return len(here), sum(path.stat().st_size for path in here.values())

    def _look(self, folder: str, paths: Iterable[str]) -> dict[str, Seen]:
        """Every file below the paths of a folder on the VM, by name; cheap, since no content is read."""
        doing = "looking for checkpoints on the VM"
        return _read(ask(self._run, self._machine, "look", folder, *paths, doing=doing).stdout)

    def _keep(self, files: Iterable[str], paths: Iterable[str]) -> dict[str, Seen]:
        """Have links to files on the VM; what they are."""
        names = b"".join(f"./{name}".encode("utf-8", "surrogateescape") + b"\0" for name in files)
        doing = "keeping checkpoints on the VM"
        return _read(ask(self._run, self._machine, "keep", self._code, *paths, stdin=names, doing=doing).stdout)

    def _fetch(
        self,
        paths: list[str],
        whole: dict[str, Seen],
        seconds: float,
        gone: Iterable[str] = (),
        *,
        last: bool = False,
    ) -> int:
        """Fetch what is kept beside its place, and move that there which is still as it was when it counted as whole.

        What the program has removed goes here too, but only once something newer has come.
        """
        run = self._run
        if not whole or (self._over and not last):
            return 0
        beside = run.job.scratch / ("last-checkpoints" if last else "checkpoints")
        got = bring(replace(run, outputs=beside), self._machine, self._kept, paths, seconds)
        still = _unchanged(whole, self._look(self._kept, paths))
        # The oldest first: what points to others is written last.
        moved = sorted((name for name in got if name in still), key=lambda name: still[name].changed)
        with self._moving:
            if self._over and not last:
                return 0
            try:
                for name in moved:
                    self._move(name, beside / name, still[name])
                for name in gone if moved else ():
                    (run.outputs / name).unlink(missing_ok=True)
                    self._at_home.pop(name, None)
                    self._home.times.pop(name, None)
            except OSError as error:
                raise cannot_write(error, "the checkpoints") from None
        return len(moved)

    def _move(self, name: str, beside: Path, seen: Seen) -> None:
        target = self._run.outputs / name
        make_room(self._run.outputs, target)
        os.utime(beside, (seen.changed, seen.changed))
        beside.replace(target)
        self._at_home[name] = seen.state
        self._home.times[name] = seen.changed


def _read(answer: bytes) -> dict[str, Seen]:
    """The helper's answer to `look` and `keep`."""
    head, _, rest = answer.partition(b"\n")
    written = set(head.decode().split())
    seen = {}
    for entry in rest.split(b"\0"):
        parts = entry.decode("utf-8", "surrogateescape").split(" ", 3)
        if len(parts) == 4:
            inode, size, changed, name = parts
            state = f"{inode} {size} {changed}"
            seen[name.removeprefix("./")] = Seen(state, float(changed), inode in written)
    return seen


def _unchanged(before: dict[str, Seen], now: dict[str, Seen]) -> dict[str, Seen]:
    """Those that are as they were, and that nobody writes to."""
    same = {name: now[name] for name in before if name in now and now[name].state == before[name].state}
    return {name: one for name, one in same.items() if not one.written}


def _not_back(why: str) -> Failure:
    return Failure(ErrorClass.SSH, f"the checkpoints could not be put back: {why}", "retry the job", why)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_below(name: str, paths: Iterable[str]) -> bool:
    path = PurePosixPath(name)
    return any(path.is_relative_to(one) for one in paths)
