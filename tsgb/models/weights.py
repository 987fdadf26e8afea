"""Named tensors of a model: copied, restored bit for bit, and written to a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from tsgb.models.torch_typing import ints

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of as many bytes as a parameter's numbers."""


def snapshot(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return a detached copy of parameters."""
    return {name: p.detach().clone() for name, p in parameters.items()}


def load_parameters(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into parameters, bit for bit.

    Raises:
        KeyError: A parameter is missing in `tensors`.
    """
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def fingerprint(parameters: Iterable[nn.Parameter]) -> tuple[int, ...]:
    """Return numbers that change whenever parameters do.

    Torch counts changes in place, but its fused optimizers do not tell; so the bits of what can be
    trained are summed, which costs a thousandth of what a model does with them.
    """
    found: list[int] = []
    sums: list[Tensor] = []
    for parameter in parameters:
        found += (parameter.data_ptr(), parameter._version)  # pyright: ignore[reportPrivateUsage]
        if parameter.requires_grad:
            bits = parameter.detach().view(_BITS[parameter.element_size()])
            sums.append(bits.sum(dtype=torch.int64))
    if sums:
        found += ints(torch.stack(sums))  # read at once: a card is waited for once
    return tuple(found)


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a new file in the safetensors format."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in sorted(weights.items())}
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors lets the owner alone read it, whatever the umask
