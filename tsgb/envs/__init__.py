"""Environments: the worlds that attacker and guard play in. Torch-free.

A new environment is one new file and one line in `ENVIRONMENTS`.
"""

from __future__ import annotations

import importlib

from tsgb.envs.base import Environment
from tsgb.errors import ConfigError

ENVIRONMENTS = {
    "glyph": "tsgb.envs.glyph:GlyphEnvironment",
    "canary": "tsgb.envs.canary:CanaryEnvironment",
}


def make_environment(name: str, *, world_seed: int) -> Environment:
    """Build the environment `name` (a key of `ENVIRONMENTS`, or `module:attribute` of your own).

    Args:
        name: what `--env` takes.
        world_seed: draws the hidden policy and the targets' weaknesses; never a training seed.

    Raises:
        ConfigError: no such environment.
    """
    path = ENVIRONMENTS.get(name, name)
    module, _, attribute = path.partition(":")
    if not attribute:
        known = ", ".join(sorted(ENVIRONMENTS))
        raise ConfigError(
            f"unknown environment {name!r}: choose one of {known}, or give module:attribute"
        )
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"environment {name!r} cannot be loaded: {error}") from error
    environment: Environment = factory(world_seed=world_seed)
    return environment
