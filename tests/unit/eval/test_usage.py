"""Time and money of answers: nothing is lost on the way from a question to the report."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.eval.usage import NUM_QUANTILES, Meter, Role, pooled_spread, pooled_usage, spread
from tsgb.types import Response

ANSWER = Response(text="yes", latency_seconds=0.2, tokens_in=100, tokens_out=10)
FAILED = Response(
    text="", finish_reason="error", error="timeout", attempts=4, billed_unknown=2, tokens_in=5
)


def test_answers_and_errors_are_counted_and_a_cell_begins_anew() -> None:
    meter = Meter("gpt")
    assert meter.take() is None
    for response in (ANSWER, ANSWER, FAILED):
        meter.count(response)
    first = meter.take()
    meter.count(ANSWER)
    second = meter.take()
    assert first is not None
    assert second is not None
    [found] = pooled_usage([first, second], {("target", "gpt"): (2.0, 8.0)})
    assert (found.answers, found.errors, found.calls, found.billed_unknown) == (3, 1, 7, 2)
    assert found.dollars == pytest.approx((300 * 2 + 30 * 8) / 1e6)
    assert found.latency is not None
    assert (found.latency.n, found.latency.median) == (3, 200.0)


@pytest.mark.parametrize("prices", [{}, {("target", "gpt"): None}], ids=["unknown", "undeclared"])
def test_a_target_without_prices_has_tokens_and_no_cost(
    prices: dict[tuple[Role, str], None],
) -> None:
    meter = Meter("gpt")
    meter.count(ANSWER)
    [found] = pooled_usage([meter.take() or {}], prices)
    assert (found.dollars, found.tokens_in) == (None, 100)


def test_a_cost_is_not_told_where_some_answers_tell_no_tokens() -> None:
    meter = Meter("gpt")
    meter.count(ANSWER)
    meter.count(Response(text="no"))
    [found] = pooled_usage([meter.take() or {}], {("target", "gpt"): (2.0, 8.0)})
    assert (found.dollars, found.untold) == (None, 1)


def test_a_target_and_a_judge_of_one_name_stay_apart() -> None:
    meters = [Meter("gpt"), Meter("gpt", "judge")]
    for meter in meters:
        meter.count(ANSWER)
    found = pooled_usage([meter.take() or {} for meter in meters], {})
    assert [(one.name, one.role) for one in found] == [("gpt", "target"), ("gpt", "judge")]


@given(st.lists(st.floats(0.1, 1e5), min_size=1, max_size=400))
def test_a_shortened_sample_keeps_its_quantiles(taken: list[float]) -> None:
    short = spread(taken)
    assert len(short["quantiles"]) <= NUM_QUANTILES
    found = pooled_spread([short])
    assert found is not None
    assert found.n == len(taken)
    # Between neighbours of the quantile in the sample, whichever definition of it is taken.
    for value, level in ((found.median, 0.5), (found.p95, 0.95)):
        low, high = np.quantile(taken, [max(0, level - 0.02), min(1, level + 0.02)])
        ends = np.quantile(taken, level, method="lower"), np.quantile(taken, level, method="higher")
        assert min(low, ends[0]) - 0.01 <= value <= max(high, ends[1]) + 0.01


def test_samples_count_by_their_size() -> None:
    found = pooled_spread([spread([1.0] * 900), spread([100.0] * 100)])
    assert found is not None
    assert (found.n, found.median, found.p95) == (1000, 1.0, 100.0)
    assert pooled_spread([spread([])]) is None
