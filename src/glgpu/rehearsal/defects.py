"""What can be wrong before anything is started: changes to a healthy world, each of which one check of doctor finds."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from glgpu.rehearsal import world as worlds
from glgpu.rehearsal.compute_resources import Resource
from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.gitlab_model import Role, Schedule, Variable
from glgpu.rehearsal.world import Adopted, World

CLOSED = "http://127.0.0.1:9"
"""The discard service's port, where nothing listens."""
PROGRAMS = ("git", "ssh", "ssh-keygen", "terraform", "tofu", "sh", "env")
OLD_PROVIDER = Path("registry.terraform.io/hashicorp/google/6.50.0/linux_amd64")


@dataclass(frozen=True)
class Scene:
    """Where a defect is drawn.

    Attributes:
        world: The stand-ins.
        adopted: The repository in them.
        environment: The variables with which doctor will be started.
    """

    world: World
    adopted: Adopted
    environment: dict[str, str]

    def program(self, name: str, script: str) -> None:
        """Put a program of one's own before all others on PATH."""
        folder = self.world.folder / "defects"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
        path = self.environment.get("PATH", os.environ.get("PATH", os.defpath))
        self.environment["PATH"] = f"{folder}{os.pathsep}{path}"

    def without_program(self, name: str) -> None:
        """Leave nothing on PATH but what a run needs, less one."""
        folder = self.world.folder / f"without-{name}"
        folder.mkdir()
        for program in (*PROGRAMS, Path(sys.executable).name):
            found = shutil.which(program)
            if found and program != name:
                (folder / program).symlink_to(found)
        self.environment["PATH"] = str(folder)

    def amend(self, method: str, change: Callable[[Resource], Resource]) -> None:
        """Change what Compute Engine answers."""
        self.world.compute.amendments.append(lambda id_, answer: change(answer) if id_ == method else answer)

    def firewall(self, **rule: Any) -> None:
        """Make a firewall rule, as somebody else in the project would."""
        body = {"network": "global/networks/default", "direction": "INGRESS", **rule}
        request = urllib.request.Request(
            f"{self.world.compute.endpoint}/compute/v1/projects/{worlds.GOOGLE_PROJECT}/global/firewalls",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.world.google_token}", "Content-Type": "application/json"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30):
            pass

    def limit(self, metric: str, value: float) -> None:
        """Set a limit in every region."""
        for quotas in self.world.compute.instances.region_quotas.values():
            quotas[metric] = value

    def push(self, pipeline: str) -> None:
        """Push a .gitlab-ci.yml and nothing else."""
        work = self.world.folder / "pushed"
        work.mkdir()
        (work / ".gitlab-ci.yml").write_text(pipeline, encoding="utf-8")
        worlds.commit(work, "other")
        self.world.gitlab.push(self.adopted.project, work, "HEAD", self.adopted.branch)

    @property
    def cleanup(self) -> Schedule:
        """The schedule that cleans up."""
        return next(iter(self.adopted.project.schedules.values()))

    def variable(self, name: str) -> Variable:
        """A CI variable of the project."""
        return next(one for one in self.adopted.project.variables if one.key == name)


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong.

    Attributes:
        name: Its name.
        checks: The checks of doctor that find it.
        what: What is wrong.
        draw: Makes it so.
        touches: What it changes; two that touch the same cannot be drawn together.
        hides: Checks that cannot be made while it is there.
        besides: Checks that may have something to say about what it takes to draw it.
    """

    name: str
    checks: frozenset[str]
    what: str
    draw: Callable[[Scene], None]
    touches: frozenset[str]
    hides: frozenset[str] = frozenset()
    besides: frozenset[str] = frozenset()

    def goes_with(self, other: Defect) -> bool:
        """Whether each would still be found beside the other."""
        mine, theirs = self.checks | self.besides, other.checks | other.besides
        return not (self.touches & other.touches or mine & theirs or mine & other.hides or theirs & self.hides)


def drawn(count: int, seed: int) -> list[Defect]:
    """So many defects that go together."""
    shuffled = random.Random(seed).sample(DEFECTS, len(DEFECTS))
    chosen: list[Defect] = []
    for defect in shuffled:
        if len(chosen) < count and all(defect.goes_with(other) for other in chosen):
            chosen.append(defect)
    return chosen


def make_healthy(world: World, adopted: Adopted) -> None:
    """Add what a team has set up that no pipeline is needed for: a schedule that cleans up, and has just done so."""
    gitlab, project = world.gitlab, adopted.project
    schedule = gitlab.create_schedule(project, "clean up", adopted.branch, "17 * * * *", adopted.user)
    schedule.variables.append(Variable("GLGPU_TASK", "cleanup"))
    pipeline = gitlab.create_pipeline(project, adopted.branch, adopted.sha, "schedule", adopted.user)
    job = gitlab.create_job(pipeline, "cleanup", "train")
    gitlab.start_job(job)
    gitlab.finish_job(job, "success")
    schedule.last_pipeline = pipeline


def _defect(
    name: str,
    checks: str,
    what: str,
    draw: Callable[[Scene], None],
    *touches: str,
    hides: frozenset[str] = frozenset(),
    besides: str = "",
) -> Defect:
    return Defect(
        name, frozenset(checks.split()), what, draw, frozenset(touches) or frozenset({name}), hides,
        frozenset(besides.split()),
    )  # fmt: skip


def _set(**variables: str) -> Callable[[Scene], None]:
    return lambda scene: scene.environment.update(variables)


def _by_setting(name: str, checks: str, what: str, hides: frozenset[str] = frozenset(), **variables: str) -> Defect:
    """A defect that is nothing but variables."""
    return _defect(name, checks, what, _set(**variables), *variables, hides=hides)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


GITLAB_ASKED = _words(
    "gitlab-token gitlab-token-scope gitlab-token-role gitlab-token-days secret-variables protected-ref pipeline "
    "cleanup-schedule"
)
PLACED = _words(
    "zones accelerators machine-types disk-types gpu-quota gpu-quota-everywhere cpu-quota disk-quota address-quota "
    "driver locations subnetworks nat"
)
IN_REGISTRY = _words("container-image container-platform disk-room")
COMPUTE_ASKED = PLACED - {"driver"} | _words(
    "firewall-quota boot-image disk-size disk-room network firewall-open firewall-shut"
)
GOOGLE_ASKED = COMPUTE_ASKED | _words(
    "google-credentials google-project apis permissions permissions-to-look act-as bucket billing external-addresses "
    "os-login shielded-vms guest-attributes image-projects"
)
BY_SETTINGS = (
    GOOGLE_ASKED
    | IN_REGISTRY
    | _words("training secrets lifetimes way-home candidates driver gcloud access own-address host-keys")
) - {"google-credentials", "google-project"} | {"cleanup-schedule", "gitlab-token"}


def _policy(name: str, check: str, what: str, constraint: str, rule: Mapping[str, object]) -> Defect:
    def draw(scene: Scene) -> None:
        scene.world.google.project.policies[constraint] = [dict(rule)]

    return _defect(name, check, what, draw, constraint)


def _quota(name: str, check: str, what: str, metric: str, value: float) -> Defect:
    return _defect(name, check, what, lambda scene: scene.limit(metric, value), metric)


def _old_terraform(scene: Scene) -> None:
    folder = scene.world.folder / "old"
    folder.mkdir()
    (folder / "terraform").write_text('#!/bin/sh\necho \'{"terraform_version": "1.3.9"}\'\n', encoding="utf-8")
    (folder / "terraform").chmod(0o755)
    scene.environment["GLGPU_TERRAFORM"] = str(folder / "terraform")


def _old_provider(scene: Scene) -> None:
    home = scene.world.folder / "home-with-old-provider"
    (home / ".terraform.d/plugins" / OLD_PROVIDER).mkdir(parents=True)
    scene.environment.update({"HOME": str(home), "XDG_DATA_HOME": str(home), "GLGPU_TERRAFORM_MODULE": "gpu-vm"})


def _no_gcloud(scene: Scene) -> None:
    scene.environment["GLGPU_NETWORK_ACCESS"] = "iap"
    scene.without_program("gcloud")


def _old_package(scene: Scene) -> None:
    folder = scene.world.folder / "packages"
    metadata = folder / "python_gitlab-3.15.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: python-gitlab\nVersion: 3.15.0\n", encoding="utf-8"
    )
    scene.environment["PYTHONPATH"] = str(folder)


def _clock_off(seconds: float) -> Callable[[Scene], None]:
    def draw(scene: Scene) -> None:
        scene.world.clock.offset += seconds

    return draw


def _gitlab_down(scene: Scene) -> None:
    scene.world.faults.rules.append(Rule("gitlab.request", "down"))


def _registry_down(scene: Scene) -> None:
    scene.world.registry.down = True


def _revoked(scene: Scene) -> None:
    scene.adopted.token.revoked = True


def _no_token(scene: Scene) -> None:
    del scene.environment["GLGPU_GITLAB_TOKEN"]


def _nowhere_to_go(scene: Scene) -> None:
    _no_token(scene)
    scene.environment["GLGPU_TRAIN_FOLLOW"] = "false"


def _old_gitlab(scene: Scene) -> None:
    scene.world.gitlab.version = scene.environment["CI_SERVER_VERSION"] = "16.11.10"


def _weak_scope(scene: Scene) -> None:
    scene.adopted.token.scopes = ("read_api",)


def _weak_role(scene: Scene) -> None:
    scene.adopted.project.members[scene.adopted.token.user.id] = Role.DEVELOPER


def _expires_soon(scene: Scene) -> None:
    today: date = datetime.fromtimestamp(scene.world.clock.now(), UTC).date()
    scene.adopted.token.expires_at = today + timedelta(days=5)


def _unprotected(scene: Scene) -> None:
    scene.variable("GLGPU_GITLAB_TOKEN").protected = False


def _unmasked(scene: Scene) -> None:
    scene.variable("GOOGLE_OAUTH_ACCESS_TOKEN").masked = False


def _no_protected_branch(scene: Scene) -> None:
    scene.adopted.project.protected_branches.clear()


def _no_host_keys(scene: Scene) -> None:
    scene.world.gitlab.shows_host_keys = False


def _no_schedule(scene: Scene) -> None:
    scene.adopted.project.schedules.clear()


def _idle_schedule(scene: Scene) -> None:
    scene.cleanup.active = False


def _stale_schedule(scene: Scene) -> None:
    if scene.cleanup.last_pipeline is not None:
        scene.cleanup.last_pipeline.created_at -= 5 * 24 * 3600


def _failed_schedule(scene: Scene) -> None:
    if scene.cleanup.last_pipeline is not None:
        for job in scene.cleanup.last_pipeline.jobs:
            job.status = "failed"


def _orphaned_schedule(scene: Scene) -> None:
    owner = scene.world.gitlab.create_user("grace")
    owner.state = "blocked"
    scene.cleanup.owner = owner


def _doomed_project(scene: Scene) -> None:
    scene.world.google.project.state = "DELETE_REQUESTED"


def _api_off(service: str) -> Callable[[Scene], None]:
    return lambda scene: scene.world.google.project.services.discard(service)


def _denied(permission: str) -> Callable[[Scene], None]:
    return lambda scene: scene.world.google.project.access.denied.add(permission)


def _foreign_account(scene: Scene) -> None:
    email = f"trainer@{worlds.GOOGLE_PROJECT}.iam.gserviceaccount.com"
    own = scene.world.google.project.access.accounts
    template = next(iter(own.values()))
    name = f"projects/{worlds.GOOGLE_PROJECT}/serviceAccounts/{email}"
    own[email] = {**template, "name": name, "email": email, "uniqueId": "1" * 21}
    scene.environment["GLGPU_MACHINE_SERVICE_ACCOUNT"] = email


def _no_billing(scene: Scene) -> None:
    scene.world.google.project.billing = False


def _zone_down(scene: Scene) -> None:
    def change(answer: Resource) -> Resource:
        items = [one | {"status": "DOWN"} if one["name"] == "europe-west4-a" else one for one in answer["items"]]
        return answer | {"items": items}

    scene.amend("compute.zones.list", change)


def _gone_from_zone(method: str, kind: str, name: str) -> Callable[[Scene], None]:
    """One entry of an aggregated list is missing in one zone."""

    def change(answer: Resource) -> Resource:
        def less(scope: str, part: Resource) -> Resource:
            if scope != "zones/europe-west4-a" or kind not in part:
                return part
            return part | {kind: [one for one in part[kind] if one["name"] != name]}

        return answer | {"items": {scope: less(scope, part) for scope, part in answer.get("items", {}).items()}}

    return lambda scene: scene.amend(method, change)


def _no_disk_type(scene: Scene) -> None:
    def change(answer: Resource) -> Resource:
        return answer | {"items": [one for one in answer["items"] if one["name"] != "pd-balanced"]}

    scene.amend("compute.diskTypes.list", change)


def _project_quota(metric: str, value: float) -> Callable[[Scene], None]:
    def draw(scene: Scene) -> None:
        scene.world.compute.instances.project_quotas[metric] = value

    return draw


def _deprecated_image(scene: Scene) -> None:
    scene.amend("compute.images.getFromFamily", lambda answer: answer | {"deprecated": {"state": "DEPRECATED"}})


def _big_image(scene: Scene) -> None:
    for repository in scene.world.registry.images.values():
        repository.layer_bytes = 60_000_000_000


def _no_image(scene: Scene) -> None:
    scene.world.registry.images.clear()


def _private_image(scene: Scene) -> None:
    for repository in scene.world.registry.images.values():
        repository.login = ("ada", "correct-horse")


def _arm_image(scene: Scene) -> None:
    for repository in scene.world.registry.images.values():
        repository.platforms = ("linux/arm64",)


IMAGE_FOLDER = "projects/deeplearning-platform-release/global/images/family"
JOB_TIMES = ("GLGPU_JOB_TIMEOUT", "RUNNER_SCRIPT_TIMEOUT")

DEFECTS: Sequence[Defect] = (
    _by_setting("timeout-unreadable", "variables", "a timeout that is no duration", GLGPU_SCRIPT_TIMEOUT="soon"),
    _by_setting("settings-invalid", "settings", "a value that glgpu.yml may not have", BY_SETTINGS,
                GLGPU_MACHINE_DISK_GB="5"),
    _by_setting("no-train-image", "training", "no container image", IN_REGISTRY, GLGPU_TRAIN_IMAGE="null"),
    _by_setting("secret-missing", "secrets", "a secret whose variable is not set", GLGPU_TRAIN_SECRETS="NOT_THERE"),
    _by_setting(
        "lifetime-too-long", "lifetimes", "a VM that is to outlive the job that follows it",
        GLGPU_MACHINE_MAX_HOURS="100", GLGPU_TRAIN_FOLLOW="true",
        GLGPU_JOB_TIMEOUT="2h55m", RUNNER_SCRIPT_TIMEOUT="2h35m",
    ),
    _by_setting(
        "script-outlives-job", "lifetimes", "a script that may last longer than its job", GLGPU_JOB_TIMEOUT="2h",
        RUNNER_SCRIPT_TIMEOUT="1h50m", RUNNER_AFTER_SCRIPT_TIMEOUT="15m",
    ),
    _by_setting(
        "hosted-runner-too-short", "hosted-runner", "six hours on a runner that ends every job after three",
        CI_RUNNER_TAGS='["saas-linux-small-amd64"]', GLGPU_JOB_TIMEOUT="6h", RUNNER_SCRIPT_TIMEOUT="5h",
    ),
    _defect("terraform-old", "terraform", "Terraform 1.3", _old_terraform, "GLGPU_TERRAFORM"),
    _defect("provider-old", "provider", "a folder that holds the google provider 6.50", _old_provider, "HOME"),
    _defect("git-old", "git", "git 2.17", lambda s: s.program("git", "echo git version 2.17.1"), "PATH"),
    _defect("ssh-missing", "ssh", "no OpenSSH client", lambda s: s.without_program("ssh"), "PATH"),
    _defect(
        "gcloud-missing", "gcloud", "access through IAP without gcloud", _no_gcloud, "PATH", "GLGPU_NETWORK_ACCESS",
        hides=_words("own-address"), besides="settings access",
    ),
    _defect("package-old", "packages", "python-gitlab 3.15", _old_package, "PYTHONPATH"),
    _defect("clock-slow", "clock", "a clock that is ten minutes behind the others'", _clock_off(600), "clock"),
    _defect("clock-fast", "clock", "a clock that is a minute before the others'", _clock_off(-60), "clock"),
    _defect(
        "gitlab-down", "gitlab", "a GitLab that does not answer", _gitlab_down, "gitlab.request",
        hides=GITLAB_ASKED | {"host-keys"},
    ),
    _defect("token-revoked", "gitlab-token", "a GitLab token that was revoked", _revoked, "token", hides=GITLAB_ASKED),
    _defect(
        "token-absent", "gitlab-token", "no GitLab token", _no_token, "token", hides=GITLAB_ASKED | {"host-keys"}
    ),
    _defect("no-way-home", "gitlab-token way-home", "a training that no job waits for, without token and bucket",
            _nowhere_to_go, "token", "GLGPU_TRAIN_FOLLOW", hides=GITLAB_ASKED | {"host-keys"}),
    _defect("gitlab-old", "gitlab-version", "GitLab 16.11", _old_gitlab, "CI_SERVER_VERSION"),
    _by_setting("runner-old", "runner-version", "a runner of version 16.9", CI_RUNNER_VERSION="16.9.1"),
    _defect("token-read-only", "gitlab-token-scope", "a token that may only read", _weak_scope, "token-scope"),
    _defect(
        "token-developer", "gitlab-token-role", "a token with the role Developer", _weak_role, "token-role",
        hides=_words("secret-variables protected-ref cleanup-schedule"),
    ),
    _defect("token-dies-soon", "gitlab-token-days", "a token that dies in five days", _expires_soon, "token-days"),
    _defect("token-unprotected", "secret-variables", "a Maintainer's token for every branch", _unprotected,
            "token-protection", hides=_words("protected-ref")),
    _defect("token-unmasked", "secret-variables", "a token that job logs may show", _unmasked, "token-masking"),
    _defect("branch-unprotected", "protected-ref", "a branch that sees no protected variables", _no_protected_branch,
            "token-protection"),
    _defect("pipeline-broken", "pipeline", "a stage that is not there",
            lambda s: s.push("train:\n  stage: nowhere\n  script: [make]\n"), "push"),
    _defect("pipeline-without-us", "pipeline", "no include of ci/train.yml",
            lambda s: s.push("build:\n  script: [make]\n"), "push"),
    _defect("host-keys-hidden", "host-keys", "a GitLab that does not publish its SSH host keys", _no_host_keys),
    _defect("no-cleanup", "cleanup-schedule", "no schedule that cleans up", _no_schedule, "schedule"),
    _defect("cleanup-idle", "cleanup-schedule", "a schedule that is switched off", _idle_schedule, "schedule"),
    _defect("cleanup-stale", "cleanup-schedule", "a schedule that has not run for days", _stale_schedule, "schedule"),
    _defect("cleanup-failed", "cleanup-schedule", "a clean-up that failed", _failed_schedule, "schedule"),
    _defect("cleanup-orphaned", "cleanup-schedule", "a schedule of a blocked user", _orphaned_schedule, "schedule"),
    _by_setting("google-token-dead", "google-credentials", "a Google token that has expired", GOOGLE_ASKED,
                GOOGLE_OAUTH_ACCESS_TOKEN="ya29.expired-long-ago"),
    _defect("project-doomed", "google-project", "a project that is to be deleted", _doomed_project),
    _defect("compute-api-off", "apis", "a project without the Compute Engine API", _api_off("compute.googleapis.com")),
    _defect("permission-missing", "permissions", "a role that may not create VMs", _denied("compute.instances.create")),
    _defect("permission-to-look-missing", "permissions-to-look", "a role that may not list routers",
            _denied("compute.routers.list"), hides=_words("nat")),
    _defect("account-foreign", "act-as", "a service account that we may not use", _foreign_account,
            "GLGPU_MACHINE_SERVICE_ACCOUNT"),
    _defect("bucket-missing", "bucket", "a bucket that is not there", _set(GLGPU_STORAGE_BUCKET="no-such-bucket"),
            "GLGPU_STORAGE_BUCKET", besides="settings"),
    _defect("billing-off", "billing", "a project that nobody pays for", _no_billing),
    _policy("addresses-denied", "external-addresses", "a policy against external addresses",
            "compute.vmExternalIpAccess", {"denyAll": True}),
    _policy("os-login-required", "os-login", "a policy for OS Login", "compute.requireOsLogin", {"enforce": True}),
    _policy("shielded-required", "shielded-vms", "a policy for Shielded VMs", "compute.requireShieldedVm",
            {"enforce": True}),
    _policy("guest-attributes-off", "guest-attributes", "a policy against guest attributes",
            "compute.disableGuestAttributesAccess", {"enforce": True}),
    _policy("images-distrusted", "image-projects", "a policy for images of another project",
            "compute.trustedImageProjects", {"values": {"allowedValues": ["projects/debian-cloud"]}}),
    _policy("locations-denied", "locations", "a policy for Asia alone", "gcp.resourceLocations",
            {"values": {"allowedValues": ["in:asia-locations"]}}),
    _by_setting("gpu-retired", "candidates", "a GPU that nobody has any more", PLACED,
                GLGPU_MACHINE_GPU="nvidia-tesla-k80"),
    _by_setting("gpu-count", "candidates", "a number of GPUs that no VM has", PLACED, GLGPU_MACHINE_COUNT="3"),
    _defect("zone-down", "zones", "a zone that is down", _zone_down),
    _defect("gpu-elsewhere", "accelerators", "a zone without the GPU",
            _gone_from_zone("compute.acceleratorTypes.aggregatedList", "acceleratorTypes", "nvidia-l4")),
    _defect("machine-elsewhere", "machine-types", "a zone without the machine type",
            _gone_from_zone("compute.machineTypes.aggregatedList", "machineTypes", "g2-standard-4")),
    _defect("disk-elsewhere", "disk-types", "zones without the disk type", _no_disk_type),
    _quota("gpu-quota-zero", "gpu-quota", "a limit of 0 on the GPU", "NVIDIA_L4_GPUS", 0),
    _quota("spot-quota-zero", "gpu-quota", "a limit of 0 on the GPU as spot", "PREEMPTIBLE_NVIDIA_L4_GPUS", 0),
    _defect("gpus-all-regions-zero", "gpu-quota-everywhere", "a limit of 0 on all GPUs",
            _project_quota("GPUS_ALL_REGIONS", 0)),
    _quota("cpu-quota-low", "cpu-quota", "a limit of 2 on vCPUs", "CPUS", 2),
    _quota("disk-quota-low", "disk-quota", "a limit of 20 GB on SSD disks", "SSD_TOTAL_GB", 20),
    _quota("address-quota-zero", "address-quota", "a limit of 0 on addresses", "IN_USE_ADDRESSES", 0),
    _defect("firewall-quota-used-up", "firewall-quota", "no room for firewall rules", _project_quota("FIREWALLS", 1)),
    _by_setting("image-gone", "boot-image", "an image family that was taken away", _words("disk-size disk-room"),
                GLGPU_MACHINE_IMAGE=f"{IMAGE_FOLDER}/common-cu113-debian-10"),
    _defect("image-deprecated", "boot-image", "an image that is deprecated", _deprecated_image, "GLGPU_MACHINE_IMAGE"),
    _by_setting("driver-old", "driver boot-image", "an image with a driver that is too old",
                _words("disk-size disk-room"), GLGPU_MACHINE_IMAGE=f"{IMAGE_FOLDER}/common-cu113-nvidia-390"),
    _by_setting("disk-small", "disk-size", "a disk smaller than the boot image", _words("disk-room"),
                GLGPU_MACHINE_DISK_GB="30"),
    _defect("container-heavy", "disk-room", "a container image too big for the disk", _big_image, "image-weight"),
    _by_setting("network-missing", "network", "a network that is not there",
                _words("subnetworks nat firewall-open firewall-shut"), GLGPU_NETWORK_NAME="corporate"),
    _by_setting("subnetwork-missing", "subnetworks", "a subnetwork that is not there",
                GLGPU_NETWORK_SUBNETWORK="training"),
    _by_setting("no-nat", "nat access", "no external address, and no NAT", _words("address-quota external-addresses"),
                GLGPU_NETWORK_EXTERNAL_IP="false"),
    _by_setting("echo-silent", "own-address", "nobody who tells our address", GLGPU_NETWORK_ECHO=CLOSED),
    _defect("firewall-wide-open", "firewall-open", "a rule of high priority for everybody",
            lambda s: s.firewall(name="let-them-in", priority=100, allowed=[{"IPProtocol": "tcp", "ports": ["22"]}])),
    _defect("firewall-slammed", "firewall-shut", "a rule of high priority against everybody",
            lambda s: s.firewall(name="keep-them-out", priority=50, denied=[{"IPProtocol": "tcp"}])),
    _defect("container-missing", "container-image", "a container image that is not there", _no_image, "image-there",
            hides=_words("container-platform disk-room")),
    _defect("container-private", "container-image", "a container image that needs a login", _private_image,
            "image-there", hides=_words("container-platform disk-room")),
    _defect("registry-down", "container-image", "a registry that does not answer", _registry_down, "image-there",
            hides=_words("container-platform disk-room")),
    _defect("container-for-arm", "container-platform", "a container image for ARM", _arm_image, "image-platform"),
)  # fmt: skip
