"""What may be asked again, until when, and after which pause.

The jitter comes from the operating system unless the caller has a source of its own: tenacity's
draws from the global `random`, and so would change what a run samples after an outage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import SystemRandom
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception

from tsgb.errors import ProviderRateLimited, ProviderSearchQuota, ProviderUnreachable

_LONGEST_SECONDS = 60.0
_T = TypeVar("_T")
OF_THE_SYSTEM: Callable[[float, float], float] = SystemRandom().uniform
"""A number between two that nothing else draws from."""


@dataclass(frozen=True, slots=True)
class Retries:
    """Runs what can be run twice until it succeeds, fails for good, or its time is over."""

    deadline_seconds: float
    """For one call; 0 is one try."""
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    jitter: Callable[[float, float], float] = OF_THE_SYSTEM

    def __call__(self, operation: Callable[[], _T]) -> _T:
        """Return what the operation returns.

        Raises:
            ProviderError: It failed for good, or what may heal did not in time.
        """
        started = self.clock()

        def is_over(state: RetryCallState) -> bool:
            return self.clock() - started + state.upcoming_sleep >= self.deadline_seconds

        retrying = Retrying(
            sleep=self.sleep,
            stop=is_over,
            wait=self._wait_seconds,
            retry=retry_if_exception(_may_heal),
            reraise=True,
        )
        try:
            return retrying(operation)
        except ProviderUnreachable as error:
            raise ProviderUnreachable(
                f"{error}; gave up after retrying for {self.deadline_seconds:g} s. What is there "
                "is unknown",
                code=error.code,
                status=error.status,
            ) from error

    def _wait_seconds(self, state: RetryCallState) -> float:
        """Full jitter, 0.5 s doubling up to 60 s, on top of what the service wants us to wait."""
        error = state.outcome.exception() if state.outcome is not None else None
        least = error.wait_seconds if isinstance(error, ProviderRateLimited) else 0.0
        most = min(_LONGEST_SECONDS, max(0.5, least) * 2 ** min(state.attempt_number - 1, 10))
        return least + self.jitter(0, most)


def _may_heal(error: BaseException) -> bool:
    return isinstance(error, (ProviderUnreachable, ProviderRateLimited)) and not isinstance(
        error, ProviderSearchQuota
    )
