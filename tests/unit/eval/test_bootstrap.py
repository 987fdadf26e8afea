"""The bootstrap covers what it says, pairs its arms and is deterministic."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from tsgb.eval.bootstrap import Difference, Resampler, difference
from tsgb.eval.estimators import AurocEstimator, EceEstimator, RateEstimator
from tsgb.eval.intervals import MISSING
from tsgb.eval.metrics import NUM_BINS, equal_mass_bins


def clustered(rng: np.random.Generator, shift: float, num_clusters: int = 60, size: int = 6):
    """Two arms on the same items: scenario effects are shared, the second arm is `shift` lower."""
    effect = np.repeat(rng.normal(size=num_clusters), size)
    uniform = rng.random(effect.size)
    first = (uniform < expit(effect)).astype(np.int8)
    second = (uniform < expit(effect - shift)).astype(np.int8)
    return np.repeat(np.arange(num_clusters), size), first, second


def paired_rates(
    clusters: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    num_draws: int = 2000,
    seed: int = 0,
) -> Difference:
    """Difference of two rates on the same items; `clusters` holds the scenario of each."""
    shape = (1, int(clusters.max()) + 1)
    zeros = np.zeros_like(clusters)
    resampler = Resampler(num_draws=num_draws, seed=seed)
    arms = [RateEstimator.from_outcomes(arm, zeros, clusters, shape) for arm in (first, second)]
    return difference(*(resampler.sample(arm) for arm in arms))


def test_paired_rates_cover_the_true_difference() -> None:
    rng = np.random.default_rng(0)
    grid = rng.normal(size=200_000)
    truth = float(np.mean(expit(grid) - expit(grid - 0.7)))
    covered = 0
    for trial in range(200):
        found = paired_rates(*clustered(rng, 0.7), num_draws=400, seed=trial)
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_two_levels_cover_when_seeds_share_their_scenarios() -> None:
    """Seeds and scenarios both have effects; scenarios are the same in every seed."""
    rng = np.random.default_rng(1)
    num_seeds, num_clusters, size = 10, 40, 2
    grid = rng.normal(size=200_000) * np.sqrt(0.6**2 + 1.0) - 0.5
    truth = float(np.mean(expit(grid)))
    covered = 0
    seeds, clusters, _ = (
        axis.ravel() for axis in np.indices((num_seeds, num_clusters, size), dtype=np.intp)
    )
    for trial in range(150):
        effect = 0.6 * rng.normal(size=num_seeds)[seeds] + rng.normal(size=num_clusters)[clusters]
        outcomes = (rng.random(effect.size) < expit(effect - 0.5)).astype(np.int8)
        estimator = RateEstimator.from_outcomes(
            outcomes, seeds, clusters, (num_seeds, num_clusters)
        )
        low, high = Resampler(num_draws=400, seed=trial).sample(estimator).interval()
        covered += low <= truth <= high
    assert covered / 150 >= 0.90


def test_pairing_is_tighter_than_independent_draws() -> None:
    clusters, first, second = clustered(np.random.default_rng(3), 0.3)
    paired = paired_rates(clusters, first, second)
    shape = (1, 60)
    zeros = np.zeros_like(clusters)
    loose = difference(
        Resampler(seed=1).sample(RateEstimator.from_outcomes(first, zeros, clusters, shape)),
        Resampler(seed=2).sample(RateEstimator.from_outcomes(second, zeros, clusters, shape)),
    )
    assert paired.high - paired.low < 0.6 * (loose.high - loose.low)


def test_same_seed_same_interval_and_no_global_generator() -> None:
    data = clustered(np.random.default_rng(4), 0.5)
    np.random.seed(1)
    first = paired_rates(*data, seed=9, num_draws=99)
    np.random.seed(2)
    assert paired_rates(*data, seed=9, num_draws=99) == first
    assert paired_rates(*data, seed=10, num_draws=99) != first


def test_identical_arms_differ_by_exactly_nothing() -> None:
    clusters, first, _ = clustered(np.random.default_rng(5), 0.5)
    assert paired_rates(clusters, first, first) == (0.0, 0.0, 0.0, 1.0)


def test_large_sets_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters, first, second = clustered(np.random.default_rng(6), 0.5)
    whole = paired_rates(clusters, first, second, num_draws=2000)
    monkeypatch.setattr("tsgb.eval.bootstrap.KEEP", 60 * 300)
    blocks = paired_rates(clusters, first, second, num_draws=2000)
    assert blocks.value == whole.value
    assert blocks[1:3] == pytest.approx(whole[1:3], abs=0.02)


def test_auroc_matches_the_rank_formula_and_covers() -> None:
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(60), 4)
    harmful = clusters < 25
    first = np.round(rng.normal(size=clusters.size) + harmful, 1)
    second = rng.normal(size=clusters.size)
    # Both classes are numbered apart.
    index = np.where(harmful, clusters, clusters - 25)
    zeros = np.zeros_like(clusters)
    resampler = Resampler(num_draws=2000)
    found = difference(
        *(
            resampler.sample(AurocEstimator.from_scores(arm, zeros, index, harmful, 1))
            for arm in (first, second)
        )
    )
    assert found.value == pytest.approx(
        roc_auc_score(harmful, first) - roc_auc_score(harmful, second)
    )
    assert found.low < found.value < found.high
    assert found.p < 0.01


def test_auroc_without_scores_is_bounded_both_ways() -> None:
    rng = np.random.default_rng(8)
    clusters = np.concatenate([np.arange(30), np.arange(40)])
    harmful = np.arange(70) < 30
    z = rng.normal(size=70) + 1.5 * harmful
    z[:3] = np.nan
    zeros = np.zeros(70, dtype=np.intp)
    sample = Resampler().sample(AurocEstimator.from_scores(z, zeros, clusters, harmful, 1))
    assert (sample.n, sample.errors) == (67, 3)
    assert sample.point == pytest.approx(roc_auc_score(harmful[3:], z[3:]))
    worst = roc_auc_score(harmful, np.where(np.isnan(z), -99.0, z))
    low, high = sample.interval()
    assert low < worst < sample.point < high


def test_ece_matches_its_definition() -> None:
    rng = np.random.default_rng(9)
    z = rng.normal(size=500)
    harmful = rng.random(500) < 0.5
    clusters = rng.integers(0, 50, 500)
    estimator = EceEstimator.from_probabilities(
        expit(z), harmful, np.zeros(500, dtype=np.intp), clusters, (1, 50)
    )
    residuals = np.bincount(equal_mass_bins(expit(z)), harmful - expit(z), NUM_BINS)
    expected = np.abs(residuals).sum() / z.size
    assert Resampler(num_draws=200).sample(estimator).point == pytest.approx(expected)


def test_a_calibrated_guard_has_an_ece_near_zero_and_a_sure_wrong_one_has_one() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(scale=2, size=30_000)

    def point(probability: np.ndarray, harmful: np.ndarray) -> float:
        zeros = np.zeros(probability.size, dtype=np.intp)
        estimator = EceEstimator.from_probabilities(probability, harmful, zeros, zeros, (1, 1))
        return Resampler(num_draws=9).sample(estimator).point

    assert point(expit(z), rng.random(z.size) < expit(z)) < 0.012
    assert point(expit(np.full(10, 50.0)), np.zeros(10, dtype=np.bool_)) == pytest.approx(1.0)


def test_rate_is_the_maximum_over_replicates_and_the_mean_over_seeds() -> None:
    outcomes = np.array([1, 0, 1, 1, 0, 0, 0, 1], dtype=np.int8)
    seeds = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    replicates = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    clusters = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    estimator = RateEstimator.from_outcomes(outcomes, seeds, clusters, (2, 2), replicates)
    sample = Resampler(num_draws=200).sample(estimator)
    assert sample.point == pytest.approx((1.0 + 0.5) / 2)
    assert sample.n == 4


def test_errors_widen_the_bootstrap_and_zero_events_keep_a_width() -> None:
    outcomes = np.zeros(100, dtype=np.int8)
    index = np.arange(100)
    zeros = np.zeros(100, dtype=np.intp)

    def record(values: np.ndarray):
        estimator = RateEstimator.from_outcomes(values, zeros, index, (1, 100))
        return Resampler(num_draws=500).sample(estimator).record()

    clean = record(outcomes)
    assert clean.low == 0.0
    assert clean.high == pytest.approx(0.037, abs=5e-4)
    outcomes[:5] = MISSING
    dirty = record(outcomes)
    assert (dirty.n, dirty.errors) == (95, 5)
    assert dirty.high > 0.09


def test_a_single_cluster_says_nothing() -> None:
    found = paired_rates(
        np.zeros(4, dtype=np.intp), np.ones(4, dtype=np.int8), np.zeros(4, dtype=np.int8)
    )
    assert found == (1.0, -1.0, 1.0, 1.0)
