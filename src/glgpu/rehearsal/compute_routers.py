"""Cloud Routers, as far as a NAT needs one."""

from __future__ import annotations

from glgpu.rehearsal.compute_errors import already_exists, invalid, not_found
from glgpu.rehearsal.compute_resources import Links, Resource, new_id, reference, timestamp

NAT_DEFAULTS: Resource = {
    "autoNetworkTier": "PREMIUM",
    "enableDynamicPortAllocation": False,
    "enableEndpointIndependentMapping": False,
    "endpointTypes": ["ENDPOINT_TYPE_VM"],
    "icmpIdleTimeoutSec": 30,
    "tcpEstablishedIdleTimeoutSec": 1200,
    "tcpTimeWaitTimeoutSec": 120,
    "tcpTransitoryIdleTimeoutSec": 30,
    "type": "PUBLIC",
    "udpIdleTimeoutSec": 30,
}
"""What Google fills in for a public NAT (https://cloud.google.com/nat/docs/tune-nat-configuration)."""


class Routers:
    """The project's routers.

    Attributes:
        all: By region and name.
    """

    def __init__(self, links: Links) -> None:
        self.all: dict[tuple[str, str], Resource] = {}
        self._links = links

    def in_region(self, region: str) -> list[Resource]:
        """The routers of a region."""
        return [router for (where, _), router in self.all.items() if where == region]

    def make(self, region: str, body: Resource, now: float) -> Resource:
        """Add a router.

        Raises:
            ApiError: The name is taken, or the network is none.
        """
        name = body.get("name", "")
        path = f"regions/{region}/routers/{name}"
        if (region, name) in self.all:
            raise already_exists(f"projects/{self._links.project}/{path}")
        project, network = reference(
            body.get("network", ""), "resource.network", "global/networks/*", self._links.project
        )
        self.all[region, name] = {
            "kind": "compute#router",
            "id": new_id(),
            "creationTimestamp": timestamp(now),
            "name": name,
            "region": self._links.to(f"regions/{region}"),
            "network": f"{self._links.base}projects/{project}/global/networks/{network}",
            "encryptedInterconnectRouter": False,
            "selfLink": self._links.to(path),
            **({"description": body["description"]} if body.get("description") else {}),
        }
        self.change(self.all[region, name], body)
        return self.all[region, name]

    def find(self, region: str, name: str) -> Resource:
        """A router by name.

        Raises:
            ApiError: There is none.
        """
        if (region, name) not in self.all:
            raise not_found(f"projects/{self._links.project}/regions/{region}/routers/{name}")
        return self.all[region, name]

    def change(self, router: Resource, body: Resource) -> None:
        """Give a router the NATs of a request, if it names any; an empty list takes them away.

        Raises:
            ApiError: A NAT is no whole one, or two have one name.
        """
        if "nats" not in body:
            return
        names = [nat.get("name") for nat in body["nats"]]
        if None in names or len(set(names)) < len(names):
            raise invalid("resource.nats", names, "Names must be given and differ.")
        for nat in body["nats"]:
            for field in ("natIpAllocateOption", "sourceSubnetworkIpRangesToNat"):
                if field not in nat:
                    raise invalid(f"resource.nats[0].{field}", "", "The field must be given.")
        kept = [{key: value for key, value in nat.items() if key != "initialNatIps"} for nat in body["nats"]]
        router["nats"] = [{**NAT_DEFAULTS, **nat} for nat in kept]
        if not router["nats"]:
            del router["nats"]
