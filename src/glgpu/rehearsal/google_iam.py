"""IAM: service accounts, a project's own roles, workload identity pools and their providers."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from glgpu.rehearsal import google_conditions as conditions
from glgpu.rehearsal.compute_resources import Resource, fingerprint
from glgpu.rehearsal.google_access import Policy, tested
from glgpu.rehearsal.google_errors import Refusal, already_exists, denied, not_found
from glgpu.rehearsal.google_requests import Handler, Project, Request, stamp

KEPT_SECONDS = 30 * 86400
"""How long Google keeps a deleted pool, provider or service account, and refuses or reuses its name."""

ACCOUNT_ID = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]")
ROLE_ID = re.compile(r"[a-zA-Z0-9_.]{3,64}")
POOL_ID = re.compile(r"(?!gcp-)[a-z0-9-]{4,32}")
PERMISSION = re.compile(r"[a-z][a-zA-Z0-9-]*(\.[a-zA-Z0-9-]+){2,}")
SHARED_ISSUERS = ("https://gitlab.com", "https://token.actions.githubusercontent.com")
"""Issuers whose tokens everybody has: Google refuses a provider for them that does not say whose it wants."""


class Identities:
    """What IAM keeps, and the handlers.

    Attributes:
        pools: Pools by id, in Google's JSON.
        providers: Providers by pool and id.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._access = project.access
        self.pools: dict[str, Resource] = {}
        self.providers: dict[tuple[str, str], Resource] = {}
        self._policies: dict[str, Policy] = {}
        self._keys: dict[tuple[str, str], Resource] = {}

    def handlers(self) -> dict[str, Handler]:
        """Method to handler."""
        accounts, roles = "iam.projects.serviceAccounts", "iam.projects.roles"
        pools = "iam.projects.locations.workloadIdentityPools"
        return {
            f"{accounts}.create": self._create_account,
            f"{accounts}.get": lambda request: self._account(request, "get"),
            f"{accounts}.list": self._list_accounts,
            f"{accounts}.patch": self._patch_account,
            f"{accounts}.delete": self._delete_account,
            f"{accounts}.getIamPolicy": self._get_policy,
            f"{accounts}.setIamPolicy": self._set_policy,
            f"{accounts}.testIamPermissions": self._test_permissions,
            f"{roles}.create": self._create_role,
            f"{roles}.get": lambda request: self._role(request, "get"),
            f"{roles}.patch": self._patch_role,
            f"{roles}.delete": lambda request: self._mark_role(request, "delete"),
            f"{roles}.undelete": lambda request: self._mark_role(request, "undelete"),
            f"{pools}.create": self._create_pool,
            f"{pools}.get": lambda request: self._pool(request, "get"),
            f"{pools}.patch": self._patch_pool,
            f"{pools}.delete": lambda request: self._mark_pool(request, "DELETED"),
            f"{pools}.undelete": lambda request: self._mark_pool(request, "ACTIVE"),
            f"{pools}.listAttestationRules": self._attestation_rules,
            f"{pools}.operations.get": self._operation,
            f"{pools}.providers.create": self._create_provider,
            f"{pools}.providers.get": lambda request: self._provider(request, "get"),
            f"{pools}.providers.patch": self._patch_provider,
            f"{pools}.providers.delete": lambda request: self._mark_provider(request, "DELETED"),
            f"{pools}.providers.undelete": lambda request: self._mark_provider(request, "ACTIVE"),
            f"{pools}.providers.operations.get": self._operation,
        }

    # For the others

    def account(self, email: str) -> Resource | None:
        """A service account by its e-mail address or unique id."""
        found = (a for a in self._access.accounts.values() if email in (a["email"], a["uniqueId"]))
        return next(found, None)

    def policy_of(self, email: str) -> Policy:
        """The policy of a service account."""
        return self._policies.setdefault(email, Policy())

    def add_key(self, email: str, key: Resource) -> None:
        """Give a service account a key, of which this is the public half as a JWK."""
        self._keys[email, key["kid"]] = key

    def key(self, email: str, key_id: str) -> Resource | None:
        """The public half of one of its keys."""
        return self._keys.get((email, key_id))

    def active_provider(self, pool: str, provider: str) -> Resource | None:
        """A provider that is neither deleted nor disabled, in a pool that is neither."""
        found = self.providers.get((pool, provider))
        parts = [self.pools.get(pool), found]
        return found if all(p and p["state"] == "ACTIVE" and not p.get("disabled") for p in parts) else None

    # Service accounts

    def _create_account(self, request: Request) -> Resource:
        self._require(request, "iam.serviceAccounts.create", request.names["name"])
        account_id = request.body.get("accountId", "")
        if not ACCOUNT_ID.fullmatch(account_id):
            raise Refusal(400, "The account ID does not have a length between 6 and 30.", reason="badRequest")
        email = f"{account_id}@{self._project.id}.iam.gserviceaccount.com"
        name = f"projects/{self._project.id}/serviceAccounts/{email}"
        if email in self._access.accounts:
            raise Refusal(
                409, f"Service account {account_id} already exists within project projects/{self._project.id}."
            )
        given = request.body.get("serviceAccount", {})
        account = {
            "name": name,
            "projectId": self._project.id,
            "uniqueId": str(10**20 + secrets.randbelow(10**20)),
            "email": email,
            "oauth2ClientId": str(10**20 + secrets.randbelow(10**20)),
        }
        account |= {key: given[key] for key in ("displayName", "description") if given.get(key)}
        self._access.accounts[email] = account | {"etag": fingerprint(account)}
        return self._access.accounts[email]

    def _account(self, request: Request, verb: str) -> Resource:
        named = request.names.get("name") or request.names["resource"]
        _, project, _, email = named.split("/")
        found = self.account(email) if project == "-" or self._project.is_meant(project) else None
        permission = f"iam.serviceAccounts.{verb}"
        policy = Policy() if found is None else self.policy_of(found["email"])
        if not self._access.allows(request.principal, permission, policy):
            raise denied(permission, named)
        if found is None:
            raise not_found(f"Unknown service account: {email}")
        return found

    def _list_accounts(self, request: Request) -> Resource:
        self._require(request, "iam.serviceAccounts.list", request.names["name"])
        return {"accounts": list(self._access.accounts.values())}

    def _patch_account(self, request: Request) -> Resource:
        account = self._account(request, "update")
        given = request.body.get("serviceAccount", {})
        for field in request.body.get("updateMask", "").split(","):
            key = {"display_name": "displayName"}.get(field, field)
            if key not in ("displayName", "description"):
                raise Refusal(400, f"Invalid field mask: {field}")
            account[key] = given.get(key, "")
        return account

    def _delete_account(self, request: Request) -> Resource:
        email = self._account(request, "delete")["email"]
        del self._access.accounts[email]
        self._policies.pop(email, None)
        self._keys = {key: value for key, value in self._keys.items() if key[0] != email}
        return {}

    def _get_policy(self, request: Request) -> Resource:
        return self.policy_of(self._account(request, "getIamPolicy")["email"]).shown()

    def _set_policy(self, request: Request) -> Resource:
        email = self._account(request, "setIamPolicy")["email"]
        self._policies[email] = self._access.checked(request.body.get("policy", {}), self.policy_of(email))
        return self._policies[email].shown()

    def _test_permissions(self, request: Request) -> Resource:
        email = request.names["resource"].rpartition("/")[2]
        if self.account(email) is None:
            raise not_found(f"Unknown service account: {email}")
        asked = tested(request.body.get("permissions", []))
        held = [p for p in asked if self._access.allows(request.principal, p, self.policy_of(email))]
        return {"permissions": held} if held else {}

    # Roles

    def _create_role(self, request: Request) -> Resource:
        self._require(request, "iam.roles.create", request.names["parent"])
        role_id, given = request.body.get("roleId", ""), request.body.get("role", {})
        if not ROLE_ID.fullmatch(role_id):
            raise Refusal(400, f"The role_id ({role_id}) does not match the pattern [a-zA-Z0-9_\\.]{{3,64}}.")
        name = f"projects/{self._project.id}/roles/{role_id}"
        if name in self._access.roles:
            if self._access.roles[name].get("deleted"):
                raise Refusal(
                    400,
                    f"You can't create a role with role_id ({role_id}) where there is an existing role with that "
                    "role_id in a deleted state.",
                    status="FAILED_PRECONDITION",
                )
            raise Refusal(409, f"A role named {role_id} in projects/{self._project.id} already exists.")
        self._access.roles[name] = {"name": name, **self._role_fields(given)}
        return self._shown_role(name)

    def _role(self, request: Request, verb: str) -> Resource:
        self._require(request, f"iam.roles.{verb}", request.names["name"])
        name = self._role_name(request)
        if name not in self._access.roles:
            raise not_found(f"The role named {name} was not found.")
        return self._shown_role(name)

    def _patch_role(self, request: Request) -> Resource:
        self._role(request, "update")
        role = self._access.roles[self._role_name(request)]
        if role.get("deleted"):
            raise Refusal(400, "You can't update a role that is deleted.", status="FAILED_PRECONDITION")
        fields = self._role_fields(request.body)
        mask = request.query.get("updateMask")
        for key in mask.split(",") if mask else fields:
            role[key] = fields.get(key, [] if key == "includedPermissions" else "")
        return self._shown_role(role["name"])

    def _mark_role(self, request: Request, verb: str) -> Resource:
        self._role(request, verb)
        role = self._access.roles[self._role_name(request)]
        if verb == "delete":
            role["deleted"] = True
        elif not role.pop("deleted", False):
            raise Refusal(400, "The role is not in a deleted state.", status="FAILED_PRECONDITION")
        return self._shown_role(role["name"])

    def _role_name(self, request: Request) -> str:
        return f"projects/{self._project.id}/roles/{request.names['name'].rpartition('/')[2]}"

    def _role_fields(self, given: Resource) -> Resource:
        held = given.get("includedPermissions", [])
        for permission in held:
            if not PERMISSION.fullmatch(permission):
                raise Refusal(400, f"Permission {permission} is not valid.", reason="badRequest")
        kept = {key: given[key] for key in ("title", "description", "stage") if given.get(key)}
        return kept | {"includedPermissions": sorted(set(held))}

    def _shown_role(self, name: str) -> Resource:
        role = self._access.roles[name]
        shown = {key: value for key, value in role.items() if value not in ("", [])}
        return shown | {"etag": fingerprint(role)}

    # Workload identity pools and providers

    def _create_pool(self, request: Request) -> Resource:
        self._require(request, "iam.workloadIdentityPools.create", request.names["parent"])
        pool_id = request.query.get("workloadIdentityPoolId", "")
        _check_id(pool_id, "workload_identity_pool_id")
        self._purge()
        if pool_id in self.pools:
            raise already_exists()
        name = f"projects/{self._project.number}/locations/global/workloadIdentityPools/{pool_id}"
        kept = ("displayName", "description", "disabled", "mode")
        self.pools[pool_id] = {"name": name, "state": "ACTIVE"} | _picked(request.body, kept)
        return self._begun(name, self.pools[pool_id])

    def _pool(self, request: Request, verb: str) -> Resource:
        words = request.names.get("name", request.names.get("resource", "")).split("/")
        self._require(request, f"iam.workloadIdentityPools.{verb}", "/".join(words))
        self._purge()
        if not self._project.is_meant(words[1]) or words[5] not in self.pools:
            raise not_found()
        return self.pools[words[5]]

    def _patch_pool(self, request: Request) -> Resource:
        pool = self._pool(request, "update")
        _patch(pool, request, ("displayName", "description", "disabled"))
        return self._begun(pool["name"], pool)

    def _mark_pool(self, request: Request, state: str) -> Resource:
        pool = self._pool(request, "delete" if state == "DELETED" else "undelete")
        self._mark(pool, state)
        return self._begun(pool["name"], pool)

    def _attestation_rules(self, request: Request) -> Resource:
        self._pool(request, "get")
        return {}

    def _create_provider(self, request: Request) -> Resource:
        parent = request.names["parent"]
        self._require(request, "iam.workloadIdentityPoolProviders.create", parent)
        pool_id = parent.split("/")[5]
        provider_id = request.query.get("workloadIdentityPoolProviderId", "")
        _check_id(provider_id, "workload_identity_pool_provider_id")
        self._purge()
        pool = self.pools.get(pool_id)
        if pool is None or pool["state"] != "ACTIVE":
            raise not_found()
        if (pool_id, provider_id) in self.providers:
            raise already_exists()
        kept = ("displayName", "description", "disabled", "attributeMapping", "attributeCondition", "oidc")
        provider = {"name": f"{pool['name']}/providers/{provider_id}", "state": "ACTIVE"}
        provider |= _picked(request.body, kept)
        self._check_provider(provider)
        self.providers[pool_id, provider_id] = provider
        return self._begun(provider["name"], provider)

    def _provider(self, request: Request, verb: str) -> Resource:
        words = request.names["name"].split("/")
        self._require(request, f"iam.workloadIdentityPoolProviders.{verb}", request.names["name"])
        self._purge()
        if not self._project.is_meant(words[1]) or (words[5], words[7]) not in self.providers:
            raise not_found()
        return self.providers[words[5], words[7]]

    def _patch_provider(self, request: Request) -> Resource:
        provider = self._provider(request, "update")
        changed = dict(provider)
        kept = ("displayName", "description", "disabled", "attributeMapping", "attributeCondition", "oidc")
        _patch(changed, request, kept)
        self._check_provider(changed)
        provider.clear()
        provider.update(changed)
        return self._begun(provider["name"], provider)

    def _mark_provider(self, request: Request, state: str) -> Resource:
        provider = self._provider(request, "delete" if state == "DELETED" else "undelete")
        self._mark(provider, state)
        return self._begun(provider["name"], provider)

    def _check_provider(self, provider: Resource) -> None:
        oidc = provider.get("oidc")
        if oidc is None:
            raise Refusal(400, "One of [aws, oidc, saml, x509] must be set.")
        issuer = oidc.get("issuerUri", "")
        if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", issuer):
            raise Refusal(400, "Invalid OIDC issuer URI.")
        if not issuer.startswith("https://"):
            raise Refusal(400, "Invalid OIDC issuer URI. The scheme must be https.")
        if oidc.get("jwksJson"):
            _check_keys(oidc["jwksJson"])
        mapping, condition = provider.get("attributeMapping", {}), provider.get("attributeCondition", "")
        if "google.subject" not in mapping:
            raise Refusal(400, "Attribute mapping must contain google.subject.")
        for name, expression in mapping.items():
            if not re.fullmatch(r"google\.(subject|groups)|attribute\.[a-z0-9_]{1,100}", name):
                raise Refusal(400, f"Invalid attribute mapping key: {name}.")
            _check_expression(expression)
        if condition:
            _check_expression(condition)
        if issuer in SHARED_ISSUERS and "assertion." not in condition and "attribute." not in condition:
            raise Refusal(
                400,
                "The attribute condition must reference one of the provider's claims. For more information, see "
                "https://cloud.google.com/iam/docs/workload-identity-federation-with-deployment-pipelines#conditions",
            )

    # What they have in common

    def _mark(self, resource: Resource, state: str) -> None:
        if resource["state"] == state:
            raise Refusal(400, "Precondition check failed.", status="FAILED_PRECONDITION")
        resource["state"] = state
        if state == "DELETED":
            resource["expireTime"] = stamp(self._project.clock.now() + KEPT_SECONDS)
        else:
            del resource["expireTime"]

    def _purge(self) -> None:
        """Forget what has been kept for long enough."""
        now = self._project.stamp()
        self.pools = {key: pool for key, pool in self.pools.items() if pool.get("expireTime", "9") > now}
        self.providers = {
            key: provider
            for key, provider in self.providers.items()
            if key[0] in self.pools and provider.get("expireTime", "9") > now
        }

    def _begun(self, name: str, resource: Resource) -> Resource:
        return self._project.operation(f"{name}/operations/{secrets.token_hex(16)}", dict(resource))

    def _operation(self, request: Request) -> Resource:
        return self._project.look_at(request.names["name"])

    def _require(self, request: Request, permission: str, resource: str) -> None:
        if not self._project.is_meant(resource.split("/")[1]):
            raise denied(permission, resource)
        self._project.require(request, permission, resource)


def _picked(body: Resource, keys: tuple[str, ...]) -> Resource:
    return {key: body[key] for key in keys if key in body}


def _patch(resource: Resource, request: Request, allowed: tuple[str, ...]) -> None:
    """Change the fields that the mask names; a field below one is set in it."""
    for field in request.query.get("updateMask", "").split(","):
        key, _, inner = re.sub(r"_(\w)", lambda m: m[1].upper(), field).partition(".")
        if key not in allowed:
            raise Refusal(400, f"Invalid field mask: {field}")
        if inner:
            part: dict[str, Any] = dict(resource.get(key, {}))
            part[inner] = request.body.get(key, {}).get(inner)
            resource[key] = {name: value for name, value in part.items() if value is not None}
        elif key in request.body:
            resource[key] = request.body[key]
        else:
            resource.pop(key, None)


def _check_id(text: str, field: str) -> None:
    if not POOL_ID.fullmatch(text):
        raise Refusal(400, f"Invalid value at '{field}': {text!r}. Must be 4-32 characters of [a-z0-9-], without gcp-.")


def _check_expression(text: str) -> None:
    try:
        conditions.parse(text)
    except conditions.Wrong as error:
        raise Refusal(400, f"Failed to parse the expression {text!r}: {error}") from None


def _check_keys(text: str) -> None:
    try:
        keys = json.loads(text)["keys"]
        kinds = {key["kty"] for key in keys}
    except (ValueError, KeyError, TypeError):
        raise Refusal(400, "Input JWK is not in a valid json format") from None
    if not keys or kinds - {"RSA", "EC"}:
        raise Refusal(400, "Invalid JWKs. Only RSA, EC key types are supported.")
