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
        read = lm.read(role, prompts)
        self._cache = read.cache
        parents_A = torch.arange(len(prompts), device=lm.device).repeat_interleave(group)
        if group > 1:
            self._cache.reorder_cache(parents_A)
        self._states_AE = read.states_BE[parents_A]
        self._at_A = read.lengths_B[parents_A]
        self._mask_AT = None if read.mask_BT is None else read.mask_BT[parents_A]

    def logits(self) -> Tensor:
        """See `TokenDecoder`."""
        return self._lm.logits(self._states_AE)

    def keep(self, rows: Tensor) -> None:
        """See `TokenDecoder`."""
        self._cache.reorder_cache(rows)
        self._at_A = self._at_A[rows]
        if self._mask_AT is not None:
            self._mask_AT = self._mask_AT[rows]

    def feed(self, token_A: Tensor) -> None:
        """See `TokenDecoder`."""
        if self._mask_AT is not None:
            self._mask_AT = torch.nn.functional.pad(self._mask_AT, (0, 1), value=1)
        self._states_AE = self._lm.go_on(
            self._role, token_A, self._cache, self._mask_AT, self._at_A
        )
        self._at_A = self._at_A + 1
