"""The stand-ins as a process of their own, for clients that are no Python of ours."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def stand_ins(glgpu: Path, repository: Path, *arguments: str) -> Iterator[Mapping[str, str]]:
    """`glgpu rehearse --serve`; gives every variable that a job needs."""
    process = subprocess.Popen(
        [glgpu, "rehearse", "--serve", repository, *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"glgpu rehearse --serve ended with {process.wait(60)}"
        yield json.loads(line)["environment"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGTERM)
