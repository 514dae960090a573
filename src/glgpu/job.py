"""What GitLab tells a job through variables, read once into one frozen value; on a laptop, what stands in its place."""

from __future__ import annotations

import base64
import getpass
import json
import math
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from glgpu.errors import ErrorClass, Failure
from glgpu.lifetime import parse_duration
from glgpu.masking import Masker
from glgpu.run_names import Kind, RunName, laptop_run

SCRATCH = ".glgpu"
"""Folder below the project folder for what a cancelled job's after_script needs: nothing else is left by then."""


HOSTED_SECONDS = 3 * 3600.0
"""GitLab.com's hosted runners end every job then (https://docs.gitlab.com/ci/runners/hosted_runners/)."""
HOSTED = ("saas-", "runners-manager.gitlab.com", "gitlab-org-docker")
"""What a hosted runner's tags or description contain."""
RUNNING = "running"
"""What the Runner says of a job's status until its script has ended."""
AFTER_SCRIPT_SECONDS = 300.0
"""What the Runner gives after_script where RUNNER_AFTER_SCRIPT_TIMEOUT says nothing else."""


@dataclass(frozen=True)
class Job:
    """One job, or one command on a laptop.

    Attributes:
        project_dir: Where the checkout is, and the only folder that outlives the job's container.
        server_url: ``CI_SERVER_URL``; empty on a laptop without GitLab.
        api_url: ``CI_API_V4_URL``.
        project_id: GitLab project id, 0 where there is none.
        project_path: ``group/project``.
        run: The run part of every name.
        job_id: ``CI_JOB_ID``, empty on a laptop.
        job_token: ``CI_JOB_TOKEN``; dead once the job is cancelled.
        gitlab_token: ``GLGPU_GITLAB_TOKEN``.
        ref: Branch or tag.
        sha: The exact commit.
        user: Login of whoever started the job.
        ssh_host: GitLab's SSH endpoint.
        ssh_port: Its port.
        gitlab_host_keys: ``GLGPU_GITLAB_HOST_KEYS``: GitLab's SSH host keys as known_hosts lines.
        ca_file: A private certificate authority, as a file.
        job_timeout: Seconds that the train job may last, if known.
        own_timeout: Seconds that this job may last, its runner's own limit considered, if known.
        script_timeout: Seconds that its script may last, if known.
        after_script_timeout: Seconds that after_script may last, if said.
        started_at: Unix time by GitLab's clock at which this job began, if known.
        hosted: Whether it runs on one of GitLab.com's own runners.
        status: ``CI_JOB_STATUS`` in after_script; empty before, when the Runner says ``running``.
        registry_logins: Registry host -> (user, password).
        google_project: ``GLGPU_PROJECT``, which wins over glgpu.yml as every variable does.
        compute_endpoint: ``http://host:port`` of another Compute Engine; empty: Google's.
        google_endpoint: The same for all other Google APIs.
        registry_endpoint: The same for the container registries, all of them.
        iap_endpoint: Where Identity-Aware Proxy's tunnels begin; empty: Google's own place.
        google_token: A ready access token; empty: application default credentials.
        google_credentials: ``GOOGLE_CREDENTIALS``: a key's JSON text or its path.
        federation: Workload Identity Federation: provider, service account, identity token; None where not used.
        terraform: Path or name of the Terraform program; empty: terraform, then tofu, on PATH.
        terraform_module: Which module applies.
        caller_address: This caller's public address, if a setting says it.
        variables: All variables, for secrets that settings name.
    """

    project_dir: Path
    server_url: str
    api_url: str
    project_id: int
    project_path: str
    run: str
    job_id: str
    job_token: str = field(repr=False)
    gitlab_token: str = field(repr=False)
    ref: str
    sha: str
    user: str
    ssh_host: str
    ssh_port: int
    gitlab_host_keys: str
    ca_file: str
    job_timeout: float | None
    own_timeout: float | None
    script_timeout: float | None
    after_script_timeout: float | None
    started_at: float | None
    hosted: bool
    status: str
    registry_logins: dict[str, tuple[str, str]] = field(repr=False)
    google_project: str
    compute_endpoint: str
    google_endpoint: str
    registry_endpoint: str
    iap_endpoint: str
    google_token: str = field(repr=False)
    google_credentials: str = field(repr=False)
    federation: Federation | None = field(repr=False)
    terraform: str
    terraform_module: str
    caller_address: str
    variables: Mapping[str, str] = field(repr=False)

    @property
    def scratch(self) -> Path:
        """The folder that survives a cancel and is removed with the job's last word."""
        return self.project_dir / SCRATCH

    @property
    def in_ci(self) -> bool:
        """Whether GitLab runs this."""
        return bool(self.job_id)

    @property
    def seconds(self) -> float:
        """How long the Runner lets this process work at most; infinite where nobody says, as on a laptop."""
        if self.status:
            return self.after_script_timeout or AFTER_SCRIPT_SECONDS
        return self.script_timeout or self.job_timeout or math.inf

    def name(self, kind: Kind = "train") -> RunName:
        """The run's name."""
        return RunName(self.server_url, self.project_id, self.run, kind)


@dataclass(frozen=True)
class Federation:
    """Workload Identity Federation (https://docs.gitlab.com/ci/cloud_services/google_cloud/).

    Attributes:
        provider: Full resource name of the provider, without ``//iam.googleapis.com/``.
        service_account: Whose access token is wanted; empty: direct access.
        token: The job's identity token.
    """

    provider: str
    service_account: str
    token: str


def read_job(environment: Mapping[str, str], folder: Path, now: float) -> Job:
    """Read the variables of a job.

    Args:
        environment: The process's variables.
        folder: The working directory, used where ``CI_PROJECT_DIR`` is not set.
        now: Unix time, part of a laptop run's name.

    Raises:
        Failure: USAGE or CONFIG, when a variable cannot be understood.
    """

    def get(name: str, default: str = "") -> str:
        return environment.get(name, default).strip()

    run = get("GLGPU_RUN") or get("CI_PIPELINE_ID") or laptop_run(_login(), socket.gethostname(), now)
    if get("GLGPU_RUN_INDEX"):
        run += f"-{get('GLGPU_RUN_INDEX')}"
    server = _server(get("CI_SERVER_URL").rstrip("/"))
    provider = get("GLGPU_WIF_PROVIDER").removeprefix("//iam.googleapis.com/")
    token = get("GLGPU_GOOGLE_ID_TOKEN")
    return Job(
        project_dir=Path(get("CI_PROJECT_DIR") or folder).absolute(),
        server_url=server,
        api_url=get("CI_API_V4_URL") or (f"{server}/api/v4" if server else ""),
        project_id=_number("CI_PROJECT_ID", get("CI_PROJECT_ID", "0") or "0"),
        project_path=get("CI_PROJECT_PATH"),
        run=run,
        job_id=get("CI_JOB_ID"),
        job_token=get("CI_JOB_TOKEN"),
        gitlab_token=get("GLGPU_GITLAB_TOKEN"),
        ref=get("CI_COMMIT_REF_NAME"),
        sha=get("CI_COMMIT_SHA"),
        user=get("GITLAB_USER_LOGIN") or _login(),
        ssh_host=get("CI_SERVER_SHELL_SSH_HOST") or get("CI_SERVER_HOST") or _host(server),
        ssh_port=_number("CI_SERVER_SHELL_SSH_PORT", get("CI_SERVER_SHELL_SSH_PORT", "22") or "22"),
        gitlab_host_keys=get("GLGPU_GITLAB_HOST_KEYS"),
        ca_file=get("CI_SERVER_TLS_CA_FILE"),
        job_timeout=_duration("GLGPU_JOB_TIMEOUT", get("GLGPU_JOB_TIMEOUT"))
        or _duration("CI_JOB_TIMEOUT", get("CI_JOB_TIMEOUT")),
        own_timeout=_duration("CI_JOB_TIMEOUT", get("CI_JOB_TIMEOUT")),
        script_timeout=_duration("GLGPU_SCRIPT_TIMEOUT", get("GLGPU_SCRIPT_TIMEOUT"))
        or _duration("RUNNER_SCRIPT_TIMEOUT", get("RUNNER_SCRIPT_TIMEOUT")),
        after_script_timeout=_duration("RUNNER_AFTER_SCRIPT_TIMEOUT", get("RUNNER_AFTER_SCRIPT_TIMEOUT")),
        started_at=_moment("CI_JOB_STARTED_AT", get("CI_JOB_STARTED_AT")),
        hosted=_is_hosted(get("CI_RUNNER_DESCRIPTION") + get("CI_RUNNER_TAGS"), token),
        status="" if get("CI_JOB_STATUS") == RUNNING else get("CI_JOB_STATUS"),
        registry_logins=_registry_logins(environment),
        google_project=get("GLGPU_PROJECT"),
        compute_endpoint=_endpoint("GLGPU_COMPUTE_ENDPOINT", get("GLGPU_COMPUTE_ENDPOINT")),
        google_endpoint=_endpoint("GLGPU_GOOGLE_ENDPOINT", get("GLGPU_GOOGLE_ENDPOINT")),
        registry_endpoint=_endpoint("GLGPU_REGISTRY_ENDPOINT", get("GLGPU_REGISTRY_ENDPOINT")),
        iap_endpoint=get("GLGPU_IAP_ENDPOINT"),
        google_token=get("GOOGLE_OAUTH_ACCESS_TOKEN"),
        google_credentials=get("GOOGLE_CREDENTIALS"),
        federation=Federation(provider, get("GLGPU_WIF_SERVICE_ACCOUNT"), token) if provider and token else None,
        terraform=get("GLGPU_TERRAFORM"),
        terraform_module=get("GLGPU_TERRAFORM_MODULE") or "gpu-vm",
        caller_address=get("GLGPU_CALLER_ADDRESS"),
        variables=dict(environment),
    )


def hide_tokens(job: Job, masker: Masker) -> None:
    """Tell the masker every token that this process was given."""
    for secret in (job.job_token, job.gitlab_token, job.google_token, *_key_parts(job.google_credentials)):
        masker.add(secret)
    # Where our own pair of registry variables is set, GitLab's is not among the logins.
    for name in ("CI_REGISTRY_PASSWORD", "GLGPU_GOOGLE_ID_TOKEN"):
        masker.add(job.variables.get(name, ""))
    if job.federation:
        masker.add(job.federation.token)
    for _, password in job.registry_logins.values():
        masker.add(password)


def _key_parts(credentials: str) -> list[str]:
    """What is secret in GOOGLE_CREDENTIALS: not the file's path, nor lines such as `"type": "service_account",`."""
    text = credentials
    if text and not text.startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return [text]
    try:
        key = json.loads(text)
    except ValueError:
        return [text]
    if not isinstance(key, dict):
        return [text]
    return [str(key[name]) for name in ("private_key", "refresh_token", "client_secret") if key.get(name)]


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"


def _number(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise Failure(ErrorClass.USAGE, f"{name} is {text!r}, which is no number", f"set {name} as GitLab does")
    return int(text)


def _duration(name: str, text: str) -> float | None:
    try:
        return parse_duration(text) if text else None
    except Failure as failure:
        raise Failure(failure.klass, f"{name}: {failure.cause}", failure.remedy) from None


def _moment(name: str, text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        raise Failure(ErrorClass.USAGE, f"{name} is {text!r}, which is no time", f"set {name} as GitLab does") from None


def _is_hosted(told: str, token: str) -> bool:
    """Whether a runner is one of GitLab.com's own: the job's identity token says so, else its tags and description.

    The claim is described in https://docs.gitlab.com/ci/secrets/id_token_authentication/#token-payload.
    """
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return bool(claims["runner_environment"] == "gitlab-hosted")
    except (IndexError, ValueError, KeyError, TypeError):
        return any(word in told for word in HOSTED)


def _server(text: str) -> str:
    if text and not _host(text):
        raise Failure(ErrorClass.USAGE, f"CI_SERVER_URL is {text!r}, which is no address", "set it as GitLab does")
    return text


def _endpoint(name: str, text: str) -> str:
    stripped = text.rstrip("/")
    if stripped and not (_host(stripped) and re.fullmatch(r"https?://[^/?#@]+", stripped)):
        raise Failure(
            ErrorClass.CONFIG,
            f"{name} is {text!r}",
            f"write {name} as http://host:port or https://host, without a path",
        )
    return stripped


def _host(address: str) -> str:
    """The host of an HTTP address; empty where it is none."""
    try:
        parts = urlsplit(address)
        wrong_port = parts.port == 0  # reading it raises where it is no number
    except ValueError:
        return ""
    return "" if wrong_port or parts.scheme not in ("http", "https") else parts.hostname or ""


def _registry_logins(environment: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Registry logins: our own pair of variables, else DOCKER_AUTH_CONFIG, else GitLab's own registry."""
    user, password = environment.get("GLGPU_REGISTRY_USER", ""), environment.get("GLGPU_REGISTRY_PASSWORD", "")
    if bool(user) != bool(password):
        raise Failure(
            ErrorClass.CONFIG,
            "only one of GLGPU_REGISTRY_USER and GLGPU_REGISTRY_PASSWORD is set",
            "set both, or neither",
        )
    if user:
        # Without a host the pair is for the registry that the image itself names: a run has one image.
        return {"": (user, password)}
    logins: dict[str, tuple[str, str]] = {}
    if environment.get("CI_REGISTRY") and environment.get("CI_REGISTRY_PASSWORD"):
        user = environment.get("CI_REGISTRY_USER", "gitlab-ci-token")
        logins[environment["CI_REGISTRY"]] = (user, environment["CI_REGISTRY_PASSWORD"])
    return logins | _docker_logins(environment.get("DOCKER_AUTH_CONFIG", ""))


def _docker_logins(text: str) -> dict[str, tuple[str, str]]:
    """The logins of a DOCKER_AUTH_CONFIG (https://docs.gitlab.com/ci/docker/using_docker_images/)."""
    if not text.strip():
        return {}
    logins = {}
    try:
        for address, entry in json.loads(text)["auths"].items():
            if "auth" in entry:
                user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
                logins[_registry_host(address)] = (user, password)
            elif "username" in entry:
                logins[_registry_host(address)] = (str(entry["username"]), str(entry["password"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Failure(
            ErrorClass.CONFIG,
            "DOCKER_AUTH_CONFIG cannot be understood",
            'write DOCKER_AUTH_CONFIG as {"auths": {"host": {"auth": "base64 of user:password"}}}',
        ) from None
    return logins


def _registry_host(address: str) -> str:
    """The host that an image names, of an address as `docker login` writes it: `https://index.docker.io/v1/`."""
    host = address.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return "docker.io" if host in ("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com") else host
