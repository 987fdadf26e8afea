"""The engine over packed kernels: Llama and Qwen2 on a CPU, tiny models and real ones alike.

Shape letters: B prompts; N completions, L tokens of the longest one, V vocabulary; M positions
that are looked at, E width of the model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tsgb.config import ModelConfig
from tsgb.models.engine import (
    LARGE_VOCABULARY,
    Role,
    Tick,
    TokenStatistics,
    Writing,
    full_kl,
    k3_kl,
    no_tick,
    window_of,
)
from tsgb.models.fast.adapters import Adapter, BaseWeights, FullAdapter, LoraAdapter, MergedLora
from tsgb.models.fast.budget import Budget
from tsgb.models.fast.generation import generate
from tsgb.models.fast.network import (
    ARCHITECTURES,
    EMBEDDING,
    HEAD,
    Shape,
    Weights,
    hidden_states,
    logits,
    token_logps,
)
from tsgb.models.fast.packing import Ints, Rows
from tsgb.models.fast.scoring import FrozenRole
from tsgb.models.fast.tape import Tape
from tsgb.models.files import WEIGHTS
from tsgb.models.labels import label_texts
from tsgb.models.sampling import join, writing_of
from tsgb.models.tokenizer import GuardRows, Tokenizer
from tsgb.models.torch_typing import dtype_name, from_numpy, int_rows, ints
from tsgb.models.weights import save_weights
from tsgb.types import GuardTemplate, Messages, TrainingText

T = TypeVar("T")
SCORE_BATCH = 512
"""Prompts that a small base scores at once without gradients; bounds memory, not results."""


class FastEngine:
    """Implements `Engine` for a Llama or Qwen2 on a CPU, in float32 or bfloat16."""

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Tokenizer,
        *,
        name: str,
        sha256: str,
        weights_sha256: str | None = None,
        memory: int | None = None,
    ) -> None:
        """Wrap the weights of a causal LM.

        Args:
            module: its parameters under the names of transformers, and `config`; stays frozen.
                Products are computed in their dtype, float32 or bfloat16.
            tokenizer: its tokenizer.
            name: name of the base in records.
            sha256: hex digest of the base.
            weights_sha256: hex digest of the file with the weights, where it differs.
            memory: bytes that the engine may take; left out for a base so small that there is no
                need to count.
        """
        self.module: Any = module.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.name = name
        self.sha256 = sha256
        self.weights_sha256 = sha256 if weights_sha256 is None else weights_sha256
        self.earlier_sha256 = ""
        self.dtype = dtype_name(module)
        self.num_parameters = sum(p.numel() for p in module.parameters())
        self.shape = Shape.of(self.module.config)
        self.budget = None if memory is None else Budget.of(module, memory)
        self.base = BaseWeights.of(module, self.budget)
        self.vocabulary = self.base.tensor(HEAD).shape[0]
        self.window = window_of(self.module.config)
        self.micro_batch_tokens = 0
        self.tick: Tick = no_tick
        self._frozen: FrozenRole | None = None

    # -- roles -----------------------------------------------------------------------------

    def add_role(self, config: ModelConfig, generator: torch.Generator) -> Adapter:
        """See `Engine`."""
        if config.adapter == "full":
            return FullAdapter(self.base)
        adapter = LoraAdapter(self.base, rank=config.rank)
        adapter.reset(generator)
        return adapter

    def parameters(self, role: Role) -> Mapping[str, nn.Parameter]:
        """See `Engine`."""
        return role.parameters if isinstance(role, Adapter) else {}

    def within_memory(self, run: Callable[[], T]) -> T:
        """See `Engine`; there is nothing to make smaller."""
        return run()

    def tidy(self) -> None:
        """See `Engine`; where memory is plenty, the next update takes what this one left."""
        if self.budget is not None and not self.budget.copies:
            _trim()

    def save_pretrained(self, directory: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """See `Engine`."""
        from transformers import AutoConfig  # takes seconds, and training does without it

        settings: dict[str, Any] = {"model_type": "llama", **vars(self.module.config)}
        settings.pop("transformers_version", None)
        kind = settings.pop("model_type")
        tensors = self.base.tensors if weights is None else weights
        dtype = tensors[EMBEDDING].dtype
        settings["architectures"] = [ARCHITECTURES[kind]]
        settings["dtype"] = str(dtype).removeprefix("torch.")
        configs: Any = AutoConfig  # transformers types its methods in part only
        configs.for_model(kind, **settings).save_pretrained(directory)
        tied = settings.get("tie_word_embeddings")
        kept = {name: t.to(dtype) for name, t in tensors.items() if not (tied and name == HEAD)}
        save_weights(kept, directory / WEIGHTS)
        self.tokenizer.transformers().save_pretrained(directory)

    # -- guard -----------------------------------------------------------------------------

    def scores(self, role: Role, template: GuardTemplate, prompts: Sequence[str]) -> Tensor:
        """See `Engine`; a score is read at one position and from two rows of the head."""
        return self._scores(_weights(role), template, prompts)

    def score_all(self, role: Role, template: GuardTemplate, prompts: Sequence[str]) -> Tensor:
        """See `Engine`."""
        if not prompts:
            return torch.zeros(0)
        return self.score_rows(role, self.tokenizer.guard_input(template, prompts))

    @torch.no_grad()
    def score_rows(self, role: Role, asked: GuardRows) -> Tensor:
        """See `Engine`; a small base reads all rows whole, which costs it less."""
        own = _weights(role)
        verdict = (asked.unsafe_id, asked.safe_id)
        if self.base.small:
            frozen = own.frozen()
            parts: list[Tensor] = []
            for start in range(0, len(asked.rows), SCORE_BATCH):
                parts.append(self._score(frozen, asked.rows[start : start + SCORE_BATCH], verdict))
                self.tick()
            return torch.cat(parts)
        if self._frozen is None or not self._frozen.is_of(own):
            self._frozen = None  # its memory goes first
            self._frozen = FrozenRole(own, self.shape)
        return self._frozen.score_rows(asked, self.tick)

    def _scores(self, weights: Weights, template: GuardTemplate, prompts: Sequence[str]) -> Tensor:
        words = self.tokenizer.verdict(template)
        rows = self.tokenizer.guard_rows(template, prompts)
        return self._score(weights, rows, (words.unsafe_id, words.safe_id))

    def _score(
        self, weights: Weights, rows: Sequence[Sequence[int]], verdict: tuple[int, int]
    ) -> Tensor:
        packed = Rows(rows)
        hidden = hidden_states(weights, self.shape, packed, packed.last())
        unsafe, safe = logits(weights, hidden, torch.tensor(verdict)).float().unbind(-1)
        return unsafe - safe

    # -- attacker --------------------------------------------------------------------------

    def write(
        self,
        role: Role,
        chats: Sequence[Messages],
        *,
        group: int,
        max_new_tokens: int,
        generator: torch.Generator | None,
        temperature: float = 1.0,
        openings: Sequence[str] | None = None,
        learns: bool = False,
    ) -> Writing:
        """See `Engine`."""
        prompts = [self.tokenizer.encode_chat(chat) for chat in chats]
        forced = self.tokenizer.encode_openings(chats, group, openings)
        weights, pad = _weights(role).merged().frozen(), self.tokenizer.pad_id
        num, longest = len(chats), max(map(len, prompts)) + max_new_tokens
        if self.budget is not None:
            num = max(1, self.budget.write_rows(longest) // group)
        batches = [Rows(prompts[start : start + num]) for start in range(0, len(chats), num)]
        tape = None
        if learns and len(batches) == 1 and isinstance(weights, MergedLora):
            tokens = len(batches[0].ids_N) + len(chats) * group * max_new_tokens
            if self.budget is not None and self.budget.keeps_tape(tokens, longest):
                tape = Tape(weights, batches[0], group)
        done = join(
            [
                generate(
                    weights,
                    self.shape,
                    rows,
                    group=group,
                    max_new_tokens=max_new_tokens,
                    stop_ids=self.tokenizer.stop_ids,
                    pad=pad,
                    generator=generator,
                    temperature=temperature,
                    openings=forced and forced[number * num * group : (number + 1) * num * group],
                    tape=tape,
                    tick=self.tick,
                )
                for number, rows in enumerate(batches)
            ],
            pad,
        )
        self.tidy()
        return replace(writing_of(done, prompts, group, self.tokenizer), tape=tape)

    def logps(self, role: Role, writing: Writing, temperature: float) -> TokenStatistics:
        """See `Engine`; the divergence is exact up to `LARGE_VOCABULARY` words."""
        weights = _weights(role).merged()
        if self.vocabulary > LARGE_VOCABULARY:
            with torch.no_grad():
                reference_NL, _ = self._token_logps(
                    self.base, writing, temperature, entropies=False
                )
            logp_NL, entropy_NL = self._token_logps(weights, writing, temperature)
            return TokenStatistics(logp_NL, entropy_NL, k3_kl(logp_NL, reference_NL))
        logp_NLV = self._distributions(weights, writing, temperature)
        with torch.no_grad():
            reference_NLV = self._distributions(self.base, writing, temperature)
        return TokenStatistics(
            logp_NLV.gather(-1, writing.ids_NL[..., None]).squeeze(-1),
            -(logp_NLV.exp() * logp_NLV).sum(-1),
            full_kl(logp_NLV, reference_NLV),
        )

    def _distributions(self, weights: Weights, writing: Writing, temperature: float) -> Tensor:
        """Log-probabilities [N, L, V] of all words at each token; uniform on padding."""
        N, L = writing.ids_NL.shape
        hidden_ME, slots_M = self._predicting(weights, writing)
        logits_MV = logits(weights, hidden_ME)
        out = logits_MV.new_zeros(N * L, logits_MV.shape[1])
        logits_NLV = out.index_copy(0, slots_M, logits_MV).view(N, L, -1)
        return nn.functional.log_softmax(logits_NLV.float() / temperature, -1)

    def _token_logps(
        self, weights: Weights, writing: Writing, temperature: float, *, entropies: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each token and entropy there, [N, L]; 0 on padding."""
        N, L = writing.ids_NL.shape
        tape = writing.tape
        if not (isinstance(tape, Tape) and tape.is_of(weights) and torch.is_grad_enabled()):
            tape = None
        hidden_ME, slots_M = self._predicting(weights, writing, tape)
        ids_M = writing.ids_NL.reshape(-1).index_select(0, slots_M)
        given = None if tape is None else tape.logits(writing.lengths_N.numpy())
        logp_M, entropy_M = token_logps(
            weights, hidden_ME, ids_M, temperature, given, entropies=entropies
        )
        empty = logp_M.new_zeros(N * L)
        return (
            empty.index_copy(0, slots_M, logp_M).view(N, L),
            empty.index_copy(0, slots_M, entropy_M).view(N, L),
        )

    def _predicting(
        self, weights: Weights, writing: Writing, tape: Tape | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [M, E] that predict completion tokens, and the flat slots of these.

        With a tape they are ordered as it is: all first tokens, then all second ones.
        """
        L = writing.ids_NL.shape[1]
        lengths = ints(writing.lengths_N)
        written = int_rows(writing.ids_NL)
        packed = [
            [*prompt, *ids[: length - 1]]
            for prompt, ids, length in zip(writing.prompts, written, lengths, strict=True)
        ]
        owners = list(range(len(packed)))
        if self.budget is not None:
            # With rows of their own, chats do not make one row of each group longer than the rest.
            chats = {tuple(prompt): number for number, prompt in enumerate(writing.prompts)}
            packed += [list(chat) for chat in chats]
            owners += chats.values()
        rows = Rows(packed)
        # The token before each completion token predicts it.
        real_NL = np.arange(L) < np.array(lengths)[:, None]
        if tape is None:
            row_M, at_M = np.nonzero(real_NL)
        else:
            at_M, row_M = np.nonzero(real_NL.T)
        first_N = np.fromiter(map(len, writing.prompts), np.int64, len(lengths)) - 1
        select_M = rows.tokens(row_M, first_N[row_M] + at_M)
        if tape is not None:
            weights = tape.replay(rows, np.array(owners), select_M)
        hidden_ME = hidden_states(weights, self.shape, rows, select_M)
        return hidden_ME, from_numpy(row_M * L + at_M)

    # -- texts -----------------------------------------------------------------------------

    def text_loss(self, role: Role, texts: Sequence[TrainingText]) -> Tensor:
        """See `Engine`."""
        return labelled_loss(_weights(role), self.shape, pack_texts(self.tokenizer, texts))


def _weights(role: Role) -> BaseWeights | Adapter:
    """A role as this engine made it.

    Raises:
        TypeError: Another engine made it.
    """
    if not isinstance(role, BaseWeights | Adapter):
        raise TypeError(f"{type(role).__name__} is not a role of the fast engine")
    return role


def _trim() -> None:
    """Hand freed memory back to the system, where the C library can.

    glibc keeps freed pieces of up to 32 MB, scattered: 0.3 GB after one update of a 135M model.
    """
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Corpus texts as packed tokens, and the words that the model must predict at some of them."""

    rows: Rows
    """Tokens of all texts."""
    select_M: Ints
    """[M] numbers of the tokens that predict something."""
    labels_M: Tensor
    """[M] ids of the tokens that they predict."""


def pack_texts(tokenizer: Tokenizer, texts: Sequence[TrainingText]) -> LabelledRows:
    """Turn corpus texts into packed ids and labels."""
    labelled = label_texts(tokenizer, texts)
    rows = Rows([text.ids for text in labelled])
    counts = [len(text.positions) for text in labelled]
    row_M = np.arange(len(labelled)).repeat(counts)
    column_M = np.fromiter(chain.from_iterable(text.positions for text in labelled), np.int64)
    labels_M = np.fromiter(chain.from_iterable(text.labels for text in labelled), np.int64)
    return LabelledRows(rows, rows.tokens(row_M, column_M), from_numpy(labels_M))


def labelled_loss(weights: Weights, shape: Shape, texts: LabelledRows) -> Tensor:
    """Return the mean cross-entropy of all labels, in nats."""
    hidden = hidden_states(weights, shape, texts.rows, texts.select_M)
    if weights.tensor(HEAD).shape[0] > LARGE_VOCABULARY:
        return -token_logps(weights, hidden, texts.labels_M, entropies=False)[0].mean()
    return nn.functional.cross_entropy(logits(weights, hidden).float(), texts.labels_M)
