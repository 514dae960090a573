"""The container image of the training, as its registry tells."""

from __future__ import annotations

from collections.abc import Iterator

from glgpu.errors import ErrorClass, Failure
from glgpu.steps.checks.facts import Facts
from glgpu.steps.checks.judging import Verdict, check, error, failed, warning

PLATFORM = "linux/amd64"


@check("container-image", "image", "whether the container image is there for the job's logins", "train.image")
def container_image(facts: Facts) -> Iterator[Verdict]:
    """A registry that is out of reach from here may answer the VM."""
    if facts.settings.get().train.image is None:
        return
    try:
        facts.manifest.get()
    except Failure as failure:
        if failure.klass is ErrorClass.IMAGE_PULL:
            yield failed(failure)
        else:
            yield warning(failure.klass, failure.cause, failure.remedy)


@check("container-platform", "image", "whether the container image runs on the VM's processor", "train.image")
def container_platform(facts: Facts) -> Iterator[Verdict]:
    """Images made on a Mac are for ARM unless somebody said otherwise."""
    platforms = facts.manifest.get().platforms
    if platforms and PLATFORM not in platforms:
        yield error(
            ErrorClass.IMAGE_PULL,
            f"{facts.settings.get().train.image} is for {', '.join(platforms)}, the VM is {PLATFORM}",
            "build it with `docker build --platform=linux/amd64 .`, and push it again",
        )


CHECKS = (container_image, container_platform)
