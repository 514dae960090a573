"""What the stand-in's cloud offers: regions, zones, GPUs, machine types, disk types, images, limits.

A sample of Google's published tables (machine families, GPU models, GPU locations), large enough that every rule
of attaching GPUs has a case on both sides. Which zone offers what changes all the time: nothing may depend on a row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

REGIONS: dict[str, str] = {
    "asia-east1": "abc",
    "asia-northeast1": "abc",
    "asia-southeast1": "abc",
    "europe-west1": "bcd",
    "europe-west2": "abc",
    "europe-west3": "abc",
    "europe-west4": "abc",
    "us-central1": "abcf",
    "us-east1": "bcd",
    "us-east4": "abc",
    "us-west1": "abc",
    "us-west4": "abc",
}
"""Region -> the letters of its zones."""

ZONES: tuple[str, ...] = tuple(f"{region}-{letter}" for region, letters in REGIONS.items() for letter in letters)


def region_of(zone: str) -> str:
    """``us-central1`` for ``us-central1-a``."""
    return zone.rpartition("-")[0]


def _zones(text: str) -> frozenset[str]:
    """Read ``us-central1-ab us-east1-c`` as three zones."""
    return frozenset(
        f"{region}-{letter}" for region, _, letters in (w.rpartition("-") for w in text.split()) for letter in letters
    )


@dataclass(frozen=True)
class Gpu:
    """A GPU model.

    Attributes:
        description: Google's name for it.
        quota: Regional limit on it; None where Compute Engine's API does not show one (newer models).
        spot_quota: The same for Spot VMs.
        max_cpus: For models that are attached to N1: how many vCPUs the VM may have, by number of GPUs. Empty for
            models that come with their machine type.
        zones: Where it is offered.
    """

    description: str
    quota: str | None
    spot_quota: str | None
    max_cpus: dict[int, int]
    zones: frozenset[str]

    @property
    def most_per_vm(self) -> int:
        """The largest number in one VM."""
        return max(self.max_cpus, default=8)


GPUS: dict[str, Gpu] = {
    "nvidia-tesla-t4": Gpu(
        "NVIDIA T4", "NVIDIA_T4_GPUS", "PREEMPTIBLE_NVIDIA_T4_GPUS", {1: 48, 2: 48, 4: 96},
        _zones(
            "us-central1-abcf us-east1-cd us-east4-abc us-west1-ab us-west4-ab europe-west1-bcd europe-west2-ab "
            "europe-west3-b europe-west4-abc asia-east1-ac asia-northeast1-ac asia-southeast1-abc"
        ),
    ),
    "nvidia-tesla-p4": Gpu(
        "NVIDIA Tesla P4", "NVIDIA_P4_GPUS", "PREEMPTIBLE_NVIDIA_P4_GPUS", {1: 24, 2: 48, 4: 96},
        _zones("us-central1-ac us-east4-abc europe-west4-bc asia-southeast1-bc"),
    ),
    "nvidia-tesla-v100": Gpu(
        "NVIDIA V100", "NVIDIA_V100_GPUS", "PREEMPTIBLE_NVIDIA_V100_GPUS", {1: 12, 2: 24, 4: 48, 8: 96},
        _zones("us-central1-abcf us-east1-c us-west1-ab europe-west4-abc asia-east1-c"),
    ),
    "nvidia-l4": Gpu(
        "NVIDIA L4", "NVIDIA_L4_GPUS", "PREEMPTIBLE_NVIDIA_L4_GPUS", {},
        _zones(
            "us-central1-abc us-east1-bcd us-east4-ac us-west1-abc us-west4-ac europe-west1-bc europe-west2-ab "
            "europe-west3-ab europe-west4-abc asia-east1-abc asia-northeast1-abc asia-southeast1-abc"
        ),
    ),
    "nvidia-tesla-a100": Gpu(
        "NVIDIA A100 40GB", "NVIDIA_A100_GPUS", "PREEMPTIBLE_NVIDIA_A100_GPUS", {},
        _zones("us-central1-abcf us-east1-b us-west1-b us-west4-b europe-west4-ab asia-northeast1-ac"),
    ),
    "nvidia-a100-80gb": Gpu(
        "NVIDIA A100 80GB", "NVIDIA_A100_80GB_GPUS", "PREEMPTIBLE_NVIDIA_A100_80GB_GPUS", {},
        _zones("us-central1-ac us-east4-c europe-west4-a asia-southeast1-c"),
    ),
    "nvidia-h100-80gb": Gpu(
        "NVIDIA H100 80GB", None, "PREEMPTIBLE_NVIDIA_H100_GPUS", {},
        _zones("us-central1-abc us-east4-abc us-west1-ab us-west4-a europe-west1-bc europe-west4-bc"),
    ),
    "nvidia-h100-mega-80gb": Gpu(
        "NVIDIA H100 80GB MEGA", None, None, {},
        _zones("us-central1-abc us-east4-abc us-west1-ab us-west4-a europe-west1-bc europe-west4-bc"),
    ),
    "nvidia-rtx-pro-6000": Gpu("NVIDIA RTX PRO 6000", None, None, {}, _zones("us-central1-b")),
    "nvidia-h200-141gb": Gpu(
        "NVIDIA H200 141GB", None, None, {}, _zones("us-central1-b us-east4-b us-west1-c europe-west1-b europe-west4-a")
    ),
    "nvidia-b200": Gpu("NVIDIA B200", None, None, {}, _zones("us-central1-b europe-west4-b asia-southeast1-b")),
}  # fmt: skip


@dataclass(frozen=True)
class MachineType:
    """A machine type.

    Attributes:
        cpus: Number of vCPUs.
        memory_mb: Memory in MiB.
        gpu: The GPUs that come with it: accelerator type and number, or None.
        takes_gpus: Whether GPUs may be attached to it: N1, but not its shared-core kin.
        disk_types: Which boot disks it takes.
        cpu_quota: Regional limit that its vCPUs count against; None: none that the API shows (newer GPU families).
    """

    cpus: int
    memory_mb: int
    gpu: tuple[str, int] | None
    takes_gpus: bool
    disk_types: frozenset[str]
    cpu_quota: str | None

    def offered_in(self, zone: str) -> bool:
        """Whether the zone has it: a machine type with GPUs is where they are, any other is everywhere."""
        return zone in ZONES if self.gpu is None else zone in GPUS[self.gpu[0]].zones


DISK_TYPES: dict[str, tuple[str, str]] = {
    "pd-standard": ("Standard Persistent Disk", "DISKS_TOTAL_GB"),
    "pd-balanced": ("Balanced Persistent Disk", "SSD_TOTAL_GB"),
    "pd-ssd": ("SSD Persistent Disk", "SSD_TOTAL_GB"),
    "hyperdisk-balanced": ("Hyperdisk Balanced Persistent Disk", "HDB_TOTAL_GB"),
}
"""Disk type -> Google's name for it, and the regional limit that its size counts against."""

_ANY_PD = frozenset({"pd-standard", "pd-balanced", "pd-ssd"})
_SSD_PD = frozenset({"pd-balanced", "pd-ssd"})
_FAST_PD = _SSD_PD | {"hyperdisk-balanced"}
_HYPERDISK = frozenset({"hyperdisk-balanced"})


def _plain(cpus: int, gib: float, *, takes_gpus: bool = False, quota: str = "CPUS") -> MachineType:
    return MachineType(cpus, int(gib * 1024), None, takes_gpus, _ANY_PD, quota)


def _with_gpu(
    cpus: int, gib: float, gpu: str, count: int, disks: frozenset[str] = _FAST_PD, quota: str | None = None
) -> MachineType:
    return MachineType(cpus, int(gib * 1024), (gpu, count), False, disks, quota)


MACHINE_TYPES: dict[str, MachineType] = {
    "f1-micro": _plain(1, 0.6),
    "g1-small": _plain(1, 1.7),
    "e2-micro": _plain(2, 1),
    "e2-small": _plain(2, 2),
    "e2-medium": _plain(2, 4),
    **{f"e2-standard-{n}": _plain(n, 4 * n) for n in (2, 4, 8, 16, 32)},
    **{f"n2-standard-{n}": _plain(n, 4 * n, quota="N2_CPUS") for n in (2, 4, 8, 16, 32)},
    **{f"n1-standard-{n}": _plain(n, 3.75 * n, takes_gpus=True) for n in (1, 2, 4, 8, 16, 32, 64, 96)},
    **{f"n1-highmem-{n}": _plain(n, 6.5 * n, takes_gpus=True) for n in (2, 4, 8, 16, 32, 64, 96)},
    **{f"n1-highcpu-{n}": _plain(n, 0.9 * n, takes_gpus=True) for n in (2, 4, 8, 16, 32, 64, 96)},
    **{f"g2-standard-{n}": _with_gpu(n, 4 * n, "nvidia-l4", 1, _SSD_PD, "CPUS") for n in (4, 8, 12, 16, 32)},
    **{f"g2-standard-{24 * n}": _with_gpu(24 * n, 96 * n, "nvidia-l4", 2 * n, _SSD_PD, "CPUS") for n in (1, 2, 4)},
    **{f"g4-standard-{48 * n}": _with_gpu(48 * n, 180 * n, "nvidia-rtx-pro-6000", n, _HYPERDISK) for n in (1, 2, 4, 8)},
    **{f"a2-highgpu-{n}g": _with_gpu(12 * n, 85 * n, "nvidia-tesla-a100", n, _ANY_PD, "A2_CPUS") for n in (1, 2, 4, 8)},
    "a2-megagpu-16g": _with_gpu(96, 1360, "nvidia-tesla-a100", 16, _ANY_PD, "A2_CPUS"),
    **{
        f"a2-ultragpu-{n}g": _with_gpu(12 * n, 170 * n, "nvidia-a100-80gb", n, _ANY_PD, "A2_CPUS") for n in (1, 2, 4, 8)
    },
    **{f"a3-highgpu-{n}g": _with_gpu(26 * n, 234 * n, "nvidia-h100-80gb", n) for n in (1, 2, 4, 8)},
    "a3-megagpu-8g": _with_gpu(208, 1872, "nvidia-h100-mega-80gb", 8),
    "a3-ultragpu-8g": _with_gpu(224, 2952, "nvidia-h200-141gb", 8, _HYPERDISK),
    "a4-highgpu-8g": _with_gpu(224, 3968, "nvidia-b200", 8, _HYPERDISK),
}


def machine_type(name: str) -> MachineType | None:
    """A machine type by name, N1's custom ones included: ``n1-custom-VCPUS-MEMORY``, or without ``n1-``.

    Those have 1 vCPU or an even number up to 96, and for each 0.9 to 6.5 GiB of memory in steps of 256 MiB
    (https://cloud.google.com/compute/docs/instances/creating-instance-with-custom-machine-type).
    """
    custom = re.fullmatch(r"(?:n1-)?custom-(\d+)-(\d+)", name)
    if custom is None:
        return MACHINE_TYPES.get(name)
    cpus, memory_mb = int(custom[1]), int(custom[2])
    fits = memory_mb % 256 == 0 and 0.9 * 1024 <= memory_mb / max(cpus, 1) <= 6.5 * 1024
    even = cpus == 1 or (cpus % 2 == 0 and 2 <= cpus <= 96)
    return MachineType(cpus, memory_mb, None, True, _ANY_PD, "CPUS") if fits and even else None


@dataclass(frozen=True)
class Image:
    """A public boot image.

    Attributes:
        project: Where it is published.
        family: What it is the newest of.
        name: Its own name; begins with the family's, which the Terraform provider relies on.
        size_gb: The smallest boot disk that holds it.
    """

    project: str
    family: str
    name: str
    size_gb: int

    @property
    def path(self) -> str:
        """``projects/P/global/images/NAME``."""
        return f"projects/{self.project}/global/images/{self.name}"


IMAGES: tuple[Image, ...] = tuple(
    Image(project, family, f"{family}-{version}", size_gb)
    for project, family, version, size_gb in (
        ("deeplearning-platform-release", "common-cu128-ubuntu-2204-nvidia-570", "v20260915", 50),
        ("deeplearning-platform-release", "common-cu129-ubuntu-2204-nvidia-580", "v20261104", 50),
        ("deeplearning-platform-release", "common-cu129-ubuntu-2404-nvidia-580", "v20261104", 50),
        ("ubuntu-os-accelerator-images", "ubuntu-accelerator-2204-amd64-with-nvidia-580", "v20261028", 20),
        ("ubuntu-os-accelerator-images", "ubuntu-accelerator-2404-amd64-with-nvidia-580", "v20261028", 20),
        ("ubuntu-os-cloud", "ubuntu-2404-lts-amd64", "v20261101", 10),
        ("debian-cloud", "debian-12", "v20261110", 10),
        ("cos-cloud", "cos-stable", "125-19216-104-25", 10),
    )
)

PROJECT_QUOTAS: dict[str, float] = {
    "NETWORKS": 15, "FIREWALLS": 200, "IMAGES": 2000, "CPUS_ALL_REGIONS": 256, "GPUS_ALL_REGIONS": 16,
}  # fmt: skip
"""Limits of the whole project."""

REGION_QUOTAS: dict[str, float] = {
    "CPUS": 128, "N2_CPUS": 64, "A2_CPUS": 96, "INSTANCES": 240, "IN_USE_ADDRESSES": 69,
    "DISKS_TOTAL_GB": 40960, "SSD_TOTAL_GB": 20480, "HDB_TOTAL_GB": 20480, "PREEMPTIBLE_CPUS": 0,
    **{quota: 8 for gpu in GPUS.values() for quota in (gpu.quota, gpu.spot_quota) if quota},
}  # fmt: skip
"""Limits in each region."""

FREE_GPUS = 64
"""How many GPUs of a model a zone has for this project before it is out of stock, unless a rehearsal says less."""
