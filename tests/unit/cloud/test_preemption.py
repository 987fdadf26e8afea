"""The posterior of the hazard lies between what was believed and what was seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.cloud.preemption import ON_DEMAND, PRIOR, Hazard, History, Hold, machine_class

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
