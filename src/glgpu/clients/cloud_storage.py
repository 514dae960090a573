"""A Cloud Storage bucket through google-cloud-storage: Terraform's states in it, and outputs that VMs or jobs leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, BinaryIO, Literal

from glgpu.clients.google_calls import GoogleCalls
from glgpu.elsewhere import Part
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Admission, Backend
from glgpu.job import Job
from glgpu.run_names import PREFIX, AnyName, RunName, read_name, server_hash
from glgpu.saved import of_detached

FOLDER = "glgpu/states"
OUTPUTS = "glgpu/outputs"
ENDPOINT = "https://storage.googleapis.com"
PIECE = 8 << 20
"""Bytes that an upload sends at a time: what the library holds in memory, and sends again after a drop."""
STATE, LOCK = "default.tfstate", "default.tflock"
"""What Terraform's gcs backend writes below a prefix (https://developer.hashicorp.com/terraform/language/backend/gcs)."""


class CloudStorage:
    """One bucket.

    Args:
        job: Credentials and endpoint.
        bucket: Its name.
    """

    store: Literal["packages", "bucket"] = "bucket"

    def __init__(self, job: Job, bucket: str) -> None:
        self.bucket = bucket
        self.where = self.kept_in = f"the bucket {bucket}"
        self._job = job
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
        settings = {"bucket": self.bucket, "prefix": f"{FOLDER}/{name}"}
        if self._job.google_endpoint:
            settings["storage_custom_endpoint"] = f"{self._job.google_endpoint}/storage/v1/"
        return Backend("gcs", settings, {})

    def state(self, name: str) -> Literal["absent", "empty", "held"]:
        """What the bucket holds under a state's name; one that was only locked is empty."""
        prefix = f"{FOLDER}/{name}/"
        found = self._google.call(
            "looking at Terraform's state",
            lambda: [blob.name for blob in self._client.list_blobs(self.bucket, prefix=prefix, **self._options)],
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

    def parts(self, run: AnyName) -> dict[str, Part]:
        """What the bucket keeps of a run, by name; what somebody else put there has no checksum."""
        prefix = f"{OUTPUTS}/{run}/"
        found = self._google.call(
            "looking for outputs in the bucket",
            lambda: list(self._client.list_blobs(self.bucket, prefix=prefix, **self._options)),
        )
        parts = [Part(one.name.removeprefix(prefix), one.size, (one.metadata or {}).get("sha256", "")) for one in found]
        return {part.name: part for part in parts}

    def put_part(self, run: AnyName, part: Part, data: BinaryIO) -> None:
        """Keep a part; Google refuses bytes that do not have the checksum with which they were sent."""
        from google.cloud.storage.exceptions import DataCorruption

        blob, doing = self._part(run, part.name), f"uploading {part.name}"
        blob.metadata = {"sha256": part.sha256}
        blob.chunk_size = PIECE
        options = {"checksum": "crc32c", "content_type": "application/octet-stream", **self._google.writing}
        try:
            self._google.call(doing, lambda: blob.upload_from_file(data, size=part.size, **options))
        except DataCorruption as error:
            raise Failure(
                ErrorClass.TRANSIENT,
                f"{doing}: {self.where} has stored other bytes than were sent",
                "retry the job: what is on the VM stays there",
                str(error),
            ) from None

    def get_part(self, run: AnyName, name: str, begin: int, take: Callable[[bytes], object]) -> None:
        """Get a part from a byte on, piece by piece."""
        from google.api_core.exceptions import RequestRangeNotSatisfiable

        blob = self._part(run, name)
        # The library knows the checksum of the whole alone, and raises it after the fact: whoever asked compares.
        options = {"start": begin or None, "raw_download": True, "checksum": None, **self._options}

        def download() -> None:
            with suppress(RequestRangeNotSatisfiable):  # there is nothing from that byte on
                blob.download_to_file(_Taker(take), **options)

        self._google.call(f"fetching {name}", download)

    def page(self, run: AnyName) -> str:
        """Address of the run's folder in Google's console."""
        return f"https://console.cloud.google.com/storage/browser/{self.bucket}/{OUTPUTS}/{run}"

    def admit(self, run: AnyName, until: float) -> Admission:
        """The run's VM has what it needs: its account may create objects, and only that.

        The XML API takes what has no end yet (https://cloud.google.com/storage/docs/xml-api/put-object-upload). An
        account that may create objects may not overwrite one; the header says that this is not wanted either.
        """
        del until  # it ends with the VM
        address = f"{self._job.google_endpoint or ENDPOINT}/{self.bucket}/{OUTPUTS}/{run}/"
        return Admission(address, ("x-goog-if-generation-match: 0",), own_account=True)

    def dismiss(self, run: AnyName) -> int:
        """There is nothing to end: the account goes with the VM."""
        del run
        return 0

    def runs_with_parts(self) -> list[RunName]:
        """Every run of our project of which a VM has left something; what jobs have left is the team's."""
        found: dict[str, list[str]] = {}
        where = f"{OUTPUTS}/{PREFIX}{server_hash(self._job.server_url)}-{self._job.project_id}-"
        listed = self._google.call(
            "looking for outputs in the bucket",
            lambda: list(
                self._client.list_blobs(self.bucket, prefix=where, fields="items(name),nextPageToken", **self._options)
            ),
        )
        for one in listed:
            run, _, name = one.name.removeprefix(f"{OUTPUTS}/").partition("/")
            found.setdefault(run, []).append(name)
        names = [read_name(run) for run, parts in found.items() if of_detached(parts)]
        return [RunName(self._job.server_url, one.project_id, one.run, one.kind) for one in names if one is not None]

    def drop_parts(self, run: AnyName, names: Collection[str]) -> None:
        """Remove parts of a run; not found is success."""
        for name in names:
            gone = partial(self._part(run, name).delete, **self._options)
            self._google.call("removing outputs from the bucket", gone, missing_is_none=True)

    def _part(self, run: AnyName, name: str) -> Any:
        return self._client.bucket(self.bucket).blob(f"{OUTPUTS}/{run}/{name}")

    def _delete(self, name: str, file: str) -> None:
        self._google.call(
            "deleting Terraform's state", lambda: self._blob(name, file).delete(**self._options), missing_is_none=True
        )

    def _blob(self, name: str, file: str) -> Any:
        return self._client.bucket(self.bucket).blob(f"{FOLDER}/{name}/{file}")

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


class _Taker:
    """A file to write to, as the library wants one."""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self._take = take

    def write(self, data: bytes) -> int:
        self._take(data)
        return len(data)
