"""What a run would take on rented machines, before any money is spent.

It asks nobody and reads no store: offers, what is left to do and what is known of machines are
arguments.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from statistics import median

import numpy as np

from tsgb.cloud.forecast import Forecast, forecast
from tsgb.cloud.forecast import Terms as MachineTerms
from tsgb.cloud.history import Left, Track
from tsgb.cloud.launch import hazard_of
from tsgb.cloud.offers import Choice, choose
from tsgb.cloud.policy import LaunchPolicy
from tsgb.cloud.preemption import PRIOR, Hazard, History, machine_class
from tsgb.cloud.pricing import MICRO
from tsgb.cloud.provider import Offer
from tsgb.cloud.retry_policy import avoid
from tsgb.cloud.work import BOOT_SECONDS, workload

SEED = 0
"""The same question has the same answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to expect.

    Example: `make_plan(offers, terms, left, track, now).forecast`
    """

    left: Left
    seen: int
    """Offers, of which `choice` knows which fit."""
    choice: Choice
    hazard: Hazard
    """Of the best offer's class; the prior without one."""
    hazard_source: str
    boot_seconds: float
    boot_source: str
    interval_seconds: float
    """Between two checkpoints."""
    interval_source: str
    forecast: Forecast | None
    """None where no offer fits."""
    budget: float
    """Dollars that are left for the run."""

    @property
    def within(self) -> float:
        """How likely the run ends within the budget."""
        return 0.0 if self.forecast is None else self.forecast.within(self.budget)


def make_plan(
    offers: Iterable[Offer], terms: LaunchPolicy, left: Left, track: Track, now: datetime
) -> Plan:
    """Choose as a flow would choose now, and simulate the run on that kind of machine.

    Args:
        offers: Of one search.
        terms: On what one rents.
        left: What is left to do.
        track: What is known of machines.
        now: Time of day.
    """
    seen = list(offers)
    boot, boot_source = BOOT_SECONDS, "assumed"
    if track.boot_seconds:
        boot, boot_source = (
            median(track.boot_seconds),
            f"of {_count(len(track.boot_seconds), 'start')}",
        )
    work = workload(
        left.hours,
        disk_gb=terms.disk_gb,
        boot_seconds=boot,
        step_seconds=left.step_seconds,
        save_updates=left.save_updates,
        restore_gb=left.restore_gb,
        save_gb=left.save_gb,
    )
    history = History.of(track.holds)
    choice = choose(
        seen, terms.needs(avoid(left.endings, now), terms.disk_gb), work, hazard_of(history)
    )
    best, hazard, source, told = choice.best, PRIOR, _PRIOR_SOURCE, None
    if best is not None:
        name = machine_class(best.offer.gpu_name, best.offer.num_gpus, is_bid=best.offer.is_bid)
        hazard, source = history.hazard(name), _source(history, name, track)
        told = forecast(
            work,
            MachineTerms(
                hourly=best.hourly,
                hazard=hazard,
                up_cost=best.offer.inet_up_cost,
                down_cost=best.offer.inet_down_cost,
            ),
            np.random.default_rng(SEED),
        )
    return Plan(
        left=left,
        seen=len(seen),
        choice=choice,
        hazard=hazard,
        hazard_source=source,
        boot_seconds=boot,
        boot_source=boot_source,
        interval_seconds=3600 * work.interval_hours(hazard.mean, left.hours),
        interval_source=_interval_source(left),
        forecast=told,
        budget=max(0, terms.budget - left.spent) / MICRO,
    )


_PRIOR_SOURCE = f"prior alone: {PRIOR.events:g} preemption in {PRIOR.hours:g} h"


def _interval_source(left: Left) -> str:
    if left.save_updates is None:
        return "Young"
    return f"{_count(left.save_updates, 'update')}, fixed by the run's configuration"


def _source(history: History, name: str, track: Track) -> str:
    if not track.holds:
        return f"{_PRIOR_SOURCE}; no run of this store has held a machine"
    events, hours = history.seen.get(name, (0, 0.0))
    every = sum(hold.preempted for hold in track.holds)
    total = sum(hold.hours for hold in track.holds)
    return (
        f"{_count(events, 'preemption')} in {_two_digits(hours)} h of {name}; {every} in "
        f"{_two_digits(total)} h of all {_count(len(track.holds), 'machine')} of "
        f"{_count(track.runs, 'run')}"
    )


def _count(num: int, word: str) -> str:
    return f"{num} {word}" if num == 1 else f"{num} {word}s"


def _two_digits(hours: float) -> str:
    return f"{float(f'{hours:.2g}'):g}"
