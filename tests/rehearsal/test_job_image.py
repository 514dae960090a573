"""The job image, and a pipeline's jobs run in it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import gitlab_ci_local
from glgpu import __version__
from job_image import IN_NETWORK, ROOT, NoImage, built, docker
from serving import stand_ins

pytestmark = pytest.mark.timeout(600)  # the first test also builds the image
GLGPU = Path(sys.executable).with_name("glgpu")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image `job` of ci/Dockerfile, on a base of our own."""
    try:
        with built(tmp_path_factory.mktemp("base")) as made:
            yield made
    except NoImage as missing:
        pytest.skip(f"{missing.name}: {missing}")


def test_the_image_has_what_the_jobs_need(image: str) -> None:
    script = (
        "glgpu --version && terraform version && git --version && git lfs version && ssh -V && ls /wheels /job-image"
    )
    answer = docker("run", "--rm", "--network", "none", image, "sh", "-c", script)
    text = answer.stdout + answer.stderr
    assert f"glgpu, version {__version__}" in text
    for tool in ("Terraform v", "git version", "git-lfs/", "OpenSSH_"):
        assert tool in text
    assert text.count("No such file or directory") == 2, "the build's own files are left in the image"


JOBS: dict[str, Any] = list(yaml.safe_load_all((ROOT / "ci/train.yml").read_text(encoding="utf-8")))[-1]


def example(folder: Path) -> Path:
    """A checkout of the packaged example."""
    files = {path.name: path for path in (ROOT / "examples/text-generation").iterdir() if path.is_file()}
    return gitlab_ci_local.repository(folder, files)


def lines(job: str, part: str) -> str:
    """A part of one of the jobs of ci/train.yml as a shell script."""
    return "\n".join(JOBS[f"$[[ inputs.prefix ]]{job}"][part])


def run_in(
    image: str, repository: Path, script: str, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """A script as the docker executor runs it: in a fresh container, of which only the project folder stays."""
    own = {"PATH", "HOME", "TMPDIR", "CI_PROJECT_DIR"}
    given = [f"--env={name}={value}" for name, value in environment.items() if name not in own]
    place = [f"--volume={repository}:{repository}", f"--workdir={repository}", f"--env=CI_PROJECT_DIR={repository}"]
    return docker(*IN_NETWORK, "--init", *place, *given, image, "bash", "-ec", script)


def test_a_pipeline_s_jobs_run_in_the_image(image: str, tmp_path: Path) -> None:
    repository = example(tmp_path / "repository")
    with stand_ins(GLGPU, repository) as served:
        for name in ("provision", "train", "destroy"):
            answer = run_in(image, repository, lines(name, "script"), served.environment)
            assert answer.returncode == 0, f"{name}: {answer.stdout[-3000:]}{answer.stderr[-3000:]}"
        assert served.left() == {}
    subprocess.run(["sha256sum", "--check", "--quiet", "glgpu/SHA256SUMS"], cwd=repository / "outputs", check=True)
    assert (repository / "outputs/weights/lstm.npz").stat().st_size > 0


def test_the_cancel_path_needs_nothing_but_the_image_the_project_folder_and_the_cloud(
    image: str, tmp_path: Path
) -> None:
    repository = example(tmp_path / "repository")
    with stand_ins(GLGPU, repository) as served:
        answer = run_in(image, repository, lines("provision", "script"), served.environment)
        assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
        assert "instances" in served.left()
        # GitLab has revoked the job's token by then, and nothing here may need another.
        gone = {"CI_JOB_TOKEN": "revoked", "GLGPU_GITLAB_TOKEN": "", "CI_JOB_STATUS": "canceled"}
        answer = run_in(image, repository, lines("train", "after_script"), served.environment | gone)
        assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
        # The request is all that a cancelled job has the time for.
        served.await_gone("instances")
