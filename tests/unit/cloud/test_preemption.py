"""The hazard of a preemption, learned, and what it does to the cost of work.

The posterior lies between what was believed and what was seen. The costs are simulated: a virtual
clock runs through 200 preemptions at a time. A machine costs from its rental; it boots, works, and
stands still for each save; a save is durable only once it is uploaded. What was not durable is done
again on the next machine. All policies live through the same preemptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.checkpoint.interval import EarlierAttempt, mean_time_between_failures, save_interval
from tsgb.cloud.preemption import (
    ON_DEMAND,
    PRIOR,
    Hazard,
    History,
    Hold,
    Workload,
    machine_class,
    stretch,
)

CLASS = machine_class("RTX 4090", 1, is_bid=True)
STEADY = machine_class("RTX 4090", 1, is_bid=False)
hours = st.floats(0.01, 1000.0)
holds = st.lists(
    st.builds(Hold, st.sampled_from([CLASS, STEADY, "A100 x1 bid"]), hours, st.booleans()),
    max_size=30,
)


@given(events=st.integers(0, 100), time=hours, prior=st.builds(Hazard, hours, hours))
def test_between_prior_and_data(events: int, time: float, prior: Hazard) -> None:
    low, high = sorted([prior.mean, events / time])
    assert low * (1 - 1e-9) <= prior.after(events, time).mean <= high * (1 + 1e-9)


def test_the_data_win_in_the_end() -> None:
    assert PRIOR.mean == pytest.approx(1 / 3)
    assert PRIOR.after(400, 1000.0).mean == pytest.approx(0.4, rel=0.01)


@given(seen=holds)
def test_the_order_of_holds_does_not_matter(seen: list[Hold]) -> None:
    assert History.of(seen) == History.of(seen[::-1])


@given(seen=holds)
def test_a_longer_hold_never_raises_a_hazard(seen: list[Hold]) -> None:
    before, after = History.of(seen), History.of([*seen, Hold(CLASS, 5.0)])
    assert after.hazard(CLASS).mean <= before.hazard(CLASS).mean
    assert History.of([*seen, Hold(CLASS, 0.0, preempted=True)]).hazard(CLASS).mean > (
        before.hazard(CLASS).mean
    )


def test_a_class_without_a_history_is_like_the_rest() -> None:
    history = History.of([Hold("A100 x1 bid", 1.0, preempted=True)] * 50)
    assert history.hazard(CLASS).mean == pytest.approx(history.pooled.mean)
    assert history.pooled.mean == pytest.approx(51 / 53)
    own = History.of([*[Hold("A100 x1 bid", 1.0, preempted=True)] * 50, Hold(CLASS, 100.0)])
    assert own.hazard(CLASS).mean < 0.02, "its own history outweighs them"


def test_machines_on_demand_are_a_class_apart() -> None:
    history = History.of([Hold(STEADY, 1000.0), Hold(CLASS, 1.0, preempted=True)])
    assert history.pooled == PRIOR.after(1, 1.0)
    assert history.hazard(STEADY) == ON_DEMAND.after(0, 1000.0)
    assert ON_DEMAND.mean < PRIOR.mean / 100


def test_draws_and_quantiles_are_of_one_distribution() -> None:
    posterior = PRIOR.after(3, 7.0)
    draws = posterior.draw(np.random.default_rng(1), 20_000)
    assert draws.mean() == pytest.approx(posterior.mean, rel=0.02)
    for share in (0.1, 0.5, 0.9):
        assert (draws <= posterior.quantile(share)).mean() == pytest.approx(share, abs=0.01)


# --- dollars per useful hour: the chosen save interval, against fixed ones, Young and Daly -------

PREEMPTIONS = 200
HISTORY = 20
"""Attempts that a worker reads when it starts."""
HOURLY = 0.22
BOOT, UPLOAD, STEP, WAIT = 400.0, 60.0, 1.0, 120.0
STALLS = {"synchronous": 20.0, "background": 0.3}
FIXED = (120.0, 300.0, 600.0, 1800.0)

Policy = Callable[[datetime, list[EarlierAttempt]], float]
"""Seconds between saves for a machine that starts now, after these."""


def young(stall: float, mtbf: float) -> float:
    return math.sqrt(2 * stall * mtbf)


def daly(stall: float, mtbf: float) -> float:
    if stall >= 2 * mtbf:
        return mtbf
    ratio = stall / (2 * mtbf)
    return math.sqrt(2 * stall * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


def policies(stall: float, mtbf: float) -> Mapping[str, Policy]:
    """Young and Daly are told the truth; the chosen one has to learn it."""

    def chosen(now: datetime, starts: list[EarlierAttempt]) -> float:
        learned = mean_time_between_failures(starts[-HISTORY:], now)
        return save_interval(stall, UPLOAD, STEP, learned)

    return {
        **{f"fixed {t:.0f} s": lambda _now, _starts, t=t: t for t in FIXED},
        "Young": lambda _now, _starts: max(young(stall, mtbf), UPLOAD),
        "Daly": lambda _now, _starts: max(daly(stall, mtbf), UPLOAD),
        "chosen": chosen,
    }


def dollars_per_useful_hour(lives: list[float], stall: float, policy: Policy) -> float:
    now, starts, useful = datetime(2026, 1, 1, tzinfo=UTC), list[EarlierAttempt](), 0.0
    for life in lives:
        interval = policy(now, starts)
        durable = math.floor(max(0.0, life - BOOT - UPLOAD) / (interval + stall))
        useful += durable * interval
        starts.append(EarlierAttempt(now, lost=True))
        now += timedelta(seconds=life + WAIT)
    return HOURLY * sum(lives) / useful


@pytest.mark.parametrize("stall", STALLS.values(), ids=STALLS)
@pytest.mark.parametrize("hazard", [0.1, 0.4, 1.0])
def test_the_chosen_interval_is_within_3_percent_of_the_best(hazard: float, stall: float) -> None:
    rng = np.random.default_rng([round(hazard * 10), round(stall * 10)])
    lives = [float(life) for life in rng.exponential(3600 / hazard, PREEMPTIONS)]
    costs = {
        name: dollars_per_useful_hour(lives, stall, policy)
        for name, policy in policies(stall, 3600 / hazard).items()
    }
    told = ", ".join(f"{name} ${cost:.4f}" for name, cost in costs.items())
    assert costs["chosen"] <= 1.03 * min(costs.values()), told


@pytest.mark.parametrize("hazard", [0.1, 0.4, 1.0])
def test_the_model_behind_the_choice_of_offers_agrees_with_the_clock(hazard: float) -> None:
    stall, interval = STALLS["synchronous"], 600.0
    rng = np.random.default_rng(1)
    lives = [float(life) for life in rng.exponential(3600 / hazard, 20_000)]
    seen = dollars_per_useful_hour(lives, stall, lambda _now, _starts: interval)
    work = Workload(
        work_hours=1.0,
        interval=lambda _: interval,
        boot_seconds=BOOT,
        stall_seconds=stall,
        upload_seconds=UPLOAD,
    )
    assert seen == pytest.approx(HOURLY * stretch(hazard, interval / 3600, work), rel=0.03)
