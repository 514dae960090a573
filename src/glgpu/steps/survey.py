"""One look at the cloud and one at GitLab: everything that bears one of glgpu's names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import ForgeEnvironment, Instance, Made
from glgpu.leftovers import Outlook, Thing, Vm, What, World
from glgpu.run_names import PREFIX, Kind, ReadName, read_name, server_hash, without_cell
from glgpu.steps.context import Run, hard_end_of, price_of, ref_of

T = TypeVar("T")
U = TypeVar("U")
AT_ONCE = 16
"""Requests under way at the same time: enough to be quick, too few for Google's or GitLab's limits per minute."""
ENVIRONMENTS: dict[str, tuple[str, Kind]] = {
    "gpu/": ("provision", "train"),
    "notebook/": ("start notebook", "notebook"),
}
"""What the names of our pipeline files' environments begin with -> what the names of the jobs end with that deploy to
them, and the kind of their runs."""


@dataclass(frozen=True)
class Survey:
    """What there is.

    Attributes:
        world: Everything that bears a run's name.
        instances: The VMs as Compute Engine describes them, by name and zone.
        notes: What could not be seen, and what that means, in lines.
        refusals: Why disks or firewall rules could not be seen.
        environments: Those of our own project that runs deploy to.
    """

    world: World
    instances: dict[tuple[str, str], Instance]
    notes: tuple[str, ...]
    refusals: tuple[Failure, ...]
    environments: tuple[ForgeEnvironment, ...]


def survey(run: Run, now: Callable[[], float], *, older_than: float = 0.0) -> Survey:
    """Look once at the cloud, then once at GitLab.

    Args:
        run: The run that looks; its GitLab project is the one whose keys, states and environments are seen.
        now: Google's clock.
        older_than: As of Outlook.

    Raises:
        Failure: the cloud cannot be asked for VMs.
    """
    with pool() as several:
        asked = several.submit(run.cloud.instances_named, PREFIX)
        disks = several.submit(run.cloud.disks_named, PREFIX)
        rules = several.submit(run.cloud.rules_named, PREFIX)
        time = several.submit(now)
        forge = _ForgeLook(run, several)
        instances = {(one.name, one.zone): one for one in asked.result()}
        vms = tuple(vm for vm in map(vm_of, instances.values()) if vm is not None)
        held = {(vm.name, vm.zone) for vm in vms}
        refusals = [answer for answer in map(answer_of, (disks, rules)) if isinstance(answer, Failure)]
        things = [
            *_things("disk", [one for one in _seen(disks) if (one.name, one.zone) not in held]),
            *_things("firewall rule", _seen(rules)),
            *forge.things(),
        ]
        runs = [*(one.run for one in vms), *(one.run for one in things)]
        outlook = Outlook(
            server=server_hash(run.name.server_url),
            now=time.result(),
            pipelines=forge.pipelines(runs),
            older_than=older_than,
        )
    notes = [*(f"{one.cause}: none of them goes" for one in refusals), *_strangers(instances), *forge.notes]
    world = World(vms, tuple(things), outlook)
    return Survey(world, instances, tuple(notes), tuple(refusals), tuple(forge.environments))


def vm_of(instance: Instance) -> Vm | None:
    """What is to be judged of an instance; None for one whose name is no run's."""
    run = read_name(instance.name)
    if run is None:
        return None
    hard_end = hard_end_of(instance)
    return Vm(
        name=instance.name,
        zone=instance.zone,
        run=run,
        status=instance.status,
        created=unix_time(instance.created),
        labels=instance.labels,
        user=instance.labels.get("glgpu-user", ""),
        ref=ref_of(instance) or instance.labels.get("glgpu-ref", ""),
        hard_end=hard_end if math.isfinite(hard_end) else None,
        max_run=float(instance.max_run_seconds) or None,
        usd_per_hour=price_of(instance),
    )


def unix_time(text: str) -> float | None:
    """Unix time of an RFC 3339 time; None where it is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


@contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    """A bounded number of threads; what has not begun when the block fails never does."""
    several = ThreadPoolExecutor(AT_ONCE)
    try:
        yield several
    finally:
        several.shutdown(cancel_futures=True)


def each(several: ThreadPoolExecutor, do: Callable[[T], U], items: Iterable[T]) -> dict[T, U | Failure]:
    """Do something with every item, several at a time; a failure is an answer like any other.

    Raises:
        Failure: INTERRUPTED.
    """
    begun = [(item, several.submit(do, item)) for item in items]
    answers: dict[T, U | Failure] = {}
    for item, future in begun:
        answer = answer_of(future)
        answers[item] = answer
    return answers


def answer_of(future: Future[T]) -> T | Failure:
    """What came of something that a thread did.

    Raises:
        Failure: INTERRUPTED.
    """
    try:
        return future.result()
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        return failure


class _ForgeLook:
    """What GitLab tells of its own things and of pipelines.

    Args:
        run: The run that looks.
        several: Threads.

    Attributes:
        notes: What it does not tell, in lines.
        environments: As of Survey.
    """

    def __init__(self, run: Run, several: ThreadPoolExecutor) -> None:
        self._run = run
        self._several = several
        self._own = ReadName(server_hash(run.name.server_url), run.name.project_id, run.name.run, run.name.kind)
        self.notes: list[str] = []
        self.environments: list[ForgeEnvironment] = []
        self._asks = run.forge.may_administer
        if not self._asks:
            self.notes.append(
                "GLGPU_GITLAB_TOKEN is not set: GitLab cannot be asked, so only what is past its end goes, "
                "and deploy keys, Terraform states and environments are not looked at"
            )

    def things(self) -> list[Thing]:
        """Deploy keys, states and environments of our own project."""
        if not self._asks:
            return []
        forge = self._run.forge
        keys = self._several.submit(forge.deploy_keys)
        tokens = self._several.submit(forge.deploy_tokens)
        states = self._several.submit(forge.all_states)
        environments = [self._several.submit(forge.environments, beginning) for beginning in ENVIRONMENTS]
        found = _things("deploy key", self._or_note(keys))
        found += _things("deploy token", self._or_note(tokens))
        found += _things("Terraform state", self._or_note(states))
        found = [one for one in found if (one.run.server, one.run.project_id) == self._where]
        for (beginning, (deploys, kind)), answer in zip(ENVIRONMENTS.items(), environments, strict=True):
            for one in self._or_note(answer):
                if not (one.name.startswith(beginning) and without_cell(one.job).endswith(deploys)):
                    continue
                self.environments.append(one)
                if one.pipeline is not None:
                    last = ReadName(*self._where, str(one.pipeline), kind)
                    found.append(Thing("environment", one.name, last, "", unix_time(one.created), one.id))
        return found

    def pipelines(self, runs: Sequence[ReadName]) -> dict[tuple[int, int], str | None]:
        """The status of every pipeline of our GitLab among these runs; None where it does not tell."""
        if not self._asks:
            return {}
        forge = self._run.forge
        wanted = {
            (one.project_id, one.pipeline)
            for one in runs
            if one.server == self._own.server and one.pipeline is not None
        }
        projects = sorted({project for project, _ in wanted})
        seen = each(self._several, forge.sees_project, projects)
        for refusal in seen.values():
            if isinstance(refusal, Failure):
                self._note(refusal)
        if hidden := [str(project) for project, answer in seen.items() if answer is False]:
            self.notes.append(
                f"GitLab shows GLGPU_GITLAB_TOKEN no project {', '.join(hidden)}: of its things only goes "
                "what is past its end"
            )
        questions = sorted(one for one in wanted if seen[one[0]] is True)
        told: dict[tuple[int, int], str | None] = {}
        for one, status in each(self._several, lambda one: forge.pipeline_status(*one), questions).items():
            if isinstance(status, Failure):
                self._note(status)
            told[one] = None if isinstance(status, Failure) else status
        return told

    @property
    def _where(self) -> tuple[str, int]:
        return self._own.server, self._own.project_id

    def _or_note(self, future: Future[list[T]]) -> list[T]:
        answer = answer_of(future)
        if isinstance(answer, Failure):
            self._note(answer)
        return _seen(future)

    def _note(self, failure: Failure) -> None:
        line = f"{failure.cause}: what cannot be asked for stays until it is past its end"
        if line not in self.notes:
            self.notes.append(line)


def _seen(future: Future[list[T]]) -> list[T]:
    """What a list shows; nothing where it was refused."""
    answer = answer_of(future)
    return [] if isinstance(answer, Failure) else answer


def _things(what: What, found: Sequence[Made]) -> list[Thing]:
    runs = ((one, read_name(one.name)) for one in found)
    return [Thing(what, one.name, run, one.zone, unix_time(one.created)) for one, run in runs if run is not None]


def _strangers(instances: dict[tuple[str, str], Instance]) -> Iterator[str]:
    strange = [
        one for one in instances.values() if one.labels.get("glgpu") == "managed" and read_name(one.name) is None
    ]
    if strange:
        names = ", ".join(sorted(one.name for one in strange))
        yield f"labelled glgpu=managed, but of no run's name, and left alone: {names}"
