"""What a VM's boot prints on its serial console, and what Google's guest agent does beside accounts and keys.

The agent runs the metadata item ``startup-script`` as root once the network is up, and prints its output line by line
on the serial console, behind its own name (https://cloud.google.com/compute/docs/instances/startup-scripts/linux). The
metadata server answers the VM's own requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from glgpu.rehearsal.seams import Hardware, Hypervisor

KERNEL = "Linux version 6.8.0-1045-gcp (buildd@lcy02-amd64-061) (x86_64-linux-gnu-gcc-12) #48~22.04.1-Ubuntu SMP"
PANIC = (
    '[    2.104011] VFS: Cannot open root device "PARTUUID=1b4e" or unknown-block(0,0): error -6',
    "[    2.104640] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
    "[    2.105310] Rebooting in 10 seconds..",
)
START_UP = "startup-script"
LOOP_SECONDS = 0.5
TOKEN_MARGIN_SECONDS = 240.0

Start = Callable[[dict[str, Any], tuple[int, int, int]], Awaitable[asyncio.Future[int]]]
"""Starts a process in the VM, with its three descriptors; the future is that of its exit code."""


class GuestAgent:
    """The agent of one VM.

    Args:
        folder: The VM's.
        hardware: What it was ordered with.
        hypervisor: Its metadata, guest attributes and serial port.
        now: Unix time.
    """

    def __init__(self, folder: Path, hardware: Hardware, hypervisor: Hypervisor, now: Callable[[], float]) -> None:
        self._folder = folder
        self._hardware = hardware
        self._hypervisor = hypervisor
        self._now = now
        self._token, self._token_ends = "", 0.0

    # --- the serial console

    def boot(self) -> None:
        """Print what a kernel and systemd print until the agent starts."""
        self._print("[    0.000000] " + KERNEL)
        self._print("[    0.000000] DMI: Google Google Compute Engine/Google Compute Engine, BIOS Google")
        self._print("[    3.417801] systemd[1]: Detected virtualization google.")
        self.log("google_guest_agent[612]", "GCE Agent Started (version 20251011.00)")
        if self._hypervisor.metadata().get("enable-oslogin", "").upper() == "TRUE":
            self.log("google_guest_agent[612]", "Enabling OS Login")

    async def boot_for_ever(self) -> None:
        """Print boot after boot: each ends in a panic, and the next one begins."""
        while True:
            self._print("SeaBIOS (version 1.8.2-google)")
            self._print("[    0.000000] " + KERNEL)
            for line in PANIC:
                self._print(line)
            await asyncio.sleep(LOOP_SECONDS)

    def log(self, program: str, text: str) -> None:
        """Print a line as the system's log forwards it to the console."""
        moment = time.strftime("%b %e %H:%M:%S", time.gmtime(self._now()))
        self._print(f"{moment} {self._hardware.name} {program}: {text}")

    def _print(self, line: str) -> None:
        self._hypervisor.print(f"{line}\r\n")

    # --- host key and start-up script

    def publish_host_key(self, public: str) -> None:
        """Leave the host key where sshd has it, and in the guest attributes where they are enabled."""
        algorithm, key, *_ = public.split()
        file = self._folder / "etc" / "ssh" / "ssh_host_ed25519_key.pub"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{algorithm} {key} root@{self._hardware.name}\n")
        if self._hypervisor.metadata().get("enable-guest-attributes", "").upper() == "TRUE":
            self._hypervisor.publish("hostkeys", algorithm, key)

    async def run_start_up_script(self, start: Start, environment: dict[str, str]) -> None:
        """Run the script that the metadata hold, if any, to its end."""
        runner = "google_metadata_script_runner[733]"
        script = self._hypervisor.metadata().get(START_UP)
        self.log(runner, "Starting startup scripts (version 20251011.00).")
        if script is None:
            self.log(runner, "No startup scripts to run.")
            return
        self.log(runner, f"Found {START_UP} in metadata.")
        file = self._folder / START_UP
        file.write_text(script)
        file.chmod(0o700)
        order = {"argv": [str(file)], "env": environment, "cwd": str(self._folder / "root")}
        read, write = os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            ended = await start(order, (nothing, write, write))
        finally:
            os.close(nothing)
            os.close(write)
        async for line in _lines(read):
            self.log(runner, f"{START_UP}: {line}")
        self.log(runner, f"{START_UP} exit status {await ended}")
        self.log(runner, "Finished running startup scripts.")

    # --- the metadata server

    async def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Answer a request of the VM: the status, and the text."""
        root, _, name = question["path"].partition("/")
        match question["verb"], root:
            case "GET", "preempted" if not name:
                return await self._preempted(question["query"])
            case "GET", "service-accounts":
                return self._account(name)
            case "GET", "name":
                return {"status": 200, "text": self._hardware.name}
            case "GET", "attributes":
                value = self._hypervisor.metadata().get(name)
                return {"status": 404, "text": ""} if value is None else {"status": 200, "text": value}
            case "PUT", "guest-attributes" if name.count("/") == 1:
                namespace, _, key = name.partition("/")
                taken = self._hypervisor.publish(namespace, key, question["data"])
                return {"status": 200 if taken else 403, "text": ""}
        return {"status": 404, "text": ""}

    def _account(self, path: str) -> dict[str, Any]:
        """What there is to know of the VM's service account, and a token of it.

        https://cloud.google.com/compute/docs/access/authenticate-workloads#applications: a token is handed out again
        until minutes before its end.
        """
        account = self._hardware.account
        if account is None:
            return {"status": 404, "text": ""}
        email, scopes = account
        if path.rpartition("/")[0] not in ("default", email):
            return {"status": 404, "text": ""}
        match path.rpartition("/")[2]:
            case "email":
                return {"status": 200, "text": email}
            case "scopes":
                return {"status": 200, "text": "".join(f"{scope}\n" for scope in scopes)}
            case "token":
                if self._now() > self._token_ends - TOKEN_MARGIN_SECONDS:
                    made = self._hypervisor.token()
                    if made is None:
                        return {"status": 404, "text": ""}
                    self._token, self._token_ends = made[0], self._now() + made[1]
                left = int(self._token_ends - self._now())
                said = {"access_token": self._token, "expires_in": left, "token_type": "Bearer"}
                return {"status": 200, "text": json.dumps(said, separators=(",", ":"))}
        return {"status": 404, "text": ""}

    async def _preempted(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Whether the VM is being taken away, now or when that changes.

        https://cloud.google.com/compute/docs/metadata/querying-metadata#waitforchange: with ``wait_for_change`` the
        answer comes when the value changes, after ``timeout_sec`` at the latest; at once where ``last_etag`` is not
        the value's own tag.
        """
        said = self._hypervisor.preempted
        tag = _tag(said)
        if query.get("wait_for_change", "").lower() == "true" and query.get("last_etag", tag) == tag:
            # It changes once in a VM's life.
            change = asyncio.Event() if said.is_set() else said
            with suppress(TimeoutError):
                await asyncio.wait_for(change.wait(), float(query["timeout_sec"]) if "timeout_sec" in query else None)
        return {"status": 200, "text": "TRUE" if said.is_set() else "FALSE", "etag": _tag(said)}


def _tag(said: asyncio.Event) -> str:
    return hashlib.sha256(str(said.is_set()).encode()).hexdigest()[:16]


async def _lines(fd: int) -> AsyncIterator[str]:
    """The lines that come through a pipe until its last writer ends."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    try:
        while line := await reader.readline():
            yield line.decode(errors="replace").rstrip()
    finally:
        transport.close()
