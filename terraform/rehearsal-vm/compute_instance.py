"""Insert or delete one instance through the Compute Engine API, call by call as the google provider does.

Started by Terraform's local-exec as ``python3 compute_instance.py insert|delete``. Everything comes by environment:
``INSTANCES_URL`` (the zone's collection of instances), ``INSTANCE_NAME``, ``INSTANCE_BODY`` (JSON, insert only) and
``GOOGLE_OAUTH_ACCESS_TOKEN``, or ``GOOGLE_CREDENTIALS`` with the path of a file about Workload Identity Federation.
Nothing is printed before the request is out: where Terraform has been killed, the pipe behind standard output is dead,
a print would end this process, and the late insert would never be seen.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
POLL_SECONDS = 0.2
WAIT_SECONDS = 20 * 60
"""The timeouts of the instance in ``gpu-vm``."""
RETRY_SECONDS = 5 * 60
"""How long the provider repeats a request that is refused for now."""

# The address is on this machine: a proxy of the environment would only be in the way.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ApiError(Exception):
    """What went wrong, in the google provider's words.

    Attributes:
        status: HTTP status of the answer; 0 where there was none, or where an operation failed.
        for_now: Whether the provider would ask again.
    """

    def __init__(self, text: str, status: int = 0, *, for_now: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.for_now = for_now


def main() -> None:
    """Do what the one argument says; exit with 1 and the error's text on standard error where it failed."""
    {"insert": insert, "delete": delete}[sys.argv[1]](os.environ["INSTANCES_URL"], os.environ["INSTANCE_NAME"])


def insert(instances_url: str, name: str) -> None:
    """Make the instance and wait until it runs."""
    doing = "creating instance"
    try:
        operation = call("POST", instances_url, os.environ["INSTANCE_BODY"].encode())
        doing = "waiting for instance to create"
        wait_for_operation(instances_url, operation)
        doing = "waiting for status"
        wait_until_running(f"{instances_url}/{name}")
    except ApiError as error:
        sys.exit(f"Error {doing}: {error}")


def delete(instances_url: str, name: str) -> None:
    """Delete the instance and wait until it is gone. One that is not there is as good as deleted."""
    doing = "deleting instance"
    try:
        operation = call("DELETE", f"{instances_url}/{name}")
        doing = "waiting for instance to delete"
        wait_for_operation(instances_url, operation)
    except ApiError as error:
        if error.status != 404:
            sys.exit(f"Error {doing}: {error}")


def wait_for_operation(instances_url: str, operation: dict[str, Any]) -> None:
    """Poll until the operation is done.

    Raises:
        ApiError: It failed, or took longer than the timeout.
    """
    url = f"{instances_url.rpartition('/')[0]}/operations/{operation['name']}"
    deadline = time.monotonic() + WAIT_SECONDS
    while operation["status"] != "DONE":
        if time.monotonic() > deadline:
            raise timeout("DONE", operation["status"])
        time.sleep(POLL_SECONDS)
        try:
            operation = call("GET", url)
        except ApiError as error:
            raise ApiError(f"error while retrieving operation: {error}") from None
    errors = operation.get("error", {}).get("errors", [])
    if errors:
        raise ApiError("".join(map(operation_error, errors)))


def wait_until_running(instance_url: str) -> None:
    """Poll until the instance runs, also when it has vanished: the provider does not notice either.

    Raises:
        ApiError: The question was refused, or the instance does not run within the timeout.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    status = ""
    while status != "RUNNING":
        if time.monotonic() > deadline:
            raise timeout("RUNNING", status)
        if status:
            time.sleep(POLL_SECONDS)
        try:
            status = call("GET", instance_url)["status"]
        except ApiError as error:
            if error.status != 404:
                raise
            status = "not found"


def timeout(wanted: str, last: str) -> ApiError:
    """The provider's words for a state that did not come."""
    return ApiError(
        f"timeout while waiting for state to become '{wanted}' (last state: '{last}', timeout: {WAIT_SECONDS // 60}m0s)"
    )


def call(method: str, url: str, body: bytes | None = None) -> dict[str, Any]:
    """Send one request and return the decoded answer; ask again while the answer is a refusal for now.

    Raises:
        ApiError: Any answer other than 2xx, or none.
    """
    deadline = time.monotonic() + RETRY_SECONDS
    pause = 0.5
    while True:
        request = urllib.request.Request(url, data=body, method=method)
        request.add_header("Authorization", "Bearer " + access_token(f'{method.capitalize()} "{url}"'))
        if body is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with OPENER.open(request) as answer:
                decoded: dict[str, Any] = json.loads(answer.read())
                return decoded
        except urllib.error.HTTPError as error:
            refused = refusal(error.code, error.read().decode(errors="replace"))
        except OSError as error:
            reason = getattr(error, "reason", error)
            words = (getattr(reason, "strerror", None) or str(reason)).lower()
            address = urllib.parse.urlsplit(url).netloc
            raise ApiError(f'{method.capitalize()} "{url}": dial tcp {address}: connect: {words}') from None
        if not refused.for_now or time.monotonic() + pause > deadline:
            raise refused
        time.sleep(pause)
        pause = min(2 * pause, 10)


@functools.cache
def access_token(doing: str) -> str:
    """The token at hand, else one for the identity token that a file of Workload Identity Federation names.

    Raises:
        ApiError: It was refused.
    """
    path = os.environ.get("GOOGLE_CREDENTIALS", "")
    if "GOOGLE_OAUTH_ACCESS_TOKEN" in os.environ or not path:
        return os.environ.get("GOOGLE_OAUTH_ACCESS_TOKEN", "")
    with open(path, encoding="utf-8") as file:
        federation = json.load(file)
    with open(federation["credential_source"]["file"], encoding="utf-8") as file:
        identity = file.read()
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "audience": federation["audience"],
        "scope": SCOPE,
        "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "subject_token_type": federation["subject_token_type"],
        "subject_token": identity,
    }
    try:
        exchange = urllib.request.Request(federation["token_url"], urllib.parse.urlencode(form).encode())
        with OPENER.open(exchange) as answer:
            token = str(json.loads(answer.read())["access_token"])
        if "service_account_impersonation_url" not in federation:
            return token
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        wanted = json.dumps({"scope": [SCOPE]}).encode()
        impersonation = urllib.request.Request(federation["service_account_impersonation_url"], wanted, headers)
        with OPENER.open(impersonation) as answer:
            return str(json.loads(answer.read())["accessToken"])
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        raise ApiError(f"{doing}: credentials: status code {error.code}: {text}", error.code) from None


def operation_error(error: dict[str, Any]) -> str:
    """Word one error of an operation: its code, and which zones have capacity, are not told."""
    text = f"{error.get('message', '')}\n"
    found: dict[str, Any] = {}
    for detail in error.get("errorDetails", []):
        found = {**detail, **found}
    quota = found.get("quotaInfo")
    if quota and error.get("code") == "QUOTA_EXCEEDED":
        dimensions = " ".join(f"{key}:{value}" for key, value in sorted(quota.get("dimensions", {}).items()))
        text += f"\tmetric name = {quota.get('metricName')}\n\tlimit name = {quota.get('limitName')}\n"
        text += (
            f"\tlimit = {quota['limit']:g}\n" if quota.get("limit") else ""
        ) + f"\tdimensions = map[{dimensions}]\n"
    if "localizedMessage" in found:
        text += f"\n\n{found['localizedMessage'].get('message', '')}\n"
    for link in found.get("help", {}).get("links", [])[:1]:
        text += f"\n\n{link.get('description', '')}\n{link.get('url', '')}\n"
    return text


def refusal(status: int, body: str) -> ApiError:
    """Word an HTTP answer as Google's client for Go, which the provider uses, words it."""
    try:
        error = json.loads(body)["error"]
        message, reasons = error["message"], error.get("errors", [])
    except (ValueError, KeyError, TypeError):
        return ApiError(f"googleapi: got HTTP response code {status} with body: {body}", status, for_now=status == 503)
    text = f"googleapi: Error {status}: {message}"
    if error.get("details"):
        text += "\nDetails:\n" + json.dumps(error["details"], indent=2, sort_keys=True)
    if len(reasons) == 1 and reasons[0].get("message") == message:
        text += f", {reasons[0].get('reason')}"
    elif reasons:
        lines = [f"Reason: {one.get('reason')}, Message: {one.get('message')}" for one in reasons]
        text += "\nMore details:\n" + "\n".join(lines)
    for_now = status in (429, 503) or any(one.get("reason") == "rateLimitExceeded" for one in reasons)
    return ApiError(text, status, for_now=for_now)


if __name__ == "__main__":
    main()
