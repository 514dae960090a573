"""How a creation fails: what Terraform says of it, what its state knows afterwards, and what lives in the cloud.

Measured with hashicorp/google 7.46 and Terraform 1.11.4. The provider is held to it wherever it is at hand, and so are,
on every machine, the classifier, the stand-in Compute Engine and the module that does without the provider.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from applying import Workspace
from cloud import NAME, ZONE, Cloud
from glgpu.errors import ErrorClass
from glgpu.rehearsal.faults import Rule

LATER = 1000.0
"""Seconds of the stand-in's clock that a slow operation takes; the clock is moved when it is time."""

PROVIDER_GONE = "Error: ...plugin.(*GRPCProvider).ApplyResourceChange"
"""What Terraform says of a provider that died: "Plugin did not respond", or "Request cancelled" if it noticed later."""


@dataclass(frozen=True)
class FailedCreation:
    """One row.

    Attributes:
        name: What happens.
        error_class: What the classifier makes of `says`; None where Terraform's words do not tell the cause.
        says: Terraform's words, white space and frames aside; `...` stands for anything on that line.
        rules: What the stand-in does.
        patience: Seconds after which the module gives up, where the row is about that; 0: as it is.
        meanwhile: What happens while Terraform waits.
        code: Terraform's exit code.
        in_state: What the state of gpu-vm holds.
        locked: Whether the state stays locked.
        alive: Whether there is a VM in the end, although `terraform destroy` has said that all is destroyed.
        own_words: Whether nothing but the provider says it so; what is left behind is the same everywhere.
    """

    name: str
    error_class: ErrorClass | None
    says: str
    rules: list[Rule] = field(default_factory=list)
    patience: int = 0
    meanwhile: Callable[[int, Cloud], None] | None = None
    code: int = 1
    in_state: list[str] = field(default_factory=list)
    locked: bool = False
    alive: bool = False
    own_words: bool = False

    @property
    def pattern(self) -> re.Pattern[str]:
        """`says` as a pattern for what Terraform printed, in one line."""
        pieces = " ".join(self.says.split()).split("...")
        return re.compile(".*?".join(map(re.escape, pieces)))


def _preempt(group: int, cloud: Cloud) -> None:
    """The VM is taken away before it has run, and still shown; Terraform goes on looking until somebody stops it."""
    cloud.until_answered("/operations/", 200)
    instance = cloud.engine.instances.get(ZONE, NAME)
    cloud.room.meanwhile = lambda: instance.resource.update(status="TERMINATED")
    cloud.clock.advance(LATER)
    cloud.until_answered(f"/instances/{NAME}", 200, times=4)
    os.killpg(group, signal.SIGTERM)


def _vanish(group: int, cloud: Cloud) -> None:
    """The VM is deleted before it has run; the same, for 21 questions or three minutes."""
    cloud.until_answered("/operations/", 200)
    cloud.engine.operations.latency = 0.0
    cloud.done("DELETE", f"zones/{ZONE}/instances/{NAME}")
    cloud.clock.advance(LATER)
    cloud.until_answered(f"/instances/{NAME}", 404, times=4)
    os.killpg(group, signal.SIGTERM)


def _terminate(group: int, cloud: Cloud) -> None:
    """SIGTERM to Terraform alone, which tells the provider to stop."""
    cloud.until_answered("/operations/", 200)
    os.kill(group, signal.SIGTERM)


def _terminate_group(group: int, cloud: Cloud) -> None:
    """SIGTERM to Terraform's group, as glgpu sends it: the provider dies of it."""
    cloud.until_answered("/operations/", 200)
    os.killpg(group, signal.SIGTERM)


def _kill(group: int, cloud: Cloud) -> None:
    """SIGKILL to Terraform: the provider lives on, until we end it."""
    cloud.until_answered("/operations/", 200)
    children = psutil.Process(group).children(recursive=True)
    os.kill(group, signal.SIGKILL)
    assert any(child.is_running() for child in children)
    for child in children:
        child.kill()


FAILED_CREATIONS = (
    FailedCreation(
        "a stockout in the operation",
        ErrorClass.STOCKOUT,
        "Error waiting for instance to create: The zone 'projects/my-dl/zones/europe-west4-a' does not have "
        "enough resources available to fulfill the request. '(resource type:compute)'.",
        rules=[Rule("compute.instances.insert", "stockout")],
    ),
    FailedCreation(
        "a quota at the insert",
        ErrorClass.QUOTA_GLOBAL,
        "Error creating instance: googleapi: Error 403: Quota 'GPUS_ALL_REGIONS' exceeded. Limit: 0.0 globally., "
        "quotaExceeded",
        rules=[Rule("compute.instances.insert", "quota", argument="GPUS_ALL_REGIONS")],
    ),
    FailedCreation(
        "a quota in the operation",
        ErrorClass.QUOTA_REGION,
        "Error waiting for instance to create: Quota 'NVIDIA_T4_GPUS' exceeded. Limit: 8.0 in region europe-west4.",
        rules=[Rule("compute.instances.insert", "quota", argument="NVIDIA_T4_GPUS")],
    ),
    FailedCreation(
        "an API that is disabled",
        ErrorClass.API_DISABLED,
        "Error creating instance: googleapi: Error 403: Compute Engine API has not been used in project my-dl "
        "before or it is disabled. Enable it by visiting ...accessNotConfigured",
        rules=[Rule("compute.request", "api-disabled")],
    ),
    FailedCreation(
        "an insert that is slower than Terraform is patient",
        None,
        "Error waiting for instance to create: timeout while waiting for state to become 'DONE' (last state: "
        "'...', timeout: ...)",
        patience=4,
        alive=True,
    ),
    FailedCreation(
        "an instance that is preempted before it has run",
        None,
        PROVIDER_GONE,
        meanwhile=_preempt,
        alive=True,
        own_words=True,
    ),
    FailedCreation(
        "an instance that vanishes before it has run",
        None,
        PROVIDER_GONE,
        meanwhile=_vanish,
        own_words=True,
    ),
    FailedCreation(
        "SIGTERM to Terraform while it waits",
        None,
        "Error waiting for instance to create: error while retrieving operation: unable to finish polling, "
        "context has been cancelled",
        meanwhile=_terminate,
        alive=True,
        own_words=True,
    ),
    FailedCreation(
        "SIGTERM to Terraform's group while it waits",
        None,
        PROVIDER_GONE,
        meanwhile=_terminate_group,
        alive=True,
        own_words=True,
    ),
    FailedCreation(
        "SIGKILL to Terraform while it waits",
        None,
        "",
        meanwhile=_kill,
        code=-signal.SIGKILL,
        locked=True,
        alive=True,
        own_words=True,
    ),
)


def play(case: FailedCreation, module: Workspace, cloud: Cloud) -> str:
    """Let a creation fail; what Terraform said, in one line."""
    cloud.faults.rules += case.rules
    if case.patience:
        _shorten(module, case.patience)
    if case.patience or case.meanwhile:
        cloud.engine.operations.latency = LATER
    with module.start("apply", "-auto-approve", "-no-color", "-input=false") as process:
        if case.meanwhile is not None:
            case.meanwhile(process.pid, cloud)
        output, _ = process.communicate(timeout=240)
    assert process.returncode == case.code, output
    return " ".join(output.replace("│", " ").split())


def aftermath(case: FailedCreation, module: Workspace, cloud: Cloud) -> None:
    """Destroy what the state knows; then the slow operation comes to its end, and who lives is seen."""
    cloud.faults.end()
    lock = module.folder / ".terraform.tfstate.lock.info"
    assert lock.exists() == case.locked
    lock.unlink(missing_ok=True)
    assert "Destroy complete!" in module.destroy()
    cloud.engine.operations.latency = 0.0
    cloud.clock.advance(LATER)
    for operation in cloud.ask("GET", f"zones/{ZONE}/operations").get("items", []):
        cloud.ask("POST", f"zones/{ZONE}/operations/{operation['name']}/wait")
    assert cloud.instances() == ([NAME] if case.alive else [])


def _shorten(module: Workspace, seconds: int) -> None:
    """Make a module's patience short."""
    if module.module == "gpu-vm":
        timeouts = f'timeouts {{\n    create = "{seconds}s"\n  }}'
        module.override(f'resource "google_compute_instance" "run" {{\n  {timeouts}\n}}\n')
        return
    script = module.folder / "compute_instance.py"
    text, count = re.subn(r"^WAIT_SECONDS = .*$", f"WAIT_SECONDS = {seconds}", script.read_text(), flags=re.MULTILINE)
    assert count == 1
    script.write_text(text)
