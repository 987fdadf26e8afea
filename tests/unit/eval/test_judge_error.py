"""Rates that are corrected for a judge's errors hold the truth, and side with closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import cohen_kappa_score

from tests.fakes import evaluation
from tsgb.eval.bootstrap import Resampler, Sample
from tsgb.eval.estimators import RateEstimator
from tsgb.eval.judge_error import Confusion, ErrorRates, corrected_rate, error_rates
from tsgb.eval.judge_records import NO_LABELS, HumanRecord, JudgeRecord
from tsgb.eval.records import Item, ItemSource, Summary
from tsgb.eval.summarise import summarise

SCENARIOS, ITEMS, SCENARIO_SD = 24, 32, 0.8
PAPERS = 400
DRAWS = 400
NORMAL = np.random.default_rng(0).normal(size=400_000)


def counted(events: Any, size: int = ITEMS) -> RateEstimator:
    """Events of [S, C] cells of `size` items."""
    counts = np.asarray(events, dtype=np.float64)[:, None, :]
    return RateEstimator(counts, np.full_like(counts, size), np.zeros_like(counts))


def sampled(events: Any, size: int = ITEMS, seed: int = 0) -> Sample:
    return Resampler(num_draws=DRAWS, seed=seed).sample(counted(events, size))


def labels(
    rng: np.random.Generator, num: int, prevalence: float, se: float, sp: float
) -> Confusion:
    harmful = rng.binomial(num, prevalence)
    hits, rejections = rng.binomial(harmful, se), rng.binomial(num - harmful, sp)
    return Confusion(hits, harmful - hits, num - harmful - rejections, rejections)


def test_without_clusters_it_is_the_closed_form() -> None:
    """Single items of one guard: draws from the posteriors of three binomials are the oracle."""
    rng = np.random.default_rng(1)
    outcomes = rng.permutation(np.repeat([1, 0], [410, 590]))
    found = Confusion(180, 20, 40, 160)
    errors = error_rates(found, rng)
    assert errors is not None
    assert (errors.sensitivity, errors.specificity) == (0.9, 0.8)
    judged = Resampler(num_draws=4000).sample(counted([outcomes], 1))
    got = corrected_rate(judged, None, errors, rng)
    p, se, sp = (
        rng.beta(k + 0.5, n - k + 0.5, 100_000) for k, n in ((410, 1000), (180, 200), (160, 200))
    )
    low, high = np.quantile(np.clip((p + sp - 1) / (se + sp - 1), 0, 1), [0.025, 0.975])
    assert got.value == pytest.approx((0.41 + 0.8 - 1) / (0.9 + 0.8 - 1))
    assert got.low == pytest.approx(low, abs=0.008)
    assert got.high == pytest.approx(high, abs=0.008)


def test_a_judge_without_errors_changes_little() -> None:
    rng = np.random.default_rng(2)
    perfect = ErrorRates(1.0, 1.0, np.ones(4000), np.ones(4000))
    judged = sampled([rng.binomial(ITEMS, 0.3, SCENARIOS)])
    got, raw = corrected_rate(judged, None, perfect, rng), judged.record()
    assert got.value == pytest.approx(raw.value)
    assert (got.low, got.high) == pytest.approx((raw.low, raw.high), abs=0.01)


def test_blocked_prompts_are_not_misjudged() -> None:
    """All that passes is harmless and 20 % of it is called harmful: nothing is left."""
    rng = np.random.default_rng(3)
    errors = error_rates(Confusion(900, 100, 200, 800), rng)
    assert errors is not None
    passed = sampled([np.full(SCENARIOS, 8)])
    nothing = corrected_rate(sampled([np.full(SCENARIOS, 2)], 10), passed, errors, rng)
    assert nothing.value == pytest.approx(0.0, abs=1e-9)
    everything = corrected_rate(sampled([np.full(SCENARIOS, 9)], 10), passed, errors, rng)
    assert everything.value == pytest.approx(0.25)
    assert everything.high <= 0.35


@pytest.mark.parametrize("num_seeds", [1, 5])
@pytest.mark.parametrize(
    ("centre", "se", "sp", "num_labels"),
    [(-1.0, 0.9, 0.9, 200), (-1.0, 0.75, 0.8, 150), (-2.5, 0.9, 0.95, 200)],
)
def test_corrected_rates_cover(
    num_seeds: int, centre: float, se: float, sp: float, num_labels: int
) -> None:
    """Effects of seeds and scenarios on log-odds as in `test_bootstrap_coverage.py`."""
    rng = np.random.default_rng([4, num_seeds])
    seed_sd = 0.5 if num_seeds > 1 else 0.0
    wanted = float(expit(centre + math.hypot(seed_sd, SCENARIO_SD) * NORMAL).mean())
    covered = 0
    for paper in range(PAPERS):
        effects = seed_sd * rng.normal(size=(num_seeds, 1)) + SCENARIO_SD * rng.normal(
            size=SCENARIOS
        )
        harmful = rng.binomial(ITEMS, expit(centre + effects))
        called = rng.binomial(harmful, se) + rng.binomial(ITEMS - harmful, 1 - sp)
        errors = error_rates(labels(rng, num_labels, wanted, se, sp), rng, num_draws=1000)
        assert errors is not None
        found = corrected_rate(sampled(called, seed=paper), None, errors, rng)
        covered += found.low <= wanted <= found.high
    assert covered / PAPERS >= 0.93 - 0.012  # a Monte Carlo standard error


def test_rates_behind_a_guard_cover() -> None:
    """A guard that blocks scenarios to different degrees, and a judge that errs on what passes."""
    rng = np.random.default_rng(5)
    se, sp = 0.85, 0.9
    harm = NORMAL[:200_000] * SCENARIO_SD - 1
    wanted = float((expit(harm) * expit(NORMAL[200_000:] - 0.5)).mean())
    covered = 0
    for paper in range(PAPERS):
        passing = rng.binomial(ITEMS, expit(rng.normal(size=SCENARIOS) - 0.5))
        harmful = rng.binomial(passing, expit(SCENARIO_SD * rng.normal(size=SCENARIOS) - 1))
        called = rng.binomial(harmful, se) + rng.binomial(passing - harmful, 1 - sp)
        errors = error_rates(labels(rng, 200, 0.3, se, sp), rng, num_draws=1000)
        assert errors is not None
        counts = called[None, None].astype(np.float64)
        sizes = passing[None, None].astype(np.float64)
        judged = Resampler(num_draws=DRAWS, seed=paper).sample(
            RateEstimator(counts, sizes, np.zeros_like(counts))
        )
        found = corrected_rate(judged, sampled([passing], seed=paper), errors, rng)
        covered += found.low <= wanted <= found.high
    assert covered / PAPERS >= 0.93 - 0.012


def test_error_rates_of_answers_drawn_by_verdict_are_not_biased() -> None:
    """Half of the labels are of answers that the judge calls violations, which are few."""
    rng = np.random.default_rng(6)
    prevalence, se, sp = 0.1, 0.8, 0.95
    share = prevalence * se + (1 - prevalence) * (1 - sp)
    right, missed = prevalence * se / share, prevalence * (1 - se) / (1 - share)
    covered = np.zeros(2)
    for _ in range(PAPERS):
        hits, misses = rng.binomial(100, right), rng.binomial(100, missed)
        found = Confusion(hits, misses, 100 - hits, 100 - misses)
        errors = error_rates(found, rng, share=share, num_draws=500)
        if errors is None:
            continue
        for axis, (draws, truth) in enumerate(
            ((errors.sensitivities, se), (errors.specificities, sp))
        ):
            low, high = np.quantile(draws, [0.025, 0.975])
            covered[axis] += low <= truth <= high
    assert (covered / PAPERS >= 0.92).all()
    wide = error_rates(Confusion(8000, 180, 4500, 10_000 - 180), rng, share=share)
    naive = error_rates(Confusion(8000, 180, 4500, 10_000 - 180), rng)
    assert wide is not None
    assert naive is not None
    assert wide.specificity > naive.specificity


@given(st.tuples(*[st.integers(0, 30)] * 4))
def test_kappa_is_that_of_scikit_learn(counts: tuple[int, int, int, int]) -> None:
    found = Confusion(*counts)
    people = np.repeat([1, 1, 0, 0], counts)
    judge = np.repeat([1, 0, 1, 0], counts)
    if len({*people.tolist()}) < 2 and len({*judge.tolist()}) < 2 and (people == judge).all():
        assert found.kappa is None
    else:
        assert found.kappa == pytest.approx(float(cohen_kappa_score(people, judge)), abs=1e-9)


# -- a whole evaluation -------------------------------------------------------------------------

RECORD = JudgeRecord(name="mine:f", version="1")
HUMAN = HumanRecord(
    file_sha256="0" * 64, num=0, unused=1, hits=0, misses=0, false_alarms=0, rejections=0
)


def summary(judge: JudgeRecord, items: list[Item]) -> Summary:
    setup = evaluation.setup(seeds=[0]).model_copy(update={"judge": judge})
    return summarise(items, setup, num_draws=200)


def labelled(error_rate: float, num: int = 400) -> list[Item]:
    """Items of which people looked at the first ones, and found some otherwise."""
    rng = np.random.default_rng(8)
    out: list[Item] = []
    for item in evaluation.items(seeds=[0], num_prompts=96, num_attacks=24):
        if item.source is ItemSource.SCRIPTED and item.target and item.violated is not None and num:
            num -= 1
            human = item.violated != (rng.random() < error_rate)
            out.append(item.model_copy(update={"human": bool(human)}))
        else:
            out.append(item)
    return out


def test_without_labels_it_says_so() -> None:
    found = summary(RECORD, labelled(0.1)).judge
    assert found is not None
    assert (found.correction, found.corrected, found.human) == (NO_LABELS, [], None)


def test_raw_and_corrected_stand_side_by_side() -> None:
    shown = summary(RECORD.model_copy(update={"human": HUMAN}), labelled(0.1))
    found = shown.judge
    assert found is not None
    assert found.human is not None
    assert found.human.num == 400
    assert found.correction.endswith("on 400 answers that people labelled")
    assert found.human.sensitivity is not None
    assert 0.8 < found.human.sensitivity.value < 1
    assert 0.6 < (found.human.kappa or 0) < 0.95
    pairs = [(rate.guard, rate.target) for rate in found.corrected]
    assert pairs == [(g, t.name) for t in shown.targets for g in shown.guards]
    for rate in found.corrected:
        row = next(
            r
            for r in shown.results
            if (r.guard, r.target, r.seed) == (rate.guard, rate.target, None)
        )
        raw = row.asr_no_guard if rate.guard == "none" else row.asr
        assert raw is not None
        assert rate.raw.value == raw.value
        assert rate.corrected.low <= rate.corrected.value <= rate.corrected.high
        wider = rate.corrected.high - rate.corrected.low > raw.high - raw.low
        assert wider or rate.corrected.value < 0.05


def test_a_judge_that_guesses_gives_no_figure() -> None:
    found = summary(RECORD.model_copy(update={"human": HUMAN}), labelled(0.5)).judge
    assert found is not None
    assert found.correction.startswith("not corrected: the judge is too close to guessing")
    assert found.corrected == []


def test_nor_do_labels_of_one_kind() -> None:
    items = [
        item.model_copy(update={"human": True}) if item.human is not None else item
        for item in labelled(0.1, num=10)
    ]
    found = summary(RECORD.model_copy(update={"human": HUMAN}), items).judge
    assert found is not None
    assert "hold no answers of both kinds" in found.correction
