"""Google's own description of the Compute Engine API, and the checks that hold requests and answers to it.

The description is the discovery document ``compute.v1`` that the package google-api-python-client ships. It knows every
method, path, query parameter, field, type, enumeration and pattern, so that neither a client's mistake nor one of the
stand-in goes unseen. It does not know which fields a method needs, but for a few.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

Schema = Mapping[str, Any]

SERVED_BUT_UNDESCRIBED = frozenset({"$alt", "$prettyPrint"})
"""System parameters that Google's front end takes for every API and that the document does not list."""

LIST_VERBS = frozenset({"list", "aggregatedList"})

INTEGER_RANGES = {
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
}


class Violation(Exception):
    """A request or an answer that the description forbids.

    Attributes:
        field: Where, as a path: ``resource.disks[0].diskSizeGb``, or the name of a query parameter.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Method:
    """One method of the API.

    Attributes:
        id: Full name, for example ``compute.instances.insert``.
        http_method: ``GET``, ``POST`` and so on.
        segments: The path below the service path, cut at the slashes; ``{name}`` stands for a parameter.
        parameters: What the document says of its path and query parameters.
        request: Name of the request body's schema, or None.
        response: Name of the answer's schema.
    """

    id: str
    http_method: str
    segments: tuple[str, ...]
    parameters: Mapping[str, Schema]
    request: str | None
    response: str

    @property
    def resource(self) -> str:
        """The collection, for example ``instances``."""
        return self.id.split(".")[1]

    @property
    def verb(self) -> str:
        """What is done to it, for example ``insert``."""
        return self.id.split(".")[2]


class ApiDescription:
    """The document, ready to be asked."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.revision: str = document["revision"]
        self.schemas: Mapping[str, Schema] = document["schemas"]
        self._parameters: Mapping[str, Schema] = document["parameters"]
        self._methods: dict[tuple[str, int], list[Method]] = {}
        for resource in document["resources"].values():
            for entry in resource["methods"].values():
                method = Method(
                    id=entry["id"],
                    http_method=entry["httpMethod"],
                    segments=tuple(entry["path"].split("/")),
                    parameters=entry.get("parameters", {}),
                    request=entry.get("request", {}).get("$ref"),
                    response=entry.get("response", {}).get("$ref", ""),
                )
                self._methods.setdefault((method.http_method, len(method.segments)), []).append(method)

    def find(self, http_method: str, path: str) -> tuple[Method, dict[str, str]] | None:
        """Find the method that a path below ``compute/v1/`` means, with the path's parameters.

        A path that spells out more of a method's words wins, so ``images/family/F`` is not an image named ``family``.

        Raises:
            Violation: The method is there, but a parameter does not match its pattern.
        """
        words = path.split("/")
        found = [m for m in self._methods.get((http_method, len(words)), []) if _same_shape(m.segments, words)]
        if not found:
            return None
        method = min(found, key=lambda m: sum(s.startswith("{") for s in m.segments))
        values = {s[1:-1]: w for s, w in zip(method.segments, words, strict=True) if s.startswith("{")}
        for name, value in values.items():
            self._check_parameter(name, method.parameters[name], value)
        return method, values

    def check_query(self, method: Method, pairs: Iterable[tuple[str, str]]) -> None:
        """Hold a query string to the method.

        Raises:
            Violation: A parameter is unknown, given twice, or of the wrong form.
        """
        seen: set[str] = set()
        for name, value in pairs:
            if name in SERVED_BUT_UNDESCRIBED:
                continue
            if name == "returnPartialSuccess" and method.verb in LIST_VERBS:
                # gcloud sends it and Google documents it; this document does not list it.
                parameter: Schema = {"type": "boolean"}
            else:
                described = method.parameters.get(name, self._parameters.get(name))
                if described is None or described["location"] != "query":
                    raise Violation(
                        name,
                        f'Invalid JSON payload received. Unknown name "{name}": Cannot bind query parameter. '
                        f"Field '{name}' could not be found in request message.",
                    )
                parameter = described
            if name in seen and not parameter.get("repeated"):
                raise Violation(name, f"Invalid value at '{name}', parameter was given more than once.")
            seen.add(name)
            self._check_parameter(name, parameter, value)

    def check_request(self, method: Method, body: Any) -> None:
        """Hold a request body (None: there was none) to the method.

        Raises:
            Violation: Something in it is unknown or of the wrong form.
        """
        if method.request is None:
            if body not in (None, {}):
                name = next(iter(body)) if isinstance(body, dict) else body
                raise Violation(str(name), f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.')
            return
        self._check({"$ref": method.request}, {} if body is None else body, "resource", method.id)

    def check_response(self, method: Method, body: Any) -> None:
        """Hold an answer to the method.

        Raises:
            Violation: Something in it is unknown or of the wrong form.
        """
        self._check({"$ref": method.response}, body, method.response, "")

    def knows_field(self, schema: str, path: list[str]) -> bool:
        """Tell whether ``path`` names a field of ``schema``; lists are looked through, maps take any key."""
        node: Schema = self.schemas[schema]
        for name in path:
            node = self._resolve(node)
            while node.get("type") == "array":
                node = self._resolve(node["items"])
            if name in node.get("properties", {}):
                node = node["properties"][name]
            elif "additionalProperties" in node:
                node = node["additionalProperties"]
            else:
                return False
        return True

    def kind_of(self, schema: str) -> str:
        """The value of the field ``kind`` in every resource of ``schema``."""
        return str(self.schemas[schema]["properties"]["kind"]["default"])

    def scoped_list(self, response: str) -> tuple[str, str]:
        """For the schema of an aggregated list's answer: the name of the list in each scope, and its items' schema."""
        scope = self._resolve(self.schemas[response]["properties"]["items"]["additionalProperties"])
        for name, entry in scope["properties"].items():
            if entry.get("type") == "array":
                return name, str(entry["items"]["$ref"])
        raise LookupError(f"{response} has no list in its scopes")

    def item_schema(self, response: str) -> str:
        """For the schema of a list's answer: its items' schema."""
        return str(self.schemas[response]["properties"]["items"]["items"]["$ref"])

    def _resolve(self, schema: Schema) -> Schema:
        return self.schemas[schema["$ref"]] if "$ref" in schema else schema

    def _check(self, schema: Schema, value: Any, where: str, method_id: str) -> None:
        schema = self._resolve(schema)
        kind = schema["type"]
        if kind == "object":
            self._check_object(schema, value, where, method_id)
        elif kind == "array":
            if not isinstance(value, list):
                raise Violation(where, f"Invalid value at '{where}', expected a list: {json.dumps(value)}")
            items = dict(schema["items"])
            if "pattern" in schema:
                # The document puts the pattern of network tags beside the list and means its elements.
                items["pattern"] = schema["pattern"]
            for index, item in enumerate(value):
                self._check(items, item, f"{where}[{index}]", method_id)
        elif kind != "any":
            _check_scalar(schema, value, where)

    def _check_object(self, schema: Schema, value: Any, where: str, method_id: str) -> None:
        if not isinstance(value, dict):
            raise Violation(where, f"Invalid value at '{where}', expected an object: {json.dumps(value)}")
        properties = schema.get("properties", {})
        for name, entry in value.items():
            inner = properties.get(name, schema.get("additionalProperties"))
            if inner is None:
                raise Violation(
                    f"{where}.{name}",
                    f"Invalid JSON payload received. Unknown name \"{name}\" at '{where}': Cannot find field.",
                )
            self._check(inner, entry, f"{where}.{name}", method_id)
        for name, inner in properties.items():
            if method_id in inner.get("annotations", {}).get("required", ()) and name not in value:
                raise Violation(f"{where}.{name}", f"Required field '{where}.{name}' not specified")

    def _check_parameter(self, name: str, parameter: Schema, value: str) -> None:
        kind = parameter["type"]
        converted: Any = value
        if kind == "boolean":
            if value.lower() not in ("true", "false"):
                raise Violation(name, f"Invalid value at '{name}' (TYPE_BOOL), \"{value}\"")
            return
        if kind in ("integer", "number"):
            try:
                converted = int(value) if kind == "integer" else float(value)
            except ValueError:
                raise Violation(name, f"Invalid value at '{name}' (TYPE_{kind.upper()}), \"{value}\"") from None
            if converted < float(parameter.get("minimum", converted)):
                raise Violation(
                    name, f"Invalid value for field '{name}': '{value}'. Must be at least {parameter['minimum']}"
                )
            if converted > float(parameter.get("maximum", converted)):
                raise Violation(
                    name, f"Invalid value for field '{name}': '{value}'. Must be at most {parameter['maximum']}"
                )
        _check_scalar(parameter, converted, name)


@functools.cache
def compute_api() -> ApiDescription:
    """Read the description of Compute Engine's version 1 (5 MB, some 30 ms, once)."""
    folder = resources.files("googleapiclient.discovery_cache.documents")
    return ApiDescription(json.loads((folder / "compute.v1.json").read_text(encoding="utf-8")))


def without_nulls(value: Any) -> Any:
    """Drop what is null, at any depth: in Google's JSON it means the same as not being there."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(v) for v in value]
    return value


def _same_shape(segments: tuple[str, ...], words: list[str]) -> bool:
    return all(s == w or (s.startswith("{") and w) for s, w in zip(segments, words, strict=True))


def _check_scalar(schema: Schema, value: Any, where: str) -> None:
    kind, form = schema["type"], schema.get("format", "")
    shown = json.dumps(value)
    if kind == "boolean":
        fits = isinstance(value, bool)
    elif kind == "integer":
        low, high = INTEGER_RANGES[form]
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    elif kind == "number":
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        fits = isinstance(value, str) and _string_fits(form, value)
    if not fits:
        raise Violation(where, f"Invalid value at '{where}' (TYPE_{(form or kind).upper()}), {shown}")
    if "enum" in schema and value not in schema["enum"]:
        raise Violation(where, f"Invalid value at '{where}' (TYPE_ENUM), {shown}")
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        raise Violation(
            where, f"Invalid value for field '{where}': '{value}'. Must be a match of regex '{schema['pattern']}'"
        )


def _string_fits(form: str, value: str) -> bool:
    if form in INTEGER_RANGES:
        low, high = INTEGER_RANGES[form]
        return re.fullmatch(r"-?[0-9]{1,20}", value) is not None and low <= int(value) <= high
    if form == "byte":
        try:
            base64.b64decode(value.replace("-", "+").replace("_", "/"), validate=True)
        except binascii.Error:
            return False
    return True
