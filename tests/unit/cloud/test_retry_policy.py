"""How many endings of each kind a run bears, and which machines it avoids for how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

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


def said(cause: TerminationReason, *hosts: int, **more: Any) -> list[Ending]:
    """What machines of these hosts said of themselves, one after another."""
    return [Ending(cause=cause, at=NOW, host_id=host, is_claim=True, **more) for host in hosts]


CONFIG, LEASE_LOST = TerminationReason.CONFIG, TerminationReason.LEASE_LOST
WORKER, FULL = TerminationReason.WORKER, TerminationReason.DISK_FULL
STUCK = {"is_idle": True, "basis": "selfplay:x"}
OLDER = {"is_idle": True, "basis": "selfplay:w"}


@pytest.mark.parametrize(
    ("history", "go_on"),
    [
        pytest.param(said(CONFIG, 1), True, id="one-host"),
        pytest.param(said(CONFIG, 1, 1, 1), True, id="however-often-it-says-so"),
        pytest.param(said(CONFIG, 1, 2), False, id="another-host-says-the-same"),
        pytest.param(said(LEASE_LOST, 1), True, id="the-flow-has-the-lease"),
        pytest.param(said(LEASE_LOST, 1, 2), False, id="two-lost-leases"),
        pytest.param(said(CONFIG, 1) + said(LEASE_LOST, 2), True, id="not-the-same"),
        pytest.param(
            said(CONFIG, 1)
            + said(TerminationReason.PREEMPTED, 3, step=9)
            + said(CONFIG, 2, step=9),
            True,
            id="a-machine-in-between-has-worked",
        ),
        pytest.param(said(TerminationReason.FUNDS, 1), False, id="the-service-says-so"),
        pytest.param(said(WORKER, 1, 1, 1), True, id="one-host-that-crashes"),
        pytest.param(said(WORKER, 1, 2), False, id="two-hosts-that-crash"),
        pytest.param(said(FULL, 1, 1), True, id="one-host-that-is-full"),
        pytest.param(said(FULL, 1, 2), False, id="two-hosts-that-are-full"),
        pytest.param(said(CONFIG, *[1] * 10), False, id="it-counts-as-a-bad-host"),
        pytest.param(said(CONFIG, 1, 2, **STUCK), True, id="the-checkpoint-is-blamed-first"),
        pytest.param(said(WORKER, 1, 2, **STUCK), True, id="also-for-crashes"),
        pytest.param(
            said(WORKER, 1, 2, **STUCK) + said(WORKER, 3, **OLDER), True, id="and-for-that-alone"
        ),
        pytest.param(
            said(WORKER, 1, 2, **STUCK) + said(WORKER, 3, 4, **OLDER),
            False,
            id="two-checkpoints-are-not-both-bad",
        ),
        pytest.param(
            said(CONFIG, 1, 2, **STUCK) + said(CONFIG, 3, 4, **OLDER),
            False,
            id="what-fails-on-both-is-ours",
        ),
        pytest.param(
            said(WORKER, 1, 2, basis="selfplay:x"), False, id="they-made-updates-beyond-it"
        ),
        pytest.param(
            said(WORKER, 1, 2, **STUCK)
            + said(TerminationReason.PREEMPTED, 3, step=50)
            + said(WORKER, 4, step=50, is_idle=True, basis="selfplay:y"),
            True,
            id="it-answers-for-them-later-too",
        ),
    ],
)
def test_what_one_host_says_ends_no_run(history: list[Ending], go_on: bool) -> None:
    assert may_go_on(history).go_on is go_on


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
        pytest.param(failed(TerminationReason.WORKER), False, True, id="another-host-tells-why"),
        pytest.param(failed(TerminationReason.CONFIG), False, True, id="or-whether-it-is-true"),
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
