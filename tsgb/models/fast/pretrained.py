"""A pretrained model of the Llama family from a directory, without importing transformers.

That import costs every worker 7 CPU seconds and 200 MB; `network.py` runs the weights as they are.
The directory is what `save_pretrained` of transformers writes for a model and its tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from tsgb.checkpoint.documents import parse_json_object
from tsgb.errors import ConfigError
from tsgb.models.fast.recipes import add_weight
from tsgb.models.weights import WEIGHTS

_SUFFIXES = (
    "embed_tokens.weight",
    "layernorm.weight",
    "proj.weight",
    "model.norm.weight",
    "lm_head.weight",
)


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
        tensors = load_file(directory / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"{directory} holds no model ({error}): it needs config.json, {WEIGHTS} and "
            "tokenizer.json, as `save_pretrained` writes them"
        ) from error
    rope: dict[str, Any] = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    strange = [name for name in tensors if not name.endswith(_SUFFIXES)]
    if settings.get("model_type") != "llama" or kind != "default" or strange:
        raise ConfigError(
            f"{directory} is a {settings.get('model_type')!r} with rope {kind!r}"
            f"{f' and {strange[0]!r}' if strange else ''}: only Llama models without biases and "
            "with plain rotary positions are supported"
        )
    with torch.no_grad():
        return PretrainedLlama(settings, tensors)
