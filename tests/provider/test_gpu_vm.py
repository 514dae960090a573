"""terraform/gpu-vm with the real hashicorp/google provider: its whole life, as the stand-in Compute Engine sees it."""

from __future__ import annotations

from typing import Any

import pytest

from applying import TERRAFORM, MakeWorkspace, Provider, Workspace
from cloud import IMAGE, NAME, TOKEN, VARIABLES, ZONE, Cloud
from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.google_api import compute_api

MACHINE: dict[str, Any] = VARIABLES["machine"]
RULE = {
    "name": NAME,
    "network": f"projects/{VARIABLES['project']}/global/networks/default",
    "direction": "INGRESS",
    "allowed": [{"IPProtocol": "tcp", "ports": ["22"]}],
    "sourceRanges": ["198.51.100.7/32"],
    "targetTags": [NAME],
}


def by_provider(cloud: Cloud, *verbs: str) -> list[str]:
    """What the provider asked for so far."""
    agent = "terraform-provider-google"
    calls = [call for call in cloud.calls.lines() if agent in call["headers"].get("user-agent", "")]
    return [f"{call['verb']} {call['target']}" for call in calls if not verbs or call["verb"] in verbs]


def test_init_takes_the_provider_from_the_mirror_and_the_module_is_valid(module: Workspace, provider: Provider) -> None:
    assert f"- Using previously-installed hashicorp/google v{provider.version}" in module.init()
    assert module.run("validate", "-no-color") == "Success! The configuration is valid."


def test_an_instance_is_made_read_without_drift_and_destroyed(module: Workspace, cloud: Cloud) -> None:
    module.apply()
    instance = cloud.instance()
    (interface,) = instance["networkInterfaces"]
    address = interface["accessConfigs"][0]["natIP"]
    assert module.outputs() == {
        "address": address, "instance_id": instance["id"], "internal_address": interface["networkIP"],
        "login_command": f"ssh -p 22 glgpu@{address}", "name": NAME, "self_link": instance["selfLink"],
        "ssh_port": 22, "zone": ZONE,
    }  # fmt: skip
    module.run("refresh", "-no-color", "-input=false")
    module.assert_no_drift()
    assert len(by_provider(cloud, "POST")) == 1
    assert "Destroy complete!" in module.destroy()
    assert cloud.instances() == []
    assert "items" not in cloud.ask("GET", f"zones/{ZONE}/disks")


def test_a_second_apply_leaves_alone_what_jobs_change_through_the_api(module: Workspace, cloud: Cloud) -> None:
    module.apply()
    path = f"zones/{ZONE}/instances/{NAME}"
    before = cloud.instance()
    kept = [item for item in before["metadata"]["items"] if item["key"] != "glgpu-ssh-port"]
    by_jobs = {"ssh-keys": "glgpu:ssh-ed25519 AAAA", "glgpu-host-key": "ssh-ed25519 BBBB", "glgpu-ssh-port": "22"}
    items = [*kept, *({"key": key, "value": value} for key, value in by_jobs.items())]
    change = {"fingerprint": before["metadata"]["fingerprint"], "items": items}
    cloud.done("POST", f"{path}/setMetadata", change)
    labels = {**before["labels"], "glgpu-expires": "1764009999"}
    cloud.done("POST", f"{path}/setLabels", {"labelFingerprint": before["labelFingerprint"], "labels": labels})
    cloud.done("POST", "global/firewalls", RULE)

    module.assert_no_drift()
    assert "No changes." in module.apply()
    after = cloud.instance()
    assert (after["metadata"]["items"], after["labels"]) == (items, labels)
    assert len(by_provider(cloud, "POST", "PUT", "PATCH", "DELETE")) == 1

    module.destroy()
    assert cloud.instances() == []
    assert cloud.ask("GET", f"global/firewalls/{NAME}")["sourceRanges"] == RULE["sourceRanges"]


def test_another_metadata_item_or_label_that_was_changed_is_put_right(module: Workspace, cloud: Cloud) -> None:
    module.apply()
    before = cloud.instance()
    labels = {**before["labels"], "glgpu": "someone-elses"}
    cloud.done(
        "POST",
        f"zones/{ZONE}/instances/{NAME}/setLabels",
        {"labelFingerprint": before["labelFingerprint"], "labels": labels},
    )
    module.run("plan", "-detailed-exitcode", "-no-color", "-input=false", expect=2)
    module.apply()
    assert cloud.instance()["labels"]["glgpu"] == "managed"


def test_changed_labels_metadata_and_tags_change_the_instance_and_make_no_other(
    module: Workspace, cloud: Cloud
) -> None:
    module.apply()
    before = cloud.instance()
    module.write(
        {
            **VARIABLES,
            "compute_endpoint": cloud.endpoint,
            "labels": {**VARIABLES["labels"], "cost-centre": "vision"},
            "metadata": {"glgpu-settings": '{"on_cancel": "drop"}'},
            "network": {**VARIABLES["network"], "tags": ["other"]},
        }
    )
    module.apply()
    after = cloud.instance()
    assert after["id"] == before["id"]
    assert after["labels"]["cost-centre"] == "vision"
    assert {"key": "glgpu-settings", "value": '{"on_cancel": "drop"}'} in after["metadata"]["items"]
    assert set(after["tags"]["items"]) == {NAME, "other"}
    module.assert_no_drift()


def test_an_instance_that_has_vanished_is_made_again(module: Workspace, cloud: Cloud) -> None:
    module.apply()
    first = module.outputs()["instance_id"]
    cloud.done("DELETE", f"zones/{ZONE}/instances/{NAME}")
    module.apply()
    assert cloud.instances() == [NAME]
    assert module.outputs()["instance_id"] != first


@pytest.mark.parametrize("fault", ["unavailable", "rate-limit"])
def test_an_insert_that_is_refused_for_now_is_sent_again(module: Workspace, cloud: Cloud, fault: str) -> None:
    cloud.faults.rules.append(Rule("compute.instances.insert", fault, nth=1, times=2))
    module.apply()
    statuses = [insert["status"] for insert in cloud.inserts()]
    assert statuses[-1] == 200
    assert len(statuses) == 3
    assert cloud.instances() == [NAME]


# The order, and that of the module which does without the provider

ORDERS: dict[str, dict[str, Any]] = {
    "everything": {},
    "a standard machine that brings its GPU, with nothing beside it": {
        "machine": {
            "type": "g2-standard-4", "gpu": {"type": "nvidia-l4"}, "max_run_seconds": 86400, "disk": {"image": IMAGE},
        },
        "metadata": {},
        "network": {"external_ip": False},
    },
    "a spot machine that brings its GPUs, on another kind of disk": {
        "machine": {
            **MACHINE,
            "type": "a3-highgpu-8g",
            "gpu": {"type": "nvidia-h100-80gb", "count": 8},
            "gvnic": True,
            "disk": {"image": IMAGE, "size_gb": 1000, "type": "hyperdisk-balanced"},
        },
    },
    "a standard machine with four GPUs beside it": {
        "machine": {**MACHINE, "gpu": {"type": "nvidia-tesla-t4", "count": 4, "attached": True}, "spot": False},
    },
    "a network of another project, by path": {
        "network": {
            "name": "projects/host-project/global/networks/shared",
            "subnetwork": "projects/host-project/regions/europe-west4/subnetworks/gpus",
            "tags": ["zebra", "ape"],
        },
    },
    "a machine without a GPU, an image by name, a start-up script, an account with two scopes": {
        "machine": {
            "type": "e2-small",
            "max_run_seconds": 30,
            "disk": {"image": "projects/my-images/global/images/cuda-1", "type": "pd-standard"},
            "service_account": {
                "email": "vm@my-dl.iam.gserviceaccount.com",
                "scopes": [f"https://www.googleapis.com/auth/{name}" for name in ("logging.write", "compute.readonly")],
            },
        },
        "startup_script": "#!/bin/sh\necho \"it's up\" >/dev/ttyS0\n",
        "labels": {"glgpu": "managed", "glgpu-run": "1001", "cost-centre": "vision"},
    },
}  # fmt: skip

DIFFERENT = {
    "scheduling.hostErrorTimeoutSeconds",
    "scheduling.localSsdRecoveryTimeout",
    "scheduling.maxRunDuration.seconds",
    "scheduling.nodeAffinities",
    "scheduling.onInstanceStopAction",
    "serviceAccounts[0].scopes",
    "tags.items",
}
"""Fields of the order that are written otherwise, and mean the same; rehearsal-vm's README lists them."""


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every value by its path; lists of plain values count as one."""
    if isinstance(value, dict):
        pairs = [(f"{path}.{key}" if path else key, entry) for key, entry in value.items()]
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        pairs = [(f"{path}[{index}]", entry) for index, entry in enumerate(value)]
    else:
        return {path: value}
    return {name: leaf for key, entry in pairs for name, leaf in leaves(entry, key).items()}


def meaning(body: dict[str, Any]) -> dict[str, Any]:
    """An order as Google's front end takes it in; tags and scopes are sets."""
    found = compute_api().find("POST", f"projects/{VARIABLES['project']}/zones/{ZONE}/instances")
    assert found is not None
    read: dict[str, Any] = compute_api().read_request(found[0], body)
    read["tags"]["items"].sort()
    for account in read.get("serviceAccounts", []):
        account["scopes"].sort()
    read["scheduling"] = {key: value for key, value in read["scheduling"].items() if value != []}
    return read


@pytest.mark.parametrize("name", ORDERS)
def test_both_modules_order_the_same(name: str, workspace: MakeWorkspace, cloud: Cloud) -> None:
    # Refused at once: it is about the order alone.
    cloud.faults.rules.append(Rule("compute.instances.insert", "permission-denied"))
    variables = {**VARIABLES, "compute_endpoint": cloud.endpoint, **ORDERS[name]}
    for module in ("gpu-vm", "rehearsal-vm"):
        made = workspace(module, variables, environment={"GOOGLE_OAUTH_ACCESS_TOKEN": TOKEN})
        made.init()
        assert "Required 'compute.instances.create' permission" in made.apply(expect=1)
    theirs, ours = (cloud.order(number) for number in range(2))
    assert meaning(theirs) == meaning(ours)
    left, right = leaves(theirs), leaves(ours)
    nothing = object()
    different = {path for path in left | right if left.get(path, nothing) != right.get(path, nothing)}
    assert different <= DIFFERENT, different
    assert "scheduling.maxRunDuration.seconds" in different


def test_terraform_tests_of_the_module_pass(provider: Provider, workspace: MakeWorkspace) -> None:
    if provider.terraform < (1, 7):
        pytest.skip(
            f"terraform: {provider.terraform} is not 1.7 and mocks no provider, the tests of gpu-vm did NOT run"
        )
    module = workspace("gpu-vm", {}, environment={})
    (module.folder / "run.auto.tfvars.json").unlink()
    refusals = (TERRAFORM / "rehearsal-vm/tests/variables.tftest.hcl").read_text(encoding="utf-8")
    (module.folder / "tests/variables.tftest.hcl").write_text(f'mock_provider "google" {{}}\n\n{refusals}')
    module.init()
    said = module.run("test", "-no-color")
    runs = sum(path.read_text().count("\nrun ") for path in (module.folder / "tests").glob("*.tftest.hcl"))
    assert f"Success! {runs} passed, 0 failed." in said, said
