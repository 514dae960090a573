"""What every Compute Engine resource has: ids, links, time stamps, fingerprints."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from glgpu.rehearsal.compute_errors import ApiError, invalid

Resource = dict[str, Any]

_GOOGLE_TIME = timezone(timedelta(hours=-8))
"""Compute Engine writes time stamps in its home's time, not in UTC: a client must read the offset."""

_API_ROOT = re.compile(r"https?://[^/]+/compute/(?:v1|beta)/")


def timestamp(when: float) -> str:
    """Unix time as Compute Engine writes it, ``2026-11-23T11:30:00.000-08:00``."""
    return datetime.fromtimestamp(when, UTC).astimezone(_GOOGLE_TIME).isoformat(timespec="milliseconds")


def new_id() -> str:
    """A numeric id that no other resource ever had."""
    return str(10**18 + secrets.randbelow(8 * 10**18))


def fingerprint(value: Any) -> str:
    """Eight bytes, base64, that change with ``value``: what optimistic locking compares."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    return base64.b64encode(digest[:8]).decode()


def short(link: str) -> str:
    """The last word of a link: the resource's name."""
    return link.rpartition("/")[2]


@dataclass(frozen=True)
class Links:
    """Writes and reads links.

    Attributes:
        base: The API's root as callers see it, with a slash at the end.
        project: Project id.
    """

    base: str
    project: str

    def to(self, path: str) -> str:
        """The full link of a path below the project, ``zones/Z/instances/N`` for example."""
        return f"{self.base}projects/{self.project}/{path}"

    def path(self, link: str) -> str:
        """``projects/P/...`` of a link of ours."""
        return link.removeprefix(self.base)


def reference(value: str, field: str, form: str, project: str) -> tuple[str, ...]:
    """Read a link in a request: whole, from ``projects/`` on, or from behind the project.

    Args:
        value: What the request says.
        field: Its field, for the refusal.
        form: What follows the project, with ``*`` for each name: ``zones/*/machineTypes/*``.
        project: The project that a short form means.

    Returns:
        Project and names.

    Raises:
        ApiError: The text is no such link.
    """
    path = _API_ROOT.sub("", value, count=1)
    if path.startswith(form.split("*")[0]):
        path = f"projects/{project}/{path}"
    found = re.fullmatch("projects/([^/]+)/" + form.replace("*", "([^/]+)"), path)
    if found is None:
        raise malformed_link(field, value)
    return found.groups()


def malformed_link(field: str, value: str) -> ApiError:
    """The refusal of a text that is no link to what the field wants."""
    return invalid(field, value, "The URL is malformed.")
