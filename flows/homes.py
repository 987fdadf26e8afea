"""Homes of rented machines: the runs of a store that keep their leases, ledgers and attempts.

A machine that trains all arms has its home in the main run. An arm that has machines to itself is
at home in its own run, where its checkpoints are in any case: so each home has one paid machine at
a time, and whoever reads checkpoints sees no difference. Between two starts arms may move: what
machines of the other division still do is ended first, and what they saved is taken over.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from flows.rented import ArmsWork, budget_of, rental_session
from flows.seeds import shared_budget, sharing
from flows.workers import Workers
from tsgb.cloud.budget import NAME as LEDGER
from tsgb.cloud.documents import AttemptDocument, RunDocuments
from tsgb.cloud.recover import release_all
from tsgb.config import Arm, RunConfig

_REASON = "its arms are divided among machines in another way now"


def homes_of(workers: Workers, arms: Iterable[Arm], *, apart: bool) -> Sequence[str]:
    """Return the ids of the homes of a run's machines, the main run first.

    Args:
        workers: Workers of the run.
        arms: Its arms.
        apart: Whether each arm has machines to itself; else only those count, beside the main run,
            that have rented any before.
    """
    homes = [replace(workers, alone=arm) for arm in arms if arm is not Arm.SELFPLAY]
    return [workers.run, *(one.home for one in homes if apart or has_rented(one))]


def has_rented(home: Workers) -> bool:
    """Return whether machines were ever rented for a home."""
    return LEDGER in home.open_home().list_if_present("")


@contextmanager
def one_budget(workers: Workers, arms: Iterable[Arm]) -> Generator[None]:
    """Let a run spend what its arms' own homes have left of the budget, where they spent any.

    Args:
        workers: Workers of the run.
        arms: Its arms.
    """
    homes: Sequence[str] = ()
    if shared_budget() is None:
        homes = homes_of(workers, arms, apart=False)
    if len(homes) < 2:
        yield
        return
    with sharing(budget_of(workers.settings, workers.store, homes)):
        yield


def settle(workers: Workers, configs: Mapping[Arm, RunConfig], *, apart: bool) -> None:
    """End machines that were rented for another division of the arms, and keep what they saved.

    Args:
        workers: Workers of the run.
        configs: Configurations of all of its arms.
        apart: Whether each arm gets machines to itself; else one machine trains all of them.

    Raises:
        UsageError: Another process of this computer rents for one of the homes.
        LeaseLost: Another flow's machine works for one of them.
        ProviderUnreachable: What is there could not be read, or something would not go.
    """
    for arm in configs:
        home = replace(workers, alone=arm)
        is_main = arm is Arm.SELFPLAY
        wanted = {arm} if apart else set(configs) if is_main else set[Arm]()
        # A machine at home in the main run may have trained any of them.
        _settle(home, configs if is_main else {arm: configs[arm]}, wanted, apart=apart)


def _settle(
    home: Workers, configs: Mapping[Arm, RunConfig], wanted: Collection[Arm], *, apart: bool
) -> None:
    if not has_rented(home):
        return
    documents = RunDocuments(home.open_home())
    lease = documents.lease()
    is_held = lease is not None and not lease.ended
    if not is_held and not any(map(_is_open, documents.attempts())):
        return
    with rental_session(home) as session:
        session.check_lease()
        others = [
            found
            for found in session.documents.attempts()
            if _is_open(found) and not fits(found.arms or configs, wanted, apart=apart)
        ]
        if others:
            release_all(session, _REASON)
            work = ArmsWork(home, configs, session.documents)
            work.collect(None)
            work.clear()


def _is_open(found: AttemptDocument) -> bool:
    """Return whether its machine may be at work, or have saved what nobody has taken over."""
    return found.intent is not None and bool(found.intent.exchange) and not found.is_collected


def fits(trained: Iterable[str], wanted: Collection[str], *, apart: bool) -> bool:
    """Return whether a machine that trains some arms may go on where some are wanted of it.

    >>> fits(["selfplay", "sft"], ["selfplay"], apart=False)
    True
    >>> fits(["selfplay", "sft"], ["selfplay"], apart=True)
    False

    Args:
        trained: Names of the arms that it trains.
        wanted: Names of the arms that its home is to train now; none where it has no work any more.
        apart: Whether the others have machines to themselves, so that it must not train them.
    """
    found, asked = set(trained), set(wanted)
    return found == asked or (not apart and bool(asked) and asked <= found)
