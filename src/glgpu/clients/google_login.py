"""Google credentials: for our own calls, and as variables for Terraform."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glgpu.errors import ErrorClass, Failure
from glgpu.job import Federation, Job
from glgpu.run_record import write_atomically

SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def credentials(job: Job) -> Any:
    """The credentials that a job was given.

    Order: a ready access token, Workload Identity Federation, GOOGLE_CREDENTIALS, application default credentials.

    Raises:
        Failure: AUTH, when there are none or they cannot be read.
    """
    import google.auth
    import google.auth.exceptions
    import google.oauth2.credentials

    if job.google_token:
        return google.oauth2.credentials.Credentials(token=job.google_token)
    try:
        info = _info(job)
        if info is not None:
            return _of_kind(info)
        return google.auth.default(scopes=[SCOPE])[0]
    except (google.auth.exceptions.GoogleAuthError, ValueError, OSError) as error:
        raise Failure(
            ErrorClass.AUTH,
            f"no usable Google credentials: {error}",
            "set GLGPU_WIF_PROVIDER and GLGPU_WIF_SERVICE_ACCOUNT, or GOOGLE_CREDENTIALS",
        ) from None


def terraform_environment(job: Job) -> dict[str, str]:
    """Variables by which the google provider finds the same credentials."""
    if job.google_token:
        return {"GOOGLE_OAUTH_ACCESS_TOKEN": job.google_token}
    if job.federation:
        path = job.scratch / "google-credentials.json"
        _write_secret(path, json.dumps(_federation_info(job.federation, job)))
        return {"GOOGLE_CREDENTIALS": str(path)}
    return {}  # GOOGLE_CREDENTIALS and application default credentials are the provider's own business


def gcloud_environment(job: Job) -> dict[str, str]:
    """Variables by which gcloud finds the same credentials; a laptop's gcloud has a login of its own.

    Every ``CLOUDSDK_`` variable stands for a property (https://cloud.google.com/sdk/docs/properties).
    """
    quiet = ("CORE_DISABLE_PROMPTS", "CORE_DISABLE_USAGE_REPORTING", "COMPONENT_MANAGER_DISABLE_UPDATE_CHECK")
    found = {f"CLOUDSDK_{name}": "1" for name in (*quiet, "SURVEY_DISABLE_PROMPTS")}
    if job.compute_endpoint:
        found["CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"] = f"{job.compute_endpoint}/compute/v1/"
    if job.google_token:
        path = job.scratch / "google-token"
        _write_secret(path, job.google_token)
        return {**found, "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(path), "CLOUDSDK_CONFIG": str(job.scratch / "gcloud")}
    info = _info(job)
    named = job.variables.get("GOOGLE_APPLICATION_CREDENTIALS", "")
    if info is None and not named:
        return found
    path = job.scratch / "gcloud-credentials.json"
    if info is not None:
        _write_secret(path, json.dumps(info))
    found["CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE"] = str(path) if info is not None else named
    return {**found, "CLOUDSDK_CONFIG": str(job.scratch / "gcloud")}


def _write_secret(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
    path.chmod(0o600)


def _info(job: Job) -> dict[str, Any] | None:
    if job.federation:
        return _federation_info(job.federation, job)
    text = job.google_credentials
    if not text:
        return None
    if not text.startswith("{"):
        with open(text, encoding="utf-8") as file:
            text = file.read()
    loaded = json.loads(text)
    if not isinstance(loaded, dict):
        raise ValueError("GOOGLE_CREDENTIALS is no JSON object")
    return loaded


def _of_kind(info: Mapping[str, Any]) -> Any:
    """The credentials that a file describes: one kind each, since google-auth warns of its loader for any kind."""
    from google.auth import identity_pool
    from google.oauth2 import credentials as user
    from google.oauth2 import service_account

    scopes = [SCOPE]
    match info.get("type"):
        case "service_account":
            return service_account.Credentials.from_service_account_info(info, scopes=scopes)
        case "external_account":
            return identity_pool.Credentials.from_info(info, scopes=scopes)
        case "authorized_user":
            return user.Credentials.from_authorized_user_info(info, scopes)
        case other:
            raise ValueError(f"its type is {other!r}, not service_account, external_account or authorized_user")


def _federation_info(federation: Federation, job: Job) -> dict[str, Any]:
    """The form that google-auth and the provider share (https://google.aip.dev/auth/4117)."""
    token = job.scratch / "id-token"
    _write_secret(token, federation.token)
    info: dict[str, Any] = {
        "type": "external_account",
        "audience": f"//iam.googleapis.com/{federation.provider}",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{job.google_endpoint or 'https://sts.googleapis.com'}/v1/token",
        "credential_source": {"file": str(token)},
    }
    if federation.service_account:
        host = job.google_endpoint or "https://iamcredentials.googleapis.com"
        info["service_account_impersonation_url"] = (
            f"{host}/v1/projects/-/serviceAccounts/{federation.service_account}:generateAccessToken"
        )
    return info
