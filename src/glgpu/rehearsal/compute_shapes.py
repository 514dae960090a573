"""How a new instance and its boot disk look to callers."""

from __future__ import annotations

import copy

from glgpu.rehearsal import cloud_catalogue as catalogue
from glgpu.rehearsal.compute_orders import Order, check_labels
from glgpu.rehearsal.compute_resources import Links, Resource, fingerprint, new_id, timestamp
from glgpu.rehearsal.world_clock import WorldClock

EXTERNAL_ADDRESS = "127.0.0.1"
"""The external address of every instance: its guest serves SSH on a port of the loopback interface."""


class Shapes:
    """Builds the resources that an insert makes."""

    def __init__(self, clock: WorldClock, links: Links) -> None:
        self._clock = clock
        self._links = links
        self._addresses = 1

    def instance(self, zone: str, body: Resource, order: Order) -> Resource:
        """A new instance, PROVISIONING; ``body`` is the insert."""
        resource = copy.deepcopy(body)
        link = self._links.to(f"zones/{zone}/instances/{body['name']}")
        scheduling = resource.setdefault("scheduling", {})
        scheduling |= {"preemptible": order.spot, "provisioningModel": "SPOT" if order.spot else "STANDARD"}
        scheduling.setdefault("onHostMaintenance", "TERMINATE" if order.spot else "MIGRATE")
        scheduling.setdefault("automaticRestart", not order.spot)
        if order.spot:
            scheduling.setdefault("instanceTerminationAction", "STOP")
        resource |= {
            "kind": "compute#instance",
            "id": new_id(),
            "creationTimestamp": timestamp(self._clock.now()),
            "status": "PROVISIONING",
            "zone": self._links.to(f"zones/{zone}"),
            "machineType": self._links.to(f"zones/{zone}/machineTypes/{order.machine_type}"),
            "selfLink": link,
            "cpuPlatform": "Intel Cascade Lake",
            "fingerprint": fingerprint(link),
            "labelFingerprint": fingerprint(body.get("labels", {})),
            "metadata": metadata(body.get("metadata", {}).get("items", [])),
            "tags": tags(body.get("tags", {}).get("items", [])),
            "disks": [self._attached(zone, body["disks"][0], order)],
            "networkInterfaces": [self._interface(zone, body["networkInterfaces"][0])],
            "startRestricted": False,
            "deletionProtection": body.get("deletionProtection", False),
            "shieldedInstanceConfig": {
                "enableSecureBoot": False, "enableVtpm": True, "enableIntegrityMonitoring": True,
            } | body.get("shieldedInstanceConfig", {}),
            "shieldedInstanceIntegrityPolicy": {"updateAutoLearnPolicy": True},
        }  # fmt: skip
        if order.gpu is not None:
            kind = self._links.to(f"zones/{zone}/acceleratorTypes/{order.gpu[0]}")
            resource["guestAccelerators"] = [{"acceleratorType": kind, "acceleratorCount": order.gpu[1]}]
        return resource

    def _attached(self, zone: str, disk: Resource, order: Order) -> Resource:
        return {
            "kind": "compute#attachedDisk",
            "type": "PERSISTENT",
            "mode": "READ_WRITE",
            "source": self._links.to(f"zones/{zone}/disks/{order.disk_name}"),
            "deviceName": disk.get("deviceName", "persistent-disk-0"),
            "index": 0,
            "boot": True,
            "autoDelete": order.auto_delete,
            "interface": disk.get("interface", "SCSI"),
            "diskSizeGb": str(order.disk_gb),
            "architecture": "X86_64",
        }

    def _interface(self, zone: str, asked: Resource) -> Resource:
        region = catalogue.region_of(zone)
        self._addresses += 1
        interface: Resource = {
            "kind": "compute#networkInterface",
            "name": "nic0",
            "network": self._links.to("global/networks/default"),
            "subnetwork": self._links.to(f"regions/{region}/subnetworks/default"),
            "networkIP": subnet_of(region).replace("0.0/20", f"{self._addresses // 250}.{self._addresses % 250}"),
            "stackType": asked.get("stackType", "IPV4_ONLY"),
        }
        if "nicType" in asked:
            interface["nicType"] = asked["nicType"]
        interface["fingerprint"] = fingerprint(interface)
        if asked.get("accessConfigs"):
            config = asked["accessConfigs"][0]
            interface["accessConfigs"] = [
                {
                    "kind": "compute#accessConfig",
                    "type": config.get("type", "ONE_TO_ONE_NAT"),
                    "name": config.get("name", "External NAT"),
                    "natIP": EXTERNAL_ADDRESS,
                    "networkTier": config.get("networkTier", "PREMIUM"),
                }
            ]
        return interface

    def disk(self, instance: Resource, zone: str, body: Resource, order: Order) -> Resource:
        """Its boot disk."""
        labels = body["disks"][0]["initializeParams"].get("labels", {})
        check_labels(labels)
        now = timestamp(self._clock.now())
        return {
            "kind": "compute#disk",
            "id": new_id(),
            "creationTimestamp": now,
            "lastAttachTimestamp": now,
            "name": order.disk_name,
            "zone": self._links.to(f"zones/{zone}"),
            "selfLink": self._links.to(f"zones/{zone}/disks/{order.disk_name}"),
            "sizeGb": str(order.disk_gb),
            "type": self._links.to(f"zones/{zone}/diskTypes/{order.disk_type}"),
            # The Terraform provider compares this link with the family it asked for, and knows Google's host only.
            "sourceImage": f"https://www.googleapis.com/compute/v1/{order.image.path}",
            "status": "READY",
            "users": [instance["selfLink"]],
            "labels": labels,
            "labelFingerprint": fingerprint(labels),
            "physicalBlockSizeBytes": "4096",
            "architecture": "X86_64",
        }


def subnet_of(region: str) -> str:
    """Address range of the region's default subnetwork, as auto-mode networks lay them out: one /20 each."""
    return f"10.{130 + sorted(catalogue.REGIONS).index(region)}.0.0/20"


def metadata(items: list[Resource]) -> Resource:
    """Metadata with its fingerprint."""
    resource: Resource = {"kind": "compute#metadata", "fingerprint": fingerprint(items)}
    return resource | {"items": items} if items else resource


def tags(items: list[str]) -> Resource:
    """Network tags with their fingerprint."""
    resource: Resource = {"fingerprint": fingerprint(items)}
    return resource | {"items": items} if items else resource
