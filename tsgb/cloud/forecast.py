"""Forecast of a run on rented machines: quantiles of hours and dollars, before any is rented.

Each simulated run draws its own hazard from the posterior, so that uncertainty about the market
widens the quantiles. Offers, remaining work and history are arguments; no store is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from statistics import median

import numpy as np
from numpy.typing import NDArray

from tsgb.checkpoint.interval import save_interval
from tsgb.cloud.history import MachineHistory, RemainingWork
from tsgb.cloud.launch import hazard_of
from tsgb.cloud.offers import Choice, choose
from tsgb.cloud.policy import LaunchPolicy
from tsgb.cloud.preemption import PRIOR, Hazard, History, Workload, machine_class
from tsgb.cloud.pricing import MICRO
from tsgb.cloud.provider import Offer
from tsgb.cloud.retry_policy import avoid

STALL_SECONDS = 0.1
"""Seconds that training stands still at each save, measured for states of up to 0.7 GB."""
UPLOAD_SECONDS = 10.0
"""Seconds from a save until it is durable, assumed."""
BOOT_SECONDS = 300.0
"""Seconds from the rental until training goes on, assumed without history."""


def workload(
    hours: float,
    *,
    disk_gb: float,
    boot_seconds: float = BOOT_SECONDS,
    stall_seconds: float = STALL_SECONDS,
    upload_seconds: float = UPLOAD_SECONDS,
    step_seconds: float = 1.0,
    save_updates: int | None = None,
    restore_gb: float = 0.0,
    save_gb: float = 0.0,
) -> Workload:
    """Return the workload of a run whose worker saves as `tsgb/worker/checkpointing.py` does.

    Args:
        hours: Useful hours of training that are left.
        disk_gb: Storage to rent, GB.
        boot_seconds: Seconds from the rental until training goes on.
        stall_seconds: Seconds that training stands still at each save.
        upload_seconds: Seconds from a save until it is durable.
        step_seconds: Seconds of one update, within which nothing can be saved.
        save_updates: Updates between two saves if the configuration fixes them; None for Young's
            rule.
        restore_gb: Size of the checkpoints that each start loads, GB.
        save_gb: Size of the checkpoints that each save sends, GB.
    """

    def interval(mtbf: float) -> float:
        if save_updates is not None:
            return save_updates * step_seconds
        return save_interval(stall_seconds, upload_seconds, step_seconds, mtbf)

    return Workload(
        work_hours=hours,
        interval=interval,
        boot_seconds=boot_seconds,
        stall_seconds=stall_seconds,
        upload_seconds=upload_seconds,
        disk_gb=disk_gb,
        restore_gb=restore_gb,
        save_gb=save_gb,
    )


_MOST_HOLDS = 5_000
"""Machines after which a simulated run counts as endless."""
_Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastTerms:
    """Price and hazard of the machines that a simulated run rents.

    Example: `ForecastTerms(hourly=0.22, hazard=history.hazard("RTX 4090 x1 bid"))`
    """

    hourly: float
    """Price with storage, $/h."""
    hazard: Hazard
    """Posterior of preemptions per hour."""
    speed: float = 1.0
    """Useful work per hour, relative to the workload's."""
    wait_seconds: float = 60.0
    """Mean seconds from a lost machine to the next rental; they cost nothing."""
    up_cost: float = 0.0
    """Price of sent data, $/GB."""
    down_cost: float = 0.0
    """Price of received data, $/GB."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles of one quantity over all simulated runs.

    Example: `Quantiles(p10=8.6, p50=9.1, p90=10.4)`
    """

    p10: float
    """Value that a tenth of the runs stay below."""
    p50: float
    """Median."""
    p90: float
    """Value that nine tenths of the runs stay below."""

    @classmethod
    def of(cls, values: _Array) -> Quantiles:
        """Return quantiles that are sample values, because infinite ones cannot be averaged."""
        p10, p50, p90 = np.quantile(values, [0.1, 0.5, 0.9], method="higher")
        return cls(float(p10), float(p50), float(p90))


@dataclass(frozen=True, slots=True)
class Forecast:
    """Hours, dollars and machines that a run will take.

    Example: `str(forecast)` is "9.1 h (8.6 to 10.4), $2.01 ($1.90 to $2.30), 3 machines (2 to 6)"
    """

    hours: Quantiles
    """Hours until the run is done."""
    dollars: Quantiles
    """Dollars that it costs."""
    machines: Quantiles
    """Machines that it rents."""
    all_dollars: _Array
    """[num] dollars of each simulated run, infinite for one that never ends."""

    def within(self, budget: float) -> float:
        """Return the share of simulated runs that cost at most `budget` dollars."""
        return float(np.mean(self.all_dollars <= budget))

    def __str__(self) -> str:
        hours, dollars, num = self.hours, self.dollars, self.machines
        return (
            f"{hours.p50:.1f} h ({hours.p10:.1f} to {hours.p90:.1f}), "
            f"${dollars.p50:.2f} (${dollars.p10:.2f} to ${dollars.p90:.2f}), "
            f"{num.p50:.0f} machines ({num.p10:.0f} to {num.p90:.0f})"
        )


def forecast(
    work: Workload, terms: ForecastTerms, rng: np.random.Generator, num: int = 2_000
) -> Forecast:
    """Simulate `num` runs from now to their end.

    Args:
        work: The remaining work. The worker is assumed to know the hazard and to save accordingly.
        terms: Price and hazard of every machine.
        rng: Generator that nothing else draws from.
        num: Number of runs; with 2000 the quantiles are accurate to a few percent.
    """
    hazards = terms.hazard.draw(rng, num)
    left = np.full(num, work.work_hours / terms.speed)
    whole = float(left[0])
    intervals = np.array([work.interval_hours(float(hazard), whole) for hazard in hazards])
    cycles = intervals + work.stall_seconds / 3600
    boot, upload = work.boot_seconds / 3600, work.upload_seconds / 3600
    hours, billed, saves, machines = np.zeros(num), np.zeros(num), np.zeros(num), np.zeros(num)
    for _ in range(_MOST_HOLDS):
        at = np.flatnonzero(left > 0)
        if not at.size:
            break
        life = rng.exponential(1 / hazards[at])
        wait = rng.exponential(terms.wait_seconds / 3600, at.size)
        # The last save may come before a whole interval is over.
        needs = boot + left[at] / intervals[at] * cycles[at] + upload
        kept = np.maximum(0, np.floor((life - boot - upload) / cycles[at]))
        done = life >= needs
        time = np.where(done, needs, life)
        saved = np.where(done, np.ceil(left[at] / intervals[at]), kept)
        hours[at] += time + wait
        billed[at] += time
        saves[at] += saved
        machines[at] += 1
        left[at] = np.where(done, 0.0, np.maximum(left[at] - kept * intervals[at], 1e-9))
    dollars = billed * terms.hourly + saves * work.save_gb * terms.up_cost
    dollars += machines * work.restore_gb * terms.down_cost
    endless = left > 0
    hours[endless] = dollars[endless] = machines[endless] = math.inf
    return Forecast(Quantiles.of(hours), Quantiles.of(dollars), Quantiles.of(machines), dollars)


SEED = 0
"""Seed of the simulation, so that equal arguments give equal forecasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The machine that a run would rent now, and what the run is expected to take.

    Example: `make_plan(offers, terms, left, machines, now).forecast`
    """

    left: RemainingWork
    """The remaining work."""
    seen: int
    """Number of offers that were compared."""
    choice: Choice
    """The offers that fit, and why the others do not."""
    hazard: Hazard
    """Preemptions per hour in the best offer's class; the prior if no offer fits."""
    hazard_source: str
    """Origin of the hazard, for people."""
    boot_seconds: float
    """Seconds from a rental until training goes on."""
    boot_source: str
    """Origin of the boot time, for people."""
    interval_seconds: float
    """Seconds between two checkpoints."""
    interval_source: str
    """Origin of the interval, for people."""
    forecast: Forecast | None
    """The forecast; None if no offer fits."""
    budget: float
    """Dollars that are left for the run."""

    @property
    def within(self) -> float:
        """Probability that the run ends within the budget."""
        return 0.0 if self.forecast is None else self.forecast.within(self.budget)


def make_plan(
    offers: Iterable[Offer],
    terms: LaunchPolicy,
    left: RemainingWork,
    machines: MachineHistory,
    now: datetime,
) -> Plan:
    """Choose an offer as a flow would now, and simulate the run on machines of its class.

    Args:
        offers: Offers of one search.
        terms: Machines that may be rented, and the budget.
        left: The remaining work.
        machines: History of this deployment's machines.
        now: Time of day.
    """
    seen = list(offers)
    boot, boot_source = BOOT_SECONDS, "assumed"
    if machines.boot_seconds:
        boot, boot_source = (
            median(machines.boot_seconds),
            f"of {_count(len(machines.boot_seconds), 'start')}",
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
    history = History.of(machines.holds)
    choice = choose(
        seen, terms.needs(avoid(left.endings, now), terms.disk_gb), work, hazard_of(history)
    )
    best, hazard, source, expected = choice.best, PRIOR, _PRIOR_SOURCE, None
    if best is not None:
        name = machine_class(best.offer.gpu_name, best.offer.num_gpus, is_bid=best.offer.is_bid)
        hazard, source = history.hazard(name), _source(history, name, machines)
        expected = forecast(
            work,
            ForecastTerms(
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
        forecast=expected,
        budget=max(0, terms.budget - left.spent) / MICRO,
    )


_PRIOR_SOURCE = f"prior alone: {PRIOR.events:g} preemption in {PRIOR.hours:g} h"


def _interval_source(left: RemainingWork) -> str:
    if left.save_updates is None:
        return "Young"
    return f"{_count(left.save_updates, 'update')}, fixed by the run's configuration"


def _source(history: History, name: str, machines: MachineHistory) -> str:
    if not machines.holds:
        return f"{_PRIOR_SOURCE}; no run of this store has rented a machine"
    events, hours = history.seen.get(name, (0, 0.0))
    every = sum(hold.preempted for hold in machines.holds)
    total = sum(hold.hours for hold in machines.holds)
    return (
        f"{_count(events, 'preemption')} in {_two_digits(hours)} h of {name}; {every} in "
        f"{_two_digits(total)} h of all {_count(len(machines.holds), 'machine')} of "
        f"{_count(machines.runs, 'run')}"
    )


def _count(num: int, word: str) -> str:
    return f"{num} {word}" if num == 1 else f"{num} {word}s"


def _two_digits(hours: float) -> str:
    return f"{float(f'{hours:.2g}'):g}"
