"""Sampling completions from a role: one prefill a scenario, one pass a token, private randomness.

All uniforms are drawn before the first token, so dropping finished rows changes no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsgb.models.network import Cache, Shape, Weights, hidden_states, logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """What was sampled.

    N = scenarios x K rows, grouped by scenario; L = longest completion.
    """

    ids_NL: Tensor
    """[N, L] token ids, padded after the end."""
    logp_NL: Tensor
    """[N, L] log-probability of each sampled token under the sampling policy."""
    sampled_NL: Tensor
    """[N, L] True on tokens that the policy chose: not on forced openings, not on padding."""
    lengths_N: Tensor
    """[N] tokens including the end token, if it came."""


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Right-align token rows.

    Returns:
        ids [B, T] and a bool mask [B, T], True on real tokens.
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Left-align token rows; returns ids [B, T] and lengths [B]."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows])
    return ids, torch.tensor([len(row) for row in rows])


def prefill_mask(mask_BT: Tensor) -> Tensor:
    """Causal [B, T, T] mask over left-padded rows; a pad looks at itself so that no row is empty."""
    T = mask_BT.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    return (causal & mask_BT[:, None, :]) | torch.eye(T, dtype=torch.bool)


@torch.no_grad()
def generate(
    weights: Weights,
    shape: Shape,
    prompts: Sequence[Sequence[int]],
    *,
    group: int,
    max_new_tokens: int,
    eos: int,
    pad: int,
    generator: torch.Generator | None,
    temperature: float = 1.0,
    openings: Sequence[Sequence[int]] | None = None,
) -> Completions:
    """Sample `group` completions for each prompt; greedy when `generator` is None.

    Args:
        weights: base, or base with adapter.
        shape: see `network.Shape`.
        prompts: token ids, one row a scenario, any lengths.
        group: K.
        max_new_tokens: hard limit.
        eos: ends a completion.
        pad: fills up.
        generator: private source of the uniforms.
        temperature: divides the logits, here and in every recomputed log-probability.
        openings: N forced starts (may be empty lists), one a completion.
    """
    ids_BT, mask_BT = pad_left(prompts, pad)
    positions = (mask_BT.long().cumsum(1) - 1).clamp(min=0)
    cache = Cache(shape.layers)
    ragged = not bool(mask_BT.all())
    hidden = hidden_states(
        weights,
        shape,
        ids_BT,
        positions_BT=positions,
        mask_BTS=prefill_mask(mask_BT) if ragged else None,
        cache=cache,
    )
    N = len(prompts) * group
    rows = torch.arange(len(prompts)).repeat_interleave(group)
    cache.select(rows)
    seen_NT = mask_BT[rows]
    next_position = positions[rows, -1] + 1
    last = hidden[rows, -1]
    forced = openings or [()] * N
    uniforms = torch.rand(N, max_new_tokens, generator=generator) if generator else None
    out = torch.full((N, max_new_tokens), pad)
    logp = torch.zeros(N, max_new_tokens)
    sampled = torch.zeros(N, max_new_tokens, dtype=torch.bool)
    lengths = torch.zeros(N, dtype=torch.long)
    alive = torch.arange(N)  # row of `out` behind each row of the cache
    longest_forced = max(len(f) for f in forced)
    for t in range(max_new_tokens):
        logp_AV = torch.log_softmax(logits(weights, last).float() / temperature, -1)
        if uniforms is None:
            token = logp_AV.argmax(-1)
        else:
            cumulative = logp_AV.exp().cumsum(-1)
            draw = uniforms[alive, t, None] * cumulative[:, -1:]
            token = torch.searchsorted(cumulative, draw).squeeze(-1)
            token = token.clamp(max=logp_AV.shape[-1] - 1)
        chosen = torch.ones(len(alive), dtype=torch.bool)
        if t < longest_forced:
            for index, row in enumerate(alive.tolist()):
                if t < len(forced[row]):
                    token[index] = forced[row][t]
                    chosen[index] = False
        out[alive, t] = token
        logp[alive, t] = logp_AV.gather(-1, token[:, None]).squeeze(-1)
        sampled[alive, t] = chosen
        lengths[alive] += 1
        keep = (token != eos).nonzero().squeeze(-1)
        if len(keep) == 0 or t + 1 == max_new_tokens:
            break
        if len(keep) < len(alive):
            alive, token, next_position = alive[keep], token[keep], next_position[keep]
            seen_NT = seen_NT[keep]
            cache.select(keep)
        mask = None
        if ragged:
            seen_NT = torch.cat((seen_NT, torch.ones(len(alive), 1, dtype=torch.bool)), 1)
            mask = seen_NT[:, None, :]
        last = hidden_states(
            weights,
            shape,
            token[:, None],
            positions_BT=next_position[:, None],
            mask_BTS=mask,
            cache=cache,
        )[:, 0]
        next_position = next_position + 1
    L = int(lengths.max())
    return Completions(
        ids_NL=out[:, :L], logp_NL=logp[:, :L], sampled_NL=sampled[:, :L], lengths_N=lengths
    )
