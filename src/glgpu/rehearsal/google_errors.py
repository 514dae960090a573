"""Refusals of Google's APIs other than Compute Engine's: texts and forms as Google sends them."""

from __future__ import annotations

from typing import Any

CANONICAL = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    412: "FAILED_PRECONDITION",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
}
ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"


class Refusal(Exception):
    """An HTTP error.

    Attributes:
        code: HTTP status.
        status: The canonical name, which every API but Cloud Storage sends.
        reason: Cloud Storage's word for it.
        details: Typed objects beside the message.
    """

    def __init__(
        self,
        code: int,
        message: str,
        *,
        status: str = "",
        reason: str = "invalid",
        details: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status or CANONICAL.get(code, "INTERNAL")
        self.reason = reason
        self.details = details or []

    def body(self, *, storage: bool) -> dict[str, Any]:
        """The JSON that goes out, in the form of Cloud Storage or in that of the others."""
        error: dict[str, Any] = {"code": self.code, "message": str(self)}
        if storage:
            error["errors"] = [{"message": str(self), "domain": "global", "reason": self.reason}]
        else:
            error["status"] = self.status
        if self.details:
            error["details"] = self.details
        return {"error": error}


class TokenRefusal(Exception):
    """A refusal of a token endpoint, in the form of OAuth 2.0 (RFC 6749, section 5.2).

    Attributes:
        word: OAuth's word for it.
    """

    def __init__(self, word: str, message: str) -> None:
        super().__init__(message)
        self.word = word

    def body(self) -> dict[str, Any]:
        """The JSON that goes out."""
        return {"error": self.word, "error_description": str(self)}


class Unforeseen(Refusal):
    """A refusal that Google would not give: this stand-in does not know what to do."""


def unauthenticated(*, given: bool) -> Refusal:
    """No credential, or (``given``) one that is not known or has expired."""
    begin = (
        "Request had invalid authentication credentials."
        if given
        else "Request is missing required authentication credential."
    )
    reason = "ACCESS_TOKEN_TYPE_UNSUPPORTED" if given else "CREDENTIALS_MISSING"
    return Refusal(
        401,
        f"{begin} Expected OAuth 2 access token, login cookie or other valid authentication credential. "
        "See https://developers.google.com/identity/sign-in/web/devconsole-project.",
        reason="authError" if given else "required",
        details=[{"@type": ERROR_INFO, "reason": reason, "domain": "googleapis.com"}],
    )


def insufficient_scopes(method: str) -> Refusal:
    """A token that is not for this, whatever its owner may do."""
    info = {
        "@type": ERROR_INFO,
        "reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
        "domain": "googleapis.com",
        "metadata": {"method": method},
    }
    text = "Request had insufficient authentication scopes."
    return Refusal(403, text, reason="insufficientPermissions", details=[info])


def denied(permission: str, resource: str) -> Refusal:
    """A known caller without a permission, as IAM's own APIs say it."""
    return Refusal(
        403,
        f"Permission '{permission}' denied on resource (or it may not exist).",
        reason="forbidden",
        details=[
            {
                "@type": ERROR_INFO,
                "reason": "IAM_PERMISSION_DENIED",
                "domain": "iam.googleapis.com",
                "metadata": {"permission": permission, "resource": resource},
            }
        ],
    )


def caller_denied() -> Refusal:
    """The same, as Resource Manager and Cloud Billing say it."""
    return Refusal(403, "The caller does not have permission", reason="forbidden")


def service_denied(action: str) -> Refusal:
    """The same, as Service Usage says it: ``enable service [compute.googleapis.com]``."""
    info = {"@type": ERROR_INFO, "reason": "AUTH_PERMISSION_DENIED", "domain": "serviceusage.googleapis.com"}
    return Refusal(403, f"Permission denied to {action}", details=[info])


def api_disabled(title: str, service: str, number: str) -> Refusal:
    """A service that is not switched on in the project (given by its number)."""
    console = f"https://console.developers.google.com/apis/api/{service}/overview?project={number}"
    return Refusal(
        403,
        f"{title} has not been used in project {number} before or it is disabled. Enable it by visiting {console} then "
        "retry. If you enabled this API recently, wait a few minutes for the action to propagate to our systems and "
        "retry.",
        reason="accessNotConfigured",
        details=[
            {
                "@type": ERROR_INFO,
                "reason": "SERVICE_DISABLED",
                "domain": "googleapis.com",
                "metadata": {"service": service, "consumer": f"projects/{number}"},
            }
        ],
    )


def already_exists() -> Refusal:
    """A name that is taken, by something deleted and kept too."""
    return Refusal(409, "Requested entity already exists", reason="conflict")


def not_found(what: str = "Requested entity was not found.") -> Refusal:
    """Something that is not there."""
    return Refusal(404, what, reason="notFound")


def unavailable() -> Refusal:
    """Google itself in trouble."""
    return Refusal(503, "The service is currently unavailable.", reason="backendError")


def not_served(what: str) -> Unforeseen:
    """Something that Google has and this stand-in does not."""
    return Unforeseen(501, f"{what} is not served by this stand-in.", reason="notImplemented")
