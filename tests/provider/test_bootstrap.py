"""terraform/bootstrap with the real hashicorp/google provider: one apply, as the stand-ins of all Google APIs see it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from applying import MakeWorkspace, Tally, Workspace
from glgpu import permissions
from google_stand_ins import PROJECT, Google, all_of_google

POOL = "projects/481516234299/locations/global/workloadIdentityPools/glgpu"
VARIABLES: dict[str, Any] = {
    "project": PROJECT,
    "gitlab_url": "https://gitlab.example.com",
    "gitlab_projects": [4711, 42],
    "protected_refs_only": True,
    "bucket": {"location": "europe-west4"},
    "nat": ["europe-west4"],
    "users": ["user:ada@example.com"],
}
JOBS = f"serviceAccount:glgpu-jobs@{PROJECT}.iam.gserviceaccount.com"


@pytest.fixture
def google(tmp_path: Path, tally: Tally) -> Iterator[Google]:
    """A project as Google makes it, every call of the provider counted."""
    with all_of_google(tmp_path, bootstrapped=False) as made, tally.over(made.calls):
        yield made


@pytest.fixture
def bootstrap(workspace: MakeWorkspace, google: Google) -> Workspace:
    """The module, initialised, with everything asked for that there is to ask for."""
    variables = {**VARIABLES, "compute_endpoint": google.engine.endpoint, "google_endpoint": google.endpoint}
    made = workspace("bootstrap", variables, environment={"GOOGLE_OAUTH_ACCESS_TOKEN": google.owner_token})
    made.init()
    return made


def members(google: Google, role: str) -> list[str]:
    """Who has a role in the project."""
    found = google.apis.project.access.policy.bindings
    return [member for binding in found if binding["role"] == role for member in binding["members"]]


def test_one_apply_makes_everything_and_a_second_plan_finds_it_so(bootstrap: Workspace, google: Google) -> None:
    assert bootstrap.run("validate", "-no-color") == "Success! The configuration is valid."
    bootstrap.apply()
    apis, roles = google.apis, google.apis.project.access.roles
    assert {"compute.googleapis.com", "sts.googleapis.com", "iap.googleapis.com"} <= apis.project.services
    held = {name.rpartition("/")[2]: set(role["includedPermissions"]) for name, role in roles.items()}
    assert held == {
        "glgpu_jobs": {*permissions.RUN, *permissions.LOOK},
        "glgpu_bucket": set(permissions.BUCKET),
        "glgpu_users": set(permissions.USERS),
    }
    assert members(google, f"projects/{PROJECT}/roles/glgpu_jobs") == [JOBS]
    assert members(google, f"projects/{PROJECT}/roles/glgpu_users") == ["user:ada@example.com"]
    assert members(google, "roles/iap.tunnelResourceAccessor") == [JOBS, "user:ada@example.com"]
    provider = apis.identities.providers["glgpu", "gitlab"]
    condition = "assertion.project_id in ['42', '4711'] && assertion.ref_protected == 'true'"
    assert (provider["attributeCondition"], provider["oidc"]["issuerUri"]) == (condition, "https://gitlab.example.com")
    (trusted,) = apis.identities.policy_of(JOBS.partition(":")[2]).bindings
    assert trusted["members"] == [
        f"principalSet://iam.googleapis.com/{POOL}/attribute.project_id/{n}" for n in (42, 4711)
    ]
    bucket = apis.storage.buckets[f"{PROJECT}-glgpu"]
    access = bucket.resource["iamConfiguration"]
    assert (access["publicAccessPrevention"], access["uniformBucketLevelAccess"]["enabled"]) == ("enforced", True)
    uploader = [b["members"] for b in bucket.policy.bindings if b["role"] == "roles/storage.objectCreator"]
    assert uploader == [[f"serviceAccount:glgpu-uploader@{PROJECT}.iam.gserviceaccount.com"]]
    assert bootstrap.outputs()["ci_variables"] == {
        "GLGPU_PROJECT": PROJECT,
        "GLGPU_STORAGE_BUCKET": f"{PROJECT}-glgpu",
        "GLGPU_WIF_PROVIDER": f"{POOL}/providers/gitlab",
        "GLGPU_WIF_SERVICE_ACCOUNT": JOBS.partition(":")[2],
    }
    bootstrap.assert_no_drift()
