"""Rows that grow by one token a call, over the key-value cache of the module itself.

Shape letters: A rows alive, T slots of tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tsgb.models.general.batches import Row
from tsgb.models.general.causal_lm import CausalLm, LoraRole


class CacheDecoder:
    """Implements `TokenDecoder` for prompts, each several times, and what was appended to them."""

    def __init__(self, lm: CausalLm, role: LoraRole, prompts: Sequence[Row], group: int) -> None:
        """Read the prompts once and repeat each one `group` times."""
        self._lm, self._role = lm, role
        parents_A = torch.arange(len(prompts), device=lm.device).repeat_interleave(group)
        self._rows = lm.read(role, prompts).spread(parents_A)

    def logits(self) -> Tensor:
        """See `TokenDecoder`."""
        return self._lm.logits(self._rows.states_BE)

    def keep(self, rows: Tensor) -> None:
        """See `TokenDecoder`."""
        self._rows = self._rows.spread(rows)

    def feed(self, token_A: Tensor) -> None:
        """See `TokenDecoder`."""
        self._rows = self._lm.go_on(self._role, self._rows, token_A)
