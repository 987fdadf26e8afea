"""Frozen linear layers: products in the dtype of the weight, with float32 on both sides.

A product of a few rows with a plain matrix spends its time on reading that matrix: laid out once in
oneDNN's blocks it is 1.2 to 1.5 times as fast. The operations have no public name in torch, so they
are tried on a small matrix first. No time is measured: a choice by time would differ between a run
and its continuation, and so would the last bits of their results.

With weights in bfloat16 both factors are rounded to 8 bits and the sums are float32. A CPU that has
units for that multiplies twice as fast; all between the products stays float32.
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
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}
"""Difference from the plain product that is rounding, for sums of 64 products of order 1."""


def linear_of(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Return `x -> x weight^T + bias`, on a copy of the weight in oneDNN's layout if there is one.

    Args:
        weight: [out, in], on the CPU; the plain product shares its memory.
        bias: [out], float32, which is shared in any case; none is zero.
    """
    if not _is_available(weight.dtype):
        return lambda x: multiply(x, weight, bias)
    packed = _pack(weight)
    if weight.dtype is torch.float32:
        return lambda x: _apply(x, packed, bias)
    return lambda x: _shifted(_apply(x.to(weight.dtype), packed, None).to(x.dtype), bias)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias, [M, out], in the dtype of x.

    Args:
        x: [M, in].
        weight: [out, in]; its dtype is that of the product.
        bias: [out], in the dtype of x; none is zero.
    """
    if weight.dtype is x.dtype:
        return F.linear(x, weight, bias)
    return _shifted(F.linear(x.to(weight.dtype), weight).to(x.dtype), bias)


def multiply_back(g: Tensor, weight: Tensor) -> Tensor:
    """Return g weight, [M, in]: what `multiply` hands to the gradient of its input.

    Args:
        g: [M, out].
        weight: [out, in]; its dtype is that of the product.
    """
    return (g.to(weight.dtype) @ weight).to(g.dtype)


def _shifted(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x.add_(bias)


def _pack(weight: Tensor) -> Tensor:
    return cast("Tensor", _operations()._reorder_linear_weight(weight))


def _apply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return cast("Tensor", _operations()._linear_pointwise(x, packed, bias, "none", [], ""))


def _operations() -> Any:
    return cast("Any", torch.ops).mkldnn


@cache
def _is_available(dtype: torch.dtype) -> bool:
    """Tell whether the operations exist on this machine and give the plain product."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(5, 64, generator=generator).to(dtype) for _ in range(2))
    biases = None, x[0, :5]
    try:
        found = torch.stack([_apply(x, _pack(weight), bias) for bias in biases])
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    wanted = torch.stack([F.linear(x, weight, bias) for bias in biases])
    return bool(torch.allclose(found, wanted, rtol=0, atol=_TOLERANCE[dtype]))
