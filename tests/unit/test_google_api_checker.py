"""The checker that holds requests and answers to Google's own description of Compute Engine."""

from __future__ import annotations

from typing import Any

import pytest

from glgpu.rehearsal.google_api import Method, Violation, compute_api, without_nulls

ZONE = "projects/my-dl/zones/us-central1-a"


def method(verb: str, path: str) -> Method:
    found = compute_api().find(verb, path)
    assert found is not None
    return found[0]


INSERT = method("POST", f"{ZONE}/instances")
GET = method("GET", f"{ZONE}/instances/vm")
GPU = "resource.guestAccelerators[0]"
LIST = method("GET", f"{ZONE}/instances")


@pytest.mark.parametrize(
    ("verb", "path", "name"),
    [
        ("GET", f"{ZONE}/instances/vm", "compute.instances.get"),
        ("POST", f"{ZONE}/instances/vm/setLabels", "compute.instances.setLabels"),
        ("POST", f"{ZONE}/operations/op/wait", "compute.zoneOperations.wait"),
        ("GET", "projects/debian-cloud/global/images/family/debian-12", "compute.images.getFromFamily"),
        ("GET", "projects/my-dl/aggregated/instances", "compute.instances.aggregatedList"),
    ],
)
def test_a_path_finds_its_method(verb: str, path: str, name: str) -> None:
    assert method(verb, path).id == name


@pytest.mark.parametrize("path", ["projects/my-dl/zones", f"{ZONE}/instances/vm/setColour", "nothing", ""])
def test_a_path_that_google_does_not_have_finds_nothing(path: str) -> None:
    assert compute_api().find("DELETE", path) is None


def test_a_path_parameter_must_match_its_pattern() -> None:
    with pytest.raises(Violation) as caught:
        compute_api().find("GET", f"{ZONE}/instances/Vm_1")
    assert caught.value.field == "instance"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "vm", "colour": "red"}, "resource.colour"),
        ({"name": "vm", "labels": {"a": 1}}, "resource.labels.a"),
        ({"name": "vm", "labels": []}, "resource.labels"),
        ({"name": "vm", "disks": {}}, "resource.disks"),
        ({"name": "vm", "disks": [{"boot": "yes"}]}, "resource.disks[0].boot"),
        ({"name": "vm", "disks": [{"diskSizeGb": 100}]}, "resource.disks[0].diskSizeGb"),
        ({"name": "vm", "disks": [{"diskSizeGb": "many"}]}, "resource.disks[0].diskSizeGb"),
        ({"name": "vm", "disks": [{"diskSizeGb": str(2**63)}]}, "resource.disks[0].diskSizeGb"),
        ({"name": "vm", "disks": [{"mode": "READ"}]}, "resource.disks[0].mode"),
        ({"name": "vm", "guestAccelerators": [{"acceleratorCount": "1"}]}, f"{GPU}.acceleratorCount"),
        ({"name": "vm", "guestAccelerators": [{"acceleratorCount": True}]}, f"{GPU}.acceleratorCount"),
        ({"name": "vm", "guestAccelerators": [{"acceleratorCount": 2**31}]}, f"{GPU}.acceleratorCount"),
        ({"name": "vm", "labelFingerprint": "%%"}, "resource.labelFingerprint"),
        ({"name": "vm", "labelFingerprint": "abc"}, "resource.labelFingerprint"),
        ({"name": "vm", "tags": {"items": ["ok", "Not"]}}, "resource.tags.items[1]"),
        ({"name": "Vm"}, "resource.name"),
        ({}, "resource.name"),
        ("vm", "resource"),
    ],
)  # fmt: skip
def test_a_request_that_breaks_the_description_is_named_by_its_field(body: Any, field: str) -> None:
    with pytest.raises(Violation) as caught:
        compute_api().check_request(INSERT, body)
    assert caught.value.field == field


def test_a_legal_request_passes() -> None:
    disks = [{"boot": True, "diskSizeGb": "100", "initializeParams": {"labels": {"a": "b"}}}]
    fingerprints = {"labelFingerprint": "42WmSpB8rSM=", "fingerprint": "42WmSpB8rSM="}
    compute_api().check_request(INSERT, {"name": "vm", "disks": disks, **fingerprints, "tags": {"items": ["a-b"]}})


@pytest.mark.parametrize("size", ["100", 100, 100.0, "100.0", "1e2"])
def test_a_64_bit_number_may_come_in_any_form_that_googles_json_mapping_knows(size: Any) -> None:
    read = compute_api().read_request(INSERT, {"name": "vm", "disks": [{"diskSizeGb": size}]})
    assert read["disks"] == [{"diskSizeGb": "100"}]


@pytest.mark.parametrize("count", [2, 2.0, "2"])
def test_a_32_bit_number_may_come_as_a_string(count: Any) -> None:
    read = compute_api().read_request(INSERT, {"name": "vm", "guestAccelerators": [{"acceleratorCount": count}]})
    assert read["guestAccelerators"] == [{"acceleratorCount": 2}]


@pytest.mark.parametrize("size", [True, 100.5, "100.5", "many", "", [100], {"value": 100}, 2**63, "1e99", "0x64"])
def test_what_is_no_whole_number_of_64_bits_is_refused(size: Any) -> None:
    with pytest.raises(Violation) as caught:
        compute_api().read_request(INSERT, {"name": "vm", "disks": [{"diskSizeGb": size}]})
    assert caught.value.field == "resource.disks[0].diskSizeGb"


def test_a_number_is_no_name_and_text_is_no_number() -> None:
    with pytest.raises(Violation):
        compute_api().read_request(INSERT, {"name": 7})
    assert compute_api().read_request(INSERT, {"name": "vm", "labels": {"a": "1e2"}})["labels"] == {"a": "1e2"}


def test_a_method_without_a_body_takes_none() -> None:
    compute_api().check_request(GET, None)
    compute_api().check_request(GET, {})
    with pytest.raises(Violation):
        compute_api().check_request(GET, {"name": "vm"})


@pytest.mark.parametrize(
    "pairs",
    [
        [("colour", "red")],
        [("maxResults", "many")],
        [("maxResults", "-1")],
        [("filter", "a=b"), ("filter", "c=d")],
        [("instance", "vm")],
        [("prettyPrint", "perhaps")],
        [("alt", "xml")],
    ],
)
def test_a_query_that_breaks_the_description_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(Violation):
        compute_api().check_query(LIST, pairs)


def test_what_real_clients_send_beside_the_description_passes() -> None:
    compute_api().check_query(LIST, [("alt", "json"), ("returnPartialSuccess", "True"), ("$.xgafv", "2")])
    compute_api().check_query(INSERT, [("$alt", "json;enum-encoding=int"), ("prettyPrint", "false")])
    with pytest.raises(Violation):
        compute_api().check_query(INSERT, [("returnPartialSuccess", "true")])


@pytest.mark.parametrize(
    ("answer", "field"),
    [
        ({"id": 5}, "Instance.id"),
        ({"id": "-5"}, "Instance.id"),
        ({"status": "ASLEEP"}, "Instance.status"),
        ({"networkInterfaces": [{"ip": "127.0.0.1"}]}, "Instance.networkInterfaces[0].ip"),
        ({"name": None}, "Instance.name"),
    ],
)
def test_an_answer_that_breaks_the_description_is_named_by_its_field(answer: dict[str, Any], field: str) -> None:
    with pytest.raises(Violation) as caught:
        compute_api().check_response(GET, answer)
    assert caught.value.field == field


def test_nulls_count_as_absent_at_any_depth() -> None:
    assert without_nulls({"a": None, "b": [{"c": None, "d": 1}], "e": [None]}) == {"b": [{"d": 1}], "e": []}


def test_fields_are_known_through_lists_and_maps() -> None:
    api = compute_api()
    assert api.knows_field("Instance", ["networkInterfaces", "accessConfigs", "natIP"])
    assert api.knows_field("Instance", ["labels", "anything"])
    assert not api.knows_field("Instance", ["colour"])
    assert not api.knows_field("Instance", ["name", "first"])
