"""A look at a machine: what ends it, what is only told, and what never ends anything."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from tests.fakes.second_provider import Server
from tests.unit.cloud.conftest import Renting
from tsgb.cloud.monitor import has_said_something, is_there, look, mismatch, watch
from tsgb.cloud.provider import Instance
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.session import Session
from tsgb.cloud.termination import TerminationReason
from tsgb.errors import LeaseLost, ProviderAuthError, ProviderUnreachable


def never(_running: RunningInstance) -> bool:
    """Look until the machine is over."""
    return False


AWAY = ProviderUnreachable("meadow: no answer")


@pytest.fixture
def session(renting: Renting) -> Session:
    return renting.flow()


@pytest.fixture
def running(renting: Renting, session: Session) -> RunningInstance:
    """A machine that has just been rented."""
    return renting.rent(session)


def at_work(renting: Renting) -> None:
    """From now on its server reports one update a second."""

    def work(_server: Server) -> None:
        renting.says(1, int(renting.cloud.clock() - began))

    began, renting.cloud.work = renting.cloud.clock(), work


def test_a_watch_follows_a_machine_from_its_start_to_its_end(
    renting: Renting, session: Session, running: RunningInstance
) -> None:
    at_work(renting)
    steps: list[int] = []
    watch(session, running, is_there)
    assert running.seen
    watch(session, running, has_said_something)
    assert running.boot_seconds == pytest.approx(60, abs=session.monitor_policy.look_seconds)
    watch(
        session,
        running,
        lambda it: it.step >= 200,
        on_look=lambda it: steps.append(it.step),
    )
    assert running.cause is None
    assert steps == sorted(steps)
    renting.says(1, 300, "done")
    watch(session, running, never)
    assert running.cause is TerminationReason.DONE


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"label": None, "is_bid": None, "machine_id": None, "hourly": None}, None),
        ({"hourly": 0.205}, None),
        ({"hourly": 0.25}, r"costs \$0\.250/h, and \$0\.200/h are set aside"),
        ({"is_bid": False}, "on demand"),
        ({"machine_id": 4}, "is machine 4, not 3"),
        ({"label": "tsgb/home/r2/1"}, "label is 'tsgb/home/r2/1'"),
    ],
)
def test_what_was_rented_is_compared_as_far_as_it_is_known(
    running: RunningInstance, change: dict[str, Any], why: str | None
) -> None:
    intent = running.intent.model_copy(update={"machine_id": 3, "hourly": 0.2})
    told = {"label": intent.label, "is_bid": True, "machine_id": 3, "hourly": 0.2}
    found = mismatch(Instance(id=1, **told | change), intent)
    assert (found is None) == (why is None)
    assert why is None or re.search(why, str(found))


def test_a_service_and_a_store_that_are_away_end_nothing(
    renting: Renting, session: Session, running: RunningInstance
) -> None:
    at_work(renting)
    watch(session, running, has_said_something)
    renting.cloud.errors = dict.fromkeys(("show", "list", "credit"), AWAY)
    renting.is_store_away = True
    for _ in range(100):
        look(session, running)
        renting.cloud.at += timedelta(seconds=20)
    assert (running.cause, running.stop) == (None, None)
    assert any("could not be looked at" in line for line in renting.told)
    assert any("the store is away" in line for line in renting.told)
    renting.cloud.errors, renting.is_store_away = {}, False
    at_work(renting)
    renting.cloud.sleep(1)
    look(session, running)
    assert running.cause is None


def test_a_machine_that_was_outbid(
    renting: Renting, session: Session, running: RunningInstance
) -> None:
    at_work(renting)
    watch(session, running, has_said_something)
    renting.cloud.stop(1)
    watch(session, running, never)
    assert running.cause is TerminationReason.PREEMPTED
    assert running.message == "instance 1: EVICTED"


def test_one_that_was_stopped_with_the_credit_used_up_ends_for_want_of_it(
    renting: Renting, session: Session, running: RunningInstance
) -> None:
    at_work(renting)
    watch(session, running, has_said_something)
    renting.cloud.stop(1)
    renting.cloud.dollars = 0.0
    watch(session, running, never)
    assert running.cause is TerminationReason.FUNDS


def test_one_that_never_appears_is_given_up(
    renting: Renting, session: Session, running: RunningInstance
) -> None:
    del renting.cloud.servers[1]
    began = renting.cloud.clock()
    watch(session, running, never)
    assert (running.cause, running.message) == (TerminationReason.BAD_HOST, "it never appeared")
    assert renting.cloud.clock() - began > session.monitor_policy.lag_seconds


def test_silence_is_a_lost_host(
    renting: Renting, session: Session, running: RunningInstance
) -> None:
    at_work(renting)
    watch(session, running, lambda it: it.step > 100)
    renting.cloud.work = lambda _server: None
    watch(session, running, never)
    assert running.cause is TerminationReason.HOST_LOST
    assert running.message.endswith("; no heartbeat for 600 s")
    heard = running.beat_at or 0.0
    assert renting.cloud.clock() - heard == pytest.approx(
        session.monitor_policy.deadlines.heartbeat, abs=21
    )


def test_a_second_machine_of_the_run_is_ended_with_an_alarm(
    renting: Renting, session: Session, running: RunningInstance
) -> None:
    twin = renting.cloud.create(1001, renting.spec(session.label(1, renting.cloud.at)))
    other = renting.cloud.create(1002, renting.spec("tsgb/home/r2/1"))
    look(session, running)
    assert renting.cloud.ended == [twin]
    assert set(renting.cloud.servers) == {1, other}
    assert any(line.startswith(f"alarm: destroying instance {twin}") for line in renting.told)


def test_out_of_money_a_machine_may_save_and_no_longer(renting: Renting) -> None:
    session = renting.flow(budget="0.03")
    running = renting.rent(session)
    at_work(renting)
    watch(session, running, lambda it: it.stop is not None)
    assert running.stop == "the budget is used up"
    asked_at = renting.cloud.clock()
    lease = renting.documents.lease()
    assert lease is not None
    assert lease.stop == "the budget is used up"
    watch(session, running, never)
    assert running.cause is TerminationReason.STOPPED
    grace = session.monitor_policy.grace_seconds
    assert renting.cloud.clock() - asked_at == pytest.approx(grace, abs=21)
    assert session.ledger.spent <= session.ledger.budget


def test_the_lease_is_renewed_while_somebody_looks_and_a_stop_by_hand_is_seen(
    renting: Renting, session: Session, running: RunningInstance
) -> None:
    at_work(renting)
    began = renting.cloud.clock()
    watch(session, running, lambda _: renting.cloud.clock() - began >= 3600)
    lease = renting.documents.lease()
    assert lease is not None
    assert not lease.has_run_out(renting.cloud.at, timedelta(0))
    assert lease.renewals <= 61, "each is a request to the store"
    session.revoke(1, "stopped by hand")
    watch(session, running, lambda it: it.stop is not None)
    assert running.stop == "stopped by hand"


def test_with_a_refused_key_the_machine_is_asked_to_end_itself(
    renting: Renting, session: Session, running: RunningInstance
) -> None:
    renting.cloud.errors["show"] = ProviderAuthError("meadow: the key is refused")
    with pytest.raises(ProviderAuthError):
        look(session, running)
    lease = renting.documents.lease()
    assert lease is not None
    assert lease.stop == "the account's key is refused"


def test_a_flow_that_lost_its_run_does_not_go_on(
    renting: Renting, session: Session, running: RunningInstance
) -> None:
    renting.cloud.at += (
        session.monitor_policy.ttl + session.monitor_policy.skew + timedelta(seconds=1)
    )
    renting.flow("another").grant(2)
    with pytest.raises(LeaseLost):
        look(session, running)


def test_a_machine_moves_before_its_contract_ends(
    renting: Renting, session: Session, running: RunningInstance
) -> None:
    at_work(renting)
    watch(session, running, has_said_something)
    renting.cloud.contract_ends = renting.cloud.at + timedelta(minutes=40)
    watch(session, running, lambda it: it.stop is not None)
    assert running.stop == "its contract or its deadline ends within 30 minutes"
    assert renting.cloud.contract_ends - renting.cloud.at < timedelta(minutes=30)


def test_what_was_rented_wrongly_is_ended(renting: Renting) -> None:
    session = renting.flow()
    running = renting.rent(session)
    renting.cloud.servers[1].cents_an_hour *= 2
    watch(session, running, never)
    assert running.cause is TerminationReason.CONFIG
    assert "not what was asked for: it costs" in running.message


def test_the_reason_of_a_machine_is_one_line(
    renting: Renting, session: Session, running: RunningInstance
) -> None:
    renting.says(1, 3, outcome="crash", message="first\nand\x1b[2J\n" + "x" * 2_000)
    look(session, running)
    assert running.message.startswith("first and?[2J xxx")
    assert running.message.isprintable()
    assert len(running.message) <= 500


def test_a_card_that_is_not_shown_is_none(
    renting: Renting, session: Session, running: RunningInstance
) -> None:
    """However late its heartbeat comes, and whatever the service says of the instance."""
    running.intent = running.intent.model_copy(update={"card_gb": 8.0})
    renting.says(1, 3, probe={"gpu_name": running.intent.gpu_name, "tflops": "many"})
    look(session, running)
    assert running.cause is TerminationReason.BAD_HOST
    assert running.message == "its heartbeat has no probe of the card"
    found = renting.documents.attempt(1)
    assert found is not None
    assert found.probe is None
