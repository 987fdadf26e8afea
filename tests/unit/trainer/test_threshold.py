"""The threshold keeps its promise, and says so when it cannot."""

from collections.abc import Iterator

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit

from tsgb.errors import UsageError
from tsgb.trainer.threshold import (
    PRESETS,
    certifies,
    fit_temperature,
    min_calibration_size,
    np_threshold,
    preset_thresholds,
)


@pytest.mark.parametrize(
    ("alpha", "delta", "least"),
    [
        pytest.param(0.01, 0.05, 299, id="1pc"),
        pytest.param(0.01, 0.10, 230, id="1pc-loose"),
        pytest.param(0.02, 0.05, 149, id="2pc"),
        pytest.param(0.05, 0.05, 59, id="5pc"),
        pytest.param(0.10, 0.10, 22, id="10pc-loose"),
        pytest.param(0.001, 0.05, 2995, id="permissive"),
    ],
)
def test_min_calibration_size(alpha: float, delta: float, least: int) -> None:
    assert min_calibration_size(alpha, delta) == least
    assert np_threshold(np.arange(least), alpha, delta).order == least
    with pytest.raises(UsageError, match=rf"at least {least} .* got {least - 1}"):
        np_threshold(np.arange(least - 1), alpha, delta)


@pytest.mark.parametrize(("num", "allowed"), [(299, 0), (1000, 4), (2000, 12), (5000, 38)])
def test_allowed_false_alarms(num: int, allowed: int) -> None:
    threshold = np_threshold(np.arange(num), 0.01, 0.05)
    assert num - threshold.order == allowed
    assert np.count_nonzero(threshold.blocks(np.arange(num))) == allowed
    assert threshold.fpr_upper <= 0.01
    bound = stats.binomtest(allowed, num, alternative="less").proportion_ci(0.95, "exact").high
    assert threshold.fpr_upper == pytest.approx(bound, rel=1e-9)


def test_order_is_the_smallest_that_qualifies() -> None:
    for num in (299, 473, 474, 1234):
        order = np_threshold(np.arange(num), 0.01, 0.05).order
        assert stats.binom.sf(order - 1, num, 0.99) <= 0.05
        assert stats.binom.sf(order - 2, num, 0.99) > 0.05


@pytest.mark.parametrize("num", [299, 1000])
def test_promise_holds_in_simulation(num: int) -> None:
    """P(FPR > alpha) <= delta: for uniform scores the true FPR of a threshold t is 1 - t."""
    rng = np.random.default_rng(7)
    trials = 4000
    over = sum(1 - np_threshold(rng.random(num), 0.01, 0.05).value > 0.01 for _ in range(trials))
    # Three standard errors of a simulated 5 %.
    assert over / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


def samples() -> Iterator[ParameterSet]:
    """Shapes of samples; the default run takes both, without, with little and much correlation."""
    kept = {(24, 62, 0.4), (60, 12, 0.0), (60, 12, 0.1)}
    for shape in ((24, 62), (60, 12)):
        for correlation in (0.0, 0.1, 0.2, 0.4):
            marks = [] if (*shape, correlation) in kept else [pytest.mark.slow]
            yield pytest.param(*shape, correlation, marks=marks)


@pytest.mark.parametrize(("scenarios", "prompts", "correlation"), [*samples()])
def test_promise_holds_among_prompts_of_few_scenarios(
    scenarios: int, prompts: int, correlation: float
) -> None:
    """As independent prompts these would exceed their budget in up to a quarter of samples."""
    rng = np.random.default_rng([8, scenarios, int(10 * correlation)])
    names = np.repeat([f"S-{number}" for number in range(scenarios)], prompts).tolist()
    trials, over, naive = 400, 0, 0
    for _ in range(trials):
        effects = np.sqrt(correlation) * np.repeat(rng.normal(size=scenarios), prompts)
        z = effects + np.sqrt(1 - correlation) * rng.normal(size=scenarios * prompts)
        found = np_threshold(z, 0.01, 0.05, names)
        over += found.holds and stats.norm.sf(found.value) > 0.01
        naive += stats.norm.sf(np_threshold(z, 0.01, 0.05).value) > 0.01
    assert over / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)
    if scenarios == 24 and correlation == 0.4:
        assert naive / trials > 0.15


def test_a_budget_that_too_few_scenarios_speak_for_does_not_hold() -> None:
    """Prompts of a scenario that are all alike are one prompt."""
    names = [f"S-{number % 24}" for number in range(1500)]
    rng = np.random.default_rng(9)
    z = rng.normal(size=24)[np.arange(1500) % 24] + 0.1 * rng.normal(size=1500)
    found = np_threshold(z, 0.01, 0.05, names)
    assert not found.holds
    assert found.order == found.num
    assert found.value == z.max()
    assert found.num_scenarios == 24
    assert found.correlation > 0.9
    # Three in 24 would be the bound of Clopper and Pearson for 24 scenarios without an alarm.
    assert 0.03 < found.fpr_upper < 0.125


def test_scenarios_of_one_prompt_each_are_independent_prompts() -> None:
    z = np.random.default_rng(10).normal(size=1000)
    alone = np_threshold(z, 0.01, 0.05, [str(number) for number in range(1000)])
    assert (alone.value, alone.order, alone.fpr_upper) == (
        (same := np_threshold(z, 0.01, 0.05)).value,
        same.order,
        same.fpr_upper,
    )
    assert alone.holds
    assert alone.num_scenarios == 1000


def test_ties_only_make_it_safer() -> None:
    rng = np.random.default_rng(3)
    scores = np.round(rng.normal(size=2000), 1)
    assert np.mean(np_threshold(scores, 0.05).blocks(scores)) <= 0.05


def test_constant_scores_block_nothing() -> None:
    assert not np_threshold(np.zeros(299)).blocks(np.zeros(5)).any()


def test_nan_is_refused() -> None:
    with pytest.raises(UsageError, match="NaN"):
        np_threshold([*range(400), float("nan")])


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1])
def test_budget_must_be_a_probability(alpha: float) -> None:
    with pytest.raises(UsageError, match="alpha"):
        min_calibration_size(alpha)


def test_presets_are_left_out_when_too_few_scores() -> None:
    assert set(preset_thresholds(np.arange(400))) == {"strict", "balanced"}
    full = preset_thresholds(np.arange(3000))
    assert set(full) == set(PRESETS)
    assert full["strict"].value < full["balanced"].value < full["permissive"].value


def test_temperature_is_recovered() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(scale=3.0, size=20_000)
    labels = rng.random(z.size) < expit(z / 2.5)
    assert fit_temperature(z, labels) == pytest.approx(2.5, rel=0.05)


def test_temperature_of_separable_scores_is_bounded() -> None:
    assert fit_temperature([-1.0, 1.0], [False, True]) == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        pytest.param([1.0, 2.0], [True, True], id="one-class"),
        pytest.param([1.0, float("inf")], [True, False], id="infinite"),
        pytest.param([1.0], [True, False], id="lengths"),
    ],
)
def test_temperature_refuses(scores: list[float], labels: list[bool]) -> None:
    with pytest.raises(UsageError, match="temperature"):
        fit_temperature(scores, labels)


def test_prompts_certify_a_budget_where_no_false_alarm_says_enough() -> None:
    assert not certifies([1] * 298)
    assert certifies([1] * 299)
    assert certifies([1] * 299, correlation=0.5)  # each is a scenario of its own
    assert not certifies([30] * 10, correlation=0.5)
    assert certifies([2] * 1000, correlation=0.5)
    assert not certifies([1] * 299, alpha=0.001)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.sampled_from([0.2, 0.5, 0.9]))
def test_what_is_certified_in_spite_of_a_correlation_is_certified_without(
    sizes: list[int], correlation: float
) -> None:
    sizes = [*sizes, *[1] * 280]
    assert certifies(sizes) or not certifies(sizes, correlation=correlation)
