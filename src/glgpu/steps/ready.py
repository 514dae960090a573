"""A VM that is there, reachable and has its GPU: found, or brought up."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance
from glgpu.lifetime import Lifetime, spoken
from glgpu.steps.bring_up import bring_up, plan_lifetime, standing
from glgpu.steps.context import Run, hard_end_of
from glgpu.steps.door import Guest, log_in, open_door
from glgpu.steps.guest import ask, command

GPU_SECONDS = 180
"""The driver may still be loading when SSH answers."""
BACKSTOP_SECONDS = 300
"""A claimed VM powers itself off this long after its hard end, should Compute Engine's own deletion have failed: not
before, because a powered-off VM is no longer deleted at its hard end and keeps its disk."""


def ready_vm(run: Run) -> tuple[Instance, bool]:
    """The run's VM, and whether it was brought up just now.

    Whoever brings up, answers for it: the VM is armed to power itself off when nobody claims it.

    Raises:
        Failure: whatever stands in the way.
    """
    found = standing(run)
    if found is not None:
        run.console.say(f"the VM {found.name} of this run is there, in {found.zone}")
        return found, False
    lifetime = plan_lifetime(run)
    with bring_up(run, lifetime) as instance, open_door(run, instance):
        guest = log_in(run, instance)
        _check_gpu(run, guest)
        minutes = run.settings.limits.claim_minutes
        ask(run, guest.machine, "ends", str(minutes), doing="arming the VM to power itself off")
        run.console.say(
            f"the VM waits {minutes} min for the job that uses it; Compute Engine deletes it after "
            f"{spoken(lifetime.hard_end - run.clock.now())} in any case"
        )
    run.record.add("vm-ready")
    return instance, True


def claim(run: Run, instance: Instance, guest: Guest) -> None:
    """Say that the VM is in use: its soft end moves to the hard one, its power-off behind that."""
    hard_end = min(hard_end_of(instance), plan_lifetime(run).hard_end)
    lifetime = Lifetime("pipeline", 0, hard_end).claimed()
    run.cloud.edit_labels(instance.name, instance.zone, {"glgpu-expires": str(int(lifetime.soft_end))})
    minutes = max(1, int(hard_end + BACKSTOP_SECONDS - run.clock.now()) // 60)
    ask(run, guest.machine, "ends", str(minutes), doing="moving the VM's power-off")
    run.record.add("vm-claimed", until=int(hard_end))


def _check_gpu(run: Run, guest: Guest) -> None:
    if "none" in run.settings.machine.gpu:
        return
    end = run.clock.now() + GPU_SECONDS
    count = str(run.settings.machine.count)
    while True:
        done = guest.machine.run(command(run, "gpu", count), timeout=60)
        if done.code == 0:
            break
        if done.code == 127 or run.clock.now() > end or "fewer than" in done.complaint:
            raise Failure(
                ErrorClass.DRIVER,
                f"the VM's GPU is not usable: {done.complaint or done.text.strip() or 'nvidia-smi says nothing'}",
                "use a boot image with an NVIDIA driver that fits the GPU (machine.image)",
                f"{done.text}\n{done.complaint}",
            )
        run.clock.sleep(3.0)
    gpus = done.text.strip().splitlines()
    run.console.say(f"GPU: {'; '.join(gpus)}")
    run.record.add("gpu-seen", gpus=gpus)
