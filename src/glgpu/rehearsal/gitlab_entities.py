"""How GitLab shows its things in API answers; the fields are those of ``gitlab_api.json``."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

from glgpu.rehearsal.gitlab_http import Call, Host
from glgpu.rehearsal.gitlab_model import (
    DeployKey,
    Deployment,
    DeployToken,
    Environment,
    Job,
    Package,
    PackageFile,
    Pipeline,
    Project,
    Role,
    Schedule,
    Token,
    User,
    Variable,
    timestamp,
)

Shown = dict[str, Any]


def user_basic(host: Host, user: User) -> Shown:
    """A user, in short."""
    return {
        "id": user.id, "username": user.username, "name": user.name, "state": user.state, "locked": False,
        "web_url": f"{host.url}/{user.username}",
    }  # fmt: skip


def project(host: Host, it: Project, user: User) -> Shown:
    """A project, as this user sees it."""
    namespace, _, name = it.path.rpartition("/")
    role = it.role(user)
    return {
        "id": it.id, "description": None, "name": name, "path": name, "path_with_namespace": it.path,
        "name_with_namespace": f"{namespace.replace('/', ' / ')} / {name}", "created_at": timestamp(it.created_at),
        "default_branch": it.default_branch, "web_url": f"{host.url}/{it.path}", "visibility": it.visibility,
        "http_url_to_repo": f"{host.url}/{it.path}.git",
        "ssh_url_to_repo": f"ssh://git@{host.ssh_host}:{host.ssh_port}/{it.path}.git",
        "build_timeout": 3600, "ci_config_path": "",
        "permissions": {
            "project_access": {"access_level": int(role), "notification_level": 3} if role else None,
            "group_access": None,
        },
    }  # fmt: skip


def member(host: Host, it: Project, user: User) -> Shown:
    """A member of a project."""
    return user_basic(host, user) | {
        "access_level": int(it.members[user.id]), "created_at": timestamp(it.created_at), "expires_at": None,
        "membership_state": "active",
    }  # fmt: skip


def protected_branch(number: int, pattern: str) -> Shown:
    """A protected branch; Maintainers push and merge."""
    levels = [{"id": number, "access_level": int(Role.MAINTAINER), "access_level_description": "Maintainers"}]
    return {
        "id": number, "name": pattern, "push_access_levels": levels, "merge_access_levels": levels,
        "allow_force_push": False,
    }  # fmt: skip


def fingerprints(blob: str) -> tuple[str, str]:
    """MD5 and SHA-256 fingerprints of a public key's base64 part, in OpenSSH's forms."""
    data = base64.b64decode(blob)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    sha256 = base64.b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    return ":".join(md5[i : i + 2] for i in range(0, 32, 2)), f"SHA256:{sha256}"


def deploy_key(it: DeployKey, project_id: int) -> Shown:
    """A deploy key, as enabled in one project."""
    md5, sha256 = fingerprints(it.blob)
    return {
        "id": it.id, "title": it.title, "created_at": timestamp(it.created_at), "expires_at": timestamp(it.expires_at),
        "last_used_at": timestamp(it.last_used_at), "key": it.key, "usage_type": "auth_and_signing",
        "fingerprint": md5, "fingerprint_sha256": sha256, "can_push": it.projects[project_id],
    }  # fmt: skip


def deploy_token(it: DeployToken, now: float) -> Shown:
    """A deploy token without its secret."""
    return {
        "id": it.id, "name": it.name, "username": it.username, "expires_at": timestamp(it.expires_at),
        "scopes": list(it.scopes), "revoked": it.revoked, "expired": it.expired(now),
    }  # fmt: skip


def personal_token(it: Token, now: float) -> Shown:
    """An access token without its secret."""
    return {
        "id": it.id, "name": it.name, "revoked": it.revoked, "created_at": timestamp(it.created_at),
        "description": it.description, "scopes": list(it.scopes), "user_id": it.user.id,
        "last_used_at": timestamp(it.last_used_at), "active": not it.revoked and not it.expired(now),
        "expires_at": it.expires_at.isoformat() if it.expires_at else None,
    }  # fmt: skip


def project_token(it: Token, now: float) -> Shown:
    """A project access token without its secret."""
    return personal_token(it, now) | {
        "access_level": int(it.access_level), "resource_type": "project", "resource_id": it.project_id,
    }  # fmt: skip


def variable(it: Variable) -> Shown:
    """A CI/CD variable; the value of a hidden one is never shown."""
    return {
        "key": it.key, "value": None if it.hidden else it.value, "variable_type": it.variable_type,
        "protected": it.protected, "masked": it.masked, "hidden": it.hidden, "raw": it.raw,
        "environment_scope": it.environment_scope, "description": it.description,
    }  # fmt: skip


def pipeline_variable(it: Variable) -> Shown:
    """A variable of a pipeline or schedule, which has fewer properties."""
    return {"key": it.key, "value": it.value, "variable_type": it.variable_type, "raw": it.raw}


def pipeline_basic(host: Host, it: Pipeline) -> Shown:
    """A pipeline, in short."""
    return {
        "id": it.id, "iid": it.iid, "project_id": it.project.id, "sha": it.sha, "ref": it.ref, "status": it.status,
        "source": it.source, "created_at": timestamp(it.created_at), "updated_at": timestamp(it.updated_at),
        "web_url": f"{host.url}/{it.project.path}/-/pipelines/{it.id}", "name": it.name,
    }  # fmt: skip


def pipeline(host: Host, it: Pipeline) -> Shown:
    """A pipeline."""
    starts = [job.started_at for job in it.jobs if job.started_at is not None]
    ends = [job.finished_at for job in it.jobs if job.finished_at is not None]
    over = it.status in ("success", "failed", "canceled", "skipped")
    return pipeline_basic(host, it) | {
        "before_sha": "0" * 40, "tag": it.tag, "yaml_errors": None, "user": user_basic(host, it.user),
        "started_at": timestamp(min(starts, default=None)),
        "finished_at": timestamp(max(ends, default=None)) if over else None,
        "committed_at": None, "coverage": None, "archived": False,
        "duration": int(max(ends) - min(starts)) if over and starts and ends else None,
        "queued_duration": int(min(starts) - it.created_at) if starts else None,
    }  # fmt: skip


def job(host: Host, it: Job) -> Shown:
    """A job."""
    ended = it.finished_at
    artifacts = []
    if it.artifacts is not None:
        size = it.artifacts.stat().st_size
        artifacts.append({"file_type": "archive", "size": size, "filename": "artifacts.zip", "file_format": "zip"})
    if it.trace:
        artifacts.append({"file_type": "trace", "size": len(it.trace), "filename": "job.log", "file_format": "raw"})
    shown: Shown = {
        "id": it.id, "status": it.status, "stage": it.stage, "name": it.name, "ref": it.pipeline.ref,
        "tag": it.pipeline.tag, "coverage": None, "allow_failure": it.allow_failure,
        "created_at": timestamp(it.created_at), "started_at": timestamp(it.started_at), "finished_at": timestamp(ended),
        "erased_at": None, "user": user_basic(host, it.user), "pipeline": pipeline_basic(host, it.pipeline),
        "duration": (ended or host.state.clock.now()) - it.started_at if it.started_at else None,
        "queued_duration": it.started_at - it.created_at if it.started_at else None,
        "web_url": f"{host.url}/{it.pipeline.project.path}/-/jobs/{it.id}",
        "artifacts": artifacts, "artifacts_expire_at": None, "archived": False, "tag_list": list(it.tags),
    }  # fmt: skip
    if it.failure_reason is not None:
        shown["failure_reason"] = it.failure_reason
    if it.artifacts is not None:
        shown["artifacts_file"] = {"filename": "artifacts.zip", "size": artifacts[0]["size"]}
    return shown


def schedule(host: Host, it: Schedule) -> Shown:
    """A pipeline schedule, as listed."""
    return {
        "id": it.id, "description": it.description, "ref": f"refs/heads/{it.ref}",
        "cron": it.cron, "cron_timezone": it.cron_timezone, "next_run_at": None, "active": it.active,
        "created_at": timestamp(it.created_at), "updated_at": timestamp(it.updated_at),
        "owner": user_basic(host, it.owner),
    }  # fmt: skip


def schedule_details(host: Host, it: Schedule) -> Shown:
    """A pipeline schedule by itself."""
    last = it.last_pipeline
    return schedule(host, it) | {
        "last_pipeline": pipeline_basic(host, last) if last else None,
        "variables": [pipeline_variable(each) for each in it.variables],
    }


def environment_basic(it: Environment) -> Shown:
    """An environment, in short."""
    return {
        "id": it.id, "name": it.name, "slug": it.slug, "external_url": it.external_url,
        "created_at": timestamp(it.created_at), "updated_at": timestamp(it.updated_at),
    }  # fmt: skip


def deployment(host: Host, it: Deployment) -> Shown:
    """A deployment."""
    return {
        "id": it.id, "iid": it.iid, "ref": it.job.pipeline.ref, "sha": it.job.pipeline.sha,
        "created_at": timestamp(it.created_at), "updated_at": timestamp(it.updated_at),
        "user": user_basic(host, it.job.user), "environment": environment_basic(it.environment),
        "deployable": job(host, it.job), "status": it.status,
    }  # fmt: skip


def environment(host: Host, it: Environment, last: Deployment | None) -> Shown:
    """An environment."""
    return environment_basic(it) | {
        "tier": "other", "state": it.state, "auto_stop_at": timestamp(it.auto_stop_at), "description": None,
        "auto_stop_setting": "always", "last_deployment": deployment(host, last) if last else None,
    }  # fmt: skip


def package(it: Package, home: Project) -> Shown:
    """A package."""
    return {
        "id": it.id, "name": it.name, "version": it.version, "package_type": "generic", "status": "default",
        "_links": {"web_path": f"/{home.path}/-/packages/{it.id}"}, "created_at": timestamp(it.created_at),
        "last_downloaded_at": None, "creator_id": it.creator.id if it.creator else None, "project_id": home.id,
        "project_path": home.path,
    }  # fmt: skip


def package_file(it: PackageFile, package_id: int) -> Shown:
    """One file of a package."""
    return {
        "id": it.id, "package_id": package_id, "created_at": timestamp(it.created_at), "file_name": it.name,
        "size": it.size, "file_sha256": it.sha256,
    }  # fmt: skip


def with_host(show: Callable[[Host, Any], Shown], call: Call) -> Callable[[Any], Shown]:
    """The same function without its first argument, for pages of a list."""
    return lambda it: show(call.host, it)
