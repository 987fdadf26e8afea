"""Sizes of samples against simulated experiments, and against themselves."""

from __future__ import annotations

import numpy as np
import pytest

from tsgb.errors import UsageError
from tsgb.eval.intervals import wilson
from tsgb.eval.power import (
    PlannedSample,
    attempts_needed,
    detectable,
    expected_design_effect,
    measured_design_effect,
)
from tsgb.eval.records import Rate


@pytest.mark.parametrize(
    ("first", "second", "num"),
    # By hand: (1.95996 sqrt(2 p q) + 0.84162 sqrt(p1 q1 + p2 q2))^2 / (p1 - p2)^2.
    [(0.08, 0.04, 553), (0.04, 0.08, 553), (0.5, 0.3, 93), (0.9, 0.5, 20), (0.3, 0.0, 22)],
)
def test_sizes_by_hand(first: float, second: float, num: int) -> None:
    assert attempts_needed(first, second) == num


def power_of(first: float, second: float, num: int, copies: int = 1) -> float:
    """How often the pooled z-test of two simulated arms finds the difference."""
    rng = np.random.default_rng(3)
    draws = [copies * rng.binomial(num // copies, rate, 20_000) / num for rate in (first, second)]
    mean = (draws[0] + draws[1]) / 2
    error = np.sqrt(2 * mean * (1 - mean) * copies / num)
    return float(np.mean(np.abs(draws[0] - draws[1]) > 1.96 * np.maximum(error, 1e-9)))


@pytest.mark.parametrize(("first", "second"), [(0.08, 0.04), (0.5, 0.3), (0.95, 0.9)])
def test_a_sample_of_that_size_has_that_power(first: float, second: float) -> None:
    num = attempts_needed(first, second)
    assert 0.77 < power_of(first, second, num) < 0.83
    assert power_of(first, second, num // 2) < 0.6


def test_copies_of_an_attempt_need_the_design_effect() -> None:
    # Four equal attempts a scenario are one: correlation 1, design effect 4.
    effect = expected_design_effect(4, correlation=1.0)
    num = attempts_needed(0.3, 0.15, design_effect=effect)
    assert num == pytest.approx(4 * attempts_needed(0.3, 0.15), abs=4)
    assert 0.77 < power_of(0.3, 0.15, num, copies=4) < 0.83


def test_what_a_sample_tells_is_the_inverse() -> None:
    found = detectable(0.08, 553)
    assert found is not None
    assert found == pytest.approx(0.04, abs=1e-4)
    assert attempts_needed(0.08, found) <= 553 < attempts_needed(0.08, found + 0.001)
    halved = detectable(0.08, 553, design_effect=2)
    assert halved is not None
    assert halved < 0.03
    assert detectable(0.08, 20) is None
    assert detectable(0.0, 10_000) is None


def test_no_size_for_equal_rates() -> None:
    with pytest.raises(UsageError, match=r"0\.3 from 0\.3"):
        attempts_needed(0.3, 0.3)
    with pytest.raises(UsageError, match="two rates"):
        attempts_needed(0.3, 1.3)


def test_a_wider_interval_means_a_larger_design_effect() -> None:
    ends = wilson(400, 1000)
    independent = Rate(value=0.4, low=ends.low, high=ends.high, n=1000)
    assert measured_design_effect(independent, 1) == pytest.approx(1.0, abs=0.02)
    half = (ends.high - ends.low) / 2
    wide = Rate(value=0.4, low=0.4 - 2 * half, high=0.4 + 2 * half, n=1000)
    assert measured_design_effect(wide, 1) == pytest.approx(4.0, abs=0.05)
    assert measured_design_effect(Rate(value=0.0, low=0.0, high=0.01, n=300), 1) == 1.0
    assert expected_design_effect(0.5) == 1.0


def test_a_plan_says_what_its_sample_tells() -> None:
    small, large = (PlannedSample(attempts=num, per_scenario=1.0) for num in (24, 553))
    assert large.tells(0.08) == pytest.approx(0.04, abs=1e-4)
    assert "8% from 4.0%" in str(large)
    assert "8% from nothing below it" in str(small)
    repeated = PlannedSample(attempts=553, per_scenario=5.0)
    assert "design effect 1.20" in str(repeated)
    assert str(repeated).endswith("takes 663")
