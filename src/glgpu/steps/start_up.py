"""What the VM's start-up script says of itself: how far it is, and what the boot image lacks for good."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance, Machine
from glgpu.lifetime import spoken
from glgpu.steps.context import Run
from glgpu.steps.guest import ask_patiently
from glgpu.steps.serial_console import RESTARTS, WHOLE, boots, never_answered

NAMESPACE = "glgpu"
"""Of the guest attributes in which the script reports; its line is STATE STEP MESSAGE (vm/startup.sh)."""
LOOK_SECONDS = 10.0
"""Between two looks at the guest attributes, which allow few queries."""
BEGIN_SECONDS = 60.0
"""How long after the first login the script may take to begin: Google's agent starts it last."""
LONGEST_SECONDS = 1200.0
"""Docker, toolkit and driver all installed, behind another installation's lock."""
HOLD_SECONDS = 15
"""How long the VM holds an answer back while there is nothing new."""
CONSOLE_LOOKS = 3
"""Every so many looks at the guest attributes there is one at the serial console too: a VM that restarts over and over
costs as much as one that works."""
LONGEST_MESSAGE = 300
_PARTS = {"driver": ErrorClass.DRIVER, "toolkit": ErrorClass.DRIVER}
_REMEDIES = {
    ErrorClass.DRIVER: "use a boot image with an NVIDIA driver that fits the GPU (machine.image), or leave it out for "
    "the default; docs/explanation/on-the-vm.md says what the VM is checked for",
    ErrorClass.IMAGE: "use a boot image with Docker (machine.image), or leave it out for the default; without an "
    "external address the VM needs a NAT to install anything",
}


class StartUp:
    """The start-up script of one VM, as its job hears of it.

    Args:
        run: The run.
        instance: Its VM.
    """

    def __init__(self, run: Run, instance: Instance) -> None:
        self._run = run
        self._instance = instance
        self._line = ""
        self._next_look = 0.0
        self._looks = 0

    def look(self) -> None:
        """Ask the guest attributes, now and then, for as long as the VM does not let us in.

        Raises:
            Failure: DRIVER or IMAGE, when the script has given up; SSH, when the VM restarts over and over.
        """
        run, instance = self._run, self._instance
        if run.clock.now() < self._next_look:
            return
        self._next_look = run.clock.now() + LOOK_SECONDS
        self._looks += 1
        if self._looks % CONSOLE_LOOKS == 0:
            console = run.cloud.serial_output(instance.name, instance.zone, last=WHOLE)
            if boots(console) > RESTARTS:
                raise never_answered(run, instance, "does not come up")
        try:
            line = run.cloud.guest_attributes(instance.name, instance.zone, NAMESPACE).get("state", "")
        except Failure as failure:
            if failure.klass is ErrorClass.INTERRUPTED:
                raise
            return  # A policy forbids it: the VM itself tells us once it lets us in.
        self._hear(line)

    def wait(self, machine: Machine) -> None:
        """Wait for the script's end on a VM that lets us in.

        Raises:
            Failure: DRIVER or IMAGE, when the script has given up, or does not come to an end; SSH.
        """
        run = self._run
        begun = run.clock.now()
        while True:
            before = self._line
            words = ("startup", before, str(HOLD_SECONDS))
            doing = "asking how far the VM is"
            line = ask_patiently(run, machine, *words, doing=doing, timeout=HOLD_SECONDS + 45).text.strip()
            if self._hear(line):
                return
            waited = run.clock.now() - begun
            if not line and waited > BEGIN_SECONDS:
                run.console.say("the VM's start-up script has not run: the boot image is taken as it is")
                return
            if waited > LONGEST_SECONDS:
                raise _given_up(line, f"after {spoken(LONGEST_SECONDS)} the VM is not ready yet")
            if line == before:
                run.clock.sleep(1.0)

    def _hear(self, line: str) -> bool:
        """Say what is new; whether the script is done."""
        if line == self._line:
            return line.startswith("ready ")
        self._line = line
        state, _, rest = line.partition(" ")
        message = _message(rest)
        if state == "failed":
            self._run.record.add("vm-start-up-failed", said=message)
            raise _given_up(line, "the VM cannot be used")
        if state == "working":
            self._run.console.say(f"the VM: {message}")
        return state == "ready"


def _given_up(line: str, what: str) -> Failure:
    _, _, rest = line.partition(" ")
    klass = _PARTS.get(rest.partition(" ")[0], ErrorClass.IMAGE)
    return Failure(klass, f"{what}: {_message(rest)}", _REMEDIES[klass])


def _message(rest: str) -> str:
    """What a person is told; any process on the VM can write guest attributes."""
    words = "".join(letter if letter.isprintable() else " " for letter in rest.partition(" ")[2])
    return words[:LONGEST_MESSAGE] or "nothing said"
