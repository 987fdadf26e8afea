"""The parts of a study: which runs they are, what they are called, and how long they will take."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flows.prepare import arm_configs, world_of
from flows.study import StudyCosts, StudyPart, TimeLeft, parts_of, study_command
from tsgb.checkpoint.run import open_run
from tsgb.config import Arm, Profile
from tsgb.errors import UsageError
from tsgb.run_options import RunOptions
from tsgb.types import Knowledge

STUDY = RunOptions(profile=Profile.STUDY, seed=40, world_seed=11)


def with_options(**changes: Any) -> RunOptions:
    return STUDY.model_copy(update=changes)


def test_two_worlds_at_four_levels_the_ends_first() -> None:
    names = [part.name for part in parts_of(STUDY)]
    assert names[:4] == ["w11-c000", "w12-c000", "w11-c100", "w12-c100"]
    assert sorted(names[4:]) == ["w11-c025", "w11-c050", "w12-c025", "w12-c050"]


def test_a_world_of_the_users_is_studied_at_the_same_levels() -> None:
    parts = parts_of(with_options(env="mine:World"))
    assert [(part.world_seed, part.coverage) for part in parts] == [
        (11, coverage) for coverage in (0.0, 1.0, 0.25, 0.5)
    ]


def test_the_arms_of_a_level() -> None:
    nothing, some, everything = (StudyPart(11, c).arms for c in (0.0, 0.5, 1.0))
    assert some == (Arm.SELFPLAY, Arm.FROZEN)
    assert set(everything) == {*some, Arm.SFT}
    assert {Arm.NO_NOVELTY, Arm.NO_POOL, Arm.REINIT, Arm.FROZEN_NO_QUOTA} == {*nothing} - {*some}


def test_each_part_has_runs_of_its_own_in_its_world() -> None:
    seen: set[tuple[str | None, int, float]] = set()
    for part in parts_of(STUDY):
        options = part.options(with_options(overrides={"guard": {"batch": 64}}), "s1")
        config = arm_configs(options)[Arm.SELFPLAY]
        assert (config.world.coverage, config.guard.batch) == (part.coverage, 64)
        assert config.evaluation.matched
        assert config.profile is Profile.STUDY
        seen.add((options.run, config.world_seed, config.world.coverage))
        known = world_of(options).openings(Knowledge.INITIAL)
        assert len(known) == {0.0: 2, 0.25: 7, 0.5: 11, 1.0: 20}[part.coverage]
    assert len(seen) == 8
    assert options.trained_arms == tuple(arm for arm in Arm if arm in part.arms)


def test_a_level_of_ones_own_is_another_profile() -> None:
    for world in ({"coverage": 0.5}, 5):
        with pytest.raises(UsageError, match=r"--set world\.coverage: the study runs every level"):
            parts_of(with_options(overrides={"world": world}))


def test_the_command_that_repeats_it() -> None:
    options = with_options(
        seeds=2, targets=["T_s"], overrides={"attacker": {"lr": 1e-3}, "world": {"symbols": 32}}
    )
    assert shlex.split(study_command(options)) == [
        *("tsgb", "experiment", "--profile", "study", "--env", "glyph"),
        *("--seed", "40", "--world-seed", "11", "--seeds", "2", "--target", "T_s"),
        *("--set", "attacker.lr=0.001", "--set", "world.symbols=32"),
    ]


class TestTimeLeft:
    def test_it_is_that_of_the_parts_so_far_by_their_arms(self) -> None:
        now = [0.0]
        parts = [StudyPart(1, 0.0), StudyPart(1, 1.0), StudyPart(1, 0.5)]
        left = TimeLeft(parts, lambda: now[0])
        assert str(left) == "time left is known after the first part"
        now[0] = 9 * 60.0
        left.passed(parts[0])
        assert str(left) == "about 11 min left"
        now[0] = 15 * 60.0
        left.passed(parts[1])
        assert str(left) == "about 5 min left"

    def test_a_part_that_was_done_before_says_nothing(self) -> None:
        now = [0.0]
        parts = [StudyPart(1, 0.0), StudyPart(1, 1.0), StudyPart(1, 0.5)]
        left = TimeLeft(parts, lambda: now[0])
        now[0] = 5.0
        left.passed(parts[0])
        now[0] += 6 * 60.0
        left.passed(parts[1])
        assert str(left) == "about 5 min left"


def test_costs_add_up_over_starts(tmp_path: Path) -> None:
    cpu, now = [10.0], [0.0]
    for _ in range(2):
        costs = StudyCosts(open_run(str(tmp_path / "s1")), lambda: cpu[0], lambda: now[0])
        with costs.of("w1-c000", "training"):
            cpu[0] += 1800
            now[0] += 900
    with suppress(KeyboardInterrupt), costs.of("w1-c000", "evaluation"):
        cpu[0] += 36
        raise KeyboardInterrupt
    assert costs.hours() == {"w1-c000, training": 1.0, "w1-c000, evaluation": 0.01}
    assert costs.read()["w1-c000"]["training"]["wall_seconds"] == 1800
