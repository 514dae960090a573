"""logs: what a run's container has printed, and on request what it prints."""

from __future__ import annotations

import shlex
from typing import Any, BinaryIO

from glgpu.errors import ErrorClass, Failure
from glgpu.masking import StreamMasker
from glgpu.steps.visit import Visited, Visitor, container_state, look_in, read_state, state_command


def logs(visitor: Visitor, to: BinaryIO, *, follow: bool = False, last: int | None = None) -> None:
    """Show the log of the run that is meant, masked, and say how its training ended.

    Args:
        visitor: Who looks in.
        to: Where the log goes; once nobody reads it any more that is the end.
        follow: Whether to stay until the container ends.
        last: How many of its lines; None: all.

    Raises:
        Failure: USAGE, NOT_FOUND, SSH.
    """
    with look_in(visitor) as visited:
        container_state(visited)
        try:
            state = _show(visited, to, follow=follow, last=last)
        except BrokenPipeError:
            return
        running = "the training runs" if follow else "the training runs; -f stays with it"
        ended = f"the training has ended, its exit code is {state.get('ExitCode')}"
        visited.run.console.say(running if state.get("Running") else ended)


def _show(visited: Visited, to: BinaryIO, *, follow: bool, last: int | None) -> dict[str, Any]:
    """Show the log; the container's state at its end, asked for in the same breath: the job may be about to wipe it."""
    options = [*(["-f"] if follow else []), *(["--tail", str(last)] if last is not None else [])]
    name = str(visited.run.name)
    script = shlex.join(["sudo", "-n", "docker", "logs", *options, name])
    masker = StreamMasker(visited.run.console.masker)
    with visited.machine.stream(f"{script} 2>&1; {state_command(name)} >&2") as stream:
        for data in stream.chunks():
            to.write(masker.feed(data))
            to.flush()
        to.write(masker.flush())
        to.flush()
        code = stream.wait(30)
        state = read_state(stream.complaint)
        if code != 0 or state is None:
            why = stream.complaint or f"exit code {code}"
            raise Failure(ErrorClass.SSH, f"the log broke off: {why}", "call it again; the training goes on", why)
    return state
