"""The start of every flow and every retry: adopt the machine that still works, end all others.

So a retry is always safe. What is not known is never taken for nothing: without a whole list
nothing is rented. `release_all` does the same for a flow that is dead, and adopts nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from tsgb.cloud.documents import (
    AttemptDocument,
    AttemptResult,
    MachineRecord,
    counted_bytes,
    machine_record,
    moment,
)
from tsgb.cloud.launch import write_down
from tsgb.cloud.lease import Lease
from tsgb.cloud.orphans import InstanceLabel
from tsgb.cloud.pricing import in_dollars, microdollars
from tsgb.cloud.provider import Instance
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.session import Session
from tsgb.cloud.terminate import destroy
from tsgb.cloud.termination import TerminationReason
from tsgb.errors import StoreUnreachable

_TO_GO = timedelta(minutes=1)
"""From a machine's exit record until its own request has ended it."""

Attempts = dict[int, AttemptDocument]


def reconcile(session: Session) -> RunningInstance | None:
    """Return the machine to go on with, or None; afterwards the run has no other machine.

    Raises:
        LeaseLost: Another flow works on this run.
        ProviderUnreachable: What is there could not be read, or something would not go.
    """
    lease = session.check_lease()
    attempts = {found.attempt: found for found in session.documents.attempts()}
    _let_it_appear(session, attempts)
    instances = session.own()
    for instance in instances.values():
        _count_row(session, instance)
    kept = _adoptable(session, lease, attempts, instances)
    gone: list[tuple[int, datetime]] = []
    for number, instance in sorted(instances.items()):
        if kept is None or number != kept.id:
            label = InstanceLabel.parse(instance.label)
            session.note(f"destroying instance {number} ({instance.label}), which no attempt needs")
            gone_at = destroy(session, number)
            if label is not None:
                gone.append((label.attempt, gone_at))
    for attempt, gone_at in gone:  # when all are destroyed, since this needs the store
        _close(session, attempts.get(attempt), attempt, gone_at)
    working = None if kept is None else InstanceLabel.parse(kept.label)
    for attempt, account in sorted(session.ledger.accounts.items()):
        if account.is_open and (working is None or working.attempt != attempt):
            gone_at = _gone_at(session, lease, attempts, attempt)
            _close(session, attempts.get(attempt), attempt, gone_at)
    return None if kept is None or lease is None else _adopt(session, lease, attempts, kept)


def release_all(session: Session, reason: str) -> int:
    """End the lease, let the machine save, destroy all that is left; return how many there were.

    Raises:
        LeaseLost: Another flow has taken the run over, and looks after its machines.
        ProviderUnreachable: What is there could not be read, or something would not go.
    """
    lease = session.check_lease()
    instances = session.own()
    if instances and lease is not None and lease.owner == session.owner:
        if not lease.ended:  # else the flow has ended it, which asks for the same
            session.revoke(lease.attempt, reason)
        ends = session.clock() + session.monitor_policy.release_seconds
        while not _has_exited(session, lease.attempt) and session.clock() < ends:
            session.sleep(min(1.0, session.monitor_policy.look_seconds))
    session.end(reason)
    reconcile(session)  # the lease has ended, so it adopts nothing
    return len(instances)


def _count_row(session: Session, instance: Instance) -> None:
    """Count the cost of an instance by the service's own row: its account may be lost."""
    label = InstanceLabel.parse(instance.label)
    if label is None or instance.created_at is None or instance.hourly is None:
        return
    age = session.now() - instance.created_at - session.monitor_policy.skew
    hours = max(timedelta(0), age) / timedelta(hours=1)
    before = session.ledger.extra
    session.ledger.saw_row(label.attempt, microdollars(max(0.0, instance.hourly * hours)))
    if session.ledger.extra > before:
        session.note(
            f"instance {instance.id} costs ${instance.hourly:.3f}/h for {hours:.1f} h, and the "
            f"ledger holds less: {in_dollars(session.ledger.extra)} more count as spent"
        )


def _has_exited(session: Session, attempt: int) -> bool:
    try:
        return session.documents.exit_record(attempt) is not None
    except StoreUnreachable:
        return False


def _let_it_appear(session: Session, attempts: Attempts) -> None:
    """Wait for a rental that was asked for moments ago and may not be in the list yet."""
    young = {
        found.intent.label: found.intent.intended_at
        for found in attempts.values()
        if found.intent is not None and found.result is None
    }
    lag = timedelta(seconds=session.monitor_policy.lag_seconds)
    waits = max((lag - (session.now() - at) for at in young.values()), default=timedelta(0))
    ends = session.clock() + min(waits, lag).total_seconds()
    told = False
    while session.clock() < ends and not any(
        instance.label in young for instance in session.own().values()
    ):
        if not told:
            told = True
            session.note(f"a rental may be on its way: looking for it for {waits.seconds} s")
        session.sleep(min(session.monitor_policy.look_seconds, max(0.1, ends - session.clock())))


def _adoptable(
    session: Session, lease: Lease | None, attempts: Attempts, instances: dict[int, Instance]
) -> Instance | None:
    """Return the machine of the newest attempt, if it may still work."""
    if lease is None or lease.ended or lease.stop or lease.owner != session.owner:
        return None
    if lease.has_run_out(session.now(), timedelta(0)):
        return None
    document, account = attempts.get(lease.attempt), session.ledger.accounts.get(lease.attempt)
    if document is None or document.intent is None or document.result is not None:
        return None
    if account is None or not account.is_open:
        return None
    found = [one for one in instances.values() if one.label == document.intent.label]
    if lease.instance_id is not None:
        found = [one for one in found if one.id == lease.instance_id]
    return min(found, key=lambda one: one.id, default=None)


def _adopt(
    session: Session, lease: Lease, attempts: Attempts, instance: Instance
) -> RunningInstance:
    document, account = attempts[lease.attempt], session.ledger.accounts.get(lease.attempt)
    intent = document.intent
    assert intent is not None
    session.note(f"going on with instance {instance.id}, which works on attempt {lease.attempt}")
    born = instance.created_at or intent.intended_at
    age = max(0.0, (session.now() - born).total_seconds())
    running = RunningInstance(
        attempt=lease.attempt,
        instance_id=instance.id,
        intent=intent,
        since=session.clock() - age,
        instance=instance,
        seen=True,
        has_run=document.first_beat_at is not None,
    )
    running.bytes_up, running.bytes_down = counted_bytes(account, document)
    if document.first_beat_at is not None:
        alive = max(0.0, (session.now() - document.first_beat_at).total_seconds())
        running.first_beat_at = session.clock() - min(age, alive)
    if document.instance_id is None:
        write_down(session, running)  # its flow died before it could
    return running


def _gone_at(
    session: Session, lease: Lease | None, attempts: Attempts, attempt: int
) -> datetime | None:
    """Return when a machine that is gone went, at the latest; None if there never was one."""
    account, document = session.ledger.accounts[attempt], attempts.get(attempt)
    told = session.documents.last_reports(attempt)
    said = moment(told.exit_record, "ended_at")
    lease = lease if lease is not None and lease.attempt == attempt else None
    existed = (
        told.has_reported is not False  # where that is unknown, it may have cost something
        or (lease is not None and lease.instance_id is not None)
        or (document is not None and document.instance_id is not None)
    )
    if not existed:
        return None
    now = session.now()
    bounds = [now, account.covers_until]
    if lease is not None:
        # Then it ended itself; its own clock may be behind the one that wrote the lease.
        bounds.append(min(lease.expires_at, now) + session.monitor_policy.skew)
    if said is not None and said > account.seen_at:
        bounds.append(min(said, now) + _TO_GO)
    return max(min(bounds), account.seen_at)


def _close(
    session: Session, document: AttemptDocument | None, attempt: int, gone_at: datetime | None
) -> None:
    """Close the account of a machine that is gone, as its flow could not."""
    account = session.ledger.accounts.get(attempt)
    record = machine_record(session.documents, document or AttemptDocument(attempt), account)
    if account is not None and account.is_open:
        if gone_at is None:
            session.ledger.reconcile(attempt, 0)
        else:
            session.ledger.commit(
                attempt, gone_at, more=record.more, start_is_told=record.start_is_told
            )
    if document is None or document.result is not None or document.intent is None:
        return
    result = AttemptResult(
        cause=TerminationReason.REFUSED if gone_at is None else _reason_of(record),
        message="its flow had died",
        at=gone_at or session.now(),
        step=record.step,
        boot_seconds=record.boot_seconds,
        hold_seconds=record.hold_seconds,
        updates=record.updates,
    )
    # No ending of this flow's: the one that died answers for it.
    session.documents.note(attempt, outcome=result.model_dump(mode="json"))


def _reason_of(record: MachineRecord) -> TerminationReason:
    """Return why a machine whose flow died ended: stopped by us, unless it says it was done."""
    said = record.exit_record or {}
    is_done = said.get("outcome") == "done"
    return TerminationReason.DONE if is_done else TerminationReason.STOPPED
