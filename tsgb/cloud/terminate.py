"""The end of a machine: destroyed, seen to be gone, paid, written down, judged.

A machine counts as gone only when the service no longer knows it by id and a whole list lacks it.
Until then its account stays open, and nothing new is rented for the run.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from tsgb.cloud.destroying import destroy_once
from tsgb.cloud.documents import Outcome
from tsgb.cloud.retry_policy import Ending, may_go_on
from tsgb.cloud.running import Held
from tsgb.cloud.session import Desk
from tsgb.cloud.termination import Cause
from tsgb.errors import (
    BudgetReached,
    ConfigError,
    LeaseLost,
    Preempted,
    ProviderAuthError,
    ProviderUnreachable,
    TSGBError,
    WorkerFailed,
)

_SHORTEST_PAUSE = 3.0
_LONGEST_PAUSE = 60.0


def destroy(desk: Desk, instance_id: int) -> datetime:
    """Destroy an instance and see that it is gone; when it was, at the latest.

    Raises:
        ProviderUnreachable: It may still be there after all the time that a flow insists.
        ProviderAuthError: The key is refused, so nothing can be known of it.
    """
    ends = desk.clock() + desk.patience.destroy_seconds
    pause, gone_at = _SHORTEST_PAUSE, None
    while True:
        left = destroy_once(desk.provider, [instance_id]).get(instance_id)
        if left is None or left.is_gone_by_id:
            gone_at = gone_at or desk.now()
        if left is None:
            return gone_at or desk.now()
        if desk.clock() + pause > ends:
            raise ProviderUnreachable(
                f"instance {instance_id} of run {desk.run_id!r} may still cost money: {left.why}; "
                "the reaper or `tsgb machines destroy` destroys it, its own lease ends too"
            )
        desk.sleep(pause)
        pause = min(_LONGEST_PAUSE, 2 * pause)


def release(desk: Desk, held: Held, reason: str) -> None:
    """However the flow left the machine: let it save, if it is at work, and destroy it.

    Again is fine: once it is gone, nothing more happens.
    """
    if held.finished:
        return
    if held.cause is None:
        stop(desk, held, reason)
        desk.quietly(lambda: _last_words(desk, held), "no news of the machine")
        ends = held.stop_at + desk.patience.release_seconds
        while held.farewell is None and held.beat and desk.clock() < ends:
            desk.sleep(min(1.0, desk.patience.look_seconds))
            desk.quietly(lambda: _listen(desk, held), "no news of the machine")
        held.cause, held.message = Cause.STOPPED, reason
    finish(desk, held)


def stop(desk: Desk, held: Held, reason: str) -> None:
    """Ask it to save and go, through its lease; again is fine."""
    if held.stop is None:
        held.stop, held.stop_at = reason, desk.clock()
        desk.note(f"asking instance {held.instance_id} to save and stop: {reason}")
        desk.revoke(held.attempt, reason)


def finish(desk: Desk, held: Held) -> Ending:
    """Destroy it, close its account, write its end down."""
    assert held.cause is not None
    assert not held.finished
    if held.cause is not Cause.DONE and held.stop is None:
        # Should it start again by itself while it is being destroyed, it finds that it may not.
        desk.revoke(held.attempt, f"attempt {held.attempt} is over: {held.cause}")
    try:
        gone_at = destroy(desk, held.instance_id)
    except ProviderAuthError:
        # Its own key still works on the machine itself.
        stop(desk, held, "the account's key is refused")
        raise
    billed = held.billed or held.instance is None or held.instance.gpu_billed
    desk.quietly(lambda: _last_words(desk, held), "no news of the machine")
    desk.ledger.commit(held.attempt, gone_at, more=held.new_traffic(), gpu_billed=billed)
    held.traffic_is_counted()
    held.finished = True
    return conclude(
        desk,
        held.attempt,
        Outcome(
            cause=held.cause,
            message=held.message,
            at=gone_at,
            step=held.step,
            boot_seconds=held.boot_seconds,
            hold_seconds=held.hold_seconds(desk.clock()),
        ),
        machine_id=held.intent.machine_id,
        host_id=held.intent.host_id,
    )


def conclude(
    desk: Desk, attempt: int, outcome: Outcome, *, machine_id: int, host_id: int
) -> Ending:
    """Write an attempt's end down; what no machine came of has cost nothing."""
    desk.papers.note(attempt, outcome=outcome.model_dump(mode="json"))
    ending = Ending(
        cause=outcome.cause,
        at=outcome.at,
        step=outcome.step,
        machine_id=machine_id,
        host_id=host_id,
    )
    desk.endings.append(ending)
    said = f": {outcome.message}" if outcome.message else ""
    desk.note(f"attempt {attempt} ended as {outcome.cause}{said}")
    return ending


def error_of(desk: Desk, cause: Cause, message: str, reason: str | None = None) -> TSGBError:
    """What the flow raises after an attempt that did not end the run.

    Args:
        desk: Whose endings decide.
        cause: Of the last one.
        message: In the machine's own words.
        reason: Why it was asked to stop, if it was.
    """
    if cause is Cause.STOPPED and reason == BUDGET:
        return BudgetReached(
            f"run {desk.run_id!r}: the budget is used up; what was trained is kept: raise the "
            "budget, then start it again with the same run id"
        )
    decision = may_go_on(desk.endings, desk.terms.limits)
    said = f"{message}; " if message else ""
    if decision.go_on:
        return Preempted(f"{cause}: {said}going on from the last checkpoint on another machine")
    kinds: dict[Cause, type[TSGBError]] = {
        Cause.CONFIG: ConfigError,
        Cause.FUNDS: BudgetReached,
        Cause.LEASE_LOST: LeaseLost,
    }
    return kinds.get(cause, WorkerFailed)(f"{cause}: {said}{decision.reason}")


BUDGET = "the budget is used up"
_SOON = timedelta(minutes=30)
MOVE = f"its contract ends within {_SOON.seconds // 60} minutes"


def moves_soon(ends_at: datetime | None, now: datetime) -> bool:
    """Return whether a contract's limit is so near that the run moves before it."""
    return ends_at is not None and ends_at - now < _SOON


def _last_words(desk: Desk, held: Held) -> None:
    """Its last heartbeat tells what it has sent."""
    held.beat = desk.papers.beat(held.attempt) or held.beat


def _listen(desk: Desk, held: Held) -> None:
    held.farewell = desk.papers.farewell(held.attempt)
