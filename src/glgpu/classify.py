"""What a text of the other side means: Terraform, Google, GitLab, Docker, SSH, git -> class, cause, remedy.

Terraform prints the messages of Google's errors, seldom their codes, so a rule matches either. What no rule knows is
UNKNOWN and keeps its raw text: a wrong guess costs more than none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from glgpu.errors import ErrorClass, Failure, one_line


@dataclass(frozen=True)
class Rule:
    """One meaning.

    Attributes:
        klass: The class.
        pattern: What the text looks like; the groups ``a`` and ``b`` may be used in cause and remedy.
        cause: One line; empty: the line that matched.
        remedy: One line.
    """

    klass: ErrorClass
    pattern: re.Pattern[str]
    cause: str
    remedy: str


def _rule(klass: ErrorClass, pattern: str, cause: str, remedy: str) -> Rule:
    return Rule(klass, re.compile(pattern, re.IGNORECASE | re.DOTALL), cause, remedy)


RULES: tuple[Rule, ...] = (
    _rule(
        ErrorClass.STOCKOUT,
        r"ZONE_RESOURCE_POOL_EXHAUSTED|RESOURCE_POOL_EXHAUSTED|insufficientCapacity"
        r"|does not have enough resources available|is currently unavailable in the (?:\S+ )?zone",
        "",
        "try again later, or name more zones or GPUs in glgpu.yml",
    ),
    _rule(
        ErrorClass.QUOTA_GLOBAL,
        r"Quota '(?P<a>\w*ALL_REGIONS\w*)' exceeded\.?\s+(?P<b>Limit: [\d.]+ globally)",
        "the cloud project's quota {a} is used up ({b})",
        "ask for more of {a}: https://console.cloud.google.com/iam-admin/quotas",
    ),
    _rule(
        ErrorClass.QUOTA_REGION,
        r"Quota '(?P<a>\w+)' exceeded\.?\s+(?P<b>Limit: [\d.]+ in region [\w-]+)",
        "the quota {a} is used up ({b})",
        "name zones of another region, or ask for more: https://console.cloud.google.com/iam-admin/quotas",
    ),
    _rule(
        ErrorClass.QUOTA_REGION,
        r"QUOTA_EXCEEDED|quotaExceeded",
        "",
        "ask for more quota: https://console.cloud.google.com/iam-admin/quotas",
    ),
    _rule(
        ErrorClass.API_DISABLED,
        r"accessNotConfigured|SERVICE_DISABLED|API has not been used in project \S+ before or it is disabled",
        "the Compute Engine API is not enabled in the cloud project",
        "enable it: gcloud services enable compute.googleapis.com",
    ),
    _rule(
        ErrorClass.BILLING,
        r"BILLING_DISABLED|billing (?:account|is) .{0,60}(?:disabled|not (?:active|enabled|open))|requires billing",
        "billing is not active for the cloud project",
        "link an open billing account to the cloud project",
    ),
    _rule(
        ErrorClass.ORG_POLICY,
        r"constraints/(?P<a>[\w.]+)",
        "the organisation policy {a} forbids it",
        "ask whoever keeps your organisation's policies about {a}",
    ),
    _rule(
        ErrorClass.RATE_LIMIT,
        r"rateLimitExceeded|RATE_LIMIT_EXCEEDED|RESOURCE_OPERATION_RATE_EXCEEDED|Too Many Requests|\b429\b",
        "",
        "wait a minute and retry the job",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"Required '(?P<a>[\w.]+)' permission(?: for '(?P<b>[^']+)')?",
        "the caller lacks the permission {a}",
        "grant a role with {a} to the account that glgpu uses (docs/how-to/permissions.md)",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"PERMISSION_DENIED|IAM_PERMISSION_DENIED|\bactAs\b|does not have permission|googleapi: Error 403",
        "",
        "grant the missing role to the account that glgpu uses (docs/how-to/permissions.md)",
    ),
    _rule(
        ErrorClass.AUTH,
        r"UNAUTHENTICATED|Invalid Credentials|invalid authentication credentials|could not find default credentials"
        r"|No credentials loaded|default credentials were not found|invalid_grant|invalid_client",
        "Google does not accept the credentials, or there are none",
        "set up Workload Identity Federation or GOOGLE_CREDENTIALS (docs/how-to/credentials.md)",
    ),
    _rule(
        ErrorClass.STATE_LOCK,
        r"Error acquiring the state lock",
        "Terraform's state of this run is locked by another job",
        "wait for that job, or run `glgpu destroy`, which breaks a lock that was left behind",
    ),
    _rule(
        ErrorClass.STATE_ACCESS,
        r"HTTP remote state endpoint (?:requires auth|invalid auth)|Error (?:loading|saving|refreshing) state",
        "GitLab refuses access to Terraform's state",
        "GitLab wants Maintainer rights for it: set GLGPU_GITLAB_TOKEN, or `state: local`",
    ),
    _rule(
        ErrorClass.IMAGE,
        r"Could not find image or family (?P<a>\S+)|The resource '(?P<b>[^']*images[^']*)' was not found",
        "",
        "name another boot image in machine.image",
    ),
    _rule(
        ErrorClass.NOT_AVAILABLE,
        r"does not exist in zone|(?:acceleratorTypes|machineTypes|diskTypes)/[^']+' was not found"
        r"|(?:Machine type with name|Accelerator type) .{0,120} does not exist",
        "",
        "name another zone or machine in glgpu.yml",
    ),
    _rule(
        ErrorClass.CONFIG,
        r"googleapi: Error 400|Invalid value for field|do not support live migration",
        "",
        "mend the machine or network section of glgpu.yml",
    ),
    _rule(
        ErrorClass.CONFLICT,
        r"alreadyExists|already exists|resourceInUseByAnotherResource|conditionNotMet",
        "",
        "run `glgpu destroy` for this run, then retry",
    ),
    _rule(
        ErrorClass.IMAGE_PULL,
        r"pull access denied|manifest unknown|manifest for \S+ not found|unauthorized: |denied: "
        r"|repository does not exist|no basic auth credentials|invalid reference format",
        "",
        "check train.image and the registry's login (GLGPU_REGISTRY_USER, GLGPU_REGISTRY_PASSWORD)",
    ),
    _rule(
        ErrorClass.DRIVER,
        r"NVIDIA-SMI has failed|could not select device driver|nvidia-container-cli|Failed to initialize NVML"
        r"|forward compatibility was attempted",
        "",
        "use a boot image with an NVIDIA driver and container toolkit that fit the GPU",
    ),
    _rule(
        ErrorClass.CODE,
        r"Could not read from remote repository|couldn't find remote ref|not our ref|Repository not found"
        r"|did not contain [0-9a-f]{40}|reference is not a tree",
        "",
        "check that the commit is pushed and that the project and its submodules can be read, or set `code: job`",
    ),
    _rule(
        ErrorClass.SSH,
        r"Permission denied \(publickey|Host key verification failed|kex_exchange_identification"
        r"|ssh: connect to host",
        "",
        "check the VM's serial console and the network's firewall; then retry the job",
    ),
    _rule(
        ErrorClass.DISK_FULL,
        r"No space left on device",
        "a disk is full",
        "make room; on the VM: set a larger machine.disk_gb",
    ),
    _rule(
        ErrorClass.NETWORK,
        r"connection refused|connection reset|no route to host|Name or service not known|no such host"
        r"|Temporary failure in name resolution|timed out|timeout awaiting|TLS handshake|certificate verify failed"
        r"|Max retries exceeded|Connection aborted|network is unreachable",
        "",
        "check the way to the other side, then retry the job",
    ),
    _rule(
        ErrorClass.TRANSIENT,
        r"backendError|internalError|INTERNAL_ERROR|Service Unavailable|\b50[0234]\b|RESOURCE_NOT_READY",
        "",
        "retry the job",
    ),
    _rule(
        ErrorClass.NOT_FOUND,
        r"notFound|was not found|404 Not Found",
        "",
        "check the name in glgpu.yml and the cloud project",
    ),
)


def explain(text: str, *, unknown: ErrorClass = ErrorClass.UNKNOWN, doing: str = "") -> Failure:
    """Turn a text into a failure.

    Args:
        text: What the other side said.
        unknown: The class where no rule matches.
        doing: What was being attempted, to begin the cause with.
    """
    for rule in RULES:
        match = rule.pattern.search(text)
        if match:
            words = {key: value or "" for key, value in match.groupdict().items()}
            cause = rule.cause.format(**words) if rule.cause else _line_of(text, match)
            return Failure(rule.klass, _begin(doing, cause), rule.remedy.format(**words), text)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return Failure(unknown, _begin(doing, first[:300]), "read what the other side said, above", text)


def _begin(doing: str, cause: str) -> str:
    return f"{doing}: {cause}" if doing else cause


def _line_of(text: str, match: re.Match[str]) -> str:
    begin = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    return one_line(text[begin : end if end >= 0 else len(text)])[:300]
