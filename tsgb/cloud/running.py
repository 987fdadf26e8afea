"""State of the machine that works for a run, as of the last look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tsgb.checkpoint.documents import count_in
from tsgb.cloud.documents import Intent, durable_steps, has_made_updates, tells_of_start
from tsgb.cloud.pricing import Usage
from tsgb.cloud.provider import Instance, InstanceState
from tsgb.cloud.termination import TerminationReason


@dataclass(slots=True, kw_only=True)
class RunningInstance:
    """One rented machine of a run.

    Example: `RunningInstance(attempt=3, instance_id=7835610, intent=intent, since=clock())`
    """

    attempt: int
    """Number of the attempt that it works on."""
    instance_id: int
    """The service's number of it."""
    intent: Intent
    """The rental as it was asked for."""
    since: float
    """Clock reading at the rental, or at its adoption less its age."""
    instance: Instance | None = None
    """The instance as last read; None if it was never read or is gone."""
    verified: bool = False
    """Whether the service answered at the last look."""
    seen: bool = False
    """Whether the service has shown it at least once."""
    has_run: bool = False
    """Whether the service has shown its container in any state but being made."""
    checked: bool = False
    """Whether it was compared with the intended rental."""
    billed: bool = True
    """Whether its GPU was billed at the last look; assumed if unknown."""
    heartbeat: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Its last heartbeat; empty before the first one."""
    bytes_up: int = 0
    """Sent bytes that the ledger has counted; a container that starts again counts from 0."""
    bytes_down: int = 0
    """Received bytes that the ledger has counted."""
    doubted_traffic: bool = False
    """Whether a person was told that its traffic is not believed."""
    beat_at: float | None = None
    """Clock reading at which the heartbeat last changed; None before the first one."""
    first_beat_at: float | None = None
    """Clock reading at the first heartbeat; None before it."""
    step_at: float = 0.0
    """Clock reading at which its step last changed."""
    exit_record: Mapping[str, Any] | None = None
    """Its exit record; None if it has not written one."""
    renewed_at: float = float("-inf")
    """Clock reading at the last renewal of its lease."""
    looked_at: float = float("-inf")
    """Clock reading at the last look."""
    listed_at: float = float("-inf")
    """Clock reading at the last list of all instances."""
    stop: str | None = None
    """Reason for which it was asked to stop; None if it was not."""
    stop_at: float = 0.0
    """Clock reading at which it was asked to stop."""
    cause: TerminationReason | None = None
    """Termination reason; None while it is at work."""
    message: str = ""
    """Termination reason in one line for people."""
    is_certain: bool = False
    """Whether the service itself showed the termination reason, which no host can change."""
    finished: bool = False
    """Whether it is gone, and its account and its end are recorded."""

    @property
    def at_work(self) -> bool:
        """Return whether it is at work and was not asked to stop."""
        return self.cause is None and self.stop is None and not self.finished

    @property
    def step(self) -> int:
        """Return the updates of all arms together that are safe, as it says itself."""
        return durable_steps(self.heartbeat)

    @property
    def is_idle(self) -> bool:
        """Return whether it has told of no update beyond what it went on from."""
        return not has_made_updates(self.heartbeat) and not has_made_updates(self.exit_record or {})

    @property
    def start_is_told(self) -> bool:
        """Return whether all traffic of its start is known: it tells, or has received none yet."""
        is_made = self.instance is not None and self.instance.state is InstanceState.PROVISIONING
        waits = is_made and not self.has_run and not self.heartbeat and self.exit_record is None
        return waits or tells_of_start(self.heartbeat)

    def new_traffic(self) -> Usage:
        """Return the bytes in its heartbeat that the ledger has not counted yet."""
        up, down = count_in(self.heartbeat, "bytes_up"), count_in(self.heartbeat, "bytes_down")
        return Usage(
            bytes_up=up - self.bytes_up if up >= self.bytes_up else up,
            bytes_down=down - self.bytes_down if down >= self.bytes_down else down,
        )

    def traffic_is_counted(self, new: Usage, left: Usage) -> None:
        """Note that the ledger has counted what `new_traffic` returned, but for a rest.

        Args:
            new: What `new_traffic` returned.
            left: The rest, which more time may make believable.
        """
        up, down = count_in(self.heartbeat, "bytes_up"), count_in(self.heartbeat, "bytes_down")
        self.bytes_up = up - left.bytes_up if new.bytes_up else self.bytes_up
        self.bytes_down = down - left.bytes_down if new.bytes_down else self.bytes_down

    @property
    def boot_seconds(self) -> float | None:
        """Return the seconds from the rental to the first heartbeat; None before it."""
        return None if self.first_beat_at is None else self.first_beat_at - self.since

    def hold_seconds(self, clock: float) -> float:
        """Return the seconds since the first heartbeat."""
        return 0.0 if self.first_beat_at is None else max(0.0, clock - self.first_beat_at)
