"""The opponent pool: what earlier attackers wrote, and who beats whom.

A member is its attacks, not its weights: a payoff is then one scoring pass of a guard, replay needs
no generation, and the pool fits into the trainer's state as text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from random import Random

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
FLOOR = 0.02
"""No member's replay weight vanishes: a forgotten attack comes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolAttack:
    """One attack as the guard trains on it."""

    text: str
    """The prompt."""
    harmful: bool
    """Exact label."""
    violated: bool | None
    """Whether the surrogate violated; None if it was not asked."""
    technique: str = ""
    """Technique family."""
    signature: str = ""
    """Key for counting novelty."""
    scenario_id: str = ""
    """Its scenario."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMember:
    """An attacker of the past."""

    name: str
    """Round that it ended, such as `round 2`."""
    attacks: tuple[PoolAttack, ...]
    """Attacks that it wrote."""


def hedge(payoff_AG: Matrix, iterations: int = 4000) -> tuple[Matrix, Matrix]:
    """Mixed strategies of the matrix game by Hedge in self-play, averaged over time.

    Freund & Schapire (1999), "Adaptive game playing using multiplicative weights": both averages
    approach the minimax strategies at O(sqrt(log n / iterations)).

    Args:
        payoff_AG: [attackers, guards] in [0, 1]; rows maximise, columns minimise.
        iterations: rounds of play.

    Returns:
        Mixtures over attackers and over guards.
    """
    attackers, guards = payoff_AG.shape
    log_a, log_g = np.zeros(attackers), np.zeros(guards)
    sum_a, sum_g = np.zeros(attackers), np.zeros(guards)
    for t in range(1, iterations + 1):
        rate = np.sqrt(8 * np.log(max(attackers, guards, 2)) / t)
        a = np.exp(rate * (log_a - log_a.max()))
        g = np.exp(rate * (log_g - log_g.max()))
        a /= a.sum()
        g /= g.sum()
        sum_a += a
        sum_g += g
        log_a += payoff_AG @ g
        log_g -= a @ payoff_AG
    return sum_a / iterations, sum_g / iterations


def replay_weights(payoff_AG: Matrix) -> Matrix:
    """How often each member is replayed against the newest guard (the last column).

    Half the Hedge mixture (what an attacker who knows all guards would play), half prioritised
    fictitious self-play, ASR^2 (Vinyals et al. 2019): whoever still beats the newest guard.
    """
    if payoff_AG.shape[1] == 0:
        return np.ones(payoff_AG.shape[0]) / payoff_AG.shape[0]
    mixture = _mixture(payoff_AG.shape, payoff_AG.astype(np.float64).tobytes())
    prioritised: Matrix = payoff_AG[:, -1] ** 2 + FLOOR
    weights: Matrix = 0.5 * mixture + 0.5 * prioritised / prioritised.sum()
    return weights


@lru_cache(maxsize=4)
def _mixture(shape: tuple[int, ...], payoffs: bytes) -> Matrix:
    """Return the mixture over attackers, cached: it changes only when a phase ends."""
    mixture, _ = hedge(np.frombuffer(payoffs).reshape(shape), iterations=500)
    return mixture


def capped_shares(mass: Mapping[str, float], cap: float) -> dict[str, float]:
    """Return each family's share of a replay in which no family has more than `cap`.

    What is cut from one family goes to the others in proportion to their mass. With fewer than
    1 / cap families the shares add up to less than 1.

    Args:
        mass: What each family has without a cap, in any unit.
        cap: Largest share.
    """
    free = {family: m for family, m in mass.items() if m > 0}
    shares: dict[str, float] = {}
    while free:
        left = 1 - cap * len(shares)
        total = sum(free.values())
        over = [family for family, m in free.items() if left * m / total > cap]
        if not over:
            return shares | {family: left * m / total for family, m in free.items()}
        for family in over:
            shares[family] = cap
            del free[family]
    return shares


def draw_capped(
    members: Sequence[PoolMember], weights: Sequence[float], rng: Random, num: int, cap: float
) -> list[PoolAttack]:
    """Draw at most `num` attacks as `draw` does, none of its families more than cap times num.

    The draw is systematic: a family gets its share of `num`, rounded up or down. Fewer attacks are
    drawn where there are too few families to fill all places.
    """
    families: dict[str, tuple[list[PoolAttack], list[float]]] = {}
    for member, weight in zip(members, weights, strict=True):
        for attack in member.attacks:
            attacks, odds = families.setdefault(attack.technique, ([], []))
            attacks.append(attack)
            odds.append(weight / len(member.attacks))
    shares = capped_shares({name: sum(odds) for name, (_, odds) in families.items()}, cap)
    order = list(shares)
    rng.shuffle(order)
    ends = list(accumulate(shares[name] for name in order))
    start = rng.random()
    places = [bisect_right(ends, (start + index) / num) for index in range(num)]
    chosen = [families[order[place]] for place in places if place < len(order)]
    return [rng.choices(attacks, weights=odds)[0] for attacks, odds in chosen]


def draw(
    members: Sequence[PoolMember], weights: Sequence[float], rng: Random, num: int
) -> list[PoolAttack]:
    """Draw `num` attacks: a member by weight, then one of its attacks."""
    if not members or num == 0:
        return []
    chosen = rng.choices(members, weights=weights, k=num)
    return [rng.choice(member.attacks) for member in chosen]
