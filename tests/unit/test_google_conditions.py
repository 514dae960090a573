"""The expressions that identity providers are configured with."""

from typing import Any

import pytest

from glgpu.rehearsal.google_conditions import Wrong, parse

SCOPE: dict[str, Any] = {
    "assertion": {"project_id": "4711", "ref": "main", "groups": ["team"], "runner_id": 7, "odd-name": "x"},
    "attribute": {"project_id": "4711"},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("assertion.project_id == '4711'", True),
        ('assertion.project_id != "4711"', False),
        ("assertion.project_id in ['1', '4711']", True),
        ("assertion.runner_id == 7", True),
        ("assertion['odd-name'] == 'x'", True),
        ("'team' in assertion.groups", True),
        ("assertion.ref == 'x' || assertion.ref == 'y' && false", False),
        ("assertion.ref == 'main' || assertion.absent == 'y'", True),
        ("!(assertion.ref == 'main')", False),
        ("assertion.ref.startsWith('ma') && assertion.ref.endsWith('in') && assertion.ref.contains('ai')", True),
        ("has(assertion.absent) ? assertion.absent : 'none'", "none"),
        ("'project_id:' + attribute.project_id + ':' + 'it\\'s'", "project_id:4711:it's"),
    ],
)
def test_an_expression_has_the_value_that_the_language_gives_it(text: str, value: object) -> None:
    assert parse(text)(SCOPE) == value


@pytest.mark.parametrize("text", ["", "assertion.", "a ==", "(a", "[a", "a b", "a ? b", "a = b", "'open"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(Wrong):
        parse(text)


@pytest.mark.parametrize("text", ["assertion.absent == 'x'", "assertion.ref.size('x')", "assertion.ref + 7"])
def test_what_has_no_value_is_said_so(text: str) -> None:
    with pytest.raises(Wrong):
        parse(text)(SCOPE)
