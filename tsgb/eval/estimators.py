"""Figures of one seed as functions of how often each scenario was drawn.

They are summed up once per scenario, so that ten thousand draws are one matrix product.
Axes: D draws, S seeds, R replicates (best responses), C clusters (scenarios), B bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tsgb.eval.intervals import MISSING, Outcomes
from tsgb.eval.metrics import NUM_BINS, Bools, Floats, equal_mass_bins

Indices = NDArray[np.intp]
Weights = tuple[Floats, ...]
"""(D, C) for each population of clusters that is drawn on its own."""
Errors = Literal["dropped", "low", "high"]
"""Items without an outcome: left out, or all read so that the figure is as low (high) as can be."""


class Estimator(Protocol):
    """A figure that the bootstrap can resample."""

    @property
    def num_seeds(self) -> int:
        """Training seeds."""
        ...

    @property
    def num_clusters(self) -> tuple[int, ...]:
        """Clusters of each population."""
        ...

    @property
    def num_items(self) -> tuple[int, int]:
        """Scored items and errors, over all seeds."""
        ...

    def draws(self, seed: int, weights: Weights, errors: Errors) -> Floats:
        """The figure of seed number `seed` for each row of the weights; NaN where undefined."""
        ...

    def units(self, errors: Errors) -> Floats:
        """[U] figures of the items themselves, of each unit of the upper level."""
        ...


def seed_figures(estimator: Estimator, errors: Errors) -> Floats:
    """[S] figures of the items themselves, of each seed."""
    ones = tuple(np.ones((1, num)) for num in estimator.num_clusters)
    return np.array(
        [float(estimator.draws(seed, ones, errors)[0]) for seed in range(estimator.num_seeds)]
    )


@dataclass(frozen=True)
class RateEstimator:
    """Rate of an event; with several replicates, the highest of their rates."""

    events: Floats
    """(S, R, C), as the other two."""
    scored: Floats
    """(S, R, C) items with an outcome."""
    errors: Floats
    """(S, R, C) items without an outcome."""

    @classmethod
    def from_outcomes(
        cls,
        outcomes: Outcomes,
        seeds: Indices,
        clusters: Indices,
        shape: tuple[int, int],
        replicates: Indices | None = None,
    ) -> RateEstimator:
        """Count items; `shape` is (seeds, clusters)."""
        which = np.zeros_like(seeds) if replicates is None else replicates
        full = (shape[0], int(which.max(initial=0)) + 1, shape[1])
        cell = np.ravel_multi_index((seeds, which, clusters), full)

        def count(mask: Bools) -> Floats:
            counts = np.bincount(cell[mask], minlength=int(np.prod(full)))
            return counts.reshape(full).astype(np.float64)

        return cls(count(outcomes == 1), count(outcomes != MISSING), count(outcomes == MISSING))

    @property
    def num_seeds(self) -> int:
        """Training seeds."""
        return self.events.shape[0]

    @property
    def num_clusters(self) -> tuple[int, ...]:
        """Clusters."""
        return (self.events.shape[2],)

    @property
    def num_items(self) -> tuple[int, int]:
        """Scored items and errors of the highest replicate of each seed."""
        counts = [self.counts(seed) for seed in range(self.num_seeds)]
        return sum(c[1] for c in counts), sum(c[2] for c in counts)

    @property
    def num_events(self) -> int:
        """Events of the highest replicate of each seed."""
        return sum(self.counts(seed)[0] for seed in range(self.num_seeds))

    def counts(self, seed: int) -> tuple[int, int, int]:
        """Events, scored items and errors of the replicate with the highest rate."""
        events, scored, errors = (
            counts[seed].sum(axis=1) for counts in (self.events, self.scored, self.errors)
        )
        rates = np.where(scored > 0, events / np.maximum(scored, 1), -1.0)
        worst = int(np.argmax(rates))
        return int(events[worst]), int(scored[worst]), int(errors[worst])

    def draws(self, seed: int, weights: Weights, errors: Errors) -> Floats:
        """Highest rate over replicates, within each draw."""
        events, items = self.events[seed], self.scored[seed]
        if errors != "dropped":
            items = items + self.errors[seed]
        if errors == "high":
            events = events + self.errors[seed]
        used = items.sum(axis=1) > 0
        hits, total = weights[0] @ events[used].T, weights[0] @ items[used].T
        return self._of_replicates(_ratio(hits, total))

    def units(self, errors: Errors) -> Floats:
        """[S] rates of the seeds."""
        return seed_figures(self, errors)

    def _of_replicates(self, rates: Floats) -> Floats:
        """Return the figure [D] of the rates [D, R] of replicates."""
        return np.fmax.reduce(rates, axis=1, initial=np.nan)


class MeanRateEstimator(RateEstimator):
    """Rate of an event; with several replicates, the mean of their rates."""

    def counts(self, seed: int) -> tuple[int, int, int]:
        """Events, scored items and errors of all replicates."""
        events, scored, errors = (
            int(counts[seed].sum()) for counts in (self.events, self.scored, self.errors)
        )
        return events, scored, errors

    def units(self, errors: Errors) -> Floats:
        """[S] rates of the seeds; of a single seed [R], those of its replicates."""
        if self.num_seeds > 1:
            return seed_figures(self, errors)
        parts = [
            type(self)(self.events[:, [r]], self.scored[:, [r]], self.errors[:, [r]])
            for r in range(self.events.shape[1])
            if self.scored[0, r].sum() + self.errors[0, r].sum() > 0
        ]
        return np.concatenate([seed_figures(part, errors) for part in parts])

    def _of_replicates(self, rates: Floats) -> Floats:
        known = ~np.isnan(rates)
        return _ratio(np.where(known, rates, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))


@dataclass(frozen=True)
class AurocEstimator:
    """AUROC. Harmful and benign clusters are drawn apart, so that no draw lacks a class."""

    wins: dict[Errors, list[Floats]]
    """[S] arrays (C, C') of sums over pairs: 1 if the harmful one scores higher, 1/2 if equal."""
    harmful: dict[Errors, list[Floats]]
    """[S] arrays (C) of harmful items."""
    benign: dict[Errors, list[Floats]]
    """[S] arrays (C') of benign items."""
    num_items: tuple[int, int]
    """Scored items and errors, over all seeds."""

    @classmethod
    def from_scores(
        cls, scores: Floats, seeds: Indices, clusters: Indices, harmful: Bools, num_seeds: int
    ) -> AurocEstimator:
        """`clusters` are numbered apart for harmful and benign items; NaN scores are errors."""
        shape = tuple(int(clusters[kind].max(initial=-1)) + 1 for kind in (harmful, ~harmful))
        missing = np.isnan(scores)
        out = cls({}, {}, {}, (int((~missing).sum()), int(missing.sum())))
        for errors, z in _score_readings(scores, harmful).items():
            out.wins[errors], out.harmful[errors], out.benign[errors] = [], [], []
            for seed in range(num_seeds):
                here = (seeds == seed) & ~np.isnan(z)
                pos, neg = here & harmful, here & ~harmful
                out.wins[errors].append(
                    _wins((z[pos], clusters[pos]), (z[neg], clusters[neg]), shape)
                )
                out.harmful[errors].append(_sizes(clusters[pos], shape[0]))
                out.benign[errors].append(_sizes(clusters[neg], shape[1]))
        return out

    @property
    def num_seeds(self) -> int:
        """Training seeds."""
        return len(self.wins["dropped"])

    @property
    def num_clusters(self) -> tuple[int, ...]:
        """Harmful, benign."""
        return self.wins["dropped"][0].shape

    def draws(self, seed: int, weights: Weights, errors: Errors) -> Floats:
        """Won pairs over all pairs, both linear in either weight."""
        key: Errors = errors if errors in self.wins else "dropped"
        wins = np.einsum("dc,dc->d", weights[0] @ self.wins[key][seed], weights[1])
        pairs = (weights[0] @ self.harmful[key][seed]) * (weights[1] @ self.benign[key][seed])
        return _ratio(wins, pairs)

    def units(self, errors: Errors) -> Floats:
        """[S] figures of the seeds."""
        return seed_figures(self, errors)


MAX_FPR = 0.02
"""Share of benign prompts below which the partial area is taken."""


@dataclass(frozen=True)
class PartialAurocEstimator:
    """Area under the ROC curve up to `MAX_FPR`, standardised: 1 is perfect, 1/2 is chance.

    An area A below a rate F becomes `(1 + (A - F^2 / 2) / (F - F^2 / 2)) / 2` (McClish 1989,
    Medical Decision Making 9:190). Harmful and benign clusters are drawn apart.
    """

    above: dict[Errors, list[Floats]]
    """[S] arrays (C, Z) of harmful items that score more than the z-th highest benign score."""
    equal: dict[Errors, list[Floats]]
    """[S] arrays (C, Z) of harmful items that score the same."""
    alarms: dict[Errors, list[Floats]]
    """[S] arrays (C', Z) of benign items with that score, highest first."""
    harmful: dict[Errors, list[Floats]]
    """[S] arrays (C) of harmful items."""
    benign: dict[Errors, list[Floats]]
    """[S] arrays (C') of benign items."""
    num_items: tuple[int, int]
    """Scored items and errors, over all seeds."""

    @classmethod
    def from_scores(
        cls, scores: Floats, seeds: Indices, clusters: Indices, harmful: Bools, num_seeds: int
    ) -> PartialAurocEstimator:
        """`clusters` are numbered apart for harmful and benign items; NaN scores are errors."""
        shape = tuple(int(clusters[kind].max(initial=-1)) + 1 for kind in (harmful, ~harmful))
        missing = np.isnan(scores)
        out = cls({}, {}, {}, {}, {}, (int((~missing).sum()), int(missing.sum())))
        for errors, z in _score_readings(scores, harmful).items():
            columns = (out.above, out.equal, out.alarms, out.harmful, out.benign)
            for column in columns:
                column[errors] = []
            for seed in range(num_seeds):
                here = (seeds == seed) & ~np.isnan(z)
                pos, neg = here & harmful, here & ~harmful
                levels, rank = np.unique(-z[neg], return_inverse=True)
                counts = (
                    _count_above(z[pos], clusters[pos], -levels, shape[0], "left"),
                    _count_above(z[pos], clusters[pos], -levels, shape[0], "right"),
                    np.zeros((shape[1], levels.size)),
                    _sizes(clusters[pos], shape[0]),
                    _sizes(clusters[neg], shape[1]),
                )
                np.add.at(counts[2], (clusters[neg], rank), 1.0)
                parts = (counts[0], counts[1] - counts[0], *counts[2:])
                for column, part in zip(columns, parts, strict=True):
                    column[errors].append(part)
        return out

    @property
    def num_seeds(self) -> int:
        """Training seeds."""
        return len(self.above["dropped"])

    @property
    def num_clusters(self) -> tuple[int, ...]:
        """Harmful, benign."""
        return self.harmful["dropped"][0].size, self.benign["dropped"][0].size

    def draws(self, seed: int, weights: Weights, errors: Errors) -> Floats:
        """Area of each draw; only the highest benign scores, as many as it takes, are looked at."""
        key: Errors = errors if errors in self.above else "dropped"
        num_harmful = weights[0] @ self.harmful[key][seed]
        num_benign = weights[1] @ self.benign[key][seed]
        alarms = self.alarms[key][seed]
        num = max(1, round(2 * MAX_FPR * alarms.shape[1]))
        fpr = np.cumsum(_shares(weights[1] @ alarms[:, :num], num_benign), axis=1)
        while num < alarms.shape[1] and not np.all(fpr[:, -1:] >= MAX_FPR):
            num = min(2 * num, alarms.shape[1])
            fpr = np.cumsum(_shares(weights[1] @ alarms[:, :num], num_benign), axis=1)
        low = _shares(weights[0] @ self.above[key][seed][:, :num], num_harmful)
        high = low + _shares(weights[0] @ self.equal[key][seed][:, :num], num_harmful)
        # The curve rises from `low` to `high` while false alarms go from `before` to `fpr`.
        before = np.concatenate([np.zeros((fpr.shape[0], 1)), fpr[:, :-1]], axis=1)
        width = np.minimum(fpr, MAX_FPR) - np.minimum(before, MAX_FPR)
        taken = np.divide(width, fpr - before, out=np.zeros_like(width), where=fpr > before)
        area = np.sum(width * (low + (high - low) * taken / 2), axis=1)
        chance = MAX_FPR**2 / 2
        return 0.5 * (1 + (area - chance) / (MAX_FPR - chance))

    def units(self, errors: Errors) -> Floats:
        """[S] figures of the seeds."""
        return seed_figures(self, errors)


@dataclass(frozen=True)
class EceEstimator:
    """Expected calibration error, in equal-mass bins that the sample itself fixes."""

    residuals: list[Floats]
    """[S] arrays (C, B) of sums of label minus probability."""
    sizes: list[Floats]
    """[S] arrays (C) of items."""
    num_items: tuple[int, int]
    """Scored items and errors, over all seeds."""

    @classmethod
    def from_probabilities(
        cls,
        probability: Floats,
        harmful: Bools,
        seeds: Indices,
        clusters: Indices,
        shape: tuple[int, int],
    ) -> EceEstimator:
        """NaN probabilities are errors: counted, and left out."""
        known = ~np.isnan(probability)
        out = cls([], [], (int(known.sum()), int((~known).sum())))
        for seed in range(shape[0]):
            here = (seeds == seed) & known
            cell = clusters[here] * NUM_BINS + equal_mass_bins(probability[here])
            sums = np.bincount(cell, harmful[here] - probability[here], shape[1] * NUM_BINS)
            out.residuals.append(sums.reshape(shape[1], NUM_BINS).astype(np.float64))
            out.sizes.append(_sizes(clusters[here], shape[1]))
        return out

    @property
    def num_seeds(self) -> int:
        """Training seeds."""
        return len(self.residuals)

    @property
    def num_clusters(self) -> tuple[int, ...]:
        """Clusters."""
        return (self.sizes[0].size,)

    def draws(self, seed: int, weights: Weights, errors: Errors) -> Floats:  # noqa: ARG002
        """Errors have no probability that could be read the other way."""
        items = weights[0] @ self.sizes[seed]
        gaps = np.abs(weights[0] @ self.residuals[seed]).sum(axis=1)
        return _ratio(gaps, items)

    def units(self, errors: Errors) -> Floats:
        """[S] figures of the seeds."""
        return seed_figures(self, errors)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """NaN where there is nothing to divide by."""
    undefined = np.full(denominator.shape, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)


def _shares(counts: Floats, totals: Floats) -> Floats:
    """Return counts [D, Z] as shares of totals [D]; NaN where there is nothing to divide by."""
    return _ratio(counts, np.broadcast_to(totals[:, None], counts.shape))


def _score_readings(scores: Floats, harmful: Bools) -> dict[Errors, Floats]:
    """Return the scores with missing ones left out, and read so that the area is low, or high."""
    missing = np.isnan(scores)
    readings: dict[Errors, Floats] = {"dropped": scores}
    if missing.any():
        readings["low"] = np.where(missing, np.where(harmful, -np.inf, np.inf), scores)
        readings["high"] = np.where(missing, np.where(harmful, np.inf, -np.inf), scores)
    return readings


def _count_above(
    scores: Floats,
    clusters: Indices,
    levels: Floats,
    num: int,
    side: Literal["left", "right"],
) -> Floats:
    """Return [C, Z] scores of each cluster that are above a level, or at it too (`right`)."""
    out = np.zeros((num, levels.size))
    for cluster in np.unique(clusters):
        z = np.sort(-scores[clusters == cluster])
        out[cluster] = np.searchsorted(z, -levels, side)
    return out


def _sizes(clusters: Indices, num: int) -> Floats:
    return np.bincount(clusters, minlength=num).astype(np.float64)


def _wins(
    pos: tuple[Floats, Indices], neg: tuple[Floats, Indices], shape: tuple[int, ...]
) -> Floats:
    """Pairs won by the harmful item, summed over each pair of clusters."""
    out = np.zeros(shape)
    for cluster in np.unique(neg[1]):
        z = np.sort(neg[0][neg[1] == cluster])
        won = np.searchsorted(z, pos[0], "left") + np.searchsorted(z, pos[0], "right")
        out[:, cluster] = np.bincount(pos[1], won / 2, shape[0])
    return out
