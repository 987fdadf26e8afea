"""A Llama's GGUF weights as a safetensors file, one tensor in memory at a time.

Opening the same file with transformers holds the whole model and its copies, 1.6 GB for 135 M
parameters, where this needs the largest tensor. Names and the order of rotary rows follow llama.cpp
(`convert_hf_to_gguf.py`, which stores query and key rows as rotary pairs); the layout of the output
is the safetensors format: header length (8 bytes, little endian), JSON header, raw tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"^blk\.(\d+)\.(\w+)\.weight$")


class _Stored(NamedTuple):
    name: str
    """As `LlamaForCausalLM` calls it."""
    shape: tuple[int, ...]
    heads: int
    """Of query and key rows; 0 elsewhere."""
    tensor: Any


def write_safetensors(gguf: Path, target: Path) -> None:
    """Write the weights of a GGUF Llama without biases, dequantised to float32.

    Args:
        gguf: from the extra `smollm2`'s package.
        target: a new file.

    Raises:
        ValueError: a tensor of another architecture.
    """
    library: Any = import_module("gguf")  # of the extra
    reader = library.GGUFReader(gguf)
    stored = sorted(_tensors(reader))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape, _heads, _tensor in stored:
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    with target.open("xb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _name, shape, heads, tensor in stored:
            weights: Array = library.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
            file.write(np.ascontiguousarray(_halves(weights, heads), dtype="<f4").data)


def _tensors(reader: Any) -> Iterator[_Stored]:
    heads = {
        "attn_q": _number(reader, "llama.attention.head_count"),
        "attn_k": _number(reader, "llama.attention.head_count_kv"),
    }
    for tensor in reader.tensors:
        block = _BLOCK.match(tensor.name)
        kind = block[2] if block else tensor.name.removesuffix(".weight")
        if kind not in _NAMES:
            raise ValueError(f"{tensor.name} is no weight of a Llama without biases")
        prefix = f"model.layers.{block[1]}." if block else ""
        # GGUF counts dimensions from the innermost one.
        shape = tuple(int(n) for n in reversed(tensor.shape))
        yield _Stored(f"{prefix}{_NAMES[kind]}.weight", shape, heads.get(kind, 0), tensor)


def _number(reader: Any, key: str) -> int:
    field = reader.fields[key]
    return int(field.parts[field.data[0]][0])


def _halves(weights: Array, heads: int) -> Array:
    """From rotary pairs within each head to the two halves that transformers rotates."""
    if not heads:
        return weights
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(weights.shape)
