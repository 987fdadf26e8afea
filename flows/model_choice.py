"""The models of a run, looked at before anything starts and named so that they stay the same.

It reads a model's small files, never its weights, and knows no Prefect.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from flows.workers import Workers
from tsgb.config import ModelConfig
from tsgb.envs import make_environment
from tsgb.errors import ConfigError, UsageError
from tsgb.models.requirements import Requirements
from tsgb.models.source import ModelFacts, inspect
from tsgb.plugins import Trust
from tsgb.run_options import MachineKind, RunOptions
from tsgb.settings import Settings


def choose_models(
    options: RunOptions, settings: Settings, stored: ModelConfig | None = None
) -> RunOptions:
    """Return the options with each model named by what does not change: a commit, a full path.

    Args:
        options: Options as a user gave them.
        settings: Settings of this process.
        stored: Models of the run that is resumed: it keeps its commit where the option names none.

    Raises:
        ConfigError: A model does not exist, cannot be used, or the world takes none.
        UsageError: Two options name the same model, a rented machine could not have it, or the
            machine is too small for it.
    """
    env = make_environment(options.env, world_seed=options.world_seed, trust=Trust.of(options.env))
    usual = env.recipes(options.profile.value)["base"].pretrained
    overrides = deepcopy(options.overrides or {})
    model = _taken(overrides, "pretrained", "--model", options.model)
    target = _taken(overrides, "target", "--target-model", options.target_model)
    if not usual:
        if named := model or target:
            raise ConfigError(
                f"model {named!r}: the world {env.name!r} trains its own models, so name none"
            )
        return options
    stored = stored or ModelConfig()

    rented = options.machine is MachineKind.RENTED

    def look(name: str, before: str) -> tuple[str, ModelFacts]:
        if before.startswith(f"{name}@"):  # the branch may have moved since
            name = before
        facts = inspect(name, settings, settings.cache_dir / "models", for_rented=rented)
        return before if name == before else facts.name, facts

    base, facts = look(model or usual, stored.pretrained)
    facts.check_verdicts(env.guard_template())
    target, other = look(target, stored.target) if target else (None, None)
    needs = Requirements.of(
        facts,
        other,
        device=options.model_setting("device"),
        dtype=options.model_setting("dtype"),
        target_quantization=options.model_setting("target_quantization"),
    )
    if rented:
        needs.check_rented(gpu_ram_gb=settings.gpu_ram_gb, rented_gb=settings.disk_gb)
    else:
        needs.check_here()
    changes = {
        "model": base if model else None,
        "target_model": target,
        "overrides": overrides or None,
    }
    return options.model_copy(update=changes)


def stored_models(workers: Workers) -> ModelConfig | None:
    """Return the models of a run; None if there is no such run yet."""
    try:
        return workers.config().model
    except FileNotFoundError:
        return None


def _taken(overrides: dict[str, Any], key: str, option: str, named: str | None) -> str | None:
    """Take a model's name out of the overrides, where `--set` put it before there was an option."""
    values = overrides.get("model")
    if not isinstance(values, dict) or not isinstance(values.get(key), str):  # pyright: ignore[reportUnknownMemberType]
        return named
    by_set = str(values.pop(key))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    if named and by_set and named != by_set:
        raise UsageError(f"{option} {named!r} and --set model.{key}={by_set} differ: give one")
    return named or by_set or None
