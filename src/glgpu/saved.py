"""What a VM has left of a detached training: the manifest that it writes last, as text into values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from glgpu.elsewhere import Bundle, MovedFile, Part

HANDED_OVER = "detached.json"
"""Part that the train job leaves when it goes."""
PROBE = "probe"
"""Part by which the VM has proved that it can leave something; removed again."""
ENDED = "ended"
"""Part that whoever ends a run leaves, so that nobody waits for its outputs any more."""
FORM = "glgpu-save 1"
_MANIFEST = re.compile(r"save-([0-9]{1,12})\.manifest")
_COLLECTED = re.compile(r"collected-by-([0-9]{1,18})")
_OURS = re.compile(r"save-[0-9].*|collected-by-[0-9]+")
_UNESCAPED = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}

Reason = Literal["ended", "deadline", "preempted", "idle", "going"]


@dataclass(frozen=True)
class Save:
    """One whole save.

    Attributes:
        whole: Whether outputs and checkpoints are in it; else the checkpoints alone.
        reason: Why the VM saved: the container had ended, had to end in time, or Google took the VM back; a notebook
            was idle, or goes on, and was saved in between.
        exit_code: The container's; None: there was no container any more.
        out_of_memory: Whether the kernel ended it for want of memory.
        bundles: Files and where they are.
    """

    whole: bool
    reason: Reason
    exit_code: int | None
    out_of_memory: bool
    bundles: tuple[Bundle, ...]

    @property
    def files(self) -> list[MovedFile]:
        """Every file."""
        return [file for bundle in self.bundles for file in bundle.files]


def read_save(text: bytes) -> Save:
    """Understand a manifest, as vm/keeper.sh writes it.

    Raises:
        ValueError: It is none, or of another form than this version knows.
    """
    lines = text.decode("utf-8", "surrogateescape").split("\n")
    if lines[0] != FORM:
        raise ValueError("another form than this version of glgpu knows")
    facts: dict[str, str] = {}
    bundles: list[tuple[list[MovedFile], list[Part]]] = []
    for line in lines[1:]:
        word, _, rest = line.partition(" ")
        if word == "bundle":
            bundles.append(([], []))
        elif word == "file":
            bundles[-1][0].append(_file(rest))
        elif word == "part":
            name, size, digest = rest.split(" ")
            bundles[-1][1].append(Part(name, int(size), digest))
        elif word:
            facts[word] = rest
    state: dict[str, Any] | None = json.loads(facts["state"])
    if facts["reason"] not in get_args(Reason):
        raise ValueError(f"unknown reason {facts['reason']!r}")
    for files, parts in bundles:
        if sum(file.size for file in files) != sum(part.size for part in parts):
            raise ValueError("files and parts have not the same size")
    return Save(
        whole=facts["what"] == "all",
        reason=cast(Reason, facts["reason"]),
        exit_code=None if state is None else int(state.get("ExitCode", 1)),
        out_of_memory=bool(state and state.get("OOMKilled")),
        bundles=tuple(Bundle(tuple(files), tuple(parts)) for files, parts in bundles),
    )


def _file(rest: str) -> MovedFile:
    """A size, and a line as sha256sum writes it: names with a line break or a backslash are escaped, and said so."""
    size, _, line = rest.partition(" ")
    escaped = line.startswith("\\")
    digest, _, name = line.removeprefix("\\").partition("  ")
    if escaped:
        name = re.sub(r"\\[\\nr]", lambda found: _UNESCAPED[found[0]], name)
    return MovedFile(re.sub(r"^(?:\./)+", "", name), int(size), digest)


def manifests(names: Iterable[str]) -> list[str]:
    """The manifests among the names of parts, the newest first."""
    found = [(int(match[1]), match[0]) for name in names if (match := _MANIFEST.fullmatch(name))]
    return [name for _, name in sorted(found, reverse=True)]


def collected_by(names: Iterable[str]) -> list[str]:
    """Ids of the jobs that have collected a run, the oldest first."""
    return sorted((match[1] for name in names if (match := _COLLECTED.fullmatch(name))), key=int)


def collected_mark(job: str) -> str:
    """Name of the part by which a job notes that it has collected a run."""
    return f"collected-by-{job}"


def of_detached(names: Iterable[str]) -> list[str]:
    """The parts that a detached run and those who deal with it leave; all others are the team's."""
    return [name for name in names if name in (HANDED_OVER, PROBE, ENDED) or _OURS.fullmatch(name)]
