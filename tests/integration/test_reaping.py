"""The reaper against the simulated service: what it ends, what it leaves alone, what it says."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.vast.renter import Scene, client, scene
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.budget import Ledger
from tsgb.cloud.documents import RunDocuments
from tsgb.cloud.inventory import Coverage, DeploymentRuns, Leases
from tsgb.cloud.lease import SKEW, TTL, end, grant, revoke
from tsgb.cloud.policy import LaunchPolicy
from tsgb.cloud.pricing import Rates, in_dollars, microdollars
from tsgb.cloud.reaper import ReapReport, reap
from tsgb.cloud.recover import reconcile
from tsgb.cloud.session import Session
from tsgb.cloud.termination import TerminationReason
from tsgb.errors import ProviderAuthError, ProviderError, StoreUnreachable

pytestmark = pytest.mark.integration

MINUTE = 60
DEAD = (TTL + SKEW).total_seconds() + MINUTE
"""After which a lease of a dead flow covers nothing."""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Scene]:
    """An account without any instance, and a store with one run that is nobody's here."""
    (tmp_path / "store" / "other").mkdir(parents=True)
    with scene(tmp_path / "store", boot_seconds=(60, 60)) as opened:
        yield opened


def round_of(here: Scene, **more: Any) -> ReapReport:
    given: dict[str, Any] = {"now": here.now, "sleep": here.sim.advance, **more}
    return reap(given.pop("vast", here.vast), here.runs, "home", **given)


def spend(here: Scene, run: str, attempt: int) -> Ledger:
    ledger = Ledger.open(here.documents(run).run, microdollars(5))
    row = here.sim.sim("state")["instances"][-1]
    machine = next(
        one for one in here.sim.sim("state")["machines"] if one["machine_id"] == row["machine_id"]
    )
    rates = Rates.of(
        price=float(row["bid"]), disk_gb=20, storage_cost=float(machine["storage_cost"])
    )
    ledger.reserve(attempt, rates, here.now())
    return ledger


def test_a_dead_flow_leaves_a_machine_that_is_ended_and_paid(here: Scene) -> None:
    here.lease("r1", 1)
    number = here.rent("tsgb/home/r1/1")
    here.intend("r1", 1, number)
    spend(here, "r1", 1)
    here.sim.advance(5 * MINUTE)
    assert round_of(here).counts()["covered"] == 1
    assert here.deletes() == []

    here.sim.advance(DEAD)
    found = round_of(here)
    [item] = found.items
    assert (item.item.coverage, item.gone, found.left) == (Coverage.DOOMED, True, [])
    assert here.live() == set()
    outcome = here.documents("r1").attempt(1)
    assert outcome is not None
    assert outcome.result is not None
    assert outcome.result.cause is TerminationReason.STOPPED
    bill = float(here.sim.bill(number)["dollars"])
    account = Ledger.open(here.documents("r1").run, 0).accounts[1]
    assert account.charged is not None
    assert account.charged == item.charged
    assert account.charged / 1e6 == pytest.approx(bill, abs=0.01)
    assert here.documents("r1").run.read_json("budget.json")["budget_microdollars"] == 5_000_000
    cost = in_dollars(account.charged)
    assert found.lines() == [
        f"destroyed instance {number} (tsgb/home/r1/1): {item.item.why}, it cost {cost}",
        "1 instances: 1 destroyed, 0 leased, 0 left to look after, 0 of others",
    ]
    again = round_of(here)
    assert again.items == ()


def test_the_next_flow_finds_its_books_closed(here: Scene) -> None:
    here.lease("r1", 1)
    here.intend("r1", 1, here.rent("tsgb/home/r1/1"))
    spend(here, "r1", 1)
    here.sim.advance(DEAD)
    assert round_of(here).left == []
    before = here.documents("r1").run.read_bytes("attempts/0001.json")
    session = Session(
        documents=here.documents("r1"),
        provider=here.vast,
        launch_policy=LaunchPolicy(budget=microdollars(5), cap=0.3),
        owner="the next flow",
        now=here.now,
        clock=lambda: here.now().timestamp(),
        sleep=here.sim.advance,
    )
    assert reconcile(session) is None
    assert here.documents("r1").run.read_bytes("attempts/0001.json") == before
    assert session.grant(2).attempt == 2


def test_an_outbid_machine_is_charged_its_gpu_no_longer_than_its_lease(here: Scene) -> None:
    here.sim.sim("options", {"auto_resume": False})
    here.lease("r1", 1)
    number = here.rent("tsgb/home/r1/1")
    here.intend("r1", 1, number)
    account = spend(here, "r1", 1).accounts[1]
    here.documents("r1").run.write_json(
        "machines/0001/beat.json",
        {
            "updated_at": (here.now() + timedelta(minutes=18)).isoformat(),
            "arms": {"selfplay": {"step": 90, "durable_step": 80}, "sft": {"durable_step": -1}},
            "bytes_up": 2_000,
            "bytes_down": 3_000,
        },
    )
    here.sim.advance(18 * MINUTE)
    here.sim.do(number, "preempt", outage_seconds=1e6)
    here.sim.advance(10 * 3600)
    [item] = round_of(here).items
    assert item.gone
    page = here.documents("r1").attempt(1)
    assert page is not None
    assert page.result is not None
    assert (page.result.cause, page.result.step) == (TerminationReason.PREEMPTED, 80)
    assert page.result.hold_seconds == pytest.approx(18 * MINUTE)
    charged = Ledger.open(here.documents("r1").run, 0).accounts[1]
    assert charged.usage.gpu_us == TTL.total_seconds() * 1e6
    assert (charged.usage.bytes_up, charged.usage.bytes_down) == (2_000, 3_000)
    bill = float(here.sim.bill(number)["dollars"])
    slack = account.rates.gpu_per_hour / 1e6 * 4 / 60  # two of its lease, and what it booted
    assert bill <= (charged.charged or 0) / 1e6 <= bill + slack


@pytest.mark.parametrize(
    "label",
    [
        "tsgb/work/r1/1",
        "tsgb/home/r1",
        "tsgb/home/r1/1/x",
        "mytool/7",
        None,
        "",
    ],
)
def test_others_are_never_touched(here: Scene, label: str | None) -> None:
    number = here.rent(label)  # pyright: ignore[reportArgumentType]
    mine = here.rent("tsgb/home/r1/1")
    here.sim.advance(24 * 3600)
    found = round_of(here)
    assert here.live() == {number}
    assert here.deletes() == [f"/api/v0/instances/{mine}/"]
    assert [item.item.instance.id for item in found.of(Coverage.FOREIGN)] == [number]
    assert found.left == []


def test_no_more_than_ten_at_once(here: Scene) -> None:
    numbers = [here.rent("tsgb/home/r1/1") for _ in range(12)]
    here.sim.advance(10 * MINUTE)
    found = round_of(here)
    assert here.live() == set(numbers[10:])
    assert [item.item.instance.id for item in found.left] == numbers[10:]
    assert "too many at once" in found.lines()[-2]
    assert round_of(here).left == []
    assert here.live() == set()


@pytest.mark.parametrize(
    "change", ["ended", "newer", "other instance", "no lease", "another run's"]
)
def test_what_a_lease_does_not_cover_goes(here: Scene, change: str) -> None:
    lease = here.lease("r1", 1)
    number = here.rent("tsgb/home/r1/1")
    documents = here.documents("r1")
    match change:
        case "ended":
            documents.put_lease(end(lease, "done"))
        case "newer":
            here.lease("r1", 2)
        case "other instance":
            here.lease("r1", 1, instance_id=number + 1)
        case "no lease":
            documents.run.delete("lease.json")
        case _:
            here.sim.put(f"{number}", {"label": "tsgb/home/r2/1"})
    here.intend("r1", 1, number)
    before = documents.run.read_bytes("attempts/0001.json")
    here.sim.advance(3 * MINUTE)
    assert round_of(here).left == []
    assert here.live() == set()
    after = documents.run.read_bytes("attempts/0001.json")
    assert (after != before) is (change == "ended"), "a live flow is the one writer of its run"


@pytest.mark.parametrize("minutes", [-10, 10])
def test_clocks_may_differ_by_ten_minutes(here: Scene, minutes: int) -> None:
    """The reaper's against the flow's, whose lease is as old as one look at its machine."""
    off = timedelta(minutes=minutes)
    here.lease("r1", 1)
    number = here.rent("tsgb/home/r1/1")
    here.sim.advance(5 * MINUTE)
    lease = here.documents("r1").lease()
    assert lease is not None
    for age in (0, (TTL - timedelta(seconds=1)).total_seconds()):
        renewed = here.now() - timedelta(seconds=age)
        here.documents("r1").put_lease(grant(None, run="r1", attempt=1, owner="f", now=renewed))
        assert round_of(here, now=lambda: here.now() + off).counts()["covered"] == 1
    assert here.live() == {number}


class Unreadable(DeploymentRuns):
    """A store that tells nothing about some runs; real code for all others."""

    def documents(self, run: str) -> RunDocuments:
        if run == "z-away":
            raise StoreUnreachable("no answer for 60 s")
        return super().documents(run)


def test_an_unreadable_lease_is_not_an_absent_one(here: Scene) -> None:
    damaged = here.rent("tsgb/home/damaged/1")
    reserved = here.rent("tsgb/home/latest/1")
    away = here.rent("tsgb/home/z-away/1")
    here.documents("damaged").run.write_text("lease.json", '{"run": "dam')
    here.sim.advance(24 * 3600)
    runs = Unreadable(url=here.runs.url, deadline_seconds=0.1)
    found = reap(here.vast, runs, "home", now=here.now, sleep=here.sim.advance)
    assert here.live() == {damaged, reserved, away}
    assert here.deletes() == []
    assert len(found.left) == 3
    told = "\n".join(found.lines())
    assert "not a JSON object" in told
    assert "no answer for 60 s" in told
    assert "'latest'" in told


def test_a_store_that_is_not_there_says_nothing(here: Scene, tmp_path: Path) -> None:
    """As from another directory, where `./runs` is somewhere else."""
    number = here.rent("tsgb/home/r1/1")
    here.sim.advance(24 * 3600)
    elsewhere = DeploymentRuns(url=str(tmp_path / "elsewhere"), deadline_seconds=0.1)
    found = reap(here.vast, elsewhere, "home", now=here.now, sleep=here.sim.advance)
    assert here.live() == {number}
    assert "is it the one that flows use?" in found.lines()[0]


def test_a_store_that_does_not_answer_is_asked_once(here: Scene) -> None:
    asked: list[str] = []

    class Away(DeploymentRuns):
        def documents(self, run: str) -> RunDocuments:
            asked.append(run)
            raise StoreUnreachable("no answer")

    runs = Away(url=here.runs.url)
    assert runs.leases(["b", "a", "c"]) == Leases({}, dict.fromkeys("abc", "no answer"))
    assert asked == ["a"]


@pytest.mark.parametrize(
    "fault",
    [
        {"act": "answer", "preset": "bad_gateway"},
        {"act": "answer", "preset": "instances_null"},
        {"act": "answer", "preset": "deprecated"},
        {"act": "partial", "rows": 0},
        {"act": "truncate"},
        {"act": "close"},
    ],
    ids=lambda fault: str(fault.get("preset", fault["act"])),
)
def test_a_list_that_was_not_read_is_no_empty_one(here: Scene, fault: dict[str, Any]) -> None:
    number = here.rent("tsgb/home/r1/1")
    here.sim.advance(24 * 3600)
    here.sim.sim("faults", {"path": "/v1/instances", "times": None, **fault})
    with pytest.raises(ProviderError) as error:
        round_of(here)
    assert "Vast.ai, the list of instances" in str(error.value)
    assert here.live() == {number}


@pytest.mark.parametrize("preset", ["auth_error", "auth_error_401", "forbidden"])
def test_a_revoked_key_proves_nothing(here: Scene, preset: str) -> None:
    number = here.rent("tsgb/home/r1/1")
    here.sim.advance(24 * 3600)
    fault = {"path": "/instances/", "act": "answer", "preset": preset, "times": None}
    here.sim.sim("faults", {**fault, "skip": 1})
    found = round_of(here)
    assert [item.item.instance.id for item in found.left] == [number]
    assert "set VAST_API_KEY to a key with the permissions" in found.lines()[0]
    with pytest.raises(ProviderAuthError):
        round_of(here)
    assert here.live() == {number}


@pytest.mark.parametrize(
    "fault",
    [
        {"method": "DELETE", "act": "answer", "preset": "unavailable", "times": 3},
        {"method": "DELETE", "act": "close", "times": 2},
        {"method": "DELETE", "act": "close", "when": "after", "times": 2},
        {"method": "DELETE", "act": "answer", "preset": "success_false", "times": 2},
        {"method": "DELETE", "act": "answer", "preset": "too_frequent_text", "times": 2},
        {"method": "GET", "path": "/v1/", "skip": 1, "act": "answer", "preset": "odd_list"},
        {"method": "GET", "path": "/v0/instances/7", "act": "answer", "preset": "not_json"},
    ],
    ids=lambda fault: f"{fault['method']} {fault.get('preset', fault['act'])}",
)
def test_a_destruction_is_insisted_on(here: Scene, fault: dict[str, Any]) -> None:
    here.rent("tsgb/home/r1/1")
    here.sim.advance(24 * 3600)
    here.sim.sim("faults", fault)
    assert round_of(here).left == []
    assert here.live() == set()


def test_a_destroyed_instance_may_be_listed_for_a_while(here: Scene) -> None:
    here.sim.sim("options", {"ghost_seconds": 30})
    here.rent("tsgb/home/r1/1")
    here.sim.advance(24 * 3600)
    started = here.now()
    assert round_of(here).left == []
    assert here.now() - started >= timedelta(seconds=30)


def test_what_cannot_be_destroyed_is_said(here: Scene) -> None:
    stuck, other = here.rent("tsgb/home/r1/1"), here.rent("tsgb/home/r2/1")
    here.sim.advance(24 * 3600)
    fault = {"method": "DELETE", "path": f"/{stuck}/", "times": None}
    here.sim.sim("faults", {**fault, "act": "answer", "preset": "success_false"})
    found = round_of(here)
    assert here.live() == {stuck}
    assert [item.item.instance.id for item in found.left] == [stuck]
    assert found.counts()["destroyed"] == 1
    assert found.lines()[0].startswith(f"NOT destroyed: instance {stuck} (tsgb/home/r1/1): run r1")
    assert f"destroyed instance {other}" in found.lines()[1]


def test_a_dry_run_changes_nothing(here: Scene) -> None:
    here.lease("r1", 1)
    number = here.rent("tsgb/home/r1/1")
    here.intend("r1", 1, number)
    here.sim.advance(DEAD)
    before = here.documents("r1").run.read_bytes("attempts/0001.json")
    found = round_of(here, dry_run=True)
    assert here.live() == {number}
    assert here.deletes() == []
    assert here.documents("r1").run.read_bytes("attempts/0001.json") == before
    assert found.lines()[0].startswith(f"would destroy instance {number}")
    assert found.lines()[1].startswith("1 instances: 1 to destroy, 0 leased, 0 left")


def test_a_run_that_was_asked_to_stop_keeps_its_machine_until_its_lease_ends(here: Scene) -> None:
    lease = here.lease("r1", 1)
    number = here.rent("tsgb/home/r1/1")
    here.documents("r1").put_lease(revoke(lease, "budget"))
    here.sim.advance(5 * MINUTE)
    [item] = round_of(here).items
    assert item.item.why == "asked to stop: budget"
    assert here.live() == {number}


def test_books_that_cannot_be_closed_do_not_bring_the_machine_back(here: Scene) -> None:
    here.lease("r1", 1)
    number = here.rent("tsgb/home/r1/1")
    here.intend("r1", 1, number)
    spend(here, "r1", 1)
    run: RunStore = here.documents("r1").run
    run.write_text("budget.json", "{")
    run.write_text("attempts/0001.json", "{")
    here.sim.advance(DEAD)
    found = round_of(here)
    assert here.live() == set()
    assert found.left == []
    assert "its account is open" in found.lines()[0]


def test_limits_of_the_service_are_kept(here: Scene) -> None:
    here.sim.sim("options", {"rate_limits": True})
    for run in ("r1", "r2", "r3"):
        here.rent(f"tsgb/home/{run}/1")
        here.sim.advance(20)
    here.sim.advance(24 * 3600)
    with client(here.sim, here.sim.vast.key) as vast:
        assert round_of(here, vast=vast).left == []
    assert here.live() == set()
    seen = here.sim.sim("requests")["requests"]
    assert all(one["status"] != 429 for one in seen)
