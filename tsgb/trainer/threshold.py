"""The guard's operating point: a threshold that holds a false-positive budget with confidence.

It knows scores (`z = logit(unsafe) - logit(safe)`) and labels, and neither models nor torch.
The promise holds for benign traffic that is exchangeable with the calibration scores, and only
there: measure the realised rate on every other stream and print it beside the nominal one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtrc, betaincinv

from tsgb.errors import UsageError

PRESETS: Mapping[str, float] = MappingProxyType(
    {"strict": 0.05, "balanced": 0.01, "permissive": 0.001}
)
"""False-positive budgets under the names that an exported guard offers."""

LOG_TEMPERATURE_BOUND = math.log(1e3)
"""Separable (or useless) scores have no finite best temperature: stop at 1/1000 (or 1000)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """An operating point: block iff `z > value`.

    Example: `Threshold(value=1.7, alpha=0.01, delta=0.05, num=1000, order=996, fpr_upper=0.0091)`
    """

    value: float
    """Threshold, in units of the score."""
    alpha: float
    """Budget: the largest false-positive rate that is acceptable."""
    delta: float
    """P(false-positive rate > alpha) is at most this, over draws of the calibration set."""
    num: int
    """Benign calibration scores."""
    order: int
    """`value` is the order-th smallest of them, counted from 1."""
    fpr_upper: float
    """Upper 1 - delta bound of the false-positive rate at `value`; at most `alpha`."""

    def blocks(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Verdicts for scores of any shape."""
        return np.asarray(scores, dtype=np.float64) > self.value


def min_calibration_size(alpha: float, delta: float = 0.05) -> int:
    """Fewest benign scores for which `np_threshold` exists: `(1 - alpha)^n <= delta`.

    299 for 1 % at delta .05, 2,995 for .1 % (Tong, Feng & Li 2018, Science Advances 4:eaao1659).
    """
    _check_probability("alpha", alpha)
    _check_probability("delta", delta)
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def np_threshold(scores: ArrayLike, alpha: float = 0.01, delta: float = 0.05) -> Threshold:
    """Neyman-Pearson order-statistic threshold from benign calibration scores.

    `k* = min{k : P(Bin(n, 1 - alpha) >= k) <= delta}`, `value = s_(k*)`; then
    `P(FPR > alpha) <= delta`, ties only making it safer (Tong, Feng & Li 2018, Science Advances
    4:eaao1659, proposition 1). `fpr_upper` is the Clopper-Pearson bound for `n - k*` false alarms.

    Raises:
        UsageError: too few scores for this budget, or a score that is not a number.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    num, least = ordered.size, min_calibration_size(alpha, delta)
    if num < least:
        raise UsageError(
            f"a false-positive budget of {alpha:.3g} at confidence {1 - delta:.3g} needs at least "
            f"{least} benign calibration scores, got {num}: calibrate on more benign prompts, or "
            f"take a larger budget"
        )
    if np.isnan(ordered[-1]):
        raise UsageError(
            "calibration scores contain NaN: the guard's forward pass is broken, nothing to fit"
        )
    # bdtrc(k - 1, n, p) = P(Bin(n, p) >= k), falling in k; k = n always qualifies (see `least`).
    exceedance = np.asarray(bdtrc(np.arange(num - 1), num, 1 - alpha))
    order = min(int(np.count_nonzero(exceedance > delta)) + 1, num)
    return Threshold(
        value=float(ordered[order - 1]),
        alpha=alpha,
        delta=delta,
        num=num,
        order=order,
        fpr_upper=float(betaincinv(num - order + 1, order, 1 - delta)),
    )


def preset_thresholds(scores: ArrayLike, delta: float = 0.05) -> dict[str, Threshold]:
    """The presets that this many benign scores can support; the others are left out."""
    benign = np.asarray(scores, dtype=np.float64).ravel()
    return {
        name: np_threshold(benign, alpha, delta)
        for name, alpha in PRESETS.items()
        if benign.size >= min_calibration_size(alpha, delta)
    }


def fit_temperature(scores: ArrayLike, labels: ArrayLike) -> float:
    """Temperature T that minimises the mean NLL of `sigmoid(z / T)` (Guo et al. 2017, section 4.2).

    Monotone, so it moves neither the ROC nor any verdict. The NLL is convex in `1 / T`, hence has
    one minimum along `log T`.

    Args:
        scores: Any finite scores.
        labels: Truthy for harmful; same length.

    Raises:
        UsageError: lengths differ, a score is not finite, or only one class is present.
    """
    z = np.asarray(scores, dtype=np.float64).ravel()
    sign = np.where(np.asarray(labels, dtype=np.bool_).ravel(), 1.0, -1.0)
    if z.size != sign.size or not np.isfinite(z).all() or np.unique(sign).size < 2:
        raise UsageError(
            f"a temperature needs finite scores with labels of both classes, got {z.size} scores "
            f"({np.count_nonzero(~np.isfinite(z))} not finite) and {sign.size} labels, "
            f"{np.count_nonzero(sign > 0)} of them harmful"
        )

    def nll(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -sign * z * math.exp(-log_temperature)).mean())

    # Not at the top: the trainer needs thresholds only, and this import costs half a second.
    from scipy.optimize import minimize_scalar

    bounds = (-LOG_TEMPERATURE_BOUND, LOG_TEMPERATURE_BOUND)
    return math.exp(float(minimize_scalar(nll, bounds=bounds, method="bounded").x))


def _check_probability(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise UsageError(f"{name} must lie strictly between 0 and 1, got {value!r}")
