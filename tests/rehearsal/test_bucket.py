"""Terraform's state in the team's bucket."""

from __future__ import annotations

from pathlib import Path

from glgpu.rehearsal.gitlab_model import Variable
from rehearsing import Played, repository, world

BUCKET = "team-glgpu"


def test_a_bucket_keeps_the_state_while_the_vm_lives_and_nothing_afterwards(tmp_path: Path) -> None:
    own = repository(tmp_path / "repository")
    with world() as made:
        # Not in glgpu.yml: destroy knows it from the VM's metadata and from provision's report all the same.
        adopted = made.adopt(own, variables=[Variable("GLGPU_STORAGE_BUCKET", BUCKET)])
        played = Played(made, adopted)
        outcomes = played.play()
        for name in ("provision", "train", "destroy"):
            assert outcomes[name].status == "success", played.logs[name]
        asked = [call for call in made.calls.lines() if call["to"] == "google" and BUCKET in call["target"]]
        written = [call for call in asked if call["verb"] == "POST" and "default.tfstate" in str(call)]
        assert written, asked
        states = [call for call in made.calls.lines() if call["to"] == "gitlab" and "/terraform/" in call["target"]]
        assert {call["verb"] for call in states} <= {"GET"}, states
        assert played.left() == {}
        played.close()


def test_a_state_that_lies_in_the_bucket_alone_is_found_by_a_job_without_glgpu_yml(tmp_path: Path) -> None:
    settings = repository(tmp_path / "other") / "glgpu.yml"
    text = settings.read_text() + f"storage:\n  bucket: {BUCKET}\nstate: gcs\n"
    own = repository(tmp_path / "repository", {"glgpu.yml": text})
    with world() as made:
        played = Played(made, made.adopt(own))
        outcomes = played.play()
        assert [outcomes[name].status for name in ("provision", "train", "destroy")] == ["success"] * 3, played.logs
        assert played.left() == {}
        played.close()
