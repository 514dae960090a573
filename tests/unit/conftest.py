"""A run made of fakes, for every unit test that asks for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes import Stage, make_stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return make_stage(tmp_path)
