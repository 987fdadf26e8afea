"""Paired cluster bootstrap, and its two-level form over seeds.

Prompts of one scenario are not independent, and neither are guards of one training seed. A draw
takes seeds with replacement and scenarios with replacement. The seeds of one evaluation share their
scenarios, so one set of scenarios is drawn for all of them: drawing anew within each seed would
average the scenarios' luck away and give intervals that are too short (the pigeonhole bootstrap,
Owen 2007, Ann. Appl. Stat. 1:386). With one seed this is the plain cluster bootstrap. With fewer
than five, intervals over seeds are too short all the same.

The draws depend on nothing but the generator's seed and the numbers of seeds and scenarios, so two
arms that were measured on the same scenarios see the same draws: that is the pairing. What is
resampled is in `estimators.py`. Axes: D draws, S seeds, C clusters (scenarios).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tsgb.eval.estimators import (
    Errors,
    Estimator,
    Floats,
    RateEstimator,
    Weights,
)
from tsgb.eval.intervals import LEVEL, Interval, rate_from_counts
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
    """Two-sided p-value in (0, 1]."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A figure, its bootstrap draws, and the draws with every error read the low and high way."""

    point: float
    """Figure of the items themselves."""
    draws: Floats
    """[D] figures of the draws, errors left out."""
    low: Floats
    """[D] figures with every error read so that the figure is low."""
    high: Floats
    """[D] figures with every error read so that the figure is high."""
    n: int
    """Scored items."""
    errors: int
    """Items without an outcome."""
    degenerate: bool
    """A single cluster of a single seed: nothing to resample, any interval is the whole range."""
    rate: RateEstimator | None = None
    """Counts behind the figure, if it is a rate."""

    def interval(self) -> Interval:
        """Percentile interval, stretched so that it holds the figure itself."""
        if self.degenerate:
            return Interval(0.0, 1.0)
        low, high = percentiles(self.low)[0], percentiles(self.high)[1]
        return Interval(min(low, self.point), max(high, self.point))

    def record(self) -> Rate:
        """Return the published figure; of a rate, the hull with Wilson's interval."""
        low, high = self.interval()
        if self.rate is not None:
            closed = rate_from_counts(self.rate.num_events, self.n, self.errors)
            if closed is not None:
                low, high = min(low, closed.low), max(high, closed.high)
        return Rate(value=self.point, low=low, high=high, n=self.n, errors=self.errors)


def percentiles(draws: Floats) -> Interval:
    """The central 95 % of the draws; draws without a value are left out."""
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(draws, (tail, 1 - tail))
    return Interval(float(low), float(high))


def difference(first: Sample, second: Sample) -> Difference:
    """`first - second`, draw by draw."""
    value = first.point - second.point
    if first.degenerate or second.degenerate:
        return Difference(value, -1.0, 1.0, 1.0)
    low = percentiles(first.low - second.high)[0]
    high = percentiles(first.high - second.low)[1]
    return Difference(
        value, min(low, value), max(high, value), two_sided(first.draws - second.draws)
    )


def two_sided(draws: Floats) -> float:
    """Bootstrap p-value of "the figure is zero" (Davison & Hinkley 1997, equation 4.11)."""
    tail = min(int(np.sum(draws <= 0)), int(np.sum(draws >= 0)))
    return min(1.0, 2 * (tail + 1) / (draws.size + 1))


class Resampler:
    """Draws for all arms of one evaluation, from a private generator."""

    def __init__(self, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> None:
        self.num_draws = num_draws
        self.seed = seed
        self._kept: dict[tuple[int, ...], Weights] = {}

    def sample(self, estimator: Estimator) -> Sample:
        """The figure, as the mean over seeds, and its draws."""
        n, errors = estimator.num_items
        ones = tuple(np.ones((1, num)) for num in estimator.num_clusters)
        values = [
            float(estimator.draws(seed, ones, "dropped")[0]) for seed in range(estimator.num_seeds)
        ]
        draws = self._draws(estimator, "dropped")
        return Sample(
            point=float(np.mean(values)),
            draws=draws,
            low=self._draws(estimator, "low") if errors else draws,
            high=self._draws(estimator, "high") if errors else draws,
            n=n,
            errors=errors,
            degenerate=estimator.num_seeds == 1 and min(estimator.num_clusters) < 2,
            rate=estimator if isinstance(estimator, RateEstimator) else None,
        )

    def _draws(self, estimator: Estimator, errors: Errors) -> Floats:
        num_seeds = estimator.num_seeds
        shares = self._shares(num_seeds)
        out = np.zeros(self.num_draws)
        start = 0
        for weights in self._blocks(estimator.num_clusters):
            rows = slice(start, start + weights[0].shape[0])
            for seed in range(num_seeds):
                share = shares[rows, seed]
                figure = estimator.draws(seed, weights, errors)
                out[rows] += np.where(share > 0, share * figure, 0.0)
            start = rows.stop
        return out

    def _shares(self, num_seeds: int) -> Floats:
        """(D, S) shares of each seed in each draw."""
        if (-num_seeds,) not in self._kept:
            rng = np.random.default_rng([self.seed, 0])
            self._kept[-num_seeds,] = (_weights(rng, self.num_draws, num_seeds) / num_seeds,)
        return self._kept[-num_seeds,][0]

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
