"""Frozen linear layers laid out once for oneDNN, where that library is there and right.

A product of a few rows with a plain matrix spends its time on reading that matrix: laid out in
blocks it is 1.2 to 1.5 times as fast. The operations have no public name in torch, so they are
tried on a small matrix first. No time is measured: a choice by time would differ between a run and
its continuation, and so would the last bits of their results.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Linear = Callable[[Tensor], Tensor]
"""Maps [M, in] to [M, out], without gradients."""
_TOLERANCE = 1e-4
"""Difference from the plain product that is rounding, for sums of 64 products of order 1."""


def linear_of(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Return `x -> x weight^T + bias`, on a copy of the weight in oneDNN's layout if there is one.

    Args:
        weight: [out, in], float32 on the CPU; the plain product shares its memory.
        bias: [out], which is shared in any case; none is zero.
    """
    if not _is_available():
        return lambda x: F.linear(x, weight, bias)
    packed = _pack(weight)
    return lambda x: _apply(x, packed, bias)


def _pack(weight: Tensor) -> Tensor:
    return cast("Tensor", _operations()._reorder_linear_weight(weight))


def _apply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return cast("Tensor", _operations()._linear_pointwise(x, packed, bias, "none", [], ""))


def _operations() -> Any:
    return cast("Any", torch.ops).mkldnn


@cache
def _is_available() -> bool:
    """Tell whether the operations exist on this machine and give the plain product."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(5, 64, generator=generator) for _ in range(2))
    biases = None, x[0, :5]
    try:
        found = torch.stack([_apply(x, _pack(weight), bias) for bias in biases])
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    wanted = torch.stack([F.linear(x, weight, bias) for bias in biases])
    return bool(torch.allclose(found, wanted, rtol=0, atol=_TOLERANCE))
