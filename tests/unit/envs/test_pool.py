"""The meta-game: who is replayed how often."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tsgb.envs.pool import (
    FLOOR,
    Matrix,
    PoolAttack,
    PoolMember,
    capped_shares,
    draw,
    draw_capped,
    hedge,
    replay_weights,
)

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


def of_families(name: str, counts: dict[str, int]) -> PoolMember:
    return PoolMember(
        name=name,
        attacks=tuple(
            PoolAttack(text=f"{name} {family} {i}", harmful=True, violated=True, technique=family)
            for family, num in counts.items()
            for i in range(num)
        ),
    )


@given(
    st.dictionaries(st.text(max_size=3), st.floats(0, 100), max_size=8),
    st.floats(0.05, 1),
)
def test_no_share_is_above_the_cap_and_none_is_lost_that_fits(
    mass: dict[str, float], cap: float
) -> None:
    shares = capped_shares(mass, cap)
    present = [family for family, m in mass.items() if m > 0]
    assert set(shares) == set(present)
    assert all(share <= cap + 1e-9 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(min(1, cap * len(present)))
    ordered = sorted(present, key=lambda family: mass[family])
    assert [shares[f] for f in ordered] == pytest.approx(sorted(shares.values()))


def test_a_cap_that_is_not_reached_changes_no_share() -> None:
    assert capped_shares({"a": 1, "b": 3}, 0.8) == {"a": 0.25, "b": 0.75}
    assert capped_shares({"a": 94, "b": 4, "c": 2}, 0.25) == dict.fromkeys("abc", 0.25)
    assert capped_shares({"a": 90, "b": 4, "c": 3, "d": 2, "e": 1}, 0.25) == pytest.approx(
        {"a": 0.25, "b": 0.25, "c": 0.25, "d": 1 / 6, "e": 1 / 12}
    )


@pytest.mark.parametrize("num", [3, 8, 11, 40])
def test_a_collapsed_attacker_fills_a_quarter_of_every_replay(num: int) -> None:
    collapsed = of_families("new", {"poem": 90, "spell": 4, "json": 3, "debug": 2, "story": 1})
    other = of_families("old", {"poem": 5, "debug": 5})
    totals = Counter[str]()
    for seed in range(200):
        drawn = draw_capped([collapsed, other], [0.9, 0.1], Random(seed), num, 0.25)
        families = Counter(attack.technique for attack in drawn)
        assert len(drawn) == num
        assert max(families.values()) <= -(-num // 4), "a quarter, rounded up"
        totals += families
    assert totals["poem"] / totals.total() == pytest.approx(0.25, abs=0.02)
    assert set(totals) == {"poem", "spell", "json", "debug", "story"}


def test_places_that_no_family_may_take_stay_free() -> None:
    alone = of_families("new", {"poem": 50})
    assert len(draw_capped([alone], [1.0], Random(0), 40, 0.25)) == 10
    assert draw_capped([], [], Random(0), 5, 0.25) == []
    assert draw_capped([alone], [1.0], Random(0), 0, 0.25) == []


def test_within_a_family_members_are_drawn_by_their_weight() -> None:
    members = [of_families(name, {"a": 4, "b": 4}) for name in ("often", "seldom")]
    drawn = draw_capped(members, [0.9, 0.1], Random(2), 4_000, 0.6)
    share = sum(attack.text.startswith("often") for attack in drawn) / len(drawn)
    assert share == pytest.approx(0.9, abs=0.03)
