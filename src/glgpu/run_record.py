"""The run record ``outputs/glgpu/run.json``: events, merged over the jobs of a run, written atomically after each.

It informs; nothing depends on it. A missing or torn record never stops a job.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glgpu.clock import Clock
from glgpu.masking import Masker

LONGEST_TEXT = 2_000
"""Characters of one text in an event: somebody else's message may be megabytes."""


class Event(BaseModel):
    """One thing that happened."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    at: float = Field(description="Unix time.")
    job: str = Field("", description="Id of the job that wrote it; empty on a laptop.")
    what: str = Field(description="A word, for example `vm-ready`.")
    facts: dict[str, Any] = Field({}, description="Details, by name.")


class Record(BaseModel):
    """The whole record of a run, over all its jobs."""

    schema_version: Literal[1] = Field(1, description="Another number is another form.")
    run: str = Field(description="The run's name.")
    events: list[Event] = Field([], description="Oldest first.")


def record_schema() -> dict[str, Any]:
    """The JSON Schema of run.json, as published in docs/reference."""
    return Record.model_json_schema()


class RunRecord:
    """The record as one job sees it.

    Args:
        path: Where it is kept.
        run: The run's name.
        job: This job's id.
        clock: For the events' times.
        masker: Nothing secret is written, whoever puts it in.

    Attributes:
        foreign: Whether another run's record was in its place.
    """

    def __init__(self, path: Path, run: str, job: str, clock: Clock, masker: Masker) -> None:
        self._path = path
        self._job = job
        self._clock = clock
        self._masker = masker
        self._record = Record(run=run)
        self.foreign = False
        with contextlib.suppress(OSError):
            self.foreign = not self.merge(path.read_bytes())

    @property
    def events(self) -> list[Event]:
        """All events, oldest first."""
        return self._record.events

    def find(self, what: str) -> Event | None:
        """The last event of a kind."""
        return next((event for event in reversed(self._record.events) if event.what == what), None)

    def merge(self, text: str | bytes) -> bool:
        """Take over what another job of the same run wrote; anything else is passed over.

        Returns:
            False where it is another run's.
        """
        try:
            other = Record.model_validate_json(text)
        except ValidationError:
            return True
        if other.run != self._record.run:
            return False
        self._take(other.events)
        return True

    def add(self, what: str, **facts: Any) -> None:
        """Write an event; a full disk is not worth losing a run for."""
        self._take([Event(at=round(self._clock.now(), 3), job=self._job, what=what, facts=facts)])
        text = json.dumps(self._record.model_dump(mode="json"), indent=1, ensure_ascii=False)
        with contextlib.suppress(OSError):
            write_atomically(self._path, text.encode("utf-8", "replace"))

    def _take(self, events: Iterable[Event]) -> None:
        """Add events that are not here yet: a union, so that neither order nor repetition of merging matters."""
        # Masked one by one and not in the written text, which a secret such as `1234` would tear at every number.
        clean = [event.model_copy(update={"facts": self._plain(event.facts)}) for event in events]
        union = {event.model_dump_json(): event for event in [*self._record.events, *clean]}
        # Sorting is stable: what one job wrote within a millisecond keeps its order.
        self._record.events = sorted(union.values(), key=lambda event: (event.at, event.job))

    def _plain(self, value: Any) -> Any:
        """Only what JSON can hold, nothing secret, and no text without end."""
        if isinstance(value, Mapping):
            return {self._plain(str(key)): self._plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._plain(inner) for inner in value]
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        # Masked before it is cut: half a secret is not recognised.
        return self._masker.mask(str(value)).encode("utf-8", "replace").decode()[:LONGEST_TEXT]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
