"""Outputs of linear layers that are kept while a role writes, for the update that learns from it.

The tokens that a policy has just written went through all of its layers when they were sampled. The
update needs the same forward pass again, and nine tenths of that are products with matrices, whose
outputs a tape has. What lies between the layers is computed again from them, with gradients.

Shape letters: B prompts; L tokens of the longest completion; A completions that run; R packed rows,
N tokens of all of them, M tokens that are looked at; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from tsgb.models.fast.adapters import MergedLora, side_by_side
from tsgb.models.fast.network import Weights
from tsgb.models.fast.packing import Ints, Rows
from tsgb.models.torch_typing import from_numpy

HEAD_LAYER = "lm_head"
"""Name of the linear layer that gives logits."""


class Recorder(Weights):
    """Weights that keep what their linear layers give."""

    def __init__(self, weights: MergedLora) -> None:
        self.weights = weights
        self.outputs: dict[str, list[Tensor]] = {}

    def tensor(self, name: str) -> Tensor:
        """See `network.Weights`."""
        return self.weights.tensor(name)

    def linear(self, x: Tensor, *names: str) -> Tensor:
        """See `network.Weights`."""
        parts = [self.weights.linear(x, name) for name in names]
        # A single output is handed out as it is, and whoever gets it may add to it in place.
        kept = [part.clone() for part in parts] if len(parts) == 1 else parts
        for name, part in zip(names, kept, strict=True):
            self.outputs.setdefault(name, []).append(part)
        return side_by_side(parts)

    def recomputed(self, layer: int, num_tokens: int, row_tokens: int) -> Sequence[Tensor] | None:
        """See `network.Weights`."""
        return self.weights.recomputed(layer, num_tokens, row_tokens)

    def keeps_logits(self, num: int) -> bool:
        """See `network.Weights`."""
        return self.weights.keeps_logits(num)


class Tape:
    """What was kept while completions were written by one policy; it serves one update."""

    def __init__(self, weights: MergedLora, prompts: Rows, group: int) -> None:
        """Begin before the prompts are read.

        Args:
            weights: the policy.
            prompts: the B prompts.
            group: completions a prompt.
        """
        self.weights = weights
        self.recorder = Recorder(weights)
        self._prompts = prompts
        self._group = group
        self._fed_LA: list[Ints] = []
        self._numbers_N: Ints = np.arange(len(prompts.counts_R) * group)

    def feed(self, rows_A: Ints) -> None:
        """Note the completions of which a token is read next."""
        self._fed_LA.append(rows_A)

    def select(self, rows: Ints) -> Tape:
        """Return the tape of the completions with these numbers."""
        part = copy(self)
        part._numbers_N = self._numbers_N[rows]
        return part

    def is_of(self, weights: Weights) -> bool:
        """Tell whether these weights wrote it, and it was not used since."""
        return weights is self.weights and HEAD_LAYER in self.recorder.outputs

    def logits(self, lengths_N: Ints) -> list[Tensor]:
        """Return the logits of the first token of all completions, then of the second, ..."""
        found: list[Tensor] = []
        for step, logits_AV in enumerate(self.recorder.outputs.pop(HEAD_LAYER)):
            rows_A = self._numbers_N[lengths_N > step]
            if step:
                rows_A = np.searchsorted(self._fed_LA[step - 1], rows_A)
            whole = np.array_equal(rows_A, np.arange(len(logits_AV)))
            found.append(logits_AV if whole else logits_AV.index_select(0, from_numpy(rows_A)))
        return found

    def replay(self, rows: Rows, owner_R: Ints, select_M: Ints) -> Replay:
        """Return weights that give for packed rows what this tape holds.

        Args:
            rows: chats with their completions, or beginnings of them.
            owner_R: the number of the completion that a row is, or begins.
            select_M: numbers of the tokens that are asked for.
        """
        prompts = self._prompts
        fed_NL = np.zeros((len(prompts.counts_R) * self._group, len(self._fed_LA) + 1), np.int64)
        start = 0
        for step, rows_A in enumerate(self._fed_LA):
            fed_NL[rows_A, step] = start + np.arange(len(rows_A))
            start += len(rows_A)
        completion_N = self._numbers_N[owner_R[rows.shown_N]]
        chat_N = completion_N // self._group
        step_N = rows.columns_N - prompts.counts_R[chat_N]
        is_read_N = step_N < 0
        read_N = prompts.tokens(chat_N, np.where(is_read_N, rows.columns_N, 0))
        fed_N = fed_NL[completion_N, np.maximum(step_N, 0)]
        last = np.unique(prompts.last())
        every_N = np.where(is_read_N, read_N, len(prompts.ids_N) + fed_N)
        picked_N = np.where(is_read_N, np.searchsorted(last, read_N), len(last) + fed_N)
        return Replay(self, every_N, picked_N[np.unique(select_M)])


class Replay(Weights):
    """The policy of a tape, whose linear layers do not multiply but give what the tape holds.

    All else is kept for the backward pass: there is a tape only if there is memory for that.
    """

    def __init__(self, tape: Tape, every_N: Ints, picked_M: Ints) -> None:
        """Use a tape up.

        Args:
            tape: the tape.
            every_N: where on it the outputs of each token are.
            picked_M: where those of the last layer are, which looks at few tokens.
        """
        self._weights = tape.weights
        self._outputs = tape.recorder.outputs
        self._every_N, self._picked_M = from_numpy(every_N), from_numpy(picked_M)

    def tensor(self, name: str) -> Tensor:
        """See `network.Weights`."""
        return self._weights.tensor(name)

    def linear(self, x: Tensor, *names: str) -> Tensor:
        """See `network.Weights`."""
        return side_by_side([self._replayed(x, name) for name in names])

    def _replayed(self, x: Tensor, name: str) -> Tensor:
        """Return what a layer gave when the tokens were read, with the gradient of that layer."""
        order = self._every_N if len(x) == len(self._every_N) else self._picked_M
        given = torch.cat(self._outputs.pop(name)).index_select(0, order)
        return self._weights.adapter.pair(name).apply(x, lambda _: given)
