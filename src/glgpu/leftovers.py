"""What is left of which run, and whether it may go: facts in, verdicts out, nobody is asked.

The rules are told to people in docs/how-to/clean-up.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from glgpu.lifetime import Until, spoken
from glgpu.run_names import ReadName, ref_slug, without_cell
from glgpu.settings import LONGEST_MAX_HOURS

OVER = frozenset({"success", "failed", "canceled", "skipped", "manual"})
"""Statuses of a pipeline none of whose jobs will run by itself any more; ``manual`` waits for a person
(https://docs.gitlab.com/api/pipelines/). A retry takes the pipeline out of them."""
OFF = frozenset({"TERMINATED", "SUSPENDED"})
CLAIMED_SECONDS = 60.0
"""A claimed VM's soft end is its hard one, as far as clocks agree."""
LONGEST_LIFE = LONGEST_MAX_HOURS * 3600
"""Seconds; no VM of a run lives longer."""

What = Literal["VM", "disk", "firewall rule", "deploy key", "deploy token", "Terraform state", "environment"]


@dataclass(frozen=True)
class Thing:
    """Something that a run left, other than its VM.

    Attributes:
        what: Its kind.
        name: Its own name.
        run: The run that it belongs to.
        zone: Where it is; empty where it is nowhere in particular.
        created: Unix time; None: not known.
        number: GitLab's number for an environment.
    """

    what: What
    name: str
    run: ReadName
    zone: str = ""
    created: float | None = None
    number: int = 0


@dataclass(frozen=True)
class Vm:
    """A VM.

    Attributes:
        name: Its name.
        zone: Its zone.
        run: The run that its name tells of.
        status: Compute Engine's word: RUNNING, TERMINATED, ...
        created: Unix time by Google's clock; None: not known.
        labels: Its labels.
        user: Who started the run, as far as its labels tell.
        ref: The branch or tag, as far as anything tells.
        hard_end: Unix time at which Compute Engine deletes it, by the clock of whoever brought it up; None: not told.
        max_run: Seconds after its creation at which Compute Engine deletes it, by Google's own word; None: never.
        usd_per_hour: What it costs; None: not known.
    """

    name: str
    zone: str
    run: ReadName
    status: str = "RUNNING"
    created: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    user: str = ""
    ref: str = ""
    hard_end: float | None = None
    max_run: float | None = None
    usd_per_hour: float | None = None

    @property
    def until(self) -> Until:
        """What ends it in the ordinary case; a pipeline's end where no label tells."""
        return "deadline" if self.labels.get("glgpu-until") == "deadline" else "pipeline"

    @property
    def google_end(self) -> float | None:
        """Unix time at which Compute Engine deletes it, by Google's clock; None: nobody told."""
        if self.created is not None and self.max_run is not None:
            return self.created + self.max_run
        return self.hard_end

    @property
    def soft_end(self) -> float | None:
        """Unix time of its movable end, by Google's clock; None: neither label nor anything else tells.

        The label has the time of a runner's clock. What that one thought of the hard end, held against Google's own
        word on it, tells how wrong it was.
        """
        ahead = 0.0
        if self.hard_end is not None and self.created is not None and self.max_run is not None:
            ahead = self.hard_end - (self.created + self.max_run)
        try:
            return float(int(self.labels["glgpu-expires"])) - ahead
        except (KeyError, ValueError):
            return self.google_end

    @property
    def contradicts(self) -> bool:
        """Whether its labels tell of another run than its name."""
        return any(self.labels.get(key, value) != value for key, value in self.run.own_labels.items())

    def cost(self, now: float) -> float | None:
        """US dollars that it has cost so far, by the estimate for its machine and as if it had never stopped."""
        if self.created is None or self.usd_per_hour is None:
            return None
        return self.usd_per_hour * max(0.0, now - self.created) / 3600


@dataclass(frozen=True)
class Outlook:
    """What verdicts go by.

    Attributes:
        server: Hash of our GitLab's address.
        now: Unix time by Google's clock.
        pipelines: Status by project and pipeline; None, or not in here: it could not be asked for.
        older_than: Seconds; what is younger is left alone.
    """

    server: str
    now: float
    pipelines: Mapping[tuple[int, int], str | None]
    older_than: float = 0.0

    def status(self, run: ReadName) -> str | None:
        """The status of a run's pipeline; None where there is none, or GitLab did not tell."""
        return None if run.pipeline is None else self.pipelines.get((run.project_id, run.pipeline))


@dataclass(frozen=True)
class Verdict:
    """Whether something goes.

    Attributes:
        goes: True: it is to be removed.
        why: The reason, in a few words.
    """

    goes: bool
    why: str


@dataclass(frozen=True)
class End:
    """How a VM will end.

    Attributes:
        by: What ends it.
        at: Unix time by Google's clock; None: as soon as that comes about.
    """

    by: str
    at: float | None = None


@dataclass(frozen=True)
class World:
    """All that was found.

    Attributes:
        vms: Every VM.
        things: Everything else.
        outlook: What to go by.
    """

    vms: tuple[Vm, ...]
    things: tuple[Thing, ...]
    outlook: Outlook

    def judged(self) -> list[tuple[Vm | Thing, Verdict]]:
        """A verdict on everything; VMs first."""
        vms = [(vm, judge_vm(vm, self.outlook)) for vm in self.vms]
        by_run: dict[ReadName, list[tuple[Vm, Verdict]]] = {}
        by_place: dict[tuple[int, str], list[tuple[Vm, Verdict]]] = {}
        for vm, verdict in vms:
            by_run.setdefault(vm.run, []).append((vm, verdict))
            if vm.run.server == self.outlook.server:
                by_place.setdefault((vm.run.project_id, ref_slug(vm.ref)), []).append((vm, verdict))
        judged: list[tuple[Vm | Thing, Verdict]] = [*vms]
        for thing in self.things:
            near = by_run.get(thing.run, [])
            if thing.what == "environment":
                place = thing.name.partition("/")[2]
                # A VM that does not tell its branch may be of this one.
                near = [one for slug in {place, ""} for one in by_place.get((thing.run.project_id, slug), [])]
            judged.append((thing, judge_thing(thing, near, self.outlook)))
        return judged


def judge_vm(vm: Vm, outlook: Outlook) -> Verdict:
    """Whether a VM goes."""
    kept = _untouchable(vm.run, vm.created, outlook)
    if kept is not None:
        return kept
    if vm.contradicts:
        return Verdict(False, "its labels and its name tell of different runs")
    end = vm.soft_end
    if end is None and vm.created is not None:
        end = vm.created + LONGEST_LIFE
    if end is not None and outlook.now >= end:
        return Verdict(True, f"past its end for {spoken(outlook.now - end)}")
    rest = f"ends in {spoken(end - outlook.now)}" if end is not None else "nothing tells when it ends"
    if vm.until == "deadline" and vm.soft_end is not None:
        return Verdict(False, rest)
    status = outlook.status(vm.run)
    if status in OVER:
        return Verdict(True, f"its pipeline is over ({status})")
    if vm.run.pipeline is None:
        return Verdict(False, f"no pipeline's; {rest}")
    if status is None:
        return Verdict(False, f"GitLab does not tell of its pipeline; {rest}")
    return Verdict(False, f"its pipeline is {status}")


def ends_of(vm: Vm, outlook: Outlook, jobs: Mapping[str, str], auto_stop: float | None) -> list[End]:
    """What will end a VM, the soonest first: each is there in case that those before it fail.

    Args:
        vm: The VM.
        outlook: What to go by.
        jobs: The status of each job of its pipeline, by name; empty: not known.
        auto_stop: Unix time at which GitLab stops its branch's environment; None: not known, or never.
    """
    verdict = judge_vm(vm, outlook)
    # For a VM that is off its hard end does not come (https://cloud.google.com/compute/docs/instances/limit-vm-runtime).
    off = vm.status in OFF
    google = [] if off or vm.google_end is None else [End("Google, at its hard end", vm.google_end)]
    if vm.run.server != outlook.server:
        return [End("whatever its own GitLab does"), *google]
    ends = [End(f"the next cleanup: {verdict.why}")] if verdict.goes else []
    claimed = vm.soft_end is None or vm.google_end is None or vm.soft_end > vm.google_end - CLAIMED_SECONDS
    if vm.until == "deadline" and not verdict.goes:
        if vm.run.kind == "train":
            saved = "the next cleanup, which collects what it has saved"
            ends.append(End(saved if off else "its own power-off, once its training is over and saved"))
        elif not off:
            ends.append(End("itself, once it is idle or at its soft end", vm.soft_end))
        ends.append(End("cleanup, at its deadline", vm.soft_end))
    elif not verdict.goes:
        destroys = {name: status for name, status in jobs.items() if without_cell(name).endswith("destroy")}
        waiting = [name for name, status in destroys.items() if status not in OVER]
        ends += [End(f"the job {name} of its pipeline ({jobs[name]})") for name in waiting]
        if not waiting and vm.run.pipeline is None:
            ends.append(End("whoever started it, with `glgpu destroy`"))
        if not (claimed or off):
            ends.append(End("its own power-off, unless a job claims it", vm.soft_end))
    if auto_stop is not None:
        ends.append(End("its environment's stop job", auto_stop))
    return sorted([*ends, *google], key=lambda end: end.at or 0.0)


def judge_thing(thing: Thing, vms: Sequence[tuple[Vm, Verdict]], outlook: Outlook) -> Verdict:
    """Whether something else than a VM goes.

    Args:
        thing: It.
        vms: The VMs of the same run, with what was said of them.
        outlook: What to go by.
    """
    kept = _untouchable(thing.run, None, outlook)
    if kept is not None:
        return kept
    if any(not verdict.goes for _, verdict in vms):
        return Verdict(False, "its VM stays")
    status = outlook.status(thing.run)
    if status is not None and status not in OVER:
        # A job of it may be creating a VM right now, also in place of one that is past its end.
        return Verdict(False, f"its pipeline is {status}")
    if vms:
        return Verdict(True, "goes with its VM")
    kept = _untouchable(thing.run, thing.created, outlook)
    if kept is not None:
        return kept
    if status is not None:
        return Verdict(True, f"no VM, and its pipeline is over ({status})")
    since = thing.run.begun if thing.run.pipeline is None else thing.created
    if since is not None and outlook.now >= since + LONGEST_LIFE:
        return Verdict(True, "no VM, and older than any VM may get")
    told = "no pipeline's" if thing.run.pipeline is None else "GitLab does not tell of its pipeline"
    return Verdict(False, f"{told}, and it has no end of its own")


def _untouchable(run: ReadName, created: float | None, outlook: Outlook) -> Verdict | None:
    if run.server != outlook.server:
        return Verdict(False, "another GitLab server's")
    if outlook.older_than and created is not None and outlook.now - created < outlook.older_than:
        return Verdict(False, f"younger than {spoken(outlook.older_than)}")
    return None
