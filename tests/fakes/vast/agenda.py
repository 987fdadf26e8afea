"""What is yet to happen, in order."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from tests.fakes.vast.clock import Clock, Moment, microseconds


class Agenda:
    """Events and the moment up to which they have happened.

    While an event runs, `now` is its own moment, however late it is looked at.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.now = clock.now()
        self._events: list[tuple[Moment, int, Callable[[], None]]] = []
        self._num_events = 0

    def at(self, moment: Moment, event: Callable[[], None]) -> None:
        """Plan an event; of two at the same moment, the one that was planned first comes first."""
        self._num_events += 1
        heapq.heappush(self._events, (moment, self._num_events, event))

    def after(self, seconds: float) -> Moment:
        return Moment(self.now + microseconds(seconds))

    def catch_up(self) -> None:
        """Let happen what is due by the clock."""
        target = self.clock.now()
        while self._events and self._events[0][0] <= target:
            moment, _, event = heapq.heappop(self._events)
            self.now = max(self.now, moment)
            event()
        self.now = max(self.now, target)
