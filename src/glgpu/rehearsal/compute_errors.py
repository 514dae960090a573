"""Compute Engine's refusals: the texts, reasons and JSON that Google sends, in one place.

Texts are those that public bug reports and Google's own documentation quote; where none was found, the nearest.
"""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An HTTP error in Google's form.

    Attributes:
        code: HTTP status.
        reason: Google's word for it, ``notFound`` for example.
        domain: ``global`` or ``usageLimits``.
        status: The canonical name that Google's front end adds to its own refusals; Compute Engine itself sends none.
        details: Further typed objects of the front end.
        location: Which header is meant, for a missing credential.
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        domain: str = "global",
        status: str = "",
        details: list[dict[str, Any]] | None = None,
        location: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.domain = domain
        self.status = status
        self.details = details or []
        self.location = location

    def body(self) -> dict[str, Any]:
        """The JSON that goes out."""
        entry = {"message": str(self), "domain": self.domain, "reason": self.reason}
        if self.location:
            entry |= {"location": self.location, "locationType": "header"}
        error: dict[str, Any] = {"code": self.code, "message": str(self), "errors": [entry]}
        if self.status:
            error["status"] = self.status
        if self.details:
            error["details"] = self.details
        return {"error": error}


class OperationFailed(Exception):
    """An operation that was accepted and then failed.

    Attributes:
        code: Google's word, ``QUOTA_EXCEEDED`` for example.
        http_code: The HTTP status that the operation carries.
        http_message: Its text.
        details: Entries of ``errorDetails``.
    """

    def __init__(
        self, code: str, message: str, http_code: int, http_message: str, details: list[dict[str, Any]] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.http_code = http_code
        self.http_message = http_message
        self.details = details or []


def malformed(message: str) -> ApiError:
    """A request that Google's front end does not understand."""
    return ApiError(400, "badRequest", message, status="INVALID_ARGUMENT")


def invalid(field: str, value: object, problem: str) -> ApiError:
    """A field whose value Compute Engine does not take."""
    return ApiError(400, "invalid", f"Invalid value for field '{field}': '{value}'. {problem}")


def incompatible(first: str, second: str) -> ApiError:
    """Two features that do not go together."""
    return ApiError(400, "badRequest", f"[{first}, {second}] features are not compatible for creating instance.")


def not_found(path: str) -> ApiError:
    """A resource that is not there."""
    return ApiError(404, "notFound", f"The resource '{path}' was not found")


def already_exists(path: str) -> ApiError:
    """A name that is taken."""
    return ApiError(409, "alreadyExists", f"The resource '{path}' already exists")


def not_ready(path: str) -> ApiError:
    """A resource that is busy with something else, such as being deleted."""
    return ApiError(400, "resourceNotReady", f"The resource '{path}' is not ready")


def in_use(path: str, user: str) -> ApiError:
    """A disk that an instance still has."""
    return ApiError(
        400, "resourceInUseByAnotherResource", f"The disk resource '{path}' is already being used by '{user}'"
    )


def condition_not_met(message: str) -> ApiError:
    """A fingerprint that is not the current one."""
    return ApiError(412, "conditionNotMet", message)


def policy_violated(constraint: str) -> ApiError:
    """An organisation policy of Google's own."""
    return condition_not_met(f"Constraint constraints/{constraint} violated for project 123456789012.")


def unauthenticated(*, given: bool) -> ApiError:
    """No credential, or (``given``) one that is not known."""
    expected = (
        "Expected OAuth 2 access token, login cookie or other valid authentication credential. "
        "See https://developers.google.com/identity/sign-in/web/devconsole-project."
    )
    if given:
        message, reason, cause = "Request had invalid authentication credentials. ", "authError", "ACCESS_TOKEN_EXPIRED"
    else:
        message, reason, cause = (
            "Request is missing required authentication credential. ",
            "required",
            "CREDENTIALS_MISSING",
        )
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": cause, "domain": "googleapis.com"}
    return ApiError(401, reason, message + expected, status="UNAUTHENTICATED", details=[info], location="Authorization")


def may_not_act_as(email: str) -> ApiError:
    """A service account for a VM, of somebody who may not use it, or that is not there."""
    text = f"The user does not have access to service account '{email}'. Ask a project owner to grant you the "
    return ApiError(400, "badRequest", text + "iam.serviceAccountUser role on the service account")


def permission_denied(permission: str, path: str) -> ApiError:
    """A known caller who may not do this."""
    return ApiError(403, "forbidden", f"Required '{permission}' permission for '{path}'")


def denied_by_policy(path: str) -> ApiError:
    """An organisation that forbids this to everybody."""
    return ApiError(
        403,
        "forbidden",
        f"Operation denied by custom org policy on resource '{path}': "
        '["customConstraints/custom.glgpuRehearsal": "This operation is not allowed."]',
        status="PERMISSION_DENIED",
    )


def api_disabled(project: str) -> ApiError:
    """A project in which Compute Engine was never switched on."""
    console = f"https://console.developers.google.com/apis/api/compute.googleapis.com/overview?project={project}"
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "SERVICE_DISABLED",
        "domain": "googleapis.com",
        "metadata": {"consumer": f"projects/{project}", "service": "compute.googleapis.com"},
    }
    return ApiError(
        403,
        "accessNotConfigured",
        f"Compute Engine API has not been used in project {project} before or it is disabled. Enable it by visiting "
        f"{console} then retry. If you enabled this API recently, wait a few minutes for the action to propagate to "
        "our systems and retry.",
        domain="usageLimits",
        status="PERMISSION_DENIED",
        details=[info],
    )


def unavailable() -> ApiError:
    """Google itself in trouble."""
    return ApiError(503, "backendError", "The service is currently unavailable.", status="UNAVAILABLE")


def rate_limited(status: int) -> ApiError:
    """Too many requests; Compute Engine says so with 403 or with 429, and has done nothing."""
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "RATE_LIMIT_EXCEEDED",
        "domain": "googleapis.com",
        "metadata": {"service": "compute.googleapis.com", "quota_limit": "ReadRequestsPerMinutePerProject"},
    }
    return ApiError(
        status,
        "rateLimitExceeded",
        "Quota exceeded for quota metric 'Read requests' and limit 'Read requests per minute' of service "
        "'compute.googleapis.com' for consumer 'project_number:123456789012'.",
        domain="usageLimits",
        status="RESOURCE_EXHAUSTED" if status == 429 else "PERMISSION_DENIED",
        details=[info],
    )


def not_served(what: str) -> ApiError:
    """Something that Google has and this stand-in does not."""
    return ApiError(501, "notImplemented", f"{what} is not served by this stand-in.", status="UNIMPLEMENTED")


def quota_exceeded(metric: str, limit: float, region: str | None) -> ApiError:
    """A limit that is known to be passed when the request comes in; no ``region``: one of the whole project."""
    return ApiError(403, "quotaExceeded", _quota_text(metric, limit, region), domain="usageLimits")


def quota_failure(metric: str, limit: float, region: str | None) -> OperationFailed:
    """The same, found out while the operation ran."""
    name = metric.replace("_", "-")
    info = {
        "metricName": f"compute.googleapis.com/{metric.lower()}",
        "limitName": f"{name}-per-project-region" if region else f"{name}-per-project",
        "limit": limit,
        "dimensions": {"region": region} if region else {"global": "global"},
    }
    return OperationFailed(
        "QUOTA_EXCEEDED", _quota_text(metric, limit, region), 403, "FORBIDDEN", [{"quotaInfo": info}]
    )


def stockout(
    project: str, zone: str, machine_type: str, gpu: tuple[str, int] | None, others: list[str], form: str = ""
) -> OperationFailed:
    """No capacity in this zone now; ``others`` are zones that have some.

    Args:
        project: The project.
        zone: Where.
        machine_type: What was asked for.
        gpu: Accelerator type and number, or None.
        others: Zones that have capacity.
        form: Which of Google's texts: ``plain`` has no details (the oldest), ``sentence`` names the other zones in
            its message alone, ``metadata`` in its details alone; else both do.
    """
    where = (
        f"The zone 'projects/{project}/zones/{zone}' does not have enough resources available to fulfill the request."
    )
    if form == "plain":
        return OperationFailed(
            "ZONE_RESOURCE_POOL_EXHAUSTED",
            f"{where}  Try a different zone, or try again later.",
            503,
            "SERVICE UNAVAILABLE",
        )
    attachment = f" with {gpu[1]} {gpu[0]} accelerator(s)" if gpu else ""
    hint = (
        f"Consider trying your request in the {', '.join(others)} zone(s), which currently has capacity to accommodate "
        "your request. "
        if others and form != "metadata"
        else ""
    )
    sentence = (
        f"A {machine_type} VM instance{attachment} is currently unavailable in the {zone} zone. {hint}Alternatively, "
        "you can try your request again with a different VM hardware configuration or at a later time. For more "
        "information, see the troubleshooting documentation."
    )
    code = "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"
    if form == "sentence":
        return OperationFailed(code, sentence, 503, "SERVICE UNAVAILABLE")
    metadatas = {"vmType": machine_type, "zone": zone, "zonesAvailable": ",".join(others)}
    if gpu:
        metadatas["attachment"] = f"{gpu[0]}:{gpu[1]}"
    help_url = "https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-vm-creation"
    return OperationFailed(
        code,
        f"{where}  '(resource type:compute)'.",
        503,
        "SERVICE UNAVAILABLE",
        [
            {
                "errorInfo": {
                    "reason": "resource_availability",
                    "domain": "compute.googleapis.com",
                    "metadatas": metadatas,
                }
            },
            {"help": {"links": [{"description": "Troubleshooting documentation", "url": help_url}]}},
            {"localizedMessage": {"locale": "en-US", "message": sentence}},
        ],
    )


def preempted() -> OperationFailed:
    """A Spot VM that was taken away before it ran."""
    return OperationFailed("UNSUPPORTED_OPERATION", "Instance failed to start due to preemption.", 400, "BAD REQUEST")


def internal_error(code: str) -> OperationFailed:
    """An operation that fails without a cause that the caller could act on."""
    return OperationFailed(
        code or "INTERNAL_ERROR",
        "Internal error. Please try again or contact Google Support. (Code: '-1')",
        500,
        "INTERNAL SERVER ERROR",
    )


def _quota_text(metric: str, limit: float, region: str | None) -> str:
    return f"Quota '{metric}' exceeded.  Limit: {limit:.1f} {f'in region {region}' if region else 'globally'}."
