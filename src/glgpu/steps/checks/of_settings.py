"""Settings that contradict each other, or the job that they are for."""

from __future__ import annotations

from collections.abc import Iterator

from glgpu.errors import ErrorClass, Failure
from glgpu.job import HOSTED_SECONDS
from glgpu.job_times import misfits, wants_to_detach
from glgpu.lifetime import spoken
from glgpu.settings import check_secrets
from glgpu.steps.checks.facts import Facts
from glgpu.steps.checks.judging import Verdict, check, error, failed, warning
from glgpu.way_home import MAKE_WAY, no_way, saves_to_bucket, unseen


@check("variables", "settings", "whether the job's own variables can be understood", "nothing")
def variables(facts: Facts) -> Iterator[Verdict]:
    """Each that cannot be read was left out, so that the others could be."""
    yield from map(failed, facts.wrong_variables)


@check("settings", "settings", "whether glgpu.yml is valid and means something", "glgpu.yml")
def settings(facts: Facts) -> Iterator[Verdict]:
    """The file, its overrides, and settings that are taken but do nothing."""
    try:
        found = facts.settings.get()
    except Failure as failure:
        yield failed(failure)
        return
    if not found.project:
        yield error(
            ErrorClass.CONFIG,
            "the Google Cloud project is not set",
            "set the CI variable GLGPU_PROJECT, or `project` in glgpu.yml",
        )


@check("training", "settings", "whether there is an image to train in", "glgpu.yml")
def training(facts: Facts) -> Iterator[Verdict]:
    """`glgpu train` has no default image."""
    if facts.settings.get().train.image is None:
        yield error(
            ErrorClass.CONFIG,
            "train.image is not set: there is nothing to train in",
            "name a container image as train.image in glgpu.yml",
        )


@check("secrets", "settings", "whether what train.secrets names is there and can be masked", "glgpu.yml, a job")
def secrets(facts: Facts) -> Iterator[Verdict]:
    """All of them, where a run stops at the first."""
    for name in facts.settings.get().train.secrets:
        try:
            check_secrets([name], facts.job.variables)
        except Failure as failure:
            yield failed(failure)


@check("lifetimes", "settings", "whether machine.max_hours and the jobs' timeouts fit into each other", "a job's times")
def lifetimes(facts: Facts) -> Iterator[Verdict]:
    """A script that outlives its job takes after_script and artifacts with it."""
    yield from map(failed, misfits(facts.settings.get(), facts.job))


@check("hosted-runner", "settings", "whether a hosted runner would end the job before its time", "a job")
def hosted_runner(facts: Facts) -> Iterator[Verdict]:
    """GitLab.com's own limit, which no timeout of the project lifts."""
    job = facts.job
    if job.hosted and job.job_timeout is not None and job.job_timeout > HOSTED_SECONDS:
        yield warning(
            ErrorClass.CONFIG,
            f"this runner is one of GitLab.com's own, which ends every job after {spoken(HOSTED_SECONDS)}; "
            f"the job's timeout is {spoken(job.job_timeout)}",
            "leave the inputs job_timeout and script_timeout out, or name a runner of your own with the input tag",
        )


@check("way-home", "settings", "whether the outputs of a training that no job waits for come home", "glgpu.yml, a job")
def way_home(facts: Facts) -> Iterator[Verdict]:
    """That the VM's account may add to the bucket, only the VM itself can prove, before it trains."""
    settings, job = facts.settings.get(), facts.job
    if not wants_to_detach(settings, job):
        return
    if not saves_to_bucket(settings) and not job.gitlab_token:
        judged = error if settings.train.follow is False else warning
        yield judged(ErrorClass.CONFIG, f"no VM could leave its outputs anywhere: {no_way(settings)}", MAKE_WAY)
    trouble = unseen(settings, job)
    if trouble is not None:
        yield warning(trouble.klass, trouble.cause, trouble.remedy)


CHECKS = (variables, settings, training, secrets, lifetimes, hosted_runner, way_home)
