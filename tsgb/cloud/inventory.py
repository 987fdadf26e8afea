"""Inventory of the account: every instance, its owner, and the lease that covers it.

The module reads and decides, and changes nothing. It distinguishes a lease that could not be read
from one that does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import SecretStr

from tsgb.checkpoint.filesystem import open_filesystem
from tsgb.checkpoint.run import open_run
from tsgb.checkpoint.urls import canonical_url, is_run_id, join_run
from tsgb.cloud.budget import NAME as LEDGER
from tsgb.cloud.budget import Ledger, journal_path
from tsgb.cloud.documents import RunDocuments
from tsgb.cloud.exchange import Exchange
from tsgb.cloud.lease import SKEW, Lease
from tsgb.cloud.orphans import InstanceLabel, Sweep, objection, sweep
from tsgb.cloud.provider import Instance, Provider
from tsgb.errors import StoreError, StoreUnreachable, UsageError
from tsgb.setting_groups import ExchangeSettings

DEADLINE_SECONDS = 60.0
"""Seconds for one read; the reaper runs again soon, and a machine without a lease ends itself."""


# -- the runs of a deployment -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Leases:
    """The leases of some runs.

    Example: `Leases(known={"r1": lease, "r2": None}, unreadable={"r3": "no answer for 60 s"})`
    """

    known: Mapping[str, Lease | None]
    """Lease by run; None where there is certainly none."""
    unreadable: Mapping[str, str]
    """Reason, by run, why its lease could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRuns:
    """The runs of a deployment in their store.

    Example: `DeploymentRuns(url="https://dav.example.org/tsgb", user="me", password=secret)`
    """

    url: str
    """Address of the store."""
    user: str | None = None
    """User of the store."""
    password: SecretStr | None = None
    """Password of the store."""
    exchange: Exchange | None = None
    """The exchange that machines see; None where they see the runs themselves."""
    cache_dir: Path | None = None
    """Directory of this user's caches, which hold what this computer wrote down of costs; None to
    read the store alone."""
    deadline_seconds: float = DEADLINE_SECONDS
    """Seconds for one read."""

    @classmethod
    def of(
        cls, settings: ExchangeSettings, store: str | None, cache_dir: Path | None = None
    ) -> Self:
        """Return the runs in a store, or in the one that the settings name.

        Args:
            settings: Addresses and credentials.
            store: URL of the store; None for that of the settings.
            cache_dir: Directory of this user's caches.
        """
        url = canonical_url(store or settings.default_store)
        return cls(
            url=url,
            user=settings.webdav_user,
            password=settings.webdav_pass,
            exchange=Exchange.of(settings, url),
            cache_dir=cache_dir,
        )

    def documents(self, run: str) -> RunDocuments:
        """Return the documents of one run, which need not exist.

        Raises:
            UsageError: No run can have this name.
        """
        url, seconds = join_run(self.url, run), self.deadline_seconds
        return RunDocuments(
            open_run(url, self.user, self.password, deadline_seconds=seconds),
            None if self.exchange is None else self.exchange.opener(run, seconds),
        )

    def ledger(self, documents: RunDocuments, budget: int = 0) -> Ledger:
        """Return the accounts of a run, as its flow on this computer would read them.

        Args:
            documents: Documents of the run.
            budget: Micro-dollars that it may cost; only for who writes to it.

        Raises:
            StoreError: The cost of an attempt is unknown.
        """
        run, journal = documents.run, None
        if self.cache_dir is not None:
            journal = open_run(str(journal_path(self.cache_dir, run.run_url)))
        return Ledger.open(run, budget, journal)

    def ids(self) -> list[str]:
        """Return the ids of all runs, sorted.

        Raises:
            FileNotFoundError: There is no such store.
        """
        files = open_filesystem(
            self.url, self.user, self.password, deadline_seconds=self.deadline_seconds
        )
        return [item.name for item in files.entries("") if item.is_dir and is_run_id(item.name)]

    def rented(self) -> Iterator[RunDocuments]:
        """Yield the runs for which machines were rented; none where there is no store yet."""
        try:
            runs = self.ids()
        except FileNotFoundError:
            return
        for run in runs:
            documents = self.documents(run)
            if LEDGER in documents.run.list_if_present(""):
                yield documents

    def leases(self, runs: Iterable[str]) -> Leases:
        """Read the leases of these runs.

        A lease that cannot be read does not stop the others from being read. A store that does not
        answer is not asked again for the next run. If there is no store at all, the leases count as
        unreadable: usually the address is not that of the store that flows write to.
        """
        known: dict[str, Lease | None] = {}
        unreadable: dict[str, str] = {}
        outage = ""
        for run in sorted(set(runs)):
            if outage:
                unreadable[run] = outage
                continue
            try:
                lease = self.documents(run).lease()
                if lease is None:
                    self.ids()
            except StoreUnreachable as error:
                outage = unreadable[run] = str(error)
            except FileNotFoundError:
                unreadable[run] = f"there is no store at {self.url}: is it the one that flows use?"
            except (StoreError, UsageError) as error:
                unreadable[run] = str(error)
            except Exception as error:  # noqa: BLE001 - one run's document must not end the round
                unreadable[run] = f"{type(error).__name__}: {error}"
            else:
                known[run] = lease
        return Leases(known, unreadable)


# -- the instances of an account --------------------------------------------------------------


class Coverage(StrEnum):
    """The reaper's classes of instances."""

    COVERED = "covered"
    """A lease covers it, or it is too young to tell."""
    DOOMED = "doomed"
    """No lease covers it: it is to be destroyed."""
    POSTPONED = "postponed"
    """No lease covers it, but as many as may go at once are doomed already."""
    UNKNOWN = "unknown"
    """The lease of its run could not be read."""
    FOREIGN = "foreign"
    """It belongs to another tool or deployment, or it has no label."""


@dataclass(frozen=True, slots=True)
class InventoryItem:
    """One instance with its label and coverage.

    Example: `InventoryItem(instance, label, Coverage.COVERED, "leased until 12:00:00 UTC")`
    """

    instance: Instance
    """The instance as the service shows it."""
    label: InstanceLabel | None
    """Its label; None for one that is not of this deployment."""
    coverage: Coverage
    """Class of the instance for the reaper."""
    why: str
    """Reason for the coverage, in one line."""

    def age(self, now: datetime) -> timedelta | None:
        """Return the time since its rental; None if the service does not say."""
        since = self.instance.created_at
        return None if since is None else max(timedelta(0), now - since)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All instances and their leases at one time.

    Example: `take_inventory(provider, runs, "home", now=clock).items`
    """

    at: datetime
    """Time at which the leases were read."""
    leases: Leases
    """Leases of the runs that have instances."""
    sweep: Sweep
    """The instances in the reaper's lists."""
    items: tuple[InventoryItem, ...]
    """The instances, ordered by id."""


def take_inventory(
    provider: Provider,
    runs: DeploymentRuns,
    deployment: str,
    *,
    now: Callable[[], datetime],
    skew: timedelta = SKEW,
) -> Inventory:
    """List the instances, then read their leases.

    In this order every listed instance has its lease, which is written before the rental.

    Args:
        provider: The account.
        runs: The runs of the deployment.
        deployment: Name of this deployment.
        now: Time of day.
        skew: Difference between two clocks that is tolerated.

    Raises:
        ProviderError: The list could not be read in full, so nothing is known.
    """
    instances = {one.id: one for one in provider.list()}
    labels = {
        number: InstanceLabel.ours(one.label, deployment) for number, one in instances.items()
    }
    leases = runs.leases(label.run for label in labels.values() if label is not None)
    at = now()
    found = sweep(instances.values(), leases.known, deployment, at, skew=skew)
    items = [
        InventoryItem(instances[number], labels[number], coverage, why)
        for number, coverage, why in _classify(found, leases, at, skew)
    ]
    return Inventory(at=at, leases=leases, sweep=found, items=tuple(items))


def _classify(
    found: Sweep, leases: Leases, now: datetime, skew: timedelta
) -> list[tuple[int, Coverage, str]]:
    classified = [
        *((o.instance.id, Coverage.DOOMED, o.reason) for o in found.doomed),
        *((o.instance.id, Coverage.POSTPONED, o.reason) for o in found.postponed),
        *(
            (i.id, Coverage.COVERED, _why_covered(i, leases.known, now, skew))
            for i in found.covered
        ),
        *((i.id, Coverage.UNKNOWN, _why_unknown(i, leases.unreadable)) for i in found.unknown),
        *((i.id, Coverage.FOREIGN, _why_foreign(i)) for i in found.foreign),
    ]
    return sorted(classified)


def _why_covered(
    instance: Instance, leases: Mapping[str, Lease | None], now: datetime, skew: timedelta
) -> str:
    """Return why it is covered: by a lease, or by a tolerance."""
    label = InstanceLabel.parse(instance.label)
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


def _why_unknown(instance: Instance, unreadable: Mapping[str, str]) -> str:
    label = InstanceLabel.parse(instance.label)
    why = "" if label is None else unreadable.get(label.run, "")
    return f"its lease could not be read: {why}"


def _why_foreign(instance: Instance) -> str:
    label = InstanceLabel.parse(instance.label)
    if label is not None:
        return f"of deployment {label.deployment}"
    return "of another tool" if instance.label else "without a label"
