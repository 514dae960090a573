"""gpus: which GPUs there are, what they cost, and, asked with credentials, where the project may have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from glgpu.console import Console
from glgpu.errors import ErrorClass, Failure
from glgpu.gpu_offers import Gpu, Rates, estimated, offers, shape_of
from glgpu.interfaces import Catalogue, Prices, Region
from glgpu.machines import dollars, known_gpu, region_of
from glgpu.settings import Machine

MOST_REGIONS = 5
"""Regions shown of each GPU where nobody said which count; more would bury the rest."""
ALL_REGIONS = "GPUS_ALL_REGIONS"


@dataclass(frozen=True)
class Price:
    """What a machine with its GPUs costs.

    Attributes:
        usd: US dollars per hour, without disk; None: not known.
        estimate: Whether it is the dated estimate and not today's list price.
    """

    usd: float | None
    estimate: bool

    def __str__(self) -> str:
        return "?" if self.usd is None else f"{'~' if self.estimate else ''}{dollars(self.usd)}"


@dataclass(frozen=True)
class Offer:
    """A number of GPUs in one VM.

    Attributes:
        count: GPUs.
        machine_type: The smallest machine type that has them.
        vcpus: Number of vCPUs.
        memory_gb: Memory in GiB.
        sold: ``standard`` (on demand), ``spot``, ``flex``.
        standard: Price on demand; None: not sold that way.
        spot: Price as spot; None: not sold that way.
        zones: Where the project's cloud has it; None: not asked.
    """

    count: int
    machine_type: str
    vcpus: int
    memory_gb: float
    sold: tuple[str, ...]
    standard: Price | None
    spot: Price | None
    zones: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Place:
    """A GPU in a region.

    Attributes:
        region: Where.
        zones: Zones that have it, with a machine type that takes it.
        standard_left: How many more the project may have on demand; None: Compute Engine's API does not tell.
        spot_left: The same for spot.
    """

    region: str
    zones: tuple[str, ...]
    standard_left: float | None
    spot_left: float | None

    @property
    def most_left(self) -> float:
        """The larger of the two limits; what is not told counts as nothing."""
        return max(self.standard_left or 0.0, self.spot_left or 0.0)


@dataclass(frozen=True)
class Row:
    """One GPU.

    Attributes:
        gpu: The model.
        offers: By number of GPUs, smallest first.
        places: By region, where there is most to be had first; None: the cloud was not asked.
    """

    gpu: Gpu
    offers: tuple[Offer, ...]
    places: tuple[Place, ...] | None = None


@dataclass(frozen=True)
class Market:
    """All that there is to say.

    Attributes:
        region: Where the prices are those of.
        rows: By GPU.
        project: Whose limits they are; empty: the cloud was not asked.
        all_regions_left: How many GPUs the project may have in all regions together; None: no such limit is told.
        narrowed: Whether somebody said which regions count.
        notes: What is missing, in lines.
    """

    region: str
    rows: tuple[Row, ...]
    project: str
    all_regions_left: float | None
    narrowed: bool
    notes: tuple[str, ...]


def gpus(
    machine: Machine,
    catalogue: Catalogue | None,
    prices: Prices | None,
    *,
    names: Sequence[str] = (),
    regions: Sequence[str] = (),
) -> Market:
    """Look up offers, zones, limits and prices.

    Args:
        machine: Its zones and regions say where to look, unless ``regions`` does.
        catalogue: The project's cloud; None where no project is set.
        prices: Google's price list; None with ``catalogue``.
        names: GPUs to look at; none: all.
        regions: Regions to look at.

    Raises:
        Failure: NOT_AVAILABLE, when a name is no GPU that can be had.
    """
    wanted = [known_gpu(name) for name in dict.fromkeys(names)] or list(offers().gpus.values())
    where = list(dict.fromkeys(regions or machine.regions or map(region_of, machine.zones)))
    region = where[0] if where else offers().region
    listed, cloud, notes = _ask(catalogue, prices, region, wanted)
    rows = [Row(gpu, tuple(_offers(gpu, listed, estimated(region)))) for gpu in wanted]
    if cloud is not None:
        rows = [_joined(row, cloud, where) for row in rows]
        unknown = [name for name in where if name not in cloud.regions]
        notes += [f"Google knows no region {name}" for name in unknown]
    return Market(
        region=region,
        rows=tuple(rows),
        project=catalogue.project if catalogue and cloud else "",
        all_regions_left=cloud.all_regions_left if cloud else None,
        narrowed=bool(where),
        notes=tuple(notes),
    )


def show(console: Console, market: Market) -> None:
    """Print it for people."""
    known = f"~ is an estimate of {offers().checked}"
    listed = any(price and not price.estimate for row in market.rows for one in row.offers for price in _prices(one))
    console.say(
        f"US dollars per hour in {market.region} for machine and GPUs, without disk; "
        + (f"from Google's price list, {known}" if listed else known)
    )
    console.say()
    lines = [line for row in market.rows for line in _offer_lines(row)]
    header = ["GPU", "memory", "GPUs", "machine type", "vCPUs", "RAM", "standard", "spot"]
    _table(console, header, lines, left={"GPU", "machine type"})
    _legend(console, lines, {"-": "not sold that way", "?": "price not known"})
    if market.project:
        left = market.all_regions_left
        together = "" if left is None else f"; {left:g} in all regions together ({ALL_REGIONS})"
        console.say()
        console.say(f"How many GPUs the project {market.project} may still have{together}")
        console.say()
        lines = [line for row in market.rows for line in _place_lines(row, market.narrowed)]
        _table(console, ["GPU", "region", "zones", "standard", "spot"], lines, left={"GPU", "region", "zones"})
        _legend(console, lines, {"?": "Compute Engine's API does not tell; the console does, IAM & Admin, Quotas"})
    console.say()
    for line in [*_ends(market), *market.notes]:
        console.say(line)


def show_json(console: Console, market: Market) -> None:
    """Print it for programs."""
    here = offers()
    found = {
        "checked": str(here.checked),
        "region": market.region,
        "project": market.project or None,
        "gpus_all_regions_left": market.all_regions_left,
        "gpus": [_row_json(row) for row in market.rows],
        "retired": [
            {"gpu": name, "ended": str(end.when), "successors": list(end.successors)}
            for name, end in here.retired.items()
        ],
        "missing": list(market.notes),
    }
    console.say(json.dumps(found, indent=2))


@dataclass(frozen=True)
class _Cloud:
    """What the cloud says.

    Attributes:
        regions: Every region with the project's limits.
        gpu_zones: Accelerator type -> zones.
        machine_zones: Machine type -> zones.
        all_regions_left: As of Market.
    """

    regions: Mapping[str, Region]
    gpu_zones: Mapping[str, set[str]]
    machine_zones: Mapping[str, set[str]]
    all_regions_left: float | None


def _ask(
    catalogue: Catalogue | None, prices: Prices | None, region: str, wanted: Sequence[Gpu]
) -> tuple[Rates | None, _Cloud | None, list[str]]:
    """Ask the cloud and the price list at the same time; what cannot be had is said in a line."""
    if catalogue is None or prices is None:
        missing = (
            "no Google Cloud project is set: GLGPU_PROJECT, or `project` in glgpu.yml, adds zones, limits and prices"
        )
        return None, None, [missing]
    notes: list[str] = []
    try:
        project = catalogue.cloud_project()  # by itself: without credentials, one answer is enough
    except Failure as failure:
        return None, None, [_missing("zones, limits and prices", failure)]
    names = {gpu.machine_for(count) for gpu in wanted for count in gpu.counts}
    with ThreadPoolExecutor(4) as pool:
        listing = pool.submit(_or_note, lambda: prices.rates(region), "today's prices", notes)
        regions, types = pool.submit(catalogue.regions), pool.submit(catalogue.accelerator_types)
        machines = pool.submit(catalogue.machine_types, names)
        rates = listing.result()
        try:
            quota = project.quotas.get(ALL_REGIONS)
            cloud = _Cloud(
                regions=regions.result(),
                gpu_zones=_by_name((one.name, one.zone) for one in types.result()),
                machine_zones=_by_name((one.name, one.zone) for one in machines.result()),
                all_regions_left=quota.left if quota else None,
            )
        except Failure as failure:
            return rates, None, [*notes, _missing("zones and limits", failure)]
    return rates, cloud, notes


def _or_note(ask: Callable[[], Rates], what: str, notes: list[str]) -> Rates | None:
    try:
        return ask()
    except Failure as failure:
        notes.append(_missing(what, failure))
        return None


def _missing(what: str, failure: Failure) -> str:
    if failure.klass is ErrorClass.INTERRUPTED:
        raise failure
    return f"missing: {what}. {failure.cause}; {failure.remedy}"


def _by_name(pairs: Iterator[tuple[str, str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, zone in pairs:
        found.setdefault(name, set()).add(zone)
    return found


def _offers(gpu: Gpu, listed: Rates | None, guessed: Rates | None) -> Iterator[Offer]:
    for count in gpu.counts:
        machine_type = gpu.machine_for(count)
        shape, sold = shape_of(machine_type), gpu.sold_with(machine_type)
        assert shape is not None  # the offers know the machine types that they name

        def price(spot: bool, count: int = count, machine_type: str = machine_type) -> Price:
            for rates, estimate in ((listed, False), (guessed, True)):
                usd = rates.machine(gpu.name, count, machine_type, spot=spot) if rates else None
                if usd is not None:
                    return Price(usd, estimate)
            return Price(None, estimate=True)

        yield Offer(
            count=count,
            machine_type=machine_type,
            vcpus=shape.vcpus,
            memory_gb=shape.memory_gb,
            sold=tuple(way for way in ("standard", "spot", "flex") if way in sold),
            standard=price(False) if "standard" in sold else None,
            spot=price(True) if "spot" in sold else None,
        )


def _joined(row: Row, cloud: _Cloud, where: Collection[str]) -> Row:
    """Add what the cloud says."""
    gpu = row.gpu
    zones = {zone for zone in cloud.gpu_zones.get(gpu.name, set()) if not where or region_of(zone) in where}
    told = [
        replace(one, zones=tuple(sorted(zones & cloud.machine_zones.get(one.machine_type, set()))))
        for one in row.offers
    ]
    places = []
    for region in sorted({region_of(zone) for one in told for zone in one.zones or ()}):
        quotas = cloud.regions[region].quotas if region in cloud.regions else {}
        standard, spot = quotas.get(gpu.quota), quotas.get(gpu.spot_quota)
        places.append(
            Place(
                region=region,
                zones=tuple(sorted({z for one in told for z in one.zones or () if region_of(z) == region})),
                standard_left=standard.left if standard and "standard" in gpu.sold else None,
                spot_left=spot.left if spot else None,
            )
        )
    if not where:
        places.sort(key=lambda place: (-place.most_left, place.region))
    return replace(row, offers=tuple(told), places=tuple(places))


def _prices(offer: Offer) -> tuple[Price | None, Price | None]:
    return offer.standard, offer.spot


def _offer_lines(row: Row) -> Iterator[list[str]]:
    head = [row.gpu.name, f"{row.gpu.memory_gb} GB"]
    for one in row.offers:
        standard, spot = ("-" if price is None else str(price) for price in _prices(one))
        yield [*head, str(one.count), one.machine_type, str(one.vcpus), f"{one.memory_gb:g} GB", standard, spot]
        head = ["", ""]


def _place_lines(row: Row, narrowed: bool) -> Iterator[list[str]]:
    places = row.places or ()
    if not places:
        yield [row.gpu.name, "none of them" if narrowed else "nowhere", "", "", ""]
    shown = places if narrowed else places[:MOST_REGIONS]
    head = row.gpu.name
    for place in shown:
        letters = " ".join(zone.rpartition("-")[2] for zone in place.zones)
        standard = "-" if "standard" not in row.gpu.sold else _left(place.standard_left)
        yield [head, place.region, letters, standard, _left(place.spot_left)]
        head = ""
    if len(places) > len(shown):
        yield ["", f"and {len(places) - len(shown)} more (--region)", "", "", ""]


def _left(left: float | None) -> str:
    return "?" if left is None else f"{left:g}"


def _ends(market: Market) -> Iterator[str]:
    for row in market.rows:
        end = row.gpu.end
        if end is not None:
            yield f"{row.gpu.name} ends on {end.when}; Google names {' or '.join(end.successors)} instead"
    gone = [f"{name} (now {' or '.join(end.successors)})" for name, end in offers().retired.items()]
    yield f"shut down: {', '.join(gone)}"


def _row_json(row: Row) -> dict[str, Any]:
    gpu = row.gpu
    end = {"ends": str(gpu.end.when), "successors": list(gpu.end.successors)} if gpu.end else None
    return {
        "gpu": gpu.name,
        "title": gpu.title,
        "memory_gb": gpu.memory_gb,
        "attached": gpu.attached,
        "driver": asdict(gpu.driver),
        "quota": {"standard": gpu.quota, "spot": gpu.spot_quota, "gpu_family": gpu.quota_family or None},
        "end": end,
        "machines": [
            {
                "gpus": one.count,
                "machine_type": one.machine_type,
                "vcpus": one.vcpus,
                "memory_gb": one.memory_gb,
                "sold": list(one.sold),
                "usd_per_hour": {
                    name: None if price is None else {"usd": price.usd, "estimate": price.estimate}
                    for name, price in (("standard", one.standard), ("spot", one.spot))
                },
                "zones": None if one.zones is None else list(one.zones),
            }
            for one in row.offers
        ],
        "regions": None
        if row.places is None
        else [
            {
                "region": place.region,
                "zones": list(place.zones),
                "left": {"standard": place.standard_left, "spot": place.spot_left},
            }
            for place in row.places
        ],
    }


def _table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[str]) -> None:
    """Print a table whose columns stand to the right but for those of words."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def aligned(row: Sequence[str]) -> list[str]:
        cells = zip(row, header, widths, strict=True)
        return [cell if name in left else cell.rjust(width) for cell, name, width in cells]

    console.table(aligned(header), [aligned(row) for row in rows])


def _legend(console: Console, lines: Sequence[Sequence[str]], meanings: Mapping[str, str]) -> None:
    """Say what the marks mean that are in use."""
    used = {cell for line in lines for cell in line}
    said = [f"{mark}: {meaning}" for mark, meaning in meanings.items() if mark in used]
    if said:
        console.say("; ".join(said))
