"""Sizes of samples: how many attempts tell one rate from another, and what a given sample tells.

The normal approximation for two independent proportions (Fleiss, Levin & Paik 2003, "Statistical
Methods for Rates and Proportions", 3rd edition, section 4.2, without continuity correction), times
a design effect for attempts that share a scenario (Kish 1965, "Survey Sampling", section 5.4).
Pairing makes a comparison sharper than these sizes say; the spread between training seeds comes on
top of them. It knows rates and numbers, not where they come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtri, stdtrit

from tsgb.errors import UsageError
from tsgb.eval.intervals import LEVEL
from tsgb.eval.records import Rate

POWER = 0.8
"""Probability that a difference which is there is shown."""
ALPHA = 0.05
"""Two-sided probability that one which is not there is shown."""
CORRELATION = 0.05
"""Correlation of two attempts on one scenario that is assumed before anything was measured."""
EXAMPLES = (0.5, 0.3, 0.08)
"""Rates of an arm for which a plan says what its sample tells from them."""


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """The adaptive attempts of each arm on each target, before any is made.

    Example: `PlannedSample(attempts=768, per_scenario=3.2)`
    """

    attempts: int
    """Attempts of one best response, over all seeds."""
    per_scenario: float
    """Attempts of it on each scenario and seed."""

    @property
    def design_effect(self) -> float:
        """The design effect that `CORRELATION` gives."""
        return expected_design_effect(self.per_scenario)

    def tells(self, rate: float) -> float | None:
        """Return the highest rate that this sample tells from a higher one."""
        return detectable(rate, self.attempts, design_effect=self.design_effect)

    def __str__(self) -> str:
        """Return the line of `tsgb plan`."""
        pairs: list[str] = []
        for rate in EXAMPLES:
            lower = self.tells(rate)
            other = "nothing below it" if lower is None else f"{lower:.1%}"
            pairs.append(f"{rate:.0%} from {other}")
        needed = attempts_needed(0.08, 0.04, design_effect=self.design_effect)
        return (
            f"{self.attempts} adaptive attempts an arm and target tell {', '.join(pairs)} (power "
            f"{POWER:.0%}, level {ALPHA:.0%}, design effect {self.design_effect:.2f}); 8% from 4% "
            f"takes {needed}"
        )


def attempts_needed(
    first: float,
    second: float,
    *,
    power: float = POWER,
    alpha: float = ALPHA,
    design_effect: float = 1.0,
) -> int:
    """Return the attempts of each arm that tell two rates apart.

    Args:
        first: True rate of one arm, in [0, 1].
        second: True rate of the other one.
        power: Probability that the difference is shown.
        alpha: Two-sided level of the test.
        design_effect: Variance of a rate over that of as many independent attempts.

    Raises:
        UsageError: The rates are equal, or one is no rate.

    Example: `attempts_needed(0.08, 0.04)` is 553.
    """
    if first == second or not (0 <= first <= 1 and 0 <= second <= 1):
        raise UsageError(f"no sample tells {first} from {second}: give two rates in [0, 1]")
    return math.ceil(design_effect * _size(first, second, power, alpha))


def detectable(
    rate: float,
    num: int,
    *,
    power: float = POWER,
    alpha: float = ALPHA,
    design_effect: float = 1.0,
) -> float | None:
    """Return the highest rate below `rate` that `num` attempts an arm tell from it.

    None where they would not even tell zero from it.

    Example: `detectable(0.08, 553)` is 0.04.
    """
    independent = num / design_effect
    if rate <= 0 or _size(rate, 0.0, power, alpha) > independent:
        return None
    low, high = 0.0, rate
    for _ in range(50):
        middle = (low + high) / 2
        if _size(rate, middle, power, alpha) <= independent:
            low = middle
        else:
            high = middle
    return low


def expected_design_effect(per_scenario: float, correlation: float = CORRELATION) -> float:
    """Return `1 + (m - 1) * rho` for m attempts a scenario; at least 1."""
    return max(1.0, 1 + (per_scenario - 1) * correlation)


def measured_design_effect(rate: Rate, num_seeds: int) -> float:
    """Return the variance that a published interval implies, over that of independent attempts.

    At least 1; 1 where nothing varies. The interval of a pooled figure is Student's, with the
    spread between seeds and between scenarios, so that both count.

    Args:
        rate: The pooled figure.
        num_seeds: Training seeds that it is the mean of.
    """
    variance = rate.value * (1 - rate.value)
    if rate.n == 0 or variance == 0:
        return 1.0
    level = 0.5 + LEVEL / 2
    quantile = float(stdtrit(num_seeds - 1, level) if num_seeds > 1 else ndtri(level))
    error = (rate.high - rate.low) / (2 * quantile)
    return max(1.0, error**2 * rate.n / variance)


def _size(first: float, second: float, power: float, alpha: float) -> float:
    mean = (first + second) / 2
    spread = (
        math.sqrt(2 * mean * (1 - mean)),
        math.sqrt(first * (1 - first) + second * (1 - second)),
    )
    reach = float(ndtri(1 - alpha / 2)) * spread[0] + float(ndtri(power)) * spread[1]
    return (reach / (first - second)) ** 2 if first != second else math.inf
