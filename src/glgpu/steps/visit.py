"""Look in on a run from elsewhere, a laptop for example: which one it is, and a way in that disturbs nobody."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance, Machine
from glgpu.leftovers import Vm
from glgpu.lifetime import spoken
from glgpu.permissions import USERS_ROLE
from glgpu.run_names import PREFIX, Kind, RunName, label_value, server_hash
from glgpu.steps.context import Run
from glgpu.steps.door import Way, log_in, visit_door
from glgpu.steps.listing import age_of, owner
from glgpu.steps.survey import vm_of

LOGIN_SECONDS = 90.0
"""How long to try to get in: the guest agent may need a minute to see the key."""


@dataclass(frozen=True)
class Visitor:
    """Who looks in.

    Attributes:
        run: Any run of the project, for its clients.
        asked: The run that is meant; empty: nobody said.
        named: Makes the same run under another name.
    """

    run: Run
    asked: str
    named: Callable[[RunName], Run]


@dataclass(frozen=True)
class Visited:
    """A run that is looked in on.

    Attributes:
        run: The run.
        instance: Its VM.
        machine: The way to run commands there.
        way: The open door.
    """

    run: Run
    instance: Instance
    machine: Machine
    way: Way


@contextmanager
def look_in(visitor: Visitor, kind: Kind | None = None, *, stays: bool = False) -> Iterator[Visited]:
    """Find the run that is meant and go in for the length of a block.

    Args:
        visitor: Who looks in.
        kind: Of what kind it has to be; None: of any.
        stays: Whether the door stays open for this machine afterwards.

    Raises:
        Failure: USAGE, when several could be meant, or none lives; NOT_FOUND, when the one that was named does not;
            SSH; PERMISSION, with the role that is missing.
    """
    with ExitStack() as held:
        try:
            vm, instance = _choose(visitor, kind)
            run = run_of(visitor, vm).knowing(instance)
            way = held.enter_context(visit_door(run, instance, stays=stays))
            # Without the helper: another version of it must not come under a job that uses it.
            guest = log_in(run, instance, way, seconds=LOGIN_SECONDS, helper=False)
        except Failure as failure:
            raise told_with_role(visitor.run, failure) from None
        yield Visited(run, instance, guest.machine, way)


def run_of(visitor: Visitor, vm: Vm) -> Run:
    """The run that a VM of `living` belongs to."""
    server = next(url for url in _servers(visitor.run) if server_hash(url) == vm.run.server)
    return visitor.named(RunName(server, vm.run.project_id, vm.run.run, vm.run.kind))


def told_with_role(run: Run, failure: Failure) -> Failure:
    """A refusal of Google's with the role that a person needs; any other failure as it is."""
    if failure.klass is not ErrorClass.PERMISSION or run.job.in_ci:
        return failure
    remedy = f"ask for the role {USERS_ROLE} on {run.cloud.project}: terraform/bootstrap gives it to whom `users` names"
    return Failure(failure.klass, failure.cause, remedy, failure.evidence)


def container_state(visited: Visited) -> dict[str, Any]:
    """The engine's word on the run's container.

    Raises:
        Failure: NOT_FOUND, where there is none; SSH.
    """
    done = visited.machine.run(state_command(str(visited.run.name)))
    found = read_state(done.text)
    if done.code == 0 and found is not None:
        return found
    if "no such" in done.complaint.lower():
        raise Failure(
            ErrorClass.NOT_FOUND,
            f"no training has been started on {visited.instance.name} yet",
            "wait until the job train has come to it; `glgpu ssh` gets in all the same",
        )
    raise Failure(
        ErrorClass.SSH,
        f"the engine on {visited.instance.name} does not tell of the container: {done.complaint}",
        "call it again; `glgpu ssh` shows what is wrong there",
        done.complaint,
    )


def state_command(name: str) -> str:
    """The shell command that prints the state of a container."""
    return shlex.join(["sudo", "-n", "docker", "inspect", "--format", "{{json .State}}", name])


def read_state(text: str) -> dict[str, Any] | None:
    """What that has printed; None where it is something else."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _servers(run: Run) -> Sequence[str]:
    """The GitLabs whose runs are ours: this one, and none, as of `glgpu run` on a laptop."""
    return (run.name.server_url, "")


def living(run: Run, kind: Kind | None = None) -> list[tuple[Vm, Instance]]:
    """The VMs of this project that run, those of one kind or all."""
    servers, projects = {server_hash(url) for url in _servers(run)}, {run.job.project_id, 0}
    return [
        (vm, one) for one in run.cloud.instances_named(PREFIX)
        if (vm := vm_of(one)) and vm.status == "RUNNING"
        and vm.run.server in servers and (not run.job.project_id or vm.run.project_id in projects)
        and kind in (None, vm.run.kind)
    ]  # fmt: skip


def _choose(visitor: Visitor, kind: Kind | None) -> tuple[Vm, Instance]:
    run, asked = visitor.run, visitor.asked
    ours = living(run, kind)
    found = [pair for pair in ours if pair[0].run.run == asked] if asked else ours
    if not asked:
        if len(found) > 1 and run.job.ref:
            found = [pair for pair in found if pair[0].ref == run.job.ref] or found
        if len(found) > 1:
            found = [pair for pair in found if pair[0].user == label_value(run.job.user)] or found
    if len(found) == 1:
        return found[0]
    for vm, _ in found or ours:
        age = age_of(vm, run.clock.now())
        since = "" if age is None else f", since {spoken(age)}"
        run.console.say(f"{vm.run.run}  {owner(run, vm)}, {vm.run.kind} in {vm.zone}{since}")
    what = f"no {kind or 'VM'} of run {asked}" if asked else f"no {kind or 'run'} of this project"
    if asked and not found:
        raise Failure(
            ErrorClass.NOT_FOUND,
            f"{what} runs in {run.cloud.project}",
            "`glgpu status` lists what is alive; what a run has left, `glgpu fetch` gets",
        )
    if not found:
        raise Failure(
            ErrorClass.USAGE,
            f"{what} is alive in {run.cloud.project}",
            "start one; `glgpu status` lists everything of glgpu's that is alive",
        )
    raise Failure(
        ErrorClass.USAGE,
        f"{len(found)} runs are alive, and nothing says which of them is meant",
        "name one with --run, or set GLGPU_RUN",
    )
