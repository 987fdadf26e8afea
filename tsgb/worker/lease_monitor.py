"""Reads the lease of a rented machine on a thread, so that a silent store delays nothing.

The module knows the lease and a store; `machine.py` decides what follows from them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from tsgb.checkpoint.run import RunStore
from tsgb.cloud.lease import NAME, Lease, LeaseState, LeaseTracker
from tsgb.errors import StoreError, StoreUnreachable
from tsgb.logging import get_logger

_AGAIN_SECONDS = 1.0
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Reading:
    lease: Lease | None
    """The lease; None if there is none in the store."""
    at: float
    """Monotonic seconds at the begin of the read; the lease is not older."""


class LeaseMonitor:
    """Knows the state of the lease for one attempt, even while the store does not answer.

    Example: `monitor = LeaseMonitor(run, 3, every_seconds=30.0); monitor.start()`
    """

    def __init__(
        self,
        run: RunStore,
        attempt: int,
        *,
        every_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Read nothing yet.

        Args:
            run: The run whose lease is read.
            attempt: Number of this machine's attempt.
            every_seconds: Seconds between two reads.
            clock: Monotonic seconds.
            now: Returns the time of day.
        """
        self.error: StoreError | None = None
        """Error of the last read; None if it succeeded."""
        self.failures = 0
        """Number of reads that failed since the last success."""
        self._run = run
        self._every_seconds = every_seconds
        self._clock = clock
        self._now = now
        self._watch = LeaseTracker(attempt=attempt, since=clock())
        self._lease: Lease | None = None
        self._newest: _Reading | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to read, until `stop` or the end of the process."""
        threading.Thread(target=self._work, name="lease", daemon=True).start()

    def stop(self) -> None:
        """End the reading."""
        self._stopped.set()

    @property
    def known(self) -> bool:
        """Whether a read has succeeded."""
        return self._newest is not None

    def standing(self) -> LeaseState:
        """Return the state of the lease now, without waiting."""
        newest = self._newest
        if newest is not None:
            if newest.lease is None:
                return LeaseState.OVER
            self._lease = newest.lease
            self._watch = self._watch.saw(newest.lease, newest.at)
        return self._watch.standing(self._lease, self._now(), self._clock())

    @property
    def reason(self) -> str:
        """Reason why the lease is not valid, for people."""
        newest = self._newest
        if newest is None:
            return "the lease could not be read for too long"
        if newest.lease is None:
            return "there is no lease"
        lease = newest.lease
        return (
            f"lease of attempt {lease.attempt}, until {lease.expires_at:%H:%M:%S} (UTC), "
            f"{lease.stop or 'not revoked'}{', the run has ended' if lease.ended else ''}"
        )

    def read(self) -> None:
        """Read once; a read that fails changes nothing."""
        at = self._clock()
        try:
            self._newest = _Reading(self._fetch(), at)
        except StoreError as error:
            self.error = error
            self.failures += 1
            get_logger().warning("lease not read", reason=str(error))
        else:
            self.error, self.failures = None, 0

    def _fetch(self) -> Lease | None:
        # On some servers a file that is being replaced is missing for a moment.
        for again in (True, False):
            try:
                return Lease.from_json(self._run.read_json(NAME), f"{self._run.run_url}/{NAME}")
            except FileNotFoundError:
                if again:
                    self._stopped.wait(min(_AGAIN_SECONDS, self._every_seconds))
        return None

    def _work(self) -> None:
        while not self._stopped.is_set():
            self.read()
            self._stopped.wait(self._every_seconds)


def run_within(
    seconds: float,
    operation: Callable[[], _T],
    *,
    tick: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> _T:
    """Run an operation on the store on a thread of its own, and return its result.

    If the operation hangs, its thread keeps running.

    Args:
        seconds: Seconds that it may take.
        operation: Called once; what it raises is raised here.
        tick: Called several times a second meanwhile.
        clock: Monotonic seconds.

    Raises:
        StoreUnreachable: The operation took longer.
    """
    results: list[_T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(operation())
        except Exception as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=work, name="store operation", daemon=True)
    thread.start()
    ends_at = clock() + seconds
    while thread.is_alive() and clock() < ends_at:
        thread.join(min(0.05, seconds))
        tick()
    if errors:
        raise errors[0]
    if not results:
        raise StoreUnreachable(f"the store did not answer in {seconds:g} s")
    return results[0]
