"""Renting a machine: look for an offer, set money aside, write the intent, ask once.

The order is what makes every death of the flow harmless: money and intent are in the store before
the one request that can cost something, and under a label by which its outcome is found.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from tsgb.cloud.documents import Intent, Outcome
from tsgb.cloud.holds import Workload
from tsgb.cloud.offers import Appraisal, choose, rates_of
from tsgb.cloud.preemption import ON_DEMAND, History, machine_class
from tsgb.cloud.pricing import Usage, microdollars
from tsgb.cloud.provider import LaunchSpec, Offer
from tsgb.cloud.retry_policy import avoid, may_go_on
from tsgb.cloud.running import Held
from tsgb.cloud.session import Desk
from tsgb.cloud.terminate import BUDGET, conclude, destroy, error_of
from tsgb.cloud.termination import Cause
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
"""Pauses before the first lists after a lost answer; a minute from then on."""
_LEAST_LISTS = 3


def find_offer(desk: Desk, work: Workload) -> Appraisal:
    """The offer to rent now; waits for one for as long as the terms allow.

    Raises:
        NoOffer: There was none in all that time; its message says how near the nearest is.
        BudgetReached: No money is left.
        ProviderNoCredit: The account has none.
    """
    check_money(desk)
    ends, told = desk.clock() + desk.patience.offer_seconds, ""
    while True:
        why = "the service could not be asked"
        pause = desk.patience.search_seconds
        try:
            offers = desk.provider.search(desk.terms.search())
        except ProviderSearchQuota as error:
            why, pause = str(error), error.wait_seconds
        except ProviderUnreachable as error:
            why = str(error)
        else:
            endings = desk.papers.endings()
            choice = choose(
                offers,
                desk.terms.needs(avoid(endings, desk.now()), _disk_gb(desk)),
                work,
                hazard_of(History.of(desk.papers.holds())),
            )
            if choice.best is not None:
                desk.note(str(choice))
                return choice.best
            why = str(choice)
        if desk.clock() + pause > ends:
            raise NoOffer(
                f"run {desk.run_id!r}: {why}; what was trained is kept: change the terms, or start "
                "it again later"
            )
        if why != told:
            desk.note(f"{why}; looking again until there is one, every {pause:.0f} s")
            told = why
        desk.sleep(pause)


def _disk_gb(desk: Desk) -> float:
    """Larger after a full one: a disk cannot grow."""
    return desk.terms.disk_gb * may_go_on(desk.endings, desk.terms.limits).disk_factor


def hazard_of(history: History) -> Callable[[Offer], float]:
    """Preemptions per hour of an offer's class."""

    def mean(offer: Offer) -> float:
        if not offer.is_bid:
            return ON_DEMAND.mean
        name = machine_class(offer.gpu_name, offer.num_gpus, is_bid=True)
        return history.hazard(name).mean

    return mean


def check_money(desk: Desk) -> int:
    """The account's credit, micro-dollars, if there is any, and budget too.

    Raises:
        BudgetReached: The run has none left.
        ProviderNoCredit: The account has none.
    """
    if desk.ledger.left == 0:
        raise error_of(desk, Cause.STOPPED, "", BUDGET)
    credit = desk.provider.credit()
    if credit <= 0:
        raise ProviderNoCredit(
            f"the account has ${credit:.2f} of credit: add some, then start run {desk.run_id!r} "
            "again; what was trained is kept"
        )
    drift = desk.ledger.check_credit(desk.now(), microdollars(credit))
    if drift.alarming:
        desk.note(f"alarm: {drift}")
    return microdollars(credit)


def intend(desk: Desk, chosen: Appraisal, attempt: int) -> Intent:
    """Set money aside, write down what is going to be rented, and take the lease.

    Raises:
        BudgetReached: The money does not reach for a start.
        LeaseLost: Another flow works on this run.
    """
    desk.check_lease()
    offer, now = chosen.offer, desk.now()
    intent = Intent(
        label=desk.label(attempt),
        ask_id=offer.id,
        machine_id=offer.machine_id,
        host_id=offer.host_id,
        gpu_name=offer.gpu_name,
        num_gpus=offer.num_gpus,
        price=chosen.price,
        hourly=chosen.hourly,
        disk_gb=_disk_gb(desk),
        image_bytes=round(desk.terms.image_gb * 1e9),
        intended_at=now,
    )
    desk.ledger.reserve(
        attempt,
        rates_of(offer, chosen.price, intent.disk_gb),
        now,
        window=desk.patience.window,
        least=timedelta(minutes=desk.terms.least_minutes),
        traffic=Usage(bytes_down=intent.image_bytes),
        credit=check_money(desk),
        intent={
            "machine": desk.provider.name,
            "started_at": now.isoformat(),
            "intent": intent.model_dump(mode="json"),
        },
    )
    desk.grant(attempt)
    return intent


def rent(desk: Desk, attempt: int, intent: Intent, spec: LaunchSpec) -> Held:
    """Ask for the machine, once; find it by its label if the answer is lost.

    Raises:
        Preempted: Nothing came of it; another offer may do.
        TSGBError: Nothing came of it, and nothing will.
    """
    try:
        instance_id = desk.provider.create(intent.ask_id, spec)
    except ProviderAmbiguous as error:
        desk.note(str(error))
        found = _find(desk, intent.label)
        if found is None:
            raise _nothing(desk, attempt, intent, Cause.REFUSED, error) from error
        instance_id = found
    except ProviderError as error:
        if error.instance_id is not None:
            destroy(desk, error.instance_id)
        raise _nothing(desk, attempt, intent, _cause(error), error) from error
    held = Held(attempt=attempt, instance_id=instance_id, intent=intent, since=desk.clock())
    write_down(desk, held)
    return held


def write_down(desk: Desk, held: Held) -> None:
    """Which instance the attempt has; if that fails, its label tells it."""

    def write() -> None:
        desk.papers.note(held.attempt, instance_id=held.instance_id)
        desk.assign(held.attempt, held.instance_id)

    desk.quietly(write, "its id is not written down, its label tells it")


def _find(desk: Desk, label: str) -> int | None:
    """The instance of that label; None once several whole lists over long enough lack it."""
    started, lists = desk.clock(), 0
    pauses = iter(_LOOKS)
    while True:
        desk.sleep(min(next(pauses, 60.0), max(1.0, desk.patience.lag_seconds)))
        try:
            found = sorted(number for number, row in desk.own().items() if row.label == label)
        except ProviderAuthError:
            raise
        except ProviderError as error:
            desk.note(str(error))
        else:
            lists += 1
            if found:
                for twin in found[1:]:
                    destroy(desk, twin)
                return found[0]
        waited = desk.clock() - started
        if lists >= _LEAST_LISTS and waited >= desk.patience.lag_seconds:
            return None
        if waited > 20 * desk.patience.lag_seconds:
            raise ProviderUnreachable(
                f"whether {label} was rented cannot be known: no whole list in {waited:.0f} s; "
                "start the run again later, it looks for it first"
            )


def _nothing(
    desk: Desk, attempt: int, intent: Intent, cause: Cause, error: ProviderError
) -> TSGBError:
    """Close the account of what never was a machine; the error that the flow raises."""
    desk.ledger.reconcile(attempt, 0)
    outcome = Outcome(cause=cause, message=str(error), at=desk.now())
    conclude(desk, attempt, outcome, machine_id=intent.machine_id, host_id=intent.host_id)
    if cause is Cause.CONFIG:
        return error
    return error_of(desk, cause, str(error))


def _cause(error: ProviderError) -> Cause:
    if isinstance(error, ProviderAuthError):
        return Cause.CONFIG
    return Cause.FUNDS if isinstance(error, ProviderNoCredit) else Cause.REFUSED
