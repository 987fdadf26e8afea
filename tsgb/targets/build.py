"""Builds targets from their specs."""

from __future__ import annotations

from torch import Tensor

from tsgb.errors import ConfigError
from tsgb.models.fast.adapters import BaseWeights
from tsgb.models.fast.network import Shape, hidden_states, logits
from tsgb.models.fast.packing import Rows
from tsgb.models.registry import ModelRegistry
from tsgb.models.torch_typing import from_numpy
from tsgb.protocols import Target
from tsgb.targets.local import ChatTarget, ReadoutTarget
from tsgb.types import TargetSpec


def build_target(registry: ModelRegistry, spec: TargetSpec) -> Target:
    """Build the model behind a target spec of the environment's own."""
    if spec.max_new_tokens:
        return ChatTarget(spec.name, registry.base(), spec.max_new_tokens)
    module = registry.module(spec.name).eval()
    tokenizer = registry.tokenizer()
    if registry.architecture(spec.name) == "gru":

        def gru(rows: Rows, width: int) -> Tensor:
            at_M = from_numpy(rows.grid.owned_N[rows.last(width)])
            return module(rows.padded(tokenizer.pad_id), at_M)

        return ReadoutTarget(spec.name, gru, tokenizer, spec.answer)
    shape, weights = Shape.of(module.config), BaseWeights.of(module)

    def llama(rows: Rows, width: int) -> Tensor:
        return logits(weights, hidden_states(weights, shape, rows, rows.last(width)))

    return ReadoutTarget(spec.name, llama, tokenizer, spec.answer)


def build_surrogate(registry: ModelRegistry) -> Target:
    """Build the target of stage 1.

    Raises:
        ConfigError: The environment does not have exactly one surrogate.
    """
    specs = [spec for spec in registry.env.targets().values() if spec.role == "surrogate"]
    if len(specs) != 1:
        raise ConfigError(f"{registry.env.name} has {len(specs)} surrogates, it must have one")
    return build_target(registry, specs[0])
