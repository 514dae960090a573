"""Google's price list: the fake and the real client alike, and what the client makes of entries of every kind."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from fakes import FakePrices
from glgpu.clients.billing_catalogue import BillingCatalogue
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Prices
from glgpu.job import Job, read_job
from glgpu.rehearsal.faults import Rule
from lab import Lab, lab


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


def job_in(world: Lab, folder: Path, **variables: str) -> Job:
    return read_job(world.variables(CI_PROJECT_DIR=str(folder), **variables), folder, 0.0)


@pytest.fixture(params=["fake", "real"])
def prices(request: pytest.FixtureRequest, tmp_path: Path) -> Prices:
    if request.param == "fake":
        return FakePrices()
    return BillingCatalogue(job_in(request.getfixturevalue("world"), tmp_path))


# The fake and the real client


def test_a_whole_machine_has_a_price(prices: Prices) -> None:
    rates = prices.rates("us-central1")
    standard = rates.machine("nvidia-l4", 1, "g2-standard-4", spot=False)
    spot = rates.machine("nvidia-l4", 1, "g2-standard-4", spot=True)
    assert standard is not None
    assert spot is not None
    assert 0.1 < spot < standard < 2
    assert rates.disk["pd-balanced"] * 730 == pytest.approx(0.1)


def test_what_is_not_in_the_list_has_no_price(prices: Prices) -> None:
    assert prices.rates("us-central1").machine("nvidia-h200-141gb", 8, "a3-ultragpu-8g", spot=True) is None


# The real client against the stand-in


def test_the_parts_are_what_the_list_says(world: Lab, tmp_path: Path) -> None:
    prices = BillingCatalogue(job_in(world, tmp_path))
    here, there = prices.rates("us-central1"), prices.rates("europe-west4")
    assert here.machine("nvidia-tesla-t4", 1, "n1-standard-4", spot=False) == pytest.approx(
        0.35 + 4 * 0.031611 + 15 * 0.004237
    )
    assert there.gpu["nvidia-l4", False] == pytest.approx(here.gpu["nvidia-l4", False] * 1.1)
    assert there.disk["pd-balanced"] == pytest.approx(here.disk["pd-balanced"] * 1.1)
    nowhere = prices.rates("mars-north1")
    assert (nowhere.gpu, nowhere.disk) == ({}, {})
    assert nowhere.machine("nvidia-l4", 1, "g2-standard-4", spot=False) is None


@pytest.mark.parametrize(("action", "code"), [("api-disabled", 15), ("permission-denied", 15), ("reset", 18)])
def test_a_list_that_is_refused_is_told_in_our_words(world: Lab, tmp_path: Path, action: str, code: int) -> None:
    world.world.faults.rules.append(Rule("cloudbilling.services.skus.list", action))
    try:
        with pytest.raises(Failure) as caught:
            BillingCatalogue(job_in(world, tmp_path)).rates("us-central1")
    finally:
        world.world.faults.lift("cloudbilling.services.skus.list")
    assert caught.value.exit_code == code


def test_a_wrong_token_is_15(world: Lab, tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        BillingCatalogue(job_in(world, tmp_path, GOOGLE_OAUTH_ACCESS_TOKEN="ya29.wrong")).rates("us-central1")
    assert caught.value.klass is ErrorClass.AUTH


# Entries of every kind


class PriceList:
    """A server that gives pages of a price list.

    Attributes:
        pages: What it gives, by token; the first one's is empty.
        asked: The queries.
    """

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[dict[str, list[str]]] = []


@pytest.fixture
def listing(tmp_path: Path) -> Iterator[tuple[PriceList, BillingCatalogue]]:
    book = PriceList()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            split = urlsplit(self.path)
            query = parse_qs(split.query)
            book.asked.append(query)
            assert split.path == "/v1/services/6F81-5844-456A/skus"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(book.pages[query.get("pageToken", [""])[0]])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        variables = {"GLGPU_GOOGLE_ENDPOINT": endpoint, "GOOGLE_OAUTH_ACCESS_TOKEN": "ya29.token"}
        yield book, BillingCatalogue(read_job(variables, tmp_path, 0.0))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sku(description: str, usd: float, usage: str = "OnDemand", unit: str = "h", **changes: Any) -> dict[str, Any]:
    price = {"currencyCode": "USD", "units": str(int(usd)), "nanos": round(usd % 1 * 1e9)}
    entry = {
        "description": description,
        "category": {"resourceFamily": "Compute", "usageType": usage},
        "serviceRegions": ["us-central1"],
        "pricingInfo": [{"pricingExpression": {"usageUnit": unit, "tieredRates": [{"unitPrice": price}]}}],
    }
    return entry | changes


def page(*skus: dict[str, Any], then: str = "") -> bytes:
    return json.dumps({"skus": list(skus), "nextPageToken": then}).encode()


def test_only_plain_prices_count(listing: tuple[PriceList, BillingCatalogue]) -> None:
    book, prices = listing
    book.pages[""] = page(
        sku("Nvidia L4 GPU running in Americas", 0.56),
        sku("Nvidia L4 GPU attached to Spot Preemptible VMs running in Americas", 0.22, "Preemptible"),
        sku("Nvidia L4 GPU running in Americas", 9, "Preemptible"),
        sku("Nvidia L4 GPU running in Americas", 9, "Commit1Yr"),
        sku("Nvidia L40 GPU running in Americas", 9),
        sku("Nvidia L4 Virtual Workstation GPU running in Americas", 9),
        sku("Commitment v1: Nvidia L4 GPU running in Americas for 1 Year", 9, "Commit1Yr"),
        sku("DWS Calendar Mode Nvidia L4 GPU running in Americas", 9),
        sku("Reserved Nvidia L4 GPU running in Americas", 9),
        sku("Nvidia Tesla A100 80GB GPU running in Americas", 3.9),
        sku("Nvidia Tesla A100 GPU running in Americas", 2.9),
        sku("Nvidia Tesla T4 GPU running in Tokyo", 9, serviceRegions=["asia-northeast1"]),
        sku("Nvidia Tesla V100 GPU running in Americas", 9, unit="mo"),
        sku("Nvidia Tesla P4 GPU running in Americas", 9, pricingInfo=[]),
        sku("A4 Nvidia B200 (1 gpu slice) running in Americas", 11),
        sku("Spot Preemptible A4 Nvidia B200 (1 gpu slice) running in Americas", 4, "Preemptible"),
        sku("E2 Instance Core running in Americas", 9),
        sku("N1 Predefined Instance Core running in Americas", 0.03),
        sku("Spot Preemptible N1 Predefined Instance Ram running in Americas", 0.001, "Preemptible", "GiBy.h"),
        sku("A3Plus Instance Core running in Americas", 0.029),
        sku("A3 Instance Core running in Americas", 0.028),
        sku("Balanced PD Capacity", 0.1, unit="GiBy.mo"),
        sku("SSD backed PD Capacity in Belgium", 0.187, unit="GiBy.mo"),
        sku("Regional Balanced PD Capacity in Belgium", 9, unit="GiBy.mo"),
        {"description": 7, "serviceRegions": ["us-central1"]},
    )
    rates = prices.rates("us-central1")
    assert rates.gpu == {
        ("nvidia-l4", False): 0.56,
        ("nvidia-l4", True): 0.22,
        ("nvidia-a100-80gb", False): 3.9,
        ("nvidia-tesla-a100", False): 2.9,
        ("nvidia-b200", False): 11.0,
        ("nvidia-b200", True): 4.0,
    }
    # What is sold by the GPU alone has cores and memory for nothing.
    assert rates.core == {
        ("a4", False): 0.0, ("a4", True): 0.0, ("n1", False): 0.03, ("a3-megagpu", False): 0.029, ("a3", False): 0.028,
    }  # fmt: skip
    assert rates.ram == {("a4", False): 0.0, ("a4", True): 0.0, ("n1", True): 0.001}
    assert rates.machine("nvidia-b200", 8, "a4-highgpu-8g", spot=True) == 32.0
    assert {name: round(price * 730, 6) for name, price in rates.disk.items()} == {"pd-balanced": 0.1, "pd-ssd": 0.187}


def test_of_two_entries_with_one_name_the_dearer_counts(listing: tuple[PriceList, BillingCatalogue]) -> None:
    book, prices = listing
    both = [sku("Nvidia L4 GPU running in Americas", 0.56), sku("Nvidia L4 GPU running in Iowa", 0.6)]
    for order in (both, both[::-1]):
        book.pages[""] = page(*order)
        assert prices.rates("us-central1").gpu == {("nvidia-l4", False): 0.6}


def test_the_list_is_read_page_by_page(listing: tuple[PriceList, BillingCatalogue]) -> None:
    book, prices = listing
    book.pages[""] = page(sku("Nvidia L4 GPU running in Americas", 0.56), then="a/b=")
    book.pages["a/b="] = page(sku("Nvidia Tesla T4 GPU running in Americas", 0.35))
    assert set(prices.rates("us-central1").gpu) == {("nvidia-l4", False), ("nvidia-tesla-t4", False)}
    assert [query.get("pageToken") for query in book.asked] == [None, ["a/b="]]
    assert all(query["currencyCode"] == ["USD"] and query["pageSize"] == ["5000"] for query in book.asked)


def test_a_list_without_end_is_given_up(listing: tuple[PriceList, BillingCatalogue]) -> None:
    book, prices = listing
    book.pages = {"": page(then="again"), "again": page(then="again")}
    with pytest.raises(Failure, match="does not end") as caught:
        prices.rates("us-central1")
    assert caught.value.exit_code == 18


@pytest.mark.parametrize("answer", [b"<html>sorry</html>", b"[]"])
def test_an_answer_that_is_no_list_is_18(listing: tuple[PriceList, BillingCatalogue], answer: bytes) -> None:
    book, prices = listing
    book.pages[""] = answer
    with pytest.raises(Failure, match="no JSON object") as caught:
        prices.rates("us-central1")
    assert caught.value.exit_code == 18
