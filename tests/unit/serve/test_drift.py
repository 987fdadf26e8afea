"""Drift is near 0 on traffic like the calibration, and grows as it moves away."""

from __future__ import annotations

import math
from random import Random

import numpy as np

from tsgb.serve.drift import LAST, ScoreDrift


def test_like_traffic_and_other_traffic() -> None:
    rng = Random(0)
    calibration = [rng.gauss(0, 1) for _ in range(2000)]
    bounds = np.quantile(calibration, np.arange(1, 10) / 10).tolist()
    found: list[float] = []
    for shift in (0.0, 0.5, 2.0):
        drift = ScoreDrift(bounds)
        for _ in range(LAST):
            drift.add(rng.gauss(shift, 1))
        found.append(drift.index())
    assert found[0] < 0.05
    assert 0.1 < found[1] < 0.5
    assert found[2] > 1
    for _ in range(LAST):
        drift.add(rng.gauss(0, 1))
    assert drift.index() < 0.05, "what is long past does not count"


def test_nothing_to_compare() -> None:
    assert math.isnan(ScoreDrift([1.0]).index())
    unknown = ScoreDrift([])
    unknown.add(1.0)
    assert math.isnan(unknown.index())
