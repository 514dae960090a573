"""All of Google: the stand-ins of Compute Engine and of the other APIs, one project, one set of tokens."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cloud import Room
from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.compute_engine import ComputeEngine
from glgpu.rehearsal.faults import Faults
from glgpu.rehearsal.google_access import Tokens
from glgpu.rehearsal.google_cloud import GoogleCloud
from glgpu.rehearsal.seams import Network
from glgpu.rehearsal.world_clock import WorldClock

T = TypeVar("T")
PROJECT = "my-dl"


class Google:
    """Google, with one project.

    Attributes:
        apis: All APIs but Compute Engine's.
        engine: Compute Engine.
        calls: What both were asked.
        faults: What goes wrong in both.
        clock: Their time.
        token: Of the service account that jobs use.
        owner_token: Of somebody who owns the project.
    """

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop, *, bootstrapped: bool) -> None:
        self._loop = loop
        self.clock, self.faults, self.calls = WorldClock(), Faults(), CallLog(folder / "calls.jsonl")
        tokens = Tokens(self.clock)
        self.apis = GoogleCloud(
            self.clock, self.faults, self.calls, project=PROJECT, tokens=tokens, bootstrapped=bootstrapped
        )
        self.token = tokens.issue(self.apis.jobs())
        self.owner_token = tokens.issue(self.apis.owner())
        self.engine = ComputeEngine(
            folder / "compute", self.clock, self.faults, self.calls, Network(), Room(), project=PROJECT, tokens=tokens,
            allows=self.apis.allows, token_of_vm=self.apis.token_of_vm,
        )  # fmt: skip

    @property
    def endpoint(self) -> str:
        """Of all APIs but Compute Engine's."""
        return self.apis.endpoint

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the stand-ins' loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    def ask(self, verb: str, path: str, body: Any = None, *, token: str | None = None) -> tuple[int, Any]:
        """Status and JSON that an API answers."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        request = urllib.request.Request(self.endpoint + path, data, headers, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())


@contextmanager
def all_of_google(folder: Path, *, bootstrapped: bool = True) -> Iterator[Google]:
    """Google, from here to the end of the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    made = Google(folder, loop, bootstrapped=bootstrapped)
    try:
        made.call(made.apis.start())
        made.call(made.engine.start())
        yield made
    finally:
        made.call(made.engine.stop())
        made.call(made.apis.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
