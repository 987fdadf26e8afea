"""Discoveries by hand: who first used a technique, and what guards made of it."""

from __future__ import annotations

import pytest

from tsgb.eval.records import Discovery, DiscoveryRound
from tsgb.eval.study_discovery import MIN_SHOWN, level_discovery, mean_estimate, read_discovery


def found(seed: int = 1, *, late: int = MIN_SHOWN, change: int = 6) -> Discovery:
    """The warm-up finds "w", round 1 finds "a" and round 2 perhaps "b"; "c" is never used."""
    rounds = [
        {"public": 50, "w": MIN_SHOWN, "a": MIN_SHOWN - 1},
        {"w": 30, "a": 9},
        {"a": 20, "b": late},
    ]
    names = ("warm", "round-1", "round-2")
    return Discovery(
        seed=seed,
        arm="selfplay",
        known=["public", "shown"],
        rounds=[
            DiscoveryRound(attacker=name, attacks=96, violated=violated)
            for name, violated in zip(names, rounds, strict=True)
        ],
        guards=["sft", "round-1", "round-2"],
        prompts={"public": 9, "w": 20, "a": 10, "b": 10, "c": 10},
        blocked={
            "public": [9, 9, 9],
            "w": [0, 20, 20],
            "a": [1, 1 + change, 9],
            "b": [0, 2, 7],
            "c": [0, 1, 3],
        },
    )


def test_each_technique_belongs_to_the_attacker_that_first_uses_it() -> None:
    unit = read_discovery(found(), "world 3", 0.25)
    assert (unit.known, unit.warm_up, unit.later) == (2, 1, 2)
    assert unit.found == {"round-1": 1, "round-2": 1}
    told = [(one.technique, one.round, one.before, one.after) for one in unit.shown]
    assert told == [("a", "round-1", 1, 7), ("b", "round-2", 2, 7)]
    assert unit.change == pytest.approx((0.6 + 0.5) / 2)
    # In round 1 nobody had used "b" and "c" yet; in round 2 only "c" was left.
    assert unit.others == pytest.approx(((0.2 + 0.1) / 2 + 0.2) / 2)


def test_fewer_attacks_than_the_threshold_are_no_use() -> None:
    unit = read_discovery(found(late=MIN_SHOWN - 1), "world 3", 0.25)
    assert unit.found == {"round-1": 1, "round-2": 0}
    assert [one.technique for one in unit.shown] == ["a"]


def test_a_technique_without_prompts_is_found_and_not_compared() -> None:
    bare = found().model_copy(update={"prompts": {"b": 10}})
    unit = read_discovery(bare, "world 3", 0.0)
    assert unit.later == 2
    assert [one.technique for one in unit.shown] == ["b"]
    assert unit.others is None


def test_an_attacker_whose_guard_was_not_kept_is_not_compared() -> None:
    bare = found().model_copy(update={"guards": ["sft", "round-1"]})
    unit = read_discovery(bare, "world 3", 0.0)
    assert (unit.later, [one.technique for one in unit.shown]) == (2, ["a"])


def test_a_row_is_the_mean_over_trainings() -> None:
    units = [read_discovery(found(seed, change=seed), "world 3", 0.0) for seed in (2, 4, 6)]
    row = level_discovery(units)
    assert (row.units, row.finders, row.prompts) == (3, 3, 60)
    assert row.by_round == {"round-1": 1.0, "round-2": 1.0}
    assert row.change is not None
    assert row.change.value == pytest.approx((0.5 + (0.2 + 0.4 + 0.6) / 3) / 2)
    assert row.before is not None
    assert row.after is not None
    assert row.after - row.before == pytest.approx(row.change.value)
    assert row.change.low is not None
    assert row.change.low < row.change.value
    one = level_discovery(units[:1])
    assert one.change is not None
    assert (one.change.low, one.change.high) == (None, None)


def test_an_interval_is_students() -> None:
    found = mean_estimate([1.0, 2.0, 3.0, 6.0])
    assert found.value == 3.0
    assert found.high is not None
    assert found.high - found.value == pytest.approx(3.18245 * (14 / 3 / 4) ** 0.5, abs=1e-4)
