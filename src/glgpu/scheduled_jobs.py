"""Which jobs of a configuration a schedule would start, as far as its own text tells."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from glgpu import ci_rules

NO_JOBS = (
    "default", "include", "stages", "variables", "workflow", "image", "services", "before_script", "after_script",
    "cache",
)  # fmt: skip
"""Keys of a configuration that are no jobs (https://docs.gitlab.com/ci/yaml/)."""
DEFAULT_REFS = ("branches", "tags")
"""``only`` of a job that has neither rules nor policies."""

Verdict = Literal["yes", "no", "perhaps"]


@dataclass(frozen=True)
class Scheduled:
    """What a schedule would start.

    Attributes:
        kept_out: Whether ``workflow:rules`` make no pipeline of it at all.
        jobs: Names of the jobs that would run, or might, without anybody's click.
    """

    kept_out: bool
    jobs: tuple[str, ...]


def jobs_of_schedule(pipeline: Mapping[str, Any], known: Mapping[str, str], unknown: Collection[str]) -> Scheduled:
    """Judge the rules of every job for a schedule; a job counts where it cannot be ruled out.

    Args:
        pipeline: One configuration, with nothing left to include or to extend.
        known: What the schedule's pipeline knows; goes before the variables that the configuration sets.
        unknown: Names of variables that are set to something.
    """
    workflow = _mapping(pipeline.get("workflow")).get("rules")
    variables = _values(pipeline.get("variables"))
    judge = _Judge({**variables, **known}, frozenset(unknown) - set(known))
    if workflow is not None and judge.rules(workflow, "always") == "never":
        return Scheduled(True, ())
    found = []
    for name, job in pipeline.items():
        if name in NO_JOBS or str(name).startswith(".") or not isinstance(job, dict):
            continue
        own = _Judge({**variables, **_values(job.get("variables")), **known}, judge.unknown)
        if own.starts(job, bool(workflow)):
            found.append(str(name))
    return Scheduled(False, tuple(found))


@dataclass(frozen=True)
class _Judge:
    """Conditions under certain variables.

    Attributes:
        known: Their values.
        unknown: Names of those that have some value.
    """

    known: Mapping[str, str]
    unknown: frozenset[str]

    def starts(self, job: Mapping[str, Any], workflow_rules: bool) -> bool:
        when = str(job.get("when", "on_success"))
        if "rules" in job:
            return self.rules(job["rules"], when) not in ("never", "manual")
        only = job.get("only", None if workflow_rules else DEFAULT_REFS)
        kept = only is None or _all(self._policy(only)) != "no"
        return when != "manual" and kept and _any(self._policy(job.get("except") or {})) != "yes"

    def rules(self, rules: Any, when: str) -> str:
        """``when`` of the first rule that holds, or that may hold and lets something run; ``never`` without one."""
        for rule in _flat(rules):
            verdict, then = self._rule(rule), str(rule.get("when", when))
            if verdict == "yes" or (verdict == "perhaps" and then not in ("never", "manual")):
                return then
        return "never"

    def _rule(self, rule: Mapping[str, Any]) -> Verdict:
        verdicts: list[Verdict] = []
        if "if" in rule:
            verdicts.append(self._condition(str(rule["if"])))
        # Without a push there is nothing to compare with, and GitLab takes `changes` as true.
        if "exists" in rule or "compare_to" in _mapping(rule.get("changes")):
            verdicts.append("perhaps")
        return _all(verdicts)

    def _condition(self, expression: str) -> Verdict:
        if self.unknown & set(re.findall(r"\$(\w+)", expression)):
            return "perhaps"
        try:
            return "yes" if ci_rules.holds(expression, self.known) else "no"
        except ci_rules.ExpressionError:
            return "perhaps"

    def _policy(self, policy: Any) -> list[Verdict]:
        """The parts of an ``only``, of which all must hold, or of an ``except``, of which any suffices."""
        parts = policy if isinstance(policy, dict) else {"refs": policy}
        verdicts: list[Verdict] = ["perhaps" for part in ("changes", "kubernetes") if part in parts]
        if "refs" in parts:
            held = any(ci_rules.ref_matches(str(ref), self.known) for ref in _as_list(parts["refs"]))
            verdicts.append("yes" if held else "no")
        if "variables" in parts:
            verdicts.append(_any([self._condition(str(one)) for one in _as_list(parts["variables"])]))
        return verdicts


def _all(verdicts: list[Verdict]) -> Verdict:
    return "no" if "no" in verdicts else "perhaps" if "perhaps" in verdicts else "yes"


def _any(verdicts: list[Verdict]) -> Verdict:
    return "yes" if "yes" in verdicts else "perhaps" if "perhaps" in verdicts else "no"


def _flat(rules: Any) -> Iterator[Mapping[str, Any]]:
    """The rules of a list, however deep ``!reference`` has nested them."""
    for rule in _as_list(rules):
        if isinstance(rule, list):
            yield from _flat(rule)
        elif isinstance(rule, dict):
            yield rule


def _values(variables: Any) -> dict[str, str]:
    """Variables of a configuration as they are written."""
    found = {}
    for name, value in _mapping(variables).items():
        text = value.get("value", "") if isinstance(value, dict) else value
        found[str(name)] = str(text).lower() if isinstance(text, bool) else str(text)
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
