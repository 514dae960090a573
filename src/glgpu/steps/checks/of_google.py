"""The Google Cloud project: credentials, APIs, rights, policies, billing."""

from __future__ import annotations

import re
from collections.abc import Iterator

from glgpu import links
from glgpu.errors import ErrorClass, Failure
from glgpu.machines import DEFAULT_IMAGE
from glgpu.steps.checks.facts import Facts
from glgpu.steps.checks.judging import Verdict, check, error, failed, unknown, warning

CREDENTIALS = "Google credentials"
CONTINENTS = ("africa", "asia", "australia", "europe", "me", "northamerica", "southamerica", "us")
"""How the names of regions begin."""


@check("google-credentials", "Google Cloud", "whether Google accepts the job's credentials", CREDENTIALS)
def credentials(facts: Facts) -> Iterator[Verdict]:
    """A ready token is judged by its first use."""
    for fact in (facts.login, facts.cloud_project, facts.project_state):
        try:
            fact.get()
        except Failure as failure:
            if failure.klass in (ErrorClass.AUTH, ErrorClass.NETWORK):
                yield failed(failure)
                return


@check("google-project", "Google Cloud", "whether the project is there and active", CREDENTIALS)
def project(facts: Facts) -> Iterator[Verdict]:
    """Deleted projects linger for 30 days."""
    try:
        state = facts.project_state.get()
    except Failure as failure:
        if failure.klass is not ErrorClass.NOT_FOUND:
            raise
        yield failed(failure)
        return
    if state != "ACTIVE":
        yield error(
            ErrorClass.PERMISSION,
            f"the Google Cloud project {facts.google_project} is {state}",
            f"bring it back with `gcloud projects undelete {facts.google_project}`, or name another as GLGPU_PROJECT",
        )


@check("apis", "Google Cloud", "whether the APIs that a run needs are enabled", f"{CREDENTIALS}, Service Usage API")
def apis(facts: Facts) -> Iterator[Verdict]:
    """Compute Engine's always; the others by the settings."""
    for name in facts.disabled_apis.get():
        yield error(
            ErrorClass.API_DISABLED,
            f"the API {name} is not enabled in {facts.google_project}",
            f"enable it with `gcloud services enable {name} --project={facts.google_project}`",
        )


@check("permissions", "Google Cloud", "whether we have every permission that a run needs", CREDENTIALS)
def permissions(facts: Facts) -> Iterator[Verdict]:
    """The exact list, as IAM itself judges it."""
    missing = facts.missing_to_run.get()
    if missing:
        yield error(
            ErrorClass.PERMISSION,
            f"missing in {facts.google_project}: {', '.join(missing)}",
            "apply terraform/bootstrap again, or see docs/how-to/google-cloud-access.md for the roles",
        )


@check("permissions-to-look", "Google Cloud", "whether doctor and gpus may see what they ask for", CREDENTIALS)
def permissions_to_look(facts: Facts) -> Iterator[Verdict]:
    """A run goes well without these; what it will meet is not known beforehand."""
    missing = facts.missing_to_look.get()
    if missing:
        yield warning(
            ErrorClass.PERMISSION,
            f"runs go well, but these are missing for doctor and gpus: {', '.join(missing)}",
            "apply terraform/bootstrap again, or see docs/how-to/google-cloud-access.md for the roles",
        )


@check("act-as", "Google Cloud", "whether we may give the VM its service account", f"{CREDENTIALS}, IAM API")
def act_as(facts: Facts) -> Iterator[Verdict]:
    """Only where it gets one."""
    machine, storage = facts.settings.get().machine, facts.settings.get().storage
    setting = "machine.service_account" if machine.service_account else "storage.uploader"
    try:
        missing = facts.missing_act_as.get()
    except Failure as failure:
        if failure.klass is not ErrorClass.NOT_FOUND:
            raise
        yield failed(failure)
        return
    if missing:
        yield error(
            ErrorClass.PERMISSION,
            f"{setting}: we may not act as {machine.service_account or storage.uploader}",
            "let whoever keeps that account grant us roles/iam.serviceAccountUser on it, or leave the setting out",
        )


@check("bucket", "Google Cloud", "whether the bucket is there and ours to use", CREDENTIALS)
def bucket(facts: Facts) -> Iterator[Verdict]:
    """Only where storage.bucket names one."""
    name = facts.settings.get().storage.bucket
    missing = facts.missing_on_bucket.get()
    if missing is None:
        yield error(
            ErrorClass.CONFIG,
            f"storage.bucket: there is no bucket {name}",
            f"`gcloud storage buckets create gs://{name} --project={facts.google_project}` makes it",
        )
    elif missing:
        yield error(
            ErrorClass.PERMISSION,
            f"missing on the bucket {name}: {', '.join(missing)}",
            "apply terraform/bootstrap again, or see docs/how-to/google-cloud-access.md for the roles",
        )


@check("billing", "Google Cloud", "whether the project's billing is on", f"{CREDENTIALS}, Cloud Billing API")
def billing(facts: Facts) -> Iterator[Verdict]:
    """Without it Compute Engine makes nothing."""
    if not facts.billing.get():
        yield error(
            ErrorClass.BILLING,
            f"{facts.google_project} has no billing account that is open",
            f"link one: {links.BILLING.url}",
        )


@check("external-addresses", "Google Cloud", "whether a policy keeps VMs from external addresses", CREDENTIALS)
def external_addresses(facts: Facts) -> Iterator[Verdict]:
    """Constraint compute.vmExternalIpAccess: all or none, or a list of instances, which ours are not on."""
    if not facts.settings.get().network.external_ip:
        return
    policy = facts.policies["compute.vmExternalIpAccess"].get()
    if policy.deny_all or policy.allowed:
        yield error(
            ErrorClass.ORG_POLICY,
            "the policy compute.vmExternalIpAccess keeps VMs from external addresses, network.external_ip is true",
            "set network.external_ip to false and network.access to iap, in a network with a NAT",
        )


@check("os-login", "Google Cloud", "whether a policy insists on OS Login", CREDENTIALS)
def os_login(facts: Facts) -> Iterator[Verdict]:
    """Constraint compute.requireOsLogin. The project's own default is overridden on the VM; the policy cannot be."""
    if facts.policies["compute.requireOsLogin"].get().enforced:
        yield error(
            ErrorClass.ORG_POLICY,
            "the policy compute.requireOsLogin insists on OS Login, which ignores the keys that jobs log in with",
            _ask_for(facts, "compute.requireOsLogin"),
        )


@check("shielded-vms", "Google Cloud", "whether a policy insists on Shielded VMs", CREDENTIALS)
def shielded_vms(facts: Facts) -> Iterator[Verdict]:
    """Constraint compute.requireShieldedVm also wants Secure Boot, which keeps a driver out that nobody signed."""
    if facts.policies["compute.requireShieldedVm"].get().enforced:
        yield error(
            ErrorClass.ORG_POLICY,
            "the policy compute.requireShieldedVm refuses VMs without Secure Boot, and ours have none",
            _ask_for(facts, "compute.requireShieldedVm"),
        )


@check("guest-attributes", "Google Cloud", "whether a policy turns guest attributes off", CREDENTIALS)
def guest_attributes(facts: Facts) -> Iterator[Verdict]:
    """Constraint compute.disableGuestAttributesAccess: the VM's host key has to come from elsewhere then."""
    if facts.policies["compute.disableGuestAttributesAccess"].get().enforced:
        yield warning(
            ErrorClass.ORG_POLICY,
            "the policy compute.disableGuestAttributesAccess hides the VM's host key and its progress; "
            "the serial console's copy of the key is all there is",
            _ask_for(facts, "compute.disableGuestAttributesAccess"),
        )


@check("image-projects", "Google Cloud", "whether a policy allows images of the boot image's project", CREDENTIALS)
def image_projects(facts: Facts) -> Iterator[Verdict]:
    """Constraint compute.trustedImageProjects."""
    found = re.search(r"projects/[^/]+", facts.settings.get().machine.image or DEFAULT_IMAGE)
    owner = found[0] if found else f"projects/{facts.google_project}"
    policy = facts.policies["compute.trustedImageProjects"].get()
    named = {value.removeprefix("is:") for value in policy.allowed}
    refused = {value.removeprefix("is:") for value in policy.denied}
    if policy.deny_all or owner in refused or (named and owner not in named):
        yield error(
            ErrorClass.ORG_POLICY,
            f"the policy compute.trustedImageProjects does not allow boot images of {owner}",
            f"set machine.image to one of {', '.join(sorted(named)) or 'a project that is allowed'}, or "
            + _ask_for(facts, "compute.trustedImageProjects"),
        )


@check("locations", "Google Cloud", "whether a policy allows the regions", CREDENTIALS)
def locations(facts: Facts) -> Iterator[Verdict]:
    """Constraint gcp.resourceLocations, whose values are places and groups of places."""
    policy = facts.policies["gcp.resourceLocations"].get()
    if not (policy.deny_all or policy.allowed or policy.denied):
        return
    zones = list(dict.fromkeys(one.zone for one in facts.candidates.get()))
    groups = [value for value in (*policy.allowed, *policy.denied) if not _place(value)]
    if groups:
        yield unknown(
            f"the policy gcp.resourceLocations names groups that only Google can resolve: {', '.join(groups)}",
            _ask_for(facts, "gcp.resourceLocations"),
        )
        return
    refused = [
        zone
        for zone in zones
        if policy.deny_all
        or any(_holds(value, zone) for value in policy.denied)
        or (policy.allowed and not any(_holds(value, zone) for value in policy.allowed))
    ]
    if refused:
        yield (error if len(refused) == len(zones) else warning)(
            ErrorClass.ORG_POLICY,
            f"the policy gcp.resourceLocations does not allow {', '.join(refused)}",
            f"name other zones in machine.zones; allowed: {', '.join(policy.allowed) or 'see the policy'}",
        )


def _ask_for(facts: Facts, constraint: str) -> str:
    command = f"gcloud org-policies describe {constraint} --effective --project={facts.google_project}"
    return f"see `{command}`, and ask whoever keeps the organisation's policies for an exception"


def _place(value: str) -> str:
    """The place that a value of gcp.resourceLocations means; empty for a group that is no part of a region's name.

    https://cloud.google.com/resource-manager/docs/organization-policy/defining-locations
    """
    plain = value.removeprefix("is:").removeprefix("in:").removesuffix("-locations")
    return plain if re.fullmatch(rf"({'|'.join(CONTINENTS)})(-[a-z0-9-]+)?", plain) else ""


def _holds(value: str, zone: str) -> bool:
    place = _place(value)
    return zone == place or zone.startswith(f"{place}-")


CHECKS = (
    credentials, project, apis, permissions, permissions_to_look, act_as, bucket, billing, external_addresses, os_login,
    shielded_vms, guest_attributes, image_projects, locations,
)  # fmt: skip
