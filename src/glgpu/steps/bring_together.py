"""Put a run's outputs together again in a folder: an archive of artifacts, and bundles of what was too big for it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from glgpu.elsewhere import Bundle, MovedFile
from glgpu.errors import ErrorClass, Failure
from glgpu.run_names import AnyName, read_name
from glgpu.steps.collect import leads_out, make_room, stays_inside
from glgpu.steps.strand import CHUNK
from glgpu.steps.sums import OWN_FOLDER, read_sums

ROOT = "outputs/"
"""Where everything lies in an archive of artifacts."""


def unpack(archive: Path, to: Path, run: AnyName) -> int:
    """Unpack what an archive of artifacts has of a run, over what is there; how many files.

    A job that saves several runs keeps each in a folder of its own; whatever else lies beside it is not this run's.

    Raises:
        ValueError: It is no whole archive.
    """
    count = 0
    try:
        with zipfile.ZipFile(archive) as packed:
            root = _root(packed.namelist(), run)
            for entry in packed.infolist():
                name = entry.filename.removeprefix(root)
                if not entry.filename.startswith(root) or not stays_inside(name):
                    continue
                target = to / name
                make_room(to, target)
                if entry.is_dir():
                    target.mkdir(exist_ok=True)
                elif stat.S_ISLNK(entry.external_attr >> 16):
                    _link(name, packed.read(entry).decode("utf-8", "surrogateescape"), target)
                else:
                    with packed.open(entry) as source:
                        _write(source, entry.file_size, target)
                    count += 1
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(str(error)) from None
    return count


def _root(names: Iterable[str], run: AnyName) -> str:
    """Where an archive has what is a run's; the server's address, which is in a name too, may be another one here."""
    for name in names:
        folder = name.removeprefix(f"{ROOT}{OWN_FOLDER}/").partition("/")[0]
        read = read_name(folder) if name.startswith(f"{ROOT}{OWN_FOLDER}/") else None
        if read is not None and (read.project_id, read.run, read.kind) == (run.project_id, run.run, run.kind):
            return f"{ROOT}{OWN_FOLDER}/{folder}/"
    return ROOT


def there(to: Path, bundle: Bundle) -> bool:
    """Whether all files of a bundle are there, as they should be."""
    return all(digest_of(to / file.path) == file.sha256 for file in bundle.files)


def split(source: Path, bundle: Bundle, to: Path) -> None:
    """Make the files of a bundle from its bytes; the source is used up.

    Raises:
        Failure: CONFIG, where a name leads out of the folder.
    """
    for file in bundle.files:
        if not stays_inside(file.path):
            raise Failure(
                ErrorClass.CONFIG,
                f"{file.path!r}, as elsewhere.json names it, leads out of the folder",
                "glgpu writes no such name: find out who has changed that file",
            )
    if len(bundle.files) == 1:
        target = to / bundle.files[0].path
        make_room(to, target)
        _replace(source, target)
        return
    with source.open("rb") as data:
        for file in bundle.files:
            target = to / file.path
            make_room(to, target)
            _write(data, file.size, target)
    source.unlink()


def sums_with(to: Path, moved: list[MovedFile]) -> dict[str, str]:
    """Checksums of everything of which there is one."""
    return {**read_sums(to), **{file.path: file.sha256 for file in moved}}


def damaged(to: Path, sums: Mapping[str, str]) -> list[str]:
    """The files that are not there, or not as their checksums say."""
    return [name for name, digest in sorted(sums.items()) if digest_of(to / name) != digest]


def run_in(to: Path) -> str:
    """Name of the run whose outputs are in a folder; empty: nobody's."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((to / OWN_FOLDER / "run.json").read_bytes())["run"])
    return ""


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _write(source: IO[bytes], size: int, target: Path) -> None:
    part = target.with_name(f".{hashlib.sha256(target.name.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.part")
    try:
        with part.open("wb") as file:
            while size and (piece := source.read(min(CHUNK, size))):
                file.write(piece)
                size -= len(piece)
        _replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _replace(source: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    source.replace(target)


def _link(name: str, points_to: str, target: Path) -> None:
    if not leads_out(name, points_to):
        target.unlink(missing_ok=True)
        target.symlink_to(points_to)
