"""What is known of the machine that a run holds, from look to look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tsgb.cloud.documents import Intent
from tsgb.cloud.pricing import Usage
from tsgb.cloud.provider import Instance
from tsgb.cloud.termination import Cause
from tsgb.cloud.words import durable_steps


@dataclass(slots=True, kw_only=True)
class Held:
    """One rented machine.

    Example: `Held(attempt=3, instance_id=7835610, intent=intent, since=clock())`
    """

    attempt: int
    instance_id: int
    intent: Intent
    since: float
    """Clock reading at the rental, or when it was adopted."""
    instance: Instance | None = None
    """As last read."""
    verified: bool = False
    """The last read said something."""
    seen: bool = False
    """The service showed it once."""
    checked: bool = False
    """It is what was asked for."""
    billed: bool = True
    """Its GPU was billed at the last look, as far as is known."""
    beat: Mapping[str, Any] = field(default_factory=dict[str, Any])
    bytes_up: int = 0
    """As far as the ledger has counted them; a container that starts again begins at 0."""
    bytes_down: int = 0
    beat_at: float | None = None
    """Clock reading at which the heartbeat last changed; None before the first one."""
    first_beat_at: float | None = None
    step_at: float = 0.0
    farewell: Mapping[str, Any] | None = None
    renewed_at: float = float("-inf")
    listed_at: float = float("-inf")
    stop: str | None = None
    """Why it was asked to stop."""
    stop_at: float = 0.0
    cause: Cause | None = None
    """Why it is over."""
    message: str = ""
    finished: bool = False
    """Gone, paid and written down."""

    @property
    def step(self) -> int:
        """Of all arms together, as far as it is safe in the store."""
        return durable_steps(self.beat)

    def new_traffic(self) -> Usage:
        """Bytes that its heartbeat tells of and the ledger has not counted yet."""
        counts: list[int] = []
        for name in ("bytes_up", "bytes_down"):
            told, counted = self.beat.get(name), getattr(self, name)
            if not isinstance(told, int):
                told = counted
            counts.append(told - counted if told >= counted else told)
        return Usage(bytes_up=counts[0], bytes_down=counts[1])

    def traffic_is_counted(self) -> None:
        """The ledger has taken in what `new_traffic` gave."""
        for name in ("bytes_up", "bytes_down"):
            told = self.beat.get(name)
            if isinstance(told, int):
                setattr(self, name, told)

    @property
    def boot_seconds(self) -> float | None:
        """From the rental to its first sign of life."""
        return None if self.first_beat_at is None else self.first_beat_at - self.since

    def hold_seconds(self, clock: float) -> float:
        """Since its first sign of life."""
        return 0.0 if self.first_beat_at is None else max(0.0, clock - self.first_beat_at)
