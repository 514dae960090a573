"""The VM: whether the candidates are offered where they are wanted, and how much of each the project may have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from glgpu import links
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import MachineType, Quota
from glgpu.machines import DEFAULT_IMAGE, Candidate
from glgpu.steps.checks.facts import Facts
from glgpu.steps.checks.judging import Verdict, check, error, failed, unknown, warning

NEEDS = "Google credentials"
PACKED_TIMES = 3.0
"""How much more room a container image takes while it is unpacked: its layers, packed, and what is in them."""
FIREWALL_RULES = 2
"""How many firewall rules a run makes."""
MORE = f"ask for more under {links.QUOTAS.url}"


@check("candidates", "machine", "whether gpu, count, type and zones make a VM that exists", "glgpu.yml")
def candidates(facts: Facts) -> Iterator[Verdict]:
    """By the table of GPUs that comes with glgpu."""
    try:
        facts.candidates.get()
    except Failure as failure:
        if failure.klass not in (ErrorClass.CONFIG, ErrorClass.NOT_AVAILABLE):
            raise
        if failure is not _settings_failure(facts):
            yield failed(failure)


@check("zones", "machine", "whether the zones exist and are up", NEEDS)
def zones(facts: Facts) -> Iterator[Verdict]:
    """Google says so of each."""
    known = facts.zones.get()

    def why(candidate: Candidate) -> str:
        zone = known.get(candidate.zone)
        if zone is None:
            return f"there is no zone {candidate.zone}"
        return "" if zone.status == "UP" else f"the zone {candidate.zone} is {zone.status}"

    yield from _lost(facts, ErrorClass.NOT_AVAILABLE, why, "name others in machine.zones; `glgpu gpus` lists them")


@check("accelerators", "machine", "whether each zone has the GPU, and as many in one VM", NEEDS)
def accelerators(facts: Facts) -> Iterator[Verdict]:
    """By Compute Engine's own list."""
    most = {(one.name, one.zone): one.most_per_vm for one in facts.accelerators.get()}

    def why(candidate: Candidate) -> str:
        if candidate.gpu is None:
            return ""
        allowed = most.get((candidate.gpu, candidate.zone), 0)
        if not allowed:
            return f"{candidate.zone} has no {candidate.gpu}"
        return f"{candidate.zone} has at most {allowed} {candidate.gpu} in one VM" if candidate.count > allowed else ""

    yield from _lost(facts, ErrorClass.NOT_AVAILABLE, why, "name other zones or GPUs; `glgpu gpus` lists them")


@check("machine-types", "machine", "whether each zone has the machine type, with the GPUs that count says", NEEDS)
def machine_types(facts: Facts) -> Iterator[Verdict]:
    """A type that brings its GPUs along brings a number of them."""
    offered = _offered(facts)

    def why(candidate: Candidate) -> str:
        found = offered.get((candidate.machine_type, candidate.zone))
        if found is None:
            return f"{candidate.zone} has no machine type {candidate.machine_type}"
        if candidate.gpu and not candidate.attached and found.gpus != candidate.count:
            return f"{candidate.machine_type} comes with {found.gpus} GPUs, machine.count is {candidate.count}"
        return ""

    remedy = "leave machine.type out, or name other zones; `glgpu gpus` lists what fits"
    yield from _lost(facts, ErrorClass.NOT_AVAILABLE, why, remedy)


@check("disk-types", "machine", "whether each zone has the disk type", NEEDS)
def disk_types(facts: Facts) -> Iterator[Verdict]:
    """By Compute Engine's own list."""
    offered = facts.disk_types.get()

    def why(candidate: Candidate) -> str:
        there = candidate.disk_type in offered.get(candidate.zone, set())
        return "" if there else f"{candidate.zone} has no disk type {candidate.disk_type}"

    yield from _lost(facts, ErrorClass.NOT_AVAILABLE, why, "leave machine.disk_type out, or name other zones")


@check("gpu-quota", "machine", "whether the region's limit on the GPU has room, spot's own for spot", NEEDS)
def gpu_quota(facts: Facts) -> Iterator[Verdict]:
    """``NVIDIA_..._GPUS``, and ``PREEMPTIBLE_NVIDIA_..._GPUS`` for spot VMs."""
    regions, unseen = facts.regions.get(), set()

    def why(candidate: Candidate) -> str:
        metric, region = candidate.gpu_quota, regions.get(candidate.region)
        if metric is None or region is None:
            return ""
        if metric not in region.quotas:
            unseen.add(f"{metric} in {region.name}")
        return _short(region.quotas.get(metric), candidate.count)

    yield from _lost(facts, ErrorClass.QUOTA_REGION, why, MORE)
    if unseen:
        yield unknown(
            f"Compute Engine does not tell the limits {', '.join(sorted(unseen))}",
            f"look for the GPU under {links.QUOTAS.url}",
        )


@check("gpu-quota-everywhere", "machine", "whether GPUS_ALL_REGIONS has room", NEEDS)
def gpu_quota_everywhere(facts: Facts) -> Iterator[Verdict]:
    """Often 0 in a new project; a project without it has no such limit."""
    quota = facts.cloud_project.get().quotas.get("GPUS_ALL_REGIONS")
    yield from _lost(facts, ErrorClass.QUOTA_GLOBAL, lambda one: _short(quota, one.count), MORE)


@check("cpu-quota", "machine", "whether the limits on vCPUs have room, in the region and in all of them", NEEDS)
def cpu_quota(facts: Facts) -> Iterator[Verdict]:
    """The limit that the machine family counts against, and ``CPUS_ALL_REGIONS``."""
    regions = facts.regions.get()
    everywhere = facts.cloud_project.get().quotas.get("CPUS_ALL_REGIONS")

    def why(candidate: Candidate) -> str:
        region, vcpus = regions.get(candidate.region), candidate.vcpus
        if region is None or vcpus is None:
            return ""
        spot = region.quotas.get("PREEMPTIBLE_CPUS")
        # A limit for spot VMs counts from the day on which somebody has asked for one.
        metric = "PREEMPTIBLE_CPUS" if candidate.spot and spot and spot.limit else candidate.cpu_quota
        return _short(region.quotas.get(metric or ""), vcpus) or _short(everywhere, vcpus)

    yield from _lost(facts, ErrorClass.QUOTA_REGION, why, MORE)


@check("disk-quota", "machine", "whether the region's limit on disks has room", NEEDS)
def disk_quota(facts: Facts) -> Iterator[Verdict]:
    """``SSD_TOTAL_GB`` for balanced and SSD disks."""
    regions, size = facts.regions.get(), facts.settings.get().machine.disk_gb

    def why(candidate: Candidate) -> str:
        region = regions.get(candidate.region)
        return _short(region.quotas.get(candidate.disk_quota or ""), size) if region else ""

    yield from _lost(facts, ErrorClass.QUOTA_REGION, why, f"lower machine.disk_gb, or {MORE}")


@check("address-quota", "machine", "whether the region's limit on addresses has room", NEEDS)
def address_quota(facts: Facts) -> Iterator[Verdict]:
    """``IN_USE_ADDRESSES``, where the VM gets one."""
    if not facts.settings.get().network.external_ip:
        return
    regions = facts.regions.get()

    def why(candidate: Candidate) -> str:
        region = regions.get(candidate.region)
        return _short(region.quotas.get("IN_USE_ADDRESSES"), 1) if region else ""

    yield from _lost(facts, ErrorClass.QUOTA_REGION, why, MORE)


@check("firewall-quota", "machine", "whether the project may have a run's two firewall rules", NEEDS)
def firewall_quota(facts: Facts) -> Iterator[Verdict]:
    """``FIREWALLS``, a limit of the whole project."""
    short = _short(facts.cloud_project.get().quotas.get("FIREWALLS"), FIREWALL_RULES)
    if short:
        yield error(ErrorClass.QUOTA_GLOBAL, short, f"remove rules that nobody needs, or {MORE}")


@check("boot-image", "machine", "whether the boot image is there and ready", NEEDS)
def boot_image(facts: Facts) -> Iterator[Verdict]:
    """Google takes image families away, some time after it has deprecated them."""
    path = facts.settings.get().machine.image or DEFAULT_IMAGE
    image = facts.boot_image.get()
    remedy = "see `gcloud compute images list --project=deeplearning-platform-release`, and set machine.image"
    if image is None:
        yield error(ErrorClass.IMAGE, f"there is no boot image {path}", remedy)
    elif image.status != "READY" or image.deprecation in ("OBSOLETE", "DELETED"):
        yield error(ErrorClass.IMAGE, f"the boot image {image.path} is {image.deprecation or image.status}", remedy)
    elif image.deprecation:
        instead = f"set machine.image to {image.replacement}" if image.replacement else remedy
        yield warning(ErrorClass.IMAGE, f"the boot image {image.path} is {image.deprecation}", instead)
    elif image.architecture == "ARM64":
        yield error(ErrorClass.IMAGE, f"the boot image {image.path} is for ARM, the machine types are x86", remedy)


@check("driver", "machine", "whether the boot image's NVIDIA driver knows the GPU", "glgpu.yml")
def driver(facts: Facts) -> Iterator[Verdict]:
    """By the branch in the image's name, where it has one there."""
    named = re.search(r"nvidia-([0-9]{3})\b", facts.settings.get().machine.image or DEFAULT_IMAGE)
    if named is None:
        return
    branch = int(named[1])

    def why(candidate: Candidate) -> str:
        known = candidate.driver
        if known is None or known.first <= branch <= (known.last or branch):
            return ""
        newest = f" to {known.last}" if known.last else " on"
        return f"the boot image has NVIDIA driver {branch}, {candidate.gpu} needs one from {known.first}{newest}"

    yield from _lost(facts, ErrorClass.DRIVER, why, "set machine.image to a family with such a driver")


@check("disk-size", "machine", "whether the disk holds the boot image", NEEDS)
def disk_size(facts: Facts) -> Iterator[Verdict]:
    """A disk may be larger than its image, never smaller."""
    image, size = facts.boot_image.get(), facts.settings.get().machine.disk_gb
    if image is not None and size < image.disk_gb:
        yield error(
            ErrorClass.CONFIG,
            f"machine.disk_gb is {size}, the boot image alone needs {image.disk_gb}",
            f"raise machine.disk_gb to {image.disk_gb + 50} or more: the container image lies there too",
        )


@check("disk-room", "machine", "whether the disk also holds the container image", f"{NEEDS}, the registry")
def disk_room(facts: Facts) -> Iterator[Verdict]:
    """An estimate: what the layers weigh, packed, three times, beside a full boot image."""
    image, size = facts.boot_image.get(), facts.settings.get().machine.disk_gb
    wanted = facts.manifest.get().packed_gb * PACKED_TIMES
    if image is not None and image.disk_gb <= size < image.disk_gb + wanted:
        yield warning(
            ErrorClass.CONFIG,
            f"machine.disk_gb is {size}: the boot image has {image.disk_gb}, the container image wants {wanted:.0f}",
            f"raise machine.disk_gb to {image.disk_gb + wanted:.0f} or more",
        )


def _settings_failure(facts: Facts) -> Failure | None:
    try:
        facts.settings.get()
    except Failure as failure:
        return failure
    return None


def _lost(facts: Facts, klass: ErrorClass, why: Callable[[Candidate], str], remedy: str) -> Iterator[Verdict]:
    """What keeps candidates from being had: an error where none is left, else a warning."""
    reasons = [why(one) for one in facts.candidates.get()]
    say = error if all(reasons) else warning
    for reason in dict.fromkeys(filter(None, reasons)):
        yield say(klass, reason, remedy)


def _offered(facts: Facts) -> Mapping[tuple[str, str], MachineType]:
    return {(one.name, one.zone): one for one in facts.machine_types.get()}


def _short(quota: Quota | None, wanted: float) -> str:
    """Why a limit has no room; empty where it has, or where there is no such limit."""
    if quota is None or quota.left >= wanted:
        return ""
    where = f" in {quota.region}" if quota.region else ""
    return f"the limit {quota.metric}{where} has room for {quota.left:g} of {quota.limit:g}, a run needs {wanted:g}"


CHECKS = (
    candidates, zones, accelerators, machine_types, disk_types, gpu_quota, gpu_quota_everywhere, cpu_quota, disk_quota,
    address_quota, firewall_quota, boot_image, driver, disk_size, disk_room,
)  # fmt: skip
