"""The few torch calls whose stubs say `Unknown`, with their types. No arithmetic."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def floats(values: Tensor) -> list[float]:
    """A 1-d float tensor as a list."""
    return cast("list[float]", cast("Any", values).tolist())


def ints(values: Tensor) -> list[int]:
    """A 1-d integer tensor as a list."""
    return cast("list[int]", cast("Any", values).tolist())


def flags(values: Tensor) -> list[bool]:
    """A 1-d bool tensor as a list."""
    return cast("list[bool]", cast("Any", values).tolist())


def int_rows(values: Tensor) -> list[list[int]]:
    """A 2-d integer tensor as lists."""
    return cast("list[list[int]]", cast("Any", values).tolist())


def from_numpy(array: NDArray[np.generic]) -> Tensor:
    """Share an array's memory."""
    return cast("Tensor", cast("Any", torch).from_numpy(array))


def dtype_name(module: nn.Module) -> str:
    """Return the name of the dtype that a model's first weights have, as in `bfloat16`."""
    return str(next(module.parameters()).dtype).removeprefix("torch.")


def pieces(tensor: Tensor, size: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Split into pieces of `size` along `dim`, without copying."""
    return cast("tuple[Tensor, ...]", cast("Any", tensor).split(size, dim))


def backward(loss: Tensor) -> None:
    """Accumulate gradients."""
    cast("Any", loss).backward()
