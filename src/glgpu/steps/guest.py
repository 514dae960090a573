"""Ask the helper on the VM for something, and say in our words what went wrong."""

from __future__ import annotations

import shlex

from glgpu.classify import explain
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Machine
from glgpu.processes import Done
from glgpu.steps.context import Run

AGAIN_SECONDS = 30.0
"""How long a VM that has just booted is asked again: it restarts its SSH server once more, and systemd may be busy."""


def command(run: Run, verb: str, *words: str) -> str:
    """The shell command that calls the helper with exactly these words."""
    return shlex.join(["sh", "glgpu/helper", verb, str(run.name), *words])


def ask(
    run: Run,
    machine: Machine,
    verb: str,
    *words: str,
    doing: str,
    stdin: bytes = b"",
    timeout: float = 60,
    klass: ErrorClass = ErrorClass.SSH,
) -> Done:
    """Call the helper and insist on success.

    Args:
        run: The run.
        machine: The VM.
        verb: What the helper shall do.
        *words: Its arguments; never a secret.
        doing: What this is, for the message.
        stdin: What it gets by standard input.
        timeout: Seconds.
        klass: The class of a failure whose text no rule knows.

    Raises:
        Failure: of the class that the text tells; SSH when the connection broke.
    """
    done = machine.run(command(run, verb, *words), stdin=stdin, timeout=timeout)
    if done.code == 0:
        return done
    said = "\n".join(part for part in (done.complaint, done.text.strip()) if part)
    if done.code == 255:
        raise Failure(ErrorClass.SSH, f"{doing}: the connection to the VM broke: {said}", "retry the job", said)
    failure = explain(said, unknown=klass, doing=doing)
    if failure.klass is ErrorClass.DISK_FULL:
        # The same words mean this machine's disk elsewhere; here it is the VM's.
        raise Failure(
            ErrorClass.TRAINING_FAILED, f"the VM's disk is full: {failure.cause}", "set a larger machine.disk_gb", said
        )
    raise failure


def ask_patiently(run: Run, machine: Machine, verb: str, *words: str, doing: str, timeout: float = 60) -> Done:
    """The same of a VM that has just booted, for what does no harm twice.

    Raises:
        Failure: of the class that the text tells; SSH when the connection broke time after time.
    """
    end = run.clock.now() + AGAIN_SECONDS
    while True:
        try:
            return ask(run, machine, verb, *words, doing=doing, timeout=timeout)
        except Failure as failure:
            if failure.klass is not ErrorClass.SSH or run.clock.now() >= end:
                raise
        run.clock.sleep(2.0)
