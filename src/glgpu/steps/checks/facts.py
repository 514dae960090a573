"""Everything that the checks look at, each fact asked for once, all of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import (
    AcceleratorType,
    BootImage,
    Catalogue,
    CloudProject,
    CloudRights,
    ForgeFacts,
    ForgePipeline,
    ForgeProject,
    ForgeSchedule,
    ForgeToken,
    ForgeVariable,
    ImageManifest,
    LocalTools,
    MachineType,
    Nat,
    Network,
    NetworkRule,
    Policy,
    Region,
    Registry,
    Subnetwork,
    Tool,
    Zone,
)
from glgpu.job import Job
from glgpu.machines import DEFAULT_IMAGE, Candidate, candidates
from glgpu.permissions import ACT_AS, BUCKET, LOOK, RUN, TUNNEL
from glgpu.settings import Settings
from glgpu.way_home import account_of_vm

T = TypeVar("T")
AT_ONCE = 256
"""Threads, made as they are needed: more than there are questions, for a fact that needs another one waits for it."""
PROGRAMS = ("git", "ssh", "ssh-keygen", "gcloud")
POLICIES = (
    "compute.vmExternalIpAccess",
    "compute.requireOsLogin",
    "compute.requireShieldedVm",
    "compute.disableGuestAttributesAccess",
    "compute.trustedImageProjects",
    "compute.skipDefaultNetworkCreation",
    "gcp.resourceLocations",
)
"""Constraints that stand in the way of what glgpu makes
(https://cloud.google.com/resource-manager/docs/organization-policy/org-policy-constraints)."""


class Fact(Generic[T]):
    """One answer, which may still be on its way, or the failure to get it."""

    def __init__(self, answer: Future[T]) -> None:
        self._answer = answer

    def get(self) -> T:
        """Wait for the answer.

        Raises:
            Failure: There is none, and why.
        """
        return self._answer.result()

    @classmethod
    def known(cls, value: T) -> Fact[T]:
        """A fact that needs no asking."""
        answer: Future[T] = Future()
        answer.set_result(value)
        return cls(answer)

    @classmethod
    def refused(cls, failure: Failure) -> Fact[T]:
        """A fact that cannot be had."""
        answer: Future[T] = Future()
        answer.set_exception(failure)
        return cls(answer)


@dataclass(frozen=True)
class Sources:
    """Whom the facts are asked of.

    Attributes:
        job: This job's variables.
        wrong_variables: What is wrong with them; the job is read without those.
        settings: The settings, or why there are none.
        now: This machine's clock.
        forge: GitLab.
        rights: Google's APIs about the project.
        catalogue: Compute Engine.
        registry: Container registries.
        tools: This machine.
        caller_address: Tells under which address this machine is seen.
    """

    job: Job
    wrong_variables: tuple[Failure, ...]
    settings: Settings | Failure
    now: Callable[[], float]
    forge: ForgeFacts
    rights: CloudRights
    catalogue: Catalogue
    registry: Registry
    tools: LocalTools
    caller_address: Callable[[Settings, Job], str]


@dataclass(frozen=True)
class Facts:
    """What is known.

    Attributes:
        now: Unix time when they were asked for.
        job: This job's variables.
        wrong_variables: What is wrong with them.
        google_project: The Google Cloud project, or empty.
        settings: What the team set.
        gitlab_lag: Seconds by which GitLab's clock is behind this machine's.
        gitlab_version: GitLab's version.
        token: The GitLab token.
        gitlab_project: The project as the token sees it.
        variables: The project's CI variables.
        protected_branches: Patterns of protected branches.
        schedules: The project's schedules.
        pipeline: What GitLab makes of .gitlab-ci.yml.
        host_keys: Fingerprints of GitLab's SSH host keys.
        google_lag: Seconds by which Google's clock is behind this machine's.
        login: Whether Google gives us a token.
        project_state: The Google project's state.
        disabled_apis: Which of the APIs that a run needs are not enabled.
        missing_to_run: Permissions that a run needs and we do not have.
        missing_to_look: The same for what only doctor and gpus ask.
        missing_act_as: The same on the VM's service account.
        missing_on_bucket: The same on the bucket; None: there is none.
        billing: Whether billing is enabled.
        policies: Constraint -> the policy in force.
        cloud_project: The project as Compute Engine describes it.
        regions: All regions with their limits.
        zones: All zones.
        candidates: Every way to get a VM that the settings allow.
        accelerators: Which GPU is in which zone.
        machine_types: The candidates' machine types, wherever they are.
        disk_types: Zone of a candidate -> its disk types.
        boot_image: The boot image; None: there is none.
        network: The network; None: there is none.
        subnetworks: Region of a candidate -> the subnetworks that the VM could be in.
        rules: The network's firewall rules.
        nats: Region of a candidate -> the network's NATs there.
        manifest: The container image.
        terraform: The Terraform that will be used.
        programs: Other programs, None where they are not there.
        providers: Folder -> versions of the google provider that Terraform will install from here.
        outdated: Python packages that are too old.
        caller: Under which address this machine is seen; empty where the settings do not need it.
    """

    now: float
    job: Job
    wrong_variables: tuple[Failure, ...]
    google_project: str
    settings: Fact[Settings]
    gitlab_lag: Fact[float]
    gitlab_version: Fact[str]
    token: Fact[ForgeToken]
    gitlab_project: Fact[ForgeProject]
    variables: Fact[list[ForgeVariable]]
    protected_branches: Fact[list[str]]
    schedules: Fact[list[ForgeSchedule]]
    pipeline: Fact[ForgePipeline]
    host_keys: Fact[set[str]]
    google_lag: Fact[float]
    login: Fact[None]
    project_state: Fact[str]
    disabled_apis: Fact[list[str]]
    missing_to_run: Fact[list[str]]
    missing_to_look: Fact[list[str]]
    missing_act_as: Fact[list[str]]
    missing_on_bucket: Fact[list[str] | None]
    billing: Fact[bool]
    policies: Mapping[str, Fact[Policy]]
    cloud_project: Fact[CloudProject]
    regions: Fact[dict[str, Region]]
    zones: Fact[dict[str, Zone]]
    candidates: Fact[list[Candidate]]
    accelerators: Fact[list[AcceleratorType]]
    machine_types: Fact[list[MachineType]]
    disk_types: Fact[dict[str, set[str]]]
    boot_image: Fact[BootImage | None]
    network: Fact[Network | None]
    subnetworks: Fact[dict[str, list[Subnetwork]]]
    rules: Fact[list[NetworkRule]]
    nats: Fact[dict[str, list[Nat]]]
    manifest: Fact[ImageManifest]
    terraform: Fact[Tool]
    programs: Mapping[str, Fact[Tool | None]]
    providers: Fact[dict[str, list[tuple[int, ...]]]]
    outdated: Fact[list[str]]
    caller: Fact[str]


def needed_apis(job: Job, settings: Settings) -> list[str]:
    """The APIs without which a run with these settings fails."""
    needed = ["compute.googleapis.com"]
    if job.federation:
        needed.append("sts.googleapis.com")
        if job.federation.service_account:
            needed.append("iamcredentials.googleapis.com")
    if settings.network.access == "iap":
        needed.append("iap.googleapis.com")
    if settings.storage.bucket or settings.state == "gcs":
        needed.append("storage.googleapis.com")
    return needed


def gather(sources: Sources, pool: ThreadPoolExecutor) -> Facts:
    """Begin to ask for everything.

    Args:
        sources: Whom to ask.
        pool: Has ``AT_ONCE`` threads.
    """
    job, forge, rights, catalogue = sources.job, sources.forge, sources.rights, sources.catalogue

    def soon(ask: Callable[[], T]) -> Fact[T]:
        return Fact(pool.submit(ask))

    def each(places: Sequence[str], ask: Callable[[str], T]) -> dict[str, T]:
        asked = {place: pool.submit(ask, place) for place in places}
        return {place: answer.result() for place, answer in asked.items()}

    settings: Fact[Settings] = (
        Fact.refused(sources.settings) if isinstance(sources.settings, Failure) else Fact.known(sources.settings)
    )

    def lag(ask: Callable[[], float]) -> float:
        before = sources.now()
        theirs = ask()
        # Theirs has lost its fraction of a second; ours is taken from the middle of the call.
        return (before + sources.now()) / 2 - (theirs + 0.5)

    def of_gitlab(ask: Callable[[], T]) -> Fact[T]:
        if not (job.server_url and job.project_id):
            return Fact.refused(
                Failure(
                    ErrorClass.GITLAB,
                    "no GitLab project is known here",
                    "set CI_SERVER_URL and CI_PROJECT_ID, and GLGPU_GITLAB_TOKEN, as a job has them",
                )
            )
        if not job.gitlab_token:
            return Fact.refused(
                Failure(
                    ErrorClass.GITLAB_AUTH,
                    "there is no GLGPU_GITLAB_TOKEN here, and a job token may not ask this",
                    "set GLGPU_GITLAB_TOKEN: a project access token with role Maintainer and scope api",
                )
            )
        return soon(ask)

    login = soon(rights.log_in)

    def of_google(ask: Callable[[], T]) -> Fact[T]:
        def logged_in() -> T:
            if not rights.project:
                raise Failure(
                    ErrorClass.CONFIG,
                    "no Google project is known here",
                    "set the CI variable GLGPU_PROJECT, or `project` in glgpu.yml",
                )
            login.get()
            return ask()

        return soon(logged_in)

    zones = of_google(catalogue.zones)

    def all_candidates() -> list[Candidate]:
        machine = settings.get().machine
        named = machine.zones or [
            zone.name for region in machine.regions for zone in _sorted(zones.get()) if zone.region == region
        ]
        return candidates(machine, named)

    found = soon(all_candidates)

    def names() -> tuple[list[str], list[str]]:
        in_zones = list(dict.fromkeys(one.zone for one in found.get()))
        return in_zones, list(dict.fromkeys(one.region for one in found.get()))

    network = of_google(lambda: catalogue.network(settings.get().network.name))

    def subnetworks() -> dict[str, list[Subnetwork]]:
        net = settings.get().network
        named = net.subnetwork
        if named is None:
            return each(names()[1], lambda region: catalogue.subnetworks(region, net.name))
        alone = each(names()[1], lambda region: catalogue.subnetwork(named, region))
        return {region: [one] if one else [] for region, one in alone.items()}

    def manifest() -> ImageManifest:
        image = settings.get().train.image
        if image is None:
            raise Failure(
                ErrorClass.CONFIG,
                "train.image is not set: there is nothing to look for",
                "set train.image in glgpu.yml",
            )
        return sources.registry.manifest(image)

    def caller() -> str:
        net = settings.get().network
        needed = net.access == "external" and net.allow == "auto"
        return sources.caller_address(settings.get(), job) if needed else ""

    def missing_to_run() -> list[str]:
        tunnel = TUNNEL if settings.get().network.access == "iap" else ()
        return rights.missing_permissions((*RUN, *tunnel))

    def missing_act_as() -> list[str]:
        account = account_of_vm(settings.get(), job)
        return rights.missing_on_account(str(account["email"]), ACT_AS) if account else []

    return Facts(
        now=sources.now(),
        job=job,
        wrong_variables=sources.wrong_variables,
        google_project=rights.project,
        settings=settings,
        gitlab_lag=soon(lambda: lag(forge.server_time)) if job.server_url else of_gitlab(forge.server_time),
        gitlab_version=of_gitlab(forge.version),
        token=of_gitlab(forge.token),
        gitlab_project=of_gitlab(forge.project),
        variables=of_gitlab(forge.variables),
        protected_branches=of_gitlab(forge.protected_branches),
        schedules=of_gitlab(forge.schedules),
        pipeline=of_gitlab(lambda: forge.pipeline(job.ref)),
        host_keys=soon(forge.host_key_fingerprints) if job.server_url else of_gitlab(forge.host_key_fingerprints),
        google_lag=soon(lambda: lag(rights.server_time)),
        login=login,
        project_state=of_google(rights.state),
        disabled_apis=of_google(lambda: rights.disabled_services(needed_apis(job, settings.get()))),
        missing_to_run=of_google(missing_to_run),
        missing_to_look=of_google(lambda: rights.missing_permissions(LOOK)),
        missing_act_as=of_google(missing_act_as),
        missing_on_bucket=of_google(
            lambda: (
                rights.missing_on_bucket(settings.get().storage.bucket or "", BUCKET)
                if settings.get().storage.bucket
                else []
            )
        ),
        billing=of_google(rights.billing_enabled),
        policies={name: _policy(of_google, rights, name) for name in POLICIES},
        cloud_project=of_google(catalogue.cloud_project),
        regions=of_google(catalogue.regions),
        zones=zones,
        candidates=found,
        accelerators=of_google(catalogue.accelerator_types),
        machine_types=of_google(lambda: catalogue.machine_types({one.machine_type for one in found.get()})),
        disk_types=of_google(lambda: each(names()[0], catalogue.disk_types)),
        boot_image=of_google(lambda: catalogue.image(settings.get().machine.image or DEFAULT_IMAGE)),
        network=network,
        subnetworks=of_google(subnetworks),
        rules=of_google(lambda: catalogue.rules(settings.get().network.name)),
        nats=of_google(
            lambda: (
                each(names()[1], lambda region: catalogue.nats(region, settings.get().network.name))
                if not settings.get().network.external_ip
                else {}
            )
        ),
        manifest=soon(manifest),
        terraform=soon(sources.tools.terraform),
        programs={name: _program(soon, sources.tools, name) for name in PROGRAMS},
        providers=soon(sources.tools.mirrored_providers),
        outdated=soon(sources.tools.outdated_packages),
        caller=soon(caller),
    )


def _policy(of_google: Callable[[Callable[[], Policy]], Fact[Policy]], rights: CloudRights, name: str) -> Fact[Policy]:
    return of_google(lambda: rights.policy(name))


def _program(
    soon: Callable[[Callable[[], Tool | None]], Fact[Tool | None]], tools: LocalTools, name: str
) -> Fact[Tool | None]:
    return soon(lambda: tools.tool(name))


def _sorted(zones: Mapping[str, Zone]) -> Sequence[Zone]:
    return [zones[name] for name in sorted(zones)]
