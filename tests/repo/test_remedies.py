"""Every remedy is something that can be done: a command that parses, an address that was seen, a page that exists."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
import yaml

from glgpu.classify import explain
from glgpu.links import LINKS
from remedies import PROGRAMS, helps, problems

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src/glgpu"
PLACE = {"Failure": 2, "error": 2, "warning": 2, "unknown": 1, "Verdict": 3}
"""Which argument of a call is a remedy."""
TEXTS = [
    entry["text"]
    for path in (ROOT / "tests/fixtures/errors").glob("*.yml")
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))
]
EXPLAINED = sorted({explain(text).remedy for text in TEXTS})
"""What `glgpu explain` says to real texts, each of its rules among them (tests/unit/test_classify.py)."""


def said(node: ast.AST) -> Iterator[str]:
    """The texts of an expression; what only a run can tell is X."""
    match node:
        case ast.Constant(str() as text):
            yield text
        case ast.JoinedStr(values):
            parts = [part.value if isinstance(part, ast.Constant) else "X" for part in values]
            yield "".join(map(str, parts))
        case ast.IfExp(_, body, other):
            yield from said(body)
            yield from said(other)
        case ast.BinOp(left, ast.Add(), right):
            yield from (one + two for one in said(left) for two in said(right))


def remedies(path: Path) -> Iterator[tuple[int, str]]:
    """The remedies in a module, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Name(name), args=args) if name in PLACE and len(args) > PLACE[name]:
                yield from ((node.lineno, text) for text in said(args[PLACE[name]]))
            case ast.Call(func=ast.IfExp(), args=[_, _, remedy]):
                yield from ((node.lineno, text) for text in said(remedy))
            case ast.Assign([ast.Name("remedy")], value):
                yield from ((node.lineno, text) for text in said(value))
            case ast.Call(keywords=keywords):
                for keyword in keywords:
                    if keyword.arg == "remedy":
                        yield from ((node.lineno, text) for text in said(keyword.value))


PRODUCT = sorted(
    path for path in SOURCE.rglob("*.py") if "rehearsal" not in path.parts and path.name != "error_rules.py"
)


@pytest.mark.parametrize("remedy", EXPLAINED)
def test_what_explain_says_is_something_to_do(remedy: str) -> None:
    assert helps(remedy)
    assert problems(remedy) == []


def test_the_rest_of_glgpu_quotes_only_what_exists() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}:{line}: {problem}"
        for path in PRODUCT
        for line, remedy in remedies(path)
        for problem in problems(remedy)
    ]
    assert wrong == []


def test_the_remedies_of_the_code_are_found() -> None:
    found = {path.name: [text for _, text in remedies(path)] for path in PRODUCT}
    assert sum(map(len, found.values())) > 80
    assert "run `glgpu provision` first" in found["authorize.py"]
    assert any("gcloud compute instances delete X --zone X --project X" in text for text in found["end_vms.py"])


@pytest.mark.parametrize(
    "remedy",
    [
        "run `glgpu frobnicate`",
        "run `glgpu destroy --everything`",
        "`gcloud services enable --project PROJECT`",
        "`gcloud services enable compute.googleapis.com --projects PROJECT`",
        "`gcloud org-policies list`",
        "`docker inspect`",
        "see https://example.com/made-up",
        "see docs/how-to/nothing.md",
        "set `spott: never`",
        "gcloud compute instances delete by hand",
    ],
)
def test_a_remedy_that_cannot_be_followed_is_noticed(remedy: str) -> None:
    assert problems(remedy)


def test_links_are_dated_and_say_where_they_were_seen() -> None:
    assert len({link.url for link in LINKS}) == len(LINKS)
    for link in LINKS:
        assert link.url.startswith("https://")
        assert date(2026, 1, 1) <= link.seen <= date.today()
        assert link.where.strip()


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_the_program_itself_knows_the_commands(program: str) -> None:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program}: not on PATH, its commands are held to tests/fixtures/programs.yml alone")
    for name, spec in PROGRAMS[program]["commands"].items():
        asked = [path, *name.split(), "-h" if program in ("git", "terraform") else "--help"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
        shown = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
        assert "unknown command" not in shown.lower(), name
        assert "is not a git command" not in shown, name
        for flag in [*spec["flags"], *spec.get("required", [])]:
            assert flag in shown or flag in PROGRAMS[program]["flags"], f"{name} {flag}"
