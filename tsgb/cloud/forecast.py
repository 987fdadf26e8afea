"""What a run will take: quantiles of hours and dollars, by simulating it many times.

Each simulated run draws its own hazard from the posterior, so that what is not known about the
market widens the answer. The generator is an argument; nothing else is random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tsgb.cloud.preemption import Hazard, Workload

_MOST_HOLDS = 5_000
"""A run that needs more machines than this never ends."""
_Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what one rents.

    Example: `Terms(hourly=0.22, hazard=history.hazard("RTX 4090 x1 bid"))`
    """

    hourly: float
    """$/h, storage included."""
    hazard: Hazard
    speed: float = 1.0
    """Useful work per hour, relative to the workload's."""
    wait_seconds: float = 60.0
    """Mean time from a lost machine to the next rental, refusals included; costs nothing."""
    up_cost: float = 0.0
    """$/GB."""
    down_cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of one quantity over all simulated runs."""

    p10: float
    p50: float
    p90: float

    @classmethod
    def of(cls, values: _Array) -> Quantiles:
        """Each is a value that was seen, so that infinite ones do not mix with others."""
        p10, p50, p90 = np.quantile(values, [0.1, 0.5, 0.9], method="higher")
        return cls(float(p10), float(p50), float(p90))


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will take.

    Example: `str(forecast)` is "9.1 h (8.6 to 10.4), $2.01 ($1.90 to $2.30), 3 machines (2 to 6)"
    """

    hours: Quantiles
    dollars: Quantiles
    machines: Quantiles
    all_dollars: _Array
    """[num] of each simulated run, infinite for one that never ends."""

    def within(self, budget: float) -> float:
        """The share of runs that cost no more dollars than this."""
        return float(np.mean(self.all_dollars <= budget))

    def __str__(self) -> str:
        hours, dollars, num = self.hours, self.dollars, self.machines
        return (
            f"{hours.p50:.1f} h ({hours.p10:.1f} to {hours.p90:.1f}), "
            f"${dollars.p50:.2f} (${dollars.p10:.2f} to ${dollars.p90:.2f}), "
            f"{num.p50:.0f} machines ({num.p10:.0f} to {num.p90:.0f})"
        )


def forecast(work: Workload, terms: Terms, rng: np.random.Generator, num: int = 2_000) -> Forecast:
    """Simulate `num` runs from now to their end.

    Args:
        work: What is left to do. The worker is taken to know the hazard and to save by its rule.
        terms: Of every machine that it will run on.
        rng: Of these runs alone.
        num: Quantiles are good to a few percent at 2000.
    """
    hazards = terms.hazard.draw(rng, num)
    left = np.full(num, work.work_hours / terms.speed)
    whole = float(left[0])
    intervals = np.array([work.interval_hours(float(hazard), whole) for hazard in hazards])
    cycles = intervals + work.stall_seconds / 3600
    boot, upload = work.boot_seconds / 3600, work.upload_seconds / 3600
    hours, held, saves, machines = np.zeros(num), np.zeros(num), np.zeros(num), np.zeros(num)
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
        held[at] += time
        saves[at] += saved
        machines[at] += 1
        left[at] = np.where(done, 0.0, np.maximum(left[at] - kept * intervals[at], 1e-9))
    dollars = held * terms.hourly + saves * work.save_gb * terms.up_cost
    dollars += machines * work.restore_gb * terms.down_cost
    endless = left > 0
    hours[endless] = dollars[endless] = machines[endless] = math.inf
    return Forecast(Quantiles.of(hours), Quantiles.of(dollars), Quantiles.of(machines), dollars)
