"""The best scripted technique: found where there is one, and no higher than it is."""

import numpy as np
import pytest

from tsgb.eval.intervals import MISSING
from tsgb.eval.scripted_strategy import best_technique

NUM_SCENARIOS, PER_CELL = 24, 4


def attacks(rng: np.random.Generator, rates: dict[str, float], seeds: int = 1):
    """Return (outcomes, techniques, seeds, scenarios) of equally many attacks of each technique."""
    names, seed, scenario, _ = np.meshgrid(
        list(rates), np.arange(seeds), np.arange(NUM_SCENARIOS), np.arange(PER_CELL)
    )
    names, seed, scenario = names.ravel(), seed.ravel(), scenario.ravel()
    chance = np.array([rates[name] for name in names])
    outcomes = (rng.random(names.size) < chance).astype(np.int8)
    return outcomes, names, seed, scenario


def test_the_technique_that_gets_through_most_is_played() -> None:
    rng = np.random.default_rng(1)
    outcomes, names, seeds, scenarios = attacks(rng, {"a": 0.1, "b": 0.6, "c": 0.2}, seeds=3)
    rows = best_technique(outcomes, names, seeds, scenarios)
    assert set(names[rows]) == {"b"}
    assert rows.sum() == 3 * NUM_SCENARIOS * PER_CELL


def test_each_seed_has_its_own() -> None:
    rng = np.random.default_rng(2)
    first = attacks(rng, {"a": 0.7, "b": 0.1})
    second = attacks(rng, {"a": 0.1, "b": 0.7})
    outcomes, names, seeds, scenarios = (np.concatenate(x) for x in zip(first, second, strict=True))
    seeds[len(first[0]) :] = 1
    rows = best_technique(outcomes, names, seeds, scenarios)
    assert set(names[rows & (seeds == 0)]) == {"a"}
    assert set(names[rows & (seeds == 1)]) == {"b"}


def test_equal_techniques_are_not_read_as_a_better_one() -> None:
    """The highest of ten techniques on the items that chose it would be .10 above their rate."""
    rng = np.random.default_rng(3)
    rates = {f"technique {index}": 0.3 for index in range(10)}
    found, naive = [], []
    for _ in range(200):
        outcomes, names, seeds, scenarios = attacks(rng, rates)
        rows = best_technique(outcomes, names, seeds, scenarios)
        found.append(outcomes[rows].mean())
        naive.append(max(outcomes[names == name].mean() for name in rates))
    assert np.mean(naive) > 0.36
    assert np.mean(found) == pytest.approx(0.3, abs=3 * np.std(found) / np.sqrt(200))


def test_a_technique_that_worked_twice_is_not_the_best() -> None:
    rng = np.random.default_rng(4)
    outcomes, names, seeds, scenarios = attacks(rng, {"a": 0.5, "rare": 0.0})
    keep = (names == "a") | (np.cumsum(names == "rare") <= 2)
    outcomes[names == "rare"] = 1
    rows = best_technique(outcomes[keep], names[keep], seeds[keep], scenarios[keep])
    assert set(names[keep][rows]) == {"a"}


def test_attacks_without_an_outcome_decide_nothing_and_are_kept() -> None:
    rng = np.random.default_rng(5)
    outcomes, names, seeds, scenarios = attacks(rng, {"a": 0.6, "b": 0.2})
    outcomes[(names == "a") & (scenarios % 3 == 0)] = MISSING
    rows = best_technique(outcomes, names, seeds, scenarios)
    assert set(names[rows]) == {"a"}
    assert np.count_nonzero(outcomes[rows] == MISSING) == 8 * PER_CELL


def test_nothing_is_played_where_nothing_decides() -> None:
    none = np.array([], dtype=np.intp)
    empty = best_technique(none.astype(np.int8), none.astype(np.str_), none, none)
    assert empty.shape == (0,)
    missing = np.full(4, MISSING, dtype=np.int8)
    rows = best_technique(missing, np.array(list("abab")), np.zeros(4, int), np.arange(4))
    assert not rows.any()
