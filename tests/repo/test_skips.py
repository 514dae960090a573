"""What a machine lacks is told by its name, and GLGPU_REQUIRE goes by that name alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ("pytester",)
TESTS = Path(__file__).resolve().parents[1]
REASON = re.compile(r"(?:[a-z][a-z-]*|\{\}): ")
"""``NAME: what did not run``; braces stand for what is put in."""


def reasons(source: str) -> Iterator[str]:
    """Every reason that is written down where something is skipped."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        given = [word.value for word in node.keywords if word.arg == "reason"] + node.args[:1]
        if node.func.attr not in ("skip", "skipif") or not given:
            continue
        if isinstance(given[0], ast.Constant):
            yield str(given[0].value)
        elif isinstance(given[0], ast.JoinedStr):
            yield "".join(str(one.value) if isinstance(one, ast.Constant) else "{}" for one in given[0].values)


def test_every_skip_begins_with_the_name_of_what_is_missing() -> None:
    found = [
        (path.name, reason) for path in TESTS.rglob("*.py") for reason in reasons(path.read_text(encoding="utf-8"))
    ]
    assert len(found) > 10
    assert [one for one in found if not REASON.match(one[1])] == []


CHECK = """
import pytest
@pytest.mark.parametrize("reason", ["terraform: not on PATH", "provider: no registry.terraform.io/hashicorp/google"])
def test_one(reason):
    pytest.skip(reason)
"""


def test_a_skip_fails_where_its_name_is_required_and_nowhere_else(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLGPU_REQUIRE", "docker,terraform")
    pytester.makeconftest((TESTS / "conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(CHECK)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*GLGPU_REQUIRE names terraform*", "1 x provider: no registry*"])
