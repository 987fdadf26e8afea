"""Closing the books on a machine whose flow is dead: its account, and how its attempt ended.

A live flow is the one writer of its run, so nothing is written unless its lease has run out or the
run has ended. The machine is known to be gone.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from tsgb.cloud.pricing import Account, Usage
from tsgb.cloud.provider import Instance
from tsgb.cloud.termination import Observation, TerminationReason, termination_reason
from tsgb.errors import StoreError, StoreUnreachable


def may_write(lease: Lease | None, now: datetime, skew: timedelta) -> bool:
    """Whether no flow counts on being the only writer of the run."""
    return lease is not None and (lease.ended or lease.has_run_out(now, skew))


def settle(
    documents: RunDocuments, attempt: int, row: Instance, now: datetime, *, skew: timedelta, by: str
) -> int | None:
    """Close the account of an attempt, and note how it ended if nothing is noted yet.

    Args:
        documents: Of its run.
        attempt: Whose machine it was.
        row: As the service showed it last.
        now: When it was gone at the latest.
        skew: By how much clocks may differ.
        by: Who destroyed it.

    Returns:
        Micro-dollars that it cost; None if that is not known, or a live flow's to write.
    """
    lease = documents.lease()
    if lease is None or not may_write(lease, now, skew):
        return None
    document = documents.attempt(attempt) or AttemptDocument(attempt)
    ledger = Ledger.open(documents.run, _budget(documents, lease))
    account = ledger.accounts.get(attempt)
    left = machine_record(documents, document, account)
    fields: dict[str, Any] = {}
    if document.result is None:
        outcome = _outcome(lease, row, left, now, by)
        fields = {"outcome": outcome.model_dump(mode="json")}
    if account is None or not account.is_open:
        if fields:
            documents.note(attempt, **fields)
        return None if account is None else account.charged
    return _commit(ledger, account, lease, row, left.more, now, fields)


def _commit(
    ledger: Ledger,
    account: Account,
    lease: Lease,
    row: Instance,
    more: Usage,
    now: datetime,
    fields: Mapping[str, Any],
) -> int:
    """Its GPU until it could have been billed last, its disk until now, its traffic as it said.

    When a GPU was given up that is held no more, nobody saw; a machine does not work beyond its
    lease.
    """
    billed = row.gpu_billed
    if not billed:
        ledger.keep(account.attempt, min(now, lease.ends_at), timedelta(0), window=timedelta(0))
    closed = ledger.commit(account.attempt, now, more=more, gpu_billed=billed, outcome=fields)
    return closed.spent


def _outcome(
    lease: Lease,
    row: Instance,
    left: MachineRecord,
    now: datetime,
    by: str,
) -> AttemptResult:
    silent = None if left.said_at is None else (now - left.said_at).total_seconds()
    cause = termination_reason(
        Observation(
            instance=row,
            exit_record=left.exit_record,
            heartbeat_age_seconds=silent,
            stop_asked=lease.stop is not None,
        )
    )
    if cause is None or cause is TerminationReason.LEASE_LOST:
        cause = (
            TerminationReason.STOPPED
        )  # by its lease's end or by us, which the next attempt will not meet
    return AttemptResult(
        cause=cause,
        message=f"its flow was dead: destroyed by {by}",
        at=now,
        step=left.step,
        boot_seconds=left.boot_seconds,
        hold_seconds=left.hold_seconds,
    )


def _budget(documents: RunDocuments, lease: Lease) -> int:
    """As the flow wrote it, since the ledger writes it again."""
    try:
        kept = documents.run.read_json(budget.NAME).get("budget_microdollars")
    except StoreUnreachable:
        raise
    except (FileNotFoundError, StoreError):
        kept = None  # half written by a process that died, or never
    return kept if isinstance(kept, int) else lease.budget_microdollars or 0
