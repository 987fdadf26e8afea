"""The guard's operating point: a threshold that holds a false-positive budget with confidence.

It knows scores (`z = logit(unsafe) - logit(safe)`) and labels, and neither models nor torch.
The promise holds for benign traffic that is exchangeable with the calibration scores, and only
there: measure the realised rate on every other stream and print it beside the nominal one.

Prompts of one scenario are not independent: a guard that misjudges one of them misjudges others.
False alarms among them are counted by the one-factor model of credit risk (Vasicek 2002, Risk):
the normal scores of prompts of a scenario have a correlation, which their ranks tell. Without any
it is the binomial of independent prompts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betaincinv, betaln, fdtri, ndtr, ndtri, xlog1py, xlogy

from tsgb.errors import UsageError

PRESETS: Mapping[str, float] = MappingProxyType(
    {"strict": 0.05, "balanced": 0.01, "permissive": 0.001}
)
"""False-positive budgets under the names that an exported guard offers."""

LOG_TEMPERATURE_BOUND = math.log(1e3)
"""Separable (or useless) scores have no finite best temperature: stop at 1/1000 (or 1000)."""

CORRELATION_LEVEL = 0.16
"""Probability that the correlation within scenarios is above the one that is reckoned with."""
MOST_CORRELATION = 0.95
"""Above it the quadrature would be too coarse; a scenario's prompts are one prompt by then."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
"""Gauss-Hermite quadrature over the effect of a scenario."""
_HALVINGS = 24
"""Steps of the bisection of a bound, which leave 6e-8 of it."""


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
    """Upper 1 - delta bound of the false-positive rate at `value`."""
    num_scenarios: int | None = None
    """Scenarios that the scores belong to; None where each is its own."""
    correlation: float = 0.0
    """Correlation of scores within a scenario that was reckoned with, in [0, 1)."""

    @property
    def holds(self) -> bool:
        """Whether the budget holds; it cannot where too few scenarios speak for it."""
        return self.fpr_upper <= self.alpha

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


def certifies(
    sizes: Sequence[int], alpha: float = 0.01, delta: float = 0.05, correlation: float = 0.0
) -> bool:
    """Tell whether benign prompts can hold a budget at all: `P(N = 0) <= delta` at rate `alpha`.

    Args:
        sizes: Benign prompts of each scenario.
        alpha: Budget, in (0, 1).
        delta: Probability that the budget may be exceeded, in (0, 1).
        correlation: Correlation of scores within a scenario, in [0, 1); 0 counts prompts.
    """
    num = sum(sizes)
    if num < min_calibration_size(alpha, delta):
        return False
    if correlation == 0:
        return True
    counts = np.asarray(sizes, dtype=np.intp)
    return bool(_cumulative(alpha, min(correlation, MOST_CORRELATION), counts, 0)[0] <= delta)


def np_threshold(
    scores: ArrayLike,
    alpha: float = 0.01,
    delta: float = 0.05,
    scenarios: Sequence[str] | None = None,
) -> Threshold:
    """Neyman-Pearson order-statistic threshold from benign calibration scores.

    `j* = max{j : P(N <= j) <= delta}` false alarms N among n prompts of a guard whose rate is
    `alpha`, `value = s_(n - j*)`; then `P(FPR > alpha) <= delta`, ties only making it safer (Tong,
    Feng & Li 2018, Science Advances 4:eaao1659, proposition 1, where N is binomial). `fpr_upper` is
    the rate at which `P(N <= n - order)` is delta: the Clopper-Pearson bound where prompts are
    independent. With too few scenarios for the budget the threshold is the highest score, and
    `fpr_upper` is above `alpha`.

    Args:
        scores: [n] benign scores.
        alpha: Budget, in (0, 1).
        delta: Probability that the budget may be exceeded, in (0, 1).
        scenarios: [n] scenario of each score; without it scores are independent.

    Raises:
        UsageError: too few scores for this budget, or a score that is not a number.
    """
    z = np.asarray(scores, dtype=np.float64).ravel()
    num, least = z.size, min_calibration_size(alpha, delta)
    if num < least:
        raise UsageError(
            f"a false-positive budget of {alpha:.3g} at confidence {1 - delta:.3g} needs at least "
            f"{least} benign calibration scores, got {num}: calibrate on more benign prompts, or "
            f"take a larger budget"
        )
    if np.isnan(z).any():
        raise UsageError(
            "calibration scores contain NaN: the guard's forward pass is broken, nothing to fit"
        )
    groups = np.unique(scenarios, return_inverse=True)[1] if scenarios is not None else None
    correlation = 0.0 if groups is None else _correlation(z, groups)
    # Prompts that are independent allow most false alarms: bdtr(j, n, p) = P(Bin(n, p) <= j).
    most = int(np.count_nonzero(np.asarray(bdtr(np.arange(num), num, alpha)) <= delta)) - 1
    if groups is None or correlation == 0:
        allowed = max(0, most)
        upper = float(betaincinv(allowed + 1, num - allowed, 1 - delta))
    else:
        sizes = np.bincount(groups)
        held = _cumulative(alpha, correlation, sizes, most) <= delta
        allowed = max(0, int(np.count_nonzero(held)) - 1)
        upper = _bound(delta, correlation, sizes, allowed)
    return Threshold(
        value=float(np.sort(z)[num - allowed - 1]),
        alpha=alpha,
        delta=delta,
        num=num,
        order=num - allowed,
        fpr_upper=upper,
        num_scenarios=None if groups is None else int(groups.max()) + 1,
        correlation=correlation,
    )


def _correlation(z: NDArray[np.float64], groups: NDArray[np.int_]) -> float:
    """Return a bound of the correlation within groups of the normal scores of ranks, in [0, 1).

    It is that of the one-way analysis of variance (Donner 1986, International Statistical Review
    54:67), one standard error above the estimate: few groups tell little of how they differ, and
    with the estimate itself budgets are exceeded too often. Ranks make it blind to the scale of
    the scores. An estimate of zero or less is zero.
    """
    sizes = np.bincount(groups).astype(np.float64)
    num, num_groups = z.size, sizes.size
    if num_groups < 2 or num_groups == num:
        return 0.0
    _, place, ties = np.unique(z, return_inverse=True, return_counts=True)
    ranks = np.cumsum(ties) - (ties - 1) / 2
    normal = np.asarray(ndtri((ranks[place] - 0.5) / num))
    means = np.bincount(groups, weights=normal) / sizes
    between = float(sizes @ (means - normal.mean()) ** 2) / (num_groups - 1)
    within = float(((normal - means[groups]) ** 2).sum()) / (num - num_groups)
    size = (num - float(sizes @ sizes) / num) / (num_groups - 1)
    if between <= within:
        return 0.0
    least = within * float(fdtri(num_groups - 1, num - num_groups, CORRELATION_LEVEL))
    return min(MOST_CORRELATION, (between - least) / (between + (size - 1) * least))


def _cumulative(
    rate: float, correlation: float, sizes: NDArray[np.int_], most: int
) -> NDArray[np.float64]:
    """P(N <= j) for j = 0 .. `most` false alarms among groups of these sizes."""
    shift = math.sqrt(correlation) * _NODES
    rates = np.asarray(ndtr((float(ndtri(rate)) + shift) / math.sqrt(1 - correlation)))
    alarms = np.arange(most + 1)
    total = np.eye(1, most + 1)[0]
    for size, times in Counter(map(int, sizes)).items():
        counts = np.minimum(alarms, size)
        choices = np.asarray(betaln(size - counts + 1, counts + 1)) + math.log1p(size)
        hits = np.asarray(xlogy(counts, rates[:, None]))
        log_pmf = hits + np.asarray(xlog1py(size - counts, -rates[:, None])) - choices
        pmf = np.where(alarms <= size, np.exp(log_pmf), 0.0)
        one = _WEIGHTS @ pmf / _WEIGHTS.sum()
        for _ in range(times):
            total = np.convolve(total, one)[: most + 1]
    return np.cumsum(total)


def _bound(delta: float, correlation: float, sizes: NDArray[np.int_], allowed: int) -> float:
    """Return the rate at which no more than `allowed` false alarms have the probability delta."""
    # Bisection, because the trainer calibrates and `scipy.optimize` takes half a second to import.
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _cumulative(middle, correlation, sizes, allowed)[-1] > delta:
            low = middle
        else:
            high = middle
    return high


def preset_thresholds(
    scores: ArrayLike, delta: float = 0.05, scenarios: Sequence[str] | None = None
) -> dict[str, Threshold]:
    """The presets that this many benign scores can support; the others are left out."""
    benign = np.asarray(scores, dtype=np.float64).ravel()
    return {
        name: np_threshold(benign, alpha, delta, scenarios)
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
