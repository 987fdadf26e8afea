"""What a machine's memory is spent on, for a model of 135M parameters that is never allocated."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tsgb.models.fast.budget import Budget

GB = 10**9


@pytest.fixture(scope="module")
def module() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def test_a_machine_with_24_gb_keeps_everything(module: LlamaForCausalLM) -> None:
    budget = Budget.of(module, 12 * GB)
    assert budget.copies
    assert budget.write_rows(86) >= 64
    assert budget.keeps(1432, 86)
    assert budget.keeps_logits(1280)


def test_a_machine_with_3_gb_keeps_little(module: LlamaForCausalLM) -> None:
    budget = Budget.of(module, 3 * GB // 2)
    assert not budget.copies
    assert 1 <= budget.write_rows(86) < 64
    assert not budget.keeps(1432, 86)
    assert not budget.keeps_logits(1280)


def test_more_memory_never_means_smaller_batches(module: LlamaForCausalLM) -> None:
    budgets = [Budget.of(module, memory * GB // 4) for memory in range(64)]
    for less, more in pairwise(budgets):
        if less.copies == more.copies:  # copies leave less for the rest, and are worth it
            assert less.write_rows(100) <= more.write_rows(100)
            assert less.keeps(1000, 100) <= more.keeps(1000, 100)
        assert less.copies <= more.copies
    assert budgets[0].write_rows(100) == 1
