"""A few entries of Compute Engine's price list, as the Cloud Billing Catalog API gives them.

Descriptions, units and the prices in the Americas are those that public copies of the list from 2025 and 2026 show;
prices elsewhere are in the usual proportion. As in Google's list, entries that are no plain price (commitments, other
kinds of capacity) stand between those that are.
"""

from __future__ import annotations

import hashlib

from glgpu.rehearsal.compute_resources import Resource

COMPUTE_ENGINE = "services/6F81-5844-456A"
DATED = "2026-11-01T07:00:00Z"

PLACES = {
    "Americas": (("us-central1", "us-east1", "us-west1"), 1.0),
    "Belgium": (("europe-west1",), 1.1),
    "Netherlands": (("europe-west4",), 1.1),
    "Taiwan": (("asia-east1",), 1.16),
}
"""What a description says of a place, the regions that it stands for, and how much dearer it is."""

PARTS: tuple[tuple[str, str, str, float, float], ...] = (
    ("N1 Predefined Instance Core", "CPU", "h", 0.031611, 0.006986),
    ("N1 Predefined Instance Ram", "RAM", "GiBy.h", 0.004237, 0.000936),
    ("G2 Instance Core", "CPU", "h", 0.024988, 0.009995),
    ("G2 Instance Ram", "RAM", "GiBy.h", 0.002927, 0.001171),
    ("A2 Instance Core", "CPU", "h", 0.031611, 0.012644),
    ("A2 Instance Ram", "RAM", "GiBy.h", 0.004237, 0.001695),
    ("E2 Instance Core", "CPU", "h", 0.021811, 0.008724),
    ("E2 Instance Ram", "RAM", "GiBy.h", 0.002923, 0.001169),
    ("Nvidia Tesla T4 GPU", "GPU", "h", 0.35, 0.14),
    ("Nvidia Tesla P4 GPU", "GPU", "h", 0.6, 0.2236),
    ("Nvidia Tesla V100 GPU", "GPU", "h", 2.48, 1.0885),
    ("Nvidia L4 GPU", "GPU", "h", 0.56004, 0.22401),
    ("Nvidia Tesla A100 GPU", "GPU", "h", 2.933908, 1.173563),
)
"""Description, group, unit, price of a standard VM, price of a Spot VM."""

DISKS = (("Storage PD Capacity", 0.04), ("Balanced PD Capacity", 0.1), ("SSD backed PD Capacity", 0.17))
"""Description and price for a GiB and month."""


def skus() -> list[Resource]:
    """All entries, always in the same order."""
    found: list[Resource] = []
    for place, (regions, factor) in PLACES.items():
        for name, group, unit, standard, spot in PARTS:
            gpu = group == "GPU"
            spot_name = f"{name} attached to Spot Preemptible VMs" if gpu else f"Spot Preemptible {name}"
            found += [
                _sku(f"{name} running in {place}", group, "OnDemand", regions, unit, standard * factor),
                _sku(f"{spot_name} running in {place}", group, "Preemptible", regions, unit, spot * factor),
                _sku(
                    f"Commitment v1: {name} running in {place} for 1 Year",
                    group,
                    "Commit1Yr",
                    regions,
                    unit,
                    standard * factor * 0.63,
                ),
            ]
        for name, price in DISKS:
            where = name if place == "Americas" else f"{name} in {place}"
            found.append(_sku(where, "SSD", "OnDemand", regions, "GiBy.mo", price * factor, family="Storage"))
    return found


def _sku(
    description: str,
    group: str,
    usage: str,
    regions: tuple[str, ...],
    unit: str,
    dollars: float,
    *,
    family: str = "Compute",
) -> Resource:
    digest = hashlib.sha256(description.encode()).hexdigest().upper()
    sku_id = "-".join((digest[:4], digest[4:8], digest[8:12]))
    nanos = round(dollars * 1e9)
    price = {"currencyCode": "USD", "units": str(nanos // 10**9), "nanos": nanos % 10**9}
    return {
        "name": f"{COMPUTE_ENGINE}/skus/{sku_id}",
        "skuId": sku_id,
        "description": description,
        "category": {
            "serviceDisplayName": "Compute Engine",
            "resourceFamily": family,
            "resourceGroup": group,
            "usageType": usage,
        },
        "serviceRegions": list(regions),
        "pricingInfo": [
            {
                "effectiveTime": DATED,
                "currencyConversionRate": 1,
                "pricingExpression": {
                    "usageUnit": unit,
                    "displayQuantity": 1,
                    "tieredRates": [{"startUsageAmount": 0, "unitPrice": price}],
                },
            }
        ],
        "serviceProviderName": "Google",
    }
