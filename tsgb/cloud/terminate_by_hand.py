"""Ending machines by hand: those that a person names, after they had a chance to save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from tsgb.cloud.archive import Archive
from tsgb.cloud.destroying import destroy
from tsgb.cloud.inventory import Census, Entry
from tsgb.cloud.lease import Standing, revoke
from tsgb.cloud.orphans import Instance, sweep
from tsgb.cloud.reaper import Reaping, closed
from tsgb.cloud.vast.client import VastClient
from tsgb.errors import StoreError, UsageError, VastError

REASON = "destroyed by hand"
_LOOK_SECONDS = 2.0
_AT_WORK = frozenset({Standing.HOLDS, Standing.REVOKED})


def pick(
    census: Census, ids: Iterable[int], *, force: bool, deployment: str, skew: timedelta
) -> list[Entry]:
    """The instances that are meant, if all of them may be destroyed.

    Args:
        census: Of the account.
        ids: As a person gave them.
        force: Also those that a lease covers, or of which that is not known.
        deployment: Ours.
        skew: By how much clocks may differ.

    Raises:
        UsageError: One is not there, not ours, or in use.
    """
    known = {entry.row.id: entry for entry in census.entries}
    picked: list[Entry] = []
    for number in dict.fromkeys(ids):
        entry = known.get(number)
        if entry is None:
            raise UsageError(f"there is no instance {number}: `tsgb machines ls` shows all")
        if entry.label is None:
            name = f"labelled {entry.row.label!r}" if entry.row.label else "without a label"
            raise UsageError(
                f"instance {number} is {name}, which is not ours (tsgb/{deployment}/...): it is "
                "never touched; end it with the tool that rented it, or in the service's console"
            )
        if not force and (why := _in_use(entry, census, deployment, skew)):
            raise UsageError(
                f"instance {number} ({entry.row.label}) is in use, {why}: end its flow, which ends "
                "it too, or give --force"
            )
        picked.append(entry)
    return picked


def _in_use(entry: Entry, census: Census, deployment: str, skew: timedelta) -> str | None:
    """Whether a lease covers it or may do so; its age is no excuse, since a person asks."""
    old = Instance(entry.row.id, entry.row.label)
    found = sweep([old], census.leases.known, deployment, census.at, skew=skew)
    return entry.why if found.covered or found.unknown else None


def dismiss(
    vast: VastClient,
    archive: Archive,
    entries: Sequence[Entry],
    *,
    now: Callable[[], datetime],
    sleep: Callable[[float], None],
    grace: timedelta,
    skew: timedelta,
    note: Callable[[str], None],
) -> list[Reaping]:
    """Ask those at work to save, give them time, destroy all, see that they are gone, settle.

    Args:
        vast: The account.
        archive: Where their runs are.
        entries: As `pick` gave them.
        now: Time of day.
        sleep: Waits for so many seconds.
        grace: For a machine to save and say so.
        skew: By how much clocks may differ.
        note: Tells a person, in one line.
    """
    asked = [entry for entry in entries if _ask(archive, entry, now(), skew, note)]
    ends = now() + grace
    while asked and now() < ends:
        sleep(_LOOK_SECONDS)
        asked = [entry for entry in asked if not _has_ended(vast, archive, entry)]
    left = destroy(vast, [entry.row.id for entry in entries], sleep)
    return [
        Reaping(entry, problem=left[entry.row.id])
        if entry.row.id in left
        else closed(archive, entry, now(), skew=skew, by="hand")
        for entry in entries
    ]


def _ask(
    archive: Archive, entry: Entry, now: datetime, skew: timedelta, note: Callable[[str], None]
) -> bool:
    """Revoke its lease; whether there is somebody at work who can save."""
    label = entry.label
    assert label is not None
    try:
        papers = archive.papers(label.run)
        lease = papers.lease()
        if lease is None or lease.standing(label.attempt, now, skew) not in _AT_WORK:
            return False
        if lease.stop is None:
            papers.put_lease(revoke(lease, REASON))
        if papers.beat(label.attempt) is None:
            return False
    except StoreError as error:
        note(f"instance {entry.row.id} could not be asked to save: {error}")
        return False
    note(f"asking instance {entry.row.id} to save first")
    return True


def _has_ended(vast: VastClient, archive: Archive, entry: Entry) -> bool:
    label = entry.label
    assert label is not None
    try:
        return (
            archive.papers(label.run).farewell(label.attempt) is not None
            or vast.show(entry.row.id) is None
        )
    except (StoreError, VastError):
        return False
