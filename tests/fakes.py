"""In-memory stand-ins for the clients, and a run made of them: no socket, no process, no real time."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

from glgpu.console import Console
from glgpu.elsewhere import Part
from glgpu.errors import ErrorClass, Failure
from glgpu.gpu_offers import Rates
from glgpu.interfaces import (
    AcceleratorType,
    Admission,
    Backend,
    BootImage,
    CloudProject,
    Endpoint,
    FirewallRule,
    ForgeEnvironment,
    ForgePipeline,
    ForgeProject,
    ForgeSchedule,
    ForgeVariable,
    Instance,
    MachineType,
    Made,
    Nat,
    Network,
    NetworkRule,
    Operation,
    Quota,
    Region,
    Subnetwork,
    WorkCommit,
    Zone,
)
from glgpu.job import read_job
from glgpu.machines import DEFAULT_IMAGE
from glgpu.masking import Masker
from glgpu.processes import Done
from glgpu.run_names import AnyName, RunName, read_name
from glgpu.run_record import RunRecord
from glgpu.settings import Settings, load_settings
from glgpu.steps.context import Run

HOST_KEY = "A" * 68
IMAGE = "registry.example.com/team/train:latest"
ZONE = "europe-west4-a"
INSIDE = "| NVIDIA-SMI 580.95.05      Driver Version: 580.95.05      CUDA Version: 13.0 |\n"


class FakeClock:
    """Time that passes only when somebody waits; ``at`` lets things happen meanwhile."""

    def __init__(self, start: float = 1_763_900_000.0) -> None:
        self.time = start
        self.slept: list[float] = []
        self._due: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        due = [entry for entry in self._due if entry[0] <= self.time]
        self._due = [entry for entry in self._due if entry[0] > self.time]
        for _, happen in due:
            happen()

    def at(self, seconds: float, happen: Callable[[], None]) -> None:
        """Let something happen in so many seconds."""
        self._due.append((self.time + seconds, happen))


def refusal(klass: ErrorClass, cause: str = "refused") -> Failure:
    """A failure of the other side."""
    return Failure(klass, cause, "none")


class Refusing:
    """Lets the calls of a fake fail: ``refuse["delete_rule"] = failure``."""

    def __init__(self) -> None:
        self.refuse: dict[str, Failure] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.before: dict[str, Callable[[], None]] = {}

    def visit(self, verb: str, *facts: Any) -> None:
        self.calls.append((verb, *facts))
        happen = self.before.pop(verb, None)
        if happen is not None:
            happen()
        if verb in self.refuse:
            raise self.refuse[verb]

    def verbs(self) -> list[str]:
        return [call[0] for call in self.calls]


class FakeCloud(Refusing):
    """Compute Engine."""

    def __init__(self, clock: FakeClock, project: str = "my-dl") -> None:
        super().__init__()
        self.project = project
        self.clock = clock
        self.vms: dict[tuple[str, str], Instance] = {}
        self.rules: dict[str, FirewallRule] = {}
        self.boot_disks: set[tuple[str, str]] = set()
        self.made: dict[str, str] = {}
        """When disks and rules were created: ``disk NAME``, ``rule NAME``."""
        self.insert_operations: dict[str, tuple[Instance, Failure | None]] = {}
        self.under_way: set[str] = set()
        """Inserts that are not over."""
        self.guest: dict[str, str] = {"ssh-ed25519": HOST_KEY}
        self.start_up: dict[str, str] = {}
        """What the start-up script publishes."""
        self.console = "last line of the serial console"
        self.stubborn = False
        """Whether a delete is answered with success and changes nothing."""
        self.delete_failures: list[Failure] = []
        """Why deletes that are accepted fail afterwards, one each."""
        self.delete_seconds = 0.0
        """How long a delete takes; the VM is STOPPING meanwhile."""
        self.deletes: list[Operation] = []
        self.taken: list[Operation] = []
        """By which VMs were preempted."""
        self.overwrites: list[tuple[str, ...]] = []
        """What somebody else makes of a rule's sources right after our change, each once."""
        self.overtaken: list[Callable[[], None]] = []
        """What somebody else does to the metadata between our look and our change, each once."""

    def insert(self, instance: Instance, failure: Failure | None = None) -> None:
        """What Terraform does."""
        self.insert_operations[f"operation-{len(self.insert_operations)}"] = (instance, failure)
        if failure is None:
            self.vms[instance.name, instance.zone] = instance
            self.boot_disks.add((instance.name, instance.zone))

    def insert_late(self, instance: Instance, seconds: float) -> None:
        """An insert that is under way for so long, and of which nothing is seen before."""
        operation = f"operation-{len(self.insert_operations)}"
        self.insert_operations[operation] = (instance, None)
        self.under_way.add(operation)

        def come_up() -> None:
            self.under_way.discard(operation)
            self.vms[instance.name, instance.zone] = instance
            self.boot_disks.add((instance.name, instance.zone))

        self.clock.at(seconds, come_up)

    def end_insert(self, operation: str, failure: Failure | None = None) -> None:
        """An insert that was under way ends."""
        self.insert_operations[operation] = (self.insert_operations[operation][0], failure)
        self.under_way.discard(operation)

    def change(self, name: str, zone: str, **facts: Any) -> None:
        """What happens to a VM by itself."""
        self.vms[name, zone] = replace(self.vms[name, zone], **facts)

    def find(self, name: str) -> list[Instance]:
        self.visit("find", name)
        return [one for one in self.vms.values() if one.name == name]

    def labelled(self, labels: Mapping[str, str]) -> list[Instance]:
        self.visit("labelled", dict(labels))
        return [one for one in self.vms.values() if labels.items() <= one.labels.items()]

    def of_run(self, name: str, run: str) -> list[Instance]:
        self.visit("of_run", name, run)
        return [one for one in self.vms.values() if one.name == name or one.labels.get("glgpu-run") == run]

    def operations(self, name: str) -> list[Operation]:
        self.visit("operations", name)
        return [*self._inserts(name), *self.deletes, *self.taken]

    def preempt(self, name: str, zone: str) -> None:
        """Google takes a VM away, which is gone at once."""
        gone = self.vms.pop((name, zone))
        self.boot_disks.discard((name, zone))
        self.taken.append(Operation(f"p{len(self.taken)}", "compute.instances.preempted", zone, gone.id, True))

    def _inserts(self, name: str) -> list[Operation]:
        return [
            Operation(key, "insert", one.zone, one.id, key not in self.under_way, failure)
            for key, (one, failure) in self.insert_operations.items()
            if one.name == name
        ]

    def instances_named(self, prefix: str) -> list[Instance]:
        self.visit("instances_named", prefix)
        return [one for one in self.vms.values() if one.name.startswith(prefix)]

    def get(self, name: str, zone: str) -> Instance | None:
        self.visit("get", name, zone)
        return self.vms.get((name, zone))

    def zones(self, region: str) -> list[str]:
        self.visit("zones", region)
        return [f"{region}-{letter}" for letter in "abc"]

    def inserts(self, name: str, zone: str) -> list[Operation]:
        self.visit("inserts", name, zone)
        return [one for one in self._inserts(name) if one.zone == zone]

    def delete_instance(self, name: str, zone: str) -> None:
        self.visit("delete_instance", name, zone)
        found = self.vms.get((name, zone))
        if self.stubborn or found is None:
            return
        if self.delete_failures:
            failure = self.delete_failures.pop(0)
            self.deletes.append(Operation(f"d{len(self.deletes)}", "delete", zone, found.id, True, failure))
            return

        def go() -> None:
            self.vms.pop((name, zone), None)
            self.boot_disks.discard((name, zone))
            self.deletes.append(Operation(f"d{len(self.deletes)}", "delete", zone, found.id, True))

        if not self.delete_seconds:
            go()
            return
        self.change(name, zone, status="STOPPING")
        self.clock.at(self.delete_seconds, go)

    def edit_metadata(self, name: str, zone: str, edit: Callable[[dict[str, str]], dict[str, str]]) -> None:
        self.visit("edit_metadata", name, zone)
        while True:
            current = self.vms.get((name, zone))
            if current is None:
                raise refusal(ErrorClass.NOT_FOUND, f"the resource {name} was not found")
            new = edit(dict(current.metadata))
            if self.overtaken:
                self.overtaken.pop(0)()
            if self.vms[name, zone].metadata != current.metadata:
                continue  # 412 conditionNotMet: once more
            self.change(name, zone, metadata=new)
            return

    def edit_labels(self, name: str, zone: str, labels: Mapping[str, str]) -> None:
        self.visit("edit_labels", name, zone, dict(labels))
        if (name, zone) not in self.vms:
            raise refusal(ErrorClass.NOT_FOUND, f"the resource {name} was not found")
        self.change(name, zone, labels={**self.vms[name, zone].labels, **labels})

    def guest_attributes(self, name: str, zone: str, namespace: str) -> dict[str, str]:
        self.visit("guest_attributes", name, zone, namespace)
        attributes = {"hostkeys": self.guest, "glgpu": self.start_up}
        return dict(attributes.get(namespace, {})) if (name, zone) in self.vms else {}

    def serial_output(self, name: str, zone: str, *, last: int = 4096) -> str:
        self.visit("serial_output", name, zone)
        return self.console[-last:]

    def rule(self, name: str) -> FirewallRule | None:
        self.visit("rule", name)
        return self.rules.get(name)

    def create_rule(self, rule: FirewallRule) -> None:
        self.visit("create_rule", rule)
        self.rules.setdefault(rule.name, rule)

    def change_rule(self, name: str, sources: Sequence[str], *, disabled: bool) -> None:
        self.visit("change_rule", name, tuple(sources), disabled)
        self.rules[name] = replace(self.rules[name], sources=tuple(sources), disabled=disabled)
        if self.overwrites:
            self.rules[name] = replace(self.rules[name], sources=self.overwrites.pop(0), disabled=False)

    def delete_rule(self, name: str) -> None:
        self.visit("delete_rule", name)
        self.rules.pop(name, None)

    def disks(self, name: str) -> list[tuple[str, str]]:
        self.visit("disks", name)
        return sorted(disk for disk in self.boot_disks if disk[0] == name)

    def disks_named(self, prefix: str) -> list[Made]:
        self.visit("disks_named", prefix)
        found = sorted(disk for disk in self.boot_disks if disk[0].startswith(prefix))
        return [Made(name, zone, self.made.get(f"disk {name}", "")) for name, zone in found]

    def rules_named(self, prefix: str) -> list[Made]:
        self.visit("rules_named", prefix)
        return [
            Made(name, "", self.made.get(f"rule {name}", "")) for name in sorted(self.rules) if name.startswith(prefix)
        ]

    def delete_disk(self, name: str, zone: str) -> None:
        self.visit("delete_disk", name, zone)
        if not self.stubborn:
            self.boot_disks.discard((name, zone))


class FakeCatalogue(Refusing):
    """What Compute Engine offers; begins with two zones of one region, two GPUs, one image and the default network.

    Whatever it answers stands in attributes that a test may change.
    """

    def __init__(self, project: str = "my-dl") -> None:
        super().__init__()
        self.project = project
        region = ZONE.rpartition("-")[0]
        zones = [f"{region}-{letter}" for letter in "ab"]
        network, subnetwork = self.path("global/networks/default"), f"regions/{region}/subnetworks/default"
        self.project_quotas = {"GPUS_ALL_REGIONS": Quota("GPUS_ALL_REGIONS", 4.0, 0.0)}
        self.common_metadata: dict[str, str] = {}
        self.region_list = [
            Region(
                region,
                "UP",
                tuple(zones),
                {
                    metric: Quota(metric, limit, usage, region)
                    for metric, limit, usage in (
                        ("NVIDIA_L4_GPUS", 4.0, 1.0),
                        ("PREEMPTIBLE_NVIDIA_L4_GPUS", 4.0, 0.0),
                        ("NVIDIA_T4_GPUS", 4.0, 0.0),
                        ("PREEMPTIBLE_NVIDIA_T4_GPUS", 4.0, 0.0),
                        ("CPUS", 72.0, 0.0),
                        ("SSD_TOTAL_GB", 500.0, 0.0),
                        ("DISKS_TOTAL_GB", 4096.0, 0.0),
                        ("IN_USE_ADDRESSES", 8.0, 0.0),
                    )
                },
            )
        ]
        self.zone_list = [Zone(zone, region, "UP") for zone in zones]
        self.accelerator_list = [
            AcceleratorType(gpu, zone, most)
            for gpu, most in (("nvidia-l4", 8), ("nvidia-tesla-t4", 4))
            for zone in zones
        ]
        self.machine_list = [
            one
            for zone in zones
            for one in (
                MachineType("g2-standard-4", zone, 4, 16.0, "nvidia-l4", 1),
                MachineType("n1-standard-4", zone, 4, 15.0),
                MachineType("e2-small", zone, 2, 2.0),
            )
        ]
        self.disk_type_names = {"pd-standard", "pd-balanced", "pd-ssd", "hyperdisk-balanced"}
        self.image_list = [
            BootImage(
                f"{DEFAULT_IMAGE.rpartition('/family/')[0]}/{DEFAULT_IMAGE.rpartition('/')[2]}-v20261104",
                DEFAULT_IMAGE.rpartition("/")[2],
                "READY",
                50,
                "",
                "",
                "X86_64",
            )
        ]
        self.network_list = [Network(network, automatic=True)]
        self.subnetwork_list = [Subnetwork(self.path(subnetwork), network, "10.164.0.0/20", google_access=False)]
        self.rule_list: list[tuple[str, NetworkRule]] = []
        """With the path of the network that each is for."""
        self.nat_list: list[tuple[str, str, Nat]] = []
        """With region and path of the network that each is for."""

    def path(self, rest: str, kind: str = "") -> str:
        """``projects/P/...`` of a name or a path."""
        start = rest.find("projects/")
        return rest[start:] if start >= 0 else f"projects/{self.project}/{kind}{rest}"

    def cloud_project(self) -> CloudProject:
        self.visit("cloud_project")
        account = "1-compute@developer.gserviceaccount.com"
        return CloudProject(self.project, self.project_quotas, self.common_metadata, account)

    def regions(self) -> dict[str, Region]:
        self.visit("regions")
        return {region.name: region for region in self.region_list}

    def zones(self) -> dict[str, Zone]:
        self.visit("zones")
        return {zone.name: zone for zone in self.zone_list}

    def accelerator_types(self) -> list[AcceleratorType]:
        self.visit("accelerator_types")
        return list(self.accelerator_list)

    def machine_types(self, names: Collection[str]) -> list[MachineType]:
        self.visit("machine_types", *sorted(names))
        return [one for one in self.machine_list if one.name in names]

    def machine_type(self, name: str, zone: str) -> MachineType | None:
        self.visit("machine_type", name, zone)
        return next((one for one in self.machine_list if (one.name, one.zone) == (name, zone)), None)

    def disk_types(self, zone: str) -> set[str]:
        self.visit("disk_types", zone)
        return set(self.disk_type_names)

    def image(self, path: str) -> BootImage | None:
        self.visit("image", path)
        if "global/images/" not in path:
            raise refusal(ErrorClass.CONFIG)
        owner, _, name = self.path(path).partition("/global/images/")
        own = [one for one in self.image_list if one.path.startswith(f"{owner}/")]
        if name.startswith("family/"):
            return next((one for one in own if one.family == name.removeprefix("family/")), None)
        return next((one for one in own if one.path.endswith(f"/{name}")), None)

    def network(self, network: str) -> Network | None:
        self.visit("network", network)
        path = self.path(network, "global/networks/")
        return next((one for one in self.network_list if one.path == path), None)

    def subnetworks(self, region: str, network: str) -> list[Subnetwork]:
        self.visit("subnetworks", region, network)
        path = self.path(network, "global/networks/")
        return [one for one in self.subnetwork_list if one.network == path and f"/regions/{region}/" in one.path]

    def subnetwork(self, subnetwork: str, region: str) -> Subnetwork | None:
        self.visit("subnetwork", subnetwork, region)
        path = self.path(subnetwork, f"regions/{region}/subnetworks/")
        return next((one for one in self.subnetwork_list if one.path == path), None)

    def rules(self, network: str) -> list[NetworkRule]:
        self.visit("rules", network)
        path = self.path(network, "global/networks/")
        return [rule for where, rule in self.rule_list if where == path]

    def nats(self, region: str, network: str) -> list[Nat]:
        self.visit("nats", region, network)
        path = self.path(network, "global/networks/")
        return [nat for place, where, nat in self.nat_list if (place, where) == (region, path)]


class FakePrices(Refusing):
    """Google's price list; begins with that of an L4 and its machine, the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.known = Rates(
            core={("g2", False): 0.03, ("g2", True): 0.01},
            ram={("g2", False): 0.003, ("g2", True): 0.001},
            gpu={("nvidia-l4", False): 0.6, ("nvidia-l4", True): 0.25},
            disk={"pd-balanced": 0.1 / 730},
        )

    def rates(self, region: str) -> Rates:
        self.visit("rates", region)
        return self.known


class FakeStates(Refusing):
    """A place for Terraform's states."""

    def __init__(self, where: str, kind: str) -> None:
        super().__init__()
        self.where = where
        self.kind = kind
        self.writable = True
        self.states: dict[str, Literal["empty", "held"]] = {}
        self.locks: dict[str, str] = {}
        """Who holds the lock of a state."""

    def state_writable(self, name: str) -> bool:
        self.visit("state_writable", name)
        if self.writable:
            self.states.setdefault(name, "empty")
            self.locks.pop(name, None)
        return self.writable

    def state_backend(self, name: str) -> Backend:
        return Backend(self.kind, {}, {"TF_HTTP_ADDRESS": f"https://gitlab.example.com/state/{name}"})

    def state(self, name: str) -> Literal["absent", "empty", "held"]:
        self.visit("state", name)
        return self.states.get(name, "absent")

    def lock_holder(self, name: str) -> str:
        self.visit("lock_holder", name)
        return self.locks.get(name, "")

    def break_lock(self, name: str) -> None:
        self.visit("break_lock", name)
        self.locks.pop(name, None)

    def delete_state(self, name: str) -> None:
        self.visit("delete_state", name)
        if name in self.locks:
            raise refusal(ErrorClass.STATE_LOCK, f"the state {name} is locked")
        self.states.pop(name, None)


class FakeBucket(FakeStates):
    """A bucket: a place for states, and for outputs that VMs or jobs leave."""

    def __init__(self, where: str, kind: str = "gcs") -> None:
        super().__init__(where, kind)
        self.store: Literal["packages", "bucket"] = "bucket"
        self.bucket = where.removeprefix("the bucket ")
        self.kept_in = where
        self.kept: dict[tuple[str, str], tuple[Part, bytes]] = {}
        """By run and name."""
        self.get_breaks: list[int | None] = []
        """For each download: after how many bytes the connection breaks."""

    def parts(self, run: AnyName) -> dict[str, Part]:
        self.visit("parts", str(run))
        return {name: part for (owner, name), (part, _) in self.kept.items() if owner == str(run)}

    def put_part(self, run: AnyName, part: Part, data: BinaryIO) -> None:
        content = data.read()
        self.visit("put_part", part.name)
        assert (len(content), hashlib.sha256(content).hexdigest()) == (part.size, part.sha256)
        self.kept[str(run), part.name] = part, content

    def get_part(self, run: AnyName, name: str, begin: int, take: Callable[[bytes], object]) -> None:
        self.visit("get_part", name, begin)
        found = self.kept.get((str(run), name))
        if found is None:
            raise refusal(ErrorClass.NOT_FOUND if self.kind == "gcs" else ErrorClass.GITLAB, f"there is no {name}")
        self._hand_over(found[1][begin:], take)

    def _hand_over(self, content: bytes, take: Callable[[bytes], object]) -> None:
        breaks = self.get_breaks.pop(0) if self.get_breaks else None
        for start in range(0, len(content[:breaks]), 1 << 20):
            take(content[:breaks][start : start + (1 << 20)])
        if breaks is not None:
            raise refusal(ErrorClass.NETWORK, "the connection broke")

    def page(self, run: AnyName) -> str:
        return f"https://example.com/{self.where.replace(' ', '-')}/{run}"

    def admit(self, run: AnyName, until: float) -> Admission:
        self.visit("admit", str(run), until)
        return Admission(f"https://storage.example.com/{self.bucket}/{run}/", ("x-only: new",), own_account=True)

    def dismiss(self, run: AnyName) -> int:
        self.visit("dismiss", str(run))
        return 0

    def runs_with_parts(self) -> list[RunName]:
        self.visit("runs_with_parts")
        names = map(read_name, {owner for owner, _ in self.kept})
        return [RunName("https://gitlab.example.com", one.project_id, one.run, one.kind) for one in names if one]

    def drop_parts(self, run: AnyName, names: Collection[str]) -> None:
        self.visit("drop_parts", *names)
        for name in names:
            self.kept.pop((str(run), name), None)


class FakeForge(FakeBucket):
    """GitLab."""

    def __init__(self) -> None:
        super().__init__("GitLab", "http")
        self.store, self.bucket, self.kept_in = "packages", "", "the project's package registry"
        self.limit: int | None = None
        """What it says of its limit for artifacts, in bytes."""
        self.archives: dict[str, tuple[str, bytes]] = {}
        """Id of a job to its stage and the archive of its artifacts."""
        self.may_administer = True
        self.keys: list[tuple[str, str, float]] = []
        self.pushing: list[str] = []
        """Titles of keys that may push, or might once."""
        self.over = False
        self.artifacts: dict[tuple[str, str, str], str] = {}
        self.fingerprints: set[str] = set()
        self.visible: set[int] | None = None
        """The projects that the token may look at; None: every one."""
        self.pipelines: dict[tuple[int, int], str] = {}
        self.jobs: dict[tuple[int, int], dict[str, str]] = {}
        self.environment_list: list[ForgeEnvironment] = []
        self.refs: dict[tuple[int, int], str] = {}
        self.time: Callable[[], float] = lambda: 0.0
        self.own_job_over = False
        self.tokens: list[tuple[str, float]] = []
        self.schedule_list: list[ForgeSchedule] = []
        self.job_ends: dict[str, Literal["unfinished", "none", "kept"]] = {}

    def job_is_over(self) -> bool:
        self.visit("job_is_over")
        return self.own_job_over

    def server_time(self) -> float:
        self.visit("server_time")
        return self.time()

    def admit(self, run: AnyName, until: float) -> Admission:
        self.dismiss(run)
        user, secret = self.add_deploy_token(str(run), until + 3600)
        return Admission(f"https://gitlab.example.com/packages/{run}/", (f"Authorization: {user}:{secret}",), secret)

    def dismiss(self, run: AnyName) -> int:
        return self.remove_deploy_tokens(str(run))

    def add_deploy_token(self, name: str, expires: float) -> tuple[str, str]:
        self.visit("add_deploy_token", name)
        self.tokens.append((name, expires))
        return "gitlab+deploy-token-1", "gldt-made-up-secret"

    def remove_deploy_tokens(self, name: str) -> int:
        self.visit("remove_deploy_tokens", name)
        mine = [token for token in self.tokens if token[0] == name]
        for token in mine:
            self.tokens.remove(token)
        return len(mine)

    def deploy_tokens(self) -> list[Made]:
        self.visit("deploy_tokens")
        return [Made(name, "", "") for name, _ in self.tokens]

    def schedules(self) -> list[ForgeSchedule]:
        self.visit("schedules")
        return self.schedule_list

    def job_artifacts(self, job: str) -> Literal["unfinished", "none", "kept"]:
        self.visit("job_artifacts", job)
        return self.job_ends.get(job, "none")

    def add_deploy_key(self, title: str, key: str, expires: float, *, can_push: bool = False) -> None:
        self.visit("add_deploy_key", title)
        self.keys.append((title, key, expires))
        if can_push:
            self.pushing.append(title)

    def remove_deploy_keys(self, title: str) -> int:
        self.visit("remove_deploy_keys", title)
        mine = [key for key in self.keys if key[0] == title]
        for key in mine:
            self.keys.remove(key)
        return len(mine)

    def destroy_is_over(self, pipeline: str) -> bool:
        self.visit("destroy_is_over", pipeline)
        return self.over

    def hold_back(self, ref: str) -> list[str]:
        self.visit("hold_back", ref)
        held = []
        for (project, pipeline), jobs in self.jobs.items():
            for name, status in list(jobs.items()):
                waits = status in ("created", "pending") or (name, status) == ("provision", "running")
                if self.refs.get((project, pipeline)) == ref and name in ("provision", "train") and waits:
                    jobs[name] = "canceled"
                    held.append(f"{name} of pipeline {pipeline}")
        return held

    def hold_back_notebook(self, pipeline: str) -> list[str]:
        self.visit("hold_back_notebook", pipeline)
        jobs = next((jobs for (_, number), jobs in self.jobs.items() if str(number) == pipeline), {})
        if jobs.get("start notebook") not in ("created", "pending", "running"):
            return []
        jobs["start notebook"] = "canceled"
        return [f"start notebook of pipeline {pipeline}"]

    def artifact(self, pipeline: str, job: str, path: str) -> str | None:
        self.visit("artifact", pipeline, job, path)
        return self.artifacts.get((pipeline, job, path))

    def artifact_jobs(self, run: str, names: Sequence[str]) -> list[str]:
        self.visit("artifact_jobs", run, *names)
        return [job for name in names for job, (stage, _) in self.archives.items() if stage == name]

    def get_artifacts(self, job: str, begin: int, take: Callable[[bytes], object]) -> None:
        self.visit("get_artifacts", job, begin)
        self._hand_over(self.archives[job][1][begin:], take)

    def artifact_limit(self) -> int | None:
        self.visit("artifact_limit")
        return self.limit

    def host_key_fingerprints(self) -> set[str]:
        self.visit("host_key_fingerprints")
        return self.fingerprints

    def sees_project(self, project_id: int) -> bool:
        self.visit("sees_project", project_id)
        return self.visible is None or project_id in self.visible

    def pipeline_status(self, project_id: int, pipeline: int) -> str | None:
        self.visit("pipeline_status", project_id, pipeline)
        return (
            self.pipelines.get((project_id, pipeline)) if self.visible is None or project_id in self.visible else None
        )

    def pipeline_jobs(self, project_id: int, pipeline: int) -> dict[str, str]:
        self.visit("pipeline_jobs", project_id, pipeline)
        return self.jobs.get((project_id, pipeline), {})

    def deploy_keys(self) -> list[Made]:
        self.visit("deploy_keys")
        return [Made(title, "", "") for title, _, _ in self.keys]

    def all_states(self) -> list[Made]:
        self.visit("all_states")
        return [Made(name, "", "") for name in sorted(self.states)]

    def environments(self, search: str) -> list[ForgeEnvironment]:
        self.visit("environments", search)
        return [one for one in self.environment_list if search in one.name]

    def stop_environment(self, environment: int) -> None:
        self.visit("stop_environment", environment)
        self.environment_list = [one for one in self.environment_list if one.id != environment]


class FakeScheduler(Refusing):
    """GitLab, for pipeline schedules: a project of group/project with a Maintainer's token."""

    def __init__(self) -> None:
        super().__init__()
        self.there = True
        self.known = ForgeProject("main", 40)
        self.set: list[ForgeVariable] = []
        self.made: list[ForgeSchedule] = []
        self.errors: tuple[str, ...] = ()

    def is_gitlab(self) -> bool:
        self.visit("is_gitlab")
        return self.there

    def project(self) -> ForgeProject:
        self.visit("project")
        return self.known

    def variables(self) -> list[ForgeVariable]:
        self.visit("variables")
        return self.set

    def schedules(self) -> list[ForgeSchedule]:
        self.visit("schedules")
        return list(self.made)

    def judge(self, text: str) -> ForgePipeline:
        self.visit("judge", text)
        return ForgePipeline(self.errors, (), text)

    def add_schedule(self, description: str, ref: str, cron: str) -> int:
        self.visit("add_schedule", description, ref, cron)
        number = len(self.made) + 1
        self.made.append(ForgeSchedule(description, ref, False, "ada", "active", {}, "", None, number))
        return number

    def finish_schedule(self, number: int, variables: Mapping[str, str]) -> None:
        self.visit("finish_schedule", number, dict(variables))
        (index,) = [index for index, one in enumerate(self.made) if one.number == number]
        both = {**(self.made[index].variables or {}), **variables}
        self.made[index] = replace(self.made[index], active=True, variables=both)


@dataclass
class Entry:
    """Something below the outputs on the fake VM.

    Attributes:
        data: A file's content.
        link: Where a link points to.
        folder: Whether it is a folder.
        kind: Its type, where it is neither.
        changed: When it was last written.
    """

    data: bytes = b""
    link: str = ""
    folder: bool = False
    kind: bytes = b""
    changed: float = 0.0


class FakeMachine(Refusing):
    """The VM as its helper answers: verbs in, facts out."""

    def __init__(self) -> None:
        super().__init__()
        self.reachable = True
        self.silent = False
        self.gpus = "NVIDIA L4, 580.95.05, 23034 MiB\n"
        self.container: dict[str, Any] | None = None
        self.exit_code = 0
        self.out_of_memory = False
        self.home = False
        self.log: list[tuple[str, bytes]] = [("2026-11-23T20:00:00.000000001Z", b"epoch 1\n")]
        self.breaks_after: list[int | None] = []
        """For each connection to the log: after how many entries it breaks; None: at the log's end."""
        self.files: dict[str, Entry] = {"weights/w.bin": Entry(b"w" * 100)}
        self.kept: dict[str, Entry] = {}
        """Links to files, as they were."""
        self.open: set[str] = set()
        """The files that somebody writes to."""
        self.ending = "no \n"
        self.cut_at: list[int | None] = []
        """For each transfer: after how many bytes it breaks."""
        self.sums_wrong = 0
        self.images = {
            IMAGE: {"Id": "sha256:" + "0" * 64, "RepoDigests": [f"{IMAGE.partition(':')[0]}@sha256:" + "1" * 64]}
        }
        self.pulled: set[str] = set()
        self.said: dict[str, Done] = {}
        """Answers by verb, instead of our own."""
        self.start_up = ["ready boot done\n"]
        """What the start-up script says, one line a question; the last one stays."""
        self.stdin: dict[str, bytes] = {}
        self.keeps: Callable[[str], None] = lambda _verb: None
        """What the keeper does, by its verb."""
        self.answering = ""
        self.started: list[str] = []
        self.allowed: list[float | None] = []
        """How long each stream was allowed to take."""
        self.tunnels: list[Callable[[], None] | None] = []
        """For each tunnel: what happens while it lasts, before it breaks; None: it does not open."""
        self.attached_code = 0
        """How a command at our own terminal ends."""
        self.samples = b""
        """What was sampled of the GPUs, all of it."""
        self.sampling: list[bytes] = []
        """What of it comes while it is looked at, one piece a look; the connection ends after the last."""

    def run(self, script: str, *, stdin: bytes = b"", timeout: float = 60) -> Done:
        if not self.reachable:
            said = b"ssh: connect to host: Connection timed out" if self.silent else b"Permission denied (publickey)."
            self.visit("unreachable", timeout)
            return Done([], 255, b"", said)
        verb, words = words_of(script)
        self.visit(verb, *words)
        self.stdin[verb] = stdin
        if verb in self.said:
            return self.said[verb]
        return self._answer(verb, words)

    def attached(self, script: str) -> int:
        self.visit("attached", script)
        return self.attached_code if self.reachable else 255

    @contextmanager
    def forward(self, socket: str, port: int = 0) -> Iterator[FakeTunnel]:
        self.visit("forward", socket, port)
        tunnel = FakeTunnel(port or 40123, self.tunnels.pop(0))
        yield tunnel
        tunnel.closed = True

    def options(self) -> dict[str, str]:
        return {"HostName": "203.0.113.5", "Port": "22", "StrictHostKeyChecking": "yes"}

    def hang_up(self) -> None:
        self.visit("hang-up")

    def _answer(self, verb: str, words: list[str]) -> Done:
        if verb == "hello":
            return done("/home/glgpu/glgpu\n")
        if verb == "startup":
            return done(self.start_up.pop(0) if len(self.start_up) > 1 else self.start_up[0])
        if verb == "gpu":
            return done(self.gpus)
        if verb == "gpu-inside":
            return done(INSIDE)
        if verb == "docker inspect" and self.container is None:
            return done("", 1, f"Error: No such object: {words[-1]}")
        if verb in ("state", "docker inspect"):
            return done(json.dumps(self.container) + "\n" if self.container else "")
        if verb == "ending":
            return done(self.ending)
        if verb == "look":
            return Done([], 0, self._look(words[0], words[1:]), b"")
        if verb == "image":
            return done(json.dumps(self.images[words[0]]) + "\n" if words[0] in self.pulled else "")
        if verb == "pull":
            self.pulled.add(words[0])
        elif verb == "start":
            self.started = words
            self.home = False
            self.container = {"Running": True, "ExitCode": 0, "OOMKilled": False}
        elif verb in ("stop", "end"):
            self._end(143)
        elif verb == "keep":
            names = [one.removeprefix(b"./").decode() for one in self.stdin["keep"].split(b"\0") if one]
            self.kept = {name: replace(self.files[name]) for name in names if name in self.files}
            return Done([], 0, self._look("/kept", words[1:]), b"")
        elif verb == "is-home":
            return done("yes\n" if self.home else "no\n")
        elif verb == "set-home":
            self.home = True
        elif verb == "wipe":
            self.container = None
        elif verb == "see-home":
            self.keeps(words[0])
        elif verb == "reach":
            return done(self.answering) if self.answering else done("", 1)
        elif verb == "samples":
            return Done([], 0, self.samples, b"")
        elif verb == "keygen":
            return done("ssh-ed25519 DEPLOYKEY\n")
        elif verb == "sums":
            return Done([], 0, self._sums(words[0], words[1:]), b"")
        return done("")

    def _end(self, code: int) -> None:
        self.container = {"Running": False, "ExitCode": code, "OOMKilled": self.out_of_memory}

    def below(self, folder: str, paths: Sequence[str]) -> dict[str, Entry]:
        return {
            name: entry
            for name, entry in (self.kept if folder.endswith("/kept") else self.files).items()
            if any(p in (".", name) or name.startswith(f"{p}/") for p in paths)
        }

    def _sent(self, folder: str, paths: Sequence[str], *, everything: bool) -> dict[str, Entry]:
        """The chosen files, and whatever is no file."""
        if everything:
            return self.below(folder, paths)
        chosen = {one.removeprefix(b"./") for one in self.stdin.get("choose", b"").split(b"\0")}
        return {
            name: entry
            for name, entry in self.below(folder, paths).items()
            if entry.link or entry.folder or entry.kind or name.encode("utf-8", "surrogateescape") in chosen
        }

    def _look(self, folder: str, paths: Sequence[str]) -> bytes:
        inodes, lines = {}, b""
        for name, entry in self.below(folder, paths).items():
            inodes[name] = f"1:{zlib.crc32(name.encode() + entry.data)}"
            said = f"{inodes[name]} {len(entry.data)} {entry.changed:.10f} ./{name}"
            lines += said.encode("utf-8", "surrogateescape") + b"\0"
        return " ".join(inodes[name] for name in self.open if name in inodes).encode() + b"\n" + lines

    def _sums(self, folder: str, paths: Sequence[str]) -> bytes:
        wrong, self.sums_wrong = self.sums_wrong > 0, max(0, self.sums_wrong - 1)
        sums = b""
        for name, entry in self.below(folder, paths).items():
            if not entry.link and not entry.folder and not entry.kind:
                digest = hashlib.sha256(entry.data + (b"!" if wrong else b"")).hexdigest()
                sums += f"{digest}  ./".encode() + name.encode("utf-8", "surrogateescape") + b"\0"
        return sums

    @contextmanager
    def stream(self, script: str, *, timeout: float | None = None) -> Iterator[FakeStream]:
        verb, words = words_of(script)
        self.visit(verb, *words)
        self.allowed.append(timeout)
        code = self.said[verb].code if verb in self.said else 0
        if not self.reachable:
            yield FakeStream(255, [], "Connection timed out" if self.silent else "Permission denied (publickey).")
        elif verb in ("logs", "logged"):
            yield self._logs(words[0], follow=verb == "logs")
        elif verb == "docker logs":
            if "-f" in words and self.container:
                self._end(self.exit_code)
            broken = bool(self.breaks_after) and self.breaks_after.pop(0) is not None
            said = "client_loop: send disconnect: Broken pipe" if broken else json.dumps(self.container)
            yield FakeStream(255 if broken else 0, [text for _, text in self.log], said)
        elif verb == "sampling":
            yield FakeStream(0, self.sampling, "")
        elif verb in ("send", "send-all"):
            data = tar_of(self._sent(words[0], words[1:], everything=verb == "send-all"))
            data += self._sums(words[0], words[1:]) if verb == "send-all" else b""
            cut = self.cut_at.pop(0) if self.cut_at else None
            yield FakeStream(code if cut is None else 255, [data[:cut]], "")
        else:
            stream = FakeStream(code, [], "")
            yield stream
            self.stdin[verb] = stream.taken
            if verb == "put":
                with tarfile.open(fileobj=io.BytesIO(stream.taken)) as archive:
                    for entry in archive:
                        content = archive.extractfile(entry)
                        self.files[entry.name.removeprefix("./")] = Entry(content.read() if content else b"")

    def _logs(self, since: str, *, follow: bool) -> FakeStream:
        entries = [(stamp, text) for stamp, text in self.log if stamp >= since]
        breaks = self.breaks_after.pop(0) if self.breaks_after else None
        chunks = [stamp.encode() + b" " + text for stamp, text in entries[:breaks]]
        if breaks is not None:
            return FakeStream(255, chunks, "client_loop: send disconnect: Broken pipe")
        if follow and self.container and self.container["Running"]:
            self._end(self.exit_code)
        return FakeStream(0, chunks, "")


class FakeTunnel:
    """A tunnel, and how it fares."""

    def __init__(self, port: int, lasts: Callable[[], None] | None) -> None:
        self.port = port
        self.closed = False
        self._lasts = lasts

    @property
    def complaint(self) -> str:
        assert not self.closed, "it has been closed"
        return "Connection timed out"

    def opens(self, seconds: float) -> bool:
        del seconds
        return self._lasts is not None

    def last(self) -> None:
        assert self._lasts is not None
        self._lasts()


class FakeStream:
    """A command that runs on the fake VM."""

    def __init__(self, code: int, chunks: list[bytes], complaint: str) -> None:
        self.code = code
        self.complaint = complaint
        self._chunks = chunks
        self._in = _Kept()
        self._out = io.BytesIO(b"".join(chunks))

    @property
    def stdin(self) -> IO[bytes]:
        return self._in

    @property
    def taken(self) -> bytes:
        return self._in.kept

    @property
    def stdout(self) -> IO[bytes]:
        return self._out

    def chunks(self, quiet: float | None = None) -> Iterator[bytes]:
        for data in self._chunks:
            if quiet is not None:
                yield b""
            yield data

    def wait(self, timeout: float | None = None) -> int:
        assert timeout is None or timeout > 0
        return self.code


class _Kept(io.BytesIO):
    kept = b""

    def close(self) -> None:
        if not self.closed:
            self.kept = self.getvalue()
        super().close()


def done(text: str, code: int = 0, complaint: str = "") -> Done:
    """A command that has ended."""
    return Done([], code, text.encode(), complaint.encode())


def words_of(script: str) -> tuple[str, list[str]]:
    """The verb and the arguments of a command to the helper, or of one past it: ``docker logs`` for example."""
    words = shlex.split(script.rpartition("&& ")[2].partition(" 2>&1")[0])
    if words[:3] == ["sudo", "-n", "docker"]:
        return f"docker {words[3]}", words[4:]
    return (words[2], words[4:]) if words[0] == "sh" else (words[0], words[1:])


def tar_of(entries: Mapping[str, Entry]) -> bytes:
    """A tar as GNU tar writes it on the VM."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name, entry in entries.items():
            info = tarfile.TarInfo(name if name.startswith(("/", "..")) else f"./{name}")
            info.size, info.mode = len(entry.data), 0o600
            if entry.link:
                info.type, info.linkname, info.size = tarfile.SYMTYPE, entry.link, 0
            elif entry.folder:
                info.type, info.mode = tarfile.DIRTYPE, 0o700
            elif entry.kind:
                info.type = entry.kind
            archive.addfile(info, io.BytesIO(entry.data) if info.isreg() else None)
    return buffer.getvalue()


class FakeStack(Refusing):
    """Terraform: `during` is what happens when apply begins, for example that the cloud gets a VM."""

    def __init__(self, variables: Mapping[str, Any], state: Backend | None) -> None:
        super().__init__()
        self.variables = variables
        self.state = state
        self.during: Callable[[FakeStack], None] = lambda _: None
        self.is_over = True
        self.hangs = False
        self.failure: Failure | None = None
        self.address = ""
        self.stopped = False
        self.must_be_killed = False
        self.hangs = False
        self.tried: list[str] = []
        """The zones that it was applied for."""

    def change(self, variables: Mapping[str, Any]) -> None:
        self.visit("change")
        self.variables = variables

    def prepare(self) -> None:
        self.visit("prepare")

    @contextmanager
    def start_apply(self) -> Iterator[FakeStack]:
        self.visit("start_apply")
        self.tried.append(self.variables["zone"])
        self.is_over, self.failure, self.stopped = True, None, False
        self.during(self)
        try:
            yield self
        finally:
            if not self.ended():
                self.stop()

    def ended(self) -> bool:
        return self.is_over

    def stop(self) -> bool:
        self.visit("stop")
        self.stopped = self.is_over = True
        return not self.must_be_killed

    def result(self, seconds: float | None = None) -> None:
        self.visit("result", seconds)
        if self.hangs and seconds is not None:
            raise refusal(ErrorClass.NETWORK)
        if self.failure is not None:
            raise self.failure

    def outputs(self) -> dict[str, str]:
        self.visit("outputs")
        return {"address": self.address}

    def destroy(self, timeout: float) -> None:
        self.visit("destroy", timeout)


class FakeRepository:
    """The checkout."""

    def __init__(self, sha: str) -> None:
        self.sha = sha
        self.differs: list[str] = []

    def head(self) -> str:
        return self.sha

    def changed(self) -> list[str]:
        return self.differs

    def write_pack(self, commit: str, to: IO[bytes]) -> None:
        to.write(b"PACK " + commit.encode())

    def write_tar(self, to: IO[bytes]) -> None:
        to.write(b"TAR")


class FakeWorkBranches(Refusing):
    """The branches of the project at GitLab, over SSH.

    Attributes:
        trees: Commit -> its files.
        parents: Commit -> its parents.
        tips: Branch -> what it is at.
        ignored: Files that git ignores.
        answering: The host keys that answer.
        opened: Host keys that were pinned.
        raced: How often somebody else is faster.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trees: dict[str, dict[str, bytes]] = {SHA: {}}
        self.parents: dict[str, list[str]] = {SHA: []}
        self.tips: dict[str, str] = {}
        self.ignored: set[str] = set()
        self.answering = "gitlab.example.com ssh-ed25519 AAAA\n"
        self.opened: list[str] = []
        self.raced = 0
        self.open_now = False

    def at(self, address: str, folder: Path) -> FakeWorkBranches:
        self.visit("at", address, folder.name)
        return self

    def make_key(self, comment: str) -> str:
        self.visit("make_key", comment)
        self.open_now = True
        return "ssh-ed25519 PUSHKEY"

    def answering_keys(self) -> str:
        self.visit("answering_keys")
        return self.answering

    def open(self, known_hosts: str) -> None:
        self.visit("open")
        self.opened.append(known_hosts)

    def tip(self, branch: str, seconds: float) -> str:
        assert seconds > 0
        self.visit("tip", branch)
        return self.tips.get(branch, "")

    def commit(
        self, base: str, tip: str, folder: Path, names: Sequence[str], author: str, message: str, seconds: float
    ) -> WorkCommit:
        assert seconds > 0
        self.visit("commit", author, message)
        left_out = {"ignored by git": sorted(set(names) & self.ignored)} if set(names) & self.ignored else {}
        chosen = [name for name in names if name not in self.ignored]
        tree = self.trees[base] | {name: (folder / name).read_bytes() for name in chosen}
        if tree == self.trees[tip or base]:
            return WorkCommit("", 0, left_out)
        sha = hashlib.sha1(f"{len(self.trees)}".encode()).hexdigest()
        behind = [tip, *self.parents.get(tip, [])]
        self.trees[sha] = tree
        self.parents[sha] = [*([tip] if tip else []), *([] if base in behind else [base])]
        return WorkCommit(sha, len(chosen), left_out)

    def push(self, commit: str, branch: str, seconds: float) -> bool:
        assert seconds > 0
        self.visit("push", branch)
        if self.raced:
            self.raced -= 1
            return False
        if branch in self.tips and self.tips[branch] not in self.parents[commit]:
            return False
        self.tips[branch] = commit
        return True

    def close(self) -> None:
        self.visit("close")
        self.open_now = False


@dataclass
class Stage:
    """A run made of fakes, and hands to change the world with.

    Attributes:
        run: The run.
        address: This caller's public address.
    """

    run: Run
    clock: FakeClock
    cloud: FakeCloud
    forge: FakeForge
    machine: FakeMachine
    said: io.BytesIO
    address: str = "203.0.113.10"
    stacks: list[FakeStack] = field(default_factory=list)
    applies: Callable[[FakeStack], None] = lambda _: None
    refuses: dict[str, Failure] = field(default_factory=dict)
    connected: list[tuple[Endpoint, str]] = field(default_factory=list)
    buckets: dict[str, FakeBucket] = field(default_factory=dict)
    branches: FakeWorkBranches = field(default_factory=lambda: FakeWorkBranches())

    @property
    def name(self) -> str:
        return str(self.run.name)

    @property
    def log(self) -> str:
        return self.said.getvalue().decode()

    def events(self) -> list[str]:
        return [event.what for event in self.run.record.events]

    def vm(self, **facts: Any) -> Instance:
        """A VM of this run as bring-up leaves it, with its hard end in an hour."""
        from glgpu.lifetime import Lifetime
        from glgpu.steps.context import SETTINGS_ITEM, left_settings

        now = self.clock.now()
        lifetime = Lifetime("pipeline", now + 1200, now + 3600)
        labels = self.run.name.labels(lifetime, user=self.run.job.user, ref=self.run.job.ref)
        metadata = {SETTINGS_ITEM: left_settings(self.run, lifetime.hard_end)}
        whole = {
            "name": self.name, "zone": ZONE, "status": "RUNNING", "address": "198.51.100.7",
            "internal_address": "10.0.0.7", "labels": labels, "metadata": metadata, **facts,
        }  # fmt: skip
        return Instance(**whole)

    def insert(self, stack: FakeStack, **facts: Any) -> None:
        """What a good apply does: the VM of the variables it was given comes up."""
        variables = stack.variables
        instance = self.vm(
            zone=variables["zone"], labels=variables["labels"], metadata=variables["metadata"], **facts
        )  # fmt: skip
        stack.address = instance.address
        self.cloud.insert(instance)

    def use(self, **changes: Any) -> None:
        """Change fields of the run."""
        self.run = replace(self.run, **changes)

    def set(self, **sections: Any) -> None:
        """Change settings."""
        raw = self.run.settings.model_dump(mode="json")
        for section, values in sections.items():
            raw[section] = {**raw[section], **values} if isinstance(values, Mapping) else values
        self.use(settings=Settings.model_validate(raw))

    def job(self, **changes: Any) -> None:
        """Change fields of the job."""
        self.use(job=replace(self.run.job, **changes))


SHA = "0123456789" * 4
VARIABLES = {
    "CI_SERVER_URL": "https://gitlab.example.com",
    "CI_PROJECT_ID": "42",
    "CI_PROJECT_PATH": "team/model",
    "CI_PIPELINE_ID": "1001",
    "CI_JOB_ID": "5",
    "CI_JOB_TOKEN": "job-token-1",
    "CI_COMMIT_REF_NAME": "main",
    "CI_COMMIT_SHA": SHA,
    "GITLAB_USER_LOGIN": "ada",
    "GLGPU_GITLAB_TOKEN": "glpat-12345678",
    "GLGPU_PROJECT": "my-dl",
    "GLGPU_JOB_TIMEOUT": "2h55m",
    "RUNNER_SCRIPT_TIMEOUT": "2h35m",
    "GLGPU_TRAIN_IMAGE": IMAGE,
    "GLGPU_MACHINE_ZONES": ZONE,
}


def make_stage(folder: Path, **variables: str) -> Stage:
    """A run of fakes in a folder; Terraform's apply brings its VM up at once."""
    clock = FakeClock()
    environment = {**VARIABLES, **variables}
    job = read_job(environment, folder, clock.now())
    said = io.BytesIO()
    console = Console(Masker(), stream=said, clock=clock)
    cloud, forge, machine, branches = FakeCloud(clock), FakeForge(), FakeMachine(), FakeWorkBranches()
    forge.time = clock.now
    name = job.name()

    def connect(endpoint: Endpoint, _folder: Path, host_key: str) -> FakeMachine:
        stage.connected.append((endpoint, host_key))
        return machine

    def stack_for(given: Mapping[str, object], state: Backend | None) -> FakeStack:
        stack = FakeStack(given, state)
        stack.during, stack.refuse = stage.applies, stage.refuses
        stage.stacks.append(stack)
        return stack

    run = Run(
        name=name, job=job, settings=load_settings(None, environment), base="", cloud=cloud, forge=forge,
        catalogue=FakeCatalogue(), connect=connect,
        bucket_for=lambda name: stage.buckets.setdefault(name, FakeBucket(f"the bucket {name}")),
        stack_for=stack_for, make_login_key=lambda _folder, _comment: "ssh-ed25519 LOGINKEY",
        repository=FakeRepository(SHA), branch_at=branches.at, outputs=folder / "outputs", console=console, clock=clock,
        google_time=clock.now,
        caller_address=lambda _settings, _job: stage.address,
        record=RunRecord(folder / "outputs/glgpu/run.json", str(name), job.job_id, clock, console.masker),
    )  # fmt: skip
    stage = Stage(run, clock, cloud, forge, machine, said, branches=branches)
    stage.applies = stage.insert
    return stage
