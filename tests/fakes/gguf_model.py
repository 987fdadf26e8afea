"""A chat model of `tests.fakes.chat_model` as a GGUF file, as llama.cpp's converter writes one."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.fakes.chat_model import HEAD, HEADS, INNER, KEY_HEADS, LAYERS, TEMPLATE, WIDTH

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def save_gguf(
    path: Path,
    model: Path,
    *,
    family: str = "llama",
    template: str | None = TEMPLATE,
    more: dict[str, Any] | None = None,
) -> Path:
    """Write the model in `model` to `path`.

    Args:
        path: A new file.
        model: Directory that `save_chat_model` wrote.
        family: Architecture that the header names.
        template: Chat template; None for none.
        more: Further tensors by name.
    """
    library: Any = import_module("gguf")
    writer = library.GGUFWriter(path, family)
    tokenizer = json.loads((model / "tokenizer.json").read_text())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    writer.add_block_count(LAYERS)
    writer.add_context_length(1024)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    for name, tensor in load_file(model / "model.safetensors").items():
        plain = name.removesuffix(".weight")
        head, _, kind = plain.removeprefix("model.layers.").partition(".")
        inside = plain.startswith("model.layers.")
        stored = f"blk.{head}.{NAMES[kind]}.weight" if inside else f"{NAMES[plain]}.weight"
        heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KEY_HEADS}.get(kind, 0)
        writer.add_tensor(stored, _rotary_pairs(tensor, heads))
    for name, tensor in (more or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _rotary_pairs(weights: Any, heads: int) -> Any:
    """The two halves that transformers rotates, as the pairs that llama.cpp rotates."""
    if not heads:
        return weights
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))
