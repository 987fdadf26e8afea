"""Losses of both players, each one a formula.

Shape letters: B prompts; N completions, L tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def exact_policy_gradient(z_B: Tensor, gain_B: Tensor) -> Tensor:
    """Return -J with J = mean of p_b r_b + (1 - p_b) r_a, up to a constant: -mean(p_b (r_b - r_a)).

    This is the all-action policy gradient (Petit et al. 2019, arXiv 1910.09093). It has no sampling
    noise, since the surrogate's answer tells both rewards.

    Args:
        z_B: verdict scores.
        gain_B: r_b - r_a, the reward of blocking minus that of allowing.
    """
    return -(torch.sigmoid(z_B) * gain_B).mean()


def weighted_cross_entropy(z_B: Tensor, gain_B: Tensor) -> Tensor:
    """Return the mean of |gain| log(1 + exp(-sign(gain) z)).

    It is Bayes-consistent for the same decision, and its gradient does not vanish where the guard
    is confidently wrong.
    """
    return (gain_B.abs() * F.softplus(-gain_B.sign() * z_B)).mean()


def sampled_policy_gradient(z_B: Tensor, gain_B: Tensor, uniform_B: Tensor) -> Tensor:
    """Return the REINFORCE loss with one sampled verdict a prompt and the batch mean as baseline.

    Args:
        z_B: verdict scores.
        gain_B: r_b - r_a; rewards are taken as r_b = gain / 2, r_a = -gain / 2.
        uniform_B: uniform numbers in [0, 1) that draw the verdicts.
    """
    block_B = uniform_B < torch.sigmoid(z_B.detach())
    reward_B = torch.where(block_B, gain_B, -gain_B) / 2
    advantage_B = reward_B - reward_B.mean()
    logp_B = torch.where(block_B, F.logsigmoid(z_B), F.logsigmoid(-z_B))
    return -(advantage_B * logp_B).mean()


def binary_entropy(z_B: Tensor) -> Tensor:
    """Return the mean entropy of the verdict, in nats."""
    p = torch.sigmoid(z_B)
    return (p * F.softplus(-z_B) + (1 - p) * F.softplus(z_B)).mean()


def binary_kl(z_B: Tensor, reference_B: Tensor) -> Tensor:
    """Return the mean KL(verdict || reference verdict), exact, in nats."""
    p = torch.sigmoid(z_B)
    block = F.logsigmoid(z_B) - F.logsigmoid(reference_B)
    allow = F.logsigmoid(-z_B) - F.logsigmoid(-reference_B)
    return (p * block + (1 - p) * allow).mean()


def clipped_policy_gradient(
    logp_NL: Tensor, old_NL: Tensor, advantage_N: Tensor, mask_NL: Tensor, clip: float, scale: float
) -> Tensor:
    """Return -(1 / scale) sum of min(rho A, clip(rho, 1 - eps, 1 + eps) A) over sampled tokens.

    Args:
        logp_NL: log-probabilities under the policy being trained.
        old_NL: log-probabilities under the policy that sampled.
        advantage_N: advantage of each completion.
        mask_NL: 1 on sampled tokens.
        clip: eps (PPO, Schulman et al. 2017).
        scale: constant (max tokens x batch), so that long completions are not favoured.
    """
    ratio_NL = (logp_NL - old_NL).exp()
    A_N1 = advantage_N[:, None]
    surrogate = torch.minimum(ratio_NL * A_N1, ratio_NL.clamp(1 - clip, 1 + clip) * A_N1)
    return -(surrogate * mask_NL).sum() / scale


def masked_mean(values_NL: Tensor, mask_NL: Tensor) -> Tensor:
    """Return the mean of the values where the mask is 1; 0 if it is nowhere."""
    return (values_NL * mask_NL).sum() / mask_NL.sum().clamp(min=1)
