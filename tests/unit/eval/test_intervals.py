"""Closed forms against scipy and published examples; errors widen, and too many refuse."""

import pytest
from scipy import stats

from tsgb.eval.intervals import (
    clopper_pearson_upper,
    equal_error_rates,
    error_bounds,
    holm,
    mcnemar,
    rate_from_counts,
    too_many_errors,
    wilson,
)


@pytest.mark.parametrize(
    ("events", "num"), [(0, 100), (32, 320), (10, 1000), (100, 1000), (7, 7), (1, 2)]
)
def test_wilson_against_scipy(events: int, num: int) -> None:
    expected = stats.binomtest(events, num).proportion_ci(0.95, "wilson")
    assert wilson(events, num) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_reference_widths() -> None:
    assert wilson(0, 100) == pytest.approx((0, 0.037), abs=5e-4)
    assert wilson(32, 320) == pytest.approx((0.072, 0.138), abs=5e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_clopper_pearson_upper_against_scipy_and_rule_of_three() -> None:
    expected = stats.binomtest(3, 50, alternative="less").proportion_ci(0.95, "exact").high
    assert clopper_pearson_upper(3, 50) == pytest.approx(expected, abs=1e-12)
    assert clopper_pearson_upper(0, 1000) == pytest.approx(3 / 1000, rel=0.01)
    assert clopper_pearson_upper(5, 5) == 1.0


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 5), (1, 9), (12, 2), (0, 6)])
def test_mcnemar_against_the_binomial_test(first: int, second: int) -> None:
    num = first + second
    expected = stats.binomtest(first, num, 0.5).pvalue if num else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, abs=1e-12)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_rate_counts_errors_and_widens() -> None:
    clean, dirty = rate_from_counts(10, 100), rate_from_counts(10, 95, 5)
    assert clean is not None
    assert dirty is not None
    assert (dirty.n, dirty.errors) == (95, 5)
    assert dirty.value == pytest.approx(10 / 95)
    assert (dirty.low, dirty.high) == (wilson(10, 100).low, wilson(15, 100).high)
    assert error_bounds(dirty) == pytest.approx((0.10, 0.15))
    assert dirty.high - dirty.low > clean.high - clean.low
    assert rate_from_counts(0, 0) is None


def test_errors_on_exactly_the_missed_items_do_not_hide_them() -> None:
    """A server that fails on the 100 unsafe items that the guard misses: true FNR .5, not 0."""
    # The other 100 were blocked: no miss, and all that is scored.
    found = rate_from_counts(0, 100, 100)
    assert found is not None
    assert found.errors == 100
    assert found.low == 0.0
    assert found.high > 0.5
    assert error_bounds(found) == (0.0, 0.5)
    assert too_many_errors(found.errors, 200)


def test_two_percent_of_errors_still_pass() -> None:
    assert not too_many_errors(2, 100)
    assert not too_many_errors(0, 0)
    assert too_many_errors(3, 100)


def test_equal_error_rates_against_scipy() -> None:
    for first, second in [((12, 600), (0, 600)), ((3, 40), (30, 400)), ((0, 10), (7, 300))]:
        share = first[1] / (first[1] + second[1])
        total = first[0] + second[0]
        tails = [stats.binomtest(first[0], total, share, s).pvalue for s in ("less", "greater")]
        assert equal_error_rates(first, second) == pytest.approx(min(1.0, 2 * min(tails)))
    assert equal_error_rates((0, 600), (0, 600)) == 1.0


def test_all_items_in_error() -> None:
    found = rate_from_counts(0, 0, 10)
    assert found is not None
    assert found.n == 0
    assert (found.low, found.high) == (0.0, 1.0)
