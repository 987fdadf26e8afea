"""Operations that autograd records as one: the root-mean-square norm, and recomputation.

A CPU's stock norm is a chain of ten operations. Recomputation throws activations away and computes
them again when the backward pass needs them: a large frozen base makes a megabyte of them a token,
and what goes in is a thousandth of that. `torch.utils.checkpoint` does the same, but its first use
imports the compiler. The tests check both gradients against autograd through plain PyTorch.

Shape letters: N tokens, E width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class _Recomputed(Function):
    @staticmethod
    def forward(
        ctx: Any, run: Callable[[Tensor], Tensor], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(x, *parameters)
        return run(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_(ctx.needs_input_grad[1])
            out = ctx.run(x)
        wanted = [x, *parameters] if x.requires_grad else parameters
        found = torch.autograd.grad(out, wanted, grads[0])
        return (None, *found) if x.requires_grad else (None, None, *found)


def recomputed(run: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """`run(x)`, keeping nothing but `x` for the backward pass.

    Args:
        run: a deterministic function.
        x: its input.
        parameters: every tensor inside `run` that a gradient is wanted for.
    """
    if not torch.is_grad_enabled():
        return run(x)
    return _Recomputed.apply(run, x, *parameters)  # pyright: ignore[reportReturnType, reportUnknownVariableType, reportUnknownMemberType]
