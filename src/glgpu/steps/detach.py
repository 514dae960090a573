"""Longer than any job: the training is handed over to its VM, which sees it home by itself (vm/keeper.sh)."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence

from glgpu.elsewhere import MANIFEST_PART, PART_BYTES, Part, read_elsewhere
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Admission, DropOff, Instance
from glgpu.job_times import script_seconds, wants_to_detach
from glgpu.lifetime import Lifetime, spoken
from glgpu.masking import Masker
from glgpu.notebook import KIND
from glgpu.resources import resource_text
from glgpu.run_names import RunName
from glgpu.saved import ENDED, HANDED_OVER, PROBE, Save, collected_mark, manifests, of_detached, read_save
from glgpu.settings import read_secret
from glgpu.steps.cleanup_schedule import hidden, troubles_with
from glgpu.steps.context import Run, hard_end_of
from glgpu.steps.door import Guest
from glgpu.steps.end_vms import instances_of
from glgpu.steps.guest import ask
from glgpu.way_home import MAKE_WAY, no_way, saves_to_bucket, unseen

PROBE_SECONDS = 90.0
SAVING_SHARE = 0.2
"""Of the time that is left: how much the VM keeps for ending the container and saving."""


def way_home(run: Run) -> DropOff | None:
    """Where the run's VM would leave its outputs, as far as can be known before there is one; None: nowhere.

    The bucket goes first: it takes no token of GitLab's.
    """
    if not run.job.in_ci:
        return None
    if saves_to_bucket(run.settings):
        return run.bucket_for(run.settings.storage.bucket or "")
    return run.forge if run.forge.may_administer else None


def places(run: Run, instances: Sequence[Instance] = ()) -> list[DropOff]:
    """Wherever VMs of the project may have left something, whatever the settings say now.

    Args:
        run: The run; a scheduled one has no glgpu.yml.
        instances: VMs of the project, which know their bucket.
    """
    named = [run.settings.storage.bucket, *(run.knowing(one).settings.storage.bucket for one in instances)]
    found: list[DropOff] = [run.bucket_for(name) for name in dict.fromkeys(named) if name]
    return [*found, *([run.forge] if run.forge.may_administer else [])]


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
    home = way_home(run)
    if home is not None:
        _look_at_schedule(run)
        trouble = unseen(run.settings, run.job)
        if trouble is not None:
            run.console.say(f"{trouble.cause}; {trouble.remedy}")
        return
    nowhere = f"no VM could leave its outputs anywhere: {no_way(run.settings)}"
    if run.settings.train.follow == "auto":
        run.console.say(
            f"machine.max_hours is more than this job has, but {nowhere}. So the training is followed, and ends "
            f"with its job after {spoken(_job_seconds(run))}"
        )
        return
    if not run.job.in_ci:
        raise Failure(
            ErrorClass.CONFIG,
            "train.follow is false, but only a job can leave a training to its VM: nobody would collect it here",
            "add `--set train.follow=true`",
        )
    raise Failure(ErrorClass.CONFIG, f"train.follow is false, but {nowhere}", MAKE_WAY)


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
    home = way_home(run) if wants_to_detach(run.settings, run.job, own=True) else None
    return home is not None and _prove(run, home, instance, guest)


def _prove(run: Run, home: DropOff, instance: Instance, guest: Guest) -> bool:
    """Prove the way home of a training.

    Returns:
        Whether there is one; False only with `follow: auto`, where the training is followed instead.

    Raises:
        Failure: what stands in the way, with `follow: false`.
    """
    try:
        prove(run, home, instance, guest)
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED or run.settings.train.follow != "auto":
            raise
        run.console.say(f"there is no way home for a detached training: {failure.cause}")
        run.console.say(f"it is followed instead, and ends with its job after {spoken(_job_seconds(run))}")
        run.record.add("not-detached", cause=failure.cause)
        return False
    return True


def prove(run: Run, home: DropOff, instance: Instance, guest: Guest) -> None:
    """Have the VM leave something where its outputs are to go, with what it will use for them, and take it away again.

    Raises:
        Failure: what stands in the way; what the VM was given for it is good no more.
    """
    try:
        _give(run, home, instance, guest)
        # One that a killed job has not taken away is in the way of the next.
        home.drop_parts(run.name, [PROBE])
        _probe(run, home, guest)
        if PROBE not in home.parts(run.name):
            raise Failure(
                ErrorClass.CONFIG,
                f"the VM has left its probe, but nobody sees it in {home.kept_in}: {home.page(run.name)}",
                "look there, or set `train.follow: true`",
            )
        home.drop_parts(run.name, [PROBE])
    except Failure as failure:
        if failure.klass is not ErrorClass.INTERRUPTED:
            revoke(run, home)
        raise
    run.console.say(f"the way home is proved: the VM can leave its outputs in {home.kept_in}")
    run.record.add("way-home-proved", store=home.store)


def _probe(run: Run, home: DropOff, guest: Guest) -> None:
    doing = f"proving the way home to {home.kept_in}"
    try:
        ask(run, guest.machine, "see-home", "probe", timeout=PROBE_SECONDS, klass=ErrorClass.CONFIG, doing=doing)
    except Failure as failure:
        if not home.bucket or failure.klass not in (ErrorClass.PERMISSION, ErrorClass.NOT_FOUND, ErrorClass.CONFIG):
            raise
        remedy = (
            "see that the VM's account, storage.uploader as a rule, may create objects there "
            "(docs/how-to/long-trainings.md), or set `train.follow: true`"
        )
        raise Failure(failure.klass, failure.cause, remedy, failure.evidence) from None


def hand_over(run: Run, instance: Instance, guest: Guest) -> None:
    """Let the VM see the training home; done twice, it is done once.

    The watch begins before the label says so: a VM that is labelled is one that nobody waits for any more.
    """
    home = way_home(run)
    if home is None or (is_detached(instance) and HANDED_OVER in home.parts(run.name)):
        run.console.say("an earlier job has left the training to its VM, which sees it home")
        return
    end = hard_end_of(instance)
    left = end - run.clock.now()
    reserve = min(run.settings.limits.rescue_minutes * 60.0, left * SAVING_SHARE)
    train = run.settings.train
    words = [str(int(left - reserve)), f"{guest.home}/code/{run.base}".rstrip("/"), train.checkpoints or ""]
    ask(run, guest.machine, "leave", "watch", *words, *train.outputs, doing="leaving the training to its VM")
    note_hand_over(run, instance, home, Lifetime("deadline", end, end))
    run.console.say(
        f"the training goes on without this job, for {spoken(left)} at most: its VM saves its outputs and powers off, "
        "and the scheduled `glgpu cleanup` collects them"
    )


def note_hand_over(run: Run, instance: Instance, home: DropOff, lifetime: Lifetime, **more: str) -> None:
    """Write on the VM's labels, beside what it will leave, and into the record that it is left to itself.

    Args:
        run: The run.
        instance: Its VM.
        home: Where that leaves what it saves.
        lifetime: Its ends.
        **more: What whoever collects is to know besides.
    """
    labels = {"glgpu-until": lifetime.until, "glgpu-expires": str(int(lifetime.soft_end))}
    run.cloud.edit_labels(instance.name, instance.zone, labels)
    note = {
        "schema_version": 1,
        "run": str(run.name),
        "pipeline": run.job.run,
        "ref": run.job.ref,
        "commit": run.job.sha,
        **more,
        "hard_end": int(lifetime.hard_end),
    }
    leave_note(run, home, HANDED_OVER, json.dumps(note, indent=1).encode() + b"\n")
    run.record.add("handed-over", until=int(lifetime.soft_end), store=home.store)


def left_to_itself(run: Run) -> list[Instance]:
    """The VMs of a run that have been handed their training.

    Raises:
        Failure: the cloud cannot be asked, and the record says that there is one.
    """
    try:
        return [one for one in instances_of(run) if is_detached(one)]
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED or run.record.find("handed-over"):
            raise
        return []


def note_end(run: Run, instances: Sequence[Instance], *, whole: bool) -> None:
    """Note that somebody has ended a detached run, for whoever would wait for its outputs.

    What a notebook's VM has saved stays for its user, so that it can be brought home once more. Where a job has done
    so, its mark says which, until GitLab is seen to have that job's artifacts; where nobody has, the next one does.

    Args:
        run: The run.
        instances: Its VMs, as they were.
        whole: Whether all that they had is home, and all is done with it that is to be done.
    """
    for home in places(run, instances):
        parts = home.parts(run.name)
        if HANDED_OVER not in parts:
            continue
        if run.name.kind != KIND or not manifests(parts) or (whole and not run.job.in_ci):
            note_that_it_ended(run, home)
        elif whole:
            note_collected(run, home, parts)


def note_that_it_ended(run: Run, home: DropOff) -> None:
    """Note that nobody needs to wait for what a run has left."""
    leave_note(run, home, ENDED, b"by job %s\n" % run.job.job_id.encode())


def note_collected(run: Run, home: DropOff, parts: Mapping[str, Part]) -> None:
    """Note that this job has brought a run home, and does not know yet whether GitLab gets its artifacts."""
    mark = collected_mark(run.job.job_id)
    if mark not in parts:
        leave_note(run, home, mark, b"collected\n")


def parts_to_spare(run: Run, home: DropOff, name: RunName, parts: Mapping[str, Part]) -> list[str]:
    """What a run has left, but for what a note of its outputs points to: files that were too big for artifacts.

    Raises:
        Failure: the place does not tell.
    """
    found = of_detached(parts)
    for note in [one for one in parts if MANIFEST_PART.fullmatch(one)] if found else []:
        try:
            bundles = read_elsewhere(read_note(home, name, note)).bundles
        except ValueError as error:
            run.console.say(f"{note} of {name} cannot be understood, so that all of it stays: {error}")
            return []
        kept = {part.name for bundle in bundles for part in bundle.parts}
        found = [one for one in found if one not in kept]
    return found


def _job_seconds(run: Run) -> float:
    return script_seconds(run.job, run.settings, own=True)


def leave_note(run: Run, home: DropOff, name: str, data: bytes) -> None:
    """Leave a small part beside what the VM leaves."""
    home.put_part(run.name, Part(name, len(data), hashlib.sha256(data).hexdigest()), io.BytesIO(data))


def read_note(home: DropOff, name: RunName, part: str) -> bytes:
    """What a small part says.

    Raises:
        Failure: the place does not tell.
    """
    data = bytearray()
    home.get_part(name, part, 0, data.extend)
    return bytes(data)


def saves_of(run: Run, home: DropOff, name: RunName, parts: Mapping[str, Part]) -> Iterator[tuple[int, Save]]:
    """The saves of a run that can be understood, the newest first, each with its Unix time.

    Raises:
        Failure: the place does not tell.
    """
    for manifest in manifests(parts):
        try:
            save = read_save(read_note(home, name, manifest))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            run.console.say(f"{manifest} of {name} cannot be understood: {error}")
            continue
        yield int(manifest.removeprefix("save-").removesuffix(".manifest")), save


def revoke(run: Run, home: DropOff) -> None:
    """End what the VM leaves its outputs with."""
    count = home.dismiss(run.name)
    if count:
        run.record.add("deploy-token-removed", count=count)


def _give(run: Run, home: DropOff, instance: Instance, guest: Guest) -> None:
    """Bring the VM what it needs: the keeper, where to, and what opens that place; secrets by standard input alone."""
    machine = guest.machine
    end = hard_end_of(instance)
    end = end if math.isfinite(end) else run.clock.now() + 24 * 3600.0
    ask(run, machine, "keeper", stdin=resource_text("vm/keeper.sh"), doing="bringing the VM its keeper")
    admission = home.admit(run.name, end)
    if admission.secret:
        run.console.masker.add(admission.secret)
        run.record.add("deploy-token-made", name=str(run.name))
    ask(
        run,
        machine,
        "see-home",
        "take",
        stdin=tar_of(_files(run, admission)),
        doing="bringing the VM what opens the way home",
    )


def _files(run: Run, admission: Admission) -> dict[str, bytes]:
    """What the keeper keeps."""
    return {
        "address": admission.address.encode(),
        "headers": "".join(f"{line}\n" for line in admission.headers).encode(),
        "account": b"own\n" if admission.own_account else b"",
        "authority": admission.authority,
        "mask": _mask(run),
        "part": str(PART_BYTES).encode(),
    }


def _mask(run: Run) -> bytes:
    """What sed needs to hide the training's secrets in the log that the VM saves."""
    masker = Masker()
    for name in run.settings.train.secrets:
        masker.add(read_secret(name, run.job.variables)[0])
    lines = [form for form in masker.forms if b"\n" not in form]
    return b"".join(b"s/%s/[MASKED]/g\n" % re.sub(rb"([\\.*\[\]^$/])", rb"\\\1", form) for form in lines)


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """An archive of files for our eyes only, by their names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
