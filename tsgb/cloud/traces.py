"""What a machine left behind, for whoever has to close its books after its flow.

It reads; it writes nothing and asks no service.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tsgb.cloud.accounts import Account
from tsgb.cloud.documents import Page, Papers
from tsgb.cloud.pricing import Usage
from tsgb.cloud.words import durable_steps, moment, number


@dataclass(frozen=True, slots=True)
class Traces:
    """Of one attempt.

    Example: `Traces(more=Usage(bytes_up=7), step=120, boot_seconds=60.0, hold_seconds=9.0, ...)`
    """

    more: Usage
    """Traffic that it tells of and its account does not hold."""
    step: int
    """Updates that it has saved, of all arms together."""
    boot_seconds: float | None
    """From the rental to its first sign of life; None if its flow saw none."""
    hold_seconds: float
    """From that to its last word; from the rental, if its flow saw no sign of life."""
    farewell: Mapping[str, Any] | None
    """Its last word; None if it had no time for one."""
    said_at: datetime | None
    """When it last said something, by its own clock; None if it never did."""


def counted(account: Account | None, page: Page | None) -> tuple[int, int]:
    """Bytes up and down of a machine's own counters that its account holds."""
    if account is None:
        return 0, 0
    image = 0 if page is None or page.intent is None else page.intent.image_bytes
    return account.usage.bytes_up, max(0, account.usage.bytes_down - image)


def traces(papers: Papers, page: Page, account: Account | None) -> Traces:
    """Read them.

    Raises:
        StoreError: They cannot be read.
    """
    beat, farewell = papers.beat(page.attempt) or {}, papers.farewell(page.attempt)
    up, down = counted(account, page)
    more = Usage(
        bytes_up=max(0, number(beat, "bytes_up") - up),
        bytes_down=max(0, number(beat, "bytes_down") - down),
    )
    last = moment(farewell, "ended_at") or moment(beat, "updated_at")
    first, intent = page.first_beat_at, page.intent
    boot = None if first is None or intent is None else first - intent.intended_at
    begun = first if first is not None or intent is None else intent.intended_at
    hold = 0.0 if begun is None or last is None else (last - begun).total_seconds()
    return Traces(
        more=more,
        step=durable_steps(farewell or beat) or durable_steps(beat),
        boot_seconds=None if boot is None else max(0.0, boot.total_seconds()),
        hold_seconds=max(0.0, hold),
        farewell=farewell,
        said_at=last,
    )
