"""One run as its steps see it: values, clients behind their protocols, and where to report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glgpu.clock import Clock
from glgpu.console import Console
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import (
    BranchAt,
    BucketFor,
    Catalogue,
    Cloud,
    Connect,
    Forge,
    Instance,
    Repository,
    StackFor,
)
from glgpu.job import Job
from glgpu.run_names import RunName
from glgpu.run_record import RunRecord
from glgpu.settings import Settings

SETTINGS_ITEM = "glgpu-settings"
"""Metadata item in which bring-up leaves, for jobs without glgpu.yml, what a teardown has to know."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: Its identity.
        job: What GitLab told this process.
        settings: What the team set.
        base: Folder of glgpu.yml within the repository; empty: its root.
        cloud: Compute Engine.
        catalogue: What Compute Engine offers, and the project's limits.
        forge: GitLab.
        bucket_for: Opens a bucket.
        connect: Opens the way to a VM.
        stack_for: Makes a Terraform.
        make_login_key: Makes the key that opens the VM, in a folder; returns its public half.
        repository: The checkout this process stands in.
        branch_at: Opens the way to a branch at GitLab.
        outputs: Where things come home to.
        google_time: Google's clock, in Unix time.
        caller_address: Tells the public IPv4 address of this machine.
        console: Where messages go.
        record: The run record.
        clock: Time.
    """

    name: RunName
    job: Job
    settings: Settings
    base: str
    cloud: Cloud
    catalogue: Catalogue
    forge: Forge
    bucket_for: BucketFor
    connect: Connect
    stack_for: StackFor
    make_login_key: Callable[[Path, str], str]
    repository: Repository
    branch_at: BranchAt
    outputs: Path
    google_time: Callable[[], float]
    caller_address: Callable[[Settings, Job], str]
    console: Console
    record: RunRecord
    clock: Clock

    @property
    def artifacts(self) -> Path:
        """What the job's artifacts are made of: outputs/, also where this run's own are in a folder below it."""
        return self.job.project_dir / "outputs"

    def knowing(self, instance: Instance) -> Run:
        """This run with the settings that bring-up left on the VM; unchanged where there are none."""
        left = _left_on(instance)
        try:
            return replace(self, settings=Settings.model_validate(left["settings"]), base=str(left["base"]))
        except (ValueError, KeyError, TypeError):
            return self


def left_settings(run: Run, hard_end: float, usd_per_hour: float | None = None) -> str:
    """What jobs without glgpu.yml have to know; nothing secret, since everyone on the VM can read it.

    Args:
        run: The run.
        hard_end: Unix time at which Compute Engine deletes the VM.
        usd_per_hour: What the VM costs, by estimate; None: not known.
    """
    whole = run.settings.model_dump(mode="json")
    kept: dict[str, Any] = {key: whole[key] for key in ("project", "network", "limits", "state", "storage", "notebook")}
    kept["train"] = {key: whole["train"][key] for key in ("outputs", "checkpoints", "on_cancel")}
    left = {"base": run.base, "ref": run.job.ref, "hard_end": int(hard_end), "settings": kept}
    if run.settings.notebook.can_push:
        # For whoever pushes the work: its branch is named after them, and begins with that commit.
        left |= {"user": run.job.user, "commit": run.job.sha}
    if usd_per_hour is not None:
        left["usd_per_hour"] = round(usd_per_hour, 4)
    return json.dumps(left, separators=(",", ":"))


def hard_end_of(instance: Instance) -> float:
    """Unix time at which Compute Engine deletes the VM; infinite where bring-up's word on it is missing."""
    try:
        return float(_left_on(instance)["hard_end"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def ref_of(instance: Instance) -> str | None:
    """The branch or tag that a VM was brought up for; its label may stand for several. None where nobody says."""
    ref = _left_on(instance).get("ref")
    return ref if isinstance(ref, str) else None


def starter_of(instance: Instance) -> dict[str, str]:
    """Who has started a notebook, on which branch and commit: ``user``, ``ref``, ``commit``, as far as it is told."""
    left = _left_on(instance)
    return {key: left[key] for key in ("user", "ref", "commit") if isinstance(left.get(key), str)}


def price_of(instance: Instance) -> float | None:
    """What the VM costs in US dollars per hour, by the estimate of whoever brought it up; None: nobody said."""
    price = _left_on(instance).get("usd_per_hour")
    return float(price) if isinstance(price, int | float) and math.isfinite(price) else None


def _left_on(instance: Instance) -> dict[str, Any]:
    try:
        left = json.loads(instance.metadata.get(SETTINGS_ITEM, ""))
    except ValueError:
        return {}
    return left if isinstance(left, dict) else {}


def vanished(run: Run, instance: Instance) -> Failure | None:
    """Why a VM is no longer there to talk to; None while it runs."""
    now = run.cloud.get(instance.name, instance.zone)
    if now is not None and now.status == "RUNNING":
        return None
    status = now.status if now is not None else "gone"
    if run.clock.now() >= hard_end_of(instance) - 30:
        return Failure(
            ErrorClass.OUT_OF_TIME,
            f"the VM {instance.name} reached its hard end",
            "raise machine.max_hours and the jobs' timeouts, or train for a shorter time",
        )
    return Failure(
        ErrorClass.PREEMPTED,
        f"the VM {instance.name} is {status}: preempted, or ended by somebody else",
        "retry the job; `spot: never` buys a VM that is not preempted",
    )
