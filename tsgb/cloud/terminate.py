"""The end of a machine: destroyed, seen to be gone, paid for, written down.

An accepted request to destroy proves nothing. An instance is gone only if the service does not know
it by its id, and a list that was read afterwards, in full, lacks it. Until then its account stays
open, and nothing new is rented for the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tsgb.cloud.documents import AttemptResult
from tsgb.cloud.provider import Provider
from tsgb.cloud.retry_policy import Ending, may_go_on
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.session import Session
from tsgb.cloud.termination import TerminationReason
from tsgb.errors import (
    BudgetReached,
    ConfigError,
    LeaseLost,
    Preempted,
    ProviderAuthError,
    ProviderError,
    ProviderUnreachable,
    TSGBError,
    WorkerFailed,
)

PAUSES_SECONDS = (5.0, 15.0, 45.0)
"""Seconds between two rounds of `destroy_all`; a destroyed instance may be listed for a while."""
BUDGET = "the budget is used up"
_SOON = timedelta(minutes=30)
MOVE = f"its contract ends within {_SOON.seconds // 60} minutes"
_SHORTEST_PAUSE = 3.0
_LONGEST_PAUSE = 60.0


# -- any instances of an account --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Remaining:
    """The reason for which an instance is not known to be gone.

    Example: `Remaining("instance 7 is there still", is_gone_by_id=True)`
    """

    why: str
    """One line for people."""
    is_gone_by_id: bool = False
    """Whether the service does not know its id any more, so that it costs nothing now, although a
    list shows it still or none could be read."""


def destroy_all(
    provider: Provider,
    ids: Iterable[int],
    sleep: Callable[[float], None],
    pauses_seconds: Sequence[float] = PAUSES_SECONDS,
) -> dict[int, str]:
    """Destroy instances; return why those that are left are there still, by id.

    Args:
        provider: The account; it repeats by itself what may heal within a minute.
        ids: Instances of this deployment.
        sleep: Waits for so many seconds.
        pauses_seconds: Seconds before each further round.
    """
    left = dict.fromkeys(ids, "")
    for pause in (*pauses_seconds, None):
        try:
            left = {number: one.why for number, one in destroy_once(provider, left).items()}
        except ProviderAuthError as error:
            return dict.fromkeys(left, str(error))  # no other round would be answered otherwise
        if not left or pause is None:
            break
        sleep(pause)
    return left


def destroy_once(provider: Provider, ids: Iterable[int]) -> dict[int, Remaining]:
    """Ask once for the end of each, then look; return those that are not known to be gone.

    Raises:
        ProviderAuthError: The key is refused, so nothing can be known of any.
    """
    return _remaining(provider, {number: _asked(provider, number) for number in ids})


def _asked(provider: Provider, number: int) -> str:
    """Return the error of the request; one error does not keep the others from their end."""
    try:
        provider.destroy(number)
    except ProviderAuthError:
        raise
    except ProviderError as error:
        return str(error)
    return ""


def _remaining(provider: Provider, asked: Mapping[int, str]) -> dict[int, Remaining]:
    if not asked:
        return {}
    listed, unread = _listed(provider)
    left: dict[int, Remaining] = {}
    for number, reason in asked.items():
        try:
            is_known = provider.show(number) is not None
        except ProviderAuthError:
            raise
        except ProviderError as error:
            left[number] = Remaining(reason or unread or str(error))
        else:
            if is_known or unread or number in listed:
                why = reason or unread or f"instance {number} is there still"
                left[number] = Remaining(why, is_gone_by_id=not is_known)
    return left


def _listed(provider: Provider) -> tuple[set[int], str]:
    """Return the ids of a whole list, and why it could not be read."""
    try:
        return {instance.id for instance in provider.list()}, ""
    except ProviderAuthError:
        raise
    except ProviderError as error:
        return set(), str(error)


# -- the instance of a run --------------------------------------------------------------------


def destroy(session: Session, instance_id: int) -> datetime:
    """Destroy an instance and see that it is gone; return the time at which it was at the latest.

    Raises:
        ProviderUnreachable: It may still be there after all the time that a flow insists.
        ProviderAuthError: The key is refused, so nothing can be known of it.
    """
    ends = session.clock() + session.monitor_policy.destroy_seconds
    pause, gone_at = _SHORTEST_PAUSE, None
    while True:
        left = destroy_once(session.provider, [instance_id]).get(instance_id)
        if left is None or left.is_gone_by_id:
            gone_at = gone_at or session.now()
        if left is None:
            return gone_at or session.now()
        if session.clock() + pause > ends:
            raise ProviderUnreachable(
                f"instance {instance_id} of run {session.run_id!r} may still cost money: "
                f"{left.why}; the reaper or `tsgb machines destroy` destroys it, its own lease "
                "ends too"
            )
        session.sleep(pause)
        pause = min(_LONGEST_PAUSE, 2 * pause)


def release(session: Session, running: RunningInstance, reason: str) -> None:
    """Let the machine save, if it is at work, and destroy it, however the flow left it.

    A further call does nothing once it is gone.
    """
    if running.finished:
        return
    if running.cause is None:
        stop(session, running, reason)
        session.quietly(lambda: _read_heartbeat(session, running), "no news of the machine")
        ends = running.stop_at + session.monitor_policy.release_seconds
        while running.exit_record is None and running.heartbeat and session.clock() < ends:
            session.sleep(min(1.0, session.monitor_policy.look_seconds))
            session.quietly(lambda: _read_exit_record(session, running), "no news of the machine")
        running.cause, running.message = TerminationReason.STOPPED, reason
    finish(session, running)


def stop(session: Session, running: RunningInstance, reason: str) -> None:
    """Ask the machine to save and go, through its lease; a further call does nothing."""
    if running.stop is None:
        running.stop, running.stop_at = reason, session.clock()
        session.note(f"asking instance {running.instance_id} to save and stop: {reason}")
        session.revoke(running.attempt, reason)


def finish(session: Session, running: RunningInstance) -> Ending:
    """Destroy the machine, close its account, write its end down."""
    assert running.cause is not None
    assert not running.finished
    if running.cause is not TerminationReason.DONE and running.stop is None:
        # Should it start again by itself while it is being destroyed, it finds that it may not.
        session.revoke(running.attempt, f"attempt {running.attempt} is over: {running.cause}")
    try:
        gone_at = destroy(session, running.instance_id)
    except ProviderAuthError:
        # Its own key still works on the machine itself.
        stop(session, running, "the account's key is refused")
        raise
    instance = running.instance
    session.quietly(lambda: _read_heartbeat(session, running), "no news of the machine")
    session.ledger.commit(
        running.attempt,
        gone_at,
        more=running.new_traffic(),
        gpu_billed=running.billed or instance is None or instance.gpu_billed,
    )
    running.traffic_is_counted()
    running.finished = True
    return conclude(
        session,
        running.attempt,
        AttemptResult(
            cause=running.cause,
            message=running.message,
            at=gone_at,
            step=running.step,
            boot_seconds=running.boot_seconds,
            hold_seconds=running.hold_seconds(session.clock()),
        ),
        machine_id=running.intent.machine_id,
        host_id=running.intent.host_id,
    )


def conclude(
    session: Session, attempt: int, result: AttemptResult, *, machine_id: int, host_id: int
) -> Ending:
    """Write an attempt's end down."""
    session.documents.note(attempt, outcome=result.model_dump(mode="json"))
    ending = Ending(
        cause=result.cause,
        at=result.at,
        step=result.step,
        machine_id=machine_id,
        host_id=host_id,
    )
    session.endings.append(ending)
    said = f": {result.message}" if result.message else ""
    session.note(f"attempt {attempt} ended as {result.cause}{said}")
    return ending


def error_of(
    session: Session, cause: TerminationReason, message: str, stop_reason: str | None = None
) -> TSGBError:
    """Return the error that the flow raises after an attempt that did not end the run.

    Args:
        session: Its endings decide whether the run goes on.
        cause: Reason for which the last attempt ended.
        message: One line for people, in the machine's own words.
        stop_reason: Why the machine was asked to stop, if it was.
    """
    if cause is TerminationReason.STOPPED and stop_reason == BUDGET:
        return BudgetReached(
            f"run {session.run_id!r}: the budget is used up; what was trained is kept: raise the "
            "budget, then start it again with the same run id"
        )
    decision = may_go_on(session.endings, session.launch_policy.limits)
    said = f"{message}; " if message else ""
    if decision.go_on:
        return Preempted(f"{cause}: {said}going on from the last checkpoint on another machine")
    kinds: dict[TerminationReason, type[TSGBError]] = {
        TerminationReason.CONFIG: ConfigError,
        TerminationReason.FUNDS: BudgetReached,
        TerminationReason.LEASE_LOST: LeaseLost,
    }
    return kinds.get(cause, WorkerFailed)(f"{cause}: {said}{decision.reason}")


def moves_soon(ends_at: datetime | None, now: datetime) -> bool:
    """Return whether a contract's limit is so near that the run moves before it."""
    return ends_at is not None and ends_at - now < _SOON


def _read_heartbeat(session: Session, running: RunningInstance) -> None:
    """Read the last heartbeat, which tells what the machine has sent."""
    running.heartbeat = session.documents.heartbeat(running.attempt) or running.heartbeat


def _read_exit_record(session: Session, running: RunningInstance) -> None:
    running.exit_record = session.documents.exit_record(running.attempt)
