"""Who is there: every instance of the account, whose it is, and which lease covers it.

It reads and decides; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from tsgb.cloud.archive import Archive, Leases
from tsgb.cloud.lease import SKEW, Lease
from tsgb.cloud.orphans import Label, Sweep, objection, sweep
from tsgb.cloud.provider import Instance, Provider


class Standing(StrEnum):
    """What the reaper makes of an instance."""

    COVERED = "covered"
    DOOMED = "doomed"
    POSTPONED = "postponed"
    """Doomed, but beyond the most that may go at once."""
    UNKNOWN = "unknown"
    """The lease of its run could not be read."""
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Entry:
    """One instance, for a person.

    Example: `Entry(instance, Label("home", "r1", 3), Standing.COVERED, "leased until 12:00 UTC")`
    """

    instance: Instance
    label: Label | None
    """None for one that is not ours."""
    standing: Standing
    why: str

    def age(self, now: datetime) -> timedelta | None:
        """Since it was rented; None if the service does not say."""
        since = self.instance.created_at
        return None if since is None else max(timedelta(0), now - since)


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """One look at everything.

    Example: `take_census(provider, archive, "home", now=clock).entries`
    """

    at: datetime
    leases: Leases
    sweep: Sweep
    entries: tuple[Entry, ...]
    """Ordered by id."""


def take_census(
    provider: Provider,
    archive: Archive,
    deployment: str,
    *,
    now: Callable[[], datetime],
    skew: timedelta = SKEW,
) -> Census:
    """Read the list, then the leases: the lease of what is listed was written before it was rented.

    Args:
        provider: The account.
        archive: Where the runs of the deployment are.
        deployment: Ours.
        now: Time of day.
        skew: By how much clocks may differ.

    Raises:
        ProviderError: The list could not be read in full: nothing is known.
    """
    instances = {one.id: one for one in provider.list()}
    labels = {number: Label.ours(one.label, deployment) for number, one in instances.items()}
    leases = archive.leases(label.run for label in labels.values() if label is not None)
    at = now()
    found = sweep(instances.values(), leases.known, deployment, at, skew=skew)
    entries = [
        Entry(instances[number], labels[number], standing, why)
        for number, standing, why in _sorted_out(found, leases, at, skew)
    ]
    return Census(at=at, leases=leases, sweep=found, entries=tuple(entries))


def _sorted_out(
    found: Sweep, leases: Leases, now: datetime, skew: timedelta
) -> list[tuple[int, Standing, str]]:
    told = [
        *((o.instance.id, Standing.DOOMED, o.reason) for o in found.doomed),
        *((o.instance.id, Standing.POSTPONED, o.reason) for o in found.postponed),
        *((i.id, Standing.COVERED, _cover(i, leases.known, now, skew)) for i in found.covered),
        *((i.id, Standing.UNKNOWN, _doubt(i, leases.unreadable)) for i in found.unknown),
        *((i.id, Standing.FOREIGN, _owner(i)) for i in found.foreign),
    ]
    return sorted(told)


def _cover(
    instance: Instance, leases: Mapping[str, Lease | None], now: datetime, skew: timedelta
) -> str:
    """What keeps it: a lease, or what is tolerated without one."""
    label = Label.parse(instance.label)
    assert label is not None, "only what is ours is covered"
    lease = leases[label.run]
    reason = objection(instance, label, lease, now, skew)
    if lease is None or reason is not None:
        return f"{reason}, but it is too young to tell"
    if lease.has_run_out(now, timedelta(0)):
        return (
            f"its lease ran out at {lease.ends_at:%H:%M:%S} UTC; tolerated until "
            f"{lease.ends_at + skew:%H:%M:%S}, since clocks may differ"
        )
    until = f"leased until {lease.ends_at:%H:%M:%S} UTC"
    return until if lease.stop is None else f"asked to stop: {lease.stop}"


def _doubt(instance: Instance, unreadable: Mapping[str, str]) -> str:
    label = Label.parse(instance.label)
    why = "" if label is None else unreadable.get(label.run, "")
    return f"its lease could not be read: {why}"


def _owner(instance: Instance) -> str:
    label = Label.parse(instance.label)
    if label is not None:
        return f"of deployment {label.deployment}"
    return "of another tool" if instance.label else "without a label"
