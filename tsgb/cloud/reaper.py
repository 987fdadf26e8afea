"""The reaper: destroys the instances of a deployment that no lease covers, and no others.

What it could not find out it says, and leaves alone. Clocks are arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tsgb.cloud.archive import Archive
from tsgb.cloud.budget import Ledger
from tsgb.cloud.close_books import settle
from tsgb.cloud.destroying import destroy
from tsgb.cloud.documents import Papers
from tsgb.cloud.inventory import Entry, Standing, take_census
from tsgb.cloud.lease import SKEW
from tsgb.cloud.pricing import in_dollars
from tsgb.cloud.provider import Provider
from tsgb.errors import TSGBError


@dataclass(frozen=True, slots=True)
class Reaping:
    """What became of one instance.

    Example: `Reaping(entry, gone=True, charged=120_000)`
    """

    entry: Entry
    gone: bool = False
    charged: int | None = None
    """Micro-dollars of its attempt, where its account was closed."""
    problem: str = ""
    """Why it is there still, or its books could not be closed."""

    def __str__(self) -> str:
        entry = self.entry
        name = f"instance {entry.instance.id} ({entry.instance.label or 'no label'})"
        if self.gone:
            cost = "" if self.charged is None else f", it cost {in_dollars(self.charged)}"
            problem = f"; {self.problem}" if self.problem else ""
            return f"destroyed {name}: {entry.why}{cost}{problem}"
        if self.problem:
            return f"NOT destroyed: {name}: {entry.why}; {self.problem}"
        words = {
            Standing.DOOMED: "would destroy",
            Standing.POSTPONED: "too many at once, left for the next look:",
            Standing.UNKNOWN: "left alone, because nobody knows:",
        }
        return f"{words.get(entry.standing, entry.standing.value)} {name}: {entry.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """One round of the reaper.

    Example: `reap(provider, archive, "home", now=clock, sleep=time.sleep).lines()`
    """

    at: datetime
    dry_run: bool
    items: tuple[Reaping, ...]
    """Every instance, by id."""

    def of(self, standing: Standing) -> list[Reaping]:
        """Those that stood so when the list was read."""
        return [item for item in self.items if item.entry.standing is standing]

    @property
    def left(self) -> list[Reaping]:
        """What somebody has to look after: doomed and there still, too many, or unknown."""
        loud = {Standing.DOOMED, Standing.POSTPONED, Standing.UNKNOWN}
        return [item for item in self.items if item.entry.standing in loud and not item.gone]

    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {
            "destroyed": sum(item.gone for item in self.items),
            **{standing.value: len(self.of(standing)) for standing in Standing},
        }

    def lines(self) -> list[str]:
        """For a person: a line for each that is no longer as it should be, then the sum."""
        quiet = {Standing.COVERED, Standing.FOREIGN}
        told = [str(item) for item in self.items if item.entry.standing not in quiet]
        counts = self.counts()
        gone = (
            f"{counts['doomed']} to destroy" if self.dry_run else f"{counts['destroyed']} destroyed"
        )
        left = len(self.left) - (counts["doomed"] if self.dry_run else 0)
        parts = [gone, f"{counts['covered']} leased", f"{left} left to look after"]
        parts.append(f"{counts['foreign']} of others")
        return [*told, f"{len(self.items)} instances: {', '.join(parts)}"]

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "at": self.at.isoformat(),
            "dry_run": self.dry_run,
            **self.counts(),
            "instances": [
                {
                    "id": item.entry.instance.id,
                    "label": item.entry.instance.label,
                    "standing": item.entry.standing.value,
                    "why": item.entry.why,
                    "gone": item.gone,
                    "microdollars": item.charged,
                    "problem": item.problem or None,
                }
                for item in self.items
            ],
        }


def reap(
    provider: Provider,
    archive: Archive,
    deployment: str,
    *,
    now: Callable[[], datetime],
    sleep: Callable[[float], None],
    skew: timedelta = SKEW,
    dry_run: bool = False,
) -> Reaped:
    """One round: list, read the leases, destroy what none covers, see that it is gone, settle.

    Args:
        provider: The account.
        archive: Where the runs of the deployment are.
        deployment: Ours; instances of another one, or without our label, are never touched.
        now: Time of day.
        sleep: Waits for so many seconds.
        skew: By how much clocks may differ.
        dry_run: Destroy and write nothing.

    Raises:
        ProviderError: The list could not be read in full: nothing was done.
    """
    census = take_census(provider, archive, deployment, now=now, skew=skew)
    doomed = [orphan.instance.id for orphan in census.sweep.doomed]
    left = {} if dry_run else destroy(provider, doomed, sleep)

    def reaped(entry: Entry) -> Reaping:
        if entry.standing is not Standing.DOOMED or dry_run:
            return Reaping(entry)
        if entry.instance.id in left:
            return Reaping(entry, problem=left[entry.instance.id])
        return closed(archive, entry, now(), skew=skew, by="the reaper")

    items = tuple(reaped(entry) for entry in census.entries)
    return Reaped(at=census.at, dry_run=dry_run, items=items)


def closed(archive: Archive, entry: Entry, now: datetime, *, skew: timedelta, by: str) -> Reaping:
    """Close the books on an instance of ours that is gone; it stays gone if that fails."""
    label = entry.label
    if label is None:
        return Reaping(entry, gone=True)
    try:
        papers = archive.papers(label.run)
        charged = settle(papers, label.attempt, entry.instance, now, skew=skew, by=by)
        problem = _left_open(papers, label.attempt) if charged is None else ""
    except TSGBError as error:
        return Reaping(entry, gone=True, problem=f"its books are open: {error}")
    return Reaping(entry, gone=True, charged=charged, problem=problem)


def _left_open(papers: Papers, attempt: int) -> str:
    """What is to be said of an account that was not closed; nothing of one that is not there."""
    account = Ledger.open(papers.run, 0).accounts.get(attempt)
    if account is None or not account.is_open:
        return ""
    return "its account stays open until its flow, or the next one of its run, closes it"
