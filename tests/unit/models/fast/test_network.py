"""Our forward pass against transformers' own, values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.unit.models.conftest import MakeLlama, Row
from tsgb.models.fast import attention, kernels
from tsgb.models.fast.adapters import BaseWeights, FullAdapter
from tsgb.models.fast.network import Shape, hidden_states, logits
from tsgb.models.fast.packing import Grid, Rows

Expected = Callable[..., list[Tensor]]
variants = pytest.mark.parametrize(
    ("kv_heads", "tied"), [(4, False), (4, True), (2, True), (1, False)]
)


def every_token(rows: list[Row]) -> tuple[Rows, np.ndarray]:
    packed = Rows(rows)
    tokens = [
        packed.tokens(np.full(len(row), number), np.arange(len(row)))
        for number, row in enumerate(rows)
    ]
    return packed, np.concatenate(tokens)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@variants
@pytest.mark.parametrize("plain_pairs", [attention.PLAIN_PAIRS, 0])
def test_logits_are_those_of_transformers(
    make_llama: MakeLlama,
    rows: list[Row],
    expected: Expected,
    monkeypatch: pytest.MonkeyPatch,
    kv_heads: int,
    tied: bool,
    plain_pairs: int,
) -> None:
    monkeypatch.setattr(attention, "PLAIN_PAIRS", plain_pairs)
    module = make_llama(kv_heads, tied=tied)
    weights, shape = BaseWeights.of(module), Shape.of(module.config)
    packed, tokens = every_token(rows)
    with torch.no_grad():
        theirs = torch.cat(expected(module, rows)).log_softmax(-1)
        ours = logits(weights, hidden_states(weights, shape, packed, tokens)).log_softmax(-1)
        own_order = logits(weights, hidden_states(weights, shape, packed)).log_softmax(-1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-5)
    torch.testing.assert_close(own_order[torch.from_numpy(tokens)], theirs, rtol=0, atol=3e-5)


@variants
def test_selected_tokens_come_in_the_order_they_are_asked_for(
    make_llama: MakeLlama, rows: list[Row], expected: Expected, kv_heads: int, tied: bool
) -> None:
    module = make_llama(kv_heads, tied=tied)
    weights, shape = BaseWeights.of(module), Shape.of(module.config)
    packed, tokens = every_token(rows)
    picked = np.array([40, 3, 3, 0, 17, 31, 11])
    entries = torch.tensor([5, 60])
    with torch.no_grad():
        theirs = torch.cat(expected(module, rows))[torch.from_numpy(picked)]
        hidden = hidden_states(weights, shape, packed, tokens[picked])
        assert hidden.shape == (len(picked), 32)
        torch.testing.assert_close(logits(weights, hidden), theirs, rtol=0, atol=3e-5)
        part = logits(weights, hidden, entries)
    torch.testing.assert_close(part, theirs[:, entries], rtol=0, atol=3e-5)


@variants
@pytest.mark.parametrize("plain_pairs", [attention.PLAIN_PAIRS, 0])
def test_gradients_are_those_of_autograd_through_transformers(
    make_llama: MakeLlama,
    rows: list[Row],
    expected: Expected,
    monkeypatch: pytest.MonkeyPatch,
    kv_heads: int,
    tied: bool,
    plain_pairs: int,
) -> None:
    monkeypatch.setattr(attention, "PLAIN_PAIRS", plain_pairs)
    module = make_llama(kv_heads, tied=tied)
    parameters = dict(module.named_parameters())
    probe = torch.randn(len(rows), 61, generator=torch.Generator().manual_seed(2))
    last = torch.stack([out[-1] for out in expected(module, rows)])
    (last.log_softmax(-1) * probe).sum().backward()
    theirs = {name: p.grad for name, p in parameters.items()}
    module.zero_grad(set_to_none=True)
    weights, packed = FullAdapter.around(parameters), Rows(rows)
    hidden = hidden_states(weights, Shape.of(module.config), packed, packed.last())
    (logits(weights, hidden).log_softmax(-1) * probe).sum().backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        assert relative(parameter.grad, theirs[name]) < 4e-5, name


def test_a_row_does_not_depend_on_its_neighbours(make_llama: MakeLlama, rows: list[Row]) -> None:
    module = make_llama()
    weights, shape = BaseWeights.of(module), Shape.of(module.config)

    def last(batch: list[Row]) -> Tensor:
        packed = Rows(batch)
        return logits(weights, hidden_states(weights, shape, packed, packed.last()))

    with torch.no_grad():
        together = last(rows)
        assert torch.equal(together, last(rows))  # the same batch gives the same bits
        alone = torch.cat([last([row]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=3e-5)


def test_equal_beginnings_are_kept_once() -> None:
    packed = Rows([[5, 6, 7], [5, 6], [5, 8], [5, 6, 7], [9]])
    assert len(packed.ids_N) == 5  # 5, 6, 7, 8 and 9
    assert packed.grid.B == 4  # the repeated row is gone
    assert packed.ids_N[torch.from_numpy(packed.last())].tolist() == [7, 6, 8, 7, 9]
    assert sorted(packed.padded(0).tolist()) == [[5, 6, 0], [5, 6, 7], [5, 8, 0], [9, 0, 0]]
    pair = packed.last(2).reshape(-1, 2)[0]
    assert packed.ids_N[torch.from_numpy(pair)].tolist() == [6, 7]


def test_a_grid_goes_there_and_back() -> None:
    grid = Grid.filled_from_left(np.array([2, 0, 3]))
    x = torch.arange(10.0).view(5, 2)
    there, back = grid.moves(2)
    on_grid = x.view(-1, 1)[there]
    assert torch.equal(on_grid[back].view(5, 2), x)
    assert grid.filled(1, torch.float32) is not None
    assert grid.filled(1, torch.float32).sum() == 5  # pyright: ignore[reportOptionalMemberAccess]
    assert Grid.filled_from_left(np.array([2, 2])).filled(1, torch.float32) is None


def test_the_norm_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(7, 12, generator=generator, requires_grad=True)
    weight = torch.randn(12, generator=generator, requires_grad=True)
    probe = torch.randn(7, 12, generator=generator)
    grads: list[tuple[Tensor, ...]] = []
    for norm in (kernels.rms_norm, lambda x, w, eps: nn.functional.rms_norm(x, (12,), w, eps)):
        out = norm(x, weight, 1e-5)
        grads.append((out, *torch.autograd.grad((out * probe).sum(), (x, weight))))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5), grads[1][0])
