"""Advantages within a group: unbiased, centred, and of comparable size in both classes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tsgb.trainer.advantages import leave_one_out, live_groups, scale_by_class


@pytest.mark.parametrize("group", [2, 3, 4])
def test_leave_one_out_is_unbiased_on_a_bandit(group: int) -> None:
    """Three arms; all 3^K groups enumerated: E[1/K sum A_k grad log pi] = grad E[R]."""
    reward = torch.tensor([0.2, 1.0, -0.7], dtype=torch.float64)
    preference = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64).requires_grad_()
    wanted = torch.autograd.grad((preference.softmax(0) * reward).sum(), preference)[0]
    arms = torch.tensor(list(product(range(3), repeat=group)))
    advantages = leave_one_out(reward[arms])
    logp = preference.log_softmax(0)[arms]
    chance = logp.detach().sum(1).exp()
    assert chance.sum() == pytest.approx(1.0)
    expected = (chance * (advantages * logp).mean(1)).sum()
    torch.testing.assert_close(torch.autograd.grad(expected, preference)[0], wanted)


groups = st.integers(2, 6).flatmap(
    lambda k: st.lists(
        st.lists(st.floats(-3, 3, width=32), min_size=k, max_size=k), min_size=1, max_size=5
    )
)


@given(groups, st.floats(-5, 5, width=32))
def test_advantages_of_a_group_sum_to_zero_and_ignore_a_shift(
    rewards: list[list[float]], shift: float
) -> None:
    grouped = torch.tensor(rewards)
    advantages = leave_one_out(grouped)
    torch.testing.assert_close(advantages.sum(1), torch.zeros(len(rewards)), rtol=0, atol=2e-5)
    torch.testing.assert_close(leave_one_out(grouped + shift), advantages, rtol=1e-5, atol=2e-5)


def test_an_attempt_that_nobody_could_judge_teaches_nothing() -> None:
    nan = float("nan")
    grouped = torch.tensor([[0.2, nan, 1.0, 0.6], [0.5, nan, nan, nan], [0.3, 0.3, nan, 0.3]])
    advantages = leave_one_out(grouped)
    torch.testing.assert_close(advantages[0, [0, 2, 3]], leave_one_out(grouped[:1, [0, 2, 3]])[0])
    assert not advantages[grouped.isnan()].any()
    assert not advantages[1].any(), "alone there is no baseline"
    assert live_groups(grouped).tolist() == [True, False, False]
    assert live_groups(torch.full((1, 4), nan)).tolist() == [False]


def test_only_groups_with_spread_are_live() -> None:
    grouped = torch.tensor([[0.1, 0.1, 0.1], [0.0, 0.0, 0.5], [-0.3, -0.3, -0.3]])
    assert live_groups(grouped).tolist() == [False, True, False]


def test_both_classes_get_unit_size_and_keep_their_signs() -> None:
    advantages = torch.tensor([[2.0, -2.0], [4.0, -4.0], [0.1, -0.1], [0.0, 0.0]])
    scaled = scale_by_class(advantages, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    for rows in (slice(0, 2), slice(2, 4)):
        assert scaled[rows].pow(2).mean() == pytest.approx(1.0)
    assert torch.equal(scaled.sign(), advantages.sign())
    assert scaled[0, 0] / scaled[1, 0] == pytest.approx(0.5), "order within a class is kept"


def test_a_class_without_advantages_stays_zero() -> None:
    advantages = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    assert scale_by_class(advantages, torch.tensor([1.0, 0.0]))[1].tolist() == [0.0, 0.0]
