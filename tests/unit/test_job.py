"""What GitLab tells a job, and what stands in its place on a laptop."""

from __future__ import annotations

import base64
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glgpu.errors import Failure
from glgpu.job import Job, hide_tokens, read_job
from glgpu.masking import MASK, Masker

NOW = 1763930000.0
JOB = {
    "CI_PROJECT_DIR": "/builds/team/project",
    "CI_SERVER_URL": "https://gitlab.example.com/",
    "CI_API_V4_URL": "https://gitlab.example.com/api/v4",
    "CI_PROJECT_ID": "42",
    "CI_PROJECT_PATH": "team/project",
    "CI_PIPELINE_ID": "1234",
    "CI_JOB_ID": "99",
    "CI_JOB_TOKEN": "job-token-1",
    "CI_JOB_TIMEOUT": "10500",
    "RUNNER_SCRIPT_TIMEOUT": "2h35m",
    "CI_COMMIT_REF_NAME": "main",
    "CI_COMMIT_SHA": "0" * 40,
    "GITLAB_USER_LOGIN": "jane",
    "CI_SERVER_HOST": "gitlab.example.com",
}


def job(**more: str) -> Job:
    return read_job(JOB | more, Path("/somewhere"), NOW)


def refused(**more: str) -> Failure:
    with pytest.raises(Failure) as caught:
        job(**more)
    assert caught.value.exit_code == 2
    return caught.value


def test_a_job_whose_script_runs_has_the_script_s_time_and_its_after_script_has_its_own() -> None:
    script, after = job(CI_JOB_STATUS="running"), job(CI_JOB_STATUS="failed", RUNNER_AFTER_SCRIPT_TIMEOUT="15m")
    assert (script.status, script.seconds) == ("", 9300.0)
    assert (after.status, after.seconds) == ("failed", 900.0)


def test_a_job_is_what_gitlab_says() -> None:
    read = job()
    assert read.in_ci
    assert (read.project_dir, read.scratch) == (Path("/builds/team/project"), Path("/builds/team/project/.glgpu"))
    assert (read.server_url, read.api_url) == ("https://gitlab.example.com", "https://gitlab.example.com/api/v4")
    assert (read.project_id, read.run, read.user) == (42, "1234", "jane")
    assert (read.job_timeout, read.script_timeout) == (10500, 9300)
    assert (read.ssh_host, read.ssh_port) == ("gitlab.example.com", 22)
    assert str(read.name("notebook")).endswith("-42-1234-notebook")


def test_one_job_of_a_matrix_has_a_run_of_its_own() -> None:
    assert job(GLGPU_RUN_INDEX="3").run == "1234-3"


def test_a_laptop_has_a_run_of_its_own_each_time() -> None:
    read = read_job({}, Path("/home/jane/project"), NOW)
    assert not read.in_ci
    assert read.project_dir == Path("/home/jane/project")
    assert re.fullmatch(r"u[0-9a-f]{8}-1763930000", read.run)
    assert (read.server_url, read.api_url, read.project_id, read.job_timeout) == ("", "", 0, None)
    assert str(read.name())
    assert read_job({}, Path("/"), NOW + 1).run != read.run


def test_the_ssh_endpoint_is_gitlabs_own_where_it_says_so() -> None:
    read = job(CI_SERVER_SHELL_SSH_HOST="ssh.example.com", CI_SERVER_SHELL_SSH_PORT="2222")
    assert (read.ssh_host, read.ssh_port) == ("ssh.example.com", 2222)
    assert job(CI_SERVER_HOST="").ssh_host == "gitlab.example.com"


def test_the_pipelines_own_times_win_over_the_runners() -> None:
    read = job(GLGPU_JOB_TIMEOUT="2h55m", GLGPU_SCRIPT_TIMEOUT="2h")
    assert (read.job_timeout, read.script_timeout) == (10500, 7200)


@pytest.mark.parametrize("name", ["CI_PROJECT_ID", "CI_SERVER_SHELL_SSH_PORT"])
@pytest.mark.parametrize("text", ["x", "-1", "1.5", "9" * 30, "\N{ARABIC-INDIC DIGIT THREE}"])
def test_a_number_that_is_none_is_named(name: str, text: str) -> None:
    assert name in refused(**{name: text}).cause


@pytest.mark.parametrize("address", ["gitlab.example.com", "ftp://x", "http://", "http://[::1", "https://x:port"])
def test_a_server_that_is_no_address_is_refused(address: str) -> None:
    assert "CI_SERVER_URL" in refused(CI_SERVER_URL=address).cause


def test_a_duration_that_is_none_is_refused() -> None:
    assert refused(GLGPU_JOB_TIMEOUT="soon").cause == "GLGPU_JOB_TIMEOUT: 'soon' is no duration"


# Endpoints of other worlds


@pytest.mark.parametrize("name", ["GLGPU_COMPUTE_ENDPOINT", "GLGPU_GOOGLE_ENDPOINT", "GLGPU_REGISTRY_ENDPOINT"])
def test_an_endpoint_is_scheme_host_and_port(name: str) -> None:
    for address in ("http://127.0.0.1:8798", "https://compute.example.com", "http://[::1]:80"):
        read = job(**{name: address + "/"})
        assert address in (read.compute_endpoint, read.google_endpoint, read.registry_endpoint)
    for wrong in (
        "127.0.0.1:8798",
        "http://",
        "http://h/compute/v1",
        "ftp://h",
        "http://h?x",
        "http://a@h",
        "http://[",
    ):
        assert name in refused(**{name: wrong}).cause
    for wrong in ("http://h:port", "http://h:99999", "http://h#x", "//h"):
        assert name in refused(**{name: wrong}).cause


@given(text=st.text(max_size=30))
def test_any_endpoint_is_taken_or_refused(text: str) -> None:
    try:
        read = job(GLGPU_COMPUTE_ENDPOINT=text)
    except Failure:
        return
    assert re.fullmatch(r"https?://[^/]+|", read.compute_endpoint)


# Credentials


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_registry_logins_come_from_the_pair_else_docker_else_gitlab() -> None:
    gitlab = {"CI_REGISTRY": "r.example.com", "CI_REGISTRY_USER": "u", "CI_REGISTRY_PASSWORD": "gitlab-pass"}
    docker = json.dumps({"auths": {"r.example.com": auth("d", "docker:pass"), "other.example.com": {}}})
    own = {"GLGPU_REGISTRY_USER": "own", "GLGPU_REGISTRY_PASSWORD": "own-pass"}
    assert job().registry_logins == {}
    assert job(**gitlab).registry_logins == {"r.example.com": ("u", "gitlab-pass")}
    assert job(**gitlab, DOCKER_AUTH_CONFIG=docker).registry_logins == {"r.example.com": ("d", "docker:pass")}
    assert job(**gitlab, DOCKER_AUTH_CONFIG=docker, **own).registry_logins == {"": ("own", "own-pass")}


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("https://registry.example.com:5000", "registry.example.com:5000"),
        ("registry.example.com/team/project", "registry.example.com"),
    ],
)
def test_a_docker_login_is_found_by_the_host_that_an_image_names(address: str, host: str) -> None:
    text = json.dumps({"auths": {address: {"username": "u", "password": "secret"}}})
    assert job(DOCKER_AUTH_CONFIG=text).registry_logins == {host: ("u", "secret")}


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"auths": []}', '{"auths": {"h": 1}}', '{"auths": {"h": {"auth": "%"}}}', "words"]
)
def test_a_docker_configuration_that_is_none_is_refused_without_showing_it(text: str) -> None:
    failure = refused(DOCKER_AUTH_CONFIG=text)
    assert failure.cause == "DOCKER_AUTH_CONFIG cannot be understood"


@pytest.mark.parametrize("name", ["GLGPU_REGISTRY_USER", "GLGPU_REGISTRY_PASSWORD"])
def test_half_a_login_is_refused(name: str) -> None:
    assert "only one of" in refused(**{name: "x"}).cause


def test_federation_needs_a_provider_and_a_token() -> None:
    provider = "projects/1/locations/global/workloadIdentityPools/p/providers/q"
    read = job(GLGPU_WIF_PROVIDER=f"//iam.googleapis.com/{provider}", GLGPU_GOOGLE_ID_TOKEN="jwt")
    assert read.federation is not None
    assert read.federation.provider == provider
    assert job(GLGPU_WIF_PROVIDER=provider).federation is None
    assert job(GLGPU_GOOGLE_ID_TOKEN="jwt").federation is None


def hidden(read: Job) -> Masker:
    masker = Masker()
    hide_tokens(read, masker)
    return masker


def test_every_token_of_a_job_is_hidden(tmp_path: Path) -> None:
    key = {"type": "service_account", "private_key": "-----BEGIN\nMIIEvQIBADANBg\n-----END", "project_id": "my-dl"}
    (tmp_path / "key.json").write_text(json.dumps(key, indent=2))
    tokens = {
        "CI_JOB_TOKEN": "token-of-the-job",
        "GLGPU_GITLAB_TOKEN": "glpat-0123456789",
        "GOOGLE_OAUTH_ACCESS_TOKEN": "ya29.0123456789",
        "GLGPU_GOOGLE_ID_TOKEN": "eyJ0123456789",
        "CI_REGISTRY_PASSWORD": "registry-password",
        "GLGPU_REGISTRY_PASSWORD": "own-password",
    }
    for credentials in (json.dumps(key), json.dumps(key, indent=2), str(tmp_path / "key.json")):
        read = job(**tokens, GLGPU_REGISTRY_USER="own", CI_REGISTRY="r", GOOGLE_CREDENTIALS=credentials)
        masker = hidden(read)
        for token in (*tokens.values(), "MIIEvQIBADANBg"):
            assert masker.mask(f"<{token}>") == f"<{MASK}>"
        untouched = f'"type": "service_account", in {tmp_path}/key.json of my-dl'
        assert masker.mask(untouched) == untouched


def test_credentials_that_are_neither_key_nor_file_are_hidden_whole() -> None:
    for credentials in ("not-a-file-0123456789", "[1234567890]", "{broken: 1234567890"):
        assert hidden(job(GOOGLE_CREDENTIALS=credentials)).mask(credentials) == MASK


def test_a_password_in_a_docker_configuration_is_hidden_there_too() -> None:
    text = json.dumps({"auths": {"r.example.com": auth("user", "registry-password")}})
    masked = hidden(job(DOCKER_AUTH_CONFIG=text)).mask(text)
    assert MASK in masked
    assert auth("user", "registry-password")["auth"] not in masked


def test_no_token_shows_when_a_job_is_printed() -> None:
    read = job(GLGPU_GITLAB_TOKEN="glpat-0123456789", GOOGLE_CREDENTIALS='{"private_key": "pk-0123456789"}')
    assert not re.search("job-token-1|glpat-|pk-0123", repr(read))


TIMES = {"GLGPU_JOB_TIMEOUT": "3h", "RUNNER_SCRIPT_TIMEOUT": "2h", "RUNNER_AFTER_SCRIPT_TIMEOUT": "15m"}


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        (TIMES, 7200),
        ({**TIMES, "CI_JOB_STATUS": "timedout"}, 900),
        ({"GLGPU_JOB_TIMEOUT": "3h", "CI_JOB_STATUS": "canceled"}, 300),
        ({"GLGPU_JOB_TIMEOUT": "3h", "RUNNER_SCRIPT_TIMEOUT": ""}, 10800),
    ],
)
def test_a_process_knows_how_long_the_runner_lets_it_work(variables: dict[str, str], seconds: float) -> None:
    assert job(**variables).seconds == seconds


def test_on_a_laptop_nobody_ends_a_process() -> None:
    assert math.isinf(read_job({}, Path("/"), NOW).seconds)
