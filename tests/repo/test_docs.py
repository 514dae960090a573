"""The documentation says what the code does."""

from __future__ import annotations

import ast
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from glgpu.errors import EXIT_CODES, EXIT_MEANINGS, WORTH_A_RETRY
from glgpu.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def table(text: str, heading: str) -> list[list[str]]:
    """The rows of the one table whose header row begins with this cell."""
    (found,) = re.findall(rf"(?m)^\| {re.escape(heading)} \|.*\n\|[-| ]+\|\n((?:\|.*\n?)+)", text)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in found.strip().splitlines()]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", text)


def anchor(heading: str) -> str:
    """GitLab's anchor of a heading: lower case, blanks to hyphens, punctuation gone."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_the_exit_codes_are_those_of_the_code() -> None:
    assert {int(code): meaning for code, meaning in table(page("reference/exit-codes.md"), "code")} == EXIT_MEANINGS


def test_every_error_class_is_described_with_its_exit_code() -> None:
    rows = table(page("reference/errors.md"), "class")
    assert {name: int(code) for name, code, _, _ in rows} == {str(klass): code for klass, code in EXIT_CODES.items()}


def test_the_classes_that_a_retry_can_help_are_those_of_the_code() -> None:
    _, _, told = page("reference/errors.md").partition("\n## Retries\n")
    assert set(re.findall(r"\b[A-Z_]{3,}\b", told)) == {str(klass) for klass in WORTH_A_RETRY}


@pytest.mark.parametrize(
    ("name", "heading"),
    [("train.yml", "input"), ("notebook.yml", "input of notebook.yml"), ("cleanup.yml", "input of cleanup.yml")],
)
def test_the_inputs_are_those_of_the_pipeline_file(name: str, heading: str) -> None:
    header = next(yaml.safe_load_all((ROOT / "ci" / name).read_text(encoding="utf-8")))
    wanted = {name: spec.get("default", "-") for name, spec in header["spec"]["inputs"].items()}
    rows = table(page("reference/inputs.md"), heading)
    assert {name.strip("`"): default.strip("`") for name, default, _ in rows} == wanted


def test_every_command_is_documented_and_every_documented_one_exists() -> None:
    cli = importlib.import_module("glgpu.cli")
    group = next(value for value in vars(cli).values() if isinstance(value, click.Group))
    rows = table(page("reference/commands.md"), "command")
    assert {name.strip("`").removeprefix("glgpu ") for name, _ in rows} == set(group.commands)


def variables_read(tree: ast.AST) -> Iterator[str]:
    """Names that a module looks up in the process's variables: `get("X")`, `environment["X"]`, `variables.get("X")`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Name("get") | ast.Attribute(ast.Name("environment") | ast.Attribute(attr="variables"), "get"),
                args=[ast.Constant(str() as name), *_],
            ):
                yield name
            case ast.Subscript(ast.Name("environment"), ast.Constant(str() as name), ast.Load()):
                yield name


def test_the_variable_table_names_what_is_read_and_nothing_else() -> None:
    product = [path for path in (ROOT / "src/glgpu").rglob("*.py") if "rehearsal" not in path.parts]
    read = {name for path in product for name in variables_read(ast.parse(path.read_text(encoding="utf-8")))}
    named = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", "\n".join(row[0] for row in table(README, "variable"))))
    assert {"GLGPU_PROJECT", "CI_PROJECT_DIR", "GLGPU_RUN_INDEX", "GITLAB_CI"} <= read
    assert read - named == set()
    pipeline = "".join((ROOT / "ci" / name).read_text(encoding="utf-8") for name in ("train.yml", "image.yml"))
    by_rules = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", pipeline))
    assert named - read - by_rules == set()


def test_a_setting_is_overridden_as_the_table_says() -> None:
    settings = load_settings(
        None, {"GLGPU_MACHINE_SPOT": "never", "GLGPU_MACHINE_ZONES": "europe-west1-b, europe-west4-a"}
    )
    assert (settings.machine.spot, settings.machine.zones) == ("never", ["europe-west1-b", "europe-west4-a"])


def test_the_exit_codes_in_the_variable_table_exist() -> None:
    for name, _, _, without in table(README, "variable"):
        for code in re.findall(r"\b\d+\b", without):
            assert int(code) in EXIT_MEANINGS, name


def test_the_settings_in_the_readme_are_valid() -> None:
    (text,) = [block for block in blocks(README, "yaml") if block.startswith("machine:")]
    settings = Settings.model_validate(yaml.safe_load(text))
    assert settings.train.command == ["python", "train.py"]


def test_the_two_commands_of_the_readme_can_be_run() -> None:
    commands = re.findall(r"(?m)^(\./\S+)", blocks(README, "sh")[0])
    assert commands == ["./ci/rehearse", "./ci/test"]
    for command in commands:
        assert os.access(ROOT / command, os.X_OK), command


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_documentation_lead_somewhere(path: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```", "", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, fragment = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), f"{target} in {path.name}"
        if fragment:
            headings = re.findall(r"(?m)^#+ (.*)$", linked.read_text(encoding="utf-8"))
            assert fragment in map(anchor, headings), f"{target} in {path.name}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_page_of_the_documentation_is_linked(path: Path) -> None:
    if path.name in ("README.md", "terraform.md") or path.parent.name == "decisions":
        return
    linked = {
        (other.parent / target.partition("#")[0]).resolve()
        for other in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", other.read_text(encoding="utf-8"))
        if "://" not in target
    }
    assert path in linked


def test_decisions_are_numbered_and_have_the_same_shape() -> None:
    records = sorted((ROOT / "docs/decisions").glob("*.md"))
    for number, path in enumerate(records, start=1):
        text = path.read_text(encoding="utf-8")
        assert path.name.startswith(f"{number:04d}-"), path.name
        assert re.match(rf"# {number}\. \S.*\n\nDate: \d{{4}}-\d\d-\d\d\. Status: \w+", text), path.name
        assert re.findall(r"(?m)^## (.*)$", text) == ["Context", "Decision", "Consequences"], path.name


def test_cursed_knowledge_is_dated_one_liners() -> None:
    lines = [line for line in page("cursed-knowledge.md").splitlines() if line.startswith("-")]
    assert len(lines) > 10
    assert all(re.match(r"- \d{4}-\d\d-\d\d: \S", line) for line in lines)
