"""What a step may ask of a client: small protocols, so that steps know no library and tests need no network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, Literal, Protocol

from glgpu.elsewhere import Part
from glgpu.errors import Failure
from glgpu.gpu_offers import Rates
from glgpu.processes import Done
from glgpu.run_names import AnyName, RunName


@dataclass(frozen=True)
class Instance:
    """A VM as Compute Engine describes it.

    Attributes:
        name: Its name.
        zone: Its zone.
        status: PROVISIONING, STAGING, RUNNING, STOPPING, TERMINATED, ...
        address: External IPv4 address, or empty.
        internal_address: Internal IPv4 address, or empty.
        labels: Its labels.
        metadata: Its metadata items.
        created: RFC 3339 time.
        id: Google's number for it; another VM of the same name has another.
        max_run_seconds: After how long Compute Engine itself deletes it; 0: never.
        os_login: Whether OS Login is in force there, whatever its metadata says.
    """

    name: str
    zone: str
    status: str
    address: str = ""
    internal_address: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    id: str = ""
    max_run_seconds: int = 0
    os_login: bool = False


@dataclass(frozen=True)
class Made:
    """Something that was made once, seen in a list.

    Attributes:
        name: Its name.
        zone: Its zone; empty where it is in none.
        created: RFC 3339 time.
    """

    name: str
    zone: str
    created: str


@dataclass(frozen=True)
class Operation:
    """What Compute Engine does to a VM, or has done; it is seen before the VM itself is.

    Attributes:
        operation: Its name.
        kind: ``insert``, ``delete``, ``stop``, ...
        zone: The VM's zone.
        instance_id: Id of the VM.
        done: Whether it is over, one way or the other.
        failure: Why it failed; None while it has not.
    """

    operation: str
    kind: str
    zone: str
    instance_id: str
    done: bool
    failure: Failure | None = None


@dataclass(frozen=True)
class FirewallRule:
    """An ingress rule for SSH to the instances of one run.

    Attributes:
        name: Its name.
        action: Whether it lets in or keeps out.
        sources: IPv4 ranges; never empty, since that would mean everybody.
        target_tag: Network tag of the instances.
        priority: Lower wins.
        network: Network, by name or path.
        ports: TCP ports; empty: all.
        disabled: Whether it counts.
    """

    name: str
    action: Literal["allow", "deny"]
    sources: tuple[str, ...]
    target_tag: str
    priority: int
    network: str
    ports: tuple[str, ...] = ()
    disabled: bool = False


class Cloud(Protocol):
    """Compute Engine.

    Every method raises Failure when Google refuses or cannot be reached, and may be called from several threads at
    once.
    """

    project: str

    def find(self, name: str) -> list[Instance]:
        """Every instance of that name, in whatever zone and status."""

    def labelled(self, labels: Mapping[str, str]) -> list[Instance]:
        """Every instance with all of these labels, in whatever zone and status."""

    def of_run(self, name: str, run: str) -> list[Instance]:
        """Every instance of that name or whose label ``glgpu-run`` has that value, wherever it is: one list."""

    def operations(self, name: str) -> list[Operation]:
        """What is or was done to instances of that name, wherever they are: one list, as far as Google recalls."""

    def instances_named(self, prefix: str) -> list[Instance]:
        """Every instance whose name begins so, in whatever zone and status, whatever its labels."""

    def get(self, name: str, zone: str) -> Instance | None:
        """One instance, or None."""

    def zones(self, region: str) -> list[str]:
        """The zones of a region that are up."""

    def inserts(self, name: str, zone: str) -> list[Operation]:
        """The operations, finished or not, that were to create an instance of that name in that zone."""

    def delete_instance(self, name: str, zone: str) -> None:
        """Ask for an instance's end, which is not waited for; not found is success."""

    def edit_metadata(self, name: str, zone: str, edit: Callable[[dict[str, str]], dict[str, str]]) -> None:
        """Change metadata items; repeated when somebody else changed them meanwhile."""

    def edit_labels(self, name: str, zone: str, labels: Mapping[str, str]) -> None:
        """Set labels; the others stay."""

    def guest_attributes(self, name: str, zone: str, namespace: str) -> dict[str, str]:
        """What the guest published under a namespace; empty while there is nothing."""

    def serial_output(self, name: str, zone: str, *, last: int = 4096) -> str:
        """The last bytes of the serial console, empty where it cannot be had."""

    def rule(self, name: str) -> FirewallRule | None:
        """A firewall rule, or None."""

    def create_rule(self, rule: FirewallRule) -> None:
        """Create a rule; one that exists already is left as it is."""

    def change_rule(self, name: str, sources: Sequence[str], *, disabled: bool) -> None:
        """Set who a rule is for."""

    def delete_rule(self, name: str) -> None:
        """Delete a rule; not found is success."""

    def disks(self, name: str) -> list[tuple[str, str]]:
        """Disks of that name as (name, zone)."""

    def disks_named(self, prefix: str) -> list[Made]:
        """Every disk whose name begins so, attached or not."""

    def delete_disk(self, name: str, zone: str) -> None:
        """Delete a disk; not found is success."""

    def rules_named(self, prefix: str) -> list[Made]:
        """Every firewall rule whose name begins so."""


@dataclass(frozen=True)
class Quota:
    """A limit of the project, and how much of it is used.

    Attributes:
        metric: Google's name for it, ``NVIDIA_L4_GPUS`` for example.
        limit: How much there may be.
        usage: How much there is.
        region: Where; None: in the whole project.
    """

    metric: str
    limit: float
    usage: float
    region: str | None = None

    @property
    def left(self) -> float:
        """How much more there may be."""
        return max(0.0, self.limit - self.usage)


@dataclass(frozen=True)
class CloudProject:
    """The cloud project as Compute Engine describes it.

    Attributes:
        name: Project id.
        quotas: The limits that hold over all regions, by metric.
        metadata: Metadata items of every VM, ``enable-oslogin`` for example.
        service_account: Address of the default service account; empty where it was deleted.
    """

    name: str
    quotas: Mapping[str, Quota]
    metadata: Mapping[str, str]
    service_account: str


@dataclass(frozen=True)
class Region:
    """A region.

    Attributes:
        name: Its name.
        status: UP or DOWN.
        zones: Names of its zones.
        quotas: Its limits, by metric; empty where Google could not tell them.
    """

    name: str
    status: str
    zones: tuple[str, ...]
    quotas: Mapping[str, Quota]


@dataclass(frozen=True)
class Zone:
    """A zone.

    Attributes:
        name: Its name.
        region: Its region's name.
        status: UP or DOWN.
    """

    name: str
    region: str
    status: str


@dataclass(frozen=True)
class AcceleratorType:
    """A GPU model in one zone.

    Attributes:
        name: ``nvidia-l4`` for example.
        zone: Where.
        most_per_vm: The largest number in one VM.
    """

    name: str
    zone: str
    most_per_vm: int


@dataclass(frozen=True)
class MachineType:
    """A machine type in one zone.

    Attributes:
        name: ``g2-standard-4`` for example.
        zone: Where.
        vcpus: Number of vCPUs.
        memory_gb: Memory in GiB.
        gpu: Accelerator type that comes with it, or None.
        gpus: How many of them.
    """

    name: str
    zone: str
    vcpus: int
    memory_gb: float
    gpu: str | None = None
    gpus: int = 0


@dataclass(frozen=True)
class BootImage:
    """A boot image.

    Attributes:
        path: ``projects/P/global/images/NAME``.
        family: What it is the newest of, or empty.
        status: READY, PENDING, FAILED or DELETING.
        disk_gb: The smallest boot disk that holds it.
        deprecation: DEPRECATED, OBSOLETE, DELETED, or empty while it is none of these.
        replacement: Path of the image that Google suggests instead, or empty.
        architecture: X86_64, ARM64, or empty where nobody said.
    """

    path: str
    family: str
    status: str
    disk_gb: int
    deprecation: str
    replacement: str
    architecture: str


@dataclass(frozen=True)
class Network:
    """A VPC network.

    Attributes:
        path: ``projects/P/global/networks/NAME``.
        automatic: Whether it has a subnetwork in every region by itself.
    """

    path: str
    automatic: bool


@dataclass(frozen=True)
class Subnetwork:
    """A subnetwork.

    Attributes:
        path: ``projects/P/regions/R/subnetworks/NAME``.
        network: Path of its network.
        cidr: Its IPv4 range.
        google_access: Whether VMs without an external address reach Google's own services from it.
    """

    path: str
    network: str
    cidr: str
    google_access: bool


@dataclass(frozen=True)
class NetworkRule:
    """A firewall rule of a network, whoever made it.

    Attributes:
        name: Its name.
        direction: INGRESS or EGRESS.
        action: Whether it lets through or keeps out.
        priority: Lower wins; a denial wins among equals.
        sources: IPv4 and IPv6 ranges. Empty together with ``source_tags`` and ``source_accounts``: everybody.
        source_tags: Network tags of VMs in the same network.
        source_accounts: Service accounts of such VMs.
        target_tags: Tags of the VMs that it is for. Empty together with ``target_accounts``: all of them.
        target_accounts: Service accounts of the VMs that it is for.
        protocols: Protocol (``tcp``, ``all``, ...) -> ports and ranges of ports, none meaning all.
        disabled: Whether it does not count.
    """

    name: str
    direction: Literal["INGRESS", "EGRESS"]
    action: Literal["allow", "deny"]
    priority: int
    sources: tuple[str, ...]
    source_tags: tuple[str, ...]
    source_accounts: tuple[str, ...]
    target_tags: tuple[str, ...]
    target_accounts: tuple[str, ...]
    protocols: Mapping[str, tuple[str, ...]]
    disabled: bool


@dataclass(frozen=True)
class Nat:
    """A Cloud NAT.

    Attributes:
        name: Its name.
        router: Its router's name.
        subnetworks: Paths of the subnetworks that it serves; None: every one of the network in the region.
    """

    name: str
    router: str
    subnetworks: tuple[str, ...] | None


class Catalogue(Protocol):
    """What Compute Engine offers and what the project may have of it; nothing here changes anything.

    Every method raises Failure when Google refuses or cannot be reached, and may be called from several threads at
    once.
    """

    project: str

    def cloud_project(self) -> CloudProject:
        """The project, with its limits over all regions."""

    def regions(self) -> dict[str, Region]:
        """Every region by name, with the project's limits in it."""

    def zones(self) -> dict[str, Zone]:
        """Every zone by name."""

    def accelerator_types(self) -> list[AcceleratorType]:
        """Which GPU is in which zone."""

    def machine_types(self, names: Collection[str]) -> list[MachineType]:
        """In which zones these machine types are; custom ones are in no list, see ``machine_type``."""

    def machine_type(self, name: str, zone: str) -> MachineType | None:
        """A machine type in a zone, custom ones included, or None."""

    def disk_types(self, zone: str) -> set[str]:
        """Names of a zone's disk types."""

    def image(self, path: str) -> BootImage | None:
        """An image, or the newest one of a family, or None: ``projects/P/global/images/{NAME,family/FAMILY}``.

        Whether the caller may use a private image is not asked here.
        """

    def network(self, network: str) -> Network | None:
        """A network by name or, where another project shares it, by path; or None."""

    def subnetworks(self, region: str, network: str) -> list[Subnetwork]:
        """The subnetworks of a network (name or path) in a region."""

    def subnetwork(self, subnetwork: str, region: str) -> Subnetwork | None:
        """A subnetwork by name or path, or None."""

    def rules(self, network: str) -> list[NetworkRule]:
        """The firewall rules of a network (name or path); policies of folders and organisations are not among them."""

    def nats(self, region: str, network: str) -> list[Nat]:
        """The NATs of a network (name or path) in a region."""


class Prices(Protocol):
    """Google's price list."""

    def rates(self, region: str) -> Rates:
        """What the parts of a VM cost in a region today, without discounts of one's own.

        Raises:
            Failure: Google refuses or cannot be reached.
        """


@dataclass(frozen=True)
class Backend:
    """Where Terraform keeps the state of one run.

    Attributes:
        kind: Terraform's name of the backend: ``http`` or ``gcs``.
        settings: What is written into its block; nothing secret.
        environment: Variables by which Terraform gets in.
    """

    kind: str
    settings: Mapping[str, str]
    environment: Mapping[str, str]


class StateStore(Protocol):
    """A place for Terraform's states. Every method raises Failure when the place refuses or cannot be reached."""

    where: str

    def state_writable(self, name: str) -> bool:
        """Whether we may lock and write a Terraform state there; a lock that a dead job left on it is broken."""

    def state_backend(self, name: str) -> Backend:
        """How Terraform finds its state there and may write it."""

    def state(self, name: str) -> Literal["absent", "empty", "held"]:
        """What is held under a state's name."""

    def lock_holder(self, name: str) -> str:
        """Who holds a state's lock, in words; empty: nobody, or nobody that we may know of."""

    def break_lock(self, name: str) -> None:
        """Take a state's lock away from whoever holds it; none is success."""

    def delete_state(self, name: str) -> None:
        """Delete a state; not found is success. One that is locked stays, and is a failure."""


class Depot(Protocol):
    """A place for outputs that are too big for artifacts. Every method raises Failure when it refuses or is away.

    What lies there is the team's: nothing here deletes it.

    Attributes:
        store: What elsewhere.json calls a place of its kind.
        bucket: The bucket's name; empty where it is none.
        kept_in: What people call it.
    """

    store: Literal["packages", "bucket"]
    bucket: str
    kept_in: str

    def parts(self, run: AnyName) -> dict[str, Part]:
        """What is kept there of a run, by name."""

    def put_part(self, run: AnyName, part: Part, data: BinaryIO) -> None:
        """Keep a part; when this returns, it is there and as its checksum says.

        Args:
            run: Whose it is.
            part: What it is.
            data: Its bytes from where they begin; read once, in pieces.
        """

    def get_part(self, run: AnyName, name: str, begin: int, take: Callable[[bytes], object]) -> None:
        """Get a part from a byte on, piece by piece; when the connection breaks, what was taken is good."""

    def page(self, run: AnyName) -> str:
        """Address at which people find what is kept of a run."""


@dataclass(frozen=True)
class Admission:
    """What a VM needs to leave parts in a depot.

    Attributes:
        address: The beginning of the address at which it leaves one: the part's name follows.
        headers: Header fields of each request.
        secret: What in them nobody else may see; empty: nothing.
        own_account: Whether the VM logs in as its own service account, beside these headers.
        authority: Certificates by which it knows the server, in PEM; empty: those that it trusts anyway.
    """

    address: str
    headers: tuple[str, ...] = field(repr=False)
    secret: str = field(default="", repr=False)
    own_account: bool = False
    authority: bytes = field(default=b"", repr=False)


class DropOff(Depot, Protocol):
    """A depot where a VM may leave things itself. It may not be able to take a name twice: none is ever used again."""

    def admit(self, run: AnyName, until: float) -> Admission:
        """Let the run's VM leave parts until Unix time ``until``; what it was admitted with before is good no more."""

    def dismiss(self, run: AnyName) -> int:
        """End what the VM was admitted with; how many things that were."""

    def runs_with_parts(self) -> list[RunName]:
        """Every run of our project of which a VM may have left something there."""

    def drop_parts(self, run: AnyName, names: Collection[str]) -> None:
        """Remove parts of a run, and what held them where nothing is left in it; not found is success."""


class Bucket(StateStore, DropOff, Protocol):
    """A Cloud Storage bucket."""


@dataclass(frozen=True)
class ForgeEnvironment:
    """An environment that glgpu's jobs deploy to, and that has not been stopped.

    Attributes:
        id: GitLab's number.
        name: ``gpu/main`` for example.
        pipeline: The pipeline of its last deployment; None: nothing was ever deployed.
        job: Name of that pipeline's job that did it.
        created: RFC 3339 time.
        stops: RFC 3339 time at which GitLab stops it by itself; empty: never.
    """

    id: int
    name: str
    pipeline: int | None
    job: str
    created: str
    stops: str


class Forge(StateStore, DropOff, Protocol):
    """GitLab. Every method raises Failure when GitLab refuses or cannot be reached."""

    @property
    def may_administer(self) -> bool:
        """Whether there is a token that can manage deploy keys and read pipelines."""

    def add_deploy_key(self, title: str, key: str, expires: float, *, can_push: bool = False) -> None:
        """Register a key under a title, until Unix time ``expires``; it can read, and push only where that is said."""

    def remove_deploy_keys(self, title: str) -> int:
        """Remove every key of that title; how many there were."""

    def server_time(self) -> float:
        """GitLab's own clock in Unix time, in whole seconds; needs no token."""

    def job_is_over(self) -> bool:
        """Whether this job itself is over for GitLab, which takes nothing of it any more then."""

    def add_deploy_token(self, name: str, expires: float) -> tuple[str, str]:
        """Make a deploy token that may write to the package registry until Unix time ``expires``: user and secret."""

    def remove_deploy_tokens(self, name: str) -> int:
        """Remove every deploy token of that name; how many there were."""

    def deploy_tokens(self) -> list[Made]:
        """The project's deploy tokens, by name."""

    def schedules(self) -> list[ForgeSchedule]:
        """The project's pipeline schedules."""

    def job_artifacts(self, job: str) -> Literal["unfinished", "none", "kept"]:
        """Whether a job of the project has ended and GitLab has its artifacts."""

    def destroy_is_over(self, pipeline: str) -> bool:
        """Whether the pipeline's destroy job has ended and runs no more by itself; False where it cannot be known."""

    def hold_back(self, ref: str) -> list[str]:
        """Cancel the jobs that would yet bring up a VM, in every pipeline of a branch or tag; what was cancelled."""

    def hold_back_notebook(self, pipeline: str) -> list[str]:
        """Cancel the job of a pipeline that would yet start a notebook; what was cancelled."""

    def artifact(self, pipeline: str, job: str, path: str) -> str | None:
        """A file from a job's artifacts, or None."""

    def artifact_jobs(self, run: str, names: Sequence[str]) -> list[str]:
        """Ids of the jobs of a run with artifacts, of these stages and in their order; the latest try of each."""

    def get_artifacts(self, job: str, begin: int, take: Callable[[bytes], object]) -> None:
        """Get the archive of a job's artifacts from a byte on, piece by piece."""

    def artifact_limit(self) -> int | None:
        """Bytes that GitLab says it takes as a job's artifacts; None where it does not say."""

    def host_key_fingerprints(self) -> set[str]:
        """GitLab's own SSH host keys as ``SHA256:...``; empty where it does not publish them."""

    def sees_project(self, project_id: int) -> bool:
        """Whether our token may look at a project; may be called from several threads at once, as may the next."""

    def pipeline_status(self, project_id: int, pipeline: int) -> str | None:
        """Status of a pipeline, ``running`` for example; None where GitLab knows none, or does not tell us."""

    def pipeline_jobs(self, project_id: int, pipeline: int) -> dict[str, str]:
        """Status of each job of a pipeline, by name; empty where GitLab does not tell us."""

    def deploy_keys(self) -> list[Made]:
        """The project's deploy keys, by title."""

    def all_states(self) -> list[Made]:
        """The project's Terraform states."""

    def environments(self, search: str) -> list[ForgeEnvironment]:
        """The project's environments with this in their names that have not been stopped."""

    def stop_environment(self, environment: int) -> None:
        """Mark an environment as stopped, without running its job for that; not found is success."""


@dataclass(frozen=True)
class ForgeProject:
    """The GitLab project as the token sees it.

    Attributes:
        default_branch: Its default branch.
        role: The token's access level here by GitLab's numbers (40: Maintainer); 0: none.
    """

    default_branch: str
    role: int


@dataclass(frozen=True)
class ForgeToken:
    """An access token.

    Attributes:
        name: What its maker called it.
        scopes: What it may be used for.
        expires: Unix time from which it is dead, or None.
    """

    name: str
    scopes: tuple[str, ...]
    expires: float | None


@dataclass(frozen=True)
class ForgeVariable:
    """A CI variable of the project, without its value.

    Attributes:
        name: Its name.
        protected: Whether jobs of unprotected branches go without it.
        masked: Whether GitLab hides its value in job logs.
    """

    name: str
    protected: bool
    masked: bool


@dataclass(frozen=True)
class ForgeSchedule:
    """A pipeline schedule.

    Attributes:
        description: What its owner called it.
        ref: The branch that it runs on.
        active: Whether it runs.
        owner: Login of whose rights it has.
        owner_state: ``active``, or why the owner is none any more: ``blocked``, ``deactivated``, ...
        variables: Its variables; None where GitLab does not show them to this token.
        last_status: Status of its last pipeline; empty: there was none.
        last_time: When that was made, in Unix time; None: never.
        number: GitLab's number for it.
    """

    description: str
    ref: str
    active: bool
    owner: str
    owner_state: str
    variables: Mapping[str, str] | None
    last_status: str
    last_time: float | None
    number: int


@dataclass(frozen=True)
class ForgePipeline:
    """What GitLab makes of a .gitlab-ci.yml.

    Attributes:
        errors: Why there would be no pipeline; empty when all is well.
        includes: Paths of the files that it includes.
        merged: It and all that it includes in one text of YAML; empty where GitLab cannot read them.
    """

    errors: tuple[str, ...]
    includes: tuple[str, ...]
    merged: str = ""


class ForgeFacts(Protocol):
    """GitLab, to be asked and not changed. Methods raise Failure, and may be called from several threads at once."""

    def server_time(self) -> float:
        """GitLab's own clock in Unix time, in whole seconds; needs no token."""

    def version(self) -> str:
        """GitLab's version, ``17.5.0`` for example."""

    def token(self) -> ForgeToken:
        """The token itself."""

    def project(self) -> ForgeProject:
        """The project, and the token's role in it."""

    def variables(self) -> list[ForgeVariable]:
        """The project's own CI variables, without those of its groups."""

    def protected_branches(self) -> list[str]:
        """Patterns of the protected branches."""

    def schedules(self) -> list[ForgeSchedule]:
        """The project's pipeline schedules."""

    def pipeline(self, ref: str) -> ForgePipeline:
        """What GitLab makes of the .gitlab-ci.yml on a branch or tag; empty: on the default branch."""

    def host_key_fingerprints(self) -> set[str]:
        """GitLab's own SSH host keys as ``SHA256:...``; empty where it does not publish them."""


class Scheduler(Protocol):
    """GitLab, for whoever makes pipeline schedules. Methods raise Failure when it refuses or cannot be reached."""

    def is_gitlab(self) -> bool:
        """Whether a GitLab answers there; asked without the token."""

    def project(self) -> ForgeProject:
        """The project, and the token's role in it."""

    def variables(self) -> list[ForgeVariable]:
        """The project's own CI variables, without those of its groups."""

    def schedules(self) -> list[ForgeSchedule]:
        """The project's pipeline schedules."""

    def judge(self, text: str) -> ForgePipeline:
        """What GitLab would make of a text as .gitlab-ci.yml, with the rights of the token's user."""

    def add_schedule(self, description: str, ref: str, cron: str) -> int:
        """Make a schedule that does not run yet; its number."""

    def finish_schedule(self, number: int, variables: Mapping[str, str]) -> None:
        """Give a schedule these variables, and let it run from now on."""


@dataclass(frozen=True)
class Policy:
    """An organisation policy in force.

    Attributes:
        enforced: For one that is on or off: whether it is on.
        deny_all: For one with values: whether none is allowed.
        allowed: The only values allowed; empty: no such list.
        denied: The values not allowed.
    """

    enforced: bool = False
    deny_all: bool = False
    allowed: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()


class CloudRights(Protocol):
    """What Google lets us do in the project. Methods raise Failure, and may be called from several threads at once."""

    project: str

    def server_time(self) -> float:
        """Google's clock in Unix time, in whole seconds; needs no credentials."""

    def log_in(self) -> None:
        """Get an access token."""

    def state(self) -> str:
        """The project's state: ``ACTIVE``, ``DELETE_REQUESTED``, ..."""

    def disabled_services(self, names: Sequence[str]) -> list[str]:
        """Which of these APIs are not enabled."""

    def missing_permissions(self, names: Sequence[str]) -> list[str]:
        """Which of these permissions we do not have in the project."""

    def missing_on_account(self, account: str, names: Sequence[str]) -> list[str]:
        """The same for a service account."""

    def missing_on_bucket(self, bucket: str, names: Sequence[str]) -> list[str] | None:
        """The same for a bucket; None: there is no such bucket."""

    def billing_enabled(self) -> bool:
        """Whether the project has a billing account that is open."""

    def policy(self, constraint: str) -> Policy:
        """The policy in force for a constraint, ``compute.vmExternalIpAccess`` for example."""


@dataclass(frozen=True)
class ImageManifest:
    """A container image in its registry.

    Attributes:
        platforms: ``linux/amd64`` and so on; empty where the registry does not say.
        packed_gb: What its layers weigh, packed; 0 where the registry does not say.
    """

    platforms: tuple[str, ...]
    packed_gb: float


class Registry(Protocol):
    """Container registries. Methods raise Failure."""

    def manifest(self, image: str) -> ImageManifest:
        """What an image is, with the job's own logins."""


@dataclass(frozen=True)
class Tool:
    """A program of this machine.

    Attributes:
        path: Where it is.
        version: Its version's numbers, or empty where it does not say.
    """

    path: str
    version: tuple[int, ...]


class LocalTools(Protocol):
    """This machine's programs and packages."""

    def tool(self, name: str) -> Tool | None:
        """A program and its version; None: it is not there."""

    def terraform(self) -> Tool:
        """The Terraform or OpenTofu that will be used; raises Failure where there is none, or too old a one."""

    def mirrored_providers(self) -> dict[str, list[tuple[int, ...]]]:
        """Folder -> versions of hashicorp/google in it, for every folder that Terraform installs from here."""

    def outdated_packages(self) -> list[str]:
        """Python packages that are older than glgpu needs, as ``name 1.2 (needs 3.4)``."""


class Repository(Protocol):
    """The checkout this process stands in."""

    def head(self) -> str:
        """The checked-out commit; empty where this is no checkout."""

    def changed(self) -> list[str]:
        """Tracked files that differ from the commit."""

    def write_pack(self, commit: str, to: IO[bytes]) -> None:
        """Write the objects of one commit, without its history, as a pack."""

    def write_tar(self, to: IO[bytes]) -> None:
        """Write every tracked file as it lies here as a tar stream."""


@dataclass(frozen=True)
class WorkCommit:
    """A commit with somebody's work.

    Attributes:
        sha: The commit; empty: there is none, for it would change nothing.
        files: How many files of the work are in it.
        left_out: Why -> the files that are not.
    """

    sha: str
    files: int
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)


class WorkBranch(Protocol):
    """A branch of the project at GitLab, over SSH, and a small repository of our own in which commits for it are made.

    Each method that talks to GitLab raises Failure where that refuses or does not answer in time.
    """

    def make_key(self, comment: str) -> str:
        """Make a key pair for this alone; its public half."""

    def answering_keys(self) -> str:
        """The SSH host keys that GitLab's SSH port answers with; empty where it does not answer."""

    def open(self, known_hosts: str) -> None:
        """Begin with an empty repository, and GitLab's host keys as known_hosts lines; no others are taken."""

    def tip(self, branch: str, seconds: float) -> str:
        """The commit that a branch is at; empty where there is no such branch."""

    def commit(
        self, base: str, tip: str, folder: Path, names: Sequence[str], author: str, message: str, seconds: float
    ) -> WorkCommit:
        """Make a commit of what a commit has, with files put over it.

        Args:
            base: What the files were made from.
            tip: What the branch is at, the first parent; empty: there is no branch yet.
            folder: Where the files lie.
            names: Their paths there, which are those in the repository too.
            author: Whose work it is.
            message: What it says.
            seconds: How long it may take.
        """

    def push(self, commit: str, branch: str, seconds: float) -> bool:
        """Bring a commit onto a branch, on which it begins no pipeline; False: somebody else was faster."""

    def close(self) -> None:
        """Remove key and repository."""


class Apply(Protocol):
    """A running ``terraform apply``."""

    def ended(self) -> bool:
        """Whether it is over."""

    def stop(self) -> bool:
        """End it: SIGTERM to its group, then SIGKILL; whether the first was enough, so that no lock is left."""

    def result(self, seconds: float | None = None) -> None:
        """Wait for its end.

        Args:
            seconds: How long at most.

        Raises:
            Failure: what Terraform said; NETWORK, when it does not end in time.
        """


class Stack(Protocol):
    """Terraform with one run's module, variables and state."""

    def prepare(self) -> None:
        """Lay out the work folder and run ``terraform init``."""

    def change(self, variables: Mapping[str, object]) -> None:
        """Apply with these variables from now on; what is prepared stays so."""

    def start_apply(self) -> AbstractContextManager[Apply]:
        """Begin to apply; leaving the context ends it."""

    def outputs(self) -> dict[str, str]:
        """The module's outputs."""

    def destroy(self, timeout: float) -> None:
        """Destroy what the state knows."""


class Stream(Protocol):
    """A command that runs on the VM."""

    @property
    def stdin(self) -> IO[bytes]:
        """Its standard input."""

    @property
    def stdout(self) -> IO[bytes]:
        """Its standard output."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; 255 when the connection broke."""

    def chunks(self, quiet: float | None = None) -> Iterator[bytes]:
        """Its output as it comes, and an empty piece whenever there is none for ``quiet`` seconds."""

    @property
    def complaint(self) -> str:
        """The end of its standard error."""


class Tunnel(Protocol):
    """A port of this machine's own loopback that leads to a socket on the VM.

    Attributes:
        port: The port.
    """

    port: int

    def opens(self, seconds: float) -> bool:
        """Whether it leads there within so many seconds."""

    def last(self) -> None:
        """Stay until it breaks."""

    @property
    def complaint(self) -> str:
        """Why it broke, as far as anything tells."""


class Machine(Protocol):
    """The VM over SSH; all commands share one login."""

    def run(self, script: str, *, stdin: bytes = b"", timeout: float = 60) -> Done:
        """Run a shell command to its end; 255 when there is no connection."""

    def stream(self, script: str, *, timeout: float | None = None) -> AbstractContextManager[Stream]:
        """Start a shell command and talk to it; after ``timeout`` seconds the connection ends."""

    def attached(self, script: str) -> int:
        """Run a shell command, or where it is empty a login shell, with what this process reads and writes; its code.

        255 when there is no connection. A login shell gets a terminal where this process has one.
        """

    def forward(self, socket: str, port: int = 0) -> AbstractContextManager[Tunnel]:
        """Lead a port of this machine's loopback to a UNIX socket on the VM, by a login of its own.

        Args:
            socket: The socket's path there.
            port: The port here; 0: one that is free.
        """

    def options(self) -> dict[str, str]:
        """OpenSSH's options for the way to the VM, ``HostName``, ``Port`` and ``User`` among them."""

    def hang_up(self) -> None:
        """End the shared login; the next command logs in anew."""


@dataclass(frozen=True)
class Endpoint:
    """Where a VM's SSH server answers.

    Attributes:
        name: Instance name.
        zone: Its zone.
        address: IPv4 address; empty where it has none that its callers can reach.
        port: TCP port.
        through_iap: Whether the way leads through Identity-Aware Proxy.
    """

    name: str
    zone: str
    address: str
    port: int
    through_iap: bool = False


@dataclass(frozen=True)
class Proxy:
    """A program that ssh starts to get at a VM.

    Attributes:
        command: OpenSSH's ProxyCommand.
        environment: Variables for it.
    """

    command: str
    environment: Mapping[str, str]


Connect = Callable[[Endpoint, Path, str], Machine]
"""where, folder with the login key, pinned host key -> the VM."""
StackFor = Callable[[Mapping[str, object], Backend | None], Stack]
"""variables, where its state is (None: nowhere, thrown away) -> Terraform."""
BucketFor = Callable[[str], Bucket]
"""name -> the bucket."""
BranchAt = Callable[[str, Path], WorkBranch]
"""(address of the project over SSH, folder for work files) -> the way there."""
