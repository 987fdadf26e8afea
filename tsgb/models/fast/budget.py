"""Memory that the fast engine may take, and what it does with it.

With much memory it keeps activations, and copies of weights that are faster to multiply with; with
little it reads few rows at a time and computes activations again. The choice depends on the memory
that a machine has, not on what is free, so that a run which is resumed makes the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tsgb.models.fast.network import EMBEDDING, HEAD, Shape
from tsgb.models.planner import CPU_OVERHEAD, FAMILIES, ModelSizes, copied_weights

_FLOAT32 = 4
_SAMPLING_COPIES = 5
"""Tensors as large as the logits of all rows, while a token is sampled."""
_GRID = 2
"""Slots of the grid that attention is computed on, for each token."""
_RANK = 16
"""Rank that activations are counted for; their size hardly depends on it."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What fits into the memory for one base.

    Example: `Budget.of(module, 12_000_000_000).write_rows(86)`
    """

    sizes: ModelSizes
    """Sizes of the base."""
    heads: int
    """Heads of its queries."""
    copies: bool
    """Whether weights are copied into layouts that are faster, and adapters merged into a copy."""
    free: int
    """Bytes for activations, caches and logits."""

    @classmethod
    def of(cls, module: nn.Module, memory: int) -> Budget:
        """Divide memory up.

        Args:
            module: The base: parameters by the names of transformers, and `config`.
            memory: Bytes that the engine may take in all.
        """
        config: Any = module.config
        shape, tensors = Shape.of(config), dict(module.named_parameters())
        vocabulary, width = tensors[EMBEDDING].shape
        sizes = ModelSizes(
            family=FAMILIES["llama"],
            layers=shape.layers,
            width=width,
            query_width=shape.heads * shape.head_dim,
            key_width=shape.kv_heads * shape.head_dim,
            inner=tensors["model.layers.0.mlp.up_proj.weight"].shape[0],
            vocabulary=vocabulary,
            tied=HEAD not in tensors,
        )
        weights = tensors[EMBEDDING].element_size() * sizes.parameters
        free = max(0, memory - weights - CPU_OVERHEAD)
        copied = copied_weights(weights, memory)
        return cls(sizes, shape.heads, copied > 0, free - copied)

    def write_rows(self, row_tokens: int) -> int:
        """Return how many rows of a length are written at once; at least one."""
        row = 2 * self.sizes.cached(row_tokens, _FLOAT32)  # grows by copying
        row += _SAMPLING_COPIES * _FLOAT32 * self.sizes.vocabulary
        return max(1, self.free // (2 * row))

    def keeps(self, num_tokens: int, row_tokens: int) -> bool:
        """Tell whether all activations of so many tokens in rows of a length can be kept."""
        # Heads keep weights of a padded grid, and keys and values of shared beginnings again.
        grid = _GRID * (self.heads * row_tokens + 3 * self.sizes.query_width)
        layer = self.sizes.kept(_RANK, _FLOAT32, row_tokens) + _FLOAT32 * grid
        return num_tokens * layer * (self.sizes.layers + 1) <= self.free // 2

    def keeps_tape(self, num_tokens: int, row_tokens: int) -> bool:
        """Tell whether so many tokens can be written on a tape, and an update learn from it."""
        sizes = self.sizes
        outputs = 2 * (sizes.query_width + sizes.key_width + sizes.inner) + 2 * sizes.width
        tape = num_tokens * _FLOAT32 * (outputs * sizes.layers + sizes.vocabulary)
        return tape <= self.free // 4 and self.keeps(num_tokens, row_tokens)

    def keeps_logits(self, num: int) -> bool:
        """Tell whether the logits of so many positions can be kept."""
        return num * self.sizes.vocabulary * _FLOAT32 <= self.free // 8
