"""Several runs spend of one budget: together never more than it, however they take turns."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.filesystems import MemoryFiles
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.budget import Ledger, SharedBudget
from tsgb.cloud.pricing import MICRO, Rates
from tsgb.errors import BudgetReached

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
RATES = Rates(gpu_per_hour=300_000, storage_per_hour=60_000)
POLL = timedelta(seconds=30)
RUNS = ("r-s0", "r-s1", "r-s2")


def opened(run: str, shared: SharedBudget, budget: int = MICRO) -> Ledger:
    store = RunStore(MemoryFiles(), f"memory://fake/{run}", sleep=lambda _: None)
    return Ledger.open(store, budget, shared=shared)


def test_what_one_run_holds_no_other_can_spend() -> None:
    shared = SharedBudget(dict.fromkeys(RUNS, 0))
    first, second = opened("r-s0", shared), opened("r-s1", shared)
    first.reserve(1, RATES, NOW)  # 40 minutes, $0.24
    assert second.left == MICRO - 240_000
    second.reserve(1, RATES, NOW)
    assert first.left == second.left == MICRO - 480_000
    first.commit(1, NOW + 10 * MINUTE)
    assert second.left == MICRO - 60_000 - 240_000
    assert shared.held == 300_000


def test_what_was_spent_before_counts() -> None:
    shared = SharedBudget({"r-s0": 900_000, "r-s1": 0})
    ledger = opened("r-s1", shared)
    assert ledger.left == 100_000
    with pytest.raises(BudgetReached, match=r"\$0\.10\d* of \$1\.00\d* is free"):
        ledger.reserve(1, RATES, NOW, least=60 * MINUTE)
    # The run's own ledger says what it holds once it is open.
    opened("r-s0", shared)
    assert ledger.left == MICRO


def test_the_credit_is_shared_too() -> None:
    shared = SharedBudget(dict.fromkeys(RUNS, 0))
    first, second = opened("r-s0", shared), opened("r-s1", shared)
    first.reserve(1, RATES, NOW, credit=300_000)
    assert second.reserve(1, RATES, NOW, credit=300_000).reserved == 60_000


@given(
    moves=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 40), st.booleans()), min_size=1, max_size=40
    )
)
def test_together_they_never_hold_more_than_a_poll_above_it(
    moves: list[tuple[int, int, bool]],
) -> None:
    budget, now = 500_000, NOW
    shared = SharedBudget(dict.fromkeys(RUNS, 0))
    ledgers = [opened(run, shared, budget) for run in RUNS]
    open_ones: dict[int, int] = {}
    for number, minutes, ends in moves:
        now += timedelta(seconds=20)
        ledger = ledgers[number]
        if number not in open_ones:
            attempt = ledger.highest + 1
            with suppress(BudgetReached):
                ledger.reserve(attempt, RATES, now, window=minutes * MINUTE)
                open_ones[number] = attempt
        for other, attempt in list(open_ones.items()):
            goes_on = ledgers[other].keep(attempt, now, POLL, window=minutes * MINUTE)
            if not goes_on or (ends and other == number):
                ledgers[other].commit(attempt, now)
                del open_ones[other]
        assert shared.held <= budget + len(RUNS) * 360_000 // 180


def test_threads_take_turns() -> None:
    shared = SharedBudget({f"r-s{i}": 0 for i in range(8)})
    ledgers = [opened(run, shared) for run in shared.earlier]
    begin = threading.Barrier(8)

    def reserve(ledger: Ledger) -> None:
        begin.wait(30)
        with suppress(BudgetReached):
            ledger.reserve(1, RATES, NOW)

    threads = [threading.Thread(target=reserve, args=[ledger]) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared.held == MICRO
