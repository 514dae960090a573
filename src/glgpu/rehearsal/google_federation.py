"""Security Token Service, Service Account Credentials, and the token endpoint for service account keys.

How the Security Token Service judges identity tokens (which lives are accepted, how far clocks may differ, how long its
own tokens live, and its words) was measured against Google in September 2026 and published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from glgpu.rehearsal import google_conditions as conditions
from glgpu.rehearsal.compute_resources import Resource
from glgpu.rehearsal.google_access import Principal, service_account
from glgpu.rehearsal.google_errors import Refusal, TokenRefusal, denied
from glgpu.rehearsal.google_iam import Identities
from glgpu.rehearsal.google_requests import Handler, Project, Request, stamp
from glgpu.rehearsal.json_web_tokens import Jwt

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
SUBJECT_TYPES = ("urn:ietf:params:oauth:token-type:jwt", "urn:ietf:params:oauth:token-type:id_token")
AUDIENCE = re.compile(
    r"//iam\.googleapis\.com/(projects/[0-9]+/locations/global/workloadIdentityPools/([^/]+))/providers/([^/]+)"
)
TOKEN_URI = "https://oauth2.googleapis.com/token"
LONGEST_LIFE = 3600
SKEW = 60
LONGEST_SUBJECT = 127

Keys = Callable[[str], Awaitable[list[Resource]]]
"""Fetches the keys of an issuer, which is given as its address.

Raises:
    LookupError: It cannot be reached, or says nothing that could be understood.
"""


class Federation:
    """The handlers.

    Args:
        project: The project.
        identities: Its pools and service accounts.
        keys: Fetches the keys of an issuer that a provider has no keys of.
    """

    def __init__(self, project: Project, identities: Identities, keys: Keys) -> None:
        self._project = project
        self._identities = identities
        self._keys = keys

    def handlers(self) -> dict[str, Handler]:
        """Method to handler."""
        return {
            "sts.token": self._exchange,
            "iamcredentials.projects.serviceAccounts.generateAccessToken": self._impersonate,
        }

    # Security Token Service

    async def _exchange(self, request: Request) -> Resource:
        body = request.body
        if body.get("grantType") != EXCHANGE:
            raise TokenRefusal("unsupported_grant_type", 'Invalid value for "grant_type".')
        if body.get("requestedTokenType") != ACCESS_TOKEN:
            raise TokenRefusal("invalid_request", 'Invalid value for "requested_token_type".')
        if body.get("subjectTokenType") not in SUBJECT_TYPES:
            raise TokenRefusal("invalid_request", 'Invalid value for "subject_token_type".')
        found = AUDIENCE.fullmatch(body.get("audience", ""))
        if found is None:
            raise TokenRefusal(
                "invalid_request",
                'Invalid value for "audience". This value should be the full resource name of the Identity Provider. '
                "See https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token for the list of possible "
                "formats.",
            )
        pool, pool_id, provider_id = found.groups()
        provider = self._identities.active_provider(pool_id, provider_id) if self._is_own(pool) else None
        if provider is None:
            raise TokenRefusal(
                "invalid_target",
                'The target service indicated by the "audience" parameters is invalid. This might either be because '
                "the pool or provider is disabled or deleted or because it doesn't exist.",
            )
        claims = await self._believed(body.get("subjectToken", ""), provider)
        principal = _principal(pool, provider, claims)
        seconds = int(min(claims["exp"] - self._project.clock.now(), LONGEST_LIFE))
        answer = {
            "access_token": self._project.tokens.issue(principal, max(seconds, SKEW)),
            "issued_token_type": ACCESS_TOKEN,
            "token_type": "Bearer",
        }
        return answer | ({"expires_in": seconds} if seconds > 0 else {})

    def _is_own(self, pool: str) -> bool:
        return self._project.is_meant("/".join(pool.split("/")[:2]))

    async def _believed(self, text: str, provider: Resource) -> Resource:
        """The claims of an identity token, if the provider takes it."""
        try:
            token = Jwt.read(text)
        except ValueError:
            raise TokenRefusal("invalid_grant", "Unable to parse the ID Token.") from None
        claims, oidc = token.claims, provider["oidc"]
        if claims.get("iss") != oidc["issuerUri"]:
            raise TokenRefusal(
                "invalid_grant",
                f"The issuer in ID Token {claims.get('iss', 'null')} does not match the expected one in config: "
                f"{oidc['issuerUri']}.",
            )
        given = claims.get("aud", [])
        audiences = {given} if isinstance(given, str) else set(given)
        name = f"//iam.googleapis.com/{provider['name']}"
        if not audiences & set(oidc.get("allowedAudiences") or (name, f"https:{name}")):
            raise TokenRefusal(
                "invalid_grant",
                f"The audience in ID Token [{', '.join(sorted(audiences))}] does not match the expected audience.",
            )
        await self._check_signature(token, oidc)
        now, begin, end = self._project.clock.now(), claims.get("iat"), claims.get("exp")
        if begin is None or end is None or begin > now + SKEW or end < now - SKEW:
            raise TokenRefusal("invalid_grant", f"ID Token issued at {begin or 'null'} is stale to sign-in.")
        return claims

    async def _check_signature(self, token: Jwt, oidc: Resource) -> None:
        unreachable = TokenRefusal("invalid_grant", "Error connecting to the given credential's issuer.")
        try:
            if oidc.get("jwksJson"):
                keys = json.loads(oidc["jwksJson"])["keys"]
            else:
                keys = await self._keys(oidc["issuerUri"])
        except LookupError:
            raise unreachable from None
        matching = [key for key in keys if key.get("kid") == token.header.get("kid") and key.get("kty") == "RSA"]
        if token.header.get("alg") != "RS256" or not matching:
            raise unreachable
        if not token.signed_by(matching[0]):
            raise TokenRefusal("invalid_grant", "Unable to verify the ID Token signature.")

    # Service Account Credentials

    def _impersonate(self, request: Request) -> Resource:
        _, container, _, email = request.names["name"].split("/")
        if container != "-":
            raise Refusal(400, "Request contains an invalid argument.")
        account = self._identities.account(email)
        permission = "iam.serviceAccounts.getAccessToken"
        policy = self._identities.policy_of(email)
        if account is None or not self._project.access.allows(request.principal, permission, policy):
            raise denied(permission, f"projects/-/serviceAccounts/{email}")
        if account.get("disabled"):
            raise Refusal(400, "Service account is disabled.", status="FAILED_PRECONDITION")
        if not request.body.get("scope"):
            raise Refusal(400, "Request contains an invalid argument.")
        seconds = float(request.body.get("lifetime", f"{LONGEST_LIFE}s").removesuffix("s"))
        if seconds <= 0:
            raise Refusal(400, "Lifetime of access token must be larger then zero.")
        if seconds > LONGEST_LIFE:
            raise Refusal(
                400,
                "The access token lifetime can not have lifetimes of more than 1 hour. Use the Org Policy Constraint "
                "constraints/iam.allowServiceAccountCredentialLifetimeExtension to allow up to 12 hours.",
            )
        token = self._project.tokens.issue(service_account(email), seconds)
        # Whole seconds: google-auth reads no others.
        return {"accessToken": token, "expireTime": stamp(self._project.clock.now() + seconds, "seconds")}

    # Keys

    def believe(self, text: str) -> Principal | None:
        """Who signed a token with a service account's key, for a scope or for one of Google's APIs."""
        try:
            token = Jwt.read(text)
        except ValueError:
            return None
        claims, email, now = token.claims, str(token.claims.get("iss", "")), self._project.clock.now()
        key = self._identities.key(email, str(token.header.get("kid")))
        account = self._identities.account(email)
        if key is None or account is None or account.get("disabled") or not token.signed_by(key):
            return None
        meant = claims.get("scope") or re.fullmatch(r"https://[a-z-]+\.googleapis\.com/", claims.get("aud", ""))
        in_time = claims.get("iat", 0) - SKEW <= now < claims.get("exp", 0) <= claims.get("iat", 0) + LONGEST_LIFE
        return service_account(email) if meant and in_time and claims.get("sub") == email else None

    def answer_key(self, body: bytes, address: str) -> Resource:
        """An access token for whoever shows that he has a service account's key (RFC 7523).

        Args:
            body: The request's, a form.
            address: Of this endpoint, which the assertion must be meant for; Python's client names Google's own,
                whatever the key says.

        Raises:
            TokenRefusal: It is not shown.
        """
        form = dict(parse_qsl(body.decode()))
        if form.get("grant_type") != BEARER:
            raise TokenRefusal("unsupported_grant_type", f"Invalid grant_type: {form.get('grant_type', '')}")
        try:
            token = Jwt.read(form.get("assertion", ""))
        except ValueError:
            raise TokenRefusal("invalid_grant", "Bad Request") from None
        claims, now = token.claims, self._project.clock.now()
        email = str(claims.get("iss", ""))
        account = self._identities.account(email)
        if account is None or account.get("disabled"):
            raise TokenRefusal("invalid_grant", "Invalid grant: account not found")
        key = self._identities.key(email, str(token.header.get("kid")))
        if key is None or token.header.get("alg") != "RS256" or not token.signed_by(key):
            raise TokenRefusal("invalid_grant", "Invalid JWT Signature.")
        begin, end = claims.get("iat", 0), claims.get("exp", 0)
        if claims.get("aud") not in (address, TOKEN_URI) or not begin - SKEW <= now < end <= begin + LONGEST_LIFE:
            raise TokenRefusal(
                "invalid_grant",
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your "
                "iat and exp values in the JWT claim.",
            )
        if not claims.get("scope"):
            raise TokenRefusal("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
        issued = self._project.tokens.issue(service_account(email), LONGEST_LIFE)
        return {"access_token": issued, "expires_in": LONGEST_LIFE - 1, "token_type": "Bearer"}


def exchange_request(body: bytes, content_type: str) -> Resource:
    """The request of a token exchange: clients send the form of OAuth (RFC 8693), the description knows it as JSON."""
    if "json" in content_type:
        found = json.loads(body)
        return found if isinstance(found, dict) else {}
    pairs = parse_qsl(body.decode(), keep_blank_values=True)
    return {re.sub(r"_(\w)", lambda m: m[1].upper(), name): value for name, value in pairs}


def _principal(pool: str, provider: Mapping[str, Any], claims: Resource) -> Principal:
    """Who the token speaks for, by the provider's mapping, if its condition holds."""
    rejected = TokenRefusal("unauthorized_client", "The given credential is rejected by the attribute condition.")
    scope: dict[str, Any] = {"assertion": claims}
    mapped: dict[str, str] = {}
    for name, expression in provider["attributeMapping"].items():
        try:
            value = conditions.parse(expression)(scope)
        except conditions.Wrong:
            if name == "google.subject":
                raise rejected from None
            continue
        mapped[name] = str(value)
    subject = mapped["google.subject"]
    if len(subject.encode()) > LONGEST_SUBJECT:
        raise TokenRefusal(
            "invalid_request",
            f"The size of mapped attribute google.subject exceeds the {LONGEST_SUBJECT} bytes limit. Either modify "
            "your attribute mapping or the incoming assertion to produce a mapped attribute that is less than "
            f"{LONGEST_SUBJECT} bytes.",
        )
    attributes = {name.removeprefix("attribute."): value for name, value in mapped.items() if "attribute." in name}
    scope |= {"google": {"subject": subject}, "attribute": attributes}
    try:
        holds = conditions.parse(provider.get("attributeCondition") or "true")(scope)
    except conditions.Wrong:
        holds = False
    if holds is not True:
        raise rejected
    whole = f"iam.googleapis.com/{pool}"
    sets = [f"attribute.{name}/{value}" for name, value in attributes.items()] + ["*"]
    members = {f"principal://{whole}/subject/{subject}", *(f"principalSet://{whole}/{entry}" for entry in sets)}
    return Principal(f"principal://{whole}/subject/{subject}", frozenset(members), federated=True)
