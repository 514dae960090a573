"""fetch: everything of a run in one folder again, its artifacts and what was too big for them, checked."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from glgpu.clock import Clock
from glgpu.console import Console
from glgpu.elsewhere import MANIFEST, MANIFEST_PART, Bundle, Elsewhere, read_elsewhere
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import BucketFor, Depot, Forge
from glgpu.run_names import RunName, read_name
from glgpu.saved import of_detached
from glgpu.steps.bring_together import damaged, run_in, split, sums_with, there, unpack
from glgpu.steps.download import download, download_whole
from glgpu.steps.sums import read_sums, write_sums

STAGES = ("train", "destroy", "stop")
"""Whose artifacts may hold outputs, in the order in which they are unpacked: the later ones save what train did not."""
WORK = ".glgpu-fetch"
"""Below the folder: what has come in part. It is what a second try goes on with."""


@dataclass(frozen=True)
class Origin:
    """Where a run's outputs are to be found.

    Attributes:
        name: The run.
        forge: GitLab.
        bucket_for: Opens a bucket.
        bucket: The team's bucket, where a setting names one.
        console: Where messages go.
        clock: Time.
    """

    name: RunName
    forge: Forge
    bucket_for: BucketFor
    bucket: str | None
    console: Console
    clock: Clock


def fetch(origin: Origin, to: Path, *, json_to: Console | None = None) -> None:
    """Get everything of a run into a folder; what is there already and intact is not got again.

    Args:
        origin: Where it is.
        to: The folder; made if it is not there.
        json_to: Where the result goes as JSON, if it is wanted so.

    Raises:
        Failure: USAGE, when the folder holds another run; NOT_FOUND; NETWORK, TRANSIENT or what GitLab or Google says;
            DISK_FULL.
    """
    _check_folder(origin, to)
    note = _note_in(origin, to)
    with origin.console.section("artifacts", f"Artifacts of run {origin.name.run}"):
        files, kept = _artifacts(origin, to, note)
        note = _note_in(origin, to) or kept or _note_kept(origin)
        if not files and note is None:
            raise _nothing(origin)
    moved = note.files if note else []
    if note is not None:
        where = f"the bucket {note.bucket}" if note.bucket else "the project's package registry"
        with origin.console.section("elsewhere", f"{len(moved)} files that are in {where}"):
            for bundle in note.bundles:
                _bring(origin, note, bundle, to)
    with origin.console.section("check", "Every file against its checksum"):
        sums = sums_with(to, moved)
        wrong = damaged(to, sums)
        if wrong:
            raise Failure(
                ErrorClass.TRANSIENT,
                f"{len(wrong)} of {len(sums)} files are not as their checksums say, the first is {wrong[0]!r}",
                "fetch again, into an empty folder",
            )
        write_sums(to, sums)
    shutil.rmtree(to / WORK, ignore_errors=True)
    origin.console.say(f"{len(sums)} files, all as their checksums say, are in {to}")
    if json_to is not None:
        elsewhere = {file.path for file in moved}
        told = [
            {
                "path": name,
                "sha256": digest,
                "size": (to / name).stat().st_size,
                "from": (note.store if note else "") if name in elsewhere else "artifacts",
            }
            for name, digest in sorted(sums.items())
        ]
        json_to.say(json.dumps({"run": origin.name.run, "to": str(to), "files": told}, indent=1))


def _check_folder(origin: Origin, to: Path) -> None:
    try:
        (to / WORK).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(
            ErrorClass.DISK_FULL, f"{to} cannot be written: {error.strerror}", "name another folder with --to"
        ) from None
    found = run_in(to)
    if found and not _is_meant(origin, found):
        raise Failure(ErrorClass.USAGE, f"{to} holds the outputs of {found}", "name another folder with --to")


def _is_meant(origin: Origin, name: str) -> bool:
    """Whether a name is the run's; the server's address, which is in it too, may be known under another one here."""
    read, wanted = read_name(name), origin.name
    return read is not None and (read.project_id, read.run, read.kind) == (wanted.project_id, wanted.run, wanted.kind)


def _artifacts(origin: Origin, to: Path, note: Elsewhere | None) -> tuple[int, Elsewhere | None]:
    """Unpack what jobs have as artifacts of the run, unless it is there; how many files, and the note, where known."""
    moved = {file.path for file in note.files} if note else set()
    sums = {name: digest for name, digest in read_sums(to).items() if name not in moved}
    if run_in(to) and sums and not damaged(to, sums):
        origin.console.say(f"{len(sums)} files are in {to} already")
        return len(sums), note
    run = origin.name.run
    if origin.forge.may_administer and not run.startswith("u"):
        count = sum(_unpacked(origin, job, to) for job in origin.forge.artifact_jobs(run, STAGES))
        note = _note_in(origin, to) or _note_kept(origin)
        # What was left to its VM was collected by a job of another pipeline.
        return count + (_unpacked(origin, note.job, to) if note and _is_collected(note) else 0), note
    # A job's token may not look for jobs, but it opens the artifacts of one that it knows.
    note = note or _note_kept(origin)
    if note is None or not note.job:
        return 0, note
    try:
        return _unpacked(origin, note.job, to), note
    except Failure as failure:
        if not note.bucket or failure.klass not in (ErrorClass.GITLAB, ErrorClass.GITLAB_AUTH):
            raise
        origin.console.say(f"{failure.cause}; what is in the bucket comes all the same")
        return 0, note


def _is_collected(note: Elsewhere) -> bool:
    """Whether the run was left to its VM: that has left the parts, and not a job."""
    return bool(of_detached(part.name for bundle in note.bundles for part in bundle.parts))


def _unpacked(origin: Origin, job: str, to: Path) -> int:
    archive = to / WORK / f"artifacts-{job}.zip"
    get = partial(origin.forge.get_artifacts, job)
    download_whole(get, archive, origin.clock, origin.console.say)
    try:
        count = unpack(archive, to, origin.name)
    except ValueError as error:
        archive.unlink(missing_ok=True)
        raise Failure(
            ErrorClass.TRANSIENT, f"the artifacts of job {job} did not come through whole: {error}", "fetch again"
        ) from None
    except OSError as error:
        raise _cannot_write(error, to) from None
    archive.unlink()
    origin.console.say(f"{count} files from the artifacts of job {job}")
    return count


def _note_in(origin: Origin, to: Path) -> Elsewhere | None:
    """What the folder's own elsewhere.json tells, if it is this run's."""
    try:
        text = (to / MANIFEST).read_bytes()
    except OSError:
        return None
    return _understood(origin, text, str(to / MANIFEST))


def _note_kept(origin: Origin) -> Elsewhere | None:
    """The newest note beside the parts themselves."""
    # The bucket takes no token of GitLab's.
    depots: list[Depot] = [*([origin.bucket_for(origin.bucket)] if origin.bucket else []), origin.forge]
    for depot in depots:
        notes = [part for name, part in depot.parts(origin.name).items() if MANIFEST_PART.fullmatch(name)]
        if notes:
            newest = max(notes, key=lambda part: int(part.name.removeprefix("elsewhere-").removesuffix(".json")))
            text = bytearray()
            depot.get_part(origin.name, newest.name, 0, text.extend)
            return _understood(origin, bytes(text), newest.name)
    return None


def _understood(origin: Origin, text: bytes, what: str) -> Elsewhere | None:
    try:
        note = read_elsewhere(text)
    except ValueError as error:
        raise Failure(
            ErrorClass.CONFIG,
            f"{what} cannot be understood: {error}",
            "use the version of glgpu that the run's jobs used",
        ) from None
    return note if _is_meant(origin, note.run) else None


def _cannot_write(error: OSError, to: Path) -> Failure:
    return Failure(
        ErrorClass.DISK_FULL,
        f"{error.filename or to} cannot be written: {error.strerror}",
        "make room there, or name another folder with --to",
    )


def _nothing(origin: Origin) -> Failure:
    remedy = "check the number; artifacts expire, and people delete packages"
    if not origin.forge.may_administer:
        remedy = "set GLGPU_GITLAB_TOKEN; in a later job of the pipeline let `needs` bring the artifacts of train along"
    return Failure(ErrorClass.NOT_FOUND, f"GitLab has nothing of run {origin.name.run} that we may see", remedy)


def _bring(origin: Origin, note: Elsewhere, bundle: Bundle, to: Path) -> None:
    told = bundle.files[0].path if len(bundle.files) == 1 else f"{len(bundle.files)} files"
    if there(to, bundle):
        origin.console.say(f"{told}: there already")
        return
    name = read_name(note.run) or origin.name
    depot: Depot = origin.bucket_for(note.bucket) if note.bucket else origin.forge
    first = bundle.parts[0].name if bundle.parts else "empty"
    begun, source = origin.clock.now(), to / WORK / first
    download(partial(depot.get_part, name), bundle.parts, source, origin.clock, origin.console.say)
    try:
        split(source, bundle, to)
    except OSError as error:
        raise _cannot_write(error, to) from None
    size = sum(file.size for file in bundle.files)
    origin.console.say(f"{told}: {size} bytes in {origin.clock.now() - begun:.0f} s")
