"""What detached trainings have left comes home: into outputs/ of the job that collects, verified, with a record.

Everything can be done again: nothing that a VM has left is removed before GitLab has the artifacts of the job that
collected it. That is seen by the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import cast, get_args

from glgpu.disk import cannot_write
from glgpu.elsewhere import (
    MANIFEST,
    Bundle,
    Elsewhere,
    MovedFile,
    Part,
    zipped_size,
)
from glgpu.errors import ErrorClass, Failure, gravest
from glgpu.gpu_samples import Samples, read_samples
from glgpu.interfaces import DropOff, Instance
from glgpu.notebook import KIND
from glgpu.run_names import Kind, RunName
from glgpu.run_record import write_atomically
from glgpu.saved import (
    ENDED,
    HANDED_OVER,
    Save,
    collected_by,
)
from glgpu.steps.annotate import annotate
from glgpu.steps.bring_together import damaged, split
from glgpu.steps.context import Run
from glgpu.steps.detach import (
    is_detached,
    leave_note,
    note_collected,
    note_that_it_ended,
    parts_to_spare,
    places,
    read_note,
    saves_of,
)
from glgpu.steps.download import download
from glgpu.steps.end_vms import instances_of
from glgpu.steps.follow import LOG_FILE
from glgpu.steps.move_out import artifact_bytes, note_of
from glgpu.steps.notebook import kept_work
from glgpu.steps.persist import Attempts
from glgpu.steps.push_work import push_work
from glgpu.steps.report import write_report
from glgpu.steps.sums import OWN_FOLDER, write_sums
from glgpu.steps.tear_down import tear_down
from glgpu.steps.watch import SAMPLES_FILE

RAW_SAMPLES = "samples.csv"
"""What the VM calls its samples of the GPUs (vm/keeper.sh)."""
HARD_END_SECONDS = 120.0
"""Before its hard end: from then on a VM that is gone has reached it."""
OVER = ("TERMINATED", "SUSPENDED")
"""Status of a VM that does nothing any more."""
LAST_LINES = 20
LAST_BYTES = 20_000
"""Of a log, in which those lines are: one without ends must not fill the job log."""


def bring_back(run: Run, now: Callable[[], float], named: Callable[[RunName], Run]) -> list[Failure]:
    """Collect every detached run of the project that is over; what is left of it then goes.

    Args:
        run: The run that collects.
        now: Google's clock.
        named: Makes a run of our own project under another name, whose outputs have a folder of their own.

    Returns:
        What went wrong, with the runs themselves and with collecting them.

    Raises:
        Failure: INTERRUPTED.
    """
    attempts = Attempts(run)
    for name, home in attempts.get(partial(_candidates, run, attempts)) or []:
        attempts.get(partial(_see_to, named(name), home, now))
        if any(one.klass is ErrorClass.INTERRUPTED for one in attempts.failures):
            break
    return attempts.failures


def bring_saved(run: Run, *, running_too: bool) -> None:
    """Collect what the VM of one run has saved, where there is no VM any more that could be asked itself.

    That its VM was taken away is told, and is no failure: what is there is home.

    Args:
        run: The run.
        running_too: Whether to do so although its VM runs: it was asked, and did not give all that it has.

    Raises:
        Failure: what stands in the way of collecting it.
    """
    instances = instances_of(run)
    if not running_too and any(one.status not in OVER for one in instances):
        return
    for home in places(run, instances):
        try:
            _see_to(run, home, run.google_time, running_too=running_too)
        except Failure as failure:
            if failure.klass not in (ErrorClass.PREEMPTED, ErrorClass.OUT_OF_TIME):
                raise
            run.console.say(failure.cause)


def _candidates(run: Run, attempts: Attempts) -> list[tuple[RunName, DropOff]]:
    """Runs of our project that have a detached VM, or of which one has left something, each with where that is.

    Raises:
        Failure: the cloud does not tell.
    """
    own = run.name.own_labels
    labels = {key: own[key] for key in ("glgpu", "glgpu-server", "glgpu-project")}
    vms = run.cloud.labelled({**labels, "glgpu-until": "deadline"})
    homes = places(run, vms)
    if not homes:
        run.console.say(
            "detached trainings, if there are any, are not collected: that takes GLGPU_GITLAB_TOKEN, or storage.bucket"
        )
    found = list[tuple[RunName, DropOff]]()
    for home in homes:
        kept = attempts.get(partial(_kept, run, home, insist=bool(vms))) or []
        found += [(one, home) for one in kept]
    if not attempts.failures:
        # One that has left nothing yet is seen to where it will.
        listed = {name for name, _ in found}
        for vm in vms:
            name = _name_of(run, vm)
            if name is not None and name not in listed:
                found += [(name, home) for home in places(run.knowing(vm))[:1]]
    return sorted(found, key=lambda one: (one[0].run, one[0].kind))


def _name_of(run: Run, vm: Instance) -> RunName | None:
    """The run that a VM of ours says it belongs to."""
    number, kind = vm.labels.get("glgpu-run", ""), vm.labels.get("glgpu-kind", "")
    if not number or kind not in get_args(Kind):
        return None
    return RunName(run.name.server_url, run.name.project_id, number, cast(Kind, kind))


def _kept(run: Run, home: DropOff, *, insist: bool) -> list[RunName]:
    """Runs of which something is kept in a place.

    Raises:
        Failure: it does not tell, and there is a detached VM, whose outputs may be there.
    """
    try:
        return home.runs_with_parts()
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED or insist:
            raise
        run.console.say(f"what detached trainings have left in {home.kept_in} cannot be seen: {failure.cause}")
        return []


def _see_to(run: Run, home: DropOff, now: Callable[[], float], *, running_too: bool = False) -> None:
    parts = home.parts(run.name)
    ours = _ours(run, home, parts)
    instances = instances_of(run)
    detached = [one for one in instances if is_detached(one)]
    if len(detached) < len(instances) or not (detached or ours):
        return  # its pipeline sees to it, or it has left nothing
    notebook = run.name.kind == KIND
    if notebook and not detached and ENDED in parts:
        # Its work is home. The newest save stays, for whoever goes on with it.
        home.drop_parts(run.name, ours)
        return
    if not detached and _is_settled(run, home, parts, ours):
        return
    save = _newest(run, home, parts)
    running = [one for one in detached if one.status not in OVER]
    if running and running_too and save is None:
        run.console.say(f"{running[0].name} has saved nothing in {home.kept_in}")
        return
    if running and not running_too and (notebook or not (save and save.whole)):
        what = "notebook" if notebook else "training"
        run.console.say(f"{running[0].name} is {running[0].status}: its {what} goes on")
        return
    if save is None and detached:
        if HANDED_OVER in parts:
            raise _saved_nothing(run, detached[0])
        run.console.say(
            f"{detached[0].name} is {detached[0].status} and of no training that is known: its deadline ends it"
        )
        return
    if save is None and (ENDED in parts or HANDED_OVER not in parts):
        home.drop_parts(run.name, ours)
        return
    what = "notebook" if notebook else "detached training"
    with run.console.section(f"collect-{run.name.run}", f"The {what} of {run.name}"):
        lost = _taken_over(run, home, now, save)
        if running and notebook:
            run.console.say(
                f"{running[0].name} has not given what it had in the end: this it had saved before, and what was "
                "changed since is lost"
            )
            lost = None
        instance = detached[0] if detached else None
        _settle(run, home, parts, lost, partial(push_work, run, instance) if save is not None and notebook else None)


def _taken_over(run: Run, home: DropOff, now: Callable[[], float], save: Save | None) -> Failure | None:
    """Bring a run's save home; what is to be said against the run, None where all is well."""
    _take_over_records(run)
    if save is None:
        return _vanished(run, home, now)
    # Nothing goes before it is home.
    _bring_home(run, home, save)
    return _judged(save, run.name.kind)


def _settle(
    run: Run, home: DropOff, parts: Mapping[str, Part], lost: Failure | None, push: Callable[[], None] | None
) -> None:
    """Let go what is left of a run whose outputs are home, and say how it has ended.

    Args:
        run: The run.
        home: Where its VM has left them.
        parts: What that was.
        lost: What is to be said against the run.
        push: What is left to be done once its VM has gone.

    Raises:
        Failure: the gravest of what went wrong.
    """
    attempts = Attempts(run)
    attempts.get(partial(tear_down, run))
    if push is not None:
        attempts.get(push)
    # Last: whoever dies before this leaves all of it to be done once more.
    if not attempts.failures:
        _note(run, home, parts)
    if lost is not None:
        run.record.add("failed", failure=lost.klass, cause=lost.cause, exit_code=lost.exit_code)
        attempts.failures.append(lost)
    worst = gravest(attempts.failures)
    write_report(run, worst)
    if worst is not None:
        raise worst


def _note(run: Run, home: DropOff, parts: Mapping[str, Part]) -> None:
    """Note who has collected it: once GitLab has that job's artifacts, the next one removes what the VM has left."""
    if not run.job.in_ci:
        run.console.say(f"what the VM has left stays until a job has collected it: {home.page(run.name)}")
        return
    note_collected(run, home, parts)


def _is_settled(run: Run, home: DropOff, parts: Mapping[str, Part], ours: Sequence[str]) -> bool:
    """Whether a run without a VM needs no more looking after: another job has collected it."""
    marks = collected_by(parts)
    if not marks:
        return False
    if not run.forge.may_administer:
        run.console.say(
            f"job {marks[-1]} has collected {run.name}. Whether GitLab has its artifacts takes GLGPU_GITLAB_TOKEN to "
            f"see, so that the VM's copy stays: {home.page(run.name)}"
        )
        _let_go(run, home, ours)
        return True
    kept = run.forge.job_artifacts(marks[-1])
    if kept == "none":
        run.console.say(f"job {marks[-1]} has collected {run.name}, but GitLab has no artifacts of it: once more")
        return False
    if kept == "kept":
        _let_go(run, home, ours)
        copy = "its newest save stays for its user" if run.name.kind == KIND else "its VM's copy is removed"
        run.console.say(f"the outputs of {run.name} are artifacts of job {marks[-1]}: {copy}")
    return True


def _let_go(run: Run, home: DropOff, ours: Sequence[str]) -> None:
    """Remove what a settled run needs no longer; beside a notebook's newest save a note stays that all of it is home.

    The note comes before the marks go: without either the save would be one that nobody has collected.
    """
    if run.name.kind == KIND and HANDED_OVER not in ours:
        note_that_it_ended(run, home)
    home.drop_parts(run.name, ours)


def _ours(run: Run, home: DropOff, parts: Mapping[str, Part]) -> list[str]:
    """What a settled run needs no longer; of a notebook its newest save stays."""
    ours = parts_to_spare(run, home, run.name, parts)
    if run.name.kind == KIND and (ENDED in parts or collected_by(parts)):
        stays = kept_work(parts, _newest(run, home, parts))
        ours = [one for one in ours if one not in stays]
    return ours


def _newest(run: Run, home: DropOff, parts: Mapping[str, Part]) -> Save | None:
    """The newest save of everything, else the newest of the checkpoints; one that is not understood counts as none."""
    best: Save | None = None
    for _, save in saves_of(run, home, run.name, parts):
        if save.whole:
            return save
        best = best or save
    return best


def _take_over_records(run: Run) -> None:
    """The complete record is ours: take over what the jobs of its pipeline wrote, if GitLab lets us see it."""
    for job in ("start notebook", "stop notebook") if run.name.kind == KIND else ("train", "destroy"):
        try:
            text = run.forge.artifact(run.name.run.partition("-")[0], job, "outputs/glgpu/run.json")
        except Failure as failure:
            if failure.klass is ErrorClass.INTERRUPTED:
                raise
            run.console.say(f"the {job} job's record cannot be had: {failure.cause}")
            continue
        if text:
            run.record.merge(text)


def _bring_home(run: Run, home: DropOff, save: Save) -> None:
    """Fetch what fits into the job's artifacts; the rest stays where it is, and is noted."""
    room = artifact_bytes(run, zipped_size({file.path: file.size for file in save.files}))
    fetched, stays = list[Bundle](), list[Bundle]()
    # The log and small files first: the last bundle is the log's.
    for bundle in sorted(save.bundles, key=lambda one: sum(file.size for file in one.files)):
        size = zipped_size({file.path: file.size for file in bundle.files})
        (fetched if size <= room else stays).append(bundle)
        room -= size if size <= room else 0
    for bundle in fetched:
        _fetch(run, home, bundle)
    here = [file for bundle in fetched for file in bundle.files]
    write_sums(run.outputs, {file.path: file.sha256 for file in here if not _is_own(file)})
    _take_samples(run)
    if stays:
        _tell_of(run, note_of(run, home, stays))
    # Where nobody sees whether GitLab has the artifacts, all of it stays.
    lasting = stays if run.forge.may_administer else save.bundles
    if lasting and run.job.in_ci:
        leave_note(run, home, f"elsewhere-{run.job.job_id}.json", note_of(run, home, lasting).text())
    files = [file for file in save.files if not _is_own(file)]
    size = sum(file.size for file in files)
    run.record.add("training-ended", exit_code=save.exit_code, out_of_memory=save.out_of_memory, reason=save.reason)
    run.record.add("outputs-home", files=len(files), bytes=size)
    where = run.outputs.relative_to(run.job.project_dir)
    run.console.say(f"{len(files)} files, {size} bytes, checked against the VM's checksums, are in {where}/")
    _show_log(run)
    pipeline = f"{run.job.server_url}/{run.job.project_path}/-/pipelines/{run.name.run.partition('-')[0]}"
    annotate(run, f"run {run.name.run}: the pipeline whose training this was", pipeline)


def _fetch(run: Run, home: DropOff, bundle: Bundle) -> None:
    """Bring the files of a bundle here, whole and as they were on the VM."""
    name = hashlib.sha256(repr(bundle.files).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    source = run.outputs / f".glgpu-{name}.part"
    try:
        source.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(error, "outputs/") from None
    download(partial(home.get_part, run.name), bundle.parts, source, run.clock, run.console.say)
    try:
        split(source, bundle, run.outputs)
    except OSError as error:
        raise cannot_write(error, "outputs/") from None
    wrong = damaged(run.outputs, {file.path: file.sha256 for file in bundle.files})
    if wrong:
        raise Failure(
            ErrorClass.TRANSIENT,
            f"{wrong[0]!r} is not as it was on the VM, though all its parts are as their checksums say",
            "retry the job: what the VM has saved stays where it is",
        )


def _tell_of(run: Run, note: Elsewhere) -> None:
    """Tell where files are that were too big for artifacts."""
    try:
        write_atomically(run.outputs / MANIFEST, note.text())
    except OSError as error:
        raise cannot_write(error, MANIFEST) from None
    count = len(note.files)
    annotate(run, f"run {run.name.run}: {count} files, too big for artifacts", note.page)
    run.record.add(
        "outputs-moved", files=count, bytes=sum(file.size for file in note.files), where=note.store, page=note.page
    )
    run.console.say(f"{count} files are too big for artifacts and stay where the VM has left them: {note.page}")
    run.console.say(f"`glgpu fetch {run.name.run}` brings it all together")


def _is_own(file: MovedFile) -> bool:
    """Whether it is the log or the like, and no output of the training's."""
    return PurePosixPath(file.path).parts[0] == OWN_FOLDER


def _take_samples(run: Run) -> None:
    """What the VM has sampled of its GPUs becomes what a followed training leaves of it."""
    raw = run.outputs / OWN_FOLDER / RAW_SAMPLES
    try:
        text = raw.read_text("utf-8", "replace")
        raw.unlink()
    except OSError:
        return
    samples = Samples()
    samples.add(read_samples(text))
    with contextlib.suppress(OSError):
        write_atomically(run.outputs / SAMPLES_FILE, samples.text.encode())


def _show_log(run: Run) -> None:
    try:
        with (run.outputs / LOG_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = file.read().splitlines()[-LAST_LINES:]
    except OSError:
        return
    run.console.say(f"the last lines of its log, which is whole in {LOG_FILE} there:")
    for line in lines:
        run.console.say(f"  {line.decode('utf-8', 'replace')}")


def _judged(save: Save, kind: Kind) -> Failure | None:
    """What is to be said against the training; None where all is well."""
    if kind == KIND:
        return _judged_notebook(save)
    if save.reason == "preempted":
        return Failure(
            ErrorClass.PREEMPTED,
            "the VM of the detached training was preempted; what it could save is here",
            "start a new pipeline; `spot: never` buys a VM that is not preempted",
        )
    if save.reason == "deadline":
        return Failure(
            ErrorClass.OUT_OF_TIME,
            "the detached training was ended before its VM's hard end; what it had is here",
            "raise machine.max_hours, or train for a shorter time",
        )
    if save.out_of_memory:
        return Failure(
            ErrorClass.OOM,
            f"the VM ran out of memory: the container was killed (its exit code: {save.exit_code})",
            "use a machine.type with more memory, or train with less",
        )
    if save.exit_code != 0:
        ended = "its container was removed" if save.exit_code is None else f"its exit code is {save.exit_code}"
        return Failure(
            ErrorClass.TRAINING_FAILED,
            f"the detached training failed, {ended}",
            f"read its last lines above; all of them are in {LOG_FILE} beside its outputs",
        )
    if all(_is_own(file) for file in save.files):
        return Failure(
            ErrorClass.NO_WEIGHTS,
            "the detached training ended well but left nothing in its outputs",
            "let it write there, or name what it writes in train.outputs",
        )
    return None


def _judged_notebook(save: Save) -> Failure | None:
    """A notebook has no result: only that it was cut off is to be told."""
    if save.reason in ("idle", "deadline", "ended"):
        return None
    return Failure(
        ErrorClass.PREEMPTED,
        "the notebook's VM was taken away, or ended by somebody else; what it had saved is here",
        "start the notebook again, which takes up what was saved; `spot: never` buys a VM that is not preempted",
    )


def _vanished(run: Run, home: DropOff, now: Callable[[], float]) -> Failure:
    """Its VM is gone, and has saved nothing."""
    try:
        end = float(json.loads(read_note(home, run.name, HANDED_OVER))["hard_end"])
    except (ValueError, KeyError, TypeError):
        end = 0.0
    if now() >= end - HARD_END_SECONDS:
        return Failure(
            ErrorClass.OUT_OF_TIME,
            "the VM of the detached training reached its hard end before it had saved anything",
            "raise machine.max_hours, or train for a shorter time",
        )
    return Failure(
        ErrorClass.PREEMPTED,
        "the VM of the detached training is gone and has saved nothing: preempted, or ended by somebody else",
        "start a new pipeline; `spot: never` buys a VM that is not preempted",
    )


def _saved_nothing(run: Run, instance: Instance) -> Failure:
    """It is off, and its disk has what was never saved."""
    return Failure(
        ErrorClass.PREEMPTED,
        f"the VM {instance.name} of a detached training is {instance.status} and has saved nothing; its disk is kept",
        f"`gcloud compute instances start {instance.name} --zone {instance.zone} --project {run.cloud.project}`, then "
        "run the branch's stop job, which saves what it finds",
    )
