"""``nvidia-smi`` of a VM with the GPUs that it was ordered with: ``-L``, two queries, and the table.

Names and sizes are those that the driver shows for Compute Engine's accelerator types. What the GPUs do follows the
containers that were given them (``gpu_load``): there are none.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from glgpu.rehearsal.guest_programs.gpu_load import NOTHING, Load, measure
from glgpu.rehearsal.guest_programs.guest import Guest


@dataclass(frozen=True)
class Model:
    """A GPU as the driver shows it: product name, memory in MiB, power limit in W, compute capability."""

    name: str
    memory: int
    power: int
    capability: str


MODELS = {
    "nvidia-l4": Model("NVIDIA L4", 23034, 72, "8.9"),
    "nvidia-tesla-t4": Model("Tesla T4", 15360, 70, "7.5"),
    "nvidia-tesla-p4": Model("Tesla P4", 7680, 75, "6.1"),
    "nvidia-tesla-p100": Model("Tesla P100-PCIE-16GB", 16384, 250, "6.0"),
    "nvidia-tesla-v100": Model("Tesla V100-SXM2-16GB", 16384, 300, "7.0"),
    "nvidia-tesla-a100": Model("NVIDIA A100-SXM4-40GB", 40960, 400, "8.0"),
    "nvidia-a100-80gb": Model("NVIDIA A100-SXM4-80GB", 81920, 400, "8.0"),
    "nvidia-h100-80gb": Model("NVIDIA H100 80GB HBM3", 81559, 700, "9.0"),
    "nvidia-h100-mega-80gb": Model("NVIDIA H100 80GB HBM3", 81559, 700, "9.0"),
    "nvidia-h200-141gb": Model("NVIDIA H200", 143771, 700, "9.0"),
    "nvidia-b200": Model("NVIDIA B200", 183359, 1000, "10.0"),
    "nvidia-rtx-pro-6000": Model("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887, 600, "12.0"),
}
UNITS = {"memory": "MiB", "utilization": "%", "power": "W", "used_gpu_memory": "MiB"}
IDLE_WATTS, IDLE_CELSIUS, WARMING = 12.5, 38, 0.3
"""Of a GPU that does nothing, and degrees by which a percent of use warms it."""
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running.\n"
)


MISMATCH = 18
"""nvidia-smi's exit code for a library that does not fit the kernel's module (NVML_ERROR_LIB_RM_VERSION_MISMATCH)."""
CUDA_VERSIONS = {"580": "13.0", "570": "12.8", "550": "12.4", "535": "12.2"}
"""The newest CUDA that a driver branch runs
(https://docs.nvidia.com/datacenter/tesla/drivers/cuda-toolkit-driver-and-architecture-matrix.html)."""


def cuda_of(driver: str) -> str:
    """The newest CUDA that a driver runs."""
    return CUDA_VERSIONS.get(driver.partition(".")[0], "13.0")


def is_loaded(machine: dict[str, Any]) -> bool:
    """Whether the kernel has its driver by now."""
    return bool(machine["driver"]) and time.time() >= machine["driver_loaded_at"]


def gpus(machine: dict[str, Any], load: Load) -> list[dict[str, str]]:
    """Every GPU's fields by the names of ``--help-query-gpu``, without units."""
    model = MODELS.get(machine["gpu_type"], Model(f"NVIDIA {machine['gpu_type']}", 16384, 300, "8.0"))
    used = min(sum(memory for _, memory in load.processes), model.memory)
    watts = IDLE_WATTS + (model.power - IDLE_WATTS) * load.use / 100
    found = []
    for index in range(machine["gpu_count"]):
        seed = hashlib.sha256(f"{machine['instance_id']} {index}".encode()).hexdigest()
        uuid = f"GPU-{seed[:8]}-{seed[8:12]}-{seed[12:16]}-{seed[16:20]}-{seed[20:32]}"
        bus = f"00000000:00:{4 + index:02X}.0"
        found.append({
            "index": str(index), "name": model.name, "gpu_name": model.name, "uuid": uuid, "gpu_uuid": uuid,
            "count": str(machine["gpu_count"]), "driver_version": machine["driver"], "compute_cap": model.capability,
            "pci.bus_id": bus, "gpu_bus_id": bus, "memory.total": str(model.memory), "memory.used": str(used),
            "memory.free": str(model.memory - used), "utilization.gpu": str(load.use),
            "utilization.memory": str(load.use // 2), "temperature.gpu": f"{IDLE_CELSIUS + WARMING * load.use:.0f}",
            "power.draw": f"{watts:.2f}", "power.limit": f"{model.power}.00",
            "pstate": "P0" if load.processes else "P8",
        })  # fmt: skip
    return found


APPS = {
    "pid": "pid", "process_name": "process_name", "name": "process_name", "used_memory": "used_gpu_memory",
    "used_gpu_memory": "used_gpu_memory", "gpu_uuid": "gpu_uuid", "gpu_name": "gpu_name",
}  # fmt: skip
"""The fields of ``--query-compute-apps``, and what it calls them itself."""


def apps(found: list[dict[str, str]], load: Load) -> list[dict[str, str]]:
    """Whoever has a GPU open, once for each."""
    return [
        {
            "pid": str(pid), "process_name": "python3", "used_gpu_memory": str(memory), "gpu_uuid": gpu["uuid"],
            "gpu_name": gpu["name"],
        }
        for gpu in found for pid, memory in load.processes
    ]  # fmt: skip


def query(
    fields: list[str], formats: list[str], found: list[dict[str, str]], known: Collection[str]
) -> tuple[str, int]:
    """Answer a query: output and exit code."""
    for field in fields:
        if field not in known:
            return f'Field "{field}" is not a valid field to query.\n', 2
    if formats[:1] != ["csv"] or not set(formats) <= {"csv", "noheader", "nounits"}:
        return '"--format=" switch is missing or wrong: csv[,noheader][,nounits]\n', 2
    units = {field: UNITS.get(field.split(".")[0], "") for field in fields}
    lines = []
    if "noheader" not in formats:
        lines.append(", ".join(f"{f} [{units[f]}]" if units[f] and "nounits" not in formats else f for f in fields))
    for gpu in found:
        cells = [gpu[f] if "nounits" in formats or not units[f] else f"{gpu[f]} {units[f]}" for f in fields]
        lines.append(", ".join(cells))
    return "".join(f"{line}\n" for line in lines), 0


def table(machine: dict[str, Any], found: list[dict[str, str]]) -> str:
    """What it prints without arguments, in short."""
    driver = machine["driver"]
    lines = [f"| NVIDIA-SMI {driver}    Driver Version: {driver}    CUDA Version: {cuda_of(driver)} |"]
    for gpu in found:
        lines.append(
            f"| {gpu['index']}  {gpu['name']}  {gpu['gpu_bus_id']} | {gpu['temperature.gpu']}C  {gpu['pstate']} "
            f"| 0MiB / {gpu['memory.total']}MiB | {gpu['utilization.gpu']}% Default |"
        )
    return "\n".join([*lines, "|  No running processes found |"]) + "\n"


def answer(machine: dict[str, Any], argv: list[str], load: Load = NOTHING) -> tuple[str, int]:
    """Output and exit code of one call."""
    if not machine["gpu_count"] or not is_loaded(machine):
        return NO_DRIVER, 9
    if machine["library"] != machine["driver"]:
        library = ".".join(machine["library"].split(".")[:2])
        text = f"Failed to initialize NVML: Driver/library version mismatch\nNVML library version: {library}\n"
        return text, MISMATCH
    found = gpus(machine, load)
    if argv == []:
        return table(machine, found), 0
    if argv in (["-L"], ["--list-gpus"]):
        return "".join(f"GPU {g['index']}: {g['name']} (UUID: {g['uuid']})\n" for g in found), 0
    options = dict(word.partition("=")[::2] for word in argv)
    formats = [word.strip() for word in options.get("--format", "").split(",")]
    match sorted(options):
        case ["--format", "--query-gpu"] | ["--query-gpu"]:
            fields = [field.strip() for field in options["--query-gpu"].split(",")]
            return query(fields, formats, found, found[0])
        case ["--format", "--query-compute-apps"] | ["--query-compute-apps"]:
            asked = [field.strip() for field in options["--query-compute-apps"].split(",")]
            return query([APPS.get(field, field) for field in asked], formats, apps(found, load), set(APPS.values()))
        case _:
            pass
    return "Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n", 1


if __name__ == "__main__":
    guest = Guest()
    asks = any(word in " ".join(sys.argv) for word in ("used", "utilization", "power", "temperature", "apps"))
    text, code = answer(guest.machine, sys.argv[1:], measure(guest) if asks else NOTHING)
    sys.stdout.write(text)
    sys.exit(code)
