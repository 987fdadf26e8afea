"""Sampling completions from a role: one prefill a scenario, one pass a token, private randomness.

All uniforms are drawn before the first token, so dropping finished rows changes no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tsgb.models.kernels import rms_norm, rotary, rotate
from tsgb.models.network import Heads, Shape, Weights, feed_forward, hidden_states, logits
from tsgb.models.packing import Rows


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
    out = torch.full((N, max_new_tokens), pad)
    logp = torch.zeros(N, max_new_tokens)
    sampled = torch.zeros(N, max_new_tokens, dtype=torch.bool)
    lengths = torch.zeros(N, dtype=torch.long)
    alive = torch.arange(N)  # row of `out` behind each row of the decoder
    for t in range(max_new_tokens):
        logp_AV = torch.log_softmax(decoder.logits().float() / temperature, -1)
        if uniforms is None:
            token = logp_AV.argmax(-1)
        else:
            cumulative = logp_AV.exp().cumsum(-1)
            draw = uniforms[alive, t, None] * cumulative[:, -1:]
            token = torch.searchsorted(cumulative, draw).squeeze(-1)
            token = token.clamp(max=logp_AV.shape[-1] - 1)
        if forced_NL is not None and t < forced_NL.shape[1]:
            forced = forced_NL[alive, t]
            token = torch.where(forced >= 0, forced, token)
            sampled[alive, t] = forced < 0
        else:
            sampled[alive, t] = True
        out[alive, t] = token
        logp[alive, t] = logp_AV.gather(-1, token[:, None]).squeeze(-1)
        lengths[alive] += 1
        keep = (token != eos).nonzero().squeeze(-1)
        if len(keep) == 0 or t + 1 == max_new_tokens:
            break
        if len(keep) < len(alive):
            alive, token = alive[keep], token[keep]
            decoder.keep(keep)
        decoder.feed(token)
    L = int(lengths.max())
    return Completions(
        ids_NL=out[:, :L], logp_NL=logp[:, :L], sampled_NL=sampled[:, :L], lengths_N=lengths
    )


def _forced(openings: Sequence[Sequence[int]] | None, N: int, max_new_tokens: int) -> Tensor | None:
    """Forced tokens [N, F], -1 where the policy chooses."""
    longest = min(max_new_tokens, max(map(len, openings), default=0)) if openings else 0
    if not openings or not longest:
        return None
    forced = np.full((N, longest), -1)
    for row, opening in enumerate(openings):
        forced[row, : len(opening)] = opening[:longest]
    return torch.from_numpy(forced)


class Decoder:
    """Rows that grow by one token a call: their keys, values and last hidden states.

    Shape letters: A rows alive, S slots for keys, G query heads a key head.
    """

    def __init__(
        self,
        weights: Weights,
        shape: Shape,
        prompts: Sequence[Sequence[int]],
        group: int,
        max_new_tokens: int,
    ) -> None:
        """Read the prompts once and repeat each one `group` times."""
        self._weights, self._shape = weights, shape
        rows = Rows(prompts)
        cache: list[Heads] = []
        hidden = hidden_states(weights, shape, rows, rows.last(), cache)
        self._hidden_AE = hidden.repeat_interleave(group, 0)
        counts = torch.from_numpy(rows.grid.counts_B)
        self._position_A = counts.repeat_interleave(group)
        self._filled = rows.grid.T
        slots = rows.grid.T + max_new_tokens
        self._longest = slots
        self._cache = [
            tuple(
                F.pad(part.repeat_interleave(group, 1), (0, 0, 0, max_new_tokens)) for part in heads
            )
            for heads in cache
        ]
        # Prompts of unequal lengths leave empty slots between prompt and completion.
        empty_AS = torch.arange(slots) >= self._position_A[:, None]
        empty_AS[:, rows.grid.T :] = False
        self._bias_AS = None
        if bool(empty_AS.any()):
            self._bias_AS = torch.zeros(empty_AS.shape, dtype=hidden.dtype)
            self._bias_AS.masked_fill_(empty_AS, float("-inf"))

    def logits(self) -> Tensor:
        """Logits [A, V] of each row's next token."""
        return logits(self._weights, self._hidden_AE)

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self._position_A = self._position_A.index_select(0, rows)
        if self._bias_AS is not None:
            self._bias_AS = self._bias_AS.index_select(0, rows)
        self._cache = [tuple(part.index_select(1, rows) for part in pair) for pair in self._cache]

    def feed(self, token_A: Tensor) -> None:
        """Append one token to each row."""
        weights, shape = self._weights, self._shape
        H, KV, D = shape.heads, shape.kv_heads, shape.head_dim
        G, A = H // KV, len(token_A)
        x = F.embedding(token_A, weights.tensor("model.embed_tokens.weight"))
        cos, sin = rotary(shape.rope_theta, D, self._position_A, self._longest, x.dtype)
        here, end = self._filled, self._filled + 1
        bias = None if self._bias_AS is None else self._bias_AS[:, None, :end]
        for layer in range(shape.layers):
            name = f"model.layers.{layer}"
            h = rms_norm(x, weights.tensor(f"{name}.input_layernorm.weight"), shape.rms_eps)
            qkv = weights.linear(h, *(f"{name}.self_attn.{p}_proj" for p in "qkv"))
            qkv = rotate(qkv.view(A, H + 2 * KV, D), cos, sin, H + KV).transpose(0, 1)
            keys, values = self._cache[layer]
            keys[:, :, here] = qkv[H : H + KV]
            values[:, :, here] = qkv[H + KV :]
            q = qkv[:H].reshape(KV, G, A, D).transpose(1, 2).reshape(KV * A, G, D)
            k, v = keys.view(KV * A, -1, D)[:, :end], values.view(KV * A, -1, D)[:, :end]
            scores = torch.bmm(q, k.transpose(1, 2)).mul_(D**-0.5)
            if bias is not None:
                scores.view(KV, A, G, end).add_(bias)
            a = torch.bmm(torch.softmax(scores, -1), v)
            a = a.view(KV, A, G * D).transpose(0, 1).reshape(A, H * D)
            x = weights.linear(a, f"{name}.self_attn.o_proj").add_(x)
            x = feed_forward(weights, shape, x, name)
        self._hidden_AE = rms_norm(x, weights.tensor("model.norm.weight"), shape.rms_eps)
        self._position_A = self._position_A + 1
        self._filled = end
