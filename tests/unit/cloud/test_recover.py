"""A flow that starts again goes on with the machine that works, and ends all others of its run."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.fakes.second_provider import Server
from tests.unit.cloud.conftest import Renting
from tsgb.cloud.bill import make_bill
from tsgb.cloud.forecast import workload
from tsgb.cloud.launch import find_offer, intend
from tsgb.cloud.pricing import Usage
from tsgb.cloud.recover import reconcile, release_all
from tsgb.cloud.session import Session
from tsgb.errors import LeaseLost, ProviderUnreachable


def begin(renting: Renting) -> Session:
    """A flow whose machine is at work, with what a watch leaves behind; then the flow dies."""
    session = renting.flow()
    renting.rent(session)
    renting.cloud.sleep(100)
    renting.says(1, 40, bytes_up=7_000_000)
    renting.documents.note(1, first_beat_at=renting.cloud.at.isoformat())
    session.ledger.keep(
        1, renting.cloud.at, timedelta(seconds=20), more=Usage(bytes_up=5_000_000), window=HOUR
    )
    renting.cloud.sleep(200)
    return session


HOUR = timedelta(hours=1)


def test_the_machine_that_works_is_gone_on_with(renting: Renting) -> None:
    begin(renting)
    again = renting.flow()
    running = reconcile(again)
    assert running is not None
    assert (running.attempt, running.instance_id) == (1, 1)
    assert renting.cloud.ended == []
    assert renting.cloud.clock() - running.since == 300
    assert running.boot_seconds == 100
    assert running.hold_seconds(renting.cloud.clock()) == 200
    running.heartbeat = renting.documents.heartbeat(1) or {}
    assert running.new_traffic().bytes_up == 2_000_000, "what the ledger has is not counted twice"


@pytest.mark.parametrize("why", ["asked to stop", "run out", "another machine named"])
def test_one_that_may_not_work_any_more_is_ended_and_paid(renting: Renting, why: str) -> None:
    session = begin(renting)
    if why == "asked to stop":
        session.revoke(1, "enough")
    elif why == "run out":
        renting.cloud.sleep(session.monitor_policy.ttl.total_seconds())
    else:
        session.assign(1, 99)
    again = renting.flow()
    assert reconcile(again) is None
    assert renting.cloud.ended == [1]
    assert not again.ledger.accounts[1].is_open
    assert again.ledger.spent > session.ledger.spent
    assert renting.end_of(1) == "stopped"


def test_machines_without_an_attempt_end_and_those_of_others_stay(renting: Renting) -> None:
    session, cloud = begin(renting), renting.cloud
    twin = cloud.create(1001, renting.spec(session.label(7, cloud.at)))
    foreign = cloud.create(1002, renting.spec("tsgb/office/r1/1"))
    running = reconcile(renting.flow())
    assert running is not None
    assert cloud.ended == [twin]
    assert set(cloud.servers) == {running.instance_id, foreign}


def test_without_a_whole_list_nothing_is_touched(renting: Renting) -> None:
    begin(renting)
    renting.cloud.errors["list"] = ProviderUnreachable("meadow: half a list")
    before = dict(renting.files.files)
    with pytest.raises(ProviderUnreachable, match="half a list"):
        reconcile(renting.flow())
    assert (renting.cloud.ended, renting.files.files) == ([], before)


def test_the_machines_of_another_flow_are_left_to_it(renting: Renting) -> None:
    begin(renting)
    for recover in (reconcile, lambda session: release_all(session, "over")):
        with pytest.raises(LeaseLost):
            recover(renting.flow("another"))
    assert renting.cloud.ended == []


@pytest.mark.parametrize(("outcome", "cause"), [("done", "done"), ("interrupted", "stopped")])
def test_one_that_is_gone_is_paid_until_a_minute_after_it_said_so(
    renting: Renting, outcome: str, cause: str
) -> None:
    begin(renting)
    renting.says(1, 90, outcome)
    said_at = renting.cloud.at
    renting.cloud.destroy(1)
    renting.cloud.sleep(600)
    again = renting.flow()
    assert reconcile(again) is None
    account = again.ledger.accounts[1]
    assert (account.is_open, account.seen_at) == (False, said_at + timedelta(minutes=1))
    document = renting.documents.attempt(1)
    assert document is not None
    assert document.result is not None
    assert (document.result.cause.value, document.result.step) == (cause, 90)


def intended(renting: Renting) -> Session:
    """A flow that died between its intent and the answer of the service."""
    session = renting.flow()
    intend(session, find_offer(session, workload(0.2, disk_gb=20)), 1)
    return session


def test_a_rental_that_never_came_costs_nothing(renting: Renting) -> None:
    session = intended(renting)
    began = renting.cloud.clock()
    again = renting.flow()
    assert reconcile(again) is None
    assert renting.cloud.clock() - began >= session.monitor_policy.lag_seconds
    assert again.ledger.spent == 0
    assert renting.end_of(1) == "refused"


def test_a_rental_that_appears_late_is_waited_for(renting: Renting) -> None:
    intended(renting)
    cloud = renting.cloud
    document = renting.documents.attempt(1)
    assert document is not None
    assert document.intent is not None
    number = cloud.create(1000, renting.spec(document.intent.label))
    cloud.unlisted = {number}

    def appear(_server: Server) -> None:
        cloud.unlisted = set()

    cloud.work = appear  # once it is up, a minute later
    running = reconcile(renting.flow())
    assert running is not None
    assert running.instance_id == number
    document = renting.documents.attempt(1)
    assert document is not None
    assert document.instance_id == number, "its flow died before it could write it down"


def test_the_books_are_closed_while_the_exchange_is_away(renting: Renting) -> None:
    """What a machine said last may be gone for good; its cost is the service's."""
    begin(renting)
    renting.is_exchange_away = True
    renting.cloud.sleep(600)
    session = renting.flow()
    assert release_all(session, "crashed") == 1
    assert renting.cloud.servers == {}
    account = session.ledger.accounts[1]
    assert not account.is_open
    assert account.spent > 0
    bill = make_bill(renting.documents, session.ledger, 0)
    assert bill.dollars == pytest.approx(account.spent / 1e6)
    assert renting.end_of(1) == "stopped"


class TestReleaseAll:
    def test_the_machine_may_save_before_it_goes(self, renting: Renting) -> None:
        cloud = renting.cloud
        begin(renting)

        def obey(_server: Server) -> None:
            lease = renting.documents.lease()
            if lease is not None and lease.stop:
                renting.says(1, 55, "interrupted")

        cloud.work = obey
        began = cloud.clock()
        again = renting.flow()
        assert release_all(again, "the flow crashed") == 1
        assert cloud.clock() - began <= 2
        assert cloud.ended == [1]
        document, lease = renting.documents.attempt(1), renting.documents.lease()
        assert document is not None
        assert document.result is not None
        assert document.result.step == 55
        assert lease is not None
        assert (lease.ended, lease.stop) == (True, "the flow crashed")

    def test_one_that_does_not_answer_is_waited_for_no_longer_than_allowed(
        self, renting: Renting
    ) -> None:
        session, cloud = begin(renting), renting.cloud
        began = cloud.clock()
        assert release_all(renting.flow(), "crashed") == 1
        assert cloud.clock() - began == session.monitor_policy.release_seconds
        assert cloud.servers == {}

    def test_a_run_without_machines_only_ends(self, renting: Renting) -> None:
        renting.flow().grant(1)
        assert release_all(renting.flow(), "crashed") == 0
        lease = renting.documents.lease()
        assert lease is not None
        assert lease.ended
