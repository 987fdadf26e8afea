"""The launch of a machine: look for an offer, set money aside, write the intent, ask once.

The order is what makes every death of the flow harmless: money and intent are in the store before
the one request that can cost something, and under a label by which its outcome is found.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from tsgb.cloud.documents import AttemptResult, Intent
from tsgb.cloud.offers import Appraisal, choose, rates_of
from tsgb.cloud.preemption import ON_DEMAND, History, Workload, machine_class
from tsgb.cloud.pricing import Usage, microdollars
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
"""Seconds before the first lists after a lost answer; a minute from then on."""
_LEAST_LISTS = 3


def find_offer(session: Session, work: Workload) -> Appraisal:
    """Return the offer to rent now; wait for one for as long as the policy allows.

    Raises:
        NoOffer: There was none in all that time; its message says how near the nearest is.
        BudgetReached: No money is left.
        ProviderNoCredit: The account has none.
    """
    check_money(session)
    ends, told = session.clock() + session.monitor_policy.offer_seconds, ""
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
                session.launch_policy.needs(avoid(endings, session.now()), _disk_gb(session)),
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
        if why != told:
            session.note(f"{why}; looking again until there is one, every {pause:.0f} s")
            told = why
        session.sleep(pause)


def _disk_gb(session: Session) -> float:
    """Return the storage to rent, larger after a full disk, since a disk cannot grow."""
    return (
        session.launch_policy.disk_gb
        * may_go_on(session.endings, session.launch_policy.limits).disk_factor
    )


def hazard_of(history: History) -> Callable[[Offer], float]:
    """Return a function that gives the preemptions per hour of an offer's class."""

    def mean(offer: Offer) -> float:
        if not offer.is_bid:
            return ON_DEMAND.mean
        name = machine_class(offer.gpu_name, offer.num_gpus, is_bid=True)
        return history.hazard(name).mean

    return mean


def check_money(session: Session) -> int:
    """Return the account's credit in micro-dollars, if there is any, and budget too.

    Raises:
        BudgetReached: The run has none left.
        ProviderNoCredit: The account has none.
    """
    if session.ledger.left == 0:
        raise error_of(session, TerminationReason.STOPPED, "", BUDGET)
    credit = session.provider.credit()
    if credit <= 0:
        raise ProviderNoCredit(
            f"the account has ${credit:.2f} of credit: add some, then start run {session.run_id!r} "
            "again; what was trained is kept"
        )
    drift = session.ledger.check_credit(session.now(), microdollars(credit))
    if drift.alarming:
        session.note(f"alarm: {drift}")
    return microdollars(credit)


def intend(session: Session, chosen: Appraisal, attempt: int) -> Intent:
    """Set money aside, write down what is going to be rented, and take the lease.

    Raises:
        BudgetReached: The money does not reach for a start.
        LeaseLost: Another flow works on this run.
    """
    session.check_lease()
    offer, now = chosen.offer, session.now()
    intent = Intent(
        label=session.label(attempt),
        ask_id=offer.id,
        machine_id=offer.machine_id,
        host_id=offer.host_id,
        gpu_name=offer.gpu_name,
        num_gpus=offer.num_gpus,
        price=chosen.price,
        hourly=chosen.hourly,
        disk_gb=_disk_gb(session),
        image_bytes=round(session.launch_policy.image_gb * 1e9),
        intended_at=now,
    )
    session.ledger.reserve(
        attempt,
        rates_of(offer, chosen.price, intent.disk_gb),
        now,
        window=session.monitor_policy.window,
        least=timedelta(minutes=session.launch_policy.least_minutes),
        traffic=Usage(bytes_down=intent.image_bytes),
        credit=check_money(session),
        intent={
            "machine": session.provider.name,
            "started_at": now.isoformat(),
            "intent": intent.model_dump(mode="json"),
        },
    )
    session.grant(attempt)
    return intent


def rent(session: Session, attempt: int, intent: Intent, spec: LaunchSpec) -> RunningInstance:
    """Ask for the machine, once; find it by its label if the answer is lost.

    Raises:
        Preempted: Nothing came of it; another offer may do.
        TSGBError: Nothing came of it, and nothing will.
    """
    try:
        instance_id = session.provider.create(intent.ask_id, spec)
    except ProviderAmbiguous as error:
        session.note(str(error))
        found = _find(session, intent.label)
        if found is None:
            raise _nothing(session, attempt, intent, TerminationReason.REFUSED, error) from error
        instance_id = found
    except ProviderError as error:
        if error.instance_id is not None:
            destroy(session, error.instance_id)
        raise _nothing(session, attempt, intent, _cause(error), error) from error
    running = RunningInstance(
        attempt=attempt, instance_id=instance_id, intent=intent, since=session.clock()
    )
    write_down(session, running)
    return running


def write_down(session: Session, running: RunningInstance) -> None:
    """Write down which instance the attempt has; if that fails, its label tells it."""

    def write() -> None:
        session.documents.note(running.attempt, instance_id=running.instance_id)
        session.assign(running.attempt, running.instance_id)

    session.quietly(write, "its id is not written down, its label tells it")


def _find(session: Session, label: str) -> int | None:
    """Return the instance of that label; None once several whole lists over the lag lack it."""
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
                f"whether {label} was rented cannot be known: no whole list in {waited:.0f} s; "
                "start the run again later, it looks for it first"
            )


def _nothing(
    session: Session, attempt: int, intent: Intent, cause: TerminationReason, error: ProviderError
) -> TSGBError:
    """Close the account of what never was a machine; return the error that the flow raises."""
    session.ledger.reconcile(attempt, 0)
    outcome = AttemptResult(cause=cause, message=str(error), at=session.now())
    conclude(session, attempt, outcome, machine_id=intent.machine_id, host_id=intent.host_id)
    if cause is TerminationReason.CONFIG:
        return error
    return error_of(session, cause, str(error))


def _cause(error: ProviderError) -> TerminationReason:
    if isinstance(error, ProviderAuthError):
        return TerminationReason.CONFIG
    return (
        TerminationReason.FUNDS
        if isinstance(error, ProviderNoCredit)
        else TerminationReason.REFUSED
    )
