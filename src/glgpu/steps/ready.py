"""A VM that is there, reachable and has its GPU: found, or brought up."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance
from glgpu.lifetime import Lifetime, spoken
from glgpu.steps.bring_up import bring_up, plan_lifetime
from glgpu.steps.context import Run, hard_end_of
from glgpu.steps.door import Guest, log_in, open_door
from glgpu.steps.guest import ask, command

GPU_SECONDS = 180
"""The driver may still be loading when SSH answers."""
BACKSTOP_SECONDS = 300
"""A VM powers itself off this long after its time. Five minutes before, it stops letting anybody in (shutdown(8)), and
should not do so any earlier; and a powered-off VM is no longer deleted at its hard end and keeps its disk."""


def new_vm(run: Run) -> Instance:
    """Bring up the run's VM and leave it ready; one that is of no use is ended at once.

    Raises:
        Failure: whatever stands in the way.
    """
    lifetime = plan_lifetime(run)
    try:
        with bring_up(run, lifetime) as instance:
            make_ready(run, instance)
    except Failure as failure:
        if failure.klass is not ErrorClass.INTERRUPTED:
            _give_up(run)
        raise
    run.console.say(f"Compute Engine deletes it after {spoken(lifetime.hard_end - run.clock.now())} in any case")
    return instance


def make_ready(run: Run, instance: Instance) -> None:
    """See that a VM can be reached and has its GPU.

    Whoever brings up, answers for it: the VM powers itself off when nobody claims it.

    Raises:
        Failure: SSH, DRIVER, PREEMPTED, ...
    """
    with open_door(run, instance) as way:
        guest = log_in(run, instance, way)
        _check_gpu(run, guest)
        if not is_claimed(instance):
            minutes = run.settings.limits.claim_minutes
            _power_off_in(run, guest, minutes * 60)
            run.console.say(f"the VM waits {minutes} min for the job that uses it")
    run.record.add("vm-ready")


def claim(run: Run, instance: Instance, guest: Guest) -> None:
    """Say that the VM is in use: its soft end moves to the hard one, its power-off behind that.

    Raises:
        Failure: what Compute Engine or the VM says.
    """
    hard_end = min(hard_end_of(instance), plan_lifetime(run).hard_end)
    lifetime = Lifetime("pipeline", 0, hard_end).claimed()
    run.cloud.edit_labels(instance.name, instance.zone, {"glgpu-expires": str(int(lifetime.soft_end))})
    _power_off_in(run, guest, hard_end - run.clock.now())
    run.record.add("vm-claimed", until=int(hard_end))


def is_claimed(instance: Instance) -> bool:
    """Whether a job has said that it uses the VM."""
    return instance.labels.get("glgpu-expires", "") == f"{hard_end_of(instance):.0f}"


def _power_off_in(run: Run, guest: Guest, seconds: float) -> None:
    minutes = max(1, int(seconds + BACKSTOP_SECONDS) // 60)
    ask(run, guest.machine, "ends", str(minutes), doing="setting the VM's power-off")


def _give_up(run: Run) -> None:
    """End what was brought up in vain: nobody waits for its destroy job to save money."""
    try:
        for instance in run.cloud.find(str(run.name)):
            run.cloud.delete_instance(instance.name, instance.zone, wait=False)
            run.console.say(f"the VM {instance.name} is of no use: asked Compute Engine to delete it")
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        run.console.say(f"the VM could not be ended: {failure.cause}; destroy will end it")


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
