"""Bring a VM up: the first candidate that the cloud gives, with Terraform creating and Compute Engine testifying."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Apply, Instance
from glgpu.lifetime import Lifetime, spoken
from glgpu.machines import Candidate, candidates
from glgpu.steps.context import SETTINGS_ITEM, Run, left_settings

LOOK_SECONDS = 0.5
RUNNING_SECONDS = 900.0
"""How long an insert may take; flex capacity aside, Google answers within a few minutes."""
DEFAULT_HOURS = 24.0
"""The hard end where no job time limits it: a laptop's run."""
AFTERWARDS_SECONDS = 15 * 60
"""What follows the training: its weights come home, and destroy looks after what is left."""


def plan_lifetime(run: Run) -> Lifetime:
    """When the VM goes at the latest.

    Raises:
        Failure: CONFIG, when machine.max_hours is more than the train job can hold.
    """
    now = run.clock.now()
    limits, hours, job = run.settings.limits, run.settings.machine.max_hours, run.job
    claim = limits.claim_minutes * 60.0
    times = [time for time in (job.job_timeout, job.script_timeout) if time is not None] if job.in_ci else []
    if hours is not None:
        if times and hours * 3600 > min(times):
            raise Failure(
                ErrorClass.CONFIG,
                f"machine.max_hours is {hours:g}, but the train job ends its script after {spoken(min(times))}",
                "lower machine.max_hours, or raise the include's inputs script_timeout and job_timeout",
            )
        seconds = hours * 3600
    elif times:
        seconds = claim + max(times) + limits.rescue_minutes * 60 + AFTERWARDS_SECONDS
    else:
        seconds = DEFAULT_HOURS * 3600
    return Lifetime("pipeline", soft_end=now + claim, hard_end=now + seconds)


@contextmanager
def bring_up(run: Run, lifetime: Lifetime) -> Iterator[Instance]:
    """Have a new VM running for the block; Terraform may still be finishing while the block is at work.

    Leaving the block waits for Terraform and holds its outputs against what Compute Engine says.

    Raises:
        Failure: LIVE_VMS, STOCKOUT, quota, permission, TERRAFORM, ...
    """
    _check_live_vms(run)
    machine = run.settings.machine
    zones = machine.zones or [zone for region in machine.regions for zone in run.cloud.zones(region)]
    # A list with a loop over it: further candidates are what failover adds.
    for candidate in candidates(machine, zones)[:1]:
        run.console.say(f"asking for {candidate}")
        run.record.add("candidate-tried", candidate=str(candidate), zone=candidate.zone, spot=candidate.spot)
        with _creating(run, candidate, lifetime) as instance:
            yield instance
        return


def terraform_variables(run: Run, candidate: Candidate, lifetime: Lifetime) -> dict[str, object]:
    """The variables of `terraform/gpu-vm` for a candidate; nothing secret."""
    machine, network = run.settings.machine, run.settings.network
    account = {"email": machine.service_account} if machine.service_account else None
    gpu = {"type": candidate.gpu, "count": candidate.count, "attached": candidate.attached} if candidate.gpu else None
    return {
        "name": str(run.name),
        "project": run.cloud.project,
        "zone": candidate.zone,
        "labels": {**run.settings.labels, **run.name.labels(lifetime, user=run.job.user, ref=run.job.ref)},
        "metadata": {SETTINGS_ITEM: left_settings(run, lifetime.hard_end)},
        "machine": {
            "type": candidate.machine_type,
            "gpu": gpu,
            "spot": candidate.spot,
            "max_run_seconds": max(60, int(lifetime.hard_end - run.clock.now())),
            "disk": {"size_gb": machine.disk_gb, "type": candidate.disk_type, "image": candidate.image},
            "service_account": account,
        },
        "network": {
            "name": network.name,
            "subnetwork": network.subnetwork,
            "external_ip": network.external_ip,
            "tags": list(machine.tags),
        },
        "compute_endpoint": run.job.compute_endpoint or None,
    }


def state_for(run: Run) -> Mapping[str, str] | None:
    """Where Terraform keeps the state of this run: the variables of GitLab's, or None for one that is thrown away.

    Raises:
        Failure: STATE_ACCESS, when settings insist on GitLab and it refuses.
    """
    wanted = run.settings.state
    if wanted == "local" or (wanted == "auto" and not run.job.server_url):
        return None
    if run.forge.state_writable(str(run.name)):
        return run.forge.state_environment(str(run.name))
    if wanted == "gitlab":
        raise Failure(
            ErrorClass.STATE_ACCESS,
            "GitLab does not let this job write a Terraform state: that takes Maintainer rights",
            "set GLGPU_GITLAB_TOKEN (Maintainer, scope api), or `state: local`",
        )
    run.console.say("Terraform's state is thrown away after this job: GitLab keeps states for Maintainers only")
    return None


@contextmanager
def _creating(run: Run, candidate: Candidate, lifetime: Lifetime) -> Iterator[Instance]:
    begun = run.clock.now()
    before = run.cloud.inserts(str(run.name), candidate.zone)
    stack = run.stack_for(terraform_variables(run, candidate, lifetime), state_for(run))
    stack.prepare()
    with stack.start_apply() as apply:
        instance = _until_running(run, candidate, apply, before)
        run.record.add(
            "instance-running",
            zone=instance.zone,
            machine_type=candidate.machine_type,
            gpu=candidate.gpu or "none",
            spot=candidate.spot,
            hard_end=int(lifetime.hard_end),
        )
        run.console.say(f"the VM {instance.name} runs in {instance.zone} after {run.clock.now() - begun:.0f} s")
        yield instance
        apply.result()
    address = stack.outputs().get("address", "")
    if address != (instance.address or instance.internal_address):
        raise Failure(
            ErrorClass.TERRAFORM,
            f"Terraform says the VM's address is {address!r}, Compute Engine says {instance.address!r}",
            "retry the job; if it happens again, report it",
        )


def _until_running(run: Run, candidate: Candidate, apply: Apply, before: Collection[str]) -> Instance:
    """Look for the VM through the API while Terraform waits: it notices a refusal late, a vanished VM never."""
    name, seen = str(run.name), False
    end = run.clock.now() + RUNNING_SECONDS
    while True:
        over = apply.ended()
        instance = run.cloud.get(name, candidate.zone)
        if instance is not None and instance.status == "RUNNING":
            return instance
        failure = run.cloud.insert_failure(name, candidate.zone, before)
        if failure is not None:
            apply.stop()
            raise failure
        if seen and (instance is None or instance.status in ("STOPPING", "TERMINATED", "SUSPENDED")):
            apply.stop()
            raise Failure(
                ErrorClass.PREEMPTED,
                f"the VM {name} vanished while it was created",
                "retry the job, or set spot: never",
            )
        seen = seen or instance is not None
        if over:
            apply.result()
            if instance is None:
                raise Failure(
                    ErrorClass.TERRAFORM,
                    f"Terraform ended well, but Compute Engine knows no VM {name} in {candidate.zone}",
                    "check that GLGPU_TERRAFORM, or terraform on PATH, is Terraform",
                )
        if run.clock.now() > end:
            apply.stop()
            raise Failure(
                ErrorClass.STOCKOUT,
                f"the VM {name} did not run within {spoken(RUNNING_SECONDS)}",
                "retry the job, or name more zones",
            )
        run.clock.sleep(LOOK_SECONDS)


def standing(run: Run) -> Instance | None:
    """The VM that an earlier job or try of this run left running; one in any other state is removed first."""
    found = None
    for instance in run.cloud.find(str(run.name)):
        if instance.status == "RUNNING" and found is None:
            found = instance
            continue
        run.console.say(f"a VM of this run is {instance.status} in {instance.zone}: removing it first")
        run.cloud.delete_instance(instance.name, instance.zone)
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
