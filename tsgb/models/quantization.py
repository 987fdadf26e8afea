"""Targets whose weights are held in four bits (NF4 of bitsandbytes), to save memory of a card.

Players' bases are never quantised: a guard is trained on the weights that it will be used with.
Imports neither torch nor bitsandbytes, so that a command can refuse before anything starts.
"""

from __future__ import annotations

from importlib.util import find_spec

from tsgb.errors import ConfigError

FOUR_BIT = "4bit"
PACKAGE = "bitsandbytes"


def check_quantization(
    quantization: str, device: str, *, installed: bool = find_spec(PACKAGE) is not None
) -> None:
    """Refuse weights in four bits where they cannot be computed with.

    Args:
        quantization: `ModelConfig.target_quantization`.
        device: Name of the device, as torch writes it.
        installed: Whether the package that computes with them is there.

    Raises:
        ConfigError: The device is no CUDA card, or the package is missing.
    """
    if quantization != FOUR_BIT:
        return
    if not device.startswith("cuda"):
        raise ConfigError(
            f"model.target_quantization = {quantization!r} needs a CUDA card, and models are "
            f"computed on {device!r} here: leave it out, or rent a machine with a card"
        )
    if not installed:
        raise ConfigError(
            f"model.target_quantization = {quantization!r} needs the package {PACKAGE}, which is "
            "not installed: uv sync --extra quantization"
        )
