"""Models and roles that the tests of the fast engine share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.fakes.chat_model import save_chat_model
from tests.fakes.families import save_family
from tsgb.config import ModelConfig
from tsgb.models.fast.adapters import LoraAdapter
from tsgb.models.fast.fast_engine import FastEngine

MODELS = [
    pytest.param(("chat", True), id="tied llama"),
    *(
        pytest.param((name, tied), id=f"{'tied' if tied else 'untied'} {name}")
        for name, tied in (
            ("llama", False),
            ("llama_bias", False),
            ("llama_linear", True),
            ("llama3", True),
            ("llama3", False),
            ("qwen2", True),
            ("qwen2", False),
        )
    ),
]
"""Family of a model, and whether its head is its embedding."""


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """`directory("qwen2", True)`: a saved model; equal arguments share one."""

    @cache
    def save(name: str, tied: bool) -> Path:
        path = tmp_path_factory.mktemp("models") / "tiny"
        if name == "chat":
            return save_chat_model(path)
        return save_family(path, name, tie_word_embeddings=tied)

    return save


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
