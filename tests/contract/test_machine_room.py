"""The VMs of a rehearsal, seen with the OpenSSH client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

import psutil
import pytest

from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.container_images import BASE, Engine, Images, find_engine, process_image
from glgpu.rehearsal.faults import Faults, Rule
from glgpu.rehearsal.machine_room import MachineRoom, reap
from glgpu.rehearsal.seams import Hardware, Hypervisor, Network
from glgpu.rehearsal.world_clock import WorldClock
from glgpu.resources import resource_text
from glgpu.steps.serial_console import boots, printed_host_key

PROCESSES = Images(Engine(), BASE, {BASE: process_image(Path(sys.executable))})

SCRIPT = resource_text("vm/startup.sh").decode()

L4 = Hardware("", "", "zone-a", "g2-standard-4", "nvidia-l4", 1, "common-cu129-ubuntu-2204-nvidia-580")


@dataclass
class Answer:
    code: int
    out: str
    err: str


@dataclass
class World:
    """A room, one VM in it, and a caller with a key."""

    folder: Path
    clock: WorldClock = field(default_factory=WorldClock)
    faults: Faults = field(default_factory=Faults)
    network: Network = field(default_factory=Network)
    metadata: dict[str, str] = field(default_factory=lambda: {"enable-guest-attributes": "TRUE"})
    allowed: set[str] = field(default_factory=lambda: {"203.0.113.10"})
    published: asyncio.Queue[tuple[str, str, str]] = field(default_factory=asyncio.Queue)
    powered_off: asyncio.Event = field(default_factory=asyncio.Event)
    preempted: asyncio.Event = field(default_factory=asyncio.Event)
    console: list[str] = field(default_factory=list)
    images: Images = PROCESSES
    registries: dict[str, tuple[str, str]] = field(default_factory=dict)
    port: int = 0
    hardware: Hardware = field(default_factory=lambda: L4)

    def __post_init__(self) -> None:
        self.hardware = replace(
            self.hardware, instance_id=str(int(token_hex(7), 16)), name=f"glgpu-test-{token_hex(4)}"
        )
        self.key = self.folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        self.public = (self.folder / "key.pub").read_text().strip().rsplit(" ", 1)[0]
        self.allow_key(f"glgpu:{self.public} somebody")
        self.room = MachineRoom(
            self.folder / "vms", self.clock, self.faults, CallLog(self.folder / "calls.jsonl"), self.network,
            images=self.images, registries=self.registries, boot_seconds=0.01, agent_seconds=0.02,
        )  # fmt: skip

    def publish(self, *item: str) -> bool:
        namespace, key, value = item
        self.published.put_nowait((namespace, key, value))
        return self.metadata.get("enable-guest-attributes") == "TRUE"

    def allow_key(self, line: str) -> None:
        self.metadata["ssh-keys"] = line

    async def boot(self) -> None:
        hypervisor = Hypervisor(
            lambda: dict(self.metadata),
            lambda address, port: port == self.port and address in self.allowed,
            self.publish,
            self.powered_off.set,
            self.console.append,
            self.preempted,
            lambda: (f"ya29.{token_hex(8)}", 3599),
        )
        self.port = await self.room.boot(self.hardware, hypervisor)

    async def host_key(self) -> str:
        namespace, name, key = await asyncio.wait_for(self.published.get(), 10)
        assert namespace == "hostkeys"
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {name} {key}\n")
        return f"{name} {key}"

    def options(self, timeout: int = 10) -> list[str]:
        return [
            "-F", "none", "-i", str(self.key), "-o", f"UserKnownHostsFile={self.folder / 'known_hosts'}",
            "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
            "-o", f"ConnectTimeout={timeout}",
        ]  # fmt: skip

    async def start(self, *argv: str, stdin: int = subprocess.DEVNULL) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    async def ssh(self, command: str, *, user: str = "glgpu", data: bytes = b"", timeout: int = 10) -> Answer:
        process = await self.start(
            "ssh", *self.options(timeout), "-p", str(self.port), f"{user}@127.0.0.1", command, stdin=subprocess.PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(data), 60)
        assert process.returncode is not None
        return Answer(process.returncode, out.decode(), err.decode())

    def calls(self, verb: str) -> list[dict[str, object]]:
        return [line for line in self.room.calls.lines() if line["verb"] == verb]


@asynccontextmanager
async def world(folder: Path, *, boot: bool = True, **settings: Any) -> AsyncIterator[World]:
    here = World(folder, **settings)
    await here.room.start()
    try:
        if boot:
            await here.boot()
            await here.host_key()
        yield here
    finally:
        await here.room.stop()


def play(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 120))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def alive(mark: str) -> list[psutil.Process]:
    """Processes with this word among their arguments."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            if mark in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_a_command_runs_with_its_streams_and_exit_code(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            done = await vm.ssh("cat; echo err >&2; pwd; exit 5", data=b"in\n")
            home = vm.room.home(vm.hardware.instance_id, "glgpu")
            assert done == Answer(5, f"in\n{home}\n", "err\n")
            seen = dict(line.split("=", 1) for line in (await vm.ssh("env")).out.splitlines())
            assert (seen["HOME"], seen["USER"]) == (str(home), "glgpu")
            assert seen["PATH"].startswith(str(vm.room.folder / vm.hardware.instance_id / "bin") + ":/usr/local/sbin:")
            assert "VIRTUAL_ENV" not in seen

    play(story)


def test_a_command_killed_by_a_signal_is_255(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            assert (await vm.ssh("kill -9 $$")).code == 255

    play(story)


def test_a_megabyte_each_way_is_intact(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            data = bytes(range(256)) * 20000
            process = await vm.start(
                "ssh", *vm.options(), "-p", str(vm.port), "glgpu@127.0.0.1", "tee copy", stdin=subprocess.PIPE
            )
            out, _ = await process.communicate(data)
            assert out == data
            assert (vm.room.home(vm.hardware.instance_id, "glgpu") / "copy").read_bytes() == data

    play(story)


def test_scp_and_a_shared_connection(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            (tmp_path / "file").write_text("content")
            for extra in ([], ["-O"]):
                there = await vm.start("scp", *extra, *vm.options(), "-P", str(vm.port), str(tmp_path / "file"),
                                       "glgpu@127.0.0.1:copied")  # fmt: skip
                assert await there.wait() == 0
                assert (vm.room.home(vm.hardware.instance_id, "glgpu") / "copied").read_text() == "content"
            control = ["-o", "ControlMaster=auto", "-o", "ControlPath=/tmp/glgpu-%C", "-o", "ControlPersist=5"]
            base = ["ssh", *vm.options(), *control, "-p", str(vm.port), "glgpu@127.0.0.1"]
            for number in range(3):
                one = await vm.start(*base, f"exit {number}")
                assert await one.wait() == number
            assert len(vm.calls("login")) == 3
            assert await (await vm.start(*base[:-1], "-O", "exit", "glgpu@127.0.0.1")).wait() == 0

    play(story)


def test_a_forward_reaches_the_vm_and_nothing_else(tmp_path: Path) -> None:
    async def story() -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello " + await reader.readline())
            writer.close()

        async with world(tmp_path) as vm, await asyncio.start_server(greet, "127.0.0.1") as server:
            port = server.sockets[0].getsockname()[1]
            for host, wanted in (("127.0.0.1", b"hello you\n"), ("127.0.0.2", b"")):
                end = tmp_path / f"end-{host}"
                forward = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", f"{end}:{host}:{port}"]
                tunnel = await vm.start("ssh", *vm.options(), *forward, "-p", str(vm.port), "glgpu@127.0.0.1")
                await until(end.exists)
                reader, writer = await asyncio.open_unix_connection(end)
                writer.write(b"you\n")
                with nullcontext() if wanted else suppress(ConnectionResetError):
                    assert await reader.read() == wanted
                writer.close()
                # Not SIGTERM: ssh 9.2 forgets one that comes just before it waits for its sockets.
                tunnel.kill()
                await tunnel.wait()

    play(story)


def test_a_key_counts_from_the_guest_agents_next_poll(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            vm.allow_key("")
            await until(lambda: not vm.room._machines[vm.hardware.instance_id].keys)
            assert "Permission denied (publickey)" in (await vm.ssh("true")).err
            vm.allow_key(f"glgpu:{vm.public}")
            await until(lambda: bool(vm.room._machines[vm.hardware.instance_id].keys))
            assert (await vm.ssh("true")).code == 0
            assert (await vm.ssh("true", user="somebody")).code == 255

    play(story)


def test_an_expiring_key_counts_until_its_time_by_the_worlds_clock(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            expiry = datetime.fromtimestamp(vm.clock.now() + 600, UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")
            vm.allow_key(f'glgpu:{vm.public} google-ssh {{"userName":"glgpu","expireOn":"{expiry}"}}')
            await asyncio.sleep(0.1)
            assert (await vm.ssh("true")).code == 0
            vm.clock.advance(601)
            await until(lambda: not vm.room._machines[vm.hardware.instance_id].keys)
            assert (await vm.ssh("true")).code == 255

    play(story)


@pytest.mark.parametrize("comment", ["google-ssh", "google-ssh {}", 'google-ssh {"expireOn":"tomorrow"}'])
def test_an_expiring_key_that_cannot_be_read_is_none(tmp_path: Path, comment: str) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            vm.allow_key(f"glgpu:{vm.public} {comment}")
            await until(lambda: not vm.room._machines[vm.hardware.instance_id].keys)
            assert (await vm.ssh("true")).code == 255

    play(story)


def test_os_login_makes_metadata_keys_void(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, metadata={"enable-oslogin": "true", "enable-guest-attributes": "TRUE"}) as vm:
            assert (await vm.ssh("true")).code == 255

    play(story)


def test_host_keys_are_published_only_where_guest_attributes_are_on_and_stay_over_a_reboot(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, boot=False) as vm:
            await vm.boot()
            first = await vm.host_key()
            await vm.room.cut_power(vm.hardware.instance_id, delete=False)
            await vm.boot()
            assert await vm.host_key() == first
            assert (await vm.ssh("true")).code == 0
            await vm.room.cut_power(vm.hardware.instance_id, delete=False)
            del vm.metadata["enable-guest-attributes"]
            await vm.boot()
            await until(lambda: bool(vm.room._machines[vm.hardware.instance_id].keys))
            assert vm.published.empty()

    play(story)


def test_whom_the_firewall_denies_hears_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, allowed=set()) as vm:
            began = time.monotonic()
            done = await vm.ssh("true", timeout=2)
            assert (done.code, time.monotonic() - began >= 1.9) == (255, True)
            assert "Connection timed out during banner exchange" in done.err

    play(story)


def test_a_rule_that_comes_meanwhile_lets_a_waiting_caller_in(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, allowed=set()) as vm:
            waiting = asyncio.create_task(vm.ssh("echo in"))
            await until(lambda: bool(vm.calls("connect")))
            vm.allowed.add("203.0.113.10")
            assert (await waiting).out == "in\n"

    play(story)


@pytest.mark.parametrize("action", ["reset", "silence"])
def test_a_dropped_network(tmp_path: Path, action: str) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            process = await vm.start(
                "ssh", *vm.options(), "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1", "-p", str(vm.port),
                "glgpu@127.0.0.1", "echo on; cat", stdin=subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            assert await process.stdout.readline() == b"on\n"
            vm.network.change(dropped=action)
            _, err = await asyncio.wait_for(process.communicate(), 20)
            assert process.returncode == 255
            assert (b"not responding" in err) == (action == "silence")
            refused = await vm.ssh("true", timeout=1)
            assert refused.code == 255
            assert {"reset": "reset", "silence": "timed out"}[action] in refused.err
            vm.network.change(dropped=None)
            assert (await vm.ssh("true")).code == 0

    play(story)


def test_a_reset_is_a_reset(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            reader, writer = await asyncio.open_connection("127.0.0.1", vm.port)
            assert (await reader.readline()).startswith(b"SSH-2.0-")
            vm.network.change(dropped="reset")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    play(story)


@pytest.mark.parametrize(("action", "text"), [("reset", "reset"), ("silence", "timed out")])
def test_a_connection_fault_hits_the_connection_named(tmp_path: Path, action: str, text: str) -> None:
    async def story() -> None:
        async with world(tmp_path, faults=Faults([Rule("vm.ssh.connect", action, nth=2)])) as vm:
            assert (await vm.ssh("true")).code == 0
            failed = await vm.ssh("true", timeout=1)
            assert (failed.code, text in failed.err) == (255, True)
            assert (await vm.ssh("true")).code == 0

    play(story)


def test_a_refused_login(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, faults=Faults([Rule("vm.login", "refuse", nth=1)])) as vm:
            assert "Permission denied (publickey)" in (await vm.ssh("true")).err
            assert (await vm.ssh("true")).code == 0

    play(story)


def test_a_guest_that_hangs_in_its_boot(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, boot=False, faults=Faults([Rule("vm.boot", "ssh-never-up")])) as vm:
            await vm.boot()
            done = await vm.ssh("true", timeout=1)
            assert (done.code, "timed out" in done.err) == (255, True)
            assert vm.published.empty()

    play(story)


def test_a_guest_that_boots_slowly_refuses_connections_meanwhile(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, boot=False, faults=Faults([Rule("vm.boot", "slow", argument="1.5")])) as vm:
            begun = time.monotonic()
            await vm.boot()
            assert "Connection refused" in (await vm.ssh("true")).err
            await vm.host_key()
            assert time.monotonic() - begun >= 1.5
            assert (await vm.ssh("true")).code == 0

    play(story)


def test_a_dead_client_leaves_a_quiet_command_running(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            mark = str(int(token_hex(3), 16) + 10**8)
            process = await vm.start("ssh", *vm.options(), "-p", str(vm.port), "glgpu@127.0.0.1", f"exec sleep {mark}")
            await until(lambda: bool(alive(mark)) and all(p.name() == "sleep" for p in alive(mark)[-1:]))
            process.kill()
            await process.wait()
            await until(lambda: any(call.get("caller_left") for call in vm.calls("exec")))
            assert [p.name() for p in alive(mark)] == ["sleep"]
            await vm.room.cut_power(vm.hardware.instance_id, delete=True)
            assert alive(mark) == []

    play(story)


def test_power_off_ends_what_hid_from_its_session_and_environment(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            mark = str(int(token_hex(3), 16) + 10**8)
            shm = Path("/dev/shm") / f"{vm.hardware.name}-secrets"
            await vm.ssh(f"setsid env -i sh -c 'sleep {mark} & sleep {mark} & wait' </dev/null >/dev/null 2>&1 &")
            await vm.ssh(f"mkdir {shm}; echo s > {shm}/token")
            await until(lambda: len([p for p in alive(mark) if p.name() == "sleep"]) == 2)
            assert shm.exists()
            await vm.room.cut_power(vm.hardware.instance_id, delete=True)
            assert alive(mark) == []
            assert not shm.exists()
            assert not (vm.room.folder / vm.hardware.instance_id).exists()
            await vm.room.cut_power("no such instance", delete=True)

    play(story)


def test_a_vm_whose_power_is_cut_while_it_is_switched_on_leaves_no_process(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, boot=False) as vm:
            switching_on = await begin_to_boot(vm)
            folder = vm.room.folder / vm.hardware.instance_id
            await vm.room.cut_power(vm.hardware.instance_id, delete=True)
            await asyncio.wait({switching_on}, timeout=30)
            assert not folder.exists()
            assert processes_of(vm) == []

    play(story)


def test_a_vm_whose_boot_is_given_up_midway_ends_with_the_room(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, boot=False) as vm:
            booting = await begin_to_boot(vm)
            booting.cancel()
            await asyncio.wait({booting})
        assert processes_of(vm) == []

    play(story)


def test_a_vm_whose_power_off_is_given_up_midway_ends_with_the_room(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            cutting = asyncio.ensure_future(vm.room.cut_power(vm.hardware.instance_id, delete=False))
            while not vm.calls("power-off"):
                await asyncio.sleep(0)
            assert processes_of(vm) != []
            cutting.cancel()
            await asyncio.wait({cutting})
        assert processes_of(vm) == []

    play(story)


def test_a_guest_whose_power_is_cut_while_it_boots_does_nothing_more_and_hears_nobody(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, boot=False) as vm:
            vm.room.boot_seconds = 3600
            await vm.boot()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", vm.port)
            await vm.room.cut_power(vm.hardware.instance_id, delete=False)
            doing = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}
            assert not doing & {"Machine._boot", "Machine._start_up"}, doing
            _, writer = await asyncio.open_connection("127.0.0.1", vm.port)
            writer.close()

    play(story)


async def begin_to_boot(vm: World) -> asyncio.Task[None]:
    """As far as the start of its first process, which is under way and not awaited yet."""
    booting = asyncio.create_task(vm.boot())
    while not (vm.room.folder / vm.hardware.instance_id / "init.log").exists():
        await asyncio.sleep(0)
    assert not booting.done()
    return booting


def processes_of(vm: World) -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["environ"]) if within(one, vm.hardware.instance_id)]


def within(process: psutil.Process, instance_id: str) -> bool:
    return (process.info["environ"] or {}).get("GLGPU_VM") == instance_id


def test_a_dead_vm_ends_its_sessions_and_hears_nobody(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            process = await vm.start("ssh", *vm.options(), "-p", str(vm.port), "glgpu@127.0.0.1", "echo on; sleep 100")
            assert process.stdout is not None
            assert await process.stdout.readline() == b"on\n"
            await vm.room.cut_power(vm.hardware.instance_id, delete=False)
            assert await asyncio.wait_for(process.wait(), 10) == 255
            assert "timed out" in (await vm.ssh("true", timeout=1)).err

    play(story)


def test_a_scheduled_power_off_goes_by_the_worlds_clock_and_can_be_cancelled(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            assert "Interactive authentication required" in (await vm.ssh("shutdown -P now")).err
            assert "Shutdown scheduled for " in (await vm.ssh("sudo shutdown -P +30")).err
            assert (await vm.ssh("sudo shutdown -c")).code == 0
            vm.clock.advance(31 * 60)
            assert (await vm.ssh("true")).code == 0
            await vm.ssh("sudo shutdown -P +30")
            await vm.ssh("sudo shutdown -P +60")
            vm.clock.advance(31 * 60)
            assert (await vm.ssh("true")).code == 0
            vm.clock.advance(30 * 60)
            await asyncio.wait_for(vm.powered_off.wait(), 10)
            assert "timed out" in (await vm.ssh("true", timeout=1)).err

    play(story)


def test_nobody_logs_in_within_five_minutes_of_a_power_off(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            assert (await vm.ssh("sudo shutdown -P +6")).code == 0
            assert (await vm.ssh("true")).code == 0
            vm.clock.advance(61)
            refused = await vm.ssh("true")
            assert (refused.code, "System is going down" in refused.err) == (255, True)

    play(story)


def test_shutdown_now(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            await vm.ssh("sudo shutdown -P now")
            await asyncio.wait_for(vm.powered_off.wait(), 10)
            assert vm.powered_off.is_set()

    play(story)


def test_sudo_starts_a_new_environment(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            seen = await vm.ssh('A=1 sudo -n B=2 sh -c \'echo "$A-$B-$USER-$SUDO_USER"; basename "$HOME"\'')
            assert seen.out == "-2-root-glgpu\nroot\n"
            assert (await vm.ssh("A=1 sudo -E sh -c 'echo $A'")).out == "1\n"
            assert (await vm.ssh("sudo -u glgpu sh -c 'echo $USER'")).out == "glgpu\n"
            assert (await vm.ssh("sudo -H -n nope")).err == "sudo: nope: command not found\n"
            assert (await vm.ssh("sudo -X true")).code == 1
            assert (await vm.ssh("sudo -u nobody-here true")).code == 1

    play(story)


def test_the_gpu_is_the_one_ordered(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            query = "nvidia-smi --query-gpu=name,driver_version,memory.total,utilization.gpu --format=csv,noheader"
            assert (await vm.ssh(query)).out == "NVIDIA L4, 580.95.05, 23034 MiB, 0 %\n"
            assert (await vm.ssh(query + ",nounits")).out == "NVIDIA L4, 580.95.05, 23034, 0\n"
            assert (await vm.ssh("nvidia-smi -L")).out.startswith("GPU 0: NVIDIA L4 (UUID: GPU-")
            assert (await vm.ssh("nvidia-smi --query-gpu=nope --format=csv")).code == 2

    play(story)


def test_without_a_driver_nvidia_smi_is_9_and_no_container_gets_a_gpu(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, faults=Faults([Rule("vm.gpu", "driver-missing")])) as vm:
            failed = await vm.ssh("nvidia-smi")
            assert (failed.code, failed.out[:25]) == (9, "NVIDIA-SMI has failed bec")
            run = await vm.ssh(f"sudo docker run -d --gpus all {BASE} true")
            assert (run.code, "nvml error: driver not loaded" in run.err) == (125, True)

    play(story)


def test_a_driver_that_comes_late_is_missing_until_then(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, faults=Faults([Rule("vm.gpu", "late", argument="3")])) as vm:
            assert (await vm.ssh("nvidia-smi -L")).code == 9
            run = await vm.ssh(f"sudo docker run -d --gpus all {BASE} true")
            assert (run.code, "nvml error: driver not loaded" in run.err) == (125, True)
            assert (await vm.ssh("until nvidia-smi -L; do sleep 0.2; done")).out.endswith(")\n")

    play(story)


def test_packet_filter_rules_are_kept(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            rule = "DOCKER-USER -d 169.254.169.254/32 -p tcp ! --dport 53 -j DROP"
            assert (await vm.ssh(f"iptables -C {rule}")).code == 4
            assert (await vm.ssh(f"sudo iptables -C {rule}")).code == 1
            assert (await vm.ssh(f"sudo iptables -I {rule}")).code == 0
            assert (await vm.ssh(f"sudo iptables -C {rule}")).code == 0
            assert (await vm.ssh(f"sudo ip6tables -C {rule}")).code == 2
            assert (await vm.ssh("sudo iptables -S DOCKER-USER")).out.splitlines()[1:] == [
                f"-A {rule}", "-A DOCKER-USER -j RETURN",
            ]  # fmt: skip
            assert (await vm.ssh(f"sudo iptables -D {rule}")).code == 0
            assert (await vm.ssh("sudo iptables -F DOCKER-USER")).code == 2

    play(story)


@pytest.fixture(params=["engine", "processes"])
def images(request: pytest.FixtureRequest) -> Images:
    if request.param == "processes":
        return PROCESSES
    engine = find_engine(os.environ)
    if engine.client is None or engine.docker("image", "inspect", BASE).returncode:
        pytest.skip(f"docker: no engine with the image {BASE} answers (`ci/engine start` makes both)")
    return Images(engine, BASE)


def test_a_foreign_image_is_answered_by_the_base_under_its_own_name(tmp_path: Path, images: Images) -> None:
    async def story() -> None:
        async with world(tmp_path, images=images) as vm:
            name = "registry.example.com/team/train:1"
            inspect = f"sudo docker image inspect --format '{{{{json .}}}}' {name}"
            assert (await vm.ssh(inspect)).code == 1
            pulled = await vm.ssh(f"sudo docker pull -q {name}")
            assert (pulled.out, BASE in pulled.err) == (f"{name}\n", True)
            image = json.loads((await vm.ssh(inspect)).out)
            assert image["RepoTags"] == [name]
            (digest,) = image["RepoDigests"]
            assert digest.startswith("registry.example.com/team/train@sha256:")
            again = await vm.ssh(f"sudo docker pull {name}")
            assert (digest.partition("@")[2] in again.out, again.err) == (True, "")
            ran = await vm.ssh(f"sudo docker run --rm --gpus all --init {digest} python -c 'import numpy; print(6*7)'")
            assert (ran.code, ran.out) == (0, "42\n")
            if images.engine.client:
                assert images.engine.docker("image", "inspect", name).returncode == 1

    play(story)


@pytest.mark.parametrize(
    ("action", "text"), [("denied", "pull access denied for team/train"), ("not-found", "manifest unknown")]
)
def test_a_refused_pull(tmp_path: Path, action: str, text: str) -> None:
    async def story() -> None:
        async with world(tmp_path, faults=Faults([Rule("vm.docker.pull", action)])) as vm:
            pulled = await vm.ssh("sudo docker pull team/train:1")
            assert (pulled.code, text in pulled.err) == (1, True)
            ran = await vm.ssh("sudo docker run -d team/train:1 true")
            assert (ran.code, text in ran.err) == (125, True)

    play(story)


def test_a_silent_registry_is_waited_for(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, faults=Faults([Rule("vm.docker.pull", "silence", nth=1)])) as vm:
            assert (await vm.ssh("sudo timeout 1 docker pull team/train")).code == 124
            assert (await vm.ssh("sudo docker pull team/train")).code == 0

    play(story)


def test_an_image_that_takes_its_time_comes_once_for_all_who_wait(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, faults=Faults([Rule("vm.docker.pull", "slow", argument="1", nth=None)])) as vm:
            begun = time.monotonic()
            assert (await vm.ssh("sudo docker pull -q team/train:1")).code == 0
            assert time.monotonic() - begun >= 1
            machine = vm.room._machines[vm.hardware.instance_id]
            question = {"host": "docker.io", "auth": ""}
            assert machine._pull({"image": "team/train:1", **question}) == {"after": 0.0}
            assert machine._pull({"image": "team/other:1", **question}) == {"after": 1.0}
            assert machine._pull({"image": "team/other:1", **question})["after"] < 1.0

    play(story)


def test_a_private_registry_wants_its_login(tmp_path: Path) -> None:
    async def story() -> None:
        registries = {"registry.example.com": ("robot", "s3cret")}
        async with world(tmp_path, registries=registries) as vm:
            memory = f"/dev/shm/{vm.hardware.name}"
            docker = f"sudo DOCKER_CONFIG={memory} docker"
            await vm.ssh(f"mkdir -m 700 {memory}")
            pull = f"{docker} pull -q registry.example.com/team/train:1"
            assert "pull access denied" in (await vm.ssh(pull)).err
            login = f"{docker} login -u robot --password-stdin registry.example.com"
            wrong = await vm.ssh(login, data=b"wrong")
            assert (wrong.code, "unauthorized" in wrong.err) == (1, True)
            assert (await vm.ssh(login, data=b"s3cret\n")).out == "Login Succeeded\n"
            assert (await vm.ssh(pull)).code == 0
            assert (await vm.ssh(f"{docker} logout registry.example.com")).code == 0
            assert "pull access denied" in (await vm.ssh(pull)).err
            assert "s3cret" not in vm.room.calls.path.read_text()

    play(story)


def test_a_container_outlives_its_session_and_dies_with_the_vm(tmp_path: Path, images: Images) -> None:
    async def story() -> None:
        async with world(tmp_path, images=images) as vm:
            mark = str(int(token_hex(3), 16) + 10**8)
            name = vm.hardware.name
            started = await vm.ssh(f"sudo docker run -d --init --name {name} --gpus all {BASE} sleep {mark}")
            assert started.code == 0, started.err
            rows = (await vm.ssh("sudo docker ps -a --format '{{.Names}}'")).out
            assert rows == f"{name}\n"
            assert alive(mark)
            await vm.room.cut_power(vm.hardware.instance_id, delete=True)
            assert alive(mark) == []
            if images.engine.client:
                assert images.engine.docker("ps", "-aq", "--filter", f"name={name}").stdout == ""

    play(story)


def test_without_gpus_the_engines_own_refusal_stays(tmp_path: Path, images: Images) -> None:
    async def story() -> None:
        async with world(tmp_path, images=images) as vm:
            vm.hardware = replace(vm.hardware, gpu_count=0, gpu_type=None, instance_id=vm.hardware.instance_id + "0")
            await vm.boot()
            await vm.host_key()
            ran = await vm.ssh(f"sudo docker run -d --name {vm.hardware.name} --gpus all {BASE} true")
            assert (ran.code, "could not select device driver" in ran.err) == (125, True)
            assert (await vm.ssh("nvidia-smi")).code == 9

    play(story)


async def printed(vm: World, text: str) -> str:
    """The serial console, once it holds a text."""
    await until(lambda: text in "".join(vm.console))
    return "".join(vm.console)


REPORTING = """#!/bin/sh
echo "I am $GLGPU_VM_USER"
cat "$GLGPU_ROOT/etc/ssh/ssh_host_ed25519_key.pub"
curl -sf -H 'Metadata-Flavor: Google' http://metadata.google.internal/computeMetadata/v1/instance/attributes/colour
curl -sf -X PUT -H 'Metadata-Flavor: Google' --data-raw 'half way' \\
    http://metadata.google.internal/computeMetadata/v1/instance/guest-attributes/glgpu/state || echo "refused: $?"
exit 3
"""


def test_the_start_up_script_runs_at_boot_and_its_output_is_on_the_serial_console(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, boot=False) as vm:
            vm.metadata |= {"startup-script": REPORTING, "colour": "blue and green\n"}
            await vm.boot()
            key = await vm.host_key()
            console = await printed(vm, "Finished running startup scripts.")
            lines = re.findall(
                r"^\w{3} [ \d]\d [\d:]{8} \S+ google_metadata_script_runner\[\d+\]: (.*)\r$", console, re.M
            )
            assert lines[:2] == [
                "Starting startup scripts (version 20251011.00).", "Found startup-script in metadata.",
            ]  # fmt: skip
            assert lines[2:-2] == [
                "startup-script: I am root", f"startup-script: {key} root@{vm.hardware.name}",
                "startup-script: blue and green",
            ]  # fmt: skip
            assert lines[-2] == "startup-script exit status 3"
            assert await asyncio.wait_for(vm.published.get(), 10) == ("glgpu", "state", "half way")
            assert (await vm.ssh("true")).code == 0

    play(story)


def test_a_vm_whose_guest_attributes_are_refused_hears_so(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, boot=False) as vm:
            vm.metadata |= {"startup-script": REPORTING, "enable-guest-attributes": "FALSE"}
            await vm.boot()
            assert "startup-script: refused: 22" in await printed(vm, "Finished running startup scripts.")

    play(story)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("http://metadata.google.internal/computeMetadata/v1/instance/name", 22),
        ("-H 'Metadata-Flavor: Google' http://metadata.google.internal/computeMetadata/v1/instance/attributes/no", 22),
        ("-H 'Metadata-Flavor: Google' http://metadata.google.internal/computeMetadata/v1/instance/name", 0),
        ("https://nvidia.github.io/libnvidia-container/gpgkey", 6),
        ("--upload-file x http://metadata.google.internal/", 2),
    ],
)
def test_the_metadata_server_wants_its_header_and_nothing_else_is_reached(
    tmp_path: Path, words: str, code: int
) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            assert (await vm.ssh(f"curl -s {words}")).code == code

    play(story)


ACCOUNT = "curl -sSf -H 'Metadata-Flavor: Google' http://metadata.google.internal/computeMetadata/v1/instance"


def test_the_metadata_server_hands_out_tokens_of_the_vm_s_service_account_until_minutes_before_their_end(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        account = ("vm@my-dl.iam.gserviceaccount.com", ("https://www.googleapis.com/auth/devstorage.read_write",))
        async with world(tmp_path, hardware=replace(L4, account=account)) as vm:
            asked = f"{ACCOUNT}/service-accounts/default"
            assert (await vm.ssh(f"{asked}/email")).out == account[0]
            assert (await vm.ssh(f"{asked}/scopes")).out.split() == list(account[1])
            first = json.loads((await vm.ssh(f"{asked}/token")).out)
            assert set(first) == {"access_token", "expires_in", "token_type"}
            vm.clock.advance(3000)
            assert json.loads((await vm.ssh(f"{asked}/token")).out)["access_token"] == first["access_token"]
            vm.clock.advance(400)
            assert json.loads((await vm.ssh(f"{asked}/token")).out)["access_token"] != first["access_token"]
            assert (await vm.ssh(f"{asked.replace('Google', 'Other', 1)}/token")).code == 22
            assert (await vm.ssh(f"{ACCOUNT}/service-accounts/other@example.com/token")).code == 22

    play(story)


def test_a_vm_without_a_service_account_has_no_token(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            answer = await vm.ssh(f"{ACCOUNT}/service-accounts/default/token")
            assert (answer.code, "404" in answer.err) == (22, True)

    play(story)


ASKED = (
    "curl -sf -m 30 -H 'Metadata-Flavor: Google' http://metadata.google.internal/computeMetadata/v1/instance/preempted"
)


def test_the_metadata_server_tells_of_a_preemption_when_it_is_asked_and_when_it_comes(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            first = await vm.ssh(f"{ASKED}'?wait_for_change=true&last_etag=0' -D tags; cat tags")
            assert first.out.startswith("FALSE")
            tag = re.findall(r"^ETag: (\w+)\r?$", first.out, re.MULTILINE)[0]
            changed = f"'?wait_for_change=true&last_etag={tag}&timeout_sec=20'"
            assert (await vm.ssh(f"{ASKED}{changed.replace('20', '0')}")).out == "FALSE"
            waiting = asyncio.create_task(vm.ssh(ASKED + changed))
            await asyncio.sleep(0.5)
            assert not waiting.done()
            vm.preempted.set()
            assert (await waiting).out == "TRUE"
            # Asked after the change with the tag from before it: nothing is missed.
            assert (await vm.ssh(ASKED + changed)).out == "TRUE"
            assert (await vm.ssh(ASKED)).out == "TRUE"

    play(story)


@pytest.mark.parametrize("held", [0.5, 60.0])
def test_a_shutdown_waits_for_whoever_delays_it_and_not_for_ever(tmp_path: Path, held: float) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            await vm.ssh(
                "mkdir -p $GLGPU_ROOT/etc/systemd/logind.conf.d; "
                "echo InhibitDelayMaxSec=2 >$GLGPU_ROOT/etc/systemd/logind.conf.d/x.conf; "
                "sudo systemctl restart systemd-logind"
            )
            lock = "systemd-inhibit --what=shutdown --mode=delay --who=x --why=y"
            assert (await vm.ssh(f"{lock} true")).code == 1
            await vm.ssh(f"setsid sudo {lock} sleep {held} >/dev/null 2>&1 </dev/null &")
            await until(lambda: any((vm.folder / "vms").glob("*/run/inhibit/*")))
            begun = time.monotonic()
            pressed = asyncio.create_task(vm.room.soft_off(vm.hardware.instance_id))
            assert (await vm.ssh("echo still here")).out == "still here\n"
            await pressed
            assert (0.2 if held < 1 else 2.0) < time.monotonic() - begun < (2.0 if held < 1 else 20)
            assert (await vm.ssh("true", timeout=1)).code == 255

    play(story)


def test_a_container_hears_of_a_shutdown_that_nobody_delays(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            script = "trap 'echo told >~/told; exit 0' TERM; echo up >~/up; while :; do sleep 0.1; done"
            home = vm.room.home(vm.hardware.instance_id, "glgpu")
            run = f"sudo docker run -d --name told -v {home}:{home} -e HOME={home} {BASE} sh -c {shlex.quote(script)}"
            assert (await vm.ssh(run)).code == 0
            await until((home / "up").exists)
            await vm.room.soft_off(vm.hardware.instance_id)
            assert (home / "told").read_text() == "told\n"

    play(story)


def test_glgpus_own_script_finds_the_vm_ready_and_pulls_the_image(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, boot=False) as vm:
            image = "registry.example.com/team/train:1"
            vm.metadata |= {"startup-script": SCRIPT, "glgpu-startup": f"1 {image}"}
            await vm.boot()
            await vm.host_key()
            console = await printed(vm, "Finished running startup scripts.")
            assert "glgpu: ready boot" in console
            assert printed_host_key(console) in (vm.folder / "known_hosts").read_text()
            assert (await vm.ssh(f"sudo docker image inspect {image}")).code == 0
            assert [call["target"] for call in vm.calls("pull")] == [image]

    play(story)


def test_a_driver_that_an_upgrade_broke_fails_everywhere(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, boot=False) as vm:
            vm.faults.rules.append(Rule("vm.gpu", "driver-broken"))
            vm.metadata |= {"startup-script": SCRIPT, "glgpu-startup": "1"}
            await vm.boot()
            await vm.host_key()
            console = await printed(vm, "Finished running startup scripts.")
            assert (
                "glgpu: failed driver the NVIDIA driver does not answer: Failed to initialize NVML: Driver/" in console
            )
            assert "the kernel: API mismatch: the client has the version 580.126.09" in console
            smi = await vm.ssh("nvidia-smi")
            assert (smi.code, "Driver/library version mismatch" in smi.out) == (18, True)
            ran = await vm.ssh(f"sudo docker run --rm --gpus all {BASE} true")
            assert (ran.code, "nvml error: driver/library version mismatch: unknown" in ran.err) == (125, True)
            assert (await vm.ssh(f"sudo docker run --rm {BASE} true")).code == 0

    play(story)


def test_nvidia_smi_is_in_a_container_with_gpus(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as vm:
            seen = await vm.ssh(f"sudo docker run --rm --gpus all --entrypoint nvidia-smi {BASE}")
            assert (seen.code, "Driver Version: 580.95.05" in seen.out) == (0, True)

    play(story)


@pytest.mark.parametrize(
    ("wants", "code"),
    [
        ("cuda>=12.9 brand=unknown,driver>=535,driver<536 brand=tesla,driver>=570,driver<571", 0),
        ("cuda>=13.1 brand=tesla,driver>=590", 125),
        ("cuda>=13.1 brand=tesla,driver>=580,driver<581", 0),
    ],
)
def test_an_image_may_want_a_newer_driver(tmp_path: Path, wants: str, code: int) -> None:
    async def story() -> None:
        python = process_image(Path(sys.executable))
        python["Config"] |= {"Env": [*python["Config"]["Env"], f"NVIDIA_REQUIRE_CUDA={wants}"]}
        async with world(tmp_path, images=Images(Engine(), BASE, {BASE: python})) as vm:
            ran = await vm.ssh(f"sudo docker run --rm --gpus all {BASE} true")
            assert ran.code == code, ran.err
            text = (
                "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.1, please update your driver"
            )
            assert (text in ran.err) == (code != 0)

    play(story)


def test_a_vm_that_boots_for_ever_lets_nobody_in(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, boot=False) as vm:
            vm.faults.rules.append(Rule("vm.boot", "loop"))
            await vm.boot()
            await until(lambda: boots("".join(vm.console)) > 2)
            assert "Kernel panic - not syncing" in "".join(vm.console)
            assert vm.published.empty()

    play(story)


REHEARSAL = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_machine_room import world
async def main():
    async with world(Path({folder!r})) as vm:
        print(vm.hardware.name, vm.port, flush=True)
        await vm.ssh("setsid sleep {mark} >/dev/null 2>&1 & sudo docker run -d glgpu-rehearsal-base sleep {mark}")
        print("up", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def test_what_a_killed_rehearsal_leaves_dies_and_is_reaped(tmp_path: Path) -> None:
    mark = str(int(token_hex(3), 16) + 10**8)
    program = REHEARSAL.format(tests=str(Path(__file__).parent), folder=str(tmp_path), mark=mark)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as rehearsal:
        assert rehearsal.stdout is not None
        name = rehearsal.stdout.readline().split()[0]
        assert rehearsal.stdout.readline() == "up\n"
        assert len([p for p in alive(mark) if p.name() == "sleep"]) == 2
        (Path("/dev/shm") / name).mkdir()
        rehearsal.send_signal(signal.SIGKILL)
    assert reap(tmp_path / "vms", Engine()) == [name]
    assert alive(mark) == []
    assert not (Path("/dev/shm") / name).exists()
    assert list((tmp_path / "vms").iterdir()) == []
