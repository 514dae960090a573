"""Who calls Google's APIs, and what their roles let them do."""

from __future__ import annotations

import fnmatch
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glgpu.rehearsal import google_conditions as conditions
from glgpu.rehearsal.compute_resources import Resource, fingerprint
from glgpu.rehearsal.google_errors import Refusal
from glgpu.rehearsal.world_clock import WorldClock

OWNER = "roles/owner"
EVERYTHING = "https://www.googleapis.com/auth/cloud-platform"
"""The scope that every API takes."""

PREDEFINED: Mapping[str, tuple[str, ...]] = {
    OWNER: ("*",),
    "roles/compute.instanceAdmin.v1": (
        "compute.disks.*",
        "compute.globalOperations.*",
        "compute.images.*",
        "compute.instances.*",
        "compute.machineTypes.*",
        "compute.networks.get",
        "compute.networks.list",
        "compute.networks.use",
        "compute.networks.useExternalIp",
        "compute.projects.get",
        "compute.regions.*",
        "compute.subnetworks.get",
        "compute.subnetworks.list",
        "compute.subnetworks.use",
        "compute.subnetworks.useExternalIp",
        "compute.zoneOperations.*",
        "compute.zones.*",
        "resourcemanager.projects.get",
        "serviceusage.services.get",
        "serviceusage.services.list",
    ),
    "roles/compute.securityAdmin": ("compute.firewalls.*", "compute.globalOperations.*", "compute.networks.*"),
    "roles/iam.serviceAccountTokenCreator": ("iam.serviceAccounts.getAccessToken", "iam.serviceAccounts.signJwt"),
    "roles/iam.serviceAccountUser": ("iam.serviceAccounts.actAs", "iam.serviceAccounts.get"),
    "roles/iam.workloadIdentityUser": ("iam.serviceAccounts.getAccessToken", "iam.serviceAccounts.getOpenIdToken"),
    "roles/iap.tunnelResourceAccessor": ("iap.tunnelInstances.accessViaIAP",),
    "roles/storage.admin": ("storage.*",),
    "roles/storage.objectAdmin": ("storage.objects.*",),
    "roles/storage.objectCreator": ("storage.objects.create", "storage.folders.create"),
    "roles/storage.objectUser": (
        "storage.objects.create",
        "storage.objects.delete",
        "storage.objects.get",
        "storage.objects.list",
        "storage.objects.update",
    ),
    "roles/storage.objectViewer": ("storage.objects.get", "storage.objects.list"),
    "roles/storage.legacyBucketReader": ("storage.buckets.get", "storage.objects.list"),
    "roles/storage.legacyBucketOwner": (
        "storage.buckets.get",
        "storage.buckets.getIamPolicy",
        "storage.buckets.setIamPolicy",
        "storage.buckets.update",
        "storage.objects.create",
        "storage.objects.delete",
        "storage.objects.list",
    ),
    "roles/storage.legacyObjectOwner": ("storage.objects.get", "storage.objects.update"),
    "roles/storage.legacyObjectReader": ("storage.objects.get",),
}
"""Roles of Google's that are known here, with what they hold of interest
(https://cloud.google.com/iam/docs/understanding-roles)."""

MEMBER = re.compile(
    r"(user|serviceAccount|group):[^@\s]+@[^@\s]+|domain:\S+|all(Authenticated)?Users"
    r"|principal(Set)?://iam\.googleapis\.com/projects/[0-9]+/locations/global/workloadIdentityPools/[^/]+/\S+"
    r"|project(Owner|Editor|Viewer):[a-z0-9:.-]+|deleted:\S+"
)


@dataclass(frozen=True)
class Principal:
    """Who a token speaks for.

    Attributes:
        name: E-mail address, or the ``principal://`` of a federated identity.
        members: By which names policies mean it.
        federated: Whether it is a token of the Security Token Service, which has yet to be exchanged for an account's.
        scopes: What the token is for at all, whatever the roles say.
    """

    name: str
    members: frozenset[str]
    federated: bool = False
    scopes: frozenset[str] = frozenset({EVERYTHING})


def service_account(email: str, scopes: Iterable[str] = (EVERYTHING,)) -> Principal:
    """The principal of a service account."""
    members = frozenset({f"serviceAccount:{email}", "allAuthenticatedUsers", "allUsers"})
    return Principal(email, members, scopes=frozenset(scopes))


def user(email: str) -> Principal:
    """The principal of a person."""
    return Principal(email, frozenset({f"user:{email}", "allAuthenticatedUsers", "allUsers"}))


class Tokens:
    """The access tokens that Google has handed out; every API takes the same.

    Attributes:
        believe: Says for whom a signed token speaks that Google has not handed out: whoever has a service account's key
            may sign his own (https://google.aip.dev/auth/4111).
    """

    def __init__(self, clock: WorldClock) -> None:
        self.believe: Callable[[str], Principal | None] = lambda _: None
        self._clock = clock
        self._issued: dict[str, tuple[Principal, float | None]] = {}

    def issue(self, principal: Principal, seconds: float | None = None) -> str:
        """Make a token; without ``seconds`` it never expires."""
        token = f"ya29.{secrets.token_urlsafe(48)}"
        self.add(token, principal, seconds)
        return token

    def add(self, token: str, principal: Principal, seconds: float | None = None) -> None:
        """Take a token that somebody else made up."""
        self._issued[token] = (principal, None if seconds is None else self._clock.now() + seconds)

    def find(self, token: str) -> Principal | None:
        """Who it speaks for, unless it has expired."""
        if token not in self._issued:
            return self.believe(token)
        principal, until = self._issued[token]
        return principal if until is None or self._clock.now() < until else None

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and self.find(token) is not None


@dataclass
class Policy:
    """An allow policy.

    Attributes:
        bindings: Role and members, with or without a condition, as in Google's JSON.
    """

    bindings: list[Resource] = field(default_factory=list)

    @property
    def etag(self) -> str:
        """Changes with the policy."""
        return fingerprint(self.bindings)

    def shown(self) -> Resource:
        """As callers see it."""
        return {"version": 3 if any("condition" in b for b in self.bindings) else 1, "etag": self.etag} | (
            {"bindings": self.bindings} if self.bindings else {}
        )

    def roles_of(self, principal: Principal, resource: str) -> Iterable[str]:
        """Roles that it gives somebody on a resource."""
        mine = (binding for binding in self.bindings if principal.members & set(binding["members"]))
        return (binding["role"] for binding in mine if _holds(binding.get("condition"), resource))


@dataclass
class Access:
    """The project's roles and its policy.

    Attributes:
        project: Project id.
        policy: Of the project.
        roles: The project's own roles by full name, ``projects/P/roles/R``, as in Google's JSON.
        accounts: Service accounts by e-mail address, as in Google's JSON.
        denied: Permissions that nobody has, whatever the roles say, as by a deny policy: set it to break an access.
    """

    project: str
    policy: Policy = field(default_factory=Policy)
    roles: dict[str, Resource] = field(default_factory=dict)
    accounts: dict[str, Resource] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)

    def grant(self, role: str, member: str) -> None:
        """Add a member to a role in the project."""
        self.policy.bindings.append({"role": role, "members": [member]})

    def allows(self, principal: Principal, permission: str, *further: Policy, resource: str = "") -> bool:
        """Whether somebody has a permission, by the project's policy or one of ``further``.

        Args:
            principal: Who asks.
            permission: What for.
            *further: Policies that count beside the project's.
            resource: Full name of what it is done to, for roles that are given under a condition.
        """
        if permission in self.denied:
            return False
        held = {role for policy in (self.policy, *further) for role in policy.roles_of(principal, resource)}
        return any(fnmatch.fnmatchcase(permission, pattern) for role in held for pattern in self._permissions(role))

    def _permissions(self, role: str) -> Iterable[str]:
        own = self.roles.get(role)
        if own is not None:
            return [] if own.get("deleted") else own.get("includedPermissions", [])
        return PREDEFINED.get(role, ())

    def checked(self, body: Resource, current: Policy) -> Policy:
        """The policy that somebody wants to set.

        Raises:
            Refusal: It is not based on the current one, or names what does not exist.
        """
        if body.get("etag") and body["etag"] != current.etag:
            raise Refusal(
                409,
                "There were concurrent policy changes. Please retry the whole read-modify-write with exponential "
                f"backoff. The request's ETag '{body['etag']}' did not match the current policy's ETag "
                f"'{current.etag}'.",
                status="ABORTED",
                reason="conditionNotMet",
            )
        merged: dict[str, Resource] = {}
        for binding in body.get("bindings", []):
            role = binding["role"]
            if role not in PREDEFINED and (role not in self.roles or self.roles[role].get("deleted")):
                raise Refusal(400, f"Role {role} is not supported for this resource.", reason="badRequest")
            for member in binding.get("members", []):
                self._check_member(member)
            condition = binding.get("condition")
            if condition is not None:
                try:
                    conditions.parse(condition.get("expression", ""))
                except conditions.Wrong as error:
                    raise Refusal(400, f"Invalid condition: {error}", reason="badRequest") from None
            key = f"{role} {condition}"
            entry = merged.setdefault(key, {**binding, "members": []})
            entry["members"] = sorted({*entry["members"], *binding.get("members", [])})
        return Policy([binding for binding in merged.values() if binding["members"]])

    def _check_member(self, member: str) -> None:
        if not MEMBER.fullmatch(member):
            raise Refusal(
                400,
                f"Invalid principal {member}. Principals must be of the form user:EMAIL, serviceAccount:EMAIL, "
                "group:EMAIL or domain:DOMAIN.",
                reason="badRequest",
            )
        email = member.removeprefix("serviceAccount:")
        if (
            email != member
            and email.endswith(f"@{self.project}.iam.gserviceaccount.com")
            and email not in self.accounts
        ):
            raise Refusal(400, f"Service account {email} does not exist.", reason="badRequest")


def _holds(condition: Resource | None, resource: str) -> bool:
    """Whether a condition of a binding is met (https://cloud.google.com/iam/docs/conditions-attribute-reference)."""
    if condition is None:
        return True
    try:
        return conditions.parse(condition["expression"])({"resource": {"name": resource}}) is True
    except conditions.Wrong:
        return False


def tested(permissions: Iterable[Any]) -> list[str]:
    """The permissions of a ``testIamPermissions``, which have to look like such.

    Raises:
        Refusal: One does not.
    """
    asked = [str(permission) for permission in permissions]
    for permission in asked:
        if not re.fullmatch(r"[a-z][a-zA-Z0-9-]*(\.[a-zA-Z0-9-]+){2,}", permission):
            raise Refusal(400, f"Permission {permission} is not valid for this resource.", reason="badRequest")
    return asked
