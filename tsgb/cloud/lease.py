"""The lease of a run: which attempt may work on it, until when, and whether it shall stop.

A pure record and functions; whoever holds the store reads and writes `lease.json`. One writer: the
flow. A worker's watcher and the reaper read it. Clocks are arguments. Two clocks may differ by
`SKEW`; a watcher that runs needs no common clock at all, see `LeaseTracker`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from tsgb.errors import LeaseLost, StoreError

NAME = "lease.json"
SKEW = timedelta(minutes=10)
"""Time by which the clocks of a flow, a worker and a reaper may differ."""
TTL = timedelta(minutes=20)
"""Time that a machine works on after its flow died; it limits the cost of a lost flow."""


class LeaseState(StrEnum):
    """State of a lease for one attempt."""

    HOLDS = "holds"
    """The attempt may work."""
    REVOKED = "revoked"
    """The flow asks the attempt to save and end."""
    OVER = "over"
    """It has expired, is past its deadline, or the run has ended."""
    OTHERS = "others"
    """It belongs to another attempt, and saves of this one are refused."""

    @property
    def may_work(self) -> bool:
        """Whether the attempt goes on."""
        return self is LeaseState.HOLDS


class Lease(BaseModel):
    """Permission for one attempt to work on a run.

    Example: `Lease(run="r1", attempt=3, owner="5f0c", renewed_at=now, expires_at=now + TTL)`
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    run: str
    """Id of the run."""
    attempt: int = Field(ge=1)
    """Fencing token: only this attempt may work."""
    owner: str
    """Random name of the flow's start, by which a second flow sees another's lease."""
    renewed_at: AwareDatetime
    """Time of the last renewal."""
    expires_at: AwareDatetime
    """Time at which it ends unless it is renewed."""
    renewals: int = Field(default=0, ge=0)
    """Number of renewals, by which a machine sees one without a common clock."""
    ttl_seconds: float = Field(default=TTL.total_seconds(), gt=0)
    """Seconds for which a renewal is good."""
    deadline_at: AwareDatetime | None = None
    """Time beyond which no renewal reaches; None without a limit."""
    instance_id: int | None = None
    """The instance; None until the rental is acknowledged, and for a local process."""
    budget_microdollars: int | None = None
    """Micro-dollars that the run may cost; None without a budget."""
    spent_microdollars: int = 0
    """Micro-dollars spent at the last renewal."""
    stop: str | None = None
    """Reason for which the attempt must save and end; None while it may work."""
    ended: bool = False
    """Whether the run is over, so that no instance of it may exist."""

    def to_json(self) -> dict[str, Any]:
        """Return the document in the store."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str = NAME) -> Self:
        """Read the document.

        Raises:
            StoreError: It is no lease; never to be taken for an absent one.
        """
        try:
            return cls.model_validate(dict(document))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise StoreError(
                f"{where}: {field}: {first['msg']}: not a lease; stop what works on this run, then "
                "delete it"
            ) from error

    @property
    def ends_at(self) -> datetime:
        """Its end or its deadline, whichever comes first."""
        deadline = self.deadline_at
        return self.expires_at if deadline is None else min(self.expires_at, deadline)

    def has_run_out(self, now: datetime, skew: timedelta = SKEW) -> bool:
        """Return whether it is past its end or deadline on any clock within `skew` of this one."""
        return now - skew > self.ends_at  # the sum could lie beyond the last date

    def standing(self, attempt: int, now: datetime, skew: timedelta = SKEW) -> LeaseState:
        """Return its state for an attempt that reads it now."""
        if self.attempt != attempt:
            return LeaseState.OTHERS
        if self.ended or self.has_run_out(now, skew):
            return LeaseState.OVER
        return LeaseState.HOLDS if self.stop is None else LeaseState.REVOKED


def grant(
    held: Lease | None,
    *,
    run: str,
    attempt: int,
    owner: str,
    now: datetime,
    ttl: timedelta = TTL,
    deadline_at: datetime | None = None,
    budget_microdollars: int | None = None,
    spent_microdollars: int = 0,
) -> Lease:
    """Return the lease of a new attempt, which follows the one in the store.

    Raises:
        LeaseLost: Another flow holds it, or it is that of a later attempt.
    """
    if held is not None:
        if held.owner != owner and not held.ended and not held.has_run_out(now):
            raise LeaseLost(
                f"run {run!r}: another flow renewed the lease at {held.renewed_at:%H:%M:%S} and "
                f"holds it until {held.expires_at:%H:%M:%S} (UTC): stop that flow, or wait"
            )
        if held.attempt > attempt:
            raise LeaseLost(f"run {run!r}: attempt {held.attempt} came after attempt {attempt}")
    return Lease(
        run=run,
        attempt=attempt,
        owner=owner,
        renewed_at=now,
        expires_at=_end(now, ttl, deadline_at),
        renewals=0 if held is None else held.renewals + 1,
        ttl_seconds=max(1.0, (_end(now, ttl, deadline_at) - now).total_seconds()),
        deadline_at=deadline_at,
        budget_microdollars=budget_microdollars,
        spent_microdollars=spent_microdollars,
    )


def renew(
    lease: Lease,
    now: datetime,
    *,
    ttl: timedelta = TTL,
    until: datetime | None = None,
    spent_microdollars: int | None = None,
) -> Lease:
    """Prolong it; a revoked one stays revoked, and its end never moves back.

    Args:
        lease: As it is in the store.
        now: Time of day.
        ttl: For so long.
        until: But no longer than money is set aside for, so that a machine whose flow dies costs
            no more than that (see `Ledger.covers_until`).
        spent_microdollars: For a person to read.

    Raises:
        LeaseLost: The run has ended.
    """
    if lease.ended:
        raise LeaseLost(f"run {lease.run!r} has ended; its lease is not renewed")
    bounds = [bound for bound in (lease.deadline_at, until) if bound is not None]
    end = _end(now, ttl, min(bounds, default=None))
    spent = lease.spent_microdollars if spent_microdollars is None else spent_microdollars
    return lease.model_copy(
        update={
            "renewed_at": max(lease.renewed_at, now),
            "expires_at": max(lease.expires_at, end),
            "renewals": lease.renewals + 1,
            "ttl_seconds": max(1.0, (end - now).total_seconds()),
            "spent_microdollars": max(lease.spent_microdollars, spent),
        }
    )


def assign(lease: Lease, instance_id: int) -> Lease:
    """Name the machine, once the rental is acknowledged."""
    return lease.model_copy(update={"instance_id": instance_id})


def revoke(lease: Lease, reason: str) -> Lease:
    """Ask the attempt to save and go; the first reason stands."""
    return lease if lease.stop else lease.model_copy(update={"stop": reason})


def end(lease: Lease, reason: str) -> Lease:
    """End the run: its machines go, and no renewal brings it back."""
    return revoke(lease, reason).model_copy(update={"ended": True})


def _end(now: datetime, ttl: timedelta, deadline_at: datetime | None) -> datetime:
    return now + ttl if deadline_at is None else min(now + ttl, deadline_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTracker:
    """Record of a watcher, kept between reads: when it last saw the lease renewed.

    The time between renewals is measured on the watcher's own monotonic clock. So a lease that is
    renewed holds however far its wall clock is off, and one that is not, ends after its own ttl.

    Example: `LeaseTracker(attempt=3, since=monotonic())`
    """

    attempt: int
    """Number of this machine's attempt."""
    since: float
    """Monotonic seconds of the tracker's start, then of the last renewal that was seen."""
    renewals: int | None = None
    """Renewals as last read; None before."""
    risen: bool = False
    """Whether a renewal was seen, so that the flow is alive."""
    ttl_seconds: float = TTL.total_seconds()
    """Seconds for which a renewal is good."""

    def saw(self, lease: Lease, monotonic: float) -> LeaseTracker:
        """Return the tracker after a successful read; a failed one changes nothing."""
        if lease.attempt != self.attempt:
            return self
        if self.renewals is not None and lease.renewals <= self.renewals:
            return self
        return replace(
            self,
            since=monotonic,
            renewals=lease.renewals,
            risen=self.renewals is not None,
            ttl_seconds=lease.ttl_seconds,
        )

    def standing(self, lease: Lease | None, now: datetime, monotonic: float) -> LeaseState:
        """Return the state of the lease now.

        Args:
            lease: As it was last read; None if it could not be read yet.
            now: This machine's wall clock. It judges the deadline, and the lease itself only until
                a renewal was seen: a machine that was stopped for hours may start again.
            monotonic: This machine's monotonic clock.
        """
        if monotonic - self.since > self.ttl_seconds:
            return LeaseState.OVER
        if lease is None:
            return LeaseState.HOLDS
        past_deadline = lease.deadline_at is not None and now - SKEW > lease.deadline_at
        if self.risen and not past_deadline:
            now = min(now, lease.expires_at)
        return lease.standing(self.attempt, now)
