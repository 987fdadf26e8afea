"""Launches a machine: finds an offer, reserves money, records the intent, sends one request.

The order makes the death of a flow harmless at any point: the money and the intent are in the store
before the only request that can cost something, and its label finds the instance afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from tsgb.cloud.documents import AttemptResult, Intent
from tsgb.cloud.exchange import new_folder
from tsgb.cloud.history import measured_updates
from tsgb.cloud.offers import Appraisal, choose, rates_of
from tsgb.cloud.preemption import ON_DEMAND, History, Workload, machine_class
from tsgb.cloud.pricing import Bandwidth, Usage, microdollars
from tsgb.cloud.provider import LaunchSpec, Offer
from tsgb.cloud.retry_policy import avoid, may_go_on
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.session import Session
from tsgb.cloud.terminate import BUDGET, conclude, destroy, error_of
from tsgb.cloud.termination import TerminationReason
from tsgb.errors import (
    NoOffer,
    ProviderAmbiguous,
    ProviderAuthError,
    ProviderError,
    ProviderNoCredit,
    ProviderSearchQuota,
    ProviderUnreachable,
    TSGBError,
)

_LOOKS = (5.0, 5.0, 10.0, 20.0, 20.0)
"""Seconds before each of the first lists after a lost answer; then a minute before each."""
_LEAST_LISTS = 3
_LONGEST_LIFE = timedelta(hours=72)
_SPARE_LIFE = timedelta(hours=2)
"""Time beyond the budget, in which the flow ends the machine in its own way."""


def find_offer(session: Session, work: Workload) -> Appraisal:
    """Return the offer to rent now; wait for one as long as the policy allows.

    Raises:
        NoOffer: No offer fitted in that time; the message says how the nearest one failed.
        BudgetReached: No budget is left.
        ProviderNoCredit: The account has no credit.
    """
    check_money(session)
    ends, reported = session.clock() + session.monitor_policy.offer_seconds, ""
    while True:
        why = "the service could not be asked"
        pause = session.monitor_policy.search_seconds
        try:
            offers = session.provider.search(session.launch_policy.search())
        except ProviderSearchQuota as error:
            why, pause = str(error), error.wait_seconds
        except ProviderUnreachable as error:
            why = str(error)
        else:
            endings = session.documents.endings()
            choice = choose(
                offers,
                session.launch_policy.needs(
                    avoid(endings, session.now()),
                    _disk_gb(session),
                    offers,
                    measured_updates(session.documents),
                ),
                work,
                hazard_of(History.of(session.documents.holds())),
            )
            if choice.best is not None:
                session.note(str(choice))
                return choice.best
            why = str(choice)
        if session.clock() + pause > ends:
            raise NoOffer(
                f"run {session.run_id!r}: {why}; what was trained is kept: change the terms, or "
                "start it again later"
            )
        if why != reported:
            session.note(f"{why}; looking again until there is one, every {pause:.0f} s")
            reported = why
        session.sleep(pause)


def _disk_gb(session: Session) -> float:
    """Return the storage to rent, GB; larger after a full disk, because a disk cannot grow."""
    return (
        session.launch_policy.disk_gb
        * may_go_on(session.endings, session.launch_policy.limits).disk_factor
    )


def hazard_of(history: History) -> Callable[[Offer], float]:
    """Return a function that returns the preemptions per hour of an offer's class."""

    def mean(offer: Offer) -> float:
        if not offer.is_bid:
            return ON_DEMAND.mean
        name = machine_class(offer.gpu_name, offer.num_gpus, is_bid=True)
        return history.hazard(name).mean

    return mean


def check_money(session: Session) -> int:
    """Return the account's credit in micro-dollars, once budget and credit are known to be left.

    Raises:
        BudgetReached: No budget is left.
        ProviderNoCredit: The account has no credit.
    """
    if session.ledger.left == 0:
        raise error_of(session, TerminationReason.STOPPED, "", BUDGET)
    credit = session.provider.credit()
    if credit <= 0:
        raise ProviderNoCredit(
            f"the account has ${credit:.2f} of credit: add some, then start run {session.run_id!r} "
            "again; what was trained is kept"
        )
    session.check_credit(credit)
    return microdollars(credit)


def intend(
    session: Session,
    chosen: Appraisal,
    attempt: int,
    *,
    card_gb: float = 0.0,
    start_gb: float = 0.0,
) -> Intent:
    """Reserve money, record the intended rental and take the lease.

    Args:
        session: Session of the run.
        chosen: The offer.
        attempt: Number of the attempt.
        card_gb: Memory that the machine's card must have, GB; 0 for work that needs no card.
        start_gb: Size of what its start downloads, GB, the image among it.

    Raises:
        BudgetReached: The money does not last for a start.
        LeaseLost: Another flow works on this run.
    """
    session.check_lease()
    offer, now = chosen.offer, session.now()
    ends_at = now + _longest_life(session, chosen)
    intent = Intent(
        label=session.label(attempt, ends_at),
        ask_id=offer.id,
        machine_id=offer.machine_id,
        host_id=offer.host_id,
        gpu_name=offer.gpu_name,
        num_gpus=offer.num_gpus,
        price=chosen.price,
        hourly=chosen.hourly,
        disk_gb=_disk_gb(session),
        image_bytes=round(session.launch_policy.image_gb * 1e9),
        card_gb=card_gb,
        intended_at=now,
        ends_at=ends_at,
        exchange=new_folder(attempt),
    )
    session.ledger.reserve(
        attempt,
        rates_of(offer, chosen.price, intent.disk_gb),
        now,
        window=session.monitor_policy.window,
        least=timedelta(minutes=session.launch_policy.least_minutes),
        traffic=Usage(bytes_down=intent.image_bytes),
        start_bytes=round(start_gb * 1e9),
        bandwidth=Bandwidth.of(up_mbps=offer.inet_up, down_mbps=offer.inet_down),
        credit=check_money(session),
        intent={
            "machine": session.provider.name,
            "started_at": now.isoformat(),
            "intent": intent.model_dump(mode="json"),
        },
    )
    session.grant(attempt)
    return intent


def _longest_life(session: Session, chosen: Appraisal) -> timedelta:
    """Return the time after which an instance is destroyed whatever any document says.

    The budget is used up before that, and a flow moves on to another machine in time.
    """
    hours = session.ledger.left / 1e6 / chosen.hourly
    return _SPARE_LIFE + min(_LONGEST_LIFE, timedelta(hours=min(hours, 1e6)))


def rent(session: Session, attempt: int, intent: Intent, spec: LaunchSpec) -> RunningInstance:
    """Send the request once; find the instance by its label if the answer is lost.

    Raises:
        Preempted: Nothing was rented; another offer may succeed.
        ProviderUnreachable: Nothing was asked for, or the service takes no requests now. That says
            nothing of the machine, and counts neither against it nor as a refusal.
        TSGBError: Nothing was rented, and another offer would fail alike.
    """
    try:
        instance_id = session.provider.create(intent.ask_id, spec)
    except ProviderAmbiguous as error:
        session.note(str(error))
        found = _find(session, intent.label)
        if found is None:
            raise _nothing_rented(
                session, attempt, intent, TerminationReason.REFUSED, error
            ) from error
        instance_id = found
    except ProviderUnreachable as error:
        session.ledger.reconcile(attempt, 0)
        result = AttemptResult(
            cause=TerminationReason.STOPPED, message=str(error), at=session.now()
        )
        session.documents.note(attempt, outcome=result.model_dump(mode="json"))
        session.sleep(session.monitor_policy.search_seconds)
        raise
    except ProviderError as error:
        if error.instance_id is not None:
            destroy(session, error.instance_id)
        raise _nothing_rented(session, attempt, intent, _reason_of(error), error) from error
    running = RunningInstance(
        attempt=attempt, instance_id=instance_id, intent=intent, since=session.clock()
    )
    write_down(session, running)
    return running


def write_down(session: Session, running: RunningInstance) -> None:
    """Record the instance of an attempt; if that fails, its label still identifies it."""

    def write() -> None:
        session.documents.note(running.attempt, instance_id=running.instance_id)
        session.assign(running.attempt, running.instance_id)

    session.quietly(write, "the id of the instance was not recorded, its label identifies it")


def _find(session: Session, label: str) -> int | None:
    """Return the instance with that label; None once several complete lists lack it."""
    started, lists = session.clock(), 0
    pauses = iter(_LOOKS)
    while True:
        session.sleep(min(next(pauses, 60.0), max(1.0, session.monitor_policy.lag_seconds)))
        try:
            found = sorted(number for number, row in session.own().items() if row.label == label)
        except ProviderAuthError:
            raise
        except ProviderError as error:
            session.note(str(error))
        else:
            lists += 1
            if found:
                for twin in found[1:]:
                    destroy(session, twin)
                return found[0]
        waited = session.clock() - started
        if lists >= _LEAST_LISTS and waited >= session.monitor_policy.lag_seconds:
            return None
        if waited > 20 * session.monitor_policy.lag_seconds:
            raise ProviderUnreachable(
                f"whether {label} was rented cannot be known: no complete list in {waited:.0f} s; "
                "start the run again later, it looks for it first"
            )


def _nothing_rented(
    session: Session, attempt: int, intent: Intent, cause: TerminationReason, error: ProviderError
) -> TSGBError:
    """Close the account of a rental that failed; return the error that the flow raises."""
    session.ledger.reconcile(attempt, 0)
    result = AttemptResult(cause=cause, message=str(error), at=session.now())
    conclude(session, attempt, result, machine_id=intent.machine_id, host_id=intent.host_id)
    if cause is TerminationReason.CONFIG:
        return error
    return error_of(session, cause, str(error))


def _reason_of(error: ProviderError) -> TerminationReason:
    if isinstance(error, ProviderAuthError):
        return TerminationReason.CONFIG
    return (
        TerminationReason.FUNDS
        if isinstance(error, ProviderNoCredit)
        else TerminationReason.REFUSED
    )
