"""Links on the job's page in GitLab, by way of a report that the job leaves behind."""

from __future__ import annotations

import contextlib
import json

from glgpu.run_record import write_atomically
from glgpu.steps.context import Run
from glgpu.steps.sums import OWN_FOLDER

ANNOTATIONS = f"{OWN_FOLDER}/annotations.json"
"""Below outputs/; ci/train.yml names it as the report (https://docs.gitlab.com/ci/yaml/artifacts_reports/)."""
SECTION = "glgpu"
LONGEST_LABEL = 120


def begin_annotations(run: Run) -> None:
    """Begin without links: what lies there came with the artifacts of another job, unless this is after_script.

    There is always a report, since the Runner complains in red of one that is not there.
    """
    if not (run.job.status and (run.artifacts / ANNOTATIONS).exists()):
        _write(run, [])


def annotate(run: Run, label: str, address: str) -> None:
    """Add a link. One that cannot be written is not worth losing a run for: the log has the address too."""
    links = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        links = json.loads((run.artifacts / ANNOTATIONS).read_bytes())[SECTION]
    _write(run, [*links, {"external_link": {"label": label[:LONGEST_LABEL], "url": address}}])


def _write(run: Run, links: list[dict[str, dict[str, str]]]) -> None:
    with contextlib.suppress(OSError):
        write_atomically(run.artifacts / ANNOTATIONS, json.dumps({SECTION: links} if links else {}).encode() + b"\n")
