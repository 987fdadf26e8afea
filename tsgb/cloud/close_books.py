"""Closes the account of a machine whose flow is dead, and records how its attempt ended.

A live flow is the only writer of its run, so nothing is written unless its lease has run out or the
run has ended. The machine is known to be gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from tsgb.cloud import budget
from tsgb.cloud.budget import Ledger
from tsgb.cloud.documents import (
    AttemptDocument,
    AttemptResult,
    MachineRecord,
    RunDocuments,
    machine_record,
)
from tsgb.cloud.lease import Lease
from tsgb.cloud.pricing import Account
from tsgb.cloud.provider import Instance, InstanceState
from tsgb.cloud.termination import Observation, TerminationReason, termination_reason
from tsgb.errors import StoreError, StoreUnreachable


def may_write(lease: Lease | None, now: datetime, skew: timedelta) -> bool:
    """Return whether no live flow relies on being the only writer of the run."""
    return lease is not None and (lease.ended or lease.has_run_out(now, skew))


def settle(
    documents: RunDocuments,
    attempt: int,
    row: Instance,
    now: datetime,
    *,
    skew: timedelta,
    by: str,
    ledger_of: Callable[[int], Ledger],
) -> int | None:
    """Close the account of an attempt, and record how it ended unless that is recorded already.

    Args:
        documents: Documents of its run.
        attempt: Number of the attempt.
        row: The instance as the service showed it last.
        now: Latest time at which it can have ended.
        skew: Difference between two clocks that is tolerated.
        by: Name of what destroyed it, for people.
        ledger_of: Returns the accounts of the run, whose budget in micro-dollars is its argument.

    Returns:
        Micro-dollars that it cost; None if that is unknown, or if a live flow will write it.
    """
    lease = documents.lease()
    if lease is None or not may_write(lease, now, skew):
        return None
    document = documents.attempt(attempt) or AttemptDocument(attempt)
    ledger = ledger_of(_budget(documents, lease))
    account = ledger.accounts.get(attempt)
    record = machine_record(documents, document, account)
    fields: dict[str, Any] = {}
    if document.result is None:
        result = _result(lease, row, record, now, by)
        fields = {"outcome": result.model_dump(mode="json")}
    if account is None or not account.is_open:
        if fields:
            documents.note(attempt, **fields)
        return None if account is None else account.charged
    return _commit(ledger, account, lease, row, record, now, fields)


def _commit(
    ledger: Ledger,
    account: Account,
    lease: Lease,
    row: Instance,
    record: MachineRecord,
    now: datetime,
    fields: Mapping[str, Any],
) -> int:
    """Commit the account and return its cost in micro-dollars.

    The GPU counts until it can have been billed last, the disk until now, the traffic as the
    machine reported it, and that of its start in any case, unless its container is being made. No
    flow saw when a GPU was given up that is not billed now, but a machine does not work beyond its
    lease.
    """
    billed = row.gpu_billed
    waits = row.state is InstanceState.PROVISIONING and record.said_at is None
    if not billed:
        ledger.keep(account.attempt, min(now, lease.ends_at), timedelta(0), window=timedelta(0))
    closed = ledger.commit(
        account.attempt,
        now,
        more=record.more,
        gpu_billed=billed,
        start_is_told=waits or record.start_is_told,
        outcome=fields,
    )
    return closed.spent


def _result(
    lease: Lease, row: Instance, record: MachineRecord, now: datetime, by: str
) -> AttemptResult:
    silent = None if record.said_at is None else (now - record.said_at).total_seconds()
    cause = termination_reason(
        Observation(
            instance=row,
            exit_record=record.exit_record,
            heartbeat_age_seconds=silent,
            stop_asked=lease.stop is not None,
        )
    )
    if cause is None or cause is TerminationReason.LEASE_LOST:
        # Its lease's end or we stopped it, and neither happens to the next attempt.
        cause = TerminationReason.STOPPED
    return AttemptResult(
        cause=cause,
        message=f"its flow was dead: destroyed by {by}",
        at=now,
        step=record.step,
        boot_seconds=record.boot_seconds,
        hold_seconds=record.hold_seconds,
        updates=record.updates,
    )


def _budget(documents: RunDocuments, lease: Lease) -> int:
    """Return the run's budget as its flow wrote it, because the ledger writes it again."""
    try:
        kept = documents.run.read_json(budget.NAME).get("budget_microdollars")
    except StoreUnreachable:
        raise
    except (FileNotFoundError, StoreError):
        kept = None  # half written by a process that died, or never written
    return kept if isinstance(kept, int) else lease.budget_microdollars or 0
