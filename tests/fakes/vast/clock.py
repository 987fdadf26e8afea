"""Time as the simulator sees it: whole microseconds since the epoch, so that bills are exact."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import NewType

Moment = NewType("Moment", int)
"""Microseconds since the epoch."""

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
VIRTUAL_START = Moment(1_800_000_000 * SECOND)


def microseconds(seconds: float | Decimal) -> int:
    return round(seconds * SECOND)


def began(age_seconds: float) -> Moment:
    """So long ago, by this machine's clock."""
    return Moment(time.time_ns() // 1000 - microseconds(age_seconds))


class Clock:
    """Runs `speed` times as fast as this machine's, and can be put forward.

    Speed 0 is a virtual clock: it moves only when it is told to.
    """

    def __init__(self, speed: float = 1.0, start: Moment | None = None) -> None:
        self.speed = speed
        self._base = start or Moment(time.time_ns() // 1000)
        self._since = time.monotonic_ns()

    def now(self) -> Moment:
        passed = (time.monotonic_ns() - self._since) // 1000
        return Moment(self._base + round(passed * self.speed))

    def advance(self, seconds: float | Decimal) -> None:
        """Put it forward; never back.

        Raises:
            ValueError: seconds are negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot go back by {-seconds} s")
        self._base = Moment(self._base + microseconds(seconds))

    def run(self, speed: float) -> None:
        """Go on from now at another speed."""
        self._base, self._since, self.speed = self.now(), time.monotonic_ns(), speed
