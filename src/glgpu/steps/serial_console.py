"""The VM's serial console: its end, for whoever wonders why the VM never answers, and its copy of the host key."""

from __future__ import annotations

import re

from glgpu import links
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance
from glgpu.steps.context import Run

WHOLE = 1 << 20
"""Bytes that Compute Engine keeps of a serial port's output."""
SHOWN_LINES = 25
LONGEST_LINE = 300
RESTARTS = 3
"""Boots of one VM that are no accident any more: some images restart once, for a new kernel or a driver."""
OS_LOGIN = "Enabling OS Login"
"""What Google's guest agent says when it begins to ignore the keys in the metadata."""

_KEY = r"ssh-ed25519 ([A-Za-z0-9+/]{68})"
# What vm/startup.sh prints, behind the mark of the agent's script runner, and nothing before that but a time and a
# name. Both sorts of line take a process of root's: what other users log stands behind their own programs' names.
_TIME = r"(?:\[ *\d+\.\d+\] |[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S+ |\d{4}-\d\d-\d\dT\S+ \S+ )?"
_OURS = re.compile(
    rf"^{_TIME}[\w-]*script[\w-]*(?:\[\d+\])?: startup-script: glgpu: host key: {_KEY}\s*$", re.MULTILINE
)
# What cloud-init prints, where the boot image has it
# (https://cloudinit.readthedocs.io/en/latest/reference/modules.html#keys-to-console).
_BLOCK = re.compile(
    r"^-----BEGIN SSH HOST KEY KEYS-----\s*$(.*?)^-----END SSH HOST KEY KEYS-----\s*$", re.MULTILINE | re.DOTALL
)
_IN_BLOCK = re.compile(rf"^{_KEY}(?: \S+)?\s*$", re.MULTILINE)
_BOOT = re.compile(r"^\[ +0\.000000\] Linux version |^SeaBIOS \(version ", re.MULTILINE)
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)")


def printed_host_key(console: str) -> str:
    """The ed25519 host key that the VM printed while it booted; empty where it printed none, or more than one."""
    ours = set(_OURS.findall(console))
    # cloud-init may print a key that the guest agent then replaces: our own line, which comes later, goes before it.
    found = ours or {key for block in _BLOCK.findall(console) for key in _IN_BLOCK.findall(block)}
    return found.pop() if len(found) == 1 else ""


def boots(console: str) -> int:
    """How often the VM has begun to boot."""
    begun = [match[0].lstrip("[ ")[0] for match in _BOOT.finditer(console)]
    return max(begun.count("0"), begun.count("S"))


def never_answered(run: Run, instance: Instance, how: str) -> Failure:
    """Show the console's end, and say what is known of a VM that was waited for in vain."""
    console = run.cloud.serial_output(instance.name, instance.zone, last=WHOLE)
    show_end(run, instance, console)
    if OS_LOGIN in console:
        return ignores_keys(instance)
    times = boots(console)
    if times > RESTARTS:
        return Failure(
            ErrorClass.SSH,
            f"the VM {instance.name} booted {times} times and never let us in: it restarts over and over ({how})",
            "read the end of its serial console above; use another boot image (machine.image)",
        )
    return Failure(
        ErrorClass.SSH,
        f"the VM {instance.name} runs but {how}",
        "look at its serial console above; check that the boot image runs Google's guest agent and an SSH server",
    )


def ignores_keys(instance: Instance) -> Failure:
    """A VM on which OS Login is on, so that nobody's key in the metadata opens it."""
    return Failure(
        ErrorClass.ORG_POLICY,
        f"the VM {instance.name} ignores the login keys in its metadata: OS Login is on there, although glgpu turns it "
        "off; a policy, or somebody who keeps one, has turned it on",
        "take this cloud project out of the policy compute.requireOsLogin, and of whatever else sets enable-oslogin: "
        f"{links.OS_LOGIN.url}",
    )


def show_end(run: Run, instance: Instance, console: str) -> None:
    """Print the console's end in a section of its own: its last lines, without control characters, masked."""
    with run.console.section("serial-console", f"The end of the serial console of {instance.name}"):
        lines = end_of(console)
        for line in lines:
            run.console.say(f"  {run.console.masker.mask(line)[:LONGEST_LINE]}")
        if not lines:
            run.console.say("  nothing was printed there, or this account may not read it")


def end_of(console: str) -> list[str]:
    """Its last lines that say something, without colours, cursor movements and other control characters."""
    plain = _ESCAPES.sub("", console)
    lines = (re.sub(r"[^\x20-\x7e\xa0-\uffff]", "", line).rstrip() for line in re.split(r"[\r\n]+", plain))
    return [line for line in lines if line][-SHOWN_LINES:]
