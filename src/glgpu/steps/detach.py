"""Longer than any job: the training is handed over to its VM, which sees it home by itself (vm/keeper.sh)."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import tarfile
from pathlib import Path

from glgpu.elsewhere import PART_BYTES, Part
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance
from glgpu.job_times import script_seconds, wants_to_detach
from glgpu.lifetime import Lifetime, spoken
from glgpu.masking import Masker
from glgpu.resources import resource_text
from glgpu.saved import ENDED, HANDED_OVER, PROBE
from glgpu.settings import read_secret
from glgpu.steps.cleanup_schedule import hidden, troubles_with
from glgpu.steps.context import Run, hard_end_of
from glgpu.steps.door import Guest
from glgpu.steps.end_vms import instances_of
from glgpu.steps.guest import ask

NO_WAY = "the package registry takes them by a deploy token, which GLGPU_GITLAB_TOKEN makes; that is not set here"
TOKEN_MARGIN_SECONDS = 3600.0
"""How much longer than its VM the deploy token lives: clocks differ."""
PROBE_SECONDS = 90.0
SAVING_SHARE = 0.2
"""Of the time that is left: how much the VM keeps for ending the container and saving."""


def can_detach(run: Run) -> bool:
    """Whether there may be a way home, as far as can be known before there is a VM."""
    return run.job.in_ci and run.forge.may_administer


def check_detaching(run: Run, *, trains: bool) -> None:
    """Refuse `follow: false` where nothing could bring the outputs home; with `auto`, say what comes instead.

    Args:
        run: The run.
        trains: Whether this is the train job itself, whose own limit counts then.

    Raises:
        Failure: CONFIG.
    """
    if not wants_to_detach(run.settings, run.job, own=trains):
        return
    if can_detach(run):
        _look_at_schedule(run)
        return
    if run.settings.train.follow == "auto":
        run.console.say(
            f"machine.max_hours is more than this job has, but no VM could leave its outputs anywhere ({NO_WAY}): the "
            f"training is followed, and ends with its job after {spoken(_job_seconds(run))}"
        )
        return
    if not run.job.in_ci:
        raise Failure(
            ErrorClass.CONFIG,
            "train.follow is false, but only a job can leave a training to its VM: nobody would collect it here",
            "add `--set train.follow=true`",
        )
    raise Failure(
        ErrorClass.CONFIG,
        f"train.follow is false, but no VM could leave its outputs anywhere: {NO_WAY}",
        "set the CI variable GLGPU_GITLAB_TOKEN (Maintainer, scope api), or leave train.follow out",
    )


def _look_at_schedule(run: Run) -> None:
    """Say why nobody would collect the training; it can be mended while that runs."""
    try:
        schedules = run.forge.schedules()
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        run.console.say(f"whether a schedule collects the training cannot be seen: {failure.cause}")
        return
    for trouble in [] if hidden(schedules) else troubles_with(schedules, run.clock.now()):
        run.console.say(f"a schedule has to collect the training: {trouble.cause}; {trouble.remedy}")
        run.record.add("schedule-trouble", cause=trouble.cause)


def is_detached(instance: Instance) -> bool:
    """Whether a VM has been handed its training: it goes when that is saved, or at its deadline."""
    return instance.labels.get("glgpu-until") == "deadline"


def leaves_it(run: Run, instance: Instance, guest: Guest) -> bool:
    """Whether this job leaves the training to its VM: it is to, and what the VM needs for it is there and works.

    Raises:
        Failure: what stands in the way, with `follow: false`.
    """
    if is_detached(instance):
        return True
    return (
        wants_to_detach(run.settings, run.job, own=True) and can_detach(run) and _prove_way_home(run, instance, guest)
    )


def _prove_way_home(run: Run, instance: Instance, guest: Guest) -> bool:
    """Have the VM leave something where its outputs are to go, with what it will use for them, and take it away again.

    Returns:
        Whether it could; False only with `follow: auto`, where the training is followed instead.

    Raises:
        Failure: what stands in the way, with `follow: false`.
    """
    try:
        _give(run, instance, guest)
        ask(
            run,
            guest.machine,
            "see-home",
            "probe",
            timeout=PROBE_SECONDS,
            klass=ErrorClass.CONFIG,
            doing="proving the way home",
        )
        if PROBE not in run.forge.parts(run.name):
            raise Failure(
                ErrorClass.GITLAB,
                f"the VM has left its probe, but GitLab does not show it in {run.forge.page(run.name)}",
                "look at the project's package registry, or set `train.follow: true`",
            )
        run.forge.drop_parts(run.name, [PROBE])
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        revoke(run)
        if run.settings.train.follow == "auto":
            run.console.say(f"there is no way home for a detached training: {failure.cause}")
            run.console.say(f"it is followed instead, and ends with its job after {spoken(_job_seconds(run))}")
            run.record.add("not-detached", cause=failure.cause)
            return False
        raise
    run.console.say(
        f"the way home is proved: the VM can leave its outputs in the package registry of {run.job.project_path}"
    )
    run.record.add("way-home-proved", store="packages")
    return True


def hand_over(run: Run, instance: Instance, guest: Guest) -> None:
    """Let the VM see the training home; done twice, it is done once.

    The watch begins before the label says so: a VM that is labelled is one that nobody waits for any more.
    """
    if is_detached(instance) and HANDED_OVER in run.forge.parts(run.name):
        run.console.say("an earlier job has left the training to its VM, which sees it home")
        return
    end = hard_end_of(instance)
    left = end - run.clock.now()
    reserve = min(run.settings.limits.rescue_minutes * 60.0, left * SAVING_SHARE)
    train = run.settings.train
    words = [str(int(left - reserve)), f"{guest.home}/code/{run.base}".rstrip("/"), train.checkpoints or ""]
    ask(run, guest.machine, "leave", *words, *train.outputs, doing="leaving the training to its VM")
    lifetime = Lifetime("deadline", end, end)
    labels = {"glgpu-until": lifetime.until, "glgpu-expires": str(int(lifetime.soft_end))}
    run.cloud.edit_labels(instance.name, instance.zone, labels)
    note = {
        "schema_version": 1,
        "run": str(run.name),
        "pipeline": run.job.run,
        "ref": run.job.ref,
        "commit": run.job.sha,
        "hard_end": int(end),
    }
    data = json.dumps(note, indent=1).encode() + b"\n"
    leave_note(run, HANDED_OVER, data)
    run.record.add("handed-over", until=int(end), store="packages")
    run.console.say(
        f"the training goes on without this job, for {spoken(left)} at most: its VM saves its outputs and powers off, "
        "and the scheduled `glgpu cleanup` collects them"
    )


def left_to_itself(run: Run) -> list[str]:
    """The VMs of a run that have been handed their training, as ``NAME in ZONE``.

    Raises:
        Failure: the cloud cannot be asked, and the record says that there is one.
    """
    try:
        return [f"{one.name} in {one.zone}" for one in instances_of(run) if is_detached(one)]
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED or run.record.find("handed-over"):
            raise
        return []


def note_end(run: Run) -> None:
    """Note that somebody has ended a detached run, for whoever would wait for its outputs."""
    if run.forge.may_administer and HANDED_OVER in run.forge.parts(run.name):
        leave_note(run, ENDED, b"by job %s\n" % run.job.job_id.encode())


def _job_seconds(run: Run) -> float:
    return script_seconds(run.job, run.settings, own=True)


def leave_note(run: Run, name: str, data: bytes) -> None:
    """Leave a small part beside what the VM leaves."""
    run.forge.put_part(run.name, Part(name, len(data), hashlib.sha256(data).hexdigest()), io.BytesIO(data))


def revoke(run: Run) -> None:
    """Remove the deploy token with which the VM leaves its outputs."""
    count = run.forge.remove_deploy_tokens(str(run.name))
    if count:
        run.record.add("deploy-token-removed", count=count)


def _give(run: Run, instance: Instance, guest: Guest) -> None:
    """Bring the VM what it needs: the keeper, where to, and what opens that place; secrets by standard input alone."""
    machine = guest.machine
    end = hard_end_of(instance)
    end = end if math.isfinite(end) else run.clock.now() + 24 * 3600.0
    ask(run, machine, "keeper", stdin=resource_text("vm/keeper.sh"), doing="bringing the VM its keeper")
    # One from an earlier try of this job: its secret was told once, to that one.
    run.forge.remove_deploy_tokens(str(run.name))
    user, secret = run.forge.add_deploy_token(str(run.name), end + TOKEN_MARGIN_SECONDS)
    run.console.masker.add(secret)
    run.record.add("deploy-token-made", name=str(run.name))
    login = base64.b64encode(f"{user}:{secret}".encode()).decode()
    files = {
        "address": run.forge.drop_off(run.name).encode(),
        "login": f"Authorization: Basic {login}\n".encode(),
        "authority": Path(run.job.ca_file).read_bytes() if run.job.ca_file else b"",
        "mask": _mask(run),
        "part": str(PART_BYTES).encode(),
    }
    ask(run, machine, "see-home", "take", stdin=_tar(files), doing="bringing the VM what opens the way home")


def _mask(run: Run) -> bytes:
    """What sed needs to hide the training's secrets in the log that the VM saves."""
    masker = Masker()
    for name in run.settings.train.secrets:
        masker.add(read_secret(name, run.job.variables)[0])
    lines = [form for form in masker.forms if b"\n" not in form]
    return b"".join(b"s/%s/[MASKED]/g\n" % re.sub(rb"([\\.*\[\]^$/])", rb"\\\1", form) for form in lines)


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
