"""What Google lets us do in the cloud project: services, permissions, policies, billing. Only asks.

These APIs have no common client library, so they are called as they are, with google-auth's session; their methods
and forms are those of Google's discovery documents.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from glgpu.clients.google_calls import CALL_SECONDS, GoogleCalls
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Policy
from glgpu.job import Job

MOST_SERVICES = 20
"""How many services one call may ask about (serviceusage v1, ``services.batchGet``)."""
MOST_PERMISSIONS = 100
"""How many permissions one call may ask about (https://cloud.google.com/iam/docs/testing-permissions)."""


class GoogleProject:
    """The cloud project through the APIs that judge what may be done in it.

    Every method may be called from several threads at once: each has a session of its own.

    Args:
        job: Credentials and endpoint.
        project: The Google Cloud project.
    """

    def __init__(self, job: Job, project: str) -> None:
        self.project = project
        self._endpoint = job.google_endpoint
        self._google = GoogleCalls(job)
        self._own = threading.local()

    def server_time(self) -> float:
        """Google's clock in Unix time, in whole seconds; needs no credentials."""
        import requests

        def ask() -> float:
            # Whatever it answers, it says what time it is (RFC 9110, section 6.6.1).
            address = self._address("cloudresourcemanager", "")
            answer = requests.head(address, timeout=CALL_SECONDS, allow_redirects=False)
            return parsedate_to_datetime(answer.headers["Date"]).timestamp()

        return float(self._google.call("asking Google for the time", ask))

    def log_in(self) -> None:
        """Get an access token."""
        self._google.call("logging in to Google", self._google.log_in)

    def state(self) -> str:
        """The project's state: ``ACTIVE``, ``DELETE_REQUESTED``, ..."""
        path = f"v3/projects/{self.project}"
        return str(self._ask("looking at the project", "cloudresourcemanager", path).get("state", ""))

    def disabled_services(self, names: Sequence[str]) -> list[str]:
        """Which of these APIs are not enabled."""
        enabled = set()
        for begin in range(0, len(names), MOST_SERVICES):
            asked = names[begin : begin + MOST_SERVICES]
            query = "&".join(f"names=projects/{self.project}/services/{name}" for name in asked)
            path = f"v1/projects/{self.project}/services:batchGet?{query}"
            found = self._ask("asking which APIs are enabled", "serviceusage", path)
            enabled |= {
                str(one["name"]).rpartition("/")[2]
                for one in found.get("services", [])
                if one.get("state") == "ENABLED"
            }
        return [name for name in names if name not in enabled]

    def missing_permissions(self, names: Sequence[str]) -> list[str]:
        """Which of these permissions we do not have in the project."""
        path = f"v3/projects/{self.project}:testIamPermissions"
        return self._missing("asking for our permissions", "cloudresourcemanager", path, names)

    def missing_on_account(self, account: str, names: Sequence[str]) -> list[str]:
        """The same for a service account."""
        path = f"v1/projects/-/serviceAccounts/{quote(account, safe='@')}:testIamPermissions"
        return self._missing(f"asking for our permissions on {account}", "iam", path, names)

    def missing_on_bucket(self, bucket: str, names: Sequence[str]) -> list[str] | None:
        """The same for a bucket; None: there is no such bucket."""
        query = "&".join(f"permissions={name}" for name in names)
        path = f"storage/v1/b/{quote(bucket, safe='')}/iam/testPermissions?{query}"
        found = self._call(f"asking for our permissions on {bucket}", "storage", path, missing_is_none=True)
        return _without(names, found) if found is not None else None

    def billing_enabled(self) -> bool:
        """Whether the project has a billing account that is open."""
        path = f"v1/projects/{self.project}/billingInfo"
        return self._ask("asking for the billing account", "cloudbilling", path).get("billingEnabled") is True

    def policy(self, constraint: str) -> Policy:
        """The policy in force for a constraint.

        What it says under a condition on tags is left out: whether it holds for a VM that is not there cannot be known.
        """
        path = f"v2/projects/{self.project}/policies/{constraint}:getEffectivePolicy"
        found = self._ask(f"reading the policy {constraint}", "orgpolicy", path)
        rules = [rule for rule in found.get("spec", {}).get("rules", []) if "condition" not in rule]
        values = [rule.get("values", {}) for rule in rules]
        return Policy(
            enforced=any(rule.get("enforce") is True for rule in rules),
            deny_all=any(rule.get("denyAll") is True for rule in rules),
            allowed=tuple(text for one in values for text in one.get("allowedValues", [])),
            denied=tuple(text for one in values for text in one.get("deniedValues", [])),
        )

    def _missing(self, doing: str, service: str, path: str, names: Sequence[str]) -> list[str]:
        missing = []
        for begin in range(0, len(names), MOST_PERMISSIONS):
            asked = names[begin : begin + MOST_PERMISSIONS]
            missing += _without(asked, self._ask(doing, service, path, {"permissions": list(asked)}))
        return missing

    def _ask(self, doing: str, service: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        found = self._call(doing, service, path, body)
        if not isinstance(found, dict):
            raise Failure(ErrorClass.UNKNOWN, f"{doing}: Google's answer is no JSON object", "retry", repr(found)[:500])
        return found

    def _call(
        self,
        doing: str,
        service: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        missing_is_none: bool = False,
    ) -> Any:
        from google.api_core.exceptions import from_http_response

        def call() -> Any:
            self._google.log_in()
            answer = self._session.request(
                "GET" if body is None else "POST", self._address(service, path), json=body, timeout=CALL_SECONDS
            )
            if not answer.ok:
                raise from_http_response(answer)
            return answer.json()

        return self._google.call(doing, call, missing_is_none=missing_is_none)

    def _address(self, service: str, path: str) -> str:
        return f"{self._endpoint or f'https://{service}.googleapis.com'}/{path}"

    @property
    def _session(self) -> Any:
        from google.auth.transport.requests import AuthorizedSession

        made: Callable[[Any], Any] = AuthorizedSession
        if not hasattr(self._own, "session"):
            self._own.session = made(self._google.credentials)
        return self._own.session


def _without(names: Sequence[str], found: Any) -> list[str]:
    held = set(found.get("permissions", []) if isinstance(found, dict) else [])
    return [name for name in names if name not in held]
