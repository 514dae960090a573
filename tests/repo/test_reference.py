"""The generated pages of docs/reference are what the code would write today."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import yaml

from glgpu.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ci/write-reference"


@pytest.fixture(scope="module")
def writer() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_no_generated_page_is_stale(writer: SimpleNamespace) -> None:
    for name, text in writer.pages().items():
        written = (ROOT / "docs/reference" / name).read_text(encoding="utf-8")
        assert written == text, f"docs/reference/{name} is stale: run .venv/bin/python ci/write-reference"


def test_the_script_can_be_run() -> None:
    assert os.access(SCRIPT, os.X_OK)


def test_every_key_stands_in_the_page_about_settings(writer: SimpleNamespace) -> None:
    page = writer.settings_page()
    for section, model in [("", Settings), *writer.sections(Settings)]:
        inner = dict(writer.sections(model))
        for key, field in model.model_fields.items():
            if key not in inner:
                dotted = f"{section}.{key}".lstrip(".")
                assert f"| `{dotted}` |" in page
                assert field.description in page.replace("\\|", "|")


@pytest.mark.parametrize("name", ["settings.schema.json", "run-record.schema.json"])
def test_the_published_schemas_are_valid(name: str) -> None:
    schema = json.loads((ROOT / "docs/reference" / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)


def test_the_example_is_what_the_published_schema_describes() -> None:
    schema = json.loads((ROOT / "docs/reference/settings.schema.json").read_text(encoding="utf-8"))
    example = yaml.safe_load((ROOT / "examples/text-generation/glgpu.yml").read_text(encoding="utf-8"))
    jsonschema.validate(example, schema, jsonschema.Draft202012Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**example, "machines": {}}, schema, jsonschema.Draft202012Validator)
