"""Runs of several seeds at once: they end together, and one that fails ends no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from flows.interrupts import Stop, check_interrupt, pause, stopped_by
from flows.progress import Bar, listener, listening
from flows.seeds import shared_budget, sharing, train_all
from tsgb.cloud.budget import SharedBudget
from tsgb.errors import BudgetReached


class Heard:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.shown: list[Sequence[Bar]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def bars(self, stage: str, bars: Sequence[Bar]) -> None:
        self.shown.append([Bar(f"{stage} {bar.key}", bar.done, bar.total) for bar in bars])


def test_as_many_at_once_as_allowed() -> None:
    both = threading.Barrier(2)
    lock, now, most = threading.Lock(), 0, 0

    def job(number: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        both.wait(30)  # two are at work, or this never ends
        with lock:
            now -= 1
        return number

    jobs: dict[str, Callable[[], int]] = {f"r-s{i}": (lambda i=i: job(i)) for i in range(4)}
    assert train_all(jobs, 2) == [0, 1, 2, 3]
    assert most == 2


def test_one_machine_trains_in_this_thread() -> None:
    jobs = {"a": threading.get_ident, "b": threading.get_ident}
    assert set(train_all(jobs, 1)) == {threading.get_ident()}


def test_what_runs_show_is_told_apart() -> None:
    heard = Heard()

    def job(name: str) -> None:
        listener().note("begins")
        listener().bars("attempt 1", [Bar("selfplay", 1, 2)])

    with listening(heard):
        train_all({name: (lambda name=name: job(name)) for name in ("a", "b")}, 2)
    assert sorted(heard.notes) == ["a: begins", "b: begins"]
    assert [bar.key for bar in heard.shown[-1]] == ["runs a selfplay", "runs b selfplay"]


def test_a_run_that_fails_ends_no_other() -> None:
    heard, done = Heard(), list[str]()

    def fail(name: str) -> None:
        raise BudgetReached(f"{name} has no money")

    def work() -> None:
        time.sleep(0.05)
        done.append("c")

    jobs = {"a": lambda: fail("a"), "b": lambda: fail("b"), "c": work}
    with listening(heard), pytest.raises(BudgetReached, match="a has no money"):
        train_all(jobs, 3)
    assert done == ["c"]
    assert heard.notes == ["b: BudgetReached: b has no money"]


def test_ctrl_c_ends_all_and_waits_for_them() -> None:
    stop, saved, begun = Stop(), list[int](), threading.Barrier(3)

    def job() -> None:
        begun.wait(30)
        try:
            pause(600)
        except KeyboardInterrupt:
            check_interrupt()  # once: what cleans up may look, and wait
            pause(0.01)
            saved.append(1)
            raise

    def interrupt() -> None:
        begun.wait(30)
        stop.ask()

    asker = threading.Thread(target=interrupt)
    asker.start()
    with stopped_by(stop), pytest.raises(KeyboardInterrupt):
        train_all({"a": job, "b": job, "c": job}, 2)
    asker.join()
    assert saved == [1, 1], "the third never began"


def test_the_budget_is_shared_inside_only() -> None:
    shared = SharedBudget({"a": 0})
    with sharing(shared):
        assert train_all({"a": shared_budget, "b": shared_budget}, 2) == [shared, shared]
    assert shared_budget() is None
