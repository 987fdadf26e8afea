"""What preemption costs in time: hours held per useful hour, for a hazard and a save interval.

The complete model of Daly (2006) with one term more: a save is durable only after its upload, so an
upload is lost with each preemption on top of the work since the last save.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_SECONDS = 3600.0
_MOST = 500.0
"""Exponents beyond it mean: this never ends."""
_LEAST = 1e-12
"""A hazard per hour below it is none, also to floating-point numbers."""

Interval = Callable[[float], float]
"""Seconds between two saves, for a mean time between preemptions in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a run asks of a machine, in its own time and bytes.

    Example: `Workload(work_hours=8.0, interval=lambda mtbf: 600.0, boot_seconds=400.0)`
    """

    work_hours: float
    """Useful hours left, on a machine of speed 1."""
    interval: Interval
    """The rule by which the worker saves."""
    boot_seconds: float = 300.0
    """From the rental until training goes on: image, models, restore. Billed as training is."""
    stall_seconds: float = 0.0
    """How long training stands still for a save."""
    upload_seconds: float = 0.0
    """From a save until it is durable, while training goes on."""
    disk_gb: float = 20.0
    restore_gb: float = 0.0
    """Loaded at each start."""
    save_gb: float = 0.0
    """Sent by each save."""

    def interval_hours(self, hazard: float, work_hours: float) -> float:
        """Between two saves at so many preemptions an hour; never longer than the work itself."""
        seconds = self.interval(_SECONDS / hazard) if hazard >= _LEAST else math.inf
        return min(max(seconds, 1.0) / _SECONDS, max(work_hours, 1.0 / _SECONDS))


def stretch(hazard: float, interval_hours: float, work: Workload) -> float:
    """Hours held for each useful one, lost work and later starts included; at least 1.

    The first start is not in it. Rises with the hazard; infinite where nothing would ever be saved.
    """
    cycle = interval_hours + work.stall_seconds / _SECONDS
    if hazard < _LEAST:
        return cycle / interval_hours
    again = hazard * (work.boot_seconds + work.upload_seconds) / _SECONDS
    if again + hazard * cycle > _MOST:
        return math.inf
    return math.exp(again) * math.expm1(hazard * cycle) / (hazard * interval_hours)
