"""Preemption: how often machines of a class meet it, and what it costs in time.

A hold ends by preemption after an exponential time. With a gamma prior over its rate, the posterior
is gamma again: one number of events and one of hours. Knows no store; history is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special


@dataclass(frozen=True, slots=True)
class Hazard:
    """A gamma distribution over preemptions per hour; its mean is `events / hours`.

    Example: `PRIOR.after(events=2, hours=7.0).mean == 0.3`
    """

    events: float
    """Shape: number of preemptions, including those that the prior stands for."""
    hours: float
    """Rate: hours of rental, including those that the prior stands for."""

    @property
    def mean(self) -> float:
        """Preemptions per hour."""
        return self.events / self.hours

    def after(self, events: float, hours: float) -> Hazard:
        """Return the posterior after `events` preemptions in `hours` hours."""
        return Hazard(self.events + events, self.hours + hours)

    def quantile(self, share: float) -> float:
        """Return the rate that with probability `share` is not exceeded."""
        return float(special.gammaincinv(self.events, share)) / self.hours

    def draw(self, rng: np.random.Generator, num: int) -> NDArray[np.float64]:
        """Return [num] rates drawn from the distribution."""
        return rng.gamma(self.events, 1.0 / self.hours, num)


PRIOR = Hazard(events=1.0, hours=3.0)
"""One preemption in three hours, worth as much as one that was seen. Published holds of cheap
machines have a median of 1.5 h; an hour more is for those that end by themselves. A worker's own
prior (`tsgb/checkpoint/interval.py`) is two hours: it counts every failure, and not these alone."""
ON_DEMAND = Hazard(events=1.0, hours=500.0)
"""Prior of machines on demand, which are never outbid but may fail."""


@dataclass(frozen=True, slots=True)
class Hold:
    """One machine, from the moment at which it could work to its end or until now.

    Example: `Hold("RTX 4090 x1 bid", hours=1.6, preempted=True)`
    """

    machine_class: str
    """Class of the machine, see `machine_class`."""
    hours: float
    """Hours of the rental."""
    preempted: bool = False
    """Whether a preemption ended it; False if it was given back or still runs."""


def machine_class(gpu_name: str, num_gpus: int, *, is_bid: bool) -> str:
    """Return the class of machines that are expected to be preempted equally often."""
    return f"{gpu_name} x{num_gpus} {'bid' if is_bid else 'on-demand'}"


@dataclass(frozen=True, slots=True)
class History:
    """Posteriors per class.

    All interruptible machines together give the pooled posterior. It is the prior of each class,
    again worth one event: a class without a history of its own is like the rest, and its own
    history soon outweighs them.

    Example: `History.of(holds).hazard("RTX 4090 x1 bid").mean`
    """

    pooled: Hazard = PRIOR
    """Posterior of all interruptible machines."""
    seen: Mapping[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])
    """Preemptions and hours of each class."""

    @classmethod
    def of(cls, holds: Iterable[Hold], prior: Hazard = PRIOR) -> History:
        """Return the posteriors after these rentals; their order does not matter."""
        seen: dict[str, tuple[int, float]] = {}
        for hold in sorted(holds, key=lambda hold: (hold.machine_class, hold.hours)):
            events, hours = seen.get(hold.machine_class, (0, 0.0))
            seen[hold.machine_class] = (events + hold.preempted, hours + max(0.0, hold.hours))
        bids = [seen[name] for name in seen if not name.endswith(" on-demand")]
        pooled = prior.after(sum(events for events, _ in bids), sum(hours for _, hours in bids))
        return cls(pooled, seen)

    def hazard(self, name: str) -> Hazard:
        """Return the posterior of a class."""
        events, hours = self.seen.get(name, (0, 0.0))
        if name.endswith(" on-demand"):
            return ON_DEMAND.after(events, hours)
        return Hazard(1.0, 1.0 / self.pooled.mean).after(events, hours)


_SECONDS = 3600.0
_MEGABITS = 8000.0
"""Megabits of a gigabyte."""
UNPACK_SECONDS_PER_GB = 20.0
"""Seconds to unpack and write a compressed GB of an image or of packages, assumed."""
_MOST = 500.0
"""Exponents beyond it mean: this never ends."""
_LEAST = 1e-12
"""A hazard per hour below it is none, also to floating-point numbers."""

Interval = Callable[[float], float]
"""Seconds between two saves, for a mean time between preemptions in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Time and bytes that a run needs of a machine.

    Example: `Workload(work_hours=8.0, interval=lambda mtbf: 600.0, boot_seconds=400.0)`
    """

    work_hours: float
    """Useful hours left, on a machine of speed 1."""
    interval: Interval
    """The rule by which the worker saves."""
    boot_seconds: float = 300.0
    """Seconds from the rental until training goes on, billed as training is, without the time of
    what is downloaded meanwhile."""
    timed_gb: float = 0.0
    """Size of what is downloaded meanwhile, GB."""
    unpacked_gb: float = 0.0
    """Part of it that is unpacked before it can be used, GB."""
    stall_seconds: float = 0.0
    """Seconds that training stands still for a save."""
    upload_seconds: float = 0.0
    """Seconds from a save until it is durable, while training goes on."""
    disk_gb: float = 20.0
    """Storage, GB."""
    restore_gb: float = 0.0
    """Size of what each start downloads and is billed, GB."""
    save_gb: float = 0.0
    """Size of what each save sends, GB."""

    def on(self, inet_down: float) -> Workload:
        """Return the workload on a machine with so many Mb/s, whose downloads are in its boot."""
        seconds = self.timed_gb * _MEGABITS / max(inet_down, 1.0)
        seconds += self.unpacked_gb * UNPACK_SECONDS_PER_GB
        return replace(
            self, boot_seconds=self.boot_seconds + seconds, timed_gb=0.0, unpacked_gb=0.0
        )

    def interval_hours(self, hazard: float, work_hours: float) -> float:
        """Return the hours between two saves at a hazard per hour, at most `work_hours`."""
        seconds = self.interval(_SECONDS / hazard) if hazard >= _LEAST else math.inf
        return min(max(seconds, 1.0) / _SECONDS, max(work_hours, 1.0 / _SECONDS))


def stretch(hazard: float, interval_hours: float, work: Workload) -> float:
    """Return hours of rental for each useful one, with lost work and later starts; at least 1.

    The first start is not in it. Rises with the hazard; infinite where nothing would ever be saved.
    """
    cycle = interval_hours + work.stall_seconds / _SECONDS
    if hazard < _LEAST:
        return cycle / interval_hours
    again = hazard * (work.boot_seconds + work.upload_seconds) / _SECONDS
    if again + hazard * cycle > _MOST:
        return math.inf
    return math.exp(again) * math.expm1(hazard * cycle) / (hazard * interval_hours)
