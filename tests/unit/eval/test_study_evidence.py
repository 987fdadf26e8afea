"""Intervals over units of several worlds, and of ratios, against simulations and definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from tests.fakes.study import falling_inputs
from tsgb.eval.bootstrap import Replicates, Resampler, contrast, difference
from tsgb.eval.estimators import RateEstimator
from tsgb.eval.study_evidence import (
    Combination,
    LevelEvidence,
    PooledSample,
    StudyEvidence,
    Term,
    UnitKey,
    WorldKey,
    fieller,
    pool,
    resamplers,
    slope_weights,
)

SEEDS, SCENARIOS, ITEMS, DRAWS = 5, 24, 24, 200
WORLDS = [WorldKey("glyph", 0, seed) for seed in (11, 12)]


def counted(rng: np.random.Generator, logits: np.ndarray) -> RateEstimator:
    events = rng.binomial(ITEMS, expit(logits)).astype(np.float64)
    return RateEstimator(events, np.full_like(events, ITEMS), np.zeros_like(events))


def pooled(world: WorldKey, resampler: Resampler, estimator: RateEstimator) -> PooledSample:
    units = tuple(UnitKey(world, seed) for seed in range(SEEDS))
    return PooledSample(resampler.sample(estimator), units)


def test_two_equal_guards_seldom_differ_over_two_worlds() -> None:
    rng = np.random.default_rng(5)
    excluded, studies = 0, 250
    for study in range(studies):
        arms: tuple[list[PooledSample], list[PooledSample]] = ([], [])
        for index, world in enumerate(WORLDS):
            resampler = Resampler(num_draws=DRAWS, seed=2 * study + index)
            scenarios = 0.8 * rng.normal(size=(1, 1, SCENARIOS))
            for arm in arms:
                seeds = 0.8 * rng.normal(size=(SEEDS, 1, 1))
                own = 0.4 * rng.normal(size=(1, 1, SCENARIOS))
                arm.append(pooled(world, resampler, counted(rng, seeds + scenarios + own - 1)))
        found = difference(pool(arms[0]).sample, pool(arms[1]).sample)
        excluded += not found.low <= 0 <= found.high
    assert excluded / studies <= 0.07


def test_units_count_alike_and_scenarios_of_two_worlds_are_independent() -> None:
    rng = np.random.default_rng(6)
    samplers = resamplers(WORLDS, 4000)
    logits = np.linspace(-3, 3, SCENARIOS)[None, None] * np.ones((SEEDS, 1, 1))
    parts = [pooled(world, samplers[world], counted(rng, logits)) for world in WORLDS]
    both = pool(parts)
    figures = np.concatenate([part.sample.dropped.units for part in parts])
    assert both.sample.point == pytest.approx(figures.mean())
    assert [unit.world for unit in both.units] == [WORLDS[0]] * SEEDS + [WORLDS[1]] * SEEDS
    spread = [part.sample.dropped.draws.var() for part in parts]
    assert both.sample.dropped.draws.var() == pytest.approx(sum(spread) / 4, rel=0.1)
    fewer = Resampler(num_draws=4000, seed=3).sample(counted(rng, logits[:1]))
    short = pool([parts[0], PooledSample(fewer, (UnitKey(WORLDS[1], 9),))])
    wanted = (SEEDS * parts[0].sample.dropped.draws + fewer.dropped.draws) / (SEEDS + 1)
    assert short.sample.dropped.draws == pytest.approx(wanted)
    again = resamplers(WORLDS[1:], 4000)[WORLDS[1]]
    repeated = pooled(WORLDS[1], again, counted(np.random.default_rng(7), logits))
    first = pooled(WORLDS[1], samplers[WORLDS[1]], counted(np.random.default_rng(7), logits))
    assert np.array_equal(repeated.sample.dropped.draws, first.sample.dropped.draws)


def combination(units: np.ndarray, draws: np.ndarray) -> Combination:
    keys = tuple(UnitKey(WORLDS[0], seed) for seed in range(units.size))
    return Combination(Replicates(units, draws), keys, SCENARIOS)


def test_fieller_ends_are_where_the_interval_of_the_difference_starts_to_hold_zero() -> None:
    rng = np.random.default_rng(8)
    gap, closed = 0.4 + 0.05 * rng.normal(size=8), 0.3 + 0.05 * rng.normal(size=8)
    draws = 0.02 * rng.normal(size=(2, 5000))
    ends = fieller(
        combination(closed, closed.mean() + draws[0]), combination(gap, gap.mean() + draws.sum(0))
    )
    assert ends is not None
    for end in ends:
        figure = Replicates(
            closed - end * gap, closed.mean() + draws[0] - end * (gap.mean() + draws.sum(0))
        )
        found = contrast(figure, num_clusters=SCENARIOS)
        assert min(abs(found.low), abs(found.high)) == pytest.approx(0, abs=1e-9)
    nothing = combination(gap - gap.mean() + 0.01, draws[0])
    assert fieller(combination(closed, draws[1]), nothing) is None


def test_fieller_covers() -> None:
    rng = np.random.default_rng(9)
    covered, studies, truth = 0, 1500, 0.6
    for _ in range(studies):
        common = 0.1 * rng.normal(size=10)
        gap = 0.3 + common + 0.05 * rng.normal(size=10)
        closed = truth * 0.3 + 0.5 * common + 0.05 * rng.normal(size=10)
        ends = fieller(combination(closed, np.zeros(2)), combination(gap, np.zeros(2)))
        covered += ends is None or ends.low <= truth <= ends.high
    assert 0.93 <= covered / studies <= 0.97


def test_scenarios_of_two_levels_of_a_world_are_drawn_together() -> None:
    [one] = [i for i in falling_inputs() if i.summary.eval_id == "eval-11-0"]
    resampler = Resampler(num_draws=50)
    items = list(one.items())
    later = one.summary.model_copy(update={"coverage": 1.0})
    parts = [
        LevelEvidence.of(one.summary, items, resampler),
        LevelEvidence.of(later, items[::-1], resampler),
    ]
    evidence = StudyEvidence(parts, {part.world: "world" for part in parts})
    terms = [Term("frozen", 0.0, 1.0), Term("frozen", 1.0, -1.0)]
    found = evidence.combination(terms, "adaptive_asr", ["T_s", "B_far"])
    assert found is not None
    assert [unit.seed for unit in found.units] == [1, 2, 3, 4, 5]
    assert np.abs(found.figure.units).max() < 1e-12
    assert np.abs(found.figure.draws).max() < 1e-12


def test_slope_weights_are_least_squares() -> None:
    levels, figures = [0.0, 0.25, 0.5, 1.0], [0.5, 0.2, 0.25, 0.1]
    slope = np.polyfit(levels, figures, 1)[0]
    assert np.dot(slope_weights(levels), figures) == pytest.approx(slope)
