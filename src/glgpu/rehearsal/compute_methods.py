"""What the API's methods do, one handler each, and which resources the lists show."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from glgpu.rehearsal import cloud_catalogue as catalogue
from glgpu.rehearsal.compute_errors import (
    OperationFailed,
    already_exists,
    internal_error,
    invalid,
    not_found,
    not_served,
)
from glgpu.rehearsal.compute_firewalls import DEFAULT_PRIORITY, DEFAULT_RULES, admits, completed, patched
from glgpu.rehearsal.compute_instances import Instance, Instances
from glgpu.rehearsal.compute_lists import no_results, page
from glgpu.rehearsal.compute_operations import Operation, Operations
from glgpu.rehearsal.compute_orders import image_of_family
from glgpu.rehearsal.compute_places import Places
from glgpu.rehearsal.compute_resources import Links, Resource, new_id, timestamp
from glgpu.rehearsal.compute_routers import Routers
from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.google_api import ApiDescription, Method
from glgpu.rehearsal.world_clock import WorldClock

INSERT_FAULTS = frozenset(
    {"stockout", "quota", "operation-error", "preempted", "vanish", "late", "late-unseen", "image-gone"}
)


@dataclass(frozen=True)
class Request:
    """A call that means a method of the API.

    Attributes:
        method: Which.
        names: The path's parameters.
        query: The query's parameters.
        body: The JSON in the body, nulls dropped.
        fault: The rule that applies to this visit and is left to the method.
    """

    method: Method
    names: dict[str, str]
    query: dict[str, str]
    body: Resource
    fault: Rule | None

    @property
    def scope(self) -> str:
        """``zones/Z``, ``regions/R`` or ``global``."""
        for kind in ("zone", "region"):
            if kind in self.names and self.method.resource != f"{kind}s":
                return f"{kind}s/{self.names[kind]}"
        return "global"

    @property
    def failure(self) -> OperationFailed | None:
        """How the operation of this request is to fail."""
        if self.fault is not None and self.fault.action == "operation-error":
            return internal_error(self.fault.argument)
        return None


Handler = Callable[[Request], Awaitable[Resource]]


@dataclass
class Firewall:
    """One firewall rule.

    Attributes:
        resource: What callers see of it.
        in_force: What the network goes by: a change counts from the end of its operation.
    """

    resource: Resource
    in_force: Resource | None


class Firewalls:
    """The project's firewall rules; begins with those of every new project."""

    def __init__(self) -> None:
        self.rules: dict[str, Firewall] = {}

    def admits(self, tags: set[str], source: str, port: int) -> bool:
        """Whether the rules in force let a TCP connection from outside reach an instance with these tags."""
        return admits([rule.in_force for rule in self.rules.values() if rule.in_force], tags, source, port)


class Methods:
    """The methods that are served, over the state that they change."""

    def __init__(
        self,
        api: ApiDescription,
        clock: WorldClock,
        links: Links,
        operations: Operations,
        instances: Instances,
        firewalls: Firewalls,
    ) -> None:
        self._api = api
        self._clock = clock
        self._links = links
        self._project = links.project
        self._operations = operations
        self._instances = instances
        self._firewalls = firewalls.rules
        self._places = Places(links)
        self._routers = Routers(links)
        self._requests: dict[str, Operation] = {}
        self._handlers = self._all_handlers()
        for rule in DEFAULT_RULES:
            resource = self._firewall_resource({**rule, "priority": DEFAULT_PRIORITY})
            self._firewalls[rule["name"]] = Firewall(resource, resource)

    async def answer(self, request: Request) -> Resource:
        """Do what a request asks for.

        Raises:
            ApiError: Google's refusal.
        """
        if request.method.id not in self._handlers:
            raise not_served(request.method.id)
        return await self._handlers[request.method.id](request)

    def _all_handlers(self) -> dict[str, Handler]:
        handlers: dict[str, Handler] = {
            "compute.projects.get": self._get_project,
            "compute.images.getFromFamily": self._image_of_family,
            "compute.instances.insert": self._insert_instance,
            "compute.instances.delete": self._delete_instance,
            "compute.instances.stop": self._stop_instance,
            "compute.instances.setMetadata": self._set_metadata,
            "compute.instances.setLabels": self._set_labels,
            "compute.instances.setTags": self._set_tags,
            "compute.instances.getGuestAttributes": self._guest_attributes,
            "compute.instances.getSerialPortOutput": self._serial_output,
            "compute.disks.delete": self._delete_disk,
            "compute.firewalls.insert": self._insert_firewall,
            "compute.firewalls.patch": self._patch_firewall,
            "compute.firewalls.update": self._update_firewall,
            "compute.firewalls.delete": self._delete_firewall,
        }
        for collection in ("zone", "global", "region"):
            handlers[f"compute.{collection}Operations.get"] = self._look_at_operation
            handlers[f"compute.{collection}Operations.wait"] = self._wait_for_operation
            handlers[f"compute.{collection}Operations.list"] = self._list
        for collection in ("zones", "regions", "images", "firewalls", "networks"):
            handlers[f"compute.{collection}.get"] = self._get
            handlers[f"compute.{collection}.list"] = self._list
        for collection in (
            "machineTypes",
            "acceleratorTypes",
            "diskTypes",
            "disks",
            "instances",
            "subnetworks",
            "routers",
        ):
            handlers[f"compute.{collection}.get"] = self._get
            handlers[f"compute.{collection}.list"] = self._list
            handlers[f"compute.{collection}.aggregatedList"] = self._aggregated_list
        handlers["compute.machineTypes.get"] = self._machine_type
        handlers["compute.globalOperations.aggregatedList"] = self._aggregated_list
        for verb in ("insert", "patch", "delete"):
            handlers[f"compute.routers.{verb}"] = self._change_router
        return handlers

    def _in_scope(self, resource: str, scope: str, project: str) -> list[Resource]:
        """The resources of one kind in one zone, region or, for ``global``, the project."""
        place = scope.partition("/")[2]
        match resource:
            case "zones":
                return self._places.zones()
            case "regions":
                return [self._places.region(region, self._instances.quotas(region)) for region in catalogue.REGIONS]
            case "images":
                return self._places.images(project)
            case "networks":
                return self._places.networks()
            case "firewalls":
                return [firewall.resource for firewall in self._firewalls.values()]
            case "routers":
                return self._routers.in_region(place) if scope.startswith("regions/") else []
            case "subnetworks" if scope.startswith("regions/"):
                return self._places.subnetworks(place)
            case "zoneOperations" | "globalOperations" | "regionOperations":
                return self._operations.in_scope(scope)  # an aggregated list of operations has all three kinds
        by_zone = {
            "machineTypes": self._places.machine_types,
            "acceleratorTypes": self._places.accelerator_types,
            "diskTypes": self._places.disk_types,
            "disks": self._instances.disks,
            "instances": self._instances.resources,
        }
        return by_zone[resource](place) if resource in by_zone and scope.startswith("zones/") else []

    async def _get(self, request: Request) -> Resource:
        self._check_scope(request)
        name = list(request.names.values())[-1]
        for resource in self._in_scope(request.method.resource, request.scope, request.names["project"]):
            if name in (resource["name"], resource["id"]):
                return resource
        raise not_found(resource_path(request.names, request.method, {}))

    async def _machine_type(self, request: Request) -> Resource:
        self._check_scope(request)
        found = self._places.machine_type(request.names["zone"], request.names["machineType"])
        return found if found is not None else await self._get(request)

    async def _list(self, request: Request) -> Resource:
        self._check_scope(request)
        schema = self._api.item_schema(request.method.response)
        items = self._in_scope(request.method.resource, request.scope, request.names["project"])
        chosen, token = page({"": items}, request.query, lambda field: self._api.knows_field(schema, field))
        return self._list_answer(request, chosen[""], token)

    async def _aggregated_list(self, request: Request) -> Resource:
        key, schema = self._api.scoped_list(request.method.response)
        regional = request.method.resource in ("subnetworks", "routers")
        scopes = [f"regions/{r}" for r in catalogue.REGIONS] if regional else [f"zones/{z}" for z in catalogue.ZONES]
        operations = request.method.resource == "globalOperations"
        if operations or request.query.get("includeAllScopes", "").lower() == "true":
            others = (
                [f"zones/{z}" for z in catalogue.ZONES] if regional else [f"regions/{r}" for r in catalogue.REGIONS]
            )
            scopes = ["global", *scopes, *others]
        found = {s: self._in_scope(request.method.resource, s, self._project) for s in scopes}
        chosen, token = page(found, request.query, lambda field: self._api.knows_field(schema, field))
        items = {s: {key: part} if part else {"warning": no_results(s)} for s, part in chosen.items()}
        return self._list_answer(request, items, token)

    def _list_answer(self, request: Request, items: Any, token: str | None) -> Resource:
        path = _collection_path(request)
        answer: Resource = {
            "kind": self._api.kind_of(request.method.response),
            "id": f"projects/{request.names['project']}/{path}",
            "selfLink": f"{self._links.base}projects/{request.names['project']}/{path}",
        }
        if items:
            answer["items"] = items
        if token is not None:
            answer["nextPageToken"] = token
        return answer

    def _check_scope(self, request: Request) -> None:
        """Refuse a zone or a region that does not exist.

        Raises:
            ApiError: Google's refusal.
        """
        if request.scope.startswith("zones/") and request.names["zone"] not in catalogue.ZONES:
            raise invalid("zone", request.names["zone"], "Unknown zone.")
        if request.scope.startswith("regions/") and request.names["region"] not in catalogue.REGIONS:
            raise invalid("region", request.names["region"], "Unknown region.")

    async def _get_project(self, _: Request) -> Resource:
        return self._places.project(self._instances.quotas(None))

    async def _image_of_family(self, request: Request) -> Resource:
        owner, family = request.names["project"], request.names["family"]
        image = image_of_family(owner, family)
        if image is None:
            raise not_found(f"projects/{owner}/global/images/family/{family}")
        return self._places.image(image)

    def _operation(self, request: Request) -> Operation:
        operation = self._operations.find(request.scope, request.names["operation"])
        if operation is None:
            raise not_found(resource_path(request.names, request.method, {}))
        return operation

    async def _look_at_operation(self, request: Request) -> Resource:
        return await self._operations.look(self._operation(request))

    async def _wait_for_operation(self, request: Request) -> Resource:
        return await self._operations.wait(self._operation(request))

    def _begun(self, request: Request, begin: Callable[[], Operation]) -> Resource:
        """Begin an operation; a request id that was seen before gets the operation that it got then."""
        request_id = request.query.get("requestId", "")
        operation = self._requests.get(request_id) or begin()
        if request_id:
            self._requests[request_id] = operation
        return dict(operation.resource)

    async def _insert_instance(self, request: Request) -> Resource:
        fault = request.fault if request.fault and request.fault.action in INSERT_FAULTS else None
        zone = request.names["zone"]
        return self._begun(request, lambda: self._instances.insert(zone, request.body, fault))

    def _instance(self, request: Request) -> Instance:
        self._check_scope(request)
        return self._instances.get(request.names["zone"], request.names["instance"])

    async def _delete_instance(self, request: Request) -> Resource:
        late = request.fault is not None and request.fault.action == "late"
        seconds = float(request.fault.argument) if request.fault is not None and late else None
        return self._begun(request, lambda: self._instances.delete(self._instance(request), request.failure, seconds))

    async def _stop_instance(self, request: Request) -> Resource:
        return self._begun(request, lambda: self._instances.stop(self._instance(request), request.failure))

    async def _set_metadata(self, request: Request) -> Resource:
        return self._begun(
            request, lambda: self._instances.set_metadata(self._instance(request), request.body, request.failure)
        )

    async def _set_labels(self, request: Request) -> Resource:
        return self._begun(
            request, lambda: self._instances.set_labels(self._instance(request), request.body, request.failure)
        )

    async def _set_tags(self, request: Request) -> Resource:
        return self._begun(
            request, lambda: self._instances.set_tags(self._instance(request), request.body, request.failure)
        )

    async def _guest_attributes(self, request: Request) -> Resource:
        return self._instances.guest_attributes(self._instance(request), request.query)

    async def _serial_output(self, request: Request) -> Resource:
        port, start = int(request.query.get("port", 1)), int(request.query.get("start", 0))
        return self._instances.serial_output(self._instance(request), port, start)

    async def _delete_disk(self, request: Request) -> Resource:
        self._check_scope(request)
        zone, name = request.names["zone"], request.names["disk"]
        return self._begun(request, lambda: self._instances.delete_disk(zone, name, request.failure))

    # Firewall rules

    def _firewall_resource(self, body: Resource, before: Resource | None = None) -> Resource:
        """A rule as callers see it; ``before`` is what it was, for the fields that never change."""
        network = self._links.to("global/networks/default")
        fixed = before or {"id": new_id(), "creationTimestamp": timestamp(self._clock.now())}
        return completed(body, self._project, network) | {
            "kind": "compute#firewall",
            "id": fixed["id"],
            "creationTimestamp": fixed["creationTimestamp"],
            "selfLink": self._links.to(f"global/firewalls/{body['name']}"),
        }

    def _firewall(self, request: Request) -> Firewall:
        name = request.names["firewall"]
        for firewall in self._firewalls.values():
            if name in (firewall.resource["name"], firewall.resource["id"]):
                return firewall
        raise not_found(f"projects/{self._project}/global/firewalls/{name}")

    async def _insert_firewall(self, request: Request) -> Resource:
        def begin() -> Operation:
            name = request.body["name"]
            if name in self._firewalls:
                raise already_exists(f"projects/{self._project}/global/firewalls/{name}")
            firewall = self._firewalls[name] = Firewall(self._firewall_resource(request.body), None)
            return self._enforce("insert", firewall, request, undo=lambda: self._forget(name))

        return self._begun(request, begin)

    async def _patch_firewall(self, request: Request) -> Resource:
        firewall = self._firewall(request)
        return self._begun(request, lambda: self._change(firewall, patched(firewall.resource, request.body), request))

    async def _update_firewall(self, request: Request) -> Resource:
        firewall = self._firewall(request)
        body = {"name": firewall.resource["name"], **request.body}
        return self._begun(request, lambda: self._change(firewall, body, request))

    def _change(self, firewall: Firewall, rule: Resource, request: Request) -> Operation:
        before = firewall.resource
        for key in ("name", "direction"):
            if request.body.get(key, before[key]) != before[key]:
                raise invalid(f"resource.{key}", request.body[key], "The field cannot be changed.")
        firewall.resource = self._firewall_resource(rule, before)

        def undo() -> None:
            firewall.resource = before

        return self._enforce(request.method.verb, firewall, request, undo=undo)

    def _enforce(self, kind: str, firewall: Firewall, request: Request, undo: Callable[[], None]) -> Operation:
        resource = firewall.resource

        async def work() -> None:
            firewall.in_force = resource

        return self._operations.begin(kind, resource, "global", work, undo=undo, failure=request.failure)

    async def _delete_firewall(self, request: Request) -> Resource:
        firewall = self._firewall(request)

        async def work() -> None:
            self._forget(firewall.resource["name"])

        return self._begun(
            request,
            lambda: self._operations.begin("delete", firewall.resource, "global", work, failure=request.failure),
        )

    async def _change_router(self, request: Request) -> Resource:
        self._check_scope(request)
        region, verb = request.names["region"], request.method.verb

        async def done() -> None:
            pass

        def begin() -> Operation:
            if verb == "insert":
                router = self._routers.make(region, request.body, self._clock.now())
            else:
                router = self._routers.find(region, request.names["router"])
            if verb == "patch":
                self._routers.change(router, request.body)
            if verb == "delete":
                del self._routers.all[region, router["name"]]
            return self._operations.begin(verb, router, request.scope, done, failure=request.failure)

        return self._begun(request, begin)

    def _forget(self, name: str) -> None:
        self._firewalls.pop(name, None)


def resource_path(names: dict[str, str], method: Method, body: Resource) -> str:
    """``projects/P/zones/Z/instances/N``: what a request is about, for a refusal."""
    words = [names.get(s[1:-1], s) if s.startswith("{") else s for s in method.segments]
    if method.verb == "insert":
        return "/".join([*words, str(body.get("name", ""))])
    last = max((i for i, s in enumerate(method.segments) if s.startswith("{")), default=len(words) - 1)
    return "/".join(words[: last + 1] if method.verb not in ("list", "aggregatedList") else words)


def _collection_path(request: Request) -> str:
    return "/".join(resource_path(request.names, request.method, {}).split("/")[2:])
