"""The device and the dtype that pretrained models are computed on."""

from __future__ import annotations

import gc
from typing import Any

import torch

from tsgb.config import ModelConfig
from tsgb.errors import ConfigError
from tsgb.models.dtypes import card_has_units, dtype_of
from tsgb.models.machine_memory import main_memory
from tsgb.models.planner import DeviceMemory


def pick_device(name: str) -> torch.device:
    """Return the device that `ModelConfig.device` names; `auto` is CUDA where torch finds a card.

    Raises:
        ConfigError: This machine has no such device.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if cards else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise ConfigError(
            f"device {name!r}: torch finds {cards or 'no'} CUDA cards here; set it to "
            "'cpu' or 'auto'"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            f"device {name!r}: torch finds no Metal device here; set it to 'cpu' or 'auto'"
        )
    return device


def pick_dtype(model: ModelConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of frozen weights on a device, by the rule of `dtypes.dtype_of`."""
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return named[dtype_of(model, memory_of(device))]


def memory_of(device: torch.device) -> DeviceMemory:
    """Return the memory of a device that `pick_device` returned."""
    if device.type != "cuda":
        return main_memory()
    cuda: Any = torch.cuda  # torch types its properties in part only
    found = cuda.get_device_properties(device)
    return DeviceMemory(
        str(device),
        found.total_memory,
        found.name,
        has_bfloat16_units=card_has_units((found.major, found.minor)),
    )


def release_memory() -> None:
    """Give back what nothing refers to any more, also the memory of cards that torch keeps."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
