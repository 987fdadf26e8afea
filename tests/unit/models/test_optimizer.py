"""Our AdamW and our clipping against PyTorch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tsgb.models.optimizer import AdamW, clip_norm


def parameters(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,), ())]


def fill_gradients(params: list[nn.Parameter], seed: int, size: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in params:
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_are_those_of_pytorch(weight_decay: float) -> None:
    ours, theirs = parameters(0), parameters(0)
    options = {"betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": weight_decay}
    mine = AdamW(ours, lr=1e-2, **options)
    reference = torch.optim.AdamW(theirs, lr=1e-2, foreach=False, **options)
    for step in range(25):
        rate = 1e-2 * (1 - step / 30)
        fill_gradients(ours, step, size=10 ** (step % 5 - 2))
        fill_gradients(theirs, step, size=10 ** (step % 5 - 2))
        mine.step(rate)
        reference.param_groups[0]["lr"] = rate
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
        for name, moment in reference.state[b].items():
            torch.testing.assert_close(mine.state[a][name], moment, rtol=1e-5, atol=1e-9)


def test_without_gradients_nothing_moves() -> None:
    params = parameters(0)
    before = copy.deepcopy(params)
    optimizer = AdamW(params, lr=1.0)
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    assert not optimizer.state


@pytest.mark.parametrize("size", [0.01, 10.0], ids=["below", "above"])
def test_clipping_is_that_of_pytorch(size: float) -> None:
    ours, theirs = parameters(0), parameters(0)
    fill_gradients(ours, 1, size)
    fill_gradients(theirs, 1, size)
    norm = nn.utils.clip_grad_norm_(theirs, 1.0)
    assert clip_norm(ours, 1.0) == pytest.approx(float(norm), rel=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=0)


def test_without_gradients_there_is_no_norm() -> None:
    assert clip_norm(parameters(0), 1.0) == 0.0
