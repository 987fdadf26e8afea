"""Builds targets from their specs."""

from __future__ import annotations

from functools import partial

from tsgb.errors import ConfigError
from tsgb.models.registry import ModelRegistry
from tsgb.protocols import Target
from tsgb.targets.local import ChatTarget, LoadedTarget, ReadoutTarget
from tsgb.types import TargetSpec


def build_target(registry: ModelRegistry, spec: TargetSpec) -> Target:
    """Build the model behind a target spec: of the environment's own, or pretrained."""
    if spec.pretrained:
        load = partial(registry.black_box, spec.pretrained)
        return LoadedTarget(spec.name, load, spec.max_new_tokens)
    if spec.max_new_tokens:
        role = registry.role(spec.name)
        return ChatTarget(spec.name, registry.target(), role, spec.max_new_tokens)
    readout = registry.readout(spec.name)
    return ReadoutTarget(spec.name, readout, registry.tokenizer(), spec.answer)


def build_surrogate(registry: ModelRegistry) -> Target:
    """Build the target of stage 1.

    Raises:
        ConfigError: The environment does not have exactly one surrogate.
    """
    specs = [spec for spec in registry.env.targets().values() if spec.role == "surrogate"]
    if len(specs) != 1:
        raise ConfigError(f"{registry.env.name} has {len(specs)} surrogates, it must have one")
    return build_target(registry, specs[0])
