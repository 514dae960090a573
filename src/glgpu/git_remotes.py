"""What the address of a git remote tells about its GitLab: where its API is, and which project it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

OVER_HTTPS = {"altssh.gitlab.com": "gitlab.com"}
"""SSH hosts that have another name for HTTPS (https://docs.gitlab.com/topics/git/troubleshooting_git/)."""
SCP_LIKE = re.compile(r"(?:[^@/:]+@)?(?P<host>\[[0-9a-fA-F:]+\]|[^@/:\[\]]+):(?P<path>(?!//).+)")
"""``git@host:group/project.git``: no scheme, a colon before the first slash (git-clone's documentation)."""


@dataclass(frozen=True)
class Place:
    """A project on a GitLab.

    Attributes:
        server: Address of the GitLab, ``https://gitlab.example.com``.
        project: Full path, ``group/project``.
    """

    server: str
    project: str


def place_of(remote: str) -> Place | None:
    """Where a remote's project would be, were it on a GitLab; None where the address names no host and project.

    User and password in an address are left out. An SSH address tells nothing of the port or path of the web server:
    HTTPS at its usual port is assumed, at the root.

    Args:
        remote: What ``git remote get-url`` says.
    """
    scp_like = SCP_LIKE.fullmatch(remote)
    if "://" not in remote and scp_like:
        host, path, scheme = scp_like["host"], scp_like["path"], "ssh"
    else:
        try:
            parts = urlsplit(remote)
            port = parts.port
        except ValueError:
            return None
        scheme, path, host = parts.scheme.removeprefix("git+"), parts.path, parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        if scheme in ("http", "https") and port:
            host = f"{host}:{port}"
    path = path.strip("/").removesuffix(".git")
    if scheme not in ("http", "https", "ssh") or not host or not re.fullmatch(r"[\w.-]+(/[\w.-]+)+", path):
        return None
    host = OVER_HTTPS.get(host.lower(), host)
    return Place(f"{'http' if scheme == 'http' else 'https'}://{host}", path)
