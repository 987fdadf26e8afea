"""A run on rented machines, in virtual time: money, keys, clocks, and other users."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from tests.fakes.fleet import MICRO, RUN, Fleet, assert_settled, causes, spent, when_training
from tests.fakes.mortal_flow import Flow
from tsgb.errors import (
    BudgetReached,
    LeaseLost,
    NoOffer,
    ProviderAuthError,
    ProviderNoCredit,
    WorkerFailed,
)

pytestmark = pytest.mark.integration


def test_the_budget_is_never_passed_and_more_of_it_goes_on() -> None:
    with Fleet(steps=7200) as fleet:
        with pytest.raises(BudgetReached, match="raise the budget"):
            Flow(fleet, budget="0.05").run()
        assert fleet.live() == []
        assert spent(fleet) <= Decimal("0.05")
        kept = fleet.progress()
        assert kept > 0, "it saved before it went"
        assert Flow(fleet, budget="5").run() == "done"
        assert fleet.published[-1] == (2, 7200)
        assert_settled(fleet)


def test_a_budget_of_nothing_rents_nothing() -> None:
    with Fleet() as fleet:
        with pytest.raises(BudgetReached):
            Flow(fleet, budget="0").run()
        assert fleet.bill()["instances"] == {}


def test_an_account_without_credit_rents_nothing() -> None:
    with Fleet(credit=0) as fleet:
        with pytest.raises(ProviderNoCredit, match="add some"):
            Flow(fleet).run()
        assert fleet.bill()["instances"] == {}


def test_credit_that_runs_out_ends_the_run_with_its_reason() -> None:
    with Fleet(steps=3000) as fleet:

        def drain(_number: int) -> None:
            credit = Decimal(fleet.bill()["credit"])
            fleet.vast.sim("credit", {"deposit": str(-credit)})

        when_training(fleet, drain)
        with pytest.raises((BudgetReached, ProviderNoCredit), match="credit"):
            Flow(fleet).run()
        assert fleet.live() == []


def test_no_offer_under_the_cap_says_how_near_the_nearest_is() -> None:
    with Fleet() as fleet:
        with pytest.raises(NoOffer, match=r"no offer under the cap of \$0.010/h: nearest is"):
            Flow(fleet, cap=0.01).run()
        assert fleet.bill()["instances"] == {}


def test_a_used_up_search_quota_is_waited_for_no_longer_than_allowed() -> None:
    with Fleet(searches_per_day=0) as fleet:
        with pytest.raises(NoOffer, match="search_quota"):
            Flow(fleet).run()
        assert fleet.bill()["instances"] == {}


@pytest.mark.parametrize("preset", ["auth_error", "auth_error_401", "forbidden"])
def test_a_revoked_key_is_no_empty_account(preset: str) -> None:
    """The flow can end nothing any more, but the machine can: its lease is revoked."""
    with Fleet(steps=3000) as fleet:
        flow = Flow(fleet)
        when_training(fleet, lambda _: setattr(flow.mortal, "refused", preset))
        with pytest.raises(ProviderAuthError):
            flow.run()
        fleet.advance(120)
        assert fleet.live() == []
        assert fleet.progress() > 0
        assert Flow(fleet).run() == "done"
        assert_settled(fleet)


def test_of_two_flows_one_works() -> None:
    with Fleet(steps=3000) as fleet:
        flow = Flow(fleet)
        second: list[str] = []

        def begin(_number: int) -> None:
            with pytest.raises(LeaseLost, match="stop that flow"):
                Flow(fleet, owner="another").run()
            second.append("was refused")

        flow.mortal.on_sleep = _once(fleet, begin)
        assert flow.run() == "done"
        assert second == ["was refused"]
        assert_settled(fleet)


def _once(fleet: Fleet, what: Callable[[int], object]) -> Callable[[], None]:
    done = False

    def look() -> None:
        nonlocal done
        trains = [box for box in fleet.boxes.values() if box.trains]
        if trains and not done:
            done = True
            what(trains[0].number)

    return look


@pytest.mark.parametrize("label", [None, "mine", "tsgb/other/r1/1", f"tsgb/home/{RUN}x/1"])
def test_nobody_elses_instance_is_touched(label: str | None) -> None:
    with Fleet() as fleet:
        others = fleet.vast.rent(label=label)
        assert Flow(fleet).run() == "done"
        assert fleet.live() == [others]


@pytest.mark.parametrize("minutes", [-10, 10])
def test_clocks_may_differ_by_ten_minutes(minutes: int) -> None:
    with Fleet(steps=1800) as fleet:
        flow = Flow(fleet)
        true = fleet.now

        def wrong() -> datetime:
            return true() + timedelta(minutes=minutes)

        flow.session.now = wrong
        when_training(fleet, lambda number: fleet.vast.do(number, "preempt", outage_seconds=300))
        assert flow.run() == "done"
        assert causes(fleet) == ["preempted", "done"]
        assert_settled(fleet)


def test_a_worker_that_hangs_twice_at_one_step_ends_the_run() -> None:
    with Fleet(steps=10**6, save_seconds=10**6) as fleet:
        with pytest.raises(WorkerFailed, match="failed twice after step 0"):
            Flow(fleet, budget="50").run()
        assert fleet.live() == []


def test_machines_that_never_start_end_the_run() -> None:
    """Each destroys itself without a word, which looks like a preemption and is none."""
    with Fleet(starts=False, num_machines=200) as fleet:
        with pytest.raises(WorkerFailed, match="it never reported; 10 lost or bad hosts"):
            Flow(fleet).run()
        assert causes(fleet) == ["bad_host"] * 10
        assert fleet.live() == []


def test_preemptions_that_lead_nowhere_end_the_run() -> None:
    with Fleet(save_seconds=7200, steps=7200) as fleet:

        def preempt(number: int) -> None:
            fleet.vast.do(number, "preempt", outage_seconds=900)
            when_training(fleet, preempt)

        when_training(fleet, preempt)
        with pytest.raises(WorkerFailed, match="25 machines in a row without a newer checkpoint"):
            Flow(fleet).run()
        assert fleet.live() == []


def test_a_store_that_is_away_for_minutes_ends_nothing() -> None:
    with Fleet(steps=1500) as fleet:
        flow: Flow = Flow(fleet)
        when_training(fleet, lambda _: flow.mortal.cut_store(300))
        assert flow.run() == "done"
        assert causes(fleet) == ["done"]
        assert_settled(fleet)


SERVICE_FAILS = ["too_frequent_detail", "internal"]


@pytest.mark.parametrize("preset", SERVICE_FAILS)
def test_ten_minutes_in_which_the_service_answers_nothing_end_no_run(preset: str) -> None:
    """They hit the start, a machine at work, and the search for its successor."""
    with Fleet(steps=3000) as fleet:
        flow = Flow(fleet)

        def begin(_number: int = 0) -> None:
            flow.mortal.refused = preset
            fleet.at(600, lambda: setattr(flow.mortal, "refused", None))

        def begin_and_preempt(number: int) -> None:
            begin()
            fleet.at(60, lambda: fleet.vast.do(number, "preempt", outage_seconds=1800))

        begin()
        when_training(fleet, begin, 60)
        when_training(fleet, begin_and_preempt, 1000)
        assert flow.run() == "done"
        assert fleet.live() == []
        assert fleet.bill()["max_live"] == 1
        # A GPU that nobody could look at counts as billed.
        assert Decimal(fleet.ledger().spent) / MICRO >= spent(fleet)


def test_rentals_that_nobody_takes_for_ten_minutes_speak_against_no_machine() -> None:
    with Fleet() as fleet:
        too_often = {"method": "PUT", "path": "/asks/", "act": "answer", "times": None}
        fleet.vast.sim("faults", {**too_often, "preset": "too_frequent_detail"})
        fleet.at(600, lambda: fleet.vast.http.delete("/_sim/faults"))
        assert Flow(fleet).run() == "done"
        assert set(causes(fleet)) == {"stopped", "done"}
        assert len({ending.machine_id for ending in fleet.documents.endings()}) == 1
        assert_settled(fleet)
