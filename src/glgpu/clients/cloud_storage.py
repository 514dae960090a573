"""A Cloud Storage bucket through google-cloud-storage: Terraform's states in it."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cached_property
from typing import Any, Literal

from glgpu.clients.google_calls import GoogleCalls
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Backend
from glgpu.job import Job

FOLDER = "glgpu/states"
STATE, LOCK = "default.tfstate", "default.tflock"
"""What Terraform's gcs backend writes below a prefix (https://developer.hashicorp.com/terraform/language/backend/gcs)."""


class CloudStorage:
    """One bucket.

    Args:
        job: Credentials and endpoint.
        bucket: Its name.
    """

    def __init__(self, job: Job, bucket: str) -> None:
        self.where = f"the bucket {bucket}"
        self._job = job
        self._name = bucket
        self._google = GoogleCalls(job)

    def state_writable(self, name: str) -> bool:
        """Whether we may lock a state there: asked by locking it and letting go; False without bucket or rights.

        A lock that is held is a dead job's, since the state is this run's alone: it is broken.
        """
        import google.api_core.exceptions

        lock = self._blob(name, LOCK)

        def write() -> None:
            # The lock of the gcs backend is an object that must not have been there before.
            with suppress(google.api_core.exceptions.PreconditionFailed):
                lock.upload_from_string(json.dumps({"ID": "0", "Who": "glgpu"}), if_generation_match=0, **self._options)

        try:
            self._google.call("asking for Terraform's state", write)
            self._delete(name, LOCK)
        except Failure as failure:
            if failure.klass in (ErrorClass.NOT_FOUND, ErrorClass.PERMISSION):
                return False
            raise
        return True

    def state_backend(self, name: str) -> Backend:
        """How Terraform finds a state there; its credentials are those of the google provider."""
        settings = {"bucket": self._name, "prefix": f"{FOLDER}/{name}"}
        if self._job.google_endpoint:
            settings["storage_custom_endpoint"] = f"{self._job.google_endpoint}/storage/v1/"
        return Backend("gcs", settings, {})

    def state(self, name: str) -> Literal["absent", "empty", "held"]:
        """What the bucket holds under a state's name; one that was only locked is empty."""
        prefix = f"{FOLDER}/{name}/"
        found = self._google.call(
            "looking at Terraform's state",
            lambda: [blob.name for blob in self._client.list_blobs(self._name, prefix=prefix, **self._options)],
            missing_is_none=True,
        )
        if f"{prefix}{STATE}" in (found or []):
            return "held"
        return "empty" if found else "absent"

    def lock_holder(self, name: str) -> str:
        """Who holds a state's lock, in words; empty: nobody."""
        said = self._google.call(
            "looking at the lock of Terraform's state",
            lambda: self._blob(name, LOCK).download_as_bytes(**self._options),
            missing_is_none=True,
        )
        if said is None:
            return ""
        try:
            holder = json.loads(said)
            return f"{holder['Who']} since {holder['Created']}"
        except (ValueError, KeyError, TypeError):
            return "somebody"

    def break_lock(self, name: str) -> None:
        """Take a state's lock away from whoever holds it; none is success."""
        self._delete(name, LOCK)

    def delete_state(self, name: str) -> None:
        """Delete a state; not found is success. One that is locked stays, and is a failure."""
        holder = self.lock_holder(name)
        if holder:
            raise Failure(
                ErrorClass.STATE_LOCK,
                f"{self.where} keeps Terraform's state {name}: it is locked by {holder}",
                "retry the job: a teardown waits for the lock's holder, then breaks it",
            )
        self._delete(name, STATE)

    def _delete(self, name: str, file: str) -> None:
        self._google.call(
            "deleting Terraform's state", lambda: self._blob(name, file).delete(**self._options), missing_is_none=True
        )

    def _blob(self, name: str, file: str) -> Any:
        return self._client.bucket(self._name).blob(f"{FOLDER}/{name}/{file}")

    @property
    def _options(self) -> dict[str, Any]:
        return self._google.reading

    @cached_property
    def _client(self) -> Any:
        # Importing the library takes long: only runs with a bucket pay for it.
        from google.api_core.client_options import ClientOptions
        from google.cloud import storage

        options = ClientOptions(api_endpoint=self._job.google_endpoint) if self._job.google_endpoint else None
        return storage.Client(project="", credentials=self._google.credentials, client_options=options)
