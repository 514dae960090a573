"""The stand-in GitLab, held by python-gitlab, git, ssh, Terraform and GitLab's own description of its API."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
import time
import zipfile
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import gitlab
import pytest
import requests
import yaml

from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.faults import Faults, Rule
from glgpu.rehearsal.gitlab import GitLab
from glgpu.rehearsal.gitlab_description import load
from glgpu.rehearsal.gitlab_http import ROUTES
from glgpu.rehearsal.gitlab_model import Job, Pipeline, Project, Role, User, Variable
from glgpu.rehearsal.seams import Network
from glgpu.rehearsal.world_clock import WorldClock


class Loop:
    """An event loop in a thread, as in a rehearsal."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@dataclass
class World:
    server: GitLab
    project: Project
    maintainer: User
    developer: User
    token: str
    sha: str
    folder: Path
    loop: Loop
    started: list[tuple[str, str]] = field(default_factory=list)

    @property
    def api(self) -> Any:
        client = gitlab.Gitlab(self.server.url, private_token=self.token)
        return client.projects.get(self.project.id, lazy=True)

    def as_user(self, user: User) -> Any:
        """The project through a person's token."""
        token = self.server.create_token(user, "t", ["api"]).value
        return gitlab.Gitlab(self.server.url, private_token=token).projects.get(self.project.id, lazy=True)

    def running_job(self, user: User | None = None, **settings: Any) -> Job:
        pipeline = self.server.create_pipeline(self.project, "main", self.sha, "push", user or self.maintainer)
        job = self.server.create_job(pipeline, "train", "train", **settings)
        self.server.start_job(job)
        return job

    def url(self, path: str) -> str:
        return f"{self.server.url}/api/v4/projects/{self.project.id}{path}"


def run(*argv: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=60)


def git(*argv: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    identity = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "A"), ("EMAIL", "a@b.c"))
    }
    return run(
        "git",
        *argv,
        cwd=cwd,
        env={"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_GLOBAL": "/dev/null", **identity, **(env or {})},
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    source = tmp_path / "source"
    source.mkdir()
    git("init", "-q", "-b", "main", cwd=source)
    (source / "train.py").write_text("print('training')\n")
    (source / "run.sh").write_text("true\n")
    (source / "run.sh").chmod(0o755)
    git("add", ".", cwd=source)
    assert git("commit", "-q", "-m", "First\n\nbody", cwd=source).returncode == 0
    loop = Loop()

    async def build() -> World:
        clock = WorldClock()
        server = GitLab(tmp_path / "gitlab", clock, Faults(), CallLog(tmp_path / "calls.jsonl"), Network())
        maintainer, developer = server.create_user("maja"), server.create_user("dan")
        project = server.create_project("team/model", source)
        project.members |= {maintainer.id: Role.MAINTAINER, developer.id: Role.DEVELOPER}
        token = server.create_project_token(project, "glgpu", ["api"], Role.MAINTAINER).value
        sha = server.git(project, "rev-parse", "main").text.strip()
        it = World(server, project, maintainer, developer, token, sha, tmp_path, loop)

        def trigger(of: Project, ref: str, source: str, user: User, variables: list[Variable]) -> Pipeline:
            it.started.append((ref, source))
            return server.create_pipeline(of, ref, sha, source, user, variables)

        server.trigger = trigger
        await server.start()
        return it

    it: World = loop.run(build())
    yield it
    loop.run(it.server.stop())
    loop.close()
    for line in it.server.calls.lines():
        assert not line.get("findings"), line
        assert not line.get("unknown"), line


def key_pair(folder: Path, name: str = "key") -> tuple[Path, str]:
    path = folder / name
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "vm", "-f", str(path))
    return path, path.with_suffix(".pub").read_text()


def ssh_env(world: World, key: Path) -> dict[str, str]:
    known = world.folder / "known_hosts"
    known.write_text("\n".join(world.server.host_key_lines) + "\n")
    options = ["IdentitiesOnly=yes", f'UserKnownHostsFile="{known}"', "StrictHostKeyChecking=yes", "BatchMode=yes"]
    argv = ["ssh", "-F", "/dev/null", "-i", str(key), *(part for option in options for part in ("-o", option))]
    return {"GIT_SSH_COMMAND": shlex.join(argv)}


def ssh_url(world: World, path: str = "team/model.git") -> str:
    return f"ssh://git@{world.server.ssh_host}:{world.server.ssh_port}/{path}"


def test_every_described_operation_is_served_and_nothing_else() -> None:
    assert set(ROUTES) == set(load().operations)


# Who may what


def test_a_project_is_found_by_number_and_by_path(world: World) -> None:
    client = gitlab.Gitlab(world.server.url, private_token=world.token)
    assert client.projects.get("team/model").id == world.project.id
    assert client.projects.get(world.project.id).path_with_namespace == "team/model"
    assert client.version()[0] == "19.5.0"


def test_wrong_dead_and_weak_tokens_are_refused_in_gitlab_s_words(world: World) -> None:
    weak = world.server.create_token(world.maintainer, "w", ["read_repository"])
    old = world.server.create_token(world.maintainer, "o", ["api"], expires_at=date(2020, 1, 1))
    revoked = world.server.create_token(world.maintainer, "r", ["api"])
    revoked.revoked = True

    def ask(headers: dict[str, str]) -> tuple[int, Any]:
        answer = requests.get(world.url("/deploy_keys"), headers=headers, timeout=10)
        return answer.status_code, answer.json()

    assert ask({}) == (401, {"message": "401 Unauthorized"})
    assert ask({"PRIVATE-TOKEN": "glpat-nonsense"}) == (401, {"message": "401 Unauthorized"})
    assert ask({"PRIVATE-TOKEN": old.value})[1]["error_description"].startswith("Token is expired.")
    assert ask({"PRIVATE-TOKEN": revoked.value})[1]["error_description"].startswith("Token was revoked.")
    status, body = ask({"PRIVATE-TOKEN": weak.value})
    assert (status, body["error"]) == (403, "insufficient_scope")
    assert ask({"Authorization": f"Bearer {world.token}"}) == (200, [])


def test_a_developer_a_stranger_and_a_job_may_not_touch_deploy_keys(world: World) -> None:
    stranger = world.server.create_user("eve")

    def status(headers: dict[str, str]) -> int:
        return requests.get(world.url("/deploy_keys"), headers=headers, timeout=10).status_code

    def of(user: User) -> dict[str, str]:
        return {"PRIVATE-TOKEN": world.server.create_token(user, "t", ["api"]).value}

    assert status(of(world.developer)) == 403
    assert status(of(stranger)) == 404
    assert status(of(world.maintainer)) == 200
    assert status({"JOB-TOKEN": world.server.issue_job_token(world.running_job())}) == 401


def test_a_job_token_lives_exactly_while_its_job_runs(world: World) -> None:
    job = world.running_job()
    client = gitlab.Gitlab(world.server.url, job_token=world.server.issue_job_token(job))
    assert client.http_get("/job")["id"] == job.id
    with pytest.raises(gitlab.GitlabHttpError, match="404 Project Not Found"):
        client.http_get(f"/projects/{world.project.id}/pipelines/{job.pipeline.id}")
    world.server.cancel_job(job)
    assert job.status == "canceling"
    with pytest.raises(gitlab.GitlabAuthenticationError):
        client.http_get("/job")


def test_a_project_token_made_through_the_api_works_until_it_is_revoked(world: World) -> None:
    made = world.api.access_tokens.create(
        {"name": "t", "scopes": ["api"], "access_level": 40, "expires_at": "2099-01-01"}
    )
    client = gitlab.Gitlab(world.server.url, private_token=made.token)
    assert client.personal_access_tokens.get("self").expires_at == "2099-01-01"
    made.delete()
    assert [t.revoked for t in world.api.access_tokens.list(get_all=True) if t.id == made.id] == [True]
    with pytest.raises(gitlab.GitlabAuthenticationError):
        client.personal_access_tokens.get("self")


# Parameters and pages


def test_a_missing_and_a_wrong_parameter_are_refused_by_name(world: World) -> None:
    headers = {"PRIVATE-TOKEN": world.token}
    answer = requests.post(world.url("/deploy_keys"), json={"key": "x"}, headers=headers, timeout=10)
    assert (answer.status_code, answer.json()) == (400, {"error": "title is missing"})
    body = {"key": "x", "title": "t", "expires_at": "tomorrow"}
    answer = requests.post(world.url("/deploy_keys"), json=body, headers=headers, timeout=10)
    assert (answer.status_code, answer.json()) == (400, {"error": "expires_at is invalid"})
    assert requests.get(world.url("/deploy_keys/abc"), headers=headers, timeout=10).json() == {
        "error": "key_id is invalid"
    }
    assert requests.get(f"{world.server.url}/api/v4/nonsense", headers=headers, timeout=10).status_code == 404


def test_lists_come_in_pages_with_gitlab_s_headers(world: World) -> None:
    for number in range(5):
        world.project.variables.append(Variable(f"V{number}", "x"))
    answer = requests.get(world.url("/variables?per_page=2&page=2"), headers={"PRIVATE-TOKEN": world.token}, timeout=10)
    assert [v["key"] for v in answer.json()] == ["V2", "V3"]
    headers = {name: answer.headers[name] for name in ("x-page", "x-next-page", "x-total", "x-total-pages")}
    assert headers == {"x-page": "2", "x-next-page": "3", "x-total": "5", "x-total-pages": "3"}
    assert len(world.api.variables.list(iterator=True, per_page=2)) == 5
    assert [v.key for v in world.api.variables.list(get_all=True, per_page=2)] == [f"V{n}" for n in range(5)]


# Deploy keys and git over SSH


def test_a_deploy_key_opens_its_project_for_reading_from_registration_to_deletion(world: World) -> None:
    key, public = key_pair(world.folder)
    env, target = ssh_env(world, key), world.folder / "clone"
    refused = git("clone", "-q", ssh_url(world), str(target), cwd=world.folder, env=env)
    assert refused.returncode == 128
    assert "git@127.0.0.1: Permission denied (publickey)." in refused.stderr

    made = world.api.keys.create({"title": "glgpu-run", "key": public, "expires_at": "2099-01-01T00:00:00Z"})
    assert (made.can_push, made.expires_at) == (False, "2099-01-01T00:00:00.000Z")
    assert made.fingerprint_sha256 == run("ssh-keygen", "-lf", str(key)).stdout.split()[1]
    assert world.api.keys.create({"title": "other", "key": public}).id == made.id
    with pytest.raises(gitlab.GitlabCreateError, match="has already been taken"):
        world.api.keys.create({"title": "x", "key": public.replace(" vm", " me")})
    assert git("clone", "-q", "--depth", "1", ssh_url(world), str(target), cwd=world.folder, env=env).returncode == 0
    assert (target / "train.py").read_text() == "print('training')\n"
    assert git("fetch", "-q", "origin", world.sha, cwd=target, env=env).returncode == 0

    git("commit", "-q", "--allow-empty", "-m", "more", cwd=target)
    push = git("push", "-q", "origin", "HEAD:refs/heads/new", cwd=target, env=env)
    assert push.returncode == 128
    assert "remote: ERROR: This deploy key does not have write access to this project." in push.stderr
    world.api.keys.update(made.id, {"can_push": True})
    assert git("push", "-q", "origin", "HEAD:refs/heads/new", cwd=target, env=env).returncode == 0
    assert world.api.branches.get("new").commit["title"] == "more"

    made.delete()
    assert world.api.keys.list(get_all=True) == []
    assert "Permission denied (publickey)" in git("fetch", "-q", cwd=target, env=env).stderr


def pushing_key(world: World) -> tuple[dict[str, str], Path]:
    """How git runs with a key that may push, and a clone with a commit that is nowhere else."""
    key, public = key_pair(world.folder)
    env, target = ssh_env(world, key), world.folder / "clone"
    world.api.keys.create({"title": "k", "key": public, "can_push": True})
    assert git("clone", "-q", ssh_url(world), str(target), cwd=world.folder, env=env).returncode == 0
    git("commit", "-q", "--allow-empty", "-m", "more", cwd=target)
    return env, target


def test_a_push_begins_a_pipeline_and_one_that_asks_for_none_a_skipped_one(world: World) -> None:
    env, target = pushing_key(world)
    assert git("push", "-q", "origin", "HEAD:refs/heads/none", cwd=target, env=env).returncode == 0
    assert world.project.pipelines == {}  # no .gitlab-ci.yml
    (target / ".gitlab-ci.yml").write_text("job: {script: 'true'}\n")
    git("add", ".", cwd=target)
    git("commit", "-q", "-m", "CI", cwd=target)
    assert git("push", "-q", "origin", "HEAD:refs/heads/a", cwd=target, env=env).returncode == 0
    skip = git("push", "-q", "-o", "other.option", "-o", "ci.skip", "origin", "HEAD:refs/heads/b", cwd=target, env=env)
    assert skip.returncode == 0, skip.stderr
    found = [
        (one.ref, one.source, one.status) for one in world.api.pipelines.list(get_all=True, order_by="id", sort="asc")
    ]
    assert found == [("a", "push", "created"), ("b", "push", "skipped")]
    # A key's push is that of whoever made it.
    (made,) = {one.user.id for one in world.project.pipelines.values()}
    assert world.project.members[made] == Role.MAINTAINER
    assert git("push", "-q", "origin", ":refs/heads/a", cwd=target, env=env).returncode == 0
    assert len(world.project.pipelines) == 2


@pytest.mark.parametrize(
    ("refspec", "told"),
    [
        ("HEAD:refs/heads/main", "You are not allowed to push code to protected branches on this project."),
        ("HEAD:refs/heads/safe/x", "You are not allowed to create protected branches on this project."),
        ("+HEAD^^{}:refs/heads/main", None),
        ("+other:refs/heads/main", "You are not allowed to force push code to a protected branch on this project."),
        (":refs/heads/main", "The default branch of a project cannot be deleted."),
        (f"HEAD:refs/heads/{'a' * 40}", "You cannot create a branch with a 40-character hexadecimal branch name."),
        ("HEAD:refs/heads/unsafe/x", None),
    ],
)
def test_a_protected_branch_is_closed_to_a_key_that_may_push(world: World, refspec: str, told: str | None) -> None:
    world.project.protected_branches.append("safe/*")
    env, target = pushing_key(world)
    git("checkout", "-q", "--orphan", "other", cwd=target)
    git("commit", "-q", "--allow-empty", "-m", "other", cwd=target)
    git("checkout", "-q", "main", cwd=target)
    done = git("push", "origin", refspec, cwd=target, env=env)
    assert (done.returncode == 0) is (told is None), done.stderr
    if told is not None:
        assert f"remote: GitLab: {told}" in done.stderr
        assert "[remote rejected]" in done.stderr
        assert "(pre-receive hook declined)" in done.stderr
        assert world.api.branches.get("main").commit["id"] == world.sha


@pytest.mark.parametrize(("who", "allowed"), [("maintainer", True), ("developer", False)])
def test_a_protected_branch_is_open_to_maintainers(world: World, who: str, allowed: bool) -> None:
    token = world.server.create_token(getattr(world, who), "w", ["write_repository"]).value
    url = f"http://any:{token}@{world.server.url.removeprefix('http://')}/team/model.git"
    source = world.folder / "source"
    git("commit", "-q", "--allow-empty", "-m", "Second", cwd=source)
    done = git("push", "-o", "ci.skip", url, "HEAD:refs/heads/main", cwd=source)
    assert (done.returncode == 0) is allowed, done.stderr
    assert ("GitLab: You are not allowed to push code to protected branches" in done.stderr) is not allowed


def test_an_expired_key_and_a_foreign_project_stay_closed(world: World) -> None:
    key, public = key_pair(world.folder)
    env = ssh_env(world, key)
    other = world.server.create_project("team/secret")
    world.api.keys.create({"title": "k", "key": public, "expires_at": "2099-01-01T00:00:00Z"})
    for path in ("team/secret.git", "team/none.git"):
        done = git("ls-remote", ssh_url(world, path), cwd=world.folder, env=env)
        assert done.returncode == 128
        assert "remote: ERROR: The project you were looking for could not be found" in done.stderr
    world.server.deploy_keys[world.api.keys.list(get_all=True)[0].id].projects[other.id] = False
    assert git("ls-remote", ssh_url(world, "team/secret"), cwd=world.folder, env=env).returncode == 0
    world.server.clock.offset = datetime(2099, 2, 1, tzinfo=UTC).timestamp() - time.time()
    done = git("ls-remote", ssh_url(world), cwd=world.folder, env=env)
    assert done.returncode == 128
    assert "Your SSH key has expired." in done.stderr


def test_nothing_but_git_runs_over_ssh_and_only_as_git(world: World) -> None:
    key, public = key_pair(world.folder)
    world.api.keys.create({"title": "k", "key": public})
    ssh = shlex.split(ssh_env(world, key)["GIT_SSH_COMMAND"])
    port = ["-p", str(world.server.ssh_port)]
    done = run(*ssh, *port, "git@127.0.0.1", "sh -c id")
    assert (done.returncode, "Disallowed command" in done.stderr, done.stdout) == (1, True, "")
    assert "Permission denied" in run(*ssh, *port, "root@127.0.0.1", "git-upload-pack team/model").stderr
    assert run(*ssh, *port, "git@127.0.0.1").stdout.startswith("Welcome to GitLab")


def test_the_help_page_shows_the_fingerprint_of_the_key_that_ssh_offers(world: World) -> None:
    page = requests.get(f"{world.server.url}/help/instance_configuration", timeout=10).text
    known = world.folder / "known_hosts"
    known.write_text(world.server.host_key_lines[0] + "\n")
    shown = re.search(r"<td>ED25519</td>\s*<td><code>[^<]+</code></td>\s*<td><code>([^<]+)</code>", page)
    assert shown is not None
    assert shown[1] == run("ssh-keygen", "-lf", str(known)).stdout.split()[1]


# git over HTTP


def test_a_job_clones_by_url_with_its_token_and_may_not_push(world: World) -> None:
    job = world.running_job(world.developer)
    token = world.server.issue_job_token(job)
    url = f"http://gitlab-ci-token:{token}@{world.server.url.removeprefix('http://')}/team/model.git"
    target = world.folder / "clone"
    done = git("clone", "-q", url, str(target), cwd=world.folder)
    assert done.returncode == 0, done.stderr
    assert (
        git("fetch", "-q", "--depth", "1", "origin", f"+refs/pipelines/{job.pipeline.id}:x", cwd=target).returncode == 0
    )
    push = git("push", "-q", "origin", "HEAD:refs/heads/x", cwd=target)
    assert "You are not allowed to upload code." in push.stderr
    world.server.create_project("team/other", world.folder / "source").members[world.developer.id] = Role.DEVELOPER
    foreign = git("ls-remote", url.replace("model", "other"), cwd=world.folder)
    assert "The requested URL returned error: 403" in foreign.stderr
    world.server.finish_job(job, "success")
    dead = git("ls-remote", url, cwd=world.folder)
    assert dead.returncode == 128
    assert "Access denied" in dead.stderr


def test_a_personal_token_pushes_over_http(world: World) -> None:
    token = world.server.create_token(world.developer, "w", ["write_repository"]).value
    url = f"http://any:{token}@{world.server.url.removeprefix('http://')}/team/model.git"
    source = world.folder / "source"
    (source / "big.bin").write_bytes(os.urandom(3_000_000))
    git("add", ".", cwd=source)
    git("commit", "-q", "-m", "Second", cwd=source)
    done = git("push", "-q", url, "HEAD:refs/heads/feature", cwd=source)
    assert done.returncode == 0, done.stderr
    found = world.api.repository_compare("main", "feature")
    assert ([c["title"] for c in found["commits"]], [d["new_path"] for d in found["diffs"]]) == (
        ["Second"],
        ["big.bin"],
    )


@pytest.mark.parametrize("way", ["ssh", "http"])
def test_large_files_come_with_a_deploy_key_and_with_a_job_token(world: World, way: str) -> None:
    if shutil.which("git-lfs") is None:
        pytest.skip("git-lfs: not on PATH")
    source = world.folder / "source"
    git("lfs", "install", "--local", cwd=source)
    git("lfs", "track", "*.bin", cwd=source)
    (source / "data.bin").write_bytes(os.urandom(500_000))
    git("add", ".", cwd=source)
    git("commit", "-q", "-m", "Large", cwd=source)
    project = world.server.create_project("team/large", source)
    project.members |= world.project.members
    key, public = key_pair(world.folder)
    env, target = ssh_env(world, key), world.folder / "clone"
    # The filter of git-lfs is configured for this clone alone, as the machine's own configuration is left out.
    lfs = ["-c", "filter.lfs.process=git-lfs filter-process", "-c", "filter.lfs.required=true"]
    if way == "ssh":
        client = gitlab.Gitlab(world.server.url, private_token=world.server.admin_token)
        client.projects.get("team/large").keys.create({"title": "k", "key": public})
        url = ssh_url(world, "team/large.git")
    else:
        pipeline = world.server.create_pipeline(project, "main", world.sha, "push", world.developer)
        job = world.server.create_job(pipeline, "train", "train")
        world.server.start_job(job)
        token = world.server.issue_job_token(job)
        url = f"http://gitlab-ci-token:{token}@{world.server.url.removeprefix('http://')}/team/large.git"
    done = git(*lfs, "clone", "-q", url, str(target), cwd=world.folder, env=env)
    assert done.returncode == 0, done.stderr
    assert (target / "data.bin").read_bytes() == (source / "data.bin").read_bytes()
    (target / "more.bin").write_bytes(os.urandom(1000))
    git(*lfs, "-c", "filter.lfs.clean=git-lfs clean -- %f", "add", ".", cwd=target)
    git("commit", "-q", "-m", "More", cwd=target)
    refused = git("lfs", "push", "origin", "HEAD", cwd=target, env=env)
    assert refused.returncode != 0
    writer = world.server.create_token(world.developer, "w", ["write_repository"]).value
    url = f"http://any:{writer}@{world.server.url.removeprefix('http://')}/team/large.git"
    pushed = git("-c", f"lfs.url={url}/info/lfs", "lfs", "push", url, "HEAD", cwd=target)
    assert pushed.returncode == 0, pushed.stderr
    kept = [file.read_bytes() for file in (world.server.folder / "lfs" / str(project.id)).iterdir()]
    assert (target / "more.bin").read_bytes() in kept


def test_a_read_only_key_s_ticket_for_large_files_is_for_reading_one_project(world: World) -> None:
    key, public = key_pair(world.folder)
    world.server.create_project("team/other")
    made = world.api.keys.create({"title": "k", "key": public})
    ssh = [*shlex.split(ssh_env(world, key)["GIT_SSH_COMMAND"]), "-p", str(world.server.ssh_port), "git@127.0.0.1"]
    refused = run(*ssh, "git-lfs-authenticate team/model.git upload")
    assert (refused.returncode, "does not have write access" in refused.stderr) == (1, True)
    ticket = json.loads(run(*ssh, "git-lfs-authenticate team/model.git download").stdout)
    objects = ticket["href"].replace("info/lfs", "gitlab-lfs/objects")
    oid = hashlib.sha256(b"x").hexdigest()

    def status(method: str, url: str) -> int:
        return requests.request(method, url, headers=ticket["header"], data=b"x", timeout=10).status_code

    assert status("PUT", f"{objects}/{oid}/1") == 403
    assert status("GET", f"{objects.replace('model', 'other')}/{oid}") == 403
    assert status("GET", f"{objects}/{oid}") == 404
    made.delete()
    assert status("GET", f"{objects}/{oid}") == 401


# Terraform's state


MODULE = """
terraform {
  backend "http" {}
}
variable "sleep" {
  default = "0"
}
resource "terraform_data" "it" {
  input = "kept"
  provisioner "local-exec" {
    command = "sleep ${var.sleep}"
  }
}
"""


class Terraform:
    def __init__(self, world: World, user: str, password: str, name: str = "glgpu-1") -> None:
        program = shutil.which("terraform")
        if program is None:
            pytest.skip("terraform: not on PATH")
        self.program = program
        self.folder = world.folder / f"module-{len(list(world.folder.iterdir()))}"
        self.folder.mkdir()
        (self.folder / "main.tf").write_text(MODULE)
        address = world.url(f"/terraform/state/{name}")
        self.env = {
            "TF_HTTP_ADDRESS": address, "TF_HTTP_LOCK_ADDRESS": f"{address}/lock", "TF_HTTP_LOCK_METHOD": "POST",
            "TF_HTTP_UNLOCK_ADDRESS": f"{address}/lock", "TF_HTTP_UNLOCK_METHOD": "DELETE", "TF_HTTP_RETRY_MAX": "0",
            "TF_HTTP_USERNAME": user, "TF_HTTP_PASSWORD": password, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1",
        }  # fmt: skip

    def __call__(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return run(self.program, *argv, cwd=self.folder, env=self.env)

    def apply(self, *more: str) -> subprocess.CompletedProcess[str]:
        return self("apply", "-auto-approve", "-no-color", "-input=false", *more)


def states(world: World) -> Any:
    query = '{project(fullPath:"team/model"){terraformStates{nodes{name lockedAt}}}}'
    headers = {"PRIVATE-TOKEN": world.server.admin_token}
    answer = requests.post(f"{world.server.url}/api/graphql", json={"query": query}, headers=headers, timeout=10).json()
    return answer["data"]["project"]["terraformStates"]["nodes"]


def test_terraform_keeps_its_state_with_a_job_token(world: World) -> None:
    terraform = Terraform(world, "gitlab-ci-token", world.server.issue_job_token(world.running_job()))
    assert terraform("init", "-input=false").returncode == 0
    done = terraform.apply()
    assert done.returncode == 0, done.stderr
    assert states(world) == [{"name": "glgpu-1", "lockedAt": None}]
    assert b'"kept"' in world.project.states["glgpu-1"].versions[-1][1]
    assert terraform("plan", "-detailed-exitcode", "-input=false").returncode == 0
    assert terraform("destroy", "-auto-approve", "-input=false").returncode == 0
    gitlab.Gitlab(world.server.url, private_token=world.token).http_delete(
        f"/projects/{world.project.id}/terraform/state/glgpu-1"
    )
    assert states(world) == []


def test_a_held_lock_is_told_with_its_holder_and_blocks_deletion_without_a_word(world: World) -> None:
    terraform = Terraform(world, "maja", world.token)
    assert terraform("init", "-input=false").returncode == 0
    holder = {"ID": "11111111-2222-3333-4444-555555555555", "Operation": "OperationTypeApply", "Info": "", "Path": ""}
    headers = {"PRIVATE-TOKEN": world.server.admin_token}
    lock = holder | {"Who": "dead@job", "Version": "1.11.4", "Created": "2026-01-01T00:00:00Z"}
    assert requests.post(world.url("/terraform/state/glgpu-1/lock"), json=lock, headers=headers, timeout=10).ok
    done = terraform.apply()
    assert done.returncode == 1
    assert "Error acquiring the state lock" in done.stderr
    assert re.search(r"HTTP remote state already\s+locked:\s+ID=11111111-2222-3333-4444-555555555555", done.stderr)
    answer = requests.post(world.url("/terraform/state/glgpu-1/lock"), json=lock, headers=headers, timeout=10)
    assert (answer.status_code, answer.json()["Who"]) == (409, "root")
    assert requests.delete(world.url("/terraform/state/glgpu-1"), headers=headers, timeout=10).status_code == 200
    assert [state["lockedAt"] is not None for state in states(world)] == [True]
    wrong = lock | {"ID": "x"}
    assert (
        requests.delete(world.url("/terraform/state/glgpu-1/lock"), json=wrong, headers=headers, timeout=10).status_code
        == 409
    )
    assert terraform("force-unlock", "-force", lock["ID"]).returncode == 0
    assert terraform.apply().returncode == 0


def test_a_killed_terraform_leaves_its_lock_and_the_state_wants_the_lock_s_id(world: World) -> None:
    terraform = Terraform(world, "maja", world.token)
    assert terraform("init", "-input=false").returncode == 0
    argv = [terraform.program, "apply", "-auto-approve", "-input=false", "-var=sleep=60"]
    process = subprocess.Popen(
        argv,
        cwd=terraform.folder,
        env={**os.environ, **terraform.env},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (states(world) and states(world)[0]["lockedAt"]):
        assert process.poll() is None
    os.killpg(process.pid, 9)
    process.wait()
    assert states(world)[0]["lockedAt"]
    held = world.project.states["glgpu-1"].lock_id
    assert f"ID={held}" in " ".join(terraform.apply().stderr.split())
    headers = {"PRIVATE-TOKEN": world.token}
    url = world.url("/terraform/state/glgpu-1")
    assert requests.get(url, headers=headers, timeout=10).status_code in (200, 204)
    assert requests.post(f"{url}?ID=other", json={"serial": 99}, headers=headers, timeout=10).status_code == 500
    assert requests.post(f"{url}?ID={held}", json={"serial": 99}, headers=headers, timeout=10).status_code == 200
    assert requests.post(f"{url}?ID={held}", json={"serial": 99}, headers=headers, timeout=10).status_code == 422
    assert requests.post(f"{url}?ID={held}", headers=headers, timeout=10).status_code == 204


def test_a_developer_reads_states_and_writes_none_and_a_dead_job_does_neither(world: World) -> None:
    job = world.running_job(world.developer)
    token = world.server.issue_job_token(job)
    url, auth = world.url("/terraform/state/glgpu-1"), ("gitlab-ci-token", token)
    assert requests.get(url, auth=auth, timeout=10).status_code == 404
    assert requests.post(url, json={"serial": 1}, auth=auth, timeout=10).status_code == 403
    assert requests.delete(url, auth=auth, timeout=10).status_code == 403
    terraform = Terraform(world, *auth)
    assert terraform("init", "-input=false").returncode == 0
    assert "invalid auth" in terraform.apply().stderr
    assert requests.get(url, headers={"JOB-TOKEN": token}, timeout=10).status_code == 401
    world.server.cancel_job(job)
    assert requests.get(url, auth=auth, timeout=10).status_code == 401
    assert "requires auth" in terraform.apply().stderr


# Jobs, pipelines, environments, schedules


def test_a_cancel_turns_running_jobs_canceling_and_the_rest_canceled(world: World) -> None:
    train = world.running_job()
    destroy = world.server.create_job(train.pipeline, "destroy", "destroy", when="always")
    stop = world.server.create_job(train.pipeline, "stop", "destroy", when="manual", allow_failure=True)
    words: list[tuple[str, str]] = []
    world.server.job_listeners.append(lambda word, job: words.append((word, job.name)))
    world.api.pipelines.get(train.pipeline.id).cancel()
    assert (train.status, destroy.status, stop.status) == ("canceling", "canceled", "manual")
    assert words == [("canceling", "train"), ("canceled", "destroy")]
    assert world.api.pipelines.get(train.pipeline.id).status == "canceling"
    world.server.finish_job(train, "failed")
    assert world.api.jobs.get(train.id).status == "canceled"
    assert world.api.pipelines.get(train.pipeline.id).status == "canceled"


def test_a_retry_makes_a_new_job_and_wakes_only_what_was_skipped(world: World) -> None:
    train = world.running_job()
    after = world.server.create_job(train.pipeline, "after", "later")
    destroy = world.server.create_job(train.pipeline, "destroy", "later", when="always")
    world.server.finish_job(train, "failed", failure_reason="script_failure", exit_code=23)
    world.server.skip_job(after)
    world.server.start_job(destroy)
    world.server.finish_job(destroy, "success")
    again = world.api.jobs.get(train.id).retry()
    assert (again["name"], again["status"]) == ("train", "pending")
    assert (after.status, destroy.status) == ("created", "success")
    pipeline = world.api.pipelines.get(train.pipeline.id)
    assert again["id"] in [job.id for job in pipeline.jobs.list(get_all=True)]
    assert train.id not in [job.id for job in pipeline.jobs.list(get_all=True)]
    assert train.id in [job.id for job in pipeline.jobs.list(get_all=True, include_retried=True)]
    with pytest.raises(gitlab.GitlabJobRetryError):
        world.api.jobs.get(train.id).retry()


def test_artifacts_and_log_come_back_as_they_went_in(world: World) -> None:
    job = world.running_job()
    archive = world.folder / "a.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("outputs/run.json", "{}")
    world.server.save_artifacts(job, archive)
    job.trace = b"line\n"
    found = world.api.jobs.get(job.id)
    assert found.artifacts() == archive.read_bytes()
    assert found.artifact("outputs/run.json") == b"{}"
    assert found.trace() == b"line\n"
    client = gitlab.Gitlab(world.server.url, job_token=world.server.issue_job_token(job))
    mine = client.projects.get(world.project.id, lazy=True).jobs.get(job.id, lazy=True)
    assert mine.artifacts() == archive.read_bytes()


def deployed(world: World, when: str) -> tuple[Job, Job]:
    train = world.running_job(environment="gpu/main", on_stop="stop", auto_stop_in=3600)
    stop = world.server.create_job(
        train.pipeline, "stop", "destroy", when=when, allow_failure=True, environment="gpu/main", action="stop"
    )
    world.server.finish_job(train, "failed")
    return train, stop


def test_an_environment_s_manual_stop_job_is_played(world: World) -> None:
    _, stop = deployed(world, "manual")
    environment = world.api.environments.list(name="gpu/main", get_all=True)[0]
    environment.stop()
    assert stop.status == "pending"
    assert world.api.environments.get(environment.id).state == "stopping"
    world.server.start_job(stop)
    world.server.finish_job(stop, "success")
    assert world.api.environments.get(environment.id).state == "stopped"


def test_a_stop_job_that_is_not_manual_is_never_found(world: World) -> None:
    _, stop = deployed(world, "always")
    world.server.start_job(stop)
    world.server.finish_job(stop, "failed")
    environment = world.api.environments.list(name="gpu/main", get_all=True)[0]
    environment.stop()
    assert not stop.retried
    assert world.api.environments.get(environment.id).state == "stopped"


def test_a_schedule_is_made_played_and_removed(world: World) -> None:
    schedule = world.api.pipelineschedules.create({"ref": "main", "description": "cleanup", "cron": "0 * * * *"})
    schedule.variables.create({"key": "GLGPU_TASK", "value": "cleanup"})
    number = schedule.id
    schedule.play()
    assert world.started == [("main", "schedule")]
    pipeline = world.api.pipelines.list(source="schedule", get_all=True)[0]
    assert [(v.key, v.value) for v in world.api.pipelines.get(pipeline.id).variables.list(get_all=True)] == [
        ("GLGPU_TASK", "cleanup")
    ]
    world.api.pipelineschedules.delete(number)
    assert world.api.pipelineschedules.list(get_all=True) == []
    with pytest.raises(gitlab.GitlabCreateError):
        world.api.pipelineschedules.create({"ref": "main", "description": "bad", "cron": "hourly"})


def test_a_schedule_of_a_protected_branch_is_for_whoever_may_push_there(world: World) -> None:
    schedules = world.as_user(world.developer).pipelineschedules
    with pytest.raises(gitlab.GitlabCreateError, match="not authorized to create the pipeline schedule") as caught:
        schedules.create({"ref": "main", "description": "d", "cron": "0 * * * *"})
    assert caught.value.response_code == 400
    world.server.push(world.project, world.folder / "source", "HEAD", "free")
    mine = schedules.create({"ref": "free", "description": "d", "cron": "0 * * * *"})
    # A Maintainer may delete it or take it over, but not change it.
    with pytest.raises(gitlab.GitlabUpdateError):
        world.api.pipelineschedules.update(mine.id, {"active": False})
    schedules.update(mine.id, {"active": False})
    world.api.pipelineschedules.delete(mine.id)


def test_a_pipeline_is_started_through_the_api(world: World) -> None:
    made = world.api.pipelines.create({"ref": "main", "variables": [{"key": "A", "value": "1"}]})
    assert (world.started, made.sha) == ([("main", "api")], world.sha)
    with pytest.raises(gitlab.GitlabCreateError, match="Reference not found"):
        world.api.pipelines.create({"ref": "nowhere"})


MIXED = """\
build: {script: [make], tags: [big, fast]}
deploy:
  extends: [.quiet]
  stage: deploy
  needs: [build]
  environment: {name: live}
  script: [make deploy]
  rules:
    - if: $CI_PIPELINE_SOURCE == "schedule"
.quiet: {variables: {Q: "1"}}
nightly: {script: [make all], only: [schedules], when: manual}
"""


def test_lint_says_what_the_player_says(world: World) -> None:
    assert world.api.ci_lint.create({"content": "train: {stage: test, script: [a]}"}).valid
    found = world.api.ci_lint.create({"content": "train: {stage: nowhere, script: [a]}"})
    stages = ".pre, build, test, deploy, .post"
    assert (found.valid, found.errors) == (
        False, [f"train job: chosen stage does not exist; available stages are {stages}"]
    )  # fmt: skip
    assert yaml.safe_load(found.merged_yaml) == {"train": {"stage": "nowhere", "script": ["a"]}}
    broken = world.api.ci_lint.create({"content": "a: ["})
    assert (broken.valid, broken.merged_yaml, broken.includes) == (False, None, None)


def test_lint_lists_every_job_whatever_its_rules(world: World) -> None:
    assert not hasattr(world.api.ci_lint.create({"content": MIXED}), "jobs")
    found = world.api.ci_lint.create({"content": MIXED, "include_jobs": True})
    assert {job["name"]: (job["when"], job["only"], job["needs"]) for job in found.jobs} == {
        "build": ("on_success", {"refs": ["branches", "tags"]}, None),
        "nightly": ("manual", {"refs": ["schedules"]}, None),
        "deploy": ("on_success", None, [{"name": "build", "artifacts": True, "optional": False}]),
    }
    assert found.jobs[0]["tag_list"] == ["big", "fast"]
    merged = yaml.safe_load(found.merged_yaml)
    assert merged["deploy"]["variables"] == {"Q": "1"}
    assert merged["deploy"]["rules"] == [{"if": '$CI_PIPELINE_SOURCE == "schedule"'}]
    broken = world.api.ci_lint.create({"content": "a: {stage: x}", "include_jobs": True})
    assert (broken.valid, broken.jobs) == (False, [])


def test_lint_simulates_a_push_and_nothing_else(world: World) -> None:
    found = world.api.ci_lint.create({"content": MIXED, "include_jobs": True, "dry_run": True, "ref": "main"})
    assert [(job["name"], "only" in job) for job in found.jobs] == [("build", False)]
    nothing = world.api.ci_lint.create({"content": "a: {script: [b], rules: [{if: $NO}]}", "dry_run": True})
    assert "would have been empty" in nothing.errors[0]
    as_developer = world.as_user(world.developer).ci_lint
    assert as_developer.create({"content": MIXED}).valid
    refused = as_developer.create({"content": MIXED, "dry_run": True})
    assert "do not have sufficient permission to run a pipeline on 'main'" in refused.errors[0]


def test_lint_warns_of_rules_that_end_in_a_bare_when(world: World) -> None:
    found = world.api.ci_lint.create({"content": "a: {script: [b], rules: [{when: always}]}"})
    assert found.valid
    assert "may allow multiple pipelines to run" in found.warnings[0]


def test_lint_reads_what_its_caller_may_read(world: World) -> None:
    home = world.server.create_project("group/home", world.folder / "source")
    content = "include: [{project: group/home, file: ci.yml}]\na: {script: [b]}\n"
    refused = world.api.ci_lint.create({"content": content})
    assert "not found or access denied" in refused.errors[0]
    home.visibility = "internal"
    assert "does not exist!" in world.api.ci_lint.create({"content": content}).errors[0]


def test_lint_of_what_is_not_there(world: World) -> None:
    assert world.api.ci_lint.get().errors == ["Please provide content of .gitlab-ci.yml"]
    for wrong in ({"content_ref": "nowhere"}, {"content_ref": "main", "sha": "main"}):
        with pytest.raises(gitlab.GitlabGetError):
            world.api.ci_lint.get(**wrong)


# The rest


def test_packages_are_uploaded_listed_downloaded_and_deleted(world: World) -> None:
    weights = world.folder / "weights.bin"
    weights.write_bytes(os.urandom(2_000_000))
    client = gitlab.Gitlab(world.server.url, job_token=world.server.issue_job_token(world.running_job()))
    mine = client.projects.get(world.project.id, lazy=True)
    mine.generic_packages.upload("weights", "1.0", "run-1/weights.bin", path=str(weights))
    assert world.api.generic_packages.download("weights", "1.0", "run-1/weights.bin") == weights.read_bytes()
    package = world.api.packages.list(get_all=True)[0]
    assert (package.name, package.package_type) == ("weights", "generic")
    assert [file.size for file in package.package_files.list(get_all=True)] == [2_000_000]
    with pytest.raises(gitlab.GitlabUploadError if hasattr(gitlab, "GitlabUploadError") else gitlab.GitlabError):
        mine.generic_packages.upload("we ights", "1.0", "w", path=str(weights))
    package.delete()
    assert world.api.packages.list(get_all=True) == []
    assert list((world.server.folder / "packages").iterdir()) == []


def test_deploy_tokens_variables_members_and_repository_answer_python_gitlab(world: World) -> None:
    token = world.api.deploytokens.create(
        {"name": "d", "scopes": ["read_repository"], "expires_at": None, "username": ""}
    )
    assert token.token.startswith("gldt-")
    assert [t.name for t in world.api.deploytokens.list(get_all=True)] == ["d"]
    token.delete()
    world.api.variables.create({"key": "A", "value": "12345678", "masked": True, "protected": True})
    world.api.variables.create({"key": "A", "value": "x", "environment_scope": "gpu/*"})
    with pytest.raises(gitlab.GitlabCreateError, match="already been taken"):
        world.api.variables.create({"key": "A", "value": "y"})
    assert world.api.variables.get("A", filter={"environment_scope": "gpu/*"}).value == "x"
    assert [m.access_level for m in world.api.members_all.list(query="maja", get_all=True)] == [40]
    assert world.api.files.get("train.py", ref="main").decode() == b"print('training')\n"
    assert {entry["path"]: entry["mode"] for entry in world.api.repository_tree(get_all=True)}["run.sh"] == "100755"
    assert world.api.commits.get(world.sha).message == "First\n\nbody\n"
    world.api.commits.get(world.sha).comments.create({"note": "trained"})
    assert [c.note for c in world.api.commits.get(world.sha).comments.list(get_all=True)] == ["trained"]
    assert [b.protected for b in world.api.branches.list(get_all=True)] == [True]
    assert [b.name for b in world.api.protectedbranches.list(get_all=True)] == ["main"]


def test_every_request_is_logged_without_its_token(world: World) -> None:
    world.api.variables.create({"key": "A", "value": "v"})
    line = next(line for line in world.server.calls.lines() if line["verb"] == "POST")
    assert (line["to"], line["status"], json.loads(line["body"])["key"]) == ("gitlab", 201, "A")
    assert line["target"] == f"/api/v4/projects/{world.project.id}/variables"
    assert world.token not in world.server.calls.path.read_text()


# Faults


@pytest.mark.parametrize(
    ("action", "argument", "status"),
    [("unauthorized", "", 401), ("forbidden", "", 403), ("not-found", "", 404), ("unavailable", "503", 503)],
)
def test_a_fault_answers_at_its_point_and_nowhere_else(world: World, action: str, argument: str, status: int) -> None:
    world.server.faults.rules.append(Rule("gitlab.deploy_keys.list", action, argument=argument))
    headers = {"PRIVATE-TOKEN": world.token}
    assert requests.get(world.url("/deploy_keys"), headers=headers, timeout=10).status_code == status
    assert requests.get(world.url("/variables"), headers=headers, timeout=10).status_code == 200


def test_a_gitlab_that_is_down_closes_and_a_silent_one_says_nothing(world: World) -> None:
    world.server.faults.rules.append(Rule("gitlab.request", "down", nth=1))
    world.server.faults.rules.append(Rule("gitlab.request", "silence", nth=2))
    url, headers = world.url("/variables"), {"PRIVATE-TOKEN": world.token}
    with pytest.raises(requests.ConnectionError):
        requests.get(url, headers=headers, timeout=10)
    with pytest.raises(requests.ReadTimeout):
        requests.get(url, headers=headers, timeout=0.5)
    assert requests.get(url, headers=headers, timeout=10).status_code == 200


def test_a_stopped_gitlab_refuses_connections_and_comes_back_at_the_same_place(world: World) -> None:
    url, headers = world.url("/variables"), {"PRIVATE-TOKEN": world.token}
    world.loop.run(world.server.stop())
    with pytest.raises(requests.ConnectionError, match="refused"):
        requests.get(url, headers=headers, timeout=10)
    world.loop.run(world.server.start())
    assert requests.get(url, headers=headers, timeout=10).status_code == 200


@pytest.mark.parametrize("action", ["unauthorized", "unavailable", "down"])
def test_a_fault_at_git_connect_stops_git(world: World, action: str) -> None:
    key, public = key_pair(world.folder)
    world.api.keys.create({"title": "k", "key": public})
    env = ssh_env(world, key)
    world.server.faults.rules.append(Rule("git.connect", action, nth=1))
    assert git("ls-remote", ssh_url(world), cwd=world.folder, env=env).returncode == 128
    assert git("ls-remote", ssh_url(world), cwd=world.folder, env=env).returncode == 0


def test_a_deploy_token_opens_the_package_registry_of_its_project_and_nothing_else(world: World) -> None:
    def put(secret: str, project: int, *, header: bool = False) -> int:
        url = f"{world.server.url}/api/v4/projects/{project}/packages/generic/weights/1.0/part"
        login: dict[str, Any] = {"headers": {"Deploy-Token": secret}} if header else {"auth": ("whoever", secret)}
        return requests.put(url, data=iter([b"ab", b"c"]), timeout=30, **login).status_code

    until = "2999-01-01T00:00:00Z"
    body = {"name": "d", "scopes": ["write_package_registry"], "expires_at": until, "username": ""}
    token = world.api.deploytokens.create(body)
    number = world.project.id
    assert [put(token.token, number), put(token.token, number, header=True)] == [201, 201]
    assert world.api.generic_packages.download("weights", "1.0", "part") == b"abc"
    listed = f"{world.server.url}/api/v4/projects/{number}/packages"
    assert requests.get(listed, auth=("whoever", token.token), timeout=30).status_code == 401
    other = world.server.create_project("team/other")
    assert put(token.token, other.id) == 404
    reader = world.api.deploytokens.create({**body, "scopes": ["read_package_registry"]})
    assert put(reader.token, number) == 403
    package = world.api.packages.list(get_all=True)[0]
    for file in package.package_files.list(get_all=True):
        package.package_files.delete(file.id)
    assert [one.id for one in world.api.packages.list(get_all=True)] == [package.id]
    token.delete()
    assert put(token.token, number) == 401
