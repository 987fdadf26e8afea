"""`tsgb manager ...`: runs of the flow on rented machines. Thin: the flow does it all."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tsgb.cli.experiment import ArmsOption, show
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
from tsgb.errors import UsageError

manager_app = typer.Typer(help="Train on rented machines, one at a time, within a budget.")

BudgetOption = Annotated[
    float | None,
    typer.Option("--budget", min=0, help="Dollars for the whole run; else TSGB_BUDGET."),
]
MaxPriceOption = Annotated[
    float | None,
    typer.Option("--max-price", min=0.001, max=128, help="$/h for a machine; else TSGB_MAX_PRICE."),
]
VastUrlOption = Annotated[
    str | None,
    typer.Option("--vast-url", metavar="URL", help="A simulator of Vast.ai; else TSGB_VAST_URL."),
]


@manager_app.command("run")
def manager_run(
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
    budget: BudgetOption = None,
    max_price: MaxPriceOption = None,
    vast_url: VastUrlOption = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Stage 2 on this machine afterwards.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Train on rented machines, then evaluate here; resumes with the same --run-id.

    Ctrl-C lets the machine save and ends it; what was trained is kept.
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
        "rented": rented(budget, max_price, vast_url),
        "evaluates": evaluate,
    }
    check(store, budget, vast_url)
    from flows.experiment import run_experiment

    show(run_experiment(**arguments), as_json=as_json or not evaluate)


@manager_app.command("loop")
def manager_loop(
    interval: Annotated[
        float, typer.Option("--interval", min=1, help="Seconds between two starts of the flow.")
    ] = 60.0,
    profile: ProfileOption = "demo",
    env: EnvOption = "glyph",
    seed: SeedOption = 0,
    world_seed: WorldSeedOption = 0,
    store: StoreOption = None,
    run_id: RunIdOption = None,
    arms: ArmsOption = None,
    target: TargetOption = None,
    overrides: SetOption = None,
    budget: BudgetOption = None,
    max_price: MaxPriceOption = None,
    vast_url: VastUrlOption = None,
) -> None:
    """Serve the deployment: start the run again until it is done, however its flow ended.

    Each start goes on with --run-id; one that is done ends at once. Needs PREFECT_API_URL.
    """
    if run_id is None:
        raise UsageError("--run-id is missing: a loop goes on with one run, so name it")
    parse_profile(profile)
    check(store, budget, vast_url)
    from flows.serving import serve

    serve(
        interval,
        {
            "run": run_id,
            "profile": profile,
            "env": env,
            "seed": seed,
            "world_seed": world_seed,
            "store": store,
            "arms": parse_names(arms, "--arms"),
            "targets": target or None,
            "overrides": parse_overrides(overrides) or None,
            **rented(budget, max_price, vast_url),
        },
    )


def rented(budget: float | None, max_price: float | None, vast_url: str | None) -> dict[str, Any]:
    """The flow's parameters about machines."""
    return {"machine": "vast", "budget": budget, "max_price": max_price, "vast_url": vast_url}


def check(store: str | None, budget: float | None, vast_url: str | None) -> None:
    """Say now what Prefect would have to be started for.

    Raises:
        TSGBError: See `flows.renting.preflight`.
    """
    from flows.renting import preflight
    from tsgb.checkpoint.urls import canonical_url
    from tsgb.settings import load_settings

    settings = load_settings()
    where = canonical_url(store or settings.default_store)
    preflight(settings, where, budget=budget, vast_url=vast_url)
