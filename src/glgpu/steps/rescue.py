"""Bring home what is not home before a VM goes: whole files only, and for a bounded time."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance
from glgpu.lifetime import SKEW_SECONDS, spoken
from glgpu.notebook import KIND, WORKSPACE
from glgpu.processes import time_limit
from glgpu.steps.collect import Home, collect
from glgpu.steps.container import Container
from glgpu.steps.context import Run, hard_end_of
from glgpu.steps.door import Guest, log_in, open_door
from glgpu.steps.end_vms import instances_of
from glgpu.steps.guest import ask
from glgpu.steps.move_out import move_out
from glgpu.steps.watch import bring_samples

LOGIN_SECONDS = 30.0
RESCUE_GRACE_SECONDS = 5
RESCUE_SHARE = 0.4
"""Of the time that a job has in all: how much saving may take, so that the teardown itself has enough."""
NOTEBOOK_SHARE = 0.5
"""Of what is left then: how much the VM gets to end a notebook, and to leave its work where the next one finds it."""
CLOSING_SECONDS = 3.0
"""Before the end of the time: what is under way is ended then, to close the door behind us."""


def rescue(run: Run, *, most: float | None = None) -> list[Instance]:
    """Bring home what is not home, from every VM of the run that still runs.

    What cannot be saved is said, and stops no teardown. All of it ends in time, logins and calls to Google included,
    whatever they wait for. The hard end is Google's to keep; what the VM says of it was counted by another machine's
    clock, so that a VM is given up only once it must be gone by any clock.

    Args:
        run: The run.
        most: Seconds that it may take in all; by default what ``limits.rescue_minutes`` says.

    Returns:
        The VMs of which all that there is has come home.

    Raises:
        Failure: INTERRUPTED; or what came home is too much for artifacts, and whoever should take it did not.
    """
    begun, lost, whole = run.clock.now(), None, list[Instance]()
    try:
        found = [one for one in instances_of(run) if one.status == "RUNNING"]
    except Failure as failure:
        _insist(failure)
        run.console.say(f"the cloud cannot be asked what is not home: {failure.cause}")
        return []
    if not found:
        # A job that was cut off between two VMs has at home all that there is.
        lost = _handed_over(run)
    for instance in found:
        knowing = run.knowing(instance)
        own = knowing.settings.limits.rescue_minutes * 60.0
        seconds = min(own if most is None else most, run.job.seconds * RESCUE_SHARE)
        end = min(begun + seconds, hard_end_of(instance) + SKEW_SECONDS)
        left = end - CLOSING_SECONDS - run.clock.now()
        if left <= 0:
            continue
        try:
            with time_limit(left, f"not all of it was saved within {spoken(seconds)}"):
                lost = _save(knowing, instance, run.clock.now() + left) or lost
        except Failure as failure:
            _insist(failure)
            run.console.say(f"saving the outputs of {instance.name}: {failure.cause}")
        else:
            whole.append(instance)
    if lost is not None:
        raise lost
    return whole


def _insist(failure: Failure) -> None:
    """A signal is never passed over."""
    if failure.klass is ErrorClass.INTERRUPTED:
        raise failure


def _save(run: Run, instance: Instance, end: float) -> Failure | None:
    """Bring home what the VM has; why GitLab does not take it, if it does not."""
    with open_door(run, instance) as way:
        guest = log_in(run, instance, way, seconds=min(LOGIN_SECONDS, end - run.clock.now()))
        if ask(run, guest.machine, "is-home", doing="asking what is home").text.strip() == "yes":
            run.console.say("the outputs are home already")
            return None
        container = Container(run, guest.machine, instance, way)
        state = container.state()
        if state is None:
            run.console.say("no training was started on this VM: nothing to save")
            return None
        if run.name.kind == KIND:
            home = _end_notebook(run, guest, end)
            run.console.say(f"saved {home.files} files of the workspace, {home.size} bytes")
            return _handed_over(run)
        if state.get("Running"):
            try:
                container.stop(RESCUE_GRACE_SECONDS)
            except Failure as failure:
                _insist(failure)
                run.console.say(f"{failure.cause}; what is there is saved all the same")
        train = run.settings.train
        paths = [*train.outputs, *([train.checkpoints] if train.checkpoints else [])]
        bring_samples(run, guest.machine)
        home = collect(run, guest.machine, guest.home, paths, seconds=end - run.clock.now())
        run.console.say(f"saved {home.files} files, {home.size} bytes")
    return _handed_over(run)


def _end_notebook(run: Run, guest: Guest, end: float) -> Home:
    """End a notebook and bring home what has changed in its workspace; the VM leaves that for its next one too.

    Raises:
        Failure: as of `collect`.
    """
    words = [f"{guest.home}/code", str(run.settings.notebook.save_mb * 1024 * 1024)]
    try:
        ask(
            run,
            guest.machine,
            "see-home",
            "end-notebook",
            *words,
            timeout=(end - run.clock.now()) * NOTEBOOK_SHARE,
            doing="ending the notebook",
        )
    except Failure as failure:
        _insist(failure)
        run.console.say(f"{failure.cause}; what was saved before comes home all the same")
    bring_samples(run, guest.machine)
    left = end - run.clock.now()
    return collect(run, guest.machine, guest.home, [WORKSPACE], seconds=left, folder=f"{guest.home}/work")


def _handed_over(run: Run) -> Failure | None:
    """See to it that GitLab takes what is home; why it does not."""
    try:
        move_out(run, last_copy=True)
    except Failure as failure:
        _insist(failure)
        run.console.say(f"{failure.klass}: {failure.cause}")
        return failure
    return None
