"""Outputs that GitLab does not take as artifacts: how they are cut into parts, and the file that tells where they are.

Files are put together into bundles: a big one alone, small ones with others, so that ten thousand of them are not ten
thousand uploads. A bundle is its files' bytes one after the other, cut into parts that any store takes. A part is named
after what is in it: one that is there already is not sent again, and none ever takes another's place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

MANIFEST = "glgpu/elsewhere.json"
"""The file below outputs/ that tells what is where; a copy of it is kept with the parts."""
MANIFEST_PART = re.compile(r"elsewhere-[0-9]+\.json")
PART_BYTES = 1 << 30
"""GitLab.com takes package files of 5 GB; smaller ones cost less to send again."""
BUNDLE_BYTES = 32 << 20
"""Up to here files are put together."""
ENTRY_BYTES = 200
"""What a file costs in a zip archive beside its content and twice its name: two headers, times, a data descriptor."""
SCHEMA = 1
_PART_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*")
"""Whoever gets one makes a file of that name."""


@dataclass(frozen=True)
class Part:
    """A piece of a bundle, or anything else that is kept under a name.

    Attributes:
        name: Its name in the store.
        size: Bytes.
        sha256: Checksum, in hexadecimal.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class MovedFile:
    """A file that was moved out.

    Attributes:
        path: Its place below outputs/.
        size: Bytes.
        sha256: Checksum, in hexadecimal.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """Files, one after the other, and the parts that they were cut into.

    Attributes:
        files: In the order of their bytes.
        parts: In the order of their bytes.
    """

    files: tuple[MovedFile, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Elsewhere:
    """What outputs/glgpu/elsewhere.json tells.

    Attributes:
        run: The run's name.
        job: Id of the job that moved the files out.
        store: ``packages``: the GitLab project's package registry; ``bucket``: a Cloud Storage bucket.
        bucket: The bucket's name, else empty.
        page: Where people find it.
        bundles: What is there.
    """

    run: str
    job: str
    store: Literal["packages", "bucket"]
    bucket: str
    page: str
    bundles: tuple[Bundle, ...]

    @property
    def files(self) -> list[MovedFile]:
        """Every file that was moved out."""
        return [file for bundle in self.bundles for file in bundle.files]

    def text(self) -> bytes:
        """The file. Names that are no UTF-8 are escaped as Python's JSON escapes them."""
        return json.dumps({"schema_version": SCHEMA, **asdict(self)}, indent=1).encode("ascii") + b"\n"


def read_elsewhere(text: bytes | str) -> Elsewhere:
    """Understand an elsewhere.json.

    Raises:
        ValueError: It is none, or of another form than this version knows.
    """
    try:
        found: dict[str, Any] = json.loads(text)
        if found["schema_version"] != SCHEMA or found["store"] not in ("packages", "bucket"):
            raise ValueError("another form than this version of glgpu knows")
        bundles = tuple(_bundle(one) for one in found["bundles"])
        words = {key: str(found[key]) for key in ("run", "job", "bucket", "page")}
        return Elsewhere(store=found["store"], bundles=bundles, **words)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not understood: {error!r}") from None


def _bundle(found: Mapping[str, Any]) -> Bundle:
    files = tuple(MovedFile(str(one["path"]), int(one["size"]), str(one["sha256"])) for one in found["files"])
    parts = tuple(Part(str(one["name"]), int(one["size"]), str(one["sha256"])) for one in found["parts"])
    for part in parts:
        if not _PART_NAME.fullmatch(part.name):
            raise ValueError(f"{part.name!r} is no name of a part")
    if sum(file.size for file in files) != sum(part.size for part in parts):
        raise ValueError("files and parts have not the same size")
    return Bundle(files, parts)


def zipped_size(sizes: Mapping[str, int]) -> int:
    """Bytes that files have as a zip archive at most; weights hardly compress, so their size as it is counts."""
    return sum(size + ENTRY_BYTES + 2 * len(name.encode("utf-8", "surrogateescape")) for name, size in sizes.items())


def too_much(sizes: Mapping[str, int], limit: int, movable: Sequence[str]) -> list[str]:
    """The files that have to go elsewhere so that the rest fits, the biggest first.

    Args:
        sizes: All files with their sizes.
        limit: Bytes that the archive may have.
        movable: Which of them may go.
    """
    left, chosen = zipped_size(sizes), list[str]()
    for name in sorted(movable, key=lambda one: (-sizes[one], one)):
        if left <= limit:
            break
        left -= zipped_size({name: sizes[name]})
        chosen.append(name)
    return chosen


def bundled(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Put files together, in their order."""
    together, size = list[str](), 0
    for name, own in sizes.items():
        if together and size + own > BUNDLE_BYTES:
            yield together
            together, size = [], 0
        together.append(name)
        size += own
    if together:
        yield together


def part_name(digest: str, paths: Sequence[str], number: int, count: int) -> str:
    """A part's name: what is in it decides, and people recognise it.

    Args:
        digest: Its SHA-256.
        paths: The files of its bundle.
        number: Which part it is, from 0.
        count: Of how many.
    """
    said = PurePosixPath(paths[0]).name if len(paths) == 1 else f"{len(paths)}-files"
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "_", said)[-60:]
    return f"{digest[:20]}-{plain}{f'.{number + 1:04}' if count > 1 else ''}"
