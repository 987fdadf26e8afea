"""The ledger: never over the budget by more than a poll, and safe wherever its process dies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.filesystems import FaultyFiles, Killed, MemoryFiles, dies_after
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.budget import WINDOW, Ledger
from tsgb.cloud.lease import TTL, grant, renew
from tsgb.cloud.pricing import MICRO, Bandwidth, Rates, Usage
from tsgb.errors import BudgetReached, StoreError, UsageError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
GB = Usage(bytes_down=10**9)
RATES = Rates(gpu_per_hour=300_000, storage_per_hour=60_000, up_per_gb=10_000)
POLL = timedelta(seconds=30)


def opened(files: MemoryFiles | FaultyFiles, budget: int = MICRO) -> Ledger:
    run = RunStore(files, "memory://fake/run-1", sleep=lambda _: None)
    return Ledger.open(run, budget)


def test_a_machine_is_reserved_for_kept_and_committed() -> None:
    files = MemoryFiles()
    ledger = opened(files)
    ledger.reserve(1, RATES, NOW, intent={"ask_id": 7})
    assert ledger.held == 240_000, "40 minutes"
    assert ledger.keep(1, NOW + 10 * MINUTE, POLL)
    assert ledger.spent == 60_000
    ledger.commit(1, NOW + 15 * MINUTE, more=Usage(bytes_up=10**9), outcome={"cause": "preempted"})
    assert (ledger.spent, ledger.held, ledger.left) == (100_000, 100_000, 900_000)

    again = opened(files)
    assert again.accounts == ledger.accounts
    document = RunStore(files, "memory://fake/run-1").read_json("attempts/0001.json")
    assert (document["ask_id"], document["cause"], document["attempt"]) == (7, "preempted", 1)
    assert again.commit(1, NOW + HOUR).spent == 100_000, "a second commit changes nothing"


@given(
    start=st.integers(0, 9),
    looks=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=8),
    seconds=st.integers(0, 60),
)
def test_a_start_is_paid_until_the_machine_tells_of_it_and_never_twice(
    start: int, looks: list[tuple[int, bool]], seconds: int
) -> None:
    ledger, now, told, is_told = opened(MemoryFiles()), NOW, 1, False
    rates, line = Rates(down_per_gb=10_000), Bandwidth(down_per_second=10**9)
    ledger.reserve(1, rates, now, traffic=GB, start_bytes=start * 10**9, bandwidth=line)
    assert ledger.held == max(1, start) * 10_000
    for more, tells in looks:
        now += timedelta(seconds=seconds)
        told, is_told = told + min(more, max(0, (now - NOW).seconds - told)), is_told or tells
        usage = Usage(bytes_down=more * 10**9)
        ledger.keep(1, now, POLL, more=usage, start_is_told=tells, window=timedelta(0))
    account = ledger.commit(1, now)
    carried = max(1, (now - NOW).seconds)
    assert account.spent == max(told, 0 if is_told else min(start, carried)) * 10_000


def test_few_polls_write() -> None:
    files = MemoryFiles()
    ledger = opened(files)
    ledger.reserve(1, RATES, NOW)
    writes = len(files.writes)
    for poll in range(1, 241):
        assert ledger.keep(1, NOW + poll * POLL, POLL)
    assert len(files.writes) - writes <= 12, "two hours"


def test_a_gpu_that_is_seen_not_to_be_billed_costs_its_disk() -> None:
    ledger = opened(MemoryFiles())
    ledger.reserve(1, RATES, NOW)
    ledger.keep(1, NOW + 10 * MINUTE, POLL, gpu_billed=False)
    assert ledger.spent == 10_000


def test_no_reservation_beyond_the_budget_or_the_credit() -> None:
    ledger = opened(MemoryFiles(), 100_000)
    with pytest.raises(BudgetReached, match=r"needs \$0.1200 .* \$0.1000 of \$0.1000 is free"):
        ledger.reserve(1, RATES, NOW, least=20 * MINUTE)
    with pytest.raises(BudgetReached, match=r"\$0.0300 of \$0.1000 is free"):
        ledger.reserve(1, RATES, NOW, least=10 * MINUTE, credit=30_000)
    ledger.reserve(1, RATES, NOW, least=5 * MINUTE)
    assert ledger.left == 0
    with pytest.raises(BudgetReached):
        ledger.reserve(2, RATES, NOW)
    assert sorted(ledger.accounts) == [1]


def test_an_attempt_has_one_account() -> None:
    ledger = opened(MemoryFiles())
    ledger.reserve(1, RATES, NOW)
    with pytest.raises(UsageError, match="has an account already"):
        ledger.reserve(1, RATES, NOW)
    for call in (ledger.keep, ledger.commit):
        with pytest.raises(UsageError, match="no open account"):
            call(2, NOW, POLL) if call == ledger.keep else call(2, NOW)
    with pytest.raises(UsageError, match="has no account"):
        ledger.reconcile(2, 0)


def test_local_attempts_cost_nothing() -> None:
    files = MemoryFiles()
    files.write("attempts/0001.json", b'{"attempt":1,"machine":"local"}')
    files.write("attempts/notes.txt", b"?")
    ledger = opened(files)
    assert ledger.spent == 0
    ledger.reserve(2, RATES, NOW)
    assert opened(files).held == ledger.held


polls = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), min_size=1, max_size=60)


@given(
    budget=st.integers(0, 500_000),
    machines=st.lists(st.tuples(st.integers(0, 5 * MICRO), polls), min_size=1, max_size=4),
)
def test_never_over_the_budget_by_more_than_a_poll(
    budget: int, machines: list[tuple[int, list[tuple[int, int]]]]
) -> None:
    """Looks come at most a poll apart; a machine that may not go on is gone a poll later.

    The truth is billed here without the ledger. It restarts from the store now and then.
    """
    files, now, truth = MemoryFiles(), NOW, 0
    for number, (per_hour, looks) in enumerate(machines, 1):
        rates = Rates(gpu_per_hour=per_hour)
        ledger = opened(files, budget)
        before = ledger.spent
        try:
            ledger.reserve(number, rates, now, least=POLL)
        except BudgetReached:
            continue
        began = now
        for seconds, restart in looks:
            now += timedelta(seconds=seconds)
            if restart == 0:
                ledger = opened(files, budget)
            may_go_on = ledger.keep(number, now, POLL)
            assert ledger.spent >= before, "spent is monotone"
            assert ledger.spent <= budget
            before = ledger.spent
            if not may_go_on:
                now += POLL
                break
        truth += Usage.of(now - began).cost(rates)
        ledger.commit(number, now)
        assert ledger.spent >= truth
        assert truth <= budget + max(
            Usage.of(POLL).cost(Rates(gpu_per_hour=m[0])) for m in machines
        )


@given(
    budget=st.integers(10_000, 500_000),
    per_hour=st.integers(1_000, 2 * MICRO),
    looks=st.lists(st.integers(1, 600), max_size=30),
)
def test_a_machine_whose_flow_dies_costs_no_more_than_is_held(
    budget: int, per_hour: int, looks: list[int]
) -> None:
    """It dies after a renewal; the machine goes on until its lease ends, which money bounds."""
    files, now, rates = MemoryFiles(), NOW, Rates(gpu_per_hour=per_hour)
    ledger = opened(files, budget)
    ledger.reserve(1, rates, now)
    lease = grant(None, run="run-1", attempt=1, owner="f", now=now)
    lease = lease.model_copy(update={"expires_at": now, "ttl_seconds": 1.0})
    for seconds in (0, *looks):
        now += timedelta(seconds=seconds)
        if not ledger.keep(1, now, timedelta(minutes=10)):
            break
        lease = renew(lease, now, until=ledger.covers_until(1))
    dead_at = max(lease.expires_at, now)
    assert Usage.of(dead_at - NOW).cost(rates) <= max(opened(files).held, ledger.spent)
    assert opened(files).held <= budget
    lasts = Usage.of(now + TTL - NOW).cost(rates) <= budget
    rounded = timedelta(hours=1) / per_hour  # money is whole micro-dollars
    assert now + TTL - lease.expires_at <= rounded or not lasts, "no shorter than the money"


def test_a_flow_that_slept_tells_the_truth_afterwards() -> None:
    ledger = opened(MemoryFiles(), 200_000)
    ledger.reserve(1, RATES, NOW)
    assert not ledger.keep(1, NOW + HOUR, POLL)
    assert (ledger.spent, ledger.left) == (360_000, 0)


def test_a_clock_that_is_set_back_earns_nothing() -> None:
    ledger = opened(MemoryFiles())
    ledger.reserve(1, RATES, NOW)
    ledger.keep(1, NOW + 10 * MINUTE, POLL)
    ledger.keep(1, NOW, POLL)
    assert ledger.spent == 60_000


def life(ledger: Callable[[], Ledger]) -> None:
    """A run of three machines; the second one's charge turns out higher."""
    ledger().reserve(1, RATES, NOW)
    ledger().keep(1, NOW + WINDOW + MINUTE, POLL)
    ledger().commit(1, NOW + WINDOW + MINUTE)
    ledger().reserve(2, RATES, NOW + HOUR)
    ledger().commit(2, NOW + HOUR + MINUTE)
    ledger().reconcile(2, 9_000)
    ledger().check_credit(NOW + HOUR, 4 * MICRO)
    ledger().reserve(3, RATES, NOW + 2 * HOUR)


def reserve_all(ledger: Ledger, attempts: Iterable[int]) -> None:
    for attempt in attempts:
        ledger.reserve(attempt, RATES, NOW)


@pytest.mark.parametrize("torn", [False, True])
def test_wherever_it_dies_the_ledger_bounds_what_was_spent(torn: bool) -> None:
    whole = MemoryFiles()
    life(lambda: opened(whole))
    for changes in range(len(whole.writes)):
        files = MemoryFiles()
        faulty = FaultyFiles(files, dies_after(changes), torn=torn)
        one = opened(faulty)
        returned: list[int] = []

        def step(ledger: Ledger = one, returned: list[int] = returned) -> Ledger:
            returned.append(ledger.held)  # after the operation before this one
            return ledger

        with pytest.raises(Killed):
            life(step)
        survived = opened(files)
        safe = returned[-1]
        assert survived.held >= min(safe, one.held), changes
        # Dying a second time, in whatever is written next, loses nothing either.
        for more in range(4):
            copy = MemoryFiles()
            copy.files.update(files.files)
            again = opened(FaultyFiles(copy, dies_after(more), torn=torn))
            with pytest.raises(Killed):
                reserve_all(again, range(7, 12))
            assert opened(copy).held >= survived.held, (changes, more)


def test_an_end_that_was_half_noted_is_an_end() -> None:
    files = MemoryFiles()
    opened(files).reserve(1, RATES, NOW)
    with pytest.raises(Killed):
        opened(FaultyFiles(files, dies_after(1))).commit(1, NOW + MINUTE)
    assert not opened(files).accounts[1].is_open
    assert opened(files).held == 6_000


def test_of_two_sums_the_larger_one_is_safe() -> None:
    files = MemoryFiles()
    opened(files).reserve(1, RATES, NOW)
    opened(files).reconcile(1, 9_000)
    for charged, held in ((5_000, 9_000), (20_000, 20_000)):
        with pytest.raises(Killed):
            opened(FaultyFiles(files, dies_after(1))).reconcile(1, charged)
        assert opened(files).held == held


def test_a_reservation_without_a_commit_counts_in_full_until_it_is_reconciled() -> None:
    files = MemoryFiles()
    opened(files).reserve(1, RATES, NOW)
    ledger = opened(files)
    assert (ledger.held, ledger.highest) == (240_000, 1)
    ledger.reconcile(1, 15_000)
    assert opened(files).held == 15_000
    ledger.reconcile(1, 30_000)
    assert opened(files).held == 30_000


def test_a_rental_that_never_came_to_be_leaves_its_number_behind() -> None:
    files = MemoryFiles()
    with pytest.raises(Killed):
        opened(FaultyFiles(files, dies_after(1))).reserve(4, RATES, NOW)
    assert sorted(files.files) == ["budget.json"]
    assert (opened(files).highest, opened(files).held) == (4, 240_000)


def test_unknown_is_not_nothing() -> None:
    files = MemoryFiles()
    opened(files).reserve(1, RATES, NOW)
    files.write("budget.json", b"{")
    assert opened(files).held == 240_000
    files.write("attempts/0001.json", b'{"account":{"attempt":1}}')
    with pytest.raises(StoreError, match="not an account"):
        opened(files)
    files.write("attempts/0001.json", b'{"acc')
    with pytest.raises(StoreError, match="not a JSON object"):
        opened(files)


def test_the_ledger_is_compared_with_the_account() -> None:
    ledger = opened(MemoryFiles())
    assert not ledger.check_credit(NOW, 5 * MICRO).alarming
    ledger.reserve(1, RATES, NOW)
    ledger.keep(1, NOW + HOUR, POLL)
    drift = ledger.check_credit(NOW + HOUR, 5 * MICRO - 340_000)
    assert (drift.charged, drift.recorded, drift.alarming) == (340_000, 360_000, False)
    assert ledger.check_credit(NOW + HOUR, 4 * MICRO).alarming
    paid = ledger.check_credit(NOW + HOUR, 9 * MICRO)
    assert (paid.charged, paid.recorded) == (0, 0), "a payment begins a new comparison"
