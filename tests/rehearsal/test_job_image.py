"""The job image, built on a base that needs neither a registry nor HashiCorp, and a pipeline's jobs run in it."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from glgpu import __version__

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
stand_ins = importlib.import_module("serving").stand_ins
gitlab_ci_local = importlib.import_module("gitlab_ci_local")

ROOT = Path(__file__).resolve().parents[2]
ENGINE_BASE = "glgpu-rehearsal-base"
BASE, WHEEL, IMAGE = "glgpu-test-base", "glgpu-test-wheel", "glgpu-test-job"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)


def skip(reason: str) -> None:
    if "docker" in os.environ.get("GLGPU_REQUIRE", "").split(","):
        pytest.fail(f"docker is required, but {reason}")
    pytest.skip(f"job image: {reason}")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image `job` of ci/Dockerfile; its base has Terraform and a provider folder already."""
    if shutil.which("docker") is None or docker("image", "inspect", ENGINE_BASE).returncode != 0:
        skip(f"no Docker engine with the image {ENGINE_BASE} answers (ci/engine start)")
    terraform = shutil.which("terraform")
    if terraform is None:
        skip("terraform is not on PATH")
    assert terraform is not None
    context = tmp_path_factory.mktemp("base")
    shutil.copy2(terraform, context / "terraform")
    shutil.copy2(CERTIFICATES, context / "certificates")
    (context / "Dockerfile").write_text(
        f"FROM {ENGINE_BASE}\nCOPY terraform /usr/local/bin/terraform\nCOPY certificates {CERTIFICATES}\n"
        "RUN mkdir -p /usr/local/share/terraform/plugins/registry.terraform.io/hashicorp/google\n"
        f"ENV PIP_CERT={CERTIFICATES}\n"
    )
    ours = ["--file", str(ROOT / "ci/Dockerfile"), "--build-arg", f"BASE={BASE}", str(ROOT)]
    builds = {BASE: [str(context)], WHEEL: ["--target", "wheel", *ours], IMAGE: ["--target", "job", *ours]}
    try:
        for tag, arguments in builds.items():
            built = docker("build", "--network", "host", "--tag", tag, *arguments)
            assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
        yield IMAGE
    finally:
        docker("image", "rm", IMAGE, WHEEL, BASE)


@pytest.mark.timeout(600)
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


def test_a_pipeline_s_jobs_run_in_the_image(image: str, tmp_path: Path) -> None:
    example = "examples/text-generation"
    repository = gitlab_ci_local.repository(tmp_path / "repository", {example: ROOT / example})
    jobs = list(yaml.safe_load_all((ROOT / "ci/train.yml").read_text(encoding="utf-8")))[-1]
    glgpu = Path(sys.executable).with_name("glgpu")
    with stand_ins(glgpu, repository) as environment:
        for name in ("provision", "train", "destroy"):
            (line,) = jobs[f"$[[ inputs.prefix ]]{name}"]["script"]
            answer = run_job(image, repository, line, dict(environment) | {"GLGPU_CONFIG": f"{example}/glgpu.yml"})
            assert answer.returncode == 0, f"{name}: {answer.stdout[-3000:]}{answer.stderr[-3000:]}"
    subprocess.run(["sha256sum", "--check", "--quiet", "glgpu/SHA256SUMS"], cwd=repository / "outputs", check=True)


def run_job(
    image: str, repository: Path, line: str, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """One job as the docker executor runs it: a fresh container, of which only the project folder stays."""
    own = {"PATH", "HOME", "CI_PROJECT_DIR", "TMPDIR"}
    given = [f"--env={name}={value}" for name, value in environment.items() if name not in own]
    place = [
        "--volume",
        f"{repository}:{repository}",
        "--workdir",
        str(repository),
        f"--env=CI_PROJECT_DIR={repository}",
    ]
    return docker("run", "--rm", "--init", "--network", "host", *place, *given, image, "sh", "-ec", line)
