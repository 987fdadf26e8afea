"""What is destroyed is ours and unleased; what is not ours is never touched."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.cloud.lease import SKEW, TTL, Lease, end, grant
from tsgb.cloud.orphans import LONGEST_LEASE, InstanceLabel, sweep
from tsgb.cloud.provider import Instance
from tsgb.errors import UsageError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OLD = NOW - timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def lease(attempt: int = 3, at: datetime = NOW, **changes: object) -> Lease:
    return grant(None, run="r1", attempt=attempt, owner="f", now=at).model_copy(update=changes)


def row(label: str | None = "tsgb/home/r1/3", created_at: datetime | None = OLD) -> Instance:
    return Instance(id=41, label=label, created_at=created_at)


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        pytest.param(lease(), None, id="leased"),
        pytest.param(lease(instance_id=41), None, id="leased-by-id"),
        pytest.param(lease(at=NOW - TTL - SKEW), None, id="within-the-skew"),
        pytest.param(lease(at=NOW - TTL - SKEW - MINUTE), "its lease ran out", id="run-out"),
        pytest.param(lease(attempt=4), "that of attempt 4", id="an-older-attempt"),
        pytest.param(lease(attempt=2), "that of attempt 2", id="another-attempt"),
        pytest.param(lease(instance_id=42), "that of instance 42", id="rented-twice"),
        pytest.param(end(lease(), "done"), "has ended", id="run-ended"),
        pytest.param(None, "has no lease", id="no-lease"),
    ],
)
def test_what_a_lease_covers(held: Lease | None, reason: str | None) -> None:
    found = sweep([row()], {"r1": held}, "home", NOW)
    if reason is None:
        assert found.covered == (row(),)
    else:
        [orphan] = found.doomed
        assert reason in orphan.reason


def test_a_deadline_in_the_label_ends_it_whatever_the_store_says() -> None:
    """Where a lease cannot be read, or was prolonged by somebody else, for ever."""
    end_at = round((NOW - SKEW).timestamp())
    late, due = row(f"tsgb/home/r1/3/{end_at - 1}"), row(f"tsgb/home/r1/3/{end_at}")
    for leases in ({}, {"r1": lease()}, {"r1": None}):
        [orphan] = sweep([late], leases, "home", NOW).doomed
        assert orphan.reason == "the deadline in its label is over"
    assert sweep([due], {"r1": lease()}, "home", NOW).covered == (due,)
    assert sweep([due], {}, "home", NOW).unknown == (due,)


@pytest.mark.parametrize("years", [1, 73, 7900])
def test_a_lease_that_no_flow_gives_covers_nothing(years: int) -> None:
    far = NOW.replace(year=min(9999, NOW.year + years))
    [orphan] = sweep([row()], {"r1": lease(expires_at=far)}, "home", NOW).doomed
    assert "longer than any that a flow gives" in orphan.reason
    longest = lease(expires_at=NOW + LONGEST_LEASE + SKEW)
    assert sweep([row()], {"r1": longest}, "home", NOW).covered


def test_a_machine_may_be_younger_than_the_lease_that_was_read() -> None:
    young = row(created_at=NOW - MINUTE)
    assert sweep([young], {"r1": None}, "home", NOW).covered == (young,)
    assert sweep([young], {"r1": None}, "home", NOW + 2 * MINUTE).doomed
    ahead = row(created_at=NOW + MINUTE)
    assert sweep([ahead], {"r1": None}, "home", NOW).covered == (ahead,)
    assert sweep([row(created_at=None)], {"r1": None}, "home", NOW).doomed


def test_a_lease_that_could_not_be_read_is_not_an_absent_one() -> None:
    assert sweep([row()], {}, "home", NOW).unknown == (row(),)


@pytest.mark.parametrize(
    "label",
    [
        None,
        *["", "tsgb", "tsgb/home/r1", "tsgb/home/r1/03", "tsgb/home/r1/3/x", "tsgb/home/r1/3 "],
        *["TSGB/home/r1/3", "tsgb/work/r1/3", "my tsgb/home/r1/3", "tsgb/home//3"],
        "tsgb/home/r1/3\n",
    ],
)
def test_other_tools_are_left_alone(label: str | None) -> None:
    assert sweep([row(label)], {"r1": None}, "home", NOW).foreign == (row(label),)


def test_not_too_many_go_at_once() -> None:
    rows = [Instance(id=number, label="tsgb/home/r1/3") for number in range(12)]
    found = sweep(rows, {"r1": None}, "home", NOW)
    assert [orphan.instance.id for orphan in found.doomed] == list(range(10))
    assert [orphan.instance.id for orphan in found.postponed] == [10, 11]


instances = st.lists(
    st.builds(
        Instance,
        id=st.integers(1, 30),
        label=st.sampled_from(["tsgb/home/r1/1", "tsgb/home/r1/2", "tsgb/home/r2/1", "other", None])
        | st.text(max_size=12),
        created_at=st.none() | st.datetimes(timezones=st.just(UTC)),
    ),
    unique_by=lambda instance: instance.id,
)
leases = st.dictionaries(
    st.sampled_from(["r1", "r2"]),
    st.none()
    | st.builds(
        lambda attempt, minutes, instance_id: lease(
            attempt, NOW - minutes * MINUTE, instance_id=instance_id
        ),
        st.integers(1, 2),
        st.integers(-5, 60),
        st.none() | st.integers(1, 30),
    ),
)


@given(rows=instances, held=leases, off=st.timedeltas(min_value=-SKEW, max_value=SKEW))
def test_an_orphan_is_never_a_leased_one(
    rows: list[Instance], held: dict[str, Lease | None], off: timedelta
) -> None:
    """Not on any clock within the skew; and every row is in one list."""
    found = sweep(rows, held, "home", NOW + off)
    doomed = [orphan.instance for orphan in (*found.doomed, *found.postponed)]
    for instance in doomed:
        label = InstanceLabel.parse(instance.label)
        assert label is not None
        its = held[label.run]
        leased = (
            its is not None
            and its.attempt == label.attempt
            and its.instance_id in {None, instance.id}
            and its.expires_at >= NOW
        )
        assert not leased
    listed = [*doomed, *found.covered, *found.unknown, *found.foreign]
    assert sorted(instance.id for instance in listed) == sorted(row.id for row in rows)


@given(
    parts=st.tuples(
        st.from_regex(r"[a-z0-9][a-z0-9._-]{0,9}", fullmatch=True),
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        st.integers(1, 10**8),
    )
)
def test_a_label_is_read_back(parts: tuple[str, str, int]) -> None:
    label = InstanceLabel(*parts)
    assert InstanceLabel.parse(label.check()) == label


@pytest.mark.parametrize("run", ["", "a/b", "x" * 60, "ä"])
def test_a_label_that_could_not_be_read_back(run: str) -> None:
    with pytest.raises(UsageError, match="choose a shorter run id"):
        InstanceLabel("home", run, 1).check()
