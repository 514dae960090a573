"""The short form of the kill campaign; the long one is ci/test-teardown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CASES = 40


@pytest.mark.timeout(900)
def test_whatever_strikes_a_run_nothing_of_it_is_left() -> None:
    played = subprocess.run(
        [sys.executable, "-m", "campaign", "--cases", str(CASES)],
        env=os.environ | {"PYTHONPATH": str(TESTS)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert played.stdout.endswith(f"\n{CASES} passed, 0 failed\n"), played.stdout + played.stderr
    assert played.returncode == 0
    found = re.search(r"^boundaries of calls: (\d+) of \d+ hit$", played.stdout, re.MULTILINE)
    assert found, played.stdout
    assert int(found[1]) > CASES // 4
