"""AdamW without `torch.optim`, whose first use imports the compiler: 4 CPU seconds a process.

State and groups have the names of `torch.optim.AdamW`, so the checkpoint codec reads both alike;
tests compare the updates with it bit for bit within float tolerance.
"""

# torch's own optimizers are written in these calls; they have no public names.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn


class AdamW:
    """Decoupled weight decay (Loshchilov & Hutter 2019), all parameters in a few fused calls."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        """Optimise `parameters`; moments are made at the first update."""
        self.state: dict[Tensor, dict[str, Any]] = {}
        self.param_groups: list[dict[str, Any]] = [
            {
                "params": list(parameters),
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
            }
        ]

    def zero_grad(self) -> None:
        """Forget gradients."""
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float | None = None) -> None:
        """One update of every parameter that has a gradient."""
        group = self.param_groups[0]
        if lr is not None:
            group["lr"] = lr
        rate: float = group["lr"]
        beta1, beta2 = group["betas"]
        parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            if p not in self.state:
                self.state[p] = {
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                    "step": torch.zeros((), device="cpu"),
                }
        first = [self.state[p]["exp_avg"] for p in parameters]
        second = [self.state[p]["exp_avg_sq"] for p in parameters]
        for p in parameters:
            self.state[p]["step"] += 1
        num = float(self.state[parameters[0]]["step"])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        scale = torch._foreach_sqrt(second)
        torch._foreach_div_(scale, (1 - beta2**num) ** 0.5)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_addcdiv_(parameters, first, scale, -rate / (1 - beta1**num))


@torch.no_grad()
def clip_norm(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to a total norm; returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norms = torch.stack(torch._foreach_norm(gradients))
    norm = float(norms.square().sum().sqrt())
    if norm > max_norm:
        torch._foreach_mul_(gradients, max_norm / (norm + 1e-6))
    return norm


def one_cycle(step: int, total: int, peak: float, warm: float = 0.15) -> float:
    """Learning rate of the one-cycle policy (Smith & Topin 2018): cosine up, cosine down to 0."""
    rise = max(1.0, warm * total)
    if step < rise:
        return peak * (1 / 25 + (1 - 1 / 25) * (1 - cos(pi * step / rise)) / 2)
    return peak * (1 + cos(pi * min(1.0, (step - rise) / max(1.0, total - rise)))) / 2
