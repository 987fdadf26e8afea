"""The simulated Vast.ai does what the real one is said to do, seen through HTTP only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.vast.driver import Driver
from tests.fakes.vast.options import Options
from tests.fakes.vast.server import VastSimulator

pytestmark = pytest.mark.integration

HOUR = 3600


@pytest.fixture
def vast() -> Iterator[Driver]:
    """A kind service with a virtual clock, on which every boot takes a minute."""
    options = Options(boot_seconds=(60, 60))
    with VastSimulator(options, virtual=True) as simulator, Driver(simulator) as driver:
        yield driver


def test_one_instance_from_search_to_its_last_cent(vast: Driver) -> None:
    offer = vast.search(num_gpus={"eq": "1"}, verified={"eq": True})[0]
    number = vast.rent(offer, label="tsgb/a/1")
    assert vast.show(number)["actual_status"] is None
    vast.advance(30)
    assert vast.show(number)["actual_status"] == "loading"
    vast.advance(30)
    row = vast.show(number)
    assert (row["actual_status"], row["is_bid"], row["label"]) == ("running", True, "tsgb/a/1")
    assert row["machine_id"] == offer["machine_id"]
    assert vast.listed() == [number]
    vast.advance(HOUR - 60)
    assert vast.destroy(number).json() == {"success": True}
    vast.advance(HOUR)

    assert vast.listed() == []
    assert vast.show(number) is None
    assert vast.destroy(number).status_code == 404
    bill = vast.bill(number)
    assert (bill["gpu_seconds"], bill["live"]) == (HOUR - 60, False)
    storage = offer["storage_cost"] * 20 / 730
    assert float(bill["storage_dollars"]) == pytest.approx(storage, rel=1e-9)
    assert float(bill["gpu_dollars"]) == pytest.approx(row["dph_base"] * 59 / 60, rel=1e-9)
    ledger = vast.sim("ledger")
    assert (ledger["spent"], ledger["max_live"]) == (bill["dollars"], 1)
    user = vast.http.get("/api/v0/users/current").json()
    assert user["credit"] == pytest.approx(float(ledger["credit"]), abs=1e-11)


def test_a_start_takes_as_long_as_its_downloads(vast: Driver) -> None:
    """First those of the host, then those of the container, each once and paid by size."""
    sizes = {"image_gb": 3, "wheels_gb": 0.1, "weights_gb": 1.9, "download_speed": 1}
    vast.sim("options", sizes)
    offer = next(one for one in vast.search() if one["inet_down_cost"] > 0)
    vast.sim(f"machines/{offer['machine_id']}", {"inet_down": 80})
    number = vast.rent(offer, runtype="args", onstart="/bin/sh", args=["-c", "echo x; sleep 300"])
    vast.advance(359)
    assert vast.show(number)["actual_status"] == "loading"
    vast.advance(1)
    assert vast.show(number)["actual_status"] == "running"
    vast.advance(199)
    assert vast.truth(number)["pid"] is None
    vast.advance(1)
    assert vast.truth(number)["pid"] is not None
    paid = pytest.approx(5 * offer["inet_down_cost"])
    assert float(vast.bill(number)["download_dollars"]) == paid
    vast.do(number, "preempt", outage_seconds=10)
    vast.advance(10 + 60)
    assert vast.truth(number)["num_starts"] == 2
    assert vast.truth(number)["pid"] is not None
    assert float(vast.bill(number)["download_dollars"]) == paid


def test_an_image_without_an_ssh_server_boots_longer_where_one_is_asked_for(vast: Driver) -> None:
    vast.sim("options", {"ssh_seconds": 90, "ssh_images": ["with-ssh"]})
    offers = vast.search()
    rents = [
        vast.rent(offers[0], runtype="args"),
        vast.rent(offers[1], runtype="ssh_proxy", image="with-ssh"),
        vast.rent(offers[2], runtype="ssh_proxy"),
    ]
    vast.advance(60)
    states = [vast.show(number)["actual_status"] for number in rents]
    assert states == ["running", "running", "loading"]
    assert [vast.truth(number)["has_door"] for number in rents] == [False, True, True]
    vast.advance(90)
    assert vast.show(rents[2])["actual_status"] == "running"


def test_some_offers_are_parts_of_a_computer(vast: Driver) -> None:
    shares = {offer["gpu_frac"] for offer in vast.search(limit=64)}
    assert 1.0 in shares
    assert min(shares) == 1 / 8


def test_an_offer_is_used_once(vast: Driver) -> None:
    offer = vast.search()[0]
    number = vast.rent(offer)
    assert offer["id"] not in {other["id"] for other in vast.search(limit=64)}
    again = vast.create(offer["id"], price=1.0, cancel_unavail=True)
    assert (again.status_code, again.json()["error"]) == (410, "no_such_ask")
    vast.destroy(number)
    back = [one for one in vast.search() if one["machine_id"] == offer["machine_id"]]
    assert [one["id"] == offer["id"] for one in back] == [False]
