"""GitLab: its version, the token and what it may do, the schedule that cleans up, the clocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from glgpu.errors import ErrorClass, Failure
from glgpu.job_times import wants_to_detach
from glgpu.steps.checks.facts import Facts
from glgpu.steps.checks.judging import Verdict, check, error, failed, unknown, warning
from glgpu.steps.cleanup_schedule import MAKE_ONE, NO_ACCESS, hidden, troubles_with

OLDEST = (17, 5)
MAINTAINER = 40
"""Access level (https://docs.gitlab.com/api/access_requests/#valid-access-levels)."""
DAY = 24 * 3600.0
SOON_DAYS = 14.0
TOKEN = "GLGPU_GITLAB_TOKEN"
SECRET_VARIABLES = (TOKEN, "GLGPU_REGISTRY_PASSWORD", "GOOGLE_OAUTH_ACCESS_TOKEN")
OURS = "train.yml"


@check("gitlab", "GitLab", "whether GitLab can be reached", "CI_SERVER_URL")
def reachable(facts: Facts) -> Iterator[Verdict]:
    """Without a token: whatever it answers is an answer."""
    if not facts.job.server_url:
        yield unknown("no GitLab is known here", "set CI_SERVER_URL and CI_PROJECT_ID, as a job has them")
        return
    try:
        facts.gitlab_lag.get()
    except Failure as failure:
        yield failed(failure)


@check("gitlab-token", "GitLab", "whether GLGPU_GITLAB_TOKEN is there and GitLab accepts it", TOKEN)
def token(facts: Facts) -> Iterator[Verdict]:
    """Without one a run goes well in part."""
    job = facts.job
    if job.in_ci and not job.gitlab_token:
        unprotected = job.variables.get("CI_COMMIT_REF_PROTECTED") == "false"
        why = f" ({job.ref} is no protected branch, so a protected variable is absent)" if unprotected else ""
        cause = f"this job has no {TOKEN}{why}: no deploy keys, no cleanup, no state in GitLab for Developers"
        remedy = f"set the CI variable {TOKEN}: a project access token with role Maintainer and scope api"
        settings = facts.settings.get()
        if settings.notebook.can_push:
            cause += ", and no notebook, since notebook.can_push is true"
        insists = settings.code == "deploy-key" or settings.notebook.can_push
        yield (error if insists else warning)(ErrorClass.GITLAB_AUTH, cause, remedy)
        return
    try:
        facts.token.get()
    except Failure as failure:
        if not (job.server_url and job.gitlab_token) or failure.klass is ErrorClass.NETWORK:
            raise
        yield failed(failure)


@check("gitlab-version", "GitLab", "whether GitLab is 17.5 or newer", f"a job, or {TOKEN}")
def version(facts: Facts) -> Iterator[Verdict]:
    """GitLab tells its jobs, and whoever has a token."""
    told = facts.job.variables.get("CI_SERVER_VERSION", "") or facts.gitlab_version.get()
    if _numbers(told) < OLDEST:
        yield error(
            ErrorClass.GITLAB,
            f"GitLab here is {told}: jobs need 17.5 for the ways in which they end, and for retry:exit_codes",
            "have it updated to 17.5 or newer",
        )


@check("runner-version", "GitLab", "whether the runner is 17.5 or newer", "a job")
def runner_version(facts: Facts) -> Iterator[Verdict]:
    """Older ones end a cancelled job's after_script differently."""
    told = facts.job.variables.get("CI_RUNNER_VERSION", "")
    if not told:
        yield unknown("a runner tells its version only to its jobs", "run `glgpu doctor` as a job")
    elif _numbers(told) < OLDEST:
        yield error(
            ErrorClass.TOOL_MISSING,
            f"this runner is version {told}: a cancelled job's VM may outlive it before 17.5",
            "have it updated to 17.5 or newer, or name another runner with the include's input tag",
        )


@check("gitlab-token-scope", "GitLab", "whether the token has the scope api", TOKEN)
def scope(facts: Facts) -> Iterator[Verdict]:
    """Deploy keys, states and pipelines need the whole API."""
    scopes = facts.token.get().scopes
    if "api" not in scopes:
        yield error(
            ErrorClass.GITLAB_AUTH,
            f"{TOKEN} has the scopes {', '.join(scopes) or 'none'}, but not api",
            "make a new project access token with scope api",
        )


@check("gitlab-token-role", "GitLab", "whether the token's role is Maintainer", TOKEN)
def role(facts: Facts) -> Iterator[Verdict]:
    """Deploy keys and the locks of Terraform states are Maintainers' business."""
    held = facts.gitlab_project.get().role
    if held < MAINTAINER:
        yield error(
            ErrorClass.GITLAB_AUTH,
            f"{TOKEN} has access level {held} in this project; deploy keys and states need Maintainer ({MAINTAINER})",
            "make a new project access token with role Maintainer",
        )


@check("gitlab-token-days", "GitLab", "whether the token lives for another two weeks", TOKEN)
def days(facts: Facts) -> Iterator[Verdict]:
    """Every project access token dies within a year."""
    expires = facts.token.get().expires
    if expires is None:
        return
    left = (expires - facts.now) / DAY
    if left < SOON_DAYS:
        day = datetime.fromtimestamp(expires, UTC).date()
        yield warning(
            ErrorClass.GITLAB_AUTH,
            f"{TOKEN} is dead from {day} on, in {max(0.0, left):.0f} days",
            "rotate it under Settings > Access tokens, and set the CI variable anew",
        )


@check("secret-variables", "GitLab", "whether variables with tokens are masked, and the GitLab token protected", TOKEN)
def secret_variables(facts: Facts) -> Iterator[Verdict]:
    """An unprotected Maintainer token makes a Maintainer of everybody who may push a branch."""
    for variable in facts.variables.get():
        if variable.name == TOKEN and not variable.protected:
            yield warning(
                ErrorClass.GITLAB_AUTH,
                f"the CI variable {TOKEN} is not protected: whoever may push any branch can print it",
                "protect it under Settings > CI/CD > Variables",
            )
        if variable.name in SECRET_VARIABLES and not variable.masked:
            yield warning(
                ErrorClass.GITLAB_AUTH,
                f"the CI variable {variable.name} is not masked: GitLab does not hide it in other jobs' logs",
                "mask it under Settings > CI/CD > Variables",
            )


@check("protected-ref", "GitLab", "whether jobs of this branch get the protected token", f"{TOKEN}, a branch")
def protected_ref(facts: Facts) -> Iterator[Verdict]:
    """A protected variable is absent elsewhere."""
    ref = facts.job.ref
    if not ref:
        yield unknown("no branch is known here", "set CI_COMMIT_REF_NAME")
        return
    hidden = [one for one in facts.variables.get() if one.name == TOKEN and one.protected]
    patterns = facts.protected_branches.get()
    if hidden and not any(fnmatchcase(ref, pattern.replace("[", "[[]")) for pattern in patterns):
        yield warning(
            ErrorClass.GITLAB_AUTH,
            f"the CI variable {TOKEN} is protected and {ref} is not: its jobs go without deploy keys and states",
            "protect the branch under Settings > Repository > Protected branches, or train on one that is",
        )


@check("pipeline", "GitLab", "whether .gitlab-ci.yml is valid and includes glgpu's jobs", TOKEN)
def pipeline(facts: Facts) -> Iterator[Verdict]:
    """GitLab's own judgement of the file as it was pushed."""
    found = facts.pipeline.get()
    for problem in found.errors:
        if NO_ACCESS in problem:
            # GitLab judges with the rights of the token's user; whoever pushes may have more.
            yield warning(
                ErrorClass.CONFIG,
                f".gitlab-ci.yml, for the user of {TOKEN}: {problem} A schedule of that user has no pipelines",
                "make the included project internal, or let somebody who may read it own the schedule "
                "(docs/how-to/your-own-gitlab.md)",
            )
            continue
        yield error(
            ErrorClass.CONFIG, f".gitlab-ci.yml: {problem}", "mend .gitlab-ci.yml, or have `glgpu init` show the lines"
        )
    if not found.errors and not any(path.endswith(OURS) for path in found.includes):
        yield warning(
            ErrorClass.CONFIG,
            ".gitlab-ci.yml does not include ci/train.yml: a push trains nothing",
            "add the include with `glgpu init --home GROUP/PROJECT`",
        )


@check("host-keys", "GitLab", "whether somebody vouches for GitLab's SSH host keys", "CI_SERVER_URL")
def host_keys(facts: Facts) -> Iterator[Verdict]:
    """VMs clone, and jobs push a notebook's work, with a deploy key and only where they can recognise GitLab."""
    job, settings = facts.job, facts.settings.get()
    way, pushes = settings.code, settings.notebook.can_push
    known = job.gitlab_host_keys or job.ssh_host in ("gitlab.com", "altssh.gitlab.com")
    if (way == "job" and not pushes) or known or not job.gitlab_token or facts.host_keys.get():
        return
    less = ["the job's own checkout is brought to the VM instead"] if way == "auto" else []
    less += ["no notebook's work is pushed"] if pushes else []
    yield (error if way == "deploy-key" else warning)(
        ErrorClass.CODE,
        "; ".join([f"nobody vouches for the SSH host keys of {job.ssh_host}: its help page shows none", *less]),
        "set GLGPU_GITLAB_HOST_KEYS to its known_hosts lines, or `code: job` and notebook.can_push: false",
    )


@check("cleanup-schedule", "GitLab", "whether a schedule cleans up, and its last run went well", TOKEN)
def cleanup_schedule(facts: Facts) -> Iterator[Verdict]:
    """The layer that finds what every other one has missed."""
    if hidden(facts.schedules.get()):
        yield unknown("the schedules' variables are shown to their owners and to Maintainers only", MAKE_ONE)
        return
    detached = wants_to_detach(facts.settings.get(), facts.job)
    for trouble in troubles_with(facts.schedules.get(), facts.now):
        # What nobody cleans up waits for its hard end; what nobody collects is of no use to anybody.
        judged = error if trouble.nobody_cleans_up and detached else warning
        more = ", and a detached training is collected by nobody" if trouble.nobody_cleans_up and detached else ""
        yield judged(trouble.klass, f"{trouble.cause}{more}", trouble.remedy)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


CHECKS = (
    reachable, token, version, runner_version, scope, role, days, secret_variables, protected_ref, pipeline, host_keys,
    cleanup_schedule,
)  # fmt: skip
