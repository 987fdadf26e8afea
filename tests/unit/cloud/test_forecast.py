"""What a run is said to take agrees with the model of expected costs, and with common sense."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tsgb.cloud.forecast import Forecast, ForecastTerms, Quantiles, forecast
from tsgb.cloud.preemption import PRIOR, Hazard, Workload, stretch

WORK = Workload(
    work_hours=8.0,
    interval=lambda mtbf: max(60.0, math.sqrt(2 * 20.0 * mtbf)),
    boot_seconds=600.0,
    stall_seconds=20.0,
    upload_seconds=60.0,
)
TERMS = ForecastTerms(hourly=0.25, hazard=PRIOR)


def known(rate: float) -> Hazard:
    """A hazard without doubt."""
    return Hazard(1e9 * rate, 1e9)


def run(work: Workload = WORK, terms: ForecastTerms = TERMS, num: int = 2_000) -> Forecast:
    return forecast(work, terms, np.random.default_rng(1), num)


def test_the_same_generator_tells_the_same() -> None:
    assert str(run()) == str(run())
    assert run().within(run().dollars.p90) == pytest.approx(0.9, abs=0.01)


def test_seeds_cost_together_and_take_as_long_as_their_machines_let_them() -> None:
    calm = replace(TERMS, hazard=known(1e-9), wait_seconds=0.0)

    def of(seeds: int, at_once: int, terms: ForecastTerms = calm) -> Forecast:
        rng = np.random.default_rng(1)
        return forecast(WORK, terms, rng, 500, seeds=seeds, machines_at_once=at_once)

    one = of(1, 1)
    for at_once, rounds in ((1, 5), (2, 3), (4, 2), (5, 1), (9, 1)):
        all_five = of(5, at_once)
        assert all_five.hours.p50 == pytest.approx(rounds * one.hours.p50)
        assert all_five.dollars.p50 == pytest.approx(5 * one.dollars.p50)
        assert all_five.machines.p50 == 5
    # Of runs that are preempted the slowest decides, and their market is one.
    wild = [of(5, at_once, TERMS).hours.p50 for at_once in (1, 2, 5)]
    assert wild == sorted(wild, reverse=True)
    assert wild[-1] > of(1, 1, TERMS).hours.p50
    mean = of(1, 1, TERMS).all_dollars.mean()
    assert of(5, 5, TERMS).all_dollars.mean() == pytest.approx(5 * mean, rel=0.1)
    assert str(of(1, 7, TERMS)) == str(of(1, 1, TERMS))


def test_arms_with_machines_of_their_own_take_their_turns() -> None:
    calm = replace(TERMS, hazard=known(1e-9), wait_seconds=0.0)
    boot = (600 + 60) / 3600

    def of(arms: tuple[float, ...], seeds: int, at_once: int) -> Forecast:
        rng = np.random.default_rng(1)
        return forecast(WORK, calm, rng, 10, seeds=seeds, arms=arms, machines_at_once=at_once)

    def alone(share: float) -> float:
        left = share * WORK.work_hours
        return boot + left + WORK.stall_seconds / 3600

    for at_once, hours in ((1, alone(1) + alone(0.5)), (2, alone(1))):
        found = of((1.0, 0.5), 1, at_once)
        assert found.hours.p50 == pytest.approx(hours, rel=1e-3)
        assert found.dollars.p50 == pytest.approx(0.25 * (alone(1) + alone(0.5)), rel=1e-3)
        assert found.machines.p50 == 2
    # Three machines for two seeds: both long arms and one short one, and then the other.
    three = of((1.0, 0.25), 2, 3)
    assert three.hours.p50 == pytest.approx(max(alone(1), 2 * alone(0.25)), rel=1e-3)
    assert three.machines.p50 == 4


def test_a_machine_that_stays_costs_its_time() -> None:
    calm = run(terms=replace(TERMS, hazard=known(1e-9), wait_seconds=0.0), num=10)
    hours = (600 + 60) / 3600 + 8.0 * stretch(0.0, 8.0, WORK)
    assert calm.hours.p50 == pytest.approx(hours, rel=1e-3)
    assert calm.dollars.p90 == pytest.approx(0.25 * hours, rel=1e-3)
    assert (calm.machines.p90, calm.within(1.9), calm.within(2.2)) == (1, 0, 1)


@pytest.mark.parametrize("upload", [0.0, 900.0])
@pytest.mark.parametrize("rate", [0.1, 0.4, 1.0, 2.0])
def test_the_mean_is_that_of_the_model_by_which_offers_are_chosen(
    rate: float, upload: float
) -> None:
    long = replace(WORK, work_hours=100.0, upload_seconds=upload)
    seen = run(long, replace(TERMS, hazard=known(rate)), num=400)
    model = 100.0 * stretch(rate, long.interval_hours(rate, 100.0), long) * 0.25
    assert seen.all_dollars.mean() == pytest.approx(model, rel=0.03)


@pytest.mark.parametrize(
    ("work", "terms"),
    [
        pytest.param(replace(WORK, work_hours=9.0), TERMS, id="more-work"),
        pytest.param(replace(WORK, boot_seconds=1200.0), TERMS, id="slower-start"),
        pytest.param(WORK, replace(TERMS, hazard=PRIOR.after(9, 3.0)), id="more-preemption"),
        pytest.param(WORK, replace(TERMS, hourly=0.3), id="dearer"),
        pytest.param(WORK, replace(TERMS, speed=0.9), id="slower"),
        pytest.param(replace(WORK, save_gb=0.7), replace(TERMS, up_cost=0.01), id="traffic"),
    ],
)
def test_what_costs_more(work: Workload, terms: ForecastTerms) -> None:
    assert run(work, terms).dollars.p50 > run().dollars.p50


def test_doubt_about_the_market_widens_the_answer() -> None:
    sure = run(terms=replace(TERMS, hazard=known(PRIOR.mean)))
    assert run().dollars.p90 - run().dollars.p10 > 1.5 * (sure.dollars.p90 - sure.dollars.p10)


def test_a_run_that_never_ends_is_told_as_such() -> None:
    endless = run(terms=replace(TERMS, hazard=known(100.0)), num=3)
    assert endless.dollars.p50 == math.inf
    assert endless.within(1e9) == 0
    assert str(endless).startswith("inf h (inf to inf)")


def test_quantiles_are_values_that_were_seen() -> None:
    assert Quantiles.of(np.array([1.0, 2.0, math.inf])) == Quantiles(2.0, 2.0, math.inf)
