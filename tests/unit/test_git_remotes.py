"""Which GitLab project the address of a git remote means."""

from __future__ import annotations

import pytest

from glgpu.git_remotes import Place, place_of

GITLAB = "https://gitlab.example.com"


@pytest.mark.parametrize(
    ("remote", "server", "project"),
    [
        ("git@gitlab.example.com:group/project.git", GITLAB, "group/project"),
        ("gitlab.example.com:group/sub/project", GITLAB, "group/sub/project"),
        ("git@gitlab.example.com:/group/project.git", GITLAB, "group/project"),
        ("ssh://git@gitlab.example.com:2222/group/project.git", GITLAB, "group/project"),
        ("git+ssh://git@gitlab.example.com/group/project.git", GITLAB, "group/project"),
        ("https://gitlab.example.com/group/project.git/", GITLAB, "group/project"),
        ("https://gitlab.example.com:8443/group/project", f"{GITLAB}:8443", "group/project"),
        ("https://ada:glpat-secret@gitlab.example.com/group/project.git", GITLAB, "group/project"),
        ("http://127.0.0.1:4001/rehearsal/train.git", "http://127.0.0.1:4001", "rehearsal/train"),
        ("ssh://git@altssh.gitlab.com:443/group/project.git", "https://gitlab.com", "group/project"),
        ("git@[2001:db8::1]:group/project.git", "https://[2001:db8::1]", "group/project"),
        ("https://[2001:db8::1]:8443/group/project.git", "https://[2001:db8::1]:8443", "group/project"),
        ("git@gitlab.example.com:my.group/my-project_1.git", GITLAB, "my.group/my-project_1"),
    ],
)
def test_a_remote_names_a_server_and_a_project(remote: str, server: str, project: str) -> None:
    assert place_of(remote) == Place(server, project)


@pytest.mark.parametrize(
    "remote",
    [
        "", "/srv/git/project.git", "../project", "file:///srv/git/group/project.git", "project",
        "https://gitlab.example.com/", "https://gitlab.example.com/project", "https://[broken/group/project",
        "https://host:port/group/project", "git@host:gro up/project", "git@host:project.git", "C:\\group\\project",
    ],
)  # fmt: skip
def test_what_names_no_project_on_a_server_is_nothing(remote: str) -> None:
    assert place_of(remote) is None
