"""Give the GPU back as soon as everything is home and checked; what else the run left, destroy removes and proves."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance
from glgpu.steps.context import Run
from glgpu.steps.door import Guest
from glgpu.steps.guest import ask


def release(run: Run, instance: Instance, guest: Guest) -> None:
    """Note that all is home, wipe the VM, and ask Compute Engine to delete it.

    A refusal is only said: the destroy stage insists, and proves.
    """
    try:
        ask(run, guest.machine, "set-home", doing="noting that the outputs are home")
        ask(run, guest.machine, "wipe", doing="wiping the VM")
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        run.console.say(f"{failure.cause}; the VM goes all the same")
    try:
        run.cloud.delete_instance(instance.name, instance.zone)
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        run.console.say(f"the VM could not be released: {failure.cause}; destroy will end it")
        return
    run.record.add("gpu-released", instance=instance.name)
    run.console.say(f"the VM {instance.name} is released")
