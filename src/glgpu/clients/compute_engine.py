"""Compute Engine through google-cloud-compute.

Only the ``*_unary`` methods are used, and operations are awaited by an operations client of our own: the operation
objects that the library offers otherwise forget the endpoint that they were made with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from glgpu.classify import explain
from glgpu.clients.google_calls import PATIENCE_SECONDS, GoogleCalls
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import FirewallRule, Instance, Made, Operation
from glgpu.job import Job

OPERATION_SECONDS = 300.0
NOT_READY = "resourceNotReady"


class ComputeEngine:
    """The cloud project's Compute Engine. Every method may be called from several threads at once.

    Args:
        job: Credentials and endpoint.
        project: The Google Cloud project.
        say: Takes a line when Google has to be asked again.
    """

    def __init__(self, job: Job, project: str, say: Callable[[str], None] = lambda _: None) -> None:
        self.project = project
        self._google = GoogleCalls(job, say)

    def find(self, name: str) -> list[Instance]:
        """Every instance of that name, in whatever zone and status."""
        return self._list(f"name={name}")

    def labelled(self, labels: Mapping[str, str]) -> list[Instance]:
        """Every instance with all of these labels, in whatever zone and status."""
        return self._list(" AND ".join(f"labels.{key}={value}" for key, value in labels.items()))

    def of_run(self, name: str, run: str) -> list[Instance]:
        """Every instance of that name or whose label ``glgpu-run`` has that value, wherever it is: one list."""
        # Two plain expressions: Google documents OR between brackets, but no AND within them.
        return self._list(f'(name = "{name}") OR (labels.glgpu-run = "{run}")')

    def operations(self, name: str) -> list[Operation]:
        """What is or was done to instances of that name, wherever they are: one list, as far as Google recalls."""
        # One expression alone: regular expressions cannot be combined with constraints on other fields.
        request = {"project": self.project, "filter": f'targetLink eq ".*/instances/{name}"'}
        scopes = self._google.call(
            f"looking at what is done to {name}",
            lambda: list(self._global_operations.aggregated_list(request=request, **self._google.reading)),
        )
        return [_operation(one, name, _last(one.zone)) for _, scope in scopes or [] for one in scope.operations]

    def instances_named(self, prefix: str) -> list[Instance]:
        """Every instance whose name begins so, in whatever zone and status, whatever its labels."""
        return self._list(_begins_with(prefix))

    def get(self, name: str, zone: str) -> Instance | None:
        """One instance, or None."""
        found = self._google.call(
            f"looking at the VM {name}",
            lambda: self._instances.get(project=self.project, zone=zone, instance=name, **self._google.reading),
            missing_is_none=True,
        )
        return _instance(found) if found is not None else None

    def inserts(self, name: str, zone: str) -> list[Operation]:
        """The operations, finished or not, that were to create an instance of that name in that zone.

        Found by their target, since Terraform makes them and tells nobody their names.
        """
        # One expression alone: regular expressions cannot be combined with constraints on other fields.
        request = {"project": self.project, "zone": zone, "filter": f'targetLink eq ".*/instances/{name}"'}
        found = self._google.call(
            f"looking at the insert of {name}",
            lambda: list(self._zone_operations.list(request=request, **self._google.reading)),
        )
        return [_operation(one, name, zone) for one in found if one.operation_type == "insert"]

    def delete_instance(self, name: str, zone: str) -> None:
        """Ask for an instance's end, which is not waited for; not found is success."""
        doing = f"deleting the VM {name} in {zone}"
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self._google.call(
                    doing,
                    lambda: self._instances.delete_unary(
                        project=self.project, zone=zone, instance=name, **self._google.writing
                    ),
                    missing_is_none=True,
                )
                return
            except Failure as failure:
                # It is being deleted already, or changed or stopped by somebody: until that is over it is not ready.
                if NOT_READY not in failure.evidence or time.monotonic() > end:
                    raise
                time.sleep(1.0)

    def edit_metadata(self, name: str, zone: str, edit: Callable[[dict[str, str]], dict[str, str]]) -> None:
        """Change metadata items; repeated when somebody else changed them meanwhile."""
        from google.cloud import compute_v1

        def change(current: Any) -> Any:
            old = {item.key: item.value for item in current.metadata.items}
            new = edit(dict(old))
            if new == old:
                return None
            items = [compute_v1.Items(key=key, value=value) for key, value in new.items()]
            return self._instances.set_metadata_unary(
                project=self.project,
                zone=zone,
                instance=name,
                metadata_resource=compute_v1.Metadata(fingerprint=current.metadata.fingerprint, items=items),
                **self._google.writing,
            )

        self._edit(f"changing the metadata of {name}", name, zone, change)

    def edit_labels(self, name: str, zone: str, labels: Mapping[str, str]) -> None:
        """Set labels; the others stay. Repeated when somebody else changed them meanwhile."""
        from google.cloud import compute_v1

        def change(current: Any) -> Any:
            body = compute_v1.InstancesSetLabelsRequest(
                label_fingerprint=current.label_fingerprint, labels={**dict(current.labels), **labels}
            )
            return self._instances.set_labels_unary(
                project=self.project,
                zone=zone,
                instance=name,
                instances_set_labels_request_resource=body,
                **self._google.writing,
            )

        self._edit(f"changing the labels of {name}", name, zone, change)

    def guest_attributes(self, name: str, zone: str, namespace: str) -> dict[str, str]:
        """What the guest published under a namespace; empty while there is nothing."""
        request = {"project": self.project, "zone": zone, "instance": name, "query_path": f"{namespace}/"}
        found = self._google.call(
            f"reading the guest attributes of {name}",
            lambda: self._instances.get_guest_attributes(request=request, **self._google.reading),
            missing_is_none=True,
        )
        return {item.key: item.value for item in found.query_value.items} if found is not None else {}

    def serial_output(self, name: str, zone: str, *, last: int = 4096) -> str:
        """The last bytes of the serial console, empty where it cannot be had."""
        request = {"project": self.project, "zone": zone, "instance": name, "start": -last}
        try:
            found = self._google.call(
                f"reading the serial console of {name}",
                lambda: self._instances.get_serial_port_output(request=request, **self._google.reading),
                missing_is_none=True,
            )
        except Failure:
            return ""
        return str(found.contents) if found is not None else ""

    def rule(self, name: str) -> FirewallRule | None:
        """A firewall rule, or None."""
        found = self._google.call(
            f"looking at the firewall rule {name}",
            lambda: self._firewalls.get(project=self.project, firewall=name, **self._google.reading),
            missing_is_none=True,
        )
        if found is None:
            return None
        kind = "allow" if found.allowed else "deny"
        return FirewallRule(
            name=found.name,
            action="allow" if kind == "allow" else "deny",
            sources=tuple(found.source_ranges),
            target_tag=next(iter(found.target_tags), ""),
            priority=found.priority,
            network=found.network,
            ports=tuple(port for entry in (found.allowed or found.denied) for port in entry.ports),
            disabled=found.disabled,
        )

    def create_rule(self, rule: FirewallRule) -> None:
        """Create a rule; one that exists already is left as it is."""
        from google.cloud import compute_v1

        body = compute_v1.Firewall(
            name=rule.name,
            direction="INGRESS",
            priority=rule.priority,
            source_ranges=list(rule.sources),
            target_tags=[rule.target_tag],
            disabled=rule.disabled,
            network=rule.network if "/" in rule.network else f"projects/{self.project}/global/networks/{rule.network}",
            description="made by glgpu for one run",
        )
        if rule.action == "allow":
            body.allowed = [compute_v1.Allowed(I_p_protocol="tcp", ports=list(rule.ports))]
        else:
            body.denied = [compute_v1.Denied(I_p_protocol="tcp", ports=list(rule.ports))]
        doing = f"creating the firewall rule {rule.name}"
        try:
            operation = self._google.call(
                doing,
                lambda: self._firewalls.insert_unary(
                    project=self.project, firewall_resource=body, **self._google.writing
                ),
            )
            self._finish_global(operation.name, doing)
        except Failure as failure:
            if failure.klass is not ErrorClass.CONFLICT:
                raise

    def change_rule(self, name: str, sources: Sequence[str], *, disabled: bool) -> None:
        """Set who a rule is for."""
        from google.cloud import compute_v1

        doing = f"changing the firewall rule {name}"
        body = compute_v1.Firewall(name=name, source_ranges=list(sources), disabled=disabled)
        operation = self._google.call(
            doing,
            lambda: self._firewalls.patch_unary(
                project=self.project, firewall=name, firewall_resource=body, **self._google.writing
            ),
        )
        self._finish_global(operation.name, doing)

    def delete_rule(self, name: str) -> None:
        """Delete a rule; not found is success."""
        doing = f"deleting the firewall rule {name}"
        operation = self._google.call(
            doing,
            lambda: self._firewalls.delete_unary(project=self.project, firewall=name, **self._google.writing),
            missing_is_none=True,
        )
        if operation is not None:
            self._finish_global(operation.name, doing)

    def disks(self, name: str) -> list[tuple[str, str]]:
        """Disks of that name as (name, zone)."""
        request = {"project": self.project, "filter": f"name={name}"}
        scopes = self._google.call(
            f"looking for disks named {name}",
            lambda: list(self._disks.aggregated_list(request=request, **self._google.reading)),
        )
        return [(disk.name, _last(disk.zone)) for _, scope in scopes or [] for disk in scope.disks]

    def disks_named(self, prefix: str) -> list[Made]:
        """Every disk whose name begins so, attached or not."""
        request = {"project": self.project, "filter": _begins_with(prefix)}
        scopes = self._google.call(
            "listing the disks", lambda: list(self._disks.aggregated_list(request=request, **self._google.reading))
        )
        return [
            Made(disk.name, _last(disk.zone), disk.creation_timestamp) for _, scope in scopes for disk in scope.disks
        ]

    def rules_named(self, prefix: str) -> list[Made]:
        """Every firewall rule whose name begins so."""
        request = {"project": self.project, "filter": _begins_with(prefix)}
        rules = self._google.call(
            "listing the firewall rules", lambda: list(self._firewalls.list(request=request, **self._google.reading))
        )
        return [Made(rule.name, "", rule.creation_timestamp) for rule in rules]

    def delete_disk(self, name: str, zone: str) -> None:
        """Delete a disk; not found is success."""
        doing = f"deleting the disk {name} in {zone}"
        operation = self._google.call(
            doing,
            lambda: self._disks.delete_unary(project=self.project, zone=zone, disk=name, **self._google.writing),
            missing_is_none=True,
        )
        if operation is not None:
            self._finish_zone(operation.name, zone, doing)

    def zones(self, region: str) -> list[str]:
        """The zones of a region that are up."""
        found = self._google.call(
            f"listing the zones of {region}",
            lambda: list(self._zones.list(project=self.project, **self._google.reading)),
        )
        return sorted(zone.name for zone in found or [] if _last(zone.region) == region and zone.status == "UP")

    def _list(self, expression: str) -> list[Instance]:
        request = {"project": self.project, "filter": expression}
        scopes = self._google.call(
            "listing the VMs",
            lambda: list(self._instances.aggregated_list(request=request, **self._google.reading)),
        )
        return [_instance(one) for _, scope in scopes or [] for one in scope.instances]

    def _edit(self, doing: str, name: str, zone: str, change: Callable[[Any], Any]) -> None:
        """Read, change, write; a fingerprint that is no longer current (412 conditionNotMet) means once more."""
        for last in (False, False, False, False, True):
            current = self._google.call(
                doing,
                lambda: self._instances.get(project=self.project, zone=zone, instance=name, **self._google.reading),
            )
            try:
                operation = self._google.call(doing, partial(change, current))
                if operation is not None:
                    self._finish_zone(operation.name, zone, doing)
                return
            except Failure as failure:
                if failure.klass is not ErrorClass.CONFLICT or last:
                    raise

    def _finish_zone(self, operation: str, zone: str, doing: str) -> None:
        self._finish(
            doing,
            lambda: self._zone_operations.wait(
                project=self.project, zone=zone, operation=operation, **self._google.waiting
            ),
        )

    def _finish_global(self, operation: str, doing: str) -> None:
        self._finish(
            doing,
            lambda: self._global_operations.wait(project=self.project, operation=operation, **self._google.waiting),
        )

    def _finish(self, doing: str, wait: Callable[[], Any]) -> None:
        """Wait for an operation: each call waits up to two minutes on Google's side."""
        from google.cloud import compute_v1

        end = time.monotonic() + OPERATION_SECONDS
        while True:
            operation = self._google.call(doing, wait, missing_is_none=True)
            if operation is None:
                return  # operations of a vanished target are forgotten
            if operation.status == compute_v1.Operation.Status.DONE:
                failure = _operation_failure(operation, doing)
                if failure is not None and failure.klass is not ErrorClass.NOT_FOUND:
                    raise failure
                return
            if time.monotonic() > end:
                raise Failure(
                    ErrorClass.TRANSIENT,
                    f"{doing}: Google has not finished after {OPERATION_SECONDS:.0f} s",
                    "retry the job",
                )

    @property
    def _instances(self) -> Any:
        return self._google.client("InstancesClient")

    @property
    def _firewalls(self) -> Any:
        return self._google.client("FirewallsClient")

    @property
    def _disks(self) -> Any:
        return self._google.client("DisksClient")

    @property
    def _zones(self) -> Any:
        return self._google.client("ZonesClient")

    @property
    def _zone_operations(self) -> Any:
        return self._google.client("ZoneOperationsClient")

    @property
    def _global_operations(self) -> Any:
        return self._google.client("GlobalOperationsClient")


def _instance(found: Any) -> Instance:
    interface = found.network_interfaces[0] if found.network_interfaces else None
    access = interface.access_configs[0] if interface and interface.access_configs else None
    return Instance(
        name=found.name,
        zone=_last(found.zone),
        status=found.status,
        address=access.nat_i_p if access else "",
        internal_address=interface.network_i_p if interface else "",
        labels=dict(found.labels),
        metadata={item.key: item.value for item in found.metadata.items},
        created=found.creation_timestamp,
        id=str(found.id),
        max_run_seconds=found.scheduling.max_run_duration.seconds,
        os_login=found.resource_status.effective_instance_metadata.enable_oslogin_metadata_value,
    )


def _operation(found: Any, name: str, zone: str) -> Operation:
    from google.cloud import compute_v1

    verb = {"insert": "creating", "delete": "deleting"}.get(found.operation_type, found.operation_type)
    explained = _insert_failure if found.operation_type == "insert" else _operation_failure
    return Operation(
        operation=found.name,
        kind=found.operation_type,
        zone=zone,
        instance_id=str(found.target_id),
        done=found.status == compute_v1.Operation.Status.DONE,
        failure=explained(found, f"{verb} the VM {name} in {zone}"),
    )


def _begins_with(prefix: str) -> str:
    """A filter; the right side of ``eq`` is a regular expression for the whole value."""
    return f'name eq "{prefix}.*"'


def _last(link: str) -> str:
    return link.rsplit("/", 1)[-1]


def _insert_failure(operation: Any, doing: str) -> Failure | None:
    """Why an insert failed; None while it has not.

    Google's word for a Spot VM that is taken away before it runs is UNSUPPORTED_OPERATION.
    """
    failure = _operation_failure(operation, doing)
    if failure is not None and any(error.code == "UNSUPPORTED_OPERATION" for error in operation.error.errors):
        return Failure(ErrorClass.PREEMPTED, failure.cause, "retry the job, or set spot: never", failure.evidence)
    return failure


def _operation_failure(operation: Any, doing: str) -> Failure | None:
    errors = list(operation.error.errors)
    if not errors:
        return None
    return explain("\n".join(line for error in errors for line in _told(error)), doing=doing)


def _told(error: Any) -> list[str]:
    """Everything that an operation's error says, the zones included that have what this one lacks."""
    details = list(error.error_details)
    texts = [detail.localized_message.message for detail in details]
    zones = [detail.error_info.metadatas.get("zonesAvailable", "") for detail in details]
    return [
        f"{error.code}: {error.message}",
        *filter(None, texts),
        *(f"zonesAvailable: {named}" for named in zones if named),
    ]
