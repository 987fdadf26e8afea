"""Sums of money: exact, rounded up, and compared with the account."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.cloud.pricing import (
    MICRO,
    Account,
    Bandwidth,
    Drift,
    Rates,
    Usage,
    in_dollars,
    microdollars,
)
from tsgb.errors import UsageError

NOW = datetime(2026, 7, 1, tzinfo=UTC)
amounts = st.integers(0, 100 * MICRO)
rates = st.builds(Rates, **dict.fromkeys(Rates.model_fields, amounts))
usages = st.builds(Usage, **dict.fromkeys(Usage.model_fields, st.integers(0, 10**13)))


@pytest.mark.parametrize(
    ("dollars", "expected"),
    [(0.1, 100_000), ("5", 5 * MICRO), (1e-7, 1), (0, 0), (0.2000001, 200_001)],
)
def test_microdollars_round_up(dollars: float | str, expected: int) -> None:
    assert microdollars(dollars) == expected


@pytest.mark.parametrize("dollars", [-0.01, "nan", float("inf"), "five"])
def test_what_is_no_amount(dollars: float | str) -> None:
    with pytest.raises(UsageError, match="not an amount in dollars"):
        microdollars(dollars)


def test_an_offer_in_rates() -> None:
    found = Rates.of(price=0.2, disk_gb=40, storage_cost=0.15, up=0.003, down=0.002)
    assert found == Rates(
        gpu_per_hour=200_000, storage_per_hour=8_220, up_per_gb=3_000, down_per_gb=2_000
    )
    hour = Usage.of(timedelta(hours=1), bytes_up=10**9)
    assert hour.cost(found) == 211_220
    assert Usage.of(timedelta(hours=1), gpu_billed=False).cost(found) == 8_220
    assert in_dollars(211_220) == "$0.2112"


@given(rates=rates, usage=usages)
def test_a_cost_is_the_exact_one_rounded_up(rates: Rates, usage: Usage) -> None:
    hours = Fraction(1, 3600 * MICRO)
    exact = (
        rates.gpu_per_hour * usage.gpu_us * hours
        + rates.storage_per_hour * usage.storage_us * hours
        + Fraction(rates.up_per_gb * usage.bytes_up, 10**9)
        + Fraction(rates.down_per_gb * usage.bytes_down, 10**9)
    )
    assert exact <= usage.cost(rates) < exact + 1


@given(rates=rates, first=usages, second=usages)
def test_more_use_costs_no_less_and_parts_no_less_than_the_whole(
    rates: Rates, first: Usage, second: Usage
) -> None:
    whole = (first + second).cost(rates)
    assert whole >= first.cost(rates)
    assert whole <= first.cost(rates) + second.cost(rates)


@pytest.mark.parametrize(
    ("charged", "recorded", "says"),
    [
        pytest.param(900_000, 500_000, "look for instances that no run owns", id="leak"),
        pytest.param(500_000, 900_000, "charges are late", id="late"),
    ],
)
def test_drift_is_an_alarm(charged: int, recorded: int, says: str) -> None:
    drift = Drift(charged, recorded)
    assert drift.alarming
    assert says in str(drift)


@pytest.mark.parametrize("pair", [(1_000_000, 750_000), (40_000, 0), (0, 0), (0, 50_000)])
def test_what_late_and_rounded_charges_explain_is_none(pair: tuple[int, int]) -> None:
    assert not Drift(*pair).alarming
    assert not Drift(*reversed(pair)).alarming
    assert "look for" not in str(Drift(*pair))


@given(claims=st.lists(st.integers(0, 10**20), max_size=5), seconds=st.integers(0, 10**6))
def test_no_claim_counts_more_than_the_line_carries(claims: list[int], seconds: int) -> None:
    account = Account(
        attempt=1,
        rates=Rates(up_per_gb=20_000),
        opened_at=NOW,
        seen_at=NOW,
        bandwidth=Bandwidth.of(up_mbps=100.0, down_mbps=math.nan),
    )
    for claim in claims:
        account = account.used(NOW + timedelta(seconds=seconds), Usage(bytes_up=claim))
    assert account.usage.bytes_up == min(sum(claims), seconds * 25_000_000)


@pytest.mark.parametrize("unknown", [math.nan, math.inf, 0.0, -1.0])
def test_a_bandwidth_that_is_not_told_is_still_a_bound(unknown: float) -> None:
    assert Bandwidth.of(up_mbps=unknown, down_mbps=8.0) == Bandwidth(down_per_second=2_000_000)
