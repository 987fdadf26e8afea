"""Roles on a frozen base: whole weights, and LoRA against peft's own forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.unit.models.conftest import MakeLlama, Row
from tsgb.models.fast.adapters import (
    HEAD,
    BaseWeights,
    FullAdapter,
    LoraAdapter,
)
from tsgb.models.fast.budget import Budget
from tsgb.models.fast.network import Shape, Weights, hidden_states, logits
from tsgb.models.fast.packing import Rows


def last_logits(weights: Weights, module: LlamaForCausalLM, rows: list[Row]) -> Tensor:
    packed = Rows(rows)
    hidden = hidden_states(weights, Shape.of(module.config), packed, packed.last())
    return logits(weights, hidden)


def lora(base: BaseWeights) -> LoraAdapter:
    """An adapter that changes something: B is not zero."""
    adapter = LoraAdapter(base, rank=4)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.normal_(0.0, 0.1, generator=generator)
    return adapter


@pytest.mark.parametrize(("kv_heads", "tied"), [(4, False), (2, True)])
def test_lora_and_its_gradient_are_pefts(
    make_llama: MakeLlama, rows: list[Row], kv_heads: int, tied: bool
) -> None:
    module = make_llama(kv_heads, tied=tied)
    adapter = lora(BaseWeights.of(module))
    config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped: Any = get_peft_model(make_llama(kv_heads, tied=tied), config)
    set_peft_model_state_dict(wrapped, dict(adapter.parameters))
    theirs = torch.stack([wrapped(torch.tensor([row])).logits[0, -1] for row in rows])
    theirs = theirs.log_softmax(-1)
    ours = last_logits(adapter, module, rows).log_softmax(-1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-5)
    theirs.square().sum().backward()
    ours.square().sum().backward()
    grads = {
        name.replace(".default.", "."): p.grad
        for name, p in wrapped.named_parameters()
        if p.requires_grad
    }
    assert grads.keys() == adapter.parameters.keys()
    for name, parameter in adapter.parameters.items():
        assert parameter.grad is not None
        assert float((parameter.grad - grads[name]).norm() / grads[name].norm()) < 4e-5, name
    with wrapped.disable_adapter():
        off = torch.stack([wrapped(torch.tensor([row])).logits[0, -1] for row in rows])
    with torch.no_grad():
        torch.testing.assert_close(
            last_logits(BaseWeights.of(module), module, rows), off, rtol=0, atol=3e-5
        )


def test_adapters_leave_the_base_as_it_is(make_llama: MakeLlama, rows: list[Row]) -> None:
    module = make_llama(2, tied=True)
    base = BaseWeights.of(module)
    with torch.no_grad():
        plain = last_logits(base, module, rows)
        lora(base)
        assert torch.equal(last_logits(base, module, rows), plain)
        fresh = LoraAdapter(base, rank=4)
        fresh.reset(torch.Generator().manual_seed(0))
        torch.testing.assert_close(last_logits(fresh, module, rows), plain, rtol=0, atol=3e-5)
        assert any(parameter.any() for parameter in fresh.parameters.values())


@pytest.mark.parametrize("tied", [False, True])
def test_whole_weights_start_at_the_base_and_leave_it_alone(
    make_llama: MakeLlama, rows: list[Row], tied: bool
) -> None:
    module = make_llama(2, tied=tied).requires_grad_(False)
    base = BaseWeights.of(module)
    adapter = FullAdapter(base)
    assert (HEAD in adapter.parameters) != tied
    with torch.no_grad():
        plain = last_logits(base, module, rows)
        torch.testing.assert_close(last_logits(adapter, module, rows), plain, rtol=0, atol=3e-5)
        for parameter in adapter.parameters.values():
            parameter.mul_(1.1)
        assert torch.equal(last_logits(base, module, rows), plain)
        moved = last_logits(adapter, module, rows)
        torch.testing.assert_close(
            last_logits(adapter.frozen(), module, rows), moved, rtol=0, atol=3e-5
        )
    assert not torch.allclose(moved, plain)


def test_copies_of_weights_and_none_give_the_same_numbers(
    make_llama: MakeLlama, rows: list[Row]
) -> None:
    """A base that is small, one with memory for other layouts, and one without."""
    module = make_llama(2)
    budgets = [None, *(Budget.of(module, memory) for memory in (10**10, 0))]
    bases = [BaseWeights.of(module, budget) for budget in budgets]
    assert [base.copies for base in bases] == [False, True, False]
    found: list[tuple[Tensor, ...]] = []
    for base in bases:
        adapter = lora(base)
        for weights in (adapter, adapter.merged()):
            logp = last_logits(weights, module, rows).log_softmax(-1)
            gradient = torch.autograd.grad(logp.square().sum(), list(adapter.parameters.values()))
            with torch.no_grad():
                frozen = last_logits(weights.frozen(), module, rows).log_softmax(-1)
                plain = last_logits(base, module, rows)
            found.append((logp.detach(), frozen, plain, *(g / g.norm() for g in gradient)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=3e-5)


def test_a_merged_adapter_follows_its_parameters(make_llama: MakeLlama, rows: list[Row]) -> None:
    module = make_llama(2)
    adapter = lora(BaseWeights.of(module, Budget.of(module, 10**10)))
    merged = adapter.merged()
    assert adapter.merged() is merged
    with torch.no_grad():
        before = last_logits(merged, module, rows)
        adapter.parameters["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"].mul_(2)
        now = last_logits(adapter.merged(), module, rows)
        torch.testing.assert_close(now, last_logits(adapter, module, rows), rtol=0, atol=3e-5)
    assert (now - before).abs().max() > 1e-2
