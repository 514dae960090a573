"""How long `glgpu cleanup` takes for the orphans among 1,000 VMs of 20 projects in 15 zones, against gcloud.

The rivals are told the right names and only delete; glgpu finds them itself, asks GitLab about every pipeline, and
proves at the end that they are gone.

Half of the VMs are another GitLab server's and must stay. Compute Engine is a stand-in on this machine whose VMs do
nothing and whose operations take a second; the cleaning project has no VMs of its own, from which outputs would be
saved first. One call per VM is measured for a sample, one call per zone for the rest, and both are scaled.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from results import Line, NotMeasured, seconds

from cloud import Room
from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.cloud_catalogue import ZONES
from glgpu.rehearsal.compute_engine import ComputeEngine
from glgpu.rehearsal.faults import Faults
from glgpu.rehearsal.gitlab import GitLab
from glgpu.rehearsal.gitlab_model import Role
from glgpu.rehearsal.seams import Network
from glgpu.rehearsal.world_clock import WorldClock
from glgpu.run_names import RunName
from rehearsing import GLGPU

PROJECT, TOKEN = "my-dl", "ya29.benchmark"
VMS = 1000
SAMPLE = 12
LATENCY = 1.0
IMAGE = "projects/debian-cloud/global/images/family/debian-12"


class World:
    """Compute Engine and a GitLab with 20 projects; every VM is an orphan, half of them another GitLab's."""

    def __init__(self, folder: Path, vms: int) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        common = (WorldClock(), Faults(), CallLog(folder / "calls.jsonl"), Network())
        self.gitlab = GitLab(folder / "gitlab", *common)
        self.engine = ComputeEngine(
            folder / "compute", *common, Room(), project=PROJECT, tokens={TOKEN}, latency=LATENCY
        )
        for part in (self.gitlab, self.engine):
            asyncio.run_coroutine_threadsafe(part.start(), self._loop).result()
        for limits in (self.engine.instances.project_quotas, *self.engine.instances.region_quotas.values()):
            limits.update(dict.fromkeys(limits, 1e9))
        self.ours: list[tuple[str, str]] = []
        self._vms = vms
        user = self.gitlab.create_user("ada")
        self._projects = [self.gitlab.create_project(f"team/p{number}", None) for number in range(20)]
        self._cleaner = self.gitlab.create_project("team/cleaner", None)
        self.token = self.gitlab.create_project_token(self._cleaner, "glgpu", ["api"], Role.MAINTAINER)
        for project in (self._cleaner, *self._projects):
            project.members |= {user.id: Role.MAINTAINER, self.token.user.id: Role.MAINTAINER}
        self._user = user

    def fill(self) -> None:
        """Have all VMs there (again)."""
        zones, orders = sorted(ZONES)[:15], []
        self.ours = []
        for number in range(self._vms):
            project, zone = self._projects[number // 2 % 20], zones[number % 15]
            pipeline = self.gitlab.create_pipeline(project, "main", "0" * 40, "push", self._user)
            self.gitlab.create_job(pipeline, "train", "train").status = "failed"
            server = (self.gitlab.url, "https://gitlab.example.org")[number % 2]
            name = RunName(server, project.id, str(pipeline.id))
            labels = {**name.own_labels, "glgpu-until": "pipeline", "glgpu-expires": f"{time.time() + 9000:.0f}"}
            orders.append((str(name), zone, labels))
            if number % 2 == 0:
                self.ours.append((str(name), zone))
        asyncio.run_coroutine_threadsafe(self._insert(orders), self._loop).result()
        while self.count() < self._vms:
            time.sleep(0.2)

    async def _insert(self, orders: list[tuple[str, str, dict[str, str]]]) -> None:
        for name, zone, labels in orders:
            body = {
                "name": name, "machineType": f"zones/{zone}/machineTypes/e2-small", "labels": labels,
                "disks": [{"boot": True, "autoDelete": True, "initializeParams": {"sourceImage": IMAGE}}],
                "networkInterfaces": [{"network": "global/networks/default"}],
            }  # fmt: skip
            self.engine.instances.insert(zone, body, None)

    def count(self) -> int:
        """How many VMs run."""
        listed = [one for zone in ZONES for one in self.engine.instances.resources(zone)]
        return sum(one["status"] == "RUNNING" for one in listed)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the cleanup job."""
        return {
            "CI_SERVER_URL": self.gitlab.url, "CI_PROJECT_ID": str(self._cleaner.id),
            "GLGPU_GITLAB_TOKEN": self.token.value, "GLGPU_PROJECT": PROJECT, "GOOGLE_OAUTH_ACCESS_TOKEN": TOKEN,
            "GLGPU_COMPUTE_ENDPOINT": self.engine.endpoint, "GLGPU_GOOGLE_ENDPOINT": self.engine.endpoint,
        }  # fmt: skip

    def gcloud_environment(self, folder: Path) -> dict[str, str]:
        """Variables that turn gcloud here, and keep it from asking anybody else."""
        (folder / "token").write_text(TOKEN)
        return {
            "CLOUDSDK_CONFIG": str(folder), "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(folder / "token"),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{self.engine.endpoint}/compute/v1/",
            "CLOUDSDK_CORE_PROJECT": PROJECT, "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1", "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
            "CLOUDSDK_SURVEY_DISABLE_PROMPTS": "1",
        }  # fmt: skip


@contextmanager
def world(vms: int) -> Iterator[tuple[World, Path]]:
    """A world in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        yield World(Path(folder), vms), Path(folder)


def told(what: str, spent: float, removed: int, all_of_them: int) -> float:
    """Seconds for all of them, from those that so many took."""
    whole = spent * all_of_them / removed
    note = "" if removed == all_of_them else f" ({spent:.1f} s for {removed}, scaled)"
    print(f"   {what}: {whole:.1f} s for {all_of_them} VMs{note}", flush=True)
    return whole


def with_glgpu(vms: int) -> float:
    """Seconds of `glgpu cleanup`, checked by counting what is left."""
    with world(vms) as (made, folder):
        made.fill()
        (folder / "work").mkdir()
        environment = made.environment | {"CI_PROJECT_DIR": str(folder / "work")}
        spent = seconds([GLGPU, "cleanup"], environment=environment)
        assert made.count() == vms - len(made.ours)
        return told("glgpu cleanup", spent, len(made.ours), len(made.ours))


def with_gcloud(vms: int) -> tuple[float, float]:
    """Seconds of one call per VM, for a sample, and of one call per zone, for the rest."""
    delete = ["gcloud", "compute", "instances", "delete", "--quiet"]
    with world(vms) as (made, folder):
        made.fill()
        environment = made.gcloud_environment(folder)

        def spent(calls: Sequence[tuple[str, Sequence[str]]]) -> float:
            return sum(seconds([*delete, *names, "--zone", zone], environment=environment) for zone, names in calls)

        some, rest = made.ours[:SAMPLE], made.ours[SAMPLE:]
        one_by_one = spent([(zone, [name]) for name, zone in some])
        zones = sorted({zone for _, zone in rest})
        by_zone = spent([(zone, [name for name, where in rest if where == zone]) for zone in zones])
        assert made.count() == vms - len(made.ours)
        return (
            told("gcloud, one call per VM", one_by_one, len(some), len(made.ours)),
            told("gcloud, one call per zone", by_zone, len(rest), len(made.ours)),
        )


def measure(scale: float) -> list[Line]:
    """One after the other, each with a world of its own."""
    if shutil.which("gcloud") is None:
        raise NotMeasured("no gcloud on PATH")
    vms = max(4 * SAMPLE, int(VMS * scale))
    mine = with_glgpu(vms)
    by_vm, by_zone = with_gcloud(vms)
    return [
        Line(f"{vms // 2} orphans among {vms} VMs", rival, mine / its, f"{mine:.1f} s, {its:.1f} s", "{:.3f}")
        for rival, its in (
            (f"`gcloud compute instances delete`, one call per VM ({SAMPLE} measured, scaled)", by_vm),
            ("the same, one call per zone", by_zone),
        )
    ]
