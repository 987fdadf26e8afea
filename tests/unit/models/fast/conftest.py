"""Roles that the tests of the fast engine share."""

from __future__ import annotations

import torch

from tsgb.config import ModelConfig
from tsgb.models.fast.adapters import LoraAdapter
from tsgb.models.fast.fast_engine import FastEngine


def moved_adapter(model: FastEngine) -> LoraAdapter:
    """An adapter that changes something: B is not zero."""
    generator = torch.Generator().manual_seed(3)
    adapter = model.add_role(ModelConfig(adapter="lora", rank=2), generator)
    assert isinstance(adapter, LoraAdapter)
    with torch.no_grad():
        for name, parameter in adapter.parameters.items():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
    return adapter
