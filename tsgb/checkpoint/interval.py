"""How often to save: pure arithmetic on what was measured.

Young (1974) and Daly (2006): with a stall of delta seconds a save and a mean time M between
failures, the work lost plus the work stalled is least at about sqrt(2 delta M). A commit that takes
longer than that is waited for: a second one would only queue behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

PRIOR_MTBF_SECONDS = 2 * 3600.0
"""Mean time between failures where nothing is known yet; counts like one observed failure.

Shorter than the three hours of `tsgb/cloud/preemption.py`, which are hours held for each preemption
of a rented machine alone. Here whatever ends an attempt early counts, crashes and kills too, on any
machine. The interval goes with its root, so it is a fifth shorter than one for three hours.
"""
LEAST_SECONDS = 1.0
MAX_UNSAVED = 4.0
"""Training waits for the store once this many intervals of work are not durable."""


@dataclass(frozen=True, slots=True)
class EarlierAttempt:
    """One earlier attempt at a run.

    Example: `EarlierAttempt(at=datetime(2026, 1, 1, tzinfo=UTC), lost=True)`
    """

    at: datetime
    """Time at which it claimed the run."""
    lost: bool
    """Whether it ended without being done: preempted, killed, crashed."""


def mean_time_between_failures(starts: Sequence[EarlierAttempt], now: datetime) -> float:
    """Return seconds, from the history of a run; the prior alone where there is none.

    The posterior mean of an exponential's scale with one pseudo-failure: (prior + seconds that
    attempts were at work) / (1 + failures). An attempt counts as at work until the next one starts,
    which holds for machines that are replaced at once.
    """
    if not starts:
        return PRIOR_MTBF_SECONDS
    ordered = sorted(starts, key=lambda start: start.at)
    ends = [*(start.at for start in ordered[1:]), now]
    worked = sum(
        max(0.0, (end - start.at).total_seconds()) for start, end in zip(ordered, ends, strict=True)
    )
    failures = sum(start.lost for start in ordered)
    return (PRIOR_MTBF_SECONDS + worked) / (1 + failures)


def save_interval(
    stall_seconds: float, commit_seconds: float, step_seconds: float, mtbf_seconds: float
) -> float:
    """Return the seconds between two saves.

    Args:
        stall_seconds: Delta, the seconds that training stands still for a save.
        commit_seconds: Seconds from a save's start until it is durable.
        step_seconds: Seconds that one update takes; nothing can be saved in between.
        mtbf_seconds: M, the mean time between failures.
    """
    best = math.sqrt(2 * max(stall_seconds, 0.0) * mtbf_seconds)
    return max(best, commit_seconds, step_seconds, LEAST_SECONDS)
