"""The partial area under the ROC curve, against scikit-learn and against drawing by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tsgb.eval.bootstrap import Resampler
from tsgb.eval.estimators import MAX_FPR, PartialAurocEstimator

SHIFT, DIGITS = 1.5, 1
"""Scores are rounded, so that many are equal."""


def scores(rng: np.random.Generator, num: int = 900) -> tuple[np.ndarray, ...]:
    harmful = rng.random(num) < 0.3
    z = np.round(rng.normal(size=num) + SHIFT * harmful, DIGITS)
    return z, harmful, rng.integers(12, size=num)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_scikit_learns(seed: int) -> None:
    z, harmful, clusters = scores(np.random.default_rng(seed))
    zeros = np.zeros(z.size, dtype=np.intp)
    found = PartialAurocEstimator.from_scores(z, zeros, clusters, harmful, 1)
    wanted = roc_auc_score(harmful, z, max_fpr=MAX_FPR)
    assert found.units("dropped") == pytest.approx([wanted])


def test_a_draw_of_scenarios_is_that_of_its_items() -> None:
    rng = np.random.default_rng(9)
    z, harmful, clusters = scores(rng)
    found = PartialAurocEstimator.from_scores(
        z, np.zeros(z.size, dtype=np.intp), clusters, harmful, 1
    )
    weights = tuple(rng.integers(3, size=(6, num)).astype(float) for num in found.num_clusters)
    drawn = found.draws(0, weights, "dropped")
    for row, figure in enumerate(drawn):
        times = np.where(harmful, weights[0][row][clusters], weights[1][row][clusters])
        items = np.repeat(np.arange(z.size), times.astype(int))
        assert figure == pytest.approx(roc_auc_score(harmful[items], z[items], max_fpr=MAX_FPR))


def test_it_lies_between_chance_and_perfection() -> None:
    harmful = np.repeat([True, False], 400)
    clusters, zeros = np.tile(np.arange(20), 40), np.zeros(800, dtype=np.intp)
    perfect = np.where(harmful, 1.0, 0.0)
    same = np.zeros(800)
    for z, wanted in ((perfect, 1.0), (same, 0.5)):
        found = PartialAurocEstimator.from_scores(z, zeros, clusters, harmful, 1)
        assert found.units("dropped") == pytest.approx([wanted])


def test_missing_scores_are_read_both_ways() -> None:
    rng = np.random.default_rng(3)
    z, harmful, clusters = scores(rng)
    z[rng.random(z.size) < 0.02] = np.nan
    zeros = np.zeros(z.size, dtype=np.intp)
    sample = Resampler(num_draws=200).sample(
        PartialAurocEstimator.from_scores(z, zeros, clusters, harmful, 1)
    )
    assert sample.low.mean < sample.dropped.mean < sample.high.mean
    assert sample.errors == np.isnan(z).sum()
