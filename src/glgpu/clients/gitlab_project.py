"""The team's GitLab project through python-gitlab: deploy keys, Terraform states, jobs, their artifacts, packages."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, get_args
from urllib.parse import quote, urljoin

import gitlab
import gitlab.exceptions
import requests

from glgpu.elsewhere import Part
from glgpu.errors import ErrorClass, Failure, unwrapped
from glgpu.interfaces import (
    Admission,
    Backend,
    ForgeEnvironment,
    ForgePipeline,
    ForgeProject,
    ForgeSchedule,
    ForgeToken,
    ForgeVariable,
    Made,
)
from glgpu.job import Job
from glgpu.run_names import AnyName, Kind, RunName, read_name, without_cell

T = TypeVar("T")
CALL_SECONDS = 30.0
STORING_SECONDS = 300.0
"""How long GitLab may take to answer a package file that it has in whole: it copies it within its object storage."""
CHUNK = 1 << 20
KEPT_AS = "glgpu-{}"
"""Name of the package that holds outputs of a kind of run; its version is the run."""
SIZE_UNITS = {"Bytes": 0, "KB": 1, "MB": 2, "GB": 3, "TB": 4, "KiB": 1, "MiB": 2, "GiB": 3, "TiB": 4}
"""Powers of 1024, all of them: Rails' ``number_to_human_size``."""
LIMIT_ROW = re.compile(
    r"<td>\s*(?:Maximum job artifact size|Artifacts maximum size)\s*</td>\s*<td>\s*([0-9.]+) (\w+)\s*</td>"
)
"""Of the page that shows an instance's limits (app/views/help/instance_configuration in gitlabhq/gitlabhq)."""
SOON_SECONDS = 10.0
"""How long GitLab may take to say what only helps to decide better."""
TOKEN_MARGIN_SECONDS = 3600.0
"""How much longer than its VM a deploy token lives: clocks differ."""
PROBE_LOCK = "00000000-0000-4000-8000-676c67707500"
"""Lock id of the question whether a state may be written."""
STATES_QUERY = """\
query($path: ID!, $after: String) {
  project(fullPath: $path) {
    terraformStates(first: 100, after: $after) { nodes { name createdAt } pageInfo { hasNextPage endCursor } }
  }
}
"""
"""Terraform states are listed by GraphQL alone (https://docs.gitlab.com/api/graphql/reference/)."""
WAITING = ("created", "waiting_for_resource", "preparing", "pending", "scheduled")
"""Statuses of a job that has yet to begin (https://docs.gitlab.com/api/jobs/)."""
OVER = ("success", "failed", "canceled", "skipped")
"""Statuses of a pipeline of which no job will run by itself any more."""
ENDED = ("success", "failed", "canceled")
"""Statuses of a job that a person alone lets run again."""
BRINGING_UP = {"provision": (*WAITING, "running"), "train": WAITING}
"""Stage -> statuses in which its job would yet bring up a VM. A train job that runs has one, and what it holds is saved
by whoever ends that."""
STARTING = {"start notebook": (*WAITING, "running")}
"""The same of a notebook."""
STAGES = ("start notebook", "stop notebook", "provision", "authorize", "train", "destroy", "stop", "cleanup")


class GitlabProject:
    """The project that a job belongs to.

    Args:
        job: Address and tokens.
    """

    where = "GitLab"
    store: Literal["packages", "bucket"] = "packages"
    bucket = ""
    kept_in = "the project's package registry"

    def __init__(self, job: Job) -> None:
        self._job = job

    @property
    def may_administer(self) -> bool:
        """Whether there is a token that can manage deploy keys and read pipelines."""
        return bool(self._job.gitlab_token and self._job.server_url)

    def add_deploy_key(self, title: str, key: str, expires: float, *, can_push: bool = False) -> None:
        """Register a key under a title, until Unix time ``expires``; it can read, and push only where that is said.

        Deploy keys need Maintainer rights and a token with scope ``api``; a job token is never accepted
        (https://docs.gitlab.com/api/deploy_keys/).
        """
        until = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = {"title": title, "key": key, "can_push": can_push, "expires_at": until}
        self._call("registering the deploy key", lambda: self._administered.keys.create(body))

    def remove_deploy_keys(self, title: str) -> int:
        """Remove every key of that title; how many there were."""
        found = self._call("listing the deploy keys", lambda: self._administered.keys.list(get_all=True))
        mine = [key for key in found if key.title == title]
        for key in mine:
            self._call("removing the deploy key", key.delete, missing_is_none=True)
        return len(mine)

    def add_deploy_token(self, name: str, expires: float) -> tuple[str, str]:
        """Make a deploy token that may write to the package registry: user and secret, which GitLab tells once.

        It takes Maintainer rights (https://docs.gitlab.com/api/deploy_tokens/).
        """
        until = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = {"name": name, "scopes": ["write_package_registry"], "expires_at": until}
        made = self._call("making the deploy token", lambda: self._administered.deploytokens.create(body))
        return str(made.username), str(made.token)

    def remove_deploy_tokens(self, name: str) -> int:
        """Remove every deploy token of that name; how many there were."""
        found = self._call("listing the deploy tokens", lambda: self._administered.deploytokens.list(get_all=True))
        mine = [token for token in found if token.name == name]
        for token in mine:
            self._call("removing the deploy token", token.delete, missing_is_none=True)
        return len(mine)

    def deploy_tokens(self) -> list[Made]:
        """The project's deploy tokens, by name; GitLab does not tell when one was made."""
        found = self._read_all("listing the deploy tokens", f"{self._project_path}/deploy_tokens")
        return [Made(str(one["name"]), "", "") for one in found]

    def job_artifacts(self, job: str) -> Literal["unfinished", "none", "kept"]:
        """Whether a job of the project has ended and GitLab has its artifacts."""
        doing, path = "looking at a job", f"{self._project_path}/jobs/{job}"
        found = self._call(doing, lambda: self._client.http_get(path), missing_is_none=True)
        if found is None:
            return "none"
        if found.get("finished_at") is None:
            return "unfinished"
        return "kept" if found.get("artifacts_file") else "none"

    def state_writable(self, name: str) -> bool:
        """Whether our token may lock and write a Terraform state: asked by locking it and letting go.

        A lock that is held is a dead job's, since the state is this run's alone: it is broken (an unlock without a
        body is GitLab's force-unlock). GitLab wants Maintainer for that, Developer may only read
        (https://docs.gitlab.com/user/infrastructure/iac/terraform_state/).
        """
        answer = self._probe(name)
        if answer is not None:
            self.break_lock(name)
        return answer is not None

    def state_backend(self, name: str) -> Backend:
        """How Terraform finds its state in GitLab and may write it."""
        user, password = self._state_login
        address = f"{self._job.api_url}{self._state_path(name)}"
        variables = {
            "TF_HTTP_ADDRESS": address,
            "TF_HTTP_LOCK_ADDRESS": f"{address}/lock",
            "TF_HTTP_LOCK_METHOD": "POST",
            "TF_HTTP_UNLOCK_ADDRESS": f"{address}/lock",
            "TF_HTTP_UNLOCK_METHOD": "DELETE",
            "TF_HTTP_USERNAME": user,
            "TF_HTTP_PASSWORD": password,
            "TF_HTTP_RETRY_WAIT_MIN": "1",
        }
        if self._job.ca_file:
            variables["TF_HTTP_CLIENT_CA_CERTIFICATE_PEM"] = Path(self._job.ca_file).read_text(encoding="ascii")
        return Backend("http", {}, variables)

    def state(self, name: str) -> Literal["absent", "empty", "held"]:
        """What GitLab holds under a state's name; one that was only ever locked is there, but empty."""
        answer = self._state_request("GET", self._state_path(name))
        if answer.status_code in (200, 409, 423):
            return "held"
        if answer.status_code in (204, 404):
            return "empty" if answer.status_code == 204 else "absent"
        raise self._refused(answer.status_code, answer.text, "looking at Terraform's state")

    def lock_holder(self, name: str) -> str:
        """Who holds a state's lock, in words; empty: nobody, or nobody that we may know of.

        Asked by trying to lock it: GitLab tells the holder in its refusal, and tells a job token in no other way.
        """
        answer = self._probe(name)
        if answer is None:
            return ""
        if answer.status_code in (200, 201):
            self.break_lock(name)  # our own
            return ""
        try:
            holder = answer.json()
            return f"{holder['Who'] or 'somebody'} since {holder['Created']}"
        except (requests.JSONDecodeError, KeyError, TypeError):
            return "somebody"

    def break_lock(self, name: str) -> None:
        """Take a state's lock away from whoever holds it (an unlock without a body is GitLab's force-unlock)."""
        answer = self._state_request("DELETE", f"{self._state_path(name)}/lock")
        if answer.status_code not in (200, 204, 404):
            raise self._refused(answer.status_code, answer.text, "breaking the lock of Terraform's state")

    def delete_state(self, name: str) -> None:
        """Delete a state; not found is success. One that is locked stays, and is a failure.

        GitLab answers 200 whether it has deleted or not: only looking again tells.
        """
        answer = self._state_request("DELETE", self._state_path(name))
        if answer.status_code not in (200, 202, 204, 404):
            raise self._refused(answer.status_code, answer.text, "deleting Terraform's state")
        if answer.status_code != 404 and self.state(name) != "absent":
            raise Failure(
                ErrorClass.STATE_LOCK,
                f"GitLab keeps Terraform's state {name}: it is locked",
                "retry the job: a teardown waits for the lock's holder, then breaks it",
            )

    def job_is_over(self) -> bool:
        """Whether this job itself is over for GitLab, which takes nothing of it any more then.

        A job's token lives as long as its job runs (https://docs.gitlab.com/api/jobs/#get-job-tokens-job).
        """
        doing = "asking GitLab for this job"
        try:
            answer = requests.get(
                f"{self._job.api_url}/job",
                headers={"JOB-TOKEN": self._job.job_token},
                timeout=SOON_SECONDS,
                verify=self._job.ca_file or True,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise self._unreachable(error, doing) from None
        if answer.status_code not in (200, 401):
            raise self._refused(answer.status_code, answer.text, doing)
        return answer.status_code == 401

    def destroy_is_over(self, pipeline: str) -> bool:
        """Whether the pipeline's destroy job has ended, well or not, and will not run again by itself.

        When an earlier job is retried, GitLab runs later ones again that were skipped, and no others
        (`Ci::ResetSkippedJobsService`). False where it cannot be known.
        """
        pipeline = _pipeline_of(pipeline)
        if not (self.may_administer and pipeline.isdigit()):
            return False
        found = self._call("looking at the pipeline's jobs", lambda: self._jobs(pipeline), missing_is_none=True)
        return any(job.name == self._named("destroy") and job.status in ENDED for job in found or [])

    def hold_back(self, ref: str) -> list[str]:
        """Cancel the jobs that would yet bring up a VM, in the newest pipelines of a branch or tag; what was cancelled.

        One that has begun meanwhile is told to end, and ends its VM itself.
        """
        doing, path = "looking for jobs that would bring up a VM", f"{self._project_path}/pipelines"
        newest = self._call(doing, lambda: self._client.http_list(path, {"ref": ref}, get_all=False, per_page=100))
        return [
            job
            for pipeline in newest
            if pipeline["status"] not in OVER
            for job in self._cancel(str(pipeline["id"]), BRINGING_UP, doing)
        ]

    def hold_back_notebook(self, pipeline: str) -> list[str]:
        """Cancel the job of a pipeline that would yet start a notebook; what was cancelled.

        One that has begun is told to end, and ends its VM itself unless that is a notebook already.
        """
        return self._cancel(pipeline, STARTING, "looking for a job that would start a notebook")

    def _cancel(self, pipeline: str, stages: Mapping[str, Sequence[str]], doing: str) -> list[str]:
        """Cancel the jobs of these stages that are in one of these statuses."""
        waits = {without_cell(self._named(stage)): statuses for stage, statuses in stages.items()}
        held = []
        for job in self._call(doing, lambda: self._jobs(pipeline), missing_is_none=True) or []:
            if job.status in waits.get(without_cell(job.name), ()):
                self._call(
                    f"cancelling the job {job.name}",
                    self._administered.jobs.get(job.id, lazy=True).cancel,
                    missing_is_none=True,
                )
                held.append(f"{job.name} of pipeline {pipeline}")
        return held

    def artifact(self, pipeline: str, job: str, path: str) -> str | None:
        """A file from a job's artifacts, or None."""
        pipeline = _pipeline_of(pipeline)
        if not (self.may_administer and pipeline.isdigit()):
            return None
        found = self._call("looking at the pipeline's jobs", lambda: self._jobs(pipeline), missing_is_none=True)
        for candidate in sorted(found or [], key=lambda one: -int(one.id)):
            if candidate.name == self._named(job):
                data = self._call(
                    f"fetching {path} of job {job}",
                    partial(self._administered.jobs.get(candidate.id, lazy=True).artifact, path),
                    missing_is_none=True,
                )
                return bytes(data).decode("utf-8", "replace") if data is not None else None
        return None

    def artifact_jobs(self, run: str, names: Sequence[str]) -> list[str]:
        """Ids of the jobs of a run with artifacts, of these stages and in their order; the latest try of each.

        On a laptop nothing tells which prefix their names have, and nowhere which job of a matrix is the run's: the
        record among their artifacts does.
        """
        pipeline, doing = _pipeline_of(run), "looking at the pipeline's jobs"
        found = self._call(doing, lambda: self._jobs(pipeline), missing_is_none=True) or []
        newest = {job.name: job for job in sorted(found, key=lambda one: int(one.id))}
        with_artifacts = [job for job in newest.values() if job.attributes.get("artifacts_file")]
        return [
            str(job.id)
            for name in names
            for job in with_artifacts
            if without_cell(job.name).endswith(name)
            and ((job.name == self._named(name) and run == pipeline) or self._has_record_of(job.id, run))
        ]

    def _has_record_of(self, job: int, run: str) -> bool:
        artifact = partial(self._administered.jobs.get(job, lazy=True).artifact, "outputs/glgpu/run.json")
        data = self._call("looking at a job's record", artifact, missing_is_none=True)
        try:
            name = read_name(str(json.loads(data or "")["run"]))
        except (ValueError, KeyError, TypeError):
            return False
        return name is not None and name.run == run

    def get_artifacts(self, job: str, begin: int, take: Callable[[bytes], object]) -> None:
        """Get the archive of a job's artifacts from a byte on, piece by piece.

        A job's own token opens those of its project (https://docs.gitlab.com/api/job_artifacts/).
        """
        self._get(f"fetching the artifacts of job {job}", f"{self._project_path}/jobs/{job}/artifacts", begin, take)

    def artifact_limit(self) -> int | None:
        """Bytes that the instance takes as a job's artifacts; None where it does not say.

        A project's or group's own limit may be lower, and is told to administrators alone.
        """
        try:
            row = LIMIT_ROW.search(self._instance_page("reading GitLab's limits"))
        except Failure as failure:
            if failure.klass is not ErrorClass.NETWORK:
                raise
            return None
        if row is None or row[2] not in SIZE_UNITS:
            return None
        return int(float(row[1]) * 1024 ** SIZE_UNITS[row[2]])

    def parts(self, run: AnyName) -> dict[str, Part]:
        """What the package registry keeps of a run, by name; of two with one name the newer, which is what one gets."""
        package = self._package(run)
        if package is None:
            return {}
        path = f"{self._project_path}/packages/{package['id']}/package_files"
        doing = "looking at the package registry"
        found = self._of_packages(doing, lambda: self._member.http_list(path, get_all=True, per_page=100))
        files = sorted(found, key=lambda one: int(one["id"]))
        return {
            str(one["file_name"]): Part(str(one["file_name"]), int(one["size"]), str(one["file_sha256"]))
            for one in files
        }

    def put_part(self, run: AnyName, part: Part, data: BinaryIO) -> None:
        """Keep a part in the package registry.

        python-gitlab's own ``generic_packages.upload`` would do; but where GitLab wants to be asked less often it sends
        again what it has already read, which is nothing.
        """
        doing = f"uploading {part.name}"
        path = f"{self._project_path}/packages/generic/{KEPT_AS.format(run.kind)}/{run.run}/{part.name}"
        kept = self._of_packages(
            doing,
            lambda: self._member.http_put(
                path,
                query_data={"select": "package_file"},
                post_data=data,
                raw=True,
                timeout=STORING_SECONDS,
                obey_rate_limit=False,
            ),
        )
        if (kept.get("size"), kept.get("file_sha256")) != (part.size, part.sha256):
            raise Failure(
                ErrorClass.TRANSIENT,
                f"{doing}: GitLab has stored other bytes than were sent ({kept.get('size')} of {part.size})",
                "retry the job: what is on the VM stays there",
            )

    def get_part(self, run: AnyName, name: str, begin: int, take: Callable[[bytes], object]) -> None:
        """Get a part from the package registry from a byte on, piece by piece."""
        path = f"{self._project_path}/packages/generic/{KEPT_AS.format(run.kind)}/{run.run}/{quote(name, safe='')}"
        self._get(f"fetching {name}", path, begin, take)

    def page(self, run: AnyName) -> str:
        """Address of the run's package."""
        package = self._package(run)
        return urljoin(self._job.server_url, str(package["_links"]["web_path"])) if package else self._job.server_url

    def admit(self, run: AnyName, until: float) -> Admission:
        """Let the run's VM add to the package registry with a deploy token of the run's own.

        One from an earlier try goes: its secret was told once, to that one.
        """
        self.dismiss(run)
        user, secret = self.add_deploy_token(str(run), until + TOKEN_MARGIN_SECONDS)
        login = base64.b64encode(f"{user}:{secret}".encode()).decode()
        return Admission(
            f"{self._job.api_url}{self._project_path}/packages/generic/{KEPT_AS.format(run.kind)}/{run.run}/",
            (f"Authorization: Basic {login}",),
            secret,
            authority=Path(self._job.ca_file).read_bytes() if self._job.ca_file else b"",
        )

    def dismiss(self, run: AnyName) -> int:
        """Remove the deploy token with which the run's VM leaves its outputs."""
        return self.remove_deploy_tokens(str(run))

    def runs_with_parts(self) -> list[RunName]:
        """Every run of which the package registry keeps something."""
        query = {"package_type": "generic", "package_name": KEPT_AS.format("")}
        found = self._read_all("looking at the package registry", f"{self._project_path}/packages", query)
        names = []
        for one in found:
            for kind in get_args(Kind):
                if one["name"] == KEPT_AS.format(kind):
                    with suppress(Failure):  # somebody's own package, whose version is no run
                        names.append(RunName(self._job.server_url, self._job.project_id, str(one["version"]), kind))
        return names

    def drop_parts(self, run: AnyName, names: Collection[str]) -> None:
        """Remove parts of a run; a package that is empty then goes too."""
        package = self._package(run)
        if package is None:
            return
        path = f"{self._project_path}/packages/{package['id']}"
        doing = "removing files from the package registry"
        found = self._read_all(doing, f"{path}/package_files")
        doomed = [one for one in found if one["file_name"] in names]
        for one in doomed:
            gone = partial(self._client.http_delete, f"{path}/package_files/{one['id']}")
            self._call(doing, gone, missing_is_none=True)
        if len(doomed) == len(found):
            self._call("removing a package", lambda: self._client.http_delete(path), missing_is_none=True)

    def _package(self, run: AnyName) -> dict[str, Any] | None:
        query = {
            "package_type": "generic",
            "package_name": KEPT_AS.format(run.kind),
            "package_version": run.run,
        }
        path = f"{self._project_path}/packages"
        found = self._of_packages(
            "looking at the package registry",
            lambda: list(self._member.http_list(path, query, get_all=True, per_page=100)),
        )
        # GitLab takes a part of a name for the name.
        exact = [one for one in found if (one["name"], one["version"]) == (KEPT_AS.format(run.kind), run.run)]
        return exact[0] if exact else None

    def _of_packages(self, doing: str, call: Callable[[], Any]) -> Any:
        """A call to the package registry, whose refusals mean something else than those of the project."""
        try:
            with unwrapped():
                return call()
        except gitlab.exceptions.GitlabError as error:
            raise self._not_kept(error.response_code or 0, str(error), doing) from None
        except requests.RequestException as error:
            raise self._unreachable(error, doing) from None

    def _not_kept(self, status: int, text: str, doing: str) -> Failure:
        """The package registry refuses."""
        if status == 401 and not self._job.gitlab_token:
            return Failure(
                ErrorClass.GITLAB_AUTH,
                f"{doing}: GitLab does not accept the job's token (401); it is dead once the job is cancelled",
                "set GLGPU_GITLAB_TOKEN, or storage.bucket, which needs no token of GitLab's",
                text,
            )
        if status == 403:
            return Failure(
                ErrorClass.GITLAB_AUTH,
                f"{doing}: GitLab refuses (403): who started the job may not add packages, or they are full",
                "let a Developer start it, set GLGPU_GITLAB_TOKEN, or set storage.bucket",
                text,
            )
        if status == 404:
            return Failure(
                ErrorClass.GITLAB,
                f"{doing}: the project {self._project} has no package registry that we may see (404)",
                "turn it on (Settings > General > Visibility, project features), or set storage.bucket",
                text,
            )
        if status == 413 or "too large" in text:
            return Failure(
                ErrorClass.GITLAB,
                f"{doing}: GitLab takes no package file of that size ({status})",
                "have its administrator raise the limit for generic packages, or set storage.bucket",
                text,
            )
        return self._refused(status, text, doing)

    def _get(self, doing: str, path: str, begin: int, take: Callable[[bytes], object]) -> None:
        """Get a file from a byte on, piece by piece.

        GitLab may send us to its object storage, which must not see the token: a library that follows by itself would
        take the token along.
        """
        token = self._job.gitlab_token
        login = {"PRIVATE-TOKEN": token} if token else {"JOB-TOKEN": self._job.job_token}
        address, headers = f"{self._job.api_url}{path}", {"Range": f"bytes={begin}-"} if begin else {}
        try:
            with requests.Session() as session:
                answer = self._open(session, address, {**headers, **login})
                if answer.is_redirect:
                    address = urljoin(address, answer.headers["Location"])
                    answer.close()
                    answer = self._open(session, address, headers)
                with answer:
                    if answer.status_code == 416:
                        return  # there is nothing from that byte on
                    if answer.status_code not in (200, 206):
                        raise self._not_kept(answer.status_code, answer.text[:1000], doing)
                    skip = begin if answer.status_code == 200 else 0
                    for piece in answer.iter_content(CHUNK):
                        if skip < len(piece):
                            take(piece[skip:])
                        skip = max(0, skip - len(piece))
        except requests.RequestException as error:
            raise self._unreachable(error, doing) from None

    def _open(self, session: requests.Session, address: str, headers: Mapping[str, str]) -> requests.Response:
        return session.get(
            address,
            headers={"Accept-Encoding": "identity", **headers},
            stream=True,
            timeout=CALL_SECONDS,
            verify=self._job.ca_file or True,
            allow_redirects=False,
        )

    @cached_property
    def _member(self) -> gitlab.Gitlab:
        """With whichever token there is: the job's has the rights of whoever started it."""
        if self._job.gitlab_token:
            return self._client
        if not self._job.job_token:
            raise Failure(
                ErrorClass.GITLAB_AUTH,
                "neither GLGPU_GITLAB_TOKEN nor CI_JOB_TOKEN is set",
                "set GLGPU_GITLAB_TOKEN to a token that may read the project's packages and artifacts",
            )
        return self._gitlab(job_token=self._job.job_token)

    def host_key_fingerprints(self) -> set[str]:
        """GitLab's own SSH host keys as ``SHA256:...``; empty where it does not publish them.

        An instance shows them on a page that needs no login (https://docs.gitlab.com/user/ssh/, over TLS).
        """
        return set(re.findall(r"SHA256:[A-Za-z0-9+/]{43}", self._instance_page("reading GitLab's host keys")))

    def _instance_page(self, doing: str) -> str:
        """The page on which an instance tells of itself; empty where it shows none."""
        try:
            answer = requests.get(
                f"{self._job.server_url}/help/instance_configuration",
                timeout=CALL_SECONDS,
                verify=self._job.ca_file or True,
            )
        except requests.RequestException as error:
            raise self._unreachable(error, doing) from None
        return answer.text if answer.ok else ""

    def sees_project(self, project_id: int) -> bool:
        """Whether our token may look at a project."""
        return self._seen("looking at a GitLab project", f"/projects/{project_id}") is not None

    def pipeline_status(self, project_id: int, pipeline: int) -> str | None:
        """Status of a pipeline; None where GitLab knows none, or does not tell us."""
        found = self._seen("looking at a pipeline", f"/projects/{project_id}/pipelines/{pipeline}")
        return None if found is None else str(found["status"])

    def pipeline_jobs(self, project_id: int, pipeline: int) -> dict[str, str]:
        """Status of each job of a pipeline, by name; empty where GitLab does not tell us."""
        path = f"/projects/{project_id}/pipelines/{pipeline}/jobs"
        found = self._call(
            "looking at the pipeline's jobs",
            lambda: self._client.http_list(path, get_all=True, per_page=100),
            none_on=(403, 404),
        )
        return {str(one["name"]): str(one["status"]) for one in found or []}

    def deploy_keys(self) -> list[Made]:
        """The project's deploy keys, by title."""
        found = self._read_all("listing the deploy keys", f"{self._project_path}/deploy_keys")
        return [Made(str(one["title"]), "", str(one.get("created_at") or "")) for one in found]

    def all_states(self) -> list[Made]:
        """The project's Terraform states."""
        doing = "listing the Terraform states"
        path = str(self._read(doing, self._project_path)["path_with_namespace"])
        found, after = list[Made](), None
        while True:
            body = {"query": STATES_QUERY, "variables": {"path": path, "after": after}}
            answer: dict[str, Any] = self._call(
                doing, partial(self._client.http_post, f"{self._job.server_url}/api/graphql", post_data=body)
            )
            project = (answer.get("data") or {}).get("project")
            if project is None:
                raise Failure(
                    ErrorClass.GITLAB,
                    f"{doing}: GitLab answers {str(answer.get('errors'))[:200]}",
                    "check that GLGPU_GITLAB_TOKEN belongs to this project",
                )
            states = project["terraformStates"]
            found += [Made(str(one["name"]), "", str(one["createdAt"])) for one in states["nodes"]]
            if not states["pageInfo"]["hasNextPage"]:
                return found
            after = states["pageInfo"]["endCursor"]

    def environments(self, search: str) -> list[ForgeEnvironment]:
        """The project's environments with this in their names that have not been stopped."""
        doing, path = "listing the environments", f"{self._project_path}/environments"
        listed = self._read_all(doing, path, {"search": search, "states": "available"})
        return [_environment(self._read(doing, f"{path}/{one['id']}")) for one in listed]

    def stop_environment(self, environment: int) -> None:
        """Mark an environment as stopped, without running its job for that; not found is success."""
        path = f"{self._project_path}/environments/{environment}/stop"
        self._call(
            "stopping an environment",
            lambda: self._client.http_post(path, post_data={"force": True}),
            missing_is_none=True,
        )

    def server_time(self) -> float:
        """GitLab's own clock in Unix time, in whole seconds; needs no token."""
        # Whatever it answers without a token, it says what time it is (RFC 9110, section 6.6.1).
        answer = self._version_without_token("asking GitLab for the time")
        try:
            return parsedate_to_datetime(answer.headers["Date"]).timestamp()
        except (KeyError, ValueError):
            raise Failure(
                ErrorClass.GITLAB,
                f"{self._job.server_url} answers {answer.status_code} and does not say what time it is",
                "check that CI_SERVER_URL is GitLab's own address",
            ) from None

    def _version_without_token(self, doing: str) -> requests.Response:
        try:
            return requests.get(
                f"{self._job.api_url}/version",
                timeout=SOON_SECONDS,
                verify=self._job.ca_file or True,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise self._unreachable(error, doing) from None

    def version(self) -> str:
        """GitLab's version."""
        return str(self._read("asking for GitLab's version", "/version")["version"])

    def token(self) -> ForgeToken:
        """The token itself."""
        found = self._read("looking at the token", "/personal_access_tokens/self")
        return ForgeToken(found["name"], tuple(found["scopes"]), _day(found.get("expires_at")))

    def project(self) -> ForgeProject:
        """The project, and the token's role in it."""
        found = self._read("looking at the GitLab project", self._project_path)
        granted = [one for one in (found.get("permissions") or {}).values() if one]
        return ForgeProject(
            str(found.get("default_branch") or ""), max((int(one["access_level"]) for one in granted), default=0)
        )

    def number(self) -> int:
        """The project's id."""
        return int(self._read("looking at the GitLab project", self._project_path)["id"])

    def variables(self) -> list[ForgeVariable]:
        """The project's own CI variables, without those of its groups."""
        found = self._read_all("listing the CI variables", f"{self._project_path}/variables")
        return [ForgeVariable(one["key"], one["protected"], one["masked"]) for one in found]

    def protected_branches(self) -> list[str]:
        """Patterns of the protected branches."""
        found = self._read_all("listing the protected branches", f"{self._project_path}/protected_branches")
        return [str(one["name"]) for one in found]

    def schedules(self) -> list[ForgeSchedule]:
        """The project's pipeline schedules; what they run with is only in each by itself."""
        doing, path = "listing the pipeline schedules", f"{self._project_path}/pipeline_schedules"
        return [_schedule(self._read(doing, f"{path}/{one['id']}")) for one in self._read_all(doing, path)]

    def pipeline(self, ref: str) -> ForgePipeline:
        """What GitLab makes of the .gitlab-ci.yml on a branch or tag; empty: on the default branch."""
        query = {"content_ref": ref} if ref else {}
        return _pipeline(self._read("having .gitlab-ci.yml judged", f"{self._project_path}/ci/lint", query))

    def judge(self, text: str) -> ForgePipeline:
        """What GitLab would make of a text as .gitlab-ci.yml, with the rights of the token's user."""
        path = f"{self._project_path}/ci/lint"
        return _pipeline(
            self._call(
                "having .gitlab-ci.yml judged", lambda: self._client.http_post(path, post_data={"content": text})
            )
        )

    def is_gitlab(self) -> bool:
        """Whether a GitLab answers there; asked without the token, which is for nobody else.

        Without one, GitLab's API refuses to tell its version, in JSON (https://docs.gitlab.com/api/version/).
        """
        answer = self._version_without_token("looking for GitLab")
        return answer.status_code in (200, 401) and "json" in answer.headers.get("Content-Type", "")

    def add_schedule(self, description: str, ref: str, cron: str) -> int:
        """Make a schedule that does not run yet; its number.

        Developers may make one for a branch to which they may push (https://docs.gitlab.com/api/pipeline_schedules/).
        """
        body = {"description": description, "ref": ref, "cron": cron, "active": False}
        made = self._call("making the pipeline schedule", lambda: self._administered.pipelineschedules.create(body))
        return int(made.id)

    def finish_schedule(self, number: int, variables: Mapping[str, str]) -> None:
        """Give a schedule these variables, and let it run from now on."""
        schedule = self._administered.pipelineschedules.get(number, lazy=True)
        for key, value in variables.items():
            body = {"key": key, "value": value}
            self._call("giving the pipeline schedule its variable", partial(schedule.variables.create, body))
        change = partial(self._administered.pipelineschedules.update, number, {"active": True})
        self._call("activating the pipeline schedule", change)

    @property
    def _project(self) -> int | str:
        """What stands for the project in the API: its number, or its path where only that is known."""
        return self._job.project_id or self._job.project_path

    @property
    def _project_path(self) -> str:
        return f"/projects/{quote(str(self._project), safe='')}"

    def _read(self, doing: str, path: str, query: dict[str, str] | None = None) -> Any:
        """One JSON object, without the classes that python-gitlab makes of it."""
        return self._call(doing, lambda: self._client.http_get(path, query_data=query))

    def _read_all(self, doing: str, path: str, query: dict[str, str] | None = None) -> list[dict[str, Any]]:
        return list(
            self._call(doing, lambda: self._client.http_list(path, query_data=query, get_all=True, per_page=100))
        )

    def _seen(self, doing: str, path: str) -> Any | None:
        """One JSON object, or None where GitLab says that there is none, or none for us."""
        return self._call(doing, lambda: self._client.http_get(path), none_on=(403, 404))

    @property
    def _administered(self) -> Any:
        return self._client.projects.get(self._project, lazy=True)

    @cached_property
    def _client(self) -> gitlab.Gitlab:
        if not self._job.gitlab_token:
            raise Failure(
                ErrorClass.GITLAB_AUTH,
                "GLGPU_GITLAB_TOKEN is not set: a job token may not manage deploy keys or read pipelines",
                "set GLGPU_GITLAB_TOKEN to a project access token (Maintainer, scope api), or `code: job`",
            )
        return self._gitlab(private_token=self._job.gitlab_token)

    def _gitlab(self, *, private_token: str | None = None, job_token: str | None = None) -> gitlab.Gitlab:
        return gitlab.Gitlab(
            self._job.server_url,
            private_token=private_token,
            job_token=job_token,
            timeout=CALL_SECONDS,
            ssl_verify=self._job.ca_file or True,
            # Redirects would carry the token elsewhere; python-gitlab retries what GitLab calls transient.
            retry_transient_errors=False,
        )

    def _named(self, stage: str) -> str:
        """The name of a stage's job: what our own job's name has before and behind its stage, every other's has too."""
        own = self._job.variables.get("CI_JOB_NAME", "")
        name = without_cell(own)
        prefix = next((name.removesuffix(one) for one in STAGES if name.endswith(one)), "")
        return prefix + stage + own.removeprefix(name)

    def _jobs(self, pipeline: str) -> list[Any]:
        jobs = self._administered.pipelines.get(int(pipeline), lazy=True).jobs
        return list(jobs.list(get_all=True, include_retried=False))

    @property
    def _state_login(self) -> tuple[str, str]:
        # GitLab takes a job token for states only by Basic authentication, under this user name.
        return ("glgpu", self._job.gitlab_token) if self._job.gitlab_token else ("gitlab-ci-token", self._job.job_token)

    def _probe(self, name: str) -> requests.Response | None:
        """GitLab's answer to somebody who wants to lock a state; None where we may not."""
        if not (self._job.gitlab_token or self._job.job_token):
            return None
        lock = {"ID": PROBE_LOCK, "Operation": "probe", "Info": "", "Who": "glgpu", "Version": "", "Path": ""}
        lock["Created"] = datetime.now(UTC).isoformat()
        answer = self._state_request("POST", f"{self._state_path(name)}/lock", lock)
        if answer.status_code in (200, 201, 409, 423):
            return answer
        if answer.status_code in (401, 403, 404):
            return None
        raise self._refused(answer.status_code, answer.text, "asking for Terraform's state")

    def _state_path(self, name: str) -> str:
        return f"/projects/{self._job.project_id}/terraform/state/{quote(name, safe='')}"

    def _state_request(self, verb: str, path: str, body: dict[str, str] | None = None) -> requests.Response:
        # python-gitlab has no manager for states, and raises on the codes that are answers here.
        try:
            return requests.request(
                verb,
                f"{self._job.api_url}{path}",
                auth=self._state_login,
                data=json.dumps(body) if body else None,
                headers={"Content-Type": "application/json"} if body else {},
                timeout=CALL_SECONDS,
                verify=self._job.ca_file or True,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise self._unreachable(error, "Terraform's state") from None

    def _call(
        self, doing: str, call: Callable[[], Any], *, missing_is_none: bool = False, none_on: tuple[int, ...] = ()
    ) -> Any:
        try:
            with unwrapped():
                return call()
        except gitlab.exceptions.GitlabError as error:
            if error.response_code in ((404,) if missing_is_none else none_on):
                return None
            raise self._refused(error.response_code or 0, str(error), doing) from None
        except requests.RequestException as error:
            raise self._unreachable(error, doing) from None

    def _refused(self, status: int, text: str, doing: str) -> Failure:
        if status == 401:
            return Failure(
                ErrorClass.GITLAB_AUTH,
                f"{doing}: GitLab does not accept the token (401): wrong, expired or revoked",
                "renew GLGPU_GITLAB_TOKEN: a project access token with role Maintainer and scope api",
                text,
            )
        # A schedule for a branch to which the token's user may not push is refused as if it were ill-formed.
        if status == 403 or (status == 400 and "not authorized" in text):
            return Failure(
                ErrorClass.GITLAB_AUTH,
                f"{doing}: GitLab refuses ({status}): the token's role or scope is too small",
                "give GLGPU_GITLAB_TOKEN the role Maintainer and the scope api",
                text,
            )
        if status == 404:
            return Failure(
                ErrorClass.GITLAB,
                f"{doing}: GitLab finds no project {self._project} that this token may see (404)",
                "check CI_PROJECT_ID and that GLGPU_GITLAB_TOKEN belongs to this project",
                text,
            )
        if status == 429 or status >= 500:
            return Failure(
                ErrorClass.TRANSIENT, f"{doing}: GitLab answers {status}", "wait a minute, then retry the job", text
            )
        return Failure(
            ErrorClass.GITLAB, f"{doing}: GitLab answers {status}: {text[:200]}", "see its answer above", text
        )

    def _unreachable(self, error: Exception, doing: str) -> Failure:
        return Failure(
            ErrorClass.NETWORK,
            f"{doing}: GitLab at {self._job.server_url} cannot be reached",
            "check the network between runner and GitLab, then retry the job",
            str(error),
        )


def _pipeline_of(run: str) -> str:
    """The pipeline of a run, which may be one of a matrix there."""
    return run.partition("-")[0]


def _schedule(found: dict[str, Any]) -> ForgeSchedule:
    last, owner, variables = found.get("last_pipeline") or {}, found.get("owner") or {}, found.get("variables")
    return ForgeSchedule(
        description=str(found.get("description") or ""),
        ref=str(found.get("ref") or "").removeprefix("refs/heads/"),
        active=bool(found.get("active")),
        owner=str(owner.get("username", "")),
        owner_state=str(owner.get("state", "")),
        variables=None if variables is None else {one["key"]: str(one["value"]) for one in variables},
        last_status=str(last.get("status", "")),
        last_time=datetime.fromisoformat(last["created_at"]).timestamp() if last.get("created_at") else None,
        number=int(found["id"]),
    )


def _environment(found: dict[str, Any]) -> ForgeEnvironment:
    job = (found.get("last_deployment") or {}).get("deployable") or {}
    pipeline = (job.get("pipeline") or {}).get("id")
    return ForgeEnvironment(
        id=int(found["id"]),
        name=str(found["name"]),
        pipeline=None if pipeline is None else int(pipeline),
        job=str(job.get("name") or ""),
        created=str(found.get("created_at") or ""),
        stops=str(found.get("auto_stop_at") or ""),
    )


def _pipeline(found: dict[str, Any] | Any) -> ForgePipeline:
    includes = tuple(str(one.get("location")) for one in found.get("includes") or [])
    return ForgePipeline(tuple(found.get("errors") or []), includes, str(found.get("merged_yaml") or ""))


def _day(text: str | None) -> float | None:
    """Unix time at which a day begins in UTC: a token is dead from the beginning of its day."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() if text else None
