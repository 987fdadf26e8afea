"""How instances of the simulated Vast.ai are lost, and how they come back unasked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.vast.driver import Driver
from tests.fakes.vast.options import Fate, Options
from tests.fakes.vast.server import VastSimulator

pytestmark = pytest.mark.integration

HOUR = 3600


@pytest.fixture
def vast() -> Iterator[Driver]:
    """Boots take no time."""
    options = Options(boot_seconds=(0, 0), credit=1000, outage_seconds=1800)
    with VastSimulator(options, virtual=True) as simulator, Driver(simulator) as driver:
        yield driver


def states(vast: Driver, number: int) -> tuple[str, ...]:
    row = vast.show(number)
    names = ("actual_status", "intended_status", "cur_state", "next_state")
    return tuple(row[name] for name in names)


def test_an_outbid_instance_is_a_zombie_until_it_is_destroyed(vast: Driver) -> None:
    number = vast.rent()
    assert states(vast, number) == ("running",) * 4
    vast.do(number, "preempt", outage_seconds=600)
    assert states(vast, number) == ("exited", "stopped", "stopped", "stopped")
    vast.advance(599)
    assert states(vast, number)[0] == "exited"
    vast.advance(1)
    assert states(vast, number) == ("running",) * 4
    assert vast.truth(number)["num_starts"] == 2


@pytest.mark.parametrize("intended", ["stopped", "running"])
def test_what_was_intended_is_told_in_either_way(vast: Driver, intended: str) -> None:
    vast.sim("options", {"outbid_intended": intended})
    number = vast.rent()
    vast.do(number, "preempt", outage_seconds=600)
    assert states(vast, number) == ("exited", intended, "stopped", "stopped")


def test_a_user_who_stops_an_outbid_instance_has_peace(vast: Driver) -> None:
    number = vast.rent()
    vast.do(number, "preempt", outage_seconds=600)
    vast.put(str(number), {"state": "stopped"})
    vast.advance(HOUR)
    assert states(vast, number)[2] == "stopped"
    vast.do(number, "resume")
    assert states(vast, number)[2] == "running"


def test_without_auto_resume_it_stays_stopped(vast: Driver) -> None:
    vast.sim("options", {"auto_resume": False})
    number = vast.rent()
    vast.do(number, "preempt", outage_seconds=1)
    vast.advance(HOUR)
    assert states(vast, number)[2] == "stopped"


def test_the_highest_bid_wins(vast: Driver) -> None:
    offer = vast.search()[0]
    number, floor = vast.rent(offer), offer["min_bid"]
    vast.sim(f"machines/{offer['machine_id']}", {"min_bid": floor * 2})
    assert vast.truth(number)["phase"] == "outbid"
    vast.put(f"bid_price/{number}", {"client_id": "me", "price": round(floor * 2.5, 4)})
    assert states(vast, number)[2] == "running"
    vast.put(f"bid_price/{number}", {"client_id": "me", "price": floor})
    assert vast.truth(number)["phase"] == "outbid"
    vast.sim(f"machines/{offer['machine_id']}", {"min_bid": floor})
    assert vast.truth(number)["phase"] == "running"


def test_on_demand_outranks_every_bid(vast: Driver) -> None:
    offer = vast.search(type="on-demand", order=[["dph_total", "asc"]])[0]
    number = vast.rent(offer, price=None)
    row = vast.show(number)
    assert (row["is_bid"], row["dph_base"]) == (False, offer["dph_base"])
    vast.sim(f"machines/{offer['machine_id']}", {"min_bid": 30})
    vast.sim("options", {"hazard_per_hour": 50})
    vast.advance(20 * HOUR)
    assert states(vast, number) == ("running",) * 4


def test_the_hazard_is_what_was_asked_for(vast: Driver) -> None:
    """200 holds of 2.5 h on average: their sum is within 25 % but once in 2,000 seeds."""
    vast.sim("options", {"hazard_per_hour": 0.4})
    longest = vast.search(order=[["duration", "desc"]])[0]
    number = vast.rent(longest)
    for _ in range(2000):
        if vast.truth(number)["num_starts"] > 200:
            break
        vast.advance(6 * HOUR)
    else:
        pytest.fail("too few preemptions")
    hours = vast.bill(number)["gpu_seconds"] / HOUR
    assert 0.75 < hours / vast.truth(number)["num_starts"] / 2.5 < 1.25


def test_a_start_without_a_free_gpu_is_queued_and_bills_later(vast: Driver) -> None:
    offer = vast.search()[0]
    number = vast.rent(offer)
    vast.put(str(number), {"state": "stopped"})
    vast.sim(f"machines/{offer['machine_id']}", {"taken_seconds": 600})
    answer = vast.put(str(number), {"state": "running"})
    assert (answer.status_code, answer.json()["error"]) == (200, "resources_unavailable")
    assert states(vast, number)[1:] == ("running", "stopped", "running")
    vast.advance(600)
    assert states(vast, number)[2] == "running"


@pytest.mark.parametrize("cancel", [True, False])
def test_a_refused_create_is_gone_or_queued(vast: Driver, cancel: bool) -> None:
    vast.sim("options", {"refusal": 1.0})
    offer = vast.search()[0]
    answer = vast.create(offer["id"], price=1.0, cancel_unavail=cancel)
    if cancel:
        assert (answer.status_code, vast.listed()) == (410, [])
    else:
        number = answer.json()["new_contract"]
        assert "queued" in answer.json()["msg"]
        vast.advance(1800)
        assert states(vast, number)[2] == "running"


@pytest.mark.parametrize(
    ("fate", "actual", "message"),
    [
        (Fate.NEVER_BOOTS, "loading", "pulling"),
        (Fate.OCI_ERROR, "created", "OCI runtime create failed"),
        (Fate.NO_SPACE, "created", "no space left on device"),
        (Fate.BAD_IMAGE, "loading", "manifest unknown"),
        (Fate.UNAUTHORIZED, "loading", "unauthorized"),
        (Fate.GOES_OFFLINE, "offline", "pulling"),
    ],
)
def test_hosts_that_never_boot(vast: Driver, fate: Fate, actual: str, message: str) -> None:
    vast.sim("options", {"boot_seconds": [60, 60], "fates": {fate: 1.0}})
    number = vast.rent()
    vast.advance(24 * HOUR)
    row = vast.show(number)
    assert row["actual_status"] == actual
    assert message in row["status_msg"]
    assert vast.bill(number)["gpu_seconds"] == 0


def test_a_host_is_offline_and_back(vast: Driver) -> None:
    number = vast.rent()
    vast.advance(HOUR)
    vast.do(number, "offline")
    vast.advance(HOUR)
    assert states(vast, number) == ("offline", "running", "running", "running")
    vast.do(number, "online")
    vast.advance(HOUR)
    assert states(vast, number) == ("running",) * 4
    assert vast.bill(number)["gpu_seconds"] == 2 * HOUR


def test_a_contract_ends_and_is_deleted_later(vast: Driver) -> None:
    number = vast.rent()
    vast.do(number, "expire")
    assert states(vast, number)[2] == "stopped"
    vast.advance(47 * HOUR)
    assert vast.show(number) is not None
    vast.advance(HOUR)
    assert vast.show(number) is None
