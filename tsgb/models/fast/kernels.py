"""The root-mean-square norm as one operation of autograd: a CPU's stock norm is a chain of ten.

The tests check its gradient against autograd through plain PyTorch.

Shape letters: N tokens, E width of the model.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function


class _RmsNorm(Function):
    """x / rms(x) * weight."""

    @staticmethod
    def forward(ctx: Any, x_NE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        inverse_N1 = _inverse_rms(x_NE, eps)
        ctx.save_for_backward(x_NE, weight_E, inverse_N1)
        return (x_NE * inverse_N1).mul_(weight_E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (g_NE,) = grads
        x_NE, weight_E, inverse_N1 = ctx.saved_tensors
        unit_NE = x_NE * inverse_N1
        along_NE = g_NE * unit_NE
        share_N1 = torch.mv(along_NE, weight_E).div_(-x_NE.shape[-1])[:, None]
        g_x = (g_NE * weight_E).addcmul_(unit_NE, share_N1).mul_(inverse_N1)
        return g_x, along_NE.sum(0) if ctx.needs_input_grad[1] else None, None


@lru_cache(maxsize=16)
def _constant(value: float) -> Tensor:
    return torch.tensor(value)


def _inverse_rms(x_NE: Tensor, eps: float) -> Tensor:
    linalg: Any = torch.linalg
    norm_N1: Tensor = linalg.vector_norm(x_NE, dim=-1, keepdim=True, dtype=torch.float32)
    mean_N1 = torch.addcmul(_constant(eps), norm_N1, norm_N1, value=1 / x_NE.shape[-1])
    return mean_N1.rsqrt_().to(x_NE.dtype)


def rms_norm(x_NE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension."""
    if not torch.is_grad_enabled():
        return (x_NE * _inverse_rms(x_NE, eps)).mul_(weight_E)
    return cast("Tensor", cast("Any", _RmsNorm).apply(x_NE, weight_E, eps))
