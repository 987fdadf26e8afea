"""Small random models of the Llama family, as transformers makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, EOS, PAD = 61, 3, 0
Row = list[int]
MakeLlama = Callable[..., LlamaForCausalLM]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_llama() -> MakeLlama:
    """`make_llama(kv_heads=2, tied=True, seed=0)`."""

    def make(kv_heads: int = 4, *, tied: bool = False, seed: int = 0) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            tie_word_embeddings=tied,
            max_position_embeddings=256,
            pad_token_id=None,  # transformers would give it no gradient
            eos_token_id=EOS,
            bos_token_id=None,
        )
        module = LlamaForCausalLM(config).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.25, generator=generator)
        return module

    return make


@pytest.fixture
def rows() -> list[Row]:
    """Ragged rows, some of which begin alike, contain each other or are repeated."""
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> Row:
        return torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()

    stem = draw(6)
    return [
        [*stem, *draw(5)],
        draw(20),
        [*stem, *draw(2)],
        draw(1),
        [*stem],
        draw(9),
        [*stem],
        [*stem[:3], *draw(4)],
    ]


@pytest.fixture
def expected() -> Callable[[LlamaForCausalLM, Sequence[Row]], list[Tensor]]:
    """Logits of each row by transformers, from one left-padded batch."""

    def run(module: LlamaForCausalLM, batch: Sequence[Row]) -> list[Tensor]:
        width = max(map(len, batch))
        ids = torch.tensor([[PAD] * (width - len(row)) + list(row) for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = module(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        return [logits[width - len(row) :] for logits, row in zip(out, batch, strict=True)]

    return run
