"""How often to save, and what the history of a run says about its machines."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
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


STATE_BITS = 718e6 * 8
STALL, STEP, RESTART = 0.15, 1.0, 180.0
HOURS, RUNS = 200.0, 20
HISTORY = 20
"""Attempts that a worker reads when it starts."""
SWEEP = (5, 10, 20, 40, 60, 120, 240, 300, 600, 900, 1800, 3600)


def useful(lifetime: float, interval: float, commit: float) -> float:
    """Seconds of training that survive one machine's life."""
    cycle = interval + STALL
    return interval * max(0.0, np.floor((lifetime - commit) / cycle))


def goodput(lives: list[float], intervals: list[float], commit: float) -> float:
    done = sum(useful(life, t, commit) for life, t in zip(lives, intervals, strict=True))
    return done / sum(life + RESTART for life in lives)


def automatic(lives: list[float], commit: float) -> list[float]:
    """The interval of each machine, from what the run's history tells when it starts."""
    now, starts, intervals = datetime(2026, 1, 1, tzinfo=UTC), list[EarlierAttempt](), list[float]()
    for life in lives:
        mtbf = mean_time_between_failures(starts[-HISTORY:], now)
        intervals.append(save_interval(STALL, commit, STEP, mtbf))
        starts.append(EarlierAttempt(now, lost=True))
        now += timedelta(seconds=life + RESTART)
    return intervals


@pytest.mark.parametrize("megabits", [20, 100, 1000])
@pytest.mark.parametrize("mtbf_hours", [0.5, 2, 12])
def test_within_a_hundredth_of_the_best_fixed_interval(mtbf_hours: float, megabits: float) -> None:
    commit = STATE_BITS / (megabits * 1e6)
    rng = np.random.default_rng([int(mtbf_hours * 10), int(megabits)])
    num = max(3, round(HOURS / mtbf_hours))
    runs = [list(rng.exponential(mtbf_hours * 3600, num)) for _ in range(RUNS)]
    own = np.mean([goodput(lives, automatic(lives, commit), commit) for lives in runs])
    # A save cannot begin before the one before it is durable.
    fixed = [
        np.mean([goodput(lives, [max(t, commit)] * num, commit) for lives in runs]) for t in SWEEP
    ]
    assert own >= max(fixed) - 0.01, f"automatic {own:.3f}, best fixed {max(fixed):.3f}"
