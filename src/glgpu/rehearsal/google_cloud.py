"""The stand-in for every Google API but Compute Engine: one HTTP server on the loopback interface.

One endpoint serves them all, told apart by their paths, as callers send them when each API's endpoint is set to it.
Every request and every answer is held to Google's own description of the API, as with Compute Engine.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import aiohttp
from aiohttp import web

from glgpu import permissions
from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.compute_resources import Resource
from glgpu.rehearsal.faults import Faults, Rule
from glgpu.rehearsal.google_access import EVERYTHING, OWNER, Access, Principal, Tokens, service_account, user
from glgpu.rehearsal.google_api import ApiDescription, Method, Violation, read_api, without_nulls
from glgpu.rehearsal.google_errors import (
    Refusal,
    TokenRefusal,
    Unforeseen,
    api_disabled,
    caller_denied,
    insufficient_scopes,
    not_served,
    unauthenticated,
    unavailable,
)
from glgpu.rehearsal.google_federation import Federation, exchange_request
from glgpu.rehearsal.google_iam import Identities
from glgpu.rehearsal.google_project import AT_BIRTH, TITLES, ProjectServices
from glgpu.rehearsal.google_requests import Answer, Handler, Project, Reply, Request
from glgpu.rehearsal.google_storage import Storage, split_upload
from glgpu.rehearsal.json_web_tokens import SigningKey
from glgpu.rehearsal.world_clock import WorldClock

STORAGE, UPLOADS, DOWNLOADS = "storage/v1/", "upload/storage/v1/", "download/storage/v1/"

APIS = {
    "serviceusage.v1": "",
    "cloudresourcemanager.v1": "",
    "cloudresourcemanager.v3": "",
    "iam.v1": "",
    "iamcredentials.v1": "",
    "orgpolicy.v2": "",
    "cloudbilling.v1": "",
    "sts.v1": "",
    "storage.v1": STORAGE,
}
"""The descriptions, each with what precedes its paths."""

LARGEST_BODY = 1 << 30
LOGGED_BODY = 1 << 20
"""Bytes of a body that are logged: states are, weights are not."""

NOT_IMPLEMENTED = 501
VM_TOKEN_SECONDS = 3599
NUMBER = "481516234299"
"""The project's number."""

KEY_PATH = "/token"
EXCHANGE_PATH = "/v1/token"
NOBODY = Principal("", frozenset())
POOL = "glgpu"


class ConnectionCut(Exception):
    """The caller is to see its connection closed without an answer."""


class GoogleCloud:
    """The server.

    Args:
        clock: The world's clock.
        faults: What goes wrong. Points: the methods' names (``serviceusage.services.list``). Actions:
            ``permission-denied``, ``api-disabled``, ``unavailable``, ``reset``, ``silence``, ``slow`` (argument:
            seconds); of uploads over the XML API also ``corrupt`` (other bytes come than were sent).
        calls: Where requests are logged, as ``google``.
        project: Id of the one project.
        tokens: The tokens that every Google API takes; Compute Engine's stand-in shares them.
        bootstrapped: Whether the project has what ``terraform/bootstrap`` makes; else it is as Google makes it.
        latency: Seconds that a long-running operation takes.

    Attributes:
        endpoint: ``http://127.0.0.1:PORT``; known from ``start`` on.
        project: The project; whatever is in it may be changed at any time.
        identities: Its service accounts, pools and providers; likewise.
        storage: Its buckets; likewise.
    """

    def __init__(
        self,
        clock: WorldClock,
        faults: Faults,
        calls: CallLog,
        *,
        project: str,
        tokens: Tokens,
        bootstrapped: bool = True,
        latency: float = 0.0,
    ) -> None:
        self.endpoint = ""
        self._clock = clock
        self._faults = faults
        self._calls = calls
        self._apis: dict[str, ApiDescription] = {name: read_api(name) for name in APIS}
        self._runner: web.AppRunner | None = None
        self._stopping = asyncio.Event()
        access = Access(project)
        self.project = Project(project, NUMBER, clock, tokens, access, set(AT_BIRTH), latency=latency)
        self.identities = Identities(self.project)
        self.storage = Storage(self.project)
        self._federation = Federation(self.project, self.identities, fetch_keys)
        tokens.believe = self._federation.believe
        self._handlers: dict[str, Handler] = {
            **ProjectServices(self.project).handlers(),
            **self.identities.handlers(),
            **self._federation.handlers(),
            **self.storage.handlers(),
        }
        if bootstrapped:
            self._bootstrap()

    @property
    def account(self) -> str:
        """E-mail address of the service account that jobs use."""
        return f"glgpu-jobs@{self.project.id}.iam.gserviceaccount.com"

    def jobs(self) -> Principal:
        """Who the jobs are."""
        return service_account(self.account)

    def allows(self, token: str, permission: str, account: str = "") -> bool:
        """Whether whoever has a token has a permission in the project, or on a service account of it."""
        principal = self.project.tokens.find(token)
        if principal is None or EVERYTHING not in principal.scopes:
            return False
        if account and self.identities.account(account) is None:
            return False
        further = [self.identities.policy_of(account)] if account else []
        return self.project.access.allows(principal, permission, *further)

    def token_of_vm(self, email: str, scopes: Sequence[str]) -> tuple[str, int] | None:
        """What the metadata server of a VM hands out for its service account: a token, and for how many seconds."""
        account = self.identities.account(email)
        if account is None or account.get("disabled"):
            return None
        return self.project.tokens.issue(service_account(email, scopes), VM_TOKEN_SECONDS), VM_TOKEN_SECONDS

    def owner(self, email: str = "owner@example.com") -> Principal:
        """Somebody who may do everything in the project."""
        self.project.access.grant(OWNER, f"user:{email}")
        return user(email)

    async def start(self) -> None:
        """Begin to serve."""
        app = web.Application(client_max_size=LARGEST_BODY, middlewares=[self._calls.interposer.middleware("google")])
        app.on_response_prepare.append(self._clock.date)
        app.router.add_route("*", "/{path:.*}", self._receive)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.endpoint = f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stop serving."""
        self._stopping.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def _bootstrap(self) -> None:
        """What a project has after ``terraform/bootstrap``."""
        project, access = self.project, self.project.access
        project.services.update(TITLES)
        role = f"projects/{project.id}/roles/glgpu_jobs"
        held = [*permissions.RUN, *permissions.LOOK, *permissions.TUNNEL, *permissions.ORGANISATION]
        access.roles[role] = {"name": role, "title": "glgpu", "stage": "GA", "includedPermissions": sorted(held)}
        access.accounts[self.account] = {
            "name": f"projects/{project.id}/serviceAccounts/{self.account}",
            "projectId": project.id,
            "uniqueId": str(10**20 + secrets.randbelow(10**20)),
            "email": self.account,
        }
        access.grant(role, f"serviceAccount:{self.account}")

    def make_bucket(self, name: str) -> None:
        """A bucket for the jobs, as ``terraform/bootstrap`` makes it."""
        body = {"location": "EU", "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}}}
        self.storage.make(name, self.endpoint, body)
        role = f"projects/{self.project.id}/roles/glgpu_bucket"
        held = sorted(permissions.BUCKET)
        self.project.access.roles[role] = {"name": role, "title": "glgpu", "stage": "GA", "includedPermissions": held}
        member = f"serviceAccount:{self.account}"
        self.storage.buckets[name].policy.bindings.append({"role": role, "members": [member]})

    def make_uploader(self, email: str, bucket: str | None = None) -> None:
        """An account that VMs may be given, and that may add to a bucket, as ``terraform/bootstrap`` makes it."""
        self.project.access.accounts.setdefault(
            email,
            {
                "name": f"projects/{self.project.id}/serviceAccounts/{email}",
                "projectId": self.project.id,
                "uniqueId": str(10**20 + secrets.randbelow(10**20)),
                "email": email,
            },
        )
        jobs = {"role": "roles/iam.serviceAccountUser", "members": [f"serviceAccount:{self.account}"]}
        self.identities.policy_of(email).bindings.append(jobs)
        if bucket is None:
            return
        below = f"projects/_/buckets/{bucket}/objects/glgpu/outputs/"
        adds = {
            "role": "roles/storage.objectCreator",
            "members": [f"serviceAccount:{email}"],
            "condition": {"title": "outputs", "expression": f'resource.name.startsWith("{below}")'},
        }
        self.storage.buckets[bucket].policy.bindings.append(adds)

    def trust(self, issuer: str, gitlab_project: int) -> str:
        """Let the jobs of a GitLab project be the service account; the provider's full name.

        Google itself wants ``https`` of an issuer, which no GitLab on a loopback interface has.
        """
        pool = f"projects/{self.project.number}/locations/global/workloadIdentityPools/{POOL}"
        self.identities.pools[POOL] = {"name": pool, "state": "ACTIVE"}
        provider = {
            "name": f"{pool}/providers/{POOL}",
            "state": "ACTIVE",
            "attributeMapping": {
                "google.subject": "'project_id:' + assertion.project_id + ':job_id:' + assertion.job_id",
                "attribute.project_id": "assertion.project_id",
            },
            "attributeCondition": f"assertion.project_id == '{gitlab_project}'",
            "oidc": {"issuerUri": issuer},
        }
        self.identities.providers[POOL, POOL] = provider
        member = f"principalSet://iam.googleapis.com/{pool}/attribute.project_id/{gitlab_project}"
        policy = self.identities.policy_of(self.account)
        policy.bindings.append({"role": "roles/iam.workloadIdentityUser", "members": [member]})
        return str(provider["name"])

    def new_key(self, email: str) -> Resource:
        """A key of a service account, as its JSON file holds it."""
        key = SigningKey()
        self.identities.add_key(email, key.public)
        return {
            "type": "service_account",
            "project_id": self.project.id,
            "private_key_id": key.id,
            "private_key": key.private,
            "client_email": email,
            "client_id": self.project.access.accounts[email]["uniqueId"],
            "token_uri": self.endpoint + KEY_PATH,
            "universe_domain": "googleapis.com",
        }

    # From the wire to the API

    async def _receive(self, http: web.Request) -> web.StreamResponse:
        body = await http.read()
        headers = {name.lower(): value for name, value in http.headers.items()}
        status, reply, unserved = 500, Reply(500), ""
        storage = "/storage/v1/" in http.path
        try:
            reply = await self._serve(http.method, http.raw_path, headers, body)
            status = reply.status
        except Refusal as refusal:
            status, reply = refusal.code, _json_reply(refusal.code, refusal.body(storage=storage))
            unserved = str(refusal) if isinstance(refusal, Unforeseen) else ""
        except TokenRefusal as refusal:
            status, reply = 400, _json_reply(400, refusal.body())
        except Violation as violation:
            refused = Refusal(400, str(violation))
            status, reply, unserved = 400, _json_reply(400, refused.body(storage=storage)), str(violation)
        except ConnectionCut:
            self._log(http, headers, body, None)
            if http.transport is not None:
                http.transport.abort()
            return web.Response()
        self._log(http, headers, body, status, unserved)
        return web.Response(status=status, body=reply.body, headers=dict(reply.headers))

    async def _serve(self, verb: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        parts = urlsplit(target)
        if (verb, parts.path) == ("POST", KEY_PATH):
            return _json_reply(200, self._federation.answer_key(body, self.endpoint + KEY_PATH))
        query = _joined(parse_qsl(parts.query, keep_blank_values=True))
        path = parts.path.removeprefix("/")
        if verb == "PUT" and path.startswith(UPLOADS) and "upload_id" in query:
            answer = self.storage.resume(query["upload_id"], headers, body)
            return answer if isinstance(answer, Reply) else _json_reply(200, answer)
        bucket, _, name = path.partition("/")
        if verb == "PUT" and name and not list(self._candidates(verb, path)):
            return await self._serve_xml_upload(bucket, unquote(name), headers, body)
        if verb == "GET" and bucket in self.storage.buckets and name:
            return self.storage.download(bucket, unquote(name), self._authenticate(headers), headers)
        return await self._serve_method(verb, parts.path, parts.query, headers, body)

    async def _serve_xml_upload(self, bucket: str, name: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """An upload over the XML API, which Google describes in no document."""
        fault = self._faults.at("storage.objects.insert")
        if fault is not None and fault.action == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:] if body else b"!"
        else:
            await self._unless_broken(fault)
        found = self._apis["storage.v1"].find("POST", f"b/{bucket}/o")
        assert found is not None
        method, names = found
        try:
            principal = self._authenticate(headers)
            self._require_scope(principal, method)
            self._require_service(method)
            generation = headers.get("x-goog-if-generation-match")
            query = {"name": name} | ({} if generation is None else {"ifGenerationMatch": generation})
            media = Request(method.id, names, query, {}, principal, headers, body, self.endpoint)
            return self.storage.upload(media)
        except Refusal as refusal:
            return self.storage.refused(refusal)

    async def _serve_method(self, verb: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Serve a call that the APIs' descriptions know, whether there is a slash at its end or not."""
        uploads, anonymous = path.startswith(f"/{UPLOADS}"), path == EXCHANGE_PATH
        api, method, names = self._find(verb, re.sub(f"^/({UPLOADS}|{DOWNLOADS})", f"/{STORAGE}", path.rstrip("/")))
        pairs = parse_qsl(query, keep_blank_values=True)
        api.check_query(method, pairs)
        principal = NOBODY if anonymous else self._authenticate(headers)
        if not anonymous:
            self._require_scope(principal, method)
        found = _joined(pairs)
        media = body
        if uploads and found.get("uploadType") == "multipart":
            metadata, media, kind = split_upload(headers, body)
            headers = {**headers, "content-type": kind}
            content = _json(metadata)
        elif uploads and found.get("uploadType") == "media":
            content = None
        elif anonymous:
            content = exchange_request(body, headers.get("content-type", ""))
        else:
            content = without_nulls(_json(body))
        api.check_request(method, content)
        await self._unless_broken(self._faults.at(method.id))
        self._require_service(method)
        if method.id not in self._handlers:
            raise not_served(method.id)
        request = Request(method.id, names, found, content or {}, principal, headers, media, self.endpoint)
        answer = self._handlers[method.id](request)
        return self._checked(api, method, await answer if inspect.isawaitable(answer) else answer)

    def _find(self, verb: str, path: str) -> tuple[ApiDescription, Method, dict[str, str]]:
        found = list(self._candidates(verb, path.removeprefix("/")))
        if not found:
            raise Unforeseen(404, f"The requested URL {unquote(path)} was not found on this server.", reason="notFound")
        # Several APIs have `v1/operations/...`, and one `v1/*/*/services`: whoever serves it, and then the plainest.
        return min(found, key=lambda f: (f[1].id not in self._handlers, sum("{" in s for s in f[1].segments)))

    def _candidates(self, verb: str, path: str) -> Iterator[tuple[ApiDescription, Method, dict[str, str]]]:
        for name, prefix in APIS.items():
            if path.startswith(prefix):
                found = self._apis[name].find(verb, path.removeprefix(prefix))
                if found is not None:
                    yield self._apis[name], *found

    def _authenticate(self, headers: Mapping[str, str]) -> Principal:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        principal = self.project.tokens.find(token) if scheme.lower() == "bearer" else None
        if principal is None:
            raise unauthenticated(given=bool(scheme))
        return principal

    def _require_scope(self, principal: Principal, method: Method) -> None:
        if EVERYTHING not in principal.scopes and principal.scopes.isdisjoint(method.scopes):
            raise insufficient_scopes(method.id)

    def _require_service(self, method: Method) -> None:
        """Refuse what a switched-off service would do; the service that switches services on is always there."""
        service = f"{method.id.partition('.')[0]}.googleapis.com"
        if service not in self.project.services and service != "serviceusage.googleapis.com":
            raise api_disabled(TITLES[service], service, self.project.number)

    def _checked(self, api: ApiDescription, method: Method, answer: Answer) -> Reply:
        if isinstance(answer, Reply):
            return answer
        try:
            api.check_response(method, answer)
        except Violation as violation:
            raise Unforeseen(
                500, f"The stand-in's answer breaks the API description at {violation.field}: {violation}"
            ) from violation
        return _json_reply(200, answer)

    async def _unless_broken(self, fault: Rule | None) -> None:
        match fault.action if fault is not None else None:
            case None:
                return
            case "permission-denied":
                raise caller_denied()
            case "api-disabled":
                service = f"{fault.point.partition('.')[0]}.googleapis.com" if fault else ""
                raise api_disabled(TITLES[service], service, self.project.number)
            case "unavailable":
                raise unavailable()
            case "reset":
                raise ConnectionCut
            case "silence":
                point = fault.point if fault else ""
                self._calls.add("google", "", point, at=self._clock.now(), unserved="", fault="silence")
                await self._stopping.wait()
                raise ConnectionCut
            case "slow":
                await asyncio.sleep(float(fault.argument) if fault else 0.0)
            case unknown:
                raise Unforeseen(500, f"The stand-in knows no fault '{unknown}'.")

    def _log(
        self, http: web.Request, headers: Mapping[str, str], body: bytes, status: int | None, unserved: str = ""
    ) -> None:
        self._calls.add(
            "google",
            http.method,
            http.raw_path,
            at=self._clock.now(),
            status=status,
            headers=dict(headers),
            body=_logged(http.path, body),
            unserved=unserved,
        )


async def fetch_keys(issuer: str) -> list[Resource]:
    """The keys that an issuer publishes (https://openid.net/specs/openid-connect-discovery-1_0.html).

    Raises:
        LookupError: It cannot be reached, or says something else.
    """
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            async with session.get(f"{issuer}/.well-known/openid-configuration") as answer:
                address = (await answer.json())["jwks_uri"]
            async with session.get(address) as answer:
                keys: list[Resource] = (await answer.json())["keys"]
                return keys
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        raise LookupError(f"{issuer}: {error}") from None


def _logged(path: str, body: bytes) -> str:
    """A body as it is logged: a credential that is in its place is no leak, like a token in its header."""
    text = body[:LOGGED_BODY].decode(errors="replace")
    if path in (KEY_PATH, EXCHANGE_PATH):
        return re.sub(r"(subject_token|subjectToken|assertion)(=|\":\s*\")[^&\"]+", r"\1\2(present)", text)
    return text


def _json(body: bytes) -> Any:
    if not body.strip():
        return None
    try:
        return json.loads(body)
    except ValueError:
        raise Refusal(400, "Invalid JSON payload received. Parse error.") from None


def _json_reply(status: int, body: Resource) -> Reply:
    text = json.dumps(body, indent=2, ensure_ascii=False).encode()
    return Reply(status, text, {"Content-Type": "application/json; charset=UTF-8"})


def _joined(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Query parameters; those that are given several times joined by commas."""
    joined: dict[str, str] = {}
    for name, value in pairs:
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined
