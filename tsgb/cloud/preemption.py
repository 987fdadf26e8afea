"""How often machines of a class are taken away: a posterior from the history of rentals.

A hold ends by preemption after an exponential time. With a gamma prior over its rate, the posterior
is gamma again: one number of events and one of hours. Knows no store; history is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import special


@dataclass(frozen=True, slots=True)
class Hazard:
    """A gamma distribution over preemptions per hour; its mean is `events / hours`.

    Example: `PRIOR.after(events=2, hours=7.0).mean == 0.3`
    """

    events: float
    """The shape: preemptions, those that the prior stands for included."""
    hours: float
    """The rate: hours of holding, likewise."""

    @property
    def mean(self) -> float:
        """Preemptions per hour."""
        return self.events / self.hours

    def after(self, events: float, hours: float) -> Hazard:
        """The posterior, once so many preemptions in so many hours were seen."""
        return Hazard(self.events + events, self.hours + hours)

    def quantile(self, share: float) -> float:
        """The rate that with probability `share` is not exceeded."""
        return float(special.gammaincinv(self.events, share)) / self.hours

    def draw(self, rng: np.random.Generator, num: int) -> NDArray[np.float64]:
        """[num] rates, for what shall carry their uncertainty along."""
        return rng.gamma(self.events, 1.0 / self.hours, num)


PRIOR = Hazard(events=1.0, hours=3.0)
"""One preemption in three hours, worth as much as one that was seen. Published holds of cheap
machines have a median of 1.5 h; an hour more is for those that end by themselves. A worker's own
prior (`tsgb/checkpoint/interval.py`) is two hours: it counts every failure, and not these alone."""
ON_DEMAND = Hazard(events=1.0, hours=500.0)
"""Nobody outbids it; hosts still fail."""


@dataclass(frozen=True, slots=True)
class Hold:
    """One machine, from the moment at which it could work to its end or until now.

    Example: `Hold("RTX 4090 x1 bid", hours=1.6, preempted=True)`
    """

    machine_class: str
    hours: float
    preempted: bool = False
    """False also if we gave it back, or still hold it: its hours count all the same."""


def machine_class(gpu_name: str, num_gpus: int, *, is_bid: bool) -> str:
    """What is expected to be taken away equally often."""
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
    seen: Mapping[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])
    """Per class: preemptions, hours."""

    @classmethod
    def of(cls, holds: Iterable[Hold], prior: Hazard = PRIOR) -> History:
        """Count them; their order does not matter."""
        seen: dict[str, tuple[int, float]] = {}
        for hold in sorted(holds, key=lambda hold: (hold.machine_class, hold.hours)):
            events, hours = seen.get(hold.machine_class, (0, 0.0))
            seen[hold.machine_class] = (events + hold.preempted, hours + max(0.0, hold.hours))
        bids = [seen[name] for name in seen if not name.endswith(" on-demand")]
        pooled = prior.after(sum(events for events, _ in bids), sum(hours for _, hours in bids))
        return cls(pooled, seen)

    def hazard(self, name: str) -> Hazard:
        """The posterior of a class."""
        events, hours = self.seen.get(name, (0, 0.0))
        if name.endswith(" on-demand"):
            return ON_DEMAND.after(events, hours)
        return Hazard(1.0, 1.0 / self.pooled.mean).after(events, hours)
