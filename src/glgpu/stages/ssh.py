"""ssh: a shell on a run's VM, one command there, or what other programs need to get there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glgpu.disk import cannot_write
from glgpu.errors import ErrorClass, Failure
from glgpu.run_names import Kind
from glgpu.run_record import write_atomically
from glgpu.steps.visit import Visitor, look_in


def ssh(visitor: Visitor, words: Sequence[str] = (), kind: Kind | None = None) -> int:
    """Open a shell on the VM of the run that is meant, or run a command there.

    Args:
        visitor: Who looks in.
        words: The command, joined by blanks for the shell there, as OpenSSH does; none: a login shell.
        kind: Of what kind the run has to be; None: of any.

    Returns:
        The exit code of shell or command.

    Raises:
        Failure: USAGE, NOT_FOUND, SSH.
    """
    with look_in(visitor, kind) as visited:
        if not words:
            name = visited.run.name
            visited.run.console.say(f"on {visited.instance.name}; into the container: sudo docker exec -it {name} sh")
        code = visited.machine.attached(" ".join(words))
    if code == 255:
        raise Failure(ErrorClass.SSH, "the connection to the VM broke", "call it again; the training goes on")
    return code


def write_host(visitor: Visitor, folder: Path, kind: Kind | None = None) -> None:
    """Write a Host entry for OpenSSH and what is built on it, VS Code for example; the door stays open for it.

    Nobody's own ~/.ssh/config is changed: the entry is a file of its own, which that one has to include.

    Args:
        visitor: Who looks in; its keys stay where they are.
        folder: Where the entry goes.
        kind: Of what kind the run has to be; None: of any.

    Raises:
        Failure: USAGE, NOT_FOUND, SSH, DISK_FULL.
    """
    with look_in(visitor, kind, stays=True) as visited:
        run, name = visited.run, str(visited.run.name)
        lines = [f"Host {name}", *(f"    {key} {value}" for key, value in visited.machine.options().items())]
        path = folder / f"{name}.conf"
        try:
            write_atomically(path, ("\n".join(lines) + "\n").encode())
        except OSError as error:
            raise cannot_write(error, path) from None
    run.console.say(f"written: {path}")
    run.console.say(f"once, as the first line of ~/.ssh/config: Include {folder}/*.conf")
    run.console.say(f"then `ssh {name}`, or this host in VS Code's Remote-SSH; into the container: sudo docker exec")
    run.console.say("the VM's door stays open for this machine's address until the run ends")
