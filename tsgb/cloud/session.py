"""The needs of every step of a rental: the run's documents and ledger, the provider, the clocks.

The lease has one writer, the flow whose nonce it carries; every change reads it first, so that a
flow which lost it stops before it does harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tsgb.checkpoint.run import RunStore
from tsgb.cloud import lease as leases
from tsgb.cloud.budget import Ledger, SharedBudget
from tsgb.cloud.documents import RunDocuments
from tsgb.cloud.lease import Lease
from tsgb.cloud.orphans import InstanceLabel
from tsgb.cloud.policy import LaunchPolicy, MonitorPolicy
from tsgb.cloud.pricing import in_dollars, microdollars
from tsgb.cloud.provider import Instance, Provider
from tsgb.cloud.retry_policy import Ending
from tsgb.errors import LeaseLost, StoreError


def _utc() -> datetime:
    return datetime.now(UTC)


def _quiet(_line: str) -> None:
    """Drop the line."""


@dataclass(slots=True, kw_only=True)
class Session:
    """One run's rentals by one flow.

    Example: `Session(documents=documents, provider=provider, launch_policy=policy, owner="5f0c")`
    """

    documents: RunDocuments
    """Documents of the run."""
    provider: Provider
    """Account that pays."""
    launch_policy: LaunchPolicy
    """Machines that may be rented, and prices that may be paid."""
    owner: str
    """Nonce of the flow; a second flow sees in the lease that it is not its own."""
    monitor_policy: MonitorPolicy = field(default_factory=MonitorPolicy)
    """How often is looked, and when waiting ends."""
    now: Callable[[], datetime] = _utc
    """Time of day."""
    clock: Callable[[], float] = time.monotonic
    """Seconds that never go back."""
    sleep: Callable[[float], None] = time.sleep
    """Waits for so many seconds."""
    note: Callable[[str], None] = _quiet
    """Tells a person one line."""
    endings: list[Ending] = field(default_factory=list[Ending])
    """Ends of the attempts that this flow made: a person who starts it again begins anew."""
    journal: RunStore | None = None
    """Directory of this computer in which the ledger is kept too; None for no journal."""
    shared_budget: SharedBudget | None = None
    """Other runs that spend of the same budget; None if there are none."""
    _ledger: Ledger | None = None
    _listed: bool = False
    """Whether there was a whole list since the last look at the credit."""
    _seen_others: bool = False
    """Whether such a list showed an instance that is not this run's."""

    @property
    def ledger(self) -> Ledger:
        """Return the run's accounts, read once: only this flow writes while it holds the lease."""
        if self._ledger is None:
            budget = self.launch_policy.budget
            run, shared = self.documents.run, self.shared_budget
            self._ledger = Ledger.open(run, budget, self.journal, shared)
            if self._ledger.doubts:
                self.note(self._ledger.doubts)
        return self._ledger

    @property
    def run_id(self) -> str:
        """Return the run's id, as in every label."""
        return self.documents.run.run_id

    def label(self, attempt: int, deadline: datetime) -> str:
        """Return the label by which an attempt's instance is found, with its latest end."""
        end = round(deadline.timestamp())
        return InstanceLabel(self.launch_policy.deployment, self.run_id, attempt, end).check()

    def own(self) -> dict[int, Instance]:
        """Return all instances of this run, by id, from a whole list.

        Raises:
            ProviderUnreachable: Not all could be read; what is there is unknown.
        """
        found: dict[int, Instance] = {}
        instances = self.provider.list()
        for instance in instances:
            label = InstanceLabel.ours(instance.label, self.launch_policy.deployment)
            if label is not None and label.run == self.run_id:
                found[instance.id] = instance
        self._seen_others = self._seen_others or len(found) < len(instances)
        self._listed = True
        return found

    def check_credit(self, credit: float) -> None:
        """Compare the account's credit with the ledger; tell a person if they differ.

        Args:
            credit: Dollars on the account.
        """
        before, amount = self.ledger.extra, microdollars(max(0.0, credit))
        alone = not self._seen_others if self._listed else None
        drift = self.ledger.check_credit(self.now(), amount, alone=alone)
        self._listed = self._seen_others = False
        if drift.alarming:
            self.note(f"alarm: {drift}")
        if self.ledger.extra > before:
            self.note(
                f"nobody else rents on this account: {in_dollars(self.ledger.extra)} that was "
                "charged beyond the ledger count as spent"
            )

    def check_lease(self) -> Lease | None:
        """Return the lease in the store, unless another flow lives by it.

        Raises:
            LeaseLost: Another flow does.
        """
        lease = self.documents.lease()
        if lease is None or lease.owner == self.owner or lease.ended:
            return lease
        if lease.has_run_out(self.now(), self.monitor_policy.skew):
            return lease
        raise LeaseLost(
            f"run {self.run_id!r}: another flow renewed its lease at {lease.renewed_at:%H:%M:%S} "
            f"and holds it until {lease.expires_at:%H:%M:%S} (UTC): stop that flow, or wait"
        )

    def grant(self, attempt: int) -> Lease:
        """Give the run to an attempt, for no longer than money is set aside for it.

        Raises:
            LeaseLost: Another flow has it.
        """
        before, account = self.check_lease(), self.ledger.accounts.get(attempt)
        paid = None if account is None else account.covers_until - self.now()
        if before is not None and before.owner != self.owner:
            before = before.model_copy(update={"ended": True})  # run out on every tolerated clock
        lease = leases.grant(
            before,
            run=self.run_id,
            attempt=attempt,
            owner=self.owner,
            now=self.now(),
            ttl=self.monitor_policy.ttl if paid is None else min(self.monitor_policy.ttl, paid),
            budget_microdollars=self.launch_policy.budget,
            spent_microdollars=self.ledger.spent,
        )
        self.documents.put_lease(lease)
        return lease

    def renew(self, attempt: int) -> Lease:
        """Prolong the lease for as long as money is set aside; a revoked one stays so.

        Raises:
            LeaseLost: It is no longer this flow's.
        """
        lease = leases.renew(
            self._own_lease(attempt),
            self.now(),
            ttl=self.monitor_policy.ttl,
            until=self.ledger.covers_until(attempt),
            spent_microdollars=self.ledger.spent,
        )
        self.documents.put_lease(lease)
        return lease

    def assign(self, attempt: int, instance_id: int) -> None:
        """Name the machine in the lease."""
        self.documents.put_lease(leases.assign(self._own_lease(attempt), instance_id))

    def revoke(self, attempt: int, reason: str) -> None:
        """Ask the machine to save and go; another flow's lease is left alone."""
        try:
            self.documents.put_lease(leases.revoke(self._own_lease(attempt), reason))
        except LeaseLost as error:
            self.note(str(error))
        except StoreError as error:
            self.note(f"the machine could not be asked to stop, its lease ends by itself: {error}")

    def end(self, reason: str) -> None:
        """End the run for now: nothing of it may live. A later start grants a new lease."""
        lease = self.documents.lease()
        if lease is not None and lease.owner == self.owner and not lease.ended:
            ended = leases.end(lease, reason)
            self.documents.put_lease_of_record(ended)
            self.quietly(
                lambda: self.documents.show_lease(ended),
                "the machine's copy of the lease ends by itself",
            )

    def quietly(self, use: Callable[[], object], what: str) -> None:
        """Use the store for what neither a watch nor the end of a machine may depend on."""
        try:
            use()
        except StoreError as error:
            self.note(f"{what}: {error}")

    def _own_lease(self, attempt: int) -> Lease:
        lease = self.documents.lease()
        if lease is None or lease.owner != self.owner or lease.attempt != attempt:
            whose = "gone" if lease is None else f"that of attempt {lease.attempt} of another flow"
            raise LeaseLost(f"run {self.run_id!r}: the lease of attempt {attempt} is {whose}")
        return lease
