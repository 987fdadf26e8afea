"""Monitors a machine: looks at it again and again until it ends or has to be ended.

A look reads the state of the instance and its reports in the store, counts its cost in the ledger,
renews its lease as far as money is set aside, and decides whether the attempt is over. A store or a
service that does not answer ends nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from tsgb.cloud.card import CardProbe, objection
from tsgb.cloud.documents import Intent, tells_of_start
from tsgb.cloud.pricing import Usage
from tsgb.cloud.provider import Instance, InstanceState
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.session import Session
from tsgb.cloud.terminate import BUDGET, MOVE, destroy, moves_soon, stop
from tsgb.cloud.termination import (
    Observation,
    TerminationReason,
    overdue,
    termination_reason,
)
from tsgb.errors import ProviderAuthError, ProviderError, StoreUnreachable

_SLACK = 0.02
"""Share by which the price that the service shows may exceed the one that was reserved."""

_MAX_MESSAGE = 500
"""Characters of a machine's own reason that are kept, in one line."""

OnLook = Callable[[RunningInstance], None]


def no_look(_running: RunningInstance) -> None:
    """Do nothing after a look."""


def watch(
    session: Session,
    running: RunningInstance,
    enough: Callable[[RunningInstance], bool],
    on_look: OnLook = no_look,
) -> None:
    """Look until `enough` returns True, or the attempt is over (`running.cause` is set)."""
    while True:
        look(session, running)
        on_look(running)
        if running.cause is not None or enough(running):
            return
        session.sleep(session.monitor_policy.look_seconds)


def is_there(running: RunningInstance) -> bool:
    """Return whether the service shows a running container, or the machine has reported."""
    instance = running.instance
    is_up = instance is not None and instance.state is InstanceState.RUNNING
    return is_up or has_said_something(running)


def has_said_something(running: RunningInstance) -> bool:
    """Return whether the machine has written a heartbeat or an exit record."""
    return running.beat_at is not None or running.exit_record is not None


def look(session: Session, running: RunningInstance) -> None:
    """Look once at the instance, its reports, its cost and its lease.

    Raises:
        ProviderAuthError: The key is refused, so the machine is asked to end itself.
        LeaseLost: Another flow has taken the run over.
    """
    running.looked_at = session.clock()
    _read_row(session, running)
    _read_reports(session, running)
    _count(session, running)
    _renew(session, running)
    if session.clock() - running.listed_at >= session.monitor_policy.list_seconds:
        running.listed_at = session.clock()
        _list(session, running)
    ends = running.instance and running.instance.ends_at
    if moves_soon(ends, session.now()) or moves_soon(running.intent.ends_at, session.now()):
        stop(session, running, MOVE)
    _decide(session, running)


def look_if_due(session: Session, running: RunningInstance) -> None:
    """Look unless that was done a moment ago; for work beside which a machine goes on."""
    if session.clock() - running.looked_at >= session.monitor_policy.look_seconds:
        look(session, running)


def _read_row(session: Session, running: RunningInstance) -> None:
    try:
        running.instance = session.provider.show(running.instance_id)
    except ProviderAuthError:
        stop(session, running, "the account's key is refused")
        raise
    except ProviderError as error:
        running.verified = False
        session.note(f"instance {running.instance_id} could not be looked at: {error}")
        return
    running.verified = True
    if running.instance is None:
        return
    running.seen = True
    running.has_run |= running.instance.state is not InstanceState.PROVISIONING
    if not running.checked:
        running.checked = running.instance.hourly is not None
        wrong = mismatch(running.instance, running.intent)
        if wrong is not None:
            running.cause, running.is_certain = TerminationReason.CONFIG, True
            running.message = f"instance {running.instance_id} is not what was asked for: {wrong}"


def mismatch(found: Instance, intent: Intent) -> str | None:
    """Return how a new instance differs from the intended rental; None if it does not."""
    if found.label is not None and found.label != intent.label:
        return f"its label is {found.label!r}, not {intent.label!r}"
    if found.is_bid is False:
        return "it was rented on demand, at the full price"
    if found.machine_id is not None and found.machine_id != intent.machine_id:
        return f"it is machine {found.machine_id}, not {intent.machine_id}"
    if found.hourly is not None and found.hourly > intent.hourly * (1 + _SLACK) + 0.001:
        return f"it costs ${found.hourly:.3f}/h, and ${intent.hourly:.3f}/h are set aside"
    return None


def _read_reports(session: Session, running: RunningInstance) -> None:
    try:
        beat = session.documents.heartbeat(running.attempt)
        running.exit_record = session.documents.exit_record(running.attempt)
    except StoreUnreachable as error:
        session.note(f"no news of instance {running.instance_id}: {error}")
        return
    if beat is not None and beat != running.heartbeat:
        before, running.heartbeat, running.beat_at = running.step, beat, session.clock()
        if running.first_beat_at is None:
            running.first_beat_at = running.beat_at
            first = {"first_beat_at": session.now().isoformat(), "probe": _probe(running)}
            session.quietly(
                lambda: session.documents.note(running.attempt, **first),
                "a flow that is started again will not know how long it took to boot",
            )
        if running.step != before or running.step_at == 0.0:
            running.step_at = running.beat_at


def _probe(running: RunningInstance) -> dict[str, Any] | None:
    probe = CardProbe.read(running.heartbeat)
    return None if probe is None else probe.model_dump()


def _count(session: Session, running: RunningInstance) -> None:
    """Count the cost so far; ask the machine to stop while there is money for its end."""
    billed = running.instance is None or running.instance.gpu_billed
    ahead = session.monitor_policy.look_seconds + session.monitor_policy.grace_seconds
    new, before = running.new_traffic(), session.ledger.accounts[running.attempt].usage
    try:
        enough = session.ledger.keep(
            running.attempt,
            session.now(),
            timedelta(seconds=ahead),
            more=new,
            gpu_billed=billed or running.billed,
            start_is_told=tells_of_start(running.heartbeat),
            window=session.monitor_policy.window,
        )
    except StoreUnreachable as error:
        # The ledger has counted nevertheless, and writes it with the next change.
        session.note(f"the ledger could not be written: {error}")
        enough = True
    running.billed = billed
    left = _uncounted(new, before, session.ledger.accounts[running.attempt].usage)
    running.traffic_is_counted(new, left)
    if left != Usage() and not running.doubted_traffic:
        running.doubted_traffic = True
        session.note(
            f"instance {running.instance_id} says that it sent {new.bytes_up / 1e9:.3g} GB and "
            f"received {new.bytes_down / 1e9:.3g} GB, more than its line carries: counting what "
            "it can have been"
        )
    if not enough:
        stop(session, running, BUDGET)


def _uncounted(new: Usage, before: Usage, after: Usage) -> Usage:
    """Return the part of new traffic that the ledger did not count."""
    return Usage(
        bytes_up=new.bytes_up - (after.bytes_up - before.bytes_up),
        bytes_down=new.bytes_down - (after.bytes_down - before.bytes_down),
    )


def _renew(session: Session, running: RunningInstance) -> None:
    """Renew the lease a few times within its ttl; each renewal is a request to the store."""
    every = min(60.0, session.monitor_policy.ttl.total_seconds() / 10)
    if running.stop is None and session.clock() - running.renewed_at >= every:
        try:
            lease = session.renew(running.attempt)
        except StoreUnreachable as error:
            session.note(f"the lease could not be renewed, the machine ends with it: {error}")
            return
        running.renewed_at = session.clock()
        if lease.stop is not None:
            running.stop, running.stop_at = lease.stop, session.clock()
            session.note(f"instance {running.instance_id} was asked to stop: {lease.stop}")


def _list(session: Session, running: RunningInstance) -> None:
    """List all instances and read the credit, which show a second machine and a drift."""
    try:
        for number, row in session.own().items():
            if number != running.instance_id:
                session.note(f"alarm: destroying instance {number} ({row.label}), a second one")
                destroy(session, number)
        session.check_credit(_credit(session))
    except ProviderAuthError:
        stop(session, running, "the account's key is refused")
        raise
    except (ProviderError, StoreUnreachable) as error:
        session.note(f"the account could not be looked at: {error}")


def _decide(session: Session, running: RunningInstance) -> None:
    if running.cause is not None:
        return
    clock = session.clock()
    policy = session.monitor_policy
    observation = Observation(
        instance=running.instance,
        verified=running.verified,
        seen_before=running.seen,
        exit_record=running.exit_record,
        age_seconds=clock - running.since,
        heartbeat_age_seconds=None if running.beat_at is None else clock - running.beat_at,
        step_age_seconds=0.0 if running.beat_at is None else clock - running.step_at,
        stop_asked=running.stop is not None,
        doubted_before=_doubted(session, running),
    )
    cause = termination_reason(observation, policy.deadlines)
    if cause is None and running.heartbeat:
        wrong = objection(
            CardProbe.read(running.heartbeat),
            gpu_name=running.intent.gpu_name,
            card_gb=running.intent.card_gb,
        )
        if wrong:
            cause, running.message = TerminationReason.BAD_HOST, wrong
    if (
        cause is TerminationReason.PREEMPTED
        and running.exit_record is None
        and _credit(session, default=1.0) <= 0
    ):
        cause = termination_reason(replace(observation, credit_used_up=True), policy.deadlines)
    goes_on = running.stop is not None and clock - running.stop_at > policy.grace_seconds
    if cause is None and goes_on:
        cause = TerminationReason.STOPPED
    late = max(policy.lag_seconds, 2 * policy.look_seconds)
    if cause is None and running.verified and not running.seen and clock - running.since > late:
        cause, running.message = TerminationReason.BAD_HOST, "it never appeared"
    if cause is not None:
        running.cause = cause
        late_for = overdue(observation, policy.deadlines)
        running.message = running.message or _message(running, late_for)


def _credit(session: Session, default: float | None = None) -> float:
    try:
        return session.provider.credit()
    except ProviderError:
        if default is None:
            raise
        return default


def _doubted(session: Session, running: RunningInstance) -> bool:
    """Return whether the attempt before was lost with its host at the same step."""
    before = session.endings[-1] if session.endings else None
    return (
        before is not None
        and before.cause is TerminationReason.HOST_LOST
        and before.step == running.step
    )


def _message(running: RunningInstance, late_for: str) -> str:
    if running.exit_record is not None:
        return " ".join(str(running.exit_record.get("message", "")).split())[:_MAX_MESSAGE]
    if running.stop is not None:
        return running.stop
    if running.instance is None:
        silent = ", and it never reported" * (running.beat_at is None)
        return f"instance {running.instance_id} is gone{silent}"
    message = f", {running.instance.message!r}" if running.instance.message else ""
    why = f"; {late_for}" if late_for else ""
    return f"instance {running.instance_id}: {running.instance.status}{message}{why}"
