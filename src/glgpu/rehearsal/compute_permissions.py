"""Which IAM permissions a call of Compute Engine needs (the IAM section of each method's reference page)."""

from __future__ import annotations

from glgpu.rehearsal.compute_resources import Resource
from glgpu.rehearsal.google_api import Method

VERBS = {"insert": "create", "aggregatedList": "list", "patch": "update", "getFromFamily": "get", "wait": "get"}
"""Where the permission is called otherwise than the method."""


def permission(method: Method) -> str:
    """The permission by which a method is known, ``compute.instances.create`` for example."""
    return f"compute.{method.resource}.{VERBS.get(method.verb, method.verb)}"


def permissions(method: Method, body: Resource) -> list[str]:
    """All permissions in the project that a call needs, the method's own first."""
    needed = [permission(method)]
    if method.id == "compute.instances.insert":
        needed += _for_an_instance(body)
    if method.resource in ("firewalls", "routers") and method.http_method != "GET":
        needed.append("compute.networks.updatePolicy")
    return needed


def _for_an_instance(body: Resource) -> list[str]:
    needed = []
    if any("initializeParams" in disk for disk in body.get("disks", [])):
        needed.append("compute.disks.create")
    for interface in body.get("networkInterfaces", []):
        needed.append("compute.subnetworks.use")
        if interface.get("accessConfigs"):
            needed.append("compute.subnetworks.useExternalIp")
    for field, verb in (("labels", "setLabels"), ("metadata", "setMetadata"), ("tags", "setTags")):
        if body.get(field):
            needed.append(f"compute.instances.{verb}")
    if body.get("serviceAccounts"):
        needed.append("compute.instances.setServiceAccount")
    return needed
