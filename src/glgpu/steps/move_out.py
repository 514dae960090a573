"""Move out of outputs/ what GitLab would not take as artifacts, before the job ends and before the VM goes.

Runner and GitLab would find out only afterwards: the job would fail, and all of outputs/ be lost, weights and record.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import urlsplit

from glgpu.disk import cannot_write
from glgpu.elsewhere import (
    MANIFEST,
    PART_BYTES,
    Bundle,
    Elsewhere,
    MovedFile,
    Part,
    bundled,
    part_name,
    too_much,
    zipped_size,
)
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Depot
from glgpu.run_record import write_atomically
from glgpu.steps.annotate import ANNOTATIONS, annotate
from glgpu.steps.context import Run
from glgpu.steps.strand import CHUNK, Strand, Stretches
from glgpu.steps.sums import OWN_FOLDER, SUMS, read_sums, write_sums

MB = 1 << 20
GITLAB_COM_MB = 1000
"""GitLab.com takes artifacts of 1 GB (https://docs.gitlab.com/user/gitlab_com/#cicd)."""
USUAL_MB = 100
"""What an instance takes whose administrator says nothing else
(https://docs.gitlab.com/administration/settings/continuous_integration/#set-maximum-artifacts-size)."""
ANY_MB = 10
"""Less than any instance can be expected to refuse: for so little GitLab is not asked."""
RESERVE_SHARE, RESERVE = 0.05, MB // 4
"""Of the limit, and bytes: what is kept free for what is written later, the run record above all."""
STAYS = {f"{OWN_FOLDER}/run.json", SUMS, MANIFEST, ANNOTATIONS}
TRIES = 3
PAUSE_SECONDS = 5.0
ASIDE = "outputs-left-out"
"""Beside outputs/: where the last copy of what nobody takes goes; on a docker runner it is gone with the job."""


def move_out(run: Run, *, last_copy: bool) -> None:
    """Upload what is too much for the job's artifacts, verify it, and take it out of outputs/.

    Where that fails it is taken out all the same, so that the rest of outputs/ arrives.

    Args:
        run: The run.
        last_copy: Whether the VM, which has it too, goes whatever happens here.

    Raises:
        Failure: GITLAB, GITLAB_AUTH, NETWORK, TRANSIENT, ... whoever should have taken it did not.
    """
    if not run.job.in_ci:
        return
    sizes = _sizes(run.artifacts)
    limit = _limit(run, zipped_size(sizes))
    chosen = _chosen(run, sizes, limit)
    if not chosen:
        return
    size = sum(chosen.values())
    bucket = run.settings.storage.bucket
    depot: Depot = run.bucket_for(bucket) if bucket else run.forge
    where = depot.kept_in
    run.console.say(
        f"artifacts have room for {_mb(limit)}, outputs/ has {_mb(sum(sizes.values()))}: "
        f"{_files(len(chosen))} ({_mb(size)}) to be kept in {where}"
    )
    try:
        kept = _keep(run, depot, chosen)
    except Failure as failure:
        # After a signal, after_script finds it at home and tries again.
        if failure.klass is not ErrorClass.INTERRUPTED:
            _take_out(run, chosen, aside=last_copy)
        raise
    try:
        write_atomically(run.outputs / MANIFEST, kept.text())
    except OSError as error:
        raise cannot_write(error, MANIFEST) from None
    _take_out(run, chosen, aside=False)
    annotate(run, f"{_files(len(chosen))} ({_mb(size)}) in {where}", kept.page)
    run.record.add("outputs-moved", files=len(chosen), bytes=size, where=where, page=kept.page)
    run.console.say(f"they are there and verified: {kept.page}")
    run.console.say(f"outputs/{MANIFEST} tells what is where; `glgpu fetch {run.name.run}` brings it all together")


def _limit(run: Run, size: int) -> int:
    """Bytes that an archive may have that would have that size."""
    told = run.settings.storage.artifact_mb
    if told is not None:
        limit = told * MB
    elif size <= ANY_MB * MB:
        return size
    else:
        usual = GITLAB_COM_MB if urlsplit(run.job.server_url).hostname == "gitlab.com" else USUAL_MB
        limit = run.forge.artifact_limit() or usual * MB
    return limit - max(int(limit * RESERVE_SHARE), RESERVE)


def _chosen(run: Run, sizes: Mapping[str, int], limit: int) -> dict[str, int]:
    """What has to go, with its size. In a job that saves several runs, all of them share one archive."""
    below = os.path.relpath(run.outputs, run.artifacts)
    prefix = "" if below == "." else f"{below}/"
    movable = [name for name in sizes if name.startswith(prefix) and name.removeprefix(prefix) not in STAYS]
    return {name.removeprefix(prefix): sizes[name] for name in too_much(sizes, limit, movable)}


def artifact_bytes(run: Run, more: int) -> int:
    """Bytes that there is room for beside what the job's artifacts have already, where so many are to be added."""
    here = zipped_size(_sizes(run.artifacts))
    return _limit(run, here + more) - here


def _sizes(folder: Path) -> dict[str, int]:
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            with contextlib.suppress(OSError):
                if not path.is_symlink():
                    found[os.path.relpath(path, folder)] = path.stat().st_size
    return found


def _keep(run: Run, depot: Depot, chosen: Mapping[str, int]) -> Elsewhere:
    """Have everything kept, and a note of it beside it."""
    there = depot.parts(run.name)
    sums = read_sums(run.outputs)
    bundles = []
    try:
        for paths in bundled(chosen):
            strand = [(run.outputs / path, chosen[path]) for path in paths]
            bundle = _measured(strand, paths, sums)
            _put_bundle(run, depot, bundle, strand, there)
            bundles.append(bundle)
    except OSError as error:
        raise cannot_write(error, error.filename or "outputs/") from None
    note = note_of(run, depot, bundles)
    text = note.text()
    # A name of its own, for a registry may refuse a second file of one name.
    part = Part(f"elsewhere-{run.job.job_id}.json", len(text), hashlib.sha256(text).hexdigest())
    _put(run, depot, part, lambda: io.BytesIO(text), there)
    return note


def note_of(run: Run, depot: Depot, bundles: Sequence[Bundle]) -> Elsewhere:
    """What tells of files that this job leaves in a depot."""
    page = depot.page(run.name)
    return Elsewhere(str(run.name), run.job.job_id, depot.store, depot.bucket, page, tuple(bundles))


def _measured(strand: Sequence[tuple[Path, int]], paths: Sequence[str], sums: Mapping[str, str]) -> Bundle:
    """The checksums of a bundle's files and of its parts, from one reading.

    Raises:
        Failure: DISK_FULL, when a file is no longer what came home.
    """
    whole = sum(size for _, size in strand)
    cuts = [min(PART_BYTES, whole - begin) for begin in range(0, whole, PART_BYTES)]
    of_files, of_parts = Stretches(size for _, size in strand), Stretches(cuts)
    with Strand(strand, 0, whole) as data:
        while piece := data.read(CHUNK):
            of_files.feed(piece)
            of_parts.feed(piece)
    files = tuple(
        MovedFile(path, size, digest) for path, (_, size), digest in zip(paths, strand, of_files.digests(), strict=True)
    )
    for file in files:
        if sums.get(file.path, file.sha256) != file.sha256:
            raise Failure(
                ErrorClass.DISK_FULL,
                f"outputs/{file.path} is no longer as it came home: this machine's disk has lost bytes of it",
                "retry the job on another runner; what is on the VM stays there",
            )
    digests = of_parts.digests()
    parts = (
        Part(part_name(digest, paths, number, len(cuts)), size, digest)
        for number, (size, digest) in enumerate(zip(cuts, digests, strict=True))
    )
    return Bundle(files, tuple(parts))


def _put_bundle(
    run: Run, depot: Depot, bundle: Bundle, strand: Sequence[tuple[Path, int]], there: Mapping[str, Part]
) -> None:
    begin = 0
    for part in bundle.parts:
        _put(run, depot, part, partial(Strand, strand, begin, part.size), there)
        begin += part.size


def _put(run: Run, depot: Depot, part: Part, data: Callable[[], BinaryIO | Strand], there: Mapping[str, Part]) -> None:
    """Have a part kept that is not there yet, in several tries where that can help."""
    if there.get(part.name) == part:
        run.console.say(f"{part.name} is there already")
        return
    for left in reversed(range(TRIES)):
        begun = run.clock.now()
        try:
            with data() as source:
                depot.put_part(run.name, part, cast(BinaryIO, source))
        except Failure as failure:
            # What was sent may have arrived, though the answer was lost.
            if failure.retry and depot.parts(run.name).get(part.name) == part:
                pass
            elif failure.retry and left:
                run.console.say(f"{failure.cause}; trying again")
                run.clock.sleep(PAUSE_SECONDS * (TRIES - left))
                continue
            else:
                raise
        run.console.say(f"{part.name}: {_mb(part.size)} in {run.clock.now() - begun:.0f} s")
        return


def _take_out(run: Run, chosen: Iterable[str], *, aside: bool) -> None:
    """Take files out of outputs/, and what is said of them there."""
    gone = set(chosen)
    with contextlib.suppress(Failure):
        write_sums(run.outputs, {name: sum_ for name, sum_ in read_sums(run.outputs).items() if name not in gone})
    for name in gone:
        with contextlib.suppress(OSError):
            if aside:
                target = run.job.project_dir / ASIDE / str(run.name) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                (run.outputs / name).replace(target)
            else:
                (run.outputs / name).unlink()
    if aside:
        run.console.say(f"left out of the artifacts, so that the rest arrives: {_files(len(gone))}, now in {ASIDE}/")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _mb(size: int) -> str:
    return f"{size / MB:.1f} MB" if size < MB * 1000 else f"{size / MB / 1024:.2f} GB"
