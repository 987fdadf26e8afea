"""Rate limits: a smallest interval for each endpoint and key, and a day's quota of searches."""

from __future__ import annotations

from collections import Counter

from tests.fakes.vast.clock import DAY, SECOND, Moment, microseconds
from tests.fakes.vast.messages import Answer, Request
from tests.fakes.vast.options import Options

INTERVALS_SECONDS = {
    "create": 4.5,
    "change_bid": 5.5,
    "destroy": 3.0,
    "show": 2.0,
    "list": 1.0,
    "update": 1.0,
    "reboot": 1.0,
    "recycle": 1.0,
    "execute": 1.5,
    "search": 6.0,
}
PENALTY_SECONDS = {"create": 12.0}
"""From a refused request on."""


class Limits:
    """What was asked when."""

    def __init__(self) -> None:
        self._next_at: dict[tuple[str, str | None], int] = {}
        self._searches: Counter[int] = Counter()

    def refusal(
        self, endpoint: str, request: Request, options: Options, now: Moment
    ) -> Answer | None:
        """The 429, or None if the request may pass, which counts it."""
        seconds = INTERVALS_SECONDS.get(endpoint)
        who = endpoint, request.token
        if options.rate_limits and seconds is not None:
            if now < self._next_at.get(who, 0):
                penalty = microseconds(PENALTY_SECONDS.get(endpoint, 0))
                self._next_at[who] = max(self._next_at[who], now + penalty)
                return too_frequent(options.rate_limit_shape, seconds)
            self._next_at[who] = now + microseconds(seconds)
        if endpoint == "search" and options.searches_per_day is not None:
            self._searches[now // DAY] += 1
            if self._searches[now // DAY] > options.searches_per_day:
                return quota_exceeded(now)
        return None


def too_frequent(shape: str, seconds: float) -> Answer:
    """In one of the three shapes that were seen."""
    text = "API requests too frequent"
    match shape:
        case "text":
            body = f"{text}: endpoint threshold={seconds}"
            return Answer(status=429, body=body, content_type="text/plain")
        case "retry_after":
            body = {"error": "rate_limited", "msg": text, "retry_after": seconds}
            return Answer(status=429, body=body, headers={"Retry-After": str(seconds)})
        case _:
            return Answer(status=429, body={"detail": f"{text} endpoint threshold={seconds}"})


def quota_exceeded(now: Moment) -> Answer:
    """Until midnight UTC."""
    midnight = (now // DAY + 1) * DAY // SECOND
    body = {"error": "search_quota_exceeded", "msg": "Daily search quota exceeded"}
    return Answer(status=429, body=body, headers={"X-RateLimit-Reset": str(midnight)})
