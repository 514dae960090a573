"""The page about doctor says what `glgpu doctor --list-checks` says."""

from __future__ import annotations

import re
from pathlib import Path

from glgpu.steps.checks.catalogue import CHECKS

PAGE = (Path(__file__).resolve().parents[2] / "docs/reference/doctor.md").read_text(encoding="utf-8")


def test_every_check_stands_there_in_order_with_what_it_asks_and_needs() -> None:
    (rows,) = re.findall(r"(?m)^\| check \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", PAGE)
    told = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows.strip().splitlines()]
    assert told == [[f"`{check.name}`", check.subject, check.asks, check.needs] for check in CHECKS]


def test_every_status_is_explained() -> None:
    (rows,) = re.findall(r"(?m)^\| status \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", PAGE)
    assert re.findall(r"(?m)^\| `([^`]+)` \|", rows) == ["error", "warning", "ok", "not checked"]
