"""What a text of the other side means: Terraform, Google, GitLab, Docker, SSH, git -> class, cause, remedy.

Terraform prints the messages of Google's errors, seldom their codes, so a rule matches either. What no rule knows is
UNKNOWN and keeps its raw text: a wrong guess costs more than none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from glgpu.errors import ErrorClass, Failure, one_line

LONGEST_TEXT = 100_000
"""Characters of a text that are looked at."""


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


def _status(codes: str) -> str:
    """An HTTP status where a text speaks of one; any three digits may be a line number."""
    return (
        rf"(?:Error|HTTP(?:/[\d.]+)?|status(?: code)?|code):? (?:{codes})\b"
        rf"|^(?:{codes}) (?:GET|HEAD|POST|PUT|PATCH|DELETE)\b"
    )


def _rule(klass: ErrorClass, pattern: str, cause: str, remedy: str) -> Rule:
    # What people paste has been wrapped by gcloud, or by their terminal: a blank stands for any white space.
    spaced = pattern.replace(" ", r"\s+")
    return Rule(klass, re.compile(spaced, re.IGNORECASE | re.DOTALL | re.MULTILINE), cause, remedy)


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
        r"Quota '(?P<a>\w*ALL_REGIONS\w*)' exceeded",
        "the cloud project's quota {a} is used up, in all regions together",
        "ask for more of {a}: https://console.cloud.google.com/iam-admin/quotas",
    ),
    _rule(
        ErrorClass.QUOTA_REGION,
        r"Quota '(?P<a>\w+)' exceeded\.? (?P<b>Limit: [\d.]+ in region [\w-]+)",
        "the quota {a} is used up ({b})",
        "name zones of another region, or ask for more: https://console.cloud.google.com/iam-admin/quotas",
    ),
    _rule(
        ErrorClass.QUOTA_REGION,
        r"Quota '\w+' exceeded|QUOTA_EXCEEDED|quotaExceeded",
        "",
        "ask for more quota: https://console.cloud.google.com/iam-admin/quotas",
    ),
    _rule(
        ErrorClass.API_DISABLED,
        r"(?P<a>[A-Z][\w\x20()-]{0,80} API) has not been used in project \S+ before or it is disabled"
        r".{0,200}?/apis/api/(?P<b>[\w.]+)/overview",
        "the {a} is not enabled in the cloud project",
        "enable it: gcloud services enable {b} --project PROJECT",
    ),
    _rule(
        ErrorClass.API_DISABLED,
        r"accessNotConfigured|SERVICE_DISABLED|API has not been used in project \S+ before or it is disabled",
        "an API is not enabled in the cloud project",
        "enable the one named above, if none: gcloud services enable compute.googleapis.com --project PROJECT",
    ),
    _rule(
        ErrorClass.BILLING,
        r"BILLING_DISABLED|UREQ_PROJECT_BILLING|has billing disabled|billing (?:must|to) be enabled|requires billing"
        r"|billing (?:account )?(?:for project \S+ )?is (?:disabled|closed|not (?:active|enabled|found|open))",
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
        ErrorClass.ORG_POLICY,
        r"prohibited by organization's policy|due to an organization policy",
        "",
        "ask whoever keeps your organisation's policies",
    ),
    _rule(
        ErrorClass.RATE_LIMIT,
        r"toomanyrequests: |reached your (?:unauthenticated )?pull rate limit",
        "",
        "wait, or log in to the registry (GLGPU_REGISTRY_USER, GLGPU_REGISTRY_PASSWORD): that raises the limit",
    ),
    _rule(
        ErrorClass.RATE_LIMIT,
        r"rateLimitExceeded|RATE_LIMIT_EXCEEDED|RESOURCE_OPERATION_RATE_EXCEEDED|Too Many Requests"
        rf"|{_status('429')}",
        "",
        "wait a minute and retry the job",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"Required '(?P<a>[\w.]+)' permission"
        r"|Permission ['\u2018]?(?P<b>\w+\.[\w.]+\w)['\u2019]? (?:is required|denied)",
        "the caller lacks the permission {a}{b}",
        "grant a role with {a}{b} to the account that glgpu uses (docs/how-to/google-cloud-access.md)",
    ),
    _rule(
        ErrorClass.AUTH,
        r"UNAUTHENTICATED|Invalid Credentials|invalid authentication credentials|missing required authentication"
        r"|could not find default credentials|No credentials loaded|default credentials were not found|invalid_grant"
        r"|invalid_client|unauthorized_client|invalid_target|rejected by the attribute condition"
        r"|Unable to acquire impersonated credentials|googleapi: Error 401",
        "Google does not accept the credentials, or there are none",
        "set up Workload Identity Federation or GOOGLE_CREDENTIALS (docs/how-to/google-cloud-access.md)",
    ),
    _rule(
        ErrorClass.PERMISSION,
        r"PERMISSION_DENIED|\bactAs\b|does not have (?:permission|access to service account)"
        r"|SERVICE_ACCOUNT_ACCESS_DENIED|googleapi: Error 403",
        "",
        "grant the missing role to the account that glgpu uses (docs/how-to/google-cloud-access.md)",
    ),
    _rule(
        ErrorClass.STATE_ACCESS,
        r"HTTP remote state endpoint (?:requires|invalid) auth",
        "GitLab refuses access to Terraform's state",
        "GitLab wants Maintainer rights for it: set GLGPU_GITLAB_TOKEN, or `state: local`",
    ),
    _rule(
        ErrorClass.STATE_LOCK,
        r"state (?:is )?already locked|Error acquiring the state lock.*?Lock Info:",
        "Terraform's state of this run is locked by another job",
        "wait for that job, or run `glgpu destroy`, which breaks a lock that was left behind",
    ),
    _rule(
        ErrorClass.IMAGE,
        r"Could not find image or family|The resource '[^']*/images/[^']*' was not found"
        r"|referenced image resource cannot be found",
        "",
        "name another boot image in machine.image",
    ),
    _rule(
        ErrorClass.NOT_AVAILABLE,
        r"does not exist in zone|(?:acceleratorTypes|machineTypes|diskTypes)/[^']+' was not found"
        r"|(?:Machine type with name|Accelerator type) .{0,120} does not exist"
        r"|referenced (?:accelerator|machine|disk)Type resource cannot be found",
        "",
        "name another zone or machine in glgpu.yml",
    ),
    _rule(
        ErrorClass.CONFLICT,
        r"alreadyExists|already exists|resourceInUseByAnotherResource|conditionNotMet",
        "",
        "run `glgpu destroy` for this run, then retry",
    ),
    _rule(
        ErrorClass.DISK_FULL,
        r"No space left on device",
        "a disk is full",
        "make room; on the VM: set a larger machine.disk_gb",
    ),
    _rule(
        ErrorClass.DRIVER,
        r"NVIDIA-SMI has failed|could not select device driver|nvidia-container-cli|Failed to initialize NVML"
        r"|forward compatibility was attempted|CUDA driver version is insufficient|Found no NVIDIA driver",
        "",
        "use a boot image with an NVIDIA driver and container toolkit that fit the GPU and the container image",
    ),
    _rule(
        ErrorClass.OOM,
        r"CUDA out of memory|torch\.OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED",
        "",
        "use a GPU with more memory, or train with smaller batches",
    ),
    _rule(
        ErrorClass.IMAGE_PULL,
        r"pull access denied|manifest unknown|manifest for \S+ not found|unauthorized: |(?<!permission\x20)denied: "
        r"|repository does not exist|no basic auth credentials|invalid reference format",
        "",
        "check train.image and the registry's login (GLGPU_REGISTRY_USER, GLGPU_REGISTRY_PASSWORD)",
    ),
    _rule(
        ErrorClass.NETWORK,
        r"(?:Could not resolve hostname|ssh: connect to host).{0,300}Could not read from remote repository",
        "",
        "the VM has no way to GitLab's SSH port: set `code: job`",
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
        r"|ssh: connect to host|start-iap-tunnel|failed to connect to backend",
        "",
        "check the VM's serial console and the network's firewall; then retry the job",
    ),
    _rule(
        ErrorClass.NETWORK,
        r"connection refused|connection reset|no route to host|Name or service not known|no such host"
        r"|Temporary failure in name resolution|timed out|timeout awaiting|i/o timeout|context deadline exceeded"
        r"|proxyconnect|TLS handshake|certificate verify failed|x509: |Max retries exceeded|Connection aborted"
        r"|network is unreachable",
        "",
        "check the way to the other side, then retry the job",
    ),
    _rule(
        ErrorClass.TRANSIENT,
        r"backendError|internalError|INTERNAL_ERROR|Internal error\. Please try again|Service Unavailable|Bad Gateway"
        rf"|Gateway Time-?out|Internal Server Error|RESOURCE_NOT_READY|resourceNotReady|{_status('50[0234]')}",
        "",
        "retry the job",
    ),
    _rule(
        ErrorClass.STATE_LOCK,
        r"Error acquiring the state lock",
        "Terraform's state of this run cannot be locked",
        "run `glgpu destroy`, which breaks a lock that was left behind, or set `state: local`",
    ),
    _rule(
        ErrorClass.STATE_ACCESS,
        r"Error (?:loading|saving|refreshing) state",
        "",
        "check GitLab's Terraform states (Operate > Terraform states), or set `state: local`",
    ),
    _rule(
        ErrorClass.CONFIG,
        r"googleapi: Error 400|Invalid value for field|do not support live migration|features are not compatible",
        "",
        "mend the machine or network section of glgpu.yml",
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
    # What matters stands at the end. The vertical line is Terraform's frame around an error.
    plain = text[-LONGEST_TEXT:].replace("\N{BOX DRAWINGS LIGHT VERTICAL}", " ")
    for rule in RULES:
        match = rule.pattern.search(plain)
        if match:
            words = {key: one_line(value or "") for key, value in match.groupdict().items()}
            cause = rule.cause.format(**words) if rule.cause else _lines_of(plain, match)
            return Failure(rule.klass, _begin(doing, cause), rule.remedy.format(**words), text)
    first = next((line.strip() for line in plain.splitlines() if line.strip()), "no reason given")
    remedy = "read what the other side said, above" if plain.strip() else "retry the job"
    return Failure(unknown, _begin(doing, first), remedy, text)


def _begin(doing: str, cause: str) -> str:
    return f"{doing}: {cause}" if doing else cause


def _lines_of(text: str, match: re.Match[str]) -> str:
    # Not cut to a length here: the masker has not seen it yet, and would not recognise half a secret.
    begin = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    return one_line(text[begin : end if end >= 0 else len(text)])
