"""Where Terraform keeps the state of a run: the team's bucket, GitLab, or nowhere after the job."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Backend, StateStore
from glgpu.steps.context import Run


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
