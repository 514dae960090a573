"""The stand-in Compute Engine, held by clients that nobody here wrote: google-cloud-compute, urllib and gcloud."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.cloud import compute_v1
from google.oauth2.credentials import Credentials

from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.compute_engine import ComputeEngine
from glgpu.rehearsal.faults import Faults, Rule
from glgpu.rehearsal.seams import Hardware, Hypervisor, Network
from glgpu.rehearsal.world_clock import WorldClock

T = TypeVar("T")

PROJECT, TOKEN, ZONE = "my-dl", "ya29.rehearsal", "europe-west4-a"
FAMILY = "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580"


class EmptyMachineRoom:
    """Boots nothing, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.running: dict[str, tuple[Hardware, Hypervisor]] = {}
        self.cut: list[tuple[str, bool]] = []
        self.may_boot = asyncio.Event()
        self.may_boot.set()

    async def boot(self, hardware: Hardware, hypervisor: Hypervisor) -> int:
        await self.may_boot.wait()
        self.running[hardware.instance_id] = (hardware, hypervisor)
        return 40022

    async def soft_off(self, instance_id: str) -> None:
        pass

    async def cut_power(self, instance_id: str, *, delete: bool) -> None:
        self.running.pop(instance_id, None)
        self.cut.append((instance_id, delete))


class Cloud:
    """A stand-in in a loop of its own thread, and ways to speak to it."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.clock, self.faults, self.network = WorldClock(), Faults(), Network()
        self.calls = CallLog(folder / "calls.jsonl")
        self.machines = EmptyMachineRoom()
        self.engine = ComputeEngine(
            folder / "compute", self.clock, self.faults, self.calls, self.network, self.machines,
            project=PROJECT, tokens={TOKEN},
        )  # fmt: skip
        self.run(self.engine.start())
        self.options: dict[str, Any] = {
            "credentials": Credentials(token=TOKEN),
            "client_options": ClientOptions(api_endpoint=self.engine.endpoint),
        }

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def close(self) -> None:
        self.run(self.engine.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def http(
        self, verb: str, path: str, body: Any = None, headers: dict[str, str] | None = None, api: str = "/compute/v1/"
    ) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        given = {"Authorization": f"Bearer {TOKEN}"} if headers is None else headers
        request = urllib.request.Request(self.engine.endpoint + api + path, data, given, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def project(self, verb: str, path: str, body: Any = None) -> Any:
        status, answer = self.http(verb, f"projects/{PROJECT}/{path}", body)
        return answer if status == 200 else (status, answer["error"]["message"])

    def finished(self, begun: Any) -> Any:
        """The operation's end, for an answer that is an operation."""
        assert isinstance(begun, dict), begun
        path = begun["selfLink"].removeprefix(self.engine.endpoint + "/compute/v1/")
        return self.http("POST", f"{path}/wait")[1]

    def insert(self, body: dict[str, Any], zone: str = ZONE) -> Any:
        return self.finished(self.project("POST", f"zones/{zone}/instances", body))

    def instance(self, name: str = "vm-1", zone: str = ZONE) -> Any:
        return self.project("GET", f"zones/{zone}/instances/{name}")


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.close()


def order(name: str = "vm-1", zone: str = ZONE, **changes: Any) -> dict[str, Any]:
    """A legal insert body."""
    return {
        "name": name,
        "machineType": f"zones/{zone}/machineTypes/n1-standard-4",
        "guestAccelerators": [
            {
                "acceleratorType": f"projects/{PROJECT}/zones/{zone}/acceleratorTypes/nvidia-tesla-t4",
                "acceleratorCount": 1,
            }
        ],
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "initializeParams": {
                    "sourceImage": FAMILY,
                    "diskSizeGb": "100",
                    "diskType": f"projects/{PROJECT}/zones/{zone}/diskTypes/pd-balanced",
                },
            }
        ],
        "networkInterfaces": [{"network": "global/networks/default", "accessConfigs": [{"type": "ONE_TO_ONE_NAT"}]}],
        "scheduling": {
            "onHostMaintenance": "TERMINATE",
            "automaticRestart": False,
            "maxRunDuration": {"seconds": "3600"},
            "instanceTerminationAction": "DELETE",
        },
        "labels": {"glgpu": "managed"},
        "metadata": {"items": [{"key": "enable-guest-attributes", "value": "TRUE"}]},
        "tags": {"items": ["glgpu-run"]},
        **changes,
    }


def scheduling(**changes: Any) -> dict[str, Any]:
    return {"scheduling": {**order()["scheduling"], **changes}}


def disk(**changes: Any) -> dict[str, Any]:
    boot = order()["disks"][0]
    return {"disks": [{**boot, "initializeParams": {**boot["initializeParams"], **changes}}]}


# Credentials and projects


def test_a_request_without_a_token_is_unauthenticated(cloud: Cloud) -> None:
    status, answer = cloud.http("GET", f"projects/{PROJECT}", headers={})
    assert (status, answer["error"]["status"]) == (401, "UNAUTHENTICATED")
    status, answer = cloud.http("GET", f"projects/{PROJECT}", headers={"Authorization": "Bearer wrong"})
    assert (status, answer["error"]["errors"][0]["reason"]) == (401, "authError")


def test_another_project_is_forbidden_but_public_images_are_not(cloud: Cloud) -> None:
    status, answer = cloud.http("GET", "projects/not-mine/zones")
    assert (status, answer["error"]["message"]) == (
        403,
        "Required 'compute.zones.list' permission for 'projects/not-mine'",
    )
    status, image = cloud.http("GET", FAMILY)
    assert status == 200
    assert image["name"].startswith(image["family"])


def test_the_caller_is_told_its_address_as_seen_from_outside(cloud: Cloud) -> None:
    cloud.network.change(caller_address="198.51.100.7")
    with urllib.request.urlopen(f"{cloud.engine.endpoint}/echo", timeout=10) as answer:
        assert answer.read() == b"198.51.100.7\n"


# Inserts


def test_an_instance_comes_up_as_ordered(cloud: Cloud) -> None:
    operation = cloud.insert(order())
    assert operation["status"] == "DONE"
    assert "error" not in operation
    instance = cloud.instance()
    assert instance["status"] == "RUNNING"
    assert instance["selfLink"].startswith(cloud.engine.endpoint + "/compute/v1/projects/my-dl/zones/")
    assert instance["scheduling"]["maxRunDuration"] == {"seconds": "3600"}
    for holder, key in ((instance, "labelFingerprint"), (instance["metadata"], "fingerprint")):
        assert base64.b64decode(holder[key], validate=True)
    assert {"key": "glgpu-ssh-port", "value": "40022"} in instance["metadata"]["items"]
    boot = cloud.project("GET", f"zones/{ZONE}/disks/vm-1")
    assert boot["users"] == [instance["selfLink"]]
    assert boot["sourceImage"].startswith(
        "https://www.googleapis.com/compute/v1/projects/deeplearning-platform-release/global/images/common-cu129"
    )
    [(hardware, _)] = cloud.machines.running.values()
    assert (hardware.gpu_type, hardware.gpu_count, hardware.instance_id) == ("nvidia-tesla-t4", 1, instance["id"])


def test_numbers_may_come_as_numbers_or_strings_and_go_out_in_one_form(cloud: Cloud) -> None:
    gpus = [{**order()["guestAccelerators"][0], "acceleratorCount": "1"}]
    limit = scheduling(maxRunDuration={"seconds": 7200}, nodeAffinities=[None], hostErrorTimeoutSeconds=None)
    assert "error" not in cloud.insert(order(**disk(diskSizeGb=100.0), **limit, guestAccelerators=gpus))
    instance = cloud.instance()
    assert instance["scheduling"]["maxRunDuration"] == {"seconds": "7200"}
    assert instance["guestAccelerators"][0]["acceleratorCount"] == 1
    assert instance["disks"][0]["diskSizeGb"] == "100"


def test_the_gpus_of_a_bundled_machine_type_are_shown(cloud: Cloud) -> None:
    cloud.insert(order(machineType=f"zones/{ZONE}/machineTypes/g2-standard-24", guestAccelerators=[]))
    [gpus] = cloud.instance()["guestAccelerators"]
    assert gpus["acceleratorCount"] == 2
    assert gpus["acceleratorType"].endswith("/acceleratorTypes/nvidia-l4")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "Vm"}, "Must be a match of regex"),
        ({"colour": "red"}, "Unknown name \"colour\" at 'resource': Cannot find field."),
        ({"canIpForward": "no"}, "Invalid value at 'resource.canIpForward' (TYPE_BOOLEAN)"),
        (disk(diskSizeGb=100.5), "diskSizeGb' (TYPE_INT64), 100.5"),
        (disk(diskSizeGb=True), "diskSizeGb' (TYPE_INT64), true"),
        (disk(diskSizeGb="10"), "Requested disk size cannot be smaller than the image size (50 GB)"),
        (disk(sourceImage="projects/debian-cloud/global/images/family/debian-7"), "images/family/debian-7' was not"),
        (disk(diskType=f"zones/{ZONE}/diskTypes/pd-quick"), "does not exist in zone"),
        (disk(diskType=f"zones/{ZONE}/diskTypes/hyperdisk-balanced"), "features are not compatible"),
        ({"machineType": f"zones/{ZONE}/machineTypes/n1-standard-5"}, "'n1-standard-5' does not exist in zone"),
        ({"machineType": f"zones/{ZONE}/machineTypes/e2-medium"}, "[e2-medium, nvidia-tesla-t4] features are not"),
        ({"machineType": f"zones/{ZONE}/machineTypes/g2-standard-4"}, "[g2-standard-4, nvidia-tesla-t4] features"),
        ({"machineType": "n1-standard-4"}, "The URL is malformed."),
        (
            {"guestAccelerators": [{"acceleratorType": f"zones/{ZONE}/acceleratorTypes/gpu", "acceleratorCount": 1}]},
            "Accelerator type with name 'gpu' does not exist in zone 'europe-west4-a'.",
        ),
        (
            {
                "guestAccelerators": [
                    {"acceleratorType": f"zones/{ZONE}/acceleratorTypes/nvidia-tesla-t4", "acceleratorCount": 3}
                ]
            },
            "must be one of [1, 2, 4]",
        ),
        (scheduling(onHostMaintenance="MIGRATE"), "Instances with guest accelerators do not support live migration."),
        (scheduling(provisioningModel="SPOT", automaticRestart=True), "automaticRestart be false when preemptible"),
        (scheduling(provisioningModel="CHEAP"), 'provisioningModel\' (TYPE_ENUM), "CHEAP"'),
        (scheduling(maxRunDuration={"seconds": "29"}), "Must be between 30 seconds and 120 days."),
        (scheduling(maxRunDuration={"seconds": "10368001"}), "Must be between 30 seconds and 120 days."),
        ({"networkInterfaces": []}, "At least one network interface is required."),
        ({"networkInterfaces": [{"network": "global/networks/lab"}]}, "The referenced network resource cannot be"),
        ({"labels": {"Bad": "x"}}, "Label key 'Bad' violates format constraints."),
        ({"labels": {"good": "Bad"}}, "Label value 'Bad' violates format constraints."),
        ({"labels": {f"k{n}": "" for n in range(65)}}, "at most 64 labels"),
        ({"metadata": {"items": [{"key": "a", "value": "x" * 262145}]}}, "is too large: maximum size 262144"),
        ({"metadata": {"items": [{"value": "x"}]}}, "Required field 'resource.metadata.items[0].key' not specified"),
        ({"tags": {"items": ["No"]}}, "resource.tags.items[0]"),
    ],
)
def test_an_insert_is_refused_as_google_refuses_it(cloud: Cloud, changes: dict[str, Any], problem: str) -> None:
    status, message = cloud.project("POST", f"zones/{ZONE}/instances", order(**changes))
    assert status in (400, 404, 413)
    assert problem in message
    assert cloud.instance()[0] == 404


def test_a_hard_end_needs_a_termination_action(cloud: Cloud) -> None:
    body = order()
    del body["scheduling"]["instanceTerminationAction"]
    assert cloud.project("POST", f"zones/{ZONE}/instances", body)[0] == 400
    body = order()
    del body["scheduling"]["maxRunDuration"]
    assert cloud.project("POST", f"zones/{ZONE}/instances", body)[0] == 400


def test_an_unknown_zone_and_an_unknown_parameter_are_refused(cloud: Cloud) -> None:
    zone = "europe-west9-x"
    assert "Unknown zone." in cloud.project("POST", f"zones/{zone}/instances", order(zone=zone))[1]
    assert "Unknown zone." in cloud.project("GET", f"zones/{zone}/instances")[1]
    assert 'Unknown name "colour"' in cloud.project("GET", f"zones/{ZONE}/instances?colour=red")[1]


def test_a_name_is_taken_until_its_instance_is_gone(cloud: Cloud) -> None:
    cloud.insert(order())
    cloud.engine.operations.latency = 60
    deletion = cloud.project("DELETE", f"zones/{ZONE}/instances/vm-1")
    assert cloud.instance()["status"] == "STOPPING"
    status, message = cloud.project("POST", f"zones/{ZONE}/instances", order())
    assert (status, message) == (
        409,
        "The resource 'projects/my-dl/zones/europe-west4-a/instances/vm-1' already exists",
    )
    assert cloud.project("DELETE", f"zones/{ZONE}/instances/vm-1")[0] == 400
    cloud.clock.advance(61)
    cloud.finished(deletion)
    assert cloud.instance()[0] == 404
    assert cloud.project("GET", f"zones/{ZONE}/disks/vm-1")[0] == 404
    assert [delete for _, delete in cloud.machines.cut] == [True]


def test_the_same_request_id_orders_only_once(cloud: Cloud) -> None:
    path = f"zones/{ZONE}/instances?requestId=8b8ff3a0-0000-4000-8000-000000000001"
    first, second = cloud.project("POST", path, order()), cloud.project("POST", path, order())
    assert first["name"] == second["name"]


def test_an_operation_takes_its_time(cloud: Cloud) -> None:
    cloud.engine.operations.latency = 100
    begun = cloud.project("POST", f"zones/{ZONE}/instances", order())
    path = begun["selfLink"].removeprefix(cloud.engine.endpoint + "/compute/v1/projects/my-dl/")
    assert begun["status"] == "PENDING"
    assert cloud.instance()["status"] == "PROVISIONING"
    cloud.clock.advance(51)
    deadline = time.monotonic() + 10
    while (seen := cloud.project("GET", path)["status"]) == "PENDING" and time.monotonic() < deadline:
        pass
    assert seen == "RUNNING"
    cloud.clock.advance(51)
    assert cloud.finished(begun)["status"] == "DONE"
    assert cloud.instance()["status"] == "RUNNING"
    [listed] = cloud.project("GET", f"zones/{ZONE}/operations?filter=operationType%3Dinsert")["items"]
    assert listed["targetId"] == cloud.instance()["id"]


def test_an_instance_deleted_while_it_boots_is_gone_and_cut_off(cloud: Cloud) -> None:
    cloud.loop.call_soon_threadsafe(cloud.machines.may_boot.clear)
    cloud.project("POST", f"zones/{ZONE}/instances", order())
    deletion = cloud.project("DELETE", f"zones/{ZONE}/instances/vm-1")
    cloud.loop.call_soon_threadsafe(cloud.machines.may_boot.set)
    cloud.finished(deletion)
    assert cloud.instance()[0] == 404
    assert cloud.machines.running == {}


# Limits


def test_a_stockout_is_a_finished_operation_that_names_other_zones(cloud: Cloud) -> None:
    cloud.engine.instances.capacity[ZONE, "nvidia-tesla-t4"] = 0
    [error] = cloud.insert(order())["error"]["errors"]
    assert error["code"] == "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"
    assert error["message"].startswith("The zone 'projects/my-dl/zones/europe-west4-a' does not have enough resources")
    assert error["errorDetails"][0]["errorInfo"]["metadatas"]["zonesAvailable"] == "europe-west4-b,europe-west4-c"
    assert cloud.instance()[0] == 404
    assert "items" not in cloud.project("GET", f"zones/{ZONE}/disks")


def test_a_regional_limit_fails_the_operation_and_a_global_one_the_request(cloud: Cloud) -> None:
    cloud.engine.instances.region_quotas["europe-west4"]["NVIDIA_T4_GPUS"] = 1
    assert "error" not in cloud.insert(order())
    [error] = cloud.insert(order("vm-2", "europe-west4-b"), "europe-west4-b")["error"]["errors"]
    assert error["code"] == "QUOTA_EXCEEDED"
    assert error["message"] == "Quota 'NVIDIA_T4_GPUS' exceeded.  Limit: 1.0 in region europe-west4."
    assert error["errorDetails"][0]["quotaInfo"]["dimensions"] == {"region": "europe-west4"}
    cloud.engine.instances.project_quotas["GPUS_ALL_REGIONS"] = 1
    refusal = cloud.project("POST", f"zones/{ZONE}/instances", order("vm-3"))
    assert refusal == (403, "Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 1.0 globally.")


def test_limits_and_their_use_are_shown(cloud: Cloud) -> None:
    cloud.insert(order())
    region = {q["metric"]: (q["limit"], q["usage"]) for q in cloud.project("GET", "regions/europe-west4")["quotas"]}
    assert region["NVIDIA_T4_GPUS"] == (8, 1)
    assert region["SSD_TOTAL_GB"][1] == 100
    _, project = cloud.http("GET", f"projects/{PROJECT}")
    assert {q["metric"]: q["usage"] for q in project["quotas"]}["GPUS_ALL_REGIONS"] == 1


# What happens to an instance


def test_metadata_changes_only_under_its_current_fingerprint(cloud: Cloud) -> None:
    cloud.insert(order())
    metadata = cloud.instance()["metadata"]
    items = [*metadata["items"], {"key": "ssh-keys", "value": "glgpu:ssh-ed25519 AAAA"}]
    change = {"fingerprint": metadata["fingerprint"], "items": items}
    path = f"zones/{ZONE}/instances/vm-1/setMetadata"
    cloud.finished(cloud.project("POST", path, change))
    [(_, hypervisor)] = cloud.machines.running.values()
    assert hypervisor.metadata()["ssh-keys"] == "glgpu:ssh-ed25519 AAAA"
    refusal = cloud.project("POST", path, change)
    assert refusal == (412, "Supplied fingerprint does not match current metadata fingerprint.")
    assert cloud.project("POST", path, {"items": items})[0] == 412


def test_labels_change_only_under_their_current_fingerprint(cloud: Cloud) -> None:
    cloud.insert(order())
    path = f"zones/{ZONE}/instances/vm-1/setLabels"
    change = {"labelFingerprint": cloud.instance()["labelFingerprint"], "labels": {"glgpu-expires": "1"}}
    cloud.finished(cloud.project("POST", path, change))
    assert cloud.instance()["labels"] == {"glgpu-expires": "1"}
    assert cloud.project("POST", path, change)[0] == 412


def test_network_tags_change_only_under_their_current_fingerprint(cloud: Cloud) -> None:
    cloud.insert(order())
    path = f"zones/{ZONE}/instances/vm-1/setTags"
    change = {"fingerprint": cloud.instance()["tags"]["fingerprint"], "items": ["other"]}
    assert "resource.items[0]" in cloud.project("POST", path, {**change, "items": ["No"]})[1]
    cloud.finished(cloud.project("POST", path, change))
    assert cloud.instance()["tags"]["items"] == ["other"]
    assert cloud.project("POST", path, change)[0] == 412


def test_guest_attributes_are_there_once_the_guest_published_them(cloud: Cloud) -> None:
    cloud.insert(order())
    path = f"zones/{ZONE}/instances/vm-1/getGuestAttributes?queryPath=hostkeys/"
    assert cloud.project("GET", path) == (404, "The resource 'hostkeys/' of type 'Guest Attribute' was not found.")
    [(_, hypervisor)] = cloud.machines.running.values()
    hypervisor.publish("hostkeys", "ssh-ed25519", "AAAA")
    assert cloud.project("GET", path)["queryValue"]["items"] == [
        {"namespace": "hostkeys", "key": "ssh-ed25519", "value": "AAAA"}
    ]


def test_guest_attributes_are_not_there_where_metadata_does_not_enable_them(cloud: Cloud) -> None:
    cloud.insert(order(metadata={}))
    [(_, hypervisor)] = cloud.machines.running.values()
    hypervisor.publish("hostkeys", "ssh-ed25519", "AAAA")
    assert cloud.project("GET", f"zones/{ZONE}/instances/vm-1/getGuestAttributes?queryPath=hostkeys/")[0] == 404


def test_a_policy_against_guest_attributes_forbids_to_write_and_to_read_them(cloud: Cloud) -> None:
    cloud.insert(order())
    [(_, hypervisor)] = cloud.machines.running.values()
    assert hypervisor.publish("hostkeys", "ssh-ed25519", "AAAA")
    cloud.faults.rules.append(Rule("compute.guest-attributes-policy", "on"))
    assert not hypervisor.publish("hostkeys", "ssh-ed25519", "BBBB")
    path = f"zones/{ZONE}/instances/vm-1/getGuestAttributes?queryPath=hostkeys/"
    refusal = "Constraint constraints/compute.disableGuestAttributesAccess violated for project 123456789012."
    assert cloud.project("GET", path) == (412, refusal)
    cloud.faults.end()
    assert cloud.project("GET", path)["queryValue"]["items"][0]["value"] == "AAAA"


def test_the_effective_metadata_say_what_the_guest_goes_by(cloud: Cloud) -> None:
    given = {"enable-oslogin": "FALSE", "block-project-ssh-keys": "TRUE"}
    cloud.insert(order(metadata={"items": [{"key": key, "value": value} for key, value in given.items()]}))
    [(_, hypervisor)] = cloud.machines.running.values()

    def effective() -> dict[str, bool]:
        found: dict[str, bool] = cloud.instance()["resourceStatus"]["effectiveInstanceMetadata"]
        return found

    assert (effective()["enableOsloginMetadataValue"], effective()["blockProjectSshKeysMetadataValue"]) == (False, True)
    items = [{"key": "enable-oslogin", "value": "TRUE"}]
    change = {"fingerprint": cloud.instance()["metadata"]["fingerprint"], "items": items}
    cloud.finished(cloud.project("POST", f"zones/{ZONE}/instances/vm-1/setMetadata", change))
    assert (effective()["enableOsloginMetadataValue"], effective()["blockProjectSshKeysMetadataValue"]) == (True, False)
    assert hypervisor.metadata() == {"enable-oslogin": "TRUE"}


def test_os_login_that_is_forced_goes_before_the_instances_own_metadata(cloud: Cloud) -> None:
    cloud.faults.rules.append(Rule("compute.os-login-forced", "on"))
    cloud.insert(order(metadata={"items": [{"key": "enable-oslogin", "value": "FALSE"}]}))
    [(_, hypervisor)] = cloud.machines.running.values()
    assert hypervisor.metadata()["enable-oslogin"] == "TRUE"
    assert {item["key"]: item["value"] for item in cloud.instance()["metadata"]["items"]}["enable-oslogin"] == "FALSE"
    assert cloud.instance()["resourceStatus"]["effectiveInstanceMetadata"]["enableOsloginMetadataValue"] is True


def test_the_serial_port_is_read_from_where_one_left_off(cloud: Cloud) -> None:
    cloud.insert(order())
    path = f"zones/{ZONE}/instances/vm-1/serialPort"
    first = cloud.project("GET", path)
    assert first["contents"].startswith("SeaBIOS")
    instance = cloud.engine.instances.get(ZONE, "vm-1")
    cloud.engine.instances.write_serial(instance, "ready\n")
    assert cloud.project("GET", f"{path}?start={first['next']}")["contents"] == "ready\n"
    assert cloud.project("GET", f"{path}?start=-3")["contents"] == "dy\n"
    cloud.engine.instances.write_serial(instance, "x" * 1024 * 1024)
    assert int(cloud.project("GET", f"{path}?start=0")["start"]) == int(first["next"]) + len("ready\n")
    assert cloud.project("GET", f"{path}?port=5")[0] == 400


def test_a_stopped_instance_keeps_its_disk_and_loses_its_hard_end(cloud: Cloud) -> None:
    cloud.insert(order())
    [(_, hypervisor)] = cloud.machines.running.values()
    cloud.finished(cloud.project("POST", f"zones/{ZONE}/instances/vm-1/stop"))
    assert cloud.instance()["status"] == "TERMINATED"
    assert not hypervisor.may_connect("203.0.113.10", 22)
    assert "natIP" not in cloud.instance()["networkInterfaces"][0]["accessConfigs"][0]
    assert [delete for _, delete in cloud.machines.cut] == [False]
    cloud.clock.advance(3700)
    cloud.http("GET", f"projects/{PROJECT}")
    assert cloud.instance()["status"] == "TERMINATED"


def test_a_guest_that_powers_itself_off_is_terminated(cloud: Cloud) -> None:
    cloud.insert(order())
    [(_, hypervisor)] = cloud.machines.running.values()
    cloud.loop.call_soon_threadsafe(hypervisor.powered_off)
    _await(lambda: cloud.instance()["status"] != "RUNNING")
    assert cloud.instance()["status"] == "TERMINATED"


def test_an_instance_ends_at_its_hard_end(cloud: Cloud) -> None:
    cloud.insert(order())
    cloud.clock.advance(3590)
    assert cloud.instance()["status"] == "RUNNING"
    cloud.clock.advance(11)
    _await(lambda: cloud.project("GET", f"zones/{ZONE}/instances").get("items") is None)
    assert "items" not in cloud.project("GET", f"zones/{ZONE}/disks")


def test_a_disk_that_does_not_go_with_its_instance_stays_and_can_be_deleted(cloud: Cloud) -> None:
    body = order()
    body["disks"][0]["autoDelete"] = False
    cloud.insert(body)
    status, message = cloud.project("DELETE", f"zones/{ZONE}/disks/vm-1")
    assert status == 400
    assert "is already being used by" in message
    cloud.finished(cloud.project("DELETE", f"zones/{ZONE}/instances/vm-1"))
    assert cloud.project("GET", f"zones/{ZONE}/disks/vm-1")["users"] == []
    cloud.finished(cloud.project("DELETE", f"zones/{ZONE}/disks/vm-1"))
    assert cloud.project("GET", f"zones/{ZONE}/disks/vm-1")[0] == 404


# Firewall rules


def rule(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "network": "global/networks/default",
        "direction": "INGRESS",
        "targetTags": ["glgpu-run"],
        **changes,
    }


SSH = [{"IPProtocol": "tcp", "ports": ["22"]}]


def test_the_default_network_lets_everybody_in_by_ssh_until_a_rule_denies_it(cloud: Cloud) -> None:
    cloud.insert(order())
    [(_, hypervisor)] = cloud.machines.running.values()
    assert hypervisor.may_connect("203.0.113.10", 22)
    assert not hypervisor.may_connect("203.0.113.10", 8080)
    cloud.finished(cloud.project("POST", "global/firewalls", rule("vm-1-closed", priority=1000, denied=SSH)))
    assert not hypervisor.may_connect("203.0.113.10", 22)
    opened = rule("vm-1", priority=900, allowed=SSH, sourceRanges=["203.0.113.10/32"], disabled=True)
    cloud.finished(cloud.project("POST", "global/firewalls", opened))
    assert not hypervisor.may_connect("203.0.113.10", 22)
    cloud.finished(cloud.project("PATCH", "global/firewalls/vm-1", {"name": "vm-1", "disabled": False}))
    assert hypervisor.may_connect("203.0.113.10", 22)
    assert not hypervisor.may_connect("203.0.113.11", 22)
    cloud.finished(cloud.project("DELETE", "global/firewalls/vm-1"))
    assert not hypervisor.may_connect("203.0.113.10", 22)


def test_deny_comes_before_allow_at_equal_priority(cloud: Cloud) -> None:
    cloud.insert(order())
    [(_, hypervisor)] = cloud.machines.running.values()
    cloud.finished(cloud.project("POST", "global/firewalls", rule("a", priority=5, allowed=SSH)))
    cloud.finished(cloud.project("POST", "global/firewalls", rule("b", priority=5, denied=SSH)))
    assert not hypervisor.may_connect("203.0.113.10", 22)


def test_a_rule_without_sources_is_for_everybody_and_an_empty_list_changes_nothing(cloud: Cloud) -> None:
    cloud.finished(cloud.project("POST", "global/firewalls", rule("a", allowed=SSH)))
    assert cloud.project("GET", "global/firewalls/a")["sourceRanges"] == ["0.0.0.0/0"]
    narrow = {"name": "a", "sourceRanges": ["192.0.2.1/32"]}
    cloud.finished(cloud.project("PATCH", "global/firewalls/a", narrow))
    cloud.finished(cloud.project("PATCH", "global/firewalls/a", {"name": "a", "sourceRanges": []}))
    assert cloud.project("GET", "global/firewalls/a")["sourceRanges"] == ["192.0.2.1/32"]
    cloud.finished(cloud.project("PUT", "global/firewalls/a", rule("a", allowed=SSH)))
    assert cloud.project("GET", "global/firewalls/a")["sourceRanges"] == ["0.0.0.0/0"]


def test_a_rule_for_other_tags_or_ports_does_not_speak_of_this_instance(cloud: Cloud) -> None:
    cloud.insert(order())
    [(_, hypervisor)] = cloud.machines.running.values()
    elsewhere = rule("a", priority=1, denied=[{"IPProtocol": "all"}], targetTags=["other"])
    cloud.finished(cloud.project("POST", "global/firewalls", elsewhere))
    web = rule("b", priority=1, denied=[{"IPProtocol": "tcp", "ports": ["80-90"]}])
    cloud.finished(cloud.project("POST", "global/firewalls", web))
    assert hypervisor.may_connect("203.0.113.10", 22)
    everything = rule("c", priority=1, denied=[{"IPProtocol": "6"}])
    cloud.finished(cloud.project("POST", "global/firewalls", everything))
    assert not hypervisor.may_connect("203.0.113.10", 22)


def test_a_rule_counts_from_the_end_of_its_operation(cloud: Cloud) -> None:
    cloud.insert(order())
    [(_, hypervisor)] = cloud.machines.running.values()
    cloud.engine.operations.latency = 60
    cloud.project("POST", "global/firewalls", rule("a", denied=SSH))
    assert hypervisor.may_connect("203.0.113.10", 22)


@pytest.mark.parametrize(
    "wrong",
    [
        {"allowed": SSH, "denied": SSH},
        {},
        {"allowed": SSH, "sourceRanges": ["here"]},
        {"allowed": [{"IPProtocol": "icmp", "ports": ["22"]}]},
        {"allowed": [{"IPProtocol": "tcp", "ports": ["99999"]}]},
        {"allowed": SSH, "priority": 70000},
        {"allowed": SSH, "network": "global/networks/lab"},
    ],
)
def test_a_rule_that_google_refuses_is_refused(cloud: Cloud, wrong: dict[str, Any]) -> None:
    assert cloud.project("POST", "global/firewalls", rule("a", **wrong))[0] == 400
    assert cloud.project("GET", "global/firewalls/a")[0] == 404


# Lists


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("labels.glgpu=managed", ["vm-1", "vm-2"]),
        ("labels.glgpu=managed AND labels.run=2", ["vm-2"]),
        ("(labels.glgpu=managed) (labels.run = 1)", ["vm-1"]),
        ("labels.run=1 OR labels.run=2", ["vm-1", "vm-2"]),
        ("labels.run:*", ["vm-1", "vm-2"]),
        ("NOT labels.run:*", ["vm-3"]),
        ("-name=vm-3 status=RUNNING", ["vm-1", "vm-2"]),
        ('name="vm-3"', ["vm-3"]),
        ("name eq vm-[12]", ["vm-1", "vm-2"]),
        ("name ne .*1", ["vm-2", "vm-3"]),
        (r'(zone eq ".*\beurope\-west4\-a\b.*")(name eq ".*\bvm\-1\b.*")', ["vm-1"]),
        ("labels.run>=2", ["vm-2"]),
        ("scheduling.automaticRestart=false", ["vm-1", "vm-2", "vm-3"]),
        ("networkInterfaces.networkIP:10.", ["vm-1", "vm-2", "vm-3"]),
        ("labels.glgpu!=managed", ["vm-3"]),
    ],
)
def test_filters_mean_what_google_documents(cloud: Cloud, expression: str, names: list[str]) -> None:
    for number, labels in enumerate(({"glgpu": "managed", "run": "1"}, {"glgpu": "managed", "run": "2"}, {}), 1):
        cloud.insert(order(f"vm-{number}", labels=labels))
    query = urllib.parse.urlencode({"filter": expression})
    found = cloud.project("GET", f"zones/{ZONE}/instances?{query}").get("items", [])
    assert [item["name"] for item in found] == names


@pytest.mark.parametrize("expression", ["colour=red", "name=", "(name=a", "name eq [", "name ~ x", "AND"])
def test_a_filter_that_google_does_not_understand_is_refused(cloud: Cloud, expression: str) -> None:
    query = urllib.parse.urlencode({"filter": expression})
    status, message = cloud.project("GET", f"zones/{ZONE}/instances?{query}")
    assert status == 400
    assert "Invalid list filter expression." in message


def test_pages_add_up_to_the_whole_and_empty_scopes_carry_a_warning(cloud: Cloud) -> None:
    for number, zone in enumerate((ZONE, ZONE, "us-central1-a"), 1):
        cloud.insert(order(f"vm-{number}", zone), zone)
    first = cloud.project("GET", "aggregated/instances?maxResults=2")
    second = cloud.project("GET", f"aggregated/instances?maxResults=2&pageToken={first['nextPageToken']}")
    assert [i["name"] for i in first["items"][f"zones/{ZONE}"]["instances"]] == ["vm-1", "vm-2"]
    assert [i["name"] for i in second["items"]["zones/us-central1-a"]["instances"]] == ["vm-3"]
    assert second["items"][f"zones/{ZONE}"]["warning"]["code"] == "NO_RESULTS_ON_PAGE"
    assert "nextPageToken" not in second
    assert cloud.project("GET", "aggregated/instances?pageToken=x")[0] == 400
    assert cloud.project("GET", "aggregated/instances?maxResults=501")[0] == 400


@pytest.mark.parametrize(
    "path",
    [
        "zones", "zones/us-central1-a", "regions", "regions/us-central1", "aggregated/machineTypes",
        "zones/us-central1-a/machineTypes", "zones/us-central1-a/machineTypes/a2-highgpu-1g",
        "aggregated/acceleratorTypes", "zones/us-central1-a/acceleratorTypes", "zones/us-central1-a/diskTypes",
        "global/networks", "global/networks/default", "regions/us-central1/subnetworks", "aggregated/subnetworks",
        "global/firewalls", "global/firewalls/default-allow-ssh", "aggregated/disks", "zones/us-central1-a/disks",
        "global/images", "global/operations", "aggregated/instances?includeAllScopes=true",
    ],
)  # fmt: skip
def test_every_listing_follows_googles_own_description(cloud: Cloud, path: str) -> None:
    assert isinstance(cloud.project("GET", path), dict)


def test_what_is_not_served_says_so(cloud: Cloud) -> None:
    status, message = cloud.project("POST", f"zones/{ZONE}/instances/vm-1/reset")
    assert (status, message) == (501, "compute.instances.reset is not served by this stand-in.")


def test_what_the_stand_in_did_not_expect_is_marked_in_the_log(cloud: Cloud) -> None:
    cloud.project("POST", f"zones/{ZONE}/instances/vm-1/reset")
    cloud.http("GET", "nothing")
    cloud.project("POST", f"zones/{ZONE}/instances", {"name": "vm-1", "colour": "red"})
    cloud.project("GET", f"zones/{ZONE}/instances/vm-1")
    marks = [line["unserved"] for line in cloud.calls.lines()]
    assert marks[0] == "compute.instances.reset is not served by this stand-in."
    assert "was not found on this server" in marks[1]
    assert "colour" in marks[2]
    assert marks[3] == ""


# Faults


@pytest.mark.parametrize(
    ("action", "status", "text"),
    [
        ("permission-denied", 403, "Required 'compute.instances.create' permission for 'projects/my-dl/zones/"),
        ("api-disabled", 403, "Compute Engine API has not been used in project my-dl before or it is disabled."),
        ("quota", 403, "Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 0.0 globally."),
        ("unavailable", 503, "The service is currently unavailable."),
    ],
)
def test_a_fault_at_the_insert_refuses_it(cloud: Cloud, action: str, status: int, text: str) -> None:
    cloud.faults.rules.append(Rule("compute.instances.insert", action, nth=1))
    refusal = cloud.project("POST", f"zones/{ZONE}/instances", order())
    assert refusal[0] == status
    assert refusal[1].startswith(text)
    assert "error" not in cloud.insert(order())


@pytest.mark.parametrize(
    ("action", "argument", "code"),
    [
        ("stockout", "", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"),
        ("quota", "NVIDIA_T4_GPUS", "QUOTA_EXCEEDED"),
        ("operation-error", "RESOURCE_NOT_READY", "RESOURCE_NOT_READY"),
    ],
)
def test_a_fault_in_the_inserts_operation_leaves_nothing(cloud: Cloud, action: str, argument: str, code: str) -> None:
    cloud.faults.rules.append(Rule("compute.instances.insert", action, nth=1, argument=argument))
    assert cloud.insert(order())["error"]["errors"][0]["code"] == code
    assert cloud.instance()[0] == 404
    assert cloud.machines.running == {}


def test_a_refused_delete_leaves_the_instance_alive(cloud: Cloud) -> None:
    cloud.insert(order())
    cloud.faults.rules.append(Rule("compute.instances.delete", "refuse"))
    assert cloud.project("DELETE", f"zones/{ZONE}/instances/vm-1")[0] == 403
    cloud.faults.lift("compute.instances.delete")
    cloud.faults.rules.append(Rule("compute.instances.delete", "operation-error"))
    assert "error" in cloud.finished(cloud.project("DELETE", f"zones/{ZONE}/instances/vm-1"))
    assert cloud.instance()["status"] == "RUNNING"


def test_a_reset_closes_the_connection_without_an_answer(cloud: Cloud) -> None:
    cloud.faults.rules.append(Rule("compute.request", "reset", nth=1))
    with pytest.raises((ConnectionError, http.client.HTTPException, urllib.error.URLError)):
        cloud.project("GET", "zones")


def test_silence_never_answers(cloud: Cloud) -> None:
    cloud.faults.rules.append(Rule("compute.zones.list", "silence", nth=1))
    request = urllib.request.Request(
        f"{cloud.engine.endpoint}/compute/v1/projects/{PROJECT}/zones", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    with pytest.raises(TimeoutError):
        urllib.request.urlopen(request, timeout=0.5)


def test_a_slow_answer_takes_that_long(cloud: Cloud) -> None:
    cloud.faults.rules.append(Rule("compute.zones.list", "slow", nth=1, argument="0.3"))
    began = time.monotonic()
    assert isinstance(cloud.project("GET", "zones"), dict)
    assert time.monotonic() - began >= 0.3


def test_a_fault_that_nobody_knows_is_loud(cloud: Cloud) -> None:
    cloud.faults.rules.append(Rule("compute.zones.list", "stokout", nth=1))
    assert cloud.project("GET", "zones")[0] == 500


def test_a_changed_address_shows_in_the_answer_only(cloud: Cloud) -> None:
    cloud.insert(order())
    cloud.faults.rules.append(Rule("compute.instances.get", "address", nth=1, argument="192.0.2.9"))
    assert cloud.instance()["networkInterfaces"][0]["accessConfigs"][0]["natIP"] == "192.0.2.9"
    assert cloud.instance()["networkInterfaces"][0]["accessConfigs"][0]["natIP"] == "127.0.0.1"


def test_an_answer_of_ours_that_breaks_the_description_is_a_500_that_names_the_field(cloud: Cloud) -> None:
    cloud.insert(order())
    cloud.engine.instances.get(ZONE, "vm-1").resource["labelFingerprint"] = "not base64!"
    status, message = cloud.instance()
    assert status == 500
    assert "Instance.labelFingerprint" in message


# The state document of terraform/rehearsal-vm


def test_an_instance_is_served_as_a_terraform_state_document(cloud: Cloud) -> None:
    path = f"/rehearsal/v1/instances/{ZONE}/vm-1/state"
    basic = {"Authorization": "Basic " + base64.b64encode(b"none:none").decode()}
    status, document = cloud.http("GET", "", api=path, headers=basic)
    assert (status, document["version"], document["outputs"]) == (200, 4, {})
    cloud.insert(order())
    _, document = cloud.http("GET", "", api=path, headers=basic)
    output = document["outputs"]["instance"]
    assert output["value"]["address"] == "127.0.0.1"
    assert output["value"]["ssh_port"] == 40022
    assert output["value"]["instance_id"] == cloud.instance()["id"]
    assert output["type"][1]["ssh_port"] == "number"
    assert set(output["type"][1]) == set(output["value"])
    cloud.faults.rules.append(Rule("compute.instances.state", "address", argument="192.0.2.9"))
    _, document = cloud.http("GET", "", api=path, headers=basic)
    assert document["outputs"]["instance"]["value"]["address"] == "192.0.2.9"


def test_credentials_that_were_not_meant_for_the_state_document_are_refused(cloud: Cloud) -> None:
    other = {"Authorization": "Basic " + base64.b64encode(b"gitlab-ci-token:secret").decode()}
    assert cloud.http("GET", "", api=f"/rehearsal/v1/instances/{ZONE}/vm-1/state", headers=other)[0] == 401


@pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform: not on PATH")
def test_terraform_reads_the_state_document_into_an_output(cloud: Cloud, tmp_path: Path) -> None:
    cloud.insert(order())
    folder = tmp_path / "tf"
    folder.mkdir()
    (folder / "main.tf").write_text(
        f"""
        data "terraform_remote_state" "vm" {{
          backend = "http"
          config = {{
            address  = "{cloud.engine.endpoint}/rehearsal/v1/instances/{ZONE}/vm-1/state"
            username = "none"
            password = "none"
          }}
          defaults = {{ instance = null }}
        }}
        output "instance" {{ value = data.terraform_remote_state.vm.outputs.instance }}
        """
    )
    environment = {**os.environ, "CHECKPOINT_DISABLE": "1", "TF_HTTP_PASSWORD": "must-not-be-sent"}
    for command in (["init"], ["apply", "-auto-approve"]):
        subprocess.run(
            ["terraform", *command, "-no-color"], cwd=folder, env=environment, check=True, capture_output=True
        )
    shown = subprocess.run(
        ["terraform", "output", "-json", "instance"], cwd=folder, env=environment, check=True, capture_output=True
    )
    assert json.loads(shown.stdout)["ssh_port"] == 40022


# The log


def test_every_call_is_logged_and_an_insert_with_its_callers(cloud: Cloud) -> None:
    script = (
        "import sys, urllib.request as u;"
        "u.urlopen(u.Request(sys.argv[1], sys.argv[2].encode(), {'Authorization': 'Bearer ' + sys.argv[3]}))"
    )
    url = f"{cloud.engine.endpoint}/compute/v1/projects/{PROJECT}/zones/{ZONE}/instances"
    subprocess.run([sys.executable, "-c", script, url, json.dumps(order()), TOKEN], check=True)
    [line] = [line for line in cloud.calls.lines() if line["verb"] == "POST"]
    assert (line["to"], line["status"]) == ("compute", 200)
    assert json.loads(line["body"])["name"] == "vm-1"
    assert TOKEN not in json.dumps(line["headers"])
    assert "urllib.request as u" in line["caller"][0]
    assert any("pytest" in command for command in line["caller"][1:])


def test_a_call_that_gets_no_answer_is_logged_too(cloud: Cloud) -> None:
    cloud.faults.rules.append(Rule("compute.request", "reset", nth=1))
    with pytest.raises((ConnectionError, http.client.HTTPException, urllib.error.URLError)):
        cloud.project("GET", "zones")
    assert [line["status"] for line in cloud.calls.lines()] == [None]


# google-cloud-compute


def test_google_cloud_compute_lives_the_whole_life_of_an_instance(cloud: Cloud) -> None:
    instances = compute_v1.InstancesClient(**cloud.options)
    operations = compute_v1.ZoneOperationsClient(**cloud.options)
    where = {"project": PROJECT, "zone": ZONE}

    def done(operation: compute_v1.Operation) -> compute_v1.Operation:
        return operations.wait(**where, operation=operation.name)

    body = compute_v1.Instance.from_json(json.dumps(order()))
    assert done(instances.insert_unary(**where, instance_resource=body)).status == compute_v1.Operation.Status.DONE
    instance = instances.get(**where, instance="vm-1")
    assert instance.status == "RUNNING"
    assert instance.scheduling.max_run_duration.seconds == 3600
    labels = compute_v1.InstancesSetLabelsRequest(labels={"a": "b"}, label_fingerprint=instance.label_fingerprint)
    done(instances.set_labels_unary(**where, instance="vm-1", instances_set_labels_request_resource=labels))
    metadata = instance.metadata
    metadata.items.append(compute_v1.Items(key="ssh-keys", value="x"))
    done(instances.set_metadata_unary(**where, instance="vm-1", metadata_resource=metadata))
    with pytest.raises(exceptions.PreconditionFailed):
        instances.set_metadata_unary(**where, instance="vm-1", metadata_resource=metadata)
    with pytest.raises(exceptions.Conflict):
        instances.insert_unary(**where, instance_resource=body)
    request = compute_v1.AggregatedListInstancesRequest(project=PROJECT, filter="labels.a=b", max_results=1)
    found = [(scope, part.instances) for scope, part in instances.aggregated_list(request=request)]
    assert [(s, i[0].name) for s, i in found if i] == [(f"zones/{ZONE}", "vm-1")]
    assert len(found) > 1
    query = compute_v1.GetSerialPortOutputInstanceRequest(**where, instance="vm-1")
    assert instances.get_serial_port_output(request=query).next_ > 0
    with pytest.raises(exceptions.NotFound, match="Guest Attribute"):
        instances.get_guest_attributes(
            request=compute_v1.GetGuestAttributesInstanceRequest(**where, instance="vm-1", query_path="hostkeys/")
        )
    done(instances.stop_unary(**where, instance="vm-1"))
    done(instances.delete_unary(**where, instance="vm-1"))
    with pytest.raises(exceptions.NotFound):
        instances.get(**where, instance="vm-1")


def test_google_cloud_compute_opens_and_closes_a_firewall_rule(cloud: Cloud) -> None:
    firewalls = compute_v1.FirewallsClient(**cloud.options)
    operations = compute_v1.GlobalOperationsClient(**cloud.options)

    def done(operation: compute_v1.Operation) -> None:
        assert operations.wait(project=PROJECT, operation=operation.name).status == compute_v1.Operation.Status.DONE

    resource = compute_v1.Firewall(
        name="vm-1",
        disabled=True,
        source_ranges=["192.0.2.1/32"],
        target_tags=["vm-1"],
        allowed=[compute_v1.Allowed(I_p_protocol="tcp", ports=["22"])],
    )
    done(firewalls.insert_unary(project=PROJECT, firewall_resource=resource))
    patch = compute_v1.Firewall(disabled=False, source_ranges=["198.51.100.7/32"], name="vm-1")
    done(firewalls.patch_unary(project=PROJECT, firewall="vm-1", firewall_resource=patch))
    changed = firewalls.get(project=PROJECT, firewall="vm-1")
    assert (changed.disabled, list(changed.source_ranges)) == (False, ["198.51.100.7/32"])
    names = [rule.name for rule in firewalls.list(project=PROJECT)]
    assert names == [
        "default-allow-icmp", "default-allow-internal", "default-allow-rdp", "default-allow-ssh", "vm-1",
    ]  # fmt: skip
    done(firewalls.delete_unary(project=PROJECT, firewall="vm-1"))
    with pytest.raises(exceptions.NotFound):
        firewalls.get(project=PROJECT, firewall="vm-1")


def test_google_cloud_compute_reads_the_catalogue(cloud: Cloud) -> None:
    machine_types = compute_v1.MachineTypesClient(**cloud.options).list(project=PROJECT, zone=ZONE)
    bundled = {m.name: m.accelerators[0].guest_accelerator_type for m in machine_types if m.accelerators}
    assert bundled["g2-standard-4"] == "nvidia-l4"
    kinds = compute_v1.AcceleratorTypesClient(**cloud.options).aggregated_list(project=PROJECT)
    assert "nvidia-tesla-t4" in {kind.name for kind in dict(kinds)[f"zones/{ZONE}"].accelerator_types}
    project = compute_v1.ProjectsClient(**cloud.options).get(project=PROJECT)
    assert "GPUS_ALL_REGIONS" in {q.metric for q in project.quotas}
    image = compute_v1.ImagesClient(**cloud.options).get_from_family(project="debian-cloud", family="debian-12")
    assert image.name.startswith("debian-12-")


# gcloud


@pytest.fixture
def gcloud(cloud: Cloud, tmp_path: Path) -> Any:
    program = shutil.which("gcloud")
    if program is None:
        pytest.skip("gcloud: not on PATH")
    token = tmp_path / "token"
    token.write_text(TOKEN)
    environment = {
        **os.environ,
        "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{cloud.engine.endpoint}/compute/v1/",
        "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(token),
        "CLOUDSDK_CORE_PROJECT": PROJECT,
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
        "CLOUDSDK_SURVEY_DISABLE_PROMPTS": "1",
    }

    def run(*words: str, json_out: bool = True) -> Any:
        form = ["--format=json"] if json_out else []
        command = [program, "compute", *words, *form]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            return done.stderr
        return json.loads(done.stdout or "null") if json_out else done.stdout

    return run


def test_gcloud_lists_what_the_cloud_offers(gcloud: Any) -> None:
    zones = gcloud("zones", "list", "--filter=region=us-central1")
    assert [z["name"][-1] for z in zones] == ["a", "b", "c", "f"]
    kinds = gcloud("accelerator-types", "list", f"--filter=zone:{ZONE}")
    assert "nvidia-l4" in {k["name"] for k in kinds}
    machine_types = gcloud("machine-types", "list", f"--zones={ZONE}")
    assert "g2-standard-4" in {m["name"] for m in machine_types}


def test_gcloud_lives_the_whole_life_of_instances(cloud: Cloud, gcloud: Any) -> None:
    made = gcloud(
        "instances", "create", "vm-1", "vm-2", f"--zone={ZONE}", "--machine-type=g2-standard-4",
        "--maintenance-policy=TERMINATE", "--no-restart-on-failure", "--provisioning-model=SPOT",
        "--instance-termination-action=DELETE", "--max-run-duration=2h", "--labels=glgpu=managed",
        "--image-family=common-cu129-ubuntu-2204-nvidia-580", "--image-project=deeplearning-platform-release",
        "--boot-disk-size=100GB", "--boot-disk-type=pd-balanced", "--metadata=enable-guest-attributes=TRUE",
    )  # fmt: skip
    assert [i["name"] for i in made] == ["vm-1", "vm-2"], made
    listed = gcloud("instances", "list", "--filter=labels.glgpu=managed AND status=RUNNING")
    assert [i["name"] for i in listed] == ["vm-1", "vm-2"]
    assert gcloud("instances", "describe", "vm-1", f"--zone={ZONE}")["scheduling"]["provisioningModel"] == "SPOT"
    gcloud("instances", "add-labels", "vm-1", f"--zone={ZONE}", "--labels=glgpu-expires=7")
    assert cloud.instance()["labels"] == {"glgpu": "managed", "glgpu-expires": "7"}
    gcloud("instances", "add-metadata", "vm-1", f"--zone={ZONE}", "--metadata=a=b")
    assert {"key": "a", "value": "b"} in cloud.instance()["metadata"]["items"]
    _, hypervisor = cloud.machines.running[cloud.instance()["id"]]
    path = ("instances", "get-guest-attributes", "vm-1", f"--zone={ZONE}", "--query-path=hostkeys/")
    assert "of type 'Guest Attribute' was not found" in gcloud(*path)
    hypervisor.publish("hostkeys", "ssh-ed25519", "AAAA")
    assert gcloud(*path)[0]["value"] == "AAAA"
    serial = gcloud("instances", "get-serial-port-output", "vm-1", f"--zone={ZONE}", json_out=False)
    assert "SeaBIOS" in serial
    gcloud("instances", "delete", "vm-1", "vm-2", f"--zone={ZONE}")
    assert "/batch/compute/v1" in {line["target"] for line in cloud.calls.lines()}
    assert gcloud("instances", "list") == []
    assert cloud.machines.running == {}
    assert "was not found" in gcloud("instances", "describe", "vm-1", f"--zone={ZONE}")
    assert [line["unserved"] for line in cloud.calls.lines() if line["unserved"]] == []


def test_gcloud_orders_what_terraform_orders(cloud: Cloud, gcloud: Any) -> None:
    made = gcloud(
        "instances", "create", "vm-1", f"--zone={ZONE}", "--machine-type=n1-standard-4",
        "--accelerator=type=nvidia-tesla-t4,count=2", "--maintenance-policy=TERMINATE", "--no-restart-on-failure",
        "--instance-termination-action=DELETE", "--max-run-duration=1h", "--tags=glgpu-run,nat", "--network=default",
        "--no-address", "--service-account=vm@my-dl.iam.gserviceaccount.com", "--scopes=cloud-platform",
        f"--image=projects/deeplearning-platform-release/global/images/family/{FAMILY.rpartition('/')[2]}",
        "--boot-disk-type=pd-ssd",
    )  # fmt: skip
    assert [one["name"] for one in made] == ["vm-1"], made
    [gpus] = cloud.instance()["guestAccelerators"]
    assert gpus["acceleratorCount"] == 2
    assert "accessConfigs" not in cloud.instance()["networkInterfaces"][0]
    gcloud("instances", "add-tags", "vm-1", f"--zone={ZONE}", "--tags=more")
    assert set(cloud.instance()["tags"]["items"]) == {"glgpu-run", "nat", "more"}
    gcloud("instances", "stop", "vm-1", f"--zone={ZONE}")
    assert cloud.instance()["status"] == "TERMINATED"
    assert [line["unserved"] for line in cloud.calls.lines() if line["unserved"]] == []


def test_inserts_at_once_get_only_one_through(cloud: Cloud) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: cloud.project("POST", f"zones/{ZONE}/instances", order()), range(4)))
    assert sorted(a[0] if isinstance(a, tuple) else 200 for a in answers) == [200, 409, 409, 409]


def _await(condition: Any) -> None:
    """Ask again and again, for at most ten seconds; each question is a request, so the loop gets its turn."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
