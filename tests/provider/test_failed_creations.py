"""What Terraform says and does when a creation fails, with the real hashicorp/google provider."""

from __future__ import annotations

import pytest

from applying import Workspace
from cloud import Cloud
from failed_creations import FAILED_CREATIONS, FailedCreation, aftermath, play


@pytest.mark.parametrize("case", FAILED_CREATIONS, ids=lambda case: case.name)
def test_a_failed_creation_ends_as_measured(case: FailedCreation, module: Workspace, cloud: Cloud) -> None:
    said = play(case, module, cloud)
    assert case.pattern.search(said)
    assert module.state() == case.in_state
    aftermath(case, module, cloud)
