"""Which machine types carry which GPU, and the candidates that follow from the settings. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glgpu.errors import ErrorClass, Failure
from glgpu.settings import Machine

DEFAULT_IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580"
"""A boot image with Docker, the NVIDIA driver and its container toolkit (https://cloud.google.com/deep-learning-vm)."""


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
    """

    gpu: str | None
    count: int
    machine_type: str
    attached: bool
    spot: bool
    zone: str
    disk_type: str
    image: str

    def __str__(self) -> str:
        gpu = f"{self.count} x {self.gpu}" if self.gpu else "no GPU"
        return f"{gpu} on {self.machine_type}, {'spot' if self.spot else 'standard'}, {self.zone}"


# GPUs per VM -> the smallest machine type that takes them
# (https://cloud.google.com/compute/docs/gpus, https://cloud.google.com/compute/docs/gpus/create-vm-with-gpus).
_ATTACHED: Mapping[str, Mapping[int, str]] = {
    "nvidia-tesla-t4": {1: "n1-standard-4", 2: "n1-standard-8", 4: "n1-standard-16"},
    "nvidia-tesla-p4": {1: "n1-standard-4", 2: "n1-standard-8", 4: "n1-standard-16"},
    "nvidia-tesla-v100": {1: "n1-standard-8", 2: "n1-standard-16", 4: "n1-standard-32", 8: "n1-standard-96"},
    "nvidia-tesla-p100": {1: "n1-standard-8", 2: "n1-standard-16", 4: "n1-standard-32"},
}
_BUNDLED: Mapping[str, Mapping[int, str]] = {
    "nvidia-l4": {1: "g2-standard-4", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"},
    "nvidia-tesla-a100": {1: "a2-highgpu-1g", 2: "a2-highgpu-2g", 4: "a2-highgpu-4g", 8: "a2-highgpu-8g"},
    "nvidia-a100-80gb": {1: "a2-ultragpu-1g", 2: "a2-ultragpu-2g", 4: "a2-ultragpu-4g", 8: "a2-ultragpu-8g"},
    "nvidia-h100-80gb": {1: "a3-highgpu-1g", 2: "a3-highgpu-2g", 4: "a3-highgpu-4g", 8: "a3-highgpu-8g"},
}  # fmt: skip
# The families whose machine types bring a GPU along; N1 takes the others.
_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "nvidia-l4": ("g2-",),
    "nvidia-tesla-a100": ("a2-highgpu-", "a2-megagpu-"),
    "nvidia-a100-80gb": ("a2-ultragpu-",),
    "nvidia-h100-80gb": ("a3-highgpu-", "a3-edgegpu-"),
}
KNOWN_GPUS = (*_BUNDLED, *_ATTACHED)


def candidates(machine: Machine, zones: Sequence[str]) -> list[Candidate]:
    """Every way to get a VM that the settings allow, best first.

    Args:
        machine: The settings.
        zones: Zones in order of preference.

    Returns:
        GPU by GPU, spot before standard where both will do, zone by zone. A GPU that the machine type which the
        settings name cannot carry is left out: the VM would come without it, or not at all.

    Raises:
        Failure: NOT_AVAILABLE, when a GPU is not known or does not come in that number; CONFIG without zones, or when
            the machine type carries none of the GPUs.
    """
    if not zones:
        raise Failure(ErrorClass.CONFIG, "no zone to look for a VM in", "name machine.zones in glgpu.yml")
    spots = {"only": [True], "prefer": [True, False], "never": [False]}[machine.spot]
    found = []
    for name in machine.gpu:
        gpu, machine_type, attached = _fit(name, machine)
        if gpu and not machine_type.startswith(_FAMILIES.get(gpu, ("n1-",))):
            continue
        for spot in spots:
            for zone in zones:
                found.append(
                    Candidate(
                        gpu=gpu,
                        count=machine.count if gpu else 0,
                        machine_type=machine_type,
                        attached=attached,
                        spot=spot,
                        zone=zone,
                        disk_type=machine.disk_type or _disk_type(machine_type),
                        image=machine.image or DEFAULT_IMAGE,
                    )
                )
    if not found:
        raise Failure(
            ErrorClass.CONFIG,
            f"machine.type: {machine.type} cannot carry {' or '.join(machine.gpu)}",
            "leave machine.type out, or name one of the GPU's own family",
        )
    return found


def _fit(name: str, machine: Machine) -> tuple[str | None, str, bool]:
    if name == "none":
        return None, machine.type or "", False
    attached = name in _ATTACHED
    types = _ATTACHED.get(name) or _BUNDLED.get(name)
    if types is None:
        raise Failure(
            ErrorClass.NOT_AVAILABLE, f"machine.gpu: {name!r} is not known", f"known: {', '.join(KNOWN_GPUS)}"
        )
    if machine.count not in types:
        counts = ", ".join(map(str, types))
        raise Failure(
            ErrorClass.NOT_AVAILABLE,
            f"machine.count: {name} does not come as {machine.count} per VM",
            f"set machine.count to one of {counts}",
        )
    return name, machine.type or types[machine.count], attached


def _disk_type(machine_type: str) -> str:
    # A3 takes Hyperdisk and Balanced only; Balanced also fits every older family.
    return "pd-balanced" if not machine_type.startswith(("a4", "a3-ultragpu")) else "hyperdisk-balanced"
