"""Small models of many families on disk, and what plain transformers and peft say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

from tests.fakes.families import save_family
from tsgb.config import ModelConfig
from tsgb.models.chat_tokenizer import ChatTokenizer
from tsgb.models.general.causal_lm import LoraRole
from tsgb.models.general.general_engine import GeneralEngine
from tsgb.models.general.loading import load_module

CPU = torch.device("cpu")
RANK = 4
LORA = ModelConfig(adapter="lora", rank=RANK)


@pytest.fixture(autouse=True)
def quiet_progress() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`directory("qwen2", words=900)`: a saved model; equal arguments share one."""

    @cache
    def save(name: str, **changes: Any) -> Path:
        return save_family(tmp_path_factory.mktemp("families") / name, name, **changes)

    return save


def load_engine(directory: Path, dtype: torch.dtype = torch.float32, **sizes: Any) -> GeneralEngine:
    module, tokenizer = load_module(directory, CPU, dtype), ChatTokenizer(directory)
    return GeneralEngine(
        module, tokenizer, name="tiny", sha256="0" * 64, directory=directory, **sizes
    )


def moved_role(engine: Any, seed: int = 3) -> Any:
    """An adapter that changes something: B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    role = engine.add_role(LORA, generator)
    with torch.no_grad():
        for name, parameter in sorted(engine.parameters(role).items()):
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
    return role


class Plain:
    """The module of a directory with peft's adapter, asked one unpadded row at a time."""

    def __init__(self, directory: Path, role: LoraRole | None = None) -> None:
        factory: Any = transformers.AutoModelForCausalLM
        self.module: Any = factory.from_pretrained(directory, dtype=torch.float32)
        if role is not None:
            config = peft.LoraConfig(
                r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            self.module = peft.get_peft_model(self.module, config).eval()
            found = peft.set_peft_model_state_dict(self.module, dict(role.parameters))
            assert not found.unexpected_keys

    def logits(self, row: list[int]) -> Tensor:
        return self.module(input_ids=torch.tensor([row])).logits[0].float()

    def gradients(self, loss: Tensor) -> Mapping[str, Tensor]:
        trained = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(loss, list(trained.values()))
        return {n.replace(".default.", "."): g for n, g in zip(trained, found, strict=True)}


def same_gradients(role: LoraRole, loss: Tensor, wanted: Mapping[str, Tensor]) -> None:
    found = torch.autograd.grad(loss, list(role.parameters.values()))
    assert role.parameters.keys() == wanted.keys()
    for name, gradient in zip(role.parameters, found, strict=True):
        assert wanted[name].norm() > 0, name
        assert float((gradient - wanted[name]).norm() / wanted[name].norm()) < 4e-5, name
