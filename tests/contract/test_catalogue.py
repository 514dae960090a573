"""What a step may expect of the catalogue: one suite over the fake and over the real client against the stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fakes import FakeCatalogue
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Catalogue
from glgpu.machines import DEFAULT_IMAGE
from glgpu.rehearsal.faults import Rule
from lab import SETTINGS, Lab, lab

ZONE, REGION = "europe-west4-a", "europe-west4"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture(params=["fake", "real"])
def catalogue(request: pytest.FixtureRequest, tmp_path: Path) -> Catalogue:
    if request.param == "fake":
        return FakeCatalogue()
    return real(request.getfixturevalue("world"), tmp_path)


def real(world: Lab, folder: Path, **variables: str) -> Catalogue:
    (folder / "glgpu.yml").write_text(SETTINGS)
    return world.run(folder, **variables).catalogue


def test_the_project_has_limits_over_all_regions(catalogue: Catalogue) -> None:
    found = catalogue.cloud_project()
    assert found.name == catalogue.project
    quota = found.quotas["GPUS_ALL_REGIONS"]
    assert (quota.metric, quota.region, quota.left) == ("GPUS_ALL_REGIONS", None, quota.limit - quota.usage)
    assert quota.limit > 0
    assert found.metadata.get("enable-oslogin") is None
    assert found.service_account.endswith("-compute@developer.gserviceaccount.com")


def test_regions_zones_and_limits_belong_together(catalogue: Catalogue) -> None:
    regions, zones = catalogue.regions(), catalogue.zones()
    assert (regions[REGION].status, zones[ZONE].status, zones[ZONE].region) == ("UP", "UP", REGION)
    assert {zone for region in regions.values() for zone in region.zones} == set(zones)
    assert all(zones[zone].region == region.name for region in regions.values() for zone in region.zones)
    quotas = regions[REGION].quotas
    assert all(quota.region == REGION and quota.metric == metric for metric, quota in quotas.items())
    for metric in ("NVIDIA_L4_GPUS", "PREEMPTIBLE_NVIDIA_L4_GPUS", "CPUS", "SSD_TOTAL_GB", "IN_USE_ADDRESSES"):
        assert quotas[metric].limit > 0


def test_gpus_are_listed_zone_by_zone(catalogue: Catalogue) -> None:
    found = {(one.name, one.zone): one.most_per_vm for one in catalogue.accelerator_types()}
    assert (found["nvidia-l4", ZONE], found["nvidia-tesla-t4", ZONE]) == (8, 4)
    assert {zone for _, zone in found} <= set(catalogue.zones())


def test_machine_types_are_found_by_name_in_every_zone(catalogue: Catalogue) -> None:
    found = {(one.name, one.zone): one for one in catalogue.machine_types(["g2-standard-4", "n1-standard-4", "x9"])}
    assert {name for name, _ in found} == {"g2-standard-4", "n1-standard-4"}
    l4, n1 = found["g2-standard-4", ZONE], found["n1-standard-4", ZONE]
    assert (l4.vcpus, l4.memory_gb, l4.gpu, l4.gpus) == (4, 16.0, "nvidia-l4", 1)
    assert (n1.vcpus, n1.memory_gb, n1.gpu, n1.gpus) == (4, 15.0, None, 0)
    assert len({zone for name, zone in found if name == "n1-standard-4"}) > 1
    assert catalogue.machine_types([]) == []


def test_one_machine_type_is_looked_up_in_a_zone(catalogue: Catalogue) -> None:
    found = catalogue.machine_type("g2-standard-4", ZONE)
    assert found is not None
    assert (found.zone, found.vcpus, found.gpu) == (ZONE, 4, "nvidia-l4")
    assert catalogue.machine_type("x9-standard-4", ZONE) is None


def test_custom_machine_types_are_in_no_list_and_found_all_the_same(world: Lab, tmp_path: Path) -> None:
    catalogue = real(world, tmp_path)
    for name in ("n1-custom-4-8192", "custom-4-8192"):
        found = catalogue.machine_type(name, ZONE)
        assert found is not None
        assert (found.name, found.vcpus, found.memory_gb, found.gpu) == (name, 4, 8.0, None)
        assert catalogue.machine_types([name]) == []
    assert catalogue.machine_type("n1-custom-3-8192", ZONE) is None


def test_a_zone_has_disk_types(catalogue: Catalogue) -> None:
    assert {"pd-standard", "pd-balanced", "pd-ssd"} <= catalogue.disk_types(ZONE)


def test_a_family_stands_for_its_newest_image_and_an_image_is_found_by_its_name(catalogue: Catalogue) -> None:
    newest = catalogue.image(DEFAULT_IMAGE)
    assert newest is not None
    assert newest.family == DEFAULT_IMAGE.rpartition("/")[2]
    assert newest.path.startswith("projects/deeplearning-platform-release/global/images/")
    assert (newest.status, newest.deprecation, newest.replacement) == ("READY", "", "")
    assert (newest.architecture, newest.disk_gb) == ("X86_64", 50)
    assert catalogue.image(newest.path) == newest
    assert catalogue.image(f"https://www.googleapis.com/compute/v1/{newest.path}") == newest


@pytest.mark.parametrize("path", [DEFAULT_IMAGE + "x", "projects/debian-cloud/global/images/no", "global/images/mine"])
def test_an_image_that_is_not_there_is_none(catalogue: Catalogue, path: str) -> None:
    assert catalogue.image(path) is None


def test_what_is_no_path_of_an_image_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(Failure) as caught:
        catalogue.image("debian-12")
    assert caught.value.klass is ErrorClass.CONFIG


def test_a_network_is_found_by_name_and_by_path(catalogue: Catalogue) -> None:
    path = f"projects/{catalogue.project}/global/networks/default"
    for network in ("default", path):
        found = catalogue.network(network)
        assert found is not None
        assert (found.path, found.automatic) == (path, True)
        (subnetwork,) = catalogue.subnetworks(REGION, network)
        assert (subnetwork.network, subnetwork.google_access) == (path, False)
        assert subnetwork.path == f"projects/{catalogue.project}/regions/{REGION}/subnetworks/default"
        assert subnetwork.cidr.endswith("/20")
        assert catalogue.nats(REGION, network) == []
    assert catalogue.network("other") is None
    assert catalogue.subnetworks(REGION, "other") == []
    assert catalogue.rules("other") == []


def test_a_subnetwork_is_found_by_name_and_by_path(catalogue: Catalogue) -> None:
    (listed,) = catalogue.subnetworks(REGION, "default")
    assert catalogue.subnetwork("default", REGION) == listed
    assert catalogue.subnetwork(listed.path, "us-east1") == listed
    assert catalogue.subnetwork("other", REGION) is None


def test_the_rules_of_a_new_project_are_google_s(world: Lab, tmp_path: Path) -> None:
    rules = {rule.name: rule for rule in real(world, tmp_path).rules("default")}
    ssh = rules["default-allow-ssh"]
    assert (ssh.direction, ssh.action, ssh.priority, ssh.disabled) == ("INGRESS", "allow", 65534, False)
    assert (ssh.sources, ssh.protocols) == (("0.0.0.0/0",), {"tcp": ("22",)})
    assert (ssh.target_tags, ssh.target_accounts, ssh.source_tags, ssh.source_accounts) == ((), (), (), ())
    internal = rules["default-allow-internal"].protocols
    assert (internal["tcp"], internal["icmp"]) == (("0-65535",), ())


def test_what_stands_twice_in_a_rule_counts_together() -> None:
    from google.cloud.compute_v1 import Allowed

    from glgpu.clients.compute_catalogue import _protocols

    entries = [Allowed(I_p_protocol="tcp", ports=["22"]), Allowed(I_p_protocol="tcp", ports=["80-90"])]
    assert _protocols(entries) == {"tcp": ("22", "80-90")}
    assert _protocols([*entries, Allowed(I_p_protocol="tcp")]) == {"tcp": ()}


def test_threads_may_ask_at_the_same_time(world: Lab, tmp_path: Path) -> None:
    catalogue = real(world, tmp_path)
    asks = [catalogue.regions, catalogue.zones, catalogue.accelerator_types, catalogue.cloud_project] * 4
    with ThreadPoolExecutor(len(asks)) as pool:
        answers = [future.result() for future in [pool.submit(ask) for ask in asks]]
    assert answers[:4] * 4 == answers


def test_a_project_that_is_not_ours_is_refused(world: Lab, tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        real(world, tmp_path, GLGPU_PROJECT="somebody-elses").cloud_project()
    assert caught.value.exit_code == 15


@pytest.mark.parametrize(("action", "code"), [("api-disabled", 15), ("permission-denied", 15), ("reset", 18)])
def test_a_cloud_that_refuses_is_told_in_our_words(world: Lab, tmp_path: Path, action: str, code: int) -> None:
    catalogue = real(world, tmp_path)
    world.world.faults.rules.append(Rule("compute.request", action))
    try:
        with pytest.raises(Failure) as caught:
            catalogue.accelerator_types()
    finally:
        world.world.faults.lift("compute.request")
    assert caught.value.exit_code == code
