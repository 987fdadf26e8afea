"""The books of a machine whose flow died: traffic once, its times, its row in the bill."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.fakes.fleet import Fleet, assert_settled, spent, when_training
from tests.fakes.mortal_flow import Flow
from tsgb.cloud.bill import MachineBill, make_bill
from tsgb.cloud.budget import Ledger
from tsgb.cloud.retry_policy import Limits
from tsgb.errors import WorkerFailed

pytestmark = pytest.mark.integration

STEPS = 3000
SAVE = 2 * 10**9
"""Bytes of a checkpoint; what they cost is far over a cent."""


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet(steps=STEPS, save_bytes=SAVE) as made:
        yield made


def killed_while_training(fleet: Fleet, after: float = 400.0) -> None:
    flow = Flow(fleet)

    def kill(_number: int) -> None:
        flow.mortal.dead = True

    when_training(fleet, kill, after)
    assert flow.run() == "killed"


def rows(fleet: Fleet) -> tuple[MachineBill, ...]:
    ledger = Ledger.open(fleet.store, 5_000_000)
    return make_bill(fleet.documents, ledger, fleet.progress()).machines


def test_traffic_of_an_adopted_machine_is_counted_once(fleet: Fleet) -> None:
    killed_while_training(fleet)
    assert Flow(fleet).run() == "done"
    bill = fleet.bill()["instances"].values()
    assert len(bill) == 1, "the second flow went on with the machine of the first"
    assert sum(float(one["upload_dollars"]) for one in bill) > 0.1
    assert_settled(fleet)


def test_an_adopted_machine_booted_when_it_did(fleet: Fleet) -> None:
    killed_while_training(fleet)
    assert Flow(fleet).run() == "done"
    [row] = rows(fleet)
    assert row.boot_seconds is not None
    assert row.boot_seconds < 200, "and not when the second flow saw it first"
    assert row.hold_seconds > 0.9 * STEPS
    assert (row.updates, row.lost_updates) == (STEPS, 0)
    assert row.useful_seconds == STEPS, "a step takes a second"


def test_traffic_of_a_machine_that_outlived_its_flow_is_in_the_books(fleet: Fleet) -> None:
    killed_while_training(fleet)
    fleet.advance(3600)  # its lease ends, and it ends itself
    assert fleet.live() == []
    assert Flow(fleet).run() == "done"
    assert_settled(fleet)
    first, second = rows(fleet)
    assert first.boot_seconds is not None
    assert first.hold_seconds > 400
    assert (first.updates > 0, first.updates + second.updates) == (True, STEPS)
    assert fleet.documents.endings()[0].step == first.updates


def test_a_machine_whose_number_was_never_written_down_is_in_the_bill(fleet: Fleet) -> None:
    flow = Flow(fleet, kill_at="create answered")
    assert flow.run() == "killed"
    page = fleet.documents.attempt(1)
    assert page is not None
    assert page.instance_id is None
    assert Flow(fleet).run() == "done"
    [row] = rows(fleet)
    assert row.instance_id == int(next(iter(fleet.bill()["instances"])))
    assert Decimal(str(row.dollars)) == pytest.approx(spent(fleet), abs=Decimal("0.01"))


def test_downloads_of_machines_that_never_report_are_in_the_books() -> None:
    with Fleet(starts=False, wheels_gb="5", download_speed=1.0) as fleet:
        with pytest.raises(WorkerFailed):
            Flow(fleet, limits=Limits(infra=4)).run()
        downloads = [float(one["download_dollars"]) for one in fleet.bill()["instances"].values()]
        assert sum(downloads) > 0.05
        assert_settled(fleet)


def test_downloads_that_a_machine_tells_of_are_counted_once(tmp_path: Path) -> None:
    with Fleet(directory=tmp_path, wheels_gb="5", download_speed=1.0) as fleet:
        killed_while_training(fleet)
        fleet.advance(3600)
        fleet.reap()
        flow = Flow(fleet)
        assert flow.run() == "done"
        assert_settled(fleet)
