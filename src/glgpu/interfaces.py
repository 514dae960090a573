"""What a step may ask of a client: small protocols, so that steps know no library and tests need no network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, Protocol

from glgpu.errors import Failure
from glgpu.processes import Done


@dataclass(frozen=True)
class Instance:
    """A VM as Compute Engine describes it.

    Attributes:
        name: Its name.
        zone: Its zone.
        status: PROVISIONING, STAGING, RUNNING, STOPPING, TERMINATED, ...
        address: External IPv4 address, or empty.
        internal_address: Internal IPv4 address, or empty.
        labels: Its labels.
        metadata: Its metadata items.
        created: RFC 3339 time.
    """

    name: str
    zone: str
    status: str
    address: str = ""
    internal_address: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    created: str = ""


@dataclass(frozen=True)
class FirewallRule:
    """An ingress rule for SSH to the instances of one run.

    Attributes:
        name: Its name.
        action: Whether it lets in or keeps out.
        sources: IPv4 ranges; never empty, since that would mean everybody.
        target_tag: Network tag of the instances.
        priority: Lower wins.
        network: Network, by name or path.
        ports: TCP ports; empty: all.
        disabled: Whether it counts.
    """

    name: str
    action: Literal["allow", "deny"]
    sources: tuple[str, ...]
    target_tag: str
    priority: int
    network: str
    ports: tuple[str, ...] = ()
    disabled: bool = False


class Cloud(Protocol):
    """Compute Engine. Every method raises Failure when Google refuses or cannot be reached."""

    project: str

    def find(self, name: str) -> list[Instance]:
        """Every instance of that name, in whatever zone and status."""

    def labelled(self, labels: Mapping[str, str]) -> list[Instance]:
        """Every instance with all of these labels, in whatever zone and status."""

    def get(self, name: str, zone: str) -> Instance | None:
        """One instance, or None."""

    def zones(self, region: str) -> list[str]:
        """The zones of a region that are up."""

    def inserts(self, name: str, zone: str) -> set[str]:
        """The operations, finished or not, that were to create that instance."""

    def insert_failure(self, name: str, zone: str, before: Collection[str]) -> Failure | None:
        """Why the insert of that instance failed; None while it has not. Those ``before`` do not count."""

    def delete_instance(self, name: str, zone: str, *, wait: bool = True) -> None:
        """Delete an instance; not found is success. Waits for the operation unless told not to."""

    def edit_metadata(self, name: str, zone: str, edit: Callable[[dict[str, str]], dict[str, str]]) -> None:
        """Change metadata items; repeated when somebody else changed them meanwhile."""

    def edit_labels(self, name: str, zone: str, labels: Mapping[str, str]) -> None:
        """Set labels; the others stay."""

    def guest_attributes(self, name: str, zone: str, namespace: str) -> dict[str, str]:
        """What the guest published under a namespace; empty while there is nothing."""

    def serial_output(self, name: str, zone: str) -> str:
        """The end of the serial console, empty where it cannot be had."""

    def rule(self, name: str) -> FirewallRule | None:
        """A firewall rule, or None."""

    def create_rule(self, rule: FirewallRule) -> None:
        """Create a rule; one that exists already is left as it is."""

    def change_rule(self, name: str, sources: Sequence[str], *, disabled: bool) -> None:
        """Set who a rule is for."""

    def delete_rule(self, name: str) -> None:
        """Delete a rule; not found is success."""

    def disks(self, name: str) -> list[tuple[str, str]]:
        """Disks of that name as (name, zone)."""

    def delete_disk(self, name: str, zone: str) -> None:
        """Delete a disk; not found is success."""


class Forge(Protocol):
    """GitLab. Every method raises Failure when GitLab refuses or cannot be reached."""

    @property
    def may_administer(self) -> bool:
        """Whether there is a token that can manage deploy keys and read pipelines."""

    def add_deploy_key(self, title: str, key: str, expires: float) -> None:
        """Register a read-only key under a title, until Unix time ``expires``."""

    def remove_deploy_keys(self, title: str) -> int:
        """Remove every key of that title; how many there were."""

    def state_writable(self, name: str) -> bool:
        """Whether our token may lock and write a Terraform state; a lock that a dead job left on it is broken."""

    def state_environment(self, name: str) -> dict[str, str]:
        """The variables by which Terraform finds its state and may write it."""

    def state(self, name: str) -> Literal["absent", "empty", "held"]:
        """What GitLab holds under a state's name."""

    def delete_state(self, name: str) -> None:
        """Delete a state and whatever lock is on it; not found is success."""

    def destroy_is_over(self, pipeline: str) -> bool:
        """Whether the pipeline's destroy job has already succeeded; False where it cannot be known."""

    def artifact(self, pipeline: str, job: str, path: str) -> str | None:
        """A file from a job's artifacts, or None."""

    def host_key_fingerprints(self) -> set[str]:
        """GitLab's own SSH host keys as ``SHA256:...``; empty where it does not publish them."""


class Repository(Protocol):
    """The checkout this process stands in."""

    def head(self) -> str:
        """The checked-out commit; empty where this is no checkout."""

    def changed(self) -> list[str]:
        """Tracked files that differ from the commit."""

    def write_pack(self, commit: str, to: IO[bytes]) -> None:
        """Write the objects of one commit, without its history, as a pack."""

    def write_tar(self, to: IO[bytes]) -> None:
        """Write every tracked file as it lies here as a tar stream."""


class Apply(Protocol):
    """A running ``terraform apply``."""

    def ended(self) -> bool:
        """Whether it is over."""

    def stop(self) -> None:
        """End it: SIGTERM to its group, then SIGKILL."""

    def result(self) -> None:
        """Wait for its end.

        Raises:
            Failure: what Terraform said.
        """


class Stack(Protocol):
    """Terraform with one run's module, variables and state."""

    def prepare(self) -> None:
        """Lay out the work folder and run ``terraform init``."""

    def start_apply(self) -> AbstractContextManager[Apply]:
        """Begin to apply; leaving the context ends it."""

    def outputs(self) -> dict[str, str]:
        """The module's outputs."""

    def destroy(self, timeout: float) -> None:
        """Destroy what the state knows."""


class Stream(Protocol):
    """A command that runs on the VM."""

    @property
    def stdin(self) -> IO[bytes]:
        """Its standard input."""

    @property
    def stdout(self) -> IO[bytes]:
        """Its standard output."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; 255 when the connection broke."""

    def chunks(self) -> Iterator[bytes]:
        """Its output as it comes."""

    @property
    def complaint(self) -> str:
        """The end of its standard error."""


class Machine(Protocol):
    """The VM over SSH."""

    def run(self, script: str, *, stdin: bytes = b"", timeout: float = 60) -> Done:
        """Run a shell command to its end; 255 when there is no connection."""

    def stream(self, script: str, *, timeout: float | None = None) -> AbstractContextManager[Stream]:
        """Start a shell command and talk to it; after ``timeout`` seconds the connection ends."""


Connect = Callable[[str, int, Path, str], Machine]
"""address, port, folder with the login key, pinned host key -> the VM."""
StackFor = Callable[[Mapping[str, object], Mapping[str, str] | None], Stack]
"""variables, state environment (None: local, thrown away) -> Terraform."""
