"""What a lease says to a worker, on clocks that differ, and to a second flow."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.cloud.lease import (
    SKEW,
    TTL,
    Lease,
    LeaseState,
    LeaseTracker,
    assign,
    end,
    grant,
    renew,
    revoke,
)
from tsgb.errors import LeaseLost, StoreError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
offsets = st.timedeltas(min_value=-SKEW, max_value=SKEW)


def lease(attempt: int = 3, **changes: object) -> Lease:
    return grant(None, run="r1", attempt=attempt, owner="flow-1", now=NOW).model_copy(
        update=changes
    )


def test_the_document_holds_all_of_it() -> None:
    full = assign(revoke(lease(deadline_at=NOW + TTL, budget_microdollars=7), "budget"), 41)
    assert Lease.from_json(full.to_json()) == full
    assert Lease.from_json({**full.to_json(), "of_a_later_version": 1}) == full


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({}, id="empty"),
        pytest.param({**lease().to_json(), "attempt": 0}, id="attempt-0"),
        pytest.param({**lease().to_json(), "expires_at": "2026-01-01T00:00:00"}, id="no-time-zone"),
    ],
)
def test_what_is_no_lease_is_not_an_absent_one(document: dict[str, object]) -> None:
    with pytest.raises(StoreError, match="not a lease"):
        Lease.from_json(document)


@pytest.mark.parametrize(
    ("held", "attempt", "after", "standing"),
    [
        pytest.param(lease(), 3, TTL, LeaseState.HOLDS, id="until-its-end"),
        pytest.param(lease(), 3, TTL + SKEW, LeaseState.HOLDS, id="a-clock-10-minutes-ahead"),
        pytest.param(lease(), 3, TTL + SKEW + MINUTE, LeaseState.OVER, id="run-out"),
        pytest.param(lease(), 4, MINUTE, LeaseState.OTHERS, id="an-earlier-attempt's"),
        pytest.param(lease(), 2, MINUTE, LeaseState.OTHERS, id="a-later-attempt's"),
        pytest.param(revoke(lease(), "budget"), 3, MINUTE, LeaseState.REVOKED, id="revoked"),
        pytest.param(end(lease(), "done"), 3, MINUTE, LeaseState.OVER, id="ended"),
        pytest.param(
            lease(deadline_at=NOW + MINUTE), 3, MINUTE * 2 + SKEW, LeaseState.OVER, id="deadline"
        ),
    ],
)
def test_standing(held: Lease, attempt: int, after: timedelta, standing: LeaseState) -> None:
    assert held.standing(attempt, NOW + after) is standing
    assert standing.may_work == (standing is LeaseState.HOLDS)


def test_a_renewal_prolongs_and_brings_nothing_back() -> None:
    later = renew(lease(), NOW + MINUTE, spent_microdollars=9)
    assert (later.expires_at, later.renewals) == (NOW + MINUTE + TTL, 1)
    assert renew(later, NOW - MINUTE, spent_microdollars=4).spent_microdollars == 9
    assert renew(later, NOW - MINUTE).expires_at == later.expires_at, "a clock that was set back"
    assert renew(revoke(later, "first"), NOW + TTL).stop == "first"
    assert revoke(revoke(later, "first"), "second").stop == "first"
    with pytest.raises(LeaseLost, match="has ended"):
        renew(end(later, "done"), NOW)


def test_no_renewal_reaches_beyond_the_deadline() -> None:
    deadline = NOW + timedelta(minutes=30)
    held = grant(None, run="r1", attempt=1, owner="f", now=NOW, deadline_at=deadline)
    for minutes in range(1, 60):
        held = renew(held, NOW + minutes * MINUTE)
        assert held.expires_at <= deadline


def test_no_renewal_reaches_beyond_the_money() -> None:
    held = renew(lease(), NOW + 10 * MINUTE, until=NOW + 25 * MINUTE)
    assert (held.expires_at, held.ttl_seconds) == (NOW + 25 * MINUTE, 900.0)
    watch = LeaseTracker(attempt=3, since=0.0).saw(held, 0.0)
    assert watch.standing(held, NOW, 900.0).may_work
    assert watch.standing(held, NOW, 901.0) is LeaseState.OVER
    assert Lease.from_json(renew(held, NOW + TTL * 2, until=NOW).to_json()).ttl_seconds == 1.0
    assert renew(held, NOW + 10 * MINUTE).ttl_seconds == TTL.total_seconds(), "more money came"


def test_a_second_flow_waits_until_the_first_one_is_surely_dead() -> None:
    held = lease()
    mine = {"run": "r1", "attempt": 4, "owner": "flow-2"}
    with pytest.raises(LeaseLost, match="another flow renewed the lease at 00:00:00"):
        grant(held, now=NOW + TTL + SKEW, **mine)  # type: ignore[arg-type]
    taken = grant(held, now=NOW + TTL + SKEW + MINUTE, **mine)  # type: ignore[arg-type]
    assert (taken.attempt, taken.renewals) == (4, 1)
    assert grant(end(held, "done"), now=NOW, **mine).attempt == 4  # type: ignore[arg-type]


def test_attempts_only_rise() -> None:
    with pytest.raises(LeaseLost, match="attempt 3 came after attempt 2"):
        grant(lease(), run="r1", attempt=2, owner="flow-1", now=NOW)
    assert grant(lease(), run="r1", attempt=4, owner="flow-1", now=NOW).attempt == 4


@given(off=st.timedeltas(min_value=timedelta(days=-9), max_value=timedelta(days=9)))
def test_a_renewed_lease_holds_on_any_clock(off: timedelta) -> None:
    """The wall clock of the machine is `off`; the flow renews each minute for three hours."""
    held, watch = lease(), LeaseTracker(attempt=3, since=0.0).saw(lease(), 0.0)
    for minute in range(1, 180):
        held = renew(held, NOW + minute * MINUTE)
        watch = watch.saw(held, minute * 60.0)
        assert watch.standing(held, NOW + minute * MINUTE + off, minute * 60.0).may_work


@given(off=st.timedeltas(min_value=timedelta(days=-9), max_value=timedelta(days=9)))
def test_a_lease_that_is_not_renewed_ends_within_its_ttl_on_any_clock(off: timedelta) -> None:
    held = lease()
    watch = LeaseTracker(attempt=3, since=0.0).saw(held, 0.0)
    for second in range(0, 2400, 30):
        watch = watch.saw(held, second)
        standing = watch.standing(held, NOW + timedelta(seconds=second) + off, second)
        assert standing is LeaseState.OVER or second <= TTL.total_seconds()


@given(off=offsets, minutes=st.integers(0, 20))
def test_a_skew_of_ten_minutes_ends_no_lease_before_its_time(off: timedelta, minutes: int) -> None:
    assert lease().standing(3, NOW + minutes * MINUTE + off).may_work


def test_a_machine_that_starts_again_after_hours_stops_at_once() -> None:
    watch = LeaseTracker(attempt=3, since=0.0).saw(lease(), 0.0)
    assert watch.standing(lease(), NOW + timedelta(hours=3), 0.0) is LeaseState.OVER


def test_a_store_that_is_away_is_waited_for_until_the_ttl() -> None:
    watch = LeaseTracker(attempt=3, since=100.0)
    assert watch.standing(None, NOW, 100.0 + TTL.total_seconds()).may_work
    assert watch.standing(None, NOW, 101.0 + TTL.total_seconds()) is LeaseState.OVER


def test_what_another_attempt_renews_keeps_nobody_else_alive() -> None:
    watch = LeaseTracker(attempt=3, since=0.0).saw(lease(attempt=4, renewals=9), 50.0)
    assert watch.since == 0.0
    assert watch.standing(lease(attempt=4, renewals=9), NOW, 50.0) is LeaseState.OTHERS


def test_the_deadline_is_judged_by_the_wall_clock() -> None:
    deadline = NOW + timedelta(minutes=5)
    held = grant(None, run="r1", attempt=3, owner="f", now=NOW, deadline_at=deadline)
    watch = LeaseTracker(attempt=3, since=0.0).saw(held, 0.0)
    held = renew(held, NOW + MINUTE)
    watch = watch.saw(held, 60.0)
    assert watch.standing(held, deadline + SKEW, 120.0).may_work
    assert watch.standing(held, deadline + SKEW + MINUTE, 120.0) is LeaseState.OVER


def test_the_last_moment_that_there_is_ends_nobody_elses_round() -> None:
    last = datetime.max.replace(tzinfo=UTC)
    assert not lease(expires_at=last).has_run_out(NOW)
    watch = LeaseTracker(attempt=3, since=0.0)
    assert watch.standing(lease(expires_at=last, deadline_at=last), NOW, 0.0).may_work
