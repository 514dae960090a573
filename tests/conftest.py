"""What holds for all tests: unit tests stay alone, and what a machine lacks is said loudly or counts as a failure."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings

# No test fails because its machine is busy.
settings.register_profile(
    "glgpu", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("glgpu")

UNIT = Path(__file__).parent / "unit"
REQUIRED = [word for word in re.split(r"[,\s]+", os.environ.get("GLGPU_REQUIRE", "")) if word]
"""What this machine has to have: docker, gcloud, npm, ... A test that skips for want of it fails.

Every skip says ``NAME: what did not run``, by which it is known.
"""


@pytest.fixture(autouse=True)
def _alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit test neither opens a socket nor starts a process."""
    if UNIT not in request.path.parents:
        return

    def refuse(what: str) -> Any:
        def refused(*_: object, **__: object) -> NoReturn:
            pytest.fail(f"a unit test {what}: it belongs to tests/contract", pytrace=True)

        return refused

    monkeypatch.setattr(socket.socket, "connect", refuse("opens a connection"))
    monkeypatch.setattr(socket.socket, "connect_ex", refuse("opens a connection"))
    monkeypatch.setattr(socket.socket, "bind", refuse("opens a socket"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse("looks up a name"))
    monkeypatch.setattr(subprocess.Popen, "__init__", refuse("starts a process"))
    for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system"):
        monkeypatch.setattr(os, name, refuse("starts a process"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Turn a skip for want of something required into a failure."""
    report: pytest.TestReport = yield
    if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        missing = _required(report.longrepr[2])
        if missing:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}\nGLGPU_REQUIRE names {missing}, but: {report.longrepr[2]}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """The same for a whole module that skips itself."""
    report: pytest.CollectReport = yield
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        missing = _required(report.longrepr[2])
        if missing:
            report.outcome = "failed"
            report.longrepr = f"{report.nodeid}\nGLGPU_REQUIRE names {missing}, but: {report.longrepr[2]}"
    return report


def _required(reason: str) -> str:
    """What is missing by the word of a reason, if GLGPU_REQUIRE names it."""
    name = reason.removeprefix("Skipped: ").partition(":")[0]
    return name if name in REQUIRED else ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what did not run and what was missing for it."""
    reasons: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    if not reasons:
        return
    terminalreporter.section("NOT RUN ON THIS MACHINE", sep="!", red=True, bold=True)
    for reason, tests in sorted(reasons.items()):
        terminalreporter.line(f"{len(tests)} x {reason}", red=True)
        for test in tests:
            terminalreporter.line(f"      {test}")
