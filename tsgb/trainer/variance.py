"""How noisy the two policy gradients of the guard are, measured on the same batches (claim H6)."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from tsgb.config import RunConfig
from tsgb.envs.base import Environment
from tsgb.envs.pool import PoolAttack
from tsgb.trainer.batches import GuardBatch, clean_batch, selfplay_batch
from tsgb.trainer.losses import exact_policy_gradient, sampled_policy_gradient
from tsgb.trainer.players import GuardPlayer


def gradient_batches(
    env: Environment, config: RunConfig, attacks: Sequence[PoolAttack], rng: Random
) -> list[GuardBatch]:
    """`evaluation.variance_batches` batches like those of a guard update, without dual price.

    Args:
        env: makes twins and clean prompts.
        config: shares and counts.
        attacks: of the pool; without any, the batches are clean.
        rng: private.
    """
    guard = config.guard
    num_pool = round(guard.batch * guard.pool_share)
    batches: list[GuardBatch] = []
    for _ in range(config.evaluation.variance_batches):
        if attacks:
            drawn = [rng.choice(attacks) for _ in range(num_pool)]
            batch = selfplay_batch(
                env, guard, config.selfplay, rng, buffer=attacks, pool_draw=drawn
            )
        else:
            batch = clean_batch(env, guard, rng, guard.batch)
        batches.append(batch)
    return batches


def variance_ratio(
    guard: GuardPlayer,
    batches: Sequence[GuardBatch],
    generator: torch.Generator,
) -> tuple[float, float, float]:
    """Total variance of the sampled gradient over that of the exact one.

    Both are computed on the same batches, so both contain the noise of the prompts; the ratio says
    what sampling the verdict adds.

    Args:
        guard: its current weights.
        batches: what both gradients are computed on.
        generator: draws the verdicts.

    Returns:
        The ratio and a 95 % interval from a bootstrap over batches.
    """
    exact: list[Tensor] = []
    sampled: list[Tensor] = []
    parameters = list(guard.parameters.values())
    for batch in batches:
        z_B = guard.engine.scores(guard.role, guard.template, batch.prompts)
        gain_B = torch.tensor(batch.gains, device="cpu")
        uniform_B = torch.rand(len(z_B), generator=generator, device="cpu")
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

    def resampled() -> Tensor:
        return torch.randint(0, N, (N,), generator=generator, device="cpu")

    draws = torch.tensor([ratio(resampled()) for _ in range(1000)], device="cpu")
    low, high = draws.quantile(torch.tensor([0.025, 0.975], device="cpu"))
    return ratio(torch.arange(N, device="cpu")), float(low), float(high)


def _trace(gram: Tensor, index: Tensor) -> Tensor:
    """Trace of the covariance of the rows `index`, from their Gram matrix."""
    part = gram[index][:, index]
    return part.diagonal().mean() - part.mean()
