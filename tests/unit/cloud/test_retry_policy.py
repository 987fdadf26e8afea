"""How many endings of each kind a run bears, and which machines it avoids for how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.cloud.retry_policy import BAD_FOR, TAKEN_FOR, Ending, avoid, may_go_on
from tsgb.cloud.termination import TerminationReason

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def endings(*causes: TerminationReason, step: int = 0, steps: int = 0) -> list[Ending]:
    """One after another, each with `steps` more than the one before."""
    return [
        Ending(cause=cause, at=NOW, step=step + steps * (index + 1))
        for index, cause in enumerate(causes)
    ]


@pytest.mark.parametrize(
    ("history", "go_on"),
    [
        pytest.param([], True, id="first-attempt"),
        pytest.param(
            endings(*[TerminationReason.PREEMPTED] * 500, steps=9), True, id="preempted-without-end"
        ),
        pytest.param(endings(*[TerminationReason.PREEMPTED] * 24), True, id="preempted-early"),
        pytest.param(endings(*[TerminationReason.PREEMPTED] * 25), False, id="nothing-comes-of-it"),
        pytest.param(endings(*[TerminationReason.REFUSED] * 49), True, id="refusals"),
        pytest.param(endings(*[TerminationReason.REFUSED] * 50), False, id="nothing-to-be-had"),
        pytest.param(
            endings(
                *[TerminationReason.REFUSED] * 49,
                TerminationReason.PREEMPTED,
                *[TerminationReason.REFUSED] * 49,
            ),
            True,
            id="refusals-in-a-row-count",
        ),
        pytest.param(
            endings(*[TerminationReason.BAD_HOST, TerminationReason.HOST_LOST] * 5),
            False,
            id="bad-hosts",
        ),
        pytest.param(
            endings(*[TerminationReason.HOST_LOST] * 30, steps=100), True, id="lost-but-moving-on"
        ),
        pytest.param(
            endings(TerminationReason.WORKER, TerminationReason.WORKER, steps=9),
            True,
            id="two-crashes",
        ),
        pytest.param(endings(*[TerminationReason.WORKER] * 3, steps=9), False, id="three-crashes"),
        pytest.param(
            endings(TerminationReason.WORKER, TerminationReason.WORKER),
            False,
            id="the-same-step-twice",
        ),
        pytest.param(
            endings(
                TerminationReason.WORKER, TerminationReason.PREEMPTED, TerminationReason.WORKER
            ),
            True,
            id="not-in-a-row",
        ),
        pytest.param(
            endings(TerminationReason.WORKER, TerminationReason.REFUSED, TerminationReason.WORKER),
            False,
            id="a-refusal-in-between",
        ),
        pytest.param(endings(TerminationReason.DISK_FULL), True, id="a-larger-disk"),
        pytest.param(
            endings(TerminationReason.DISK_FULL, TerminationReason.DISK_FULL),
            False,
            id="full-again",
        ),
        pytest.param(endings(TerminationReason.CONFIG), False, id="config"),
        pytest.param(endings(TerminationReason.FUNDS), False, id="funds"),
        pytest.param(endings(TerminationReason.DONE), False, id="done"),
        pytest.param(endings(TerminationReason.STOPPED), True, id="asked-to-stop-and-begun-again"),
    ],
)
def test_may_go_on(history: list[Ending], go_on: bool) -> None:
    decision = may_go_on(history)
    assert decision.go_on is go_on
    assert bool(decision.reason) is not go_on


def test_a_full_disk_asks_for_a_larger_one() -> None:
    assert may_go_on(endings(TerminationReason.DISK_FULL)).disk_factor == 1.5
    assert (
        may_go_on(endings(TerminationReason.DISK_FULL, TerminationReason.PREEMPTED)).disk_factor
        == 1.5
    )


@given(causes=st.lists(st.sampled_from(list(TerminationReason)), max_size=200))
def test_a_run_without_progress_ends(causes: list[TerminationReason]) -> None:
    """Whatever happens, the tries are bounded by number."""
    ran = 0
    for index in range(len(causes)):
        if not may_go_on(endings(*causes[: index + 1])).go_on:
            return
        ran += causes[index] not in {TerminationReason.REFUSED, TerminationReason.STOPPED}
    assert ran < 25


def failed(cause: TerminationReason, minutes_ago: float = 0.0) -> Ending:
    at = NOW - timedelta(minutes=minutes_ago)
    return Ending(cause=cause, at=at, machine_id=7, host_id=2)


@pytest.mark.parametrize(
    ("ending", "machine", "host"),
    [
        pytest.param(failed(TerminationReason.BAD_HOST), True, True, id="bad-host"),
        pytest.param(failed(TerminationReason.BAD_HOST, 1439), True, True, id="for-a-day"),
        pytest.param(failed(TerminationReason.BAD_HOST, 1440), False, False, id="and-no-longer"),
        pytest.param(failed(TerminationReason.BAD_HOST, -9), True, True, id="on-a-clock-set-back"),
        pytest.param(failed(TerminationReason.HOST_LOST), True, False, id="lost"),
        pytest.param(failed(TerminationReason.REFUSED, 29), True, False, id="taken"),
        pytest.param(failed(TerminationReason.REFUSED, 30), False, False, id="perhaps-free-again"),
        pytest.param(failed(TerminationReason.PREEMPTED), False, False, id="outbid-is-no-fault"),
        pytest.param(failed(TerminationReason.WORKER), False, False, id="ours"),
        pytest.param(
            Ending(cause=TerminationReason.BAD_HOST, at=NOW), False, False, id="of-no-machine"
        ),
    ],
)
def test_what_is_avoided(ending: Ending, machine: bool, host: bool) -> None:
    avoided = avoid([ending], NOW)
    assert (7 in avoided.machine_ids, 2 in avoided.host_ids) == (machine, host)


@given(
    history=st.lists(
        st.builds(
            Ending,
            cause=st.sampled_from(TerminationReason),
            at=st.just(NOW),
            machine_id=st.integers(1, 9),
            host_id=st.integers(1, 9),
        )
    )
)
def test_the_market_is_never_shut_for_good(history: list[Ending]) -> None:
    later = avoid(history, NOW + max(BAD_FOR, TAKEN_FOR))
    assert not later.machine_ids | later.host_ids
