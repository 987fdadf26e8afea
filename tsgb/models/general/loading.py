"""Modules of transformers from a directory, on a device and in a dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tsgb.errors import ConfigError


def load_module(directory: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the causal LM that `save_pretrained` wrote, without running code that lies beside it.

    Dropout is switched off: a role must say the same of the same tokens whenever it is asked.

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
