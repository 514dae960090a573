"""Instances and their boot disks: how they come up, what can be done to them, how they end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from glgpu.rehearsal import cloud_catalogue as catalogue
from glgpu.rehearsal.compute_errors import (
    ApiError,
    OperationFailed,
    already_exists,
    condition_not_met,
    in_use,
    internal_error,
    invalid,
    not_found,
    not_ready,
    policy_violated,
    preempted,
    quota_exceeded,
    quota_failure,
    stockout,
)
from glgpu.rehearsal.compute_operations import Operation, Operations
from glgpu.rehearsal.compute_orders import Order, check_labels, check_metadata, check_tags, read_order
from glgpu.rehearsal.compute_resources import Links, Resource, fingerprint, timestamp
from glgpu.rehearsal.compute_shapes import Shapes, metadata, tags
from glgpu.rehearsal.faults import Faults, Rule
from glgpu.rehearsal.seams import IAP_SOURCE, Hardware, Hypervisor, MachineRoom
from glgpu.rehearsal.world_clock import WorldClock

SSH_PORT_ITEM = "glgpu-ssh-port"
"""Metadata item that says on which port the guest serves SSH."""

ATTRIBUTES_POLICY = "compute.guest-attributes-policy"
"""State: the organisation policy compute.disableGuestAttributesAccess is enforced."""

OS_LOGIN_FORCED = "compute.os-login-forced"
"""State: OS Login is on for every VM, whatever its own metadata says."""

HARD_END_FORGOTTEN = "compute.hard-end"
"""State: what has run longer than its ``maxRunDuration`` is not ended."""

IMMORTAL = "compute.immortal"
"""State: a VM that is to be deleted stays STOPPING for as long as this lasts, and a little longer."""
DYING_SECONDS = 5.0

SPOT_SECONDS = 30.0
"""From the notice that a Spot VM is taken away, and the order to its guest to shut down (ACPI G2 Soft Off), to the end
of its power (G3 Mechanical Off; ``Scheduling.skipGuestOsShutdown`` in Google's API description)."""

SERIAL_RING = 1024 * 1024
"""Bytes of a serial port's output that Compute Engine keeps."""

USING_RESOURCES = frozenset({"PROVISIONING", "STAGING", "RUNNING", "STOPPING"})
"""States in which an instance's GPUs, vCPUs and address count against the limits."""


TokenOfVm = Callable[[str, Sequence[str]], tuple[str, int] | None]
"""What the metadata server hands out for a service account and its scopes: a token, and for how many seconds."""


@dataclass
class Instance:
    """One instance.

    Attributes:
        resource: What callers see of it.
        order: What was asked for.
        zone: Short name.
        guest_attributes: Namespace and key -> value.
        gone: Deleted, or never came up.
        seen: Whether callers see it yet.
        transition: Held while power changes: an instance is never cut off in the middle of its boot.
        preempted: Set as soon as it has been said that it is taken away; the metadata server tells.
    """

    resource: Resource
    order: Order
    zone: str
    guest_attributes: dict[tuple[str, str], str] = field(default_factory=dict)
    gone: bool = False
    seen: bool = True
    transition: asyncio.Lock = field(default_factory=asyncio.Lock)
    preempted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> str:
        """Numeric id."""
        return str(self.resource["id"])

    @property
    def name(self) -> str:
        """Name, unique in its zone."""
        return str(self.resource["name"])

    @property
    def status(self) -> str:
        """Google's word for its state."""
        return str(self.resource["status"])

    @property
    def account(self) -> tuple[str, tuple[str, ...]] | None:
        """E-mail address and scopes of its service account, if it has one."""
        accounts = self.resource.get("serviceAccounts", [])
        return (str(accounts[0]["email"]), tuple(accounts[0].get("scopes", ()))) if accounts else None

    def metadata(self) -> dict[str, str]:
        """Its metadata items."""
        return {item["key"]: item.get("value", "") for item in self.resource["metadata"].get("items", [])}


class Instances:
    """All instances and disks of the project.

    Faults that are a state, and not an event: ``compute.capacity`` (a zone has nothing for anybody),
    ``compute.region-quota`` and ``compute.project-quota`` (the limits of GPUs are 0), ``compute.immortal``.

    Attributes:
        project_quotas: Limits of the whole project, by metric.
        region_quotas: Limits by region and metric.
        capacity: GPUs that a zone has for this project, by zone and accelerator type.
    """

    def __init__(
        self,
        folder: Path,
        clock: WorldClock,
        links: Links,
        operations: Operations,
        machines: MachineRoom,
        admits: Callable[[set[str], str, int], bool],
        faults: Faults,
        token_of_vm: TokenOfVm,
    ) -> None:
        self.project_quotas = dict(catalogue.PROJECT_QUOTAS)
        self.region_quotas = {region: dict(catalogue.REGION_QUOTAS) for region in catalogue.REGIONS}
        self.capacity = {
            (zone, kind): catalogue.FREE_GPUS for kind, gpu in catalogue.GPUS.items() for zone in gpu.zones
        }
        self._folder = folder
        self._clock = clock
        self._links = links
        self._operations = operations
        self._machines = machines
        self._admits = admits
        self._faults = faults
        self._token_of_vm = token_of_vm
        self._instances: list[Instance] = []
        self._disks: list[Resource] = []
        self._shapes = Shapes(clock, links)

    # What is there

    def resources(self, zone: str) -> list[Resource]:
        """The instances of a zone as callers see them."""
        return [instance.resource for instance in self._instances if instance.zone == zone and instance.seen]

    def disks(self, zone: str) -> list[Resource]:
        """The disks of a zone."""
        unseen = {instance.resource["selfLink"] for instance in self._instances if not instance.seen}
        here = self._links.to(f"zones/{zone}")
        return [disk for disk in self._disks if disk["zone"] == here and unseen.isdisjoint(disk["users"])]

    def find(self, zone: str, name: str) -> Instance | None:
        """An instance by name or id."""
        for instance in self._instances:
            if instance.zone == zone and instance.seen and name in (instance.name, instance.id):
                return instance
        return None

    def get(self, zone: str, name: str) -> Instance:
        """The same.

        Raises:
            ApiError: There is none.
        """
        instance = self.find(zone, name)
        if instance is None:
            raise not_found(f"projects/{self._links.project}/zones/{zone}/instances/{name}")
        return instance

    def quotas(self, region: str | None) -> list[Resource]:
        """Limits and use of a region, or of the whole project."""
        limits, use = self._limits(region), self._use(region)
        return [{"metric": m, "limit": float(limit), "usage": float(use.get(m, 0))} for m, limit in limits.items()]

    # What can be done

    def insert(self, zone: str, body: Resource, fault: Rule | None) -> Operation:
        """Order an instance.

        Raises:
            ApiError: Google's refusal.
        """
        order = read_order(body, zone, self._links.project)
        path = f"projects/{self._links.project}/zones/{zone}/instances/{body['name']}"
        if any((other.zone, other.name) == (zone, body["name"]) for other in self._instances):
            raise already_exists(path)
        if any(disk["name"] == order.disk_name for disk in self.disks(zone)):
            raise already_exists(f"projects/{self._links.project}/zones/{zone}/disks/{order.disk_name}")
        self._refuse_by_project_quota(order, fault)
        action = fault.action if fault is not None else ""
        if action == "image-gone":
            raise not_found(f"projects/{order.image.project}/global/images/family/{order.image.family}")
        instance = Instance(self._shapes.instance(zone, body, order), order, zone)
        self._instances.append(instance)
        self._disks.append(self._shapes.disk(instance.resource, zone, body, order))
        instance.seen = action != "late-unseen"
        come_up = self._be_taken_away if action == "vanish" and order.spot else self._come_up
        return self._operations.begin(
            "insert",
            instance.resource,
            f"zones/{zone}",
            lambda: come_up(instance),
            undo=lambda: self._remove(instance, with_disk=True),
            failure=self._insert_failure(instance, fault),
            latency=float(fault.argument) if fault is not None and action in ("late", "late-unseen") else None,
        )

    def delete(
        self, instance: Instance, failure: OperationFailed | None = None, latency: float | None = None
    ) -> Operation:
        """Begin to delete an instance.

        Args:
            instance: Which.
            failure: How the operation is to fail.
            latency: Seconds that it takes; None: what every operation takes.

        Raises:
            ApiError: It is protected, or already on its way.
        """
        if instance.resource["deletionProtection"]:
            problem = "Resource cannot be deleted if it's protected against deletion."
            raise ApiError(400, "invalidUsage", f"Invalid resource usage: '{problem}'.")
        if instance.status == "STOPPING":
            raise not_ready(self._links.path(instance.resource["selfLink"]))
        before = instance.status
        instance.resource["status"] = "STOPPING"

        def undo() -> None:
            instance.resource["status"] = before

        return self._operations.begin(
            "delete",
            instance.resource,
            f"zones/{instance.zone}",
            lambda: self._let_die(instance),
            undo=undo,
            failure=failure,
            latency=0.0 if latency is None and self._faults.holds(IMMORTAL, instance.zone) else latency,
        )

    def stop(self, instance: Instance, failure: OperationFailed | None = None) -> Operation:
        """Begin to stop an instance; its disk stays.

        Raises:
            ApiError: It is on its way up or down.
        """
        if instance.status not in ("RUNNING", "TERMINATED"):
            raise not_ready(self._links.path(instance.resource["selfLink"]))
        before = instance.status
        if before == "RUNNING":
            instance.resource["status"] = "STOPPING"

        def undo() -> None:
            instance.resource["status"] = before

        return self._operations.begin(
            "stop",
            instance.resource,
            f"zones/{instance.zone}",
            lambda: self._power_down(instance),
            undo=undo,
            failure=failure,
        )

    def spot_running(self) -> list[Instance]:
        """The Spot VMs that run."""
        return [instance for instance in self._instances if instance.order.spot and instance.status == "RUNNING"]

    def preempt(self, instance: Instance, *, notice: bool = True) -> Operation:
        """Take a Spot VM away, as Google does when it needs the place (https://cloud.google.com/compute/docs/instances/spot).

        Its guest hears of it from the metadata server and by its power button at once; when it has shut down, after
        SPOT_SECONDS at the latest, the instance is stopped or deleted as its ``instanceTerminationAction`` says.

        Args:
            instance: Which; it runs.
            notice: Whether the guest hears of it; else its power goes at once, as when the host breaks.
        """
        if not instance.order.spot or instance.status != "RUNNING":
            raise ValueError(f"{instance.name} is no Spot VM that runs")
        ends = self._vanish if instance.order.deletes_itself else self._power_down

        async def work() -> None:
            if notice:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SPOT_SECONDS):
                        await self._machines.soft_off(instance.id)
            await ends(instance)

        zone = f"zones/{instance.zone}"
        operation = self._operations.begin("compute.instances.preempted", instance.resource, zone, work, latency=0.0)
        operation.resource["user"] = "system"
        instance.resource["status"] = "STOPPING"
        if notice:
            instance.preempted.set()
        return operation

    def set_metadata(self, instance: Instance, body: Resource, failure: OperationFailed | None) -> Operation:
        """Replace an instance's metadata.

        Raises:
            ApiError: The fingerprint is not the current one, or the metadata is not legal.
        """
        if body.get("fingerprint") != instance.resource["metadata"]["fingerprint"]:
            raise condition_not_met("Supplied fingerprint does not match current metadata fingerprint.")
        check_metadata(body)
        operation = self._change(instance, "setMetadata", {"metadata": metadata(body.get("items", []))}, failure)
        if "resourceStatus" in instance.resource:
            instance.resource["resourceStatus"]["effectiveInstanceMetadata"] = self._effective_keys(instance)
        return operation

    def set_labels(self, instance: Instance, body: Resource, failure: OperationFailed | None) -> Operation:
        """Replace an instance's labels.

        Raises:
            ApiError: The fingerprint is not the current one, or the labels are not legal.
        """
        if body.get("labelFingerprint") != instance.resource["labelFingerprint"]:
            raise condition_not_met("Labels fingerprint either invalid or resource labels have changed")
        labels = body.get("labels", {})
        check_labels(labels)
        changes = {"labels": labels, "labelFingerprint": fingerprint(labels)}
        return self._change(instance, "setLabels", changes, failure)

    def set_tags(self, instance: Instance, body: Resource, failure: OperationFailed | None) -> Operation:
        """Replace an instance's network tags.

        Raises:
            ApiError: The fingerprint is not the current one, or the tags are not legal.
        """
        if body.get("fingerprint") != instance.resource["tags"]["fingerprint"]:
            raise condition_not_met("Tags fingerprint either invalid or resource tags have changed")
        items = body.get("items", [])
        check_tags(items)
        return self._change(instance, "setTags", {"tags": tags(items)}, failure)

    def delete_disk(self, zone: str, name: str, failure: OperationFailed | None) -> Operation:
        """Begin to delete a disk.

        Raises:
            ApiError: There is none, or an instance has it.
        """
        disk = next((d for d in self.disks(zone) if name in (d["name"], d["id"])), None)
        if disk is None:
            raise not_found(f"projects/{self._links.project}/zones/{zone}/disks/{name}")
        if disk["users"]:
            raise in_use(self._links.path(disk["selfLink"]), self._links.path(disk["users"][0]))

        async def work() -> None:
            self._disks.remove(disk)

        return self._operations.begin("delete", disk, f"zones/{zone}", work, failure=failure)

    def guest_attributes(self, instance: Instance, query: dict[str, str]) -> Resource:
        """What the guest has published.

        Raises:
            ApiError: Nothing of that name, guest attributes are not enabled, or a policy forbids them.
        """
        if self._faults.holds(ATTRIBUTES_POLICY):
            raise policy_violated("compute.disableGuestAttributesAccess")
        path = query.get("queryPath") or query.get("variableKey", "").replace(":", "/")
        namespace, _, key = path.partition("/")
        items = [
            {"namespace": n, "key": k, "value": v}
            for (n, k), v in sorted(instance.guest_attributes.items())
            if namespace in ("", n) and key in ("", k)
        ]
        if not items or not _enables_guest_attributes(instance):
            raise ApiError(404, "notFound", f"The resource '{path}' of type 'Guest Attribute' was not found.")
        link = f"{instance.resource['selfLink']}/guestAttributes/{path}"
        answer: Resource = {"kind": "compute#guestAttributes", "selfLink": link}
        if "queryPath" in query or not path:
            return answer | {"queryPath": path, "queryValue": {"items": items}}
        return answer | {"variableKey": query["variableKey"], "variableValue": items[0]["value"]}

    def serial_output(self, instance: Instance, port: int, start: int) -> Resource:
        """A serial port's output from byte ``start`` on; a negative ``start`` counts from the end.

        Raises:
            ApiError: There is no such port.
        """
        if not 1 <= port <= 4:
            raise invalid("port", port, "Must be between 1 and 4, inclusive.")
        file = self._serial_file(instance, port)
        whole = file.read_bytes() if file.exists() else b""
        oldest = max(0, len(whole) - SERIAL_RING)
        first = min(max(oldest, start if start >= 0 else len(whole) + start), len(whole))
        return {
            "kind": "compute#serialPortOutput",
            "selfLink": f"{instance.resource['selfLink']}/serialPort",
            "contents": whole[first:].decode(errors="replace"),
            "start": str(first),
            "next": str(len(whole)),
        }

    def write_serial(self, instance: Instance, text: str, port: int = 1) -> None:
        """Add to a serial port's output; the files stay for who wants to see why a VM died."""
        with self._serial_file(instance, port).open("a", encoding="utf-8") as file:
            file.write(text)

    # How it comes up

    def _refuse_by_project_quota(self, order: Order, fault: Rule | None) -> None:
        if fault is not None and fault.action == "quota" and fault.argument in ("", "GPUS_ALL_REGIONS"):
            raise quota_exceeded("GPUS_ALL_REGIONS", 0.0, None)
        use, wanted = self._use(None), _needs(order)
        for metric, limit in self._limits(None).items():
            if wanted.get(metric, 0) and use.get(metric, 0) + wanted[metric] > limit:
                raise quota_exceeded(metric, limit, None)

    def _insert_failure(self, instance: Instance, fault: Rule | None) -> OperationFailed | None:
        if fault is None or fault.action in ("late", "late-unseen", "vanish"):
            return None
        if fault.action == "preempted":
            return preempted() if instance.order.spot else None
        if fault.action == "stockout":
            return self._stockout(instance, fault.argument)
        if fault.action == "quota":
            region = catalogue.region_of(instance.zone)
            return quota_failure(fault.argument, self.region_quotas[region].get(fault.argument, 0.0), region)
        return internal_error(fault.argument)

    async def _come_up(self, instance: Instance) -> None:
        async with instance.transition:
            if instance.gone:
                return
            self._fail_for_want(instance)
            instance.seen = True
            if instance.status == "PROVISIONING":
                instance.resource["status"] = "STAGING"
            self.write_serial(instance, "SeaBIOS (version 1.8.2-google)\nBooting from Hard Disk 0...\n")
            port = await self._machines.boot(self._hardware(instance), self._hypervisor(instance))
            items = [i for i in instance.resource["metadata"].get("items", []) if i["key"] != SSH_PORT_ITEM]
            instance.resource["metadata"] = metadata([*items, {"key": SSH_PORT_ITEM, "value": str(port)}])
            if instance.status != "STAGING":
                return  # Deletion was asked for while the guest came up; it waits for this lock.
            now = self._clock.now()
            status = {"effectiveInstanceMetadata": self._effective_keys(instance)}
            instance.resource |= {
                "status": "RUNNING",
                "lastStartTimestamp": timestamp(now),
                "resourceStatus": status,
            }
            if instance.order.max_run_seconds is not None:
                end = now + instance.order.max_run_seconds
                status["scheduling"] = {"terminationTimestamp": timestamp(end)}
                self._clock.call_at(end, lambda: self._out_of_time(instance))

    async def _be_taken_away(self, instance: Instance) -> None:
        """A Spot VM is preempted before it runs: its insert ends well, and it goes."""
        if instance.gone or instance.status != "PROVISIONING":
            return
        instance.resource["status"] = "STAGING"
        ends = self._vanish if instance.order.deletes_itself else self._power_down
        self._operations.begin(
            "compute.instances.preempted", instance.resource, f"zones/{instance.zone}", lambda: ends(instance)
        )
        instance.resource["status"] = "STOPPING"

    def _fail_for_want(self, instance: Instance) -> None:
        """Raise if the region's limits or the zone's capacity do not hold this instance, which counts already."""
        region = catalogue.region_of(instance.zone)
        use, wanted = self._use(region), _needs(instance.order)
        for metric, limit in self._limits(region).items():
            if wanted.get(metric, 0) and use[metric] > limit:
                raise quota_failure(metric, limit, region)
        gpu = instance.order.gpu
        wanted_here = 0 if gpu is None else self._gpus_in_use(instance.zone, gpu[0])
        if self._faults.holds("compute.capacity", instance.zone) or (
            gpu is not None and wanted_here > self.capacity[instance.zone, gpu[0]]
        ):
            raise self._stockout(instance)

    def _stockout(self, instance: Instance, form: str = "") -> OperationFailed:
        gpu, others = instance.order.gpu, list[str]()
        if gpu is not None:
            others = sorted(
                zone
                for (zone, kind), free in self.capacity.items()
                if kind == gpu[0] and zone != instance.zone and self._gpus_in_use(zone, kind) + gpu[1] <= free
                if catalogue.region_of(zone) == catalogue.region_of(instance.zone)
                if not self._faults.holds("compute.capacity", zone)
            )
        return stockout(self._links.project, instance.zone, instance.order.machine_type, gpu, others, form)

    def _hardware(self, instance: Instance) -> Hardware:
        gpu = instance.order.gpu
        return Hardware(
            instance_id=instance.id,
            name=instance.name,
            zone=instance.zone,
            machine_type=instance.order.machine_type,
            gpu_type=gpu[0] if gpu else None,
            gpu_count=gpu[1] if gpu else 0,
            boot_image=instance.order.image.path,
            account=instance.account,
        )

    def _hypervisor(self, instance: Instance) -> Hypervisor:
        def publish(namespace: str, key: str, value: str) -> bool:
            # Where they are not enabled, or a policy forbids them, the guest's write is refused too.
            if not _enables_guest_attributes(instance) or self._faults.holds(ATTRIBUTES_POLICY):
                return False
            instance.guest_attributes[namespace, key] = value
            return True

        return Hypervisor(
            metadata=lambda: self._effective_metadata(instance),
            may_connect=lambda source, port: self.may_connect(instance, source, port),
            publish=publish,
            powered_off=lambda: self._guest_powered_off(instance),
            print=lambda text: self.write_serial(instance, text),
            preempted=instance.preempted,
            token=lambda: self._token_of_vm(*instance.account) if instance.account else None,
        )

    def _effective_metadata(self, instance: Instance) -> dict[str, str]:
        """The metadata as the guest sees it: what is forced on it goes before the instance's own."""
        forced = {"enable-oslogin": "TRUE"} if self._faults.holds(OS_LOGIN_FORCED) else {}
        return instance.metadata() | forced

    def _effective_keys(self, instance: Instance) -> Resource:
        items = self._effective_metadata(instance)
        return {
            field: items.get(key, "").upper() == "TRUE"
            for field, key in (
                ("blockProjectSshKeysMetadataValue", "block-project-ssh-keys"),
                ("enableGuestAttributesMetadataValue", "enable-guest-attributes"),
                ("enableOsloginMetadataValue", "enable-oslogin"),
                ("serialPortEnableMetadataValue", "serial-port-enable"),
            )
        }

    def may_connect(self, instance: Instance, source: str, port: int) -> bool:
        """Whether the firewall lets ``source`` reach this TCP port of the instance now.

        From outside that takes an external address; Identity-Aware Proxy comes to the internal one.
        """
        tags = set(instance.resource["tags"].get("items", []))
        reachable = instance.order.external or source == IAP_SOURCE
        # One that is being preempted is on the network for as long as its guest runs.
        up = instance.status == "RUNNING" or (instance.status == "STOPPING" and instance.preempted.is_set())
        return reachable and up and self._admits(tags, source, port)

    # How it ends

    def _out_of_time(self, instance: Instance) -> None:
        if instance.gone or instance.status != "RUNNING" or self._faults.holds(HARD_END_FORGOTTEN):
            return
        if instance.order.deletes_itself:
            self.delete(instance)
        else:
            self.stop(instance)

    def _guest_powered_off(self, instance: Instance) -> None:
        if instance.status == "RUNNING":
            self.stop(instance)

    async def _power_down(self, instance: Instance) -> None:
        async with instance.transition:
            if instance.gone or instance.status != "STOPPING":
                return
            await self._machines.cut_power(instance.id, delete=False)
            for interface in instance.resource["networkInterfaces"]:
                for config in interface.get("accessConfigs", []):
                    config.pop("natIP", None)
            instance.resource |= {"status": "TERMINATED", "lastStopTimestamp": timestamp(self._clock.now())}
            instance.resource.pop("resourceStatus", None)

    async def _let_die(self, instance: Instance) -> None:
        """What a delete does; while VMs refuse to die, its operation does not end."""
        if self._faults.holds(IMMORTAL, instance.zone):
            while self._faults.holds(IMMORTAL, instance.zone):
                await asyncio.sleep(0.05)
            await asyncio.sleep(DYING_SECONDS)
        await self._vanish(instance)

    async def _vanish(self, instance: Instance) -> None:
        async with instance.transition:
            instance.gone = True
            await self._machines.cut_power(instance.id, delete=True)
            self._remove(instance, with_disk=instance.order.auto_delete)

    def _remove(self, instance: Instance, *, with_disk: bool) -> None:
        instance.gone = True
        with contextlib.suppress(ValueError):
            self._instances.remove(instance)
        link = instance.resource["selfLink"]
        if with_disk:
            self._disks = [disk for disk in self._disks if link not in disk["users"]]
        for disk in self._disks:
            if link in disk["users"]:
                disk["users"] = []

    # Limits

    def _limits(self, region: str | None) -> dict[str, float]:
        """The limits of a region, or of the whole project."""
        limits = self.region_quotas[region] if region else self.project_quotas
        if region and self._faults.holds("compute.region-quota", region):
            return {metric: 0.0 if metric.endswith("_GPUS") else limit for metric, limit in limits.items()}
        if not region and self._faults.holds("compute.project-quota"):
            return {**limits, "GPUS_ALL_REGIONS": 0.0}
        return limits

    def _use(self, region: str | None) -> dict[str, int]:
        """What counts against the limits of a region, or of the whole project."""
        use: dict[str, int] = {}
        for instance in self._instances:
            if region not in (None, catalogue.region_of(instance.zone)):
                continue
            using = instance.status in USING_RESOURCES
            for metric, amount in _needs(instance.order).items():
                if using or metric.endswith("_TOTAL_GB") or metric == "INSTANCES":
                    use[metric] = use.get(metric, 0) + amount
        return use

    def _gpus_in_use(self, zone: str, kind: str) -> int:
        gpus = [i.order.gpu for i in self._instances if i.zone == zone and i.status in USING_RESOURCES]
        return sum(gpu[1] for gpu in gpus if gpu is not None and gpu[0] == kind)

    def _change(self, instance: Instance, kind: str, changes: Resource, failure: OperationFailed | None) -> Operation:
        """Change at once, so that a second change with the same fingerprint is refused; the operation only follows."""
        before = {key: instance.resource.get(key, {}) for key in changes}
        instance.resource |= changes

        async def nothing() -> None:
            pass

        return self._operations.begin(
            kind,
            instance.resource,
            f"zones/{instance.zone}",
            nothing,
            undo=lambda: instance.resource.update(before),
            failure=failure,
        )

    def _serial_file(self, instance: Instance, port: int) -> Path:
        return self._folder / f"serial-{instance.name}-{instance.id}-{port}.txt"


def _needs(order: Order) -> dict[str, int]:
    """What an instance counts against the limits, by metric."""
    cpus = order.machine.cpus
    needs = {
        "CPUS_ALL_REGIONS": cpus,
        "INSTANCES": 1,
        "IN_USE_ADDRESSES": int(order.external),
        catalogue.DISK_TYPES[order.disk_type][1]: order.disk_gb,
    }
    if order.machine.cpu_quota is not None:
        needs[order.machine.cpu_quota] = cpus
    if order.gpu is not None:
        kind, count = order.gpu
        metric = catalogue.GPUS[kind].spot_quota if order.spot else catalogue.GPUS[kind].quota
        needs["GPUS_ALL_REGIONS"] = count
        if metric is not None:
            needs[metric] = count
    return needs


def _enables_guest_attributes(instance: Instance) -> bool:
    return instance.metadata().get("enable-guest-attributes", "").upper() == "TRUE"
