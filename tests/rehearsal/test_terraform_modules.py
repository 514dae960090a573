"""terraform/rehearsal-vm, applied with the real Terraform, in every way in which a creation goes or fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloud as compute
from applying import Workspace
from cloud import IMAGE, NAME, PROJECT, TOKEN, VARIABLES, ZONE, Cloud
from failed_creations import FAILED_CREATIONS, FailedCreation, aftermath, play
from glgpu.rehearsal.faults import Rule

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


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with compute.cloud(tmp_path) as made:
        made.room.ssh_port = 2222
        yield made


@pytest.fixture
def module(cloud: Cloud, tmp_path: Path) -> Workspace:
    program = shutil.which("terraform") or shutil.which("tofu")
    if program is None:
        pytest.skip("terraform: neither it nor tofu is on PATH, no module is applied")
    environment = {
        "GOOGLE_OAUTH_ACCESS_TOKEN": TOKEN,
        "TF_HTTP_USERNAME": "gitlab-ci-token",
        "TF_HTTP_PASSWORD": "planted-gitlab-token",
        "http_proxy": "http://127.0.0.1:9",
    }
    variables = {**VARIABLES, "compute_endpoint": cloud.endpoint}
    made = Workspace(program, tmp_path, "rehearsal-vm", variables, environment)
    made.init()
    return made


def test_apply_makes_the_instance_and_the_outputs_tell_of_it(module: Workspace, cloud: Cloud) -> None:
    module.apply()
    instance = cloud.instance()
    (interface,) = instance["networkInterfaces"]
    address = interface["accessConfigs"][0]["natIP"]
    assert module.outputs() == {
        "address": address, "instance_id": instance["id"], "internal_address": interface["networkIP"],
        "login_command": f"ssh -p 2222 glgpu@{address}", "name": NAME, "self_link": instance["selfLink"],
        "ssh_port": 2222, "zone": ZONE,
    }  # fmt: skip


def test_the_insert_is_what_the_google_provider_sends_and_comes_from_a_child_of_terraform(
    module: Workspace, cloud: Cloud
) -> None:
    module.apply()
    (insert,) = cloud.inserts()
    assert json.loads(insert["body"]) == BODY
    assert any(Path(module.program).name in caller for caller in insert["caller"])


def test_a_second_apply_changes_nothing(module: Workspace, cloud: Cloud) -> None:
    module.apply()
    module.run("plan", "-detailed-exitcode", "-no-color")
    module.apply()
    assert len(cloud.inserts()) == 1


def test_a_changed_address_changes_the_outputs(module: Workspace, cloud: Cloud) -> None:
    module.apply()
    cloud.faults.rules.append(Rule("compute.instances.state", "address", argument="203.0.113.77"))
    module.apply()
    outputs = module.outputs()
    assert outputs["address"] == "203.0.113.77"
    assert outputs["login_command"] == "ssh -p 2222 glgpu@203.0.113.77"


def test_an_instance_without_external_address_is_reached_through_identity_aware_proxy(
    module: Workspace, cloud: Cloud
) -> None:
    module.write({**VARIABLES, "compute_endpoint": cloud.endpoint, "network": {"external_ip": False}})
    module.apply()
    outputs = module.outputs()
    assert outputs["address"] == outputs["internal_address"] == cloud.instance()["networkInterfaces"][0]["networkIP"]
    assert outputs["login_command"] == (
        f"gcloud compute ssh glgpu@{NAME} --project={PROJECT} --zone={ZONE} --tunnel-through-iap"
    )


def test_destroy_deletes_the_instance(module: Workspace, cloud: Cloud) -> None:
    module.apply()
    assert cloud.instances() == [NAME]
    module.destroy()
    assert cloud.instances() == []


def test_destroy_of_an_instance_that_has_vanished_succeeds(module: Workspace, cloud: Cloud) -> None:
    module.apply()
    module.run("refresh", "-no-color")
    cloud.done("DELETE", f"zones/{ZONE}/instances/{NAME}")
    module.run("refresh", "-no-color")
    assert "address" not in module.outputs()
    module.destroy()


@pytest.mark.parametrize("case", FAILED_CREATIONS, ids=lambda case: case.name)
def test_a_failed_creation_speaks_and_leaves_behind_as_with_the_provider(
    case: FailedCreation, module: Workspace, cloud: Cloud
) -> None:
    said = play(case, module, cloud)
    assert case.own_words or case.pattern.search(said), said
    aftermath(case, module, cloud)


def test_an_insert_that_terraform_lost_sight_of_outlives_its_destroy(module: Workspace, cloud: Cloud) -> None:
    cloud.faults.rules.append(Rule("compute.zoneOperations.get", "permission-denied"))
    said = module.apply(expect=1)
    assert "Error waiting for instance to create: error while retrieving operation: googleapi: Error 403" in said
    assert "Destroy complete!" in module.destroy()
    assert cloud.instances() == [NAME]


def test_an_insert_that_is_refused_for_now_is_sent_again(module: Workspace, cloud: Cloud) -> None:
    cloud.faults.rules.append(Rule("compute.instances.insert", "unavailable", nth=1))
    module.apply()
    assert [insert["status"] for insert in cloud.inserts()] == [503, 200]


def test_an_api_that_is_not_there_is_named(module: Workspace) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*closed.getsockname())
        module.write({**VARIABLES, "compute_endpoint": f"http://{address}"})
        said = module.apply(expect=1)
    assert "Error creating instance: Post" in said
    assert f"dial tcp {address}: connect: connection refused" in said


def test_an_insert_outlives_a_terraform_that_is_killed_before_it(
    module: Workspace, cloud: Cloud, tmp_path: Path
) -> None:
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


def test_no_token_reaches_the_state_or_an_address_that_it_is_not_for(module: Workspace, cloud: Cloud) -> None:
    # Compute Engine takes its own token only, and the state document nobody's.
    module.apply()
    documents = [call for call in cloud.calls.lines() if call["target"].startswith("/rehearsal/")]
    assert [call["status"] for call in documents] == [200]
    for file in (module.folder / "terraform.tfstate", cloud.calls.path):
        text = file.read_text(encoding="utf-8")
        assert TOKEN not in text
        assert "planted-gitlab-token" not in text


def test_the_variables_refuse_what_can_never_work(module: Workspace) -> None:
    (module.folder / "run.auto.tfvars.json").unlink()
    assert "0 failed" in module.run("test", "-no-color")
