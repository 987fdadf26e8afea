"""What each loss promises about its gradient; exactly where it can be enumerated."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from tsgb.trainer.losses import (
    binary_entropy,
    binary_kl,
    clipped_policy_gradient,
    exact_policy_gradient,
    masked_mean,
    sampled_policy_gradient,
    weighted_cross_entropy,
)

SCORES = (-2.0, -0.3, 0.4, 1.7)
BLOCKING = (1.0, 1.0, -1.6, 1.0)
"""r_b of each prompt."""
ALLOWING = (-2.0, -0.5, 1.0, -1.2)
"""r_a of each prompt."""

scores = st.floats(-8, 8)
rewards = st.floats(-3, 3)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradient(loss: Tensor, z: Tensor) -> Tensor:
    return torch.autograd.grad(loss, z)[0]


def exact_gradient(z: Tensor, gain: Tensor) -> Tensor:
    leaf = z.clone().requires_grad_()
    return gradient(exact_policy_gradient(leaf, gain), leaf)


def test_the_exact_gradient_is_that_of_the_enumerated_objective() -> None:
    z = doubles(*SCORES).requires_grad_()
    block, allow = doubles(*BLOCKING), doubles(*ALLOWING)
    p = torch.sigmoid(z)
    objective = torch.stack((p * block, (1 - p) * allow)).sum(0).mean()
    torch.testing.assert_close(
        exact_gradient(z.detach(), block - allow), -gradient(objective, z), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize(
    ("score", "block", "allow"), list(zip(SCORES, BLOCKING, ALLOWING, strict=True)), ids=str
)
def test_the_mean_of_many_sampled_gradients_is_the_exact_one(
    score: float, block: float, allow: float
) -> None:
    """Within 4.5 standard errors, which a correct estimator exceeds once in 150,000 tries."""
    num = 100_000
    gain = torch.full((num,), block - allow, dtype=torch.float64)
    z = torch.full((num,), score, dtype=torch.float64).requires_grad_()
    uniform = torch.rand(num, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    one_each = gradient(sampled_policy_gradient(z, gain, uniform), z) * num
    error = one_each.std() / num**0.5
    assert abs(one_each.mean() - exact_gradient(doubles(score), doubles(block - allow))) < (
        4.5 * error
    )


@pytest.mark.parametrize("num", [1, 2, 4])
def test_the_batch_mean_baseline_shrinks_the_expected_gradient_by_one_over_b(num: int) -> None:
    """A prompt's own reward is in its baseline: E = (1 - 1/B) x exact, no other bias.

    Enumerated over all 2^B verdicts. The direction is right, Adam ignores the length, and a batch
    of one learns nothing at all.
    """
    z, gain = doubles(*SCORES[:num]), doubles(*BLOCKING[:num]) - doubles(*ALLOWING[:num])
    p = torch.sigmoid(z)
    expected = torch.zeros_like(z)
    for verdicts in product((True, False), repeat=num):
        block = torch.tensor(verdicts)
        leaf = z.clone().requires_grad_()
        # A uniform of 0 always blocks, one next to 1 never does.
        uniform = torch.where(block, 0.0, 1 - 1e-12).double()
        chance = torch.where(block, p, 1 - p).prod()
        expected += chance * gradient(sampled_policy_gradient(leaf, gain, uniform), leaf)
    torch.testing.assert_close(
        expected, (1 - 1 / num) * exact_gradient(z, gain), rtol=1e-10, atol=1e-14
    )


@given(z=scores, block=rewards, allow=rewards)
def test_with_the_best_baseline_either_verdict_gives_the_exact_gradient(
    z: float, block: float, allow: float
) -> None:
    """b* = p_a r_b + p_b r_a: exact policy gradient is REINFORCE without its noise."""
    leaf = doubles(z).requires_grad_()
    p = torch.sigmoid(leaf.detach())
    baseline = (1 - p) * block + p * allow
    wanted = exact_gradient(leaf.detach(), doubles(block - allow))
    for reward, logp in ((block, F.logsigmoid(leaf)), (allow, F.logsigmoid(-leaf))):
        found = gradient(-((reward - baseline) * logp).sum(), leaf)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@given(z=scores, gain=rewards.filter(lambda gain: abs(gain) > 1e-3))
def test_weighted_cross_entropy_pulls_the_same_way(z: float, gain: float) -> None:
    leaf = doubles(z).requires_grad_()
    weighted = gradient(weighted_cross_entropy(leaf, doubles(gain)), leaf)
    assert torch.equal(weighted.sign(), exact_gradient(leaf.detach(), doubles(gain)).sign())
    assert torch.equal(weighted.sign(), doubles(-gain).sign())


@pytest.mark.parametrize("gain", [3.0, -2.0])
def test_weighted_cross_entropy_does_not_vanish_where_the_guard_is_surely_wrong(
    gain: float,
) -> None:
    wrong = doubles(-30.0 if gain > 0 else 30.0).requires_grad_()
    assert exact_gradient(wrong.detach(), doubles(gain)).abs() < 1e-12
    weighted = gradient(weighted_cross_entropy(wrong, doubles(gain)), wrong)
    torch.testing.assert_close(weighted, doubles(-gain))


@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=5))
def test_entropy_and_divergence_of_verdicts(pairs: list[tuple[float, float]]) -> None:
    z, reference = (doubles(*column) for column in zip(*pairs, strict=True))
    verdict, base = Bernoulli(logits=z), Bernoulli(logits=reference)
    torch.testing.assert_close(binary_entropy(z), verdict.entropy().mean())
    torch.testing.assert_close(
        binary_kl(z, reference), kl_divergence(verdict, base).mean(), rtol=1e-6, atol=1e-9
    )


def test_divergence_from_itself_is_zero_and_so_is_its_gradient() -> None:
    z = doubles(*SCORES).requires_grad_()
    kl = binary_kl(z, z.detach())
    assert kl == 0
    torch.testing.assert_close(gradient(kl, z), torch.zeros_like(z))


def test_a_masked_mean_counts_what_the_mask_shows() -> None:
    values, mask = doubles(1.0, 5.0, 3.0), doubles(1.0, 0.0, 1.0)
    assert masked_mean(values, mask) == 2.0
    assert masked_mean(values, torch.zeros_like(mask)) == 0


def test_at_ratio_one_the_clipped_gradient_is_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(4)
    old = -torch.rand(4, 6, generator=generator, dtype=torch.float64)
    advantage = torch.randn(4, generator=generator, dtype=torch.float64)
    mask = (torch.rand(4, 6, generator=generator) < 0.7).double()
    logp = old.clone().requires_grad_()
    clipped = clipped_policy_gradient(logp, old, advantage, mask, 0.2, 24.0)
    plain = -(advantage[:, None] * logp * mask).sum() / 24.0
    torch.testing.assert_close(gradient(clipped, logp), gradient(plain, logp))


@pytest.mark.parametrize(
    ("ratio", "advantage", "learns"),
    [
        pytest.param(1.5, 1.0, False, id="likely-enough"),
        pytest.param(1.5, -1.0, True, id="still-too-likely"),
        pytest.param(0.5, 1.0, True, id="still-too-unlikely"),
        pytest.param(0.5, -1.0, False, id="unlikely-enough"),
    ],
)
def test_clipping_stops_only_what_has_gone_far_enough(
    ratio: float, advantage: float, learns: bool
) -> None:
    old = torch.full((1, 1), -1.0)
    logp = (old + torch.tensor(ratio).log()).requires_grad_()
    loss = clipped_policy_gradient(logp, old, torch.tensor([advantage]), torch.ones(1, 1), 0.2, 1.0)
    assert bool(gradient(loss, logp).abs() > 0) is learns
