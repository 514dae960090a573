"""Programs and packages of the machine that this runs on."""

from __future__ import annotations

from collections.abc import Iterator

from glgpu.errors import ErrorClass, Failure
from glgpu.steps.checks.facts import Facts
from glgpu.steps.checks.judging import Verdict, check, error, failed, warning

OLDEST_GIT = (2, 23)
"""The first with `rev-list --no-object-names`, by which one commit's objects are listed
(https://github.com/git/git/blob/master/Documentation/RelNotes/2.23.0.txt)."""
OLDEST_PROVIDER = (7, 19)
"""The first with `poll_interval`, which the module sets."""
PROVIDER_MODULE = "gpu-vm"
OFF_SECONDS = 30.0
TOO_FAR_OFF_SECONDS = 300.0
"""A token signed by a clock that is minutes off is refused (https://github.com/googleapis/google-api-php-client/issues/1429);
nobody says how many."""


@check("terraform", "this machine", "whether there is Terraform 1.5 or OpenTofu 1.6, or newer", "nothing")
def terraform(facts: Facts) -> Iterator[Verdict]:
    """The one that GLGPU_TERRAFORM names, else the one on PATH."""
    try:
        facts.terraform.get()
    except Failure as failure:
        yield failed(failure)


@check("provider", "this machine", "whether the google provider that lies here is 7.19 or newer", "nothing")
def provider(facts: Facts) -> Iterator[Verdict]:
    """A folder of providers keeps Terraform from asking the registry for a newer one."""
    if facts.job.terraform_module != PROVIDER_MODULE:
        return
    for folder, versions in facts.providers.get().items():
        newest = max(versions)
        if newest < OLDEST_PROVIDER:
            yield error(
                ErrorClass.TOOL_MISSING,
                f"{folder} holds hashicorp/google {_dotted(newest)}, and Terraform takes none from elsewhere then; "
                f"{_dotted(OLDEST_PROVIDER)} is needed",
                "put a newer one there with `terraform providers mirror FOLDER`, or remove that folder",
            )


@check("git", "this machine", "whether there is a git that can bring the code to the VM", "nothing")
def git(facts: Facts) -> Iterator[Verdict]:
    """Old ones lack an option of `rev-list`."""
    found = facts.programs["git"].get()
    if found is None:
        yield error(ErrorClass.TOOL_MISSING, "git is not on PATH", "install git, or use the job image")
    elif found.version and found.version < OLDEST_GIT:
        yield error(
            ErrorClass.TOOL_MISSING,
            f"{found.path} is version {_dotted(found.version)}, older than {_dotted(OLDEST_GIT)}",
            "install a newer git, or use the job image",
        )


@check("ssh", "this machine", "whether there is an OpenSSH client", "nothing")
def ssh(facts: Facts) -> Iterator[Verdict]:
    """`ssh` reaches the VM, `ssh-keygen` makes the key that opens it."""
    missing = [name for name in ("ssh", "ssh-keygen") if facts.programs[name].get() is None]
    if missing:
        yield error(
            ErrorClass.TOOL_MISSING,
            f"not on PATH: {', '.join(missing)}",
            "install an OpenSSH client, or use the job image",
        )


@check("gcloud", "this machine", "whether gcloud is there for network.access: iap", "glgpu.yml")
def gcloud(facts: Facts) -> Iterator[Verdict]:
    """Only the tunnel through Identity-Aware Proxy needs it."""
    if facts.settings.get().network.access == "iap" and facts.programs["gcloud"].get() is None:
        yield error(
            ErrorClass.TOOL_MISSING,
            "network.access is iap, but gcloud is not on PATH: it makes the tunnel",
            "use the job image job-iap, or set network.access to external",
        )


@check("packages", "this machine", "whether the Python packages that glgpu needs are new enough", "nothing")
def packages(facts: Facts) -> Iterator[Verdict]:
    """What glgpu's own metadata asks for, which an installer may have been overruled in."""
    outdated = facts.outdated.get()
    if outdated:
        yield error(
            ErrorClass.TOOL_MISSING,
            f"Python packages too old for glgpu: {', '.join(outdated)}",
            "install glgpu again into an environment of its own, or use the job image",
        )


@check("clock", "this machine", "whether this machine's clock is right", "GitLab or Google")
def clock(facts: Facts) -> Iterator[Verdict]:
    """By the hour that GitLab's and Google's answers name; both far off alike means that it is ours."""
    lags = []
    for fact in (facts.gitlab_lag, facts.google_lag):
        try:
            lags.append(fact.get())
        except Failure as failure:
            last = failure
    if not lags:
        raise last
    off = min(lags, key=abs)
    if abs(off) < OFF_SECONDS:
        return
    which = "fast" if off > 0 else "slow"
    yield (error if abs(off) > TOO_FAR_OFF_SECONDS else warning)(
        ErrorClass.AUTH,
        f"this machine's clock is {abs(off):.0f} s {which}: tokens and expiry times go by it",
        "set the clock, with `timedatectl set-ntp true` for example",
    )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


CHECKS = (terraform, provider, git, ssh, gcloud, packages, clock)
