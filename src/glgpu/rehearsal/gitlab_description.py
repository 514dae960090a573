"""GitLab's description of its API v4: parameters are read by it, answers are held to it.

The facts lie in ``gitlab_api.json``, which names the GitLab version that they were taken from.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any, cast

ERROR_STATUSES = frozenset({400, 401, 403, 404, 405, 409, 412, 413, 422, 429, 500, 502, 503})
"""What every operation may answer in the form of an error, which has no entity."""

_TRUE = {True, *["1", "on", "On", "ON", "t", "true", "True", "TRUE", "T", "y", "yes", "Yes", "YES", "Y"]}
_FALSE = {False, *["0", "off", "Off", "OFF", "f", "false", "False", "FALSE", "F", "n", "no", "No", "NO", "N"]}


class BadParameter(Exception):
    """A request parameter that GitLab refuses with 400; the message is GitLab's own."""


@dataclass(frozen=True)
class Operation:
    """One described operation.

    Attributes:
        name: Method and path template, for example ``GET /projects/{id}/deploy_keys``.
        parameters: Name to type, of query and body together; a type ends in ``!`` where it is required.
        path: Name to type of the path's parameters, as far as they are not strings.
        answers: Status to type of the body; empty: none; ``raw``: bytes.
        paged: Whether ``page`` and ``per_page`` are understood.
        raw: Whether the request's body is the thing itself and holds no parameters.
    """

    name: str
    parameters: dict[str, str]
    path: dict[str, str]
    answers: dict[int, str]
    paged: bool
    raw: bool


@dataclass(frozen=True)
class Description:
    """The whole of ``gitlab_api.json``."""

    gitlab_version: str
    operations: dict[str, Operation]
    entities: dict[str, dict[str, str]]

    def read(self, operation: Operation, given: dict[str, Any]) -> dict[str, Any]:
        """Check and convert request parameters as GitLab does.

        Undeclared ones are dropped without a word, which is what GitLab's API does with them.

        Raises:
            BadParameter: A required one is missing, or one has the wrong type.
        """
        missing = [n for n, kind in operation.parameters.items() if kind.endswith("!") and given.get(n) is None]
        if missing:
            raise BadParameter(", ".join(f"{name} is missing" for name in missing))
        return {n: _converted(n, kind.rstrip("!"), given[n]) for n, kind in operation.parameters.items() if n in given}

    def unknown(self, operation: Operation, given: dict[str, Any]) -> list[str]:
        """Names of parameters that the description does not know: GitLab drops them, so the caller meant nothing."""
        return sorted(name for name in given if name not in operation.parameters)

    def findings(self, operation: Operation, status: int, body: Any) -> list[str]:
        """What about an answer is not as described; empty when all is well."""
        if status in operation.answers:
            kind = operation.answers[status]
            return [] if kind in ("", "raw") else self._compare(kind, body, f"{operation.name} {status}")
        return [] if status in ERROR_STATUSES else [f"{operation.name}: status {status} is not described"]

    def _compare(self, kind: str, value: Any, where: str) -> list[str]:
        if value is None:
            return []
        if kind.startswith("["):
            if not isinstance(value, list):
                return [f"{where}: {value!r} is no list"]
            return [f for i, item in enumerate(value) for f in self._compare(kind[1:-1], item, f"{where}[{i}]")]
        if kind in self.entities:
            if not isinstance(value, dict):
                return [f"{where}: {value!r} is no {kind}"]
            fields = self.entities[kind]
            found = [f"{where}: {kind} has no field {name}" for name in value if name not in fields]
            return found + [
                f for n, v in value.items() if n in fields for f in self._compare(fields[n], v, f"{where}.{n}")
            ]
        return [] if _is(kind, value) else [f"{where}: {value!r} is no {kind}"]


def _is(kind: str, value: Any) -> bool:
    if kind == "date-time":
        return isinstance(value, str) and bool(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value))
    if isinstance(value, bool):
        return kind == "boolean"
    wanted: dict[str, type | tuple[type, ...]] = {
        "integer": int, "number": (int, float), "string": str, "object": dict,
    }  # fmt: skip
    return isinstance(value, wanted[kind]) if kind in wanted else False


def _converted(name: str, kind: str, value: Any) -> Any:
    """One parameter in its declared type; texts count as GitLab's API library (Grape) coerces them."""
    if value is None:
        return None
    try:
        if kind == "integer":
            return int(value)
        if kind == "boolean":
            if value in _TRUE:
                return True
            if value in _FALSE:
                return False
            raise ValueError(value)
        if kind == "date-time":
            return datetime.fromisoformat(str(value)).timestamp()
        if kind == "date":
            return datetime.strptime(str(value), "%Y-%m-%d").date()
        if kind.startswith("["):
            return [_converted(name, kind[1:-1], item) for item in (value if isinstance(value, list) else [value])]
        if kind == "object":
            return dict(value)
        if isinstance(value, (dict, list)):
            raise ValueError(value)
        return str(value)
    except (TypeError, ValueError):
        raise BadParameter(f"{name} is invalid") from None


@cache
def load() -> Description:
    """Read ``gitlab_api.json``."""
    data = cast("dict[str, Any]", json.loads(files(__package__).joinpath("gitlab_api.json").read_text("utf-8")))
    operations = {}
    for name, facts in data["operations"].items():
        parameters = facts.get("query", {}) | facts.get("body", {})
        if facts.get("paged"):
            parameters |= {"page": "integer", "per_page": "integer"}
        operations[name] = Operation(
            name=name,
            parameters=parameters,
            path=facts.get("path", {}),
            answers={int(status): kind for status, kind in facts["answers"].items()},
            paged=facts.get("paged", False),
            raw=facts.get("raw", False),
        )
    return Description(data["gitlab_version"], operations, data["entities"])
