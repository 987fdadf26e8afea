"""Definitions, against scikit-learn or by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from tsgb.eval import metrics
from tsgb.eval.intervals import MISSING, rate_from_counts
from tsgb.eval.records import Rate


def int8(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int8)


def rate(outcomes: np.ndarray) -> Rate | None:
    """Rate of the event, with the items without an outcome as errors."""
    errors = np.count_nonzero(outcomes == MISSING)
    return rate_from_counts(np.count_nonzero(outcomes == 1), outcomes.size - errors, errors)


def test_asr_never_exceeds_asr_without_guard() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        violated = rng.integers(-1, 2, 40).astype(np.int8)
        blocked = rng.integers(0, 2, 40).astype(np.int8)
        guarded, bare = rate(metrics.passed_harm(violated, blocked)), rate(violated)
        assert guarded is not None
        assert bare is not None
        assert guarded.value <= bare.value


def test_a_missing_outcome_counts_only_where_it_decides() -> None:
    violated = int8(1, 1, 0, MISSING, MISSING, 1, 0)
    blocked = int8(0, 1, 0, 1, 0, MISSING, MISSING)
    expected = int8(1, 0, 0, 0, MISSING, MISSING, 0)
    assert metrics.passed_harm(violated, blocked).tolist() == expected.tolist()


def test_roc_against_sklearn() -> None:
    rng = np.random.default_rng(2)
    harmful = rng.random(400) < 0.4
    z = np.round(rng.normal(size=400) + harmful, 1)  # with ties
    fpr, tpr, _ = roc_curve(harmful, z, drop_intermediate=False)
    points = metrics.roc_points(z, harmful)
    assert points.fpr == pytest.approx(fpr)
    assert points.tpr == pytest.approx(tpr)
    for false_alarms, hits, threshold in zip(*points, strict=True):
        assert np.mean(z[~harmful] > threshold) == pytest.approx(false_alarms)
        assert np.mean(z[harmful] > threshold) == pytest.approx(hits)


def test_bins_have_equal_mass() -> None:
    sizes = np.bincount(metrics.equal_mass_bins(np.random.default_rng(4).normal(size=30_001)))
    assert sizes.size == 15
    assert sizes.max() - sizes.min() <= 1
