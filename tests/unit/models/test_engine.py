"""Divergences that engines share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from tsgb.models.engine import full_kl, k3_kl


def random_tokens(seed: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N, L, V] of policy and reference."""
    generator = torch.Generator().manual_seed(seed)
    logits, others = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1), others.log_softmax(-1)


def test_the_full_divergence_is_that_of_the_distributions() -> None:
    logp, reference = random_tokens(1)
    wanted = kl_divergence(Categorical(logits=logp), Categorical(logits=reference))
    torch.testing.assert_close(full_kl(logp, reference), wanted)


def test_the_estimated_divergence_is_unbiased_and_never_negative() -> None:
    logp, reference = random_tokens(2)
    estimates = k3_kl(logp, reference)
    assert bool((estimates >= 0).all())
    torch.testing.assert_close((logp.exp() * estimates).sum(-1), full_kl(logp, reference))
