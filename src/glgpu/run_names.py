"""Names before things: what a run creates is named from CI variables alone, so anyone can find and remove it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal, cast

from glgpu.errors import ErrorClass, Failure
from glgpu.lifetime import Lifetime

Kind = Literal["train", "notebook"]
LONGEST_NAME = 54
"""So that the deny rule's ``-closed`` still fits Compute Engine's 63 characters."""
PREFIX = "glgpu-"
_RUN = r"[0-9]+(?:-[0-9]+)?|u[0-9a-f]{8}-[0-9]+"
_CLOSED = "-closed"
_PUSH = "-push"


def server_hash(server_url: str) -> str:
    """Six hex digits that tell GitLab servers apart: two of them may share one cloud project."""
    return hashlib.sha256(server_url.encode()).hexdigest()[:6]


@dataclass(frozen=True)
class RunName:
    """The identity of one run.

    Attributes:
        server_url: ``CI_SERVER_URL``.
        project_id: GitLab project id.
        run: Pipeline id, with ``-<n>`` for a matrix; or ``u<8 hex>-<Unix time>`` from a laptop.
        kind: What the VM is for.
    """

    server_url: str
    project_id: int
    run: str
    kind: Kind = "train"

    def __post_init__(self) -> None:
        if not re.fullmatch(_RUN, self.run):
            raise Failure(
                ErrorClass.USAGE,
                f"{self.run!r} is no run: a pipeline id, or a pipeline id with -<n>",
                "check CI_PIPELINE_ID and GLGPU_RUN_INDEX",
            )
        if len(str(self)) > LONGEST_NAME:
            raise Failure(
                ErrorClass.USAGE,
                f"the run's name {self} is longer than {LONGEST_NAME} characters",
                "check CI_PROJECT_ID, CI_PIPELINE_ID and GLGPU_RUN_INDEX",
            )

    def __str__(self) -> str:
        return f"{PREFIX}{server_hash(self.server_url)}-{self.project_id}-{self.run}-{self.kind}"

    @property
    def closed_rule(self) -> str:
        """Name of the firewall rule that denies whoever is not listed."""
        return f"{self}{_CLOSED}"

    @property
    def push_title(self) -> str:
        """Title of the deploy key with which a job, never a VM, pushes a notebook's work."""
        return f"{self}{_PUSH}"

    @property
    def own_labels(self) -> dict[str, str]:
        """The labels that find this run's things, and no other's."""
        return {
            "glgpu": "managed",
            "glgpu-server": server_hash(self.server_url),
            "glgpu-project": str(self.project_id),
            "glgpu-run": self.run,
            "glgpu-kind": self.kind,
        }

    def labels(self, lifetime: Lifetime, *, user: str, ref: str) -> dict[str, str]:
        """All labels of the run's instance."""
        return {
            **self.own_labels,
            "glgpu-user": label_value(user),
            "glgpu-ref": label_value(ref),
            "glgpu-until": lifetime.until,
            "glgpu-expires": str(int(lifetime.soft_end)),
        }


@dataclass(frozen=True, order=True)
class ReadName:
    """What a name tells of the run that it belongs to; the GitLab server only by its hash.

    Attributes:
        server: Hash of ``CI_SERVER_URL``.
        project_id: GitLab project id.
        run: As of RunName.
        kind: What the VM is for.
    """

    server: str
    project_id: int
    run: str
    kind: Kind

    def __str__(self) -> str:
        return f"{PREFIX}{self.server}-{self.project_id}-{self.run}-{self.kind}"

    @property
    def pipeline(self) -> int | None:
        """The pipeline that the run belongs to, one of a matrix too; None for a laptop's."""
        return None if self.run.startswith("u") else int(self.run.partition("-")[0])

    @property
    def begun(self) -> float | None:
        """Unix time at which a laptop's run began; None for a pipeline's, whose name does not tell."""
        return float(self.run.partition("-")[2]) if self.run.startswith("u") else None

    @property
    def own_labels(self) -> dict[str, str]:
        """As of RunName."""
        return {
            "glgpu-server": self.server,
            "glgpu-project": str(self.project_id),
            "glgpu-run": self.run,
            "glgpu-kind": self.kind,
        }


AnyName = RunName | ReadName
"""A run, however it is known."""


def read_name(name: str) -> ReadName | None:
    """The run that something of this name belongs to; None for a name that is not one of glgpu's."""
    own = name.removesuffix(_CLOSED).removesuffix(_PUSH)
    found = re.fullmatch(rf"{PREFIX}([0-9a-f]{{6}})-([0-9]{{1,18}})-({_RUN})-(train|notebook)", own)
    if found is None or len(own) > LONGEST_NAME:
        return None
    return ReadName(found[1], int(found[2]), found[3], cast(Kind, found[4]))


def without_cell(job: str) -> str:
    """A job's name without its place in a ``parallel: matrix``: ``train`` of ``train: [2]``."""
    return job.partition(": [")[0]


def laptop_run(user: str, host: str, now: float) -> str:
    """The run part of a name for a run that no pipeline started."""
    return f"u{hashlib.sha256(f'{user}@{host}'.encode()).hexdigest()[:8]}-{int(now)}"


def ref_slug(ref: str) -> str:
    """GitLab's ``CI_COMMIT_REF_SLUG``; the same for a ref and for the label that it left."""
    return re.sub(r"[^a-z0-9]", "-", ref.lower())[:63].strip("-")


def label_value(text: str) -> str:
    """Make any text a legal label value.

    At most 63 of ``[a-z0-9_-]`` (https://cloud.google.com/compute/docs/labeling-resources#requirements).
    """
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:63]
