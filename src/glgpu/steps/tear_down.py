"""End a run and prove it: Terraform destroys what it knows, then Compute Engine is asked, by name and by label."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial

from glgpu.errors import ErrorClass, Failure, gravest
from glgpu.interfaces import Instance
from glgpu.lifetime import Lifetime
from glgpu.machines import Candidate
from glgpu.steps.bring_up import terraform_variables
from glgpu.steps.collect import collect
from glgpu.steps.context import Run
from glgpu.steps.door import log_in, open_door
from glgpu.steps.guest import ask, command

TERRAFORM_SECONDS = 300.0
CANCEL_SAVE_SECONDS = 60.0
"""after_script has five minutes in all, and the VM costs money meanwhile."""


def instances_of(run: Run) -> list[Instance]:
    """Every instance of the run, found by name and by label: either alone can be fooled."""
    found = {(one.name, one.zone): one for one in run.cloud.find(str(run.name))}
    found |= {(one.name, one.zone): one for one in run.cloud.labelled(run.name.own_labels)}
    return list(found.values())


def rescue(run: Run, seconds: float) -> None:
    """Bring home what is not home, from every VM of the run that still runs, within ``seconds``.

    What cannot be saved is said, and stops no teardown.
    """
    try:
        found = instances_of(run)
    except Failure as failure:
        run.console.say(f"the cloud cannot be asked what is not home: {failure.cause}")
        return
    for instance in found:
        knowing = run.knowing(instance)
        if instance.status != "RUNNING" or seconds <= 0:
            continue
        with contextlib.suppress(Failure):
            _within(seconds, run, f"saving the outputs of {instance.name}", partial(_save, knowing, instance))


def tear_down(run: Run) -> None:
    """Remove everything of a run and prove that nothing is left.

    Every step is tried even if one before failed.

    Raises:
        Failure: STILL_ALIVE when something is; else the first thing that failed.
    """
    failures: list[Failure] = []

    def attempt(step: Callable[[], None]) -> None:
        try:
            step()
        except Failure as failure:
            run.console.say(f"{failure.klass}: {failure.cause}")
            failures.append(failure)

    found: list[str] = []
    attempt(lambda: found.extend(f"{one.name} in {one.zone} ({one.status})" for one in instances_of(run)))
    run.console.say(f"found: {', '.join(found) or 'no VM'}")
    state_known: list[bool] = []
    attempt(lambda: state_known.append(_terraform_destroy(run)))
    attempt(lambda: _delete_instances(run))
    attempt(lambda: _delete_disks(run))
    attempt(lambda: run.cloud.delete_rule(str(run.name)))
    attempt(lambda: run.cloud.delete_rule(run.name.closed_rule))
    if run.forge.may_administer:
        attempt(lambda: _revoke(run))
    left = [failure for failure in [_proof(run, found)] if failure is not None]
    if not left and state_known and state_known[0]:
        # The state goes last, and only after the proof: until then it is one more way to find the VM.
        attempt(lambda: run.forge.delete_state(str(run.name)))
    worst = gravest([*left, *failures])
    if worst is not None:
        raise worst
    run.console.say("nothing of this run is left: no VM, no disk, no firewall rule")


def cut_short(run: Run) -> None:
    """The cancelled job's teardown: by label, with cloud credentials alone, and no time to wait.

    Raises:
        Failure: STILL_ALIVE, when a delete was refused.
    """
    alive = instances_of(run)
    if not alive:
        run.console.say("no VM of this run is alive")
        return
    if any(run.knowing(one).settings.train.on_cancel == "save" for one in alive):
        rescue(run, CANCEL_SAVE_SECONDS)
    for instance in alive:
        try:
            run.cloud.delete_instance(instance.name, instance.zone, wait=False)
            run.console.say(f"asked Compute Engine to delete {instance.name} in {instance.zone}")
            run.record.add("delete-requested", instance=instance.name, zone=instance.zone)
        except Failure as failure:
            raise still_alive(run, [instance], failure.cause) from None


def still_alive(run: Run, instances: list[Instance], why: str) -> Failure:
    """Say what lives, where to see it, and how to end it by hand."""
    first = instances[0]
    project = run.cloud.project
    link = f"https://console.cloud.google.com/compute/instancesDetail/zones/{first.zone}/instances/{first.name}?project={project}"
    names = ", ".join(f"{one.name} ({one.status}, {one.zone})" for one in instances)
    return Failure(
        ErrorClass.STILL_ALIVE,
        f"still alive: {names}: {why}; see {link}",
        f"gcloud compute instances delete {first.name} --zone {first.zone} --project {project}",
    )


def _save(run: Run, instance: Instance) -> None:
    with open_door(run, instance):
        guest = log_in(run, instance, seconds=30)
        if ask(run, guest.machine, "is-home", doing="asking what is home").text.strip() == "yes":
            run.console.say("the outputs are home already")
            return
        state = ask(run, guest.machine, "state", doing="asking for the container").text
        if '"Running"' not in state:
            run.console.say("no training was started on this VM: nothing to save")
            return
        if '"Running":true' in state:
            guest.machine.run(command(run, "stop", "5"), timeout=30)
        paths = [
            *run.settings.train.outputs,
            *([run.settings.train.checkpoints] if run.settings.train.checkpoints else []),
        ]
        home = collect(run, guest.machine, guest.home, paths)
        run.console.say(f"saved {home.files} files, {home.size} bytes")


def _terraform_destroy(run: Run) -> bool:
    """Let Terraform destroy what its state knows; whether GitLab has a state of this run at all."""
    if not (run.job.gitlab_token or run.job.job_token):
        return False
    state = run.forge.state(str(run.name))
    if state != "held":
        return state == "empty"
    stack = run.stack_for(_any_variables(run), run.forge.state_environment(str(run.name)))
    try:
        stack.prepare()
        stack.destroy(TERRAFORM_SECONDS)
        run.record.add("terraform-destroyed")
    except Failure as failure:
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


def _delete_instances(run: Run) -> None:
    for instance in instances_of(run):
        run.console.say(f"deleting {instance.name} in {instance.zone}")
        run.cloud.delete_instance(instance.name, instance.zone)


def _delete_disks(run: Run) -> None:
    for name, zone in run.cloud.disks(str(run.name)):
        run.console.say(f"deleting the disk {name} in {zone}")
        run.cloud.delete_disk(name, zone)


def _revoke(run: Run) -> None:
    count = run.forge.remove_deploy_keys(str(run.name))
    if count:
        run.record.add("deploy-key-removed", count=count)


def _proof(run: Run, found: list[str]) -> Failure | None:
    """Ask once more, and write down what was found, what is left, and when that was asked."""
    try:
        alive = instances_of(run)
        disks = run.cloud.disks(str(run.name))
    except Failure as failure:
        run.record.add("proof", found=found, left="unknown")
        return failure
    run.record.add("proof", found=found, left=[*(one.name for one in alive), *(name for name, _ in disks)])
    if alive:
        return still_alive(run, alive, "deleted, and yet there")
    if disks:
        name, zone = disks[0]
        return Failure(
            ErrorClass.STILL_ALIVE,
            f"the disk {name} in {zone} is still there",
            f"gcloud compute disks delete {name} --zone {zone} --project {run.cloud.project}",
        )
    return None


def _within(seconds: float, run: Run, doing: str, work: Callable[[], None]) -> None:
    """Do something for at most ``seconds``: a teardown waits for nobody.

    Raises:
        Failure: what went wrong; OUT_OF_TIME.
    """
    failures: list[Failure] = []

    def guarded() -> None:
        try:
            work()
        except Failure as failure:
            failures.append(failure)

    worker = threading.Thread(target=guarded, daemon=True)
    worker.start()
    worker.join(seconds)
    if worker.is_alive():
        failures.append(Failure(ErrorClass.OUT_OF_TIME, f"{doing}: not done within {seconds:.0f} s", "nothing to do"))
    if failures:
        run.console.say(f"{doing}: {failures[0].cause}")
        raise failures[0]
