"""Ending a machine by hand: it is asked first, and is given time but not for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.fakes.vast.renter import Scene, scene
from tsgb.cloud.documents import RunDocuments
from tsgb.cloud.inventory import DeploymentRuns, take_inventory
from tsgb.cloud.lease import SKEW, revoke
from tsgb.cloud.reaper import ReapedInstance
from tsgb.cloud.terminate_by_hand import REASON, pick, terminate_by_hand
from tsgb.errors import StoreUnreachable

pytestmark = pytest.mark.integration

GRACE = timedelta(seconds=90)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Scene]:
    (tmp_path / "store" / "other").mkdir(parents=True)
    with scene(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def number(here: Scene) -> int:
    """A machine that works under a lease."""
    here.lease("r1", 1)
    number = here.rent("tsgb/home/r1/1")
    here.documents("r1").run.write_json("machines/0001/beat.json", {"step": 7})
    return number


def end(
    here: Scene,
    number: int,
    runs: DeploymentRuns | None = None,
    on_sleep: Callable[[], None] = lambda: None,
) -> tuple[list[ReapedInstance], list[str], timedelta]:
    """What came of it, what was said, how long it took."""
    runs = runs or here.runs
    said: list[str] = []

    def sleep(seconds: float) -> None:
        here.sim.advance(seconds)
        on_sleep()

    inventory = take_inventory(here.vast, runs, "home", now=here.now)
    began = here.now()
    items = terminate_by_hand(
        here.vast,
        runs,
        pick(inventory, [number, number], force=True, deployment="home", skew=SKEW),
        now=here.now,
        sleep=sleep,
        grace=GRACE,
        skew=SKEW,
        note=said.append,
    )
    return items, said, here.now() - began


def test_a_machine_that_has_saved_is_not_waited_for(here: Scene, number: int) -> None:
    documents, began = here.documents("r1"), here.now()

    def save() -> None:
        lease = documents.lease()
        assert lease is not None
        assert lease.stop == REASON, "it is asked before anything else happens"
        if here.now() - began > timedelta(seconds=10):
            documents.run.write_json("machines/0001/exit.json", {"outcome": "interrupted"})

    [item], said, took = end(here, number, on_sleep=save)
    assert item.gone
    assert said == [f"asking instance {number} to save first"]
    assert timedelta(seconds=10) < took < timedelta(seconds=30)
    assert here.live() == set()


def test_one_that_destroys_itself_meanwhile_is_gone_all_the_same(here: Scene, number: int) -> None:
    [item], _, took = end(here, number, on_sleep=lambda: here.sim.destroy(number) and None)
    assert item.gone
    assert took < timedelta(seconds=30)


def test_one_that_says_nothing_is_waited_for_as_long_as_it_may_take(
    here: Scene, number: int
) -> None:
    lease = here.documents("r1").lease()
    assert lease is not None
    here.documents("r1").put_lease(revoke(lease, "budget"))
    [item], _, took = end(here, number)
    assert item.gone
    assert took >= GRACE
    stopped = here.documents("r1").lease()
    assert stopped is not None
    assert stopped.stop == "budget", "the first reason stands"


def test_one_that_never_came_to_work_has_nothing_to_save(here: Scene, number: int) -> None:
    here.documents("r1").run.delete("machines/0001/beat.json")
    [item], said, took = end(here, number)
    assert item.gone
    assert said == []
    assert took < GRACE
    lease = here.documents("r1").lease()
    assert lease is not None
    assert lease.stop == REASON, "it must not begin"


def test_a_store_that_is_away_does_not_keep_it_alive(here: Scene, number: int) -> None:
    class Away(DeploymentRuns):
        def documents(self, run: str) -> RunDocuments:
            raise StoreUnreachable(f"{run}: no answer")

    [item], said, took = end(here, number, Away(url=here.runs.url))
    assert item.gone
    assert said == [f"instance {number} could not be asked to save: r1: no answer"]
    assert "its account is open" in str(item)
    assert took < GRACE
    assert here.live() == set()
