"""The candidates that follow from the settings."""

from __future__ import annotations

import pytest

from glgpu.errors import ErrorClass, Failure
from glgpu.gpu_offers import offers, shape_of
from glgpu.machines import DEFAULT_IMAGE, candidates, cuts
from glgpu.settings import Machine

ZONES = ["europe-west1-b", "us-central1-a"]
KNOWN_GPUS = list(offers().gpus)


def machine(**keys: object) -> Machine:
    return Machine.model_validate(keys)


def refused(zones: list[str] = ZONES, **keys: object) -> Failure:
    with pytest.raises(Failure) as caught:
        candidates(machine(**keys), zones)
    assert caught.value.exit_code == 2
    return caught.value


# Order


def test_candidates_come_gpu_by_gpu_spot_first_zone_by_zone() -> None:
    found = candidates(machine(gpu=["nvidia-l4", "nvidia-tesla-t4"], spot="prefer"), ZONES)
    assert [(one.gpu, one.spot, one.zone) for one in found] == [
        (gpu, spot, zone) for gpu in ("nvidia-l4", "nvidia-tesla-t4") for spot in (True, False) for zone in ZONES
    ]


@pytest.mark.parametrize(("spot", "wanted"), [("only", {True}), ("never", {False}), ("prefer", {True, False})])
def test_spot_is_bought_only_as_the_settings_say(spot: str, wanted: set[bool]) -> None:
    assert {one.spot for one in candidates(machine(spot=spot), ZONES)} == wanted


def test_without_a_zone_there_is_no_candidate() -> None:
    failure = refused([])
    assert failure.klass is ErrorClass.CONFIG
    assert "machine.zones" in failure.remedy


# GPUs and their machines

COUNTS = {
    "nvidia-l4": [1, 2, 4, 8],
    "nvidia-rtx-pro-6000": [1, 2, 4, 8],
    "nvidia-tesla-a100": [1, 2, 4, 8, 16],
    "nvidia-a100-80gb": [1, 2, 4, 8],
    "nvidia-h100-80gb": [1, 2, 4, 8],
    "nvidia-h100-mega-80gb": [8],
    "nvidia-h200-141gb": [8],
    "nvidia-b200": [8],
    "nvidia-tesla-t4": [1, 2, 4],
    "nvidia-tesla-p4": [1, 2, 4],
    "nvidia-tesla-v100": [1, 2, 4, 8],
}
"""GPUs per VM: https://docs.cloud.google.com/compute/docs/gpus."""


@pytest.mark.parametrize("gpu", KNOWN_GPUS)
def test_every_known_gpu_has_a_machine_type_that_can_carry_it(gpu: str) -> None:
    for count in COUNTS[gpu]:
        one = candidates(machine(gpu=[gpu], count=count), ZONES)[0]
        assert (one.gpu, one.count, one.image, one.spot) == (gpu, count, DEFAULT_IMAGE, True)
        assert one.attached == one.machine_type.startswith("n1-")
        assert str(one).startswith(f"{count} x {gpu} on {one.machine_type}, spot, europe-west1-b")


@pytest.mark.parametrize("gpu", KNOWN_GPUS)
def test_a_number_of_gpus_that_no_machine_has_is_refused(gpu: str) -> None:
    for count in {1, 2, 3, 4, 8, 16} - set(COUNTS[gpu]):
        failure = refused(gpu=[gpu], count=count)
        assert failure.klass is ErrorClass.NOT_AVAILABLE
        assert "does not come as" in failure.cause
        assert ", ".join(map(str, COUNTS[gpu])) in failure.remedy


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
    failure = refused(gpu=["nvidia-l4"], type="n1-standard-8")
    assert failure.klass is ErrorClass.CONFIG
    assert "n1-standard-8 cannot carry nvidia-l4" in failure.cause


@pytest.mark.parametrize(
    ("gpu", "count", "machine_type", "cause"),
    [
        ("nvidia-l4", 1, "g2-standard-24", "comes with 2 x nvidia-l4, machine.count is 1"),
        ("nvidia-tesla-a100", 1, "a2-ultragpu-1g", "cannot carry nvidia-tesla-a100"),
        ("nvidia-h100-80gb", 8, "a3-megagpu-8g", "cannot carry nvidia-h100-80gb"),
        ("nvidia-tesla-v100", 1, "n1-standard-16", "takes at most 12 vCPUs and 78 GB"),
        ("nvidia-tesla-t4", 1, "n1-highmem-64", "takes at most 48 vCPUs"),
        ("nvidia-tesla-t4", 1, "n1-custom-4-327680", "at most 48 vCPUs and 312 GB"),
        ("nvidia-tesla-t4", 1, "e2-standard-4", "goes with N1"),
    ],
)
def test_a_machine_type_that_the_gpus_do_not_go_with_is_refused(
    gpu: str, count: int, machine_type: str, cause: str
) -> None:
    failure = refused(gpu=[gpu], count=count, type=machine_type)
    assert failure.klass is ErrorClass.CONFIG
    assert cause in failure.cause


@pytest.mark.parametrize(
    ("gpu", "machine_type"),
    [
        ("nvidia-tesla-t4", "custom-8-16384"),
        ("nvidia-tesla-t4", "n1-custom-8-16384"),
        ("nvidia-l4", "g2-custom-8-40960"),
        ("nvidia-b200", "a4-newer-8g"),
    ],
)
def test_custom_machine_types_and_newer_ones_are_left_to_google(gpu: str, machine_type: str) -> None:
    count = 8 if gpu == "nvidia-b200" else 1
    assert candidates(machine(gpu=[gpu], count=count, type=machine_type), ZONES)[0].machine_type == machine_type


def test_a_machine_without_gpu_is_what_its_type_says() -> None:
    (one, *_) = candidates(machine(gpu=["none"], type="e2-standard-2", count=4), ZONES)
    assert (one.gpu, one.count, one.machine_type, one.attached) == (None, 0, "e2-standard-2", False)
    assert (one.price, one.gpu_quota, one.driver, one.disk_type) == (None, None, None, "pd-balanced")
    assert "no GPU" in str(one)


def test_disks_fit_the_family() -> None:
    assert candidates(machine(gpu=["none"], type="a3-ultragpu-8g"), ZONES)[0].disk_type == "hyperdisk-balanced"
    assert candidates(machine(gpu=["nvidia-b200"], count=8), ZONES)[0].disk_type == "hyperdisk-balanced"
    assert candidates(machine(), ZONES)[0].disk_type == "pd-balanced"


def test_a_disk_type_leaves_out_what_does_not_take_it() -> None:
    assert {one.gpu for one in candidates(machine(disk_type="pd-standard"), ZONES)} == {"nvidia-tesla-t4"}
    failure = refused(gpu=["nvidia-l4"], disk_type="pd-standard")
    assert "g2-standard-4 does not take pd-standard" in failure.cause
    # One that the offers do not know is Google's to judge.
    assert candidates(machine(disk_type="hyperdisk-extreme"), ZONES)[0].disk_type == "hyperdisk-extreme"


# Names


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("l4", "nvidia-l4"),
        ("nvidia-t4", "nvidia-tesla-t4"),
        ("a100", "nvidia-tesla-a100"),
        ("nvidia-a100-80", "nvidia-a100-80gb"),
        ("nvidia-h100", "nvidia-h100-80gb"),
        ("tesla-v100", "nvidia-tesla-v100"),
        ("rtx-6000", "nvidia-rtx-pro-6000"),
        ("nvidia-tesla-l4", "nvidia-l4"),
    ],
)
def test_a_gpu_that_is_nearly_right_is_answered_with_the_nearest(typed: str, meant: str) -> None:
    failure = refused(gpu=[typed])
    assert failure.klass is ErrorClass.NOT_AVAILABLE
    assert f"did you mean {meant}?" in failure.cause
    assert all(gpu in failure.remedy for gpu in KNOWN_GPUS)


def test_an_unknown_gpu_is_answered_with_the_known_ones_and_no_guess() -> None:
    failure = refused(gpu=["nvidia-xyz"])
    assert "did you mean" not in failure.cause
    assert all(gpu in failure.remedy for gpu in KNOWN_GPUS)


@pytest.mark.parametrize(
    ("typed", "gpu", "successor"),
    [
        ("nvidia-tesla-k80", "nvidia-tesla-k80", "nvidia-tesla-t4"),
        ("k80", "nvidia-tesla-k80", "nvidia-l4"),
        ("nvidia-tesla-p100", "nvidia-tesla-p100", "nvidia-l4"),
    ],
)
def test_a_gpu_that_was_shut_down_is_refused_with_its_successor(typed: str, gpu: str, successor: str) -> None:
    failure = refused(gpu=["nvidia-l4", typed])
    assert failure.klass is ErrorClass.NOT_AVAILABLE
    assert f"{gpu} was shut down" in failure.cause
    assert successor in failure.remedy


def test_a_successor_can_be_had() -> None:
    ends = [*offers().retired.values(), *(gpu.end for gpu in offers().gpus.values() if gpu.end)]
    assert len(ends) >= 4
    assert all(successor in offers().gpus for end in ends for successor in end.successors)


def test_a_gpu_whose_end_is_announced_is_used_and_said() -> None:
    assert any("nvidia-tesla-t4 ends on Compute Engine on 2027-08-01" in line for line in cuts(machine(zones=ZONES)))
    assert cuts(machine(gpu=["nvidia-l4"], zones=ZONES)) == []


# How GPUs are sold


@pytest.mark.parametrize(
    ("gpu", "count", "standard"),
    [
        ("nvidia-h100-80gb", 1, False),
        ("nvidia-h100-80gb", 4, False),
        ("nvidia-h100-80gb", 8, True),
        ("nvidia-h100-mega-80gb", 8, True),
        ("nvidia-h200-141gb", 8, False),
        ("nvidia-b200", 8, False),
        ("nvidia-l4", 1, True),
    ],
)
def test_what_is_not_sold_on_demand_is_no_standard_candidate(gpu: str, count: int, standard: bool) -> None:
    wanted = machine(gpu=[gpu], count=count, regions=["us-central1"])
    assert {one.spot for one in candidates(wanted, ZONES)} == ({True, False} if standard else {True})
    assert any("standard: Google sells it only as spot or flex" in line for line in cuts(wanted)) is not standard


def test_a_gpu_that_is_only_sold_as_spot_is_refused_where_spot_is_not_wanted() -> None:
    failure = refused(gpu=["nvidia-b200"], count=8, spot="never")
    assert failure.klass is ErrorClass.NOT_AVAILABLE
    assert "nvidia-b200 on a4-highgpu-8g, standard: Google sells it only as spot or flex" in failure.cause
    assert "machine.spot" in failure.remedy


# Prices


def test_the_price_is_that_of_machine_gpu_and_disk() -> None:
    (spot, standard) = candidates(machine(gpu=["nvidia-l4"], disk_gb=730), ["us-central1-a"])
    assert standard.price == pytest.approx(0.56004 + 4 * 0.024988 + 16 * 0.002927 + 0.10)
    assert spot.price == pytest.approx(0.2231 + 4 * 0.009995 + 16 * 0.001171 + 0.10)
    (t4,) = candidates(machine(gpu=["nvidia-tesla-t4"], count=2, spot="never", disk_gb=730), ["us-central1-a"])
    assert t4.price == pytest.approx(2 * 0.35 + 8 * 0.031611 + 30 * 0.004237 + 0.10)
    assert str(t4).endswith("us-central1-a, about 1.18 USD per hour")


def test_prices_follow_the_region_and_are_unknown_where_it_is() -> None:
    here, there, nowhere = candidates(
        machine(gpu=["nvidia-l4"], spot="never"), ["us-central1-a", "asia-southeast1-b", "mars-north1-a"]
    )
    assert here.price is not None
    assert there.price == pytest.approx(here.price * 1.23)
    assert nowhere.price is None
    assert str(nowhere).endswith("mars-north1-a")


def test_custom_machines_have_a_price_too() -> None:
    shape = shape_of("n1-custom-6-20480")
    assert shape is not None
    assert (shape.vcpus, shape.memory_gb) == (6, 20.0)
    (one,) = candidates(machine(gpu=["nvidia-tesla-t4"], type="n1-custom-6-20480", spot="never"), ["us-central1-a"])
    assert one.price is not None
    assert shape_of("n4-standard-4") is None


def test_max_price_cuts_what_costs_more_and_says_so() -> None:
    limited = machine(zones=ZONES, max_price=0.6)
    assert [(one.gpu, one.spot, one.zone) for one in candidates(limited, ZONES)] == [
        *(("nvidia-l4", True, zone) for zone in ZONES),
        *(("nvidia-tesla-t4", True, zone) for zone in ZONES),
        ("nvidia-tesla-t4", False, "us-central1-a"),
    ]
    lines = [line for line in cuts(limited) if line.startswith("left out")]
    assert len(lines) == 3
    assert lines[0] == (
        "left out: 1 x nvidia-l4 on g2-standard-4, standard, europe-west1: "
        "about 0.79 USD per hour, machine.max_price is 0.6"
    )


def test_max_price_is_met_by_what_costs_just_that() -> None:
    (one,) = candidates(machine(gpu=["nvidia-l4"], spot="never"), ["us-central1-a"])
    assert candidates(machine(gpu=["nvidia-l4"], spot="never", max_price=one.price), ["us-central1-a"]) == [one]


def test_nothing_within_max_price_names_the_cheapest() -> None:
    failure = refused(max_price=0.1)
    assert failure.klass is ErrorClass.CONFIG
    assert "the cheapest that the settings allow is 1 x nvidia-tesla-t4 on n1-standard-4, spot, us-central1" in (
        failure.cause
    )
    assert failure.cause.endswith("about 0.23")
    assert "`glgpu gpus`" in failure.remedy


def test_a_limit_that_cannot_be_judged_is_not_passed() -> None:
    failure = refused(gpu=["none"], type="n4-standard-4", max_price=100)
    assert failure.klass is ErrorClass.CONFIG
    assert "no price is known for: no GPU on n4-standard-4" in failure.cause
    known = machine(gpu=["nvidia-l4"], max_price=100, zones=["us-central1-a", "mars-north1-a"])
    assert {one.zone for one in candidates(known, known.zones)} == {"us-central1-a"}
    assert any("mars-north1: no price is known, machine.max_price is 100" in line for line in cuts(known))


def test_spot_of_unknown_price_costs_at_most_what_standard_costs() -> None:
    spot, standard = candidates(machine(gpu=["nvidia-rtx-pro-6000"], max_price=5), ["us-central1-b"])
    assert (spot.spot, spot.price, standard.spot) == (True, None, False)
    assert (
        "about 4.51 USD per hour"
        in refused(["us-central1-b"], gpu=["nvidia-rtx-pro-6000"], max_price=4).cause + " USD per hour"
    )


# What else a candidate tells


def test_a_candidate_names_the_limits_that_it_counts_against() -> None:
    spot, standard = candidates(machine(gpu=["nvidia-tesla-a100"]), ["us-central1-a"])
    assert (spot.gpu_quota, standard.gpu_quota) == ("PREEMPTIBLE_NVIDIA_A100_GPUS", "NVIDIA_A100_GPUS")
    assert (spot.cpu_quota, spot.vcpus, spot.disk_quota, spot.region) == (
        "A2_CPUS", 12, "SSD_TOTAL_GB", "us-central1",
    )  # fmt: skip
    spot, standard = candidates(machine(gpu=["nvidia-h100-80gb"], count=8), ["us-central1-a"])
    assert (spot.gpu_quota, spot.gpu_family) == ("PREEMPTIBLE_NVIDIA_H100_GPUS", "")
    assert (standard.gpu_quota, standard.gpu_family) == ("GPUS_PER_GPU_FAMILY", "NVIDIA_H100")


def test_a_candidate_names_its_driver_and_network_card() -> None:
    def one(gpu: str, count: int = 1) -> tuple[int | None, str, bool]:
        found = candidates(machine(gpu=[gpu], count=count), ZONES)[0]
        assert found.driver is not None
        return found.driver.last, found.driver.open_modules, found.gvnic

    assert one("nvidia-tesla-v100") == (580, "never", False)
    assert one("nvidia-tesla-p4") == (580, "never", False)
    assert one("nvidia-l4") == (None, "optional", False)
    assert one("nvidia-b200", 8) == (None, "only", True)
