"""Bring a VM up: the first candidate that the cloud gives, with Terraform creating and Compute Engine testifying."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Apply, Instance, Stack
from glgpu.job_times import wants_to_detach
from glgpu.lifetime import Lifetime
from glgpu.machines import Candidate, candidates, cuts
from glgpu.notebook import KIND
from glgpu.resources import resource_text
from glgpu.steps.attempt import Attempt
from glgpu.steps.context import SETTINGS_ITEM, Run, left_settings
from glgpu.steps.detach import is_detached, way_home
from glgpu.steps.end_vms import clear_away
from glgpu.steps.failover import HICCUP_SECONDS, TROUBLE, Queue, Try, none_left, table_of
from glgpu.steps.state import state_for
from glgpu.way_home import account_of_vm

START_UP_ITEM = "glgpu-startup"
"""Metadata item that tells the start-up script how many GPUs there are, and which image to pull (vm/startup.sh)."""
DEFAULT_HOURS = 24.0
"""The hard end where no job time limits it: a laptop's run, and a detached one."""
LAST_WORD_SECONDS = 120.0
"""What a Terraform gets to write its state, once its VM runs and is ready."""
AFTERWARDS_SECONDS = 15 * 60
"""What follows the training: its weights come home, and destroy looks after what is left."""


def plan_lifetime(run: Run) -> Lifetime:
    """When the VM goes at the latest."""
    now = run.clock.now()
    limits, hours, job = run.settings.limits, run.settings.machine.max_hours, run.job
    claim = limits.claim_minutes * 60.0
    times = [time for time in (job.job_timeout, job.script_timeout) if time is not None] if job.in_ci else []
    if run.name.kind == KIND:
        # No job waits for it, and nobody's time limits it but its VM's.
        return Lifetime("pipeline", soft_end=now + claim, hard_end=now + (hours or DEFAULT_HOURS) * 3600)
    if wants_to_detach(run.settings, job):
        if way_home(run) is not None:
            return Lifetime("pipeline", soft_end=now + claim, hard_end=now + (hours or DEFAULT_HOURS) * 3600)
        hours = None  # It is followed after all, and no job can hold that many.
    if hours is not None:
        seconds = hours * 3600
    elif times:
        seconds = claim + max(times) + limits.rescue_minutes * 60 + AFTERWARDS_SECONDS
    else:
        seconds = DEFAULT_HOURS * 3600
    return Lifetime("pipeline", soft_end=now + claim, hard_end=now + seconds)


@contextmanager
def bring_up(run: Run, lifetime: Lifetime, scarce: Collection[str] = ()) -> Iterator[Instance]:
    """Have a new VM running for the block; Terraform may still be finishing while the block is at work.

    Leaving the block waits for Terraform and holds its outputs against what Compute Engine says.

    Args:
        run: The run.
        lifetime: Of the VM.
        scarce: Zones whose Spot VMs are asked for after all other candidates: Google has just taken one away there.

    Raises:
        Failure: LIVE_VMS, STOCKOUT, quota, permission, TERRAFORM, ...
    """
    _check_live_vms(run)
    machine = run.settings.machine
    zones = machine.zones or [zone for region in machine.regions for zone in run.cloud.zones(region)]
    ways = sorted(candidates(machine, zones), key=lambda way: way.spot and way.zone in scarce)
    for line in cuts(machine):
        run.console.say(line)
        run.record.add("candidates-note", note=line)
    state = state_for(run)
    # One for all tries: module and state are the run's, only the variables change.
    stack = run.stack_for(terraform_variables(run, ways[0], lifetime), state)
    stack.prepare()
    search = _Search(run, stack, lifetime, Queue(ways), breaks_locks=state is not None)
    with ExitStack() as held:
        instance, apply = search.until_running(held)
        yield instance
        apply.result(LAST_WORD_SECONDS)
    search.settle_late()
    address = stack.outputs().get("address", "")
    if address != (instance.address or instance.internal_address):
        raise Failure(
            ErrorClass.TERRAFORM,
            f"Terraform says the VM's address is {address!r}, Compute Engine says {instance.address!r}",
            "retry the job; if it happens again, report it",
        )


def terraform_variables(run: Run, candidate: Candidate, lifetime: Lifetime) -> dict[str, object]:
    """The variables of `terraform/gpu-vm` for a candidate; nothing secret."""
    machine, network = run.settings.machine, run.settings.network
    gpu = {"type": candidate.gpu, "count": candidate.count, "attached": candidate.attached} if candidate.gpu else None
    return {
        "name": str(run.name),
        "project": run.cloud.project,
        "zone": candidate.zone,
        "labels": {**run.settings.labels, **run.name.labels(lifetime, user=run.job.user, ref=run.job.ref)},
        "metadata": {
            SETTINGS_ITEM: left_settings(run, lifetime.hard_end, candidate.price),
            START_UP_ITEM: f"{candidate.count} {run.settings.train.image or ''}".strip(),
        },
        "startup_script": resource_text("vm/startup.sh").decode(),
        "machine": {
            "type": candidate.machine_type,
            "gpu": gpu,
            "gvnic": candidate.gvnic,
            "spot": candidate.spot,
            "max_run_seconds": max(60, int(lifetime.hard_end - run.clock.now())),
            "disk": {"size_gb": machine.disk_gb, "type": candidate.disk_type, "image": candidate.image},
            "service_account": account_of_vm(run.settings, run.job, run.name.kind),
        },
        "network": {
            "name": network.name,
            "subnetwork": network.subnetwork,
            "external_ip": network.external_ip,
            "tags": list(machine.tags),
        },
        "compute_endpoint": run.job.compute_endpoint or None,
    }


class _Search:
    """Candidate by candidate until a VM runs.

    Args:
        run: The run.
        stack: Terraform, prepared.
        lifetime: Of a VM that comes up at once; one that comes up later lives as long.
        queue: The candidates.
        breaks_locks: Whether a Terraform that has to be killed leaves a lock on its state.
    """

    def __init__(self, run: Run, stack: Stack, lifetime: Lifetime, queue: Queue, *, breaks_locks: bool) -> None:
        self._run = run
        self._stack = stack
        self._lifetime = lifetime
        self._queue = queue
        self._breaks_locks = breaks_locks
        self._begun = run.clock.now()
        self._tries: list[Try] = []
        self._late: list[Attempt] = []
        self._last: Attempt | None = None

    def until_running(self, held: ExitStack) -> tuple[Instance, Apply]:
        """The VM, and the Terraform that made it and may still be finishing; ``held`` ends it.

        Raises:
            Failure: why no candidate is left, or why no other would fare better.
        """
        try:
            while candidate := self._queue.next():
                attempt = Attempt(self._run, candidate)
                try:
                    return self._try(attempt, held)
                except Failure as failure:
                    if failure.klass is ErrorClass.INTERRUPTED:
                        raise
                    self._give_up(attempt, failure)
            self.settle_late()
            raise none_left(self._tries)
        finally:
            if len(self._tries) > 1:
                header, *rows = table_of(self._tries)
                self._run.console.say("What was tried:")
                self._run.console.table(header, rows)

    def settle_late(self) -> None:
        """Look once more for what may have come up late where a candidate was given up.

        Raises:
            Failure: it cannot be deleted.
        """
        for attempt in self._late:
            if not attempt.settle():
                zone = attempt.candidate.zone
                self._run.console.say(f"the insert in {zone} is still under way; whoever ends this run looks again")

    def _try(self, attempt: Attempt, held: ExitStack) -> tuple[Instance, Apply]:
        run, candidate = self._run, attempt.candidate
        passed = run.clock.now() - self._begun
        lives = replace(
            self._lifetime,
            soft_end=self._lifetime.soft_end + passed,
            hard_end=self._lifetime.hard_end + passed,
        )
        self._stack.change(terraform_variables(run, candidate, lives))
        run.console.say(f"asking for {candidate}")
        with ExitStack() as opened:
            apply = opened.enter_context(self._stack.start_apply())
            own = {} if self._last is None else {"own_seconds": round(self._last.own_seconds(run.clock.now()), 3)}
            run.record.add("candidate-tried", **_facts(candidate), **own)
            with attempt.stopping(apply):
                instance = attempt.until_running(apply)
            held.enter_context(opened.pop_all())
        seconds = run.clock.now() - attempt.begun
        self._tries.append(Try(candidate, None, seconds))
        run.record.add("instance-running", **_facts(candidate), hard_end=int(lives.hard_end), seconds=round(seconds, 3))
        run.console.say(f"the VM {instance.name} runs in {instance.zone} after {run.clock.now() - self._begun:.0f} s")
        return instance, apply

    def _give_up(self, attempt: Attempt, failure: Failure) -> None:
        """Write down why a candidate failed, remove what it left, and see whether another may do better.

        Raises:
            Failure: none would, or what is left of this one cannot be removed.
        """
        run, candidate = self._run, attempt.candidate
        seconds = run.clock.now() - attempt.begun
        self._last = attempt
        self._tries.append(Try(candidate, failure, seconds))
        run.console.say(f"{candidate.zone}: {failure.klass}: {failure.cause}")
        run.record.add(
            "candidate-failed",
            **_facts(candidate),
            failure=failure.klass,
            cause=failure.cause,
            seconds=round(seconds, 3),
            **attempt.terraform_times(),
        )
        if attempt.lock_left and self._breaks_locks:
            state_for(run)
        if not attempt.clear(failure):
            self._late.append(attempt)
        for other in self._queue.learn(candidate, failure):
            self._tries.append(Try(other, failure, None))
            run.record.add("candidate-skipped", **_facts(other), failure=failure.klass, cause=failure.cause)
        if failure.klass in TROUBLE:
            run.clock.sleep(HICCUP_SECONDS)


def _facts(candidate: Candidate) -> dict[str, object]:
    return {
        "candidate": str(candidate),
        "zone": candidate.zone,
        "machine_type": candidate.machine_type,
        "gpu": candidate.gpu or "none",
        "usd_per_hour": None if candidate.price is None else round(candidate.price, 4),
        "spot": candidate.spot,
    }


def standing(run: Run) -> Instance | None:
    """The VM that an earlier job or try of this run left running; one in any other state is removed first.

    Raises:
        Failure: USAGE, when its detached training waits to be collected; STILL_ALIVE, when one of those does not go;
            else what Compute Engine says.
    """
    found = None
    for instance in run.cloud.find(str(run.name)):
        if instance.status == "RUNNING" and found is None:
            found = instance
            continue
        if is_detached(instance):
            raise Failure(
                ErrorClass.USAGE,
                f"what ran in this run without a job is over, and its VM {instance.name} is {instance.status}",
                "run `glgpu collect`, which brings home what it has saved; then start a new pipeline",
            )
        run.console.say(f"a VM of this run is {instance.status} in {instance.zone}: removing it first")
        clear_away(run, instance)
    return found


def _check_live_vms(run: Run) -> None:
    own = run.name.own_labels
    labels = {key: own[key] for key in ("glgpu", "glgpu-server", "glgpu-project")}
    # One that is stopping is being deleted: the last run's, whose job is over.
    others = [one for one in run.cloud.labelled(labels) if one.name != str(run.name)]
    alive = [one for one in others if one.status != "STOPPING"]
    limit = run.settings.limits.live_vms
    if len(alive) >= limit:
        names = ", ".join(sorted(instance.name for instance in alive))
        raise Failure(
            ErrorClass.LIVE_VMS,
            f"this project has {len(alive)} VMs alive already, limits.live_vms is {limit}: {names}",
            "wait for their pipelines, end them with their stop jobs, or raise limits.live_vms",
        )
