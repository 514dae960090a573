"""Jobs that log in to Google Cloud by the identity tokens that GitLab gives them, with no secret of Google's at all."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glgpu.rehearsal.world import Adopted, World
from rehearsing import GLGPU, Played, repository, world

Prepare = Callable[[World, Adopted], None]


def played(folder: Path, prepare: Prepare) -> tuple[dict[str, int | None], dict[str, str], World]:
    """Play a whole pipeline: the jobs' exit codes, their logs, and the world as it was."""
    with world() as made:
        adopted = made.adopt(repository(folder / "own"), federated=True)
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

    codes, logs, made = played(tmp_path, listen)
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

    codes, logs, _ = played(tmp_path, distrust)
    assert codes["provision"] == 15, logs["provision"]
    assert "AUTH" in logs["provision"]
    assert "rejected by the attribute condition" in logs["provision"]


@pytest.mark.parametrize("way", ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CREDENTIALS", "as text", "gcloud's own"])
def test_a_service_account_s_key_works_in_every_place(way: str, tmp_path: Path) -> None:
    with world() as made:
        key, file = json.dumps(made.google.new_key(made.google.account)), tmp_path / "key.json"
        file.write_text(key, encoding="utf-8")
        login = {way: str(file)}
        if way == "as text":
            login = {"GOOGLE_CREDENTIALS": key}
        elif way == "gcloud's own":
            file.rename(tmp_path / "application_default_credentials.json")
            login = {"CLOUDSDK_CONFIG": str(tmp_path)}
        login["PYTHONWARNINGS"] = "error::DeprecationWarning:google.auth._default"
        job = {"CI_SERVER_URL": made.gitlab.url, "CI_PROJECT_ID": "42", "CI_PIPELINE_ID": "1001", "HOME": str(tmp_path)}
        done = subprocess.run(
            [GLGPU, "destroy", "--cloud-only"], cwd=tmp_path, env={**os.environ, **made.endpoints(), **job, **login},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "no VM of this run is alive" in done.stdout
        assert any(call["to"] == "compute" for call in made.calls.lines())
        assert "private_key" not in made.calls.path.read_text(encoding="utf-8")
