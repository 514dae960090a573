"""ssh: a shell on a run's VM, or one command there."""

from __future__ import annotations

from collections.abc import Sequence

from glgpu.errors import ErrorClass, Failure
from glgpu.steps.visit import Visitor, look_in


def ssh(visitor: Visitor, words: Sequence[str] = ()) -> int:
    """Open a shell on the VM of the run that is meant, or run a command there.

    Args:
        visitor: Who looks in.
        words: The command, joined by blanks for the shell there, as OpenSSH does; none: a login shell.

    Returns:
        The exit code of shell or command.

    Raises:
        Failure: USAGE, NOT_FOUND, SSH.
    """
    with look_in(visitor) as visited:
        if not words:
            name = visited.run.name
            visited.run.console.say(f"on {visited.instance.name}; into the container: sudo docker exec -it {name} sh")
        code = visited.machine.attached(" ".join(words))
    if code == 255:
        raise Failure(ErrorClass.SSH, "the connection to the VM broke", "call it again; the training goes on")
    return code
