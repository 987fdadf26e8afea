"""`tsgb plan`: forecast hours and dollars of a run on rented machines; nothing is rented."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsgb.cli.options import JsonOption, takes
from tsgb.errors import BudgetReached, NoOffer, ProviderError, UsageError
from tsgb.run_options import RunOptions

if TYPE_CHECKING:
    from tsgb.cli.account import AccountContext
    from tsgb.cloud.forecast import Plan, Quantiles
    from tsgb.cloud.history import RemainingWork
    from tsgb.cloud.offers import Appraisal
    from tsgb.cloud.policy import MachineNeeds
    from tsgb.cloud.provider import Offer
    from tsgb.config import RunConfig
    from tsgb.envs.base import Environment
    from tsgb.eval.power import PlannedSample
    from tsgb.models.requirements import Requirements
    from tsgb.settings import Settings

_USUAL_HOURS = 2.0


@takes(
    "run",
    "profile",
    "env",
    "seeds",
    "machines",
    "overrides",
    "model",
    "target_model",
    "black_boxes",
    "budget",
    "max_price",
    "store",
    "service_url",
)
def plan(
    *,
    hours: Annotated[
        float | None,
        typer.Option("--hours", min=0.01, help="Useful hours of a run to come; without it 2."),
    ] = None,
    state_gb: Annotated[
        float | None,
        typer.Option(
            "--state-gb", min=0, help="GB of one checkpoint of all arms, for its traffic."
        ),
    ] = None,
    options: RunOptions,
    as_json: JsonOption = False,
) -> None:
    """Forecast hours and dollars of a run on rented machines: one search, nothing is rented.

    Several seeds are counted together, under one budget, with as many machines at once as
    --machines allows; with more machines than seeds, each arm has machines to itself. With
    --run-id, forecast the rest of that run from the time that its updates took and the size of its
    newest checkpoints; without it, say what the sample of the profile's evaluation can show.
    With --model, first say what memory and disk that model takes, and check that rented machines
    can get and train it.
    """
    from contextlib import suppress

    from tsgb.cli.account import AccountContext, utc
    from tsgb.cloud.exchange import Exchange
    from tsgb.cloud.forecast import FoundOffers, make_plan
    from tsgb.cloud.history import read_history
    from tsgb.cloud.policy import LaunchPolicy, MachineNeeds
    from tsgb.cloud.pricing import in_dollars

    run_id = options.run
    if hours is not None and run_id is not None:
        raise UsageError("--hours and --run-id both say how much is left: give one of them")
    if run_id is not None and (options.seeds or 1) > 1:
        raise UsageError(
            f"--run-id {run_id} is one run, and --seeds {options.seeds} asks for several: leave "
            f"--seeds away, and plan the run of each seed, such as {run_id}-s0"
        )
    seeds = 1 if run_id is not None else len(options.training_seeds)
    account = AccountContext.read(options)
    apart = options.machines > seeds
    needs = _check_models(options, account.settings, apart=apart)
    sample = None if run_id is not None else _planned_sample(options)
    if needs is not None:
        asked = needs.machine(account.settings)
    elif run_id is not None:
        asked = _asked_by(run_id, options, account, apart=apart)
    else:
        asked = MachineNeeds.of(account.settings)
    policy = LaunchPolicy.of(account.settings, asked)
    with account.provider() as provider:
        left = _left(options, account, asked, hours, state_gb, apart=apart)
        if policy.budget <= left.spent:
            spent = f"; run {run_id} has cost {in_dollars(left.spent)}" if left.spent else ""
            raise BudgetReached(
                f"a budget of {in_dollars(policy.budget)} rents nothing{spent}: raise --budget or "
                "TSGB_BUDGET"
            )
        track = read_history(account.runs)
        offers = FoundOffers.search(provider, policy)
        warnings: list[str] = []
        with suppress(ProviderError):  # a plan needs no permission to read the account
            warnings = provider.facts().warnings()
    found = make_plan(
        offers,
        policy,
        left,
        track,
        utc(),
        seeds=seeds,
        machines_at_once=options.machines,
        apart=apart,
    )
    sees = Exchange.of(account.settings, account.runs.url).what_machines_can_do
    _print_plan(found, needs, sample, sees, warnings, as_json=as_json)
    if found.forecast is None:
        raise NoOffer(f"{found.choice}: raise --max-price, or ask for less")


def _left(
    options: RunOptions,
    account: AccountContext,
    asked: MachineNeeds,
    hours: float | None,
    state_gb: float | None,
    *,
    apart: bool,
) -> RemainingWork:
    """Return the work of each run, with the sizes of what one machine of it trains.

    Args:
        options: Options of the run.
        account: The runs of the deployment.
        asked: What the run's models ask of a machine.
        hours: Useful hours that a user gives.
        state_gb: GB of one checkpoint of all arms that a user gives.
        apart: Whether a machine trains one arm, and not all.
    """
    from dataclasses import replace

    from tsgb.cloud.history import RemainingWork, measure

    if options.run is not None:
        left = measure(account.runs, options.run)
    else:
        assumed = "assumed: give --hours or --run-id"
        left = RemainingWork(
            hours=_USUAL_HOURS if hours is None else hours,
            source=assumed if hours is None else "as given",
            arms=_arms_to_come(options) if apart else (1.0,),
        )
    num = len(left.arms) if apart else 1
    if state_gb is not None:
        each = state_gb / num
        return replace(left, restore_gb=each, save_gb=each, traffic_source="as given")
    if left.traffic_source or not asked.save_gb:
        return replace(left, restore_gb=left.restore_gb / num, save_gb=left.save_gb / num)
    return replace(
        left,
        save_gb=asked.save_gb,
        restore_gb=asked.restore_gb,
        traffic_source="estimated by the size of the adapters",
    )


def _check_models(options: RunOptions, settings: Settings, *, apart: bool) -> Requirements | None:
    """Return what the models of a run ask of a machine; None without a model.

    Args:
        options: Options of the run.
        settings: What a user asks of machines.
        apart: Whether a machine trains one arm, and not all.

    Raises:
        UsageError: A rented machine cannot get a model, or is too small for it.
    """
    from tsgb.cli.doctor import check_beside_model
    from tsgb.models.requirements import Requirements, training_work
    from tsgb.models.source import inspect

    check_beside_model(options)
    if options.model is None:
        return None
    cache, target = settings.cache_dir / "models", options.target_model
    base = inspect(options.model, settings, cache, for_rented=True)
    other = None if target is None else inspect(target, settings, cache, for_rented=True)
    boxes = [inspect(name, settings, cache) for name in options.black_boxes or []]
    config, env = _configured(options)
    # A world that trains its own models says nothing about pretrained ones.
    pretrained = env.recipes(options.profile)["base"].pretrained
    work = training_work(config, env) if pretrained else None
    return Requirements.of(
        base,
        other,
        boxes,
        model=config.model,
        work=work,
        arms=1 if apart else len(options.trained_arms),
        workers=settings,
    )


def _arms_to_come(options: RunOptions) -> tuple[float, ...]:
    """Return the updates of each arm of a run to come, as shares of those of the longest."""
    from flows.prepare import arm_configs

    updates = [config.total_steps for config in arm_configs(options).values()]
    return tuple(num / max(updates) for num in updates)


def _asked_by(
    run_id: str, options: RunOptions, account: AccountContext, *, apart: bool
) -> MachineNeeds:
    """Return what the models of a run ask of a machine; of one that cannot be read, nothing.

    Args:
        run_id: Id of the run.
        options: Options of the run.
        account: Settings and the runs of the deployment.
        apart: Whether a machine trains one arm, and not all.

    Raises:
        UsageError: Machines as the settings name them are too small.
    """
    from tsgb.checkpoint.documents import MAX_JSON_BYTES
    from tsgb.cloud.policy import MachineNeeds
    from tsgb.config import parse_config
    from tsgb.envs import make_environment
    from tsgb.errors import ConfigError
    from tsgb.models.requirements import machine_of_run
    from tsgb.plugins import Trust

    settings = account.settings
    run = account.runs.documents(run_id).run
    try:
        config = parse_config(run.read_text("config.json", MAX_JSON_BYTES), run.run_url)
        env = make_environment(
            config.env,
            world_seed=config.world_seed,
            world=config.world,
            trust=Trust.of(options.env),
        )
    except (FileNotFoundError, ConfigError):
        return MachineNeeds.of(settings)
    models, arms = settings.cache_dir / "models", 1 if apart else len(options.trained_arms)
    return machine_of_run(config, env, settings, settings, models, arms=arms)


def _configured(options: RunOptions) -> tuple[RunConfig, Environment]:
    """Return the configuration of the self-play arm, and its world."""
    from flows.prepare import arm_configs, world_of
    from tsgb.config import Arm

    return arm_configs(options)[Arm.SELFPLAY], world_of(options)


def _planned_sample(options: RunOptions) -> PlannedSample:
    """Return the sample of the evaluation that the options ask for."""
    from tsgb.eval.power import PlannedSample
    from tsgb.types import Split

    config, env = _configured(options)
    harmful = sum(scenario.harmful for scenario in env.scenarios(Split.TEST))
    attempts = config.evaluation.prompts
    return PlannedSample(
        attempts=attempts * len(options.training_seeds), per_scenario=attempts / max(1, harmful)
    )


def _print_plan(
    found: Plan,
    needs: Requirements | None,
    sample: PlannedSample | None,
    sees: str,
    warnings: list[str],
    *,
    as_json: bool,
) -> None:
    from tsgb.cli.output import console, print_json

    if as_json:
        further: dict[str, Any] = {} if needs is None else {"memory": needs.document()}
        if sample is not None:
            further["adaptive_attempts"] = sample.attempts
            further["design_effect"] = sample.design_effect
        further["machines_see"] = sees
        further["account"] = warnings
        print_json(_document(found) | further)
        return
    from rich.table import Table

    from tsgb.cloud.speed import REFERENCE

    hazard, out = found.hazard, console()
    lines = {}
    if needs is not None:
        known = needs.lines()
        lines = {name: known[name] for name in ("rented", "black boxes") if name in known}
    lines |= {
        "work": f"{found.left.hours:.2f} useful hours{_each(found)}, {found.left.source}",
        "offers": f"{found.count}; under ${found.choice.cap:.3f}/h with storage",
    }
    if sample is not None:
        lines["sample"] = str(sample)
    lines["trust"] = sees
    if warnings:
        lines["account"] = "; ".join(warnings)
    best = found.choice.best
    if best is not None:
        offer = best.offer
        lines["best"] = (
            f"offer {offer.id}: {offer.num_gpus} x {offer.gpu_name}, machine {offer.machine_id}, "
            f"bid ${best.price:.3f}/h (floor ${offer.min_bid:.3f}), ${best.hourly:.3f}/h with "
            f"storage, ${best.dollars_per_useful_hour:.3f} per useful hour"
        )
        lines["hazard"] = (
            f"{hazard.mean:.2f} preemptions/h ({hazard.quantile(0.1):.2f} to "
            f"{hazard.quantile(0.9):.2f}), {found.hazard_source}"
        )
        if found.speed_source:
            lines["speed"] = f"{found.speed:.2f} of an {REFERENCE}, {found.speed_source}"
        lines["start"] = _start(found, offer)
        lines["preemption"] = (
            f"{found.preemption_gb:.3g} GB down for ${found.preemption_dollars:.3f}, and "
            f"{found.boot_seconds / 60:.1f} minutes until it trains again"
        )
        lines["traffic"] = _traffic(found.left, offer)
        lines["saves"] = f"every {_seconds(found.interval_seconds)} s ({found.interval_source})"
    for name, text in lines.items():
        out.print(f"{name:>11}  {text}", markup=False, soft_wrap=True)
    if found.forecast is None:
        return
    table = Table(_all_runs(found), "p10", "p50", "p90")
    expected = found.forecast
    table.add_row("hours", *(f"{value:.2f}" for value in _three(expected.hours)))
    table.add_row("dollars", *(f"{value:.3f}" for value in _three(expected.dollars)))
    table.add_row("machines", *(f"{value:.0f}" for value in _three(expected.machines)))
    out.print(table)
    out.print(
        f"{found.within:.0%} of simulated runs stay within the ${found.budget:.2f} that are left "
        f"of the budget{' of all seeds' if found.seeds > 1 else ''}",
        markup=False,
    )


def _each(found: Plan) -> str:
    """Return what the hours are about, where that is not one run on one machine."""
    seeds = f"each of {found.seeds} seeds" if found.seeds > 1 else ""
    if found.arms_apart == 1:
        return f" for {seeds}" if seeds else ""
    return f" for the longest of {found.arms_apart} arms" + (f" of {seeds}" if seeds else "")


def _all_runs(found: Plan) -> str:
    """Return the head of the table: what its figures are about."""
    arms = f"all {found.arms_apart} arms" if found.arms_apart > 1 else ""
    seeds = f"all {found.seeds} seeds" if found.seeds > 1 else ""
    if not arms and not seeds:
        return ""
    at_once = found.machines_at_once
    named = " of ".join(name for name in (arms, seeds) if name)
    return f"{named}, {at_once} machine{'s' * (at_once > 1)} at once"


def _start(found: Plan, offer: Offer) -> str:
    parts = {
        "image": found.start.image_gb,
        "packages": found.start.packages_gb,
        "models": found.start.weights_gb,
        "checkpoint": found.left.restore_gb,
    }
    sizes = ", ".join(f"{name} {size:.2g}" for name, size in parts.items() if size)
    return (
        f"{found.boot_seconds:.0f} s until it trains, {found.boot_source}: {sizes} GB at "
        f"{offer.inet_down:.0f} Mb/s"
    )


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _traffic(left: RemainingWork, offer: Offer) -> str:
    if not left.traffic_source:
        return "without traffic: give --state-gb or --run-id"
    return (
        f"{left.save_gb:.3g} GB up for each save at ${offer.inet_up_cost:.4f}/GB, "
        f"{left.restore_gb:.3g} GB down for each start at ${offer.inet_down_cost:.4f}/GB, "
        f"{left.traffic_source}"
    )


def _three(of: Quantiles) -> tuple[float, float, float]:
    return of.p10, of.p50, of.p90


def _document(found: Plan) -> dict[str, Any]:
    expected, hazard = found.forecast, found.hazard
    return {
        "useful_hours": found.left.hours,
        "useful_hours_source": found.left.source,
        "seeds": found.seeds,
        "arms_apart": found.arms_apart,
        "machines_at_once": found.machines_at_once,
        **found.count.document(),
        "max_price": found.choice.cap,
        "best": _best(found.choice.best),
        "hazard_per_hour": {
            "mean": hazard.mean,
            "p10": hazard.quantile(0.1),
            "p90": hazard.quantile(0.9),
            "source": found.hazard_source,
        },
        "boot_seconds": found.boot_seconds,
        "boot_source": found.boot_source,
        "image_gb": found.start.image_gb,
        "packages_gb": found.start.packages_gb,
        "models_gb": found.start.weights_gb,
        "preemption_gb": found.preemption_gb,
        "preemption_dollars": found.preemption_dollars,
        "speed": found.speed,
        "speed_source": found.speed_source or None,
        "checkpoint_interval_seconds": found.interval_seconds,
        "checkpoint_interval_source": found.interval_source,
        "save_gb": found.left.save_gb,
        "restore_gb": found.left.restore_gb,
        "traffic_source": found.left.traffic_source or None,
        "hours": None if expected is None else _quantiles(expected.hours),
        "dollars": None if expected is None else _quantiles(expected.dollars),
        "machines": None if expected is None else _quantiles(expected.machines),
        "budget_left": found.budget,
        "within_budget": found.within,
    }


def _best(best: Appraisal | None) -> dict[str, Any] | None:
    if best is None:
        return None
    return {
        "ask_id": best.offer.id,
        "machine_id": best.offer.machine_id,
        "gpu_name": best.offer.gpu_name,
        "num_gpus": best.offer.num_gpus,
        "min_bid": best.offer.min_bid,
        "bid": best.price,
        "dollars_per_hour": best.hourly,
        "dollars_per_useful_hour": best.dollars_per_useful_hour,
    }


def _quantiles(of: Quantiles) -> dict[str, float | None]:
    """Return quantiles for JSON, which has no infinity: null stands for a run that never ends."""
    from math import isfinite

    named = zip(("p10", "p50", "p90"), _three(of), strict=True)
    return {name: value if isfinite(value) else None for name, value in named}
