"""What every step of renting has in hand: the run's documents and ledger, the service, the clocks.

The lease has one writer, the flow whose nonce it carries; every change reads it first, so that a
flow which lost it stops before it does harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tsgb.cloud import lease as leases
from tsgb.cloud.budget import Ledger
from tsgb.cloud.documents import Papers
from tsgb.cloud.lease import Lease
from tsgb.cloud.orphans import Label
from tsgb.cloud.policy import Patience, Terms
from tsgb.cloud.provider import Instance, Provider
from tsgb.cloud.retry_policy import Ending
from tsgb.errors import LeaseLost, StoreError, StoreUnreachable


def _utc() -> datetime:
    return datetime.now(UTC)


def _quiet(_line: str) -> None:
    """Nobody listens."""


@dataclass(slots=True, kw_only=True)
class Desk:
    """One run's renting by one flow.

    Example: `Desk(papers=Papers(run), provider=provider, terms=terms, owner="5f0c")`
    """

    papers: Papers
    provider: Provider
    terms: Terms
    owner: str
    """Of the flow; a second flow sees in the lease that it is not its own."""
    patience: Patience = field(default_factory=Patience)
    now: Callable[[], datetime] = _utc
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    note: Callable[[str], None] = _quiet
    """Tells a person, in one line."""
    endings: list[Ending] = field(default_factory=list[Ending])
    """Of the attempts that this flow made: a person who starts it again begins anew."""
    _ledger: Ledger | None = None

    @property
    def ledger(self) -> Ledger:
        """The run's accounts, read once: this flow alone writes them while it holds the lease."""
        if self._ledger is None:
            self._ledger = Ledger.open(self.papers.run, self.terms.budget)
        return self._ledger

    @property
    def run_id(self) -> str:
        """As in every label."""
        return self.papers.run.run_id

    def label(self, attempt: int) -> str:
        """By which an instance is found."""
        return Label(self.terms.deployment, self.run_id, attempt).check()

    def own(self) -> dict[int, Instance]:
        """All instances of this run, by id, from a whole list.

        Raises:
            ProviderUnreachable: Not all could be read; what is there is unknown.
        """
        found: dict[int, Instance] = {}
        for row in self.provider.list():
            label = Label.ours(row.label, self.terms.deployment)
            if label is not None and label.run == self.run_id:
                found[row.id] = row
        return found

    def check_lease(self) -> Lease | None:
        """The lease in the store, unless another flow lives by it.

        Raises:
            LeaseLost: One does.
        """
        held = self.papers.lease()
        if held is None or held.owner == self.owner or held.ended:
            return held
        if held.has_run_out(self.now(), self.patience.skew):
            return held
        raise LeaseLost(
            f"run {self.run_id!r}: another flow renewed its lease at {held.renewed_at:%H:%M:%S} "
            f"and holds it until {held.expires_at:%H:%M:%S} (UTC): stop that flow, or wait"
        )

    def grant(self, attempt: int) -> Lease:
        """Give the run to an attempt, for no longer than money is set aside for it.

        Raises:
            LeaseLost: Another flow has it.
        """
        held, account = self.check_lease(), self.ledger.accounts.get(attempt)
        paid = None if account is None else account.covers_until - self.now()
        if held is not None and held.owner != self.owner:
            held = held.model_copy(update={"ended": True})  # run out on every clock that we allow
        lease = leases.grant(
            held,
            run=self.run_id,
            attempt=attempt,
            owner=self.owner,
            now=self.now(),
            ttl=self.patience.ttl if paid is None else min(self.patience.ttl, paid),
            budget_microdollars=self.terms.budget,
            spent_microdollars=self.ledger.spent,
        )
        self.papers.put_lease(lease)
        return lease

    def renew(self, attempt: int) -> Lease:
        """Prolong it for as long as money is set aside; a revoked one stays so.

        Raises:
            LeaseLost: It is no longer this flow's.
        """
        lease = leases.renew(
            self._own_lease(attempt),
            self.now(),
            ttl=self.patience.ttl,
            until=self.ledger.covers_until(attempt),
            spent_microdollars=self.ledger.spent,
        )
        self.papers.put_lease(lease)
        return lease

    def assign(self, attempt: int, instance_id: int) -> None:
        """Name the machine in it."""
        self.papers.put_lease(leases.assign(self._own_lease(attempt), instance_id))

    def revoke(self, attempt: int, reason: str) -> None:
        """Ask the machine to save and go; a lease that is not ours any more is left alone."""
        try:
            self.papers.put_lease(leases.revoke(self._own_lease(attempt), reason))
        except LeaseLost as error:
            self.note(str(error))
        except StoreError as error:
            self.note(f"the machine could not be asked to stop, its lease ends by itself: {error}")

    def end(self, reason: str) -> None:
        """The run is over for now: nothing of it may live. A later start grants a new lease."""
        held = self.papers.lease()
        if held is not None and held.owner == self.owner and not held.ended:
            self.papers.put_lease(leases.end(held, reason))

    def quietly(self, write: Callable[[], object], what: str) -> None:
        """Do what may fail while the store is away, without ending the watch over a machine."""
        try:
            write()
        except StoreUnreachable as error:
            self.note(f"{what}: {error}")

    def _own_lease(self, attempt: int) -> Lease:
        held = self.papers.lease()
        if held is None or held.owner != self.owner or held.attempt != attempt:
            whose = "gone" if held is None else f"that of attempt {held.attempt} of another flow"
            raise LeaseLost(f"run {self.run_id!r}: the lease of attempt {attempt} is {whose}")
        return held
