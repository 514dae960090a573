"""The pipeline files played by gitlab-ci-local with the installed wheel, against the stand-ins.

gitlab-ci-local honours rules, stages, artifacts, dotenv and ``when: always``; retry, timeout, cancel and stop it does
not play.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import gitlab_ci_local
from serving import Served, stand_ins

ROOT: Path = gitlab_ci_local.ROOT
OWN_TO_A_JOB = ("CI_JOB_ID", "CI_JOB_NAME", "CI_JOB_STATUS", "GITLAB_CI", "PATH", "HOME", "TMPDIR")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a `glgpu` that was installed from the wheel; the dependencies are this interpreter's."""
    if not (shutil.which("terraform") or shutil.which("tofu")):
        pytest.skip("terraform: neither it nor tofu is on PATH")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", ROOT]
    subprocess.run(built, check=True)
    (wheel,) = folder.glob("glgpu-*.whl")
    environment = folder / "venv"
    venv.create(environment)
    python = environment / "bin/python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own, ours = (
        Path(subprocess.run([program, "-c", query], check=True, capture_output=True, text=True).stdout.strip())
        for program in (python, sys.executable)
    )
    # Behind the wheel's own site-packages: `import glgpu` finds the wheel, not the checkout.
    (own / "dependencies.pth").write_text(f"{ours}\n")
    where = subprocess.run(
        [python, "-c", "import glgpu; print(glgpu.__file__)"], check=True, capture_output=True, text=True, cwd=folder
    )
    assert Path(where.stdout.strip()).is_relative_to(own)
    return environment / "bin"


def adopter(folder: Path) -> Path:
    """A repository with the example and, as its whole pipeline, an include of the home's file."""
    pipeline = (
        "stages: [build, test, deploy, provision, train, destroy]\ninclude:\n  - project: group/glgpu\n    ref: main\n"
        "    file: ci/train.yml\n    inputs: {image: not-pulled-by-a-shell}\n"
    )
    files = {path.name: path for path in (ROOT / "examples/text-generation").iterdir() if path.is_file()}
    repository = gitlab_ci_local.repository(folder, {**files, ".gitlab-ci.yml": pipeline})
    gitlab_ci_local.provide_home(repository)
    return repository


def play(repository: Path, glgpu: Path, served: Served, *jobs: str) -> subprocess.CompletedProcess[str]:
    """Play a push, or some of its jobs, with the shell executor: `glgpu` in a job is the installed wheel's."""
    # gitlab-ci-local sets a job's own variables itself; those by which it reaches GitLab and Google are the stand-ins'.
    variables = {name: value for name, value in served.environment.items() if name not in OWN_TO_A_JOB}
    return gitlab_ci_local.run(
        repository,
        *jobs,
        "--force-shell-executor",
        "--no-artifacts-to-source",
        # For a job with an image it names the folder of a container, with the shell executor too; glgpu takes the
        # working directory where the variable is empty.
        variables=variables | {"CI_PIPELINE_SOURCE": "push", "CI_PROJECT_DIR": ""},
        env={"PATH": f"{glgpu.parent}{os.pathsep}{os.environ['PATH']}"},
        timeout=240,
    )


def artifacts(repository: Path, job: str) -> Path:
    """Where gitlab-ci-local keeps a job's artifacts."""
    return repository / ".gitlab-ci-local/artifacts" / job


def events(repository: Path, job: str) -> dict[str, dict[str, object]]:
    """The run record among a job's artifacts: the facts of each kind of event."""
    record = json.loads((artifacts(repository, job) / "outputs/glgpu/run.json").read_text())
    return {event["what"]: event["facts"] for event in record["events"]}


def test_a_push_is_green_and_leaves_weights_in_the_artifacts(installed: Path, tmp_path: Path) -> None:
    gitlab_ci_local.require()
    glgpu = installed / "glgpu"
    repository = adopter(tmp_path / "repository")
    with stand_ins(glgpu, repository) as served:
        answer = play(repository, glgpu, served)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert served.left() == {}
    outputs = artifacts(repository, "train") / "outputs"
    subprocess.run(["sha256sum", "--check", "--quiet", "glgpu/SHA256SUMS"], cwd=outputs, check=True)
    assert "weights/lstm.npz" in (outputs / "glgpu/SHA256SUMS").read_text()
    assert "held out" in (outputs / "glgpu/train.log").read_text()
    assert not list((repository / ".gitlab-ci-local/artifacts").rglob(".glgpu"))
    assert events(repository, "train")["training-ended"]["exit_code"] == 0
    assert events(repository, "destroy")["proof"]["left"] == []


def test_a_failed_training_is_red_keeps_its_log_and_outputs_and_is_torn_down(installed: Path, tmp_path: Path) -> None:
    gitlab_ci_local.require()
    glgpu = installed / "glgpu"
    repository = adopter(tmp_path / "repository")
    with stand_ins(glgpu, repository, "--fault", "train-fails") as served:
        answer = play(repository, glgpu, served)
        text = answer.stdout + answer.stderr
        assert answer.returncode != 0, text
        assert served.left() == {}
    assert "TRAINING_FAILED (exit code 20)" in text
    assert "it breaks now" in (artifacts(repository, "train") / "outputs/glgpu/train.log").read_text()
    own = artifacts(repository, "train") / "outputs/glgpu"
    assert (own / "SHA256SUMS").is_file()
    assert "TRAINING_FAILED: exit code 20" in (own / "report.html").read_text()
    assert events(repository, "train")["training-ended"]["exit_code"] == 3
    assert events(repository, "destroy")["proof"]["left"] == []


def test_the_manual_stop_ends_a_run_that_nobody_trained_on(installed: Path, tmp_path: Path) -> None:
    gitlab_ci_local.require()
    glgpu = installed / "glgpu"
    repository = adopter(tmp_path / "repository")
    with stand_ins(glgpu, repository) as served:
        answer = play(repository, glgpu, served, "provision")
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert "instances" in served.left()
        answer = play(repository, glgpu, served, "stop")
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert served.left() == {}
