"""How often to save, and what the history of a run says about its machines."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.checkpoint.interval import (
    LEAST_SECONDS,
    PRIOR_MTBF_SECONDS,
    EarlierAttempt,
    mean_time_between_failures,
    save_interval,
)

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
seconds = st.floats(0.001, 1e5)


def history(*hours: float, lost: bool = True) -> list[EarlierAttempt]:
    return [EarlierAttempt(BEGIN + timedelta(hours=h), lost) for h in hours]


def test_without_a_history_the_prior_counts() -> None:
    assert mean_time_between_failures([], BEGIN) == PRIOR_MTBF_SECONDS


def test_a_long_history_outweighs_the_prior() -> None:
    starts = history(*(0.5 * i for i in range(100)))
    found = mean_time_between_failures(starts, BEGIN + timedelta(hours=50))
    assert found == pytest.approx(1800, rel=0.05)


def test_attempts_that_were_done_are_no_failures() -> None:
    now = BEGIN + timedelta(hours=8)
    quiet = mean_time_between_failures(history(0, 4, lost=False), now)
    assert quiet == PRIOR_MTBF_SECONDS + 8 * 3600
    assert mean_time_between_failures(history(0, 4), now) == quiet / 3


def test_youngs_formula() -> None:
    assert save_interval(0.15, 5, 1, 7200) == pytest.approx(math.sqrt(2 * 0.15 * 7200))


@given(seconds, seconds, seconds, seconds)
def test_an_interval_is_never_shorter_than_a_step_or_a_commit(
    stall: float, commit: float, step: float, mtbf: float
) -> None:
    interval = save_interval(stall, commit, step, mtbf)
    assert interval >= max(commit, step, LEAST_SECONDS)
    assert interval <= save_interval(stall, commit, step, 2 * mtbf)
    assert interval <= save_interval(2 * stall, commit, step, mtbf)


@given(st.floats(0.001, 10), st.floats(300, 1e5))
def test_training_stands_still_for_no_more_than_its_share(stall: float, mtbf: float) -> None:
    """delta / T = sqrt(delta / (2 M)) where nothing else binds."""
    share = stall / save_interval(stall, 0, 0, mtbf)
    assert share <= math.sqrt(stall / (2 * mtbf)) + 1e-9
