"""Sampling completions from a role: one prefill a scenario, one pass a token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tsgb.models.engine import Tick, no_tick
from tsgb.models.fast.decoding import Decoder
from tsgb.models.fast.network import Shape, Weights
from tsgb.models.fast.packing import Rows
from tsgb.models.fast.tape import Tape
from tsgb.models.sampling import Completions, draw_uniforms, sample


@torch.no_grad()
def generate(
    weights: Weights,
    shape: Shape,
    prompts: Rows,
    *,
    group: int,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad: int,
    generator: torch.Generator | None,
    temperature: float = 1.0,
    openings: Sequence[Sequence[int]] | None = None,
    tape: Tape | None = None,
    tick: Tick = no_tick,
) -> Completions:
    """Sample `group` completions for each prompt; greedy when `generator` is None.

    Args:
        weights: base, or base with adapter.
        shape: see `network.Shape`.
        prompts: token rows, one a scenario, any lengths.
        group: completions a prompt.
        max_new_tokens: hard limit.
        stop_ids: tokens of which each ends a completion.
        pad: fills up.
        generator: private source of the uniforms.
        temperature: divides the logits, here and in every recomputed log-probability.
        openings: N forced starts (may be empty lists), one a completion.
        tape: keeps what is computed.
        tick: called after each token.
    """
    num = len(prompts.counts_R) * group
    return sample(
        Decoder(weights, shape, prompts, group, max_new_tokens, tape),
        num,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        pad=pad,
        uniforms_NL=draw_uniforms(generator, num, max_new_tokens),
        temperature=temperature,
        openings=openings,
        tick=tick,
    )
