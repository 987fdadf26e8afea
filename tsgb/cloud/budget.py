"""The budget ledger of a run: no machine is rented, and none kept, without money set aside for it.

Money is reserved before a rental, prolonged as it goes on, and committed at its end. Every account
lies twice in the store, in `budget.json` and then in `attempts/0003.json` beside the intent. So
whichever of the two a dying process left half written, the other still bounds what was spent; it is
mended before the next change. An account that was never committed counts in full until it is
reconciled. It knows no rental service; clocks are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tsgb.checkpoint.run import RunStore
from tsgb.cloud.pricing import Account, CreditMark, Drift, Rates, Usage, in_dollars
from tsgb.errors import BudgetReached, StoreError, StoreUnreachable, UsageError

NAME = "budget.json"
WINDOW = timedelta(minutes=20)
"""Money is set aside for at least so long, as far as it reaches: the ttl of a lease, because a
machine whose flow has died goes on until then. Twice as much is taken at a time, so that only one
poll in forty has to write."""


class Ledger:
    """All accounts of one run.

    Example: `ledger = Ledger.open(run, microdollars("5.00"))`
    """

    def __init__(self, run: RunStore, budget: int) -> None:
        """Begin without accounts; see `open`."""
        self._run = run
        self.budget = budget
        """Micro-dollars."""
        self._accounts: dict[int, Account] = {}
        self._mark: CreditMark | None = None
        self._stale: set[int] = set()
        """Attempts whose own document does not say what is known of their account."""

    @classmethod
    def open(cls, run: RunStore, budget: int) -> Ledger:
        """Read what is in the store; a run without any account has spent nothing.

        Raises:
            StoreError: Neither document of an account can be read: what was spent is unknown.
        """
        ledger = cls(run, budget)
        mirror = _read_mirror(run)
        mirrored = {} if mirror is None else mirror.accounts
        ledger._mark = None if mirror is None else mirror.credit
        own: dict[int, Account] = {}
        for attempt in run.attempt_documents("attempts"):
            try:
                account = _read_account(run, attempt)
            except StoreUnreachable:
                raise
            except StoreError:
                if attempt not in mirrored:
                    raise
                continue
            if account is not None:
                own[attempt] = account
        for attempt in {*own, *mirrored}:
            known = [found for found in (own.get(attempt), mirrored.get(attempt)) if found]
            # A closed account is the later one; of two alike the larger sum is the safe one, and of
            # two equal sums the one that has counted further.
            ledger._accounts[attempt] = max(
                known, key=lambda found: (not found.is_open, found.held, found.seen_at)
            )
        ledger._stale = {n for n, account in ledger._accounts.items() if own.get(n) != account}
        return ledger

    @property
    def accounts(self) -> Mapping[int, Account]:
        """Return the accounts by attempt."""
        return self._accounts

    @property
    def spent(self) -> int:
        """Micro-dollars accrued as far as was seen."""
        return sum(account.spent for account in self._accounts.values())

    @property
    def held(self) -> int:
        """Micro-dollars spent or set aside."""
        return sum(account.held for account in self._accounts.values())

    @property
    def highest(self) -> int:
        """The highest attempt with an account, also if its own document was never written."""
        return max(self._accounts, default=0)

    @property
    def left(self) -> int:
        """Micro-dollars that nothing is set aside for; never below 0."""
        return max(0, self.budget - self.held)

    def reserve(
        self,
        attempt: int,
        rates: Rates,
        now: datetime,
        *,
        window: timedelta = WINDOW,
        least: timedelta = timedelta(0),
        traffic: Usage | None = None,
        credit: int | None = None,
        intent: Mapping[str, Any] | None = None,
    ) -> Account:
        """Set money aside before a machine is rented; written when this returns.

        Args:
            attempt: A number that has no account yet.
            rates: Of the machine.
            now: Time of day.
            window: See `WINDOW`.
            least: Not worth a start with money for less, say until a first checkpoint is saved.
            traffic: What the start loads, for sure: it is counted at once.
            credit: Micro-dollars on the account, which bounds as the budget does.
            intent: Further fields of `attempts/NNNN.json`.

        Raises:
            BudgetReached: It does not reach for `least`.
        """
        if attempt in self._accounts:
            raise UsageError(f"attempt {attempt} has an account already: number a new one")
        start = traffic or Usage()
        fresh = Account(attempt=attempt, rates=rates, opened_at=now, seen_at=now, usage=start)
        needed = (start + Usage.of(least)).cost(rates)
        wanted = (start + Usage.of(max(2 * window, least))).cost(rates)
        free = self.left
        if credit is not None:
            promised = sum(a.held - a.spent for a in self._accounts.values() if a.is_open)
            free = min(free, max(0, credit - promised))
        if needed > free or free == 0:
            raise BudgetReached(
                f"attempt {attempt} needs {in_dollars(needed)} for its first {least}, and "
                f"{in_dollars(free)} of {in_dollars(self.budget)} is free: raise the budget or the "
                "credit; what was trained is kept"
            )
        account = fresh.model_copy(update={"reserved": min(wanted, free)})
        self._write(account, intent)
        return account

    def keep(
        self,
        attempt: int,
        now: datetime,
        poll: timedelta,
        *,
        more: Usage | None = None,
        gpu_billed: bool = True,
        ahead: Usage | None = None,
        window: timedelta = WINDOW,
    ) -> bool:
        """Count on, and say whether the machine may go on for another poll within the budget.

        Args:
            attempt: Whose account is open.
            now: Time of day.
            poll: Until the next look.
            more: Traffic since the last look.
            gpu_billed: False only if the machine was seen not to be billed for its GPU.
            ahead: Traffic that is expected until the next look.
            window: See `WINDOW`.
        """
        account = self._of(attempt).used(now, more, gpu_billed=gpu_billed)
        self._accounts[attempt] = account
        traffic = ahead or Usage()
        reach = account.held + self.left
        short = account.reserved < min(reach, account.cost_after(max(poll, window), traffic))
        if short or account.spent > account.reserved:
            wanted = min(reach, account.cost_after(max(poll, 2 * window), traffic))
            self._write(account.model_copy(update={"reserved": max(account.spent, wanted)}))
        return account.cost_after(poll, traffic) <= reach

    def covers_until(self, attempt: int) -> datetime:
        """Return the time until which the money set aside keeps the machine, traffic apart."""
        return self._of(attempt).covers_until

    def commit(
        self,
        attempt: int,
        now: datetime,
        *,
        more: Usage | None = None,
        gpu_billed: bool = True,
        outcome: Mapping[str, Any] | None = None,
    ) -> Account:
        """Close the account of a machine that is known to be gone; again is fine.

        Args:
            attempt: Whose account it is.
            now: When it was gone at the latest.
            more: Traffic since the last look.
            gpu_billed: As in `keep`.
            outcome: Further fields of `attempts/NNNN.json`.
        """
        account = self._accounts.get(attempt)
        if account is not None and not account.is_open:
            return account
        account = self._of(attempt).used(now, more, gpu_billed=gpu_billed)
        return self._close(account, account.spent, outcome)

    def reconcile(self, attempt: int, charged: int) -> Account:
        """Correct an account by what the service charged, once its machine is gone.

        Args:
            attempt: Open since its flow died, or committed with another sum.
            charged: Micro-dollars.
        """
        account = self._accounts.get(attempt)
        if account is None:
            raise UsageError(f"attempt {attempt} has no account: nothing was reserved for it")
        return self._close(account, charged, None)

    def check_credit(self, now: datetime, credit: int) -> Drift:
        """Compare the fall of the account's credit with this ledger, and remember where it stood.

        The first look, and one after a payment, begins a new comparison. Where several runs share
        an account, add up their drifts before judging.
        """
        mark = self._mark
        if mark is None or credit > mark.credit:
            mark = CreditMark(at=now, credit=credit, first_credit=credit, first_spent=self.spent)
        else:
            mark = mark.model_copy(update={"at": now, "credit": credit})
        if mark != self._mark:
            self._mend()
            self._mark = mark
            self._write_mirror()
        recorded = max(0, self.spent - mark.first_spent)
        return Drift(charged=mark.first_credit - credit, recorded=recorded)

    def _of(self, attempt: int) -> Account:
        account = self._accounts.get(attempt)
        if account is None or not account.is_open:
            raise UsageError(f"attempt {attempt} has no open account: reserve before renting")
        return account

    def _write(self, account: Account, fields: Mapping[str, Any] | None = None) -> None:
        self._mend()
        self._accounts[account.attempt] = account
        self._write_mirror()
        self._write_document(account, fields)

    def _close(self, account: Account, charged: int, fields: Mapping[str, Any] | None) -> Account:
        closed = account.model_copy(update={"charged": charged, "reserved": charged})
        self._write(closed, fields)
        return closed

    def _mend(self) -> None:
        """Have every account's own document whole before the mirror is written."""
        for attempt in sorted(self._stale):
            self._write_document(self._accounts[attempt], None)

    def _write_mirror(self) -> None:
        accounts = {
            str(number): account.model_dump(mode="json")
            for number, account in sorted(self._accounts.items())
        }
        mark = None if self._mark is None else self._mark.model_dump(mode="json")
        self._run.write_json(
            NAME, {"budget_microdollars": self.budget, "accounts": accounts, "credit": mark}
        )

    def _write_document(self, account: Account, fields: Mapping[str, Any] | None) -> None:
        name = _document(account.attempt)
        try:
            before = self._run.read_json(name)
        except FileNotFoundError:
            before = {}
        except StoreUnreachable:
            raise
        except StoreError:
            before = {}  # half written by a process that died; the mirror bounds the money
        self._run.write_json(
            name,
            {
                **before,
                **(fields or {}),
                "attempt": account.attempt,
                "account": account.model_dump(mode="json"),
            },
        )
        self._stale.discard(account.attempt)


def _document(attempt: int) -> str:
    return f"attempts/{attempt:04d}.json"


class _Mirror(BaseModel):
    model_config = ConfigDict(extra="ignore")

    accounts: dict[int, Account] = {}
    """Accounts of all attempts, by number."""
    credit: CreditMark | None = None
    """Credit of the account when it was last read, if it was."""


def _read_mirror(run: RunStore) -> _Mirror | None:
    """An empty one where there is none yet; None if it is damaged."""
    try:
        return _Mirror.model_validate(run.read_json(NAME))
    except FileNotFoundError:
        return _Mirror()
    except StoreUnreachable:
        raise
    except (StoreError, ValidationError):
        return None


def _read_account(run: RunStore, attempt: int) -> Account | None:
    """None for an attempt that costs nothing, as a local one."""
    name = _document(attempt)
    stored = run.read_json(name).get("account")
    try:
        return None if stored is None else Account.model_validate(stored)
    except ValidationError as error:
        what = error.errors()[0]["msg"]
        raise StoreError(f"{run.run_url}/{name}: {what}: not an account; mend it") from error
