"""What a pipeline is made for, and what GitLab tells its jobs about that."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from glgpu.rehearsal import gitlab_model
from glgpu.rehearsal.ci_yaml import Lint, Pipeline, PipelineError, compile_pipeline, lint_pipeline
from glgpu.rehearsal.gitlab_state import GitLabState

GITLAB_VERSION = "17.5.0"


@dataclass(frozen=True)
class Server:
    """Where a GitLab is.

    Attributes:
        url: Address of GitLab, without a slash at the end.
        ssh_host: Host name of git over SSH.
        ssh_port: Port of git over SSH.
        registry: ``host[:port]`` of the container registry, or None where it is switched off.
    """

    url: str
    ssh_host: str = "127.0.0.1"
    ssh_port: int = 22
    registry: str | None = None

    def repository_url(self, project: gitlab_model.Project, token: str = "") -> str:
        """The HTTP address of a repository, with a job token in it if given."""
        parts = urlsplit(self.url)
        login = f"gitlab-ci-token:{token}@" if token else ""
        return urlunsplit((parts.scheme, login + parts.netloc, f"{parts.path}/{project.path}.git", "", ""))


@dataclass(frozen=True)
class Event:
    """What a pipeline is made for.

    Attributes:
        ref: Branch or tag.
        sha: Commit.
        source: ``push``, ``schedule``, ``web``, ...
        tag: Whether the ref is a tag.
        before_sha: Where the branch was before the push.
        variables: Variables of the schedule, or typed in by the person.
    """

    ref: str
    sha: str
    source: str = "push"
    tag: bool = False
    before_sha: str = "0" * 40
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Occasion:
    """One pipeline's place in the world: the GitLab, the project, the person, the event."""

    state: GitLabState
    server: Server
    project: gitlab_model.Project
    user: gitlab_model.User
    event: Event

    def show(self, *arguments: str) -> str | None:
        """What git says of the project's repository, or None where it refuses."""
        done = self.state.git(self.project, *arguments)
        return done.text if done.code == 0 else None

    def settings_variables(self, environment: str | None) -> list[gitlab_model.Variable]:
        """What the project's settings give a job of this environment."""
        return self.state.variables_for(self.project, self.event.ref, environment)

    def compile(self, root: str | None = None) -> Pipeline:
        """Make the pipeline of ``.gitlab-ci.yml`` at the event's commit, or of another text in its place.

        Raises:
            PipelineError: GitLab makes none.
        """
        sha = self.event.sha
        root = root if root is not None else self.show("show", f"{sha}:.gitlab-ci.yml")
        if root is None:
            raise PipelineError("Please provide content of .gitlab-ci.yml")
        return compile_pipeline(root, **self._sources())

    def lint(self, root: str, *, simulated: bool) -> Lint:
        """What GitLab's linter says of a text that would stand in the place of ``.gitlab-ci.yml``."""
        return lint_pipeline(root, simulated=simulated, **self._sources())

    def _sources(self) -> dict[str, Any]:
        sha = self.event.sha
        return {
            "read_local": lambda path: self.show("show", f"{sha}:{path}"),
            "read_project": self._read_project,
            "variables": {v.key: v.value for v in self.settings_variables(None)} | dict(self.event.variables),
            "predefined": predefined_variables(self),
            "files": lambda: (self.show("ls-tree", "-r", "-z", "--name-only", sha) or "").split("\0")[:-1],
        }

    def _read_project(self, path: str, ref: str, file: str) -> str | None:
        """A file of another project, where the pipeline's user may read code there.

        Reporter and above in a private project; anybody in one that is internal or public.
        """
        project = self.state.find_project(path)
        if project is None or (
            project.visibility == "private" and project.role(self.user) < gitlab_model.Role.REPORTER
        ):
            raise PipelineError(
                f"Project `{path.lower()}` not found or access denied! Make sure any includes in the pipeline "
                "configuration are correctly defined."
            )
        if self.state.git(project, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").code:
            raise PipelineError(f"Project `{path.lower()}` reference `{ref}` does not exist!")
        done = self.state.git(project, "show", f"{ref}:{file}")
        return done.text if done.code == 0 else None


def predefined_variables(occasion: Occasion) -> dict[str, str]:
    """GitLab's variables that are known before there is a pipeline: what rules and includes see (GitLab 17.5)."""
    server, project, user, event = occasion.server, occasion.project, occasion.user, occasion.event
    address = urlsplit(server.url)
    port = address.port or {"https": 443}.get(address.scheme, 80)
    namespace, _, name = project.path.rpartition("/")
    commit = occasion.show("log", "-1", "--format=%an <%ae>%n%cI%n%B", event.sha) or "\n\n"
    author, timestamp, message = commit.split("\n", 2)
    message = message.removesuffix("\n")
    title, _, description = message.partition("\n")
    values = {
        "CI": "true",
        "GITLAB_CI": "true",
        "CI_SERVER": "yes",
        "CI_SERVER_NAME": "GitLab",
        "CI_SERVER_VERSION": GITLAB_VERSION,
        "CI_SERVER_VERSION_MAJOR": "17",
        "CI_SERVER_VERSION_MINOR": "5",
        "CI_SERVER_VERSION_PATCH": "0",
        "CI_SERVER_URL": server.url,
        "CI_SERVER_HOST": address.hostname or "",
        "CI_SERVER_FQDN": address.netloc,
        "CI_SERVER_PORT": str(port),
        "CI_SERVER_PROTOCOL": address.scheme,
        "CI_SERVER_SHELL_SSH_HOST": server.ssh_host,
        "CI_SERVER_SHELL_SSH_PORT": str(server.ssh_port),
        "CI_API_V4_URL": f"{server.url}/api/v4",
        "CI_API_GRAPHQL_URL": f"{server.url}/api/graphql",
        "CI_PROJECT_ID": str(project.id),
        "CI_PROJECT_NAME": name,
        "CI_PROJECT_TITLE": name,
        "CI_PROJECT_PATH": project.path,
        "CI_PROJECT_PATH_SLUG": slug(project.path),
        "CI_PROJECT_NAMESPACE": namespace,
        "CI_PROJECT_ROOT_NAMESPACE": namespace.partition("/")[0],
        "CI_PROJECT_URL": f"{server.url}/{project.path}",
        "CI_PROJECT_VISIBILITY": project.visibility,
        "CI_DEFAULT_BRANCH": project.default_branch,
        "CI_CONFIG_PATH": ".gitlab-ci.yml",
        "CI_PIPELINE_SOURCE": event.source,
        "CI_COMMIT_SHA": event.sha,
        "CI_COMMIT_SHORT_SHA": event.sha[:8],
        "CI_COMMIT_BEFORE_SHA": event.before_sha,
        "CI_COMMIT_REF_NAME": event.ref,
        "CI_COMMIT_REF_SLUG": slug(event.ref),
        "CI_COMMIT_REF_PROTECTED": "true" if project.protects(event.ref) else "false",
        "CI_COMMIT_MESSAGE": message,
        "CI_COMMIT_TITLE": title,
        "CI_COMMIT_DESCRIPTION": description.strip("\n"),
        "CI_COMMIT_AUTHOR": author,
        "CI_COMMIT_TIMESTAMP": timestamp,
        "CI_COMMIT_TAG" if event.tag else "CI_COMMIT_BRANCH": event.ref,
        "GITLAB_USER_ID": str(user.id),
        "GITLAB_USER_LOGIN": user.username,
        "GITLAB_USER_NAME": user.name,
        "GITLAB_USER_EMAIL": f"{user.username}@example.com",
    }
    if server.registry:
        values["CI_REGISTRY"] = server.registry
        values["CI_REGISTRY_IMAGE"] = f"{server.registry}/{project.path.lower()}"
        values["CI_REGISTRY_USER"] = "gitlab-ci-token"
    return values


def id_token(occasion: Occasion, job: gitlab_model.Job, audiences: tuple[str, ...], seconds: int) -> str:
    """An identity token as GitLab makes it (https://docs.gitlab.com/ci/secrets/id_token_authentication/).

    Args:
        occasion: The pipeline's place.
        job: Whose token it is.
        audiences: One is written as text, several as a list, as GitLab does.
        seconds: How long it lives.
    """
    now, event, project = int(occasion.state.clock.now()), occasion.event, occasion.project
    kind, path = ("tag", "tags") if event.tag else ("branch", "heads")
    root = urlsplit(occasion.server.url).netloc
    claims = {
        "iss": occasion.server.url,
        "sub": f"project_path:{project.path}:ref_type:{kind}:ref:{event.ref}",
        "aud": audiences[0] if len(audiences) == 1 else list(audiences),
        "iat": now,
        "nbf": now - 5,
        "exp": now + seconds,
        "jti": str(uuid.uuid4()),
        "namespace_path": project.path.rpartition("/")[0],
        "project_id": str(project.id),
        "project_path": project.path,
        "project_visibility": project.visibility,
        "user_id": str(job.user.id),
        "user_login": job.user.username,
        "user_email": f"{job.user.username}@example.com",
        "pipeline_id": str(job.pipeline.id),
        "pipeline_source": event.source,
        "job_id": str(job.id),
        "ref": event.ref,
        "ref_type": kind,
        "ref_path": f"refs/{path}/{event.ref}",
        "ref_protected": "true" if project.protects(event.ref) else "false",
        "runner_id": 1,
        "runner_environment": "self-hosted",
        "sha": event.sha,
        "ci_config_ref_uri": f"{root}/{project.path}//.gitlab-ci.yml@refs/{path}/{event.ref}",
        "ci_config_sha": event.sha,
    }
    if job.environment:
        claims |= {"environment": job.environment, "environment_protected": "false", "deployment_tier": "other"}
    return occasion.state.id_tokens.sign(claims)


def iso(seconds: float) -> str:
    """Unix time as GitLab writes it into variables."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def slug(text: str) -> str:
    """GitLab's ``..._SLUG``: lower case, 63 characters at most, everything but letters and digits a dash."""
    return re.sub(r"[^a-z0-9]", "-", text.lower())[:63].strip("-")


def environment_slug(name: str) -> str:
    """GitLab's CI_ENVIRONMENT_SLUG: at most 24 characters, with a hash where the name had to change."""
    plain = re.sub(r"-+", "-", re.sub(r"[^a-z0-9]", "-", name.lower()))
    if not plain[:1].isalpha():
        plain = f"env-{plain}"
    if plain == name and len(plain) <= 24:
        return plain
    return f"{plain[:17].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
