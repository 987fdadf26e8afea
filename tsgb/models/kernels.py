"""The few operations whose stock versions dominate a tiny model's step, with their gradients.

Each one is checked against autograd through plain PyTorch in the tests.
Shape letters: N tokens, C heads (or heads and groups), D width of a head, E width of the model.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class _RmsNorm(Function):
    """x / rms(x) * weight; the stock one is a chain of ten recorded operations on a CPU."""

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


def _inverse_rms(x_NE: Tensor, eps: float) -> Tensor:
    norm_N1 = torch.linalg.vector_norm(x_NE, dim=-1, keepdim=True, dtype=torch.float32)
    return norm_N1.square_().div_(x_NE.shape[-1]).add_(eps).rsqrt_().to(x_NE.dtype)


def rms_norm(x_NE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension."""
    if not torch.is_grad_enabled():
        return (x_NE * _inverse_rms(x_NE, eps)).mul_(weight_E)
    return _RmsNorm.apply(x_NE, weight_E, eps)  # pyright: ignore[reportReturnType, reportUnknownVariableType]


def _turn(x_NCD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor, turned: int, sign: int) -> Tensor:
    half = x_NCD.shape[-1] // 2
    out = torch.empty_like(x_NCD)
    here, there = x_NCD[:, :turned], out[:, :turned]
    torch.mul(here, cos_N1D, out=there)
    sin = sin_N1D[..., :half]
    there[..., :half].addcmul_(here[..., half:], sin, value=-sign)
    there[..., half:].addcmul_(here[..., :half], sin, value=sign)
    if turned < x_NCD.shape[1]:
        out[:, turned:] = x_NCD[:, turned:]
    return out


class _Rotate(Function):
    """Rotary embedding; its gradient is the rotation backwards."""

    @staticmethod
    def forward(ctx: Any, x_NCD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor, turned: int) -> Tensor:
        ctx.save_for_backward(cos_N1D, sin_N1D)
        ctx.turned = turned
        return _turn(x_NCD, cos_N1D, sin_N1D, turned, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos_N1D, sin_N1D = ctx.saved_tensors
        return _turn(grads[0], cos_N1D, sin_N1D, ctx.turned, -1), None, None, None


def rotate(x_NCD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor, turned: int) -> Tensor:
    """Turn each pair (d, d + D/2) of the first `turned` heads by its token's angle."""
    if not torch.is_grad_enabled():
        return _turn(x_NCD, cos_N1D, sin_N1D, turned, 1)
    return _Rotate.apply(x_NCD, cos_N1D, sin_N1D, turned)  # pyright: ignore[reportReturnType, reportUnknownVariableType]


@lru_cache(maxsize=16)
def _table(theta: float, dim: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    frequency = theta ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    angle = torch.cat((angle, angle), -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotary(
    theta: float, dim: int, positions_N: Tensor, longest: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, 1, D] of tokens at these positions, all below `longest`."""
    cos, sin = _table(theta, dim, 1 << max(longest - 1, 63).bit_length(), dtype)
    return (
        cos.index_select(0, positions_N)[:, None],
        sin.index_select(0, positions_N)[:, None],
    )


class _Move(Function):
    """Rows by index; the gradient comes back by another index, so nothing is summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, filled: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, filled)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        back, filled = ctx.saved_tensors
        g = grads[0].index_select(0, back)
        return (g if filled is None else g.mul_(filled)), None, None, None


def move(x: Tensor, there: Tensor, back: Tensor, filled: Tensor | None = None) -> Tensor:
    """`x[there]`, where `back` names for each row of `x` the one row of the result that counts.

    Args:
        x: rows.
        there: for each row of the result, its row of `x`.
        back: for each row of `x`, its row of the result.
        filled: 0 where a row of `x` does not count at all (so its gradient is zero), else 1.
    """
    if not torch.is_grad_enabled():
        return x.index_select(0, there)
    return _Move.apply(x, there, back, filled)  # pyright: ignore[reportReturnType, reportUnknownVariableType]
