"""Which device and dtype a configuration means on this machine."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tsgb.config import ModelConfig, RunConfig
from tsgb.errors import ConfigError
from tsgb.models.device import pick_device, pick_dtype
from tsgb.models.dtypes import auto_dtype

CPU = torch.device("cpu")


def test_a_machine_without_cards_computes_on_its_cpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    assert pick_device("auto") == pick_device("cpu") == CPU
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ConfigError, match=f"'{name}': torch finds no CUDA cards here; set it"):
            pick_device(name)
    with pytest.raises(ConfigError, match="'mps': torch finds no Metal device"):
        pick_device("mps")
    assert pick_dtype(ModelConfig(dtype="float32"), CPU) is torch.float32
    assert pick_dtype(ModelConfig(dtype="bfloat16"), CPU) is torch.bfloat16
    assert str(pick_dtype(ModelConfig(adapter="lora"), CPU)) == f"torch.{auto_dtype('cpu')}"
    assert pick_dtype(ModelConfig(adapter="full"), CPU) is torch.float32


def test_defaults_are_not_stored_and_other_values_are() -> None:
    assert set(RunConfig().model_dump()["model"]) == {"adapter", "rank", "pretrained"}
    config = RunConfig(model=ModelConfig(device="cuda:1", dtype="bfloat16"))
    assert RunConfig.model_validate_json(config.canonical()) == config
    assert config.fingerprint != RunConfig().fingerprint
    with pytest.raises(ValidationError, match="device"):
        ModelConfig(device="gpu")
