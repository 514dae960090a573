"""What every Google client shares: credentials, how long a call may take, and refusals turned into failures."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

from glgpu.classify import explain
from glgpu.clients.compute_library import lighten
from glgpu.clients.google_login import credentials
from glgpu.errors import ErrorClass, Failure, unwrapped
from glgpu.job import Job

CALL_SECONDS = 30.0
"""How long one call may take before it counts as unanswered."""
PATIENCE_SECONDS = 60.0
"""For how long a call is repeated while Google is unavailable or wants to be asked less often; the library's own
default is ten minutes, which a cancelled job does not have."""


class GoogleCalls:
    """Calls of one job; may be shared by threads.

    Each thread has clients, and so connections, of its own (a ``requests`` session is not promised to be safe to
    share), and the credentials, which they do share, are renewed by one thread while the others wait.

    Args:
        job: Credentials and endpoint.
        say: Takes a line when Google has to be asked again, the first time.
    """

    def __init__(self, job: Job, say: Callable[[str], None] = lambda _: None) -> None:
        self._job = job
        self._say = say
        self._said: set[str] = set()
        self._saying = threading.Lock()
        self._logging_in = threading.Lock()
        self._own = threading.local()

    def call(self, doing: str, call: Callable[[], Any], *, missing_is_none: bool = False) -> Any:
        """Make a call and turn a refusal into a failure.

        Args:
            doing: What is being attempted, to begin the cause with.
            call: Makes it.
            missing_is_none: Whether something that is not there is no failure.

        Raises:
            Failure: what Google says, or NETWORK, or AUTH.
        """
        import google.api_core.exceptions
        import google.auth.exceptions
        import requests.exceptions

        try:
            with unwrapped():
                return call()
        except google.api_core.exceptions.NotFound as error:
            if missing_is_none and not _project_missing(str(error)):
                return None
            raise explain(str(error), unknown=ErrorClass.NOT_FOUND, doing=doing) from None
        except google.api_core.exceptions.RetryError as error:
            if isinstance(error.cause, google.api_core.exceptions.GoogleAPICallError):
                raise _refused(error.cause, doing) from None
            raise explain(str(error), unknown=ErrorClass.NETWORK, doing=doing) from None
        except google.api_core.exceptions.GoogleAPICallError as error:
            raise _refused(error, doing) from None
        except (google.auth.exceptions.TransportError, requests.exceptions.RequestException) as error:
            raise Failure(
                ErrorClass.NETWORK,
                f"{doing}: Google cannot be reached",
                "check the network, then retry the job",
                str(error),
            ) from None
        except google.auth.exceptions.GoogleAuthError as error:
            raise Failure(
                ErrorClass.AUTH,
                f"{doing}: Google does not accept the credentials: {error}",
                "check GLGPU_WIF_PROVIDER and GLGPU_WIF_SERVICE_ACCOUNT, or GOOGLE_CREDENTIALS",
            ) from None

    def log_in(self) -> None:
        """Get an access token, once for all threads that begin at the same time."""
        from google.auth.transport.requests import Request

        with self._logging_in:
            if not self.credentials.valid:
                self.credentials.refresh(Request())

    def client(self, kind: str) -> Any:
        """This thread's client of google-cloud-compute for one collection, ``InstancesClient`` for example."""
        self.log_in()
        clients: dict[str, Any] = self._own.__dict__
        if kind not in clients:
            clients[kind] = self._new_client(kind)
        return clients[kind]

    def _new_client(self, kind: str) -> Any:
        # Importing the library takes long: only commands that talk to the cloud pay for it.
        lighten()
        from google.api_core.client_options import ClientOptions
        from google.cloud import compute_v1

        options = ClientOptions(api_endpoint=self._job.compute_endpoint) if self._job.compute_endpoint else None
        return getattr(compute_v1, kind)(credentials=self.credentials, client_options=options)

    @cached_property
    def reading(self) -> dict[str, Any]:
        """How long a call that changes nothing may take, and for how long it is repeated."""
        return {"timeout": CALL_SECONDS, "retry": self._patient(_is_passing)}

    @cached_property
    def writing(self) -> dict[str, Any]:
        """The same for a change.

        One that is repeated though it went through is refused or changes nothing: what is deleted is not found, what
        is made is there already, and what is edited carries the fingerprint of what was read.
        """
        return {"timeout": CALL_SECONDS, "retry": self._patient(_is_undone)}

    @cached_property
    def waiting(self) -> dict[str, Any]:
        """The same for an operation's end, which Google holds back for up to two minutes."""
        return {"timeout": CALL_SECONDS * 5, "retry": self._patient(_is_passing)}

    def _patient(self, predicate: Callable[[BaseException], bool]) -> Any:
        from google.api_core.retry import Retry

        # The library draws each pause at random below a limit that doubles.
        return Retry(predicate=predicate, initial=0.5, maximum=8.0, timeout=PATIENCE_SECONDS, on_error=self._say_once)

    def _say_once(self, error: BaseException) -> None:
        line = "too many requests" if _is_rate_limit(error) else "unavailable for the moment"
        with self._saying:
            first = line not in self._said
            self._said.add(line)
        if first:
            self._say(f"Google: {line}; asking again, more slowly")

    @cached_property
    def credentials(self) -> Any:
        """The job's credentials."""
        return credentials(self._job)


def _is_rate_limit(error: BaseException) -> bool:
    """Whether Google wants to be asked less often: HTTP 429, or 403 with a reason of its own; nothing was done."""
    from google.api_core.exceptions import Forbidden, TooManyRequests

    if not isinstance(error, Forbidden | TooManyRequests):
        return False
    reasons = [str(detail.get("reason", "")) for detail in error.errors or [] if isinstance(detail, dict)]
    return isinstance(error, TooManyRequests) or "rateLimitExceeded" in reasons


def _is_undone(error: BaseException) -> bool:
    from google.api_core.exceptions import ServiceUnavailable

    return _is_rate_limit(error) or isinstance(error, ServiceUnavailable)


def _is_passing(error: BaseException) -> bool:
    from google.api_core.exceptions import DeadlineExceeded

    return _is_undone(error) or isinstance(error, DeadlineExceeded)


def _project_missing(text: str) -> bool:
    return re.search(r"The resource 'projects/[^/']+' was not found|project \S+ was not found", text) is not None


def _refused(error: Any, doing: str) -> Failure:
    """A refusal at the HTTP level: the reason is in the text, else the status decides."""
    by_status = {
        401: ErrorClass.AUTH,
        403: ErrorClass.PERMISSION,
        404: ErrorClass.NOT_FOUND,
        409: ErrorClass.CONFLICT,
        412: ErrorClass.CONFLICT,
        429: ErrorClass.RATE_LIMIT,
    }
    status = int(error.code or 0)
    fallback = by_status.get(status, ErrorClass.TRANSIENT if status >= 500 else ErrorClass.UNKNOWN)
    reasons = " ".join(str(detail.get("reason", "")) for detail in error.errors or [] if isinstance(detail, dict))
    failure = explain(f"{error}\n{reasons}".strip(), unknown=fallback, doing=doing)
    if status in (409, 412) and failure.klass is not ErrorClass.ORG_POLICY:
        # Whatever else the text reminds of; but a policy is refused as a broken condition, too.
        failure.klass = ErrorClass.CONFLICT
    return failure
