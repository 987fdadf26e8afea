"""How noisy the two policy gradients of the guard are, measured on the same batches (claim H6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tsgb.trainer.losses import exact_policy_gradient, sampled_policy_gradient
from tsgb.trainer.players import GuardPlayer


def variance_ratio(
    guard: GuardPlayer,
    batches: Sequence[tuple[Sequence[str], Sequence[float]]],
    generator: torch.Generator,
) -> tuple[float, float, float]:
    """Total variance of the sampled gradient over that of the exact one.

    Both are computed on the same batches, so both contain the noise of the prompts; the ratio says
    what sampling the verdict adds.

    Args:
        guard: its current weights.
        batches: prompts and gains.
        generator: draws the verdicts.

    Returns:
        The ratio and a 95 % interval from a bootstrap over batches.
    """
    exact: list[Tensor] = []
    sampled: list[Tensor] = []
    parameters = list(guard.adapter.parameters.values())
    for prompts, gains in batches:
        z_B = guard.model.scores(guard.adapter, guard.template, prompts)
        gain_B = torch.tensor(list(gains))
        uniform_B = torch.rand(len(z_B), generator=generator)
        losses = (
            (exact, exact_policy_gradient(z_B, gain_B)),
            (sampled, sampled_policy_gradient(z_B, gain_B, uniform_B)),
        )
        for found, loss in losses:
            grads = torch.autograd.grad(
                loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            found.append(torch.cat([g.flatten() for g in grads]).double())
    e_ND, s_ND = torch.stack(exact), torch.stack(sampled)
    # The trace of a covariance needs inner products only: draws then cost nothing.
    gram_e, gram_s = e_ND @ e_ND.T, s_ND @ s_ND.T
    N = len(e_ND)

    def ratio(index: Tensor) -> float:
        return float(_trace(gram_s, index) / _trace(gram_e, index).clamp(min=1e-30))

    draws = torch.tensor(
        [ratio(torch.randint(0, N, (N,), generator=generator)) for _ in range(1000)]
    )
    low, high = draws.quantile(torch.tensor([0.025, 0.975]))
    return ratio(torch.arange(N)), float(low), float(high)


def _trace(gram: Tensor, index: Tensor) -> Tensor:
    """Trace of the covariance of the rows `index`, from their Gram matrix."""
    part = gram[index][:, index]
    return part.diagonal().mean() - part.mean()
