"""The network: whether the VM gets into it, out of it, and whether only we get to the VM."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, ip_network

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import NetworkRule
from glgpu.settings import Settings
from glgpu.steps.checks.facts import Facts
from glgpu.steps.checks.judging import Verdict, check, error, failed, warning
from glgpu.steps.door import ALLOW_PRIORITY, DENY_PRIORITY, IAP_RANGE

NEEDS = "Google credentials"
SSH_PORT = 22
EVERYBODY = IPv4Network("0.0.0.0/0")


@check("network", "network", "whether the network is there", NEEDS)
def network(facts: Facts) -> Iterator[Verdict]:
    """Companies often have no network called default, and a policy that makes none."""
    name = facts.settings.get().network.name
    if facts.network.get() is not None:
        return
    why = ""
    try:
        if facts.policies["compute.skipDefaultNetworkCreation"].get().enforced:
            why = "; the policy compute.skipDefaultNetworkCreation keeps new projects from having one called default"
    except Failure:
        pass  # it would only have explained why
    yield error(
        ErrorClass.CONFIG,
        f"network.name: there is no network {name}{why}",
        f"set network.name; `gcloud compute networks list --project={facts.google_project}` shows what there is",
    )


@check("subnetworks", "network", "whether the network has a subnetwork in the regions of the zones", NEEDS)
def subnetworks(facts: Facts) -> Iterator[Verdict]:
    """One of automatic mode has, wherever Google has a region; one of custom mode needs network.subnetwork."""
    settings, found = facts.settings.get().network, facts.network.get()
    if found is None:
        return
    if settings.subnetwork is None and not found.automatic:
        yield error(
            ErrorClass.CONFIG,
            f"the network {settings.name} is of custom mode, and network.subnetwork is not set",
            f"see `gcloud compute networks subnets list --network={settings.name}`, and set network.subnetwork",
        )
        return
    there = facts.subnetworks.get()
    missing = [region for region, subnets in there.items() if not subnets]
    if missing:
        named = f"subnetwork {settings.subnetwork}" if settings.subnetwork else "subnetwork"
        yield (error if len(missing) == len(there) else warning)(
            ErrorClass.CONFIG,
            f"the network {settings.name} has no {named} in {', '.join(missing)}",
            "name zones of other regions in machine.zones, or another network.subnetwork",
        )
    for subnet in (one for subnets in there.values() for one in subnets):
        if settings.subnetwork and subnet.network != found.path:
            yield error(
                ErrorClass.CONFIG,
                f"network.subnetwork: {subnet.path} is not in the network {settings.name}",
                "mend network.name or network.subnetwork",
            )


@check("nat", "network", "whether a VM without external address gets out", NEEDS)
def nat(facts: Facts) -> Iterator[Verdict]:
    """It has to reach the registry; only network.external_ip: false needs a NAT."""
    settings = facts.settings.get()
    if settings.network.external_ip:
        return
    there = facts.nats.get()
    missing = [region for region, nats in there.items() if not nats]
    if missing:
        yield (error if len(missing) == len(there) else warning)(
            ErrorClass.CONFIG,
            f"network.external_ip is false, and {settings.network.name} has no NAT in {', '.join(missing)}: "
            "the VM would reach no registry",
            "apply terraform/bootstrap with a NAT for these regions, or set network.external_ip to true",
        )


@check("access", "network", "whether the ways to the VM fit together", "glgpu.yml")
def access(facts: Facts) -> Iterator[Verdict]:
    """An address inside the network is reached from inside, or through Identity-Aware Proxy."""
    settings = facts.settings.get()
    if settings.network.access == "external" and not settings.network.external_ip:
        yield warning(
            ErrorClass.CONFIG,
            "network.external_ip is false and network.access is external: only a runner inside the network gets to it",
            "set network.access to iap, unless your runner is in that network",
        )
    if settings.network.access == "iap" and settings.storage.bucket is None:
        yield warning(
            ErrorClass.CONFIG,
            "network.access is iap: its tunnels are throttled, so big outputs take long to come home",
            "set storage.bucket where outputs have more than a few GB",
        )


@check("own-address", "network", "whether this machine learns its public address", "network.echo")
def own_address(facts: Facts) -> Iterator[Verdict]:
    """The VM's firewall rule is made for it."""
    settings = facts.settings.get().network
    if settings.access == "iap" or settings.allow != "auto":
        return
    try:
        address = facts.caller.get()
        IPv4Address(address)
    except Failure as failure:
        yield failed(failure)
    except ValueError:
        yield error(
            ErrorClass.CONFIG,
            f"this machine's own public address is said to be {address!r}, which is no IPv4 address",
            "set network.allow to the ranges your runners use, or network.echo to another service",
        )


@check("firewall-open", "network", "whether a firewall rule lets everybody in over our heads", NEEDS)
def firewall_open(facts: Facts) -> Iterator[Verdict]:
    """Ours keeps everybody out but for the caller; whatever is allowed at a higher priority goes before it."""
    settings = facts.settings.get()
    for rule in facts.rules.get():
        ours = rule.direction == "INGRESS" and not rule.disabled and _is_for(rule, settings)
        if ours and rule.action == "allow" and rule.priority < DENY_PRIORITY and EVERYBODY in _ranges(rule):
            ports = _tcp_ports(rule)
            if ports is not None:
                shown = ", ".join(ports) or "any"
                yield warning(
                    ErrorClass.CONFIG,
                    f"the firewall rule {rule.name} lets everybody reach the VM (tcp port {shown}): its priority "
                    f"{rule.priority} goes before ours, {DENY_PRIORITY}",
                    f"`gcloud compute firewall-rules update {rule.name} --priority=1000`, or give it a target tag",
                )


@check("firewall-shut", "network", "whether a firewall rule keeps us out over our heads", NEEDS)
def firewall_shut(facts: Facts) -> Iterator[Verdict]:
    """A denial of the same priority as ours, or a higher one, goes before it."""
    settings = facts.settings.get()
    for rule in facts.rules.get():
        ours = rule.direction == "INGRESS" and not rule.disabled and _is_for(rule, settings)
        if not (ours and rule.action == "deny" and rule.priority <= ALLOW_PRIORITY and _covers_ssh(rule)):
            continue
        ranges = _ranges(rule)
        if EVERYBODY in ranges or any(one.subnet_of(it) for one in _callers(facts, settings) for it in ranges):
            yield error(
                ErrorClass.CONFIG,
                f"the firewall rule {rule.name} keeps us from the VM's SSH port: its priority {rule.priority} goes "
                f"before ours, {ALLOW_PRIORITY}",
                f"`gcloud compute firewall-rules update {rule.name} --priority=1000`, or except our tags from it",
            )


def _is_for(rule: NetworkRule, settings: Settings) -> bool:
    """Whether a rule speaks of our VMs, by their tags, their service account, or because it speaks of all."""
    if not rule.target_tags and not rule.target_accounts:
        return True
    tagged = set(rule.target_tags) & set(settings.machine.tags)
    return bool(tagged) or settings.machine.service_account in rule.target_accounts


def _ranges(rule: NetworkRule) -> list[IPv4Network]:
    """Whose connections from outside a rule speaks of; VMs of the network itself are not among them."""
    if not rule.sources:
        return [] if rule.source_tags or rule.source_accounts else [EVERYBODY]
    return [one for one in map(ip_network, rule.sources) if isinstance(one, IPv4Network)]


def _callers(facts: Facts, settings: Settings) -> list[IPv4Network]:
    if settings.network.access == "iap":
        return [IPv4Network(IAP_RANGE)]
    if settings.network.allow != "auto":
        return [IPv4Network(one) for one in settings.network.allow]
    try:
        return [IPv4Network(facts.caller.get())]
    except ValueError:
        return [EVERYBODY]


def _tcp_ports(rule: NetworkRule) -> tuple[str, ...] | None:
    """Which TCP ports a rule speaks of, none meaning all; None where it does not speak of TCP."""
    for protocol in ("all", "tcp", "6"):
        if protocol in rule.protocols:
            return rule.protocols[protocol]
    return None


def _covers_ssh(rule: NetworkRule) -> bool:
    ports = _tcp_ports(rule)
    if ports is None:
        return False
    ends = [port.partition("-")[::2] for port in ports]
    return not ports or any(int(low) <= SSH_PORT <= int(high or low) for low, high in ends)


CHECKS = (network, subnetworks, nat, access, own_address, firewall_open, firewall_shut)
