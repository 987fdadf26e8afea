"""Memory that training a pretrained model takes, by the sizes in its config.json alone.

It is arithmetic and imports no torch, so that a flow can refuse a model before it starts or rents
anything. It describes the general engine: LoRA adapters in float32 over a frozen base, batches
read in micro-batches. `tests/unit/models/test_planner.py` compares every part with what torch
allocates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

MICRO_BATCH_TOKENS = 2048
"""Tokens whose activations are kept at once, where memory allows."""
CARD_MICRO_BATCH_TOKENS = 8192
"""Likewise on a card, which needs large batches to be busy."""
LEAST_MICRO_BATCH_TOKENS = 256
"""Tokens below which a smaller micro-batch saves next to nothing."""
WITHOUT_GRADIENTS = 8
"""Times as many tokens are read at once where no activation is kept."""
CPU_HEAD_VALUES, HEAD_VALUES = 2**20, 2**25
"""Logits that exist at once: on a CPU what its cache holds, elsewhere what memory spares."""
USABLE = 0.9
"""Share of a device's memory that a run may take at most: allocators leave gaps."""
CPU_SHARE = 0.5
"""Share of a machine's memory that batches are chosen for: other programs run beside, and where
memory ends the system kills a process, and nothing can be caught."""
CARD_CLASSES: Mapping[int, str] = {
    8: "RTX 3070",
    12: "RTX 3060",
    16: "RTX 4080",
    24: "RTX 3090, RTX 4090",
    32: "RTX 5090",
    48: "RTX A6000, L40S",
    80: "A100, H100",
    141: "H200",
}
"""Sizes of cards in GB, with examples."""

COPIES_SHARE = 0.35
"""Most of the free memory that the fast engine's copies of weights may take."""
_ANSWERED_ROWS = 16
"""Most chats that are answered at once where nothing is learned."""
_FLOAT32 = 4
BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of a number by type."""
_CARD_OVERHEAD, CPU_OVERHEAD = 800_000_000, 600_000_000
"""Bytes that libraries take before there is a model: on a card context, kernels and workspaces."""
_CARD_SNAPSHOTS = 2
"""Copies of an adapter that are on a card at once; those of past rounds lie in the machine's
memory."""
_FOUR_BIT_BYTES = 0.57
"""Bytes of a weight in NF4: half of one, and a float32 scale for 64 of them, rounded up."""
_SOFTWARE_DISK_GB = 12.0
"""GB of disk for the image, torch with its CUDA libraries, and checkpoints on their way."""
_HEAD_COPIES, _SAMPLING_COPIES = 4, 5
"""Tensors as large as the logits that exist at once, in the loss and in sampling."""
_RECOMPUTED_LAYERS = 2.5
"""Layers whose activations exist at once where they are computed again; measured."""
_TOLERANCE = 0.1
"""Relative difference between computed and stored parameters above which sizes are not believed."""


class Family(NamedTuple):
    """Form of a layer in a family of models."""

    matrices: int = 3
    """Matrices of the feed-forward part: 3 with a gate, 2 without."""
    norms: int = 2
    """Norms of a layer that are computed in float32; two in the base's type are one."""
    fused: bool = False
    """Whether one matrix makes queries, keys and values."""
    tied: bool = False
    """Whether the head is the embedding where the configuration does not say."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma": Family(tied=True),
    "gemma2": Family(norms=4, tied=True),
    "gemma3_text": Family(norms=4, tied=True),
    "phi": Family(matrices=2),
    "phi3": Family(fused=True),
    "smollm3": Family(tied=True),
    "olmo": Family(),
    "olmo2": Family(),
    "olmo3": Family(),
    "gpt_neox": Family(matrices=2, norms=1, fused=True),
    "granite": Family(),
    "stablelm": Family(),
    "starcoder2": Family(matrices=2, tied=True),
    "arcee": Family(matrices=2),
    "mixtral": Family(),
    "qwen2_moe": Family(),
    "qwen3_moe": Family(),
    "olmoe": Family(),
}
"""Families whose memory can be estimated; tests compare each with transformers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Sizes of a causal language model that its memory depends on.

    Example: `ModelSizes.read(json.loads(Path("config.json").read_text()))`
    """

    family: Family
    """Form of its layers."""
    layers: int
    """Number of layers."""
    width: int
    """Width of hidden states."""
    query_width: int
    """Width of the queries of all heads."""
    key_width: int
    """Width of the keys of all heads, which grouped heads make smaller than that of queries."""
    inner: int
    """Width inside the dense feed-forward part; with experts, of the one that all tokens use."""
    vocabulary: int
    """Number of words."""
    tied: bool
    """Whether the head is the embedding."""
    experts: int = 0
    """Number of experts of a layer."""
    expert_inner: int = 0
    """Width inside an expert."""
    active_experts: int = 0
    """Experts that a token uses."""
    windowed_layers: int = 0
    """Number of layers that look back over a window only."""
    window: int = 0
    """Tokens of that window."""
    eager_heads: int = 0
    """Heads whose attention weights are kept as a matrix, because their logits have a soft cap."""
    in_4bit: bool = False
    """Whether the weights of linear layers, but for the head, are held in four bits."""

    @classmethod
    def read(cls, config: Mapping[str, Any], parameters: int | None = None) -> ModelSizes | None:
        """Read the sizes from a `config.json`; None where no estimate can be made.

        Args:
            config: Content of the file.
            parameters: Number of stored weights; sizes that do not explain it are not believed.
        """
        text: Mapping[str, Any] = config.get("text_config") or config
        kind = str(text.get("model_type", ""))
        family = FAMILIES.get(kind)
        numbers = [
            text.get(key)
            for key in (
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
                "vocab_size",
            )
        ]
        if family is None or not all(isinstance(number, int) and number > 0 for number in numbers):
            return None
        width, layers, heads, inner, vocabulary = (int(number or 0) for number in numbers)
        head = int(text.get("head_dim") or width // heads)
        key_heads = int(text.get("num_key_value_heads") or heads)
        tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
        types: Sequence[str] = text.get("layer_types") or ()
        window = int(text.get("sliding_window") or 0)
        everywhere = kind == "mistral" and window > 0 and not types
        experts = int(text.get("num_experts") or text.get("num_local_experts") or 0)
        sizes = cls(
            family=family,
            layers=layers,
            width=width,
            query_width=heads * head,
            key_width=key_heads * head,
            inner=int(text.get("shared_expert_intermediate_size") or 0) if experts else inner,
            vocabulary=vocabulary,
            tied=family.tied if tied is None else bool(tied),
            experts=experts,
            expert_inner=int(text.get("moe_intermediate_size") or inner) if experts else 0,
            active_experts=int(text.get("num_experts_per_tok") or experts),
            windowed_layers=layers if everywhere else types.count("sliding_attention"),
            window=window,
            eager_heads=heads if text.get("attn_logit_softcapping") else 0,
        )
        if parameters is None:
            return sizes
        expected = {sizes.parameters, sizes.parameters + vocabulary * width * sizes.tied}
        near = any(abs(parameters - number) <= _TOLERANCE * number for number in expected)
        return sizes if near else None

    @property
    def parameters(self) -> int:
        """Number of weights, without norms and biases."""
        attention = 2 * self.width * (self.query_width + self.key_width)
        dense = self.family.matrices * self.width * self.inner
        embedding = self.vocabulary * self.width * (1 if self.tied else 2)
        return embedding + self.layers * (attention + dense + self.expert_weights)

    def weight_bytes(self, size: int) -> int:
        """Return bytes of the weights.

        Args:
            size: Bytes of a number; embeddings and head have that many in four bits, too.
        """
        if not self.in_4bit:
            return size * self.parameters
        kept = self.vocabulary * self.width * (1 if self.tied else 2)
        return size * kept + int(_FOUR_BIT_BYTES * (self.parameters - kept))

    @property
    def expert_weights(self) -> int:
        """Number of weights in the experts of a layer."""
        return 3 * self.experts * self.width * self.expert_inner

    def adapter(self, rank: int) -> int:
        """Return the number of parameters of a LoRA adapter on every linear layer but the head."""
        E, A, K, F, X = (
            self.width,
            self.query_width,
            self.key_width,
            self.inner,
            self.expert_inner,
        )
        attention = E + A + 2 * K if self.family.fused else 3 * E + A + 2 * K
        dense = self.family.matrices * (E + F)
        if self.family.fused and self.family.matrices == 3:  # gate and up are one matrix
            dense -= E
        experts = self.experts * (2 * (E + 2 * X) + X + E) + (E + self.experts)
        layer = attention + (A + E) + (dense if F else 0) + (experts if self.experts else 0)
        return rank * self.layers * layer

    @property
    def active_inner(self) -> int:
        """Width of all that a token passes in the feed-forward part of a layer."""
        return self.inner + self.active_experts * self.expert_inner

    def kept(self, rank: int, size: int, row_tokens: int) -> int:
        """Return bytes of activations that one layer keeps for each token of a backward pass.

        Args:
            rank: Rank of the adapter.
            size: Bytes of a number of the base.
            row_tokens: Tokens of a row, which soft-capped attention depends on.
        """
        E, A, K, F = self.width, self.query_width, self.key_width, self.active_inner
        norms = self.family.norms * E * _FLOAT32
        attention = size * 2 * (A + K)
        if self.family.fused:  # the slices and what they were cut from
            attention += size * (A + 2 * K)
        # An adapter reads a copy in float32, one for each matrix, unless all is float32.
        gates = self.family.matrices - 1
        copies = 1 if self.family.fused else 3
        inputs = E * (copies + (1 if self.family.fused else gates)) + A
        if size == _FLOAT32:
            inputs = 2 * E
        feed_forward = size * gates * F + (size * F if gates == 2 else 0) + _FLOAT32 * F
        eager = self.eager_heads * row_tokens * (_FLOAT32 + 2 * size)
        low_rank = _FLOAT32 * rank * (4 + self.family.matrices)
        return norms + attention + _FLOAT32 * inputs + feed_forward + eager + low_rank

    def passed(self, size: int, row_tokens: int) -> int:
        """Return bytes that exist for each token while a layer is computed without gradients."""
        eager = self.eager_heads * row_tokens * (_FLOAT32 + size)
        F, E = self.active_inner, self.width
        return size * (3 * F + 4 * E) + _FLOAT32 * F + eager

    def cached(self, row_tokens: int, size: int) -> int:
        """Return bytes of the keys and values of a row of tokens."""
        short = self.windowed_layers * min(row_tokens, self.window or row_tokens)
        slots = short + (self.layers - self.windowed_layers) * row_tokens
        return 2 * self.key_width * size * slots


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingWork:
    """Sizes of a run that memory depends on.

    Example: `TrainingWork(rank=8)`
    """

    rows: int = 64
    """Completions that are written for an update."""
    row_tokens: int = 1024
    """Tokens of the longest row, chat and completion."""
    rank: int = 16
    """Rank of the adapters."""
    roles: int = 2
    """Adapters that are trained."""
    snapshots: int = 8
    """Copies of adapters that a run keeps to restart from and to compare with."""
    target_ranks: tuple[int, ...] = ()
    """Ranks of the adapters that make the targets."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of a device.

    Example: `DeviceMemory("cuda:0", 25_700_000_000, "RTX 3090")`
    """

    device: str
    """Name of the device, as torch writes it."""
    total: int
    """Bytes of memory, used or not."""
    label: str = ""
    """Name of the product, for people."""
    workers: int = 1
    """Number of processes that share it in equal parts; the other figures are of one of them."""
    has_bfloat16_units: bool = False
    """Whether it multiplies in bfloat16 itself; without, it takes far longer."""

    def shared_by(self, num: int) -> DeviceMemory:
        """Return it as each of `num` processes sees it, which divide what this one has."""
        return replace(self, workers=self.workers * num)

    @property
    def is_card(self) -> bool:
        """Whether it is memory of its own, beside that of the machine."""
        return self.device.startswith("cuda")

    @property
    def usable(self) -> int:
        """Bytes that a process may take at most."""
        return int(self.total * USABLE) // self.workers

    @property
    def share(self) -> int:
        """Bytes that batches are chosen for."""
        return self.usable if self.is_card else int(self.total * CPU_SHARE) // self.workers

    def __str__(self) -> str:
        name = f" ({self.label})" if self.label else ""
        shared = f" shared by {self.workers} workers" if self.workers > 1 else ""
        return f"{self.device}{name} with {self.total / 1e9:.3g} GB{shared}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Memory of a run on a device, part by part, and the batches that make it fit.

    Parts are added up although some are needed in turn: allocators rarely reuse all of one for
    another.
    """

    device: DeviceMemory
    """The device."""
    dtype: str
    """Type of the frozen weights."""
    micro_batch_tokens: int
    """Tokens whose activations are kept at once."""
    gradient_checkpointing: bool
    """Whether only the inputs of layers are kept, and the rest is computed again."""
    parts: Mapping[str, int]
    """Bytes of each part, by name."""

    @property
    def needed(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the device has that much."""
        return self.needed <= self.device.usable


class ModelPart(StrEnum):
    """The part that a model has in a run."""

    BASE = "base"
    """The base of both players, and of targets that have no model of their own."""
    TARGET = "target"
    """The model of the targets."""
    BLACK_BOX = "black box"
    """A pretrained model that the evaluation asks; one at a time is in memory."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that is in memory beside the one that a plan is for.

    Example: `Resident(ModelPart.TARGET, sizes)`
    """

    part: ModelPart
    """Part of the model."""
    sizes: ModelSizes
    """Its sizes."""
    adapter_bytes: int = 0
    """Bytes of its adapters, and of the optimizers and copies of those."""

    @property
    def name(self) -> str:
        """Name in the list of parts."""
        return f"{self.part} in 4 bit" if self.sizes.in_4bit else self.part.value

    def held(self, size: int) -> int:
        """Return the bytes that it takes while another model computes.

        Args:
            size: Bytes of a number of its frozen weights.
        """
        return self.sizes.weight_bytes(size) + self.adapter_bytes


def memory_parts(
    sizes: ModelSizes,
    work: TrainingWork,
    *,
    dtype: str,
    is_card: bool,
    micro_batch_tokens: int,
    gradient_checkpointing: bool,
    beside: Sequence[Resident] = (),
) -> dict[str, int]:
    """Return bytes of memory by part.

    Args:
        sizes: Sizes of the model.
        work: Sizes of what it does in the run.
        dtype: Type of frozen weights, `float32` or `bfloat16`.
        is_card: Whether it is computed on a card.
        micro_batch_tokens: Tokens whose activations are kept at once; a row is never cut.
        gradient_checkpointing: Whether only the inputs of layers are kept.
        beside: Other models that are in memory at the same time.
    """
    size = BYTES[dtype]
    tokens = max(micro_batch_tokens, work.row_tokens)
    reading = max(WITHOUT_GRADIENTS * micro_batch_tokens, work.row_tokens)
    rows = max(1, min(work.rows, reading // work.row_tokens))
    # One layer copies its keys and values when rows are repeated, dropped or grow.
    cache = rows * sizes.cached(work.row_tokens, size) * (1 + 1 / sizes.layers)
    kept = sizes.kept(work.rank, size, work.row_tokens)
    if gradient_checkpointing:
        activations = tokens * (sizes.layers * sizes.width * size + int(_RECOMPUTED_LAYERS * kept))
    else:
        activations = tokens * (sizes.layers + 1) * kept
    # An adapter of experts is added to a copy of their weights.
    copied = 0 if not sizes.experts else 2 * size * sizes.expert_weights
    if not gradient_checkpointing:
        copied *= sizes.layers
    learning = activations + copied if work.roles else 0
    activations = max(learning, reading * sizes.passed(size, work.row_tokens))
    values = HEAD_VALUES if is_card else CPU_HEAD_VALUES
    logits = _FLOAT32 * max(
        _HEAD_COPIES * max(values, sizes.vocabulary), _SAMPLING_COPIES * rows * sizes.vocabulary
    )
    parts = {
        "weights": sizes.weight_bytes(size),
        **_adapter_parts(sizes, work, is_card=is_card),
        "cache": int(cache),
        "activations": activations,
        "logits": logits,
        "overhead": _CARD_OVERHEAD if is_card else CPU_OVERHEAD,
    }
    for other in beside:  # caches are needed in turn
        larger = rows * other.sizes.cached(work.row_tokens, size) - cache
        parts[other.name] = other.held(size) + int(max(0.0, larger))
    return parts


def _adapter_parts(sizes: ModelSizes, work: TrainingWork, *, is_card: bool) -> dict[str, int]:
    """Return bytes of the adapters on a model, their optimizer and their copies."""
    adapter = _FLOAT32 * sizes.adapter(work.rank)
    targets = _FLOAT32 * sum(sizes.adapter(rank) for rank in work.target_ranks)
    copies = min(_CARD_SNAPSHOTS, work.snapshots) if is_card else work.snapshots
    return {
        "adapters": work.roles * adapter + targets,
        # Moments, gradients, and a root of one.
        "optimizer": (3 * work.roles + 1) * adapter if work.roles else 0,
        "snapshots": copies * adapter,
    }


def plan_memory(
    sizes: ModelSizes,
    device: DeviceMemory,
    *,
    dtype: str,
    work: TrainingWork | None = None,
    beside: Sequence[Resident] = (),
) -> MemoryPlan:
    """Choose the largest micro-batch that fits; the smallest one where none does.

    Activations are computed again only if they do not fit otherwise: that costs a forward pass.
    The choice depends on the memory that a device has, not on what is free, so that a run which is
    resumed on the same machine makes the same batches.

    Args:
        sizes: Sizes of the model.
        device: Where it is computed.
        dtype: Type of frozen weights, `float32` or `bfloat16`.
        work: Sizes of what it does in the run.
        beside: Other models that are in memory at the same time.
    """
    most = CARD_MICRO_BATCH_TOKENS if device.is_card else MICRO_BATCH_TOKENS
    halves = [most >> i for i in range(most.bit_length()) if most >> i >= LEAST_MICRO_BATCH_TOKENS]
    plans = [
        _plan(sizes, device, dtype, num, checkpointing, work or TrainingWork(), beside)
        for num, checkpointing in [
            *((num, False) for num in halves if num >= MICRO_BATCH_TOKENS // 2),
            *((num, True) for num in halves),
        ]
    ]
    return next((plan for plan in plans if plan.needed <= device.share), plans[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsInMemory:
    """The pretrained models of a run that are in memory at the same time.

    Example: `ModelsInMemory(base=sizes).plan(ModelPart.BASE, device, "bfloat16")`
    """

    base: ModelSizes
    """Sizes of the base of both players."""
    work: TrainingWork = TrainingWork()
    """Sizes of the players' updates."""
    target: ModelSizes | None = None
    """Sizes of the targets' model, if it is one of its own."""
    black_box: ModelSizes | None = None
    """Sizes of the largest black box that is asked."""

    def plan(self, part: ModelPart, device: DeviceMemory, dtype: str) -> MemoryPlan | None:
        """Return how the model of a part fits beside the others; None if there is no such model."""
        sizes = self._sizes(part)
        if sizes is None:
            return None
        beside = self.beside(part, is_card=device.is_card)
        return plan_memory(sizes, device, dtype=dtype, work=self._work(part), beside=beside)

    def workers(self, device: DeviceMemory, dtype: str, most: int) -> int:
        """Return how many processes with all of these models a device has room for; at least one.

        Each of them has room if its smallest batches take no more than batches are chosen for; on a
        card, where smaller batches leave it idle, if full ones do.

        Args:
            device: Where they compute.
            dtype: Type of frozen weights, `float32` or `bfloat16`.
            most: Number of processes that there is work for.
        """
        least = MICRO_BATCH_TOKENS if device.is_card else LEAST_MICRO_BATCH_TOKENS
        for num in range(most, 1, -1):
            shared = device.shared_by(num)
            made = [self.plan(part, shared, dtype) for part in ModelPart]
            plans = [plan for plan in made if plan is not None]
            if all(p.needed <= shared.share and p.micro_batch_tokens >= least for p in plans):
                return num
        return 1

    def card(self) -> MemoryPlan | None:
        """Return the base's plan on the smallest class of cards that trains without haste.

        That is in bfloat16, with full micro-batches whose activations are computed again. Black
        boxes do not count: a rented card asks none. None: there is no such card.
        """
        trained = replace(self, black_box=None)
        for gigabytes, examples in CARD_CLASSES.items():
            card = DeviceMemory("cuda", gigabytes * 10**9, examples)
            plans = [
                _plan(
                    sizes,
                    card,
                    "bfloat16",
                    MICRO_BATCH_TOKENS,
                    True,
                    trained._work(part),
                    trained.beside(part, is_card=True),
                )
                for part in (ModelPart.BASE, ModelPart.TARGET)
                if (sizes := trained._sizes(part)) is not None
            ]
            if all(plan.fits for plan in plans):
                return plans[0]
        return None

    def beside(self, part: ModelPart, *, is_card: bool) -> list[Resident]:
        """Return the models that are in memory beside that of a part."""
        others: list[Resident] = []
        for other in ModelPart:
            sizes = self._sizes(other)
            if other is not part and sizes is not None:
                adapters = _adapter_parts(sizes, self._work(other), is_card=is_card)
                others.append(Resident(other, sizes, sum(adapters.values())))
        return others

    def fast_memory(self, part: ModelPart, device: DeviceMemory, dtype: str) -> int:
        """Return the bytes that the fast engine may take for the model of a part.

        Others keep theirs, with the copies of weights that it may make of them.

        Args:
            part: Part of the model.
            device: Memory of the machine.
            dtype: Type of the frozen weights of all models, `float32` or `bfloat16`.
        """
        size, held = BYTES[dtype], 0
        for other in self.beside(part, is_card=False):
            weights = other.sizes.weight_bytes(size)
            held += other.held(size) + copied_weights(weights, device.share)
        return max(0, device.share - held)

    def _sizes(self, part: ModelPart) -> ModelSizes | None:
        named = {ModelPart.BASE: self.base, ModelPart.TARGET: self.target}
        return named.get(part, self.black_box)

    def _work(self, part: ModelPart) -> TrainingWork:
        """Return the sizes of what the model of a part does."""
        if part is ModelPart.BASE:
            return self.work if self.target is None else replace(self.work, target_ranks=())
        # A target's adapters are trained one after another, before the run.
        ranks = self.work.target_ranks if part is ModelPart.TARGET else ()
        [*others, rank] = sorted(ranks) or [1]
        return replace(
            self.work,
            rows=min(self.work.rows, _ANSWERED_ROWS),
            rank=rank,
            roles=1 if ranks else 0,
            snapshots=0,
            target_ranks=tuple(others),
        )


def card_for(sizes: ModelSizes, *, work: TrainingWork | None = None) -> MemoryPlan | None:
    """Return the plan on the smallest class of cards that trains a model; see `ModelsInMemory`."""
    return ModelsInMemory(base=sizes, work=work or TrainingWork()).card()


def copied_weights(weights: int, memory: int) -> int:
    """Return the bytes of copies that the fast engine makes of a model's weights.

    They are the base in its layout, and the adapters of both players, each merged into a copy; none
    where memory is short.

    Args:
        weights: Bytes of the weights.
        memory: Bytes that the engine may take in all.
    """
    copies = 3 * weights
    return copies if copies <= COPIES_SHARE * (memory - weights - CPU_OVERHEAD) else 0


def _plan(
    sizes: ModelSizes,
    device: DeviceMemory,
    dtype: str,
    micro_batch_tokens: int,
    gradient_checkpointing: bool,
    work: TrainingWork,
    beside: Sequence[Resident],
) -> MemoryPlan:
    return MemoryPlan(
        device=device,
        dtype=dtype,
        micro_batch_tokens=micro_batch_tokens,
        gradient_checkpointing=gradient_checkpointing,
        parts=memory_parts(
            sizes,
            work,
            dtype=dtype,
            is_card=device.is_card,
            micro_batch_tokens=micro_batch_tokens,
            gradient_checkpointing=gradient_checkpointing,
            beside=beside,
        ),
    )


def disk_gb(*weight_bytes: int) -> int:
    """Return GB of disk that a rented machine needs to train with models of these sizes."""
    return math.ceil(_SOFTWARE_DISK_GB + 1.1 * sum(weight_bytes) / 1e9)
