"""The gate before the training: the GPUs answer on the VM, and inside the training image."""

from __future__ import annotations

import re
from dataclasses import dataclass

from glgpu.classify import explain
from glgpu.errors import ErrorClass, Failure
from glgpu.gpu_offers import offers
from glgpu.interfaces import Machine
from glgpu.processes import Done
from glgpu.steps.context import Run
from glgpu.steps.guest import command

GPU_SECONDS = 180
"""The driver may still be loading when SSH answers, where no start-up script has waited for it."""
INSIDE_SECONDS = 300
NOT_FOUND = 127
"""Exit code of a shell, and of `docker run`, for a program that is not there."""

_TABLE = re.compile(r"Driver Version: *(?P<driver>[\d.]+) .*?CUDA Version: *(?P<cuda>[\d.]+)")
_NEEDS_CUDA = re.compile(r"unsatisfied condition: cuda *>= *(?P<cuda>[\d.]*\d)")


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi says in the head of its table.

    Attributes:
        version: Of the driver.
        cuda: The newest CUDA that it can run.
    """

    version: str
    cuda: str

    def __str__(self) -> str:
        return f"driver {self.version} (CUDA {self.cuda})"


def check_gpus(run: Run, machine: Machine) -> None:
    """See that the VM has its GPUs; a driver that is still loading is waited for.

    Raises:
        Failure: DRIVER; SSH, when the connection broke.
    """
    if "none" in run.settings.machine.gpu:
        return
    end = run.clock.now() + GPU_SECONDS
    count = str(run.settings.machine.count)
    while True:
        done = machine.run(command(run, "gpu", count), timeout=60)
        if done.code == 0:
            break
        if done.code == NOT_FOUND or run.clock.now() > end or "fewer than" in done.complaint:
            said = _said(done)
            if done.code == 255:
                raise _broken("looking for the VM's GPUs", said)
            raise Failure(ErrorClass.DRIVER, f"the VM's GPU is not usable: {_first(said)}", _other_driver(run), said)
        run.clock.sleep(3.0)
    gpus = done.text.strip().splitlines()
    run.console.say(f"GPU: {'; '.join(gpus)}")
    run.record.add("gpu-seen", gpus=gpus)


def check_inside(run: Run, machine: Machine, image: str, pinned: str) -> None:
    """See that a container of the training image has the GPUs, before the training begins and fails of it later.

    Args:
        run: The run.
        machine: Its VM.
        image: The image as the settings name it, for the message.
        pinned: The same, as exactly what is on the VM.

    Raises:
        Failure: DRIVER, with the versions that do not fit; SSH, when the connection broke.
    """
    done = machine.run(command(run, "gpu-inside", pinned), timeout=INSIDE_SECONDS)
    said = _said(done)
    if done.code == 0:
        seen = _driver(said)
        run.console.say(f"GPU inside {image}: {seen or 'there'}")
        run.record.add("gpu-seen-inside", driver=seen.version if seen else "", cuda=seen.cuda if seen else "")
    elif done.code == NOT_FOUND:
        # NVIDIA_DRIVER_CAPABILITIES without `utility`: the toolkit gave the GPU, and left nvidia-smi out.
        run.console.say(f"{image} leaves nvidia-smi out: whether the GPU answers inside, its program will find out")
    else:
        raise _not_inside(run, machine, image, done, said)


def _not_inside(run: Run, machine: Machine, image: str, done: Done, said: str) -> Failure:
    doing = f"using the GPU inside {image}"
    if done.code == 255:
        return _broken(doing, said)
    needs = _NEEDS_CUDA.search(said)
    if needs is None:
        return explain(said, unknown=ErrorClass.DRIVER, doing=doing)
    there = _driver(machine.run(command(run, "driver"), timeout=60).text)
    older = f"a train.image made for CUDA {there.cuda} or older" if there else "a train.image made for an older CUDA"
    return Failure(
        ErrorClass.DRIVER,
        f"{image} needs CUDA {needs['cuda']} or newer; the VM has {there or 'a driver that is older'}",
        f"use {older}, or {_other_driver(run)}",
        said,
    )


def _broken(doing: str, said: str) -> Failure:
    return Failure(ErrorClass.SSH, f"{doing}: the connection to the VM broke: {said}", "retry the job", said)


def _other_driver(run: Run) -> str:
    remedy = "use a boot image with an NVIDIA driver that fits (machine.image; leave it out for the default)"
    for name in run.settings.machine.gpu:
        gpu = offers().gpus.get(name)
        if gpu is not None and gpu.driver.last is not None:
            remedy += f"; the last driver branch that knows {name} is {gpu.driver.last}"
        if gpu is not None and gpu.driver.open_modules == "never":
            remedy += ", with NVIDIA's closed kernel modules"
    return remedy


def _driver(said: str) -> Driver | None:
    match = _TABLE.search(said)
    return Driver(match["driver"], match["cuda"]) if match else None


def _said(done: Done) -> str:
    return "\n".join(part for part in (done.complaint, done.text.strip()) if part)


def _first(said: str) -> str:
    return next((line for line in said.splitlines() if line.strip()), "nvidia-smi says nothing")
