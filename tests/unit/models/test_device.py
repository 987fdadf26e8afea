"""Which device and dtype a configuration means on this machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from tests.fakes.cuda_driver import RTX_3090, T4, install_driver
from tsgb.config import ModelConfig, RunConfig
from tsgb.errors import ConfigError
from tsgb.models.device import memory_of, pick_device, pick_dtype
from tsgb.models.dtypes import dtype_of
from tsgb.models.machine_memory import find_device, main_memory

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
    auto = ModelConfig(adapter="lora")
    assert str(pick_dtype(auto, CPU)) == f"torch.{dtype_of(auto, main_memory())}"
    assert pick_dtype(ModelConfig(adapter="full"), CPU) is torch.float32


def test_planning_and_loading_mean_the_same_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A T4 multiplies in bfloat16 by emulation only; torch counts it as one that cannot."""
    known = [
        SimpleNamespace(name=name, total_memory=total, major=number // 10, minor=number % 10)
        for name, total, number in (T4, RTX_3090)
    ]
    install_driver(tmp_path, monkeypatch, T4, RTX_3090)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(known))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: known[torch.device(device).index or 0]
    )
    for adapter in ("lora", "full"):
        for name in ("auto", "cuda", "cuda:0", "cuda:1"):
            model = ModelConfig(adapter=adapter, device=name)
            planned, loaded = find_device(name), memory_of(pick_device(name))
            assert (planned.label, planned.total) == (loaded.label, loaded.total)
            dtype = pick_dtype(model, pick_device(name))
            assert str(dtype) == f"torch.{dtype_of(model, planned)}"
            assert (dtype is torch.bfloat16) == (adapter == "lora" and name == "cuda:1")


def test_defaults_are_not_stored_and_other_values_are() -> None:
    assert set(RunConfig().model_dump()["model"]) == {"adapter", "rank", "pretrained"}
    config = RunConfig(model=ModelConfig(device="cuda:1", dtype="bfloat16"))
    assert RunConfig.model_validate_json(config.canonical()) == config
    assert config.fingerprint != RunConfig().fingerprint
    with pytest.raises(ValidationError, match="device"):
        ModelConfig(device="gpu")
