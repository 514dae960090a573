"""Where Terraform keeps the state of a run: the team's bucket, GitLab, or nowhere after the job."""

from __future__ import annotations

from glgpu.clock import poll
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Backend, StateStore
from glgpu.lifetime import spoken
from glgpu.steps.context import Run

LOCK_LOOK_SECONDS = 2.0
"""Between two looks at a lock."""


def state_for(run: Run) -> Backend | None:
    """Where Terraform keeps the state of this run; None for one that is thrown away.

    Raises:
        Failure: STATE_ACCESS, when settings insist on a place and it refuses.
    """
    for store in places(run):
        if store.state_writable(str(run.name)):
            return store.state_backend(str(run.name))
        if run.settings.state != "auto":
            raise Failure(
                ErrorClass.STATE_ACCESS,
                f"{store.where} does not let this job write a Terraform state",
                "see which rights are missing with `glgpu doctor`, or set `state: local`",
            )
        run.console.say(f"{store.where} does not let this job write a Terraform state")
    if run.settings.state != "local" and run.job.server_url:
        run.console.say("Terraform's state is thrown away after this job; a teardown needs none")
    return None


def places(run: Run) -> list[StateStore]:
    """Where the state of a run may be by its settings, in order of preference."""
    wanted, bucket = run.settings.state, run.settings.storage.bucket
    found: list[StateStore] = []
    if bucket and wanted in ("auto", "gcs"):
        found.append(run.bucket_for(bucket))
    if wanted == "gitlab" or (wanted == "auto" and run.job.server_url):
        found.append(run.forge)
    return found


def possible_places(run: Run) -> list[StateStore]:
    """Where a state of this run may lie, whatever the settings say now: for a teardown, which may not know them."""
    found: list[StateStore] = []
    if run.settings.storage.bucket:
        found.append(run.bucket_for(run.settings.storage.bucket))
    if run.job.server_url and (run.job.gitlab_token or run.job.job_token):
        found.append(run.forge)
    return found


def free(run: Run, store: StateStore, *, seconds: float) -> None:
    """Wait for whoever holds the lock of the run's state, then break it.

    The state's name is this run's alone. Who holds it may be a Terraform that still lives, though the job that started
    it is dead: left in peace for a while it ends its work, and what it makes is seen. A dead one's lock never goes by
    itself.

    Args:
        run: The run.
        store: Where the state is.
        seconds: How long to wait.

    Raises:
        Failure: the place refuses or cannot be reached.
    """
    name = str(run.name)
    holder = store.lock_holder(name)
    if holder and seconds > 0:
        run.console.say(f"the state in {store.where} is locked by {holder}: waiting for {spoken(seconds)} at most")
        if poll(run.clock, lambda: not store.lock_holder(name) or None, seconds=seconds, every=LOCK_LOOK_SECONDS):
            return
    if holder:
        run.console.say(f"breaking the lock on the state in {store.where}, held by {holder}")
        store.break_lock(name)
        run.record.add("lock-broken", where=store.where, holder=holder)
