"""How figures are written: a bound is not rounded to zero, and no event is not "0 %"."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.eval.intervals import rate_from_counts
from tsgb.eval.wording import in_words, percent, signed_points, title, zero_events


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0 %"), (0.0039, "0.39 %"), (0.041, "4.1 %"), (1.0, "100.0 %")],
)
def test_percent(value: float, text: str) -> None:
    assert percent(value) == text


@given(st.floats(1e-4, 1.0))
def test_what_is_above_zero_is_not_written_as_zero(value: float) -> None:
    assert float(percent(value).removesuffix(" %")) > 0


def test_a_difference_has_a_sign_and_a_true_minus() -> None:
    assert (signed_points(0.079), signed_points(-0.079)) == ("+7.9", "\u22127.9")


def test_no_event_is_told_with_its_bound() -> None:
    none, some = rate_from_counts(0, 768, 0), rate_from_counts(31, 768, 2)
    assert zero_events(none) == "0 / 768, upper bound 0.50 %"  # z² / (n + z²)
    assert in_words(none) == zero_events(none)
    assert zero_events(some) is None
    assert in_words(some).endswith("%), 2 errors")
    assert in_words(None) == "not measured"


def test_a_guard_that_nobody_knows_keeps_its_name() -> None:
    assert (title("selfplay"), title("mine")) == ("Self-play", "mine")
