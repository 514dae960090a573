"""What the stand-ins of Google's APIs are asked, and the project that they all speak of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from glgpu.rehearsal.compute_resources import Resource
from glgpu.rehearsal.google_access import Access, Principal, Tokens
from glgpu.rehearsal.google_errors import Refusal, denied
from glgpu.rehearsal.world_clock import WorldClock


@dataclass(frozen=True)
class Request:
    """A call that means a method of an API.

    Attributes:
        method: Full name of the method.
        names: The path's parameters.
        query: The query's parameters.
        body: The JSON in the body, nulls dropped.
        principal: Who calls.
        headers: Header fields, names in lower case.
        media: The body as sent, of an upload or download.
        address: The address that the call came to, ``http://127.0.0.1:PORT``.
    """

    method: str
    names: Mapping[str, str]
    query: Mapping[str, str]
    body: Resource
    principal: Principal
    headers: Mapping[str, str]
    media: bytes
    address: str


@dataclass(frozen=True)
class Reply:
    """An answer that is no JSON, or has another status than 200.

    Attributes:
        status: HTTP status.
        body: As sent.
        headers: Header fields.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Answer = Resource | Reply
Handler = Callable[[Request], Answer | Awaitable[Answer]]


@dataclass
class Project:
    """One Google Cloud project; everything in it may be changed at any time.

    Attributes:
        id: Its id.
        number: Its number.
        clock: The world's.
        tokens: The tokens that Google has handed out.
        access: Roles, policy, service accounts, and which permissions are denied to all.
        services: The services that are switched on.
        billing: Whether somebody pays for it.
        state: ``ACTIVE``, or ``DELETE_REQUESTED`` for the 30 days before it is gone.
        policies: Organisation policies in force that differ from Google's defaults: constraint (such as
            ``compute.vmExternalIpAccess``) to its rules.
        latency: Seconds that a long-running operation takes.
    """

    id: str
    number: str
    clock: WorldClock
    tokens: Tokens
    access: Access
    services: set[str]
    billing: bool = True
    state: str = "ACTIVE"
    policies: dict[str, list[Resource]] = field(default_factory=dict)
    latency: float = 0.0

    def __post_init__(self) -> None:
        self._operations: dict[str, tuple[Resource, float]] = {}

    def is_meant(self, name: str) -> bool:
        """Whether a project's id or number, with or without ``projects/``, is this one's."""
        return name.removeprefix("projects/") in (self.id, self.number)

    def allows(self, request: Request, permission: str) -> bool:
        """Whether the caller has a permission in the project."""
        return self.access.allows(request.principal, permission)

    def require(self, request: Request, permission: str, resource: str = "") -> None:
        """Refuse a caller who lacks a permission in the project.

        Raises:
            Refusal: In IAM's words.
        """
        if not self.allows(request, permission):
            raise denied(permission, resource or f"projects/{self.id}")

    def stamp(self) -> str:
        """Now, as these APIs write it."""
        return stamp(self.clock.now())

    def operation(self, name: str, response: Resource) -> Resource:
        """Begin a long-running operation that ends well after ``latency`` seconds."""
        self._operations[name] = (response, self.clock.now() + self.latency)
        return self.look_at(name)

    def look_at(self, name: str) -> Resource:
        """An operation as it is now.

        Raises:
            Refusal: There is none of that name.
        """
        if name not in self._operations:
            raise Refusal(404, "Requested entity was not found.", reason="notFound")
        response, end = self._operations[name]
        if self.clock.now() < end:
            return {"name": name}
        return {"name": name, "done": True, "response": response}


def stamp(seconds: float, to: Literal["milliseconds", "seconds"] = "milliseconds") -> str:
    """Unix time as Google writes it in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=to).replace("+00:00", "Z")
