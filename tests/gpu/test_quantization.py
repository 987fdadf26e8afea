"""A target in four bits on a card: it takes what the planner says, and answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.families import save_family
from tsgb.config import ModelConfig
from tsgb.models.engine import Engine
from tsgb.models.files import read_json
from tsgb.models.planner import ModelSizes
from tsgb.models.registry import make_engine
from tsgb.targets.local import ChatTarget

pytestmark = pytest.mark.gpu

WIDE: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
ALLOCATED = 64_000_000
"""Bytes that norms, rounding and workspaces take beside the weights."""


def test_a_target_in_four_bits(card: torch.device, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra quantization is not installed")
    path = save_family(tmp_path / "m", "qwen2", **WIDE)
    engines: dict[str, Engine] = {}
    taken: dict[str, int] = {}
    for quantization in ("none", "4bit"):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        engines[quantization] = make_engine(
            path,
            ModelConfig(device=card.type, dtype="bfloat16"),
            name="m",
            sha256="0",
            quantization=quantization,
        )
        taken[quantization] = torch.cuda.memory_allocated() - before
    sizes = ModelSizes.read(read_json(path / "config.json"))
    assert sizes is not None
    for quantization, in_4bit in (("none", False), ("4bit", True)):
        planned = replace(sizes, in_4bit=in_4bit).weight_bytes(2)
        print(f"{quantization}: {taken[quantization]} bytes, {planned} planned")  # noqa: T201
        assert taken[quantization] == pytest.approx(planned, rel=0.1, abs=ALLOCATED)
    assert taken["4bit"] < 0.4 * taken["none"]
    chats = [[{"role": "user", "content": f"Say {word}."}] for word in ("yes", "no", "a word")]
    for engine in engines.values():
        answers = ChatTarget("T_s", engine, engine.base, 8).answer(chats)
        assert [answer.text for answer in answers] == [
            answer.text for answer in ChatTarget("T_s", engine, engine.base, 8).answer(chats)
        ]
    assert engines["4bit"].num_parameters == engines["none"].num_parameters
