"""Watching a machine: one look after another, until something is to be done about it.

Each look reads the machine's state, its word in the store and the ledger, renews its lease as far
as money is set aside, and judges. A store or a service that does not answer ends nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from tsgb.cloud.documents import Intent
from tsgb.cloud.pricing import microdollars
from tsgb.cloud.provider import Instance, InstanceState
from tsgb.cloud.running import Held
from tsgb.cloud.session import Desk
from tsgb.cloud.terminate import BUDGET, MOVE, destroy, moves_soon, stop
from tsgb.cloud.termination import Cause, Signs, judge
from tsgb.errors import ProviderAuthError, ProviderError, StoreUnreachable

_SLACK = 0.02
"""Share by which the service's own sum of the price may be above the one that was set aside."""

OnLook = Callable[[Held], None]


def no_look(_held: Held) -> None:
    """Nobody watches."""


def watch(
    desk: Desk, held: Held, enough: Callable[[Held], bool], on_look: OnLook = no_look
) -> None:
    """Look until `enough` says so or the machine is over (`held.cause`)."""
    while True:
        look(desk, held)
        on_look(held)
        if held.cause is not None or enough(held):
            return
        desk.sleep(desk.patience.look_seconds)


def is_there(held: Held) -> bool:
    """The service shows its container at work, or it says so itself."""
    running = held.instance is not None and held.instance.state is InstanceState.RUNNING
    return running or has_said_something(held)


def has_said_something(held: Held) -> bool:
    """A first sign of life."""
    return held.beat_at is not None or held.farewell is not None


def never(_held: Held) -> bool:
    """Go on to its end."""
    return False


def look(desk: Desk, held: Held) -> None:
    """One look at everything.

    Raises:
        ProviderAuthError: The key is refused: nothing is known, the machine is asked to end itself.
        LeaseLost: Another flow has taken the run over.
    """
    _read_row(desk, held)
    _read_word(desk, held)
    _count(desk, held)
    _renew(desk, held)
    if desk.clock() - held.listed_at >= desk.patience.list_seconds:
        held.listed_at = desk.clock()
        _list(desk, held)
    if held.instance is not None and moves_soon(held.instance.ends_at, desk.now()):
        stop(desk, held, MOVE)
    _judge(desk, held)


def _read_row(desk: Desk, held: Held) -> None:
    try:
        held.instance = desk.provider.show(held.instance_id)
    except ProviderAuthError:
        stop(desk, held, "the account's key is refused")
        raise
    except ProviderError as error:
        held.verified = False
        desk.note(f"instance {held.instance_id} could not be looked at: {error}")
        return
    held.verified = True
    if held.instance is None:
        return
    held.seen = True
    if not held.checked:
        held.checked = held.instance.hourly is not None
        wrong = mismatch(held.instance, held.intent)
        if wrong is not None:
            held.cause = Cause.CONFIG
            held.message = f"instance {held.instance_id} is not what was asked for: {wrong}"


def mismatch(found: Instance, intent: Intent) -> str | None:
    """Return why a new instance is not what was asked for; None if it is, as far as is known."""
    if found.label is not None and found.label != intent.label:
        return f"its label is {found.label!r}, not {intent.label!r}"
    if found.is_bid is False:
        return "it was rented on demand, at the full price"
    if found.machine_id is not None and found.machine_id != intent.machine_id:
        return f"it is machine {found.machine_id}, not {intent.machine_id}"
    if found.hourly is not None and found.hourly > intent.hourly * (1 + _SLACK) + 0.001:
        return f"it costs ${found.hourly:.3f}/h, and ${intent.hourly:.3f}/h are set aside"
    return None


def _read_word(desk: Desk, held: Held) -> None:
    try:
        beat = desk.papers.beat(held.attempt)
        held.farewell = desk.papers.farewell(held.attempt)
    except StoreUnreachable as error:
        desk.note(f"no news of instance {held.instance_id}: {error}")
        return
    if beat is not None and beat != held.beat:
        before, held.beat, held.beat_at = held.step, beat, desk.clock()
        if held.first_beat_at is None:
            held.first_beat_at = held.beat_at
            now = desk.now().isoformat()
            desk.quietly(
                lambda: desk.papers.note(held.attempt, first_beat_at=now),
                "a flow that is started again will not know how long it took to boot",
            )
        if held.step != before or held.step_at == 0.0:
            held.step_at = held.beat_at


def _count(desk: Desk, held: Held) -> None:
    """Count on in the ledger; out of money, the machine is asked to stop while there is some."""
    billed = held.instance is None or held.instance.gpu_billed
    ahead = desk.patience.look_seconds + desk.patience.grace_seconds
    try:
        enough = desk.ledger.keep(
            held.attempt,
            desk.now(),
            timedelta(seconds=ahead),
            more=held.new_traffic(),
            gpu_billed=billed or held.billed,
            window=desk.patience.window,
        )
    except StoreUnreachable as error:
        # It has counted all the same, and writes it with the next change.
        desk.note(f"the ledger could not be written: {error}")
        enough = True
    held.billed = billed
    held.traffic_is_counted()
    if not enough:
        stop(desk, held, BUDGET)


def _renew(desk: Desk, held: Held) -> None:
    """A few times in its life, not at each look: each one is a request to the store."""
    every = min(60.0, desk.patience.ttl.total_seconds() / 10)
    if held.stop is None and desk.clock() - held.renewed_at >= every:
        try:
            lease = desk.renew(held.attempt)
        except StoreUnreachable as error:
            desk.note(f"the lease could not be renewed, the machine ends with it: {error}")
            return
        held.renewed_at = desk.clock()
        if lease.stop is not None:
            held.stop, held.stop_at = lease.stop, desk.clock()
            desk.note(f"instance {held.instance_id} was asked to stop: {lease.stop}")


def _list(desk: Desk, held: Held) -> None:
    """What a look by id cannot show: a second machine, and the account's own sums."""
    try:
        for number, row in desk.own().items():
            if number != held.instance_id:
                desk.note(f"alarm: destroying instance {number} ({row.label}), a second one")
                destroy(desk, number)
        drift = desk.ledger.check_credit(desk.now(), microdollars(max(0.0, _credit(desk))))
    except ProviderAuthError:
        stop(desk, held, "the account's key is refused")
        raise
    except (ProviderError, StoreUnreachable) as error:
        desk.note(f"the account could not be looked at: {error}")
        return
    if drift.alarming:
        desk.note(f"alarm: {drift}")


def _judge(desk: Desk, held: Held) -> None:
    if held.cause is not None:
        return
    clock = desk.clock()
    signs = Signs(
        instance=held.instance,
        verified=held.verified,
        seen_before=held.seen,
        exit_record=held.farewell,
        age_seconds=clock - held.since,
        heartbeat_age_seconds=None if held.beat_at is None else clock - held.beat_at,
        step_age_seconds=0.0 if held.beat_at is None else clock - held.step_at,
        stop_asked=held.stop is not None,
        doubted_before=_doubted(desk, held),
    )
    cause = judge(signs, desk.patience.deadlines)
    if cause is Cause.PREEMPTED and held.farewell is None and _credit(desk, default=1.0) <= 0:
        cause = judge(replace(signs, credit_used_up=True), desk.patience.deadlines)
    overdue = held.stop is not None and clock - held.stop_at > desk.patience.grace_seconds
    if cause is None and overdue:
        cause = Cause.STOPPED
    late = max(desk.patience.lag_seconds, 2 * desk.patience.look_seconds)
    if cause is None and held.verified and not held.seen and clock - held.since > late:
        cause, held.message = Cause.BAD_HOST, "it never appeared"
    if cause is not None:
        held.cause = cause
        held.message = held.message or _message(held)


def _credit(desk: Desk, default: float | None = None) -> float:
    try:
        return desk.provider.credit()
    except ProviderError:
        if default is None:
            raise
        return default


def _doubted(desk: Desk, held: Held) -> bool:
    """Lost at this very step before, and nobody could say whether by its host."""
    before = desk.endings[-1] if desk.endings else None
    return before is not None and before.cause is Cause.HOST_LOST and before.step == held.step


def _message(held: Held) -> str:
    if held.farewell is not None:
        return str(held.farewell.get("message", ""))
    if held.stop is not None:
        return held.stop
    if held.instance is None:
        silent = ", and nothing was heard of it" * (held.beat_at is None)
        return f"instance {held.instance_id} is gone{silent}"
    said = f", {held.instance.message!r}" if held.instance.message else ""
    return f"instance {held.instance_id}: {held.instance.status}{said}"
