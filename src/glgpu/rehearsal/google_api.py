"""Google's own descriptions of its APIs, and the checks that hold requests and answers to them.

A description is a discovery document that the package google-api-python-client ships, such as ``compute.v1``. It knows
every method, path, query parameter, field, type, enumeration and pattern, so that neither a client's mistake nor one of
the stand-in goes unseen. It does not know which fields a method needs, but for a few.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from importlib import resources
from typing import Any
from urllib.parse import unquote

Schema = Mapping[str, Any]

SERVED_BUT_UNDESCRIBED = frozenset({"$alt", "$prettyPrint"})
"""System parameters that Google's front end takes for every API and that the document does not list."""

UNDESCRIBED_FIELDS = {"RouterNat": frozenset({"initialNatIps"})}
"""By schema: fields that the google provider sends for everybody, and Google takes, though the document lacks them."""

LIST_VERBS = frozenset({"list", "aggregatedList"})

_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?")

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
        segments: The path below the service path, cut at the slashes; ``{name}`` stands for a parameter, and may be
            followed by a custom verb, as in ``{name}:enable``.
        template: The path as the document writes it, where ``{+name}`` stands for a parameter of several segments.
        parameters: What the document says of its path and query parameters.
        request: Name of the request body's schema, or None.
        response: Name of the answer's schema.
        scopes: The OAuth scopes of which a token needs one.
    """

    id: str
    http_method: str
    segments: tuple[str, ...]
    template: str
    parameters: Mapping[str, Schema]
    request: str | None
    response: str
    scopes: tuple[str, ...] = ()

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
        for entry in _method_entries(document):
            method = Method(
                id=entry["id"],
                http_method=entry["httpMethod"],
                segments=tuple(entry.get("flatPath", entry["path"]).split("/")),
                template=entry["path"],
                parameters=entry.get("parameters", {}),
                request=entry.get("request", {}).get("$ref"),
                response=entry.get("response", {}).get("$ref", ""),
                scopes=tuple(entry.get("scopes", ())),
            )
            self._methods.setdefault((method.http_method, len(method.segments)), []).append(method)

    def find(self, http_method: str, path: str) -> tuple[Method, dict[str, str]] | None:
        """Find the method that a path below the service path means, with the path's parameters, decoded.

        A path that spells out more of a method's words wins, so ``images/family/F`` is not an image named ``family``.

        Raises:
            Violation: The method is there, but a parameter does not match its pattern.
        """
        words = path.split("/")
        found = [m for m in self._methods.get((http_method, len(words)), []) if _same_shape(m.segments, words)]
        if not found:
            return None
        method = min(found, key=lambda m: sum(s.startswith("{") + s.endswith("}") for s in m.segments))
        values = _path_values(method.template, path)
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

    def read_request(self, method: Method, body: Any) -> Any:
        """A request body as Google's front end takes it in: without nulls, every number in the one form of answers.

        Its JSON mapping takes a number for a 64-bit integer as well as a string, and a string for any other number
        (https://protobuf.dev/programming-guides/json/).

        Raises:
            Violation: Something in it is unknown or of the wrong form.
        """
        read = without_nulls(body)
        if method.request is not None:
            read = self._canonical({"$ref": method.request}, read)
        self.check_request(method, read)
        return read

    def check_request(self, method: Method, body: Any) -> None:
        """Hold a request body (None: there was none), its numbers as in answers, to the method.

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
        if method.response:
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

    def _canonical(self, schema: Schema, value: Any) -> Any:
        schema = self._resolve(schema)
        if isinstance(value, dict):
            known, rest = schema.get("properties", {}), schema.get("additionalProperties", {"type": "any"})
            return {name: self._canonical(known.get(name, rest), entry) for name, entry in value.items()}
        if isinstance(value, list):
            return [self._canonical(schema.get("items", {"type": "any"}), entry) for entry in value]
        return _canonical_number(schema, value)

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
            if name in UNDESCRIBED_FIELDS.get(schema.get("id", ""), ()):
                continue
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


def compute_api() -> ApiDescription:
    """Read the description of Compute Engine's version 1 (5 MB, some 30 ms, once)."""
    return read_api("compute.v1")


@functools.cache
def read_api(name: str) -> ApiDescription:
    """Read the description of an API, once: ``storage.v1`` for example."""
    folder = resources.files("googleapiclient.discovery_cache.documents")
    return ApiDescription(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


def without_nulls(value: Any) -> Any:
    """Drop what is null, at any depth: in Google's JSON it means the same as not being there.

    Elements of lists as well: the mapping forbids them, but protobuf's C++ parser skips them (its
    failure_list_cpp.txt, RepeatedFieldMessageElementIsNull), and hashicorp/google sends ``nodeAffinities: [null]``.
    """
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(v) for v in value if v is not None]
    return value


def _method_entries(resource: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from resource.get("methods", {}).values()
    for inner in resource.get("resources", {}).values():
        yield from _method_entries(inner)


def _same_shape(segments: tuple[str, ...], words: list[str]) -> bool:
    return all(s == w or (s.startswith("{") and _fits(s, w)) for s, w in zip(segments, words, strict=True))


def _fits(segment: str, word: str) -> bool:
    verb = segment.partition("}")[2]
    return word.endswith(verb) and len(word) > len(verb)


def _path_values(template: str, path: str) -> dict[str, str]:
    """The parameters in a path, which is known to be one of this template's."""
    pattern = re.sub(r"\\{(\\\+)?(\w+)\\}", lambda m: f"(?P<{m[2]}>{'.+' if m[1] else '[^/]+'})", re.escape(template))
    found = re.fullmatch(pattern, path)
    return {name: unquote(value) for name, value in found.groupdict().items()} if found else {}


def _canonical_number(schema: Schema, value: Any) -> Any:
    """A number in the form of answers; what is none stays, to be refused."""
    kind, form = schema["type"], schema.get("format", "")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    if kind == "number":
        return float(value) if _NUMBER.fullmatch(str(value)) else value
    if form in INTEGER_RANGES and _NUMBER.fullmatch(str(value)):
        number = Decimal(str(value))
        if number == number.to_integral_value():
            return str(int(number)) if kind == "string" else int(number)
    return value


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
