"""Recomputation: activations are thrown away, and computed again when the backward pass needs them.

A large frozen base makes a megabyte of activations a token, and what goes in is a thousandth of
that. `torch.utils.checkpoint` does the same, but its first use imports the compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


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
        found = torch.autograd.grad(out, wanted, grads[0], allow_unused=True)
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
