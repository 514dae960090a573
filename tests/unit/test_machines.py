"""The candidates that follow from the settings."""

from __future__ import annotations

import pytest

from glgpu.errors import ErrorClass, Failure
from glgpu.machines import DEFAULT_IMAGE, KNOWN_GPUS, candidates
from glgpu.settings import Machine

ZONES = ["europe-west1-b", "us-central1-a"]


def machine(**keys: object) -> Machine:
    return Machine.model_validate(keys)


def test_candidates_come_gpu_by_gpu_spot_first_zone_by_zone() -> None:
    found = candidates(machine(gpu=["nvidia-l4", "nvidia-tesla-t4"], spot="prefer"), ZONES)
    assert [(one.gpu, one.spot, one.zone) for one in found] == [
        (gpu, spot, zone) for gpu in ("nvidia-l4", "nvidia-tesla-t4") for spot in (True, False) for zone in ZONES
    ]


@pytest.mark.parametrize(("spot", "wanted"), [("only", {True}), ("never", {False}), ("prefer", {True, False})])
def test_spot_is_bought_only_as_the_settings_say(spot: str, wanted: set[bool]) -> None:
    assert {one.spot for one in candidates(machine(spot=spot), ZONES)} == wanted


COUNTS = {
    "nvidia-l4": [1, 2, 4, 8],
    "nvidia-tesla-a100": [1, 2, 4, 8],
    "nvidia-a100-80gb": [1, 2, 4, 8],
    "nvidia-h100-80gb": [1, 2, 4, 8],
    "nvidia-tesla-t4": [1, 2, 4],
    "nvidia-tesla-p4": [1, 2, 4],
    "nvidia-tesla-v100": [1, 2, 4, 8],
    "nvidia-tesla-p100": [1, 2, 4],
}
"""GPUs per VM: https://cloud.google.com/compute/docs/gpus."""


@pytest.mark.parametrize("gpu", KNOWN_GPUS)
def test_every_known_gpu_has_a_machine_type_that_can_carry_it(gpu: str) -> None:
    for count in COUNTS[gpu]:
        one = candidates(machine(gpu=[gpu], count=count), ZONES)[0]
        assert (one.gpu, one.count, one.image) == (gpu, count, DEFAULT_IMAGE)
        assert one.attached == one.machine_type.startswith("n1-")
        assert str(one).startswith(f"{count} x {gpu} on {one.machine_type}, spot, ")


@pytest.mark.parametrize("gpu", KNOWN_GPUS)
def test_a_number_of_gpus_that_no_machine_has_is_refused(gpu: str) -> None:
    for count in {1, 2, 3, 4, 8, 16} - set(COUNTS[gpu]):
        with pytest.raises(Failure, match="does not come as") as caught:
            candidates(machine(gpu=[gpu], count=count), ZONES)
        assert caught.value.klass is ErrorClass.NOT_AVAILABLE
        assert ", ".join(map(str, COUNTS[gpu])) in caught.value.remedy


def test_larger_machine_types_are_chosen_for_more_gpus() -> None:
    assert [candidates(machine(gpu=["nvidia-l4"], count=count), ZONES)[0].machine_type for count in (1, 2, 4, 8)] == [
        "g2-standard-4",
        "g2-standard-24",
        "g2-standard-48",
        "g2-standard-96",
    ]


def test_what_the_settings_name_is_taken() -> None:
    (one, *_) = candidates(
        machine(gpu=["nvidia-tesla-t4"], type="n1-highmem-8", disk_type="pd-ssd", image="projects/p/global/images/i"),
        ZONES,
    )
    assert (one.machine_type, one.disk_type, one.image) == ("n1-highmem-8", "pd-ssd", "projects/p/global/images/i")


def test_gpus_that_the_machine_type_cannot_carry_are_left_out() -> None:
    found = candidates(machine(type="g2-standard-8"), ZONES)
    assert {one.gpu for one in found} == {"nvidia-l4"}
    found = candidates(machine(type="n1-standard-8"), ZONES)
    assert {one.gpu for one in found} == {"nvidia-tesla-t4"}
    with pytest.raises(Failure, match="n1-standard-8 cannot carry nvidia-l4") as caught:
        candidates(machine(gpu=["nvidia-l4"], type="n1-standard-8"), ZONES)
    assert caught.value.klass is ErrorClass.CONFIG


def test_a_machine_without_gpu_is_what_its_type_says() -> None:
    (one, *_) = candidates(machine(gpu=["none"], type="e2-standard-2", count=4), ZONES)
    assert (one.gpu, one.count, one.machine_type, one.attached) == (None, 0, "e2-standard-2", False)
    assert "no GPU" in str(one)


def test_disks_fit_the_family() -> None:
    assert candidates(machine(gpu=["none"], type="a3-ultragpu-8g"), ZONES)[0].disk_type == "hyperdisk-balanced"
    assert candidates(machine(), ZONES)[0].disk_type == "pd-balanced"


def test_an_unknown_gpu_is_answered_with_the_known_ones() -> None:
    with pytest.raises(Failure) as caught:
        candidates(machine(gpu=["nvidia-tesla-k80"]), ZONES)
    assert caught.value.klass is ErrorClass.NOT_AVAILABLE
    assert all(gpu in caught.value.remedy for gpu in KNOWN_GPUS)


def test_without_a_zone_there_is_no_candidate() -> None:
    with pytest.raises(Failure) as caught:
        candidates(machine(), [])
    assert caught.value.klass is ErrorClass.CONFIG
    assert "machine.zones" in caught.value.remedy
