"""The decoding loop that engines share: one token a call, with private randomness.

All uniforms are drawn before the first token, so dropping finished rows changes no result.

Shape letters: N completions, L tokens of the longest one, A rows that are still running, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tsgb.models.engine import Tick, Writing, no_tick
from tsgb.models.tokenizer import Tokenizer
from tsgb.models.torch_typing import flags, from_numpy, int_rows, ints

DROP_BELOW = 0.8
"""Finished rows are dropped when at most this share is running: dropping copies the others."""


class TokenDecoder(Protocol):
    """Rows of tokens that grow by one token a call, without gradients."""

    def logits(self) -> Tensor:
        """Return the logits [A, V] of each row's next token."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows; `feed` comes next."""
        ...

    def feed(self, token_A: Tensor) -> None:
        """Append one token to each row."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """Completions as tokens, grouped by chat, on the CPU."""

    ids_NL: Tensor
    """[N, L] token ids, padded after the end."""
    logp_NL: Tensor
    """[N, L] log-probability of each sampled token under the sampling policy."""
    sampled_NL: Tensor
    """[N, L] True on tokens that the policy chose: not on forced openings, not on padding."""
    lengths_N: Tensor
    """[N] tokens including the end token, if it came."""


@torch.no_grad()
def sample(
    decoder: TokenDecoder,
    num: int,
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad: int,
    uniforms_NL: Tensor | None,
    temperature: float = 1.0,
    openings: Sequence[Sequence[int]] | None = None,
    tick: Tick = no_tick,
) -> Completions:
    """Sample one completion for each row of a decoder.

    Args:
        decoder: has read the prompts; its logits may be on any device.
        num: number of rows N.
        max_new_tokens: limit of each completion.
        stop_ids: tokens of which each ends a completion.
        pad: fills up.
        uniforms_NL: [N, max_new_tokens] numbers in [0, 1) that decide; greedy when None.
        temperature: divides the logits, here and in every recomputed log-probability.
        openings: N forced starts (may be empty lists), one a completion.
        tick: called after each token.
    """
    logits_AV = decoder.logits()
    device = logits_AV.device
    forced_NL = _forced(openings, num, max_new_tokens, device)
    columns = None if uniforms_NL is None else uniforms_NL.t().contiguous().to(device)
    # Row of the result behind each row of the decoder.
    alive = torch.arange(num, device=device)
    running = torch.ones(num, dtype=torch.bool, device=device)
    stops = torch.tensor(stop_ids, device=device)
    slots: list[Tensor] = []
    tokens: list[Tensor] = []
    logps: list[Tensor] = []
    written: list[Tensor] = []
    for t in range(max_new_tokens):
        logits_AV = logits_AV.float()
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
        running = running & ~torch.isin(token, stops)
        left = int(running.sum())
        if left == 0 or t + 1 == max_new_tokens:
            break
        if left <= DROP_BELOW * len(alive):
            keep = running.nonzero().squeeze(-1)
            alive, token = alive.index_select(0, keep), token.index_select(0, keep)
            running = running.index_select(0, keep)
            decoder.keep(keep)
        decoder.feed(token)
        logits_AV = decoder.logits()
        tick()
    L, wrote = len(slots), torch.cat(written).cpu()
    slot = torch.cat(slots).cpu()[wrote]
    empty = torch.full((num * max_new_tokens,), pad, device="cpu")
    ids = empty.index_copy_(0, slot, torch.cat(tokens).cpu()[wrote])
    logp = torch.zeros(num * max_new_tokens, device="cpu")
    logp = logp.index_copy_(0, slot, torch.cat(logps).cpu()[wrote])
    lengths = torch.bincount(slot // max_new_tokens, minlength=num)
    sampled = torch.arange(L, device="cpu") < lengths[:, None]
    if forced_NL is not None:
        sampled[:, : forced_NL.shape[1]] &= forced_NL[:, :L].cpu() < 0
    return Completions(
        ids_NL=ids.view(num, -1)[:, :L].contiguous(),
        logp_NL=logp.view(num, -1)[:, :L].contiguous(),
        sampled_NL=sampled,
        lengths_N=lengths,
    )


def draw_uniforms(
    generator: torch.Generator | None, num: int, max_new_tokens: int
) -> Tensor | None:
    """Return [num, max_new_tokens] numbers that decide all tokens; None without a generator."""
    return torch.rand(num, max_new_tokens, generator=generator, device="cpu") if generator else None


def join(parts: Sequence[Completions], pad: int) -> Completions:
    """Return the completions of several batches as one."""
    if len(parts) == 1:
        return parts[0]
    L = max(part.ids_NL.shape[1] for part in parts)

    def wide(x_NL: Tensor, value: int = 0) -> Tensor:
        return nn.functional.pad(x_NL, (0, L - x_NL.shape[1]), value=value)

    return Completions(
        ids_NL=torch.cat([wide(part.ids_NL, pad) for part in parts]),
        logp_NL=torch.cat([wide(part.logp_NL) for part in parts]),
        sampled_NL=torch.cat([wide(part.sampled_NL) for part in parts]),
        lengths_N=torch.cat([part.lengths_N for part in parts]),
    )


def writing_of(
    done: Completions, prompts: Sequence[list[int]], group: int, tokenizer: Tokenizer
) -> Writing:
    """Return completions of chats, `group` of each, with their texts."""
    last_N = done.ids_NL.gather(1, done.lengths_N[:, None] - 1).squeeze(1)
    finished_N = torch.isin(last_N, torch.tensor(tokenizer.stop_ids, device=last_N.device))
    ends = zip(int_rows(done.ids_NL), ints(done.lengths_N), flags(finished_N), strict=True)
    return Writing(
        prompts=[prompt for prompt in prompts for _ in range(group)],
        texts=[tokenizer.decode(row[: length - ended]) for row, length, ended in ends],
        ids_NL=done.ids_NL,
        logp_NL=done.logp_NL,
        sampled_NL=done.sampled_NL,
        lengths_N=done.lengths_N,
        finished_N=finished_N,
    )


def _forced(
    openings: Sequence[Sequence[int]] | None, num: int, max_new_tokens: int, device: torch.device
) -> Tensor | None:
    """Return forced tokens [N, F], -1 where the policy chooses."""
    longest = min(max_new_tokens, max(map(len, openings), default=0)) if openings else 0
    if not openings or not longest:
        return None
    forced = np.full((num, longest), -1)
    for row, opening in enumerate(openings):
        forced[row, : len(opening)] = opening[:longest]
    return from_numpy(forced).to(device)
