"""Ending machines by hand: those that a person names, after they had a chance to save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from tsgb.cloud.archive import Archive
from tsgb.cloud.destroying import destroy
from tsgb.cloud.inventory import Census, Entry
from tsgb.cloud.lease import Standing, revoke
from tsgb.cloud.orphans import sweep
from tsgb.cloud.provider import Provider
from tsgb.cloud.reaper import Reaping, closed
from tsgb.errors import ProviderError, StoreError, UsageError

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
    known = {entry.instance.id: entry for entry in census.entries}
    picked: list[Entry] = []
    for number in dict.fromkeys(ids):
        entry = known.get(number)
        if entry is None:
            raise UsageError(f"there is no instance {number}: `tsgb machines ls` shows all")
        if entry.label is None:
            name = (
                f"labelled {entry.instance.label!r}" if entry.instance.label else "without a label"
            )
            raise UsageError(
                f"instance {number} is {name}, which is not ours (tsgb/{deployment}/...): it is "
                "never touched; end it with the tool that rented it, or in the service's console"
            )
        if not force and (why := _in_use(entry, census, deployment, skew)):
            raise UsageError(
                f"instance {number} ({entry.instance.label}) is in use, {why}: end its flow, which "
                "ends it too, or give --force"
            )
        picked.append(entry)
    return picked


def _in_use(entry: Entry, census: Census, deployment: str, skew: timedelta) -> str | None:
    """Whether a lease covers it or may do so; its age is no excuse, since a person asks."""
    old = replace(entry.instance, created_at=None)
    found = sweep([old], census.leases.known, deployment, census.at, skew=skew)
    return entry.why if found.covered or found.unknown else None


def dismiss(
    provider: Provider,
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
        provider: The account.
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
        asked = [entry for entry in asked if not _has_ended(provider, archive, entry)]
    left = destroy(provider, [entry.instance.id for entry in entries], sleep)
    return [
        Reaping(entry, problem=left[entry.instance.id])
        if entry.instance.id in left
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
        note(f"instance {entry.instance.id} could not be asked to save: {error}")
        return False
    note(f"asking instance {entry.instance.id} to save first")
    return True


def _has_ended(provider: Provider, archive: Archive, entry: Entry) -> bool:
    label = entry.label
    assert label is not None
    try:
        return (
            archive.papers(label.run).farewell(label.attempt) is not None
            or provider.show(entry.instance.id) is None
        )
    except (StoreError, ProviderError):
        return False
