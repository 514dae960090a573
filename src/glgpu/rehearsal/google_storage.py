"""Cloud Storage: buckets and objects, over its JSON API and, for downloads, its XML API, which Go's client reads by."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

import google_crc32c

from glgpu.rehearsal.compute_resources import Resource
from glgpu.rehearsal.google_access import Policy, Principal, tested
from glgpu.rehearsal.google_errors import Refusal, not_found
from glgpu.rehearsal.google_requests import Answer, Handler, Project, Reply, Request, stamp

BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
WIDE_PLACES = ("ASIA", "EU", "US")
"""Locations of several regions; every other is one region."""
DEFAULT_PAGE = 1000
XML_CODES = {400: "InvalidArgument", 401: "AuthenticationRequired", 403: "AccessDenied", 412: "PreconditionFailed"}
"""What the XML API calls a refusal (https://cloud.google.com/storage/docs/xml-api/reference-status)."""
RESUME = 308
"""The status that asks for the rest of an upload."""
CHANGEABLE = (
    "cors",
    "defaultEventBasedHold",
    "encryption",
    "iamConfiguration",
    "labels",
    "lifecycle",
    "logging",
    "rpo",
    "softDeletePolicy",
    "storageClass",
    "versioning",
    "website",
    "retentionPolicy",
    "autoclass",
)
DESCRIBED = (
    "cacheControl",
    "contentDisposition",
    "contentEncoding",
    "contentLanguage",
    "contentType",
    "customTime",
    "metadata",
)


@dataclass
class StoredObject:
    """One generation of an object.

    Attributes:
        resource: What callers see of it.
        content: Its bytes.
    """

    resource: Resource
    content: bytes


@dataclass
class Bucket:
    """A bucket.

    Attributes:
        resource: What callers see of it.
        policy: Its allow policy.
        objects: Name to generations, oldest first; the last one is live unless ``timeDeleted`` is in it.
    """

    resource: Resource
    policy: Policy
    objects: dict[str, list[StoredObject]] = field(default_factory=dict)

    def live(self, name: str) -> StoredObject | None:
        """The generation of an object that is there now."""
        found = self.objects.get(name)
        return found[-1] if found and "timeDeleted" not in found[-1].resource else None


@dataclass(frozen=True)
class Upload:
    """An upload in pieces.

    Attributes:
        request: The call that began it.
        kind: The announced type of content.
        received: What has come so far.
    """

    request: Request
    kind: str
    received: bytearray


class Storage:
    """The handlers.

    Attributes:
        buckets: The buckets by name.
    """

    def __init__(self, project: Project) -> None:
        self.buckets: dict[str, Bucket] = {}
        self._project = project
        self._uploads: dict[str, Upload] = {}
        self._last_generation = 0

    def handlers(self) -> dict[str, Handler]:
        """Method to handler."""
        return {
            "storage.buckets.insert": self._insert_bucket,
            "storage.buckets.get": lambda request: self._bucket(request, "storage.buckets.get").resource,
            "storage.buckets.list": self._list_buckets,
            "storage.buckets.patch": self._patch_bucket,
            "storage.buckets.update": self._patch_bucket,
            "storage.buckets.delete": self._delete_bucket,
            "storage.buckets.getIamPolicy": self._get_policy,
            "storage.buckets.setIamPolicy": self._set_policy,
            "storage.buckets.testIamPermissions": self._test_permissions,
            "storage.anywhereCaches.list": self._list_caches,
            "storage.objects.insert": self._insert_object,
            "storage.objects.get": self._get_object,
            "storage.objects.list": self._list_objects,
            "storage.objects.patch": self._patch_object,
            "storage.objects.delete": self._delete_object,
        }

    # Buckets

    def _insert_bucket(self, request: Request) -> Resource:
        if not self._project.is_meant(request.query.get("project", "")):
            raise _no_access(request.principal, "storage.buckets.create", "project")
        if not self._project.allows(request, "storage.buckets.create"):
            raise _no_access(request.principal, "storage.buckets.create", "project")
        name = request.body.get("name", "")
        if not BUCKET_NAME.fullmatch(name) or name.startswith("goog"):
            raise Refusal(400, f"Invalid bucket name: '{name}'", reason="invalid")
        if name in self.buckets:
            text = "Your previous request to create the named bucket succeeded and you already own it."
            raise Refusal(409, text, reason="conflict")
        return self.make(name, request.address, request.body)

    def make(self, name: str, address: str, body: Resource) -> Resource:
        """Make a bucket; as callers see it."""
        now = self._project.stamp()
        location = body.get("location", "US").upper()
        resource: Resource = {
            "kind": "storage#bucket",
            "id": name,
            "selfLink": f"{address}/storage/v1/b/{name}",
            "name": name,
            "projectNumber": self._project.number,
            "generation": self._new_generation(),
            "metageneration": "1",
            "location": location,
            "locationType": "multi-region" if location in WIDE_PLACES else "region",
            "storageClass": "STANDARD",
            "timeCreated": now,
            "updated": now,
            "softDeletePolicy": {"retentionDurationSeconds": "604800", "effectiveTime": now},
            **{key: body[key] for key in CHANGEABLE if key in body},
        }
        self._complete(resource)
        team = f":{self._project.id}"
        owners = [f"projectEditor{team}", f"projectOwner{team}"]
        bindings: list[Resource] = [
            {"role": "roles/storage.legacyBucketOwner", "members": owners},
            {"role": "roles/storage.legacyBucketReader", "members": [f"projectViewer{team}"]},
        ]
        self.buckets[name] = Bucket(resource, Policy(bindings))
        return resource

    def _complete(self, resource: Resource) -> None:
        """Fill in what Google fills in, and count the change."""
        now = self._project.stamp()
        access = dict(resource.get("iamConfiguration", {}))
        uniform = dict(access.get("uniformBucketLevelAccess", {"enabled": False}))
        if uniform.get("enabled"):
            uniform.setdefault("lockedTime", stamp(self._project.clock.now() + 90 * 86400))
        access["uniformBucketLevelAccess"] = access["bucketPolicyOnly"] = uniform
        access.setdefault("publicAccessPrevention", "inherited")
        resource["iamConfiguration"] = access
        soft = resource.get("softDeletePolicy")
        if soft is not None and soft.get("retentionDurationSeconds") != "0":
            soft.setdefault("effectiveTime", now)
        for key in ("labels", "versioning", "lifecycle", "cors"):
            if not resource.get(key):
                resource.pop(key, None)
        resource["updated"] = now
        resource["etag"] = base64.b64encode(resource["metageneration"].encode()).decode()

    def _bucket(self, request: Request, permission: str) -> Bucket:
        """The bucket that is meant, for a caller who may do this to it."""
        bucket = self.buckets.get(request.names["bucket"])
        if bucket is None:
            raise not_found("The specified bucket does not exist.")
        self._require(request, bucket, permission)
        return bucket

    def _require(self, request: Request, bucket: Bucket, permission: str) -> None:
        named = request.names.get("object") or request.body.get("name") or request.query.get("name")
        resource = _full_name(request.names["bucket"], named if permission.startswith("storage.objects.") else "")
        if not self._project.access.allows(request.principal, permission, bucket.policy, resource=resource):
            raise _no_access(request.principal, permission, permission.split(".")[1].removesuffix("s"))

    def _list_buckets(self, request: Request) -> Resource:
        if not self._project.allows(request, "storage.buckets.list"):
            raise _no_access(request.principal, "storage.buckets.list", "project")
        return {"kind": "storage#buckets", "items": [bucket.resource for bucket in self.buckets.values()]}

    def _patch_bucket(self, request: Request) -> Resource:
        bucket = self._bucket(request, "storage.buckets.update")
        _check_number("metageneration", bucket.resource["metageneration"], request.query)
        resource = bucket.resource
        for key, value in request.body.items():
            if key in CHANGEABLE:
                changed = {**resource.get(key, {}), **value} if key == "iamConfiguration" else value
                resource[key] = changed
        resource["metageneration"] = str(int(resource["metageneration"]) + 1)
        self._complete(resource)
        return resource

    def _delete_bucket(self, request: Request) -> Reply:
        bucket = self._bucket(request, "storage.buckets.delete")
        if bucket.objects:
            raise Refusal(409, "The bucket you tried to delete is not empty.", reason="conflict")
        del self.buckets[request.names["bucket"]]
        return Reply(204)

    def _get_policy(self, request: Request) -> Resource:
        bucket = self._bucket(request, "storage.buckets.getIamPolicy")
        return self._shown_policy(request.names["bucket"], bucket)

    def _set_policy(self, request: Request) -> Resource:
        bucket = self._bucket(request, "storage.buckets.setIamPolicy")
        bucket.policy = self._project.access.checked(request.body, bucket.policy)
        public = {"allUsers", "allAuthenticatedUsers"} & {m for b in bucket.policy.bindings for m in b["members"]}
        if public and bucket.resource["iamConfiguration"]["publicAccessPrevention"] == "enforced":
            raise Refusal(
                412,
                "The member bindings allUsers and allAuthenticatedUsers are not allowed since public access prevention "
                "is enforced.",
                reason="conditionNotMet",
            )
        return self._shown_policy(request.names["bucket"], bucket)

    def _shown_policy(self, name: str, bucket: Bucket) -> Resource:
        return {"kind": "storage#policy", "resourceId": f"projects/_/buckets/{name}", **bucket.policy.shown()}

    def _test_permissions(self, request: Request) -> Resource:
        bucket = self.buckets.get(request.names["bucket"])
        if bucket is None:
            raise not_found("The specified bucket does not exist.")
        asked = tested(request.query["permissions"].split(","))
        held = [p for p in asked if self._project.access.allows(request.principal, p, bucket.policy)]
        return {"kind": "storage#testIamPermissionsResponse"} | ({"permissions": held} if held else {})

    def _list_caches(self, request: Request) -> Resource:
        self._bucket(request, "storage.anywhereCaches.list")
        return {"kind": "storage#anywhereCaches"}

    # Objects

    def _insert_object(self, request: Request) -> Answer:
        self._check_upload(request)
        if request.query.get("uploadType") != "resumable":
            kind = request.body.get("contentType") or request.headers.get("content-type", "")
            return self._store(request, request.media, kind)
        upload_id = secrets.token_urlsafe(32)
        kind = request.headers.get("x-upload-content-type", "")
        self._uploads[upload_id] = Upload(request, kind, bytearray())
        bucket_name = request.names["bucket"]
        path = f"/upload/storage/v1/b/{bucket_name}/o?uploadType=resumable&upload_id={upload_id}"
        return Reply(200, b"", {"Location": request.address + path, "X-GUploader-UploadID": upload_id})

    def _check_upload(self, request: Request) -> None:
        """Who may create an object may not therefore replace one."""
        bucket = self._bucket(request, "storage.objects.create")
        name = self._object_name(request)
        self._check_preconditions(bucket, name, request.query)
        if bucket.live(name) is not None:
            self._require(request, bucket, "storage.objects.delete")

    def upload(self, request: Request) -> Reply:
        """Take an object over the XML API (https://cloud.google.com/storage/docs/xml-api/put-object-upload).

        Raises:
            Refusal: As of any upload.
        """
        self._check_upload(request)
        resource = self._store(request, request.media, request.headers.get("content-type", ""))
        headers = {
            "ETag": f'"{base64.b64decode(resource["md5Hash"]).hex()}"',
            "X-Goog-Generation": resource["generation"],
            "X-Goog-Metageneration": resource["metageneration"],
            "X-Goog-Hash": f"crc32c={resource['crc32c']},md5={resource['md5Hash']}",
            "X-Goog-Stored-Content-Length": resource["size"],
        }
        return Reply(200, b"", headers)

    @staticmethod
    def refused(refusal: Refusal) -> Reply:
        """A refusal as the XML API says it."""
        code = XML_CODES.get(refusal.code, "InternalError")
        return _xml_error(refusal.code, "NoSuchBucket" if refusal.code == 404 else code, escape(str(refusal)))

    def resume(self, upload_id: str, headers: Mapping[str, str], piece: bytes) -> Answer:
        """Take a piece of an upload; its address is credential enough.

        Raises:
            Refusal: There is no such upload, or the piece does not follow the last one.
        """
        upload = self._uploads.get(upload_id)
        if upload is None:
            raise not_found("Not Found")
        found = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", headers.get("content-range", "bytes */*"))
        if found is None or (found[1] and int(found[1]) != len(upload.received)):
            raise Refusal(400, "Invalid request. There were bytes missing or given twice.", reason="badRequest")
        upload.received.extend(piece)
        whole = "content-range" not in headers or found[3] == str(len(upload.received))
        if not whole:
            known = {"Range": f"bytes=0-{len(upload.received) - 1}"} if upload.received else {}
            return Reply(RESUME, b"", {"X-GUploader-UploadID": upload_id, **known})
        del self._uploads[upload_id]
        bucket = self.buckets[upload.request.names["bucket"]]
        self._check_preconditions(bucket, self._object_name(upload.request), upload.request.query)
        return self._store(
            upload.request, bytes(upload.received), upload.request.body.get("contentType") or upload.kind
        )

    def _object_name(self, request: Request) -> str:
        name = request.body.get("name") or request.query.get("name", "")
        if not name or len(name.encode()) > 1024 or "\n" in name or "\r" in name:
            raise Refusal(400, "Required: name" if not name else f"Invalid object name: {name!r}", reason="required")
        return str(name)

    def _store(self, request: Request, content: bytes, kind: str) -> Resource:
        bucket_name, name = request.names["bucket"], self._object_name(request)
        bucket, generation, now = self.buckets[bucket_name], self._new_generation(), self._project.stamp()
        path = f"storage/v1/b/{bucket_name}/o/{quote(name, safe='')}"
        resource = {
            "kind": "storage#object",
            "id": f"{bucket_name}/{name}/{generation}",
            "selfLink": f"{request.address}/{path}",
            "mediaLink": f"{request.address}/download/{path}?generation={generation}&alt=media",
            "name": name,
            "bucket": bucket_name,
            "generation": generation,
            "metageneration": "1",
            "storageClass": "STANDARD",
            "size": str(len(content)),
            "md5Hash": base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode(),
            "crc32c": base64.b64encode(google_crc32c.value(content).to_bytes(4)).decode(),
            "etag": base64.b64encode(generation.encode()).decode(),
            "timeCreated": now,
            "updated": now,
            "timeStorageClassUpdated": now,
            "timeFinalized": now,
            **{key: request.body[key] for key in DESCRIBED if key in request.body},
        }
        for sum_name in ("md5Hash", "crc32c"):
            if request.body.get(sum_name, resource[sum_name]) != resource[sum_name]:
                raise Refusal(400, f"Provided {sum_name} hash doesn't match calculated hash.", reason="invalid")
        if kind:
            resource["contentType"] = kind
        self._retire(bucket, name)
        bucket.objects.setdefault(name, []).append(StoredObject(resource, content))
        return resource

    def _retire(self, bucket: Bucket, name: str) -> None:
        """The live generation goes; where the bucket has versioning, it is kept as a noncurrent one."""
        old = bucket.live(name)
        if old is None:
            return
        if bucket.resource.get("versioning", {}).get("enabled"):
            old.resource["timeDeleted"] = self._project.stamp()
            return
        bucket.objects[name].remove(old)
        if not bucket.objects[name]:
            del bucket.objects[name]

    def _get_object(self, request: Request) -> Answer:
        bucket = self._bucket(request, "storage.objects.get")
        found = self._object(bucket, request)
        if request.query.get("alt") != "media":
            return found.resource
        return _download(found, request.headers)

    def download(self, bucket_name: str, name: str, principal: Principal, request: Mapping[str, str]) -> Reply:
        """An object's content over the XML API (https://cloud.google.com/storage/docs/xml-api/get-object-download).

        Args:
            bucket_name: Of a bucket that is there.
            name: The object's.
            principal: Who asks.
            request: Header fields of the request.
        """
        bucket = self.buckets[bucket_name]
        resource = _full_name(bucket_name, name)
        if not self._project.access.allows(principal, "storage.objects.get", bucket.policy, resource=resource):
            return _xml_error(403, "AccessDenied", "Access denied.")
        found = bucket.live(name)
        if found is None:
            return _xml_error(404, "NoSuchKey", "The specified key does not exist.")
        return _download(found, request)

    def _object(self, bucket: Bucket, request: Request) -> StoredObject:
        """The generation that is meant: the one that the query names, else the live one."""
        bucket_name, name = request.names["bucket"], request.names["object"]
        generation = request.query.get("generation")
        kept = [o for o in bucket.objects.get(name, []) if o.resource["generation"] == generation]
        found = kept[0] if generation and kept else (None if generation else bucket.live(name))
        if found is None:
            raise not_found(f"No such object: {bucket_name}/{name}")
        self._check_preconditions(bucket, name, request.query)
        return found

    def _list_objects(self, request: Request) -> Resource:
        bucket = self._bucket(request, "storage.objects.list")
        query = request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        all_versions = query.get("versions", "").lower() == "true"
        begin, end = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
        items: list[Resource] = []
        prefixes: list[str] = []
        for name in sorted(bucket.objects):
            if not (name.startswith(prefix) and begin <= name < end):
                continue
            before, cut, _ = name.removeprefix(prefix).partition(delimiter) if delimiter else ("", "", "")
            if cut:
                prefixes.append(prefix + before + cut)
                continue
            items += [o.resource for o in bucket.objects[name] if all_versions or o is bucket.live(name)]
        first = int(query.get("pageToken") or 0)
        size = min(int(query.get("maxResults") or DEFAULT_PAGE), DEFAULT_PAGE)
        shown: Resource = {"kind": "storage#objects"}
        if items[first : first + size]:
            shown["items"] = items[first : first + size]
        if prefixes and not first:
            shown["prefixes"] = sorted(set(prefixes))
        if first + size < len(items):
            shown["nextPageToken"] = str(first + size)
        return shown

    def _patch_object(self, request: Request) -> Resource:
        bucket = self._bucket(request, "storage.objects.update")
        resource = self._object(bucket, request).resource
        resource.update({key: request.body[key] for key in DESCRIBED if key in request.body})
        resource["metageneration"] = str(int(resource["metageneration"]) + 1)
        resource["updated"] = self._project.stamp()
        return resource

    def _delete_object(self, request: Request) -> Reply:
        bucket = self._bucket(request, "storage.objects.delete")
        found = self._object(bucket, request)
        name = request.names["object"]
        if request.query.get("generation"):
            bucket.objects[name].remove(found)
            if not bucket.objects[name]:
                del bucket.objects[name]
        else:
            self._retire(bucket, name)
        return Reply(204)

    def _check_preconditions(self, bucket: Bucket, name: str, query: Mapping[str, str]) -> None:
        live = bucket.live(name)
        resource: Mapping[str, Any] = live.resource if live else {}
        _check_number("generation", resource.get("generation", "0"), query)
        _check_number("metageneration", resource.get("metageneration", "0"), query)

    def _new_generation(self) -> str:
        """Microseconds since the epoch, never twice the same."""
        self._last_generation = max(self._last_generation + 1, int(self._project.clock.now() * 1e6))
        return str(self._last_generation)


def split_upload(headers: Mapping[str, str], body: bytes) -> tuple[bytes, bytes, str]:
    """Take a body of ``multipart/related`` apart: the metadata as JSON, the content, and the content's type.

    Raises:
        Refusal: It is not of that form.
    """
    found = re.search(r'boundary="?([^";]+)"?', headers.get("content-type", ""))
    boundary = b"--" + found[1].encode() if found else b""
    parts = (b"\r\n" + body).split(b"\r\n" + boundary) if found else []
    if len(parts) != 4 or not parts[3].startswith(b"--"):
        raise Refusal(400, "Failed to parse multipart request.", reason="badRequest")
    (_, metadata), (head, content) = (part.removeprefix(b"\r\n").split(b"\r\n\r\n", 1) for part in parts[1:3])
    kind = re.search(rb"content-type:\s*([^\r\n]+)", head, re.IGNORECASE)
    return metadata, content, kind[1].decode() if kind else ""


def _check_number(what: str, value: str, query: Mapping[str, str]) -> None:
    word = what.capitalize()
    wanted, unwanted = query.get(f"if{word}Match"), query.get(f"if{word}NotMatch")
    if (wanted is not None and wanted != value) or (unwanted is not None and unwanted == value):
        raise Refusal(412, "At least one of the pre-conditions you specified did not hold.", reason="conditionNotMet")


def _download(found: StoredObject, request: Mapping[str, str]) -> Reply:
    resource = found.resource
    headers = {
        "Content-Type": resource.get("contentType", "application/octet-stream"),
        "ETag": resource["etag"],
        "X-Goog-Generation": resource["generation"],
        "X-Goog-Metageneration": resource["metageneration"],
        "X-Goog-Hash": f"crc32c={resource['crc32c']},md5={resource['md5Hash']}",
        "X-Goog-Storage-Class": resource["storageClass"],
        "X-Goog-Stored-Content-Encoding": "identity",
        "X-Goog-Stored-Content-Length": resource["size"],
        "Last-Modified": formatdate(int(resource["generation"]) / 1e6, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.get("range", ""))
    if span is None:
        return Reply(200, found.content, headers)
    first, last = int(span[1]), int(span[2] or len(found.content))
    if first >= len(found.content):
        return Reply(416, b"", {"Content-Range": f"bytes */{len(found.content)}"})
    piece = found.content[first : last + 1]
    headers["Content-Range"] = f"bytes {first}-{first + len(piece) - 1}/{len(found.content)}"
    return Reply(206, piece, headers)


def _full_name(bucket: str, name: str | None) -> str:
    """What conditions call a bucket, or an object in it."""
    return f"projects/_/buckets/{bucket}/objects/{name}" if name else f"projects/_/buckets/{bucket}"


def _no_access(principal: Principal, permission: str, kind: str) -> Refusal:
    thing = {"bucket": "Google Cloud Storage bucket", "object": "Google Cloud Storage object"}.get(
        kind, "Google Cloud project"
    )
    return Refusal(
        403,
        f"{principal.name} does not have {permission} access to the {thing}. Permission '{permission}' denied on "
        "resource (or it may not exist).",
        reason="forbidden",
    )


def _xml_error(status: int, code: str, message: str) -> Reply:
    text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Reply(status, text.encode(), {"Content-Type": "application/xml; charset=UTF-8"})
