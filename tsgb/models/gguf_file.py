"""GGUF files: what one says of its model, and which ones can be converted.

Only Llama models without biases can, whose tensors have names that are known here. It reads headers
through the package `gguf`, never the weights, and imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tsgb.errors import ConfigError
from tsgb.models.chat_template import ChatTemplate
from tsgb.models.planner import ModelSizes

PACKAGE = "gguf"
LLAMA = "llama"
_PLAIN = {"F32", "F16"}
"""Types of tensors that need no dequantisation."""
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
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
"""Names of weights in `LlamaForCausalLM`, by their names in a file."""
_BLOCK = re.compile(r"^blk\.(\d+)\.(\w+)\.weight$")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """Facts about the model in a GGUF file.

    Example: `read_header(Path("SmolLM2-135M-Instruct.Q4_1.gguf")).layers`
    """

    family: str
    """Name of the architecture."""
    layers: int
    """Number of hidden layers."""
    parameters: int
    """Number of weights."""
    types: tuple[str, ...]
    """Types of the stored weights, the most frequent one first."""
    tokenizer: str
    """Kind of the tokenizer, and how many tokens it knows."""
    template: ChatTemplate
    """Chat template."""
    sizes: ModelSizes | None
    """Sizes that its memory depends on; None where no estimate can be made."""


def open_gguf(path: Path) -> Any:
    """Return the reader of a file.

    Raises:
        ConfigError: The package is not installed, or the file is no GGUF file.
    """
    library = _library()
    if not path.is_file():
        raise ConfigError(f"there is no GGUF file {path}: check its path")
    try:
        return library.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"it is no GGUF file, or a damaged one ({reason})") from None


def read_header(path: Path) -> GgufHeader:
    """Read what a file says of its model.

    Raises:
        ConfigError: The file is damaged, or its model cannot be converted.
    """
    reader = open_gguf(path)
    family = str(value(reader, "general.architecture", "?"))
    scaling = value(reader, f"{family}.rope.scaling.type", "none")
    if family != LLAMA or scaling != "none":
        raise ConfigError(
            f"it is a {family!r}{'' if scaling == 'none' else f' with {scaling} rope scaling'}, "
            f"and only GGUF files of plain {LLAMA!r} models are read: name the repository or the "
            "directory that it was converted from"
        )
    counts: dict[str, int] = {}
    for tensor in reader.tensors:
        transformers_name(str(tensor.name))
        kind = str(tensor.tensor_type.name)
        counts[kind] = counts.get(kind, 0) + int(tensor.n_elements)
    if unknown := sorted(counts.keys() - _PLAIN - _dequantised()):
        raise ConfigError(
            f"it has weights of the type {unknown[0]}, which cannot be dequantised: choose a file "
            "of another quantisation, such as Q4_K_M or Q8_0"
        )
    text = str(value(reader, "tokenizer.chat_template", ""))
    if not text:
        raise ConfigError(
            "it has no chat template: choose the version that was tuned on instructions, often "
            "called Instruct or Chat"
        )
    tokens: list[str] = value(reader, "tokenizer.ggml.tokens", [])
    special = {
        f"{name}_token": str(tokens[int(number)])
        for name in ("bos", "eos")
        if (number := value(reader, f"tokenizer.ggml.{name}_token_id", None)) is not None
    }
    return GgufHeader(
        family=family,
        layers=int(value(reader, f"{family}.block_count", 0)),
        parameters=sum(counts.values()),
        types=tuple(sorted(counts, key=lambda kind: -counts[kind])),
        tokenizer=f"{value(reader, 'tokenizer.ggml.model', '?')}, {len(tokens)} tokens",
        template=ChatTemplate(text, special),
        sizes=_sizes(reader, len(tokens), sum(counts.values())),
    )


def _sizes(reader: Any, words: int, parameters: int) -> ModelSizes | None:
    keys = {
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "intermediate_size": "feed_forward_length",
    }
    found = {name: value(reader, f"{LLAMA}.{key}", None) for name, key in keys.items()}
    numbers = {name: int(number) for name, number in found.items() if number is not None}
    tied = not any(str(tensor.name) == "output.weight" for tensor in reader.tensors)
    config = {"model_type": LLAMA, "vocab_size": words, "tie_word_embeddings": tied, **numbers}
    return ModelSizes.read(config, parameters)


def transformers_name(name: str) -> tuple[str, str]:
    """Return the name of a weight in `LlamaForCausalLM`, and its kind in the file.

    Raises:
        ConfigError: A Llama without biases and with plain rotary positions has no such weight.
    """
    block = _BLOCK.match(name)
    kind = block[2] if block else name.removesuffix(".weight")
    if kind not in _NAMES or not name.endswith(".weight"):
        raise ConfigError(
            f"it has {name}, which a conversion would lose: name the repository or the directory "
            "that it was converted from"
        )
    return f"{f'model.layers.{block[1]}.' if block else ''}{_NAMES[kind]}.weight", kind


def _library() -> Any:
    if find_spec(PACKAGE) is None:
        raise ConfigError(
            "reading it needs the package gguf: run `uv run --extra smollm2 ...` or `pip install "
            "'tsgb[smollm2]'`"
        )
    return import_module(PACKAGE)


def value(reader: Any, key: str, default: Any) -> Any:
    """Return a value of the header, or the default where it has none."""
    field = reader.fields.get(key)
    return default if field is None else field.contents()


def _dequantised() -> set[str]:
    _library()
    traits: Mapping[Any, Any] = getattr(import_module("gguf.quants"), "_type_traits", {})
    return {str(kind.name) for kind in traits}
