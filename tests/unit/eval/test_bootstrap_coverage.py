"""Simulated papers: how often intervals hold the truth, and how often equal arms "differ".

Seeds, scenarios and attackers have effects on log-odds, as trained guards have. Every simulation
goes through the product's own functions, with a generator of its own.
"""

import numpy as np
import pytest
from scipy.special import expit

from tsgb.eval.bootstrap import Resampler, difference
from tsgb.eval.estimators import MeanRateEstimator, RateEstimator

SLOW = pytest.mark.slow
SCENARIOS, ITEMS, SCENARIO_SD = 24, 32, 0.8
PAPERS = 600
DRAWS = 400
NORMAL = np.random.default_rng(0).normal(size=400_000)
"""Draws of the truth."""


def truth(centre: float, sd: float) -> float:
    return float(expit(centre + sd * NORMAL).mean())


def counted(
    rng: np.random.Generator, logits: np.ndarray, kind: type[RateEstimator] = RateEstimator
) -> RateEstimator:
    """Draw items for log-odds [S, R, C]."""
    events = rng.binomial(ITEMS, expit(logits)).astype(np.float64)
    return kind(events, np.full_like(events, ITEMS), np.zeros_like(events))


def effects(rng: np.random.Generator, num_seeds: int, seed_sd: float) -> np.ndarray:
    return seed_sd * rng.normal(size=(num_seeds, 1, 1))


@pytest.mark.parametrize(
    "num_seeds", [pytest.param(3, marks=SLOW), 5, pytest.param(10, marks=SLOW)]
)
@pytest.mark.parametrize(("centre", "seed_sd"), [(-1, 0.3), (-1, 0.8), (-1, 1.2), (-3.5, 0.8)])
def test_pooled_rates_cover(num_seeds: int, centre: float, seed_sd: float) -> None:
    rng = np.random.default_rng([1, num_seeds])
    wanted = truth(centre, float(np.hypot(seed_sd, SCENARIO_SD)))
    covered = 0
    for paper in range(PAPERS):
        scenarios = SCENARIO_SD * rng.normal(size=(1, 1, SCENARIOS))
        found = counted(rng, centre + effects(rng, num_seeds, seed_sd) + scenarios)
        rate = Resampler(num_draws=DRAWS, seed=paper).sample(found).record()
        covered += rate.low <= wanted <= rate.high
    assert covered / PAPERS >= 0.93


@pytest.mark.parametrize(
    "num_seeds", [3, 5, pytest.param(10, marks=SLOW), pytest.param(20, marks=SLOW)]
)
@pytest.mark.parametrize("seed_sd", [0.8, 1.2])
def test_equal_arms_seldom_differ(num_seeds: int, seed_sd: float) -> None:
    """Both arms are trained anew for each seed, and find some scenarios harder than others."""
    rng = np.random.default_rng([2, num_seeds])
    excluded = significant = 0
    for paper in range(PAPERS):
        scenarios = SCENARIO_SD * rng.normal(size=(1, 1, SCENARIOS))
        resampler = Resampler(num_draws=DRAWS, seed=paper)
        arms = [
            resampler.sample(
                counted(
                    rng,
                    -1
                    + effects(rng, num_seeds, seed_sd)
                    + scenarios
                    + 0.3 * rng.normal(size=(1, 1, SCENARIOS)),
                )
            )
            for _ in range(2)
        ]
        found = difference(*arms)
        excluded += not found.low <= 0 <= found.high
        significant += found.p <= 0.05
    assert excluded / PAPERS <= 0.07
    assert significant / PAPERS <= 0.07


@pytest.mark.parametrize("centre", [-1.0, -2.5, -4.5])
def test_one_guard_and_its_slices_cover(centre: float) -> None:
    """The rate of this guard over other scenarios, from all of them or from a slice of ten."""
    rng = np.random.default_rng(3)
    wanted = truth(centre, SCENARIO_SD)
    for num in (SCENARIOS, 10):
        covered = 0
        for paper in range(PAPERS):
            scenarios = SCENARIO_SD * rng.normal(size=(1, 1, num))
            found = counted(rng, centre + scenarios)
            rate = Resampler(num_draws=DRAWS, seed=paper).sample(found).record()
            covered += rate.low <= wanted <= rate.high
        assert covered / PAPERS >= 0.93


@pytest.mark.parametrize("attacker_sd", [0.3, 0.8])
def test_the_mean_of_three_attackers_covers(attacker_sd: float) -> None:
    """One guard: what a fresh attacker gets through it, on average over attackers."""
    rng = np.random.default_rng(4)
    wanted = truth(-2, float(np.hypot(attacker_sd, SCENARIO_SD)))
    covered = 0
    for paper in range(PAPERS):
        scenarios = SCENARIO_SD * rng.normal(size=(1, 1, SCENARIOS))
        attackers = attacker_sd * rng.normal(size=(1, 3, 1))
        found = counted(rng, -2 + attackers + scenarios, MeanRateEstimator)
        rate = Resampler(num_draws=DRAWS, seed=paper).sample(found).record()
        covered += rate.low <= wanted <= rate.high
    assert covered / PAPERS >= 0.93
