"""The stand-in of Google's other APIs, held by clients of others: google-auth, google-cloud-storage, Terraform."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.auth import identity_pool
from google.auth.exceptions import OAuthError, RefreshError
from google.auth.transport.requests import Request as Transport
from google.cloud import storage
from google.oauth2 import service_account
from google.oauth2.credentials import Credentials

from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.json_web_tokens import SigningKey
from google_stand_ins import PROJECT, Google, all_of_google

SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
ISSUER = "https://gitlab.example.com"
BUCKET = "my-dl-glgpu"
DEBIAN = "projects/debian-cloud/global/images/family/debian-12"


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Google]:
    with all_of_google(tmp_path) as made:
        yield made


@pytest.fixture
def bucket(cloud: Google) -> storage.Bucket:
    made: storage.Bucket = client(cloud, cloud.owner_token).create_bucket(BUCKET, location="europe-west4")
    return made


def client(cloud: Google, token: str) -> storage.Client:
    return storage.Client(
        project=PROJECT,
        credentials=Credentials(token=token),
        client_options=ClientOptions(api_endpoint=cloud.endpoint),
    )


# The project


def test_a_call_without_or_with_a_foreign_token_is_refused(cloud: Google) -> None:
    status, answer = cloud.ask("GET", f"/v1/projects/{PROJECT}", token="ya29.nobody")
    assert (status, answer["error"]["status"]) == (401, "UNAUTHENTICATED")


def test_an_unknown_parameter_and_an_unknown_field_are_refused(cloud: Google) -> None:
    status, answer = cloud.ask("GET", f"/v1/projects/{PROJECT}?nonsense=1")
    assert (status, "nonsense" in answer["error"]["message"]) == (400, True)
    status, answer = cloud.ask("POST", f"/v1/projects/{PROJECT}:testIamPermissions", {"nonsense": 1})
    assert (status, "nonsense" in answer["error"]["message"]) == (400, True)
    assert all(call["unserved"] for call in cloud.calls.lines())


def test_permissions_follow_from_the_roles_and_the_policy(cloud: Google) -> None:
    asked = {"permissions": ["compute.instances.create", "resourcemanager.projects.setIamPolicy"]}
    path = f"/v1/projects/{PROJECT}:testIamPermissions"
    assert cloud.ask("POST", path, asked)[1] == {"permissions": ["compute.instances.create"]}
    assert cloud.ask("POST", path, asked, token=cloud.owner_token)[1] == asked
    cloud.apis.project.access.denied.add("compute.instances.create")
    assert cloud.ask("POST", path, asked)[1] == {}


def test_a_policy_that_was_changed_meanwhile_is_not_overwritten(cloud: Google) -> None:
    get, put = f"/v1/projects/{PROJECT}:getIamPolicy", f"/v1/projects/{PROJECT}:setIamPolicy"
    policy = cloud.ask("POST", get, {}, token=cloud.owner_token)[1]
    policy["bindings"].append({"role": "roles/iap.tunnelResourceAccessor", "members": ["user:ada@example.com"]})
    assert cloud.ask("POST", put, {"policy": policy}, token=cloud.owner_token)[0] == 200
    policy["bindings"].pop()
    status, answer = cloud.ask("POST", put, {"policy": policy}, token=cloud.owner_token)
    assert (status, answer["error"]["status"]) == (409, "ABORTED")


@pytest.mark.parametrize("member", ["ada@example.com", "serviceAccount:nobody@my-dl.iam.gserviceaccount.com"])
def test_a_policy_for_somebody_who_cannot_be_is_refused(cloud: Google, member: str) -> None:
    policy = {"bindings": [{"role": "roles/owner", "members": [member]}]}
    path = f"/v1/projects/{PROJECT}:setIamPolicy"
    assert cloud.ask("POST", path, {"policy": policy}, token=cloud.owner_token)[0] == 400


def test_a_service_that_is_switched_off_refuses_and_can_be_switched_on(cloud: Google) -> None:
    cloud.apis.project.services -= {"cloudbilling.googleapis.com", "compute.googleapis.com"}
    status, answer = cloud.ask("GET", f"/v1/projects/{PROJECT}/billingInfo")
    assert (status, answer["error"]["details"][0]["reason"]) == (403, "SERVICE_DISABLED")
    path = f"/v1/projects/{PROJECT}/services:batchEnable"
    names = {"serviceIds": ["cloudbilling.googleapis.com", "compute.googleapis.com"]}
    assert cloud.ask("POST", path, names)[0] == 403
    assert cloud.ask("POST", path, names, token=cloud.owner_token)[1]["done"] is True
    assert cloud.ask("GET", f"/v1/projects/{PROJECT}/billingInfo")[1]["billingEnabled"] is True


def test_whoever_gives_a_vm_a_service_account_has_to_be_allowed_to_act_as_it(cloud: Google) -> None:
    own, foreign = (f"{name}@{PROJECT}.iam.gserviceaccount.com" for name in ("uploader", "foreign"))
    cloud.apis.make_uploader(own)
    cloud.apis.make_uploader(foreign)
    cloud.apis.identities.policy_of(foreign).bindings.clear()
    answers = {email: insert_as(cloud, email) for email in (own, foreign, "nobody@example.com")}
    assert answers.pop(own)[0] == 200
    for status, text in answers.values():
        assert (status, "does not have access to service account" in text) == (400, True)


def insert_as(cloud: Google, email: str) -> tuple[int, str]:
    """Order a VM with a service account: status and text of the answer."""
    order = {
        "name": f"vm-{email.partition('@')[0]}", "machineType": "zones/europe-west4-a/machineTypes/e2-small",
        "disks": [{"boot": True, "initializeParams": {"sourceImage": DEBIAN}}],
        "networkInterfaces": [{"network": "global/networks/default"}],
        "serviceAccounts": [{"email": email, "scopes": SCOPES}],
    }  # fmt: skip
    url = f"{cloud.engine.endpoint}/compute/v1/projects/{PROJECT}/zones/europe-west4-a/instances"
    headers = {"Authorization": f"Bearer {cloud.token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(order).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_compute_engine_needs_a_project_that_pays(cloud: Google) -> None:
    cloud.apis.project.billing = False
    path = f"/v1/projects/{PROJECT}/services/compute.googleapis.com:enable"
    status, answer = cloud.ask("POST", path, {}, token=cloud.owner_token)
    assert (status, answer["error"]["status"]) == (400, "FAILED_PRECONDITION")


def test_an_organisation_policy_is_google_s_default_until_it_is_set(cloud: Google) -> None:
    path = f"/v2/projects/{PROJECT}/policies/compute.vmExternalIpAccess:getEffectivePolicy"
    assert cloud.ask("GET", path)[1]["spec"] == {"rules": [{"allowAll": True}]}
    cloud.apis.project.policies["compute.vmExternalIpAccess"] = [{"denyAll": True}]
    assert cloud.ask("GET", path)[1]["spec"] == {"rules": [{"denyAll": True}]}


def test_a_fault_strikes_at_its_method(cloud: Google) -> None:
    cloud.faults.rules.append(Rule("cloudresourcemanager.projects.get", "unavailable", nth=1))
    assert [cloud.ask("GET", f"/v1/projects/{PROJECT}")[0] for _ in range(2)] == [503, 200]


def test_the_price_list_comes_in_pages(cloud: Google) -> None:
    path = "/v1/services/6F81-5844-456A/skus?currencyCode=USD&pageSize="
    whole = cloud.ask("GET", f"{path}5000")[1]
    assert (len(whole["skus"]) > 100, whole["nextPageToken"]) == (True, "")
    page = cloud.ask("GET", f"{path}100")[1]
    rest = cloud.ask("GET", f"{path}5000&pageToken={page['nextPageToken']}")[1]
    assert page["skus"] + rest["skus"] == whole["skus"]


# Federation


class Issuer:
    """A GitLab, as far as Google knows it: an address and a key."""

    def __init__(self) -> None:
        self.key = SigningKey()
        self.jwks = json.dumps({"keys": [self.key.public]})

    def token(self, **changed: Any) -> str:
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": "x",
            "aud": "glgpu",
            "iat": now,
            "exp": now + 9000,
            "project_id": "4711",
            "job_id": "9",
        }
        claims = {name: value for name, value in (claims | changed).items() if value is not None}
        return self.key.sign(claims)


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def provider(cloud: Google, issuer: Issuer) -> str:
    name = cloud.apis.trust(ISSUER, 4711)
    oidc = {"issuerUri": ISSUER, "jwksJson": issuer.jwks, "allowedAudiences": ["glgpu"]}
    cloud.apis.identities.providers["glgpu", "glgpu"]["oidc"] = oidc
    return name


def federation(cloud: Google, provider: str, identity: Path, account: str | None = None) -> dict[str, Any]:
    """What a file of Workload Identity Federation says, which google-auth and Go's clients read alike."""
    iam = f"{cloud.endpoint}/v1/projects/-/serviceAccounts/{account or cloud.apis.account}:generateAccessToken"
    return {
        "type": "external_account",
        "audience": f"//iam.googleapis.com/{provider}",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{cloud.endpoint}/v1/token",
        "service_account_impersonation_url": iam,
        "credential_source": {"file": str(identity)},
    }


def federated(cloud: Google, provider: str, token: str, folder: Path, account: str | None = None) -> Any:
    """google-auth's credentials for an identity token."""
    (folder / "jwt").write_text(token, encoding="utf-8")
    return identity_pool.Credentials.from_info(federation(cloud, provider, folder / "jwt", account), scopes=SCOPES)


def test_an_identity_token_becomes_the_service_account(
    cloud: Google, provider: str, issuer: Issuer, tmp_path: Path
) -> None:
    credentials = federated(cloud, provider, issuer.token(), tmp_path)
    credentials.refresh(Transport())
    assert cloud.ask("GET", f"/v1/projects/{PROJECT}", token=credentials.token)[0] == 200
    found = cloud.apis.project.tokens.find(credentials.token)
    assert found is not None
    assert found.name == cloud.apis.account
    cloud.clock.advance(3601)
    assert cloud.ask("GET", f"/v1/projects/{PROJECT}", token=credentials.token)[0] == 401


def test_the_identity_token_is_in_no_log(cloud: Google, provider: str, issuer: Issuer, tmp_path: Path) -> None:
    token = issuer.token()
    federated(cloud, provider, token, tmp_path).refresh(Transport())
    assert token not in cloud.calls.path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changed", "word", "text"),
    [
        ({"project_id": "4712"}, "unauthorized_client", "rejected by the attribute condition"),
        ({"project_id": None}, "unauthorized_client", "rejected by the attribute condition"),
        ({"iss": "https://gitlab.com"}, "invalid_grant", "The issuer in ID Token https://gitlab.com does not match"),
        ({"aud": "other"}, "invalid_grant", r"The audience in ID Token \[other\] does not match"),
        ({"exp": 1700000000}, "invalid_grant", "is stale to sign-in"),
        ({"iat": None}, "invalid_grant", "issued at null is stale to sign-in"),
        ({"job_id": "9" * 120}, "invalid_request", "exceeds the 127 bytes limit"),
    ],
)
def test_an_identity_token_that_says_something_else_is_refused(
    changed: dict[str, Any], word: str, text: str, cloud: Google, provider: str, issuer: Issuer, tmp_path: Path
) -> None:
    with pytest.raises(OAuthError, match=f"{word}.*{text}"):
        federated(cloud, provider, issuer.token(**changed), tmp_path).refresh(Transport())


def test_an_identity_token_of_another_key_is_refused(
    cloud: Google, provider: str, issuer: Issuer, tmp_path: Path
) -> None:
    forger = Issuer()
    forger.key.id = issuer.key.id
    forged = forger.token()
    with pytest.raises(OAuthError, match="Unable to verify the ID Token signature"):
        federated(cloud, provider, forged, tmp_path).refresh(Transport())


def test_an_issuer_that_cannot_be_reached_is_said_so(
    cloud: Google, provider: str, issuer: Issuer, tmp_path: Path
) -> None:
    cloud.apis.identities.providers["glgpu", "glgpu"]["oidc"] = {"issuerUri": "http://127.0.0.1:9"}
    token = issuer.token(iss="http://127.0.0.1:9", aud=f"https://iam.googleapis.com/{provider}")
    with pytest.raises(OAuthError, match="Error connecting to the given credential's issuer"):
        federated(cloud, provider, token, tmp_path).refresh(Transport())


def test_a_deleted_pool_refuses_everybody(cloud: Google, provider: str, issuer: Issuer, tmp_path: Path) -> None:
    pool = provider.rpartition("/providers/")[0]
    assert cloud.ask("DELETE", f"/v1/{pool}", token=cloud.owner_token)[0] == 200
    with pytest.raises(OAuthError, match="invalid_target"):
        federated(cloud, provider, issuer.token(), tmp_path).refresh(Transport())
    assert cloud.ask("POST", f"/v1/{pool}:undelete", {}, token=cloud.owner_token)[0] == 200
    federated(cloud, provider, issuer.token(), tmp_path).refresh(Transport())


def test_a_trusted_job_may_not_be_another_service_account(
    cloud: Google, provider: str, issuer: Issuer, tmp_path: Path
) -> None:
    body = {"accountId": "other-one"}
    assert cloud.ask("POST", f"/v1/projects/{PROJECT}/serviceAccounts", body, token=cloud.owner_token)[0] == 200
    credentials = federated(cloud, provider, issuer.token(), tmp_path, f"other-one@{PROJECT}.iam.gserviceaccount.com")
    with pytest.raises(RefreshError, match=r"iam\.serviceAccounts\.getAccessToken"):
        credentials.refresh(Transport())


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"oidc": {"issuerUri": "http://gitlab.example.com"}}, "The scheme must be https"),
        ({"oidc": {"issuerUri": ISSUER, "jwksJson": "nonsense"}}, "not in a valid json format"),
        ({"attributeMapping": {"attribute.project_id": "assertion.project_id"}}, "google.subject"),
        ({"attributeCondition": "assertion.project_id ="}, "Failed to parse"),
        ({"oidc": {"issuerUri": "https://gitlab.com"}, "attributeCondition": ""}, "must reference one of"),
    ],
)
def test_a_provider_that_cannot_work_is_refused(changed: dict[str, Any], text: str, cloud: Google) -> None:
    pools = f"/v1/projects/{PROJECT}/locations/global/workloadIdentityPools"
    assert cloud.ask("POST", f"{pools}?workloadIdentityPoolId=gitlab", {}, token=cloud.owner_token)[0] == 200
    body = {
        "oidc": {"issuerUri": ISSUER},
        "attributeMapping": {"google.subject": "assertion.sub"},
        "attributeCondition": "assertion.project_id == '4711'",
    }
    path = f"{pools}/gitlab/providers?workloadIdentityPoolProviderId=gitlab"
    status, answer = cloud.ask("POST", path, body | changed, token=cloud.owner_token)
    assert (status, text in answer["error"]["message"]) == (400, True), answer
    assert cloud.ask("POST", path, body, token=cloud.owner_token)[0] == 200


def test_a_service_account_s_key_gives_a_token(cloud: Google) -> None:
    key = cloud.apis.new_key(cloud.apis.account)
    credentials = service_account.Credentials.from_service_account_info(key, scopes=SCOPES)
    credentials.refresh(Transport())
    assert cloud.ask("GET", f"/v1/projects/{PROJECT}", token=credentials.token)[0] == 200
    stranger = cloud.apis.new_key(cloud.apis.account) | {"private_key_id": key["private_key_id"]}
    with pytest.raises(RefreshError, match="Invalid JWT Signature"):
        service_account.Credentials.from_service_account_info(stranger, scopes=SCOPES).refresh(Transport())


def test_a_service_account_s_key_signs_tokens_itself(cloud: Google) -> None:
    key = cloud.apis.new_key(cloud.apis.account)
    credentials = service_account.Credentials.from_service_account_info(key, scopes=SCOPES, always_use_jwt_access=True)
    credentials._create_self_signed_jwt("https://compute.googleapis.com/")
    credentials.refresh(Transport())
    assert cloud.ask("GET", f"/v1/projects/{PROJECT}", token=credentials.token)[0] == 200
    head, claims, signature = credentials.token.split(".")
    forged = f"{head}.{claims}.{signature[::-1]}"
    assert cloud.ask("GET", f"/v1/projects/{PROJECT}", token=forged)[0] == 401
    assert [call for call in cloud.calls.lines() if call["target"] == "/token"] == []
    cloud.clock.advance(3700)
    assert cloud.ask("GET", f"/v1/projects/{PROJECT}", token=credentials.token)[0] == 401


# Cloud Storage


def test_an_object_is_written_read_listed_and_deleted(bucket: storage.Bucket) -> None:
    for name in ("runs/a b/one.txt", "runs/two.bin", "other"):
        bucket.blob(name).upload_from_string(name.encode() * 3, content_type="text/plain")
    assert [blob.name for blob in bucket.list_blobs(prefix="runs/")] == ["runs/a b/one.txt", "runs/two.bin"]
    found = bucket.get_blob("runs/a b/one.txt")
    assert found is not None
    assert (found.content_type, found.size) == ("text/plain", 48)
    assert found.download_as_bytes() == b"runs/a b/one.txt" * 3
    found.delete()
    assert bucket.get_blob("runs/a b/one.txt") is None
    with pytest.raises(exceptions.NotFound, match="No such object"):
        found.download_as_bytes()


def test_a_big_object_comes_in_pieces(bucket: storage.Bucket) -> None:
    content = os.urandom((1 << 20) + 12345)
    bucket.blob("weights", chunk_size=256 * 1024).upload_from_string(content)
    blob = bucket.blob("weights", chunk_size=512 * 1024)
    assert blob.download_as_bytes() == content


def test_an_object_is_not_overwritten_against_its_precondition(bucket: storage.Bucket) -> None:
    bucket.blob("lock").upload_from_string(b"first", if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob("lock").upload_from_string(b"second", if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob("lock").delete(if_generation_match=1)
    assert bucket.blob("lock").download_as_bytes() == b"first"


def test_versions_are_kept_where_the_bucket_says_so(bucket: storage.Bucket) -> None:
    bucket.versioning_enabled = True
    bucket.patch()
    for text in (b"one", b"two"):
        bucket.blob("state").upload_from_string(text)
    bucket.blob("state").delete()
    assert bucket.get_blob("state") is None
    kept = list(bucket.list_blobs(versions=True))
    assert [blob.download_as_bytes() for blob in kept] == [b"one", b"two"]


def test_an_account_that_may_only_create_neither_reads_nor_overwrites(cloud: Google, bucket: storage.Bucket) -> None:
    path = f"/v1/projects/{PROJECT}/serviceAccounts"
    email = cloud.ask("POST", path, {"accountId": "uploader"}, token=cloud.owner_token)[1]["email"]
    policy = bucket.get_iam_policy(requested_policy_version=3)
    policy.bindings.append({"role": "roles/storage.objectCreator", "members": {f"serviceAccount:{email}"}})
    bucket.set_iam_policy(policy)
    key = service_account.Credentials.from_service_account_info(cloud.apis.new_key(email), scopes=SCOPES)
    options = ClientOptions(api_endpoint=cloud.endpoint)
    uploader = storage.Client(project=PROJECT, credentials=key, client_options=options).bucket(BUCKET)
    uploader.blob("checkpoint").upload_from_string(b"mine")
    with pytest.raises(exceptions.Forbidden, match=r"storage\.objects\.delete"):
        uploader.blob("checkpoint").upload_from_string(b"again")
    with pytest.raises(exceptions.Forbidden, match=r"storage\.objects\.get"):
        uploader.blob("checkpoint").download_as_bytes()


def test_a_bucket_s_name_is_taken_once_and_a_full_one_stays(cloud: Google, bucket: storage.Bucket) -> None:
    with pytest.raises(exceptions.Conflict, match="you already own it"):
        client(cloud, cloud.owner_token).create_bucket(BUCKET)
    bucket.blob("x").upload_from_string(b"x")
    with pytest.raises(exceptions.Conflict, match="not empty"):
        bucket.delete()
    with pytest.raises(exceptions.NotFound, match="bucket does not exist"):
        client(cloud, cloud.owner_token).get_bucket("elsewhere")


@pytest.fixture
def terraform(cloud: Google, tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs Terraform with its gcs backend in the bucket: `terraform("apply", login={...})`."""
    program = shutil.which("terraform")
    if program is None:
        pytest.skip("terraform: no terraform on PATH, its gcs backend not held against the stand-in")
    (tmp_path / "main.tf").write_text(
        f'terraform {{\n  backend "gcs" {{\n    bucket = "{BUCKET}"\n    prefix = "states/run"\n  }}\n}}\n'
        'resource "terraform_data" "x" {\n  input = "planted"\n}\n',
        encoding="utf-8",
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE", "TF_"))},
        "GOOGLE_BACKEND_STORAGE_CUSTOM_ENDPOINT": f"{cloud.endpoint}/storage/v1/",
        "CHECKPOINT_DISABLE": "1",
    }

    def run(*words: str, login: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *words, "-no-color"], cwd=tmp_path, env={**environment, **login}, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    yield run
    assert [line["unserved"] for line in cloud.calls.lines() if line["unserved"]] == []


def test_terraform_keeps_its_state_there_and_locks_it(
    cloud: Google, bucket: storage.Bucket, terraform: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    login = {"GOOGLE_OAUTH_ACCESS_TOKEN": cloud.owner_token}
    for words in (["init"], ["apply", "-auto-approve"], ["plan", "-detailed-exitcode"]):
        done = terraform(*words, login=login)
        assert done.returncode == 0, done.stdout + done.stderr
    state = json.loads(bucket.blob("states/run/default.tfstate").download_as_bytes())
    assert state["resources"][0]["name"] == "x"
    bucket.blob("states/run/default.tflock").upload_from_string(json.dumps({"ID": "1", "Who": "somebody"}).encode())
    assert "Error acquiring the state lock" in terraform("apply", "-auto-approve", login=login).stderr


@pytest.mark.parametrize("way", ["federation", "key"])
def test_terraform_s_backend_logs_in_without_a_token(
    way: str,
    cloud: Google,
    bucket: storage.Bucket,
    provider: str,
    issuer: Issuer,
    tmp_path: Path,
    terraform: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    policy = bucket.get_iam_policy(requested_policy_version=3)
    policy.bindings.append({"role": "roles/storage.objectUser", "members": {f"serviceAccount:{cloud.apis.account}"}})
    bucket.set_iam_policy(policy)
    (tmp_path / "jwt").write_text(issuer.token(), encoding="utf-8")
    told = cloud.apis.new_key(cloud.apis.account) if way == "key" else federation(cloud, provider, tmp_path / "jwt")
    (tmp_path / "login.json").write_text(json.dumps(told), encoding="utf-8")
    for words in (["init"], ["apply", "-auto-approve"]):
        done = terraform(*words, login={"GOOGLE_CREDENTIALS": str(tmp_path / "login.json")})
        assert done.returncode == 0, done.stdout + done.stderr
    assert bucket.get_blob("states/run/default.tfstate") is not None
