"""Closed-form intervals and tests for rates. The bootstrap is in `bootstrap.py`.

An outcome is 1 (the event), 0 (no event) or `MISSING`: the target failed, the judge abstained, the
guard gave no answer. A missing outcome is never dropped silently: it is counted in the record and
widens the interval to what "none of them was the event" and "all of them were" would give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv, ndtri

from tsgb.eval.records import Rate

MISSING = -1
LEVEL = 0.95
MAX_ERROR_RATE = 0.02
MIN_YOUDEN = 0.2
"""Below this `sensitivity + specificity - 1` a judge says too little to correct for."""

Outcomes = NDArray[np.int8]


class Interval(NamedTuple):
    """Both ends, in the units of the figure."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""


def wilson(events: int, num: int, level: float = LEVEL) -> Interval:
    """Score interval of a rate (Wilson 1927, JASA 22:209); the whole [0, 1] when `num` is 0."""
    if num == 0:
        return Interval(0.0, 1.0)
    z = float(ndtri(0.5 + level / 2))
    rate, scale = events / num, 1 + z * z / num
    centre = (rate + z * z / (2 * num)) / scale
    half = z * math.sqrt(rate * (1 - rate) / num + (z / (2 * num)) ** 2) / scale
    low = 0.0 if events == 0 else max(0.0, centre - half)
    high = 1.0 if events == num else min(1.0, centre + half)
    return Interval(low, high)


def clopper_pearson_upper(events: int, num: int, level: float = LEVEL) -> float:
    """One-sided exact upper bound (Clopper & Pearson 1934): `1 - (1 - level)^(1/n)` at 0 events."""
    if events >= num:
        return 1.0
    return float(betaincinv(events + 1, num - events, level))


def rate_from_counts(events: int, num: int, errors: int = 0, level: float = LEVEL) -> Rate | None:
    """Return the rate of the event over scored items; None without any item.

    The interval reaches from Wilson's lower end if no error was the event to its upper end if every
    error was.

    Args:
        events: Scored items that had the event.
        num: Scored items.
        errors: Items without an outcome, on top of `num`.
        level: Level of Wilson's interval.
    """
    total = num + errors
    if total == 0:
        return None
    low, high = wilson(events, total, level).low, wilson(events + errors, total, level).high
    return Rate(value=events / num if num else low, low=low, high=high, n=num, errors=errors)


def error_bounds(rate: Rate) -> Interval:
    """The rate itself if no error was the event, and if every error was."""
    total = rate.n + rate.errors
    return Interval(rate.events / total, (rate.events + rate.errors) / total)


def too_many_errors(errors: int, total: int, limit: float = MAX_ERROR_RATE) -> bool:
    """Return whether more than `limit` of the items of a class have no outcome.

    Check each class (harmful, benign) alone: errors on one of them move every rate of it.
    """
    return total > 0 and errors / total > limit


def equal_error_rates(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Exact two-sided p-value of equal shares of errors in two classes, each (errors, items).

    Given the number of errors, those of the first class are binomial (Przyborowski & Wilenski 1940,
    Biometrika 31:313), which is exact for rare errors and otherwise gives too high a value.
    """
    errors, share = first[0] + second[0], first[1] / max(1, first[1] + second[1])
    below = float(bdtr(first[0], errors, share))
    above = 1.0 - float(bdtr(first[0] - 1, errors, share)) if first[0] else 1.0
    return min(1.0, 2 * min(below, above))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of equal rates from the discordant pairs (McNemar 1947; binomial)."""
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), discordant, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that control the family-wise error (Holm 1979, Scand. J. Stat. 6:65)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted.tolist()
