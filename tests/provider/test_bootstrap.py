"""terraform/bootstrap with the real hashicorp/google provider: one apply, as the stand-ins of all of Google see it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.auth import identity_pool
from google.auth.exceptions import OAuthError
from google.auth.transport.requests import Request as Transport

from applying import MakeWorkspace, Provider, Tally, Workspace
from glgpu import permissions
from glgpu.rehearsal.google_access import user
from glgpu.rehearsal.json_web_tokens import SigningKey
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
EMAIL = f"glgpu-jobs@{PROJECT}.iam.gserviceaccount.com"
UPLOADER = f"glgpu-uploader@{PROJECT}.iam.gserviceaccount.com"
JOBS = f"serviceAccount:{EMAIL}"


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
    (trusted,) = apis.identities.policy_of(EMAIL).bindings
    assert trusted["members"] == [
        f"principalSet://iam.googleapis.com/{POOL}/attribute.project_id/{n}" for n in (42, 4711)
    ]
    bucket = apis.storage.buckets[f"{PROJECT}-glgpu"]
    access = bucket.resource["iamConfiguration"]
    assert (access["publicAccessPrevention"], access["uniformBucketLevelAccess"]["enabled"]) == ("enforced", True)
    (uploader,) = [b for b in bucket.policy.bindings if b["role"] == "roles/storage.objectCreator"]
    assert uploader["members"] == [f"serviceAccount:{UPLOADER}"]
    below = f"projects/_/buckets/{PROJECT}-glgpu/objects/glgpu/outputs/"
    assert uploader["condition"]["expression"] == f'resource.name.startsWith("{below}")'
    assert bootstrap.outputs()["ci_variables"] == {
        "GLGPU_PROJECT": PROJECT,
        "GLGPU_STORAGE_BUCKET": f"{PROJECT}-glgpu",
        "GLGPU_STORAGE_UPLOADER": UPLOADER,
        "GLGPU_WIF_PROVIDER": f"{POOL}/providers/gitlab",
        "GLGPU_WIF_SERVICE_ACCOUNT": EMAIL,
    }
    assert "GLGPU_WIF_SERVICE_ACCOUNT=" + EMAIL in bootstrap.outputs()["next_step"]
    rules = [call for call in google.calls.lines() if call["verb"] == "POST" and "/global/firewalls" in call["target"]]
    assert [json.loads(call["body"])["sourceRanges"] for call in rules] == [["35.235.240.0/20"]]
    bootstrap.assert_no_drift()


def test_its_account_has_just_what_it_needs_and_a_job_of_the_project_becomes_it(
    bootstrap: Workspace, google: Google, tmp_path: Path
) -> None:
    # The smallest that jobs can do with: Google cannot reach this GitLab, and nothing is asked for that need not be.
    key = SigningKey()
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [key.public]}), encoding="utf-8")
    small: dict[str, Any] = {
        "jwks_file": str(tmp_path / "keys.json"),
        "bucket": None,
        "nat": [],
        "users": [],
        "iap": False,
    }
    endpoints = {"compute_endpoint": google.engine.endpoint, "google_endpoint": google.endpoint}
    bootstrap.write({**VARIABLES, **endpoints, **small})
    bootstrap.apply()
    told = bootstrap.outputs()["ci_variables"]
    assert set(told) == {"GLGPU_PROJECT", "GLGPU_WIF_PROVIDER", "GLGPU_WIF_SERVICE_ACCOUNT"}

    now = int(time.time())
    claims = {
        "iss": "https://gitlab.example.com", "aud": f"https://iam.googleapis.com/{told['GLGPU_WIF_PROVIDER']}",
        "iat": now, "exp": now + 3600, "project_id": "4711", "job_id": "99", "ref_protected": "true",
    }  # fmt: skip

    def log_in(**changed: str) -> str:
        (tmp_path / "jwt").write_text(key.sign({**claims, **changed}), encoding="utf-8")
        account = f"serviceAccounts/{told['GLGPU_WIF_SERVICE_ACCOUNT']}:generateAccessToken"
        credentials = identity_pool.Credentials.from_info(
            {
                "type": "external_account",
                "audience": f"//iam.googleapis.com/{told['GLGPU_WIF_PROVIDER']}",
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "token_url": f"{google.endpoint}/v1/token",
                "service_account_impersonation_url": f"{google.endpoint}/v1/projects/-/{account}",
                "credential_source": {"file": str(tmp_path / "jwt")},
            },
            scopes=["https://www.googleapis.com/auth/cloud-platform"],
        )
        credentials.refresh(Transport())
        return str(credentials.token)

    token = log_in()
    asked = [
        *permissions.RUN,
        *permissions.LOOK,
        *permissions.BUCKET,
        *permissions.TUNNEL,
        "iam.serviceAccounts.create",
    ]
    path = f"/v1/projects/{PROJECT}:testIamPermissions"
    held = google.ask("POST", path, {"permissions": asked}, token=token)[1]["permissions"]
    assert held == [*permissions.RUN, *permissions.LOOK]
    for changed in ({"project_id": "4712"}, {"ref_protected": "false"}):
        with pytest.raises(OAuthError, match="rejected by the attribute condition"):
            log_in(**changed)


def test_what_is_destroyed_is_gone_and_what_google_keeps_is_said(bootstrap: Workspace, google: Google) -> None:
    bootstrap.apply()
    assert "Destroy complete!" in bootstrap.destroy()
    apis = google.apis
    assert apis.storage.buckets == {}
    assert apis.project.access.accounts == {}
    assert [binding["role"] for binding in apis.project.access.policy.bindings] == ["roles/owner"]
    assert {role["deleted"] for role in apis.project.access.roles.values()} == {True}
    assert "compute.googleapis.com" in apis.project.services, "others may use it too"

    # Google keeps the pool for 30 days, and refuses its id meanwhile; the roles it takes back by itself.
    assert "Error creating WorkloadIdentityPool: googleapi: Error 409: Requested entity already exists" in (
        bootstrap.apply(expect=1)
    )
    for name in (POOL, f"{POOL}/providers/gitlab"):
        assert google.ask("POST", f"/v1/{name}:undelete", {}, token=google.owner_token)[0] == 200
    pool = f"projects/{PROJECT}/locations/global/workloadIdentityPools/glgpu"
    for address, name in (("pool", pool), ("pool_provider", f"{pool}/providers/gitlab")):
        bootstrap.run("import", "-no-color", "-input=false", f"google_iam_workload_identity_{address}.gitlab", name)
    assert "0 destroyed" in bootstrap.apply()
    bootstrap.assert_no_drift()


def test_terraform_tests_of_the_module_pass(provider: Provider, bootstrap: Workspace) -> None:
    if provider.terraform < (1, 7):
        pytest.skip("terraform: `terraform test` mocks providers from 1.7 on, bootstrap's tests not run")
    (bootstrap.folder / "run.auto.tfvars.json").unlink()
    assert "0 failed" in bootstrap.run("test", "-no-color")


def test_a_project_that_nobody_pays_for_is_named(bootstrap: Workspace, google: Google) -> None:
    google.apis.project.billing = False
    assert "Billing must be enabled for activation of service(s)" in bootstrap.apply(expect=1)


def test_somebody_without_the_right_to_is_refused(bootstrap: Workspace, google: Google) -> None:
    stranger = google.apis.project.tokens.issue(user("eve@example.com"))
    bootstrap.environment["GOOGLE_OAUTH_ACCESS_TOKEN"] = stranger
    assert "Permission denied to list services for consumer container" in bootstrap.apply(expect=1)
