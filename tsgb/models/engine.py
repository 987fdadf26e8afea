"""The seam to language models: all that training, evaluation and export ask of one.

An engine has one frozen base model and any number of roles on it. It knows tokens and templates,
and neither rewards nor schedules. `tsgb.models.fast` implements it; the registry alone names an
implementation, so that another one needs no change elsewhere.

Shape letters: B prompts; N completions, grouped by chat; L tokens of the longest completion;
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tsgb.config import ModelConfig
from tsgb.models.tokenizer import GuardRows, Tokenizer
from tsgb.models.torch_typing import ints
from tsgb.types import GuardTemplate, Messages, TrainingText

T = TypeVar("T")
LARGE_VOCABULARY = 1024
"""Words up to which an engine computes the KL divergence exactly; beyond, it is estimated."""

LEAST_OPENING = 8
"""Tokens from which on it pays to keep what all rows begin with."""

Readout = Callable[[Sequence[Sequence[int]], int], Tensor]
"""Maps B token rows and a width W to the logits [B * W, V] at the last W tokens of each row."""


def window_of(config: object) -> int | None:
    """Return the tokens that a model was made for, by its configuration in transformers' words."""
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


class Role:
    """A policy on the frozen base of an engine: the base itself, or an adapter on it.

    Only the engine that made a role looks inside.
    """


class Recording(Protocol):
    """Outputs of layers while completions were written; its engine alone looks inside."""

    def select(self, rows: NDArray[np.int64]) -> Recording:
        """Return the recording of the completions with these numbers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """Completions that a role sampled, and the chats that they continue."""

    prompts: list[list[int]]
    """[N] token ids of the chat before each completion."""
    texts: list[str]
    """[N] completions as text, the end token left out."""
    ids_NL: Tensor
    """[N, L] token ids, padded after the end."""
    logp_NL: Tensor
    """[N, L] log-probability of each token under the policy that sampled, in nats."""
    sampled_NL: Tensor
    """[N, L] True on tokens that the policy chose: not on forced openings, not on padding."""
    lengths_N: Tensor
    """[N] tokens of each completion, the end token included."""
    finished_N: Tensor
    """[N] True where the end token came before the limit of new tokens."""
    tape: Recording | None = None
    """What the engine kept of the computation, for one update of the same policy."""

    def select(self, rows: Tensor) -> Writing:
        """Return the completions with these numbers."""
        numbers = ints(rows)
        return Writing(
            prompts=[self.prompts[i] for i in numbers],
            texts=[self.texts[i] for i in numbers],
            ids_NL=self.ids_NL[rows],
            logp_NL=self.logp_NL[rows],
            sampled_NL=self.sampled_NL[rows],
            lengths_N=self.lengths_N[rows],
            finished_N=self.finished_N[rows],
            tape=self.tape and self.tape.select(rows.numpy()),
        )


class TokenStatistics(NamedTuple):
    """What a role says of each token of a writing, in nats; undefined on padding."""

    logp_NL: Tensor
    """[N, L] log-probability of the token."""
    entropy_NL: Tensor
    """[N, L] entropy of the distribution that the token is drawn from."""
    kl_NL: Tensor
    """[N, L] KL(role || base): exact, or estimated from the token alone (`k3_kl`)."""


Tick = Callable[[], None]
"""Called while something takes long; what it raises ends that."""


def no_tick() -> None:
    """Report nothing."""


class Engine(Protocol):
    """A causal language model with roles."""

    name: str
    """Name of the base in records."""
    sha256: str
    """Hex digest of the base's files; a checkpoint of adapters names the base it belongs to."""
    dtype: str
    """Dtype of the base's weights, by its name in torch; adapters are float32."""
    weights_sha256: str
    """Hex digest of the one file with the base's weights, by which checkpoints of earlier versions
    name the base; empty where the weights are several files."""
    earlier_sha256: str
    """Hex digest of the base's files without its configuration, by which checkpoints of earlier
    versions name it; or empty."""
    num_parameters: int
    """Parameters of the base."""
    tokenizer: Tokenizer
    """Tokenizer of the base and all roles."""
    window: int | None
    """Tokens of the longest text that the base was made for; None if its configuration does not
    say."""
    micro_batch_tokens: int
    """Most tokens whose activations are kept at once; 0 for an engine that splits no batches."""
    tick: Tick
    """Called after each batch of `score_all`, each token of a writing, and each part of an update
    that is split. It changes nothing of what is computed."""

    @property
    def base(self) -> Role:
        """The frozen base: reference policy of both players."""
        ...

    def add_role(self, config: ModelConfig, generator: torch.Generator) -> Role:
        """Put a fresh adapter on the base.

        Args:
            config: kind and rank of the adapter.
            generator: initialises what starts at random.
        """
        ...

    def parameters(self, role: Role) -> Mapping[str, nn.Parameter]:
        """Return a role's trainable parameters, by the names under which they are saved.

        They are peft's names for a LoRA adapter, those of transformers for whole weights, and none
        for the base.
        """
        ...

    def scores(self, role: Role, template: GuardTemplate, prompts: Sequence[str]) -> Tensor:
        """Return verdict scores z = logit(unsafe) - logit(safe), [B]; differentiable."""
        ...

    def score_all(self, role: Role, template: GuardTemplate, prompts: Sequence[str]) -> Tensor:
        """Return `scores` without gradients, for any number of prompts, [N]."""
        ...

    def score_rows(self, role: Role, asked: GuardRows) -> Tensor:
        """Return the scores of rows that a tokenizer made, without gradients, [N].

        What all rows begin with is read once for each state of the role, and kept; a score does
        not depend on what was scored before.
        """
        ...

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
        """Sample `group` completions a chat, without gradients.

        Args:
            role: the policy.
            chats: ready for the answer.
            group: completions a chat.
            max_new_tokens: limit of each completion.
            generator: private source of randomness; greedy when None.
            temperature: divides the logits.
            openings: [N] forced starts, empty where the policy is free.
            learns: whether an update of the same policy follows; an engine may keep more then.
        """
        ...

    def logps(self, role: Role, writing: Writing, temperature: float) -> TokenStatistics:
        """Return log-probability, entropy and divergence of each token; differentiable.

        Args:
            role: the policy.
            writing: tokens that this role or another one sampled.
            temperature: divides the logits, as it did in sampling.
        """
        ...

    def text_loss(self, role: Role, texts: Sequence[TrainingText]) -> Tensor:
        """Return the mean cross-entropy over completions and read-outs, in nats; differentiable."""
        ...

    def within_memory(self, run: Callable[[], T]) -> T:
        """Return `run()`; where memory ends, it is done again in smaller micro-batches.

        Args:
            run: forward and backward passes that may be repeated: it draws no random numbers, and
                forgets gradients before it makes some.

        Raises:
            ConfigError: Memory ends in the smallest micro-batches, too.
        """
        ...

    def tidy(self) -> None:
        """Give memory back after an update or a batch, where that pays."""
        ...

    def save_pretrained(self, directory: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a model and its tokenizer as `save_pretrained` of transformers does.

        Args:
            directory: where the files go; it exists.
            weights: whole weights of a role; those of the base when left out.
        """
        ...


def full_kl(logp_NLV: Tensor, reference_NLV: Tensor) -> Tensor:
    """Return the exact KL(policy || reference) at each token, [N, L], in nats."""
    return (logp_NLV.exp() * (logp_NLV - reference_NLV)).sum(-1)


def k3_kl(logp_NL: Tensor, reference_NL: Tensor) -> Tensor:
    """Return exp(d) - d - 1, d = log ref - log pi, at each token, [N, L] (Schulman 2020)."""
    d = reference_NL - logp_NL
    return d.exp() - d - 1
