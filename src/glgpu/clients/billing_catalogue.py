"""Google's price list, the Cloud Billing Catalog API (https://cloud.google.com/billing/v1/how-tos/catalog-api).

It knows no machine types: only what a vCPU, a GiB, a GPU and a GB of disk cost, told apart by their descriptions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from glgpu.clients.google_calls import CALL_SECONDS, GoogleCalls
from glgpu.errors import ErrorClass, Failure
from glgpu.gpu_offers import HOURS_IN_MONTH, Rates, offers
from glgpu.job import Job

COMPUTE_ENGINE = "services/6F81-5844-456A"
"""Compute Engine's number in the catalogue."""
PAGE_SIZE = 5000
MOST_PAGES = 40
"""The list has some tens of thousands of entries; one without end is not worth waiting for."""
DOING = "reading Google's price list"

Key = TypeVar("Key")

_COMPUTE = re.compile(
    r"(?P<spot>Spot Preemptible )?(?P<what>.+?)(?P<attached> attached to Spot Preemptible VMs)? running in .+"
)
_DISK = re.compile(r"(?P<what>.+? Capacity)( in .+)?")


class BillingCatalogue:
    """The price list.

    Args:
        job: Credentials and endpoint.
    """

    def __init__(self, job: Job) -> None:
        self._host = job.google_endpoint or "https://cloudbilling.googleapis.com"
        self._google = GoogleCalls(job)

    def rates(self, region: str) -> Rates:
        """What the parts of a VM cost in a region today, without discounts of one's own."""
        here = offers()
        families = {f"{one.sku} Instance": name for name, one in here.families.items() if one.sku}
        cores = {f"{sku} Core": name for sku, name in families.items()}
        rams = {f"{sku} Ram": name for sku, name in families.items()}
        gpus = {one.sku: name for name, one in here.gpus.items()}
        disks = {sku: name for name, sku in here.disk_skus.items()}
        included = {(name, spot): 0.0 for name, one in here.families.items() if not one.sku for spot in (True, False)}
        core, ram, gpu = dict(included), dict(included), dict[tuple[str, bool], float]()
        per_disk: dict[str, float] = {}
        for sku in self._skus():
            if region not in sku.get("serviceRegions", []):
                continue
            usage, price = sku.get("category", {}).get("usageType"), _price(sku)
            if usage not in ("OnDemand", "Preemptible") or price is None:
                continue
            description = str(sku.get("description", ""))
            disk, part = _DISK.fullmatch(description), _COMPUTE.fullmatch(description)
            if disk and disk["what"] in disks and usage == "OnDemand":
                _put(per_disk, disks[disk["what"]], price / HOURS_IN_MONTH)
            elif part:
                spot = usage == "Preemptible"
                for known, into in ((cores, core), (rams, ram), (gpus, gpu)):
                    if part["what"] in known and spot == bool(part["spot"] or part["attached"]):
                        _put(into, (known[part["what"]], spot), price)
        return Rates(core=core, ram=ram, gpu=gpu, disk=per_disk)

    def _skus(self) -> Iterator[dict[str, Any]]:
        """Every entry of Compute Engine's price list."""
        from google.auth.transport.requests import AuthorizedSession

        token = ""
        with AuthorizedSession(self._google.call(DOING, lambda: self._google.credentials)) as session:
            for _ in range(MOST_PAGES):
                page = self._google.call(DOING, partial(self._page, session, token))
                yield from page.get("skus", [])
                token = page.get("nextPageToken", "")
                if not token:
                    return
        raise Failure(ErrorClass.TRANSIENT, f"{DOING}: it does not end", "try again later")

    def _page(self, session: Any, token: str) -> dict[str, Any]:
        from google.api_core.exceptions import from_http_response

        query = {"currencyCode": "USD", "pageSize": PAGE_SIZE, **({"pageToken": token} if token else {})}
        response = session.get(f"{self._host}/v1/{COMPUTE_ENGINE}/skus", params=query, timeout=CALL_SECONDS)
        if response.status_code != 200:
            raise from_http_response(response)
        try:
            page = response.json()
        except ValueError:
            page = None
        if not isinstance(page, dict):
            raise Failure(ErrorClass.TRANSIENT, f"{DOING}: the answer is no JSON object", "try again later")
        return page


def _put(prices: dict[Key, float], key: Key, price: float) -> None:
    """Keep a price; where several entries have the same name, the dearest is the careful one."""
    prices[key] = max(price, prices.get(key, 0.0))


def _price(sku: Mapping[str, Any]) -> float | None:
    """The price in dollars by the entry's own unit, beyond what is free; None where the entry has another form."""
    try:
        expression = sku["pricingInfo"][-1]["pricingExpression"]
        money = expression["tieredRates"][-1]["unitPrice"]
        if expression["usageUnit"] not in ("h", "GiBy.h", "GiBy.mo"):
            return None
        return int(money.get("units", 0)) + int(money.get("nanos", 0)) / 1e9
    except (KeyError, IndexError, TypeError, ValueError):
        return None
