"""Every fault that a rehearsal can play: what goes wrong, how the pipeline has to end, and who clears up after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from glgpu.rehearsal.faults import Rule

Layer = Literal["destroy", "stop", "hard-end", "retry-train"]
"""Who acts after the pipeline: its destroy job retried, its stop job played, the VM's hard end by the stand-ins'
clock, its train job retried."""


@dataclass(frozen=True)
class Afterwards:
    """A layer that acts after the pipeline.

    Attributes:
        layer: Which.
        exit_code: How it has to end; None: it has no exit code.
        finds: What it still finds.
        lifted: Points whose rules are over before it acts.
    """

    layer: Layer
    exit_code: int | None
    finds: str
    lifted: Sequence[str] = ()


@dataclass(frozen=True)
class During:
    """What happens to the network while the training runs: when its log first shows ``line``.

    Attributes:
        line: A piece of the training's output.
        dropped: How VM connections fail, or None.
        seconds: How long.
        caller_address: The caller's new address, or None.
    """

    line: str
    dropped: str | None = None
    seconds: float = 0.0
    caller_address: str | None = None


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: Its name.
        what: What goes wrong, in one line.
        exit_code: Of the first failing job, 0 where the pipeline has to get over it.
        error_class: The class that the failing job names; empty for 0.
        rules: What the stand-ins do from the beginning.
        before: Rules that begin with a job.
        variables: CI variables of the project.
        branch: The branch that is pushed.
        during: What happens to the network during the training.
        afterwards: The layers that act after the pipeline, in order.
    """

    name: str
    what: str
    exit_code: int
    error_class: str = ""
    rules: Sequence[Rule] = ()
    before: Mapping[str, Sequence[Rule]] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    branch: str = "main"
    during: During | None = None
    afterwards: Sequence[Afterwards] = ()


SHORT_TRAINING = "python3 -c \"import os; os.makedirs('weights'); open('weights/w', 'w').write('w')\""
TALKING_TRAINING = (
    "python3 -uc \"import os, time; print('step 0'); "
    "[(time.sleep(0.1), print('step', n)) for n in range(1, 60)]; "
    "os.makedirs('weights'); open('weights/w', 'w').write('w')\""
)
LOUD_TRAINING = (
    "python3 -c \"import os; [print('line', n, 'x' * 90) for n in range(60000)]; "
    "os.makedirs('weights'); open('weights/w', 'w').write('w'); print('the last line')\""
)
OUTPUTS = {"GLGPU_TRAIN_OUTPUTS": "weights"}

FAULTS: tuple[Fault, ...] = (
    Fault(
        "train-fails",
        "the training program ends with exit code 3",
        20,
        "TRAINING_FAILED",
        variables={"GLGPU_TRAIN_COMMAND": "python3 -c \"print('it breaks now'); raise SystemExit(3)\""},
    ),
    Fault(
        "no-outputs",
        "the training ends well but writes none of its outputs",
        21,
        "NO_WEIGHTS",
        variables={"GLGPU_TRAIN_COMMAND": "python3 -c \"print('nothing written')\""},
    ),
    Fault(
        "image-pull-denied",
        "the registry refuses the container image",
        17,
        "IMAGE_PULL",
        rules=[Rule("vm.docker.pull", "denied")],
    ),
    Fault(
        "ssh-never-up",
        "the VM runs, but its guest never comes up",
        13,
        "SSH",
        rules=[Rule("vm.boot", "ssh-never-up")],
        variables={"GLGPU_LIMITS_BOOT_MINUTES": "0.1"},
    ),
    Fault(
        "delete-refused",
        "Compute Engine refuses to delete the VM, for as long as it lives",
        30,
        "STILL_ALIVE",
        rules=[Rule("compute.instances.delete", "refuse")],
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
        afterwards=[
            Afterwards("destroy", 30, "the VM"),
            Afterwards("stop", 30, "the VM"),
            Afterwards("hard-end", None, "the VM"),
            Afterwards("destroy", 0, "the VM's Terraform state"),
        ],
    ),
    Fault(
        "gitlab-401",
        "GitLab does not accept GLGPU_GITLAB_TOKEN: it was revoked",
        12,
        "GITLAB_AUTH",
        rules=[Rule("gitlab.request", "unauthorized")],
    ),
    Fault(
        "gitlab-down-on-destroy",
        "GitLab cannot be reached while the destroy job runs",
        18,
        "NETWORK",
        before={"destroy": [Rule("gitlab.request", "down")]},
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
        afterwards=[Afterwards("destroy", 0, "deploy key and Terraform state", lifted=["gitlab.request"])],
    ),
    Fault(
        "permission-denied",
        "the account may not create instances",
        15,
        "PERMISSION",
        rules=[Rule("compute.instances.insert", "permission-denied")],
    ),
    Fault(
        "api-disabled",
        "the Compute Engine API is not enabled in the cloud project",
        15,
        "API_DISABLED",
        rules=[Rule("compute.request", "api-disabled")],
    ),
    Fault(
        "network-drop-during-train",
        "the connection to the VM is reset while the training runs",
        0,
        variables={"GLGPU_TRAIN_COMMAND": TALKING_TRAINING, **OUTPUTS},
        during=During("step 5", dropped="reset", seconds=2.0),
    ),
    Fault(
        "caller-address-changes",
        "the job is seen under a new address while the training runs",
        0,
        variables={"GLGPU_TRAIN_COMMAND": TALKING_TRAINING, **OUTPUTS},
        during=During("step 5", dropped="reset", seconds=0.5, caller_address="203.0.113.99"),
    ),
    Fault(
        "token-protected-on-branch",
        "the branch is not protected, so GLGPU_GITLAB_TOKEN is absent",
        0,
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
        branch="feature/x",
    ),
    Fault(
        "log-over-4MB",
        "the training prints more than a job log can hold",
        0,
        variables={"GLGPU_TRAIN_COMMAND": LOUD_TRAINING, **OUTPUTS},
    ),
    Fault(
        "retry-after-end",
        "the train job is retried after the pipeline has ended: no destroy job will come",
        0,
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
        afterwards=[Afterwards("retry-train", 0, "nothing: it brings up a VM of its own")],
    ),
)


def named(name: str) -> Fault | None:
    """The fault of that name."""
    return next((fault for fault in FAULTS if fault.name == name), None)
