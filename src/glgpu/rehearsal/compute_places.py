"""The catalogue as Compute Engine shows it: regions, zones, types, images, networks, the project."""

from __future__ import annotations

import hashlib

from glgpu.rehearsal import cloud_catalogue as catalogue
from glgpu.rehearsal.compute_resources import Links, Resource, fingerprint
from glgpu.rehearsal.compute_shapes import subnet_of

LONG_AGO = "1969-12-31T16:00:00.000-08:00"
"""What Compute Engine shows as the birth of things that were always there."""


class Places:
    """Builds the resources that nobody can change."""

    def __init__(self, links: Links) -> None:
        self._links = links

    def zones(self) -> list[Resource]:
        """All zones."""
        return [
            self._resource("zone", f"zones/{zone}", zone)
            | {
                "description": zone,
                "status": "UP",
                "region": self._links.to(f"regions/{catalogue.region_of(zone)}"),
                "availableCpuPlatforms": ["Intel Broadwell", "Intel Cascade Lake", "Intel Skylake"],
            }
            for zone in catalogue.ZONES
        ]

    def region(self, name: str, quotas: list[Resource]) -> Resource:
        """One region with its limits."""
        zones = [self._links.to(f"zones/{zone}") for zone in catalogue.ZONES if catalogue.region_of(zone) == name]
        region = self._resource("region", f"regions/{name}", name)
        return region | {"description": name, "status": "UP", "zones": zones, "quotas": quotas}

    def machine_types(self, zone: str) -> list[Resource]:
        """The machine types of a zone."""
        return [self._machine_type(zone, name, m) for name, m in catalogue.MACHINE_TYPES.items() if m.offered_in(zone)]

    def machine_type(self, zone: str, name: str) -> Resource | None:
        """One machine type of a zone; custom ones, which are in no list, too."""
        machine = catalogue.machine_type(name)
        return self._machine_type(zone, name, machine) if machine is not None and machine.offered_in(zone) else None

    def accelerator_types(self, zone: str) -> list[Resource]:
        """The GPU models of a zone."""
        return [
            self._resource("acceleratorType", f"zones/{zone}/acceleratorTypes/{name}", name)
            | {
                "description": gpu.description,
                "maximumCardsPerInstance": gpu.most_per_vm,
                "zone": self._links.to(f"zones/{zone}"),
            }
            for name, gpu in catalogue.GPUS.items()
            if zone in gpu.zones
        ]

    def disk_types(self, zone: str) -> list[Resource]:
        """The disk types of a zone."""
        return [
            self._resource("diskType", f"zones/{zone}/diskTypes/{name}", name)
            | {
                "description": description,
                "validDiskSize": f"10GB-{65536}GB",
                "defaultDiskSizeGb": "100",
                "zone": self._links.to(f"zones/{zone}"),
            }
            for name, (description, _) in catalogue.DISK_TYPES.items()
        ]

    def networks(self) -> list[Resource]:
        """The one network that every project begins with."""
        subnets = [self._links.to(f"regions/{region}/subnetworks/default") for region in catalogue.REGIONS]
        network = self._resource("network", "global/networks/default", "default")
        return [
            network
            | {
                "description": "Default network for the project",
                "autoCreateSubnetworks": True,
                "routingConfig": {"routingMode": "REGIONAL"},
                "networkFirewallPolicyEnforcementOrder": "AFTER_CLASSIC_FIREWALL",
                "subnetworks": subnets,
            }
        ]

    def subnetworks(self, region: str) -> list[Resource]:
        """Its subnetwork in a region."""
        subnet = self._resource("subnetwork", f"regions/{region}/subnetworks/default", "default")
        cidr = subnet_of(region)
        return [
            subnet
            | {
                "network": self._links.to("global/networks/default"),
                "region": self._links.to(f"regions/{region}"),
                "ipCidrRange": cidr,
                "gatewayAddress": cidr.replace("0/20", "1"),
                "privateIpGoogleAccess": False,
                "purpose": "PRIVATE",
                "stackType": "IPV4_ONLY",
                "fingerprint": fingerprint(cidr),
            }
        ]

    def images(self, project: str) -> list[Resource]:
        """The public images of a project."""
        return [self.image(image) for image in catalogue.IMAGES if image.project == project]

    def image(self, image: catalogue.Image) -> Resource:
        """One image; its links are Google's own, as the clients of images expect."""
        owner = Links("https://www.googleapis.com/compute/v1/", image.project)
        resource = self._resource("image", f"global/images/{image.name}", image.name)
        return resource | {
            "selfLink": owner.to(f"global/images/{image.name}"),
            "family": image.family,
            "status": "READY",
            "diskSizeGb": str(image.size_gb),
            "archiveSizeBytes": str(image.size_gb * 10**8),
            "sourceType": "RAW",
            "architecture": "X86_64",
            "labelFingerprint": fingerprint({}),
            "guestOsFeatures": [{"type": "VIRTIO_SCSI_MULTIQUEUE"}, {"type": "UEFI_COMPATIBLE"}, {"type": "GVNIC"}],
        }

    def project(self, quotas: list[Resource]) -> Resource:
        """The project itself."""
        number = _stable_id(self._links.project)
        return {
            "kind": "compute#project",
            "id": number,
            "creationTimestamp": LONG_AGO,
            "name": self._links.project,
            "selfLink": self._links.base + f"projects/{self._links.project}",
            "commonInstanceMetadata": {"kind": "compute#metadata", "fingerprint": fingerprint([])},
            "defaultServiceAccount": f"{number}-compute@developer.gserviceaccount.com",
            "defaultNetworkTier": "PREMIUM",
            "xpnProjectStatus": "UNSPECIFIED_XPN_PROJECT_STATUS",
            "quotas": quotas,
        }

    def _machine_type(self, zone: str, name: str, machine: catalogue.MachineType) -> Resource:
        resource = self._resource("machineType", f"zones/{zone}/machineTypes/{name}", name) | {
            "description": f"{machine.cpus} vCPUs, {machine.memory_mb / 1024:g} GB RAM",
            "guestCpus": machine.cpus,
            "memoryMb": machine.memory_mb,
            "maximumPersistentDisks": 128,
            "maximumPersistentDisksSizeGb": "263168",
            "isSharedCpu": name in ("f1-micro", "g1-small", "e2-micro", "e2-small", "e2-medium"),
            "architecture": "X86_64",
            # A short name here, where every other resource has a link; so Compute Engine answers.
            "zone": zone,
        }
        if machine.gpu is not None:
            kind, count = machine.gpu
            resource["accelerators"] = [{"guestAcceleratorType": kind, "guestAcceleratorCount": count}]
        return resource

    def _resource(self, kind: str, path: str, name: str) -> Resource:
        return {
            "kind": f"compute#{kind}",
            "id": _stable_id(path),
            "creationTimestamp": LONG_AGO,
            "name": name,
            "selfLink": self._links.to(path),
        }


def _stable_id(text: str) -> str:
    """A number that is the same in every world."""
    return str(1000 + int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))
