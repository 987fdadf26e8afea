"""A causal language model of the Llama family as one pure function of its weights.

It reads the weights of a transformers module by their own names, so it agrees with that module
(tests compare them) at a fraction of its cost: padding is never multiplied, and the last layer is
computed only where somebody looks. It knows nothing of roles, tokenizers or losses.

Shape letters: N tokens of all rows, M tokens that are looked at, B rows, T tokens in a row,
D width of a head, E width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tsgb.models.fast.attention import Lookup, attend, keys_and_values
from tsgb.models.fast.kernels import rms_norm
from tsgb.models.fast.packing import Ints, Rows
from tsgb.models.recomputation import recomputed
from tsgb.models.torch_typing import from_numpy

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
POSITIONS = 16
"""At once: 3 MB of logits for 49 thousand words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers that the weights alone do not say."""

    layers: int
    """Number of layers."""
    heads: int
    """Number of query heads."""
    kv_heads: int
    """Number of key and value heads."""
    head_dim: int
    """Width of one head."""
    rms_eps: float
    """Epsilon of the RMS norm."""
    rope_theta: float
    """Base of the rotary frequencies."""

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Read a transformers `LlamaConfig` (or one with the same fields)."""
        rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
        head_dim = getattr(config, "head_dim", None)
        return cls(
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim or config.hidden_size // config.num_attention_heads,
            rms_eps=config.rms_norm_eps,
            rope_theta=float(rope.get("rope_theta", getattr(config, "rope_theta", 10_000.0))),
        )

    def lookup(self, rows: Rows, select_M: Ints | None, dtype: torch.dtype) -> Lookup:
        """Return the attention pattern of a layer of this shape."""
        return Lookup(
            rows,
            select_M,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            theta=self.rope_theta,
            dtype=dtype,
        )


class Weights(Protocol):
    """Where the forward pass gets its tensors from: a base, or a base with a role's adapter."""

    def tensor(self, name: str) -> Tensor:
        """A weight that is used as it is (embeddings, norms)."""
        ...

    def linear(self, x: Tensor, *names: str) -> Tensor:
        """Apply the linear layers called `names` (without `.weight`); outputs side by side."""
        ...

    def recomputed(self, layer: int) -> Sequence[Tensor] | None:
        """The parameters in a layer whose activations are not kept for the backward pass.

        None: they are kept.
        """
        ...

    def frozen(self) -> Weights:
        """The same function without gradients, cheaper to call often; until the next update."""
        ...


def hidden_states(
    weights: Weights,
    shape: Shape,
    rows: Rows,
    select_M: Ints | None = None,
    cache: list[Tensor] | None = None,
) -> Tensor:
    """Run the model up to its final norm.

    Args:
        weights: base, or base with adapter.
        shape: see `Shape`.
        rows: tokens.
        select_M: numbers of the tokens whose states are wanted, in any order; all when left out.
        cache: each layer's keys and values, [2 * kv_heads, B, T, D], are appended to it.

    Returns:
        [M, E] (or [N, E]) hidden states, normalised, ready for `logits`.
    """
    x = F.embedding(rows.ids_N, weights.tensor(EMBEDDING))
    lookup = shape.lookup(rows, None, x.dtype)
    distinct, inverse = None, None
    if select_M is not None:
        distinct, inverse = np.unique(select_M, return_inverse=True)
    for layer in range(shape.layers):
        picked = distinct if layer == shape.layers - 1 else None
        asking = lookup if picked is None else shape.lookup(rows, picked, x.dtype)
        name = f"model.layers.{layer}"
        run = partial(
            _layer, weights, shape, name, lookup=lookup, asking=asking, picked=picked, cache=cache
        )
        parameters = weights.recomputed(layer)
        x = run(x) if parameters is None else recomputed(run, x, parameters)
    x = rms_norm(x, weights.tensor("model.norm.weight"), shape.rms_eps)
    return x if inverse is None else x.index_select(0, from_numpy(inverse))


def _layer(
    weights: Weights,
    shape: Shape,
    name: str,
    x: Tensor,
    *,
    lookup: Lookup,
    asking: Lookup,
    picked: Ints | None,
    cache: list[Tensor] | None,
) -> Tensor:
    """Layer `name` on all tokens `x`, or its result for the `picked` ones only."""
    h = rms_norm(x, weights.tensor(f"{name}.input_layernorm.weight"), shape.rms_eps)
    kv = weights.linear(h, f"{name}.self_attn.k_proj", f"{name}.self_attn.v_proj")
    if cache is not None:
        cache.append(keys_and_values(kv, lookup))
    if picked is not None:
        index = from_numpy(picked)
        x, h = x.index_select(0, index), h.index_select(0, index)
    a = attend(weights.linear(h, f"{name}.self_attn.q_proj"), kv, asking)
    x = weights.linear(a, f"{name}.self_attn.o_proj").add_(x)
    return feed_forward(weights, shape, x, name)


def feed_forward(weights: Weights, shape: Shape, x: Tensor, name: str) -> Tensor:
    """The second half of layer `name`, residual included."""
    h = rms_norm(x, weights.tensor(f"{name}.post_attention_layernorm.weight"), shape.rms_eps)
    gate = F.silu(weights.linear(h, f"{name}.mlp.gate_proj"))
    up = weights.linear(h, f"{name}.mlp.up_proj")
    return weights.linear(gate * up, f"{name}.mlp.down_proj").add_(x)


def logits(weights: Weights, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
    """Project hidden states to the vocabulary, or to the vocabulary entries `rows` only."""
    head = weights.tensor(HEAD)
    return F.linear(hidden, head if rows is None else head.index_select(0, rows))


def token_logps(
    weights: Weights, hidden_ME: Tensor, ids_M: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of a token at each position and entropy there, in nats, [M] each.

    Args:
        weights: base, or base with adapter.
        hidden_ME: final hidden states.
        ids_M: the tokens.
        temperature: divides the logits.
    """
    head = weights.tensor(HEAD)
    parameters = [head] if head.requires_grad else []
    parts: list[Tensor] = []
    for start in range(0, len(ids_M), POSITIONS):
        ids = ids_M[start : start + POSITIONS, None]

        def both(hidden: Tensor, ids: Tensor = ids) -> Tensor:
            logits_MV = logits(weights, hidden).float()
            if temperature != 1:
                logits_MV /= temperature
            logp_MV = torch.log_softmax(logits_MV, -1)
            entropy = -(logp_MV.exp() * logp_MV).sum(-1, keepdim=True)
            return torch.cat((logp_MV.gather(-1, ids), entropy), -1)

        parts.append(recomputed(both, hidden_ME[start : start + POSITIONS], parameters))
    logp_M, entropy_M = torch.cat(parts).unbind(-1)
    return logp_M, entropy_M
