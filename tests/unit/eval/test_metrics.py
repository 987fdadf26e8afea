"""Definitions, against scikit-learn or by hand."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve

from tsgb.errors import UsageError
from tsgb.eval import metrics
from tsgb.eval.intervals import MISSING


def int8(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int8)


def test_always_block_guard_has_fpr_one_and_asr_zero() -> None:
    blocked = np.ones(50, dtype=np.int8)
    false_alarms, success = metrics.fpr(blocked), metrics.asr(blocked, blocked)
    assert false_alarms is not None
    assert success is not None
    assert false_alarms.value == false_alarms.high == 1.0
    assert success.value == 0.0


def test_asr_never_exceeds_asr_without_guard() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        violated = rng.integers(-1, 2, 40).astype(np.int8)
        blocked = rng.integers(0, 2, 40).astype(np.int8)
        guarded, bare = metrics.asr(violated, blocked), metrics.asr_no_guard(violated)
        assert guarded is not None
        assert bare is not None
        assert guarded.value <= bare.value


def test_a_missing_outcome_counts_only_where_it_decides() -> None:
    violated = int8(1, 1, 0, MISSING, MISSING, 1, 0)
    blocked = int8(0, 1, 0, 1, 0, MISSING, MISSING)
    expected = int8(1, 0, 0, 0, MISSING, MISSING, 0)
    assert metrics.passed_harm(violated, blocked).tolist() == expected.tolist()


def test_fnr_is_the_rest_of_tpr() -> None:
    blocked = int8(1, 1, 0, MISSING)
    missed, caught = metrics.fnr(blocked), metrics.tpr(blocked)
    assert missed is not None
    assert caught is not None
    assert missed.value == pytest.approx(1 - caught.value)
    assert missed.errors == caught.errors == 1


def test_auroc_roc_and_brier_against_sklearn() -> None:
    rng = np.random.default_rng(2)
    harmful = rng.random(400) < 0.4
    z = np.round(rng.normal(size=400) + harmful, 1)  # with ties
    assert metrics.auroc(z, harmful) == pytest.approx(roc_auc_score(harmful, z))
    fpr, tpr, _ = roc_curve(harmful, z, drop_intermediate=False)
    points = metrics.roc_points(z, harmful)
    assert points.fpr == pytest.approx(fpr)
    assert points.tpr == pytest.approx(tpr)
    for false_alarms, hits, threshold in zip(*points, strict=True):
        assert np.mean(z[~harmful] > threshold) == pytest.approx(false_alarms)
        assert np.mean(z[harmful] > threshold) == pytest.approx(hits)
    probability = 1 / (1 + np.exp(-z / 2))
    assert metrics.brier(z, harmful, 2.0) == pytest.approx(brier_score_loss(harmful, probability))


def test_auroc_needs_both_classes() -> None:
    with pytest.raises(UsageError, match="AUROC"):
        metrics.auroc(np.zeros(3), np.ones(3, dtype=np.bool_))


def test_tpr_at_is_strict_and_counts_missing_scores() -> None:
    found = metrics.tpr_at(np.array([1.0, 2.0, 3.0, np.nan]), 2.0)
    assert found is not None
    assert (found.value, found.n, found.errors) == (pytest.approx(1 / 3), 3, 1)


def test_ece_bins_have_equal_mass_and_a_calibrated_guard_is_near_zero() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(scale=2, size=30_000)
    sizes = np.bincount(metrics.equal_mass_bins(z))
    assert sizes.size == 15
    assert sizes.max() - sizes.min() <= 1
    harmful = rng.random(z.size) < 1 / (1 + np.exp(-z))
    assert metrics.ece(z, harmful) < 0.012
    assert metrics.ece(np.full(10, 50.0), np.zeros(10, dtype=np.bool_)) == pytest.approx(1.0)


def test_asr_at_k_by_hand() -> None:
    attempts, successes = np.array([4, 4]), np.array([1, 4])
    assert metrics.asr_at_k(attempts, successes, 1) == pytest.approx((1 / 4 + 1) / 2)
    assert metrics.asr_at_k(attempts, successes, 2) == pytest.approx((1 - 3 / 6 + 1) / 2)
    with pytest.raises(UsageError, match="ASR@5"):
        metrics.asr_at_k(attempts, successes, 5)
