"""End a run and prove it: Terraform destroys what it knows, then Compute Engine is asked, by name and by label."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from glgpu.errors import ErrorClass, Failure, gravest
from glgpu.interfaces import Instance, StateStore
from glgpu.lifetime import Lifetime
from glgpu.machines import Candidate
from glgpu.notebook import KIND
from glgpu.steps.bring_up import terraform_variables
from glgpu.steps.context import Run
from glgpu.steps.detach import revoke
from glgpu.steps.end_vms import Ending, instances_of, still_alive, still_coming, under_way
from glgpu.steps.persist import Attempts
from glgpu.steps.rescue import rescue
from glgpu.steps.state import free, possible_places

TERRAFORM_SECONDS = 300.0
LOCK_SECONDS = 60.0
"""How long the holder of a state's lock is left in peace: a Terraform that is to insert a VM does so within seconds."""
WAIT_SHARE = 0.2
"""Of the time that a teardown has in all: how much each thing that is waited for may take."""
CANCEL_SAVE_SECONDS = 60.0
"""after_script of a cancelled job has little time, and the VM costs money meanwhile."""
CANCEL_WAIT_SECONDS = 90.0
"""How long such a job waits for a VM that is on its way; the Runner gives it five minutes, if nobody says otherwise."""


def tear_down(run: Run, *, hurry: bool = False) -> None:
    """Remove everything of a run and prove that nothing is left.

    Every step is tried even if one before failed, and a signal ends none that matters.

    Args:
        run: The run.
        hurry: Whether there may be seconds left only: then the deletes are asked for before anything else.

    Raises:
        Failure: STILL_ALIVE when something is; else the first thing that failed.
    """
    attempts = Attempts(run)
    ending = Ending(run, attempts)
    if hurry:
        ending.go_on(0, until_gone=False)
    seen = attempts.insist(partial(instances_of, run))
    found = [f"{one.name} in {one.zone} ({one.status})" for one in seen or []]
    run.console.say(f"found: {', '.join(found) or ('no VM' if seen is not None else 'nobody knows')}")
    knowing = run.knowing(seen[0]) if seen else run
    patience = min(knowing.settings.limits.delete_minutes * 60.0, run.job.seconds * WAIT_SHARE)
    states = _states(knowing, attempts)
    for store in states:
        attempts.get(partial(_terraform_destroy, run, store, seen or [], patience))
    # Compute Engine's word decides, whatever Terraform said.
    ending.go_on(patience)
    for rule in (str(run.name), run.name.closed_rule):
        attempts.insist(partial(run.cloud.delete_rule, rule), removes=f"the firewall rule {rule}")
    if ending.clear:
        # A train job between two VMs buys none without rules (steps/preemption.py); one that had still seen them has
        # begun by now.
        ending.go_on(patience)
    if ending.why is None:
        # With its VM alive a disk is in use.
        _delete_disks(run, attempts)
    if run.forge.may_administer:
        attempts.insist(partial(_revoke, run), removes="the deploy key in GitLab")
        attempts.insist(partial(revoke, run, run.forge), removes="the deploy token in GitLab")
    left = _proof(run, found, ending)
    for store in states if left is None else []:
        # The state goes last, and only after the proof: until then it is one more way to find the VM.
        attempts.insist(partial(_delete_state, run, store), removes=f"the state in {store.where}")
    if left is None and attempts.left:
        run.console.say(f"nothing that costs money is left; left for cleanup: {', '.join(attempts.left)}")
        run.record.add("left-for-cleanup", things=attempts.left)
    worst = gravest([*([left] if left else []), *attempts.failures])
    if worst is not None:
        raise worst
    run.console.say("nothing of this run is left: no VM, no disk, no firewall rule")


def cut_short(run: Run) -> None:
    """The cancelled job's teardown: by name and label, with cloud credentials alone, and no time to wait.

    Only a VM that is not there yet is waited for: nobody else would see it come.

    Raises:
        Failure: STILL_ALIVE, when a delete was refused; INTERRUPTED, when all was asked for in spite of a signal.
    """
    attempts, end = Attempts(run), run.clock.now() + CANCEL_SAVE_SECONDS
    alive = attempts.insist(partial(instances_of, run)) or []
    if any(run.knowing(one).settings.train.on_cancel == "save" for one in alive):
        attempts.get(partial(rescue, run, most=end - run.clock.now()))
    knowing = run.knowing(alive[0]) if alive else run
    ending = Ending(run, attempts)
    ending.go_on(min(CANCEL_WAIT_SECONDS, knowing.settings.limits.delete_minutes * 60.0), until_gone=False)
    if ending.coming:
        attempts.failures.append(still_coming(run, ending.coming))
    if ending.why is not None:
        attempts.failures.append(still_alive(run, alive, ending.why.cause))
    worst = gravest(attempts.failures)
    if worst is not None:
        raise worst
    run.console.say(
        f"asked Compute Engine to delete {', '.join(ending.deleted)}"
        if ending.deleted
        else "no VM of this run is alive"
    )


def _states(run: Run, attempts: Attempts) -> list[StateStore]:
    """The places that hold a state of this run."""
    held = []
    for store in possible_places(run):
        step = partial(store.state, str(run.name))
        if attempts.insist(step, removes=f"the state in {store.where}") in ("empty", "held"):
            held.append(store)
    return held


def _terraform_destroy(run: Run, store: StateStore, seen: Sequence[Instance], patience: float) -> None:
    """Let Terraform destroy what a state knows."""
    free(run, store, seconds=min(LOCK_SECONDS, patience))
    if store.state(str(run.name)) != "held":
        return
    stack = run.stack_for(_any_variables(run, seen), store.state_backend(str(run.name)))
    try:
        stack.prepare()
        stack.destroy(min(TERRAFORM_SECONDS, patience))
        run.record.add("terraform-destroyed")
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        # A state that is of no use is no reason to fail.
        run.console.say(f"Terraform: {failure.cause}; going on without it")


def _any_variables(run: Run, seen: Sequence[Instance]) -> dict[str, object]:
    """Variables that Terraform insists on; what it destroys is in its state."""
    zone = seen[0].zone if seen else "us-central1-a"
    any_one = Candidate(
        None, 0, "e2-small", False, False, zone, "pd-balanced", "projects/debian-cloud/global/images/any"
    )
    now = run.clock.now()
    return terraform_variables(run, any_one, Lifetime("pipeline", now, now + 3600))


def _delete_state(run: Run, store: StateStore) -> None:
    free(run, store, seconds=0)
    store.delete_state(str(run.name))


def _revoke(run: Run) -> None:
    # The second is of a job that pushed a notebook's work, and died before it could take its key away.
    titles = [str(run.name), *([run.name.push_title] if run.name.kind == KIND else [])]
    count = sum(run.forge.remove_deploy_keys(title) for title in titles)
    if count:
        run.record.add("deploy-key-removed", count=count)


def _delete_disks(run: Run, attempts: Attempts) -> None:
    for name, zone in attempts.insist(partial(run.cloud.disks, str(run.name))) or []:
        run.console.say(f"deleting the disk {name} in {zone}")
        attempts.insist(partial(run.cloud.delete_disk, name, zone))


def _proof(run: Run, found: list[str], ending: Ending) -> Failure | None:
    """Ask once more, and write down what was found, what was deleted, what is left, and when that was asked."""
    try:
        coming = under_way(run.cloud.operations(str(run.name)))
        alive = instances_of(run)
        disks = run.cloud.disks(str(run.name))
    except Failure as failure:
        run.record.add("proof", found=found, deleted=ending.deleted, left="unknown")
        return failure
    inserts = [f"insert in {one.zone}" for one in coming]
    left = [*(one.name for one in alive), *(name for name, _ in disks), *inserts]
    run.record.add("proof", found=found, deleted=ending.deleted, left=left)
    if alive:
        return still_alive(run, alive, ending.why.cause if ending.why else "deleted, and yet there")
    if coming:
        return still_coming(run, coming)
    if disks:
        name, zone = disks[0]
        return Failure(
            ErrorClass.STILL_ALIVE,
            f"the disk {name} in {zone} is still there",
            f"`gcloud compute disks delete {name} --zone {zone} --project {run.cloud.project}`",
        )
    return None
