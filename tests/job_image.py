"""The image `job` of ci/Dockerfile, on a base that needs neither a registry nor HashiCorp."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGINE_BASE = "glgpu-rehearsal-base"
PIP_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
IN_NETWORK = ("run", "--rm", "--network", "host")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class NoImage(Exception):
    """It cannot be built here.

    Attributes:
        name: What is missing.
    """

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)


def base_context(folder: Path, terraform: str) -> Path:
    """What the base of our own is made of.

    Packages come by apt as the engine's image has it, and by pip as this machine has it, certificates included.
    Terraform and a provider folder are there already, so nothing else is fetched.
    """
    shutil.copy2(terraform, folder / "terraform")
    shutil.copy2(CERTIFICATES, folder / "certificates")
    index = [f"ENV {name}={os.environ[name]}" for name in PIP_SETTINGS if name in os.environ]
    lines = [
        f"FROM {ENGINE_BASE}",
        "COPY terraform /usr/local/bin/terraform",
        f"COPY certificates {CERTIFICATES}",
        "RUN mkdir -p /usr/local/share/terraform/plugins/registry.terraform.io/hashicorp/google",
        f"ENV PIP_CERT={CERTIFICATES}",
        *index,
    ]
    (folder / "Dockerfile").write_text("\n".join(lines) + "\n")
    return folder


@contextmanager
def built(folder: Path) -> Iterator[str]:
    """The image's name, for as long as the block lasts; `folder` is for what it is made of.

    Raises:
        NoImage: Something is missing on this machine.
    """
    if shutil.which("docker") is None or docker("image", "inspect", ENGINE_BASE).returncode != 0:
        raise NoImage("docker", f"no engine with the image {ENGINE_BASE} answers (ci/engine start)")
    terraform = shutil.which("terraform")
    if terraform is None:
        raise NoImage("terraform", "not on PATH")
    mirrors = docker(*IN_NETWORK, ENGINE_BASE, "apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update")
    if mirrors.returncode != 0:
        raise NoImage("docker", f"a container reaches no package mirror: {mirrors.stderr[-300:]}")
    base, wheel, image = (f"glgpu-test-{part}:{secrets.token_hex(4)}" for part in ("base", "wheel", "job"))
    ours = ["--file", str(ROOT / "ci/Dockerfile"), "--build-arg", f"BASE={base}", str(ROOT)]
    context = str(base_context(folder, terraform))
    builds = {base: [context], wheel: ["--target", "wheel", *ours], image: ["--target", "job", *ours]}
    try:
        for tag, arguments in builds.items():
            made = docker("build", "--network", "host", "--tag", tag, *arguments)
            assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
        yield image
    finally:
        docker("image", "rm", image, wheel, base)
