"""API of the stand-in GitLab: pipelines, jobs, schedules, environments, lint."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from typing import Any

from glgpu.rehearsal import gitlab_entities as show
from glgpu.rehearsal.ci_yaml import Lint, includes_of
from glgpu.rehearsal.gitlab_http import Answer, ApiError, Call, forbidden, not_found, serves
from glgpu.rehearsal.gitlab_model import UNFINISHED, Environment, Job, Pipeline, Role, Schedule, Variable
from glgpu.rehearsal.gitlab_state import Refused
from glgpu.rehearsal.occasion import Event, Occasion, Server

CRON_FIELDS = 5
NOT_ON_THIS_REF = (
    "You do not have sufficient permission to run a pipeline on '{ref}'. Please select a different branch or contact "
    "your administrator for assistance. <a href=https://docs.gitlab.com/ee/ci/pipelines/"
    "#pipeline-security-on-protected-branches>Learn more</a>"
)

# Jobs


def _job(call: Call) -> Job:
    job = call.state.find_job(call.project, call.number("job_id"))
    if job is None:
        raise not_found()
    return job


def _in_scope(call: Call, jobs: list[Job]) -> list[Job]:
    scope = call.params.get("scope")
    return [job for job in jobs if not scope or job.status in scope]


@serves("GET /job", "jobs.own", job_token="header")
async def own_job(call: Call) -> Answer:
    """The job whose token this is."""
    if call.job is None:
        raise not_found("Job")
    return Answer(200, show.job(call.host, call.job))


@serves("GET /projects/{id}/jobs", "jobs.list", Role.REPORTER)
async def jobs(call: Call) -> Answer:
    """All jobs, newest first."""
    found = [job for job in call.project.jobs if call.params.get("ref") in (None, job.pipeline.ref)]
    return call.page(_in_scope(call, found), show.with_host(show.job, call))


@serves("GET /projects/{id}/jobs/{job_id}", "jobs.get", Role.REPORTER)
async def job(call: Call) -> Answer:
    """One job."""
    return Answer(200, show.job(call.host, _job(call)))


@serves("GET /projects/{id}/jobs/{job_id}/trace", "jobs.trace", Role.REPORTER)
async def trace(call: Call) -> Answer:
    """The job's log."""
    start = call.params.get("byte_offset") or 0
    limit = call.params.get("byte_limit")
    text = _job(call).trace[start:]
    return Answer(200, text if limit is None else text[:limit], "text/plain")


@serves("GET /projects/{id}/jobs/{job_id}/artifacts", "jobs.artifacts", Role.REPORTER, job_token="header")
async def artifacts(call: Call) -> Answer:
    """The job's artifacts as a zip archive."""
    found = _job(call)
    if found.artifacts is None:
        raise not_found()
    headers = {"Content-Disposition": 'attachment; filename="artifacts.zip"'}
    return call.file(found.artifacts, headers)


@serves(
    "GET /projects/{id}/jobs/{job_id}/artifacts/{artifact_path}", "jobs.artifact", Role.REPORTER, job_token="header"
)
async def artifact(call: Call) -> Answer:
    """One file of the archive."""
    found = _job(call)
    if found.artifacts is None:
        raise not_found()
    with zipfile.ZipFile(found.artifacts) as archive:
        try:
            return Answer(200, archive.read(call.path["artifact_path"]))
        except KeyError:
            raise not_found() from None


@serves("POST /projects/{id}/jobs/{job_id}/cancel", "jobs.cancel", Role.DEVELOPER)
async def cancel_job(call: Call) -> Answer:
    """Cancel a job; a Maintainer may force it (GitLab 17.11)."""
    found = _job(call)
    if call.params.get("force"):
        call.require(Role.MAINTAINER)
    # The API answers 201 whether or not there was anything to cancel.
    if found.status in UNFINISHED | {"manual"} and (found.status != "canceling" or call.params.get("force")):
        call.state.cancel_job(found, force=bool(call.params.get("force")))
    return Answer(201, show.job(call.host, found))


@serves("POST /projects/{id}/jobs/{job_id}/retry", "jobs.retry", Role.DEVELOPER)
async def retry_job(call: Call) -> Answer:
    """Retry a job: the answer is the new one."""
    try:
        return Answer(201, show.job(call.host, call.state.retry_job(_job(call), call.user)))
    except Refused as error:
        raise ApiError.message(403, f"403 Forbidden - {error}") from None


@serves("POST /projects/{id}/jobs/{job_id}/play", "jobs.play", Role.DEVELOPER)
async def play_job(call: Call) -> Answer:
    """Click a manual job."""
    try:
        return Answer(200, show.job(call.host, call.state.play_job(_job(call), call.user)))
    except Refused as error:
        raise ApiError.message(400, f"400 Bad request - {error}") from None


# Pipelines: no job token may read them


def _pipeline(call: Call) -> Pipeline:
    pipeline = call.project.pipelines.get(call.number("pipeline_id"))
    if pipeline is None:
        raise not_found()
    return pipeline


def _variables(call: Call) -> list[Variable]:
    found = []
    for given in call.params.get("variables") or []:
        if not given.get("key") or "value" not in given:
            raise ApiError(400, {"error": "variables[0][key] is missing"})
        found.append(Variable(given["key"], str(given["value"]), given.get("variable_type", "env_var")))
    return found


@serves("GET /projects/{id}/pipelines", "pipelines.list", Role.REPORTER, open_get=True)
async def pipelines(call: Call) -> Answer:
    """Pipelines, newest first unless asked otherwise."""
    wanted = {name: call.params[name] for name in ("ref", "sha", "source", "status", "name") if call.params.get(name)}
    scopes: dict[str, Callable[[Pipeline], bool]] = {
        "running": lambda it: it.status in ("running", "canceling"),
        "pending": lambda it: it.status == "pending",
        "finished": lambda it: it.status in ("success", "failed", "canceled"),
    }
    in_scope = scopes.get(call.params.get("scope") or "")
    moments: list[tuple[str, Callable[[Pipeline, float], bool]]] = [
        ("updated_after", lambda it, when: it.updated_at >= when),
        ("updated_before", lambda it, when: it.updated_at <= when),
        ("created_after", lambda it, when: it.created_at >= when),
        ("created_before", lambda it, when: it.created_at <= when),
    ]
    found = [
        it
        for it in call.project.pipelines.values()
        if all(getattr(it, name) == value for name, value in wanted.items())
        and (in_scope is None or in_scope(it))
        and call.params.get("username") in (None, it.user.username)
        and all(holds(it, call.params[name]) for name, holds in moments if call.params.get(name) is not None)
    ]
    order = call.params.get("order_by") or "id"
    orders: dict[str, Callable[[Pipeline], Any]] = {
        "status": lambda it: it.status,
        "ref": lambda it: it.ref,
        "updated_at": lambda it: it.updated_at,
        "user_id": lambda it: it.user.id,
    }
    found.sort(key=lambda it: (orders[order](it) if order in orders else 0, it.id))
    if call.params.get("sort") != "asc":
        found.reverse()
    return call.page(found, show.with_host(show.pipeline_basic, call))


@serves("GET /projects/{id}/pipelines/{pipeline_id}", "pipelines.get", Role.REPORTER, open_get=True)
async def pipeline(call: Call) -> Answer:
    """One pipeline."""
    return Answer(200, show.pipeline(call.host, _pipeline(call)))


@serves("GET /projects/{id}/pipelines/{pipeline_id}/jobs", "pipelines.jobs", Role.REPORTER, open_get=True)
async def pipeline_jobs(call: Call) -> Answer:
    """A pipeline's jobs, newest first; those that a retry has replaced only when asked for."""
    found = _pipeline(call)
    some = found.jobs if call.params.get("include_retried") else found.latest
    return call.page(_in_scope(call, sorted(some, key=lambda it: -it.id)), show.with_host(show.job, call))


@serves("GET /projects/{id}/pipelines/{pipeline_id}/variables", "pipelines.variables", Role.DEVELOPER, open_get=True)
async def pipeline_variables(call: Call) -> Answer:
    """What was given to the pipeline when it was started."""
    return Answer(200, [show.pipeline_variable(it) for it in _pipeline(call).variables])


@serves("POST /projects/{id}/pipelines/{pipeline_id}/cancel", "pipelines.cancel", Role.DEVELOPER)
async def cancel_pipeline(call: Call) -> Answer:
    """Cancel all that can be."""
    found = _pipeline(call)
    call.state.cancel_pipeline(found)
    return Answer(200, show.pipeline(call.host, found))


def _start(call: Call, ref: str, source: str, variables: list[Variable]) -> Pipeline:
    if call.state.git(call.project, "rev-parse", "--verify", "--quiet", f"refs/heads/{ref}").code:
        raise ApiError.message(400, {"base": ["Reference not found"]})
    if call.host.trigger is None:
        raise ApiError.message(400, {"base": ["Missing CI config file"]})
    return call.host.trigger(call.project, ref, source, call.user, variables)


@serves("POST /projects/{id}/pipeline", "pipelines.create", Role.DEVELOPER)
async def create_pipeline(call: Call) -> Answer:
    """Start a pipeline."""
    return Answer(201, show.pipeline(call.host, _start(call, call.params["ref"], "api", _variables(call))))


# Schedules


def _schedule(call: Call) -> Schedule:
    schedule = call.project.schedules.get(call.number("pipeline_schedule_id"))
    if schedule is None:
        raise not_found("Pipeline Schedule")
    return schedule


def _own(call: Call) -> Schedule:
    """The schedule, for its owner or a Maintainer."""
    schedule = _schedule(call)
    if schedule.owner is not call.user:
        call.require(Role.MAINTAINER)
    return schedule


def _change(schedule: Schedule, call: Call) -> None:
    for name in ("description", "ref", "cron", "cron_timezone", "active"):
        if call.params.get(name) is not None:
            setattr(schedule, name, call.params[name])
    schedule.ref = schedule.ref.removeprefix("refs/heads/")
    if not call.project.may_run_on(schedule.ref, call.user):
        refusal = "The current user is not authorized to create the pipeline schedule"
        raise ApiError.message(400, {"base": [refusal.replace("create", "update") if schedule.id else refusal]})
    if len(schedule.cron.split()) != CRON_FIELDS:
        raise ApiError.message(400, {"cron": ["syntax is invalid"]})
    schedule.updated_at = call.state.clock.now()


@serves("GET /projects/{id}/pipeline_schedules", "schedules.list", Role.REPORTER)
async def schedules(call: Call) -> Answer:
    """The project's schedules."""
    scope = call.params.get("scope")
    found = [it for it in call.project.schedules.values() if scope is None or it.active == (scope == "active")]
    return call.page(found, show.with_host(show.schedule, call))


@serves("POST /projects/{id}/pipeline_schedules", "schedules.create", Role.DEVELOPER)
async def create_schedule(call: Call) -> Answer:
    """Add a schedule; it runs with its owner's rights."""
    new = Schedule(0, "", "", call.params["cron"], call.user, 0.0, 0.0)
    _change(new, call)
    schedule = call.state.create_schedule(
        call.project, call.params["description"], call.params["ref"], call.params["cron"], call.user
    )
    _change(schedule, call)
    return Answer(201, show.schedule_details(call.host, schedule))


@serves("GET /projects/{id}/pipeline_schedules/{pipeline_schedule_id}", "schedules.get", Role.REPORTER)
async def schedule(call: Call) -> Answer:
    """One schedule; its variables are shown to whoever may change it."""
    found = _schedule(call)
    shown = show.schedule_details(call.host, found)
    if found.owner is not call.user and call.project.role(call.user) < Role.MAINTAINER:
        del shown["variables"]
    return Answer(200, shown)


@serves("PUT /projects/{id}/pipeline_schedules/{pipeline_schedule_id}", "schedules.update", Role.DEVELOPER)
async def update_schedule(call: Call) -> Answer:
    """Change a schedule: its owner's business alone, also for Maintainers, who would have to take it over."""
    found = _schedule(call)
    if not (found.owner is call.user or call.user.admin) or not call.project.may_run_on(found.ref, call.user):
        raise forbidden()
    _change(found, call)
    return Answer(200, show.schedule_details(call.host, found))


@serves("DELETE /projects/{id}/pipeline_schedules/{pipeline_schedule_id}", "schedules.delete", Role.DEVELOPER)
async def delete_schedule(call: Call) -> Answer:
    """Remove a schedule."""
    del call.project.schedules[_own(call).id]
    return Answer(204)


@serves("POST /projects/{id}/pipeline_schedules/{pipeline_schedule_id}/play", "schedules.play", Role.DEVELOPER)
async def play_schedule(call: Call) -> Answer:
    """Run a schedule now, as its caller."""
    found = _schedule(call)
    if not call.project.may_run_on(found.ref, call.user):
        raise forbidden()
    found.last_pipeline = _start(call, found.ref, "schedule", list(found.variables))
    found.last_pipeline.schedule_id = found.id
    return Answer(201, {"message": "201 Created"})


@serves(
    "POST /projects/{id}/pipeline_schedules/{pipeline_schedule_id}/variables",
    "schedules.create_variable",
    Role.DEVELOPER,
)
async def create_schedule_variable(call: Call) -> Answer:
    """Give a schedule a variable."""
    found = _own(call)
    variable = Variable(call.params["key"], call.params["value"], call.params.get("variable_type") or "env_var")
    if any(it.key == variable.key for it in found.variables):
        raise ApiError.message(400, {"key": ["has already been taken"]})
    found.variables.append(variable)
    return Answer(201, show.pipeline_variable(variable))


@serves(
    "DELETE /projects/{id}/pipeline_schedules/{pipeline_schedule_id}/variables/{key}",
    "schedules.delete_variable",
    Role.DEVELOPER,
)
async def delete_schedule_variable(call: Call) -> Answer:
    """Take a variable from a schedule."""
    found = _own(call)
    for variable in found.variables:
        if variable.key == call.path["key"]:
            found.variables.remove(variable)
            return Answer(202, show.pipeline_variable(variable))
    raise not_found("Pipeline Schedule Variable")


# Environments and deployments: job tokens come in


def _environment(call: Call) -> Environment:
    environment = call.project.environments.get(call.number("environment_id"))
    if environment is None:
        raise not_found("Environment")
    return environment


def _shown(call: Call, it: Environment) -> dict[str, object]:
    return show.environment(call.host, it, call.state.last_deployment(call.project, it))


@serves("GET /projects/{id}/environments", "environments.list", Role.REPORTER, job_token="header")
async def environments(call: Call) -> Answer:
    """Environments by name, part of the name, or state."""
    name, search, state = (call.params.get(part) for part in ("name", "search", "states"))
    if name and search:
        raise ApiError(400, {"error": "name, search are mutually exclusive"})
    if search and len(search) < 3:
        raise ApiError.message(400, "400 Bad request - Search query is less than 3 characters")
    found = [
        it
        for it in call.project.environments.values()
        if name in (None, it.name) and (search or "").lower() in it.name.lower() and state in (None, it.state)
    ]
    return call.page(found, lambda it: show.environment_basic(it) | {"state": it.state, "tier": "other"})


@serves("GET /projects/{id}/environments/{environment_id}", "environments.get", Role.REPORTER, job_token="header")
async def environment(call: Call) -> Answer:
    """One environment with its last deployment."""
    return Answer(200, _shown(call, _environment(call)))


@serves(
    "DELETE /projects/{id}/environments/{environment_id}", "environments.delete", Role.DEVELOPER, job_token="header"
)
async def delete_environment(call: Call) -> Answer:
    """Remove a stopped environment."""
    found = _environment(call)
    if found.state != "stopped":
        raise forbidden()
    del call.project.environments[found.id]
    return Answer(204)


@serves(
    "POST /projects/{id}/environments/{environment_id}/stop", "environments.stop", Role.DEVELOPER, job_token="header"
)
async def stop_environment(call: Call) -> Answer:
    """Stop an environment."""
    found = _environment(call)
    call.state.stop_environment(call.project, found, call.user, force=bool(call.params.get("force")))
    return Answer(200, _shown(call, found))


@serves("GET /projects/{id}/deployments", "deployments.list", Role.REPORTER, job_token="header")
async def deployments(call: Call) -> Answer:
    """Deployments, oldest first unless asked otherwise."""
    found = [
        it
        for it in call.project.deployments
        if call.params.get("environment") in (None, it.environment.name)
        and call.params.get("status") in (None, it.status)
    ]
    if call.params.get("sort") == "desc":
        found.reverse()
    return call.page(found, show.with_host(show.deployment, call))


# Lint


def _lint(call: Call, content: str | None, sha: str, ref: str) -> Answer:
    """Judge a text with the rights of whoever asks: what they may not read cannot be included.

    A simulation is always that of a push. Where the files cannot even be read, GitLab has neither ``merged_yaml`` nor
    ``includes``.
    """
    server = Server(call.host.url, call.host.ssh_host, call.host.ssh_port)
    where = Occasion(call.state, server, call.project, call.user, Event(ref, sha))
    if content is None:
        found = Lint(("Please provide content of .gitlab-ci.yml",))
    elif call.params.get("dry_run") and not call.project.may_run_on(ref, call.user):
        found = Lint((NOT_ON_THIS_REF.format(ref=ref),))
    else:
        found = where.lint(content, simulated=bool(call.params.get("dry_run")))
    body = {
        "valid": not found.errors,
        "errors": list(found.errors),
        "warnings": list(found.warnings),
        "merged_yaml": found.merged,
        "includes": includes_of(content) if content is not None and found.merged is not None else None,
    }
    return Answer(200, body | ({"jobs": list(found.jobs)} if call.params.get("include_jobs") else {}))


@serves("GET /projects/{id}/ci/lint", "lint.get", Role.DEVELOPER, open_get=True)
async def lint_file(call: Call) -> Answer:
    """Judge the repository's own .gitlab-ci.yml."""
    given = call.params.get
    for one, other in (("sha", "content_ref"), ("ref", "dry_run_ref")):
        if given(one) and given(other):
            raise ApiError(400, {"error": f"{one}, {other} are mutually exclusive"})
    default = call.project.default_branch
    if call.state.git(call.project, "rev-parse", "--verify", "--quiet", "--all").text == "":
        raise not_found("Repository")
    revision = given("content_ref") or given("sha") or default
    commit = call.state.git(call.project, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if commit.code:
        raise not_found("Commit")
    sha = commit.text.strip()
    done = call.state.git(call.project, "show", f"{sha}:.gitlab-ci.yml")
    return _lint(call, None if done.code else done.text, sha, given("dry_run_ref") or given("ref") or default)


@serves("POST /projects/{id}/ci/lint", "lint.post", Role.DEVELOPER)
async def lint_content(call: Call) -> Answer:
    """Judge a text as if it were the project's .gitlab-ci.yml."""
    default = call.project.default_branch
    head = call.state.git(call.project, "rev-parse", "--verify", "--quiet", f"refs/heads/{default}").text.strip()
    return _lint(call, call.params["content"], head, call.params.get("ref") or default)
