"""What Terraform says of a failed creation is explained by its cause, or not at all."""

from __future__ import annotations

import pytest

from failed_creations import FAILED_CREATIONS, FailedCreation
from glgpu.classify import explain
from glgpu.errors import ErrorClass

SAID = [case for case in FAILED_CREATIONS if case.says]


@pytest.mark.parametrize("case", SAID, ids=lambda case: case.name)
def test_a_failed_creation_is_explained_by_its_cause(case: FailedCreation) -> None:
    # Where the words do not tell the cause, no cause is guessed: at most that one may try again.
    expected = {case.error_class} if case.error_class else {ErrorClass.UNKNOWN, ErrorClass.TRANSIENT}
    assert explain(case.says).klass in expected
