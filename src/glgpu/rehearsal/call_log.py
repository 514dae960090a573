"""What reached the stand-ins: one JSON object a line, written before the answer goes out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glgpu.rehearsal.interposer import Interposer

TOKEN_HEADERS = frozenset({"authorization", "private-token", "job-token"})


class CallLog:
    """An append-only file of outward calls, read by the tests and by the raw read-back.

    A token belongs into its header, so those headers are logged as present, not by value: whatever else of a call
    holds a secret is a leak that a search of this file finds.

    Attributes:
        listeners: Called with each line, in the thread that adds it.
        interposer: Between the callers and the stand-ins that write here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self.interposer = Interposer()
        self._lock = threading.Lock()

    def add(
        self,
        to: str,
        verb: str,
        target: str,
        *,
        at: float,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        body: str = "",
        caller: list[str] | None = None,
        **facts: Any,
    ) -> None:
        """Append one call.

        Args:
            to: The stand-in: ``compute``, ``gitlab``, ``runners`` (GitLab towards them), ``git``, ``vm``, ``registry``.
            verb: HTTP method, or what was asked.
            target: Path with query, or command.
            at: Unix time of the world clock.
            status: HTTP status or exit code of the answer.
            headers: Request headers; token headers are masked here.
            body: Request body as text.
            caller: Command lines of the calling process and its ancestors, nearest first, where they were looked up.
            **facts: Anything else worth keeping. The Google stand-ins' ``unserved`` says why a call was none that they
                expect, such as a path that they do not have; empty where it was.
        """
        kept = {k: ("(present)" if k.lower() in TOKEN_HEADERS else v) for k, v in (headers or {}).items()}
        line = {
            "at": round(at, 3), "to": to, "verb": verb, "target": target, "status": status,
            "headers": kept, "body": body, "caller": caller or [], **facts,
        }  # fmt: skip
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        for listener in self.listeners:
            listener(line)

    def lines(self) -> list[dict[str, Any]]:
        """All calls so far, oldest first."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
