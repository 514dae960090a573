"""A whole pipeline whose VM the real hashicorp/google provider makes and destroys."""

from __future__ import annotations

from pathlib import Path

import pytest

from applying import Outside, Provider, Tally
from glgpu.rehearsal.gitlab_model import Variable
from rehearsing import Played, repository, world

ALLOWED_LOCATIONS = "iamcredentials.googleapis.com:443"
"""Whom google-auth asks, in a thread of its own and whatever the endpoints, where an account may be used. Nobody waits
for the answer."""


@pytest.mark.parametrize("federated", [False, True], ids=["access token", "identity token"])
def test_a_push_trains_on_a_vm_of_the_real_provider_and_leaves_nothing(
    tmp_path: Path, provider: Provider, outside: Outside, tally: Tally, federated: bool
) -> None:
    settings = {
        "GLGPU_TERRAFORM_MODULE": "gpu-vm",
        "TF_CLI_CONFIG_FILE": str(provider.config),
        "HTTPS_PROXY": outside.address,
    }
    with world() as made, tally.over(made.calls):
        adopted = made.adopt(
            repository(tmp_path / "repository"),
            variables=[Variable(name, value) for name, value in settings.items()],
            federated=federated,
        )
        played = Played(made, adopted)
        before = tally.answered.total()
        try:
            outcomes = played.play()
            ends = {name: (outcome.status, outcome.exit_code) for name, outcome in outcomes.items()}
            left = played.left()
        finally:
            played.close()
        done = dict.fromkeys(("provision", "train", "destroy"), ("success", 0))
        assert ends == {**done, "stop": ("manual", None)}, played.logs
        assert left == {}
        assert "google_compute_instance.run: Creation complete" in played.logs["provision"]
        assert tally.answered.total() > before
    outside.wanted.pop(ALLOWED_LOCATIONS, None)
