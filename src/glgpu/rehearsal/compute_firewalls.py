"""Firewall rules: what a request may say, and who may connect under the rules in force."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any

from glgpu.rehearsal.compute_errors import ApiError, invalid
from glgpu.rehearsal.compute_resources import Resource, reference, short

EVERYBODY = "0.0.0.0/0"

DEFAULT_RULES: tuple[Resource, ...] = (
    {
        "name": "default-allow-icmp",
        "description": "Allow ICMP from anywhere",
        "sourceRanges": [EVERYBODY],
        "allowed": [{"IPProtocol": "icmp"}],
    },
    {
        "name": "default-allow-internal",
        "description": "Allow internal traffic on the default network",
        "sourceRanges": ["10.128.0.0/9"],
        "allowed": [
            {"IPProtocol": "tcp", "ports": ["0-65535"]},
            {"IPProtocol": "udp", "ports": ["0-65535"]},
            {"IPProtocol": "icmp"},
        ],
    },
    {
        "name": "default-allow-rdp",
        "description": "Allow RDP from anywhere",
        "sourceRanges": [EVERYBODY],
        "allowed": [{"IPProtocol": "tcp", "ports": ["3389"]}],
    },
    {
        "name": "default-allow-ssh",
        "description": "Allow SSH from anywhere",
        "sourceRanges": [EVERYBODY],
        "allowed": [{"IPProtocol": "tcp", "ports": ["22"]}],
    },
)
"""The rules that come with a project's network ``default``, all of priority 65534."""

DEFAULT_PRIORITY = 65534

_PROTOCOL_NUMBERS = {"1": "icmp", "6": "tcp", "17": "udp", "50": "esp", "51": "ah", "94": "ipip", "132": "sctp"}
_WITH_PORTS = frozenset({"tcp", "udp", "sctp"})
_SOURCES = ("sourceRanges", "sourceTags", "sourceServiceAccounts")
_MOST = {"sourceRanges": 5000, "destinationRanges": 5000, "sourceTags": 30, "targetTags": 70}


def completed(rule: Resource, project: str, network_link: str) -> Resource:
    """A rule with everything that Compute Engine fills in.

    An ingress rule that names no source of any kind is for everybody.

    Raises:
        ApiError: The rule says something that Compute Engine refuses.
    """
    rule = {key: value for key, value in rule.items() if value != []}
    network = reference(
        rule.get("network", "global/networks/default"), "resource.network", "global/networks/*", project
    )
    if network != (project, short(network_link)):
        raise invalid("resource.network", rule["network"], "The referenced network resource cannot be found.")
    rule["network"] = network_link
    rule.setdefault("direction", "INGRESS")
    rule.setdefault("priority", 1000)
    rule.setdefault("disabled", False)
    rule.setdefault("logConfig", {"enable": False})
    rule.setdefault("description", "")
    _check(rule)
    if rule["direction"] == "INGRESS" and not any(rule.get(key) for key in _SOURCES):
        rule["sourceRanges"] = [EVERYBODY]
    if rule["direction"] == "EGRESS" and not rule.get("destinationRanges"):
        rule["destinationRanges"] = [EVERYBODY]
    return rule


def patched(rule: Resource, changes: Resource) -> Resource:
    """A rule after a PATCH: what the request leaves out stays, and an empty list counts as left out."""
    kept = dict(rule)
    for key, value in changes.items():
        if value == []:
            continue
        if key in ("allowed", "denied"):
            kept.pop("allowed", None)
            kept.pop("denied", None)
        kept[key] = value
    return kept


def admits(rules: Iterable[Resource], tags: set[str], source: str, port: int) -> bool:
    """Decide as Compute Engine does whether a TCP connection gets in.

    Of the rules that are enabled and speak of this target, source, protocol and port, the one with the lowest priority
    number decides; at equal numbers, deny comes before allow; where none speaks, nobody gets in.

    Args:
        rules: The rules in force on the instance's network.
        tags: The instance's network tags.
        source: Address of the caller, outside of the network.
        port: TCP port on the instance.
    """
    speaking = [rule for rule in rules if _speaks_of(rule, tags, source, port)]
    if not speaking:
        return False
    first = min(speaking, key=lambda rule: (rule["priority"], "allowed" in rule))
    return "allowed" in first


def _speaks_of(rule: Resource, tags: set[str], source: str, port: int) -> bool:
    if rule["disabled"] or rule["direction"] != "INGRESS" or rule.get("targetServiceAccounts"):
        return False
    targets = rule.get("targetTags")
    if targets and not tags.intersection(targets):
        return False
    address = ipaddress.ip_address(source)
    # Source tags and source service accounts name callers inside the network; ours always come from outside.
    if not any(address in ipaddress.ip_network(net, strict=False) for net in rule.get("sourceRanges", [])):
        return False
    return any(_covers(entry, port) for entry in (rule["allowed"] if "allowed" in rule else rule["denied"]))


def _covers(entry: Resource, port: int) -> bool:
    protocol = _protocol(entry)
    if protocol == "all":
        return True
    if protocol != "tcp":
        return False
    ports = entry.get("ports")
    return not ports or any(low <= port <= high for low, high in map(_port_range, ports))


def _protocol(entry: Resource) -> str:
    name = str(entry["IPProtocol"]).lower()
    return _PROTOCOL_NUMBERS.get(name, name)


def _port_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _check(rule: Resource) -> None:
    if ("allowed" in rule) == ("denied" in rule):
        raise _refused("Exactly one of allowed or denied must be specified.")
    if not 0 <= rule["priority"] <= 65535:
        raise invalid("resource.priority", rule["priority"], "Must be between 0 and 65535, inclusive.")
    if rule["direction"] == "EGRESS" and any(rule.get(key) for key in _SOURCES):
        raise _refused("Sources cannot be specified for EGRESS firewall rules.")
    for key, most in _MOST.items():
        if len(rule.get(key, [])) > most:
            raise _refused(f"{key} may have at most {most} entries.")
    for key in ("sourceRanges", "destinationRanges"):
        for index, net in enumerate(rule.get(key, [])):
            _check_network(f"resource.{key}[{index}]", net)
    for key in ("sourceTags", "targetTags"):
        for index, tag in enumerate(rule.get(key, [])):
            check_tag(f"resource.{key}[{index}]", tag)
    key = "allowed" if "allowed" in rule else "denied"
    for index, entry in enumerate(rule[key]):
        _check_entry(f"resource.{key}[{index}]", entry)


def check_tag(field: str, tag: str) -> None:
    """Refuse what is no network tag.

    Raises:
        ApiError: Google's refusal.
    """
    pattern = "(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)"
    if not re.fullmatch(pattern, tag):
        raise invalid(field, tag, f"Must be a match of regex '{pattern}'")


def _check_network(field: str, text: str) -> None:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise invalid(field, text, "Must be a CIDR address range.") from None


def _check_entry(field: str, entry: dict[str, Any]) -> None:
    if "IPProtocol" not in entry:
        raise ApiError(400, "required", f"Required field '{field}.IPProtocol' not specified")
    protocol = _protocol(entry)
    known = protocol == "all" or protocol in _PROTOCOL_NUMBERS.values()
    if not known and not (protocol.isdecimal() and int(protocol) <= 255):
        raise invalid(f"{field}.IPProtocol", entry["IPProtocol"], "Invalid IP protocol specification.")
    if entry.get("ports") and protocol not in _WITH_PORTS:
        raise invalid(f"{field}.ports", entry["ports"], "Ports may only be specified for TCP, UDP and SCTP.")
    for index, text in enumerate(entry.get("ports", [])):
        found = re.fullmatch(r"[0-9]{1,5}(-[0-9]{1,5})?", text)
        if found is None or _port_range(text)[0] > _port_range(text)[1] or _port_range(text)[1] > 65535:
            raise invalid(f"{field}.ports[{index}]", text, "Invalid port specification.")


def _refused(problem: str) -> ApiError:
    return ApiError(400, "invalid", f"Invalid value for field 'resource': ''. {problem}")
