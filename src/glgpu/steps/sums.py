"""outputs/glgpu/SHA256SUMS, as sha256sum writes and checks it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from glgpu.disk import cannot_write
from glgpu.run_record import write_atomically

OWN_FOLDER = "glgpu"
"""Folder below outputs/ that is ours: record, log, checksums."""
SUMS = f"{OWN_FOLDER}/SHA256SUMS"
_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
_UNESCAPED = {escaped: plain for plain, escaped in _ESCAPES.items()}


def write_sums(outputs: Path, sums: Mapping[str, str]) -> None:
    """Write the checksums of files, by name.

    Raises:
        Failure: DISK_FULL.
    """
    try:
        write_atomically(outputs / SUMS, b"".join(_line(digest, name) for name, digest in sorted(sums.items())))
    except OSError as error:
        raise cannot_write(error, "SHA256SUMS") from None


def read_sums(outputs: Path) -> dict[str, str]:
    """The checksums that are written there, by name; none where there is no such file."""
    try:
        lines = (outputs / SUMS).read_bytes().split(b"\n")
    except OSError:
        return {}
    return dict(_read(line) for line in lines if line)


def _line(digest: str, name: str) -> bytes:
    """A line; odd characters are escaped, and said so by a leading backslash."""
    raw = name.encode("utf-8", "surrogateescape")
    escaped = re.sub(rb"[\\\n\r]", lambda found: _ESCAPES[found[0]], raw)
    return (b"\\" if escaped != raw else b"") + digest.encode() + b"  " + escaped + b"\n"


def _read(line: bytes) -> tuple[str, str]:
    digest, _, name = line.partition(b"  ")
    if digest.startswith(b"\\"):
        digest, name = digest[1:], re.sub(rb"\\[\\nr]", lambda found: _UNESCAPED[found[0]], name)
    return name.decode("utf-8", "surrogateescape"), digest.decode("ascii", "replace")
