"""One frozen base, one adapter a role: scoring verdicts, writing attacks, log-probabilities.

One code path for the tiny models and the real ones. It knows tokens and templates, but not why
something is scored, rewarded or trained.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tsgb.models.fast.adapters import Adapter, BaseWeights, FullAdapter, LoraAdapter
from tsgb.models.fast.generation import Completions, generate
from tsgb.models.fast.network import (
    HEAD,
    LARGE_VOCABULARY,
    Shape,
    Weights,
    hidden_states,
    logits,
    token_logps,
)
from tsgb.models.fast.packing import Ints, Rows
from tsgb.models.tokenizer import Tokenizer
from tsgb.models.torch_typing import from_numpy, int_rows, ints
from tsgb.types import GuardTemplate, Messages, TrainingText

SCORE_BATCH = 512
"""Prompts scored at once without gradients; bounds memory, not results."""
LARGE_SCORE_BATCH = 32
LARGE_WRITE_BATCH = 8
"""Scored and written at once by a large base; a token of context costs 46 kB at 135M parameters."""


class LanguageModel:
    """A causal LM with roles."""

    def __init__(self, module: nn.Module, tokenizer: Tokenizer, *, name: str, sha256: str) -> None:
        """Wrap the weights of a causal LM of the Llama family.

        Args:
            module: its parameters under the names of transformers, and `config`; stays frozen.
            tokenizer: its tokenizer.
            name: for records.
            sha256: of the weights; a checkpoint of adapters names the base it belongs to.
        """
        self.module: Any = module.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.name = name
        self.sha256 = sha256
        self.shape = Shape.of(self.module.config)
        self.base = BaseWeights.of(module)
        self.vocabulary = self.base.tensor(HEAD).shape[0]

    def add_role(self, *, kind: str, rank: int, generator: torch.Generator) -> Adapter:
        """Put a fresh adapter on the base.

        Args:
            kind: `full` or `lora`.
            rank: LoRA r.
            generator: initialises LoRA's A.
        """
        if kind == "full":
            return FullAdapter(self.base)
        adapter = LoraAdapter(self.base, rank=rank)
        adapter.reset(generator)
        return adapter

    def tidy(self) -> None:
        """After an update or a batch: on a large base, give freed memory back."""
        if not self.base.small:
            trim()

    # -- guard -----------------------------------------------------------------------------

    def scores(self, weights: Weights, template: GuardTemplate, prompts: Sequence[str]) -> Tensor:
        """Verdict scores z = logit(unsafe) - logit(safe), [B]; differentiable.

        The score is read at one position and from two rows of the head.
        """
        before, after = self.tokenizer.guard_parts(template)
        verdict = torch.tensor(
            [self.tokenizer.single(template.unsafe), self.tokenizer.single(template.safe)]
        )
        rows = Rows([[*before, *ids, *after] for ids in self.tokenizer.encode_user(prompts)])
        hidden = hidden_states(weights, self.shape, rows, rows.last())
        unsafe, safe = logits(weights, hidden, verdict).float().unbind(-1)
        return unsafe - safe

    @torch.no_grad()
    def score_all(
        self,
        weights: Weights,
        template: GuardTemplate,
        prompts: Sequence[str],
        batch: int | None = None,
    ) -> Tensor:
        """`scores` without gradients over any number of prompts, [N]."""
        if not prompts:
            return torch.zeros(0)
        frozen = weights.frozen()
        batch = batch or (SCORE_BATCH if self.base.small else LARGE_SCORE_BATCH)
        parts = [
            self.scores(frozen, template, prompts[i : i + batch])
            for i in range(0, len(prompts), batch)
        ]
        self.tidy()
        return torch.cat(parts)

    # -- attacker --------------------------------------------------------------------------

    def write(
        self,
        weights: Weights,
        chats: Sequence[Messages],
        *,
        group: int,
        max_new_tokens: int,
        generator: torch.Generator | None,
        temperature: float = 1.0,
        openings: Sequence[str] | None = None,
    ) -> tuple[list[list[int]], Completions, list[str]]:
        """Sample `group` completions a chat.

        Returns:
            Token ids of each chat, the completions, and their texts (len(chats) x group).
        """
        prompts = [self.tokenizer.encode_chat(chat) for chat in chats]
        forced = None if openings is None else [self.tokenizer.encode(text) for text in openings]
        frozen, eos, pad = weights.frozen(), self.tokenizer.eos_id, self.tokenizer.pad_id
        num = len(chats) if self.base.small else max(1, LARGE_WRITE_BATCH // group)
        completions = _join(
            [
                generate(
                    frozen,
                    self.shape,
                    prompts[start : start + num],
                    group=group,
                    max_new_tokens=max_new_tokens,
                    eos=eos,
                    pad=pad,
                    generator=generator,
                    temperature=temperature,
                    openings=forced and forced[start * group : (start + num) * group],
                )
                for start in range(0, len(chats), num)
            ],
            pad,
        )
        texts = [
            self.tokenizer.decode(row[: length - (row[length - 1] == eos)])
            for row, length in zip(
                int_rows(completions.ids_NL), ints(completions.lengths_N), strict=True
            )
        ]
        self.tidy()
        return prompts, completions, texts

    def completion_logits(
        self, weights: Weights, prompts: Sequence[Sequence[int]], completions: Completions
    ) -> Tensor:
        """Logits [N, L, V] that predict each completion token; differentiable; 0 on padding.

        Args:
            weights: base, or base with adapter.
            prompts: N token rows, one a completion.
            completions: what was sampled.
        """
        N, L = completions.ids_NL.shape
        hidden_ME, slots_M = self._predicting(weights, prompts, completions)
        logits_MV = logits(weights, hidden_ME)
        out = logits_MV.new_zeros(N * L, logits_MV.shape[1])
        return out.index_copy(0, slots_M, logits_MV).view(N, L, -1)

    def completion_logps(
        self,
        weights: Weights,
        prompts: Sequence[Sequence[int]],
        completions: Completions,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each completion token and entropy there, [N, L]; else as above.

        For vocabularies that are too large for `completion_logits`.
        """
        N, L = completions.ids_NL.shape
        hidden_ME, slots_M = self._predicting(weights, prompts, completions)
        ids_M = completions.ids_NL.reshape(-1).index_select(0, slots_M)
        logp_M, entropy_M = token_logps(weights, hidden_ME, ids_M, temperature)
        empty = logp_M.new_zeros(N * L)
        return (
            empty.index_copy(0, slots_M, logp_M).view(N, L),
            empty.index_copy(0, slots_M, entropy_M).view(N, L),
        )

    def _predicting(
        self, weights: Weights, prompts: Sequence[Sequence[int]], completions: Completions
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [M, E] that predict completion tokens, and the flat slots of these."""
        L = completions.ids_NL.shape[1]
        lengths = ints(completions.lengths_N)
        written = int_rows(completions.ids_NL)
        rows = Rows(
            [
                [*prompt, *ids[: length - 1]]
                for prompt, ids, length in zip(prompts, written, lengths, strict=True)
            ]
        )
        # The token before each completion token predicts it.
        slots_M = np.flatnonzero(np.arange(L) < np.array(lengths)[:, None])
        row_M, at_M = slots_M // L, slots_M % L
        first_N = np.fromiter(map(len, prompts), np.int64, len(prompts)) - 1
        select_M = rows.tokens(row_M, first_N[row_M] + at_M)
        hidden_ME = hidden_states(weights, self.shape, rows, select_M)
        return hidden_ME, from_numpy(slots_M)

    # -- texts -----------------------------------------------------------------------------

    def text_loss(self, weights: Weights, texts: Sequence[TrainingText]) -> Tensor:
        """Mean cross-entropy over completions and read-outs of a corpus batch."""
        return labelled_loss(weights, self.shape, label_texts(self.tokenizer, texts))


def _join(parts: Sequence[Completions], pad: int) -> Completions:
    """Completions of several batches as one."""
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


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Corpus texts as tokens, and what the model must predict at some of them."""

    rows: Rows
    select_M: Ints
    """Numbers of the tokens that predict something."""
    labels_M: Tensor
    """What they predict."""


def label_texts(tokenizer: Tokenizer, texts: Sequence[TrainingText]) -> LabelledRows:
    """Turn corpus texts into ids and labels."""
    rows: list[list[int]] = []
    row_M: list[int] = []
    column_M: list[int] = []
    labels: list[int] = []
    for number, text in enumerate(texts):
        ids = tokenizer.encode(text.text)
        first, before = len(ids) - len(text.readout), len(labels)
        for offset, word in enumerate(text.readout):
            if word and not (text.completion and offset == len(text.readout) - 1):
                column_M.append(first + offset)
                labels.append(tokenizer.single(word))
        if text.completion:
            completion = tokenizer.encode(text.completion)
            column_M.extend(range(len(ids) - 1, len(ids) - 1 + len(completion)))
            labels.extend(completion)
            ids = ids + completion
        row_M.extend([number] * (len(labels) - before))
        rows.append(ids)
    packed = Rows(rows)
    select_M = packed.tokens(np.array(row_M, np.int64), np.array(column_M, np.int64))
    return LabelledRows(packed, select_M, from_numpy(np.array(labels, np.int64)))


def labelled_loss(weights: Weights, shape: Shape, texts: LabelledRows) -> Tensor:
    """Mean cross-entropy of all labels."""
    hidden = hidden_states(weights, shape, texts.rows, texts.select_M)
    if weights.tensor(HEAD).shape[0] > LARGE_VOCABULARY:
        return -token_logps(weights, hidden, texts.labels_M)[0].mean()
    return nn.functional.cross_entropy(logits(weights, hidden).float(), texts.labels_M)


def trim() -> None:
    """Hand back what was freed; does nothing where the C library cannot.

    glibc keeps freed pieces of up to 32 MB, scattered: 0.3 GB after one update of a 135M model.
    """
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
