"""End a run and prove it: Terraform destroys what it knows, then Compute Engine is asked, by name and by label."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from glgpu.errors import ErrorClass, Failure, gravest
from glgpu.interfaces import Instance, StateStore
from glgpu.lifetime import Lifetime
from glgpu.machines import Candidate
from glgpu.steps.bring_up import terraform_variables
from glgpu.steps.collect import collect
from glgpu.steps.container import Container
from glgpu.steps.context import Run, hard_end_of
from glgpu.steps.door import log_in, open_door
from glgpu.steps.guest import ask
from glgpu.steps.state import possible_places

T = TypeVar("T")
TERRAFORM_SECONDS = 300.0
LOGIN_SECONDS = 30.0
RESCUE_GRACE_SECONDS = 5
CANCEL_SAVE_SECONDS = 60.0
"""after_script of a cancelled job has little time, and the VM costs money meanwhile."""


def instances_of(run: Run) -> list[Instance]:
    """Every instance of the run, found by name and by label: either alone can be fooled."""
    found = {(one.name, one.zone): one for one in run.cloud.find(str(run.name))}
    found |= {(one.name, one.zone): one for one in run.cloud.labelled(run.name.own_labels)}
    return list(found.values())


def rescue(run: Run, *, most: float | None = None) -> None:
    """Bring home what is not home, from every VM of the run that still runs.

    What cannot be saved is said, and stops no teardown.

    Args:
        run: The run.
        most: Seconds that it may take per VM; by default what ``limits.rescue_minutes`` says.

    Raises:
        Failure: INTERRUPTED.
    """
    try:
        found = instances_of(run)
    except Failure as failure:
        _insist(failure)
        run.console.say(f"the cloud cannot be asked what is not home: {failure.cause}")
        return
    for instance in found:
        knowing = run.knowing(instance)
        seconds = most if most is not None else knowing.settings.limits.rescue_minutes * 60.0
        end = min(run.clock.now() + seconds, hard_end_of(instance))
        if instance.status != "RUNNING" or seconds <= 0:
            continue
        try:
            _save(knowing, instance, end)
        except Failure as failure:
            _insist(failure)
            run.console.say(f"saving the outputs of {instance.name}: {failure.cause}")


def tear_down(run: Run) -> None:
    """Remove everything of a run and prove that nothing is left.

    Every step is tried even if one before failed.

    Raises:
        Failure: STILL_ALIVE when something is; else the first thing that failed.
    """
    attempts = Attempts(run)
    seen = attempts.get(partial(instances_of, run))
    found = [f"{one.name} in {one.zone} ({one.status})" for one in seen or []]
    run.console.say(f"found: {', '.join(found) or ('no VM' if seen is not None else 'nobody knows')}")
    knowing = run.knowing(seen[0]) if seen else run
    held = [store for store in possible_places(knowing) if attempts.get(partial(_terraform_destroy, run, store))]
    refused = _delete_instances(run, attempts)
    if refused is None:
        # With its VM alive a disk is in use.
        _delete_disks(run, attempts)
    for rule in (str(run.name), run.name.closed_rule):
        attempts.get(partial(run.cloud.delete_rule, rule))
    if run.forge.may_administer:
        attempts.get(partial(_revoke, run))
    left = _proof(run, found, refused)
    for store in held if left is None else []:
        # The state goes last, and only after the proof: until then it is one more way to find the VM.
        attempts.get(partial(store.delete_state, str(run.name)))
    worst = gravest([*([left] if left else []), *attempts.failures])
    if worst is not None:
        raise worst
    run.console.say("nothing of this run is left: no VM, no disk, no firewall rule")


def cut_short(run: Run) -> None:
    """The cancelled job's teardown: by label, with cloud credentials alone, and no time to wait.

    Raises:
        Failure: STILL_ALIVE, when a delete was refused; INTERRUPTED, when all was asked for in spite of a signal.
    """
    alive = instances_of(run)
    if not alive:
        run.console.say("no VM of this run is alive")
        return
    attempts = Attempts(run)
    if any(run.knowing(one).settings.train.on_cancel == "save" for one in alive):
        attempts.get(partial(rescue, run, most=CANCEL_SAVE_SECONDS))
    for instance in alive:
        try:
            run.cloud.delete_instance(instance.name, instance.zone, wait=False)
            run.console.say(f"asked Compute Engine to delete {instance.name} in {instance.zone}")
            run.record.add("delete-requested", instance=instance.name, zone=instance.zone)
        except Failure as failure:
            attempts.failures.append(still_alive(run, [instance], failure.cause))
    worst = gravest(attempts.failures)
    if worst is not None:
        raise worst


class Attempts:
    """Steps of which each is tried, whatever became of the others.

    Attributes:
        failures: What went wrong, in order.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.failures: list[Failure] = []

    def get(self, step: Callable[[], T]) -> T | None:
        """What a step returns; None where it failed."""
        try:
            return step()
        except Failure as failure:
            self._run.console.say(f"{failure.klass}: {failure.cause}")
            self.failures.append(failure)
            return None


def still_alive(run: Run, instances: list[Instance], why: str) -> Failure:
    """Say what lives, where to see it, and how to end it by hand."""
    first = instances[0]
    project = run.cloud.project
    link = f"https://console.cloud.google.com/compute/instancesDetail/zones/{first.zone}/instances/{first.name}?project={project}"
    names = ", ".join(f"{one.name} ({one.status}, {one.zone})" for one in instances)
    return Failure(
        ErrorClass.STILL_ALIVE,
        f"still alive: {names}: {why}; see {link}",
        f"`gcloud compute instances delete {first.name} --zone {first.zone} --project {project}`",
    )


def _insist(failure: Failure) -> None:
    """A signal is never passed over."""
    if failure.klass is ErrorClass.INTERRUPTED:
        raise failure


def _save(run: Run, instance: Instance, end: float) -> None:
    with open_door(run, instance) as way:
        guest = log_in(run, instance, way, seconds=min(LOGIN_SECONDS, end - run.clock.now()))
        if ask(run, guest.machine, "is-home", doing="asking what is home").text.strip() == "yes":
            run.console.say("the outputs are home already")
            return
        container = Container(run, guest.machine, instance, way)
        state = container.state()
        if state is None:
            run.console.say("no training was started on this VM: nothing to save")
            return
        if state.get("Running"):
            try:
                container.stop(RESCUE_GRACE_SECONDS)
            except Failure as failure:
                _insist(failure)
                run.console.say(f"{failure.cause}; what is there is saved all the same")
        train = run.settings.train
        paths = [*train.outputs, *([train.checkpoints] if train.checkpoints else [])]
        home = collect(run, guest.machine, guest.home, paths, seconds=end - run.clock.now())
        run.console.say(f"saved {home.files} files, {home.size} bytes")


def _terraform_destroy(run: Run, store: StateStore) -> bool:
    """Let Terraform destroy what a state knows; whether there is one of this run at all."""
    state = store.state(str(run.name))
    if state != "held":
        return state == "empty"
    stack = run.stack_for(_any_variables(run), store.state_backend(str(run.name)))
    try:
        stack.prepare()
        stack.destroy(TERRAFORM_SECONDS)
        run.record.add("terraform-destroyed")
    except Failure as failure:
        _insist(failure)
        # Compute Engine's word decides, and it comes next; a state that is of no use is no reason to fail.
        run.console.say(f"Terraform: {failure.cause}; going on without it")
    return True


def _any_variables(run: Run) -> dict[str, object]:
    """Variables that Terraform insists on; what it destroys is in its state."""
    known = next(iter(instances_of(run)), None)
    zone = known.zone if known else "us-central1-a"
    any_one = Candidate(
        None, 0, "e2-small", False, False, zone, "pd-balanced", "projects/debian-cloud/global/images/any"
    )
    now = run.clock.now()
    return terraform_variables(run, any_one, Lifetime("pipeline", now, now + 3600))


def _revoke(run: Run) -> None:
    count = run.forge.remove_deploy_keys(str(run.name))
    if count:
        run.record.add("deploy-key-removed", count=count)


def _delete_instances(run: Run, attempts: Attempts) -> Failure | None:
    """Delete every VM of the run; why one was not deleted, if so."""
    instances = attempts.get(partial(instances_of, run)) or []
    before = len(attempts.failures)
    for instance in instances:
        run.console.say(f"deleting {instance.name} in {instance.zone}")
        attempts.get(partial(run.cloud.delete_instance, instance.name, instance.zone))
    return next(iter(attempts.failures[before:]), None)


def _delete_disks(run: Run, attempts: Attempts) -> None:
    for name, zone in attempts.get(partial(run.cloud.disks, str(run.name))) or []:
        run.console.say(f"deleting the disk {name} in {zone}")
        attempts.get(partial(run.cloud.delete_disk, name, zone))


def _proof(run: Run, found: list[str], refused: Failure | None) -> Failure | None:
    """Ask once more, and write down what was found, what is left, and when that was asked."""
    try:
        alive = instances_of(run)
        disks = run.cloud.disks(str(run.name))
    except Failure as failure:
        run.record.add("proof", found=found, left="unknown")
        return failure
    run.record.add("proof", found=found, left=[*(one.name for one in alive), *(name for name, _ in disks)])
    if alive:
        return still_alive(run, alive, refused.cause if refused else "deleted, and yet there")
    if disks:
        name, zone = disks[0]
        return Failure(
            ErrorClass.STILL_ALIVE,
            f"the disk {name} in {zone} is still there",
            f"`gcloud compute disks delete {name} --zone {zone} --project {run.cloud.project}`",
        )
    return None
