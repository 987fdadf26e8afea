"""Budget ledger of a run: a machine is rented and kept only while money is set aside for it.

Money is reserved before a rental, prolonged while the machine works, and committed at its end. Each
account is in the store twice, in `budget.json` and then in `attempts/0003.json` beside the intent.
If a dying process left one of the two half written, the other still limits what was spent, and the
damaged one is repaired before the next change. An account that was never committed counts in full
until it is reconciled.

A store may be open to others, so what this computer wrote down in a journal of its own is spent
too, and so is what the service itself shows: the cost of an instance by its own row, and what the
credit fell by beyond the accounts while nobody else rents. The module knows no rental service;
clocks are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from threading import RLock
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tsgb.checkpoint.documents import finite
from tsgb.checkpoint.manifest import sha256_hex
from tsgb.checkpoint.run import RunStore
from tsgb.cloud.pricing import Account, Bandwidth, CreditMark, Drift, Rates, Usage, in_dollars
from tsgb.errors import BudgetReached, StoreError, StoreUnreachable, UsageError

NAME = "budget.json"
WINDOW = timedelta(minutes=20)
"""Shortest time for which money is set aside, if there is enough: the ttl of a lease, because a
machine whose flow has died works on until then. Twice as much is reserved at a time, so that only
one poll in forty has to write."""


def journal_path(cache_dir: Path, run_url: str) -> Path:
    """Return the directory of this computer in which a run's ledger is kept too.

    Args:
        cache_dir: Directory of this user's caches.
        run_url: URL of the run.
    """
    return cache_dir / "flows" / sha256_hex(run_url.encode())[:16]


@dataclass(slots=True)
class SharedBudget:
    """One budget of several runs that one process trains, one after the other or at once.

    What a run may spend is what the others neither spent nor set aside. Runs that train in threads
    reserve money in turns.

    Example: `SharedBudget({"r1-s0": 0, "r1-s1": 0})`
    """

    earlier: Mapping[str, int]
    """Micro-dollars that each run held when the process began."""
    lock: RLock = field(default_factory=RLock)
    """Held while a run decides what to reserve, and until it is written."""
    _ledgers: dict[str, Ledger] = field(default_factory=dict[str, "Ledger"])

    def join(self, ledger: Ledger) -> None:
        """Let a run spend of it from now on, whose ledger says what it holds."""
        self._ledgers[ledger.run_id] = ledger

    @property
    def held(self) -> int:
        """Micro-dollars that all runs have spent or set aside."""
        return sum(map(self._held_by, self.earlier))

    def held_by_others(self, run_id: str) -> int:
        """Return the micro-dollars that the other runs have spent or set aside."""
        return sum(self._held_by(run) for run in self.earlier if run != run_id)

    def promised_by_others(self, run_id: str) -> int:
        """Return the micro-dollars that the other runs have set aside and not spent yet."""
        return sum(ledger.promised for run, ledger in self._ledgers.items() if run != run_id)

    def _held_by(self, run_id: str) -> int:
        ledger = self._ledgers.get(run_id)
        return self.earlier[run_id] if ledger is None else ledger.held


class Ledger:
    """All accounts of one run.

    Example: `ledger = Ledger.open(run, microdollars("5.00"))`
    """

    def __init__(
        self,
        run: RunStore,
        budget: int,
        journal: RunStore | None = None,
        shared: SharedBudget | None = None,
    ) -> None:
        """Create a ledger without accounts; see `open`."""
        self._run = run
        self._shared = shared or SharedBudget({})
        self._journal = journal
        self.budget = budget
        """Micro-dollars that the run may cost."""
        self._accounts: dict[int, Account] = {}
        self._mark: CreditMark | None = None
        self._stale: set[int] = set()
        """Attempts whose own document differs from their account."""
        self._comparison: CreditMark | None = None
        """Credit since this process watches it and nobody else rents."""
        self._extra = 0
        self._extra_before = 0
        self._rows: dict[int, int] = {}
        """Micro-dollars by attempt that the service's own row of its instance accounts for."""
        self.doubts = ""
        """Reason not to believe the store, in one line for people; empty if there is none."""

    @classmethod
    def open(
        cls,
        run: RunStore,
        budget: int,
        journal: RunStore | None = None,
        shared: SharedBudget | None = None,
    ) -> Ledger:
        """Read the accounts in the store; a run without any account has spent nothing.

        Args:
            run: The run in the store, which others may be able to write to.
            budget: Micro-dollars that the run may cost.
            journal: Directory of this computer for this run alone. What it holds is spent, whatever
                the store says; a journal that cannot be read or written is no error.
            shared: The other runs that spend of the same budget, if there are any.

        Raises:
            StoreError: Neither document of an account can be read, so its cost is unknown.
        """
        ledger, noted = cls(run, budget, journal, shared), _read_journal(journal)
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
                if attempt not in mirrored and attempt not in noted.accounts:
                    raise
                continue
            if account is not None:
                own[attempt] = account
        for attempt in {*own, *mirrored}:
            known = [found for found in (own.get(attempt), mirrored.get(attempt)) if found]
            # A closed account is newer than an open one. Of two open ones the larger sum is safe to
            # assume, and of two equal sums the one that has counted further.
            ledger._accounts[attempt] = max(
                known, key=lambda found: (not found.is_open, found.held, found.seen_at)
            )
        ledger._believe(noted)
        ledger._stale = {n for n, account in ledger._accounts.items() if own.get(n) != account}
        ledger._shared.join(ledger)
        return ledger

    def _believe(self, noted: _Journal) -> None:
        self._extra_before, self._rows = noted.extra, dict(noted.rows)
        doubted: list[str] = []
        for attempt, account in noted.accounts.items():
            stored = self._accounts.get(attempt)
            self._accounts[attempt] = believed(stored, account)
            if self._accounts[attempt] != stored:
                doubted.append(str(attempt))
        if doubted and self._journal is not None:
            self.doubts = (
                f"the ledger in {self._run.run_url} says less of attempts {', '.join(doubted)} "
                f"than the journal of this computer, {self._journal.run_url}/{NAME}: what the "
                "journal says is spent; if this is a new run, delete that file"
            )

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self._run.run_id

    @property
    def accounts(self) -> Mapping[int, Account]:
        """Return the accounts by attempt."""
        return self._accounts

    @property
    def spent(self) -> int:
        """Micro-dollars accrued so far."""
        return self.extra + self._counted

    @property
    def extra(self) -> int:
        """Micro-dollars that the service charged beyond all accounts."""
        missing = (
            Drift(charged=cost, recorded=self._spent_on(attempt))
            for attempt, cost in self._rows.items()
        )
        rows = sum(max(0, one.charged - one.recorded) for one in missing if one.alarming)
        return max(rows, self._extra_before + self._extra)

    def _spent_on(self, attempt: int) -> int:
        account = self._accounts.get(attempt)
        return 0 if account is None else account.spent

    def saw_row(self, attempt: int, cost: int) -> None:
        """Count what an instance has cost by the service's own row, if its account says less.

        Args:
            attempt: Attempt in the label of the instance.
            cost: Micro-dollars since its rental, by the price in the row.
        """
        before = self.extra
        self._rows[attempt] = max(cost, self._rows.get(attempt, 0))
        if self.extra > before:
            self._write_journal()

    @property
    def _counted(self) -> int:
        return sum(account.spent for account in self._accounts.values())

    @property
    def held(self) -> int:
        """Micro-dollars spent or set aside."""
        # A copy: another run's thread may ask while this one's counts.
        return self.extra + sum(account.held for account in tuple(self._accounts.values()))

    @property
    def promised(self) -> int:
        """Micro-dollars that are set aside and not spent yet."""
        open_ones = [account for account in tuple(self._accounts.values()) if account.is_open]
        return sum(account.held - account.spent for account in open_ones)

    @property
    def highest(self) -> int:
        """Highest attempt with an account, even if its own document was never written."""
        return max(self._accounts, default=0)

    @property
    def left(self) -> int:
        """Micro-dollars that no run of the budget has spent or set aside; never below 0."""
        return max(0, self.budget - self.held - self._shared.held_by_others(self.run_id))

    def reserve(
        self,
        attempt: int,
        rates: Rates,
        now: datetime,
        *,
        window: timedelta = WINDOW,
        least: timedelta = timedelta(0),
        traffic: Usage | None = None,
        start_bytes: int = 0,
        bandwidth: Bandwidth | None = None,
        credit: int | None = None,
        intent: Mapping[str, Any] | None = None,
    ) -> Account:
        """Set money aside before a machine is rented; the account is written when this returns.

        Args:
            attempt: Number of an attempt without an account.
            rates: Prices of the machine.
            now: Time of day.
            window: See `WINDOW`.
            least: Shortest time that is worth a start, such as that to the first checkpoint.
            traffic: Traffic that the start causes in any case; counted at once.
            start_bytes: Bytes that the start receives, those in `traffic` among them; presumed
                until the machine tells of its own.
            bandwidth: Bound on the traffic of the machine that is believed.
            credit: Micro-dollars on the account, which limit the reservation as the budget does.
            intent: Further fields of `attempts/NNNN.json`.

        Raises:
            BudgetReached: The money does not last for `least`.
        """
        if attempt in self._accounts:
            raise UsageError(f"attempt {attempt} has an account already: number a new one")
        start = traffic or Usage()
        fresh = Account(
            attempt=attempt,
            rates=rates,
            opened_at=now,
            seen_at=now,
            usage=start,
            start_bytes=start_bytes,
            bandwidth=bandwidth or Bandwidth(),
        )
        needed = fresh.cost_after(least, Usage())
        wanted = fresh.cost_after(max(2 * window, least), Usage())
        with self._shared.lock:
            free = self.left
            if credit is not None:
                promised = self.promised + self._shared.promised_by_others(self.run_id)
                free = min(free, max(0, credit - promised))
            if needed > free or free == 0:
                raise BudgetReached(
                    f"attempt {attempt} needs {in_dollars(needed)} for its first {least}, and "
                    f"{in_dollars(free)} of {in_dollars(self.budget)} is free: raise the budget or "
                    "the credit; what was trained is kept"
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
        start_is_told: bool = False,
        ahead: Usage | None = None,
        window: timedelta = WINDOW,
    ) -> bool:
        """Count the use up to now; return whether the budget covers the time until the next poll.

        Args:
            attempt: Attempt with an open account.
            now: Time of day.
            poll: Time until the next poll.
            more: Traffic since the last poll; the part that the line cannot carry is not counted.
            gpu_billed: False only if the service showed that the GPU is not billed.
            start_is_told: See `Account.used`.
            ahead: Traffic that is expected until the next poll.
            window: See `WINDOW`.
        """
        account = self._of(attempt).used(
            now, more, gpu_billed=gpu_billed, start_is_told=start_is_told
        )
        traffic = ahead or Usage()
        with self._shared.lock:
            self._accounts[attempt] = account
            reach = account.held + self.left
            short = account.reserved < min(reach, account.cost_after(max(poll, window), traffic))
            if short or account.spent > account.reserved:
                wanted = min(reach, account.cost_after(max(poll, 2 * window), traffic))
                self._write(account.model_copy(update={"reserved": max(account.spent, wanted)}))
        return account.cost_after(poll, traffic) <= reach

    def covers_until(self, attempt: int) -> datetime:
        """Return the time until which the reserved money pays for the machine, without traffic."""
        return self._of(attempt).covers_until

    def commit(
        self,
        attempt: int,
        now: datetime,
        *,
        more: Usage | None = None,
        gpu_billed: bool = True,
        start_is_told: bool = False,
        outcome: Mapping[str, Any] | None = None,
    ) -> Account:
        """Close the account of a machine that is known to be gone; a further call does nothing.

        Args:
            attempt: Attempt with the account.
            now: Latest time at which the machine can have ended.
            more: Traffic since the last poll.
            gpu_billed: See `keep`.
            start_is_told: See `Account.used`; also if the machine has not begun to start.
            outcome: Further fields of `attempts/NNNN.json`.
        """
        account = self._accounts.get(attempt)
        if account is not None and not account.is_open:
            return account
        account = self._of(attempt).used(
            now, more, gpu_billed=gpu_billed, start_is_told=start_is_told
        )
        return self._close(account, account.spent, outcome)

    def reconcile(self, attempt: int, charged: int) -> Account:
        """Set the cost of an account to what the service charged, once its machine is gone.

        Args:
            attempt: Attempt whose account is open since its flow died, or has another cost.
            charged: Micro-dollars that the service charged.
        """
        account = self._accounts.get(attempt)
        if account is None:
            raise UsageError(f"attempt {attempt} has no account: nothing was reserved for it")
        return self._close(account, charged, None)

    def check_credit(self, now: datetime, credit: int, *, alone: bool | None = None) -> Drift:
        """Compare the decrease of the account's credit with this ledger, and store the mark.

        The first call, and the first one after a payment, begins a new comparison. If several runs
        share an account, compare the sums of their drifts: only while `alone` is true at every
        call, what was charged beyond this ledger counts as spent.

        Args:
            now: Time of day.
            credit: Micro-dollars of credit on the account.
            alone: Whether lists since the last such call showed no instance of anybody else; None
                if there was no list.
        """
        if alone is not None:
            self._count_extra(now, credit, alone=alone)
        mark = self._mark
        if mark is None or credit > mark.credit:
            mark = CreditMark(at=now, credit=credit, first_credit=credit, first_spent=self._counted)
        else:
            mark = mark.model_copy(update={"at": now, "credit": credit})
        if mark != self._mark:
            self._repair()
            self._mark = mark
            self._write_mirror()
        return self._drift(mark)

    def _drift(self, mark: CreditMark) -> Drift:
        recorded = max(0, self._counted - mark.first_spent)
        return Drift(charged=mark.first_credit - mark.credit, recorded=recorded)

    def _count_extra(self, now: datetime, credit: int, *, alone: bool) -> None:
        before = self._comparison
        if before is None or not alone or credit > before.credit:
            fresh = CreditMark(
                at=now, credit=credit, first_credit=credit, first_spent=self._counted
            )
            self._comparison = fresh if alone else None
            self._extra_before, self._extra = self._extra_before + self._extra, 0
            return
        self._comparison = before.model_copy(update={"at": now, "credit": credit})
        drift = self._drift(self._comparison)
        if drift.alarming and drift.charged > drift.recorded:
            most = sum(account.highest_cost for account in self._accounts.values())
            found = min(drift.charged - drift.recorded, max(0, most - self._counted))
            if found > self._extra:
                self._extra = found
                self._write_journal()

    def _of(self, attempt: int) -> Account:
        account = self._accounts.get(attempt)
        if account is None or not account.is_open:
            raise UsageError(f"attempt {attempt} has no open account: reserve before renting")
        return account

    def _write(self, account: Account, fields: Mapping[str, Any] | None = None) -> None:
        self._repair()
        self._accounts[account.attempt] = account
        self._write_mirror()
        self._write_document(account, fields)

    def _close(self, account: Account, charged: int, fields: Mapping[str, Any] | None) -> Account:
        closed = account.model_copy(update={"charged": charged, "reserved": charged})
        self._write(closed, fields)
        return closed

    def _repair(self) -> None:
        """Write the own document of every account that differs, before the mirror is written."""
        for attempt in sorted(self._stale):
            self._write_document(self._accounts[attempt], None)

    def _write_mirror(self) -> None:
        self._write_journal()
        accounts = self._as_json()
        mark = None if self._mark is None else self._mark.model_dump(mode="json")
        self._run.write_json(
            NAME, {"budget_microdollars": self.budget, "accounts": accounts, "credit": mark}
        )

    def _as_json(self) -> dict[str, Any]:
        return {
            str(number): account.model_dump(mode="json")
            for number, account in sorted(self._accounts.items())
        }

    def _write_journal(self) -> None:
        """Write the journal before the store, so that it never says less."""
        if self._journal is not None:
            with suppress(StoreError):
                extra = self._extra_before + self._extra
                rows = {str(attempt): cost for attempt, cost in self._rows.items()}
                content = {"accounts": self._as_json(), "extra": extra, "rows": rows}
                self._journal.write_json(NAME, content)

    def _write_document(self, account: Account, fields: Mapping[str, Any] | None) -> None:
        name = _document(account.attempt)
        try:
            before = finite(self._run.read_json(name))
        except FileNotFoundError:
            before = {}
        except StoreUnreachable:
            raise
        except StoreError:
            before = {}  # half written by a process that died; the mirror has the account
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


class _Journal(BaseModel):
    model_config = ConfigDict(extra="ignore")

    accounts: dict[int, Account] = {}
    """Accounts of all attempts, by number."""
    extra: int = Field(default=0, ge=0)
    """Micro-dollars that the service charged beyond them."""
    rows: dict[int, int] = {}
    """Micro-dollars by attempt, by the service's own rows."""


def _read_journal(journal: RunStore | None) -> _Journal:
    """Return what this computer wrote down; nothing if that cannot be read."""
    try:
        return _Journal() if journal is None else _Journal.model_validate(journal.read_json(NAME))
    except (FileNotFoundError, StoreError, ValidationError):
        return _Journal()


def believed(stored: Account | None, noted: Account) -> Account:
    """Return what is known of an account of which this computer has written `noted`.

    Another computer may have gone on with the run since then: then the account in the store
    continues this one, or closes it, for no less than it had cost already.

    Args:
        stored: The account in the store; None if it is not there.
        noted: The account as this computer wrote it last.
    """
    if stored is None or (stored.is_open and not noted.is_open):
        return noted
    if stored.charged is not None:
        return stored.model_copy(update={"charged": max(stored.charged, noted.spent)})
    passed = (stored.seen_at - noted.seen_at) // timedelta(microseconds=1)
    counted = stored.usage.storage_us - noted.usage.storage_us
    continues = (
        (stored.rates, stored.opened_at) == (noted.rates, noted.opened_at)
        and stored.bandwidth == noted.bandwidth
        and 0 <= passed <= counted
        and stored.spent >= noted.spent
    )
    return stored if continues else noted


def _read_mirror(run: RunStore) -> _Mirror | None:
    """Return the accounts in `budget.json`: none if it does not exist, None if it is damaged."""
    try:
        return _Mirror.model_validate(run.read_json(NAME))
    except FileNotFoundError:
        return _Mirror()
    except StoreUnreachable:
        raise
    except (StoreError, ValidationError):
        return None


def _read_account(run: RunStore, attempt: int) -> Account | None:
    """Return an attempt's account; None for one that costs nothing, such as a local one."""
    name = _document(attempt)
    stored = run.read_json(name).get("account")
    try:
        return None if stored is None else Account.model_validate(stored)
    except ValidationError as error:
        what = error.errors()[0]["msg"]
        raise StoreError(f"{run.run_url}/{name}: {what}: not an account; correct it") from error
