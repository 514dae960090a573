"""A VM that is there, reachable and has its GPU: found, or brought up."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance
from glgpu.lifetime import SKEW_SECONDS, Lifetime, spoken
from glgpu.steps.bring_up import bring_up, plan_lifetime
from glgpu.steps.context import Run, hard_end_of
from glgpu.steps.door import Guest, log_in, open_door
from glgpu.steps.gpu import check_gpus
from glgpu.steps.guest import ask_patiently
from glgpu.steps.start_up import StartUp

BACKSTOP_SECONDS = 300
"""A VM powers itself off this long after its time. Five minutes before, it stops letting anybody in (shutdown(8)), and
should not do so any earlier; and a powered-off VM is no longer deleted at its hard end and keeps its disk."""


def new_vm(
    run: Run,
    *,
    hard_end: float = math.inf,
    scarce: Collection[str] = (),
    wanted: Callable[[], None] = lambda: None,
) -> Instance:
    """Bring up the run's VM and leave it ready; one that is of no use is ended at once.

    Args:
        run: The run.
        hard_end: Unix time beyond which it must not live.
        scarce: Zones in which Google has just taken a Spot VM away.
        wanted: Called once it runs; with the failure that it raises the VM goes.

    Raises:
        Failure: whatever stands in the way.
    """
    lifetime = plan_lifetime(run)
    lifetime = replace(lifetime, hard_end=min(lifetime.hard_end, hard_end))
    try:
        with bring_up(run, lifetime, scarce) as instance:
            wanted()
            make_ready(run, instance)
    except Failure as failure:
        # After a conflict, what is there under this name is another job's of this run.
        if failure.klass not in (ErrorClass.INTERRUPTED, ErrorClass.CONFLICT):
            _give_up(run)
        raise
    run.console.say(f"Compute Engine deletes it after {spoken(hard_end_of(instance) - run.clock.now())} in any case")
    return instance


def make_ready(run: Run, instance: Instance) -> None:
    """See that a VM can be reached and has its GPU.

    Whoever brings up, answers for it: the VM powers itself off when nobody claims it.

    Raises:
        Failure: SSH, DRIVER, PREEMPTED, ...
    """
    with open_door(run, instance) as way:
        guest = log_in(run, instance, way)
        minutes = run.settings.limits.claim_minutes
        begun = run.clock.now()
        if not is_claimed(instance):
            _power_off_in(run, guest, minutes * 60)
        StartUp(run, instance).wait(guest.machine)
        check_gpus(run, guest.machine)
        if not is_claimed(instance):
            if run.clock.now() - begun > 60:
                _power_off_in(run, guest, minutes * 60)  # What was installed meanwhile is nobody's waiting time.
            run.console.say(f"the VM waits {minutes} min for the job that uses it")
    run.record.add("vm-ready")


def claim(run: Run, instance: Instance, guest: Guest) -> None:
    """Say that the VM is in use: its soft end moves to the hard one, its power-off behind that.

    The hard end was written by the job that brought the VM up, by its own clock. Taken over as it stands, it lets
    `is_claimed` recognise the claim; and with this job's clock ahead of that one, the power-off must not come first.

    Raises:
        Failure: what Compute Engine or the VM says.
    """
    known = hard_end_of(instance)
    hard_end = known if math.isfinite(known) else plan_lifetime(run).hard_end
    lifetime = Lifetime("pipeline", 0, hard_end).claimed()
    run.cloud.edit_labels(instance.name, instance.zone, {"glgpu-expires": str(int(lifetime.soft_end))})
    _power_off_in(run, guest, hard_end - run.clock.now() + SKEW_SECONDS)
    run.record.add("vm-claimed", until=int(hard_end))


def is_claimed(instance: Instance) -> bool:
    """Whether a job has said that it uses the VM."""
    return instance.labels.get("glgpu-expires", "") == f"{hard_end_of(instance):.0f}"


def _power_off_in(run: Run, guest: Guest, seconds: float) -> None:
    minutes = max(1, int(seconds + BACKSTOP_SECONDS) // 60)
    ask_patiently(run, guest.machine, "ends", str(minutes), doing="setting the VM's power-off")


def _give_up(run: Run) -> None:
    """End what was brought up in vain: nobody waits for its destroy job to save money."""
    try:
        for instance in run.cloud.find(str(run.name)):
            run.cloud.delete_instance(instance.name, instance.zone)
            run.console.say(f"the VM {instance.name} is of no use: asked Compute Engine to delete it")
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        run.console.say(f"the VM could not be ended: {failure.cause}; destroy will end it")
