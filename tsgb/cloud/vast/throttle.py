"""Rate limiter and retries for Vast.ai: intervals between requests, and which calls are repeated.

The module knows endpoints and clocks, and no HTTP. The service counts the requests to each endpoint
over all processes with the same key and address, so a process has one limiter, and HTTP 429 shows
that other processes send requests too. The jitter comes from the operating system by default,
because tenacity's draws from the global `random` and would change what a run samples after an
outage.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from random import SystemRandom
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception

from tsgb.errors import ProviderRateLimited, ProviderSearchQuota, ProviderUnreachable


class Endpoint(StrEnum):
    """Kind of call that the service counts separately."""

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
    SECRETS = "secrets"
    """Variables of the account."""


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
    Endpoint.SECRETS: 1.0,  # not documented
}
"""Least seconds between two requests; from `x-rate-limit` in the service's documentation."""


class _Turns:
    """Lock of one endpoint, and the times from which its next request may be sent."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.free_at = float("-inf")
        self.closed_until = float("-inf")


class RateLimiter:
    """Makes each request wait for its turn; threads may share it.

    An interval runs from the *end* of a request, which is the best known bound on its arrival.
    Measured from its start, two requests could arrive closer together than they were sent.

    Example: `with limiter.turn(Endpoint.LIST): send()`
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Create the limiter of a process.

        Args:
            clock: Seconds that never go back.
            sleep: Waits for so many seconds.
        """
        self._clock = clock
        self._sleep = sleep
        self._turns = {endpoint: _Turns() for endpoint in Endpoint}

    @contextmanager
    def turn(self, endpoint: Endpoint) -> Generator[None]:
        """Wait until a request may be sent; the body of the `with` block sends it."""
        turns = self._turns[endpoint]
        with turns.lock:
            while (seconds := max(turns.free_at, turns.closed_until) - self._clock()) > 0:
                self._sleep(seconds)
            try:
                yield
            finally:
                turns.free_at = self._clock() + INTERVAL_SECONDS[endpoint]

    def close(self, endpoint: Endpoint, seconds: float) -> None:
        """Send no request for some seconds, because the service asked to wait."""
        turns = self._turns[endpoint]
        turns.closed_until = max(turns.closed_until, self._clock() + seconds)


_LONGEST_SECONDS = 60.0
_T = TypeVar("_T")
SYSTEM_JITTER: Callable[[float, float], float] = SystemRandom().uniform
"""Draws a number between two bounds from the operating system's generator."""


@dataclass(frozen=True, slots=True)
class Retries:
    """Repeats a call until it succeeds, fails permanently, or its time is over.

    Example: `Retries(60.0, time.monotonic, time.sleep)(lambda: read_page(1))`
    """

    deadline_seconds: float
    """Seconds for one call; with 0 it is tried once."""
    clock: Callable[[], float]
    """Seconds that never go back."""
    sleep: Callable[[float], None]
    """Waits for so many seconds."""
    jitter: Callable[[float, float], float] = SYSTEM_JITTER
    """Draws a number between two bounds; it varies the pauses."""

    def __call__(self, operation: Callable[[], _T]) -> _T:
        """Return what the operation returns.

        Raises:
            ProviderError: It failed permanently, or a transient error lasted too long.
        """
        started = self.clock()

        def is_over(state: RetryCallState) -> bool:
            return self.clock() - started + state.upcoming_sleep >= self.deadline_seconds

        retrying = Retrying(
            sleep=self.sleep,
            stop=is_over,
            wait=self._wait_seconds,
            retry=retry_if_exception(_is_transient),
            reraise=True,
        )
        try:
            return retrying(operation)
        except ProviderRateLimited:
            raise  # it says how long to wait
        except ProviderUnreachable as error:
            raise ProviderUnreachable(
                f"{error}; gave up after retrying for {self.deadline_seconds:g} s. What is there "
                "is unknown",
                code=error.code,
                status=error.status,
            ) from error

    def _wait_seconds(self, state: RetryCallState) -> float:
        """Return the seconds that the service asks to wait, plus full jitter of 0.5 to 60 s."""
        error = state.outcome.exception() if state.outcome is not None else None
        least = error.wait_seconds if isinstance(error, ProviderRateLimited) else 0.0
        most = min(_LONGEST_SECONDS, max(0.5, least) * 2 ** min(state.attempt_number - 1, 10))
        return least + self.jitter(0, most)


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, ProviderUnreachable) and not isinstance(error, ProviderSearchQuota)
