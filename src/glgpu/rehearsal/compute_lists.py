"""Lists as Compute Engine answers them: filter expressions, order, pages, scopes.

Filters follow Google's reference of the ``filter`` parameter: ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``:``
combined by AND, OR, NOT and brackets (terms side by side mean AND; OR binds tighter than AND, as in AIP-160), and the
older ``eq`` and ``ne``, whose right side is a regular expression that must match the whole value. gcloud still sends
those.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from glgpu.rehearsal.compute_errors import ApiError, invalid

Item = dict[str, Any]
Test = Callable[[Item], bool]

PAGE_SIZE = 500
"""Largest and default value of ``maxResults``."""

_TOKEN = re.compile(r"""\s*(?P<token>[()]|!=|<=|>=|[=<>:]|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^\s()=<>:!"']+)""")
_OPERATORS = frozenset({"=", "!=", "<", "<=", ">", ">=", ":", "eq", "ne"})


class _BadFilter(Exception):
    """The expression does not follow the grammar."""


def parse_filter(text: str, knows_field: Callable[[list[str]], bool]) -> Test:
    """Turn a filter expression into a test; an empty one passes everything.

    Raises:
        ApiError: Google's refusal of an expression that it does not understand.
    """
    if not text.strip():
        return lambda _: True
    try:
        parser = _Parser(text, knows_field)
        test = parser.conjunction()
        parser.expect_end()
    except _BadFilter:
        raise invalid("filter", text, "Invalid list filter expression.") from None
    return test


class _Parser:
    def __init__(self, text: str, knows_field: Callable[[list[str]], bool]) -> None:
        self._text = text
        self._at = 0
        self._knows_field = knows_field

    def conjunction(self) -> Test:
        tests = [self._disjunction()]
        while self._peek() not in ("", ")"):
            if self._peek() == "AND":
                self._next()
            tests.append(self._disjunction())
        return lambda item: all(test(item) for test in tests)

    def expect_end(self) -> None:
        if self._peek():
            raise _BadFilter

    def _disjunction(self) -> Test:
        tests = [self._term()]
        while self._peek() == "OR":
            self._next()
            tests.append(self._term())
        return lambda item: any(test(item) for test in tests)

    def _term(self) -> Test:
        token = self._next()
        if token == "NOT":
            test = self._term()
            return lambda item: not test(item)
        if token.startswith("-"):
            self._at -= len(token) - 1
            test = self._term()
            return lambda item: not test(item)
        if token == "(":
            test = self.conjunction()
            if self._next() != ")":
                raise _BadFilter
            return test
        return self._comparison(token)

    def _comparison(self, field: str) -> Test:
        path = [part.strip("\"'") for part in re.findall(r'"[^"]*"|[^.]+', field)]
        operator = self._next()
        if operator not in _OPERATORS or not path or not self._knows_field(path):
            raise _BadFilter
        return _comparison(path, operator, self._value())

    def _value(self) -> str:
        rest = re.compile(r"""\s*("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^\s()"']+)""").match(self._text, self._at)
        if rest is None:
            raise _BadFilter
        self._at = rest.end()
        value = rest.group(1)
        return value[1:-1].replace('\\"', '"') if value[0] in "\"'" else value

    def _peek(self) -> str:
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            if self._text[self._at :].strip():
                raise _BadFilter
            return ""
        return found.group("token")

    def _next(self) -> str:
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            raise _BadFilter
        self._at = found.end()
        return found.group("token")


def _comparison(path: list[str], operator: str, value: str) -> Test:
    def values(item: Item) -> list[str]:
        return list(_values(item, path))

    if operator in ("eq", "ne"):
        try:
            pattern = re.compile(value)
        except re.error:
            raise _BadFilter from None
        wanted = operator == "eq"
        return lambda item: any(pattern.fullmatch(v) for v in values(item)) is wanted
    if operator == ":":
        if value == "*":
            return lambda item: bool(values(item))
        return lambda item: any(value in v for v in values(item))
    if operator == "=":
        return lambda item: value in values(item)
    if operator == "!=":
        return lambda item: value not in values(item)
    return lambda item: any(_ordered(v, operator, value) for v in values(item))


def _ordered(left: str, operator: str, right: str) -> bool:
    a: tuple[float, str]
    b: tuple[float, str]
    try:
        a, b = (float(left), ""), (float(right), "")
    except ValueError:
        a, b = (0.0, left), (0.0, right)
    return {"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[operator]


def _values(value: Any, path: list[str]) -> Iterator[str]:
    """What stands at ``path``, as text; lists are looked through."""
    if isinstance(value, list):
        for entry in value:
            yield from _values(entry, path)
    elif path:
        if isinstance(value, dict) and path[0] in value:
            yield from _values(value[path[0]], path[1:])
    elif isinstance(value, bool):
        yield str(value).lower()
    elif isinstance(value, dict):
        yield json.dumps(value)
    else:
        yield str(value)


def page(
    scopes: dict[str, list[Item]], query: dict[str, str], knows_field: Callable[[list[str]], bool]
) -> tuple[dict[str, list[Item]], str | None]:
    """Cut one page out of lists: filtered, ordered within each scope, ``maxResults`` items over all scopes.

    Returns:
        The items of this page for every scope, and the token of the next page, if there is one.

    Raises:
        ApiError: A parameter that Google would refuse.
    """
    test = parse_filter(query.get("filter", ""), knows_field)
    key, backwards = _order(query.get("orderBy", "name"))
    size = int(query.get("maxResults", PAGE_SIZE)) or PAGE_SIZE
    if size > PAGE_SIZE:
        raise invalid("maxResults", size, f"Must be less than or equal to {PAGE_SIZE}")
    start = _read_token(query.get("pageToken", ""))
    flat = [
        (scope, item)
        for scope, items in scopes.items()
        for item in sorted(items, key=lambda i: str(i.get(key, "")), reverse=backwards)
        if test(item)
    ]
    chosen: dict[str, list[Item]] = {scope: [] for scope in scopes}
    for scope, item in flat[start : start + size]:
        chosen[scope].append(item)
    return chosen, _write_token(start + size) if start + size < len(flat) else None


def no_results(scope: str) -> Item:
    """The warning that stands in a scope of an aggregated list when it has nothing on this page."""
    return {
        "code": "NO_RESULTS_ON_PAGE",
        "message": f"There are no results for scope '{scope}' on this page.",
        "data": [{"key": "scope", "value": scope}],
    }


def _order(text: str) -> tuple[str, bool]:
    known = {"name": ("name", False), "creationTimestamp desc": ("creationTimestamp", True)}
    if text not in known:
        raise invalid("orderBy", text, "Only orderBy=creationTimestamp desc and name are supported.")
    return known[text]


def _write_token(start: int) -> str:
    return base64.urlsafe_b64encode(json.dumps({"start": start}).encode()).decode()


def _read_token(token: str) -> int:
    if not token:
        return 0
    refusal: ApiError = invalid("pageToken", token, "The page token is invalid.")
    try:
        return int(json.loads(base64.urlsafe_b64decode(token))["start"])
    except (binascii.Error, ValueError, KeyError, TypeError):
        raise refusal from None
