"""The stand-in Compute Engine alone, in a loop of its own, with VMs that do nothing but come up."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.compute_engine import ComputeEngine
from glgpu.rehearsal.faults import Faults
from glgpu.rehearsal.seams import Hardware, Hypervisor, Network
from glgpu.rehearsal.world_clock import WorldClock

T = TypeVar("T")

NAME, PROJECT, ZONE = "glgpu-a1b2c3-42-1001-train", "my-dl", "europe-west4-a"
TOKEN = "ya29.planted-cloud-token"
IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580"
INSTANCES = f"/compute/v1/projects/{PROJECT}/zones/{ZONE}/instances"
VARIABLES: dict[str, Any] = {
    "name": NAME,
    "project": PROJECT,
    "zone": ZONE,
    "labels": {"glgpu": "managed", "glgpu-expires": "1764000000"},
    "metadata": {"glgpu-settings": "{}"},
    "machine": {
        "type": "n1-standard-4",
        "gpu": {"type": "nvidia-tesla-t4", "count": 1, "attached": True},
        "spot": True,
        "max_run_seconds": 3600,
        "disk": {"image": IMAGE, "size_gb": 50, "type": "pd-ssd"},
        "service_account": {"email": "vm@my-dl.iam.gserviceaccount.com"},
    },
    "network": {"name": "default", "subnetwork": "default", "tags": ["nat"]},
}
"""Variables of gpu-vm and rehearsal-vm that name everything there is to name, but for `compute_endpoint`."""


class Room:
    """Where VMs come up, and nothing more.

    Attributes:
        booted: Set when one has.
        pressed: Ids of those whose power button was pressed; such a guest shuts down only when its power goes.
        ssh_port: Where they say that they serve SSH.
        meanwhile: Called while one comes up.
    """

    def __init__(self) -> None:
        self.booted = threading.Event()
        self.pressed: list[str] = []
        self.ssh_port = 22
        self.meanwhile: Callable[[], None] = lambda: None

    async def boot(self, _hardware: Hardware, _hypervisor: Hypervisor) -> int:
        self.meanwhile()
        self.booted.set()
        return self.ssh_port

    async def soft_off(self, instance_id: str) -> None:
        self.pressed.append(instance_id)
        await asyncio.Event().wait()

    async def cut_power(self, instance_id: str, *, delete: bool) -> None:
        pass


class Cloud:
    """Compute Engine.

    Attributes:
        faults: What goes wrong there.
        calls: What it was asked.
        clock: Its time.
        room: Where its VMs run.
        engine: The stand-in itself.
    """

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.faults, self.calls = Faults(), CallLog(folder / "calls.jsonl")
        self.clock, self.room = WorldClock(), Room()
        self._heard = threading.Condition()
        self.calls.listeners.append(self._hear)
        self.engine = ComputeEngine(
            folder / "compute", self.clock, self.faults, self.calls, Network(), self.room,
            project=PROJECT, tokens={TOKEN}, latency=0.05,
        )  # fmt: skip

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the stand-in's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    @property
    def endpoint(self) -> str:
        return self.engine.endpoint

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the API says to a request about the project."""
        url = f"{self.endpoint}/compute/v1/projects/{PROJECT}/{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Authorization": f"Bearer {TOKEN}"}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            decoded: dict[str, Any] = json.load(answer)
        return decoded

    def done(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The end of the operation that a request begins."""
        begun = self.ask(method, path, body)
        return self.ask("POST", begun["selfLink"].partition(f"/projects/{PROJECT}/")[2] + "/wait")

    def instance(self, name: str = NAME) -> dict[str, Any]:
        return self.ask("GET", f"zones/{ZONE}/instances/{name}")

    def instances(self) -> list[str]:
        return [instance["name"] for instance in self.ask("GET", f"zones/{ZONE}/instances").get("items", [])]

    def inserts(self) -> list[dict[str, Any]]:
        """The calls that order an instance."""
        found = [call for call in self.calls.lines() if call["verb"] == "POST"]
        return [call for call in found if call["target"].partition("?")[0] == INSTANCES]

    def until_answered(self, what: str, status: int, times: int = 1) -> None:
        """Wait until so many requests with these words in their target have had such an answer."""

        def enough() -> bool:
            lines = self.calls.lines()
            return len([line for line in lines if what in line["target"] and line["status"] == status]) >= times

        with self._heard:
            assert self._heard.wait_for(enough, timeout=120)

    def _hear(self, _: object) -> None:
        with self._heard:
            self._heard.notify_all()

    def order(self, number: int = 0) -> dict[str, Any]:
        """The body of an insert, the first by default."""
        body: dict[str, Any] = json.loads(self.inserts()[number]["body"])
        return body


@contextmanager
def cloud(folder: Path) -> Iterator[Cloud]:
    """Compute Engine with an empty project."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        made = Cloud(folder, loop)
        made.call(made.engine.start())
        yield made
        made.call(made.engine.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
