"""What Compute Engine offers and what the project may have of it, through google-cloud-compute. Only reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from itertools import chain
from typing import Any, Literal

from glgpu.clients.google_calls import GoogleCalls
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import (
    AcceleratorType,
    BootImage,
    CloudProject,
    MachineType,
    Nat,
    Network,
    NetworkRule,
    Quota,
    Region,
    Subnetwork,
    Zone,
)
from glgpu.job import Job


class ComputeCatalogue:
    """The cloud project's view of Compute Engine's offers.

    Every method may be called from several threads at once.

    Args:
        job: Credentials and endpoint.
        project: The Google Cloud project.
    """

    def __init__(self, job: Job, project: str) -> None:
        self.project = project
        self._google = GoogleCalls(job)

    def cloud_project(self) -> CloudProject:
        """The project, with its limits over all regions."""
        found = self._get("looking at the project", "ProjectsClient", project=self.project)
        if found is None:
            raise Failure(
                ErrorClass.NOT_FOUND,
                f"Google knows no project {self.project}",
                "check GLGPU_PROJECT, or `project` in glgpu.yml",
            )
        return CloudProject(
            name=found.name,
            quotas=_quotas(found.quotas, None),
            metadata={item.key: item.value for item in found.common_instance_metadata.items},
            service_account=found.default_service_account,
        )

    def regions(self) -> dict[str, Region]:
        """Every region by name, with the project's limits in it."""
        return {
            one.name: Region(
                name=one.name,
                status=one.status,
                zones=tuple(sorted(_last(zone) for zone in one.zones)),
                quotas=_quotas(one.quotas, one.name),
            )
            for one in self._list("listing the regions", "RegionsClient")
        }

    def zones(self) -> dict[str, Zone]:
        """Every zone by name."""
        found = self._list("listing the zones", "ZonesClient")
        return {one.name: Zone(one.name, _last(one.region), one.status) for one in found}

    def accelerator_types(self) -> list[AcceleratorType]:
        """Which GPU is in which zone."""
        return [
            AcceleratorType(one.name, _last(one.zone), one.maximum_cards_per_instance)
            for scope in self._scopes("listing the accelerator types", "AcceleratorTypesClient")
            for one in scope.accelerator_types
        ]

    def machine_types(self, names: Collection[str]) -> list[MachineType]:
        """In which zones these machine types are; custom ones are in no list, see ``machine_type``."""
        if not names:
            return []
        expression = " OR ".join(f"(name = {name})" for name in sorted(names))
        scopes = self._scopes("listing the machine types", "MachineTypesClient", filter=expression)
        return [_machine_type(one) for scope in scopes for one in scope.machine_types]

    def machine_type(self, name: str, zone: str) -> MachineType | None:
        """A machine type in a zone, custom ones included, or None."""
        doing = f"looking at the machine type {name} in {zone}"
        found = self._get(doing, "MachineTypesClient", project=self.project, zone=zone, machine_type=name)
        return _machine_type(found) if found is not None else None

    def disk_types(self, zone: str) -> set[str]:
        """Names of a zone's disk types."""
        return {one.name for one in self._list(f"listing the disk types of {zone}", "DiskTypesClient", zone=zone)}

    def image(self, path: str) -> BootImage | None:
        """An image, or the newest one of a family, or None."""
        names = re.fullmatch(
            r"(?:.*?projects/(?P<project>[^/]+)/)?global/images/(?P<family>family/)?(?P<name>[^/]+)", path
        )
        if names is None:
            raise Failure(
                ErrorClass.CONFIG,
                f"machine.image: {path} is no path of an image",
                "write projects/PROJECT/global/images/family/FAMILY, or .../global/images/NAME",
            )
        project, name = names["project"] or self.project, names["name"]
        doing = f"looking for the boot image {path}"
        if names["family"]:
            found = self._get(doing, "ImagesClient", "get_from_family", project=project, family=name)
        else:
            found = self._get(doing, "ImagesClient", project=project, image=name)
        if found is None:
            return None
        return BootImage(
            path=_path(found.self_link),
            family=found.family,
            status=found.status,
            disk_gb=found.disk_size_gb,
            deprecation=found.deprecated.state if found.deprecated.state != "ACTIVE" else "",
            replacement=_path(found.deprecated.replacement),
            architecture=found.architecture,
        )

    def network(self, network: str) -> Network | None:
        """A network by name or, where another project shares it, by path; or None."""
        owner, name = self._owner(network), _last(network)
        found = self._get(f"looking for the network {network}", "NetworksClient", project=owner, network=name)
        return Network(_path(found.self_link), found.auto_create_subnetworks) if found is not None else None

    def subnetworks(self, region: str, network: str) -> list[Subnetwork]:
        """The subnetworks of a network (name or path) in a region."""
        doing = f"listing the subnetworks in {region}"
        found = self._list(doing, "SubnetworksClient", project=self._owner(network), region=region)
        return [_subnetwork(one) for one in found if self._is(one.network, network)]

    def subnetwork(self, subnetwork: str, region: str) -> Subnetwork | None:
        """A subnetwork by name or path, or None."""
        parts = re.search(r"regions/([^/]+)/subnetworks/", subnetwork)
        found = self._get(
            f"looking for the subnetwork {subnetwork}",
            "SubnetworksClient",
            project=self._owner(subnetwork),
            region=parts[1] if parts else region,
            subnetwork=_last(subnetwork),
        )
        return _subnetwork(found) if found is not None else None

    def rules(self, network: str) -> list[NetworkRule]:
        """The firewall rules of a network (name or path)."""
        found = self._list("listing the firewall rules", "FirewallsClient", project=self._owner(network))
        return [_rule(one) for one in found if self._is(one.network, network)]

    def nats(self, region: str, network: str) -> list[Nat]:
        """The NATs of a network (name or path) in a region."""
        doing = f"listing the routers in {region}"
        routers = self._list(doing, "RoutersClient", project=self._owner(network), region=region)
        return [
            _nat(one, router.name) for router in routers if self._is(router.network, network) for one in router.nats
        ]

    def _get(self, doing: str, kind: str, method: str = "get", **names: str) -> Any:
        return self._call(doing, lambda: getattr(self._google.client(kind), method)(**names, **self._google.reading))

    def _list(self, doing: str, kind: str, **names: str) -> list[Any]:
        request = {"project": self.project, **names}
        return self._all(doing, lambda: self._google.client(kind).list(request=request, **self._google.reading))

    def _scopes(self, doing: str, kind: str, **names: str) -> list[Any]:
        """What stands under each zone of an aggregated list."""
        request = {"project": self.project, **names}
        found = self._all(
            doing, lambda: self._google.client(kind).aggregated_list(request=request, **self._google.reading)
        )
        return [scope for _, scope in found]

    def _all(self, doing: str, pages: Callable[[], Iterable[Any]]) -> list[Any]:
        return list(self._call(doing, lambda: list(pages())) or [])

    def _call(self, doing: str, call: Callable[[], Any]) -> Any:
        return self._google.call(doing, call, missing_is_none=True)

    def _owner(self, path: str) -> str:
        """The project that a path names; a mere name is one of our own."""
        found = re.search(r"projects/([^/]+)/", path)
        return found[1] if found else self.project

    def _is(self, link: str, network: str) -> bool:
        return _path(link) == f"projects/{self._owner(network)}/global/networks/{_last(network)}"


def _quotas(found: Iterable[Any], region: str | None) -> dict[str, Quota]:
    return {one.metric: Quota(one.metric, one.limit, one.usage, region) for one in found}


def _machine_type(found: Any) -> MachineType:
    gpu = found.accelerators[0] if found.accelerators else None
    return MachineType(
        name=found.name,
        zone=_last(found.zone),
        vcpus=found.guest_cpus,
        memory_gb=found.memory_mb / 1024,
        gpu=gpu.guest_accelerator_type if gpu else None,
        gpus=gpu.guest_accelerator_count if gpu else 0,
    )


def _subnetwork(found: Any) -> Subnetwork:
    return Subnetwork(
        path=_path(found.self_link),
        network=_path(found.network),
        cidr=found.ip_cidr_range,
        google_access=found.private_ip_google_access,
    )


def _rule(found: Any) -> NetworkRule:
    direction: Literal["INGRESS", "EGRESS"] = "EGRESS" if found.direction == "EGRESS" else "INGRESS"
    return NetworkRule(
        name=found.name,
        direction=direction,
        action="allow" if found.allowed else "deny",
        priority=found.priority,
        sources=tuple(found.source_ranges),
        source_tags=tuple(found.source_tags),
        source_accounts=tuple(found.source_service_accounts),
        target_tags=tuple(found.target_tags),
        target_accounts=tuple(found.target_service_accounts),
        protocols=_protocols(found.allowed or found.denied),
        disabled=found.disabled,
    )


def _protocols(entries: Iterable[Any]) -> dict[str, tuple[str, ...]]:
    """Protocol -> ports; a protocol may stand in several entries, and one of them without ports means all."""
    ports: dict[str, list[tuple[str, ...]]] = {}
    for entry in entries:
        ports.setdefault(entry.I_p_protocol, []).append(tuple(entry.ports))
    return {protocol: () if () in each else tuple(chain.from_iterable(each)) for protocol, each in ports.items()}


def _nat(found: Any, router: str) -> Nat:
    listed = found.source_subnetwork_ip_ranges_to_nat == "LIST_OF_SUBNETWORKS"
    return Nat(found.name, router, tuple(_path(one.name) for one in found.subnetworks) if listed else None)


def _last(link: str) -> str:
    return link.rpartition("/")[2]


def _path(link: str) -> str:
    """A link from ``projects/`` on, whatever host it names."""
    return link[link.find("projects/") :] if "projects/" in link else link
