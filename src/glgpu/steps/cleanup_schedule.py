"""The pipeline schedule that cleans up: how it is recognised, and how it is made once and no more."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import ForgePipeline, ForgeSchedule, Scheduler
from glgpu.scheduled_jobs import jobs_of_schedule

DESCRIPTION = "glgpu cleanup"
TASK = "GLGPU_TASK"
CLEANUP = {TASK: "cleanup"}
STALE_SECONDS = 2 * 24 * 3600.0
"""A schedule that has made no pipeline for so long does not clean up: it is meant to run every hour or so."""
MAKE_ONE = (
    "have `glgpu init` make one, or add it under Build > Pipeline schedules, hourly or so, with the variable "
    f"{TASK} set to cleanup"
)
HIDDEN_VALUES = (
    "CI_COMMIT_AUTHOR", "CI_COMMIT_DESCRIPTION", "CI_COMMIT_MESSAGE", "CI_COMMIT_REF_PROTECTED", "CI_COMMIT_REF_SLUG",
    "CI_COMMIT_SHA", "CI_COMMIT_SHORT_SHA", "CI_COMMIT_TIMESTAMP", "CI_COMMIT_TITLE", "CI_PROJECT_ID",
    "CI_PROJECT_NAME", "CI_PROJECT_NAMESPACE", "CI_PROJECT_PATH", "CI_PROJECT_PATH_SLUG", "CI_PROJECT_ROOT_NAMESPACE",
    "CI_PROJECT_TITLE", "CI_PROJECT_URL", "CI_PROJECT_VISIBILITY", "CI_REGISTRY", "CI_REGISTRY_IMAGE", "CI_SERVER_FQDN",
    "CI_SERVER_HOST", "CI_SERVER_URL", "CI_SERVER_VERSION", "GITLAB_USER_EMAIL", "GITLAB_USER_ID", "GITLAB_USER_LOGIN",
    "GITLAB_USER_NAME",
)  # fmt: skip
"""What GitLab sets for every pipeline, to values that are not known here."""
NO_ACCESS = "not found or access denied"
"""GitLab's words for an include that the pipeline's user may not read, or that is not there."""


def cleans_up(schedule: ForgeSchedule) -> bool | None:
    """Whether a schedule is the one that cleans up; None where GitLab hides its variables and its name tells nothing.

    The variable decides: a schedule that somebody made by hand may have any description.
    """
    if schedule.variables is not None:
        return schedule.variables.get(TASK) == CLEANUP[TASK]
    return True if schedule.description == DESCRIPTION else None


@dataclass(frozen=True)
class Trouble:
    """Something about the schedule that cleans up.

    Attributes:
        klass: What it comes to.
        cause: What it is.
        remedy: What to do about it.
        nobody_cleans_up: Whether nothing at all is cleaned up by a schedule.
    """

    klass: ErrorClass
    cause: str
    remedy: str
    nobody_cleans_up: bool = False


def hidden(schedules: Sequence[ForgeSchedule]) -> bool:
    """Whether none is seen to clean up, and GitLab hides what some of them do."""
    told = [cleans_up(one) for one in schedules]
    return not any(told) and None in told


def troubles_with(schedules: Sequence[ForgeSchedule], now: float) -> Iterator[Trouble]:
    """Why nothing is cleaned up on a schedule, or soon will not be."""
    found = [one for one in schedules if cleans_up(one)]
    active = [one for one in found if one.active]
    if not active:
        what = "the schedule for cleanup is not active" if found else "no schedule cleans up"
        yield Trouble(
            ErrorClass.CONFIG,
            f"{what}: what a run leaves behind stays until its hard end",
            "activate it under Build > Pipeline schedules" if found else MAKE_ONE,
            nobody_cleans_up=True,
        )
    for one in active:
        name = f"the schedule {one.description!r}"
        if one.owner_state not in ("active", ""):
            yield Trouble(
                ErrorClass.GITLAB,
                f"{name} belongs to {one.owner}, who is {one.owner_state}: it runs with nobody's rights",
                "take it over under Build > Pipeline schedules",
            )
        elif one.last_time is None or now - one.last_time > STALE_SECONDS:
            when = "never" if one.last_time is None else f"on {datetime.fromtimestamp(one.last_time, UTC).date()}"
            yield Trouble(
                ErrorClass.GITLAB,
                f"{name} ran last {when}" if one.last_time else f"{name} has not run yet",
                "look at it under Build > Pipeline schedules, and play it once",
            )
        elif one.last_status in ("failed", "canceled"):
            yield Trouble(
                ErrorClass.GITLAB,
                f"the last pipeline of {name} is {one.last_status}",
                "look at its log under Build > Pipeline schedules",
            )


def _unfinished(schedule: ForgeSchedule) -> bool:
    """Whether it is one that we have begun: it does not run and never has, and says by its name that it is ours."""
    return schedule.description == DESCRIPTION and not schedule.active and schedule.last_time is None


@dataclass(frozen=True)
class Rhythm:
    """How often it is to run, in cron's words and in people's."""

    cron: str
    every: str


def rhythm(server: str, project: str) -> Rhythm:
    """Every hour, on GitLab.com, where a job costs compute minutes, every four; at a minute that is the project's own.

    Args:
        server: Address of the GitLab; empty: not known.
        project: What tells the project from others.
    """
    minute = int(hashlib.sha256(project.encode()).hexdigest()[:8], 16) % 60
    if urlsplit(server).hostname == "gitlab.com":
        return Rhythm(f"{minute} */4 * * *", "every 4 hours")
    return Rhythm(f"{minute} * * * *", "every hour")


def by_hand(how_often: Rhythm, branch: str = "") -> str:
    """How to make it with a mouse."""
    return (
        f'on GitLab, Build > Pipeline schedules > New schedule: description "{DESCRIPTION}", interval pattern '
        f'"{how_often.cron}" ({how_often.every}), target branch {branch or "your default branch"}, variable '
        f"{TASK} with the value {CLEANUP[TASK]}"
    )


@dataclass(frozen=True)
class Repository:
    """What the schedule is made for.

    Attributes:
        pipeline: Text of its .gitlab-ci.yml.
        ours: Names of glgpu's own jobs in it.
        home: The project that these are included from.
    """

    pipeline: str
    ours: Collection[str]
    home: str


Parse = Callable[[str], Mapping[str, Any]]
"""The text of a configuration -> what it says; nothing where it cannot be read."""


def make_cleanup_schedule(
    forge: Scheduler,
    repository: Repository,
    how_often: Rhythm,
    *,
    parse: Parse,
    agree: Callable[[], bool],
    say: Callable[[str], None],
) -> tuple[str, ...]:
    """Make the schedule unless there is one; before that, tell which other jobs it would start.

    It is made inactive, and activated once it has its variable: a process that dies between the two leaves a schedule
    that starts nothing, which the next call finishes.

    Args:
        forge: GitLab.
        repository: What it is made for.
        how_often: When it runs.
        parse: Reads GitLab's merged configuration.
        agree: Asked where other jobs would run too; False: it is not made.
        say: Takes what is found and done, a line each.

    Returns:
        What remains to be done by hand, each in one text.

    Raises:
        Failure: GitLab refuses or cannot be reached; nothing that runs was left half made.
    """
    branch = forge.project().default_branch
    schedules = forge.schedules()
    there = [one for one in schedules if cleans_up(one) and not _unfinished(one)]
    if there:
        return _kept(there, say)
    if not branch:
        raise Failure(ErrorClass.GITLAB, "the project on GitLab has no branch yet", "push one, then run it again")
    judged = forge.judge(repository.pipeline)
    others = _other_jobs(forge, judged, repository, branch, parse)
    if others:
        _tell_of(others, how_often, say)
        if not agree():
            manually = by_hand(how_often, branch)
            return (f"The cleanup schedule, once those jobs are kept off it: `glgpu init` again, or {manually}.",)
    begun = next((one for one in schedules if _unfinished(one) and one.variables is not None), None)
    number = begun.number if begun else forge.add_schedule(DESCRIPTION, branch, how_often.cron)
    forge.finish_schedule(number, {} if begun and cleans_up(begun) else CLEANUP)
    task = f"{TASK}={CLEANUP[TASK]}"
    say(f'made: the schedule "{DESCRIPTION}" on {branch}, {how_often.every} ({how_often.cron}), with {task}')
    return tuple(_troubles(judged, repository, branch, parse))


def _kept(there: list[ForgeSchedule], say: Callable[[str], None]) -> tuple[str, ...]:
    for one in there:
        say(f'kept as it was: the schedule "{one.description}" on {one.ref}')
    if any(one.active for one in there):
        return ()
    return (f'Activate the schedule "{there[0].description}" on GitLab, under Build > Pipeline schedules > Inactive.',)


def _known(branch: str) -> dict[str, str]:
    return {
        "CI": "true",
        "GITLAB_CI": "true",
        "CI_PIPELINE_SOURCE": "schedule",
        "CI_COMMIT_BRANCH": branch,
        "CI_COMMIT_REF_NAME": branch,
        "CI_DEFAULT_BRANCH": branch,
        **CLEANUP,
    }


def _other_jobs(
    forge: Scheduler, judged: ForgePipeline, repository: Repository, branch: str, parse: Parse
) -> tuple[str, ...]:
    """The repository's own jobs that would run, or might: the values of its CI variables are not looked at."""
    unknown = [*HIDDEN_VALUES, *_names_of_variables(forge)]
    found = jobs_of_schedule(parse(judged.merged), _known(branch), unknown)
    return tuple(name for name in found.jobs if name not in repository.ours)


def _names_of_variables(forge: Scheduler) -> list[str]:
    try:
        return [one.name for one in forge.variables()]
    except Failure as failure:
        if failure.klass is ErrorClass.GITLAB_AUTH:
            return []  # GitLab shows them to Maintainers only
        raise


def _tell_of(others: tuple[str, ...], how_often: Rhythm, say: Callable[[str], None]) -> None:
    say(f"The cleanup schedule would also run these jobs of yours {how_often.every}: {', '.join(others)}")
    say(
        "To keep a job off it, let its rules begin with the first of these (the second stands for a job without rules):"
    )
    say("    rules:")
    say(f'      - if: $CI_PIPELINE_SOURCE == "schedule" && ${TASK} == "{CLEANUP[TASK]}"')
    say("        when: never")
    say("      - if: $CI_COMMIT_BRANCH || $CI_COMMIT_TAG")


def _troubles(judged: ForgePipeline, repository: Repository, branch: str, parse: Parse) -> list[str]:
    """Why the schedule's pipelines would fail, or not even begin."""
    found = []
    for error in judged.errors:
        if NO_ACCESS in error:
            found.append(
                f"The schedule belongs to the user of GLGPU_GITLAB_TOKEN, who may not read {repository.home}, so that "
                f"its pipelines fail. Somebody who may: Build > Pipeline schedules > Take ownership. Or make "
                f"{repository.home} internal. (GitLab says: {error})"
            )
        else:
            found.append(f"The schedule's pipelines fail until .gitlab-ci.yml is mended: {error}")
    if not judged.errors and jobs_of_schedule(parse(judged.merged), _known(branch), HIDDEN_VALUES).kept_out:
        found.append(
            "Your `workflow:rules` make no pipelines for schedules, so that nothing cleans up. Put this first into "
            f'them: - if: $CI_PIPELINE_SOURCE == "schedule" && ${TASK} == "{CLEANUP[TASK]}"'
        )
    return found
