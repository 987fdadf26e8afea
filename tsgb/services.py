"""Rules for all services that are asked over HTTP: targets, judges and guards.

It says which addresses prompts may be sent to, and when a request is repeated. It opens no
connection and knows no form of a question.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from tsgb.cloud.provider import is_loopback

_MAY_HEAL = frozenset({408, 409, 429})
"""HTTP statuses below 500 after which the same request may succeed."""


def may_heal(status: int) -> bool:
    """Tell whether a request that got this HTTP status may succeed when it is repeated."""
    return status >= 500 or status in _MAY_HEAL


def address_fault(url: str) -> str:
    """Return why prompts may not be sent to an address; empty if they may.

    The address itself is never repeated, because it may hold a key.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "is no address: write https://host/v1"
    if parts.username is not None or parts.password is not None:
        return "has a user or a password in it: keys come from an environment variable"
    if "?" in url or "#" in url:
        return "has a query or a fragment: leave it away, keys do not belong there"
    if not host or parts.scheme not in {"http", "https"} or not re.fullmatch(r"[!-~]+", url):
        return "is no address: write https://host/v1, without spaces"
    if parts.scheme == "http" and not is_loopback(url):
        return (
            f"sends to {host} what others can read: write https://, or forward a port of this "
            "machine to it"
        )
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatRules:
    """When and how often requests are repeated; there is no other layer of retries.

    Example: `RepeatRules(first_pause_seconds=0.01)`
    """

    first_pause_seconds: float = 0.5
    """Longest pause before the second attempt; it doubles with each further one."""
    longest_pause_seconds: float = 8.0
    """Bound of that doubling."""
    longest_wait_seconds: float = 120.0
    """Longest time that an endpoint may ask to wait; what asks for more is an error at once."""
    free_repeats: int = 100
    """Repeated requests of a whole run that are always allowed."""
    repeats_a_question: float = 0.5
    """Further repeated requests for each question that was asked, over the whole run."""

    def pause_seconds(
        self, attempt: int, asked: float | None, jitter: Callable[[float, float], float]
    ) -> float:
        """Return the seconds before the next attempt.

        Args:
            attempt: Number of the attempt that failed, from 1.
            asked: Seconds that the endpoint asks to wait; they are kept, and a little is added, so
                that not all come back at the same moment.
            jitter: Draws a number between two bounds.
        """
        most = min(self.longest_pause_seconds, self.first_pause_seconds * 2 ** min(attempt - 1, 30))
        if asked is None:
            return jitter(most / 2, most)
        return asked + jitter(0, most / 4)


def asked_wait(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that an answer's headers ask to wait; None if they do not.

    `retry-after-ms` wins over `Retry-After`, which is a number of seconds or an HTTP date.

    Args:
        headers: Headers by names in lower case.
        now: This moment, with its time zone.
    """
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        seconds = _number(headers.get(name, ""))
        if seconds is not None:
            return max(seconds / scale, 0.0)
    try:
        then = parsedate_to_datetime(headers.get("retry-after", ""))
    except (TypeError, ValueError, OverflowError):
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max((then - now).total_seconds(), 0.0)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) else value
