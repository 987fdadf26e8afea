"""Environments: the worlds that attacker and guard play in. Torch-free.

README.md beside this file shows how to write one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

from tsgb.config import WorldConfig
from tsgb.envs.base import Environment
from tsgb.errors import ConfigError
from tsgb.plugins import NO_TRUST, Trust, load_attribute
from tsgb.protocols import Judge, JudgeItem
from tsgb.types import Judgement, Response, Scenario, TargetSpec

ENVIRONMENTS = {
    "glyph": "tsgb.envs.glyph:GlyphEnvironment",
    "canary": "tsgb.envs.canary:CanaryEnvironment",
}
"""Built-in environments by name, as `module:attribute`."""

_MEMBERS = [name for name in vars(Environment) if not name.startswith("_")]


def make_environment(
    name: str,
    *,
    world_seed: int,
    world: WorldConfig = WorldConfig(),  # noqa: B008 - it is frozen
    trust: Trust = NO_TRUST,
) -> Environment:
    """Build the environment `name`: a key of `ENVIRONMENTS`, or `module:attribute` of a user's own.

    Args:
        name: From `--env` or a run's configuration.
        world_seed: Draws the hidden policy and the targets' weaknesses; never a training seed.
        world: Passed on where it differs from the defaults, as `coverage` and `symbols`.
        trust: The modules that may be imported; a name may come from a store that others write to.

    Raises:
        ConfigError: There is no such environment, it is not trusted, or it cannot be built.
    """
    if name not in ENVIRONMENTS:
        if ":" not in name:
            known = ", ".join(sorted(ENVIRONMENTS))
            raise ConfigError(
                f"unknown environment {name!r}: choose one of {known}, or give module:attribute"
            )
        if not trust.allows(name):
            raise ConfigError(
                f"the run's configuration names the environment {name!r}, and its module was not "
                f"imported: code that a store names runs only if you name it too, as in --env "
                f"{name}, or with --trust-config"
            )
    factory = load_attribute(ENVIRONMENTS.get(name, name), "environment", ConfigError)
    _check_takes(factory, name, world)
    try:
        environment: Environment = factory(world_seed=world_seed, **world.changes)
    except (KeyboardInterrupt, ConfigError):
        raise
    except BaseException as error:
        raise ConfigError(
            f"environment {name!r} cannot be built: {type(error).__name__}: {error}"
        ) from error
    missing = [member for member in _MEMBERS if not hasattr(environment, member)]
    if missing:
        raise ConfigError(
            f"environment {name!r} gives a {type(environment).__name__} without "
            f"{', '.join(missing)}: see tsgb/envs/base.py"
        )
    return environment


def _check_takes(factory: Any, name: str, world: WorldConfig) -> None:
    """Refuse what a world does not have.

    Raises:
        ConfigError: It has no such argument.
    """
    try:
        known = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    for option, value in world.changes.items():
        if option not in known and not takes_all:
            raise ConfigError(
                f"world.{option} = {value!r}: the environment {name!r} takes no {option}, leave it"
            )


def customise(
    env: Environment, targets: Mapping[str, TargetSpec], judge: Judge | None
) -> Environment:
    """Return `env` with further targets, and with another judge unless that is None.

    Raises:
        ConfigError: A target has the name of one of the environment's.
    """
    for name in targets.keys() & env.targets().keys():
        raise ConfigError(f"the world {env.name!r} has a target {name!r}: rename your class")
    if not targets and judge is None:
        return env
    # The proxy hands on all that it does not define, which no type checker can see.
    return cast("Environment", _Customised(env, targets, judge))


class _Customised:
    def __init__(
        self, env: Environment, targets: Mapping[str, TargetSpec], judge: Judge | None
    ) -> None:
        self._env = env
        self._targets = targets
        self._judge = judge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def targets(self) -> Mapping[str, TargetSpec]:
        return {**self._env.targets(), **self._targets}

    def judge(self, scenario: Scenario, prompt: str, response: Response) -> Judgement:
        if self._judge is None:
            return self._env.judge(scenario, prompt, response)
        return self._judge.judge(JudgeItem(scenario=scenario, prompt=prompt, response=response))
