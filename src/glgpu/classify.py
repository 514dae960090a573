"""What a text of the other side means: Terraform, Google, GitLab, Docker, SSH, git, NVIDIA -> class, cause, remedy.

The rules are in `error_rules`; here a text is laid bare for them. What no rule knows is UNKNOWN and keeps its raw text:
a wrong guess costs more than none.
"""

from __future__ import annotations

import re

from glgpu.error_rules import RULES
from glgpu.errors import ErrorClass, Failure, one_line

LONGEST_TEXT = 100_000
"""Characters of a text that are looked at, its last ones: what matters stands at the end."""

_ZONE = re.compile(r"\b[a-z]+-[a-z]+\d+-[a-z]\b")
_CAPACITY = re.compile(
    r"zonesAvailable\W{1,8}(?:value\W{1,8})?(?P<metadata>[a-z0-9, -]*)"
    r"|try(?:ing)?\s+(?:your|the)\s+request\s+(?:again\s+)?in\s+(?:the\s+)?"
    r"(?P<sentence>[a-z0-9,\s'\"/-]{1,400}?)\s*zone(?:\(s\)|s)?,?\s+(?:which|that|where)",
    re.IGNORECASE,
)

UNKNOWN_REMEDY = "read the text itself, nothing is guessed; `glgpu doctor` checks settings, credentials and quotas"

_ESCAPES = (
    (
        re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]|\x1b\][^\x07]{0,200}\x07|\r(?!\n)"),
        "",
    ),  # colours, and GitLab's section marks
    (re.compile(r"section_(?:start|end):\d+:[\w.-]+(?:\[[^\]]{0,80}\])?"), ""),
    (re.compile(r"\\{1,8}(?:r\\{1,8})?n|\r\n"), "\n"),  # JSON in JSON, and Python's repr, escape more than once
    (re.compile(r"\\{1,8}t"), " "),
    (re.compile(r"\\{1,8}([\"'/])"), r"\1"),
    (re.compile(r"\\{1,8}u003c|&lt;", re.IGNORECASE), "<"),
    (re.compile(r"\\{1,8}u003e|&gt;", re.IGNORECASE), ">"),
    (re.compile(r"\\{1,8}u0026|&amp;", re.IGNORECASE), "&"),
    (re.compile(r"\\{1,8}u0027|&#0?39;|[\u2018\u2019\u201b`\u00b4]", re.IGNORECASE), "'"),
    (re.compile(r"\\{1,8}u0022|&quot;|[\u201c\u201d]", re.IGNORECASE), '"'),
    # Terraform's frame around an error, and a quoted message's.
    (re.compile(r"^[ \t>*|]*[\u2500-\u257f]+[ \t]?", re.MULTILINE), ""),
    # The times that GitLab, Docker and the kernel put before each line.
    (
        re.compile(
            r"^\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[\d.,]*(?:Z|[+-]\d\d:?\d\d)?\]?(?: \d\d[OE]\+?)?[ \t]+", re.MULTILINE
        ),
        "",
    ),
    (re.compile(r"^\[ *\d+\.\d+\] ", re.MULTILINE), ""),
    # Whose line it is: a step of Cloud Build, a service of Docker Compose.
    (re.compile(r'^Step #\d+(?: - "[^"\n]{0,80}")?: |^[\w.-]{1,60} +\| ', re.MULTILINE), ""),
)
"""What stands between a rule and the words: (pattern, what takes its place), in this order."""


def explain(text: str, *, unknown: ErrorClass = ErrorClass.UNKNOWN, doing: str = "") -> Failure:
    """Turn a text into a failure.

    Args:
        text: What the other side said.
        unknown: The class where no rule matches.
        doing: What was being attempted, to begin the cause with.
    """
    bare = lay_bare(text)
    for rule in RULES:
        match = rule.pattern.search(bare)
        if match:
            words = {key: one_line(value or "") for key, value in match.groupdict().items()}
            cause = rule.cause.format(**words) if rule.cause else _lines_of(bare, match)
            remedy = rule.remedy.format(**words)
            zones = zones_with_capacity(text) if rule.klass is ErrorClass.STOCKOUT else ()
            if zones:
                remedy = f"Google says that {', '.join(zones)} has capacity: name it in machine.zones; or {remedy}"
            return Failure(rule.klass, _begin(doing, cause), remedy, text)
    first = next((line.strip() for line in bare.splitlines() if line.strip()), "no reason given")
    return Failure(unknown, _begin(doing, first), UNKNOWN_REMEDY, text)


def lay_bare(text: str) -> str:
    """The words of a text without colours, frames, times and escapes."""
    bare = text[-LONGEST_TEXT:]
    for pattern, instead in _ESCAPES:
        bare = pattern.sub(instead, bare)
    return bare


def zones_with_capacity(text: str) -> tuple[str, ...]:
    """The zones that a stockout itself names as having capacity, in its order.

    Google says it in ``zonesAvailable`` of the error's metadata, in a sentence ("Consider trying your request in the
    us-central1-c zone(s), which currently has capacity to accommodate your request"), or in both
    (https://github.com/kubernetes/k8s.io/issues/9834, https://github.com/GoogleCloudPlatform/anthos-samples/pull/667).

    Args:
        text: A message, an operation's JSON, or a whole log.
    """
    found = [
        zone
        for match in _CAPACITY.finditer(text[-LONGEST_TEXT:])
        for zone in _ZONE.findall(match["metadata"] or match["sentence"] or "")
    ]
    return tuple(dict.fromkeys(found))


def _begin(doing: str, cause: str) -> str:
    return f"{doing}: {cause}" if doing else cause


def _lines_of(text: str, match: re.Match[str]) -> str:
    # Not cut to a length here: the masker has not seen it yet, and would not recognise half a secret.
    begin = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    return one_line(text[begin : end if end >= 0 else len(text)])
