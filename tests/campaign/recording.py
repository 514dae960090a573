"""What undisturbed runs called, kept for as long as the code is the same: then a case's number means the same case."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from campaign.calls import Boundary, Call, boundaries
from campaign.case import Result
from glgpu.rehearsal.world import cache_folder

ROOT = Path(__file__).parents[2]
Recorded = tuple[list[Boundary], dict[str, float]]
"""The boundaries of the calls, and the usual seconds of each job."""


def kept(source: Path | None) -> Recorded | None:
    """What was recorded of this code on this machine, if anything was."""
    try:
        found = json.loads(_place(source).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return [Boundary(Call(*call), moment) for call, moment in found["boundaries"]], found["times"]


def keep(source: Path | None, runs: Sequence[Result]) -> Recorded:
    """Keep what these runs have in common, and the longest times."""
    known = boundaries([one.calls for one in runs])
    times = {job: max(one.times.get(job, 0.0) for one in runs) for job in runs[0].times}
    told = [[[one.call.job, one.call.what, one.call.nth], one.moment] for one in known]
    place = _place(source)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({"boundaries": told, "times": times}), encoding="utf-8")
    return known, times


def _place(source: Path | None) -> Path:
    """Named by the code that is played and the code that plays it."""
    known = hashlib.sha256()
    for folder in (source or ROOT / "src", ROOT / "src", ROOT / "terraform" / "rehearsal-vm", Path(__file__).parent):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                known.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return cache_folder() / "campaign" / f"{known.hexdigest()[:16]}.json"
