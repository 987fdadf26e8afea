"""One frozen base, one adapter a role: scoring verdicts, writing attacks, log-probabilities.

One code path for the tiny models and the real ones. It knows tokens and templates, but not why
something is scored, rewarded or trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tsgb.models.adapters import Adapter, BaseWeights, FullAdapter, LoraAdapter
from tsgb.models.generation import Completions, generate, pad_left, pad_right, prefill_mask
from tsgb.models.network import Shape, Weights, hidden_states, logits
from tsgb.models.tokenizer import Tokenizer
from tsgb.types import GuardTemplate, Messages, TrainingText

Role = Literal["attacker", "guard"]
SCORE_BATCH = 512
"""Prompts scored at once without gradients; bounds memory, not results."""


class LanguageModel:
    """A causal LM with roles."""

    def __init__(self, module: nn.Module, tokenizer: Tokenizer, *, name: str, sha256: str) -> None:
        """Wrap a transformers causal LM of the Llama family.

        Args:
            module: stays frozen.
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
        self.num_parameters = sum(p.numel() for p in module.parameters())
        self._peft: nn.Module = module

    def add_role(self, role: str, *, kind: str, rank: int, generator: torch.Generator) -> Adapter:
        """Put a fresh adapter on the base.

        Args:
            role: its name.
            kind: `full` or `lora`.
            rank: LoRA r.
            generator: initialises LoRA's A.
        """
        if kind == "full":
            return FullAdapter(self.base)
        adapter = LoraAdapter(self.base, self._peft, rank=rank, role=role)
        self._peft = adapter.module
        adapter.reset(generator)
        return adapter

    # -- guard -----------------------------------------------------------------------------

    def scores(self, weights: Weights, template: GuardTemplate, prompts: Sequence[str]) -> Tensor:
        """Verdict scores z = logit(unsafe) - logit(safe), [B]; differentiable.

        The score is read at one position and from two rows of the head.
        """
        before, after = self.tokenizer.guard_parts(template)
        verdict = torch.tensor(
            [self.tokenizer.single(template.unsafe), self.tokenizer.single(template.safe)]
        )
        rows = [[*before, *ids, *after] for ids in self.tokenizer.encode_user(prompts)]
        ids_BT, lengths_B = pad_right(rows, self.tokenizer.pad_id)
        hidden = hidden_states(weights, self.shape, ids_BT)
        at_verdict = hidden[torch.arange(len(rows)), lengths_B - 1]
        unsafe, safe = logits(weights, at_verdict, verdict).float().unbind(-1)
        return unsafe - safe

    @torch.no_grad()
    def score_all(
        self,
        weights: Weights,
        template: GuardTemplate,
        prompts: Sequence[str],
        batch: int = SCORE_BATCH,
    ) -> Tensor:
        """`scores` without gradients over any number of prompts, [N]."""
        if not prompts:
            return torch.zeros(0)
        parts = [
            self.scores(weights, template, prompts[i : i + batch])
            for i in range(0, len(prompts), batch)
        ]
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
        completions = generate(
            weights,
            self.shape,
            prompts,
            group=group,
            max_new_tokens=max_new_tokens,
            eos=self.tokenizer.eos_id,
            pad=self.tokenizer.pad_id,
            generator=generator,
            temperature=temperature,
            openings=forced,
        )
        eos = self.tokenizer.eos_id
        texts = [
            self.tokenizer.decode([i for i in row[:length] if i != eos])
            for row, length in zip(
                completions.ids_NL.tolist(), completions.lengths_N.tolist(), strict=True
            )
        ]
        return prompts, completions, texts

    def completion_logits(
        self, weights: Weights, prompts: Sequence[Sequence[int]], completions: Completions
    ) -> Tensor:
        """Logits [N, L, V] that predict each completion token; differentiable.

        Args:
            weights: base, or base with adapter.
            prompts: N token rows, one a completion.
            completions: what was sampled.
        """
        ids_BT, mask_BT = pad_left(prompts, self.tokenizer.pad_id)
        L = completions.ids_NL.shape[1]
        ids = torch.cat((ids_BT, completions.ids_NL[:, : L - 1]), 1)
        if bool(mask_BT.all()):
            hidden = hidden_states(weights, self.shape, ids)
        else:
            tail = torch.ones(len(ids), L - 1, dtype=torch.bool)
            mask = torch.cat((mask_BT, tail), 1)
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)
            hidden = hidden_states(
                weights, self.shape, ids, positions_BT=positions, mask_BTS=prefill_mask(mask)
            )
        return logits(weights, hidden[:, -L:])

    # -- texts -----------------------------------------------------------------------------

    def text_loss(self, weights: Weights, texts: Sequence[TrainingText]) -> Tensor:
        """Mean cross-entropy over completions and read-outs of a corpus batch."""
        ids_BT, labels_BT = label_texts(self.tokenizer, texts)
        hidden = hidden_states(weights, self.shape, ids_BT)
        wanted = labels_BT >= 0
        return nn.functional.cross_entropy(
            logits(weights, hidden[wanted]).float(), labels_BT[wanted]
        )


def label_texts(tokenizer: Tokenizer, texts: Sequence[TrainingText]) -> tuple[Tensor, Tensor]:
    """Turn corpus texts into ids and labels.

    Returns:
        ids [B, T] and labels [B, T]: the token that position t must predict, -1 where none.
    """
    rows: list[list[int]] = []
    labels: list[list[int]] = []
    for text in texts:
        ids = tokenizer.encode(text.text)
        label = [-1] * len(ids)
        for offset, word in enumerate(text.readout):
            if word:
                label[len(ids) - len(text.readout) + offset] = tokenizer.single(word)
        if text.completion:
            completion = tokenizer.encode(text.completion)
            label[-1:] = completion
            label.append(-1)
            ids = ids + completion
        rows.append(ids)
        labels.append(label)
    ids_BT, _ = pad_right(rows, tokenizer.pad_id)
    labels_BT, _ = pad_right(labels, -1)
    return ids_BT, labels_BT
