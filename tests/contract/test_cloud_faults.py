"""What goes wrong in the stand-in Compute Engine, and where: as Google would say it, and only there."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud import IMAGE, NAME, PROJECT, ZONE, Cloud, cloud
from glgpu.classify import explain, zones_with_capacity
from glgpu.errors import ErrorClass
from glgpu.rehearsal import compute_instances
from glgpu.rehearsal.faults import Faults, Rule

INSERT = "compute.instances.insert"


@pytest.fixture
def google(tmp_path: Path) -> Iterator[Cloud]:
    with cloud(tmp_path) as made:
        yield made


def insert(google: Cloud, zone: str = ZONE, *, gpu: bool = True, spot: bool = True) -> dict[str, Any]:
    """The answer to an insert: an operation that has begun."""
    model = {"provisioningModel": "SPOT"} if spot else {}
    return google.ask(
        "POST",
        f"zones/{zone}/instances",
        {
            "name": NAME,
            "machineType": f"zones/{zone}/machineTypes/{'g2-standard-4' if gpu else 'e2-small'}",
            "disks": [{"boot": True, "autoDelete": True, "initializeParams": {
                "sourceImage": IMAGE, "diskType": f"projects/{PROJECT}/zones/{zone}/diskTypes/pd-balanced",
            }}],
            "networkInterfaces": [{"network": "global/networks/default"}],
            "scheduling": {
                "onHostMaintenance": "TERMINATE", "automaticRestart": False, "instanceTerminationAction": "DELETE",
                "maxRunDuration": {"seconds": "3600"}, **model,
            },
        },
    )  # fmt: skip


def ended(google: Cloud, begun: dict[str, Any]) -> dict[str, Any]:
    """The same operation once it is over."""
    return google.ask("POST", begun["selfLink"].partition(f"/projects/{PROJECT}/")[2] + "/wait")


def error(google: Cloud, zone: str = ZONE, **facts: bool) -> dict[str, Any]:
    """Why an insert failed; empty where it did not."""
    operation = ended(google, insert(google, zone, **facts))
    return dict(operation["error"]["errors"][0]) if "error" in operation else {}


def names(google: Cloud, what: str, zone: str = ZONE) -> list[str]:
    return [one["name"] for one in google.ask("GET", f"zones/{zone}/{what}").get("items", [])]


async def until_gone(google: Cloud) -> None:
    """Wait until there is no instance any more."""
    async with asyncio.timeout(20):
        while google.engine.instances.resources(ZONE):
            await asyncio.sleep(0.01)


def test_a_rule_of_a_zone_or_region_counts_its_own_visits() -> None:
    faults = Faults([Rule("p", "first", 2, where="europe-west4"), Rule("p", "second", where="us-east1-b")])
    assert faults.at("p", "europe-west1-b") is None
    assert faults.at("p", "europe-west4-a") is None
    assert faults.at("p") is None
    found = faults.at("p", "europe-west4-b")
    assert found is not None
    assert found.action == "first"
    assert faults.at("p", "europe-west4-b") is None
    assert faults.at("p", "us-east1") is None
    assert faults.at("p", "us-east1-b") is not None


def test_a_state_holds_where_its_rule_says() -> None:
    faults = Faults([Rule("p", "none", where="europe-west4-a"), Rule("q", "none")])
    assert faults.holds("p", "europe-west4-a")
    assert not faults.holds("p", "europe-west4-b")
    assert not faults.holds("p", "europe-west4")
    assert not faults.holds("p")
    assert faults.holds("q", "europe-west4-b")


@pytest.mark.parametrize(
    ("form", "code", "named"),
    [
        ("", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", ("europe-west4-b", "europe-west4-c")),
        ("metadata", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", ("europe-west4-b", "europe-west4-c")),
        ("sentence", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", ("europe-west4-b", "europe-west4-c")),
        ("plain", "ZONE_RESOURCE_POOL_EXHAUSTED", ()),
    ],
)
def test_a_stockout_is_said_in_each_of_googles_forms(
    google: Cloud, form: str, code: str, named: tuple[str, ...]
) -> None:
    google.faults.rules.append(Rule(INSERT, "stockout", argument=form))
    said = error(google)
    assert said["code"] == code
    assert explain(said["message"]).klass is ErrorClass.STOCKOUT
    assert zones_with_capacity(json.dumps(said)) == named
    assert names(google, "instances") == names(google, "disks") == []


@pytest.mark.parametrize("gpu", [True, False])
def test_a_zone_without_capacity_names_those_of_its_region_that_have_some(google: Cloud, gpu: bool) -> None:
    google.faults.rules += [Rule("compute.capacity", "none", where=f"europe-west4-{letter}") for letter in "ab"]
    said = error(google, gpu=gpu)
    assert explain(said["message"]).klass is ErrorClass.STOCKOUT
    assert zones_with_capacity(json.dumps(said)) == (("europe-west4-c",) if gpu else ())
    assert error(google, "europe-west4-c") == {}


def test_a_region_without_quota_says_so_in_its_limits_and_in_the_operation(google: Cloud) -> None:
    google.faults.rules.append(Rule("compute.region-quota", "none", where="europe-west4"))
    said = error(google)
    assert (said["code"], "'PREEMPTIBLE_NVIDIA_L4_GPUS'" in said["message"]) == ("QUOTA_EXCEEDED", True)
    assert explain(said["message"]).klass is ErrorClass.QUOTA_REGION
    limits = {one["metric"]: one["limit"] for one in google.ask("GET", "regions/europe-west4")["quotas"]}
    assert (limits["NVIDIA_L4_GPUS"], limits["PREEMPTIBLE_NVIDIA_T4_GPUS"]) == (0, 0)
    assert limits["CPUS"] > 0
    assert error(google, "europe-west1-b") == {}


def test_a_project_without_quota_refuses_gpus_everywhere_and_nothing_else(google: Cloud) -> None:
    google.faults.rules.append(Rule("compute.project-quota", "none"))
    with pytest.raises(urllib.error.HTTPError) as caught:
        insert(google)
    with caught.value as answer:
        text = answer.read().decode()
    assert (answer.code, explain(text).klass) == (403, ErrorClass.QUOTA_GLOBAL)
    limits = {one["metric"]: one["limit"] for one in google.engine.instances.quotas(None)}
    assert limits["GPUS_ALL_REGIONS"] == 0
    assert error(google, gpu=False) == {}


def test_a_spot_vm_may_be_taken_away_while_it_is_created(google: Cloud) -> None:
    google.faults.rules.append(Rule(INSERT, "preempted"))
    said = error(google)
    assert (said["code"], said["message"]) == ("UNSUPPORTED_OPERATION", "Instance failed to start due to preemption.")
    assert explain(f"{said['code']}: {said['message']}").klass is ErrorClass.PREEMPTED
    assert names(google, "instances") == names(google, "disks") == []
    assert error(google, spot=False) == {}


def test_a_spot_vm_may_vanish_after_its_insert_has_ended_well(google: Cloud) -> None:
    google.faults.rules.append(Rule(INSERT, "vanish"))
    operation = ended(google, insert(google))
    assert "error" not in operation
    (taken,) = [
        one for one in google.ask("GET", f"zones/{ZONE}/operations")["items"] if one["operationType"] != "insert"
    ]
    assert taken["operationType"] == "compute.instances.preempted"
    ended(google, taken)
    assert names(google, "instances") == names(google, "disks") == []


@pytest.mark.parametrize("notice", [True, False])
def test_a_spot_vm_that_runs_is_taken_away_half_a_minute_after_the_notice(
    google: Cloud, notice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute_instances, "SPOT_SECONDS", 0.5)
    ended(google, insert(google))
    instances = google.engine.instances
    instance = instances.get(ZONE, NAME)

    async def preempt() -> None:
        instances.preempt(instance, notice=notice)

    google.call(preempt())
    (taken,) = [
        one
        for one in google.ask("GET", f"zones/{ZONE}/operations")["items"]
        if one["operationType"] == "compute.instances.preempted"
    ]
    assert taken["user"] == "system"
    assert taken["targetId"] == instance.id
    assert instance.preempted.is_set() == notice
    if notice:
        assert google.instance()["status"] == "STOPPING"
        assert google.room.pressed == [instance.id]
    ended(google, taken)
    assert names(google, "instances") == names(google, "disks") == []


def test_a_late_insert_is_seen_from_the_beginning_and_can_be_deleted(google: Cloud) -> None:
    google.faults.rules.append(Rule(INSERT, "late", argument="1000"))
    begun = insert(google)
    assert google.instance()["status"] == "PROVISIONING"
    google.done("DELETE", f"zones/{ZONE}/instances/{NAME}")
    assert names(google, "instances") == names(google, "disks") == []
    google.clock.advance(1001)
    assert "error" not in ended(google, begun)
    assert names(google, "instances") == []


def test_a_late_insert_of_which_nothing_is_seen_comes_up_and_reaches_its_hard_end(google: Cloud) -> None:
    google.faults.rules.append(Rule(INSERT, "late-unseen", 1, argument="1000"))
    begun = insert(google)
    assert names(google, "instances") == names(google, "disks") == []
    with pytest.raises(urllib.error.HTTPError) as caught:
        insert(google)  # The name is taken all the same.
    with caught.value as answer:
        assert answer.code == 409
    google.clock.advance(1001)
    ended(google, begun)
    assert google.instance()["status"] == "RUNNING"
    google.clock.advance(3601)
    google.call(until_gone(google))
    assert names(google, "disks") == []


@pytest.mark.parametrize("status", [403, 429])
def test_a_rate_limit_has_googles_own_reason(google: Cloud, status: int) -> None:
    google.faults.rules.append(Rule("compute.zones.list", "rate-limit", 1, argument=str(status)))
    with pytest.raises(urllib.error.HTTPError) as caught:
        google.ask("GET", "zones")
    with caught.value as answer:
        text = answer.read().decode()
    assert (answer.code, json.loads(text)["error"]["errors"][0]["reason"]) == (status, "rateLimitExceeded")
    assert explain(text).klass is ErrorClass.RATE_LIMIT
    assert google.ask("GET", "zones")["items"]


def test_a_boot_image_whose_family_is_gone_is_not_found(google: Cloud) -> None:
    google.faults.rules.append(Rule(INSERT, "image-gone"))
    with pytest.raises(urllib.error.HTTPError) as caught:
        insert(google)
    with caught.value as answer:
        text = answer.read().decode()
    assert answer.code == 404
    assert f"The resource '{IMAGE}' was not found" in text
    assert explain(text).klass is ErrorClass.IMAGE


def refused(google: Cloud, method: str, path: str) -> tuple[int, str]:
    """Status and reason of a refusal."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        google.ask(method, path)
    with caught.value as answer:
        return answer.code, json.loads(answer.read())["error"]["errors"][0]["reason"]


def test_a_delete_may_take_its_time_and_leaves_a_vm_that_is_stopping(google: Cloud) -> None:
    google.faults.rules.append(Rule("compute.instances.delete", "late", argument="1000"))
    ended(google, insert(google))
    begun = google.ask("DELETE", f"zones/{ZONE}/instances/{NAME}")
    assert google.instance()["status"] == "STOPPING"
    assert refused(google, "DELETE", f"zones/{ZONE}/instances/{NAME}") == (400, "resourceNotReady")
    google.clock.advance(1001)
    assert "error" not in ended(google, begun)
    assert names(google, "instances") == names(google, "disks") == []


def test_a_vm_may_refuse_to_die_until_it_does_no_more(google: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_instances, "DYING_SECONDS", 0.0)
    google.faults.rules.append(Rule("compute.immortal", "on"))
    ended(google, insert(google))
    begun = google.ask("DELETE", f"zones/{ZONE}/instances/{NAME}")
    here = begun["selfLink"].partition(f"/projects/{PROJECT}/")[2]
    google.clock.advance(1000)
    assert google.ask("GET", here)["status"] != "DONE"
    assert (google.instance()["status"], names(google, "disks")) == ("STOPPING", [NAME])
    google.faults.lift("compute.immortal")
    assert "error" not in ended(google, begun)
    assert names(google, "instances") == names(google, "disks") == []


def test_operations_are_listed_over_all_zones_and_regions_by_what_they_are_about(google: Cloud) -> None:
    google.faults.rules.append(Rule(INSERT, "late-unseen", argument="1000"))
    insert(google)
    query = urllib.parse.urlencode({"filter": f'targetLink eq ".*/instances/{NAME}"'})
    items = google.ask("GET", f"aggregated/operations?{query}")["items"]
    assert {"global", f"zones/{ZONE}", "regions/europe-west4"} <= items.keys()
    (found,) = items[f"zones/{ZONE}"]["operations"]
    assert (found["operationType"], found["status"]) == ("insert", "PENDING")
    assert all("operations" not in one for scope, one in items.items() if scope != f"zones/{ZONE}")
