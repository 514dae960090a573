"""The pipeline files played by gitlab-ci-local with the installed wheel, against the stand-ins.

gitlab-ci-local honours rules, stages, artifacts, dotenv and ``when: always``; retry, timeout, cancel and stop it does
not play.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
gitlab_ci_local = importlib.import_module("gitlab_ci_local")
stand_ins = importlib.import_module("serving").stand_ins

ROOT: Path = gitlab_ci_local.ROOT
EXAMPLE = "examples/text-generation"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a `glgpu` that was installed from the wheel; the dependencies are this interpreter's."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", ROOT], check=True
    )
    (wheel,) = folder.glob("glgpu-*.whl")
    environment = folder / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
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
    """A repository with the example and the same include as this one."""
    pipeline = (
        "stages: [provision, train, destroy]\ninclude:\n  - local: ci/train.yml\n"
        f"    inputs: {{image: none, config: {EXAMPLE}/glgpu.yml}}\n"
    )
    files = {".gitlab-ci.yml": pipeline, "ci/train.yml": ROOT / "ci/train.yml", EXAMPLE: ROOT / EXAMPLE}
    return Path(gitlab_ci_local.repository(folder, files))


def play(repository: Path, glgpu: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    # gitlab-ci-local sets a job's own CI_... itself; what the job calls GitLab for must be the stand-in's.
    variables = dict(environment) | {"CI_PIPELINE_SOURCE": "push"}
    for name in ("CI_PROJECT_DIR", "CI_JOB_ID", "CI_JOB_STATUS", "PATH", "HOME"):
        variables.pop(name, None)
    result: subprocess.CompletedProcess[str] = gitlab_ci_local.run(
        repository,
        "--force-shell-executor",
        "--shell-isolation",
        "--no-artifacts-to-source",
        variables=variables,
        env={"PATH": f"{glgpu.parent}{os.pathsep}{os.environ['PATH']}"},
        timeout=240,
    )
    return result


def artifacts(repository: Path, job: str) -> Path:
    """Where gitlab-ci-local keeps a job's artifacts."""
    return repository / ".gitlab-ci-local/artifacts" / job


def test_a_push_is_green_and_leaves_weights_in_the_artifacts(installed: Path, tmp_path: Path) -> None:
    gitlab_ci_local.require()
    glgpu = installed / "glgpu"
    repository = adopter(tmp_path / "repository")
    with stand_ins(glgpu, repository) as environment:
        answer = play(repository, glgpu, environment)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    outputs = artifacts(repository, "train") / "outputs"
    sums = (outputs / "glgpu/SHA256SUMS").read_text()
    assert len(sums.splitlines()) >= 1
    subprocess.run(["sha256sum", "--check", "--quiet", "glgpu/SHA256SUMS"], cwd=outputs, check=True)
    assert (outputs / "glgpu/train.log").stat().st_size > 0
    assert not (artifacts(repository, "train") / ".glgpu").exists()
    record = json.loads((artifacts(repository, "destroy") / "outputs/glgpu/run.json").read_text())
    assert record["events"]


def test_a_failed_training_is_red_keeps_its_log_and_is_torn_down(installed: Path, tmp_path: Path) -> None:
    gitlab_ci_local.require()
    glgpu = installed / "glgpu"
    repository = adopter(tmp_path / "repository")
    with stand_ins(glgpu, repository, "--fault", "train-fails") as environment:
        answer = play(repository, glgpu, environment)
    text = answer.stdout + answer.stderr
    assert answer.returncode != 0, text
    assert "TRAINING_FAILED (exit code 20)" in text
    assert (artifacts(repository, "train") / "outputs/glgpu/train.log").stat().st_size > 0
    assert (artifacts(repository, "destroy") / "outputs/glgpu/run.json").is_file(), text
