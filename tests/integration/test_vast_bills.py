"""The ledger of the simulated Vast.ai is exact, whatever happens and however often one looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.vast.driver import Driver
from tests.fakes.vast.options import Options
from tests.fakes.vast.server import VastSimulator

pytestmark = pytest.mark.integration

HOUR, HOURS_PER_MONTH = 3600, 730
DISK_GB = 20


@contextmanager
def virtual(**options: Any) -> Iterator[Driver]:
    with (
        VastSimulator(Options(**options), virtual=True) as simulator,
        Driver(simulator) as vast,
    ):
        yield vast


def exact(vast: Driver) -> Fraction:
    """The sum of all lines."""
    return sum((Fraction(line["exact"]) for line in vast.sim("ledger")["lines"]), Fraction(0))


def act(vast: Driver, number: int, action: str) -> None:
    match action:
        case "stop" | "start":
            vast.put(str(number), {"state": "stopped" if action == "stop" else "running"})
        case "raise":
            vast.put(f"bid_price/{number}", {"client_id": "me", "price": 2.5})
        case "reboot":
            vast.put(f"reboot/{number}", {})
        case "destroy":
            vast.destroy(number)
        case _:
            if vast.truth(number)["phase"] != "destroyed":
                vast.do(number, action)


def per_hour(vast: Driver, number: int) -> Fraction:
    """What it costs now, by the documented rules and the prices of the book."""
    seen = vast.truth(number)
    machines = vast.sim("state")["machines"]
    machine = next(one for one in machines if one["machine_id"] == seen["machine_id"])
    if seen["phase"] == "destroyed" or seen["offline"]:
        return Fraction(0)
    storage = Fraction(machine["storage_cost"]) * DISK_GB / HOURS_PER_MONTH
    gpu = min(Fraction(seen["bid"]), Fraction(machine["dph_base"]))
    return storage + (gpu if seen["phase"] == "running" else 0)


ACTIONS = ("stop", "start", "raise", "reboot", "preempt", "resume", "offline", "online", "destroy")


@settings(max_examples=25)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(ACTIONS),
            st.decimals("0.001", 90_000, places=3, allow_nan=False, allow_infinity=False),
        ),
        max_size=8,
    ),
    seed=st.integers(0, 5),
)
def test_a_bill_is_the_sum_of_rate_times_time(steps: list[tuple[str, Decimal]], seed: int) -> None:
    with virtual(boot_seconds=(0, 0), seed=seed, credit=10_000) as vast:
        number = vast.rent(disk=DISK_GB)
        expected = Fraction(0)
        for action, seconds in steps:
            act(vast, number, action)
            expected += per_hour(vast, number) * Fraction(seconds) / HOUR
            vast.advance(float(seconds))
        assert exact(vast) == expected
        ledger = vast.sim("ledger")
        assert Decimal(ledger["credit"]) + Decimal(ledger["spent"]) == Decimal(ledger["deposited"])
        assert ledger["max_live"] == 1


@settings(max_examples=10)
@given(
    cuts=st.lists(st.integers(1, 48 * HOUR - 1), max_size=6),
    seed=st.integers(0, 20),
    hazard=st.sampled_from([0.0, 0.5, 4.0]),
)
def test_how_often_one_looks_changes_nothing(cuts: list[int], seed: int, hazard: float) -> None:
    def after(moments: list[int]) -> tuple[Any, ...]:
        with virtual(seed=seed, hazard_per_hour=hazard, image_gb=3) as vast:
            number = vast.rent()
            for begin, end in zip([0, *moments], [*moments, 48 * HOUR], strict=True):
                vast.advance(end - begin)
            return exact(vast), vast.sim("ledger")["lines"], vast.truth(number)

    assert after(sorted(cuts)) == after([])


def test_traffic_is_billed_per_gigabyte_in_any_state() -> None:
    with virtual() as vast:
        offer = vast.search()[0]
        number = vast.rent(offer)
        vast.put(str(number), {"state": "stopped"})
        vast.do(number, "traffic", charge="upload", gigabytes="1.5")
        vast.do(number, "traffic", charge="download", gigabytes="100")
        bill = vast.bill(number)
        assert Decimal(bill["upload_dollars"]) == Decimal("1.5") * Decimal(
            str(offer["inet_up_cost"])
        )
        assert Decimal(bill["download_dollars"]) == 100 * Decimal(str(offer["inet_down_cost"]))


def test_everything_stops_with_the_last_cent_and_disks_go_on() -> None:
    with virtual(credit="0.1", boot_seconds=(0, 0)) as vast:
        number = vast.rent()
        vast.advance(100 * HOUR)
        row = vast.show(number)
        assert (row["cur_state"], row["status_msg"]) == ("stopped", "insufficient credit")
        lines = vast.sim("ledger")["lines"]
        stopped_at = next(line["until"] for line in lines if line["charge"] == "gpu")
        until_then = sum(
            Decimal(line["dollars_per_hour"]) * Decimal(stopped_at - line["since"]) / HOUR
            for line in lines
        )
        assert float(until_then) == pytest.approx(0.1, abs=1e-9)
        assert float(vast.sim("ledger")["credit"]) < 0
        answer = vast.create(vast.search()[0]["id"], price=1.0)
        assert answer.json()["error"] == "insufficient_credit"
        assert vast.put(str(number), {"state": "running"}).json()["success"] is False
        vast.sim("credit", {"deposit": 5})
        assert vast.put(str(number), {"state": "running"}).json()["success"] is True


def test_storage_of_a_stopped_contract_that_an_error_left_is_billed() -> None:
    with virtual() as vast:
        offer = vast.search()[0]
        answer = vast.create(offer["id"], price=offer["min_bid"] / 2, cancel_unavail=True)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_price")
        left = answer.json()["new_contract"]
        row = vast.show(left)
        assert (row["actual_status"], row["cur_state"], row["next_state"]) == (
            "created",
            "stopped",
            "stopped",
        )
        vast.advance(10 * HOUR)
        bill = vast.bill(left)
        assert float(bill["storage_dollars"]) > 0
        assert float(bill["gpu_dollars"]) == 0
