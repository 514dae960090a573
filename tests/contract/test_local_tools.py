"""What doctor sees of this machine: programs, folders of providers, packages; and variables that cannot be read."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from glgpu.clients.local_tools import LocalTools, numbers
from glgpu.console import Console
from glgpu.errors import Failure
from glgpu.masking import Masker
from glgpu.settings import Settings
from glgpu.wiring import make_sources


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_programs_are_found_with_their_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "git", "echo git version 2.39.5 '(Apple Git-154)'")
    program(tmp_path / "bin", "ssh", "echo 'OpenSSH_9.2p1 Debian-2, OpenSSL 3.0.15' >&2")
    program(tmp_path / "bin", "gcloud", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/bin")
    tools = LocalTools("")
    git, ssh, gcloud = (tools.tool(name) for name in ("git", "ssh", "gcloud"))
    assert git is not None
    assert git.version == (2, 39, 5)
    assert ssh is not None
    assert ssh.version == (9, 2)
    # Only looked for: it takes seconds to start.
    assert gcloud is not None
    assert gcloud.version == ()
    assert tools.tool("no-such-program") is None


def test_a_terraform_that_is_too_old_is_refused(tmp_path: Path) -> None:
    program(tmp_path / "bin", "terraform", 'echo \'{"terraform_version": "1.4.7"}\'')
    with pytest.raises(Failure, match=r"is version 1\.4\.7, older than 1\.5"):
        LocalTools(str(tmp_path / "bin/terraform")).terraform()
    program(tmp_path / "bin", "terraform", 'echo \'{"terraform_version": "1.11.4"}\'')
    assert LocalTools(str(tmp_path / "bin/terraform")).terraform().version == (1, 11, 4)


def test_unpacked_and_packed_providers_are_seen_in_every_folder_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "system"))
    name = "registry.terraform.io/hashicorp/google"
    (tmp_path / "home/.terraform.d/plugins" / name / "7.46.0/linux_amd64").mkdir(parents=True)
    (tmp_path / "home/.terraform.d/plugins" / name / "6.1.0/linux_amd64").mkdir(parents=True)
    (tmp_path / "system/terraform/plugins" / name).mkdir(parents=True)
    (tmp_path / "system/terraform/plugins" / name / "terraform-provider-google_5.3.0_linux_amd64.zip").touch()
    assert LocalTools("").mirrored_providers() == {
        str(tmp_path / "home/.terraform.d/plugins"): [(6, 1, 0), (7, 46, 0)],
        str(tmp_path / "system/terraform/plugins"): [(5, 3, 0)],
    }


def test_packages_that_are_too_old_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LocalTools("").outdated_packages() == []
    old = tmp_path / "requests-2.0.0.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: requests\nVersion: 2.0.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (told,) = LocalTools("").outdated_packages()
    assert told.startswith("requests 2.0.0 (needs ")


@pytest.mark.parametrize(
    ("text", "version"),
    [("git version 2.39.5", (2, 39, 5)), ("17.5.0-ee", (17, 5, 0)), ("none at all", ()), ("v7", ())],
)
def test_the_first_version_in_a_text_counts(text: str, version: tuple[int, ...]) -> None:
    assert numbers(text) == version


def test_every_variable_that_cannot_be_read_is_told_and_the_job_is_read_without_them(tmp_path: Path) -> None:
    (tmp_path / "glgpu.yml").write_text("project: my-dl\n")
    environment = {
        "CI_SERVER_URL": "gitlab", "GLGPU_JOB_TIMEOUT": "soon", "GLGPU_REGISTRY_USER": "ada", "CI_PROJECT_ID": "7",
        "GLGPU_GOOGLE_ENDPOINT": "http://x/y",
    }  # fmt: skip
    sources = make_sources(Console(Masker(), stream=io.BytesIO()), environment, tmp_path)
    told = " ".join(failure.cause for failure in sources.wrong_variables)
    for name in ("CI_SERVER_URL", "GLGPU_JOB_TIMEOUT", "GLGPU_REGISTRY_USER", "GLGPU_GOOGLE_ENDPOINT"):
        assert name in told
    assert len(sources.wrong_variables) == 4
    assert sources.job.project_id == 7
    assert isinstance(sources.settings, Settings)
    assert sources.rights.project == "my-dl"


def test_secrets_of_the_settings_are_hidden_from_what_doctor_says(tmp_path: Path) -> None:
    (tmp_path / "glgpu.yml").write_text("train: {secrets: [WANDB_API_KEY]}\n")
    console = Console(Masker(), stream=io.BytesIO())
    make_sources(console, {"WANDB_API_KEY": "a-key-of-somebody", "GLGPU_GITLAB_TOKEN": "glpat-of-nobody"}, tmp_path)
    assert "a-key" not in console.masker.mask("with a-key-of-somebody")
    assert "glpat" not in console.masker.mask("with glpat-of-nobody")
