"""The stand-ins as a process of their own, for clients that are no Python of ours."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READ_BACK = Path(__file__).resolve().parents[1] / "src/glgpu/rehearsal/read_back.py"


@dataclass(frozen=True)
class Served:
    """What `glgpu rehearse --serve` told."""

    told: Mapping[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        """Every variable that a job needs."""
        return dict(self.told["environment"])

    def left(self) -> dict[str, list[str]]:
        """What is left in the stand-ins, by kind; kinds of which nothing is left are not in it."""
        question = {
            "compute": self.told["compute_endpoint"],
            "google": self.environment["GLGPU_GOOGLE_ENDPOINT"],
            "buckets": [],
            "project": self.told["google_project"],
            "google_token": self.told["google_access_token"],
            "gitlab": self.told["gitlab_url"],
            "gitlab_token": self.told["gitlab_token"],
            "gitlab_project": self.told["gitlab_project"],
            "gitlab_path": self.environment["CI_PROJECT_PATH"],
            "known_tokens": ["glgpu"],
        }
        answer = subprocess.run(
            [sys.executable, "-I", READ_BACK], input=json.dumps(question), capture_output=True, text=True, check=True
        )
        return {kind: names for kind, names in json.loads(answer.stdout).items() if names}

    def await_gone(self, kind: str, seconds: float = 60.0) -> None:
        """Ask until nothing of this kind is left: a delete that nobody waits for takes its time."""
        end = time.monotonic() + seconds
        while (left := self.left()).get(kind):
            assert time.monotonic() < end, f"still there after {seconds:.0f} s: {left[kind]}"


@contextlib.contextmanager
def stand_ins(glgpu: Path, repository: Path, *arguments: str) -> Iterator[Served]:
    """`glgpu rehearse --serve` for as long as the block lasts."""
    process = subprocess.Popen(
        [glgpu, "rehearse", "--serve", repository, *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("{"), line or f"glgpu rehearse --serve ended with {process.wait(60)}"
        yield Served(json.loads(line))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
