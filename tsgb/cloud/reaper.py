"""Reaper: destroys the instances of a deployment that no lease covers, and no others.

It reports the instances whose lease it could not read, and leaves them alone. Clocks are arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tsgb.cloud.budget import Ledger
from tsgb.cloud.close_books import settle
from tsgb.cloud.inventory import Coverage, DeploymentRuns, InventoryItem, take_inventory
from tsgb.cloud.lease import SKEW
from tsgb.cloud.pricing import in_dollars
from tsgb.cloud.provider import Provider
from tsgb.cloud.terminate import destroy_all
from tsgb.errors import TSGBError


@dataclass(frozen=True, slots=True)
class ReapedInstance:
    """One instance after a round of the reaper, or after `tsgb machines destroy`.

    Example: `ReapedInstance(item, gone=True, charged=120_000)`
    """

    item: InventoryItem
    """The instance as it was found."""
    gone: bool = False
    """Whether it was destroyed and is known to be gone."""
    charged: int | None = None
    """Cost of its attempt in micro-dollars; None if its account was not closed."""
    problem: str = ""
    """Reason why it still exists, or why its account could not be closed."""

    def __str__(self) -> str:
        item = self.item
        name = f"instance {item.instance.id} ({item.instance.label or 'no label'})"
        if self.gone:
            cost = "" if self.charged is None else f", it cost {in_dollars(self.charged)}"
            problem = f"; {self.problem}" if self.problem else ""
            return f"destroyed {name}: {item.why}{cost}{problem}"
        if self.problem:
            return f"NOT destroyed: {name}: {item.why}; {self.problem}"
        verbs = {
            Coverage.DOOMED: "would destroy",
            Coverage.POSTPONED: "too many at once, left for the next round:",
            Coverage.UNKNOWN: "left alone, because its lease is unknown:",
        }
        return f"{verbs.get(item.coverage, item.coverage.value)} {name}: {item.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapReport:
    """One round of the reaper.

    Example: `reap(provider, runs, "home", now=clock, sleep=time.sleep).lines()`
    """

    at: datetime
    """Time at which the leases were read."""
    dry_run: bool
    """Whether nothing was destroyed or written."""
    items: tuple[ReapedInstance, ...]
    """Every instance, ordered by id."""

    def of(self, coverage: Coverage) -> list[ReapedInstance]:
        """Return the instances with this coverage when the list was read."""
        return [one for one in self.items if one.item.coverage is coverage]

    @property
    def left(self) -> list[ReapedInstance]:
        """Return the instances that need a person: still there, postponed or unknown."""
        unresolved = {Coverage.DOOMED, Coverage.POSTPONED, Coverage.UNKNOWN}
        return [one for one in self.items if one.item.coverage in unresolved and not one.gone]

    def counts(self) -> dict[str, int]:
        """Return the number of instances that were destroyed, and of each coverage."""
        return {
            "destroyed": sum(one.gone for one in self.items),
            **{coverage.value: len(self.of(coverage)) for coverage in Coverage},
        }

    def lines(self) -> list[str]:
        """Return a line for each instance that is not as it should be, then the totals."""
        expected = {Coverage.COVERED, Coverage.FOREIGN}
        lines = [str(one) for one in self.items if one.item.coverage not in expected]
        counts = self.counts()
        gone = (
            f"{counts['doomed']} to destroy" if self.dry_run else f"{counts['destroyed']} destroyed"
        )
        left = len(self.left) - (counts["doomed"] if self.dry_run else 0)
        parts = [gone, f"{counts['covered']} leased", f"{left} left to look after"]
        parts.append(f"{counts['foreign']} of others")
        return [*lines, f"{len(self.items)} instances: {', '.join(parts)}"]

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON document."""
        return {
            "at": self.at.isoformat(),
            "dry_run": self.dry_run,
            **self.counts(),
            "instances": [
                {
                    "id": one.item.instance.id,
                    "label": one.item.instance.label,
                    "standing": one.item.coverage.value,
                    "why": one.item.why,
                    "gone": one.gone,
                    "microdollars": one.charged,
                    "problem": one.problem or None,
                }
                for one in self.items
            ],
        }


def reap(
    provider: Provider,
    runs: DeploymentRuns,
    deployment: str,
    *,
    now: Callable[[], datetime],
    sleep: Callable[[float], None],
    skew: timedelta = SKEW,
    dry_run: bool = False,
) -> ReapReport:
    """Make one round: destroy what no lease covers, verify that it is gone, close its accounts.

    Args:
        provider: The account.
        runs: The runs of the deployment.
        deployment: Name of this deployment; instances of another one, or without a label of this
            form, are never touched.
        now: Time of day.
        sleep: Waits for so many seconds.
        skew: Difference between two clocks that is tolerated.
        dry_run: Destroy and write nothing.

    Raises:
        ProviderError: The list could not be read in full, so nothing was done.
    """
    inventory = take_inventory(provider, runs, deployment, now=now, skew=skew)
    doomed = [orphan.instance.id for orphan in inventory.sweep.doomed]
    left = {} if dry_run else destroy_all(provider, doomed, sleep)

    def reaped(item: InventoryItem) -> ReapedInstance:
        if item.coverage is not Coverage.DOOMED or dry_run:
            return ReapedInstance(item)
        if item.instance.id in left:
            return ReapedInstance(item, problem=left[item.instance.id])
        return closed(runs, item, now(), skew=skew, by="the reaper")

    items = tuple(reaped(item) for item in inventory.items)
    return ReapReport(at=inventory.at, dry_run=dry_run, items=items)


def closed(
    runs: DeploymentRuns, item: InventoryItem, now: datetime, *, skew: timedelta, by: str
) -> ReapedInstance:
    """Close the account of an instance that is gone; an error is reported, and changes nothing."""
    label = item.label
    if label is None:
        return ReapedInstance(item, gone=True)
    try:
        documents = runs.documents(label.run)
        charged = settle(
            documents,
            label.attempt,
            item.instance,
            now,
            skew=skew,
            by=by,
            ledger_of=lambda budget: runs.ledger(documents, budget),
        )
        problem = _left_open(runs.ledger(documents), label.attempt) if charged is None else ""
    except TSGBError as error:
        return ReapedInstance(item, gone=True, problem=f"its account is open: {error}")
    except Exception as error:  # noqa: BLE001 - one run's document must not end the round
        problem = f"its account is open: {type(error).__name__}: {error}"
        return ReapedInstance(item, gone=True, problem=problem)
    return ReapedInstance(item, gone=True, charged=charged, problem=problem)


def _left_open(ledger: Ledger, attempt: int) -> str:
    """Return why an account stays open; empty if there is none, or if it is closed."""
    account = ledger.accounts.get(attempt)
    if account is None or not account.is_open:
        return ""
    return "its account stays open until its flow, or the next one of its run, closes it"
