"""Runs of several seeds under one budget, on as many machines at once as a user allows.

Each run keeps what makes it safe alone: a lock, a lease, a ledger, one machine at a time. They
share the budget, and the process that trains them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

from flows.interrupts import Stop, check_interrupt, stopped_by
from flows.progress import Together, listener, listening
from tsgb.cloud.budget import SharedBudget

T = TypeVar("T")
_WAIT_SECONDS = 0.5
_SHARED: ContextVar[SharedBudget | None] = ContextVar("tsgb_shared_budget", default=None)


def shared_budget() -> SharedBudget | None:
    """Return the budget that the runs of this process share; None if each has its own."""
    return _SHARED.get()


@contextmanager
def sharing(budget: SharedBudget) -> Generator[None]:
    """Let all runs inside spend of one budget."""
    token = _SHARED.set(budget)
    try:
        yield
    finally:
        _SHARED.reset(token)


def train_all(jobs: Mapping[str, Callable[[], T]], at_once: int) -> list[T]:
    """Call all jobs, at most so many at once; return their results in order.

    A job that fails does not end the others: what they train counts, and the next start goes on
    with the one that failed.

    Args:
        jobs: What trains each run, by the run's id.
        at_once: Most jobs at once; 1 calls them one after the other in this thread, and the first
            that fails ends all.

    Raises:
        BaseException: What the first job that failed raised.
        KeyboardInterrupt: A signal came; all jobs were asked to end, and have ended.
    """
    if at_once == 1:
        return [job() for job in jobs.values()]
    together = Together(listener())
    stops = {name: Stop() for name in jobs}

    def call(name: str) -> T:
        with stopped_by(stops[name], alone=True), listening(together.of(name)):
            check_interrupt()
            return jobs[name]()

    with ThreadPoolExecutor(at_once, thread_name_prefix="run") as pool:
        futures = {name: pool.submit(copy_context().run, call, name) for name in jobs}
        try:
            while wait(futures.values(), timeout=_WAIT_SECONDS).not_done:
                check_interrupt()
        except BaseException:
            for stop in stops.values():
                stop.ask()
            raise
    for name, future in futures.items():
        error = future.exception()
        if error is not None and future is not _first_failed(futures):
            listener().note(f"{name}: {type(error).__name__}: {error}")
    return [future.result() for future in futures.values()]


def _first_failed(futures: Mapping[str, Future[T]]) -> Future[T] | None:
    """Return the one whose error is raised, and so is shown by whoever catches it."""
    return next((one for one in futures.values() if one.exception() is not None), None)
