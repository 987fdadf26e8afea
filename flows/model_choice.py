"""The models of a run, looked at before anything starts and named so that they stay the same.

It reads a model's small files, never its weights, and knows no Prefect.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

from flows.prepare import arm_configs, world_of
from flows.workers import Workers
from tsgb.cloud.exchange import Exchange
from tsgb.config import Arm, ModelConfig
from tsgb.envs import Environment
from tsgb.errors import ConfigError, UsageError
from tsgb.models.pushed import PushedModels, parse_pushed
from tsgb.models.requirements import Requirements, training_work
from tsgb.models.source import ModelFacts, inspect
from tsgb.run_options import MachineKind, RunOptions
from tsgb.settings import Settings
from tsgb.targets.pretrained import with_black_boxes

T = TypeVar("T", str, list[str])


def choose_models(
    options: RunOptions,
    settings: Settings,
    stored: ModelConfig | None = None,
    *,
    evaluates: bool = False,
) -> RunOptions:
    """Return the options with each model named by what does not change: a commit, a full path.

    Args:
        options: Options as a user gave them.
        settings: Settings of this process.
        stored: Models of the run that is resumed: it keeps its commit where the option names none.
        evaluates: Whether this machine evaluates the guards although another one is rented to train
            them. With black boxes it always does, because a rented machine asks none.

    Raises:
        ConfigError: A model does not exist, cannot be used, or the world takes none.
        UsageError: Two options name the same model, a rented machine could not have it, or the
            machine is too small for it.
    """
    env = world_of(options)
    usual = env.recipes(options.profile.value)["base"].pretrained
    overrides = deepcopy(options.overrides or {})
    model: str | None = _taken(overrides, "pretrained", "--model", options.model)
    target: str | None = _taken(overrides, "target", "--target-model", options.target_model)
    boxes: list[str] = _taken(overrides, "black_boxes", "--black-box", options.black_boxes) or []
    if not usual:
        for named in (model, target, *boxes):
            if named:
                raise ConfigError(
                    f"model {named!r}: the world {env.name!r} trains its own models, so name none"
                )
        return options
    stored = stored or ModelConfig()
    rented = options.machine is MachineKind.RENTED

    look = partial(_look, settings=settings, for_rented=rented)
    base, facts = look(model or usual, [stored.pretrained])
    facts.check_verdicts(env.guard_template())
    target, other = look(target, [stored.target]) if target else (None, None)
    if rented:
        exchange = Exchange.of(settings, options.store or settings.default_store)
        check_pushed([base, *([target] if target else [])], exchange, settings)
    asked = choose_black_boxes(boxes, env, settings, stored.black_boxes)
    changes = {
        "model": base if model else None,
        "target_model": target,
        "black_boxes": [*asked] or None,
        "overrides": overrides or None,
    }
    chosen = options.model_copy(update=changes)
    config = arm_configs(chosen)[Arm.SELFPLAY]
    needs = Requirements.of(
        facts,
        other,
        [*asked.values()],
        model=config.model,
        work=training_work(config, env),
        arms=len(chosen.trained_arms),
        workers=settings,
    )
    if rented:
        needs.machine(settings)
        if options.evaluate and (evaluates or asked):
            _check_evaluation(needs)
    else:
        needs.check_here()
    return chosen


def check_pushed(names: Iterable[str], exchange: Exchange, settings: Settings) -> None:
    """Return if the exchange has all of the models that were pushed to it.

    Args:
        names: Names of models, pushed or not.
        exchange: The exchange that machines will read.
        settings: Settings of this process.

    Raises:
        ConfigError: It lacks one, or a part of one.
        StoreError: It does not answer.
    """
    for name in names:
        pushed = parse_pushed(name)
        if pushed is not None:
            cache = settings.cache_dir / "models"
            PushedModels(cache, exchange.open_models()).check_there(*pushed)


def _check_evaluation(needs: Requirements) -> None:
    """Refuse models that this machine cannot evaluate after a rented one has trained.

    Raises:
        UsageError: It is too small for them, or cannot hold the target's weights as they are to be.
    """
    try:
        replace(needs, card=None).check_here()  # a rented card would not evaluate
    except UsageError as error:
        away = (
            "leave --black-box away" if needs.black_boxes else "evaluate elsewhere: --no-evaluate"
        )
        raise UsageError(
            f"this machine evaluates what a rented one trains, and cannot: {error}, or {away}"
        ) from None


def choose_black_boxes(
    names: Sequence[str], env: Environment, settings: Settings, stored: Sequence[str] = ()
) -> dict[str, ModelFacts]:
    """Return facts about black boxes, by names that do not change.

    They are asked in the evaluation, on this machine: a rented one need not get them.

    Args:
        names: Names as a user gave them.
        env: World of the run.
        settings: Settings of this process.
        stored: Black boxes of the run that is resumed.

    Raises:
        ConfigError: One does not exist, or cannot be used.
        UsageError: Two are the same, or a name in tables is taken.
    """
    with_black_boxes(env, names[:1])  # a world that takes none says so before a hub is asked
    asked = [_look(name, stored, settings=settings, for_rented=False) for name in names]
    with_black_boxes(env, [name for name, _ in asked])
    return dict(asked)


def _look(
    name: str, before: Sequence[str], *, settings: Settings, for_rented: bool
) -> tuple[str, ModelFacts]:
    """Return the name to store, which is one of `before` if that is meant, and the facts."""
    name = next((one for one in before if one.startswith(f"{name}@")), name)  # the branch may move
    facts = inspect(name, settings, settings.cache_dir / "models", for_rented=for_rented)
    return name if name in before else facts.name, facts


def stored_models(workers: Workers) -> ModelConfig | None:
    """Return the models of a run; None if there is no such run yet."""
    try:
        return workers.config().model
    except FileNotFoundError:
        return None


def _taken(overrides: dict[str, Any], key: str, option: str, named: T | None) -> T | None:
    """Take the name of a model, or names, out of the overrides, where `--set` put them.

    A value that is none is left to the configuration, which refuses it.
    """
    values = overrides.get("model")
    if not isinstance(values, dict):
        return named
    found = cast("dict[str, Any]", values)
    by_set: Any = found.get(key)
    names: object = by_set if key == "black_boxes" else [by_set]
    if not isinstance(names, list) or not all(
        isinstance(name, str) for name in cast("list[object]", names)
    ):
        return named
    del found[key]
    if named and by_set and named != by_set:
        raise UsageError(f"{option} {named!r} and --set model.{key}={by_set} differ: give one")
    return named or by_set or None
