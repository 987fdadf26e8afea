"""How often Vast.ai may be asked: its table of intervals, kept on our side.

It knows endpoints and clocks. It knows no HTTP. The service counts for each endpoint over all that
share key and address, so one process has one limiter; other processes are heard of by HTTP 429.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import StrEnum


class Endpoint(StrEnum):
    """What the service counts on its own."""

    SEARCH = "search"
    CREATE = "create"
    LIST = "list"
    SHOW = "show"
    CHANGE = "change"
    """Start, stop and label."""
    BID = "bid"
    DESTROY = "destroy"
    LOGS = "logs"
    USER = "user"


INTERVAL_SECONDS = {
    Endpoint.SEARCH: 6.0,  # documented as ten a minute
    Endpoint.CREATE: 4.5,
    Endpoint.LIST: 1.0,
    Endpoint.SHOW: 2.0,
    Endpoint.CHANGE: 1.0,
    Endpoint.BID: 5.5,
    Endpoint.DESTROY: 3.0,
    Endpoint.LOGS: 1.5,  # not documented; as for commands
    Endpoint.USER: 1.0,  # not documented
}
"""At least so long between two requests; from `x-rate-limit` in the service's documentation."""


class _Turns:
    """One endpoint's: who has it, and when the next may be."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.free_at = float("-inf")
        self.closed_until = float("-inf")


class RateLimiter:
    """Makes each request wait for its turn; threads may share it.

    An interval runs from the *end* of a request. When it arrived is known no better, and intervals
    from its start would shrink on the way whenever it was slower than the one behind it.

    Example: `with limiter.turn(Endpoint.LIST): send()`
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Make one for a process.

        Args:
            clock: Seconds that never go back.
            sleep: Waits for so many seconds.
        """
        self._clock = clock
        self._sleep = sleep
        self._turns = {endpoint: _Turns() for endpoint in Endpoint}

    @contextmanager
    def turn(self, endpoint: Endpoint) -> Generator[None]:
        """Wait until a request may be sent; it is sent inside."""
        turns = self._turns[endpoint]
        with turns.lock:
            while (seconds := max(turns.free_at, turns.closed_until) - self._clock()) > 0:
                self._sleep(seconds)
            try:
                yield
            finally:
                turns.free_at = self._clock() + INTERVAL_SECONDS[endpoint]

    def close(self, endpoint: Endpoint, seconds: float) -> None:
        """The service said to wait, after others with our key asked: nobody here asks before."""
        turns = self._turns[endpoint]
        turns.closed_until = max(turns.closed_until, self._clock() + seconds)
