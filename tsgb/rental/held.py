"""What is known of the machine that a run holds, from look to look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tsgb.machines.verdicts import Cause
from tsgb.rental.papers import Intent
from tsgb.vast_api.records import Instance


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
    row: Instance | None = None
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
        arms = self.beat.get("arms")
        if not isinstance(arms, Mapping):
            return 0
        return sum(_step(arm) for arm in arms.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]

    @property
    def boot_seconds(self) -> float | None:
        """From the rental to its first sign of life."""
        return None if self.first_beat_at is None else self.first_beat_at - self.since

    def hold_seconds(self, clock: float) -> float:
        """Since its first sign of life."""
        return 0.0 if self.first_beat_at is None else max(0.0, clock - self.first_beat_at)


def _step(arm: object) -> int:
    if not isinstance(arm, Mapping):
        return 0
    found: object = arm.get("durable_step", arm.get("step"))  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return found if isinstance(found, int) else 0
