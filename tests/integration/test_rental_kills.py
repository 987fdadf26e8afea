"""The kill matrix: a flow dies at every point, under every wire fault; the bill is the oracle.

Either it is started again, or it never is and its machine has to end by itself. All cells are in
the slow suite, a spread of them in the default one.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fleet import Fleet
from tests.fakes.mortal_flow import Flow

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

POINTS = {
    "before the intent": "before attempts/0001.json",
    "after the intent": "after attempts/0001.json",
    "leased": "after lease.json",
    "create not sent": "create not sent",
    "created, answer unread": "create answered",
    "acknowledged": "after attempts/0001.json#2",
    "loading": "loading",
    "boot": "boot",
    "training": "training",
    "checkpoint": "checkpoint",
    "after a checkpoint": "after a checkpoint",
    "delete not sent": "delete not sent",
    "deleted, answer unread": "delete answered",
    "gone, books open": "before budget.json#4",
}
"""The name of each cell, and the point of `Mortal` at which the flow dies."""

LOST: dict[str, Any] = {"act": "close", "when": "after"}
BAD: dict[str, Any] = {"act": "answer", "preset": "bad_gateway", "when": "after"}
FAULTS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "no fault": ({}, []),
    "502": (
        {},
        [
            {"method": "PUT", "path": "/asks/", **BAD},
            {"method": "DELETE", **BAD},
            {"method": "GET", "path": "/instances/", "skip": 1, "times": 2, **BAD},
        ],
    ),
    "lost answers": (
        {},
        [
            {"method": "PUT", "path": "/asks/", **LOST},
            {"method": "DELETE", **LOST},
            {"method": "GET", "path": "/instances/", "skip": 2, "times": 2, **LOST},
        ],
    ),
    "late inventory": ({"list_lag_seconds": 60.0, "by_id_lag_seconds": 20.0}, []),
}
BOUND_SECONDS = 60 * (20 + 10 + 5)
"""Lease, clock skew, and boot with two looks at the lease: then nothing costs anything."""
BUDGET = Decimal(5)

CELLS = [(point, fault, again) for again in (True, False) for point in POINTS for fault in FAULTS]


def _is_in_the_spread(cell: tuple[str, str, bool]) -> bool:
    point, fault, again = cell
    return (list(POINTS).index(point) + list(FAULTS).index(fault) + again) % len(FAULTS) == 0


def _params() -> list[Any]:
    return [
        pytest.param(
            *cell,
            id=f"{cell[0]}, {cell[1]}, {'started again' if cell[2] else 'never again'}",
            marks=() if _is_in_the_spread(cell) else pytest.mark.slow,
        )
        for cell in CELLS
    ]


def test_the_spread_is_wide_enough() -> None:
    assert sum(map(_is_in_the_spread, CELLS)) >= 25


@pytest.mark.parametrize(("point", "fault", "again"), _params())
def test_a_flow_that_is_killed(point: str, fault: str, again: bool) -> None:
    options, faults = FAULTS[fault]
    with Fleet(steps=400, **options) as fleet:
        fleet.vast.sim("faults", faults)
        flow = Flow(fleet, kill_at=POINTS[point])
        if point == "checkpoint":
            fleet.on_publish = lambda: setattr(flow.mortal, "dead", True)
        ended = flow.run()
        assert ended == "killed"
        killed_at = fleet.seconds()
        if again:
            fleet.advance(45)
            assert Flow(fleet).run() == "done"
            assert fleet.progress() == 400
        else:
            fleet.advance(BOUND_SECONDS)
        bill = fleet.bill()
        assert fleet.live() == []
        assert bill["max_live"] <= 1
        for one in bill["instances"].values():
            assert one["destroyed_at"] - killed_at <= BOUND_SECONDS
        assert Decimal(bill["spent"]) <= BUDGET
        ledger = fleet.ledger()
        assert Decimal(ledger.held) / 10**6 >= Decimal(bill["spent"]) - Decimal("0.0001"), (
            "what was spent is in the books, or still set aside"
        )
        if again:
            assert not any(account.is_open for account in ledger.accounts.values())


def test_a_dead_flows_machine_costs_no_more_than_was_set_aside() -> None:
    """Its lease ends with the money; a machine that saw no renewal adds the skew of clocks."""
    budget = Decimal("0.04")
    with Fleet(steps=10**6) as fleet:
        assert Flow(fleet, budget=str(budget), kill_at="training").run() == "killed"
        document = next(iter(fleet.documents.attempts()))
        assert document.intent is not None
        hourly = Decimal(str(document.intent.hourly))
        fleet.advance(BOUND_SECONDS)
        assert fleet.live() == []
        assert Decimal(fleet.bill()["spent"]) <= budget + hourly * 10 / 60


REAPER_SECONDS = 600.0


@pytest.mark.parametrize("point", ["acknowledged", "loading"])
@pytest.mark.parametrize("fate", ["never_boots", "oci_error", "goes_offline"])
def test_what_cannot_end_itself_is_reaped(point: str, fate: str, tmp_path: Path) -> None:
    """No watcher ever ran on it, and its flow is dead."""
    with Fleet(directory=tmp_path, fates={fate: 1.0}) as fleet:
        assert Flow(fleet, kill_at=POINTS[point]).run() == "killed"
        [number] = fleet.live()
        killed_at = fleet.seconds()
        while fleet.live() and fleet.seconds() - killed_at < 2 * BOUND_SECONDS:
            fleet.advance(REAPER_SECONDS)
            fleet.reap()
        bill = fleet.bill()["instances"][str(number)]
        assert not bill["live"]
        assert bill["destroyed_at"] - killed_at <= BOUND_SECONDS + REAPER_SECONDS
        assert not any(account.is_open for account in fleet.ledger().accounts.values())


def test_a_reaper_leaves_a_machine_alone_whose_flow_lives(tmp_path: Path) -> None:
    with Fleet(directory=tmp_path, steps=3600) as fleet:
        flow = Flow(fleet)
        rounds: list[int] = []

        def now_and_then() -> None:
            if fleet.seconds() > 1_800_000_000 + REAPER_SECONDS * (len(rounds) + 1):
                rounds.append(fleet.reap().counts()["destroyed"])

        flow.mortal.on_sleep = now_and_then
        assert flow.run() == "done"
        assert len(rounds) > 4
        assert sum(rounds) == 0
        assert len(fleet.bill()["instances"]) == 1
