"""gitlab-ci-local, an implementation of GitLab's pipeline rules that nobody here wrote."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ROOT / "ci/tools/gitlab-ci-local"
HOST = "gitlab.example.com"


@cache
def _missing() -> str:
    for tool in ("node", "npm", "git", "rsync", "flock"):
        if shutil.which(tool) is None:
            return f"{tool}: not on PATH"
    first = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=False)
    return "" if first.returncode == 0 else f"npm: gitlab-ci-local cannot be installed: {first.stderr.strip()[-300:]}"


def require() -> None:
    """Skip loudly, by the name of what is missing, where gitlab-ci-local cannot run."""
    if reason := _missing():
        pytest.skip(reason)


def repository(folder: Path, files: Mapping[str, str | bytes | Path]) -> Path:
    """A git repository with one commit of these files; a Path is copied, folders too."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            if content.is_dir():
                shutil.copytree(content, target, dirs_exist_ok=True)
            else:
                shutil.copy2(content, target)
        else:
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
    for arguments in (
        ["init", "--quiet", "--initial-branch=main"],
        ["remote", "add", "origin", f"git@{HOST}:team/project.git"],
        ["add", "--all"],
        [*identity, "commit", "--quiet", "--message=first"],
        ["update-ref", "refs/remotes/origin/main", "HEAD"],
        ["symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/main"],
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


def provide_home(folder: Path, home: str = "group/glgpu", ref: str = "main") -> None:
    """Lay the home's files where gitlab-ci-local keeps what it has fetched for an include by project."""
    fetched = folder / ".gitlab-ci-local/includes" / HOST / home / ref / "ci"
    fetched.mkdir(parents=True)
    for name in ("train.yml", "notebook.yml", "cleanup.yml"):
        shutil.copy2(ROOT / "ci" / name, fetched)


def run(
    folder: Path, *arguments: str, variables: Mapping[str, str], **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run it in a repository; ``variables`` go before everything else, GitLab's own included."""
    given = [f"--variable={name}={value}" for name, value in variables.items()]
    environment = dict(os.environ) | {"GCL_IGNORE_PREDEFINED_VARS": ",".join(variables), "NO_COLOR": "1"}
    return subprocess.run(
        [COMMAND, *arguments, *given],
        cwd=folder,
        env=environment | options.pop("env", {}),
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def jobs(folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """The pipeline's jobs and their ``when``; fails where the YAML breaks GitLab's published schema.

    ``rules:changes`` counts as true, as it does on a new branch.
    """
    answer = run(folder, "--list-json", "--no-evaluate-rule-changes", variables=variables)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return {job["name"]: job["when"] for job in json.loads(answer.stdout) if job["when"] != "never"}
