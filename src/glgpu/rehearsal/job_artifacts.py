"""What jobs hand on: files found by the patterns of the YAML, zip archives, dotenv reports."""

from __future__ import annotations

import json
import os
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from glgpu.rehearsal.ci_yaml import glob_pattern

DOTENV_BYTES = 5 * 1024
DOTENV_VARIABLES = 20
"""GitLab's limits for a dotenv report on a self-managed instance, the strictest of all offers."""


ANNOTATION_BYTES = 80 << 10
ANNOTATION_LISTS = 20
"""GitLab's limits for links on a job's page (``ci_job_annotations_size``, ``ci_job_annotations_num``)."""


class UploadRefused(Exception):
    """GitLab does not take an artifact: the status and its words, for example ``413 Request Entity Too Large``."""


@dataclass
class Found:
    """What a search came to.

    Attributes:
        files: Files, folders and links, each once.
        lines: What the Runner says about it in the log.
    """

    files: list[Path] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def find(root: Path, patterns: Iterable[str], exclude: Iterable[str]) -> Found:
    """Find what artifact paths name below the project folder; a folder means all that is in it.

    Args:
        root: The project folder.
        patterns: Paths and globs, variables expanded.
        exclude: Globs for what is left out again.
    """
    excluded = [glob_pattern(pattern) for pattern in exclude]
    files: dict[Path, None] = {}
    found = Found()
    for pattern in patterns:
        relative = os.path.relpath(os.path.join(root, pattern), root)
        if relative == ".." or relative.startswith("../"):
            found.lines.append(f"WARNING: {pattern}: artifact path is not a subpath of project directory: {root}")
            continue
        matches = [
            path
            for path in _matching(root, relative)
            if not any(expression.fullmatch(str(path.relative_to(root))) for expression in excluded)
        ]
        if matches:
            found.lines.append(f"{pattern}: found {len(matches)} matching artifact files and directories")
        else:
            found.lines.append(
                f"WARNING: {pattern}: no matching files. Ensure that the artifact path is relative to the working "
                f"directory ({root})"
            )
        files |= dict.fromkeys(matches)
    found.files = list(files)
    return found


def _matching(root: Path, pattern: str) -> Iterator[Path]:
    """Whatever below ``root`` matches a pattern, and all that lies in matching folders; ``.git`` never."""
    expression = glob_pattern(pattern)
    whole = pattern == "."

    def walk(folder: Path, taken: bool) -> Iterator[Path]:
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            path = Path(entry.path)
            if entry.name == ".git":
                continue
            inside = taken or expression.fullmatch(str(path.relative_to(root))) is not None
            if inside:
                yield path
            if entry.is_dir(follow_symlinks=False):
                yield from walk(path, inside)

    yield from walk(root, whole)


def pack(files: Iterable[Path], root: Path, target: Path) -> None:
    """Write files, folders and symbolic links into a zip archive, modes kept."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
        for path in files:
            name = str(path.relative_to(root))
            if path.is_symlink():
                link = zipfile.ZipInfo(name)
                link.create_system = 3
                link.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(link, os.readlink(path))
            elif path.is_dir() or path.is_file():
                archive.write(path, name)


def unpack(archive: Path, root: Path) -> None:
    """Unpack what ``pack`` wrote, over what is there."""
    folders: list[tuple[Path, int]] = []
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            mode = entry.external_attr >> 16
            target = root / entry.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISLNK(mode):
                target.unlink(missing_ok=True)
                target.symlink_to(packed.read(entry).decode())
            elif entry.is_dir():
                target.mkdir(exist_ok=True)
                folders.append((target, mode))
            else:
                target.unlink(missing_ok=True)
                packed.extract(entry, root)
                target.chmod(stat.S_IMODE(mode))
    # Last, for a folder may be one that nobody can write into.
    for folder, mode in folders:
        folder.chmod(stat.S_IMODE(mode))


def parse_dotenv(data: bytes) -> dict[str, str]:
    """Read a dotenv report as GitLab does (``Ci::ParseDotenvArtifactService``).

    Raises:
        UploadRefused: Too large, too many, or a line that is no ``KEY=value``; blank lines and comments are none.
    """
    if len(data) >= DOTENV_BYTES:
        raise UploadRefused(f"400 Bad Request: Dotenv Artifact Too Big. Maximum Allowable Size: {DOTENV_BYTES}")
    values: dict[str, str] = {}
    for line in data.decode("utf-8-sig", "replace").splitlines():
        key, equals, value = line.partition("=")
        if not equals:
            raise UploadRefused("400 Bad Request: Invalid Format")
        if not re.fullmatch(r"[a-zA-Z0-9_]{1,255}", key.strip()):
            raise UploadRefused("400 Bad Request: Validation failed: Key can contain only letters, digits and '_'.")
        values[key.strip()] = value.strip()
    if len(values) > DOTENV_VARIABLES:
        raise UploadRefused(f"400 Bad Request: Dotenv files cannot have more than {DOTENV_VARIABLES} variables")
    return values


def check_annotations(data: bytes) -> None:
    """Judge an annotations report as GitLab does (``Ci::ParseAnnotationsArtifactService``, ``Ci::JobAnnotation``).

    Raises:
        UploadRefused: Too large, too many, or not lists of links by name.
    """
    if len(data) > ANNOTATION_BYTES:
        text = f"Annotations Artifact Too Big. Maximum Allowable Size: {ANNOTATION_BYTES}"
        raise UploadRefused(f"400 Bad Request: {text}")
    try:
        lists = json.loads(data.decode("utf-8-sig", "replace"))
    except ValueError as error:
        raise UploadRefused(f"400 Bad Request: {error}") from None
    if not isinstance(lists, dict):
        raise UploadRefused("400 Bad Request: Annotations files must be a JSON object")
    if len(lists) > ANNOTATION_LISTS:
        text = f"Annotations files cannot have more than {ANNOTATION_LISTS} annotation lists"
        raise UploadRefused(f"400 Bad Request: {text}")
    for name, links in lists.items():
        if not name or len(name) > 255 or not isinstance(links, list) or not all(map(_is_link, links)):
            raise UploadRefused("400 Bad Request: Validation failed: Data must be a valid json schema")


def _is_link(entry: object) -> bool:
    if not isinstance(entry, dict) or set(entry) - {"external_link"}:
        return False
    link = entry.get("external_link", {"label": "", "url": ""})
    return isinstance(link, dict) and {key: type(value) for key, value in link.items()} == {"label": str, "url": str}
