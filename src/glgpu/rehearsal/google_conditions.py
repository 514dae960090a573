"""The part of the Common Expression Language that attribute mappings and conditions of identity providers use.

https://cloud.google.com/iam/docs/workload-identity-federation#conditions. Literals, lists, ``assertion`` and the
mapped attributes, ``+ == != in && || ! ?:``, parentheses, ``startsWith``, ``endsWith``, ``contains`` and ``has``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<number>\d+)|(?P<name>[A-Za-z_]\w*)"""
    r"""|(?P<sign>&&|\|\||==|!=|[-+!().,?:\[\]]))"""
)
Value = Any
Scope = Mapping[str, Any]
Expression = Callable[[Scope], Value]


class Wrong(Exception):
    """An expression that cannot be read, or that has no value for these claims."""


def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
        Wrong: It cannot be read.
    """
    reader = _Reader(text)
    expression = reader.choice()
    if reader.peek():
        raise Wrong(f"unexpected {reader.peek()!r} in {text!r}")
    return expression


class _Reader:
    """Recursive descent, one method for each level of binding."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at, text = 0, text.rstrip()
        while at < len(text):
            found = TOKEN.match(text, at)
            if found is None:
                raise Wrong(f"cannot read {text[at:]!r}")
            self._tokens.append((found.lastgroup or "", found[found.lastgroup or 0]))
            at = found.end()

    def peek(self) -> str:
        """The next token, empty at the end."""
        return self._tokens[0][1] if self._tokens else ""

    def _take(self, *wanted: str) -> str:
        if not self._tokens or (wanted and self.peek() not in wanted):
            raise Wrong(f"expected {' or '.join(wanted) or 'more'}, found {self.peek() or 'the end'!r}")
        return self._tokens.pop(0)[1]

    def _next_is(self, sign: str) -> bool:
        if self.peek() == sign:
            self._take()
            return True
        return False

    def choice(self) -> Expression:
        """``a ? b : c``."""
        test = self._either()
        if not self._next_is("?"):
            return test
        yes = self.choice()
        self._take(":")
        no = self.choice()
        return lambda scope: yes(scope) if test(scope) else no(scope)

    def _either(self) -> Expression:
        left = self._both()
        while self._next_is("||"):
            left = _or(left, self._both())
        return left

    def _both(self) -> Expression:
        left = self._compared()
        while self._next_is("&&"):
            left = _and(left, self._compared())
        return left

    def _compared(self) -> Expression:
        left = self._sum()
        for sign, compare in (
            ("==", lambda a, b: a == b),
            ("!=", lambda a, b: a != b),
            ("in", lambda a, b: a in b),
        ):
            if self._next_is(sign):
                return _applied(compare, left, self._sum())
        return left

    def _sum(self) -> Expression:
        left = self._negated()
        while self._next_is("+"):
            left = _applied(lambda a, b: a + b, left, self._negated())
        return left

    def _negated(self) -> Expression:
        if self._next_is("!"):
            return _applied(lambda a: not a, self._negated())
        return self._member()

    def _member(self) -> Expression:
        value = self._plain()
        while self.peek() in (".", "["):
            if self._next_is("["):
                value = _applied(_entry, value, self.choice())
                self._take("]")
                continue
            self._take(".")
            name = self._take()
            if self._next_is("("):
                argument = self.choice()
                self._take(")")
                value = _applied(_method(name), value, argument)
            else:
                value = _applied(_entry, value, _constant(name))
        return value

    def _plain(self) -> Expression:
        if not self._tokens:
            raise Wrong("unexpected end")
        kind = self._tokens[0][0]
        word = self._take()
        if kind == "text":
            return _constant(re.sub(r"\\(.)", r"\1", word[1:-1]))
        if kind == "number":
            return _constant(int(word))
        if word in ("true", "false"):
            return _constant(word == "true")
        if word == "(":
            inside = self.choice()
            self._take(")")
            return inside
        if word == "[":
            return self._list()
        if word == "has" and self._next_is("("):
            inside = self.choice()
            self._take(")")
            return _has(inside)
        if kind == "name":
            return lambda scope: _entry(scope, word)
        raise Wrong(f"unexpected {word!r}")

    def _list(self) -> Expression:
        entries: list[Expression] = []
        while not self._next_is("]"):
            entries.append(self.choice())
            if self.peek() != "]":
                self._take(",")
        return lambda scope: [entry(scope) for entry in entries]


def _constant(value: Value) -> Expression:
    return lambda _: value


def _applied(function: Callable[..., Value], *arguments: Expression) -> Expression:
    def apply(scope: Scope) -> Value:
        try:
            return function(*(argument(scope) for argument in arguments))
        except TypeError as error:
            raise Wrong(str(error)) from None

    return apply


def _or(left: Expression, right: Expression) -> Expression:
    return lambda scope: bool(left(scope)) or bool(right(scope))


def _and(left: Expression, right: Expression) -> Expression:
    return lambda scope: bool(left(scope)) and bool(right(scope))


def _has(inside: Expression) -> Expression:
    def known(scope: Scope) -> bool:
        try:
            inside(scope)
        except Wrong:
            return False
        return True

    return known


def _entry(value: Value, name: Value) -> Value:
    if not isinstance(value, Mapping) or name not in value:
        raise Wrong(f"no such key: {name}")
    return value[name]


def _method(name: str) -> Callable[[Value, Value], bool]:
    methods: dict[str, Callable[[Value, Value], bool]] = {
        "startsWith": lambda text, begin: text.startswith(begin),
        "endsWith": lambda text, end: text.endswith(end),
        "contains": lambda text, part: part in text,
    }
    if name not in methods:
        raise Wrong(f"no function {name}")
    return methods[name]
