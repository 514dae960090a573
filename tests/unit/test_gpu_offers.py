"""gpus.yml against everything else that knows GPUs: the stand-in's own catalogue, and Google's API description."""

from __future__ import annotations

import importlib.util
import json
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest

from glgpu.gpu_offers import (
    FAMILY_QUOTA,
    OpenModules,
    Rates,
    SoldAs,
    estimated,
    family_of,
    nearest,
    offers,
    shape_of,
)
from glgpu.machines import region_of
from glgpu.rehearsal import cloud_catalogue as cloud

GPUS = sorted(offers().gpus)
NOT_IN_THE_DESCRIPTION = {
    "PREEMPTIBLE_NVIDIA_RTX_PRO_6000_GPUS",
    "PREEMPTIBLE_NVIDIA_H100_MEGA_GPUS",
    "PREEMPTIBLE_NVIDIA_H200_GPUS",
    "PREEMPTIBLE_NVIDIA_B200_GPUS",
}
"""Limits that Google's guides name and the API description does not (yet)."""


def metrics_of_the_description() -> set[str]:
    """The limits that Compute Engine's API description knows."""
    spec = importlib.util.find_spec("googleapiclient")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "discovery_cache/documents/compute.v1.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    return set(description["schemas"]["Quota"]["properties"]["metric"]["enum"])


# The file by itself


def test_the_file_is_dated_and_names_its_sources() -> None:
    text = files("glgpu").joinpath("gpus.yml").read_text(encoding="utf-8")
    assert offers().checked <= date.today()
    assert text.count("https://") >= 8
    assert "[M]" in text


@pytest.mark.parametrize("name", GPUS)
def test_every_entry_is_whole(name: str) -> None:
    gpu = offers().gpus[name]
    assert gpu.name == name
    assert gpu.family in offers().families
    assert bool(gpu.machines) is not gpu.attached
    assert gpu.sold <= set(get_args(SoldAs))
    assert gpu.sold & {"standard", "spot"}
    assert gpu.driver.open_modules in get_args(OpenModules)
    assert gpu.driver.last is None or gpu.driver.first < gpu.driver.last
    assert (gpu.quota == FAMILY_QUOTA) is bool(gpu.quota_family)
    assert set(gpu.zones) <= set(offers().factors)
    assert all(set(letters) <= set("abcdef") for letters in gpu.zones.values())
    for count in gpu.counts:
        machine = gpu.machine_for(count)
        shape = shape_of(machine)
        assert shape is not None
        assert family_of(machine) == gpu.family
        if gpu.attached:
            limit = gpu.limits[count]
            assert shape.vcpus <= limit.most_vcpus
            assert shape.memory_gb <= limit.most_memory_gb


@pytest.mark.parametrize("name", GPUS)
def test_what_is_sold_has_a_price_that_is_lower_as_spot(name: str) -> None:
    gpu, rates = offers().gpus[name], estimated(offers().region)
    assert rates is not None
    for count in gpu.counts:
        machine = gpu.machine_for(count)
        sold = gpu.sold_with(machine)
        standard = rates.machine(name, count, machine, spot=False)
        spot = rates.machine(name, count, machine, spot=True)
        if "standard" in sold:
            assert standard is not None
        if standard is not None and spot is not None:
            assert 0.2 < spot / standard < 0.7


def test_pascal_and_volta_end_with_branch_580_and_have_no_open_modules() -> None:
    last = {name: (gpu.driver.last, gpu.driver.open_modules) for name, gpu in offers().gpus.items()}
    old = {"nvidia-tesla-p4", "nvidia-tesla-v100"}
    assert {name for name, end in last.items() if end == (580, "never")} == old
    assert all(last[name][0] is None and last[name][1] != "never" for name in set(last) - old)


def test_what_was_shut_down_is_no_offer() -> None:
    assert {"nvidia-tesla-k80", "nvidia-tesla-p100"} <= set(offers().retired)
    assert not set(offers().retired) & set(offers().gpus)
    assert all(end.when <= offers().checked for end in offers().retired.values())
    assert all(gpu.end.when > offers().checked for gpu in offers().gpus.values() if gpu.end)


def test_every_limit_is_google_s() -> None:
    known = metrics_of_the_description() | NOT_IN_THE_DESCRIPTION | {FAMILY_QUOTA}
    used = {metric for gpu in offers().gpus.values() for metric in (gpu.quota, gpu.spot_quota)}
    used |= {family.cpu_quota for family in offers().families.values() if family.cpu_quota}
    used |= set(offers().disk_quotas.values())
    assert used - known == set()
    assert used >= NOT_IN_THE_DESCRIPTION
    assert not NOT_IN_THE_DESCRIPTION & metrics_of_the_description()


def test_families_take_disks_that_have_a_price() -> None:
    assert all(set(family.disks) <= set(offers().rates.disk) for family in offers().families.values())
    assert set(offers().disk_skus) == set(offers().disk_quotas) == set(offers().rates.disk)


# Against the stand-in's catalogue, which was written from Google's tables by itself


def test_both_know_the_same_gpus() -> None:
    assert set(cloud.GPUS) == set(offers().gpus)


@pytest.mark.parametrize("name", GPUS)
def test_both_say_the_same_of_a_gpu(name: str) -> None:
    ours, theirs = offers().gpus[name], cloud.GPUS[name]
    assert {count: limit.most_vcpus for count, limit in ours.limits.items()} == theirs.max_cpus
    assert max(ours.counts) >= theirs.most_per_vm
    if theirs.quota:
        assert ours.quota == theirs.quota
    else:
        assert ours.quota == FAMILY_QUOTA
    if theirs.spot_quota:
        assert ours.spot_quota == theirs.spot_quota
    else:
        assert ours.spot_quota in NOT_IN_THE_DESCRIPTION
    for zone in theirs.zones:
        letters = ours.zones.get(region_of(zone))
        assert letters is not None, zone
        assert not letters or zone[-1] in letters, zone


@pytest.mark.parametrize("name", [name for name in GPUS if not offers().gpus[name].attached])
def test_both_say_the_same_of_its_machine_types(name: str) -> None:
    theirs = {machine: one for machine, one in cloud.MACHINE_TYPES.items() if one.gpu and one.gpu[0] == name}
    ours = {machine: one for machine, one in offers().gpus[name].machines.items() if machine != "a3-edgegpu-8g"}
    assert set(ours) == set(theirs)
    for machine, shape in ours.items():
        one = theirs[machine]
        assert one.gpu == (name, shape.gpus)
        assert (one.cpus, one.memory_mb) == (shape.vcpus, shape.memory_gb * 1024)


@pytest.mark.parametrize("machine", sorted(cloud.MACHINE_TYPES))
def test_both_say_the_same_of_a_machine_family(machine: str) -> None:
    family = offers().families.get(family_of(machine))
    if family is None:
        return  # one without GPUs
    theirs = cloud.MACHINE_TYPES[machine]
    assert set(family.disks) == theirs.disk_types
    assert family.cpu_quota == theirs.cpu_quota
    shape = shape_of(machine)
    assert shape is not None
    assert (shape.vcpus, int(shape.memory_gb * 1024)) == (theirs.cpus, theirs.memory_mb)
    assert all(offers().disk_quotas[disk] == cloud.DISK_TYPES[disk][1] for disk in family.disks)


@pytest.mark.parametrize("name", ["n1-custom-6-20480", "custom-2-4096", "custom-1-1024"])
def test_both_read_custom_machine_types(name: str) -> None:
    shape, theirs = shape_of(name), cloud.machine_type(name)
    assert shape is not None
    assert theirs is not None
    assert (shape.vcpus, shape.memory_gb * 1024) == (theirs.cpus, theirs.memory_mb)


@pytest.mark.parametrize(
    "name", ["n1-custom-3-4096", "custom-2-4100", "custom-2-65536", "custom-98-131072", "custom-0-0"]
)
def test_the_stand_in_refuses_custom_machines_that_google_does_not_make(name: str) -> None:
    assert cloud.machine_type(name) is None


# Prices


def test_a_machine_s_price_is_the_sum_of_its_parts() -> None:
    rates = Rates(core={("g2", True): 0.01}, ram={("g2", True): 0.001}, gpu={("nvidia-l4", True): 0.25}, disk={})
    assert rates.machine("nvidia-l4", 1, "g2-standard-4", spot=True) == pytest.approx(0.25 + 0.04 + 0.016)
    assert rates.machine(None, 0, "g2-standard-4", spot=True) == pytest.approx(0.04 + 0.016)
    assert rates.machine("nvidia-l4", 1, "g2-standard-4", spot=False) is None
    assert rates.machine("nvidia-b200", 1, "g2-standard-4", spot=True) is None
    assert rates.machine(None, 0, "x9-standard-4", spot=True) is None


def test_estimates_follow_the_region() -> None:
    here, there = estimated("us-central1"), estimated("europe-west4")
    assert here is not None
    assert there is not None
    assert there.gpu["nvidia-l4", False] == pytest.approx(1.1 * here.gpu["nvidia-l4", False])
    assert estimated("mars-north1") is None


def test_the_nearest_name_is_the_first_of_those_that_begin_alike() -> None:
    assert nearest("h100", offers().gpus) == "nvidia-h100-80gb"
    assert nearest("a100", offers().gpus) == "nvidia-tesla-a100"
    assert nearest("", offers().gpus) is None
    assert nearest("nvidia", offers().gpus) is None
