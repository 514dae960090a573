"""Jobs that log in to Google Cloud by the identity tokens that GitLab gives them, with no secret of Google's at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glgpu.rehearsal.gitlab_model import Variable
from glgpu.rehearsal.world import Adopted, World
from rehearsing import Played, repository, world

Prepare = Callable[[World, Adopted], None]


def played(folder: Path, prepare: Prepare, *, federated: bool) -> tuple[dict[str, int | None], dict[str, str], World]:
    """Play a whole pipeline: the jobs' exit codes, their logs, and the world as it was."""
    with world() as made:
        adopted = made.adopt(repository(folder / "own"), federated=federated)
        adopted.project.variables[:] = [v for v in adopted.project.variables if v.key != "GOOGLE_OAUTH_ACCESS_TOKEN"]
        prepare(made, adopted)
        game = Played(made, adopted)
        outcomes = game.play()
        game.close()
        assert game.left() == {}, game.logs
        return {name: one.exit_code for name, one in outcomes.items()}, game.logs, made


def test_a_training_needs_no_secret_of_google_s(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []

    def listen(made: World, _: Adopted) -> None:
        made.calls.listeners.append(calls.append)

    codes, logs, made = played(tmp_path, listen, federated=True)
    assert codes == {"provision": 0, "train": 0, "destroy": 0, "stop": None}, logs
    exchanges = [call for call in calls if call["target"] == "/v1/token"]
    assert len(exchanges) >= 3
    assert {call["status"] for call in exchanges} == {200}
    # Google asks GitLab for its keys, and every insert was made with an access token of the service account's.
    assert any(call["target"] == "/oauth/discovery/keys" for call in calls)
    assert made.google_token not in json.dumps(calls)


def test_another_project_s_jobs_are_refused(tmp_path: Path) -> None:
    def distrust(made: World, _: Adopted) -> None:
        provider = made.google.identities.providers["glgpu", "glgpu"]
        provider["attributeCondition"] = "assertion.project_id == '1'"

    codes, logs, _ = played(tmp_path, distrust, federated=True)
    assert codes["provision"] == 15, logs["provision"]
    assert "AUTH" in logs["provision"]
    assert "rejected by the attribute condition" in logs["provision"]


@pytest.mark.parametrize("variable", ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CREDENTIALS"])
def test_a_service_account_s_key_in_a_file_variable_works_too(variable: str, tmp_path: Path) -> None:
    def give_key(made: World, adopted: Adopted) -> None:
        key = json.dumps(made.google.new_key(made.google.account))
        adopted.project.variables.append(Variable(variable, key, variable_type="file"))

    codes, logs, _ = played(tmp_path, give_key, federated=False)
    assert codes["provision"] == 0, logs["provision"]
