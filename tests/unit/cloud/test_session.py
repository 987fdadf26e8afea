"""The lease has one writer, and lasts no longer than money is set aside for."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.unit.cloud.conftest import Renting
from tsgb.errors import LeaseLost, UsageError


def test_a_second_flow_waits_until_the_first_one_has_run_out(renting: Renting) -> None:
    first, second = renting.flow("first"), renting.flow("second")
    lease = first.grant(1)
    for refused in (second.check_lease, lambda: second.grant(2)):
        with pytest.raises(LeaseLost, match=r"'r1': another flow .* stop that flow, or wait"):
            refused()
    assert renting.documents.lease() == lease

    renting.cloud.at = lease.expires_at + second.monitor_policy.skew
    with pytest.raises(LeaseLost):
        second.grant(2)
    renting.cloud.at += timedelta(seconds=1)
    assert second.grant(2).owner == "second"
    with pytest.raises(LeaseLost, match="attempt 1 is that of attempt 2 of another flow"):
        first.renew(1)


def test_the_same_flow_started_again_goes_on_at_once(renting: Renting) -> None:
    renting.flow().grant(1)
    again = renting.flow()
    assert again.check_lease() is not None
    assert again.grant(2).attempt == 2


def test_a_lease_is_no_longer_than_the_money_that_is_set_aside(renting: Renting) -> None:
    session = renting.flow(budget="0.03")
    renting.rent(session)
    covered = session.ledger.covers_until(1)
    assert covered - renting.cloud.at < session.monitor_policy.ttl
    assert session.grant(1).expires_at == covered
    assert session.renew(1).expires_at == covered


def test_no_renewal_brings_a_revoked_lease_back(renting: Renting) -> None:
    session = renting.flow()
    renting.rent(session)
    session.revoke(1, "the first reason")
    session.revoke(1, "another one")
    assert session.renew(1).stop == "the first reason"
    session.end("over")
    with pytest.raises(LeaseLost, match="has ended"):
        session.renew(1)


def test_another_flows_lease_is_left_alone(renting: Renting) -> None:
    lease = renting.flow("first").grant(1)
    second = renting.flow("second")
    second.revoke(1, "not yours")
    second.end("not yours")
    assert renting.documents.lease() == lease
    assert len(renting.told) == 1


def test_a_machine_that_cannot_be_asked_to_stop_is_told_of_and_no_error(renting: Renting) -> None:
    session = renting.flow()
    session.grant(1)
    renting.is_store_away = True
    session.revoke(1, "enough")
    session.quietly(lambda: session.renew(1), "not renewed")
    assert renting.told == [
        "the machine could not be asked to stop, its lease ends by itself: the store is away",
        "not renewed: the store is away",
    ]


def test_the_end_of_a_run_does_not_need_the_exchange(renting: Renting) -> None:
    session = renting.flow()
    renting.rent(session)
    renting.is_exchange_away = True
    session.end("done")
    lease = renting.documents.lease()
    assert lease is not None
    assert (lease.ended, lease.stop) == (True, "done")
    assert "the exchange is away" in renting.told[-1]


def test_own_instances_are_those_of_this_run_and_deployment(renting: Renting) -> None:
    session = renting.flow()
    labels = (session.label(1, renting.cloud.at), "tsgb/home/r2/1", "tsgb/office/r1/1")
    mine, *_ = [
        renting.cloud.create(1000 + rack, renting.spec(label)) for rack, label in enumerate(labels)
    ]
    assert set(session.own()) == {mine}
    with pytest.raises(UsageError):
        session.label(-1, renting.cloud.at)
