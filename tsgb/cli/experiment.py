"""`tsgb experiment`: both stages on an embedded Prefect API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tsgb.cli.options import (
    EnvOption,
    FreshOption,
    JsonOption,
    JudgeClassOption,
    ProfileOption,
    RunIdOption,
    SeedOption,
    SetOption,
    StoreOption,
    TargetClassOption,
    TargetOption,
    WorldSeedOption,
    parse_names,
    parse_overrides,
    parse_profile,
)

ArmsOption = Annotated[
    str | None,
    typer.Option(
        "--arms",
        metavar="A,B,...",
        help="What is trained, selfplay among it; without it the profile's arms.",
    ),
]


def experiment(
    profile: ProfileOption = "demo",
    env: EnvOption = "glyph",
    seed: SeedOption = 0,
    world_seed: WorldSeedOption = 0,
    store: StoreOption = None,
    run_id: RunIdOption = None,
    arms: ArmsOption = None,
    target: TargetOption = None,
    target_class: TargetClassOption = None,
    judge_class: JudgeClassOption = None,
    fresh: FreshOption = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train by self-play, evaluate on black boxes, report; resumes with the same --run-id.

    demo takes minutes on two cores, smoke about one, paper hours: it trains five seeds.
    """
    arguments: dict[str, Any] = {
        "run_id": run_id,
        "profile": parse_profile(profile),
        "env": env,
        "seed": seed,
        "world_seed": world_seed,
        "store": store,
        "arms": parse_names(arms, "--arms"),
        "targets": target or None,
        "target_class": target_class or [],
        "judge_class": judge_class,
        "fresh": fresh,
        "overrides": parse_overrides(overrides) or None,
    }
    from flows.experiment import run_experiment

    show(run_experiment(**arguments), as_json=as_json)


def show(document: Mapping[str, Any], *, as_json: bool) -> None:
    """The result: as JSON, or the tables of the evaluation."""
    from tsgb.cli import display, output

    if as_json:
        output.print_json(document)
        return
    display.print_evaluation(
        display.read_summary(document["stage2"]["summary"]), document["stage2"]["report"]
    )
