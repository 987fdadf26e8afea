"""The command in a report starts what was reported: its options are parsed as a user's are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from flows.prepare import arm_configs
from tsgb.cli import app
from tsgb.cli.options import parse_text
from tsgb.config import (
    Arm,
    Profile,
    RunConfig,
    TrainingDataConfig,
    TrainingFileConfig,
    default_arms,
)
from tsgb.data.mapping import ColumnMap
from tsgb.envs import make_environment
from tsgb.run_options import RunOptions, read_options
from tsgb.worker.report import command

EXPERIMENT: Any = vars(typer.main.get_command(app))["commands"]["experiment"]
LAST = object()


def parsed(line: str) -> dict[str, Any]:
    """The options of a printed command, as the command line reads them."""
    words = shlex.split(line, comments=True)
    assert words[:2] == ["tsgb", "experiment"]
    return EXPERIMENT.make_context("experiment", words[2:]).params


def started(line: str) -> dict[Arm, RunConfig]:
    """The configurations that a printed command would write."""
    texts = {name: text for name, text in parsed(line).items() if name in RunOptions.model_fields}
    values = {name: parse_text(name, text) for name, text in texts.items()}
    return arm_configs(read_options(**values))


def configs(arms: Sequence[Arm] = (Arm.SELFPLAY,), **named: Any) -> dict[Arm, RunConfig]:
    return arm_configs(RunOptions(**{"profile": Profile.SMOKE, "arms": list(arms), **named}))


def printed(
    ran: Mapping[Arm, RunConfig],
    *,
    seeds: Sequence[int] | None = None,
    targets: Sequence[str] | None = None,
    step: Any = LAST,
) -> str:
    config = ran[Arm.SELFPLAY]
    guards = {arm.value: {"step": one.total_steps} for arm, one in ran.items()}
    if step is not LAST:
        guards[Arm.SELFPLAY.value] = {"step": step}
    pooled = [config.model_copy(update={"seed": seed}) for seed in seeds or [config.seed]]
    env = make_environment(config.env, world_seed=config.world_seed)
    return command(pooled, env, [{"guards": guards, "targets": targets} for _ in pooled])


OVERRIDES = {
    "segments": st.integers(1, 9),
    "checkpoint_interval": st.none() | st.integers(1, 99),
    "model.pretrained": st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    "model.target": st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    "model.black_boxes": st.lists(st.text(min_size=1), max_size=2).map(tuple),
    "model.device": st.sampled_from(["auto", "cpu", "cuda:1"]),
    "model.adapter": st.sampled_from(["full", "lora"]),
    "attacker.lr": st.floats(allow_nan=False, allow_infinity=False),
    "guard.loss": st.sampled_from(["exact_pg", "weighted_ce", "sampled_pg"]),
    "guard.current_share": st.floats(0, 0.3),
    "selfplay.rounds": st.integers(0, 9),
    "selfplay.pool": st.booleans(),
    "evaluation.prompts": st.integers(1, 2000),
}


@given(
    st.fixed_dictionaries({}, optional=OVERRIDES),
    st.sets(st.sampled_from(Arm)),
    st.sampled_from([Profile.SMOKE, Profile.DEMO]),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_the_command_makes_these_configurations(
    flat: dict[str, Any], arms: set[Arm], profile: Profile, world_seed: int, seed: int
) -> None:
    overrides: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        inner = overrides
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    chosen = [arm for arm in Arm if arm in {Arm.SELFPLAY, *arms}]
    ran = configs(
        chosen, profile=profile, world_seed=world_seed, seed=seed, overrides=overrides or None
    )
    assert started(printed(ran)) == ran


def test_it_says_what_differs_from_the_profile_and_no_more() -> None:
    ran = configs((Arm.SELFPLAY, Arm.SFT), seed=3, overrides={"selfplay": {"rounds": 2}})
    assert printed(ran) == (
        "tsgb experiment --profile smoke --env glyph --seed 3 --arms selfplay,sft "
        "--set selfplay.rounds=2"
    )
    assert printed(configs(default_arms(Profile.SMOKE))) == (
        "tsgb experiment --profile smoke --env glyph --seed 0"
    )


def test_files_of_the_users_are_named_and_their_configuration_is_not() -> None:
    data = TrainingDataConfig(
        sha256="ab" * 32,
        harmful=1,
        benign=1,
        groups=1,
        mapping="prompt=q 'label=is bad'",
        files=(
            TrainingFileConfig(name="a b.csv", format="map", sha256="cd" * 32),
            TrainingFileConfig(name="c.csv", format="xstest", sha256="ef" * 32),
        ),
    )
    ran = configs(default_arms(Profile.SMOKE), env="canary")
    found = {arm: config.model_copy(update={"train_data": data}) for arm, config in ran.items()}
    line = printed(found)
    assert parsed(line)["train_data"] == ["a b.csv", "c.csv"]
    assert ColumnMap.parse(parsed(line)["train_map"]) == ColumnMap(prompt="q", label="is bad")
    assert "--set" not in line


def test_world_seed_and_targets() -> None:
    line = printed(configs(world_seed=4), targets=["B_far", "T_s"])
    assert "--world-seed 4 " in line
    assert parsed(line)["targets"] == ["B_far", "T_s"]


def test_an_experiment_of_several_seeds_is_started_once() -> None:
    paper = configs(default_arms(Profile.PAPER), profile=Profile.PAPER, seed=3)
    assert printed(paper, seeds=[4, 3, 5, 6, 7]) == (
        "tsgb experiment --profile paper --env glyph --seed 3"
    )


@pytest.mark.parametrize(
    ("profile", "seeds"),
    [(Profile.PAPER, [3]), (Profile.PAPER, [5, 3, 4]), (Profile.SMOKE, [1, 0])],
)
def test_another_number_of_seeds_than_the_profile_has(profile: Profile, seeds: list[int]) -> None:
    line = printed(configs(default_arms(profile), profile=profile), seeds=seeds)
    wanted = ["--seed", str(min(seeds)), "--seeds", str(len(seeds))]
    assert shlex.split(line, comments=True)[-4:] == wanted
    assert "#" not in line


@pytest.mark.parametrize(
    ("seeds", "step", "comment"),
    [
        pytest.param([0, 2], LAST, "seeds 0, 2", id="pooled-by-hand"),
        pytest.param([0], 7, r"selfplay at step 7 of \d+", id="older-guard"),
        pytest.param([0, 2], 7, "seeds 0, 2; selfplay at step 7 .*", id="both"),
    ],
)
def test_a_comment_tells_what_an_experiment_does_otherwise(
    seeds: list[int], step: Any, comment: str
) -> None:
    line = printed(configs(default_arms(Profile.SMOKE)), seeds=seeds, step=step)
    words = shlex.split(line, comments=True)
    assert words[6:8] == ["--seed", "0"]
    assert words[8:] == (["--seeds", str(len(seeds))] if len(seeds) > 1 else [])
    assert re.fullmatch(f"reported here: {comment}", line.partition("  # ")[2])
