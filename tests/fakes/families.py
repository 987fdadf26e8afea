"""Small random chat models of many families, as transformers itself makes and saves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.fakes.chat_model import save_tokenizer
from tsgb.models.fast.pretrained import can_load

_SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 50000.0, "factor": 4.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,  # four frequencies, of which one lies between fast and slow
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama3": ("LlamaConfig", {"tie_word_embeddings": True, "rope_parameters": _LLAMA3}),
    "mistral": ("MistralConfig", {"sliding_window": 16}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": False}),
    "gemma2": ("Gemma2Config", {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3Config", {}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "olmo2": ("Olmo2Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {"rotary_pct": 0.5, "num_key_value_heads": None}),
}
"""Class of the configuration and what is special, by name."""
FAST: Mapping[str, tuple[str, dict[str, Any]]] = {
    **{name: FAMILIES[name] for name in ("llama", "llama3", "qwen2")},
    "llama_bias": ("LlamaConfig", {"attention_bias": True}),
    "llama_linear": ("LlamaConfig", {"rope_parameters": _LINEAR}),
}
"""The same for those that the fast engine computes."""


def family_config(name: str, vocabulary: int, **changes: Any) -> Any:
    """The configuration of a small model of a family."""
    kind, special = {**FAMILIES, **FAST}[name]
    settings = {**_SIZES, "vocab_size": vocabulary, **special, **changes}
    known = {key: value for key, value in settings.items() if value is not None}
    return getattr(transformers, kind)(**known)


def make_family(name: str, vocabulary: int, *, seed: int = 0, **changes: Any) -> Any:
    """A model of a family, in float32; equal arguments give equal weights."""
    factory: Any = transformers.AutoModelForCausalLM
    config = family_config(name, vocabulary, **changes)
    module = factory.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in module.named_parameters():
            if parameter.dim() > 1:
                scale = 0.3 if "embed" in path else 1.5 * parameter.shape[1] ** -0.5
                parameter.normal_(0.0, scale, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return module


def save_family(
    directory: Path,
    name: str,
    *,
    words: int = 1200,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "50GB",
    **changes: Any,
) -> Path:
    """Write a model of a family and its tokenizer, as `save_pretrained` does."""
    directory.mkdir(parents=True)
    size = save_tokenizer(directory, words)
    module = make_family(name, size, **changes).to(dtype)
    module.save_pretrained(directory, max_shard_size=shard_size)
    # Some families split text in a way of their own, whatever the file said before.
    tokenizers: Any = transformers.AutoTokenizer
    tokenizers.from_pretrained(directory).save_pretrained(directory)
    return directory


def save_general(directory: Path, **changes: Any) -> Path:
    """Write a model that the general engine gets on every device."""
    path = save_family(directory, "qwen3", **changes)
    assert not can_load(path)
    return path
