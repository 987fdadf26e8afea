"""The meta-game: who is replayed how often."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tsgb.envs.pool import FLOOR, Matrix, PoolAttack, PoolMember, draw, hedge, replay_weights

ROCK_PAPER_SCISSORS = np.array([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])


def member(name: str, num: int = 3) -> PoolMember:
    return PoolMember(
        name=name,
        attacks=tuple(
            PoolAttack(text=f"{name} {i}", harmful=True, violated=True) for i in range(num)
        ),
    )


def regret(payoff: Matrix, a: Matrix, g: Matrix) -> float:
    """How much both could gain by one better reply; 0 at an equilibrium."""
    return float((payoff @ g).max() - (a @ payoff).min())


def test_rock_paper_scissors_is_played_evenly() -> None:
    a, g = hedge(ROCK_PAPER_SCISSORS)
    assert a == pytest.approx([1 / 3] * 3, abs=1e-9)
    assert g == pytest.approx([1 / 3] * 3, abs=1e-9)


def test_a_dominated_attacker_is_not_played() -> None:
    """It also unbalances the start, so that the even mixture has to be found."""
    a, g = hedge(np.vstack((ROCK_PAPER_SCISSORS, [0.4, 0.0, 0.4])))
    assert a == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=0.03)
    assert g == pytest.approx([1 / 3] * 3, abs=0.03)


def test_the_value_of_a_known_game() -> None:
    """[[3/4, 1/4], [0, 1/2]]: value 3/8, attackers (1/2, 1/2), guards (1/4, 3/4)."""
    payoff = np.array([[0.75, 0.25], [0.0, 0.5]])
    a, g = hedge(payoff)
    assert a @ payoff @ g == pytest.approx(3 / 8, abs=0.01)
    assert a == pytest.approx([0.5, 0.5], abs=0.03)
    assert g == pytest.approx([0.25, 0.75], abs=0.03)


@settings(max_examples=10)
@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 6), st.integers(1, 6)),
        elements=st.floats(0, 1, width=32),
    )
)
def test_both_mixtures_are_nearly_optimal_in_any_game(payoff: Matrix) -> None:
    a, g = hedge(payoff, iterations=1500)
    for mixture in (a, g):
        assert mixture.sum() == pytest.approx(1)
        assert (mixture >= 0).all()
    assert 0 <= regret(payoff, a, g) + 1e-12 < 0.08


def test_without_guards_everybody_is_replayed_alike() -> None:
    assert replay_weights(np.zeros((3, 0))) == pytest.approx([1 / 3] * 3)


def test_nobody_is_forgotten() -> None:
    payoff = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    weights = replay_weights(payoff)
    assert weights.sum() == pytest.approx(1)
    least = 0.5 * FLOOR / ((payoff[:, -1] ** 2).sum() + 3 * FLOOR)
    assert (weights >= least).all()
    assert weights[0] > 0.9


def test_who_still_beats_the_newest_guard_is_replayed_more() -> None:
    payoff = np.array([[0.9, 0.1], [0.9, 0.7]])
    first, second = replay_weights(payoff)
    assert second > first


def test_attacks_are_drawn_by_their_members_weight() -> None:
    members = [member("a"), member("b"), member("c")]
    drawn = draw(members, [0.5, 0.5, 0.0], Random(1), 2000)
    names = Counter(attack.text.split()[0] for attack in drawn)
    assert set(names) == {"a", "b"}
    # Four standard deviations of a fair coin.
    assert abs(names["a"] - 1000) < 4 * 2000**0.5 / 2
    assert len({attack.text for attack in drawn}) == 6
    assert drawn == draw(members, [0.5, 0.5, 0.0], Random(1), 2000)


def test_nothing_is_drawn_from_nobody() -> None:
    assert draw([], [], Random(1), 5) == []
    assert draw([member("a")], [1.0], Random(1), 0) == []
