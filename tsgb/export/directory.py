"""Weights as transformers and peft keep them, in a directory that appears whole or not at all."""

from __future__ import annotations

import errno
import json
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from tsgb.config import ModelConfig
from tsgb.errors import StoreFull, UsageError
from tsgb.models import smollm2
from tsgb.models.cache import WEIGHTS
from tsgb.models.fast.engine import LanguageModel
from tsgb.models.fast.network import HEAD

BASE = "base"
"""Subfolder of an adapter in which its base lies."""
ADAPTER = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."


def check_free(directory: Path) -> None:
    """Refuse a place that holds something.

    Raises:
        UsageError: it does.
    """
    try:
        if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
            return
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}: choose another directory") from error
    raise UsageError(f"{directory} exists and is not empty: choose another directory, or remove it")


@contextmanager
def published(directory: Path) -> Generator[Path]:
    """A scratch directory beside `directory` that takes its name when the block ends well.

    Raises:
        UsageError: it cannot be written there, or something has appeared there meanwhile.
        StoreFull: no space.
    """
    directory = directory.expanduser().resolve()
    check_free(directory)
    scratch = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.tmp")
    try:
        scratch.mkdir(parents=True)
        yield scratch
        scratch.rename(directory)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StoreFull(f"{directory}: no space left: nothing was exported") from error
        reason = error.strerror or str(error)
        raise UsageError(f"{directory}: {reason}: choose another directory") from error
    except SafetensorError as error:
        raise UsageError(f"{directory}: {error}: choose another directory") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_role(
    directory: Path,
    model: LanguageModel,
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    with_base: bool,
) -> bool:
    """Write a role: whole weights, or an adapter and, if small or asked for, its base.

    Returns:
        Whether the base was written.
    """
    if config.adapter == "full":
        _write_llama(directory, model, weights)
        return False
    with_base = with_base or model.base.small
    write_json(directory / "adapter_config.json", _peft_config(model, weights, config, with_base))
    _save(weights, directory / ADAPTER)
    model.tokenizer.transformers().save_pretrained(directory)
    if with_base:
        (directory / BASE).mkdir()
        _write_llama(directory / BASE, model, model.base.tensors)
    return with_base


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """JSON for people and programs."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_smollm2(model: LanguageModel) -> bool:
    """Whether it is the one pretrained model that TSGB brings."""
    return model.name.startswith(f"{smollm2.NAME}-")


def _write_llama(directory: Path, model: LanguageModel, weights: Mapping[str, Tensor]) -> None:
    from transformers import LlamaConfig  # takes seconds; nobody else here needs it

    settings: dict[str, Any] = {
        **vars(model.module.config),
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
    }
    settings.pop("transformers_version", None)
    settings.pop("model_type", None)
    config: Any = LlamaConfig(**settings)  # transformers types its methods in part only
    config.save_pretrained(directory)
    tied = settings.get("tie_word_embeddings")
    _save({k: t for k, t in weights.items() if not (tied and k == HEAD)}, directory / WEIGHTS)
    model.tokenizer.transformers().save_pretrained(directory)


def _peft_config(
    model: LanguageModel, weights: Mapping[str, Tensor], config: ModelConfig, with_base: bool
) -> dict[str, Any]:
    """`adapter_config.json` with what every version of peft knows, and vLLM serves."""
    # Else a path, which resolves in the directory alone; a name could be a stranger's on the hub.
    on_hub = is_smollm2(model) and not with_base
    layers = {name.removeprefix(_PEFT_PREFIX).rpartition(".lora_")[0] for name in weights}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": smollm2.HUB_ID if on_hub else f"./{BASE}",
        "r": config.rank,
        "lora_alpha": config.rank,
        "lora_dropout": 0.0,
        "target_modules": sorted({layer.rpartition(".")[2] for layer in layers}),
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _save(weights: Mapping[str, Tensor], path: Path) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in sorted(weights.items())}
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors lets the owner alone read it, whatever the umask
