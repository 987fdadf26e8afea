"""What a rented host writes into its run ends neither the flow nor the reaper for other runs."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.fakes.fleet import DEAF, Fleet, assert_settled, causes, spent, when_training
from tests.fakes.mortal_flow import Flow
from tests.fakes.vast.renter import Scene, scene
from tsgb.checkpoint.filesystem import open_filesystem
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.inventory import Coverage, take_inventory
from tsgb.cloud.lease import SKEW, TTL, end
from tsgb.cloud.reaper import ReapReport, reap
from tsgb.errors import BudgetReached, ConfigError, WorkerFailed

pytestmark = pytest.mark.integration

DEAD = (TTL + SKEW).total_seconds() + 60
DEEP = b"[" * 200_000
HALF = b"{"
REPORTS = ("machines/0001/beat.json", "machines/0001/exit.json")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Scene]:
    """An account without any instance, and a store with one run that is nobody's here."""
    (tmp_path / "store" / "other").mkdir(parents=True)
    with scene(tmp_path / "store", boot_seconds=(60, 60)) as opened:
        yield opened


def round_of(here: Scene) -> ReapReport:
    return reap(here.vast, here.runs, "home", now=here.now, sleep=here.sim.advance)


@pytest.mark.parametrize("name", REPORTS)
def test_a_frozen_host_that_leaves_half_a_report_is_destroyed(name: str) -> None:
    with Fleet(steps=2400) as fleet:

        def freeze(number: int) -> None:
            fleet.boxes[number].beat_at = float("inf")
            fleet.seen_by(1).write_bytes(name, HALF)

        when_training(fleet, freeze)
        assert Flow(fleet).run() == "done"
        assert causes(fleet)[0] == "host_lost"
        assert_settled(fleet)


LAST = "9999-12-31T23:59:59+00:00"
STRANGE = {
    "half": "{",
    "last day": f'{{"ended_at": "{LAST}", "updated_at": "{LAST}"}}',
    "first day": '{"ended_at": "0001-01-01T00:00:00+14:00"}',
    "many bytes": f'{{"bytes_up": {"9" * 19}, "bytes_down": {"9" * 19}}}',
}


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("report", STRANGE)
def test_the_next_flow_recovers_from_a_strange_report(name: str, report: str) -> None:
    with Fleet() as fleet:
        assert Flow(fleet, kill_at="training").run() == "killed"
        fleet.advance(DEAD)
        fleet.seen_by(1).write_text(name, STRANGE[report])
        assert Flow(fleet).run() == "done"
        assert fleet.live() == []
        assert fleet.bill()["max_live"] == 1


def test_numbers_that_are_none_count_nothing() -> None:
    with Fleet() as fleet:

        def lie(number: int) -> None:
            fleet.boxes[number].bytes_up = -(10**9)

        when_training(fleet, lie)
        assert Flow(fleet).run() == "done"
        assert_settled(fleet)


def test_traffic_that_no_line_carries_is_not_believed() -> None:
    """A claim of 10 TB ended a run at a thousandth of its budget."""
    with Fleet(steps=1500) as fleet:

        def lie(number: int) -> None:
            fleet.boxes[number].bytes_up = 10**13

        when_training(fleet, lie)
        flow = Flow(fleet, budget="20")
        assert flow.run() == "done"
        assert len([line for line in flow.told if "more than its line carries" in line]) == 1
        [account] = fleet.ledger("20").accounts.values()
        seconds = account.usage.storage_us / 1e6
        assert account.usage.bytes_up <= seconds * account.bandwidth.up_per_second


def test_a_ledger_that_was_rewritten_gives_a_run_no_second_budget(tmp_path: Path) -> None:
    """Without an exchange of its own, a machine has the password of the whole store."""
    journal = RunStore(open_filesystem(str(tmp_path)), str(tmp_path))
    with Fleet(steps=20_000) as fleet:
        for _ in range(3):
            flow = Flow(fleet, budget="0.05", journal=journal)
            with pytest.raises(BudgetReached):
                flow.run()
            for name in ("budget.json", *(f"attempts/{n:04d}.json" for n in (1, 2, 3))):
                fleet.files.delete(name)
        assert any("journal" in line for line in flow.told)
        assert fleet.live() == []
        assert spent(fleet) <= Decimal("0.05")


def test_a_ledger_that_is_gone_with_its_machine_at_work_is_made_up_for() -> None:
    """On another computer: the row of the instance tells what it has cost."""
    with Fleet(steps=20_000) as fleet:
        flow = Flow(fleet)

        def die(_number: int) -> None:
            flow.mortal.dead = True

        when_training(fleet, die, after=3600)
        assert flow.run() == "killed"
        for name in ("budget.json", "attempts/0001.json"):
            fleet.files.delete(name)
        budget = f"{spent(fleet) + Decimal('0.02'):.4f}"
        again = Flow(fleet, budget=budget)
        with pytest.raises(BudgetReached):
            again.run()
        assert any("count as spent" in line for line in again.told)
        assert fleet.live() == []
        # Not by the minutes by which two clocks may differ, nor the traffic, which is in no row.
        assert spent(fleet) <= Decimal(budget) + Decimal("0.03")


def test_the_next_flow_does_not_believe_it_either() -> None:
    with Fleet(steps=3000) as fleet:
        assert Flow(fleet, kill_at="training", budget="20").run() == "killed"
        fleet.advance(DEAD)
        fleet.seen_by(1).write_text(REPORTS[0], '{"bytes_up": 10000000000000}')
        assert Flow(fleet, budget="20").run() == "done"


@pytest.mark.parametrize("document", [DEEP, HALF, b'{"run":' + b"9" * 5000 + b"}", b"\xff"])
def test_one_runs_lease_does_not_keep_the_machines_of_others(here: Scene, document: bytes) -> None:
    here.lease("bad", 1)
    bad = here.rent("tsgb/home/bad/1")
    here.documents("bad").run.write_bytes("lease.json", document)
    orphan = here.rent("tsgb/home/good/1")
    here.sim.advance(3 * 60)
    items = take_inventory(here.vast, here.runs, "home", now=here.now).items
    assert [item.coverage for item in items] == [Coverage.UNKNOWN, Coverage.DOOMED]
    found = round_of(here)
    assert here.live() == {bad}
    assert [item.item.instance.id for item in found.left] == [bad], "a person is told of it"
    assert orphan not in here.live()


@pytest.mark.parametrize("name", ["budget.json", "attempts/0001.json", *REPORTS])
def test_one_runs_books_do_not_keep_the_machines_of_others(here: Scene, name: str) -> None:
    for run in ("bad", "good"):
        here.documents(run).put_lease(end(here.lease(run, 1), "done"))
        here.rent(f"tsgb/home/{run}/1")
        here.intend(run, 1)
    here.documents("bad").run.write_bytes(name, DEEP)
    here.sim.advance(3 * 60)
    found = round_of(here)
    assert here.live() == set()
    assert all(item.gone for item in found.items)


def test_a_machine_that_says_it_has_saved_what_is_not_there_is_given_up() -> None:
    with Fleet() as fleet:
        fleet.liars = {1}
        assert Flow(fleet).run() == "done"
        assert causes(fleet) == ["bad_host", "done"]
        assert_settled(fleet)


def test_a_host_that_says_done_and_has_done_nothing_is_avoided() -> None:
    with Fleet() as fleet:
        fleet.claims = {1: "done", 2: "done"}
        assert Flow(fleet).run() == "done"
        assert causes(fleet) == ["bad_host", "bad_host", "done"]
        machines = [found.intent.machine_id for found in fleet.documents.attempts() if found.intent]
        assert len(set(machines)) == 3
        assert_settled(fleet)


def test_one_host_that_says_another_would_fail_alike_ends_no_run() -> None:
    with Fleet() as fleet:
        fleet.claims = {1: "config", 2: "lease_lost", 3: "disk_full", 4: "crash"}
        assert Flow(fleet).run() == "done"
        assert causes(fleet) == ["config", "lease_lost", "disk_full", "worker", "done"]
        hosts = [found.intent.host_id for found in fleet.documents.attempts() if found.intent]
        assert len(set(hosts)) == 5, "each of them was left for another host"
        assert_settled(fleet)


def test_what_two_hosts_say_does() -> None:
    with Fleet() as fleet:
        fleet.claims = {1: "config", 2: "config"}
        with pytest.raises(ConfigError, match="mend the image"):
            Flow(fleet).run()
        assert_settled(fleet)


def test_hosts_that_say_they_have_saved_and_never_did_are_not_paid_without_end() -> None:
    """Each told of a later step than the one before, which counted as progress."""
    with Fleet(steps=10**6, num_machines=200) as fleet:
        fleet.claims, fleet.boast = dict.fromkeys(range(1, 61), "store_unreachable"), 100
        with pytest.raises(WorkerFailed, match="10 lost or bad hosts without a newer checkpoint"):
            Flow(fleet).run()
        assert causes(fleet) == ["host_lost"] * 10
        assert_settled(fleet)


def test_hosts_that_say_they_are_done_are_not_either() -> None:
    with Fleet(num_machines=200) as fleet:
        fleet.claims, fleet.boast = dict.fromkeys(range(1, 61), "done"), 100
        with pytest.raises(WorkerFailed, match="10 lost or bad hosts without a newer checkpoint"):
            Flow(fleet).run()
        assert causes(fleet) == ["bad_host"] * 10
        assert_settled(fleet)


def test_a_host_that_prolongs_its_own_lease_is_reaped(tmp_path: Path) -> None:
    """It sees a copy of the lease; what it writes there changes nothing for the reaper."""
    with Fleet(directory=tmp_path, machine_reads_lease=False, steps=10**6) as fleet:
        assert Flow(fleet, kill_at="training").run() == "killed"
        far = {"expires_at": LAST, "renewed_at": LAST, "ttl_seconds": 1e9, "stop": None}
        seen = fleet.seen_by(1)
        seen.write_json("lease.json", {**seen.read_json("lease.json"), **far})
        fleet.advance(DEAD)
        assert len(fleet.live()) == 1
        assert fleet.reap().counts()["destroyed"] == 1
        assert fleet.live() == []


def test_a_deadline_ends_a_machine_whose_lease_nobody_can_read(tmp_path: Path) -> None:
    """As where machines have the whole store's password, and write over the lease of record."""
    with Fleet(directory=tmp_path, **DEAF) as fleet:
        assert Flow(fleet, kill_at="training", budget="0.2").run() == "killed"
        fleet.store.write_bytes("lease.json", DEEP)
        fleet.advance(DEAD)
        assert fleet.reap().counts()["unknown"] == 1
        intent = fleet.documents.attempt(1)
        assert intent is not None
        assert intent.intent is not None
        assert intent.intent.ends_at is not None
        left = (intent.intent.ends_at + SKEW - fleet.now()).total_seconds()
        assert left < 8 * 3600, "the budget would not pay for more"
        fleet.advance(left + 60)
        assert fleet.reap().counts()["destroyed"] == 1
        assert fleet.live() == []


def test_what_a_machine_says_cannot_reach_a_terminal() -> None:
    with Fleet() as fleet:

        def fake(number: int) -> None:
            fleet.boxes[number].beat_at = float("inf")
            word = {"outcome": "crash", "message": "\x1b[2J\x07" + "x" * 5000, "step": 1}
            fleet.seen_by(1).write_json("machines/0001/exit.json", word)

        when_training(fleet, fake)
        flow = Flow(fleet)
        assert flow.run() == "done"
        assert causes(fleet)[0] == "worker"
        assert all(line.isprintable() for line in flow.told)
        assert max(map(len, flow.told)) < 4500
