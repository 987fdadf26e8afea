"""Directories that transformers loads, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fakes.families import save_family
from tests.unit.models.general.conftest import CPU, load_engine
from tsgb.errors import ConfigError
from tsgb.models.general.loading import load_module


def test_dropout_is_off(tmp_path: Path) -> None:
    path = save_family(tmp_path / "m", "phi3", resid_pdrop=0.1, embd_pdrop=0.2)
    config = load_module(path, CPU, torch.float32).config
    assert (config.resid_pdrop, config.embd_pdrop, config.attention_dropout) == (0.0, 0.0, 0.0)


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    path = save_family(tmp_path / "m", "qwen2")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 tensors of a 'qwen2', model\.layers\.1\.mlp"):
        load_module(path, CPU, torch.float32)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [("unheard", "holds no causal LM that transformers loads"), ("t5", "holds no causal LM")],
)
def test_what_is_no_causal_lm_is_refused(tmp_path: Path, model_type: str, message: str) -> None:
    path = save_family(tmp_path / "m", "qwen2")
    config = json.loads((path / "config.json").read_text()) | {"model_type": model_type}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message) as caught:
        load_module(path, CPU, torch.float32)
    assert "\n" not in str(caught.value)


def test_the_base_is_saved_as_it_was_loaded(directory: Callable[..., Path], tmp_path: Path) -> None:
    path = directory("gemma2", shard_size="60KB", dtype=torch.bfloat16)
    engine = load_engine(path)
    engine.save_pretrained(tmp_path)
    copied = {p.name: p.read_bytes() for p in tmp_path.glob("model*")}
    assert copied == {p.name: p.read_bytes() for p in path.glob("model*")}
    assert len(copied) > 2
    row = torch.tensor([[5, 6, 7]])
    again = load_module(tmp_path, CPU, torch.float32)
    with torch.no_grad():
        assert torch.equal(again(row).logits, engine.lm.module(row).logits)
    with pytest.raises(ConfigError, match="roles on 'tiny' are adapters"):
        engine.save_pretrained(tmp_path, {})
