"""Reads the body of an instance insert and refuses what Compute Engine refuses."""

from __future__ import annotations

import re
from dataclasses import dataclass

from glgpu.rehearsal.cloud_catalogue import (
    DISK_TYPES,
    GPUS,
    IMAGES,
    ZONES,
    Image,
    MachineType,
    region_of,
)
from glgpu.rehearsal.cloud_catalogue import machine_type as machine_type_of
from glgpu.rehearsal.compute_errors import ApiError, incompatible, invalid, not_found, not_served
from glgpu.rehearsal.compute_firewalls import check_tag
from glgpu.rehearsal.compute_resources import Resource, malformed_link, reference, short

SHORTEST_RUN, LONGEST_RUN = 30, 120 * 24 * 3600
"""Seconds that ``maxRunDuration`` may have."""

LONGEST_METADATA_VALUE, MOST_METADATA = 256 * 1024, 512 * 1024
MOST_LABELS, MOST_TAGS = 64, 64
LARGEST_DISK_GB = 65536


@dataclass(frozen=True)
class Order:
    """What a legal insert asks for.

    Attributes:
        machine_type: Short name.
        machine: The same, in the catalogue.
        gpu: Accelerator type and number, or None.
        spot: Whether the instance may be taken away.
        image: Boot image.
        disk_name: Name of the boot disk.
        disk_gb: Its size.
        disk_type: Short name.
        auto_delete: Whether the disk goes with the instance.
        external: Whether the instance gets an external address.
        max_run_seconds: Its hard end, counted from RUNNING, or None.
        deletes_itself: Whether it is deleted then, and not stopped.
    """

    machine_type: str
    machine: MachineType
    gpu: tuple[str, int] | None
    spot: bool
    image: Image
    disk_name: str
    disk_gb: int
    disk_type: str
    auto_delete: bool
    external: bool
    max_run_seconds: int | None
    deletes_itself: bool


def read_order(body: Resource, zone: str, project: str) -> Order:
    """Check an insert body, which already follows the API description.

    Raises:
        ApiError: Google's refusal.
    """
    if zone not in ZONES:
        raise invalid("zone", zone, "Unknown zone.")
    if "machineType" not in body:
        raise ApiError(400, "required", "Required field 'resource.machineType' not specified")
    machine_type = _in_zone(body["machineType"], "resource.machineType", "machineTypes", zone, project)
    machine = machine_type_of(machine_type)
    if machine is None or not machine.offered_in(zone):
        problem = f"Machine type with name '{machine_type}' does not exist in zone '{zone}'."
        raise invalid("resource.machineType", body["machineType"], problem)
    gpu = _gpu(body.get("guestAccelerators", []), machine_type, machine, zone, project)
    spot, max_run = _scheduling(body.get("scheduling", {}), has_gpu=gpu is not None)
    check_labels(body.get("labels", {}))
    check_metadata(body.get("metadata", {}))
    check_tags(body.get("tags", {}).get("items", []))
    external = _network(body.get("networkInterfaces", []), zone, project)
    disk = _boot_disk(body.get("disks", []))
    disk_type = _disk_type(disk, machine_type, machine, zone, project)
    image = find_image(disk["initializeParams"].get("sourceImage", ""), project)
    size = int(disk["initializeParams"].get("diskSizeGb", disk.get("diskSizeGb", image.size_gb)))
    if not image.size_gb <= size <= LARGEST_DISK_GB:
        raise invalid(
            "resource.disks[0].initializeParams.diskSizeGb",
            size,
            f"Requested disk size cannot be smaller than the image size ({image.size_gb} GB)",
        )
    return Order(
        machine_type=machine_type,
        machine=machine,
        gpu=gpu,
        spot=spot,
        image=image,
        disk_name=disk["initializeParams"].get("diskName", body["name"]),
        disk_gb=size,
        disk_type=disk_type,
        auto_delete=disk.get("autoDelete", False),
        external=external,
        max_run_seconds=max_run,
        deletes_itself=body.get("scheduling", {}).get("instanceTerminationAction") == "DELETE",
    )


def check_labels(labels: dict[str, str]) -> None:
    """Refuse labels that Google refuses.

    Raises:
        ApiError: Google's refusal.
    """
    allowed = (
        "can only contain lowercase letters, numeric characters, underscores and dashes. The {} can be at most 63 "
        "characters long. International characters are allowed."
    )
    if len(labels) > MOST_LABELS:
        raise invalid("resource.labels", "", f"There can be at most {MOST_LABELS} labels.")
    for key, value in labels.items():
        if not (_label_text(key) and key[:1].isalpha()):
            problem = f"Label key '{key}' violates format constraints. The key must start with a lowercase character, "
            raise invalid("resource.labels", "", problem + allowed.format("key"))
        if not _label_text(value):
            problem = f"Label value '{value}' violates format constraints. The value "
            raise invalid("resource.labels", "", problem + allowed.format("value"))


def check_metadata(metadata: Resource) -> None:
    """Refuse metadata that Google refuses.

    Raises:
        ApiError: Google's refusal.
    """
    seen: set[str] = set()
    total = 0
    for index, item in enumerate(metadata.get("items", [])):
        key, value = item.get("key", ""), item.get("value", "")
        field = f"resource.metadata.items[{index}]"
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", key):
            raise invalid(f"{field}.key", key, "Must be a match of regex '[a-zA-Z0-9-_]{1,128}'")
        if key in seen:
            raise invalid("resource.metadata", "", f"Metadata has duplicate keys: {key}")
        seen.add(key)
        if len(value) > LONGEST_METADATA_VALUE:
            raise ApiError(
                413,
                "fieldTooLarge",
                f"Value for field '{field}.value' is too large: maximum size {LONGEST_METADATA_VALUE} character(s); "
                f"actual size {len(value)}.",
            )
        total += len(key.encode()) + len(value.encode())
    if total > MOST_METADATA:
        raise invalid("resource.metadata", "", f"Metadata size must not exceed {MOST_METADATA} bytes.")


def check_tags(tags: list[str]) -> None:
    """Refuse network tags that Google refuses.

    Raises:
        ApiError: Google's refusal.
    """
    if len(tags) > MOST_TAGS:
        raise invalid("resource.tags", "", f"There can be at most {MOST_TAGS} tags.")
    for index, tag in enumerate(tags):
        check_tag(f"resource.tags.items[{index}]", tag)


def find_image(link: str, project: str) -> Image:
    """The image that a link or the link of a family means.

    Raises:
        ApiError: There is none.
    """
    field = "resource.disks[0].initializeParams.sourceImage"
    if not link:
        raise ApiError(400, "required", f"Required field '{field}' not specified")
    if "/images/family/" in link or "/imageFamilyViews/" in link:
        # gcloud names the families of Google's public image projects by zone.
        view = "/imageFamilyViews/" in link
        owner, *_, family = reference(
            link, field, "zones/*/imageFamilyViews/*" if view else "global/images/family/*", project
        )
        image = image_of_family(owner, family)
        path = f"projects/{owner}/global/images/family/{family}"
    else:
        owner, name = reference(link, field, "global/images/*", project)
        image = next((i for i in IMAGES if (i.project, i.name) == (owner, name)), None)
        path = f"projects/{owner}/global/images/{name}"
    if image is None:
        raise not_found(path)
    return image


def image_of_family(project: str, family: str) -> Image | None:
    """The newest image of a family."""
    return next((i for i in IMAGES if (i.project, i.family) == (project, family)), None)


def _in_zone(link: str, field: str, collection: str, zone: str, project: str) -> str:
    owner, where, name = reference(link, field, f"zones/*/{collection}/*", project)
    if owner != project or where != zone:
        raise invalid(field, link, f"The referenced resource is not in zone '{zone}' of project '{project}'.")
    return name


def _gpu(
    accelerators: list[Resource], machine_type: str, machine: MachineType, zone: str, project: str
) -> tuple[str, int] | None:
    if not accelerators:
        return machine.gpu
    if len(accelerators) > 1:
        raise invalid("resource.guestAccelerators", "", "Only one accelerator type is supported per instance.")
    field = "resource.guestAccelerators[0]"
    link, count = accelerators[0].get("acceleratorType", ""), accelerators[0].get("acceleratorCount", 0)
    if not link:
        raise malformed_link(f"{field}.acceleratorType", link)
    kind = _in_zone(link, f"{field}.acceleratorType", "acceleratorTypes", zone, project)
    gpu = GPUS.get(kind)
    if gpu is None or zone not in gpu.zones:
        problem = f"Accelerator type with name '{kind}' does not exist in zone '{zone}'."
        raise invalid(f"{field}.acceleratorType", link, problem)
    if machine.gpu == (kind, count):
        return machine.gpu
    if machine.gpu is not None or not machine.takes_gpus or not gpu.max_cpus:
        raise incompatible(machine_type, kind)
    if count not in gpu.max_cpus:
        known = ", ".join(map(str, gpu.max_cpus))
        raise invalid(
            f"{field}.acceleratorCount", count, f"The number of {kind} accelerators must be one of [{known}]."
        )
    if machine.cpus > gpu.max_cpus[count]:
        raise incompatible(machine_type, kind)
    return kind, count


def _scheduling(scheduling: Resource, *, has_gpu: bool) -> tuple[bool, int | None]:
    """Whether it is a Spot VM, and its hard end in seconds."""
    field = "resource.scheduling"
    spot = scheduling.get("provisioningModel") == "SPOT"
    preemptible = spot or scheduling.get("preemptible", False)
    # Compute Engine's own defaults: a VM that may be taken away anyway is not migrated.
    maintenance = scheduling.get("onHostMaintenance", "TERMINATE" if preemptible else "MIGRATE")
    if has_gpu and maintenance != "TERMINATE":
        raise ApiError(400, "badRequest", "Instances with guest accelerators do not support live migration.")
    if preemptible and maintenance != "TERMINATE":
        problem = "Scheduling must have onHostMaintenance be TERMINATE when preemptible is true."
        raise invalid(f"{field}.onHostMaintenance", maintenance, problem)
    if preemptible and scheduling.get("automaticRestart", False):
        problem = "Scheduling must have automaticRestart be false when preemptible is true."
        raise invalid(f"{field}.automaticRestart", "true", problem)
    if scheduling.get("provisioningModel", "SPOT") != "SPOT" and scheduling.get("preemptible", False):
        raise invalid(f"{field}.preemptible", "true", "Must be false when the provisioning model is not SPOT.")
    limited = "maxRunDuration" in scheduling or "terminationTime" in scheduling
    if "instanceTerminationAction" in scheduling and not (spot or limited):
        problem = "Only allowed for Spot VMs and for instances with a limited run time."
        raise invalid(f"{field}.instanceTerminationAction", scheduling["instanceTerminationAction"], problem)
    if limited and "instanceTerminationAction" not in scheduling:
        raise ApiError(400, "required", f"Required field '{field}.instanceTerminationAction' not specified")
    if "terminationTime" in scheduling:
        raise not_served("terminationTime")
    if "maxRunDuration" not in scheduling:
        return preemptible, None
    if preemptible and not spot:
        raise invalid(f"{field}.maxRunDuration", "", "Not allowed for legacy preemptible instances.")
    seconds = int(scheduling["maxRunDuration"].get("seconds", 0))
    if not SHORTEST_RUN <= seconds <= LONGEST_RUN:
        problem = f"Must be between {SHORTEST_RUN} seconds and {LONGEST_RUN // 86400} days."
        raise invalid(f"{field}.maxRunDuration", seconds, problem)
    return preemptible, seconds


def _network(interfaces: list[Resource], zone: str, project: str) -> bool:
    """Check the one interface; tells whether it has an external address."""
    if not interfaces:
        raise invalid("resource.networkInterfaces", "", "At least one network interface is required.")
    if len(interfaces) > 1:
        raise not_served("A second network interface")
    field, interface = "resource.networkInterfaces[0]", interfaces[0]
    network = interface.get("network", "global/networks/default")
    if reference(network, f"{field}.network", "global/networks/*", project) != (project, "default"):
        raise invalid(f"{field}.network", network, "The referenced network resource cannot be found.")
    subnetwork = interface.get("subnetwork")
    if subnetwork is not None:
        named = reference(subnetwork, f"{field}.subnetwork", "regions/*/subnetworks/*", project)
        if named != (project, region_of(zone), "default"):
            raise invalid(f"{field}.subnetwork", subnetwork, "The referenced subnetwork resource cannot be found.")
    configs = interface.get("accessConfigs", [])
    if len(configs) > 1:
        raise invalid(f"{field}.accessConfigs", "", "At most one access config currently supported.")
    if any("natIP" in config for config in configs):
        raise not_served("A static external address")
    return bool(configs)


def _boot_disk(disks: list[Resource]) -> Resource:
    if not disks or not disks[0].get("boot", False):
        raise invalid("resource.disks", "", "A boot disk must be specified as the first disk.")
    if len(disks) > 1:
        raise not_served("A second disk")
    if "source" in disks[0]:
        raise not_served("A boot disk that exists already")
    if "initializeParams" not in disks[0]:
        raise ApiError(400, "required", "Required field 'resource.disks[0].initializeParams' not specified")
    return disks[0]


def _disk_type(disk: Resource, machine_type: str, machine: MachineType, zone: str, project: str) -> str:
    field = "resource.disks[0].initializeParams.diskType"
    link = disk["initializeParams"].get("diskType", f"zones/{zone}/diskTypes/pd-standard")
    kind = _in_zone(link, field, "diskTypes", zone, project)
    if kind not in DISK_TYPES:
        raise invalid(field, link, f"Disk type with name '{short(link)}' does not exist in zone '{zone}'.")
    if kind not in machine.disk_types:
        raise incompatible(machine_type, kind)
    return kind


def _label_text(text: str) -> bool:
    return len(text) <= 63 and all(c in "_-" or c.isdecimal() or (c.isalpha() and c == c.lower()) for c in text)
