"""A pretrained Llama or Qwen2 from a directory, without importing transformers.

That import costs every worker 7 CPU seconds and 200 MB; `network.py` runs the weights as they are.
The directory is what `save_pretrained` of transformers writes for a model and its tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from tsgb.checkpoint.documents import parse_json_object
from tsgb.errors import ConfigError
from tsgb.models.fast.network import EMBEDDING, HEAD, NORM, Shape
from tsgb.models.fast.recipes import add_parameter
from tsgb.models.files import NOT_COMPUTED, weight_files

Check = Callable[[Any], bool]
"""Tells whether `network.py` computes a model with this value of a key."""


def _one_of(*values: str | int | None) -> Check:
    return lambda value: isinstance(value, str | int | None) and value in values


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_full(layer_types: Any) -> bool:
    """Tell whether every layer looks at all that stands before."""
    if isinstance(layer_types, list):
        return set(map(str, cast("list[Any]", layer_types))) <= {"full_attention"}
    return layer_types is None


def _anything(_: Any) -> bool:
    """Accept a key that no pass in evaluation mode depends on, or that is read elsewhere."""
    return True


_SIZES = frozenset(
    {
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "vocab_size",
    }
)
"""Keys that the shapes of all tensors follow from."""
_NEEDED = _SIZES | {"rms_norm_eps"}
"""Keys without which a model is not known."""
_ALLOWED: Mapping[str, Check] = {
    **dict.fromkeys(_SIZES, _is_size),
    "head_dim": lambda value: value is None or _is_size(value),
    "hidden_act": _one_of("silu"),
    "pretraining_tp": _one_of(1, None),
    "rms_norm_eps": lambda value: isinstance(value, int | float),
    **dict.fromkeys(
        (
            *NOT_COMPUTED,
            "attention_dropout",
            "is_llama_config",
            "max_position_embeddings",
            "model_type",
            "rope_parameters",
            "rope_scaling",
            "rope_theta",
            "tie_word_embeddings",
        ),
        _anything,
    ),
}
"""Keys of all model types; `Rotary.read` looks at those of positions."""
_ALLOWED_BY_TYPE: Mapping[str, Mapping[str, Check]] = {
    "llama": {"attention_bias": _one_of(True, False, None)},
    # There is no window, because `use_sliding_window` must say nothing.
    "qwen2": {
        "layer_types": _are_full,
        "max_window_layers": _anything,
        "sliding_window": _anything,
    },
}
"""Further keys of each model type that is computed."""


def supports(settings: Mapping[str, Any]) -> bool:
    """Tell whether the fast engine computes what a `config.json` says."""
    return _obstacle(settings) is None


def _obstacle(settings: Mapping[str, Any]) -> str | None:
    """Return the first key that the fast engine does not compute.

    A key that is not listed above may change the arithmetic, so it must be null or false.
    """
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in _ALLOWED_BY_TYPE:
        return f"model_type = {kind!r}"
    allowed = {**_ALLOWED, **_ALLOWED_BY_TYPE[kind]}
    for key in sorted({*_NEEDED, *settings}):
        value = settings.get(key)
        if not allowed.get(key, lambda value: value is None or value is False)(value):
            return f"{key} = {value!r}"
    try:
        shape = Shape.of(SimpleNamespace(**settings))
    except ValueError as error:
        return str(error)
    if shape.heads % shape.kv_heads or shape.head_dim % 2:
        return f"{shape.heads} heads of width {shape.head_dim} for {shape.kv_heads} of keys"
    return None


def _misfit(settings: Mapping[str, Any], found: Mapping[str, Sequence[int]]) -> str | None:
    """Return a tensor that settings do not explain, or one that is missing.

    Args:
        settings: A configuration that is supported.
        found: Shapes of the tensors by name.
    """
    wanted = _shapes(settings, len(found))
    if settings.get("tie_word_embeddings") and HEAD not in found:
        del wanted[HEAD]
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            return f"no tensor {name}"
        if name not in wanted:
            return f"the tensor {name}"
        if tuple(found[name]) != wanted[name]:
            return f"the tensor {name} in shape {list(found[name])}"
    return None


def _shapes(settings: Mapping[str, Any], most: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors by name, of at most so many layers."""
    shape = Shape.of(SimpleNamespace(**settings))
    width, inner, words = (
        settings[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }
    is_qwen2 = settings["model_type"] == "qwen2"
    if is_qwen2 or settings.get("attention_bias"):
        sizes = {"q": queries, "k": keys, "v": keys} | ({} if is_qwen2 else {"o": width})
        layer |= {f"self_attn.{part}_proj.bias": (size,) for part, size in sizes.items()}
    found = {EMBEDDING: (words, width), NORM: (width,), HEAD: (words, width)}
    for number in range(min(shape.layers, most)):
        found |= {f"model.layers.{number}.{name}": size for name, size in layer.items()}
    return found


def can_load(directory: Path) -> bool:
    """Tell whether `load_pretrained` takes a directory, from its configuration and header alone."""
    found: dict[str, Sequence[int]] = {}
    try:
        settings = parse_json_object((directory / "config.json").read_text("utf-8"))
        for path in weight_files(directory):
            opened: Any = safe_open(directory / path, framework="pt")
            with opened as file:
                found |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError):
        return False
    return supports(settings) and _misfit(settings, found) is None


class PretrainedLlama(nn.Module):
    """The weights of a causal LM under the names of transformers."""

    def __init__(
        self, settings: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.config = SimpleNamespace(**settings)
        for name, tensor in tensors.items():
            add_parameter(self, name, tensor.to(dtype))


def load_pretrained(directory: Path, dtype: torch.dtype = torch.float32) -> PretrainedLlama:
    """Load a model; weights of that dtype stay in the file's pages until they are used.

    Args:
        directory: the model.
        dtype: type that its weights get.

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
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    obstacle = _obstacle(settings) or _misfit(settings, shapes)
    if obstacle:
        raise ConfigError(f"the fast engine does not compute {directory}: {obstacle}")
    with torch.no_grad():
        return PretrainedLlama(settings, tensors, dtype)
