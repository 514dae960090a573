"""What Compute Engine has of GPUs and about what it costs, as ``gpus.yml`` says. Values only; read when first asked."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from typing import Any, Literal, get_args

import yaml

HOURS_IN_MONTH = 730
"""Hours that Google counts in a month (https://cloud.google.com/compute/disks-image-pricing)."""
FAMILY_QUOTA = "GPUS_PER_GPU_FAMILY"
"""The regional limit on newer GPUs on demand, by GPU family; regions.get does not show it."""

SoldAs = Literal["standard", "spot", "flex"]
OpenModules = Literal["never", "optional", "only"]


@dataclass(frozen=True)
class Driver:
    """Which NVIDIA drivers know a GPU.

    Attributes:
        first: The oldest branch.
        last: The newest branch; None while it is supported.
        open_modules: Whether the open kernel modules do not work, may be used, or are the only ones.
    """

    first: int
    last: int | None
    open_modules: OpenModules


@dataclass(frozen=True)
class End:
    """The end of a GPU on Compute Engine.

    Attributes:
        when: The day from which nobody gets one.
        successors: What Google names instead.
    """

    when: date
    successors: tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """What a machine type has.

    Attributes:
        gpus: GPUs that come with it.
        vcpus: Number of vCPUs.
        memory_gb: Memory in GiB.
        sold: How its GPU is sold with it.
    """

    gpus: int
    vcpus: int
    memory_gb: float
    sold: frozenset[SoldAs] = frozenset(get_args(SoldAs))


@dataclass(frozen=True)
class Limit:
    """The N1 machine that a number of attached GPUs takes.

    Attributes:
        machine: The smallest that suits them.
        most_vcpus: How many vCPUs it may have.
        most_memory_gb: How much memory it may have, in GiB.
    """

    machine: str
    most_vcpus: int
    most_memory_gb: float


@dataclass(frozen=True)
class Family:
    """A family of machine types.

    Attributes:
        disks: Boot disk types, the default first.
        cpu_quota: Regional limit that vCPUs count against; None: none that the API shows.
        gvnic: Whether the image needs gVNIC's driver.
        sku: What the Cloud Billing catalogue calls its machines; None where all of their price is the GPUs'.
    """

    disks: tuple[str, ...]
    cpu_quota: str | None
    gvnic: bool
    sku: str | None


@dataclass(frozen=True)
class Gpu:
    """A GPU model.

    Attributes:
        name: Accelerator type.
        title: What people call it.
        memory_gb: Its memory in GB.
        family: Machine family that it is in.
        driver: Which drivers know it.
        quota: Regional limit on demand, as Compute Engine's API calls it.
        spot_quota: The same for spot.
        quota_family: The dimension of ``FAMILY_QUOTA``, or empty.
        sku: What the Cloud Billing catalogue calls it.
        machines: Machine types that bring it along.
        limits: By number of GPUs, the N1 machines that it is attached to; empty for one that comes with a machine type.
        sold: How it is sold, whatever the machine type.
        end: When it is to be gone; None: not announced.
        zones: Region -> letters of its zones; empty letters: in some of them.
    """

    name: str
    title: str
    memory_gb: int
    family: str
    driver: Driver
    quota: str
    spot_quota: str
    quota_family: str
    sku: str
    machines: Mapping[str, Shape]
    limits: Mapping[int, Limit]
    sold: frozenset[SoldAs]
    end: End | None
    zones: Mapping[str, str]

    @property
    def attached(self) -> bool:
        """Whether it is ordered beside the machine type (N1) or comes with it."""
        return bool(self.limits)

    @property
    def counts(self) -> list[int]:
        """How many of it a VM can have."""
        return sorted(self.limits or {shape.gpus for shape in self.machines.values()})

    def machine_for(self, count: int) -> str:
        """The smallest machine type for a number of GPUs that is among ``counts``."""
        if self.attached:
            return self.limits[count].machine
        return next(name for name, shape in self.machines.items() if shape.gpus == count)

    def sold_with(self, machine_type: str) -> frozenset[SoldAs]:
        """How it is sold with a machine type."""
        shape = self.machines.get(machine_type)
        return shape.sold & self.sold if shape else self.sold


@dataclass(frozen=True)
class Rates:
    """What the parts of a VM cost in a region, in US dollars per hour; spot or not is the keys' second half.

    Attributes:
        core: A vCPU, by machine family.
        ram: A GiB of memory, by machine family.
        gpu: A GPU, by accelerator type.
        disk: A GB of disk, by disk type.
    """

    core: Mapping[tuple[str, bool], float]
    ram: Mapping[tuple[str, bool], float]
    gpu: Mapping[tuple[str, bool], float]
    disk: Mapping[str, float]

    def machine(self, gpu: str | None, count: int, machine_type: str, *, spot: bool) -> float | None:
        """A machine and its GPUs; None where a part's price is not known."""
        shape, key = shape_of(machine_type), (family_of(machine_type), spot)
        if shape is None or key not in self.core or key not in self.ram:
            return None
        price = shape.vcpus * self.core[key] + shape.memory_gb * self.ram[key]
        if gpu is None:
            return price
        return price + count * self.gpu[gpu, spot] if (gpu, spot) in self.gpu else None


@dataclass(frozen=True)
class Offers:
    """The whole of ``gpus.yml``.

    Attributes:
        checked: The day on which it was held against its sources.
        region: Where the prices are known for.
        gpus: Every GPU that can be had, by accelerator type.
        retired: Every GPU that was shut down.
        families: Machine families by name.
        disk_quotas: Disk type -> regional limit that its size counts against.
        disk_skus: Disk type -> what the Cloud Billing catalogue calls it.
        rates: Prices in ``region``.
        factors: Region -> what things cost there, 1 being ``region``.
        n1_memory: GiB per vCPU of predefined N1 machine types, by the word in their name.
    """

    checked: date
    region: str
    gpus: Mapping[str, Gpu]
    retired: Mapping[str, End]
    families: Mapping[str, Family]
    disk_quotas: Mapping[str, str]
    disk_skus: Mapping[str, str]
    rates: Rates
    factors: Mapping[str, float]
    n1_memory: Mapping[str, float]


@functools.cache
def offers() -> Offers:
    """What ``gpus.yml`` says."""
    raw = yaml.safe_load(files("glgpu").joinpath("gpus.yml").read_text(encoding="utf-8"))
    families = raw["families"]
    gpus = {name: _gpu(name, entry) for name, entry in raw["gpus"].items()}
    return Offers(
        checked=raw["checked"],
        region=raw["region"],
        gpus=gpus,
        retired={name: _end(entry) for name, entry in raw["retired"].items()},
        families={
            name: Family(tuple(entry["disks"]), entry["cpu_quota"], entry["gvnic"], entry["sku"])
            for name, entry in families.items()
        },
        disk_quotas={name: entry["quota"] for name, entry in raw["disks"].items()},
        disk_skus={name: entry["sku"] for name, entry in raw["disks"].items()},
        rates=Rates(
            core=_by_sale({name: entry["core"] for name, entry in families.items()}),
            ram=_by_sale({name: entry["ram"] for name, entry in families.items()}),
            gpu=_by_sale({name: entry["price"] for name, entry in raw["gpus"].items()}),
            disk={name: entry["month"] / HOURS_IN_MONTH for name, entry in raw["disks"].items()},
        ),
        factors=raw["regions"],
        n1_memory=raw["n1_memory"],
    )


def estimated(region: str) -> Rates | None:
    """Estimated prices in a region; None where nothing is known of it."""
    here = offers()
    factor = here.factors.get(region)
    if factor is None:
        return None
    rates = here.rates
    return Rates(
        core={key: price * factor for key, price in rates.core.items()},
        ram={key: price * factor for key, price in rates.ram.items()},
        gpu={key: price * factor for key, price in rates.gpu.items()},
        disk={key: price * factor for key, price in rates.disk.items()},
    )


def family_of(machine_type: str) -> str:
    """The machine family, ``a3-megagpu`` for ``a3-megagpu-8g``; empty where the file does not know it."""
    name = f"n1-{machine_type}" if machine_type.startswith("custom-") else machine_type
    fitting = [family for family in offers().families if name.startswith(f"{family}-")]
    return max(fitting, key=len, default="")


def shape_of(machine_type: str) -> Shape | None:
    """What a machine type has: one that brings GPUs, a predefined N1, or a custom one; None for any other."""
    for gpu in offers().gpus.values():
        if machine_type in gpu.machines:
            return gpu.machines[machine_type]
    custom = re.fullmatch(r"(?:[a-z][a-z0-9]*-)?custom-(\d+)-(\d+)(?:-ext)?", machine_type)
    if custom:
        return Shape(0, int(custom[1]), int(custom[2]) / 1024)
    plain = re.fullmatch(r"n1-([a-z]+)-(\d+)", machine_type)
    if plain and plain[1] in offers().n1_memory:
        return Shape(0, int(plain[2]), int(plain[2]) * offers().n1_memory[plain[1]])
    return None


def nearest(name: str, names: Collection[str]) -> str | None:
    """The GPU that somebody may have meant by ``l4``, ``nvidia-t4`` or ``a100``."""
    plain = {_plain(known): known for known in reversed(list(names))}
    wanted = _plain(name)
    if wanted in plain:
        return plain[wanted]
    begins = [known for short, known in plain.items() if wanted and short.startswith(wanted)]
    close = difflib.get_close_matches(wanted, plain, n=1)
    return begins[-1] if begins else plain[close[0]] if close else None


def _plain(name: str) -> str:
    return re.sub(r"nvidia|tesla|geforce|[^a-z0-9]", "", name.lower())


def _gpu(name: str, entry: Mapping[str, Any]) -> Gpu:
    sold: frozenset[SoldAs] = frozenset(entry["sold"])
    driver, quota = entry["driver"], entry["quota"]
    machines = {
        machine: Shape(one["gpus"], one["vcpus"], one["memory_gb"], frozenset(one.get("sold", sold)))
        for machine, one in entry.get("machines", {}).items()
    }
    return Gpu(
        name=name,
        title=entry["title"],
        memory_gb=entry["memory_gb"],
        family=entry["family"],
        driver=Driver(driver["first"], driver["last"], driver["open"]),
        quota=quota["standard"] or FAMILY_QUOTA,
        spot_quota=quota["spot"],
        quota_family=entry.get("quota_family", ""),
        sku=entry["sku"],
        machines=machines,
        limits={count: Limit(**one) for count, one in entry.get("attached", {}).items()},
        sold=sold,
        end=_end(entry["ends"]) if "ends" in entry else None,
        zones=entry["zones"],
    )


def _end(entry: Mapping[str, Any]) -> End:
    return End(entry["when"], tuple(entry["successors"]))


def _by_sale(prices: Mapping[str, Mapping[str, float | None]]) -> dict[tuple[str, bool], float]:
    both = ((name, sale == "spot", price) for name, entry in prices.items() for sale, price in entry.items())
    return {(name, spot): price for name, spot, price in both if price is not None}
