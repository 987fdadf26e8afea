"""Weights in four bits: where they are refused, and what they are where they are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.families import save_family
from tests.unit.models.general.conftest import CPU
from tsgb.config import ModelConfig
from tsgb.errors import ConfigError
from tsgb.models.chat_tokenizer import ChatTokenizer
from tsgb.models.files import read_json
from tsgb.models.general.general_engine import GeneralEngine
from tsgb.models.general.loading import load_module
from tsgb.models.planner import ModelSizes
from tsgb.models.quantization import check_quantization
from tsgb.models.registry import make_engine

WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_without_a_card_it_is_refused_in_one_line(device: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_quantization("4bit", device, installed=True)
    assert str(caught.value) == (
        "model.target_quantization = '4bit' needs a CUDA card, and models are computed on "
        f"'{device}' here: leave it out, or rent a machine with a card"
    )
    check_quantization("none", device, installed=False)


def test_without_the_package_it_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        check_quantization("4bit", "cuda:0", installed=False)
    assert str(caught.value) == (
        "model.target_quantization = '4bit' needs the package bitsandbytes, which is not "
        "installed: uv sync --extra quantization"
    )
    check_quantization("4bit", "cuda:0", installed=True)


def test_a_worker_refuses_before_it_loads(tmp_path: Path) -> None:
    path = save_family(tmp_path / "m", "qwen2")
    (path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="needs a CUDA card"):
        make_engine(path, ModelConfig(device="cpu"), name="m", sha256="0", quantization="4bit")


class TestWithThePackage:
    """The CPU computes with four bits, too, only too slowly to be of use."""

    @pytest.fixture
    def module(self, tmp_path: Path) -> Any:
        pytest.importorskip("bitsandbytes", reason="the extra quantization is not installed")
        return load_module(self.saved(tmp_path), CPU, torch.float32, "4bit")

    def saved(self, tmp_path: Path) -> Path:
        path = tmp_path / "m"
        return path if path.exists() else save_family(path, "qwen2", words=1500, **WIDE)

    def test_it_takes_what_the_planner_says(self, module: Any, tmp_path: Path) -> None:
        sizes = ModelSizes.read(read_json(self.saved(tmp_path) / "config.json"))
        assert sizes is not None
        linear = [p for p in module.parameters() if p.dtype is torch.uint8]
        states = [p.quant_state.absmax for p in linear]
        found = sum(t.numel() * t.element_size() for t in (*linear, *states))
        kept = sizes.vocabulary * sizes.width  # the embedding, which is the head
        planned = sizes.weight_bytes(2) - 2 * kept
        in_4bit = replace(sizes, in_4bit=True).weight_bytes(2) - 2 * kept
        assert found == pytest.approx(in_4bit, rel=0.02)
        assert found < 0.3 * planned

    def test_it_answers_as_the_engine_needs(self, module: Any, tmp_path: Path) -> None:
        path = self.saved(tmp_path)
        engine = GeneralEngine(module, ChatTokenizer(path), name="m", sha256="0", directory=path)
        plain = load_module(path, CPU, torch.float32)
        assert engine.num_parameters == sum(p.numel() for p in plain.parameters())
        ids = torch.arange(5, 25, device="cpu")[None]
        with torch.no_grad():
            quantised, exact = (m(input_ids=ids).logits for m in (module, plain))
        error = float((quantised - exact).std() / exact.std())
        assert 1e-3 < error < 0.5
        chats = [[{"role": "user", "content": "Say a word."}]]
        writing = engine.write(engine.base, chats, group=1, max_new_tokens=5, generator=None)
        assert int(writing.lengths_N[0]) == 5
        role = engine.add_role(ModelConfig(adapter="lora", rank=2), torch.Generator())
        assert engine.parameters(role)
