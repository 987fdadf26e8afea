"""A pretrained model of the Llama family from a directory, without importing transformers.

That import costs every worker 7 CPU seconds and 200 MB; `network.py` runs the weights as they are.
The directory is what `save_pretrained` of transformers writes for a model and its tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from tsgb.checkpoint.documents import parse_json_object
from tsgb.errors import ConfigError
from tsgb.models.fast.recipes import add_weight
from tsgb.models.files import weight_files

_SUFFIXES = (
    "embed_tokens.weight",
    "layernorm.weight",
    "proj.weight",
    "model.norm.weight",
    "lm_head.weight",
)
_COMPUTED: Mapping[str, frozenset[Any]] = {
    "model_type": frozenset({"llama"}),
    "hidden_act": frozenset({"silu"}),
    "attention_bias": frozenset({False, None}),
    "mlp_bias": frozenset({False, None}),
    "pretraining_tp": frozenset({1, None}),
}
"""Keys that change the arithmetic, with the values that `network.py` computes."""
_READ = frozenset(
    {
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
        "tie_word_embeddings",
        "vocab_size",
    }
)
"""Keys that `network.Shape` or the weights themselves speak for."""
_NEEDED = frozenset(
    {
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
    }
)
"""Keys without which `network.Shape` does not know the model."""
_WITHOUT_EFFECT = frozenset(
    {
        "_model_name_or_path",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "is_llama_config",
        "max_position_embeddings",
        "pad_token_id",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    }
)
"""Keys that no forward pass in evaluation mode depends on."""


def supports(settings: Mapping[str, Any]) -> bool:
    """Tell whether the fast engine computes what a `config.json` says."""
    return _obstacle(settings) is None


def _obstacle(settings: Mapping[str, Any]) -> str | None:
    """Return the first key that the fast engine does not compute.

    A key that is not listed above may change the arithmetic, so it must say nothing.
    """
    for key in sorted({"model_type", *_NEEDED, *settings}, key=lambda key: key != "model_type"):
        value = settings.get(key)
        if key in {"rope_parameters", "rope_scaling"}:
            supported = _is_plain_rope(value, with_theta=key == "rope_parameters")
        elif key in _COMPUTED:
            supported = isinstance(value, str | bool | int | None) and value in _COMPUTED[key]
        elif key in _NEEDED:
            supported = value is not None
        else:
            supported = key in _READ or key in _WITHOUT_EFFECT or value is None or value is False
        if not supported:
            return f"{key} = {value!r}"
    return None


def can_load(directory: Path) -> bool:
    """Tell whether `load_pretrained` takes a directory, from its configuration and header alone."""
    try:
        settings = parse_json_object((directory / "config.json").read_text("utf-8"))
        names: list[str] = []
        for path in weight_files(directory):
            opened: Any = safe_open(directory / path, framework="pt")
            with opened as file:
                names += file.keys()
    except (OSError, ValueError, SafetensorError):
        return False
    return supports(settings) and all(name.endswith(_SUFFIXES) for name in names)


def _is_plain_rope(rope: Any, *, with_theta: bool) -> bool:
    """Tell whether rotary positions are neither scaled nor partial."""
    if not isinstance(rope, Mapping):
        return rope is None
    fields: dict[str, Any] = dict(rope)  # pyright: ignore[reportUnknownArgumentType]
    kind = fields.pop("rope_type", fields.pop("type", "default"))
    fields.pop("type", None)
    if with_theta:
        fields.pop("rope_theta", None)
    return kind == "default" and not fields


class PretrainedLlama(nn.Module):
    """The weights of a `LlamaForCausalLM` under its names, float32."""

    def __init__(self, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.config = SimpleNamespace(**settings)
        for name, tensor in tensors.items():
            add_weight(self, name.removesuffix(".weight"), tensor.float())


def load_pretrained(directory: Path) -> PretrainedLlama:
    """Load a model; its weights stay in the file's pages until they are used.

    Raises:
        ConfigError: no such model there, or one that `network.py` would compute wrongly.
    """
    try:
        settings = parse_json_object((directory / "config.json").read_text("utf-8"))
        tensors: dict[str, Tensor] = {}
        for name in weight_files(directory):
            tensors |= load_file(directory / name)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"{directory} holds no model ({error}): it needs config.json, safetensors and "
            "tokenizer.json, as `save_pretrained` writes them"
        ) from error
    strange = [name for name in tensors if not name.endswith(_SUFFIXES)]
    obstacle = _obstacle(settings) or (f"the tensor {strange[0]}" if strange else None)
    if obstacle:
        raise ConfigError(f"{directory} has {obstacle}, which the fast engine does not compute")
    with torch.no_grad():
        return PretrainedLlama(settings, tensors)
