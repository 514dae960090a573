"""Write the report of a run: ``outputs/glgpu/report.html``, from what lies in ``outputs/glgpu``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glgpu.errors import ErrorClass, Failure
from glgpu.gpu_samples import read_samples
from glgpu.losses import Series, history_of, read_losses
from glgpu.report import Facts, report_html
from glgpu.run_record import write_atomically
from glgpu.steps.annotate import annotate
from glgpu.steps.context import Run
from glgpu.steps.sums import OWN_FOLDER
from glgpu.steps.watch import LOSSES_FILE, SAMPLES_FILE, text_at_home

REPORT_FILE = f"{OWN_FOLDER}/report.html"
METRICS = "metrics.json"
LARGEST_METRICS = 16 << 20
"""Bytes of a metrics.json up to which it is looked at."""


@contextmanager
def reported(run: Run) -> Iterator[None]:
    """Write the report when the block has ended, however that was; that it cannot be written is only said."""
    try:
        yield
    except Failure as failure:
        write_report(run, failure)
        raise
    else:
        write_report(run)


def write_report(run: Run, failure: Failure | None = None) -> None:
    """Write the report of what is at hand; where the record tells nothing there is none.

    Args:
        run: The run.
        failure: What the job ends with.
    """
    if not run.record.events:
        return
    facts = Facts(
        run=str(run.name),
        events=run.record.events,
        now=run.clock.now(),
        about=_about(run),
        samples=read_samples(text_at_home(run, SAMPLES_FILE)),
        losses=read_losses(text_at_home(run, LOSSES_FILE)),
        history=_history(run.outputs),
        failure=failure,
        mask=run.console.masker.mask,
    )
    try:
        write_atomically(run.outputs / REPORT_FILE, report_html(facts).encode("utf-8", "replace"))
    except OSError as error:
        run.console.say(f"glgpu: outputs/{REPORT_FILE} cannot be written: {error.strerror}")
        return
    address = _address(run)
    if address:
        annotate(run, "Report of the training", address)


def take_over_charts(run: Run) -> None:
    """Fetch what the train job has left for the report's charts, where its record came through too.

    Raises:
        Failure: INTERRUPTED.
    """
    if not any(run.record.find(what) for what in ("container-started", "training-taken-up")):
        return
    for name in (SAMPLES_FILE, LOSSES_FILE):
        path = run.outputs / name
        try:
            text = None if path.exists() else run.forge.artifact(run.job.run, "train", f"outputs/{name}")
            if text:
                write_atomically(path, text.encode("utf-8", "replace"))
        except Failure as failure:
            if failure.klass is ErrorClass.INTERRUPTED:
                raise
            run.console.say(f"the train job's {name} cannot be had: {failure.cause}")
            return
        except OSError:
            return


def _address(run: Run) -> str:
    """Where GitLab shows the report among the job's artifacts; empty where it is none of a job's."""
    job = run.job
    if not (job.job_id and job.server_url and job.project_path):
        return ""
    path = (run.outputs / REPORT_FILE).relative_to(job.project_dir).as_posix()
    return f"{job.server_url}/{job.project_path}/-/jobs/{job.job_id}/artifacts/file/{path}"


def _about(run: Run) -> list[tuple[str, str]]:
    job = run.job
    lines = [("project", job.project_path), ("branch", job.ref), ("commit", job.sha), ("started by", job.user)]
    return [(name, value) for name, value in lines if value]


def _history(outputs: Path) -> dict[Series, list[float]]:
    """The losses of the topmost metrics.json among the outputs."""
    with suppress(OSError, ValueError, RecursionError):
        for path in sorted(outputs.rglob(METRICS), key=lambda path: (len(path.parts), path)):
            if path.is_file() and path.stat().st_size <= LARGEST_METRICS:
                return history_of(json.loads(path.read_bytes()))
    return {}
