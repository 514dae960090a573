"""GitLab's SSH port: its address, and the host keys that somebody else than the connection itself vouches for."""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import quote

from glgpu.errors import ErrorClass, Failure
from glgpu.job import Job
from glgpu.steps.context import Run

GITLAB_COM_KEYS = ("gitlab.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAfuCHKVTjquxvt6CM6tdG4SLp1Btn/nOeHHE5UOzRdf",)
"""https://docs.gitlab.com/user/gitlab_com/#ssh-known_hosts-entries"""


def ssh_address(job: Job) -> str:
    """Where git finds the project over SSH."""
    return f"ssh://git@{job.ssh_host}:{job.ssh_port}/{quote(job.project_path)}.git"


def known_hosts(run: Run, answering: str) -> str:
    """GitLab's host keys as known_hosts lines, from a source that is not the connection itself.

    Args:
        run: The run.
        answering: The keys that answer there, which count only if that source has their fingerprints.

    Raises:
        Failure: CODE, when nobody vouches for them.
    """
    host, port = run.job.ssh_host, run.job.ssh_port
    if run.job.gitlab_host_keys:
        return run.job.gitlab_host_keys + "\n"
    named = host if port == 22 else f"[{host}]:{port}"
    if host in ("gitlab.com", "altssh.gitlab.com"):
        return "".join(f"{named} {line.split(' ', 1)[1]}\n" for line in GITLAB_COM_KEYS)
    published = run.forge.host_key_fingerprints()
    lines = []
    for line in answering.splitlines():
        _, _, key = line.partition(" ")
        if _fingerprint(key) in published:
            lines.append(f"{named} {key}")
    if not lines:
        raise Failure(
            ErrorClass.CODE,
            f"nobody vouches for the SSH host keys of {host}:{port}: its help page shows none that it answers with",
            "set GLGPU_GITLAB_HOST_KEYS to its known_hosts lines, or `code: job`",
        )
    return "\n".join(lines) + "\n"


def _fingerprint(key: str) -> str:
    try:
        blob = base64.b64decode(key.split()[1], validate=True)
    except (IndexError, ValueError):
        return ""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
