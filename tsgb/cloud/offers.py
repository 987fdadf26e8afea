"""Chooses an offer and its bid: ranks the offers that fit by expected dollars per useful hour.

Every filter is checked here, because a search does not always apply them. The module knows no
service and no history: a function that returns the hazard is an argument.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from tsgb.cloud.preemption import Workload, stretch
from tsgb.cloud.pricing import HOURS_PER_MONTH, Rates
from tsgb.cloud.provider import Offer


class OfferRule(StrEnum):
    """Rule that an offer may fail."""

    RENTABLE = "not rentable"
    EXCLUDED = "excluded for now"
    VERIFIED = "not verified"
    GPU = "no speed known for its GPU"
    NUM_GPUS = "number of GPUs"
    GPU_RAM = "GPU memory, MB"
    CPU_RAM = "memory, MB"
    DISK = "disk, GB"
    CUDA = "CUDA version"
    COMPUTE = "compute capability"
    UP = "upload, Mb/s"
    DOWN = "download, Mb/s"
    RELIABILITY = "reliability"
    DURATION = "contract, h"
    REGION = "region"
    NAME = "another GPU"
    PRICE = "price"
    CAP = "over the cap"
    HAZARD = "taken away before it saves"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Requirements on a machine; 0 asks for nothing.

    Example: `Needs(cap=0.25, gpu_ram=16_000, disk_space=40.0)`
    """

    cap: float
    """Highest price with storage, $/h."""
    num_gpus: int = 1
    """Exact number of GPUs."""
    gpu_ram: float = 0.0
    """Memory of one GPU, MB."""
    cpu_ram: float = 0.0
    """Main memory, MB."""
    disk_space: float = 0.0
    """Storage, GB."""
    cuda_max_good: float = 0.0
    """CUDA version that the driver must carry."""
    compute_cap: int = 0
    """CUDA compute capability times 100."""
    inet_up: float = 0.0
    """Upload bandwidth, Mb/s."""
    inet_down: float = 0.0
    """Download bandwidth, Mb/s."""
    reliability: float = 0.9
    """The service's own measure of a host, from 0 to 1."""
    duration: float = 4 * 3600.0
    """Seconds until the contract's limit."""
    verified: bool = True
    """Whether only verified machines fit."""
    regions: Collection[str] = ()
    """Countries by their codes of two letters; any if empty."""
    gpu_names: Collection[str] = ()
    """Names of GPUs as the service writes them; any if empty."""
    speeds: Mapping[str, float] = field(default_factory=dict[str, float])
    """Useful work per hour by GPU name, relative to the workload's; all GPUs are alike if empty."""
    machines_out: Collection[int] = frozenset()
    """Machines that are excluded for now."""
    hosts_out: Collection[int] = frozenset()
    """Owners whose machines are excluded for now."""
    asks_out: Collection[int] = frozenset()
    """Offers that are excluded for now."""

    def speed(self, gpu_name: str) -> float:
        """Return the relative speed of a GPU; 0 if it is not known."""
        return self.speeds.get(gpu_name, 0.0) if self.speeds else 1.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A rule that an offer fails, and by how much."""

    rule: OfferRule
    """The rule."""
    detail: str = ""
    """Numbers, for people."""
    needed: str = ""
    """What the rule asks for, for people."""


@dataclass(frozen=True, slots=True)
class Appraisal:
    """An offer that fits, and what it is expected to cost.

    Example: `Appraisal(offer, price=0.215, hourly=0.22, hazard=0.3, dollars_per_useful_hour=0.25)`
    """

    offer: Offer
    """The offer."""
    price: float
    """Bid, or price on demand, $/h."""
    hourly: float
    """Price with storage, $/h."""
    hazard: float
    """Preemptions per hour."""
    dollars_per_useful_hour: float
    """Expected dollars for an hour of useful work."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The offers that fit, ranked, and why the rest does not."""

    ranked: tuple[Appraisal, ...]
    """Offers that fit, best first."""
    rejected: tuple[tuple[Offer, tuple[Failure, ...]], ...]
    """Other offers with the rules that they fail: fewest failures first, then the cheapest."""
    cap: float
    """Highest price with storage, $/h."""

    @property
    def removed(self) -> dict[OfferRule, int]:
        """How many offers each rule removes, most first; an offer may fail several."""
        counts = Counter(failure.rule for _, found in self.rejected for failure in found)
        return dict(sorted(counts.items(), key=_by_count))

    @property
    def reasons(self) -> str:
        """The rules and how many offers each removes, for people."""
        return ", ".join(f"{num} {rule}" for rule, num in self.removed.items())

    @property
    def best(self) -> Appraisal | None:
        """The best offer; None if none fits."""
        return self.ranked[0] if self.ranked else None

    def __str__(self) -> str:
        if self.best is not None:
            best = self.best
            return (
                f"{_name(best.offer)} at ${best.hourly:.3f}/h, expected "
                f"${best.dollars_per_useful_hour:.3f} per useful hour; {len(self.ranked)} fit"
            )
        if not self.rejected:
            return "no offers at all: ask for less, or look again later"
        nearest, failures = self.rejected[0]
        only_cap = {failure.rule for failure in failures} == {OfferRule.CAP}
        reasons = self.reasons
        why = "; ".join(failure.detail or failure.rule for failure in failures)
        head = f"no offer under the cap of ${self.cap:.3f}/h" if only_cap else "no offer fits"
        return f"{head}: nearest is {_name(nearest)}: {why} ({len(self.rejected)} seen: {reasons})"


@dataclass(frozen=True, slots=True)
class OfferCount:
    """How many offers of a search fit, and which rule removes how many.

    Example: `OfferCount.of(choice, limit=64)`
    """

    seen: int
    """Number of offers that were compared."""
    fitting: int
    """Number of offers that fit."""
    removed: Mapping[OfferRule, int]
    """Offers that each rule removes, most first; one offer may fail several."""
    needed: Mapping[OfferRule, str]
    """What a rule asks for, for people, where that is a number."""
    is_cut: bool
    """Whether the service may have more offers than it has told."""

    @classmethod
    def of(cls, choice: Choice, limit: int) -> Self:
        """Count the offers of a choice.

        Args:
            choice: All offers of the search.
            limit: Most offers that the search could give.
        """
        failures = [one for _, found in choice.rejected for one in found]
        seen = len(choice.ranked) + len(choice.rejected)
        needed = {one.rule: one.needed for one in failures if one.needed}
        return cls(seen, len(choice.ranked), choice.removed, needed, seen >= limit)

    def document(self) -> dict[str, Any]:
        """Return the fields of a JSON document that say so."""
        return {
            "offers_seen": self.seen,
            "offers_fitting": self.fitting,
            "offers_cut": self.is_cut,
            "offers_removed": dict(self.removed),
        }

    def __str__(self) -> str:
        seen = f"of the {self.seen} cheapest" if self.is_cut else f"of {self.seen}"
        rules = [
            f"{rule.partition(',')[0]} {self.needed.get(rule, '')}".rstrip() + f": {num}"
            for rule, num in self.removed.items()
        ]
        removed = f"; removed by {', '.join(rules)} (one may fail several)" if rules else ""
        return f"{seen} offers of one GPU, {self.fitting} fit{removed}"


def choose(
    offers: Iterable[Offer],
    needs: Needs,
    work: Workload,
    hazard_of: Callable[[Offer], float],
) -> Choice:
    """Rank all offers; their order does not matter.

    Args:
        offers: Interruptible offers and offers on demand.
        needs: Requirements on a machine.
        work: The workload.
        hazard_of: Returns preemptions per hour of an offer's class; near 0 on demand.
    """
    ranked: list[Appraisal] = []
    rejected: list[tuple[Offer, tuple[Failure, ...]]] = []
    for offer in offers:
        failures = list(_failures(offer, needs))
        price, failure = _price(offer, needs, work)
        if failure is not None:
            failures.append(failure)
        if not failures:
            found = appraise(offer, price, needs, work, hazard_of(offer))
            if math.isfinite(found.dollars_per_useful_hour):
                ranked.append(found)
                continue
            failures.append(Failure(OfferRule.HAZARD))
        rejected.append((offer, tuple(failures)))
    return Choice(
        tuple(sorted(ranked, key=_by_value)), tuple(sorted(rejected, key=_by_nearness)), needs.cap
    )


def appraise(offer: Offer, price: float, needs: Needs, work: Workload, hazard: float) -> Appraisal:
    """Return what an offer is expected to cost for each useful hour of the workload.

    The first start is spread over the work that is left; reliability is the share of attempts that
    come to anything.
    """
    work, hours = work.on(offer.inet_down), work.work_hours / needs.speed(offer.gpu_name)
    hourly = price + _storage(offer, work)
    interval = work.interval_hours(hazard, hours)
    wall = hours * stretch(hazard, interval, work)
    if not math.isfinite(wall):
        return Appraisal(offer, price, hourly, hazard, math.inf)
    traffic = (1 + hazard * wall) * work.restore_gb * offer.inet_down_cost
    traffic += hours / interval * work.save_gb * offer.inet_up_cost
    held = hourly * (wall + work.boot_seconds / 3600) / offer.reliability
    return Appraisal(offer, price, hourly, hazard, (held + traffic) / work.work_hours)


def _failures(offer: Offer, needs: Needs) -> Iterator[Failure]:
    out = (
        offer.id in needs.asks_out
        or offer.machine_id in needs.machines_out
        or offer.host_id in needs.hosts_out
    )
    flags = {
        OfferRule.RENTABLE: not offer.rentable,
        OfferRule.EXCLUDED: out,
        OfferRule.VERIFIED: needs.verified and not offer.verified,
        OfferRule.NAME: bool(needs.gpu_names) and offer.gpu_name not in needs.gpu_names,
        OfferRule.REGION: bool(needs.regions) and offer.region not in needs.regions,
        OfferRule.GPU: not needs.speed(offer.gpu_name) > 0,
    }
    yield from (Failure(rule) for rule, failed in flags.items() if failed)
    if offer.num_gpus != needs.num_gpus:
        yield _short(OfferRule.NUM_GPUS, offer.num_gpus, needs.num_gpus)
    least = {
        OfferRule.GPU_RAM: (offer.gpu_ram, needs.gpu_ram),
        OfferRule.CPU_RAM: (offer.cpu_ram, needs.cpu_ram),
        OfferRule.DISK: (offer.disk_space, needs.disk_space),
        OfferRule.CUDA: (offer.cuda_max_good, needs.cuda_max_good),
        OfferRule.COMPUTE: (offer.compute_cap, needs.compute_cap),
        OfferRule.UP: (offer.inet_up, needs.inet_up),
        OfferRule.DOWN: (offer.inet_down, needs.inet_down),
        OfferRule.RELIABILITY: (offer.reliability, max(needs.reliability, 0.01)),
        OfferRule.DURATION: (offer.duration / 3600, needs.duration / 3600),
    }
    # `not >=` rather than `<`: a number that is missing as NaN fails.
    yield from (_short(rule, has, need) for rule, (has, need) in least.items() if not has >= need)


def _short(rule: OfferRule, has: float, needs: float) -> Failure:
    return Failure(rule, f"{rule} {has:g}, needs {needs:g}", f"{needs:g}")


def _price(offer: Offer, needs: Needs, work: Workload) -> tuple[float, Failure | None]:
    """Return the price without storage, or the rule that forbids one."""
    storage = _storage(offer, work)
    floor = offer.min_bid if offer.is_bid else offer.dph_base
    if not (floor > 0 and math.isfinite(floor + storage)):
        return 0.0, Failure(OfferRule.PRICE, f"a price of ${floor:.3f}/h is none")
    if floor + storage > needs.cap:
        dear = f"${floor + storage:.3f}/h with storage"
        return 0.0, Failure(OfferRule.CAP, dear, f"${needs.cap:.3f}/h")
    if not offer.is_bid:
        return floor, None
    bid = choose_bid(floor, offer.dph_base or None, needs.cap - storage)
    return (0.0, Failure(OfferRule.PRICE, bid.reason)) if bid.price is None else (bid.price, None)


def _storage(offer: Offer, work: Workload) -> float:
    """Return the price of storage, $/h."""
    return work.disk_gb * offer.storage_cost / HOURS_PER_MONTH


def _by_value(found: Appraisal) -> tuple[float, float, float, int]:
    offer = found.offer
    return found.dollars_per_useful_hour, -offer.reliability, found.hourly, offer.id


def _by_nearness(item: tuple[Offer, tuple[Failure, ...]]) -> tuple[int, float, int]:
    offer, failures = item
    price = offer.min_bid if offer.is_bid else offer.dph_base
    return len(failures), price, offer.id


def _by_count(item: tuple[OfferRule, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _name(offer: Offer) -> str:
    return f"offer {offer.id} ({offer.gpu_name}, machine {offer.machine_id})"


def rates_of(offer: Offer, price: float, disk_gb: float) -> Rates:
    """Return what an offer costs at a bid of `price` $/h with `disk_gb` of storage."""
    return Rates.of(
        price=price,
        disk_gb=disk_gb,
        storage_cost=offer.storage_cost,
        up=offer.inet_up_cost,
        down=offer.inet_down_cost,
    )


MARGIN = 0.07
"""Share of the floor that is bid above it, because it may rise between search and rental."""
LEAST_STEP = 0.005
"""Least $/h that is bid above the floor."""
ON_DEMAND_SHARE = 0.9
"""Share of the on-demand price above which a bid is a worse deal than on demand."""
_TICK = 1000
"""Steps of a bid in one dollar."""


@dataclass(frozen=True, slots=True)
class Bid:
    """A bid, or the reason why there is none.

    Example: `Bid(0.215)` or `Bid(None, "the floor of $0.300/h is over the cap of $0.250/h")`
    """

    price: float | None
    """Price of the whole machine without storage, $/h; None if there is no bid."""
    reason: str = ""
    """Reason why there is none, for people."""


def choose_bid(
    min_bid: float,
    on_demand: float | None,
    cap: float,
    *,
    margin: float = MARGIN,
) -> Bid:
    """Return the bid for one machine: within the cap, below on demand, at or above the floor.

    Args:
        min_bid: Lowest bid that is taken now, $/h.
        on_demand: Price of the same machine on demand, $/h; None if unknown.
        cap: Highest price, $/h.
        margin: Share of the floor that is bid above it.
    """
    if not min_bid > 0:
        return Bid(None, f"a floor of ${min_bid:.3f}/h is no price")
    bounds = {f"the cap of ${cap:.3f}/h": cap}
    if on_demand is not None and on_demand > 0:
        name = f"{ON_DEMAND_SHARE:.0%} of its on-demand price of ${on_demand:.3f}/h"
        bounds[name] = ON_DEMAND_SHARE * on_demand
    name, bound = min(bounds.items(), key=lambda item: item[1])
    wanted = math.ceil(_ticks(max(min_bid * (1 + margin), min_bid + LEAST_STEP)))
    price = min(wanted, math.floor(_ticks(bound))) / _TICK
    if price < min_bid:
        return Bid(None, f"the floor of ${min_bid:.3f}/h is over {name}")
    return Bid(price)


def _ticks(price: float) -> float:
    """Return a price in thousandths, rounded, since 0.9 * 0.3 is not a whole number of them."""
    return round(price * _TICK, 6)
