"""The engine over transformers and peft: any causal LM, any device, float32 or bfloat16.

Shape letters: B prompts; N completions, L tokens of the longest one, V vocabulary; M positions
that are looked at, E width of the model, C statistics of a position.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tsgb.config import ModelConfig
from tsgb.errors import ConfigError
from tsgb.logging import get_logger
from tsgb.models.engine import (
    LARGE_VOCABULARY,
    LEAST_OPENING,
    Role,
    Tick,
    TokenStatistics,
    Writing,
    full_kl,
    k3_kl,
    no_tick,
    window_of,
)
from tsgb.models.general.batches import Row, flattened, micro_batches
from tsgb.models.general.cache_decoder import CacheDecoder
from tsgb.models.general.causal_lm import CausalLm, LoraRole, ReadRows
from tsgb.models.labels import label_texts
from tsgb.models.out_of_memory import retried
from tsgb.models.planner import (
    CPU_HEAD_VALUES,
    HEAD_VALUES,
    MICRO_BATCH_TOKENS,
    WITHOUT_GRADIENTS,
)
from tsgb.models.recomputation import recomputed
from tsgb.models.sampling import Completions, draw_uniforms, join, sample, writing_of
from tsgb.models.tokenizer import GuardRows, Tokenizer
from tsgb.models.torch_typing import dtype_name, int_rows, ints
from tsgb.models.weights import fingerprint
from tsgb.types import GuardTemplate, Messages, TrainingText

LEAST_TOKENS = 32
"""Tokens below which micro-batches are not made smaller when memory ends."""
T = TypeVar("T")
Values = Callable[[Tensor, Tensor], Tensor]
"""Maps hidden states [M, E] and the numbers [M] of their positions to statistics [M, C]."""


class GeneralEngine:
    """Implements `Engine` for every causal LM that transformers loads.

    Whatever device computes, all tensors that come in or go out are on the CPU; only the
    parameters of roles and their gradients lie on the device.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Tokenizer,
        *,
        name: str,
        sha256: str,
        directory: Path,
        weights_sha256: str | None = None,
        micro_batch_tokens: int = MICRO_BATCH_TOKENS,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Wrap a model.

        Args:
            module: a `PreTrainedModel` with a language-model head, on its device; stays frozen.
            tokenizer: its tokenizer.
            name: name of the base in records.
            sha256: hex digest of the base.
            directory: where the module was loaded from.
            weights_sha256: hex digest of the file with the weights, where it differs.
            micro_batch_tokens: most tokens, padding included, whose activations are kept; a batch
                with more is split, and its parts are computed again in the backward pass.
            gradient_checkpointing: keep only the inputs of layers: less memory a token, more time.
        """
        self.tokenizer = tokenizer
        self.name = name
        self.sha256 = sha256
        self.weights_sha256 = sha256 if weights_sha256 is None else weights_sha256
        self.earlier_sha256 = ""
        self.dtype = dtype_name(module)
        self.lm = CausalLm(module, gradient_checkpointing=gradient_checkpointing)
        self.base = self.lm.base
        self.num_parameters = int(self.lm.module.num_parameters())  # two a byte in four bits
        config = self.lm.module.config.get_text_config()
        self.vocabulary = int(config.vocab_size)
        self.window = window_of(config)
        self._directory = directory
        self.micro_batch_tokens = micro_batch_tokens
        self.tick: Tick = no_tick
        values = CPU_HEAD_VALUES if self.lm.device.type == "cpu" else HEAD_VALUES
        self._read_opening: tuple[Any, ReadRows] | None = None
        self._head_positions = max(1, values // self.vocabulary)

    # -- roles -----------------------------------------------------------------------------

    def add_role(self, config: ModelConfig, generator: torch.Generator) -> LoraRole:
        """See `Engine`.

        Raises:
            ConfigError: Whole weights are asked for, or peft can adapt no layer.
        """
        if config.adapter != "lora":
            raise ConfigError(
                f"model.adapter = {config.adapter!r}: roles on the pretrained base {self.name!r} "
                "are LoRA adapters, set it to 'lora'"
            )
        return self.lm.add_role(config.rank, generator)

    def parameters(self, role: Role) -> Mapping[str, nn.Parameter]:
        """See `Engine`."""
        return _own(role).parameters

    def within_memory(self, run: Callable[[], T]) -> T:
        """See `Engine`; the last step is that activations are computed again layer by layer."""
        return retried(run, self._make_smaller)

    def _make_smaller(self, reason: str) -> None:
        if self.micro_batch_tokens > LEAST_TOKENS:
            self.micro_batch_tokens = max(LEAST_TOKENS, self.micro_batch_tokens // 2)
        elif not self.lm.keeps_only_inputs:
            self.lm.keep_only_inputs()
        else:
            raise ConfigError(
                f"memory of {self.lm.device} ends even with {self.micro_batch_tokens} tokens of "
                f"{self.name!r} at a time ({reason}): name a smaller model, set model.dtype to "
                "bfloat16, or take a machine with more memory"
            )
        get_logger().warning(
            "memory ended: goes on in smaller micro-batches",
            model=self.name,
            micro_batch_tokens=self.micro_batch_tokens,
            gradient_checkpointing=self.lm.keeps_only_inputs,
            reason=reason,
        )

    def tidy(self) -> None:
        """See `Engine`; the allocators of torch keep what they will need again."""

    def save_pretrained(self, directory: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """See `Engine`; the base is copied as it was loaded.

        Raises:
            ConfigError: Whole weights of a role are given.
        """
        if weights is not None:
            raise ConfigError(f"roles on {self.name!r} are adapters, it has no other whole weights")
        for pattern in ("config.json", "generation_config.json", "model*.safetensors*"):
            for path in sorted(self._directory.glob(pattern)):
                shutil.copyfile(path, directory / path.name)
        self.tokenizer.transformers().save_pretrained(directory)

    # -- guard -----------------------------------------------------------------------------

    def scores(self, role: Role, template: GuardTemplate, prompts: Sequence[str]) -> Tensor:
        """See `Engine`; a score is read at one position."""
        if not prompts:
            return torch.zeros(0, device="cpu")
        own, asked = _own(role), self.tokenizer.guard_input(template, prompts)
        return self.within_memory(lambda: self._scores(own, asked.rows, asked, None)).cpu()

    def score_all(self, role: Role, template: GuardTemplate, prompts: Sequence[str]) -> Tensor:
        """See `Engine`."""
        if not prompts:
            return torch.zeros(0, device="cpu")
        return self.score_rows(role, self.tokenizer.guard_input(template, prompts))

    @torch.no_grad()
    def score_rows(self, role: Role, asked: GuardRows) -> Tensor:
        """See `Engine`."""
        own, length = _own(role), len(asked.opening)
        usable = length >= LEAST_OPENING and self.lm.shares_prefixes
        opened = [
            usable and len(row) > length and row[:length] == asked.opening for row in asked.rows
        ]
        found_N = torch.zeros(len(asked.rows), device="cpu")
        for with_opening in (True, False):
            numbers = [i for i, begins in enumerate(opened) if begins is with_opening]
            if not numbers:
                continue
            rows = [asked.rows[i][length if with_opening else 0 :] for i in numbers]

            def run(rows: Sequence[Row] = rows, start: bool = with_opening) -> Tensor:
                return self._scores(own, rows, asked, self._opening(own, asked) if start else None)

            found_N[numbers] = self.within_memory(run).cpu()
        return found_N

    def _opening(self, role: LoraRole, asked: GuardRows) -> ReadRows:
        """Return the opening of rows as it was read by the present state of a role."""
        key = (role.name, *asked.opening), fingerprint(role.parameters.values())
        if self._read_opening is None or self._read_opening[0] != key:
            self._read_opening = key, self.lm.read(role, [asked.opening])
        return self._read_opening[1]

    def _scores(
        self, role: LoraRole, rows: Sequence[Row], asked: GuardRows, opening: ReadRows | None
    ) -> Tensor:
        def values(hidden_ME: Tensor, _: Tensor) -> Tensor:
            logits_MV = self.lm.logits(hidden_ME)
            unsafe, safe = asked.unsafe_id, asked.safe_id
            return logits_MV[:, unsafe : unsafe + 1] - logits_MV[:, safe : safe + 1]

        positions = [[len(row) - 1] for row in rows]
        return self._look_once(role, rows, positions, values, opening).squeeze(1)

    # -- attacker --------------------------------------------------------------------------

    @torch.no_grad()
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
        learns: bool = False,  # noqa: ARG002
    ) -> Writing:
        """See `Engine`."""
        prompts = [self.tokenizer.encode_chat(chat) for chat in chats]
        forced = self.tokenizer.encode_openings(chats, group, openings)
        uniforms_NL = draw_uniforms(generator, len(chats) * group, max_new_tokens)

        def sample_batches(numbers: Sequence[int]) -> list[tuple[list[int], Completions]]:
            """Write these chats, in several batches if memory has ended meanwhile."""
            return [
                (batch, sample_batch(batch))
                for batch in self._writing_batches(prompts, numbers, group, max_new_tokens)
            ]

        def sample_batch(numbers: Sequence[int]) -> Completions:
            rows = [number * group + member for number in numbers for member in range(group)]
            return sample(
                CacheDecoder(self.lm, _own(role), [prompts[i] for i in numbers], group),
                len(rows),
                max_new_tokens=max_new_tokens,
                stop_ids=self.tokenizer.stop_ids,
                pad=self.tokenizer.pad_id,
                uniforms_NL=None if uniforms_NL is None else uniforms_NL[rows],
                temperature=temperature,
                openings=forced and [forced[row] for row in rows],
                tick=self.tick,
            )

        parts: list[Completions] = []
        batches: list[list[int]] = []
        for numbers in self._writing_batches(prompts, range(len(prompts)), group, max_new_tokens):
            written = self.within_memory(lambda numbers=numbers: sample_batches(numbers))
            batches += [batch for batch, _ in written]
            parts += [part for _, part in written]
        order = flattened(batches)
        done = join(parts, self.tokenizer.pad_id)
        writing = writing_of(done, [prompts[i] for i in order], group, self.tokenizer)
        members_K = torch.arange(group, device="cpu")
        places_G = torch.tensor(order, device="cpu").argsort()
        return writing.select((places_G[:, None] * group + members_K).flatten())

    def _writing_batches(
        self, prompts: Sequence[Row], numbers: Sequence[int], group: int, max_new_tokens: int
    ) -> list[list[int]]:
        """Return the numbers of the chats that are written at once, batch after batch."""
        limit = WITHOUT_GRADIENTS * self.micro_batch_tokens
        batches: list[list[int]] = []
        for number in sorted(numbers, key=lambda i: len(prompts[i])):
            length = len(prompts[number])
            last = batches[-1] if batches else []
            padded = (len(last) + 1) * group * (length + max_new_tokens)
            if last and padded <= limit:
                last.append(number)
            else:
                batches.append([number])
        return batches

    def logps(self, role: Role, writing: Writing, temperature: float) -> TokenStatistics:
        """See `Engine`; the divergence is exact up to `LARGE_VOCABULARY` words."""
        N, L = writing.ids_NL.shape
        rows: list[Row] = []
        positions: list[range] = []
        taken: list[int] = []
        slots: list[int] = []
        lengths = ints(writing.lengths_N)
        for number, ids in enumerate(int_rows(writing.ids_NL)):
            prompt, length = writing.prompts[number], lengths[number]
            rows.append([*prompt, *ids[: length - 1]])
            # The token before each completion token predicts it.
            positions.append(range(len(prompt) - 1, len(prompt) - 1 + length))
            taken += ids[:length]
            slots += range(number * L, number * L + length)
        ids_M = torch.tensor(taken, device=self.lm.device)
        exact = self.vocabulary <= LARGE_VOCABULARY

        def values(hidden_ME: Tensor, numbers_M: Tensor) -> Tensor:
            ids = ids_M[numbers_M]
            reference = reference_MC[numbers_M]
            return self._token_statistics(hidden_ME, ids, temperature, reference)

        def of_base(hidden_ME: Tensor, numbers_M: Tensor) -> Tensor:
            if exact:
                return (self.lm.logits(hidden_ME) / temperature).log_softmax(-1)
            ids = ids_M[numbers_M]
            return self._token_statistics(hidden_ME, ids, temperature, None)[:, :1]

        with torch.no_grad():
            reference_MC = self._look(self.base, rows, positions, of_base, on_device=True)
        found_MC = self._look(_own(role), rows, positions, values)
        empty = found_MC.new_zeros(N * L, found_MC.shape[1])
        slots_M = torch.tensor(slots, device="cpu")
        found_NLC = empty.index_copy(0, slots_M, found_MC).view(N, L, -1)
        return TokenStatistics(*found_NLC.unbind(-1))

    # -- texts -----------------------------------------------------------------------------

    def text_loss(self, role: Role, texts: Sequence[TrainingText]) -> Tensor:
        """See `Engine`."""
        labelled = [text for text in label_texts(self.tokenizer, texts) if text.positions]
        labels_M = torch.tensor(flattened([t.labels for t in labelled]), device=self.lm.device)

        def values(hidden_ME: Tensor, numbers_M: Tensor) -> Tensor:
            return self._token_statistics(hidden_ME, labels_M[numbers_M], 1.0, None)

        rows, positions = [t.ids for t in labelled], [t.positions for t in labelled]
        return -self._look(_own(role), rows, positions, values)[:, 0].mean()

    # -- inside ----------------------------------------------------------------------------

    def _look(
        self,
        role: LoraRole,
        rows: Sequence[Row],
        positions: Sequence[Sequence[int]],
        values: Values,
        *,
        on_device: bool = False,
    ) -> Tensor:
        """Return statistics [M, C] at positions of rows, row after row; differentiable.

        Args:
            role: the policy.
            rows: token ids.
            positions: ascending positions in each row.
            values: statistics of hidden states.
            on_device: leave the result where it was computed.
        """
        found_MC = self.within_memory(lambda: self._look_once(role, rows, positions, values))
        return found_MC if on_device else found_MC.cpu()

    def _look_once(
        self,
        role: LoraRole,
        rows: Sequence[Row],
        positions: Sequence[Sequence[int]],
        values: Values,
        opening: ReadRows | None = None,
    ) -> Tensor:
        limit = self.micro_batch_tokens
        if not torch.is_grad_enabled():
            limit *= WITHOUT_GRADIENTS
        share = self.lm.shares_prefixes and opening is None
        batches = micro_batches(rows, positions, limit=limit, share=share)
        first, numbers = 0, list[list[int]]()
        for found in positions:
            numbers.append(list(range(first, first + len(found))))
            first += len(found)
        parameters = list(role.parameters.values())
        parts: list[Tensor] = []
        order: list[int] = []
        for batch in batches:
            own = flattened([numbers[number] for number in batch.numbers])
            order += own

            def run(numbers_M: Tensor, batch: Any = batch) -> Tensor:
                return values(self.lm.hidden_states(role, batch, opening), numbers_M)

            numbers_M = torch.tensor(own, device=self.lm.device)
            parts.append(
                run(numbers_M) if len(batches) == 1 else recomputed(run, numbers_M, parameters)
            )
            self.tick()
        inverse = torch.tensor(order, device=self.lm.device).argsort()
        return torch.cat(parts).index_select(0, inverse)

    def _token_statistics(
        self, hidden_ME: Tensor, ids_M: Tensor, temperature: float, reference_MC: Tensor | None
    ) -> Tensor:
        """Return log-probability, entropy and KL divergence of tokens, [M, 2 or 3], in nats.

        Args:
            hidden_ME: states that predict the tokens.
            ids_M: the tokens.
            temperature: divides the logits.
            reference_MC: log-probabilities by the base, of all words or of the token alone; the
                divergence is left out without them.
        """
        parts: list[Tensor] = []
        size = self._head_positions
        for start in range(0, len(ids_M), size):
            ids = ids_M[start : start + size, None]
            reference = None if reference_MC is None else reference_MC[start : start + size]

            def statistics(
                hidden: Tensor, ids: Tensor = ids, reference: Tensor | None = reference
            ) -> Tensor:
                logp_MV = (self.lm.logits(hidden) / temperature).log_softmax(-1)
                logp_M1 = logp_MV.gather(-1, ids)
                found = [logp_M1, -(logp_MV.exp() * logp_MV).sum(-1, keepdim=True)]
                if reference is not None:
                    exact = reference.shape[1] > 1
                    kl = (
                        full_kl(logp_MV, reference)[:, None] if exact else k3_kl(logp_M1, reference)
                    )
                    found.append(kl)
                return torch.cat(found, -1)

            parts.append(recomputed(statistics, hidden_ME[start : start + size], []))
        return torch.cat(parts)


def _own(role: Role) -> LoraRole:
    """Return a role as this engine made it.

    Raises:
        TypeError: Another engine made it.
    """
    if not isinstance(role, LoraRole):
        raise TypeError(f"{type(role).__name__} is not a role of the general engine")
    return role
