"""glgpu gpus: offers, prices, zones and limits in one table."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from fakes import FakeCatalogue, FakePrices, refusal
from glgpu.console import Console
from glgpu.errors import ErrorClass, Failure
from glgpu.gpu_offers import offers
from glgpu.masking import Masker
from glgpu.settings import Machine
from glgpu.stages.gpus import Market, gpus, show, show_json


@pytest.fixture
def catalogue() -> FakeCatalogue:
    return FakeCatalogue()


@pytest.fixture
def prices() -> FakePrices:
    return FakePrices()


def machine(**keys: object) -> Machine:
    return Machine.model_validate(keys)


def shown(market: Market) -> str:
    stream = io.BytesIO()
    show(Console(Masker(), stream=stream), market)
    return stream.getvalue().decode()


def told(market: Market) -> dict[str, Any]:
    stream = io.BytesIO()
    show_json(Console(Masker(), stream=stream), market)
    found = json.loads(stream.getvalue())
    assert isinstance(found, dict)
    return found


# Without credentials


def test_without_a_project_there_are_estimates_and_a_line_that_says_what_is_missing() -> None:
    text = shown(gpus(machine(), None, None))
    assert f"~ is an estimate of {offers().checked}" in text
    assert "price list" not in text
    assert all(name in text for name in offers().gpus)
    assert text.splitlines()[-1].startswith("no Google Cloud project is set: GLGPU_PROJECT")
    assert "may still have" not in text


def test_credentials_that_are_missing_cost_one_question_and_one_line(
    catalogue: FakeCatalogue, prices: FakePrices
) -> None:
    catalogue.refuse["cloud_project"] = Failure(ErrorClass.AUTH, "no usable Google credentials", "log in")
    market = gpus(machine(), catalogue, prices)
    assert market.notes == ("missing: zones, limits and prices. no usable Google credentials; log in",)
    assert catalogue.verbs() == ["cloud_project"]
    assert prices.calls == []
    assert told(market)["gpus"][0]["regions"] is None


def test_estimates_are_those_of_the_first_region() -> None:
    here = gpus(machine(), None, None, names=["nvidia-l4"])
    there = gpus(machine(zones=["europe-west4-b"]), None, None, names=["nvidia-l4"])
    assert (here.region, there.region) == ("us-central1", "europe-west4")
    ours, theirs = here.rows[0].offers[0].standard, there.rows[0].offers[0].standard
    assert ours is not None
    assert theirs is not None
    assert ours.usd is not None
    assert theirs.usd == pytest.approx(ours.usd * 1.1)
    assert str(ours) == "~0.71"


# With them


def test_list_prices_stand_without_a_mark_and_what_the_list_lacks_is_estimated(
    catalogue: FakeCatalogue, prices: FakePrices
) -> None:
    text = shown(gpus(machine(), catalogue, prices))
    assert "from Google's price list, ~ is an estimate of" in text
    (l4,) = [line for line in text.splitlines() if "g2-standard-4 " in line]
    assert l4.split()[-2:] == ["0.77", "0.31"]
    (t4,) = [line for line in text.splitlines() if "n1-standard-4 " in line and "nvidia-tesla-t4" in line]
    assert t4.split()[-2:] == ["~0.54", "~0.22"]


def test_zones_are_those_that_have_both_gpu_and_machine_type(catalogue: FakeCatalogue, prices: FakePrices) -> None:
    catalogue.machine_list = [one for one in catalogue.machine_list if one.zone != "europe-west4-b"]
    (row,) = gpus(machine(), catalogue, prices, names=["nvidia-l4"]).rows
    assert row.offers[0].zones == ("europe-west4-a",)
    assert row.offers[1].zones == ()  # the cloud has no g2-standard-24
    assert row.places is not None
    assert [(place.region, place.zones) for place in row.places] == [("europe-west4", ("europe-west4-a",))]


def test_what_is_left_of_the_limits_is_told_for_standard_and_spot(catalogue: FakeCatalogue, prices: FakePrices) -> None:
    market = gpus(machine(), catalogue, prices, names=["nvidia-l4"])
    (place,) = market.rows[0].places or ()
    assert (place.standard_left, place.spot_left, market.all_regions_left) == (3.0, 4.0, 4.0)
    text = shown(market)
    assert "How many GPUs the project my-dl may still have; 4 in all regions together (GPUS_ALL_REGIONS)" in text
    (line,) = [line for line in text.splitlines() if "europe-west4" in line and "dollars" not in line]
    assert line.split() == ["nvidia-l4", "europe-west4", "a", "b", "3", "4"]


def test_the_regions_with_most_to_have_come_first_and_not_all_are_shown(
    catalogue: FakeCatalogue, prices: FakePrices
) -> None:
    first = catalogue.region_list[0]
    for number in range(7):
        name = f"us-east{number}"
        quotas = {m: replace(q, limit=float(number), usage=0.0, region=name) for m, q in first.quotas.items()}
        catalogue.region_list.append(replace(first, name=name, zones=(f"{name}-a",), quotas=quotas))
        catalogue.accelerator_list.append(replace(catalogue.accelerator_list[0], zone=f"{name}-a"))
        catalogue.machine_list.append(replace(catalogue.machine_list[0], zone=f"{name}-a"))
    market = gpus(machine(), catalogue, prices, names=["nvidia-l4"])
    regions = [place.region for place in market.rows[0].places or ()]
    assert regions == [
        "us-east6",
        "us-east5",
        "europe-west4",
        "us-east4",
        "us-east3",
        "us-east2",
        "us-east1",
        "us-east0",
    ]
    text = shown(market)
    assert "us-east3" in text
    assert "us-east2" not in text
    assert "and 3 more (--region)" in text
    assert len(told(market)["gpus"][0]["regions"]) == 8


def test_regions_of_the_settings_narrow_and_an_option_goes_before(catalogue: FakeCatalogue, prices: FakePrices) -> None:
    market = gpus(machine(regions=["us-east1"]), catalogue, prices, names=["nvidia-l4"])
    assert (market.region, market.rows[0].places) == ("us-east1", ())
    assert "none of them" in shown(market)
    assert market.notes == ("Google knows no region us-east1",)
    market = gpus(machine(regions=["us-east1"]), catalogue, prices, names=["nvidia-l4"], regions=["europe-west4"])
    assert [place.region for place in market.rows[0].places or ()] == ["europe-west4"]
    assert prices.calls[-1] == ("rates", "europe-west4")


def test_a_price_list_that_refuses_leaves_the_rest(catalogue: FakeCatalogue, prices: FakePrices) -> None:
    prices.refuse["rates"] = refusal(ErrorClass.API_DISABLED, "the Cloud Billing API is off")
    market = gpus(machine(), catalogue, prices)
    assert market.notes == ("missing: today's prices. the Cloud Billing API is off; none",)
    assert market.project == "my-dl"
    assert "price list" not in shown(market).splitlines()[0]


@pytest.mark.parametrize("verb", ["regions", "accelerator_types", "machine_types"])
def test_a_cloud_that_refuses_leaves_the_prices(catalogue: FakeCatalogue, prices: FakePrices, verb: str) -> None:
    catalogue.refuse[verb] = refusal(ErrorClass.PERMISSION, "may not list")
    market = gpus(machine(), catalogue, prices)
    assert (market.project, market.rows[0].places) == ("", None)
    assert market.notes == ("missing: zones and limits. may not list; none",)
    assert "from Google's price list" in shown(market)


# Names


def test_a_name_that_is_no_gpu_is_refused_with_the_nearest() -> None:
    with pytest.raises(Failure, match="did you mean nvidia-l4") as caught:
        gpus(machine(), None, None, names=["l4"])
    assert caught.value.exit_code == 2


def test_only_the_gpus_asked_for_are_shown() -> None:
    market = gpus(machine(), None, None, names=["nvidia-b200", "nvidia-l4", "nvidia-b200"])
    assert [row.gpu.name for row in market.rows] == ["nvidia-b200", "nvidia-l4"]


# Form


def test_the_table_fits_a_terminal_and_says_what_is_not_sold() -> None:
    text = shown(gpus(machine(), None, None))
    table = text.split("\n\n")[1].splitlines()
    assert max(map(len, table)) <= 90
    (b200,) = [line for line in table if "nvidia-b200" in line]
    assert b200.split()[-2] == "-"
    (rtx,) = [line for line in table if "nvidia-rtx-pro-6000" in line]
    assert rtx.split()[-1] == "?"
    assert "-: not sold that way; ?: price not known" in text
    assert "?:" not in shown(gpus(machine(), None, None, names=["nvidia-l4"]))


def test_ends_and_successors_are_said() -> None:
    text = shown(gpus(machine(), None, None, names=["nvidia-tesla-t4"]))
    assert "nvidia-tesla-t4 ends on 2027-08-01; Google names nvidia-l4" in text
    assert "shut down: nvidia-tesla-k80 (now nvidia-tesla-t4 or nvidia-l4)" in text


def test_json_tells_all_of_it(catalogue: FakeCatalogue, prices: FakePrices) -> None:
    found = told(gpus(machine(), catalogue, prices, names=["nvidia-tesla-t4", "nvidia-h100-80gb"]))
    assert date.fromisoformat(found["checked"])
    assert (found["project"], found["region"], found["gpus_all_regions_left"]) == ("my-dl", "us-central1", 4.0)
    assert [one["gpu"] for one in found["retired"]] == list(offers().retired)
    t4, h100 = found["gpus"]
    assert t4["quota"] == {
        "standard": "NVIDIA_T4_GPUS",
        "spot": "PREEMPTIBLE_NVIDIA_T4_GPUS",
        "gpu_family": None,
    }
    assert t4["end"] == {"ends": "2027-08-01", "successors": ["nvidia-l4", "nvidia-rtx-pro-6000"]}
    first = t4["machines"][0]
    assert (first["machine_type"], first["zones"]) == ("n1-standard-4", ["europe-west4-a", "europe-west4-b"])
    assert first["usd_per_hour"]["standard"]["estimate"] is True
    assert t4["regions"] == [
        {
            "region": "europe-west4",
            "zones": ["europe-west4-a", "europe-west4-b"],
            "left": {"standard": 4.0, "spot": 4.0},
        }
    ]
    assert h100["machines"][0]["sold"] == ["spot", "flex"]
    assert h100["machines"][0]["usd_per_hour"]["standard"] is None
    assert h100["driver"] == {"first": 525, "last": None, "open_modules": "optional"}
