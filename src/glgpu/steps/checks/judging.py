"""What a check is, and what it can say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from glgpu.errors import ErrorClass, Failure
from glgpu.steps.checks.facts import Facts

Status = Literal["error", "warning", "ok", "not checked"]
Subject = Literal["settings", "this machine", "GitLab", "Google Cloud", "machine", "network", "image"]

PAGES: dict[Subject, str] = {
    "settings": "docs/reference/settings.md",
    "this machine": "docs/how-to/your-own-gitlab.md",
    "GitLab": "docs/how-to/your-own-gitlab.md",
    "Google Cloud": "docs/how-to/google-cloud-access.md",
    "machine": "docs/reference/gpus.md",
    "network": "docs/how-to/private-vms.md",
    "image": "docs/reference/settings.md",
}
"""Where to read about a subject."""
TO_FOLLOW = re.compile(r"`(?:glgpu|gcloud|docker|git|terraform) |https?://|docs/")


@dataclass(frozen=True)
class Verdict:
    """One thing that a check says.

    Attributes:
        status: ``error``: a run would fail; ``warning``: something would be lost; ``ok``; ``not checked``.
        klass: How the run would fail; None where it would not.
        cause: What is wrong, or why it was not checked.
        remedy: What to do about it.
    """

    status: Status
    klass: ErrorClass | None
    cause: str
    remedy: str


Judge = Callable[[Facts], Iterator[Verdict]]


@dataclass(frozen=True)
class Check:
    """One question.

    Attributes:
        name: Its name, for people and programs.
        subject: What it is about.
        asks: What it finds out, in a few words.
        needs: What it has to have for that.
        judge: Says what is wrong; nothing when all is well. It raises the failure of a fact that it cannot do without.
    """

    name: str
    subject: Subject
    asks: str
    needs: str
    judge: Judge


@dataclass(frozen=True)
class Finding:
    """What one check said, once."""

    check: Check
    verdict: Verdict


def check(name: str, subject: Subject, asks: str, needs: str) -> Callable[[Judge], Check]:
    """Make a function a check."""
    return lambda judge: Check(name, subject, asks, needs, judge)


def error(klass: ErrorClass, cause: str, remedy: str) -> Verdict:
    """A run would fail."""
    return Verdict("error", klass, cause, remedy)


def warning(klass: ErrorClass, cause: str, remedy: str) -> Verdict:
    """Something would be lost."""
    return Verdict("warning", klass, cause, remedy)


def unknown(cause: str, remedy: str) -> Verdict:
    """It cannot be found out here."""
    return Verdict("not checked", None, cause, remedy)


def failed(failure: Failure) -> Verdict:
    """A run would fail in just this way."""
    return error(failure.klass, failure.cause, failure.remedy)


def findings(check: Check, facts: Facts) -> list[Finding]:
    """Everything that a check says; a bug in one check is its own, and hides no other."""
    try:
        verdicts = list(check.judge(facts))
    except Failure as failure:
        verdicts = [unknown(failure.cause, failure.remedy)]
    except Exception as bug:
        cause = f"a bug in glgpu: {type(bug).__name__}: {bug}"
        verdicts = [Verdict("not checked", ErrorClass.BUG, cause, "report it with the text above")]
    return [Finding(check, _with_page(one, check)) for one in verdicts or [Verdict("ok", None, "", "")]]


def _with_page(verdict: Verdict, check: Check) -> Verdict:
    """A remedy that names neither a command nor an address says where to read more."""
    said = verdict.remedy
    return (
        verdict if not said or TO_FOLLOW.search(said) else replace(verdict, remedy=f"{said} ({PAGES[check.subject]})")
    )
