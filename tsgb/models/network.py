"""A causal language model of the Llama family as one pure function of its weights.

It reads the weights of a transformers module by their own names, so it agrees with that module
(tests compare them) at a fraction of its cost: padding is never multiplied, and the last layer is
computed only where somebody looks. It knows nothing of roles, tokenizers or losses.

Shape letters: B rows, N tokens of all rows, M tokens that are looked at, P of them in a row,
T tokens in a row, H heads, C heads of any kind, D width of a head, E width of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tsgb.models.kernels import move, rms_norm, rotary, rotate
from tsgb.models.packing import Grid, Ints, Rows

SMALL_ATTENTION = 4096
"""Up to this many pairs of positions, plain products beat the flash kernel on a CPU (twofold)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers that the weights alone do not say."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_eps: float
    rope_theta: float

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


class Weights(Protocol):
    """Where the forward pass gets its tensors from: a base, or a base with a role's adapter."""

    def tensor(self, name: str) -> Tensor:
        """A weight that is used as it is (embeddings, norms)."""
        ...

    def linear(self, x: Tensor, *names: str) -> Tensor:
        """Apply the linear layers called `names` (without `.weight`); outputs side by side."""
        ...

    def frozen(self) -> Weights:
        """The same function without gradients, cheaper to call often; until the next update."""
        ...


Heads = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [H, B, T, D]."""


def hidden_states(
    weights: Weights,
    shape: Shape,
    rows: Rows,
    select_M: Ints | None = None,
    cache: list[Heads] | None = None,
) -> Tensor:
    """Run the model up to its final norm.

    Args:
        weights: base, or base with adapter.
        shape: see `Shape`.
        rows: tokens.
        select_M: ascending indices of the tokens whose states are wanted; all when left out.
        cache: each layer's keys and values are appended to it.

    Returns:
        [M, E] (or [N, E]) hidden states, normalised, ready for `logits`.
    """
    keys = queries = rows.grid
    x = F.embedding(rows.ids_N, weights.tensor("model.embed_tokens.weight"))
    cos, sin = rotary(shape.rope_theta, shape.head_dim, rows.positions_N, keys.T, x.dtype)
    seen = torch.ones(keys.T, keys.T, dtype=torch.bool).tril()
    bias = _bias(seen, x.dtype)
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        h = rms_norm(x, weights.tensor(f"{name}.input_layernorm.weight"), shape.rms_eps)
        if select_M is not None and layer == shape.layers - 1:
            queries = Grid(np.bincount(keys.rows_N[select_M], minlength=keys.B))
            picked = torch.from_numpy(select_M)
            x, wanted = x.index_select(0, picked), h.index_select(0, picked)
            q = weights.linear(wanted, f"{name}.self_attn.q_proj")
            q = q.view(-1, shape.heads, shape.head_dim)
            kv = weights.linear(h, f"{name}.self_attn.k_proj", f"{name}.self_attn.v_proj")
            kv = kv.view(-1, 2 * shape.kv_heads, shape.head_dim)
            q = rotate(q, cos.index_select(0, picked), sin.index_select(0, picked), shape.heads)
            kv = rotate(kv, cos, sin, shape.kv_heads)
            at_BP = torch.from_numpy(keys.columns_N[select_M][queries.source_BT])
            seen = torch.arange(keys.T) <= at_BP[:, :, None]
            bias = _bias(seen, x.dtype)
            q, kv = _to_grid(q, queries), _to_grid(kv, keys)
        else:
            qkv = weights.linear(h, *(f"{name}.self_attn.{p}_proj" for p in "qkv"))
            qkv = qkv.view(-1, shape.heads + 2 * shape.kv_heads, shape.head_dim)
            qkv = _to_grid(rotate(qkv, cos, sin, shape.heads + shape.kv_heads), keys)
            q, kv = qkv.split((shape.heads, 2 * shape.kv_heads))
        k, v = kv.split(shape.kv_heads)
        if cache is not None:
            cache.append((k, v))
        a = _from_grid(_attend(q, k, v, seen, bias), queries)
        x = weights.linear(a, f"{name}.self_attn.o_proj").add_(x)
        x = feed_forward(weights, shape, x, name)
    return rms_norm(x, weights.tensor("model.norm.weight"), shape.rms_eps)


def feed_forward(weights: Weights, shape: Shape, x: Tensor, name: str) -> Tensor:
    """The second half of layer `name`, residual included."""
    h = rms_norm(x, weights.tensor(f"{name}.post_attention_layernorm.weight"), shape.rms_eps)
    gate = F.silu(weights.linear(h, f"{name}.mlp.gate_proj"))
    up = weights.linear(h, f"{name}.mlp.up_proj")
    return weights.linear(gate * up, f"{name}.mlp.down_proj").add_(x)


def logits(weights: Weights, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
    """Project hidden states to the vocabulary, or to the vocabulary entries `rows` only."""
    head = weights.tensor("lm_head.weight")
    return F.linear(hidden, head if rows is None else head.index_select(0, rows))


def _bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))


def _to_grid(x_NCD: Tensor, grid: Grid) -> Tensor:
    """[N, C, D] to [C, B, T, D]."""
    C, D = x_NCD.shape[1:]
    there, back = grid.moves(C)
    return move(x_NCD.view(-1, D), there, back).view(C, grid.B, grid.T, D)


def _from_grid(x_CBTD: Tensor, grid: Grid) -> Tensor:
    """[C, B, T, D] to [N, C * D]."""
    C, D = x_CBTD.shape[0], x_CBTD.shape[3]
    there, back = grid.moves(C)
    flat = x_CBTD.reshape(-1, D)
    return move(flat, back, there, grid.filled(C, flat.dtype)).view(-1, C * D)


def _attend(q_HBPD: Tensor, k_HBTD: Tensor, v_HBTD: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
    """Attention where `seen` ([P, T] or [B, P, T]) is True; `bias` says the same additively."""
    H, B, P, D = q_HBPD.shape
    T = k_HBTD.shape[2]
    if k_HBTD.shape[0] == H and P * T <= SMALL_ATTENTION:
        q, k, v = q_HBPD.view(-1, P, D), k_HBTD.view(-1, T, D), v_HBTD.view(-1, T, D)
        spread = bias if bias.dim() == 2 else bias.repeat(H, 1, 1)
        scores = torch.baddbmm(spread, q, k.transpose(1, 2), alpha=D**-0.5)
        return torch.bmm(torch.softmax(scores, -1), v).view(H, B, P, D)
    mask = seen if seen.dim() == 2 else seen[:, None]
    return F.scaled_dot_product_attention(
        q_HBPD.transpose(0, 1),
        k_HBTD.transpose(0, 1),
        v_HBTD.transpose(0, 1),
        attn_mask=mask,
        enable_gqa=k_HBTD.shape[0] != H,
    ).transpose(0, 1)
