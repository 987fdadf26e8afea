"""Chooses the instances to destroy: those of this deployment that no lease covers.

The instances come from a complete list, the leases from the store. Unknown is not absent: a run
whose lease could not be read keeps its machines until the next round.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from tsgb.cloud.lease import SKEW, Lease
from tsgb.cloud.provider import Instance
from tsgb.errors import UsageError

MAX_LABEL = 60
MIN_AGE = timedelta(minutes=2)
"""Age below which an instance is kept, because its lease may have been read before its rental."""
MAX_DOOMED = 10
"""Most instances to destroy in one round; a larger number may be a mistake, and the rest waits."""
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_LABEL = re.compile(rf"tsgb/({_PART})/({_PART})/([1-9]\d{{0,8}})(?:/([1-9]\d{{9}}))?")
LONGEST_LEASE = timedelta(hours=6)
"""Time beyond which no flow prolongs a lease at once; one that says more was not written by a flow.
The setting `lease_seconds` allows no more."""


@dataclass(frozen=True, slots=True)
class InstanceLabel:
    """Label of an instance, by which it is found when the answer to `create` was lost.

    Example: `str(InstanceLabel("home", "r1", 3, 1764410400)) == "tsgb/home/r1/3/1764410400"`
    """

    deployment: str
    """Name of the deployment."""
    run: str
    """Id of the run."""
    attempt: int
    """Number of the attempt."""
    deadline: int | None = None
    """Seconds since 1970 after which the instance is destroyed, whatever any document says: nobody
    but the account can change a label. None for an instance of an earlier version."""

    def __str__(self) -> str:
        end = "" if self.deadline is None else f"/{self.deadline}"
        return f"tsgb/{self.deployment}/{self.run}/{self.attempt}{end}"

    def is_past(self, now: datetime, skew: timedelta) -> bool:
        """Return whether its deadline is over on any clock within `skew` of this one."""
        return self.deadline is not None and (now - skew).timestamp() > self.deadline

    @classmethod
    def parse(cls, text: str | None) -> InstanceLabel | None:
        """Return the label that a text spells exactly; None if it spells none."""
        match = None if text is None else _LABEL.fullmatch(text)
        return match and cls(
            match[1], match[2], int(match[3]), None if match[4] is None else int(match[4])
        )

    @classmethod
    def ours(cls, text: str | None, deployment: str) -> InstanceLabel | None:
        """Return the label in a text; None if it is not one of this deployment."""
        parsed = cls.parse(text)
        return parsed if parsed is not None and parsed.deployment == deployment else None

    def check(self) -> str:
        """Return the text of the label, after checking that it can be parsed.

        Raises:
            UsageError: The text is too long, or could not be parsed.
        """
        text = str(self)
        if len(text) > MAX_LABEL or InstanceLabel.parse(text) != self:
            raise UsageError(
                f"label {text!r} is not tsgb/<deployment>/<run>/<attempt>/<end> within {MAX_LABEL} "
                "characters: choose a shorter run id of A-Z a-z 0-9 . _ -"
            )
        return text


@dataclass(frozen=True, slots=True)
class Orphan:
    """An instance to destroy.

    Example: `Orphan(instance, "its lease ran out at 12:00:00 UTC")`
    """

    instance: Instance
    """The instance."""
    reason: str
    """Reason that no lease covers it, in one line."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """All instances, each in one of five lists, which are ordered by id."""

    doomed: tuple[Orphan, ...] = ()
    """Instances to destroy now."""
    postponed: tuple[Orphan, ...] = ()
    """Orphans beyond the number that may be destroyed in one round."""
    covered: tuple[Instance, ...] = ()
    """Instances that are leased, or too young to tell."""
    unknown: tuple[Instance, ...] = ()
    """Instances whose run's lease could not be read."""
    foreign: tuple[Instance, ...] = ()
    """Instances of another tool or deployment, or without a label."""


def sweep(
    instances: Iterable[Instance],
    leases: Mapping[str, Lease | None],
    deployment: str,
    now: datetime,
    *,
    skew: timedelta = SKEW,
    max_doomed: int = MAX_DOOMED,
) -> Sweep:
    """Classify all instances.

    Args:
        instances: A complete list.
        leases: Lease by run; None where there is certainly none, no key where it is unknown.
        deployment: Name of this deployment.
        now: Time of day.
        skew: Difference between two clocks that is tolerated.
        max_doomed: Most instances to destroy.
    """
    orphans: list[Orphan] = []
    covered: list[Instance] = []
    unknown: list[Instance] = []
    foreign: list[Instance] = []
    for instance in sorted(instances, key=lambda row: row.id):
        label = InstanceLabel.ours(instance.label, deployment)
        if label is None:
            foreign.append(instance)
        elif label.is_past(now, skew):
            orphans.append(Orphan(instance, "the deadline in its label is over"))
        elif label.run not in leases:
            unknown.append(instance)
        elif reason := _uncovered(instance, label, leases[label.run], now, skew):
            orphans.append(Orphan(instance, reason))
        else:
            covered.append(instance)
    return Sweep(
        doomed=tuple(orphans[:max_doomed]),
        postponed=tuple(orphans[max_doomed:]),
        covered=tuple(covered),
        unknown=tuple(unknown),
        foreign=tuple(foreign),
    )


def _uncovered(
    instance: Instance, label: InstanceLabel, lease: Lease | None, now: datetime, skew: timedelta
) -> str | None:
    """Return why no lease covers the instance; None if one does, or if it is too young."""
    reason = objection(instance, label, lease, now, skew)
    if reason is None or instance.created_at is None:
        return reason
    return reason if now - instance.created_at > MIN_AGE else None


def objection(
    instance: Instance, label: InstanceLabel, lease: Lease | None, now: datetime, skew: timedelta
) -> str | None:
    """Return why no lease covers the instance, at any age; None if one does within `skew`."""
    if lease is None:
        return f"run {label.run} has no lease"
    if reason := _end_of(lease, now, skew):
        return reason
    if label.attempt != lease.attempt:
        return f"the lease is that of attempt {lease.attempt}"
    if lease.instance_id is not None and lease.instance_id != instance.id:
        return f"the lease is that of instance {lease.instance_id}"
    return None


def _end_of(lease: Lease, now: datetime, skew: timedelta) -> str | None:
    """Return why a lease covers nothing now; None if it is in force."""
    if lease.ended:
        return f"run {lease.run} has ended"
    if lease.ends_at - skew > now + LONGEST_LEASE:
        return f"its lease until {lease.ends_at:%Y-%m-%d} is longer than any that a flow gives"
    if lease.has_run_out(now, skew):
        return f"its lease ran out at {lease.ends_at:%H:%M:%S} UTC"
    return None
