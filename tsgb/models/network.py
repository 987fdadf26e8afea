"""A causal language model of the Llama family as one pure function of its weights.

It reads the weights of a transformers module by their own names, so it agrees with that module
(tests compare them) and costs a fraction of its Python time, which is what a tiny model's step
consists of. It knows nothing of roles, tokenizers or losses.

Shape letters: B rows, T new tokens, S all tokens seen so far, H heads, D width of a head,
E width of the model, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


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

    def linear(self, x: Tensor, name: str) -> Tensor:
        """Apply the linear layer called `name` (without `.weight`)."""
        ...


class Cache:
    """Keys and values of all tokens seen so far, one pair a layer."""

    def __init__(self, layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    @property
    def length(self) -> int:
        """S: tokens held."""
        first = self.keys[0]
        return 0 if first is None else first.shape[2]

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Append and return everything."""
        old_k, old_v = self.keys[layer], self.values[layer]
        if old_k is not None and old_v is not None:
            k_BHTD = torch.cat((old_k, k_BHTD), 2)
            v_BHTD = torch.cat((old_v, v_BHTD), 2)
        self.keys[layer], self.values[layer] = k_BHTD, v_BHTD
        return k_BHTD, v_BHTD

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) rows: the batch becomes `rows`, in that order."""
        self.keys = [None if k is None else k.index_select(0, rows) for k in self.keys]
        self.values = [None if v is None else v.index_select(0, rows) for v in self.values]


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def _rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x_BHTD.shape[-1] // 2
    turned = torch.cat((-x_BHTD[..., half:], x_BHTD[..., :half]), -1)
    return x_BHTD * cos + turned * sin


def hidden_states(
    weights: Weights,
    shape: Shape,
    ids_BT: Tensor,
    *,
    positions_BT: Tensor | None = None,
    mask_BTS: Tensor | None = None,
    cache: Cache | None = None,
) -> Tensor:
    """Run the model up to its final norm.

    Without a mask, attention is causal: with right padding no real token sees a pad.

    Args:
        weights: base, or base with adapter.
        shape: see `Shape`.
        ids_BT: token ids.
        positions_BT: rotary positions; 0..T-1 when left out.
        mask_BTS: True where a token may look.
        cache: earlier tokens; extended in place.

    Returns:
        [B, T, E] hidden states, normalised, ready for `logits`.
    """
    B, T = ids_BT.shape
    x = F.embedding(ids_BT, weights.tensor("model.embed_tokens.weight"))
    if positions_BT is None:
        positions_BT = torch.arange(T, device=ids_BT.device)[None]
    half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device=ids_BT.device)
    frequency = shape.rope_theta ** (-half / shape.head_dim)
    angle = positions_BT[:, None, :, None].to(torch.float32) * frequency
    angle = torch.cat((angle, angle), -1)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    mask = None if mask_BTS is None else mask_BTS[:, None]
    grouped = shape.kv_heads != shape.heads
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        h = _rms_norm(x, weights.tensor(f"{name}.input_layernorm.weight"), shape.rms_eps)
        q = weights.linear(h, f"{name}.self_attn.q_proj").view(B, T, shape.heads, shape.head_dim)
        k = weights.linear(h, f"{name}.self_attn.k_proj").view(B, T, shape.kv_heads, shape.head_dim)
        v = weights.linear(h, f"{name}.self_attn.v_proj").view(B, T, shape.kv_heads, shape.head_dim)
        q, k, v = (
            _rotate(q.transpose(1, 2), cos, sin),
            _rotate(k.transpose(1, 2), cos, sin),
            v.transpose(1, 2),
        )
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        a = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and T > 1, enable_gqa=grouped
        )
        a = a.transpose(1, 2).reshape(B, T, shape.heads * shape.head_dim)
        x = x + weights.linear(a, f"{name}.self_attn.o_proj")
        h = _rms_norm(x, weights.tensor(f"{name}.post_attention_layernorm.weight"), shape.rms_eps)
        gate = F.silu(weights.linear(h, f"{name}.mlp.gate_proj"))
        x = x + weights.linear(
            gate * weights.linear(h, f"{name}.mlp.up_proj"), f"{name}.mlp.down_proj"
        )
    return _rms_norm(x, weights.tensor("model.norm.weight"), shape.rms_eps)


def logits(weights: Weights, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
    """Project hidden states to the vocabulary, or to the vocabulary entries `rows` only."""
    head = weights.tensor("lm_head.weight")
    return F.linear(hidden, head if rows is None else head[rows])
