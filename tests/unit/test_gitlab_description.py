"""GitLab's description of its API finds what is wrong with a request and with an answer."""

from __future__ import annotations

from typing import Any

import pytest

from glgpu.rehearsal.gitlab_description import BadParameter, load

KEYS = "POST /projects/{id}/deploy_keys"


def test_it_names_the_gitlab_version_that_it_was_taken_from() -> None:
    assert load().gitlab_version == "19.5"


def test_every_type_that_an_entity_or_an_answer_names_is_known() -> None:
    description = load()
    plain = {"integer", "number", "string", "boolean", "object", "date-time", "date", "raw", ""}
    used = {kind for fields in description.entities.values() for kind in fields.values()}
    for operation in description.operations.values():
        used |= set(operation.answers.values()) | {kind.rstrip("!") for kind in operation.parameters.values()}
    assert {kind.strip("[]") for kind in used} <= plain | set(description.entities)


def test_parameters_are_converted_to_their_types_and_strange_ones_dropped() -> None:
    description = load()
    given = {"key": "k", "title": 5, "can_push": "True", "expires_at": "2026-11-23T00:00:00Z", "strange": 1}
    operation = description.operations[KEYS]
    expected = {"key": "k", "title": "5", "can_push": True, "expires_at": 1795392000.0}
    assert description.read(operation, given) == expected
    assert description.unknown(operation, given) == ["strange"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "key is missing, title is missing"),
        ({"key": "k", "title": "t", "can_push": "maybe"}, "can_push is invalid"),
        ({"key": "k", "title": "t", "expires_at": "soon"}, "expires_at is invalid"),
        ({"key": ["k"], "title": "t"}, "key is invalid"),
    ],
)
def test_bad_parameters_are_refused_in_gitlab_s_words(given: dict[str, Any], message: str) -> None:
    description = load()
    with pytest.raises(BadParameter, match=message):
        description.read(description.operations[KEYS], given)


@pytest.mark.parametrize(
    ("status", "body", "finding"),
    [
        (201, {"id": 1, "title": "t", "expires_at": None}, ""),
        (201, {"id": "1"}, "'1' is no integer"),
        (201, {"id": True}, "True is no integer"),
        (201, {"colour": "red"}, "has no field colour"),
        (201, {"created_at": "2026-11-23"}, "is no date-time"),
        (201, [], "is no DeployKeysProject"),
        (202, {}, "status 202 is not described"),
        (404, {"message": "404 Not found"}, ""),
    ],
)
def test_an_answer_is_held_to_its_entity(status: int, body: Any, finding: str) -> None:
    description = load()
    found = description.findings(description.operations[KEYS], status, body)
    assert (finding in found[0]) if finding else not found
