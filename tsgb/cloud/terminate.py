"""Terminates machines: destroys them, verifies that they are gone, and closes their accounts.

An accepted request to destroy proves nothing. An instance is gone only if the service does not find
it by its id, and if a complete list that was read afterwards lacks it. Until then its account stays
open, and nothing new is rented for the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tsgb.cloud.documents import AttemptResult, saved_updates
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
"""Seconds between rounds of `destroy_all`, because a list may show a destroyed instance longer."""
BUDGET = "the budget is used up"
_SOON = timedelta(minutes=30)
MOVE = f"its contract or its deadline ends within {_SOON.seconds // 60} minutes"
_SHORTEST_PAUSE = 3.0
_LONGEST_PAUSE = 60.0


# -- any instances of an account --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Remaining:
    """Reason why an instance is not known to be gone.

    Example: `Remaining("instance 7 is there still", is_gone_by_id=True)`
    """

    why: str
    """One line for people."""
    is_gone_by_id: bool = False
    """Whether the service no longer finds it by its id, so that it costs nothing now, although a
    list still shows it or could not be read."""


def destroy_all(
    provider: Provider,
    ids: Iterable[int],
    sleep: Callable[[float], None],
    pauses_seconds: Sequence[float] = PAUSES_SECONDS,
) -> dict[int, str]:
    """Destroy instances; return the reasons, by id, why some are not known to be gone.

    Args:
        provider: The account; it repeats transient errors by itself, for a minute.
        ids: Instances of this deployment.
        sleep: Waits for so many seconds.
        pauses_seconds: Seconds before each further round.
    """
    left = dict.fromkeys(ids, "")
    for pause in (*pauses_seconds, None):
        try:
            left = {number: one.why for number, one in destroy_once(provider, left).items()}
        except ProviderAuthError as error:
            return dict.fromkeys(left, str(error))  # a further round would have the same answer
        if not left or pause is None:
            break
        sleep(pause)
    return left


def destroy_once(provider: Provider, ids: Iterable[int]) -> dict[int, Remaining]:
    """Send one request to destroy each, then verify; return those that are not known to be gone.

    Raises:
        ProviderAuthError: The key is refused, so the state of all is unknown.
    """
    return _remaining(provider, {number: _request(provider, number) for number in ids})


def _request(provider: Provider, number: int) -> str:
    """Request the end of one instance; return its error, because the others are destroyed too."""
    try:
        provider.destroy(number)
    except ProviderAuthError:
        raise
    except ProviderError as error:
        return str(error)
    return ""


def _remaining(provider: Provider, errors: Mapping[int, str]) -> dict[int, Remaining]:
    if not errors:
        return {}
    listed, unread = _listed(provider)
    left: dict[int, Remaining] = {}
    for number, reason in errors.items():
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
    """Return the ids of a complete list, and the reason if it could not be read."""
    try:
        return {instance.id for instance in provider.list()}, ""
    except ProviderAuthError:
        raise
    except ProviderError as error:
        return set(), str(error)


# -- the instance of a run --------------------------------------------------------------------


def destroy(session: Session, instance_id: int) -> datetime:
    """Destroy an instance and verify that it is gone; return the latest time of its end.

    Raises:
        ProviderUnreachable: It may still exist after the time for which a flow tries.
        ProviderAuthError: The key is refused, so its state is unknown.
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


def release(
    session: Session, running: RunningInstance, reason: str, saved: Callable[[], int]
) -> None:
    """Let the machine save, if it is at work, and destroy it, however its flow ended.

    A further call does nothing once the machine is gone.

    Args:
        session: Session of the run.
        running: The machine.
        reason: Reason to stop one that is still at work.
        saved: Returns the updates that the run itself holds, after the machine is gone. What the
            machine says of them proves nothing, and would pay for the next one that saves nothing.
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
    finish(session, running, saved)


def stop(session: Session, running: RunningInstance, reason: str) -> None:
    """Ask the machine to save and end, through its lease; a further call does nothing."""
    if running.stop is None:
        running.stop, running.stop_at = reason, session.clock()
        session.note(f"asking instance {running.instance_id} to save and stop: {reason}")
        session.revoke(running.attempt, reason)


def finish(session: Session, running: RunningInstance, saved: Callable[[], int]) -> Ending:
    """Destroy the machine, close its account and record its end; see `release`."""
    assert running.cause is not None
    assert not running.finished
    if running.cause is not TerminationReason.DONE and running.stop is None:
        # If it starts again by itself while it is being destroyed, it finds its lease revoked.
        session.revoke(running.attempt, f"attempt {running.attempt} is over: {running.cause}")
    try:
        gone_at = destroy(session, running.instance_id)
    except ProviderAuthError:
        # The machine can still destroy itself with its own key.
        stop(session, running, "the account's key is refused")
        raise
    instance = running.instance
    session.quietly(lambda: _read_heartbeat(session, running), "no news of the machine")
    session.ledger.commit(
        running.attempt,
        gone_at,
        more=running.new_traffic(),
        gpu_billed=running.billed or instance is None or instance.gpu_billed,
        start_is_told=running.start_is_told,
    )
    running.finished = True
    step = _step(session, saved)
    if _saved_nothing(session, running, step):
        running.cause, running.message = TerminationReason.BAD_HOST, "it saved nothing for hours"
    return conclude(
        session,
        running.attempt,
        AttemptResult(
            cause=running.cause,
            message=running.message,
            at=gone_at,
            step=step,
            boot_seconds=running.boot_seconds,
            hold_seconds=running.hold_seconds(session.clock()),
            is_claim=not running.is_certain,
            is_idle=running.is_idle,
            updates=saved_updates(running.heartbeat),
        ),
        machine_id=running.intent.machine_id,
        host_id=running.intent.host_id,
    )


def conclude(
    session: Session, attempt: int, result: AttemptResult, *, machine_id: int, host_id: int
) -> Ending:
    """Record the end of an attempt."""
    session.documents.note(attempt, outcome=result.model_dump(mode="json"))
    document = session.documents.attempt(attempt)
    ending = Ending(
        cause=result.cause,
        at=result.at,
        step=result.step,
        machine_id=machine_id,
        host_id=host_id,
        is_claim=result.is_claim,
        basis="" if document is None else document.basis,
        is_idle=result.is_idle,
    )
    session.endings.append(ending)
    message = f": {result.message}" if result.message else ""
    session.note(f"attempt {attempt} ended as {result.cause}{message}")
    return ending


def _step(session: Session, saved: Callable[[], int]) -> int:
    """Return the updates that the run holds; those of the attempt before if it cannot say."""
    try:
        return saved()
    except TSGBError as error:
        session.note(f"whether anything new was saved is not known: {error}")
        return session.endings[-1].step if session.endings else 0


def _saved_nothing(session: Session, running: RunningInstance, step: int) -> bool:
    """Return whether a machine had to move, after hours in which nothing of its work came here.

    By its own words it worked and saved all the time, or it would have been given up before.
    """
    if running.cause is not TerminationReason.STOPPED or running.stop != MOVE:
        return False
    document = session.documents.attempt(running.attempt)
    began = 0 if document is None else document.first_step
    longest = session.monitor_policy.deadlines.step
    return running.hold_seconds(session.clock()) > longest and step <= began


def belied(session: Session, running: RunningInstance, message: str) -> TSGBError:
    """Record that a machine which said it was done was not; return the error to raise."""
    running.cause = TerminationReason.BAD_HOST
    before = session.endings.pop()  # as the machine had told it
    result = AttemptResult(
        cause=TerminationReason.BAD_HOST,
        message=f"it said that it was done, but {message}"[:300],
        at=session.now(),
        step=before.step,
        boot_seconds=running.boot_seconds,
        hold_seconds=running.hold_seconds(session.clock()),
    )
    intent = running.intent
    conclude(session, running.attempt, result, machine_id=intent.machine_id, host_id=intent.host_id)
    return error_of(session, TerminationReason.BAD_HOST, result.message)


def error_of(
    session: Session, cause: TerminationReason, message: str, stop_reason: str | None = None
) -> TSGBError:
    """Return the error that the flow raises after an attempt that did not end the run.

    Args:
        session: Session of the run; its endings decide whether the run goes on.
        cause: Termination reason of the last attempt.
        message: Reason that the machine gave, one line.
        stop_reason: Reason for which the machine was asked to stop; None if it was not.
    """
    if cause is TerminationReason.STOPPED and stop_reason == BUDGET:
        return BudgetReached(
            f"run {session.run_id!r}: the budget is used up; what was trained is kept: raise the "
            "budget, then start it again with the same run id"
        )
    decision = may_go_on(session.endings, session.launch_policy.limits)
    detail = f"{message}; " if message else ""
    if decision.go_on:
        return Preempted(f"{cause}: {detail}going on from the last checkpoint on another machine")
    kinds: dict[TerminationReason, type[TSGBError]] = {
        TerminationReason.CONFIG: ConfigError,
        TerminationReason.FUNDS: BudgetReached,
        TerminationReason.LEASE_LOST: LeaseLost,
    }
    return kinds.get(cause, WorkerFailed)(f"{cause}: {detail}{decision.reason}")


def moves_soon(ends_at: datetime | None, now: datetime) -> bool:
    """Return whether a contract ends so soon that the run moves to another machine before."""
    return ends_at is not None and ends_at - now < _SOON


def _read_heartbeat(session: Session, running: RunningInstance) -> None:
    """Read the last heartbeat, which has the traffic of the machine."""
    running.heartbeat = session.documents.heartbeat(running.attempt) or running.heartbeat


def _read_exit_record(session: Session, running: RunningInstance) -> None:
    running.exit_record = session.documents.exit_record(running.attempt)
