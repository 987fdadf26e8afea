"""How fast an endpoint is asked, and what is asked again: decisions that threads share.

It knows clocks and counts, and neither HTTP nor prompts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from threading import Condition, Lock

from tsgb.services import RepeatRules

_POLL_SECONDS = 0.1
"""Seconds after which a thread that waits for its turn looks whether it should stop."""
_HISTORY = 1000


class RepeatBudget:
    """Bounds the repeated requests of a run, over all endpoints, so that an outage costs little.

    Example: `RepeatBudget(RepeatRules())`
    """

    def __init__(self, rules: RepeatRules) -> None:
        """Allow `free_repeats`."""
        self.rules = rules
        self._left = float(rules.free_repeats)
        self._lock = Lock()

    def count_question(self) -> None:
        """Count a question's first request."""
        with self._lock:
            self._left += self.rules.repeats_a_question

    def take(self) -> bool:
        """Return whether one more request may be repeated, and count it."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


class Pace:
    """Spaces events evenly, so that no minute has more than allowed; threads share it.

    An event of weight w starts w / rate after the one before it. So each half-open minute has at
    most `per_minute`, plus the weight of its last event where weights differ from one.

    Example: `Pace(600, time.monotonic).delay()`
    """

    def __init__(self, per_minute: float | None, clock: Callable[[], float]) -> None:
        """Allow the first event now; None sets no limit."""
        self._seconds_each = 0.0 if per_minute is None else 60.0 / per_minute
        self._clock = clock
        self._free_at = -math.inf
        self._lock = Lock()

    def delay(self, weight: float = 1.0) -> float:
        """Take the next turn, and return the seconds until it."""
        with self._lock:
            now = self._clock()
            start = max(now, self._free_at)
            self._free_at = start + weight * self._seconds_each
            return start - now


class AdaptiveLimit:
    """Bounds the requests that are on their way; fewer after an endpoint asked for fewer.

    A fifth less at each such answer, once for all that were on their way together; about one more
    for every round without one. `close` lets none begin until a moment.

    Example: `AdaptiveLimit(32, time.monotonic)`
    """

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        """Begin with the most requests at a time."""
        self._most = most
        self._limit = float(most)
        self._clock = clock
        self._active = 0
        self._lowered_at = -math.inf
        self._closed_until = -math.inf
        self._turn = Condition()
        self.history: deque[tuple[float, int]] = deque(maxlen=_HISTORY)
        """Pairs (clock's seconds, limit) of the newest changes."""

    @property
    def limit(self) -> int:
        """Requests that may be on their way now."""
        return max(1, int(self._limit))

    def enter(self, is_stopped: Callable[[], bool]) -> bool:
        """Wait for a place; return False if it was stopped before."""
        with self._turn:
            while not is_stopped():
                wait = self._closed_until - self._clock()
                if wait <= 0 and self._active < self.limit:
                    self._active += 1
                    return True
                self._turn.wait(min(wait, _POLL_SECONDS) if wait > 0 else _POLL_SECONDS)
            return False

    def leave(self) -> None:
        """Give a place back."""
        with self._turn:
            self._active -= 1
            self._turn.notify()

    def raise_slowly(self) -> None:
        """Count an answer that did not ask for fewer requests."""
        with self._turn:
            self._change(min(float(self._most), self._limit + 1 / self._limit))

    def lower(self, sent_at: float) -> None:
        """Take note that an answer to a request sent at a moment asked for fewer."""
        with self._turn:
            if sent_at >= self._lowered_at:
                self._lowered_at = self._clock()
                self._change(max(1.0, self._limit * 0.8))

    def close(self, seconds: float) -> None:
        """Let no request begin for so many seconds."""
        with self._turn:
            self._closed_until = max(self._closed_until, self._clock() + seconds)

    def _change(self, limit: float) -> None:
        before, self._limit = self.limit, limit
        if self.limit != before:
            self.history.append((self._clock(), self.limit))
            self._turn.notify_all()
