"""Families beyond the eleven: computed as transformers does, or refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from tsgb.errors import ConfigError
from tsgb.models.general.batches import micro_batches
from tsgb.models.general.cache_decoder import CacheDecoder
from tsgb.models.general.causal_lm import CausalLm

ROWS = [[5, 6, 7, 8, 9, *range(20, 40)], [5, 6, 7, 8, 10, 11], [5, 6, 7, 8, 12]]
SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}
SMALL: dict[str, Any] = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}
GPT2: dict[str, Any] = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 64}
MOE: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
OPT: dict[str, Any] = {"ffn_dim": 40, "word_embed_proj_dim": 24, "max_position_embeddings": 64}
FALCON: dict[str, Any] = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
}
JAMBA: dict[str, Any] = {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4}


def make(kind: str, **settings: Any) -> Any:
    config = getattr(transformers, kind)(vocab_size=97, **settings)
    factory: Any = transformers.AutoModelForCausalLM
    module = factory.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1 and "conv" not in name:
                scale = 1.2 * parameter.shape[-1] ** -0.5
                parameter.normal_(0.0, scale, generator=generator)
    return module


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("GPT2Config", GPT2),
        ("OPTConfig", {**SIZES, **OPT}),
        ("BloomConfig", {"hidden_size": 24, "n_layer": 2, "n_head": 3}),
        ("MixtralConfig", {**SMALL, **MOE}),
        ("CohereConfig", {**SMALL, "logit_scale": 0.3}),
        ("GraniteConfig", {**SMALL, "logits_scaling": 3.0, "embedding_multiplier": 2.0}),
        ("JambaConfig", {**SMALL, **JAMBA}),
    ],
)
def test_learned_positions_biased_attention_experts_scales_and_states(
    kind: str, settings: dict[str, Any]
) -> None:
    module = make(kind, **settings)
    with torch.no_grad():
        wanted = torch.stack([module(torch.tensor([row])).logits[0, -1] for row in ROWS])
        longer = [module(torch.tensor([[*row, 3, 4]])).logits[0, -1] for row in ROWS]
    lm = CausalLm(module)
    role = lm.add_role(4, torch.Generator())
    positions = [[len(row) - 1] for row in ROWS]
    for share in {False, lm.shares_prefixes}:
        (batch,) = micro_batches(ROWS, positions, limit=999, share=share)
        found = lm.logits(lm.hidden_states(role, batch))
        order = torch.tensor(batch.numbers).argsort()
        torch.testing.assert_close(found[order], wanted, rtol=0, atol=3e-5)
        found.square().sum().backward()
        reached = [p.grad for p in role.parameters.values() if p.grad is not None]
        assert len(reached) > len(role.parameters) / 2, "not every expert, but most layers"
        assert all(bool(gradient.isfinite().all()) for gradient in reached)
    with torch.no_grad():
        decoder = CacheDecoder(lm, role, ROWS, 2)
        torch.testing.assert_close(decoder.logits()[::2], wanted, rtol=0, atol=3e-5)
        decoder.feed(torch.full((6,), 3))
        decoder.keep(torch.tensor([1, 2, 5]))
        decoder.feed(torch.full((3,), 4))
        torch.testing.assert_close(decoder.logits(), torch.stack(longer), rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "RecurrentGemmaConfig",
            {**SMALL, "num_hidden_layers": 3, "attention_window_size": 8, "lru_width": 24},
            "'recurrent_gemma' does not continue rows as it reads them at once",
        ),
        ("RwkvConfig", {"hidden_size": 24, "num_hidden_layers": 2}, "'rwkv' does not continue"),
        (
            "MiniMaxConfig",
            {**SMALL, "layer_types": ["linear_attention", "full_attention"]},
            "'minimax' does not work with the cache of transformers",
        ),
    ],
)
def test_what_would_be_continued_wrongly_is_refused(
    kind: str, settings: dict[str, Any], message: str
) -> None:
    module = make(kind, **settings)
    with pytest.raises(ConfigError, match=message) as caught:
        CausalLm(module)
    assert "\n" not in str(caught.value)


def test_what_peft_cannot_adapt_is_refused() -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    lm = CausalLm(make("FalconH1Config", **{**SMALL, **heads, **FALCON}))
    with pytest.raises(
        ConfigError, match="'falcon_h1' does not work with adapters of peft"
    ) as caught:
        lm.add_role(4, torch.Generator())
    assert "\n" not in str(caught.value)
