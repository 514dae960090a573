"""The candidates that follow from the settings: every way to get a VM, best first. Values only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from glgpu.errors import ErrorClass, Failure
from glgpu.gpu_offers import Driver, Gpu, estimated, family_of, nearest, offers, shape_of
from glgpu.settings import Machine

DEFAULT_IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580"
"""A boot image with Docker, the NVIDIA driver and its container toolkit (https://cloud.google.com/deep-learning-vm)."""
OLDEST_DISK = "pd-balanced"
"""The boot disk of a machine family that the offers do not know."""


@dataclass(frozen=True)
class Candidate:
    """One way to get a VM.

    Attributes:
        gpu: Accelerator type, or None.
        count: GPUs.
        machine_type: Machine type.
        attached: Whether the GPU is ordered beside the machine type (N1) or comes with it.
        spot: Whether it may be preempted.
        zone: Where.
        disk_type: Boot disk type.
        image: Boot image.
        price: Estimate for machine, GPUs and boot disk in US dollars per hour; None: not known.
        vcpus: Number of vCPUs; None: not known.
        gpu_quota: Regional limit that the GPUs count against, or None.
        gpu_family: The limit's dimension ``gpu_family``, where it has one and regions.get does not show it.
        cpu_quota: Regional limit that the vCPUs count against, or None where the API shows none.
        disk_quota: Regional limit that the boot disk's GB count against, or None where it is not known.
        driver: Which NVIDIA drivers know the GPU, or None.
        gvnic: Whether the image needs gVNIC's driver.
    """

    gpu: str | None
    count: int
    machine_type: str
    attached: bool
    spot: bool
    zone: str
    disk_type: str
    image: str
    price: float | None = None
    vcpus: int | None = None
    gpu_quota: str | None = None
    gpu_family: str = ""
    cpu_quota: str | None = None
    disk_quota: str | None = None
    driver: Driver | None = None
    gvnic: bool = False

    @property
    def region(self) -> str:
        """The region of its zone."""
        return region_of(self.zone)

    def __str__(self) -> str:
        price = "" if self.price is None else f", about {dollars(self.price)} USD per hour"
        return f"{_wish(self.gpu, self.count, self.machine_type, self.spot)}, {self.zone}{price}"


@dataclass(frozen=True)
class Cut:
    """A way to get a VM that is not gone.

    Attributes:
        what: The way.
        why: What is against it.
        reason: The kind of reason.
        price: Its estimate in US dollars per hour, where that is the reason and it is known.
    """

    what: str
    why: str
    reason: Literal["machine", "sale", "price"]
    price: float | None = None

    def __str__(self) -> str:
        return f"left out: {self.what}: {self.why}"


def candidates(machine: Machine, zones: Sequence[str]) -> list[Candidate]:
    """Every way to get a VM that the settings allow, best first.

    The order is the user's, and whoever tries them keeps to it: GPU by GPU as ``machine.gpu`` names them; for each GPU
    spot before standard where both will do; for each of these zone by zone. So a dearer GPU, or a standard VM, comes
    only after the one before it was not to be had in any of the zones.

    Args:
        machine: The settings.
        zones: Zones in order of preference.

    Returns:
        At least one. Left out is what ``cuts`` tells: what the machine type or the disk type does not go with, what
        is not sold that way, what costs more than ``machine.max_price`` or may do so.

    Raises:
        Failure: NOT_AVAILABLE, when a GPU is not known, was shut down, does not come in that number, or not as spot
            or standard as the settings want it; CONFIG without zones, or when nothing else is left.
    """
    found, cut = _sorted(machine, zones)
    if not found:
        raise _nothing_left(machine, cut)
    return found


def cuts(machine: Machine) -> list[str]:
    """What the settings name and candidates leave out, in lines; the end of a GPU that is announced, too.

    Raises:
        Failure: As of ``candidates``; regions do for zones here.
    """
    found, cut = _sorted(machine, machine.zones or machine.regions)
    if not found:
        raise _nothing_left(machine, cut)
    gpus = [offers().gpus[name] for name in dict.fromkeys(one.gpu for one in found) if name is not None]
    ends = [
        f"{gpu.name} ends on Compute Engine on {gpu.end.when}; Google names {' or '.join(gpu.end.successors)} instead"
        for gpu in gpus
        if gpu.end is not None
    ]
    return [*dict.fromkeys(str(one) for one in cut), *ends]


def region_of(place: str) -> str:
    """``europe-west4`` for ``europe-west4-a``, and for itself."""
    return re.sub(r"-[a-z]$", "", place)


def dollars(price: float) -> str:
    """A price as people write it: ``0.31``, ``4.00``."""
    return f"{price:.2f}"


def _sorted(machine: Machine, places: Sequence[str]) -> tuple[list[Candidate], list[Cut]]:
    """Every way that the settings name: those to go, best first, and those left out."""
    if not places:
        raise Failure(
            ErrorClass.CONFIG, "no zone to look for a VM in", "name machine.zones or machine.regions in glgpu.yml"
        )
    found: list[Candidate] = []
    cut: list[Cut] = []
    for gpu, machine_type in _machines(machine):
        count = machine.count if gpu else 0
        problem = _misfit(machine, gpu, machine_type)
        if problem:
            cut.append(Cut(_wish(gpu.name if gpu else None, count, machine_type), problem, "machine"))
            continue
        for spot in {"only": [True], "prefer": [True, False], "never": [False]}[machine.spot]:
            for one in _in_places(machine, gpu, machine_type, spot, places):
                if isinstance(one, Cut):
                    cut.append(one)
                else:
                    found.append(one)
    return found, cut


def _machines(machine: Machine) -> Iterator[tuple[Gpu | None, str]]:
    """Each GPU of the settings with its machine type.

    Raises:
        Failure: NOT_AVAILABLE.
    """
    for name in machine.gpu:
        if name == "none":
            yield None, machine.type or ""
            continue
        gpu = known_gpu(name)
        if machine.count not in gpu.counts:
            counts = ", ".join(map(str, gpu.counts))
            raise Failure(
                ErrorClass.NOT_AVAILABLE,
                f"machine.count: {name} does not come as {machine.count} per VM",
                f"set machine.count to one of {counts}",
            )
        yield gpu, machine.type or gpu.machine_for(machine.count)


def known_gpu(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        Failure: NOT_AVAILABLE, naming the nearest one, or the successor of one that was shut down.
    """
    here = offers()
    if name in here.gpus:
        return here.gpus[name]
    meant = nearest(name, [*here.gpus, *here.retired])
    if meant is not None and meant in here.retired:
        end = here.retired[meant]
        raise Failure(
            ErrorClass.NOT_AVAILABLE,
            f"machine.gpu: {meant} was shut down on Compute Engine on {end.when}",
            f"name its successor: {' or '.join(end.successors)}; `glgpu gpus` lists what there is",
        )
    raise Failure(
        ErrorClass.NOT_AVAILABLE,
        f"machine.gpu: {name!r} is not known{f'; did you mean {meant}?' if meant else ''}",
        f"known: {', '.join(here.gpus)}; `glgpu gpus` tells more",
    )


def _misfit(machine: Machine, gpu: Gpu | None, machine_type: str) -> str:
    """Why a GPU, a machine type and a disk type do not go together; empty where they do."""
    if gpu is not None:
        problem = _misfit_attached(machine, gpu, machine_type) if gpu.attached else _bundled(machine, gpu, machine_type)
        if problem:
            return problem
    family = offers().families.get(family_of(machine_type))
    wanted = machine.disk_type
    if family is not None and wanted in offers().disk_quotas and wanted not in family.disks:
        return f"{machine_type} does not take {wanted}, but {' or '.join(family.disks)} (machine.disk_type)"
    return ""


def _misfit_attached(machine: Machine, gpu: Gpu, machine_type: str) -> str:
    if family_of(machine_type) != "n1":
        return f"machine.type: {machine_type} cannot carry {gpu.name}, which goes with N1"
    limit, shape = gpu.limits[machine.count], shape_of(machine_type)
    if shape and (shape.vcpus > limit.most_vcpus or shape.memory_gb > limit.most_memory_gb):
        most = f"{limit.most_vcpus} vCPUs and {limit.most_memory_gb:g} GB"
        return f"machine.type: {machine_type} cannot carry {machine.count} x {gpu.name}, which takes at most {most}"
    return ""


def _bundled(machine: Machine, gpu: Gpu, machine_type: str) -> str:
    shape = gpu.machines.get(machine_type)
    if shape is not None:
        other = f"machine.type: {machine_type} comes with {shape.gpus} x {gpu.name}, machine.count is {machine.count}"
        return "" if shape.gpus == machine.count else other
    others = (one for one in offers().gpus.values() if one is not gpu)
    if family_of(machine_type) != gpu.family or any(machine_type in one.machines for one in others):
        return f"machine.type: {machine_type} cannot carry {gpu.name}, which comes with {gpu.family.upper()} machines"
    return ""  # a custom machine type, or one that is newer than the offers


def _in_places(
    machine: Machine, gpu: Gpu | None, machine_type: str, spot: bool, places: Sequence[str]
) -> Iterator[Candidate | Cut]:
    name, count = (gpu.name, machine.count) if gpu else (None, 0)
    what = _wish(name, count, machine_type, spot)
    if gpu is not None:
        sold = gpu.sold_with(machine_type)
        if ("spot" if spot else "standard") not in sold:
            yield Cut(what, f"Google sells it only as {' or '.join(sorted(sold, reverse=True))}", "sale")
            return
    family = offers().families.get(family_of(machine_type))
    disk_type = machine.disk_type or (family.disks[0] if family else OLDEST_DISK)
    shape = shape_of(machine_type)
    for place in places:
        price = _price(machine, name, count, machine_type, disk_type, spot, region_of(place))
        # Spot is never dearer than standard: where its own price is not known, that one is the most it can be.
        most = price or _price(machine, name, count, machine_type, disk_type, False, region_of(place))
        if machine.max_price is not None and (most is None or most > machine.max_price):
            limit = f"machine.max_price is {machine.max_price:g}"
            about = "no price is known" if most is None else f"about {dollars(most)} USD per hour"
            yield Cut(f"{what}, {region_of(place)}", f"{about}, {limit}", "price", most)
            continue
        yield Candidate(
            gpu=name,
            count=count,
            machine_type=machine_type,
            attached=gpu is not None and gpu.attached,
            spot=spot,
            zone=place,
            disk_type=disk_type,
            image=machine.image or DEFAULT_IMAGE,
            price=price,
            vcpus=shape.vcpus if shape else None,
            gpu_quota=(gpu.spot_quota if spot else gpu.quota) if gpu else None,
            gpu_family=gpu.quota_family if gpu and not spot else "",
            cpu_quota=family.cpu_quota if family else None,
            disk_quota=offers().disk_quotas.get(disk_type),
            driver=gpu.driver if gpu else None,
            gvnic=family is not None and family.gvnic,
        )


def _price(
    machine: Machine, gpu: str | None, count: int, machine_type: str, disk_type: str, spot: bool, region: str
) -> float | None:
    """The estimate for the whole VM: machine, GPUs and boot disk."""
    rates = estimated(region)
    if rates is None or disk_type not in rates.disk:
        return None
    price = rates.machine(gpu, count, machine_type, spot=spot)
    return None if price is None else price + machine.disk_gb * rates.disk[disk_type]


def _nothing_left(machine: Machine, cut: Sequence[Cut]) -> Failure:
    """Why there is no candidate: a price if one stands between, else how it is sold, else the machine."""
    dear = [one for one in cut if one.reason == "price"]
    if dear:
        known = [(one.price, one.what) for one in dear if one.price is not None]
        limit = f"machine.max_price is {machine.max_price:g} USD per hour"
        if not known:
            return Failure(
                ErrorClass.CONFIG,
                f"{limit}, and no price is known for: {dear[0].what}",
                "leave machine.max_price out, or name another GPU or region; `glgpu gpus` shows what is known",
            )
        price, what = min(known)
        return Failure(
            ErrorClass.CONFIG,
            f"{limit}; the cheapest that the settings allow is {what}, about {dollars(price)}",
            "raise machine.max_price, or name a smaller GPU; `glgpu gpus` shows prices",
        )
    unsold = next((one for one in cut if one.reason == "sale"), None)
    if unsold is not None:
        remedy = "set machine.spot to prefer or only" if machine.spot == "never" else "name another GPU or machine.type"
        return Failure(
            ErrorClass.NOT_AVAILABLE,
            f"{unsold.what}: {unsold.why}",
            f"{remedy}; `glgpu gpus` shows how each GPU is sold",
        )
    return Failure(
        ErrorClass.CONFIG,
        "; ".join(dict.fromkeys(one.why for one in cut)),
        "leave machine.type and machine.disk_type out, or name what goes with the GPU",
    )


def _wish(gpu: str | None, count: int, machine_type: str, spot: bool | None = None) -> str:
    sale = "" if spot is None else ", spot" if spot else ", standard"
    return f"{f'{count} x {gpu}' if gpu else 'no GPU'} on {machine_type}{sale}"
