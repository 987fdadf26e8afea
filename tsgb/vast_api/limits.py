"""How often Vast.ai may be asked: its table of intervals, kept on our side.

It knows endpoints and clocks. It knows no HTTP. The service counts for each endpoint over all that
share key and address, so one process has one limiter; other processes are heard of by HTTP 429.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple


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


class Limit(NamedTuple):
    """At most so many requests in any window of so many seconds."""

    requests: int
    seconds: float


LIMITS = {
    Endpoint.SEARCH: Limit(10, 60.0),
    Endpoint.CREATE: Limit(1, 4.5),
    Endpoint.LIST: Limit(1, 1.0),
    Endpoint.SHOW: Limit(1, 2.0),
    Endpoint.CHANGE: Limit(1, 1.0),
    Endpoint.BID: Limit(1, 5.5),
    Endpoint.DESTROY: Limit(1, 3.0),
    Endpoint.LOGS: Limit(1, 1.5),  # not documented; as for commands
    Endpoint.USER: Limit(1, 1.0),  # not documented
}
"""From `x-rate-limit` in the service's documentation."""


class _Turns:
    """One endpoint's past: when its last requests were over, and until when it is closed."""

    def __init__(self, limit: Limit) -> None:
        self.lock = threading.Lock()
        self.ends: deque[float] = deque(maxlen=limit.requests)
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
        self._turns = {endpoint: _Turns(limit) for endpoint, limit in LIMITS.items()}

    @contextmanager
    def turn(self, endpoint: Endpoint) -> Generator[None]:
        """Wait until a request may be sent; it is sent inside."""
        turns, limit = self._turns[endpoint], LIMITS[endpoint]
        with turns.lock:
            while (seconds := self._wait_seconds(turns, limit)) > 0:
                self._sleep(seconds)
            try:
                yield
            finally:
                turns.ends.append(self._clock())

    def close(self, endpoint: Endpoint, seconds: float) -> None:
        """The service said to wait, after others with our key asked: nobody here asks before."""
        turns = self._turns[endpoint]
        turns.closed_until = max(turns.closed_until, self._clock() + seconds)

    def _wait_seconds(self, turns: _Turns, limit: Limit) -> float:
        free_at = turns.closed_until
        if len(turns.ends) == limit.requests:
            free_at = max(free_at, turns.ends[0] + limit.seconds)
        return free_at - self._clock()
