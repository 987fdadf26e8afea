"""Intervals of figures over training seeds and scenarios, and of their paired differences.

Prompts of one scenario are not independent, and neither are guards of one training seed. A figure
is the mean over S seeds, which share their scenarios, and its variance has two parts: between
seeds, `s^2 / S`, and between scenarios, from a cluster bootstrap that draws one set of scenarios
for all seeds. Both hold the noise of single items, so their sum errs on the wide side. The interval
is Student's with S - 1 degrees of freedom, on the scale of log-odds for a figure in [0, 1] and on
its own scale for a difference. (A percentile bootstrap over five seeds, with normal quantiles and
`(S - 1) / S` of the variance, covers .85 in place of .95.) Both kinds of error are simulated in
`tests/unit/eval/test_bootstrap_coverage.py`.

A single seed is one guard: its interval speaks of that guard over other scenarios, with C - 1
degrees of freedom, and not of the method that trained it. Where several fresh attackers met it and
the figure is their mean, they are the upper level in place of seeds.

The draws depend on nothing but the generator's seed and the number of scenarios, so two arms that
were measured on the same scenarios see the same draws: that is the pairing. What is resampled is in
`estimators.py`. Axes: D draws, S seeds, U units of the upper level, C clusters (scenarios).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, stdtr, stdtrit

from tsgb.eval.estimators import (
    Errors,
    Estimator,
    Floats,
    RateEstimator,
    Weights,
)
from tsgb.eval.intervals import LEVEL, Interval, rate_from_counts, wilson
from tsgb.eval.records import Rate

NUM_DRAWS = 10_000
KEEP = 1 << 22
"""Sets of at most this many weights are kept; larger ones are drawn anew each time, in blocks."""


class Difference(NamedTuple):
    """A paired difference with its interval and two-sided p-value."""

    value: float
    """First figure minus second."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    p: float
    """Two-sided p-value in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Replicates:
    """A figure with its errors read in one way."""

    units: Floats
    """[U] figures of the upper level: seeds, or attackers of a single seed, or one guard. NaN where
    none of the items has an outcome."""
    draws: Floats
    """[D] means over the upper level, in each draw of scenarios; NaN where undefined."""

    @property
    def mean(self) -> float:
        """The figure of the items themselves."""
        return float(self.known.mean()) if self.known.size else np.nan

    @property
    def known(self) -> Floats:
        """The figures of the units that have one."""
        return self.units[~np.isnan(self.units)]

    def minus(self, other: Replicates) -> Replicates:
        """Return the difference, unit by unit and draw by draw.

        Attackers of two guards are no pairs: where their numbers differ, their means are compared.
        """
        if self.units.size == other.units.size:
            return Replicates(self.units - other.units, self.draws - other.draws)
        return Replicates(np.array([self.mean - other.mean]), self.draws - other.draws)


@dataclass(frozen=True, slots=True)
class Sample:
    """A figure as it is, and with every error read so that it is low, and so that it is high."""

    dropped: Replicates
    """Errors are left out."""
    low: Replicates
    """Every error is read so that the figure is low."""
    high: Replicates
    """Every error is read so that the figure is high."""
    n: int
    """Scored items."""
    errors: int
    """Items without an outcome."""
    num_clusters: int
    """Clusters of the smallest population."""
    rate: RateEstimator | None = None
    """Counts behind the figure, if it is a rate."""

    @property
    def point(self) -> float:
        """The figure, errors left out."""
        return self.dropped.mean

    def interval(self) -> Interval:
        """Return the 95 % interval of a figure in [0, 1]; all of that if nothing is known of it."""
        ends = [_spread(replicates, self.num_clusters) for replicates in (self.low, self.high)]
        unknown = np.isnan(self.low.mean) or np.isnan(self.high.mean)
        if unknown or any(spread is None for spread in ends):
            return Interval(0.0, 1.0)
        low, high = (
            self._reach(replicates, spread or 0.0, sign)
            for replicates, spread, sign in zip((self.low, self.high), ends, (-1, 1), strict=True)
        )
        if np.isnan(self.point):
            return Interval(low, high)
        return Interval(min(low, self.point), max(high, self.point))

    def _reach(self, replicates: Replicates, spread: float, sign: int) -> float:
        """One end of the interval, on the scale of log-odds."""
        mean = replicates.mean
        if 0 < mean < 1:
            return float(expit(logit(mean) + sign * spread / (mean * (1 - mean))))
        # Nothing varied at the edge: the clusters could as well have been single outcomes.
        outer = wilson(round(mean * self.num_clusters), self.num_clusters)
        return outer.low if sign < 0 else outer.high

    def record(self) -> Rate:
        """Return the published figure; of a rate, the hull with Wilson's interval."""
        low, high = self.interval()
        value = self.point
        if self.rate is not None:
            closed = rate_from_counts(self.rate.num_events, self.n, self.errors)
            if closed is not None:
                low, high = min(low, closed.low), max(high, closed.high)
                value = closed.value if np.isnan(value) else value
        value = low if np.isnan(value) else value
        return Rate(value=value, low=low, high=high, n=self.n, errors=self.errors)


def difference(first: Sample, second: Sample) -> Difference:
    """`first - second` of figures in [0, 1], seed by seed and scenario by scenario."""
    clusters = min(first.num_clusters, second.num_clusters)
    figure = first.dropped.minus(second.dropped)
    found = contrast(
        figure, first.low.minus(second.high), first.high.minus(second.low), num_clusters=clusters
    )
    if found.low == found.high != 0:
        # Both arms are at an edge, where nothing varies: their own intervals know of the clusters.
        ours, theirs = first.interval(), second.interval()
        return found._replace(low=ours.low - theirs.high, high=ours.high - theirs.low)
    return found._replace(low=max(-1.0, found.low), high=min(1.0, found.high))


def contrast(
    figure: Replicates,
    low: Replicates | None = None,
    high: Replicates | None = None,
    *,
    num_clusters: int,
) -> Difference:
    """Return a signed figure with the interval and the p-value of "it is zero".

    Args:
        figure: The figure, unit by unit and draw by draw.
        low: The same with every error read the low way; without it there are none.
        high: The same with every error read the high way.
        num_clusters: Clusters of the smallest population.
    """
    spreads = [_spread(r or figure, num_clusters) for r in (low, high)]
    spread = _spread(figure, num_clusters)
    if spread is None or spreads[0] is None or spreads[1] is None:
        return Difference(figure.mean, -1.0, 1.0, 1.0)
    ends = (low or figure).mean - spreads[0], (high or figure).mean + spreads[1]
    return Difference(
        figure.mean,
        min(ends[0], figure.mean),
        max(ends[1], figure.mean),
        _p_value(figure, num_clusters),
    )


def standard_error(replicates: Replicates, num_clusters: int) -> tuple[float, int] | None:
    """Standard error and degrees of freedom; None if nothing was repeated."""
    num_units = replicates.known.size
    if num_units < 2 and num_clusters < 2:
        return None
    variance = 0.0
    if num_clusters > 1:
        known = replicates.draws[~np.isnan(replicates.draws)]
        variance += float(known.var()) * num_clusters / (num_clusters - 1) if known.size else 0.0
    if num_units > 1:
        variance += float(replicates.known.var(ddof=1)) / num_units
    return float(np.sqrt(variance)), (num_units if num_units > 1 else num_clusters) - 1


def _spread(replicates: Replicates, num_clusters: int) -> float | None:
    """Half of the width of the interval on the figure's own scale."""
    error = standard_error(replicates, num_clusters)
    return None if error is None else error[0] * float(stdtrit(error[1], 0.5 + LEVEL / 2))


def _p_value(figure: Replicates, num_clusters: int) -> float:
    """Two-sided p-value of Student's test; 1 where the figure is 0."""
    error = standard_error(figure, num_clusters)
    if error is None or figure.mean == 0:
        return 1.0
    if error[0] == 0:
        return 0.0
    return float(2 * stdtr(error[1], -abs(figure.mean) / error[0]))


class Resampler:
    """Draws for all arms of one evaluation, from a private generator."""

    def __init__(self, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> None:
        self.num_draws = num_draws
        self.seed = seed
        self._kept: dict[tuple[int, ...], Weights] = {}

    def sample(self, estimator: Estimator) -> Sample:
        """The figure, as the mean over seeds, and its draws."""
        n, errors = estimator.num_items
        dropped = self._read(estimator, "dropped")
        return Sample(
            dropped=dropped,
            low=self._read(estimator, "low") if errors else dropped,
            high=self._read(estimator, "high") if errors else dropped,
            n=n,
            errors=errors,
            num_clusters=min(estimator.num_clusters),
            rate=estimator if isinstance(estimator, RateEstimator) else None,
        )

    def _read(self, estimator: Estimator, errors: Errors) -> Replicates:
        total, num = np.zeros(self.num_draws), np.zeros(self.num_draws)
        start = 0
        for weights in self._blocks(estimator.num_clusters):
            rows = slice(start, start + weights[0].shape[0])
            for seed in range(estimator.num_seeds):
                figures = estimator.draws(seed, weights, errors)
                num[rows] += ~np.isnan(figures)
                total[rows] += np.nan_to_num(figures)
            start = rows.stop
        draws = np.divide(total, num, out=np.full_like(total, np.nan), where=num > 0)
        return Replicates(estimator.units(errors), draws)

    def _blocks(self, sizes: tuple[int, ...]) -> Iterable[Weights]:
        """How often each cluster of each population is drawn; kept if small."""
        if self.num_draws * sum(sizes) > KEEP:
            return self._fresh(sizes)
        if sizes not in self._kept:
            self._kept[sizes] = next(iter(self._fresh(sizes)))
        return (self._kept[sizes],)

    def _fresh(self, sizes: tuple[int, ...]) -> Iterator[Weights]:
        block = max(1, KEEP // sum(sizes))
        rngs = [np.random.default_rng([self.seed, 1 + axis]) for axis in range(len(sizes))]
        for start in range(0, self.num_draws, block):
            num = min(block, self.num_draws - start)
            yield tuple(_weights(rng, num, n) for rng, n in zip(rngs, sizes, strict=True))


def _weights(rng: np.random.Generator, num: int, size: int) -> Floats:
    """How often each of `size` clusters is drawn, in each of `num` draws."""
    cells = rng.integers(size, size=(num, size)) + size * np.arange(num)[:, None]
    counts = np.bincount(cells.ravel(), minlength=num * size)
    return counts.reshape(num, size).astype(np.float64)
