"""What the stand-ins ask of each other: Compute Engine of the VMs, the VMs of Compute Engine and the network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Hardware:
    """What a VM was ordered with.

    Attributes:
        instance_id: The numeric id that Compute Engine gave; unique for all time, unlike the name.
        name: Instance name.
        zone: Short zone name.
        machine_type: Short machine type name.
        gpu_type: Accelerator type, or None.
        gpu_count: How many GPUs the guest sees.
        boot_image: Path of the boot image.
        account: E-mail address and scopes of its service account; None: it has none.
    """

    instance_id: str
    name: str
    zone: str
    machine_type: str
    gpu_type: str | None
    gpu_count: int
    boot_image: str
    account: tuple[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Hypervisor:
    """What a running VM can ask of Compute Engine, as callables so that neither imports the other.

    Attributes:
        metadata: The instance's metadata items as they are now.
        may_connect: Whether the firewall lets this source address (dotted IPv4) reach this TCP port of the VM now.
        publish: Write a guest attribute: namespace, key, value; whether the metadata server took it.
        powered_off: Tell that the guest has powered itself off; the instance becomes TERMINATED.
        print: Write to the first serial port.
        preempted: Set as soon as Google has said that it takes the VM away.
        token: A new access token of its service account, and for how many seconds it is good; None: there is none.
    """

    metadata: Callable[[], dict[str, str]]
    may_connect: Callable[[str, int], bool]
    publish: Callable[[str, str, str], bool]
    powered_off: Callable[[], None]
    print: Callable[[str], None]
    preempted: asyncio.Event = field(default_factory=asyncio.Event)
    token: Callable[[], tuple[str, int] | None] = lambda: None


class MachineRoom(Protocol):
    """Whoever runs the VMs; Compute Engine calls it."""

    async def boot(self, hardware: Hardware, hypervisor: Hypervisor) -> int:
        """Start a VM and return the loopback port of its SSH server.

        Returns when the guest has begun to boot, like a real instance reaching RUNNING: host keys are published and
        logins accepted a little later.
        """

    async def soft_off(self, instance_id: str) -> None:
        """Press a VM's power button (ACPI G2); returns when the guest has shut down. Unknown ids are fine."""

    async def cut_power(self, instance_id: str, *, delete: bool) -> None:
        """End a VM at once: no process of it survives. With ``delete`` its disk goes too. Unknown ids are fine."""


IAP_SOURCE = "35.235.240.7"
"""An address in the range that Identity-Aware Proxy connects from."""


@dataclass
class Network:
    """The path between callers and VMs.

    Attributes:
        caller_address: The address under which every caller on this machine is seen from outside: what the echo
            service tells and what the firewall judges. The player gives each job a new one, as hosted runners do.
        dropped: How VM connections fail at the moment: None (they work), ``reset`` or ``silence``.
        proxied: Local ports from which somebody connects on behalf of callers, with the address he is seen under.
    """

    caller_address: str = "203.0.113.10"
    dropped: str | None = None
    proxied: dict[int, str] = field(default_factory=dict)
    listeners: list[Callable[[], None]] = field(default_factory=list)

    def source_of(self, port: int) -> str:
        """The address under which a connection from this local port is seen."""
        return self.proxied.get(port, self.caller_address)

    def change(self, *, caller_address: str | None = None, dropped: str | None = None) -> None:
        """Set what is given (``dropped`` always) and tell the listeners, who cut or freeze what is open."""
        if caller_address is not None:
            self.caller_address = caller_address
        self.dropped = dropped
        for listener in self.listeners:
            listener()
