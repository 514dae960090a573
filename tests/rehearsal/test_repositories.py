"""Three repositories, each played through its own .gitlab-ci.yml: ours, the README's, and one with jobs of its own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from glgpu.errors import Failure
from glgpu.rehearsal.job_turn import Outcome
from rehearsing import GLGPU, TINY, Played, repository, world

ROOT = Path(__file__).resolve().parents[2]
GPU_JOBS = ("provision", "train", "destroy", "stop")


def whole_yaml_of_the_readme() -> str:
    """The one block of the README that is a whole .gitlab-ci.yml."""
    blocks = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    (found,) = [block for block in blocks if "file: ci/train.yml" in block]
    return found


def assert_trained(outcomes: Mapping[str, Outcome], played: Played) -> None:
    for name in ("provision", "train", "destroy"):
        assert outcomes[name].status == "success", played.logs[name]
    assert outcomes["stop"].status == "manual"
    assert played.left() == {}


def test_this_repository_trains_its_example_in_a_subfolder() -> None:
    with world() as made:
        played = Played(made, made.adopt(ROOT, keep_pipeline=True))
        pipeline = played.player.pipeline
        assert {"provision", "train", "destroy", "stop"} < {job.name for job in pipeline.jobs}
        # The others run this test: only what needs the GPU is played.
        played.player.pipeline = replace(pipeline, jobs=tuple(job for job in pipeline.jobs if job.name in GPU_JOBS))
        outcomes = played.play()
        assert_trained(outcomes, played)
        assert "epoch 3 of 3" in played.logs["train"]
        assert "examples/text-generation" in " ".join(
            call["target"] for call in made.calls.lines() if call["to"] == "vm"
        )
        played.close()


def test_the_snippet_of_the_readme_is_a_whole_pipeline(tmp_path: Path) -> None:
    own = repository(tmp_path / "repository", {".gitlab-ci.yml": whole_yaml_of_the_readme()})
    with world() as made:
        played = Played(made, made.adopt(own, keep_pipeline=True))
        assert [job.name for job in played.player.pipeline.jobs] == [*GPU_JOBS, "start notebook", "stop notebook"]
        played.close()


@pytest.mark.every_fault
def test_the_snippet_of_the_readme_trains(tmp_path: Path) -> None:
    own = repository(tmp_path / "repository", {".gitlab-ci.yml": whole_yaml_of_the_readme()})
    with world() as made:
        played = Played(made, made.adopt(own, keep_pipeline=True))
        assert_trained(played.play(), played)
        played.close()


OWN = """\
stages: [lint, build, publish]
default:
  before_script: [echo "before each of our jobs"]
lint:
  stage: lint
  script: [test -f train.py]
build:
  stage: build
  script: [mkdir -p built, echo made >built/it]
  artifacts: {paths: [built]}
publish:
  stage: publish
  script: [cat built/it]
"""


def test_one_with_stages_and_jobs_of_its_own_trains_after_glgpu_init(tmp_path: Path) -> None:
    own = repository(tmp_path / "repository", {".gitlab-ci.yml": OWN})
    subprocess.run(["git", "init", "-q", own], check=True)
    done = subprocess.run(
        [GLGPU, "init", "--home", "group/glgpu", "--google-project", "rehearsal-project", "--folder", own],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (own / "glgpu.yml").read_text(encoding="utf-8") == TINY
    with world() as made:
        played = Played(made, made.adopt(own, keep_pipeline=True))
        outcomes = played.play()
        assert_trained(outcomes, played)
        assert {name for name, outcome in outcomes.items() if outcome.status == "success"} == {
            "lint", "build", "publish", "provision", "train", "destroy",
        }  # fmt: skip
        assert "before each of our jobs" in played.logs["publish"]
        assert "before each of our jobs" not in played.logs["train"]
        played.close()


def test_a_pipeline_without_our_stages_is_refused_in_gitlab_s_words(tmp_path: Path) -> None:
    yaml = whole_yaml_of_the_readme().replace("provision, train, destroy", "train, destroy")
    own = repository(tmp_path / "repository", {".gitlab-ci.yml": yaml})
    with world() as made:
        adopted = made.adopt(own, keep_pipeline=True)
        with pytest.raises(Failure, match=r"provision job: chosen stage does not exist; available stages are \.pre, "):
            Played(made, adopted)
