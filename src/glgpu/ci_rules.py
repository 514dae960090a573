"""Conditions of ``rules:if``, ``only``, ``except`` and ``workflow:rules``, judged as GitLab judges them.

The grammar (GitLab's documentation of CI/CD rules, and its lexemes as of 17.5): variables, quoted strings, ``null``,
``/patterns/`` with flags, the comparisons ``== != =~ !~``, ``&&``, ``||`` and parentheses. There is no ``!`` in 17.5.
Ruby's truth applies inside (only null and false are false, so an empty string passes ``&&``), Rails' ``present?``
to the whole (a blank string does not hold).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

MOST_TOKENS = 100
"""GitLab refuses longer expressions."""

LEXEMES = re.compile(
    r"""
    (?P<open>\() | (?P<close>\)) |
    \$(?P<variable>\w+) |
    "(?P<double>.*?)" | '(?P<single>.*?)' |
    (?P<pattern>/(?:[^/]|\\/)+[^\\]/[ismU]*) |
    (?P<null>null) |
    (?P<operator>==|=~|!=|!~|&&|\|\|)
    """,
    re.VERBOSE | re.DOTALL,
)
WHOLE_PATTERN = re.compile(r"/(?P<body>.+)/(?P<flags>[ismU]*)", re.DOTALL)
PIECES = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)
"""A regular expression cut into escapes, character classes and single characters."""
NOT_IN_RE2 = re.compile(r"\(\?(?:[=!>#(]|<[=!]|P=)|\\[1-9]|[*+?}]\+")
"""Look-around, back references, possessive quantifiers, comments and conditionals: known to Python, not to RE2."""


class ExpressionError(Exception):
    """The condition is not one that GitLab understands."""


@dataclass(frozen=True)
class Pattern:
    """A regular expression written between slashes."""

    expression: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Compile ``/body/flags``.

        Raises:
            ExpressionError: It is no pattern, or one that RE2 would refuse.
        """
        whole = WHOLE_PATTERN.fullmatch(text)
        if whole is None:
            raise ExpressionError("Invalid regular expression!")
        return cls(compile_re2(whole["body"].replace("\\/", "/"), whole["flags"]))


Value = str | bool | Pattern | None


def compile_re2(body: str, flags: str = "") -> re.Pattern[str]:
    r"""Compile a pattern in RE2's syntax for use with ``search``.

    Without the flag ``m`` RE2's ``$`` means the very end, as Python's ``\Z`` does. ``U`` (quantifiers swapped between
    greedy and lazy) changes what is matched, never whether, so it is accepted and has no effect here.

    Raises:
        ExpressionError: RE2 would refuse it.
    """
    pieces: list[str] = PIECES.findall(body)
    if NOT_IN_RE2.search("".join(piece for piece in pieces if not piece.startswith("[") or piece == "[")):
        raise ExpressionError("Invalid regular expression!")
    python_flags = 0
    for letter, flag in (("i", re.IGNORECASE), ("s", re.DOTALL), ("m", re.MULTILINE)):
        if letter in flags:
            python_flags |= flag
    the_very_end = {r"\z": r"\Z"} if "m" in flags else {r"\z": r"\Z", "$": r"\Z"}
    with warnings.catch_warnings():
        # Python warns of sets that a later version may read otherwise; RE2 reads them as Python does today.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return re.compile("".join(the_very_end.get(piece, piece) for piece in pieces), python_flags)
        except re.error as error:
            raise ExpressionError("Invalid regular expression!") from error


def holds(expression: str, variables: Mapping[str, str]) -> bool:
    """Whether a condition is true with these variables; one that is not set is null.

    Raises:
        ExpressionError: The expression is not valid.
    """
    value = _Parser(_tokens(expression), variables).parse()
    return bool(value.strip()) if isinstance(value, str) else bool(value)


def check(expression: str) -> None:
    """Raise ExpressionError where the expression is not valid, whatever the variables."""
    holds(expression, {})


def ref_matches(ref: str, known: Mapping[str, str]) -> bool:
    """Whether one entry of ``only`` or ``except`` (a keyword, a name, a pattern) is for a pipeline.

    Args:
        ref: The entry; ``@group/project`` at its end is not looked at.
        known: The pipeline's variables; ``CI_PIPELINE_SOURCE`` and the ``CI_COMMIT_...`` of its ref decide.
    """
    ref = ref.partition("@")[0]
    source = known.get("CI_PIPELINE_SOURCE", "")
    keywords = {
        "branches": bool(known.get("CI_COMMIT_BRANCH")),
        "tags": bool(known.get("CI_COMMIT_TAG")),
        "merge_requests": source == "merge_request_event",
        "pushes": source == "push",
        "schedules": source == "schedule",
        "triggers": source == "trigger",
        "pipelines": source == "pipeline",
        "web": source == "web",
        "api": source == "api",
        "chat": source == "chat",
        "external": source == "external",
    }
    if ref in keywords:
        return keywords[ref]
    name = known.get("CI_COMMIT_REF_NAME", "")
    if ref.startswith("/"):
        return holds("$NAME =~ $PATTERN", {"NAME": name, "PATTERN": ref})
    return ref == name


def _tokens(expression: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    position = 0
    while True:
        while position < len(expression) and expression[position].isspace():
            position += 1
        if position == len(expression):
            return tokens
        found = LEXEMES.match(expression, position)
        if found is None or found.lastgroup is None:
            raise ExpressionError("Unknown lexeme found!")
        if len(tokens) == MOST_TOKENS:
            raise ExpressionError("Too many tokens!")
        tokens.append((found.lastgroup, found[found.lastgroup]))
        position = found.end()


class _Parser:
    """Recursive descent: ``||`` binds weaker than ``&&``, that weaker than the comparisons.

    Every operand is evaluated, also where the result is known already, so that an invalid pattern is always found.
    """

    def __init__(self, tokens: list[tuple[str, str]], variables: Mapping[str, str]) -> None:
        self.tokens = tokens
        self.variables = variables
        self.position = 0

    def parse(self) -> Value:
        value = self._disjunction()
        if self.position < len(self.tokens):
            raise ExpressionError("Unreachable nodes in parse tree")
        return value

    def _next_is(self, *operators: str) -> str | None:
        if self.position < len(self.tokens):
            kind, text = self.tokens[self.position]
            if kind == "operator" and text in operators:
                self.position += 1
                return text
        return None

    def _disjunction(self) -> Value:
        left = self._conjunction()
        while self._next_is("||"):
            right = self._conjunction()
            left = right if _is_false(left) else left
        return left

    def _conjunction(self) -> Value:
        left = self._comparison()
        while self._next_is("&&"):
            right = self._comparison()
            left = left if _is_false(left) else right
        return left

    def _comparison(self) -> Value:
        left = self._operand()
        while operator := self._next_is("==", "!=", "=~", "!~"):
            right = self._operand()
            if operator in ("==", "!="):
                left = (left == right) is (operator == "==")
            else:
                left = _matches(left, right) is (operator == "=~")
        return left

    def _operand(self) -> Value:
        if self.position == len(self.tokens):
            raise ExpressionError("Empty parse tree" if not self.tokens else "Invalid right operand")
        kind, text = self.tokens[self.position]
        self.position += 1
        match kind:
            case "open":
                value = self._disjunction()
                if self.position == len(self.tokens) or self.tokens[self.position][0] != "close":
                    raise ExpressionError("Unmatched parenthesis")
                self.position += 1
                return value
            case "variable":
                return self.variables.get(text)
            case "double" | "single":
                return text
            case "pattern":
                return Pattern.parse(text)
            case "null":
                return None
        raise ExpressionError("Unmatched parenthesis" if kind == "close" else "Invalid left operand")


def _is_false(value: Value) -> bool:
    return value is None or value is False


def _matches(text: Value, pattern: Value) -> bool:
    """Whether ``text =~ pattern``; a string on the right is a pattern if it looks like one.

    A string that is none is searched for ``text`` instead, the other way round: GitLab calls Ruby's String#scan then.
    """
    subject = text if isinstance(text, str) else ""
    if isinstance(pattern, str):
        try:
            return Pattern.parse(pattern).expression.search(subject) is not None
        except ExpressionError:
            return subject in pattern
    return isinstance(pattern, Pattern) and pattern.expression.search(subject) is not None
