"""`glgpu rehearse --serve`: the stand-ins alone, for clients of every kind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import NotFound
from google.cloud import compute_v1
from google.oauth2.credentials import Credentials

from rehearsing import GLGPU, remains, repository, started

ZONE = "europe-west4-a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def told(folder: Path) -> Iterator[dict[str, Any]]:
    """The one line of JSON, while the stand-ins run; then SIGTERM, after which nothing is left."""
    with started(folder, "--serve", repository(folder / "repository"), apart=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.terminate()
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert rest == ""
    assert remains([f"{folder}/tmp/"]) == []
    assert list((folder / "tmp").iterdir()) == []


def test_the_line_has_what_the_contract_says(told: dict[str, Any]) -> None:
    assert set(told) == {
        "compute_endpoint", "google_project", "google_access_token", "gitlab_url", "gitlab_project", "gitlab_token",
        "repository_url", "environment",
    }  # fmt: skip
    assert told["compute_endpoint"].count("/") == 2
    assert all(isinstance(value, str) for value in told["environment"].values())


def test_its_environment_is_all_that_glgpu_needs_in_another_process(told: dict[str, Any], folder: Path) -> None:
    work = folder / "elsewhere"
    shutil.copytree(folder / "repository", work)
    environment = told["environment"] | {"PATH": os.environ["PATH"], "HOME": str(folder)}
    for stage in ("provision", "train", "destroy"):
        done = subprocess.run(
            [GLGPU, stage], cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "outputs/weights/w.bin").read_bytes() == bytes(100)
    assert not (work / ".glgpu").exists()


def test_the_repository_can_be_cloned_with_the_token(told: dict[str, Any], folder: Path) -> None:
    url = told["repository_url"].replace("://", f"://oauth2:{told['gitlab_token']}@")
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_TERMINAL_PROMPT": "0"}
    cloned = subprocess.run(
        ["git", "clone", "-q", url, folder / "clone"], env=environment, capture_output=True, text=True, check=False
    )
    assert cloned.returncode == 0, cloned.stderr
    assert (folder / "clone/glgpu.yml").exists()


def body(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "machineType": f"zones/{ZONE}/machineTypes/e2-small",
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "initializeParams": {"sourceImage": "projects/debian-cloud/global/images/family/debian-12"},
            }
        ],
        "networkInterfaces": [{"network": "global/networks/default"}],
    }


def test_google_s_own_python_client_is_answered_as_google_would(told: dict[str, Any]) -> None:
    where = {
        "client_options": ClientOptions(api_endpoint=told["compute_endpoint"]),
        "credentials": Credentials(token=told["google_access_token"]),
        "transport": "rest",
    }
    project = told["google_project"]
    zones = {zone.name for zone in compute_v1.ZonesClient(**where).list(project=project)}
    assert ZONE in zones
    types = compute_v1.AcceleratorTypesClient(**where).list(project=project, zone=ZONE)
    assert "nvidia-l4" in {one.name for one in types}
    instances = compute_v1.InstancesClient(**where)
    operations = compute_v1.ZoneOperationsClient(**where)
    wanted = compute_v1.Instance.from_json(json.dumps(body("by-python")), ignore_unknown_fields=False)
    begun = instances.insert_unary(project=project, zone=ZONE, instance_resource=wanted)
    ended = operations.wait(project=project, zone=ZONE, operation=begun.name)
    assert ended.status == compute_v1.Operation.Status.DONE
    assert not ended.error.errors
    assert instances.get(project=project, zone=ZONE, instance="by-python").status == "RUNNING"
    assert [one.name for one in instances.list(project=project, zone=ZONE)] == ["by-python"]
    gone = instances.delete_unary(project=project, zone=ZONE, instance="by-python")
    operations.wait(project=project, zone=ZONE, operation=gone.name)
    with pytest.raises(NotFound, match=r"The resource '.*by-python' was not found"):
        instances.get(project=project, zone=ZONE, instance="by-python")


def test_gcloud_is_answered_as_google_would(told: dict[str, Any], folder: Path) -> None:
    if shutil.which("gcloud") is None:
        pytest.skip("gcloud: not on PATH")
    (folder / "token").write_text(told["google_access_token"])
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "CLOUDSDK_CONFIG": str(folder / "gcloud"),
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{told['compute_endpoint']}/compute/v1/",
        "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(folder / "token"), "CLOUDSDK_CORE_PROJECT": told["google_project"],
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1", "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1", "CLOUDSDK_SURVEY_DISABLE_PROMPTS": "1",
    }  # fmt: skip

    def gcloud(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            ["gcloud", "compute", *words], env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    assert ZONE in gcloud("zones", "list", "--format=value(name)").split()
    assert "nvidia-l4" in gcloud("accelerator-types", "list", f"--filter=zone:{ZONE}", "--format=value(name)").split()
    gcloud(
        "instances", "create", "by-gcloud", f"--zone={ZONE}", "--machine-type=e2-small",
        "--image-family=debian-12", "--image-project=debian-cloud", "--no-service-account", "--no-scopes",
    )  # fmt: skip
    assert gcloud("instances", "list", "--format=value(name,status)").split() == ["by-gcloud", "RUNNING"]
    described = gcloud("instances", "describe", "by-gcloud", f"--zone={ZONE}", "--format=value(machineType)")
    assert described.strip().endswith("e2-small")
    gcloud("instances", "delete", "by-gcloud", f"--zone={ZONE}", "--quiet")
    assert "was not found" in gcloud("instances", "describe", "by-gcloud", f"--zone={ZONE}", code=1)
