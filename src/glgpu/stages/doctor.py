"""doctor: everything that can go wrong later, found now, all of it at once, each with what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from glgpu.console import Console
from glgpu.errors import EXIT_CODES, one_line
from glgpu.steps.checks.catalogue import CHECKS
from glgpu.steps.checks.facts import AT_ONCE, Sources, gather
from glgpu.steps.checks.judging import Finding, Verdict, findings


def doctor(sources: Sources) -> list[Finding]:
    """Make every check, in the order of the list.

    Args:
        sources: Whom to ask.
    """
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fact")
    try:
        facts = gather(sources, pool)
        return [finding for check in CHECKS for finding in findings(check, facts)]
    finally:
        # Nobody waits for an answer that no check has asked for.
        pool.shutdown(wait=False, cancel_futures=True)


def exit_code(found: Iterable[Finding]) -> int:
    """0 without errors, else the lowest exit code among theirs: what a run would most likely have met first."""
    classes = [one.verdict.klass for one in found if one.verdict.status == "error"]
    return min((EXIT_CODES[klass] for klass in classes if klass is not None), default=0)


def show(console: Console, found: Sequence[Finding]) -> None:
    """For people: subject by subject, what is wrong before what is not known; what is good is only counted."""
    for subject in dict.fromkeys(one.check.subject for one in found):
        wrong = [one for one in found if one.check.subject == subject and one.verdict.status in ("error", "warning")]
        unseen = [one for one in found if one.check.subject == subject and one.verdict.status == "not checked"]
        if not wrong and not unseen:
            continue
        console.say(f"== {subject}")
        for one in sorted(wrong, key=lambda one: one.verdict.status):
            verdict = one.verdict
            code = f" ({verdict.klass}, exit code {EXIT_CODES[verdict.klass]})" if verdict.klass else ""
            console.say(f"{verdict.status}: {one.check.name}{code}: {one_line(verdict.cause)}")
            console.say(f"   remedy: {one_line(verdict.remedy)}")
        for verdict in dict.fromkeys(one.verdict for one in unseen):
            names = dict.fromkeys(one.check.name for one in unseen if one.verdict == verdict)
            console.say(f"not checked: {', '.join(names)}: {one_line(verdict.cause)}")
            console.say(f"   remedy: {one_line(verdict.remedy)}")
    counts = {status: sum(one.verdict.status == status for one in found) for status in ("error", "warning", "ok")}
    unseen_checks = {one.check.name for one in found if one.verdict.status == "not checked"}
    parts = [_counted(counts["error"], "error"), _counted(counts["warning"], "warning")]
    console.say(f"{_counted(counts['ok'], 'check')} good, {', '.join(parts)}, {len(unseen_checks)} not checked")


def show_json(console: Console, found: Sequence[Finding]) -> None:
    """For programs: a list with one object for each finding, good ones included."""
    console.say(json.dumps([{"check": one.check.name, **_plain(one.verdict)} for one in found], indent=1))


def list_checks(console: Console, *, as_json: bool) -> None:
    """Every check: what it asks, and what it needs for that."""
    if as_json:
        told = [{"check": c.name, "subject": c.subject, "asks": c.asks, "needs": c.needs} for c in CHECKS]
        console.say(json.dumps(told, indent=1))
        return
    console.table(["check", "subject", "asks", "needs"], [[c.name, c.subject, c.asks, c.needs] for c in CHECKS])


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _plain(verdict: Verdict) -> dict[str, str | None]:
    return {
        "status": verdict.status,
        "class": verdict.klass,
        "cause": one_line(verdict.cause),
        "remedy": one_line(verdict.remedy),
    }
