"""Weights that are too big for artifacts: kept before the VM goes, and fetched by whoever needs them."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path

import pytest

from glgpu.processes import Done, run
from glgpu.rehearsal.command import job_by_hand
from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.gitlab_model import Variable
from rehearsing import GLGPU, Played, repository, world

SIZE = 16 << 20
BUCKET = "team-glgpu"
TRAINING = f"""\
import pathlib, random
weights = pathlib.Path("weights")
weights.mkdir()
(weights / "small").write_text("small")
(weights / "big").write_bytes(random.Random(1).randbytes({SIZE}))
print("trained", flush=True)
"""


def big() -> bytes:
    return random.Random(1).randbytes(SIZE)


def fetched(folder: Path, environment: dict[str, str], *words: str) -> Done:
    folder.mkdir(exist_ok=True)
    return run([str(GLGPU), "fetch", *words], env={**os.environ, **environment}, cwd=folder, timeout=120)


def check(folder: Path) -> None:
    assert hashlib.sha256((folder / "weights/big").read_bytes()).digest() == hashlib.sha256(big()).digest()
    assert not (folder / ".glgpu-fetch").exists()
    assert (folder / "weights/small").read_text() == "small"
    checked = run(["sha256sum", "-c", "glgpu/SHA256SUMS"], cwd=folder)
    assert checked.code == 0, checked.text
    assert "weights/big: OK" in checked.text


def test_what_gitlab_would_refuse_is_fetched_by_a_laptop_and_by_a_job(tmp_path: Path) -> None:
    own = repository(tmp_path / "repository", {"train.py": TRAINING})
    with world() as made:
        made.gitlab.artifact_limit_mb = 12
        played = Played(made, made.adopt(own))
        outcomes = played.play()
        assert [outcomes[name].status for name in ("provision", "train", "destroy")] == ["success"] * 3, played.logs
        assert "annotations" in outcomes["train"].last.reports
        adopted, run_id = played.rehearsal.adopted, str(played.player.entry.id)
        links = json.loads(outcomes["train"].last.reports["annotations"].read_bytes())
        assert "/-/packages/" in links["glgpu"][0]["external_link"]["url"]
        job = job_by_hand(made, adopted)

        laptop = {"GLGPU_GITLAB_TOKEN": adopted.token.value}
        where = ["--gitlab", made.gitlab.url, "--project", adopted.project.path]
        for _ in range(2):
            done = fetched(tmp_path / "laptop", laptop, run_id, "--to", "mine", *where)
            assert done.code == 0, done.text + done.complaint
            check(tmp_path / "laptop/mine")
        assert "there already" in done.text
        told = fetched(tmp_path / "laptop", laptop, run_id, "--to", "mine", "--json", *where)
        files = {one["path"]: one["from"] for one in json.loads(told.text)["files"]}
        assert files == {"weights/big": "packages", "weights/small": "artifacts"}

        # A job of the same project has its own token only, and finds the artifacts by the note beside the parts.
        done = fetched(tmp_path / "job", {**job, "GLGPU_GITLAB_TOKEN": "", "CI_PROJECT_DIR": str(tmp_path)}, run_id)
        assert done.code == 0, done.text + done.complaint
        check(tmp_path / "job/outputs")
        assert played.left() == {}
        played.close()


@pytest.mark.every_fault
def test_a_registry_that_is_away_for_a_while_gets_them_from_the_retried_job(tmp_path: Path) -> None:
    own = repository(tmp_path / "repository", {"train.py": TRAINING})
    with world(Rule("gitlab.packages.upload", "unavailable", 1, 3, "503")) as made:
        made.gitlab.artifact_limit_mb = 12
        played = Played(made, made.adopt(own))
        outcomes = played.play()
        assert [attempt.entry.exit_code for attempt in outcomes["train"].attempts] == [18, 0], played.logs["train"]
        assert "they are there and verified" in played.logs["train"]
        assert played.left() == {}
        played.close()


@pytest.mark.every_fault
def test_a_bucket_keeps_them_where_there_is_one(tmp_path: Path) -> None:
    own = repository(tmp_path / "repository", {"train.py": TRAINING})
    with world() as made:
        made.gitlab.artifact_limit_mb = 12
        played = Played(made, made.adopt(own, variables=[Variable("GLGPU_STORAGE_BUCKET", BUCKET)]))
        outcomes = played.play()
        assert outcomes["train"].status == "success", played.logs["train"]
        assert not played.rehearsal.adopted.project.packages
        job = {**job_by_hand(made, played.rehearsal.adopted), "CI_PROJECT_DIR": str(tmp_path)}
        done = fetched(tmp_path / "job", job, str(played.player.entry.id))
        assert done.code == 0, done.text + done.complaint
        check(tmp_path / "job/outputs")
        assert played.left() == {}
        played.close()
