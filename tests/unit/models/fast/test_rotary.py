"""Frequencies of rotary positions against transformers' own, in both forms of a configuration."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tsgb.models.fast.rotary import Rotary

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LINEAR: dict[str, Any] = {"rope_type": "linear", "factor": 4}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rope_theta": 500000},
        {"rope_parameters": {}, "rope_theta": 3e4},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}},
        {"rope_parameters": {**LINEAR, "rope_theta": 3e4}},
        {"rope_scaling": {"type": "linear", "factor": 2.5}, "rope_theta": 3e4},
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
        {"rope_scaling": LLAMA3, "rope_theta": 5e5},
        {"rope_scaling": {**LLAMA3, "factor": 32.0}, "rope_theta": 5e5},
        {"rope_scaling": {"type": "dynamic", **LLAMA3}},
        {"rope_scaling": {**LLAMA3, "rope_theta": 7e3}, "rope_theta": 5e5},
        {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 3e4}},
        {
            "rope_scaling": {k: n for k, n in LLAMA3.items() if not k.startswith("original")},
            "max_position_embeddings": 4096,
        },
    ],
    ids=str,
)
def test_frequencies_are_those_of_transformers(settings: dict[str, Any]) -> None:
    rotary = Rotary.read(settings)
    config = transformers.LlamaConfig(hidden_size=128, num_attention_heads=2, **settings)
    theirs: Any = LlamaRotaryEmbedding(config)
    torch.testing.assert_close(rotary.frequencies(64), theirs.inv_freq, rtol=2e-6, atol=0)
    assert Rotary.read(vars(config)) == rotary
    cos, sin = rotary.table(64, 100, torch.float32)
    wanted = theirs(torch.zeros(1), torch.arange(len(cos))[None])
    torch.testing.assert_close((cos, sin), (wanted[0][0], wanted[1][0]), rtol=0, atol=3e-5)
    assert len(cos) >= 100


@pytest.mark.parametrize(
    "given",
    [
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"type": ["linear"], "factor": 4.0},
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "linear", "factor": "4"},
        {"rope_type": "linear", "factor": math.nan},
        {"rope_type": "linear", "factor": 10**400},
        {"rope_type": "default", "rope_theta": None},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"full_attention": {"rope_type": "default"}},
        {k: n for k, n in LLAMA3.items() if not k.startswith("original")},
        {**LLAMA3, "attention_factor": 1.2},
        {**LLAMA3, "high_freq_factor": 1.0},
        {**LLAMA3, "low_freq_factor": None},
        ["linear", 4.0],
        "linear",
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_what_is_not_computed_is_named(key: str, given: Any) -> None:
    with pytest.raises(ValueError, match=r"^rope_parameters = "):
        Rotary.read({key: given})
