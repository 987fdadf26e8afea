"""Modules of transformers from a directory, on a device and in a dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tsgb.errors import ConfigError
from tsgb.models.quantization import FOUR_BIT


def load_module(
    directory: Path, device: torch.device, dtype: torch.dtype, quantization: str = "none"
) -> Any:
    """Load the causal LM that `save_pretrained` wrote, without running code that lies beside it.

    Dropout is switched off: a role must say the same of the same tokens whenever it is asked.

    Args:
        directory: where it lies.
        device: where it is put.
        dtype: type of its weights.
        quantization: `4bit` holds the weights of linear layers, but for the head, in four bits.

    Raises:
        ConfigError: transformers loads no causal LM from there.
    """
    # transformers types its factories in part only.
    configs: Any = transformers.AutoConfig
    models: Any = transformers.AutoModelForCausalLM
    placed = {} if device.type == "cpu" else {"device_map": {"": device}}
    try:
        config = configs.from_pretrained(directory, local_files_only=True)
        for key, value in config.get_text_config().to_dict().items():
            if isinstance(value, float) and ("dropout" in key or key.endswith("pdrop")):
                setattr(config.get_text_config(), key, 0.0)
        module, found = models.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **placed,
            **_loading_options(quantization, dtype),
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"{directory} holds no causal LM that transformers loads: {reason}"
        ) from error
    missing: list[str] = sorted(found["missing_keys"])
    if missing:
        raise ConfigError(
            f"{directory} lacks {len(missing)} tensors of a {config.model_type!r}, {missing[0]} "
            "among them: they would be random, so copy the directory again"
        )
    return module


def _loading_options(quantization: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return what `from_pretrained` must be told; nothing for weights as they are.

    Embeddings, norms and head stay in `dtype`, in which all is computed.
    """
    if quantization != FOUR_BIT:
        return {}
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config}
