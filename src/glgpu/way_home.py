"""By which way outputs of a training come home that its job does not wait for, as far as settings and job tell."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.job import Job
from glgpu.job_times import wants_to_detach
from glgpu.notebook import KIND
from glgpu.run_names import Kind
from glgpu.settings import Settings

STORAGE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
"""The least of Cloud Storage's scopes with which one may create an object
(https://cloud.google.com/storage/docs/oauth-scopes); the account's role says what of it counts."""
BUCKET_VARIABLE = "GLGPU_STORAGE_BUCKET"
MAKE_WAY = (
    "set storage.bucket and storage.uploader (docs/how-to/long-trainings.md), or the CI variable GLGPU_GITLAB_TOKEN "
    "(Maintainer, scope api), or leave train.follow out"
)
"""What helps then."""


def saves_to_bucket(settings: Settings) -> bool:
    """Whether the VM leaves its outputs in the team's bucket: there is one, and an account to do it with."""
    return bool(settings.storage.bucket and (settings.storage.uploader or settings.machine.service_account))


def account_of_vm(settings: Settings, job: Job, kind: Kind = "train") -> dict[str, object] | None:
    """The service account that a VM of these settings gets, as ``terraform/gpu-vm`` wants it; None: none.

    Only what has to save by itself gets the uploader, and no more of Google than Cloud Storage with it. An account that
    the settings want for the VM anyway takes its place.
    """
    if settings.machine.service_account:
        return {"email": settings.machine.service_account}
    alone = kind == KIND or wants_to_detach(settings, job)
    if saves_to_bucket(settings) and job.in_ci and alone:
        return {"email": settings.storage.uploader, "scopes": [STORAGE_SCOPE]}
    return None


def no_way(settings: Settings) -> str:
    """Why a VM could leave its outputs nowhere, where there is no GLGPU_GITLAB_TOKEN either."""
    registry = "the package registry takes them by a deploy token, which GLGPU_GITLAB_TOKEN makes; that is not set here"
    if settings.storage.bucket:
        return f"storage.bucket takes them from the account of storage.uploader, which is not set, and {registry}"
    return f"storage.bucket is not set, and {registry}"


def unseen(settings: Settings, job: Job) -> Failure | None:
    """What is to be said where whoever collects might not know of the bucket; the training itself goes well."""
    bucket = settings.storage.bucket
    if not saves_to_bucket(settings) or job.variables.get(BUCKET_VARIABLE) == bucket:
        return None
    return Failure(
        ErrorClass.CONFIG,
        f"the scheduled cleanup reads no glgpu.yml: it learns of the bucket {bucket} only from VMs that are there",
        f"set the CI variable {BUCKET_VARIABLE} to {bucket}",
    )
