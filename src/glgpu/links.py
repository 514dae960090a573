"""Every address that a remedy sends people to, with the day and the place where it was seen; none is made up.

`tests/repo/test_remedies.py` refuses a remedy with an address that does not stand here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date


@dataclass(frozen=True)
class Link:
    """One address.

    Attributes:
        url: Where it leads.
        seen: The day on which it was found in use.
        where: Whose page or program named it then.
    """

    url: str
    seen: date
    where: str


_NOVEMBER = date(2026, 11, 23)

QUOTAS = Link(
    "https://console.cloud.google.com/iam-admin/quotas",
    _NOVEMBER,
    "hashicorp/google 7.46, documentation of the data source google_cloud_quotas_quota_info",
)
BILLING = Link(
    "https://console.cloud.google.com/billing/projects",
    _NOVEMBER,
    "https://cloud.google.com/billing/docs/how-to/modify-project",
)
GPU_ZONES = Link(
    "https://cloud.google.com/compute/docs/gpus",
    _NOVEMBER,
    "gcloud 578, help of compute accelerator-types",
)
ORG_POLICIES = Link(
    "https://cloud.google.com/resource-manager/docs/organization-policy/org-policy-constraints",
    _NOVEMBER,
    "gcloud 578, command_lib/org_policies/arguments.py",
)
FEDERATION = Link(
    "https://cloud.google.com/iam/docs/workload-identity-federation",
    _NOVEMBER,
    "gcloud 578, help of auth login",
)
IAP = Link(
    "https://cloud.google.com/iap/docs/using-tcp-forwarding", _NOVEMBER, "gcloud 578, help of compute start-iap-tunnel"
)
OS_LOGIN = Link(
    "https://cloud.google.com/compute/docs/oslogin/manage-oslogin-in-an-org",
    _NOVEMBER,
    "Google's documentation, Manage OS Login in an organization",
)
SSH_TROUBLE = Link(
    "https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-ssh",
    _NOVEMBER,
    "gcloud 578, command_lib/compute/ssh_utils.py",
)

CUDA = Link(
    "https://docs.nvidia.com/deploy/cuda-compatibility/", _NOVEMBER, "NVIDIA's documentation, CUDA Compatibility"
)
TOKENS = Link(
    "https://docs.gitlab.com/user/project/settings/project_access_tokens/",
    _NOVEMBER,
    "GitLab's documentation, Project access tokens",
)

LINKS: tuple[Link, ...] = (
    QUOTAS,
    BILLING,
    GPU_ZONES,
    ORG_POLICIES,
    FEDERATION,
    IAP,
    OS_LOGIN,
    SSH_TROUBLE,
    CUDA,
    TOKENS,
)
