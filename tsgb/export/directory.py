"""Weights as transformers and peft keep them, in a directory that appears whole or not at all."""

from __future__ import annotations

import errno
import json
import re
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from tsgb.checkpoint.urls import absolute_path
from tsgb.config import ModelConfig
from tsgb.errors import StoreFull, UsageError
from tsgb.models import smollm2
from tsgb.models.engine import Engine
from tsgb.models.weights import save_weights

BASE = "base"
"""Subfolder of an adapter in which its base lies."""
ADAPTER = "adapter_model.safetensors"
"""Name of the file with an adapter's weights, as peft has it."""
SMALL_BASE = 20_000_000
"""Parameters up to which a base lies beside its adapter without being asked for."""
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
    directory = absolute_path(directory).resolve()
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
    engine: Engine,
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
        engine.save_pretrained(directory, weights)
        return False
    with_base = with_base or is_small(engine)
    write_json(directory / "adapter_config.json", _peft_config(engine, weights, config, with_base))
    save_weights(weights, directory / ADAPTER)
    engine.tokenizer.transformers().save_pretrained(directory)
    if with_base:
        (directory / BASE).mkdir()
        engine.save_pretrained(directory / BASE)
    return with_base


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """JSON for people and programs."""
    path.write_bytes(json_bytes(content))


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return what `write_json` writes."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def is_small(engine: Engine) -> bool:
    """Return whether a base costs little to copy, and to score prompts with in any dtype."""
    return engine.num_parameters <= SMALL_BASE


def is_smollm2(engine: Engine) -> bool:
    """Whether it is the one pretrained model that TSGB brings."""
    return engine.name.startswith(f"{smollm2.NAME}-")


class HubBase(NamedTuple):
    """A base that is published on the Hugging Face Hub."""

    repository: str
    """Its id there."""
    revision: str | None
    """Its commit; None where the weights are no commit's."""


def hub_base(engine: Engine, config: ModelConfig) -> HubBase | None:
    """Return where the base is published; None if it is not known to be."""
    if is_smollm2(engine):
        return HubBase(smollm2.HUB_ID, None)
    repository, pinned, revision = config.pretrained.partition("@")
    # A configuration stores a repository with its commit, and all else in another form.
    is_commit = bool(pinned) and re.fullmatch("[0-9a-f]{40}", revision) is not None
    return HubBase(repository, revision) if is_commit else None


def _peft_config(
    engine: Engine, weights: Mapping[str, Tensor], config: ModelConfig, with_base: bool
) -> dict[str, Any]:
    """`adapter_config.json` with what every version of peft knows, and vLLM serves."""
    # Else a path, which resolves in the directory alone; a name could be a stranger's on the hub.
    on_hub = None if with_base else hub_base(engine, config)
    layers = {name.removeprefix(_PEFT_PREFIX).rpartition(".lora_")[0] for name in weights}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": on_hub.repository if on_hub else f"./{BASE}",
        "revision": on_hub.revision if on_hub else None,
        "r": config.rank,
        "lora_alpha": config.rank,
        "lora_dropout": 0.0,
        "target_modules": sorted({layer.rpartition(".")[2] for layer in layers}),
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
