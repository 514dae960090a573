"""Every fault that a rehearsal can play: what goes wrong, how the pipeline has to end, and who clears up after it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from glgpu.rehearsal.cloud_catalogue import REGIONS, ZONES
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
        finds: What is still there when it begins: the read-back's words; nothing: empty; None: that depends.
        lifted: Points whose rules are over before it acts.
    """

    layer: Layer
    exit_code: int | None
    finds: Sequence[str] | None = ()
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
class Strike:
    """What befalls a job, once, when its log first shows ``line``.

    Attributes:
        what: ``cancel``: somebody cancels the job. ``kill``: its glgpu gets SIGKILL. ``lose runner``:
            the runner does. ``preempt``: Google takes the Spot VM away. ``vanish``: the same without any notice.
            ``reach limit``: the job's time is over, as its runner counts it.
        job: Which job.
        line: A piece of its log.
        then: What befalls it next, if anything.
    """

    what: Literal["cancel", "kill", "lose runner", "preempt", "vanish", "reach limit"]
    job: str
    line: str
    then: Strike | None = None


NotebookFault = Literal["drop tunnel", "hang kernel", "stop during cell"]
"""What befalls a notebook that somebody has open: the network breaks off for a moment, its kernel does nothing more,
it is stopped while a cell runs."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: Its name.
        what: What goes wrong, in one line.
        exit_code: Of the first failing job, 0 where the pipeline has to get over it.
        error_class: The class that the failing job names; empty for 0.
        shows: What a job's log says of it, so that nobody takes a fault that did not strike for one that was survived.
        rules: What the stand-ins do from the beginning.
        before: Rules that begin with a job.
        token_revoked: Whether GLGPU_GITLAB_TOKEN is no longer good.
        variables: CI variables of the project.
        branch: The branch that is pushed.
        during: What happens to the network during the training.
        locked_before: The job before which a Terraform that was killed has left its lock on the run's state; empty:
            none.
        clock_ahead: Seconds by which the clocks of GitLab and Google run ahead of the jobs' own.
        stranger: Whether a run of another GitLab server with the same ids is in the cloud project.
        strike: What befalls a job.
        notebook: What befalls a notebook, which is rehearsed then; None: nothing.
        artifact_limit_mb: What GitLab takes as a job's artifacts, or None.
        afterwards: The layers that act after the pipeline, in order.
        place: What the name is followed by, after a colon: a ``ZONE``, a ``REGION``, ...; empty: nothing.
        example: The place that is meant where none is said.
        stages: What differs by stage, or by the seconds that it lasts, where the place is one.
    """

    name: str
    what: str
    exit_code: int
    error_class: str = ""
    shows: str = ""
    rules: Sequence[Rule] = ()
    before: Mapping[str, Sequence[Rule]] = field(default_factory=dict)
    token_revoked: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    branch: str = "main"
    during: During | None = None
    locked_before: str = ""
    clock_ahead: float = 0.0
    stranger: bool = False
    strike: Strike | None = None
    notebook: NotebookFault | None = None
    artifact_limit_mb: int | None = None
    afterwards: Sequence[Afterwards] = ()
    place: Literal["", "ZONE", "REGION", "STAGE", "SECONDS"] = ""
    example: str = ""
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def form(self) -> str:
        """Its name as the list shows it, ``stockout:ZONE`` for example."""
        return f"{self.name}:{self.place}" if self.place else self.name

    def at(self, place: str) -> Fault:
        """The same fault in one zone, region or stage, or for so long."""
        rules = [replace(rule, where=place) for rule in self.rules]
        return replace(self, **{"example": place, "rules": rules, **self.stages.get(place, {})})


STAGES = ("provision", "train", "destroy")
DROPS = ("1", "30", "300")
PLACES: Mapping[str, Collection[str]] = {
    "ZONE": ZONES,
    "REGION": REGIONS,
    "STAGE": STAGES,
    "SECONDS": DROPS,
    "": (),
}
"""What may follow the colon."""

SHORT_TRAINING = "python3 -c \"import os; os.makedirs('weights'); open('weights/w', 'w').write('w')\""
TALKING_TRAINING = (
    "python3 -uc \"import os, time; print('step 0'); "
    "[(time.sleep(0.1), print('step', n)) for n in range(1, 60)]; "
    "os.makedirs('weights'); open('weights/w', 'w').write('w')\""
)
BIG_TRAINING = (
    "python3 -c \"import os; os.makedirs('weights'); open('weights/small', 'w').write('w'); "
    "open('weights/big', 'wb').write(os.urandom(16 << 20))\""
)
OUTPUTS = {"GLGPU_TRAIN_OUTPUTS": "weights"}
LONG_TRAINING = {"GLGPU_TRAIN_COMMAND": TALKING_TRAINING.replace("60", "600"), **OUTPUTS}
"""A minute of it."""
TAKEN_UP = "lines of what the training printed before; all of it is in outputs/glgpu/train.log"
KEEPING_TRAINING = (
    "python3 -uc \"import os, time; os.makedirs('checkpoints'); open('checkpoints/c', 'w').write('c'); "
    "[(print('step', n), time.sleep(0.1)) for n in range(6000)]\""
)
LOUD_TRAINING = (
    "python3 -c \"import os; [print('line', n, 'x' * 90) for n in range(60000)]; "
    "os.makedirs('weights'); open('weights/w', 'w').write('w'); print('the last line')\""
)
LASTING_TRAINING = """\
python3 -uc "
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
stopped, kept = [], 'checkpoints/step'
done = int(open(kept).read()) if os.path.exists(kept) else 0
print('going on after step', done)
for n in range(done + 1, 41):
    time.sleep(0.3)
    print('step', n)
    if stopped:
        os.makedirs('checkpoints', exist_ok=True)
        open(kept, 'w').write(str(n))
        sys.exit(143)
os.makedirs('weights')
open('weights/w', 'w').write('w')
"
"""
"""Saves where it is when it is told to end, and goes on from there."""
CARELESS_TRAINING = """\
python3 -uc "
import os, sys, time
kept = 'checkpoints/state'
if os.path.exists(kept):
    print('found', os.path.getsize(kept), 'bytes')
    os.makedirs('weights')
    open('weights/w', 'w').write('w')
    sys.exit(os.path.getsize(kept) != 2000)
os.makedirs('checkpoints')
open(kept, 'w').write('x' * 2000)
print('a whole checkpoint')
time.sleep(20)
file = open(kept, 'w')
file.write('x' * 1000)
file.flush()
print('half a checkpoint')
time.sleep(60)
"
"""
"""Writes its checkpoint in place, has no handler for SIGTERM, and ends with 1 where it finds half a checkpoint."""
LIMIT_REACHED = 1
"""What stands for the exit code of a job that its runner has ended: GitLab tells none."""
KILLED = 137
"""What a shell makes of SIGKILL: 128 + 9."""
VM_RUNS, TRAINING_TALKS, TEARDOWN_BEGINS = "runs in ", "step 5", "found: "
"""Lines of the three stages after which each has some seconds to go."""
CANCEL_COMES = "10"
"""Seconds that something takes, for a cancel to reach the job meanwhile: the Runner hears of it three seconds late."""

FAULTS: tuple[Fault, ...] = (
    Fault(
        "train-fails",
        "the training program ends with exit code 3",
        20,
        "TRAINING_FAILED",
        shows="its exit code is 3",
        variables={"GLGPU_TRAIN_COMMAND": "python3 -c \"print('it breaks now'); raise SystemExit(3)\""},
    ),
    Fault(
        "out-of-time",
        "the training would outlast its job: it is told to end in time",
        22,
        "OUT_OF_TIME",
        shows="the training is told to end",
        variables={
            "GLGPU_SCRIPT_TIMEOUT": "80s",
            "GLGPU_LIMITS_RESCUE_MINUTES": "0",
            "GLGPU_TRAIN_COMMAND": TALKING_TRAINING.replace("60", "6000"),
            **OUTPUTS,
        },
    ),
    Fault(
        "no-outputs",
        "the training ends well but writes none of its outputs",
        21,
        "NO_WEIGHTS",
        shows="left nothing in",
        variables={"GLGPU_TRAIN_COMMAND": "python3 -c \"print('nothing written')\""},
    ),
    Fault(
        "image-pull-denied",
        "the registry refuses the container image",
        17,
        "IMAGE_PULL",
        shows="pull access denied",
        rules=[Rule("vm.docker.pull", "denied")],
    ),
    Fault(
        "ssh-never-up",
        "the VM runs, but its guest never comes up",
        13,
        "SSH",
        shows="published no host key",
        rules=[Rule("vm.boot", "ssh-never-up")],
        variables={"GLGPU_LIMITS_BOOT_MINUTES": "0.1"},
    ),
    Fault(
        "delete-refused",
        "Compute Engine refuses to delete the VM, for as long as it lives",
        30,
        "STILL_ALIVE",
        shows="still alive: glgpu-",
        rules=[Rule("compute.instances.delete", "refuse")],
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
        afterwards=[
            Afterwards("destroy", 30, ["instances", "disks", "states"]),
            Afterwards("stop", 30, ["instances", "disks", "states"]),
            Afterwards("hard-end", None, ["instances", "disks", "states"]),
            Afterwards("destroy", 0, ["states"]),
        ],
    ),
    Fault(
        "gitlab-401",
        "GitLab does not accept GLGPU_GITLAB_TOKEN: it was revoked",
        12,
        "GITLAB_AUTH",
        shows="does not accept the token",
        token_revoked=True,
    ),
    Fault(
        "gitlab-down-on-destroy",
        "GitLab cannot be reached while the destroy job runs",
        18,
        "NETWORK",
        shows="cannot be reached",
        before={"destroy": [Rule("gitlab.request", "down")]},
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
        afterwards=[Afterwards("destroy", 0, ["deploy keys", "states"], lifted=["gitlab.request"])],
    ),
    Fault(
        "gitlab-down",
        "GitLab cannot be reached from the training on: it is trained all the same, and the cloud is cleared",
        18,
        "NETWORK",
        shows="left for cleanup",
        before={"train": [Rule("gitlab.request", "down")]},
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
        afterwards=[Afterwards("destroy", 0, ["states"], lifted=["gitlab.request"])],
    ),
    Fault(
        "state-locked",
        "a Terraform that was killed has left its lock on the run's state",
        0,
        shows="breaking the lock on the state in GitLab",
        locked_before="destroy",
        variables={"GLGPU_LIMITS_DELETE_MINUTES": "0.1", "GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
    ),
    Fault(
        "delete-slow",
        "the VM is not deleted at once: train's wish and Terraform's are refused, destroy's takes its time",
        0,
        shows="still under way after",
        rules=[
            Rule("compute.instances.delete", "refuse", 1, 2),
            Rule("compute.instances.delete", "late", 3, None, "9"),
        ],
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
    ),
    Fault(
        "vm-refuses-to-die",
        "a VM that is to be deleted stays STOPPING",
        30,
        "STILL_ALIVE",
        shows="(STOPPING, europe-west4-a): deleted, and yet there",
        rules=[Rule("compute.immortal", "on")],
        variables={"GLGPU_LIMITS_DELETE_MINUTES": "0.15", "GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
        afterwards=[Afterwards("destroy", 0, ["instances", "disks", "states"], lifted=["compute.immortal"])],
    ),
    Fault(
        "clock-skew",
        "the clocks of GitLab and Google are ten minutes ahead of the jobs' own, and the VM may live for nine",
        0,
        shows="the clocks of GitLab and Google are 10 min ahead",
        clock_ahead=600.0,
        variables={
            "GLGPU_MACHINE_MAX_HOURS": "0.15",
            "GLGPU_LIMITS_RESCUE_MINUTES": "2",
            "GLGPU_TRAIN_COMMAND": SHORT_TRAINING,
            **OUTPUTS,
        },
    ),
    Fault(
        "second-server-same-ids",
        "another GitLab server has a run with the same project and pipeline ids in the same cloud project",
        0,
        shows="another GitLab server's run with the same ids: untouched",
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
        stranger=True,
    ),
    Fault(
        "permission-denied",
        "the account may not create instances",
        15,
        "PERMISSION",
        shows="lacks the permission compute.instances.create",
        rules=[Rule("compute.instances.insert", "permission-denied")],
    ),
    Fault(
        "api-disabled",
        "the Compute Engine API is not enabled in the cloud project",
        15,
        "API_DISABLED",
        shows="API is not enabled",
        rules=[Rule("compute.request", "api-disabled")],
    ),
    Fault(
        "stockout",
        "a zone has no capacity; the error names those of its region that have",
        0,
        shows="STOCKOUT: no capacity",
        rules=[Rule("compute.capacity", "none")],
        place="ZONE",
        example="europe-west4-a",
    ),
    Fault(
        "quota-region",
        "the project may have no GPU in a region",
        0,
        shows="_GPUS is used up",
        rules=[Rule("compute.region-quota", "none")],
        place="REGION",
        example="europe-west4",
    ),
    Fault(
        "quota-global",
        "the project may have no GPU anywhere",
        14,
        "QUOTA_GLOBAL",
        shows="GPUS_ALL_REGIONS is used up",
        rules=[Rule("compute.project-quota", "none")],
    ),
    Fault(
        "preempt-during-create",
        "two Spot VMs are taken away before they run: one vanishes, of the other the insert fails",
        0,
        shows="PREEMPTED: preempted while it was created",
        rules=[
            Rule("compute.instances.insert", "vanish", 1),
            Rule("compute.instances.insert", "preempted", 2),
        ],
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
    ),
    Fault(
        "preempt-during-train",
        "Google takes the Spot VM away while the training runs",
        0,
        shows="going on from 1 files",
        variables={"GLGPU_TRAIN_COMMAND": LASTING_TRAINING, "GLGPU_MACHINE_SPOT": "prefer", **OUTPUTS},
        strike=Strike("preempt", "train", "step 5"),
    ),
    Fault(
        "preempt-during-train-twice",
        "Google takes the Spot VM away while the training runs, and the next one too",
        0,
        shows="going on after step 1",
        variables={"GLGPU_TRAIN_COMMAND": LASTING_TRAINING, "GLGPU_MACHINE_SPOT": "prefer", **OUTPUTS},
        strike=Strike("preempt", "train", "step 5", then=Strike("preempt", "train", "step 15")),
    ),
    Fault(
        "checkpoint-half-written",
        "Google takes the Spot VM away while the training overwrites its checkpoint, which ends without saving",
        0,
        shows="found 2000 bytes",
        variables={"GLGPU_TRAIN_COMMAND": CARELESS_TRAINING, "GLGPU_MACHINE_SPOT": "prefer", **OUTPUTS},
        strike=Strike("preempt", "train", "half a checkpoint"),
    ),
    Fault(
        "insert-slow",
        "Google takes its time to create the VM",
        0,
        shows="Google is still creating the VM after",
        rules=[Rule("compute.instances.insert", "late", 1, argument="7")],
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
    ),
    Fault(
        "insert-late-success",
        "two VMs come up after all patience with them is over; of the second nothing is seen before",
        0,
        shows="deleting what the try left",
        rules=[
            Rule("compute.instances.insert", "late", 1, argument="30"),
            Rule("compute.instances.insert", "late-unseen", 2, argument="10"),
        ],
        variables={"GLGPU_LIMITS_CREATE_MINUTES": "0.12", "GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
    ),
    Fault(
        "rate-limit",
        "Google wants to be asked less often, reading and writing",
        0,
        shows="Google: too many requests; asking again",
        rules=[
            Rule("compute.instances.aggregatedList", "rate-limit", 1, 2, "403"),
            Rule("compute.instances.insert", "rate-limit", 1, 2, "429"),
            Rule("compute.instances.get", "rate-limit", 2, 2, "429"),
            Rule("compute.firewalls.insert", "rate-limit", 1, 1, "403"),
            Rule("compute.instances.setMetadata", "rate-limit", 1, 1, "429"),
            Rule("compute.instances.delete", "rate-limit", 1, 2, "403"),
        ],
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
    ),
    Fault(
        "image-family-gone",
        "Google has withdrawn the family of the VM's boot image",
        17,
        "IMAGE",
        shows="/global/images/family/",
        rules=[
            Rule("compute.instances.insert", "image-gone"),
            Rule("compute.images.getFromFamily", "not-found"),
        ],
    ),
    Fault(
        "network-drop-during-train",
        "the connection to the VM is reset while the training runs",
        0,
        shows="the connection to the VM was lost; the training goes on",
        variables={"GLGPU_TRAIN_COMMAND": TALKING_TRAINING, **OUTPUTS},
        during=During("step 5", dropped="reset", seconds=2.0),
    ),
    Fault(
        "network-drop",
        "the network between job and VM is silent for so many seconds while the training runs, or until after its end",
        0,
        shows="the connection to the VM was lost; the training goes on",
        place="SECONDS",
        example="1",
        stages={
            "1": {"during": During("step 5", dropped="silence", seconds=1.0), "variables": LONG_TRAINING},
            "30": {"during": During("step 5", dropped="silence", seconds=30.0), "variables": LONG_TRAINING},
            "300": {"during": During("step 5", dropped="silence", seconds=300.0), "variables": LONG_TRAINING},
        },
    ),
    Fault(
        "caller-address-changes",
        "the job is seen under a new address while the training runs",
        0,
        shows="own address is now 203.0.113.99/32",
        variables={"GLGPU_TRAIN_COMMAND": TALKING_TRAINING, **OUTPUTS},
        during=During("step 5", dropped="reset", seconds=0.5, caller_address="203.0.113.99"),
    ),
    Fault(
        "token-protected-on-branch",
        "the branch is not protected, so GLGPU_GITLAB_TOKEN is absent",
        0,
        shows="code: job (no GLGPU_GITLAB_TOKEN",
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
        branch="feature/x",
    ),
    Fault(
        "log-over-4MB",
        "the training prints more than a job log can hold",
        0,
        shows="lines left out here",
        variables={"GLGPU_TRAIN_COMMAND": LOUD_TRAINING, **OUTPUTS},
    ),
    Fault(
        "retry-after-end",
        "the train job is retried after the pipeline has ended: no destroy job will come",
        0,
        shows="This job brought the VM up, so it ends it",
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
        afterwards=[Afterwards("retry-train", 0)],
    ),
    Fault(
        "cancel-during",
        "somebody cancels the job of a stage; the later jobs are skipped then",
        0,
        variables={"GLGPU_TRAIN_COMMAND": TALKING_TRAINING, **OUTPUTS},
        place="STAGE",
        example="train",
        stages={
            "provision": {
                "strike": Strike("cancel", "provision", VM_RUNS),
                "rules": [Rule("compute.instances.getGuestAttributes", "slow", 1, argument=CANCEL_COMES)],
                "shows": "asked Compute Engine to delete glgpu-",
                "afterwards": [Afterwards("stop", 0, ["firewall rules", "states"])],
            },
            "train": {
                "strike": Strike("cancel", "train", TRAINING_TALKS),
                "shows": "asked Compute Engine to delete glgpu-",
                "afterwards": [Afterwards("stop", 0, ["firewall rules", "deploy keys", "states"])],
            },
            "destroy": {
                "strike": Strike("cancel", "destroy", TEARDOWN_BEGINS),
                "before": {"destroy": [Rule("compute.firewalls.delete", "slow", 1, argument=CANCEL_COMES)]},
                "shows": "INTERRUPTED (exit code 19)",
                "afterwards": [Afterwards("stop", 0, None)],
            },
        },
    ),
    Fault(
        "kill-during",
        "glgpu is killed (SIGKILL) in the job of a stage; train and destroy are tried again",
        0,
        variables={"GLGPU_TRAIN_COMMAND": TALKING_TRAINING, **OUTPUTS},
        place="STAGE",
        example="train",
        stages={
            "provision": {
                "strike": Strike("kill", "provision", VM_RUNS),
                "shows": "asked Compute Engine to delete glgpu-",
                "exit_code": KILLED,
            },
            "train": {"strike": Strike("kill", "train", TRAINING_TALKS), "shows": TAKEN_UP},
            "destroy": {"strike": Strike("kill", "destroy", TEARDOWN_BEGINS), "shows": "== Job destroy, try 2"},
        },
    ),
    Fault(
        "runner-dies-during-train",
        "the runner dies in the train job; GitLab finds out and lets another one try, which takes the training up",
        0,
        shows=TAKEN_UP,
        variables={"GLGPU_TRAIN_COMMAND": TALKING_TRAINING, **OUTPUTS},
        strike=Strike("lose runner", "train", TRAINING_TALKS),
    ),
    Fault(
        "runner-killed-at-3h",
        "a hosted runner ends the train job at its own limit, without after_script and artifacts",
        LIMIT_REACHED,
        shows="saved 1 files",
        variables={"GLGPU_TRAIN_COMMAND": KEEPING_TRAINING, **OUTPUTS},
        strike=Strike("reach limit", "train", TRAINING_TALKS),
    ),
    Fault(
        "no-way-home",
        "a training that outlasts its job cannot be left to its VM, which does not reach GitLab: it is followed",
        0,
        shows="there is no way home for a detached training",
        rules=[Rule("vm.egress", "refuse")],
        variables={"GLGPU_MACHINE_MAX_HOURS": "40", "GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
    ),
    Fault(
        "gpu-driver-broken",
        "an upgrade has replaced the driver's libraries under its kernel module: nvidia-smi fails",
        16,
        "DRIVER",
        shows="Driver/library version mismatch",
        rules=[Rule("vm.gpu", "driver-broken")],
    ),
    Fault(
        "vm-boot-loop",
        "the VM runs, but its kernel panics at every boot",
        13,
        "SSH",
        shows="it restarts over and over",
        rules=[Rule("vm.boot", "loop")],
        variables={"GLGPU_LIMITS_BOOT_MINUTES": "0.1"},
    ),
    Fault(
        "oslogin-forced",
        "OS Login is turned on for the VM by others, so the login keys in its metadata are ignored",
        15,
        "ORG_POLICY",
        shows="OS Login is on there",
        rules=[Rule("compute.os-login-forced", "on")],
    ),
    Fault(
        "guest-attributes-blocked",
        "a policy forbids guest attributes, so the VM can publish no host key there",
        0,
        shows="host key is read from its serial console",
        rules=[Rule("compute.guest-attributes-policy", "on")],
        variables={"GLGPU_TRAIN_COMMAND": SHORT_TRAINING, **OUTPUTS},
    ),
    Fault(
        "gpu-idle",
        "the program never touches the GPU that it was given",
        0,
        shows="WARNING: the GPU has been idle for",
        rules=[Rule("vm.gpu", "idle")],
        variables={"GLGPU_LIMITS_IDLE_MINUTES": "0.02", "GLGPU_TRAIN_COMMAND": TALKING_TRAINING, **OUTPUTS},
    ),
    Fault(
        "artifact-too-big",
        "the weights are more than GitLab takes as artifacts: the package registry keeps them",
        0,
        shows="they are there and verified: http",
        variables={"GLGPU_TRAIN_COMMAND": BIG_TRAINING, **OUTPUTS},
        artifact_limit_mb=12,
    ),
    Fault(
        "package-upload-fails",
        "the weights are too big for artifacts, and train may not put them into the package registry; destroy may",
        12,
        "GITLAB_AUTH",
        shows="they are there and verified: http",
        rules=[Rule("gitlab.packages.upload", "forbidden", 1)],
        variables={"GLGPU_TRAIN_COMMAND": BIG_TRAINING, **OUTPUTS},
        artifact_limit_mb=12,
    ),
    Fault(
        "tunnel-drop",
        "the network between a laptop and the notebook that it has open breaks off for a second",
        0,
        shows="connected again, at the same address",
        notebook="drop tunnel",
    ),
    Fault(
        "kernel-hangs",
        "a notebook's kernel does nothing any more, and takes no signal: the work is saved all the same",
        0,
        shows="the kernel hangs",
        notebook="hang kernel",
    ),
    Fault(
        "stop-during-cell",
        "a notebook is stopped while a cell runs and writes",
        0,
        shows="a cell runs and writes",
        notebook="stop during cell",
    ),
)


def exemplary(fault: Fault) -> Fault:
    """The fault as it is played where its place is not said."""
    return fault.at(fault.example) if fault.place else fault


def named(name: str) -> Fault | None:
    """The fault of that name, which may have a place behind a colon; without one, or as listed, its example's."""
    plain, _, place = name.partition(":")
    fault = next((fault for fault in FAULTS if fault.name == plain), None)
    if fault is None or (place and place != fault.place and place not in PLACES[fault.place]):
        return None
    return fault.at(fault.example if place in ("", fault.place) else place) if fault.place else fault
