"""Every way in which glgpu can fail: its class, its exit code, one line of cause, one line of remedy.

The exit codes are a contract: GitLab acts on them (``retry:exit_codes``, ``allow_failure:exit_codes``), so a number
is never given a second meaning. This module is the only place that maps a class to a code.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum


class ErrorClass(StrEnum):
    """What went wrong, in one word; ``docs/reference/errors.md`` describes each."""

    BUG = "BUG"
    USAGE = "USAGE"
    CONFIG = "CONFIG"
    NOT_AVAILABLE = "NOT_AVAILABLE"
    STOCKOUT = "STOCKOUT"
    TERRAFORM = "TERRAFORM"
    CONFLICT = "CONFLICT"
    NOT_FOUND = "NOT_FOUND"
    UNKNOWN = "UNKNOWN"
    GITLAB = "GITLAB"
    GITLAB_AUTH = "GITLAB_AUTH"
    STATE_LOCK = "STATE_LOCK"
    STATE_ACCESS = "STATE_ACCESS"
    SSH = "SSH"
    QUOTA_GLOBAL = "QUOTA_GLOBAL"
    QUOTA_REGION = "QUOTA_REGION"
    LIVE_VMS = "LIVE_VMS"
    PERMISSION = "PERMISSION"
    AUTH = "AUTH"
    ORG_POLICY = "ORG_POLICY"
    API_DISABLED = "API_DISABLED"
    BILLING = "BILLING"
    DRIVER = "DRIVER"
    IMAGE = "IMAGE"
    IMAGE_PULL = "IMAGE_PULL"
    CODE = "CODE"
    NETWORK = "NETWORK"
    RATE_LIMIT = "RATE_LIMIT"
    TRANSIENT = "TRANSIENT"
    INTERRUPTED = "INTERRUPTED"
    TRAINING_FAILED = "TRAINING_FAILED"
    OOM = "OOM"
    NO_WEIGHTS = "NO_WEIGHTS"
    OUT_OF_TIME = "OUT_OF_TIME"
    PREEMPTED = "PREEMPTED"
    STILL_ALIVE = "STILL_ALIVE"
    LEFT_BEHIND = "LEFT_BEHIND"
    DISK_FULL = "DISK_FULL"
    TOOL_MISSING = "TOOL_MISSING"


EXIT_CODES: dict[ErrorClass, int] = {
    ErrorClass.BUG: 1,
    ErrorClass.USAGE: 2,
    ErrorClass.CONFIG: 2,
    ErrorClass.NOT_AVAILABLE: 2,
    ErrorClass.STOCKOUT: 10,
    ErrorClass.TERRAFORM: 11,
    ErrorClass.CONFLICT: 11,
    ErrorClass.NOT_FOUND: 11,
    ErrorClass.UNKNOWN: 11,
    ErrorClass.GITLAB: 12,
    ErrorClass.GITLAB_AUTH: 12,
    ErrorClass.STATE_LOCK: 12,
    ErrorClass.STATE_ACCESS: 12,
    ErrorClass.SSH: 13,
    ErrorClass.QUOTA_GLOBAL: 14,
    ErrorClass.QUOTA_REGION: 14,
    ErrorClass.LIVE_VMS: 14,
    ErrorClass.PERMISSION: 15,
    ErrorClass.AUTH: 15,
    ErrorClass.ORG_POLICY: 15,
    ErrorClass.API_DISABLED: 15,
    ErrorClass.BILLING: 15,
    ErrorClass.DRIVER: 16,
    ErrorClass.IMAGE: 17,
    ErrorClass.IMAGE_PULL: 17,
    ErrorClass.CODE: 17,
    ErrorClass.NETWORK: 18,
    ErrorClass.RATE_LIMIT: 18,
    ErrorClass.TRANSIENT: 18,
    ErrorClass.INTERRUPTED: 19,
    ErrorClass.TRAINING_FAILED: 20,
    ErrorClass.OOM: 20,
    ErrorClass.NO_WEIGHTS: 21,
    ErrorClass.OUT_OF_TIME: 22,
    ErrorClass.PREEMPTED: 23,
    ErrorClass.STILL_ALIVE: 30,
    ErrorClass.LEFT_BEHIND: 31,
    ErrorClass.DISK_FULL: 40,
    ErrorClass.TOOL_MISSING: 40,
}
"""The one table class -> exit code (`docs/reference/exit-codes.md` is checked against it)."""

EXIT_MEANINGS: dict[int, str] = {
    0: "done",
    1: "a bug in glgpu",
    2: "bad usage or settings",
    10: "no capacity in any candidate",
    11: "Terraform or Google refused, reason not known better",
    12: "GitLab refused, or its Terraform state",
    13: "the VM cannot be reached",
    14: "a quota, `limits.live_vms` included",
    15: "cloud permission, policy, API or billing",
    16: "the GPU is not usable",
    17: "image or repository cannot be had",
    18: "GitLab or the cloud cannot be reached",
    19: "interrupted by a signal, after its own clean-up",
    20: "the training failed",
    21: "the training left no weights",
    22: "out of time",
    23: "preempted",
    30: "something is still alive after destroy",
    31: "cleanup left something",
    40: "this machine: disk full, tool missing or too old",
}

WORTH_A_RETRY: frozenset[ErrorClass] = frozenset(
    {
        ErrorClass.STOCKOUT,
        ErrorClass.STATE_LOCK,
        ErrorClass.SSH,
        ErrorClass.LIVE_VMS,
        ErrorClass.NETWORK,
        ErrorClass.RATE_LIMIT,
        ErrorClass.TRANSIENT,
        ErrorClass.INTERRUPTED,
        ErrorClass.PREEMPTED,
    }
)
"""What may go well the next time although nobody changed anything; the rest waits for a person."""


@dataclass(eq=False)
class Failure(Exception):
    """An end that a person can act on.

    Attributes:
        klass: What went wrong; decides the exit code.
        cause: One line: what happened.
        remedy: One line: what to do about it.
        evidence: Raw text of the other side, for the log; never needed to understand the cause.
    """

    klass: ErrorClass
    cause: str
    remedy: str
    evidence: str = ""

    def __post_init__(self) -> None:
        super().__init__(self.cause)
        self.cause = one_line(self.cause)
        self.remedy = one_line(self.remedy)

    def __str__(self) -> str:
        return self.cause

    @property
    def exit_code(self) -> int:
        """The process's exit code for this failure."""
        return EXIT_CODES[self.klass]

    @property
    def retry(self) -> bool:
        """Whether doing the same again can help."""
        return self.klass in WORTH_A_RETRY


@contextmanager
def unwrapped() -> Iterator[None]:
    """Let a failure of ours out of a library that has wrapped it up in an error of its own.

    A signal's failure is raised wherever the program is at that moment: also within a parser that takes whatever is
    raised in it for bad input (protobuf's for JSON, python-gitlab's).

    Raises:
        Failure: The one that was wrapped up.
    """
    handled = sys.exception()  # what was being dealt with before is no part of what happens here
    try:
        yield
    except Exception as error:
        inner: BaseException | None = error
        while inner is not None and inner is not handled:
            if isinstance(inner, Failure):
                raise inner from None
            inner = inner.__cause__ or inner.__context__
        raise


def one_line(text: str) -> str:
    """Fold any white space, line breaks included, into single blanks."""
    return " ".join(text.split())


def gravest(failures: list[Failure]) -> Failure | None:
    """Choose whose exit code counts when several things failed: a living VM first, then the first cause."""
    for failure in failures:
        if failure.klass is ErrorClass.STILL_ALIVE:
            return failure
    return failures[0] if failures else None
