"""The virtual machines of a rehearsal: each a folder, an SSH server of its own, and a tree of processes.

What a VM does as the real one does:

- SSH: only user and key of the instance's metadata item ``ssh-keys``, in Google's expiring form too, as of the guest
  agent's last poll; none while ``enable-oslogin`` is TRUE, and none for anybody within five minutes of a scheduled
  power-off (``pam_nologin``). Command execution, SFTP, scp, forwards to 127.0.0.1; no terminal. A client that dies
  does not take a quiet remote command with it.
- Network: a caller whom the firewall does not let in hears nothing, and gets in at one of TCP's later attempts if the
  rule has come meanwhile. A VM that is no more hears nobody.
- Processes: everything that a VM runs hangs below its init, which ends it when the power is cut or the rehearsal dies.
- Boot: lines on the serial console, the start-up script as root, the metadata server (``guest_agent``).
- The power button: programs may delay the shutdown that it orders (``systemd-inhibit``), within logind's limit.

What it does not play: a file system, users and network of its own (commands see the machine's files, and run as the
rehearsal's user), a terminal, the rest of systemd. What goes by ``GLGPU_ROOT`` has its files in the VM's folder.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncssh
import psutil

from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.container_images import SYSTEM_PATH, Engine, Images
from glgpu.rehearsal.faults import Faults
from glgpu.rehearsal.guest_agent import GuestAgent
from glgpu.rehearsal.guest_programs import folder_socket
from glgpu.rehearsal.guest_programs.process_tree import end_tree
from glgpu.rehearsal.guest_programs.system_tools import LOGIND_READ
from glgpu.rehearsal.guest_programs.systemd_inhibit import LOCKS
from glgpu.rehearsal.seams import Hardware, Hypervisor, Network
from glgpu.rehearsal.world_clock import WorldClock

SYN_RETRIES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds between a TCP client's attempts to connect (Linux, tcp_syn_retries = 6)."""

NOLOGIN_SECONDS = 300.0
"""How long before a scheduled power-off nobody may log in any more (shutdown(8))."""

SHUTDOWN_DELAY = 5.0
"""Seconds for which programs may delay a shutdown unless told otherwise (InhibitDelayMaxSec, logind.conf(5))."""

NOLOGIN = "System is going down. Unprivileged users are not permitted to log in anymore. See pam_nologin(8).\r\n"

GUEST_PROGRAMS = {
    "sudo": ("sudo", ""),
    "docker": ("docker", ""),
    "nvidia-smi": ("nvidia_smi", ""),
    "iptables": ("iptables", "iptables"),
    "ip6tables": ("iptables", "ip6tables"),
    "shutdown": ("shutdown", ""),
    "curl": ("curl", ""),
    "systemd-inhibit": ("systemd_inhibit", ""),
    **{name: ("system_tools", name) for name in ("apt-get", "dmesg", "nvidia-ctk", "systemctl")},
}
"""Command in the VM: module of ``guest_programs`` and its first argument."""

DRIVERS = {"580": "580.95.05", "570": "570.133.20", "550": "550.163.01", "535": "535.247.01"}
"""Driver version by the branch that a boot image's name ends in."""

UPGRADED = "126.09"
"""What follows the branch in the version of the driver's libraries after an upgrade that the kernel's module missed."""


def login_keys(metadata: dict[str, str], now: float) -> dict[str, list[asyncssh.SSHKey]]:
    """The keys that may log in, by user, as Google's guest agent reads them from instance metadata.

    Args:
        metadata: The instance's items.
        now: Unix time; keys of the form ``google-ssh {"userName":...,"expireOn":...}`` count until their time.
    """
    if metadata.get("enable-oslogin", "").upper() == "TRUE":
        return {}
    keys: dict[str, list[asyncssh.SSHKey]] = {}
    for line in metadata.get("ssh-keys", "").splitlines():
        user, _, key = line.strip().partition(":")
        words = key.split(" ", 3)
        if not user or len(words) < 2 or is_expired(words, now):
            continue
        with suppress(asyncssh.KeyImportError):
            keys.setdefault(user, []).append(asyncssh.import_public_key(f"{words[0]} {words[1]}"))
    return keys


def is_expired(words: list[str], now: float) -> bool:
    """Whether a key's comment is Google's expiring form and its time is over, or cannot be read."""
    if len(words) < 3 or words[2] != "google-ssh":
        return False
    try:
        expiry = datetime.strptime(json.loads(words[3])["expireOn"], "%Y-%m-%dT%H:%M:%S%z")
    except (IndexError, KeyError, TypeError, ValueError):
        return True
    return expiry.timestamp() <= now


class MachineRoom:
    """Runs the VMs that Compute Engine orders (``seams.MachineRoom``).

    Faults: ``vm.boot`` ``ssh-never-up`` (the guest hangs: no login, no host key), ``loop`` (it restarts over and
    over) or ``slow`` (it boots for so many seconds); ``vm.gpu`` ``driver-missing``, ``driver-broken``, ``late`` (it
    answers so many seconds after the first login) or ``idle`` (whatever runs touches no GPU), asked once per boot;
    ``vm.ssh.connect`` ``reset`` or ``silence``, once per connection; ``vm.login`` ``refuse``, once per connection that
    gets as far as a user name; ``vm.docker.pull`` ``denied``, ``not-found``, ``silence`` or ``slow`` (so many seconds
    from the first pull of an image on, for whoever pulls it meanwhile too); ``vm.egress`` ``refuse`` or ``silence``,
    once per connection that the VM opens to anything but its metadata server.

    Attributes:
        registries: User and password of private registries by host; an image there needs the login.
    """

    def __init__(
        self,
        folder: Path,
        clock: WorldClock,
        faults: Faults,
        calls: CallLog,
        network: Network,
        *,
        images: Images,
        registries: dict[str, tuple[str, str]] | None = None,
        boot_seconds: float = 0.2,
        agent_seconds: float = 0.3,
    ) -> None:
        """Prepare an empty room.

        Args:
            folder: Where the VMs' folders go; absolute.
            clock: Decides about expiry and scheduled power-offs.
            faults: What goes wrong.
            calls: Gets a line for every connection, login, command and pull.
            network: The path to the VMs.
            images: What their Docker runs on.
            registries: See the attribute.
            boot_seconds: From power on to the first login; until then connections are refused.
            agent_seconds: How often the guest agent looks at the metadata.
        """
        self.folder = folder
        self.clock = clock
        self.faults = faults
        self.calls = calls
        self.network = network
        self.images = images
        self.registries = registries or {}
        self.boot_seconds = boot_seconds
        self.agent_seconds = agent_seconds
        self._machines: dict[str, Machine] = {}

    async def start(self) -> None:
        """Open the room; VMs come with ``boot``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._loop = asyncio.get_running_loop()
        self.network.listeners.append(self._on_network_change)

    async def stop(self) -> None:
        """Cut every VM's power and close what callers still hold open; their disks stay."""
        self.network.listeners.remove(self._on_network_change)
        for instance_id in list(self._machines):
            await self.cut_power(instance_id, delete=False)
            self._machines.pop(instance_id).vanish()

    async def boot(self, hardware: Hardware, hypervisor: Hypervisor) -> int:
        """Start a VM and return the port of its SSH server on 127.0.0.1."""
        gone = self._machines.pop(hardware.instance_id, None)
        if gone is not None:
            gone.vanish()
        machine = Machine(self, hardware, hypervisor)
        self._machines[hardware.instance_id] = machine
        return await machine.power_on()

    async def soft_off(self, instance_id: str) -> None:
        """Press a VM's power button; see ``seams.MachineRoom``."""
        machine = self._machines.get(instance_id)
        if machine is not None:
            await machine.soft_off()

    async def cut_power(self, instance_id: str, *, delete: bool) -> None:
        """End a VM at once; see ``seams.MachineRoom``."""
        machine = self._machines.get(instance_id)
        if machine is None:
            return
        await machine.power_off()
        if delete:
            await asyncio.to_thread(remove_disk, machine.folder)

    def home(self, instance_id: str, user: str) -> Path:
        """The home folder of a user on a VM."""
        return self._machines[instance_id].home(user)

    def _on_network_change(self) -> None:
        # Whoever changes the network may do so from another thread.
        self._loop.call_soon_threadsafe(self._cut_or_freeze)

    def _cut_or_freeze(self) -> None:
        for machine in self._machines.values():
            machine.network_changed(self.network.dropped)


class Machine:
    """One VM from power on to power off."""

    def __init__(self, room: MachineRoom, hardware: Hardware, hypervisor: Hypervisor) -> None:
        self.room = room
        self.hardware = hardware
        self.hypervisor = hypervisor
        self.folder = room.folder / hardware.instance_id
        self.keys: dict[str, list[asyncssh.SSHKey]] = {}
        self.power_off_at: float | None = None
        self.is_on = True
        self._boot_seconds = room.boot_seconds
        self._images_here: dict[str, float] = {}  # when the last layer of an image that was pulled has come
        self._listener = socket.socket()
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._guest: set[asyncio.Task[None]] = set()  # those of them that end with the guest
        self._is_answering = False
        self._init: Init | None = None
        self._guest_server: asyncio.Server | None = None
        self._switching_on: asyncio.Task[int]  # since boot
        self._switching_off: asyncio.Task[None] | None = None
        self._agent = GuestAgent(self.folder, hardware, hypervisor, room.clock.now)

    def home(self, user: str) -> Path:
        """A user's home folder."""
        return self.folder / ("root" if user == "root" else f"home/{user}")

    def log(self, verb: str, target: str, **facts: Any) -> None:
        """Note what reached this VM."""
        self.room.calls.add("vm", verb, target, at=self.room.clock.now(), vm=self.hardware.name, **facts)

    # --- power: what is begun goes on to its end even if its caller is cancelled, or its processes would be nobody's

    async def power_on(self) -> int:
        """Begin to boot; returns the SSH server's port."""
        self._switching_on = asyncio.create_task(self._switch_on())
        return await asyncio.shield(self._switching_on)

    async def _switch_on(self) -> int:
        rule = self.room.faults.at("vm.boot")
        if rule is not None and rule.action == "slow":
            self._boot_seconds = float(rule.argument)
        self._install()
        self._init = await Init.start(self.folder)
        self._guest_server = await asyncio.start_unix_server(
            self._answer_guest, sock=folder_socket.listen(self.folder / "guest.sock")
        )
        # Bound, not yet listening: until sshd is up a connection is refused.
        self._listener.setblocking(False)
        self._listener.bind(("127.0.0.1", 0))
        self.log("boot", self.hardware.machine_type, fault=rule.action if rule else "")
        if rule is not None and rule.action in ("ssh-never-up", "loop"):
            self.is_on = False
            self._answer_calls()
            if rule.action == "loop":
                self._guest.add(self._begin(self._agent.boot_for_ever()))
        else:
            self._guest.add(self._begin(self._boot()))
        return int(self._listener.getsockname()[1])

    async def soft_off(self) -> None:
        """What systemd does when the power button is pressed.

        It waits for whoever delays a shutdown, for so long and no longer. Then the sessions end, Docker's engine gives
        each container the time that `docker stop` does, and the machine is off.
        """
        loop = asyncio.get_running_loop()
        self._agent.log("systemd-logind[555]", "Power key pressed short.")
        end = loop.time() + shutdown_delay(self.folder)
        while is_delayed(self.folder) and loop.time() < end:
            await asyncio.sleep(0.05)
        self._agent.log("systemd-logind[555]", "System is powering down.")
        for link in [link for link in self._links if link.is_served]:
            link.close()
        if self._init is not None:
            stop = ["/bin/sh", "-c", "docker ps -q | xargs -r docker stop"]
            order = {"argv": stop, "env": self.environment("root"), "cwd": str(self.folder)}
            nothing = os.open(os.devnull, os.O_RDWR)
            try:
                with suppress(OSError):
                    await (await self._init.run(order, (nothing, nothing, nothing)))
            finally:
                os.close(nothing)
        await self.power_off()

    async def power_off(self) -> None:
        """End every process and container of this VM, and its memory; the address stays silent."""
        self.is_on = False
        if self._switching_off is None:
            self._switching_off = asyncio.create_task(self._switch_off())
        await asyncio.shield(self._switching_off)

    async def _switch_off(self) -> None:
        await asyncio.wait({self._switching_on})
        init, self._init = self._init, None
        if init is None:
            return
        self.log("power-off", self.hardware.name)
        if self._guest_server is not None:
            self._guest_server.close()
        await init.end()
        for task in self._guest:
            task.cancel()
        await asyncio.gather(*self._guest, return_exceptions=True)
        self._answer_calls()
        engine = self.room.images.engine
        await asyncio.to_thread(remove_containers, engine, self.hardware.instance_id)
        remove_memory(self.hardware.name)
        (self.folder / "init.json").unlink(missing_ok=True)
        # The guest's sshd ends its sessions; whoever was held by the firewall goes on hearing nothing.
        for link in [link for link in self._links if link.is_served]:
            link.close()

    def vanish(self) -> None:
        """Give the address back: nobody waits for this VM any more."""
        for task in list(self._tasks):
            task.cancel()
        for link in list(self._links):
            link.close()
        self._listener.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _install(self) -> None:
        """Put the disk in order: programs, settings, the process-based engine's images."""
        for name in ("bin", "home", "root", "docker"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for name, (module, argument) in GUEST_PROGRAMS.items():
            program = self.folder / "bin" / name
            words = [sys.executable, "-I", "-m", f"glgpu.rehearsal.guest_programs.{module}", *filter(None, [argument])]
            folder = shlex.quote(str(self.folder))
            program.write_text(f'#!/bin/sh\nGLGPU_VM_FOLDER={folder} exec {shlex.join(words)} "$@"\n')
            program.chmod(0o755)
        rule = self.room.faults.at("vm.gpu")
        branch = re.search(r"nvidia-(\d{3})", self.hardware.boot_image)
        driver = DRIVERS.get(branch[1] if branch else "580", f"{branch[1] if branch else '580'}.00")
        if not self.hardware.gpu_count or (rule is not None and rule.action == "driver-missing"):
            driver = ""
        broken = rule is not None and rule.action == "driver-broken"
        late = float(rule.argument) if rule is not None and rule.action == "late" else 0.0
        images = self.room.images
        settings = {
            "instance_id": self.hardware.instance_id, "name": self.hardware.name,
            "gpu_type": self.hardware.gpu_type, "gpu_count": self.hardware.gpu_count, "driver": driver,
            "library": f"{driver.partition('.')[0]}.{UPGRADED}" if broken else driver,
            "gpu_idle": rule is not None and rule.action == "idle",
            "driver_loaded_at": time.time() + self._boot_seconds + late if late else 0.0,
            "engine": {"client": images.engine.client, "host": images.engine.host}, "base": images.base,
            "path": f"{self.folder / 'bin'}:{SYSTEM_PATH}",
        }  # fmt: skip
        (self.folder / "machine.json").write_text(json.dumps(settings))
        (self.folder / "docker" / "images.json").write_text(json.dumps(images.store))
        mounts = [str(self.folder / "home"), str(self.folder / "root"), "/dev/shm", "/tmp"]
        (self.folder / "docker" / "mounts.json").write_text(json.dumps(mounts))

    async def _boot(self) -> None:
        await asyncio.sleep(self._boot_seconds)
        key_file = self.folder / "host_key"
        if not key_file.exists():
            made = asyncssh.generate_private_key("ssh-ed25519")
            key_file.touch(mode=0o600)
            key_file.write_bytes(made.export_private_key())
        key = asyncssh.read_private_key(str(key_file))
        self._options = asyncssh.SSHServerConnectionOptions(
            server_factory=lambda: Login(self), server_host_keys=[key], process_factory=self._run_command,
            encoding=None, sftp_factory=lambda channel: GuestFiles(self, channel), allow_scp=True, line_editor=False,
            # The cipher that a Python server is fastest with, and a window that keeps its memory flat.
            encryption_algs=["aes128-gcm@openssh.com"], window=262144,
        )  # fmt: skip
        self._agent.boot()
        self._poll_metadata()
        self._answer_calls()
        self._agent.publish_host_key(key.export_public_key().decode())
        self._guest.add(self._begin(self._start_up()))
        await asyncio.sleep(self.room.agent_seconds)
        while self.is_on:
            self._poll_metadata()
            await asyncio.sleep(self.room.agent_seconds)

    async def _start_up(self) -> None:
        if self._init is not None:
            # Its disk, or its power, may go while the script runs.
            with suppress(OSError):
                await self._agent.run_start_up_script(self._init.run, self.environment("root"))

    def _poll_metadata(self) -> None:
        """What Google's guest agent does: accounts and keys by the metadata."""
        self.keys = login_keys(self.hypervisor.metadata(), self.room.clock.now())
        # Its disk may go while the guest still boots.
        with suppress(FileNotFoundError):
            for user in self.keys:
                self.home(user).mkdir(exist_ok=True)

    # --- network

    def _answer_calls(self) -> None:
        """From now on a connection is not refused: there is a guest to let it in, or nobody to hear it."""
        if not self._is_answering:
            self._is_answering = True
            self._listener.listen(128)
            self._begin(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            link = Link(client, self._links.discard)
            self._links.add(link)
            self._begin(self._admit(link))

    async def _admit(self, link: Link) -> None:
        """Let a caller in, now or at one of TCP's later attempts, or never."""
        caller = self.room.network.source_of(link.caller_port)
        rule = self.room.faults.at("vm.ssh.connect")
        self.log("connect", caller, fault=rule.action if rule else "")
        if rule is not None and rule.action == "reset":
            link.reset()
            return
        if rule is not None and rule.action == "silence":
            return
        port = int(self._listener.getsockname()[1])
        for pause in (*SYN_RETRIES, 0.0):
            if self.room.network.dropped == "reset":
                link.reset()
                return
            if self.is_on and self.room.network.dropped is None and self.hypervisor.may_connect(caller, port):
                inner = link.serve()
                # Every way in which a caller can go wrong or away before it has logged in.
                with suppress(OSError, asyncssh.Error):
                    await asyncssh.run_server(inner, options=self._options)
                return
            await asyncio.sleep(pause)
        link.close()

    def network_changed(self, dropped: str | None) -> None:
        """Cut or freeze what is open; who is not connected yet finds out by himself."""
        for link in [link for link in self._links if link.is_served]:
            if dropped == "reset":
                link.reset()
            elif dropped == "silence":
                link.freeze()

    # --- inside

    def environment(self, user: str) -> dict[str, str]:
        """The environment of a login session."""
        return {
            "PATH": f"{self.folder / 'bin'}:{SYSTEM_PATH}", "HOME": str(self.home(user)), "USER": user,
            "LOGNAME": user, "SHELL": "/bin/sh", "LANG": "C.UTF-8", "GLGPU_VM": self.hardware.instance_id,
            "GLGPU_VM_USER": user, "GLGPU_ROOT": str(self.folder),
        }  # fmt: skip

    async def _run_command(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """One session."""
        await self.room.calls.interposer.session("vm", process, lambda: self._serve(process))

    async def _serve(self, process: asyncssh.SSHServerProcess[bytes]) -> Callable[[], None]:
        """A shell with the caller's command, between three pipes; what tells the caller how it ended."""
        user = process.get_extra_info("username")
        command = process.command
        init = self._init
        if init is None:
            return lambda: process.exit(255)
        accepted = {name: value for name, value in process.env.items() if name == "LANG" or name.startswith("LC_")}
        order = {
            "argv": ["/bin/sh", "-c", command] if command is not None else ["/bin/sh"],
            "env": self.environment(user) | accepted, "cwd": str(self.home(user)),
        }  # fmt: skip
        stdin, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
        given = (stdin[0], stdout[1], stderr[1])
        try:
            exited = await init.run(order, given)
        finally:
            for fd in given:
                os.close(fd)
        pumps = [
            asyncio.create_task(pump_out(stdout[0], process.stdout)),
            asyncio.create_task(pump_out(stderr[0], process.stderr)),
        ]
        feeding = asyncio.create_task(pump_in(process.stdin, stdin[1]))
        closed = asyncio.create_task(process.channel.wait_closed())
        finished = asyncio.create_task(completed(exited, *pumps))
        # As sshd without a terminal: a caller that goes leaves the command alone, which notices only by its pipes.
        await asyncio.wait([finished, closed], return_when=asyncio.FIRST_COMPLETED)
        in_time = finished.done() and finished.exception() is None
        for task in (feeding, *pumps, finished, closed):
            task.cancel()
        await asyncio.gather(feeding, *pumps, finished, closed, return_exceptions=True)
        if in_time:
            code = exited.result()
            self.log("exec", command or "", status=code, user=user)
            if code >= 0:
                return lambda: process.exit(code)
            return lambda: process.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
        self.log("exec", command or "", status=None, user=user, caller_left=True)
        return lambda: None

    async def _answer_guest(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a program of this VM: one JSON line each way."""
        # Whoever waits for a change may wait for as long as this world lasts.
        with suppress(ConnectionError, ValueError, asyncio.CancelledError):
            question = json.loads(await reader.readline())
            if question["do"] == "metadata":
                answer = await self._agent.answer(question)
            else:
                answers = {"shutdown": self._shutdown, "pull": self._pull, "login": self._login, "egress": self._egress}
                answer = answers[question["do"]](question)
            await asyncio.sleep(answer.pop("after", 0.0))
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    def _shutdown(self, question: dict[str, Any]) -> dict[str, Any]:
        minutes = question["minutes"]
        if minutes is None:
            self.power_off_at = None
            return {}
        at = self.room.clock.now() + 60.0 * minutes
        self.power_off_at = at

        def due() -> None:
            # A later order, or a cancellation, has taken this one's place.
            if self.power_off_at == at and self.is_on:
                self._begin(self._halt())

        self.room.clock.call_at(at, due)
        return {"at": at}

    async def _halt(self) -> None:
        await self.power_off()
        self.hypervisor.powered_off()

    def _pull(self, question: dict[str, Any]) -> dict[str, Any]:
        image, host = question["image"], question["host"]
        rule = self.room.faults.at("vm.docker.pull")
        answer = self._registry_answer(image, host, question["auth"], rule.action if rule else "")
        self.room.calls.add(
            "registry", "pull", image, at=self.room.clock.now(), status=403 if answer else 200, vm=self.hardware.name,
            authenticated=bool(question["auth"]),
        )  # fmt: skip
        if rule is not None and rule.action == "slow":
            # Docker fetches a layer once, however many ask for it.
            now = asyncio.get_running_loop().time()
            answer["after"] = max(0.0, self._images_here.setdefault(image, now + float(rule.argument)) - now)
        return answer

    def _egress(self, question: dict[str, Any]) -> dict[str, Any]:
        """What becomes of a connection that the VM opens to somewhere else."""
        rule = self.room.faults.at("vm.egress")
        self.log("egress", question["host"], fault=rule.action if rule else "")
        return {"fate": rule.action if rule else ""}

    def _registry_answer(self, image: str, host: str, auth: str, fault: str) -> dict[str, Any]:
        repository, _, tag = image.partition("@")[0].removeprefix(f"{host}/").partition(":")
        denied = (
            f"pull access denied for {image.partition('@')[0].removesuffix(f':{tag}')}, repository does not exist or "
            "may require 'docker login': denied: requested access to the resource is denied"
        )
        if fault == "silence":
            return {"silence": True}
        if fault == "not-found":
            return {"refuse": f"manifest for {image} not found: manifest unknown: manifest unknown"}
        if fault == "denied":
            return {"refuse": denied}
        wanted = self.room.registries.get(host)
        if wanted is not None and auth != ":".join(wanted):
            if not auth:
                return {"refuse": denied}
            url = f"https://{host}/v2/{repository}/manifests/{tag or 'latest'}"
            return {"refuse": f'Head "{url}": unauthorized: authentication required'}
        return {}

    def _login(self, question: dict[str, Any]) -> dict[str, Any]:
        host = question["host"]
        right = self.room.registries.get(host) == (question["user"], question["password"])
        self.room.calls.add(
            "registry", "login", host, at=self.room.clock.now(), status=200 if right else 401, vm=self.hardware.name
        )
        if right:
            return {}
        return {"refuse": f'Get "https://{host}/v2/": unauthorized: incorrect username or password'}


class Login(asyncssh.SSHServer):
    """Who may log in, and what a connection may do beside running commands."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.user = ""
        self.refused = False

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Keep the connection, for the banner."""
        self.connection = conn

    def begin_auth(self, username: str) -> bool:
        """Every login needs a key; the fault counts once per connection."""
        machine = self.machine
        rule = machine.room.faults.at("vm.login")
        self.user = username
        self.refused = rule is not None and rule.action == "refuse"
        at = machine.power_off_at
        if at is not None and at - machine.room.clock.now() < NOLOGIN_SECONDS:
            self.refused = True
            self.connection.send_auth_banner(NOLOGIN)
        return True

    def public_key_auth_supported(self) -> bool:
        """The only way in."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Whether the guest agent has set up this key for this user."""
        keys = self.machine.keys.get(username, [])
        return not self.refused and any(known.public_data == key.public_data for known in keys)

    def auth_completed(self) -> None:
        """Note who came in."""
        self.machine.log("login", self.user)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        """Forwards (``-L``) to the VM itself."""
        del dest_port, orig_host, orig_port
        return dest_host in ("127.0.0.1", "localhost")

    def unix_connection_requested(self, dest_path: str) -> bool:
        """The same to a UNIX socket, which sshd allows as well (AllowStreamLocalForwarding)."""
        del dest_path
        return True


class GuestFiles(asyncssh.SFTPServer):
    """SFTP and scp: relative paths begin in the user's home, as with sshd."""

    def __init__(self, machine: Machine, channel: asyncssh.SSHServerChannel[bytes]) -> None:
        self.home = os.fsencode(machine.home(channel.get_extra_info("username")))
        super().__init__(channel)

    def map_path(self, path: bytes) -> bytes:
        """Absolute paths are the machine's own."""
        return os.path.join(self.home, path)

    def exit(self) -> None:
        """Tell the client's scp that all went well; without an exit status it fails."""
        self.channel.exit(0)


class Init:
    """The parent of all processes of a VM; see ``guest_programs.init``."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self._process = process
        self._started = psutil.Process(process.pid).create_time()
        self._control = control
        self._orders: list[asyncio.Future[int]] = []
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._ended = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(cls, folder: Path) -> Init:
        """Start it for the VM in ``folder``, and note there how to find it again."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        for end in (ours, its):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

        def spawn() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-I", "-m", "glgpu.rehearsal.guest_programs.init"],
                stdin=its.fileno(), stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True, cwd="/",
                env={"PATH": SYSTEM_PATH, "GLGPU_VM": folder.name},
            )  # fmt: skip

        with its, (folder / "init.log").open("ab") as errors:
            init = cls(await asyncio.to_thread(spawn), ours)
        (folder / "init.json").write_text(json.dumps({"pid": init._process.pid, "started": init._started}))
        asyncio.get_running_loop().add_reader(ours, init._read)
        return init

    async def run(self, order: dict[str, Any], fds: tuple[int, int, int]) -> asyncio.Future[int]:
        """Start a process; returns the future of its exit code.

        Raises:
            OSError: It cannot be started.
        """
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._orders.append(started)
        socket.send_fds(self._control, [json.dumps(order).encode("utf-8", "surrogateescape")], fds)
        return self._exits[await started]

    async def end(self) -> None:
        """Kill everything below it, and itself; returns when nothing is left."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        await asyncio.wait({self._ended}, timeout=10)
        await asyncio.to_thread(end_tree, self._process.pid, self._started)
        await asyncio.to_thread(self._process.wait)

    def _read(self) -> None:
        try:
            data = self._control.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._ended.set_result(None)
            for future in (*self._orders, *self._exits.values()):
                if not future.done():
                    future.set_exception(ConnectionResetError("the virtual machine lost power"))
                    # Whoever waited for it may be gone: then nobody needs to be told.
                    future.exception()
            return
        message = json.loads(data)
        if "started" in message:
            self._exits[message["started"]] = asyncio.get_running_loop().create_future()
            self._orders.pop(0).set_result(message["started"])
        elif "failed" in message:
            self._orders.pop(0).set_exception(OSError(message["failed"]))
        else:
            self._exits.pop(message["exited"]).set_result(message["code"])


class Link:
    """One TCP connection of a caller, and the bytes between it and the SSH server behind it."""

    def __init__(self, client: socket.socket, forget: Callable[[Link], None]) -> None:
        self._client = client
        self.caller_port = int(client.getpeername()[1])
        self._client.setblocking(False)
        self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._forget = forget
        self._inner: socket.socket | None = None
        self._copying: list[asyncio.Task[None]] = []

    @property
    def is_served(self) -> bool:
        """Whether the SSH server has this connection."""
        return self._inner is not None

    def serve(self) -> socket.socket:
        """Begin to carry bytes; returns the server's end."""
        self._inner, server = socket.socketpair()
        self._inner.setblocking(False)
        server.setblocking(False)
        loop = asyncio.get_running_loop()
        self._copying = [
            loop.create_task(self._copy(self._client, self._inner)),
            loop.create_task(self._copy(self._inner, self._client)),
        ]
        return server

    async def _copy(self, source: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        buffer = memoryview(bytearray(1 << 18))
        with suppress(OSError):
            while count := await loop.sock_recv_into(source, buffer):
                await loop.sock_sendall(target, buffer[:count])
        self.close()

    def freeze(self) -> None:
        """Carry nothing more, and let neither side know."""
        for task in self._copying:
            task.cancel()

    def reset(self) -> None:
        """Abort: the caller gets a reset."""
        with suppress(OSError):
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """End both sides."""
        self.freeze()
        # Not within the copying itself, which must leave the loop's bookkeeping before its sockets go.
        loop = asyncio.get_running_loop()
        loop.call_soon(self._client.close)
        if self._inner is not None:
            loop.call_soon(self._inner.close)
        self._forget(self)


async def completed(*awaitables: Awaitable[Any]) -> None:
    """Wait for all of them; where one is given up, the others are not."""
    for awaitable in awaitables:
        await asyncio.shield(asyncio.ensure_future(awaitable))


async def pump_in(source: asyncssh.SSHReader[bytes], fd: int) -> None:
    """Carry the caller's input to a pipe until either ends."""
    loop = asyncio.get_running_loop()
    pipe = os.fdopen(fd, "wb", buffering=0)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        while data := await source.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except (OSError, asyncssh.Error):
        return
    finally:
        transport.close()


async def pump_out(fd: int, target: asyncssh.SSHWriter[bytes]) -> None:
    """Carry a pipe's output to the caller until it ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    pipe = os.fdopen(fd, "rb", buffering=0)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        while data := await reader.read(1 << 16):
            target.write(data)
            await target.drain()
    except (OSError, asyncssh.Error):
        return
    finally:
        transport.close()


def shutdown_delay(folder: Path) -> float:
    """For how many seconds programs of a VM may delay its shutdown: as logind has read it last."""
    noted = folder / "run" / LOGIND_READ
    return float(noted.read_text()) if noted.exists() else SHUTDOWN_DELAY


def is_delayed(folder: Path) -> bool:
    """Whether a program of a VM delays its shutdown."""
    return any(psutil.pid_exists(int(lock.name)) for lock in (folder / "run" / LOCKS).glob("*"))


def remove_containers(engine: Engine, instance_id: str) -> None:
    """Kill and remove what a VM ran on the real engine; the process-based one's containers hang below its init."""
    if engine.client is None:
        return
    while names := engine.docker("ps", "-aq", "--filter", f"label=glgpu-vm={instance_id}").stdout.split():
        engine.docker("rm", "-f", "-v", *names)


def remove_memory(instance_name: str) -> None:
    """Empty a VM's part of /dev/shm."""
    for path in Path("/dev/shm").glob(f"{instance_name}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_disk(folder: Path) -> None:
    """Remove a VM's folder, read-only parts included."""
    for path, _, _ in os.walk(folder):
        os.chmod(path, 0o700)
    shutil.rmtree(folder)


def reap(folder: Path, engine: Engine) -> list[str]:
    """End what a rehearsal that was killed has left of its VMs.

    Args:
        folder: The room's folder.
        engine: The engine that it used.

    Returns:
        The names of the VMs found. Processes are known by id and start time, so that no other is touched.
    """
    found = []
    for machine_file in sorted(folder.glob("*/machine.json")):
        machine = json.loads(machine_file.read_text())
        for noted in (
            *machine_file.parent.glob("init.json"),
            *machine_file.parent.glob("docker/containers/*/supervisor.json"),
        ):
            process = json.loads(noted.read_text())
            end_tree(process["pid"], process["started"])
            noted.unlink()
        remove_containers(engine, machine["instance_id"])
        remove_memory(machine["name"])
        remove_disk(machine_file.parent)
        found.append(machine["name"])
    return found


logging.getLogger("asyncssh").setLevel(logging.ERROR)
