"""terraform/rehearsal-vm, applied with the real Terraform; terraform/gpu-vm wherever its provider is at hand."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.compute_engine import ComputeEngine
from glgpu.rehearsal.faults import Faults, Rule
from glgpu.rehearsal.seams import Hardware, Hypervisor, Network
from glgpu.rehearsal.world_clock import WorldClock

TERRAFORM = Path(__file__).parents[2] / "terraform"
NAME, PROJECT, ZONE = "glgpu-a1b2c3-42-1001-train", "my-dl", "europe-west4-a"
INSTANCES = f"/compute/v1/projects/{PROJECT}/zones/{ZONE}/instances"
IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580"
TOKEN = "ya29.planted-cloud-token"
VARIABLES: dict[str, Any] = {
    "name": NAME,
    "project": PROJECT,
    "zone": ZONE,
    "labels": {"glgpu": "managed", "glgpu-expires": "1764000000"},
    "metadata": {"glgpu-settings": "{}"},
    "machine": {
        "type": "n1-standard-4",
        "gpu": {"type": "nvidia-tesla-t4", "count": 1, "attached": True},
        "spot": True,
        "max_run_seconds": 3600,
        "disk": {
            "image": "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580",
            "size_gb": 50,
            "type": "pd-ssd",
        },
        "service_account": {"email": "vm@my-dl.iam.gserviceaccount.com"},
    },
    "network": {"name": "default", "subnetwork": "default", "tags": ["nat"]},
}
BODY = {
    "canIpForward": False,
    "deletionProtection": False,
    "disks": [
        {
            "autoDelete": True,
            "boot": True,
            "mode": "READ_WRITE",
            "initializeParams": {
                "diskSizeGb": "50",
                "diskType": "projects/my-dl/zones/europe-west4-a/diskTypes/pd-ssd",
                "sourceImage": IMAGE,
            },
        }
    ],
    "guestAccelerators": [
        {
            "acceleratorCount": 1,
            "acceleratorType": "projects/my-dl/zones/europe-west4-a/acceleratorTypes/nvidia-tesla-t4",
        }
    ],
    "labels": {"glgpu": "managed", "glgpu-expires": "1764000000"},
    "machineType": "projects/my-dl/zones/europe-west4-a/machineTypes/n1-standard-4",
    "metadata": {
        "items": [
            {"key": "block-project-ssh-keys", "value": "TRUE"},
            {"key": "enable-guest-attributes", "value": "TRUE"},
            {"key": "enable-oslogin", "value": "FALSE"},
            {"key": "glgpu-settings", "value": "{}"},
        ]
    },
    "name": NAME,
    "networkInterfaces": [
        {
            "network": "projects/my-dl/global/networks/default",
            "subnetwork": "projects/my-dl/regions/europe-west4/subnetworks/default",
            "accessConfigs": [{"type": "ONE_TO_ONE_NAT"}],
        }
    ],
    "params": {},
    "scheduling": {
        "automaticRestart": False,
        "instanceTerminationAction": "DELETE",
        "maxRunDuration": {"seconds": "3600"},
        "onHostMaintenance": "TERMINATE",
        "preemptible": True,
        "provisioningModel": "SPOT",
    },
    "serviceAccounts": [
        {
            "email": "vm@my-dl.iam.gserviceaccount.com",
            "scopes": ["https://www.googleapis.com/auth/cloud-platform"],
        }
    ],
    "tags": {"items": [NAME, "nat"]},
}
"""What hashicorp/google 7.46 sends for these variables, by reading its expandComputeInstance, less the differences that
the module's README lists."""


class Room:
    """VMs that do nothing but come up.

    Attributes:
        booted: Set when one has.
    """

    def __init__(self) -> None:
        self.booted = threading.Event()

    async def boot(self, _hardware: Hardware, _hypervisor: Hypervisor) -> int:
        self.booted.set()
        return 2222

    async def cut_power(self, instance_id: str, *, delete: bool) -> None:
        pass


class Cloud:
    """Compute Engine, in a loop of its own.

    Attributes:
        faults: What goes wrong there.
        calls: What it was asked.
        room: Where its VMs run.
    """

    def __init__(self, folder: Path) -> None:
        self.faults, self.calls, self.room = Faults(), CallLog(folder / "calls.jsonl"), Room()
        self.engine = ComputeEngine(
            folder / "compute", WorldClock(), self.faults, self.calls, Network(), self.room,
            project=PROJECT, tokens={TOKEN}, latency=0.05,
        )  # fmt: skip

    @property
    def endpoint(self) -> str:
        return self.engine.endpoint

    def ask(self, method: str, path: str) -> dict[str, Any]:
        """What the API says to a request about the zone."""
        url = f"{self.endpoint}/compute/v1/projects/{PROJECT}/zones/{ZONE}/{path}"
        request = urllib.request.Request(url, method=method, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request) as answer:
            decoded: dict[str, Any] = json.load(answer)
        return decoded

    def instances(self) -> list[str]:
        return [instance["name"] for instance in self.ask("GET", "instances").get("items", [])]

    def inserts(self) -> list[dict[str, Any]]:
        return [call for call in self.calls.lines() if call["verb"] == "POST" and call["target"].startswith(INSTANCES)]


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def do(work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(timeout=30)

    try:
        cloud = Cloud(tmp_path)
        do(cloud.engine.start())
        yield cloud
        do(cloud.engine.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Module:
    """A module, copied into a work folder with blanks in its path."""

    def __init__(self, folder: Path, name: str, endpoint: str) -> None:
        self.binary = shutil.which("terraform") or shutil.which("tofu") or ""
        if not self.binary:
            pytest.skip("neither terraform nor tofu is on PATH: no module is applied")
        self.folder = folder / "work folder"
        shutil.copytree(TERRAFORM / name, self.folder)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "CHECKPOINT_DISABLE": "1",
            "GOOGLE_OAUTH_ACCESS_TOKEN": TOKEN,
            "TF_HTTP_USERNAME": "gitlab-ci-token",
            "TF_HTTP_PASSWORD": "planted-gitlab-token",
            "http_proxy": "http://127.0.0.1:9",
        }
        self.endpoint = endpoint
        self.write({})

    def write(self, changes: dict[str, Any]) -> None:
        variables = {**VARIABLES, "compute_endpoint": self.endpoint, **changes}
        (self.folder / "run.auto.tfvars.json").write_text(json.dumps(variables), encoding="utf-8")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.binary, *arguments], cwd=self.folder, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *arguments: str, expect: int = 0) -> str:
        process = self.start(*arguments)
        output, _ = process.communicate()
        assert process.returncode == expect, output
        return " ".join(output.replace("│", " ").split())

    def apply(self, expect: int = 0) -> str:
        return self.run("apply", "-auto-approve", "-no-color", expect=expect)

    def destroy(self) -> str:
        return self.run("destroy", "-auto-approve", "-no-color")

    def outputs(self) -> dict[str, Any]:
        return {name: output["value"] for name, output in json.loads(self.run("output", "-json")).items()}


@pytest.fixture
def module(cloud: Cloud, tmp_path: Path) -> Module:
    module = Module(tmp_path, "rehearsal-vm", cloud.endpoint)
    module.run("init", "-no-color")
    return module


def test_apply_makes_the_instance_and_the_outputs_tell_of_it(module: Module, cloud: Cloud) -> None:
    module.apply()
    instance = cloud.ask("GET", f"instances/{NAME}")
    (interface,) = instance["networkInterfaces"]
    address = interface["accessConfigs"][0]["natIP"]
    assert module.outputs() == {
        "address": address, "instance_id": instance["id"], "internal_address": interface["networkIP"],
        "login_command": f"ssh -p 2222 glgpu@{address}", "name": NAME, "self_link": instance["selfLink"],
        "ssh_port": 2222, "zone": ZONE,
    }  # fmt: skip


def test_the_insert_is_what_the_google_provider_sends_and_comes_from_a_child_of_terraform(
    module: Module, cloud: Cloud
) -> None:
    module.apply()
    (insert,) = cloud.inserts()
    assert json.loads(insert["body"]) == BODY
    assert any(Path(module.binary).name in caller for caller in insert["caller"])


def test_a_second_apply_changes_nothing(module: Module, cloud: Cloud) -> None:
    module.apply()
    module.run("plan", "-detailed-exitcode", "-no-color")
    module.apply()
    assert len(cloud.inserts()) == 1


def test_a_changed_address_changes_the_outputs(module: Module, cloud: Cloud) -> None:
    module.apply()
    cloud.faults.rules.append(Rule("compute.instances.state", "address", argument="203.0.113.77"))
    module.apply()
    outputs = module.outputs()
    assert outputs["address"] == "203.0.113.77"
    assert outputs["login_command"] == "ssh -p 2222 glgpu@203.0.113.77"


def test_an_instance_without_external_address_is_reached_through_identity_aware_proxy(
    module: Module, cloud: Cloud
) -> None:
    module.write({"network": {"external_ip": False}})
    module.apply()
    outputs = module.outputs()
    assert (
        outputs["address"]
        == outputs["internal_address"]
        == cloud.ask("GET", f"instances/{NAME}")["networkInterfaces"][0]["networkIP"]
    )
    assert outputs["login_command"] == (
        f"gcloud compute ssh glgpu@{NAME} --project={PROJECT} --zone={ZONE} --tunnel-through-iap"
    )


def test_destroy_deletes_the_instance(module: Module, cloud: Cloud) -> None:
    module.apply()
    assert cloud.instances() == [NAME]
    module.destroy()
    assert cloud.instances() == []


def test_destroy_of_an_instance_that_has_vanished_succeeds(module: Module, cloud: Cloud) -> None:
    module.apply()
    module.run("refresh", "-no-color")
    operation = cloud.ask("DELETE", f"instances/{NAME}")
    cloud.ask("POST", f"operations/{operation['name']}/wait")
    module.run("refresh", "-no-color")
    assert "address" not in module.outputs()
    module.destroy()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            Rule("compute.instances.insert", "stockout"),
            f"The zone 'projects/{PROJECT}/zones/{ZONE}' does not have enough resources available to fulfill the "
            "request. '(resource type:compute)'.",
        ),
        (
            Rule("compute.instances.insert", "quota", argument="PREEMPTIBLE_NVIDIA_T4_GPUS"),
            "Quota 'PREEMPTIBLE_NVIDIA_T4_GPUS' exceeded. Limit: 8.0 in region europe-west4. "
            "metric name = compute.googleapis.com/preemptible_nvidia_t4_gpus",
        ),
    ],
)
def test_a_failed_operation_speaks_as_the_provider_does(fault: Rule, words: str, module: Module, cloud: Cloud) -> None:
    cloud.faults.rules.append(fault)
    assert f"Error waiting for instance to create: {words}" in module.apply(expect=1)
    assert cloud.instances() == []


def test_an_insert_that_terraform_lost_sight_of_outlives_its_destroy(module: Module, cloud: Cloud) -> None:
    cloud.faults.rules.append(Rule("compute.zoneOperations.get", "permission-denied"))
    said = module.apply(expect=1)
    assert "Error waiting for instance to create: error while retrieving operation: googleapi: Error 403" in said
    assert "Destroy complete!" in module.destroy()
    assert cloud.instances() == [NAME]


def test_a_refused_insert_speaks_as_the_provider_does(module: Module, cloud: Cloud) -> None:
    cloud.faults.rules.append(Rule("compute.instances.insert", "quota", argument="GPUS_ALL_REGIONS"))
    words = "Quota 'GPUS_ALL_REGIONS' exceeded. Limit: 0.0 globally., quotaExceeded"
    assert f"Error creating instance: googleapi: Error 403: {words}" in module.apply(expect=1)


def test_an_insert_that_is_refused_for_now_is_sent_again(module: Module, cloud: Cloud) -> None:
    cloud.faults.rules.append(Rule("compute.instances.insert", "unavailable", nth=1))
    module.apply()
    assert [insert["status"] for insert in cloud.inserts()] == [503, 200]


def test_an_api_that_is_not_there_is_named(module: Module) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*closed.getsockname())
        module.write({"compute_endpoint": f"http://{address}"})
        said = module.apply(expect=1)
    assert "Error creating instance: Post" in said
    assert f"dial tcp {address}: connect: connection refused" in said


def test_an_insert_outlives_a_terraform_that_is_killed_before_it(module: Module, cloud: Cloud, tmp_path: Path) -> None:
    # A python3 that waits: Terraform is killed between starting the insert and the insert's request.
    waiting, go = tmp_path / "waiting", tmp_path / "go"
    os.mkfifo(waiting)
    os.mkfifo(go)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text(f'#!/bin/sh\n: >"{waiting}"\nread -r _ <"{go}"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    module.environment["PATH"] = f"{python.parent}:{module.environment['PATH']}"

    process = module.start("apply", "-auto-approve", "-no-color")
    waiting.read_bytes()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout
    process.stdout.close()
    assert cloud.instances() == []
    go.write_text("\n")
    assert cloud.room.booted.wait(timeout=30)
    assert cloud.instances() == [NAME]


def test_no_token_reaches_the_state_or_an_address_that_it_is_not_for(module: Module, cloud: Cloud) -> None:
    # Compute Engine takes its own token only, and the state document nobody's.
    module.apply()
    documents = [call for call in cloud.calls.lines() if call["target"].startswith("/rehearsal/")]
    assert [call["status"] for call in documents] == [200]
    for file in (module.folder / "terraform.tfstate", cloud.calls.path):
        text = file.read_text(encoding="utf-8")
        assert TOKEN not in text
        assert "planted-gitlab-token" not in text


def test_the_variables_refuse_what_can_never_work(module: Module) -> None:
    (module.folder / "run.auto.tfvars.json").unlink()
    assert "0 failed" in module.run("test", "-no-color")


def test_the_instance_is_planned_as_asked_for_with_the_google_provider(tmp_path: Path) -> None:
    mirror = os.environ.get("GLGPU_PROVIDER_MIRROR") or Path.home() / ".terraform.d" / "plugins"
    if not Path(mirror, "registry.terraform.io", "hashicorp", "google").is_dir():
        pytest.skip("provider: no hashicorp/google in GLGPU_PROVIDER_MIRROR or the plugin folder, gpu-vm not planned")
    module = Module(tmp_path, "gpu-vm", "http://127.0.0.1:9")
    (module.folder / "run.auto.tfvars.json").unlink()
    module.run("init", "-no-color", f"-plugin-dir={mirror}")
    module.run("validate", "-no-color")
    assert "0 failed" in module.run("test", "-no-color")
