"""Sampling completions from a role: one prefill a scenario, one pass a token, private randomness.

All uniforms are drawn before the first token, so dropping finished rows changes no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsgb.models.fast.decoding import Decoder
from tsgb.models.fast.network import Shape, Weights
from tsgb.models.torch_typing import from_numpy

DROP_BELOW = 0.8
"""Finished rows are dropped when at most this share is running: dropping copies the others."""


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
    N = len(prompts) * group
    decoder = Decoder(weights, shape, prompts, group, max_new_tokens)
    forced_NL = _forced(openings, N, max_new_tokens)
    uniforms = torch.rand(N, max_new_tokens, generator=generator) if generator else None
    columns = uniforms.t().contiguous() if uniforms is not None else None
    alive = torch.arange(N)  # row of the result behind each row of the decoder
    running = torch.ones(N, dtype=torch.bool)
    slots: list[Tensor] = []
    tokens: list[Tensor] = []
    logps: list[Tensor] = []
    written: list[Tensor] = []
    for t in range(max_new_tokens):
        logits_AV = decoder.logits().float()
        logp_AV = torch.log_softmax(logits_AV if temperature == 1 else logits_AV / temperature, -1)
        if columns is None:
            token = logp_AV.argmax(-1, keepdim=True)
        else:
            cumulative = logp_AV.exp().cumsum_(-1)
            draw = columns[t].index_select(0, alive)[:, None] * cumulative[:, -1:]
            token = torch.searchsorted(cumulative, draw).clamp_(max=logp_AV.shape[-1] - 1)
        if forced_NL is not None and t < forced_NL.shape[1]:
            forced = forced_NL[:, t].index_select(0, alive)[:, None]
            token = torch.where(forced >= 0, forced, token)
        slots.append(alive * max_new_tokens + t)
        logps.append(logp_AV.gather(-1, token).squeeze(-1))
        token = token.squeeze(-1)
        tokens.append(token)
        written.append(running)
        running = running & (token != eos)
        left = int(running.sum())
        if left == 0 or t + 1 == max_new_tokens:
            break
        if left <= DROP_BELOW * len(alive):
            keep = running.nonzero().squeeze(-1)
            alive, token = alive.index_select(0, keep), token.index_select(0, keep)
            running = running.index_select(0, keep)
            decoder.keep(keep)
        decoder.feed(token)
    L, wrote = len(slots), torch.cat(written)
    slot = torch.cat(slots)[wrote]
    ids = torch.full((N * max_new_tokens,), pad).index_copy_(0, slot, torch.cat(tokens)[wrote])
    logp = torch.zeros(N * max_new_tokens).index_copy_(0, slot, torch.cat(logps)[wrote])
    lengths = torch.bincount(slot // max_new_tokens, minlength=N)
    sampled = torch.arange(L) < lengths[:, None]
    if forced_NL is not None:
        sampled[:, : forced_NL.shape[1]] &= forced_NL[:, :L] < 0
    return Completions(
        ids_NL=ids.view(N, -1)[:, :L].contiguous(),
        logp_NL=logp.view(N, -1)[:, :L].contiguous(),
        sampled_NL=sampled,
        lengths_N=lengths,
    )


def _forced(openings: Sequence[Sequence[int]] | None, N: int, max_new_tokens: int) -> Tensor | None:
    """Forced tokens [N, F], -1 where the policy chooses."""
    longest = min(max_new_tokens, max(map(len, openings), default=0)) if openings else 0
    if not openings or not longest:
        return None
    forced = np.full((N, longest), -1)
    for row, opening in enumerate(openings):
        forced[row, : len(opening)] = opening[:longest]
    return from_numpy(forced)
