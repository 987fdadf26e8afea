"""Forecast of a run on rented machines: quantiles of hours and dollars, before any is rented.

Each simulated run draws its own hazard from the posterior, so that uncertainty about the market
widens the quantiles. Offers, remaining work and history are arguments; no store is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tsgb.checkpoint.interval import save_interval
from tsgb.cloud.history import MachineHistory, RemainingWork
from tsgb.cloud.launch import hazard_of
from tsgb.cloud.offers import Choice, Needs, OfferCount, choose
from tsgb.cloud.policy import LaunchPolicy
from tsgb.cloud.preemption import PRIOR, Hazard, History, Workload, machine_class
from tsgb.cloud.pricing import MICRO
from tsgb.cloud.provider import Offer, Provider
from tsgb.cloud.retry_policy import NOTHING_AVOIDED, avoid

STALL_SECONDS = 0.1
"""Seconds that training stands still at each save, measured for states of up to 0.7 GB."""
UPLOAD_SECONDS = 10.0
"""Seconds from a save until it is durable, assumed."""
CONTAINER_SECONDS = 60.0
"""Seconds from the rental until training goes on, without downloads and unpacking, assumed: the
service makes a container, Python imports torch, and a model is put on a card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartDownloads:
    """What a machine downloads before training goes on, beside the checkpoint.

    Example: `StartDownloads.of(policy).gigabytes`
    """

    image_gb: float = 0.0
    """Compressed size of the image, GB."""
    packages_gb: float = 0.0
    """Size of Python packages, GB."""
    weights_gb: float = 0.0
    """Size of the models' files, GB."""
    measured_seconds: float | None = None
    """Seconds from a rental to its first heartbeat as measured, image and packages included; None
    without history. Models and checkpoint come after it."""

    @classmethod
    def of(cls, policy: LaunchPolicy, measured: Sequence[float] = ()) -> Self:
        """Return the downloads of a start.

        Args:
            policy: Machines that are rented.
            measured: Seconds from each earlier rental to its first heartbeat.
        """
        return cls(
            image_gb=policy.image_gb,
            packages_gb=policy.packages_gb,
            weights_gb=policy.weights_gb,
            measured_seconds=median(measured) if measured else None,
        )

    @property
    def gigabytes(self) -> float:
        """All of it, which each start is billed for, GB."""
        return self.image_gb + self.packages_gb + self.weights_gb


def workload(
    hours: float,
    *,
    disk_gb: float,
    start: StartDownloads | None = None,
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
        start: What a start downloads, and how long it took so far.
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

    start = start or StartDownloads()
    packed = start.image_gb + start.packages_gb if start.measured_seconds is None else 0.0
    return Workload(
        work_hours=hours,
        interval=interval,
        boot_seconds=start.measured_seconds or CONTAINER_SECONDS,
        timed_gb=packed + start.weights_gb + restore_gb,
        unpacked_gb=packed,
        stall_seconds=stall_seconds,
        upload_seconds=upload_seconds,
        disk_gb=disk_gb,
        restore_gb=start.gigabytes + restore_gb,
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
    """Hours, dollars and machines that the runs of all seeds will take together.

    Example: `str(forecast)` is "9.1 h (8.6 to 10.4), $2.01 ($1.90 to $2.30), 3 machines (2 to 6)"
    """

    hours: Quantiles
    """Hours until the last run is done."""
    dollars: Quantiles
    """Dollars that all cost."""
    machines: Quantiles
    """Machines that all rent."""
    all_dollars: _Array
    """[num] dollars of all runs in each simulation, infinite where one never ends."""

    def within(self, budget: float) -> float:
        """Return the share of simulations that cost at most `budget` dollars."""
        return float(np.mean(self.all_dollars <= budget))

    def __str__(self) -> str:
        hours, dollars, num = self.hours, self.dollars, self.machines
        return (
            f"{hours.p50:.1f} h ({hours.p10:.1f} to {hours.p90:.1f}), "
            f"${dollars.p50:.2f} (${dollars.p10:.2f} to ${dollars.p90:.2f}), "
            f"{num.p50:.0f} machines ({num.p10:.0f} to {num.p90:.0f})"
        )


def forecast(
    work: Workload,
    terms: ForecastTerms,
    rng: np.random.Generator,
    num: int = 2_000,
    *,
    seeds: int = 1,
    arms: Sequence[float] = (1.0,),
    machines_at_once: int = 1,
) -> Forecast:
    """Simulate the runs of all seeds `num` times from now to their end.

    The runs of one simulation have one hazard: they rent in the same market.

    Args:
        work: The remaining work of each run. The worker is assumed to know the hazard and to save
            accordingly.
        terms: Price and hazard of every machine.
        rng: Generator that nothing else draws from.
        num: Number of simulations; with 2000 the quantiles are accurate to a few percent.
        seeds: Number of seeds with this work.
        arms: Parts of each seed's work that have machines to themselves, as shares of its hours; a
            part takes its turn for all seeds before the next one begins.
        machines_at_once: Most machines that are rented at once, one for each part of each seed.
    """
    parts = np.repeat(np.asarray(arms, dtype=np.float64), seeds)
    runs = parts.size
    drawn = terms.hazard.draw(rng, num)
    whole = work.work_hours / terms.speed
    intervals = np.array([work.interval_hours(float(hazard), whole) for hazard in drawn])
    left = np.tile(whole * parts, num)
    hazards, intervals = np.repeat(drawn, runs), np.minimum(np.repeat(intervals, runs), left)
    cycles = intervals + work.stall_seconds / 3600
    boot, upload = work.boot_seconds / 3600, work.upload_seconds / 3600
    hours, billed, saves, machines = (np.zeros(num * runs) for _ in range(4))
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
    ends = _last_end(hours.reshape(num, runs), machines_at_once)
    dollars, machines = (each.reshape(num, runs).sum(axis=1) for each in (dollars, machines))
    return Forecast(Quantiles.of(ends), Quantiles.of(dollars), Quantiles.of(machines), dollars)


def _last_end(hours: _Array, at_once: int) -> _Array:
    """Return [num] hours until all of [num, runs] are done; each begins as soon as it may."""
    num, runs = hours.shape
    free = np.zeros((num, min(at_once, runs)))
    for run in range(runs):
        first = free.argmin(axis=1, keepdims=True)
        begun = np.take_along_axis(free, first, axis=1)
        np.put_along_axis(free, first, begun + hours[:, run : run + 1], axis=1)
    return free.max(axis=1)


SEED = 0
"""Seed of the simulation, so that equal arguments give equal forecasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The machine that a run would rent now, and what the runs of all seeds are expected to take.

    Example: `make_plan(offers, terms, left, machines, now).forecast`
    """

    left: RemainingWork
    """The remaining work of each run."""
    seeds: int
    """Number of runs with that work."""
    arms_apart: int
    """Number of arms of each run that have machines to themselves; 1 where a machine trains all."""
    machines_at_once: int
    """Most machines that are rented at once."""
    count: OfferCount
    """How many offers fit, and which rule removes how many."""
    choice: Choice
    """The offers that fit, and why the others do not."""
    hazard: Hazard
    """Preemptions per hour in the best offer's class; the prior if no offer fits."""
    hazard_source: str
    """Origin of the hazard, for people."""
    start: StartDownloads
    """What a start downloads, beside the checkpoint."""
    boot_seconds: float
    """Seconds from a rental of the best offer until training goes on; without its downloads if no
    offer fits."""
    boot_source: str
    """Origin of the boot time, for people."""
    speed: float
    """Useful work per hour on the best offer, relative to `REFERENCE`; 1 if it does not matter."""
    speed_source: str
    """Origin of the speed, for people; empty if it does not matter."""
    interval_seconds: float
    """Seconds between two checkpoints."""
    interval_source: str
    """Origin of the interval, for people."""
    forecast: Forecast | None
    """The forecast; None if no offer fits."""
    budget: float
    """Dollars that are left for all of them."""

    @property
    def preemption_gb(self) -> float:
        """Size of what the start after a preemption downloads, GB."""
        return self.start.gigabytes + self.left.restore_gb

    @property
    def preemption_dollars(self) -> float:
        """Price of that traffic at the best offer; 0 if no offer fits."""
        best = self.choice.best
        return 0.0 if best is None else self.preemption_gb * best.offer.inet_down_cost

    @property
    def within(self) -> float:
        """Probability that all runs end within the budget."""
        return 0.0 if self.forecast is None else self.forecast.within(self.budget)


@dataclass(frozen=True, slots=True)
class FoundOffers:
    """Offers of now: those to choose from, and all of one GPU, which show what each rule removes.

    Example: `FoundOffers.search(provider, policy)`
    """

    fitting: tuple[Offer, ...]
    """Offers by the search of a flow."""
    wide: tuple[Offer, ...]
    """Offers by a search without its rules."""
    limit: int
    """Most offers of one search."""

    @classmethod
    def search(cls, provider: Provider, policy: LaunchPolicy, *, narrow: bool = True) -> Self:
        """Search without rules; and with them, if there may be more than the service tells.

        Args:
            provider: The account.
            policy: Machines that may be rented.
            narrow: Whether the second search may be made; a service allows few a minute.

        Raises:
            ProviderError: The service does not answer, or grants no more searches.
        """
        spec = policy.wide_search()
        wide = tuple(provider.search(spec))
        is_cut = narrow and len(wide) >= spec.limit
        return cls(tuple(provider.search(policy.search())) if is_cut else wide, wide, spec.limit)


def count_offers(found: FoundOffers, terms: LaunchPolicy) -> OfferCount:
    """Return how many of the offers fit a run that has not begun.

    Args:
        found: The offers.
        terms: Machines that may be rented.
    """
    work = workload(1.0, disk_gb=terms.disk_gb, start=StartDownloads.of(terms))
    needs = terms.needs(NOTHING_AVOIDED, terms.disk_gb, found.wide)
    return _count_offers(found, needs, work, History())


def _count_offers(found: FoundOffers, needs: Needs, work: Workload, history: History) -> OfferCount:
    return OfferCount.of(choose(found.wide, needs, work, hazard_of(history)), found.limit)


def make_plan(
    offers: FoundOffers,
    terms: LaunchPolicy,
    left: RemainingWork,
    machines: MachineHistory,
    now: datetime,
    *,
    seeds: int = 1,
    machines_at_once: int = 1,
    apart: bool = False,
) -> Plan:
    """Choose an offer as a flow would now, and simulate the run on machines of its class.

    Args:
        offers: Offers of now.
        terms: Machines that may be rented, and the budget.
        left: The remaining work of each run, with the sizes of one machine's arms.
        machines: History of this deployment's machines.
        now: Time of day.
        seeds: Number of runs with that work.
        machines_at_once: Most machines that are rented at once, one for each run or arm.
        apart: Whether each arm has machines to itself.
    """
    arms = left.arms if apart else (1.0,)
    needs = terms.needs(
        avoid(left.endings, now),
        terms.disk_gb,
        (*offers.fitting, *offers.wide),
        machines.updates,
    )
    start = StartDownloads.of(terms, machines.boot_seconds)
    boot_source = "assumed"
    if machines.boot_seconds:
        boot_source = f"of {_count(len(machines.boot_seconds), 'start')}"
    work = workload(
        left.hours * _speed_so_far(left, needs),
        disk_gb=terms.disk_gb,
        start=start,
        step_seconds=left.step_seconds,
        save_updates=left.save_updates,
        restore_gb=left.restore_gb,
        save_gb=left.save_gb,
    )
    history = History.of(machines.holds)
    choice = choose(offers.fitting, needs, work, hazard_of(history))
    count = _count_offers(offers, needs, work, history)
    speed, speed_source = 1.0, ""
    best, hazard, source, expected = choice.best, PRIOR, _PRIOR_SOURCE, None
    if best is not None:
        name = machine_class(best.offer.gpu_name, best.offer.num_gpus, is_bid=best.offer.is_bid)
        hazard, source = history.hazard(name), _source(history, name, machines)
        work = work.on(best.offer.inet_down)
        if needs.speeds:
            speed = needs.speed(best.offer.gpu_name)
            speed_source = _speed_source(best.offer.gpu_name, machines)
        expected = forecast(
            work,
            ForecastTerms(
                hourly=best.hourly,
                hazard=hazard,
                speed=speed,
                up_cost=best.offer.inet_up_cost,
                down_cost=best.offer.inet_down_cost,
            ),
            np.random.default_rng(SEED),
            seeds=seeds,
            arms=arms,
            machines_at_once=machines_at_once,
        )
    return Plan(
        left=left,
        seeds=seeds,
        arms_apart=len(arms),
        machines_at_once=min(seeds * len(arms), machines_at_once),
        count=count,
        choice=choice,
        hazard=hazard,
        hazard_source=source,
        start=start,
        speed=speed,
        speed_source=speed_source,
        boot_seconds=work.boot_seconds,
        boot_source=boot_source,
        interval_seconds=3600 * work.interval_hours(hazard.mean, work.work_hours / speed),
        interval_source=_interval_source(left),
        forecast=expected,
        budget=max(0, terms.budget - left.spent) / MICRO,
    )


_PRIOR_SOURCE = f"prior alone: {PRIOR.events:g} preemption in {PRIOR.hours:g} h"


def _interval_source(left: RemainingWork) -> str:
    if left.save_updates is None:
        return "Young"
    return f"{_count(left.save_updates, 'update')}, fixed by the run's configuration"


def _speed_so_far(left: RemainingWork, needs: Needs) -> float:
    """Return the mean speed of the machines that the hours were measured on; 1 if unknown."""
    known = [one for one in left.measured_on if needs.speeds.get(one.gpu_name)]
    total = sum(one.num for one in known)
    return sum(one.num * needs.speed(one.gpu_name) for one in known) / total if total else 1.0


def _speed_source(name: str, machines: MachineHistory) -> str:
    num = sum(one.num for one in machines.updates if one.gpu_name == name)
    return f"by the service's score and {_count(num, 'update')}" if num else "by its score alone"


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
