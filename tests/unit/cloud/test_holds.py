"""Dollars per useful hour of the save interval that workers choose, against fixed, Young and Daly.

A virtual clock runs through 200 preemptions at a time. A machine costs from its rental; it boots,
works, and stands still for each save; a save is durable only once it is uploaded. What was not
durable is done again on the next machine. All policies live through the same preemptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tsgb.checkpoint.interval import EarlierAttempt, mean_time_between_failures, save_interval
from tsgb.cloud.preemption import Workload, stretch

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
