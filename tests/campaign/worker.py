"""One of the processes that play cases: it keeps what is worth keeping from case to case, and no world."""

from __future__ import annotations

import os
from pathlib import Path

from campaign.case import SETTINGS, TRAINING, Case, Result
from campaign.plan import Plan
from campaign.warm import Warm
from rehearsing import WITH_CLEANUP


class Worker:
    """What one process keeps over its cases."""

    def __init__(self, folder: Path, source: Path | None) -> None:
        self.folder = folder / str(os.getpid())
        self.source = source
        self.repository = self.folder / "repository"
        self.repository.mkdir(parents=True)
        (self.repository / "glgpu.yml").write_text(SETTINGS, encoding="utf-8")
        (self.repository / ".gitlab-ci.yml").write_text(WITH_CLEANUP, encoding="utf-8")
        (self.repository / "train.py").write_text(TRAINING, encoding="utf-8")
        self.warm = Warm(self.folder / "warm", source)

    def play(self, plan: Plan, times: dict[str, float]) -> Result:
        """One case."""
        return Case(plan, self.repository, self.warm, times, self.source).play()


_worker: Worker


def begin(folder: str, source: Path | None) -> None:
    """Prepare this process."""
    global _worker
    _worker = Worker(Path(folder), source)


def play(order: tuple[Plan, dict[str, float]]) -> Result:
    """Play a case in it."""
    return _worker.play(*order)
