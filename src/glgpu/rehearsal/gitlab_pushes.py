"""What GitLab does with a push: its checks before, as git's own hooks (git_hooks/), and the pipeline after it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from glgpu.rehearsal.gitlab_model import DeployKey, Project, Role, User
from glgpu.rehearsal.gitlab_state import GitLabState
from glgpu.resources import resource_text

NOWHERE = "0" * 40
PIPELINE_FILE = ".gitlab-ci.yml"
HOOKS = ("pre-receive", "post-receive")


class Pushes:
    """The pushes to a GitLab. Pipelines that they begin are without jobs: the player of jobs makes its own.

    Args:
        state: What it holds.
    """

    def __init__(self, state: GitLabState) -> None:
        self.state = state
        self._numbers = itertools.count(1)
        self._hooks = state.folder / "hooks"
        self._hooks.mkdir(exist_ok=True)
        for name in HOOKS:
            (self._hooks / name).write_bytes(resource_text(f"rehearsal/git_hooks/{name}"))
            # A wheel does not promise it.
            (self._hooks / name).chmod(0o755)

    def environment(self, project: Project, actor: User | DeployKey) -> dict[str, str]:
        """What git needs to take a push: the hooks, and whose it is.

        A deploy key pushes to a protected branch only where it is named there (lib/gitlab/deploy_key_access.rb), which
        it never is here; people by their role.
        """
        allowed = isinstance(actor, User) and project.role(actor) >= Role.MAINTAINER
        told = self.state.folder / f"pushed-{next(self._numbers)}"
        return {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "core.hooksPath",
            "GIT_CONFIG_VALUE_0": str(self._hooks),
            "DEFAULT_BRANCH": project.default_branch,
            "PROTECTED_BRANCHES": "\n".join(project.protected_branches),
            "MAY_PUSH_PROTECTED": "yes" if allowed else "",
            "PUSHED": str(told),
        }

    def ended(self, project: Project, actor: User | DeployKey, environment: Mapping[str, str]) -> None:
        """Begin the pipelines of what was pushed: a key's are those of whoever made it (app/models/deploy_key.rb).

        With the push option `ci.skip` there is one too, which is skipped (lib/gitlab/ci/pipeline/chain/skip.rb).
        """
        told = Path(environment["PUSHED"])
        if not told.exists():
            return
        lines = told.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        told.unlink()
        skips = "option ci.skip" in lines
        user = actor if isinstance(actor, User) else actor.creator
        for branch, commit in _branches(lines):
            has_one = self.state.git(project, "cat-file", "-e", f"{commit}:{PIPELINE_FILE}").code == 0
            if has_one and project.may_run_on(branch, user):
                self.state.create_pipeline(project, branch, commit, "push", user).skipped = skips


def _branches(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        word, *rest = line.split(" ", 3)
        if word == "ref" and rest[2].startswith("refs/heads/") and rest[1] != NOWHERE:
            yield rest[2].removeprefix("refs/heads/"), rest[1]
