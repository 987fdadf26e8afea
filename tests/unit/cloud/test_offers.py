"""Which machine is rented, at what bid, and what a person is told if none is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.cloud.forecast import StartDownloads, workload
from tsgb.cloud.offers import Needs, OfferCount, OfferRule, choose, choose_bid
from tsgb.cloud.policy import LaunchPolicy
from tsgb.cloud.preemption import Workload, stretch
from tsgb.cloud.provider import Offer
from tsgb.cloud.retry_policy import NOTHING_AVOIDED
from tsgb.cloud.speed import MeasuredUpdates

WORK = Workload(
    work_hours=8.0,
    interval=lambda mtbf: max(60.0, math.sqrt(2 * 20.0 * mtbf)),
    boot_seconds=600.0,
    stall_seconds=20.0,
    upload_seconds=60.0,
    disk_gb=40.0,
    restore_gb=2.0,
    save_gb=0.7,
)
NEEDS = Needs(cap=0.5, gpu_ram=16_000, disk_space=40.0)
GOOD = Offer(
    id=41,
    machine_id=7,
    host_id=2,
    gpu_name="RTX 4090",
    gpu_ram=24_000,
    cpu_ram=32_000,
    region="SE",
    disk_space=100.0,
    dph_base=0.4,
    min_bid=0.2,
    storage_cost=0.15,
    inet_up_cost=0.01,
    inet_down_cost=0.01,
    reliability=0.99,
)


def hazard_of(offer: Offer) -> float:
    return 0.4 if offer.is_bid else 0.002


prices = st.floats(0.02, 2.0)
offers = st.builds(
    Offer,
    id=st.integers(1, 99),
    machine_id=st.integers(1, 9),
    host_id=st.integers(1, 4),
    gpu_name=st.sampled_from(["RTX 4090", "RTX 3060"]),
    gpu_ram=st.sampled_from([12_000.0, 24_000.0]),
    disk_space=st.sampled_from([20.0, 100.0]),
    dph_base=prices,
    min_bid=prices,
    is_bid=st.booleans(),
    inet_up_cost=st.floats(0, 0.02),
    storage_cost=st.floats(0, 1),
    reliability=st.floats(0, 1),
    rentable=st.booleans(),
)
markets = st.lists(offers, max_size=12, unique_by=lambda offer: offer.id)


@given(market=markets, random=st.randoms(use_true_random=False))
def test_the_order_of_offers_does_not_matter(market: list[Offer], random) -> None:
    shuffled = random.sample(market, len(market))
    assert choose(market, NEEDS, WORK, hazard_of) == choose(shuffled, NEEDS, WORK, hazard_of)


@given(market=markets)
def test_every_offer_is_judged_and_none_costs_more_than_the_cap(market: list[Offer]) -> None:
    choice = choose(market, NEEDS, WORK, hazard_of)
    assert len(choice.ranked) + len(choice.rejected) == len(market)
    for found in choice.ranked:
        assert found.hourly <= NEEDS.cap + 1e-9
        assert found.price >= (found.offer.min_bid if found.offer.is_bid else found.offer.dph_base)
        assert found.offer.rentable
        assert found.dollars_per_useful_hour >= found.hourly
    assert all(failures for _, failures in choice.rejected)
    assert str(choice)


@given(market=markets, cut=st.floats(0.5, 0.99))
def test_a_cheaper_machine_is_never_the_worse_one(market: list[Offer], cut: float) -> None:
    best = choose(market, NEEDS, WORK, hazard_of).best
    if best is not None:
        cheaper = replace(best.offer, id=100, dph_base=best.offer.dph_base, storage_cost=0.0)
        cheaper = replace(cheaper, min_bid=cheaper.min_bid * cut)
        found = choose([*market, cheaper], NEEDS, WORK, hazard_of).best
        assert found is not None
        assert found.dollars_per_useful_hour <= best.dollars_per_useful_hour


def other(**changes: Any) -> Offer:
    return replace(GOOD, id=99, **changes)


@pytest.mark.parametrize(
    ("better", "hazard"),
    [
        pytest.param(other(min_bid=0.19), {}, id="price"),
        pytest.param(other(min_bid=0.205, reliability=1.0), {}, id="reliability"),
        pytest.param(other(inet_up_cost=0.009), {}, id="upload"),
        pytest.param(other(inet_down_cost=0.009), {}, id="download"),
        pytest.param(other(storage_cost=0.1), {}, id="storage"),
        pytest.param(other(min_bid=0.21), {99: 0.1}, id="hazard-outweighs-price"),
        pytest.param(replace(GOOD, id=40), {}, id="a-tie-by-id"),
    ],
)
def test_what_makes_an_offer_the_better_one(better: Offer, hazard: dict[int, float]) -> None:
    needs = replace(NEEDS, reliability=0.5)
    good = replace(GOOD, reliability=0.9) if better.reliability == 1.0 else GOOD
    choice = choose([good, better], needs, WORK, lambda offer: hazard.get(offer.id, 0.4))
    assert choice.best is not None
    assert choice.best.offer == better


def test_the_storage_is_under_the_cap_too() -> None:
    tight = replace(NEEDS, cap=0.22)
    best = choose([replace(GOOD, dph_base=1.0, min_bid=0.21)], tight, WORK, hazard_of).best
    assert best is not None
    assert 0.219 < best.hourly <= 0.22


def test_on_demand_where_machines_are_taken_away_too_often() -> None:
    steady = replace(GOOD, id=2, is_bid=False, dph_base=0.4)
    for hazard, kind in ((0.4, True), (5.0, False)):
        choice = choose(
            [GOOD, steady], NEEDS, WORK, lambda offer, h=hazard: h if offer.is_bid else 0.002
        )
        assert choice.best is not None
        assert choice.best.offer.is_bid is kind


def test_a_faster_gpu_may_cost_more() -> None:
    fast = replace(GOOD, id=2, gpu_name="H100", min_bid=0.35, dph_base=1.0)
    needs = replace(NEEDS, speeds={"RTX 4090": 1.0, "H100": 2.0})
    choice = choose([GOOD, fast, replace(GOOD, id=3, gpu_name="K80")], needs, WORK, hazard_of)
    assert choice.best is not None
    assert choice.best.offer is fast
    assert [failure.rule for failure in choice.rejected[0][1]] == [OfferRule.GPU]


CARDS = LaunchPolicy(budget=1, cap=0.5, gpu_ram_gb=24, cuda=13.0, compute_cap=800)
"""Cards for a model of 3B, as a flow looks for them."""
MADE = {"compute_cap": 860, "cuda_max_good": 13.0}
RTX_3090 = replace(GOOD, gpu_name="RTX 3090", min_bid=0.149, dlperf=60.2, **MADE)
RTX_5090 = replace(
    GOOD, id=42, gpu_name="RTX 5090", min_bid=0.179, dlperf=139.6, gpu_ram=32_607, **MADE
)


def best_card(measured: dict[str, float] | None = None, **changes: Any) -> str:
    seen = [RTX_3090, replace(RTX_5090, **changes)]
    updates = [
        MeasuredUpdates(("r1", "guard"), name, 1000, seconds)
        for name, seconds in (measured or {}).items()
    ]
    best = choose(seen, CARDS.needs(NOTHING_AVOIDED, 40.0, seen, updates), WORK, hazard_of).best
    assert best is not None
    return best.offer.gpu_name


def test_the_card_that_does_more_for_a_dollar_is_the_better_one() -> None:
    """404 of the service's score for a dollar an hour against 780, as seen in the market."""
    assert best_card() == "RTX 5090"
    assert best_card(dlperf=60.2) == "RTX 3090"
    assert best_card({"RTX 3090": 1.0, "RTX 5090": 0.99}) == "RTX 3090", "by its own updates"
    assert best_card(cuda_max_good=12.8) == "RTX 3090"


def test_a_slow_line_is_paid_for() -> None:
    """Two machines that differ in nothing else: one downloads 12 GB in minutes, one in hours."""
    work = workload(8.0, disk_gb=40.0, start=StartDownloads(packages_gb=2.9, weights_gb=9.1))
    fast, slow = replace(GOOD, inet_down=1000.0), replace(GOOD, id=40, inet_down=50.0)
    choice = choose([slow, fast], NEEDS, work, hazard_of)
    assert [found.offer for found in choice.ranked] == [fast, slow]
    minutes = [work.on(offer.inet_down).boot_seconds / 60 for offer in (fast, slow)]
    assert minutes == pytest.approx([1 + 96 / 60 + 58 / 60, 1 + 1920 / 60 + 58 / 60])
    seen = StartDownloads(packages_gb=2.9, weights_gb=9.1, measured_seconds=200.0)
    measured = workload(8.0, disk_gb=40.0, start=seen).on(1000.0)
    assert measured.boot_seconds == pytest.approx(200 + 9.1 * 8), "models come after the report"
    assert measured.restore_gb == pytest.approx(12.0), "packages are billed nevertheless"


def test_it_counts_what_each_rule_removes() -> None:
    old, dear = replace(RTX_3090, id=1, cuda_max_good=12.4), replace(RTX_3090, id=2, min_bid=0.6)
    both = replace(old, id=3, gpu_ram=12_000)
    choice = choose(
        [RTX_3090, old, dear, both],
        CARDS.needs(NOTHING_AVOIDED, 40.0, [RTX_3090]),
        WORK,
        hazard_of,
    )
    count = OfferCount.of(choice, limit=64)
    assert (count.seen, count.fitting, sum(count.removed.values())) == (4, 1, 4)
    assert str(count) == (
        "of 4 offers of one GPU, 1 fit; removed by CUDA version 13: 2, GPU memory 24000: 1, "
        "over the cap $0.500/h: 1 (one may fail several)"
    )
    assert str(OfferCount.of(choice, limit=4)).startswith("of the 4 cheapest offers of one GPU")


@pytest.mark.parametrize(
    ("offer", "rule"),
    [
        pytest.param(replace(GOOD, rentable=False), OfferRule.RENTABLE, id="taken"),
        pytest.param(replace(GOOD, verified=False), OfferRule.VERIFIED, id="unverified"),
        pytest.param(replace(GOOD, num_gpus=2), OfferRule.NUM_GPUS, id="two-gpus"),
        pytest.param(replace(GOOD, gpu_ram=12_000), OfferRule.GPU_RAM, id="gpu-memory"),
        pytest.param(replace(GOOD, disk_space=math.nan), OfferRule.DISK, id="missing-number"),
        pytest.param(replace(GOOD, reliability=0.5), OfferRule.RELIABILITY, id="reliability"),
        pytest.param(replace(GOOD, duration=3600.0), OfferRule.DURATION, id="ends-soon"),
        pytest.param(replace(GOOD, min_bid=0.6), OfferRule.CAP, id="over-the-cap"),
        pytest.param(replace(GOOD, min_bid=0.0), OfferRule.PRICE, id="no-price"),
        pytest.param(replace(GOOD, min_bid=0.39), OfferRule.PRICE, id="hardly-below-on-demand"),
        pytest.param(replace(GOOD, machine_id=13), OfferRule.EXCLUDED, id="machine-out"),
        pytest.param(replace(GOOD, gpu_name="K80"), OfferRule.NAME, id="another-gpu"),
        pytest.param(replace(GOOD, region="US"), OfferRule.REGION, id="elsewhere"),
        pytest.param(replace(GOOD, cpu_ram=8_000), OfferRule.CPU_RAM, id="main-memory"),
        pytest.param(replace(GOOD, host_id=13), OfferRule.EXCLUDED, id="host-out"),
        pytest.param(replace(GOOD, id=13), OfferRule.EXCLUDED, id="ask-out"),
    ],
)
def test_each_rule_rejects(offer: Offer, rule: OfferRule) -> None:
    needs = replace(
        NEEDS,
        machines_out={13},
        hosts_out={13},
        asks_out={13},
        gpu_names={"RTX 4090"},
        regions={"SE"},
        cpu_ram=16_000,
    )
    [(_, failures)] = choose([offer], needs, WORK, hazard_of).rejected
    assert [failure.rule for failure in failures] == [rule]


def test_what_a_person_is_told() -> None:
    dear, dearer = replace(GOOD, id=5, min_bid=0.6), replace(GOOD, id=6, min_bid=0.9)
    small = replace(GOOD, id=7, gpu_ram=12_000)
    assert str(choose([dearer, dear], NEEDS, WORK, hazard_of)) == (
        "no offer under the cap of $0.500/h: nearest is offer 5 (RTX 4090, machine 7): "
        "$0.608/h with storage (2 seen: 2 over the cap)"
    )
    assert str(choose([dear, small], NEEDS, WORK, hazard_of)).startswith(
        "no offer fits: nearest is offer 7 (RTX 4090, machine 7): GPU memory, MB 12000, needs 16000"
    )
    assert str(choose([], NEEDS, WORK, hazard_of)).startswith("no offers at all")
    assert str(choose([GOOD], NEEDS, WORK, hazard_of)).startswith(
        "offer 41 (RTX 4090, machine 7) at $0.222/h, expected $0.317 per useful hour"
    )


@given(floor=prices, on_demand=st.none() | prices, cap=prices)
def test_a_bid_is_within_its_bounds(floor: float, on_demand: float | None, cap: float) -> None:
    bid = choose_bid(floor, on_demand, cap)
    if bid.price is None:
        assert bid.reason
    else:
        assert floor <= bid.price <= cap + 1e-9
        assert on_demand is None or bid.price <= 0.9 * on_demand + 1e-9
        assert bid.price <= max(floor * 1.07, floor + 0.005) + 0.001


@pytest.mark.parametrize(
    ("bounds", "price", "reason"),
    [
        pytest.param((0.2, 0.4, 0.5), 0.214, "", id="margin"),
        pytest.param((0.02, 0.4, 0.5), 0.025, "", id="least-step"),
        pytest.param((0.2, 0.4, 0.205), 0.205, "", id="up-to-the-cap"),
        pytest.param((0.3, 0.32, 0.5), None, "90% of its on-demand price of $0.320/h", id="dear"),
        pytest.param((0.2, None, 0.1), None, "over the cap of $0.100/h", id="cap"),
        pytest.param((math.nan, None, 0.1), None, "is no price", id="nan"),
    ],
)
def test_bids(bounds: tuple[float, float | None, float], price: float | None, reason: str) -> None:
    bid = choose_bid(*bounds)
    assert bid.price == price
    assert reason in bid.reason


@given(low=st.floats(0, 5), high=st.floats(0, 5), interval=st.floats(0.01, 2))
def test_more_preemption_stretches_more(low: float, high: float, interval: float) -> None:
    low, high = sorted((low, high))
    assert 1 <= stretch(low, interval, WORK) <= stretch(high, interval, WORK) * (1 + 1e-9)


def test_a_hazard_too_small_to_matter() -> None:
    assert stretch(5e-324, 0.5, WORK) == stretch(0.0, 0.5, WORK)
    assert WORK.interval_hours(5e-324, 8.0) == 8.0


def test_what_would_never_save_takes_for_ever() -> None:
    assert stretch(5.0, 1000.0, WORK) == math.inf
    [(_, failures)] = choose([GOOD], NEEDS, WORK, lambda _: 1e5).rejected
    assert [failure.rule for failure in failures] == [OfferRule.HAZARD]
