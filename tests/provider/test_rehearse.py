"""A whole pipeline whose VM the real hashicorp/google provider makes and destroys."""

from __future__ import annotations

from pathlib import Path

from applying import Outside, Provider, Tally
from glgpu.rehearsal.gitlab_model import Variable
from rehearsing import Played, repository, world


def test_a_push_trains_on_a_vm_of_the_real_provider_and_leaves_nothing(
    tmp_path: Path, provider: Provider, outside: Outside, tally: Tally
) -> None:
    settings = {
        "GLGPU_TERRAFORM_MODULE": "gpu-vm",
        "TF_CLI_CONFIG_FILE": str(provider.config),
        "HTTPS_PROXY": outside.address,
    }
    with world() as made, tally.over(made.calls):
        adopted = made.adopt(
            repository(tmp_path / "repository"), variables=[Variable(name, value) for name, value in settings.items()]
        )
        played = Played(made, adopted)
        try:
            outcomes = played.play()
            ends = {name: (outcome.status, outcome.exit_code) for name, outcome in outcomes.items()}
            left = played.left()
        finally:
            played.close()
        print(played.logs)
        assert ends == {}
