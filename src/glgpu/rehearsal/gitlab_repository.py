"""API of the stand-in GitLab: what can be read from a repository. Everything is asked of git itself."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime
from typing import Any

from glgpu.rehearsal import gitlab_entities as show
from glgpu.rehearsal.gitlab_http import Answer, ApiError, Call, not_found, serves
from glgpu.rehearsal.gitlab_model import Note, Role, timestamp

_FORMAT = "%H%x00%P%x00%an%x00%ae%x00%aI%x00%cn%x00%ce%x00%cI%x00%B%x01"


def _commits(call: Call, *arguments: str) -> list[dict[str, Any]]:
    done = call.state.git(call.project, "log", f"--format={_FORMAT}", *arguments)
    if done.code:
        raise not_found("Commit")
    found = []
    for text in done.text.split("\x01"):
        if "\x00" not in text:
            continue
        sha, parents, author, author_email, authored, committer, email, committed, message = text.lstrip("\n").split(
            "\x00"
        )
        when = timestamp(datetime.fromisoformat(committed).timestamp())
        found.append(
            {
                "id": sha, "short_id": sha[:8], "created_at": when, "parent_ids": parents.split(),
                "title": message.split("\n", 1)[0], "message": message, "author_name": author,
                "author_email": author_email, "authored_date": timestamp(datetime.fromisoformat(authored).timestamp()),
                "committer_name": committer, "committer_email": email, "committed_date": when,
                "web_url": f"{call.host.url}/{call.project.path}/-/commit/{sha}",
            }
        )  # fmt: skip
    return found


def _commit(call: Call, revision: str) -> dict[str, Any]:
    """The commit that a branch, tag or hash names; nothing that git would take for an option."""
    done = call.state.git(
        call.project, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"
    )
    if done.code:
        raise not_found("Commit")
    return _commits(call, "-1", done.text.strip())[0]


def _branch(call: Call, name: str) -> dict[str, Any]:
    protected = call.project.protects(name)
    return {
        "name": name, "commit": _commit(call, f"refs/heads/{name}"), "merged": False,
        "protected": protected, "developers_can_push": False, "developers_can_merge": False,
        "can_push": call.project.role(call.user) >= (Role.MAINTAINER if protected else Role.DEVELOPER),
        "default": name == call.project.default_branch,
        "web_url": f"{call.host.url}/{call.project.path}/-/tree/{name}",
    }  # fmt: skip


def _branches(call: Call) -> list[str]:
    return call.state.git(call.project, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads").text.split()


@serves("GET /projects/{id}/repository/branches", "branches.list", Role.REPORTER, job_token="header", open_get=True)
async def branches(call: Call) -> Answer:
    """Branches, by part of their names."""
    wanted = call.params.get("search") or ""
    return call.page([name for name in _branches(call) if wanted in name], lambda name: _branch(call, name))


@serves(
    "GET /projects/{id}/repository/branches/{branch}", "branches.get", Role.REPORTER, job_token="header", open_get=True
)
async def branch(call: Call) -> Answer:
    """One branch."""
    if call.path["branch"] not in _branches(call):
        raise not_found("Branch")
    return Answer(200, _branch(call, call.path["branch"]))


@serves("GET /projects/{id}/repository/commits", "commits.list", Role.REPORTER, job_token="header", open_get=True)
async def commits(call: Call) -> Answer:
    """Commits reachable from a branch, newest first."""
    start = _commit(call, call.params.get("ref_name") or call.project.default_branch)["id"]
    path = call.params.get("path")
    return call.page(_commits(call, start, *(["--", path] if path else [])), lambda it: it)


@serves("GET /projects/{id}/repository/commits/{sha}", "commits.get", Role.REPORTER, job_token="header", open_get=True)
async def commit(call: Call) -> Answer:
    """One commit."""
    return Answer(200, _commit(call, call.path["sha"]))


def _note(call: Call, note: Note) -> dict[str, Any]:
    return {
        "note": note.text, "path": None, "line": None, "line_type": None,
        "author": show.user_basic(call.host, note.author), "created_at": timestamp(note.created_at),
    }  # fmt: skip


@serves("GET /projects/{id}/repository/commits/{sha}/comments", "notes.list", Role.REPORTER, open_get=True)
async def comments(call: Call) -> Answer:
    """Comments on a commit."""
    sha = _commit(call, call.path["sha"])["id"]
    return call.page([note for note in call.project.notes if note.sha == sha], lambda note: _note(call, note))


@serves("POST /projects/{id}/repository/commits/{sha}/comments", "notes.create", Role.REPORTER)
async def create_comment(call: Call) -> Answer:
    """Comment on a commit."""
    note = Note(_commit(call, call.path["sha"])["id"], call.params["note"], call.user, call.state.clock.now())
    call.project.notes.append(note)
    return Answer(201, _note(call, note))


@serves("GET /projects/{id}/repository/tree", "tree.list", Role.REPORTER, open_get=True)
async def tree(call: Call) -> Answer:
    """Files and folders."""
    sha = _commit(call, call.params.get("ref") or call.project.default_branch)["id"]
    path = (call.params.get("path") or "").strip("/")
    options = ["-r", "-t"] if call.params.get("recursive") else []
    done = call.state.git(call.project, "ls-tree", "-z", "--full-tree", *options, f"{sha}:{path}")
    if done.code:
        raise not_found("invalid revision or path")
    found = []
    for entry in filter(None, done.text.split("\0")):
        facts, name = entry.split("\t", 1)
        mode, kind, blob = facts.split()
        full = f"{path}/{name}" if path else name
        found.append({"id": blob, "name": name.rpartition("/")[2], "type": kind, "path": full, "mode": mode})
    return call.page(found, lambda it: it)


def _blob(call: Call) -> tuple[str, str, str, bytes]:
    """Hash of the commit, mode and hash of the blob, content."""
    sha = _commit(call, call.params.get("ref") or call.project.default_branch)["id"]
    path = call.path["file_path"]
    listed = call.state.git(call.project, "ls-tree", "-z", "--full-tree", sha, "--", path).text.split("\0")[0]
    if not listed or listed.split()[1] != "blob":
        raise not_found("File")
    mode, _, blob = listed.split("\t")[0].split()
    return sha, mode, blob, call.state.git(call.project, "cat-file", "blob", blob).stdout


@serves(
    "GET /projects/{id}/repository/files/{file_path}", "files.get", Role.REPORTER, job_token="header", open_get=True
)
async def file(call: Call) -> Answer:
    """A file with its properties."""
    sha, mode, blob, content = _blob(call)
    path = call.path["file_path"]
    return Answer(
        200,
        {
            "file_name": path.rpartition("/")[2], "file_path": path, "size": len(content), "encoding": "base64",
            "content_sha256": hashlib.sha256(content).hexdigest(), "ref": call.params["ref"], "blob_id": blob,
            "commit_id": sha, "last_commit_id": _commits(call, "-1", sha, "--", path)[0]["id"],
            "execute_filemode": mode == "100755", "content": base64.b64encode(content).decode(),
        },
    )  # fmt: skip


@serves(
    "GET /projects/{id}/repository/files/{file_path}/raw", "files.raw", Role.REPORTER, job_token="header", open_get=True
)
async def raw_file(call: Call) -> Answer:
    """A file's bytes."""
    return Answer(200, _blob(call)[3], "text/plain")


@serves("GET /projects/{id}/repository/compare", "compare.get", Role.REPORTER, open_get=True)
async def compare(call: Call) -> Answer:
    """What one revision has that the other lacks: its commits, oldest first, and which files they change."""
    if call.params.get("from_project_id") not in (None, call.project.id):
        raise ApiError.message(404, f"404 Target project id:{call.params['from_project_id']} is not a fork of project")
    old, new = (_commit(call, call.params[name])["id"] for name in ("from", "to"))
    base = (
        old if call.params.get("straight") else call.state.git(call.project, "merge-base", old, new).text.strip() or old
    )
    found = _commits(call, "--reverse", f"{old}..{new}")
    raw = call.state.git(call.project, "diff", "--raw", "-z", "--no-renames", base, new).text.split("\0")
    diffs = []
    for facts, path in zip(raw[::2], raw[1::2], strict=False):
        a_mode, b_mode, _, _, kind = facts.lstrip(":").split()
        patch = call.state.git(call.project, "diff", "--no-renames", base, new, "--", path).text
        diffs.append(
            {
                "diff": patch[patch.find("@@") :] if "@@" in patch else "", "collapsed": False, "too_large": False,
                "new_path": path, "old_path": path, "a_mode": a_mode, "b_mode": b_mode, "new_file": kind == "A",
                "renamed_file": False, "deleted_file": kind == "D", "generated_file": False,
            }
        )  # fmt: skip
    body = {
        "commit": found[-1] if found else None, "commits": found, "diffs": diffs, "compare_timeout": False,
        "compare_same_ref": old == new, "web_url": f"{call.host.url}/{call.project.path}/-/compare/{old}...{new}",
    }  # fmt: skip
    return Answer(200, body)
