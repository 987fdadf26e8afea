"""A causal language model, Llama or Qwen2, as one pure function of its weights.

It reads the weights of a transformers module by their own names, so it agrees with that module
(tests compare them) at a fraction of its cost: padding is never multiplied, and the last layer is
computed only where somebody looks. It knows nothing of roles, tokenizers or losses.

Shape letters: N tokens of all rows, M tokens that are looked at, B rows, T tokens in a row,
D width of a head, E width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd import Function

from tsgb.models.fast.attention import Lookup, attend, keys_and_values
from tsgb.models.fast.kernels import rms_norm
from tsgb.models.fast.packing import Ints, Rows
from tsgb.models.fast.prepacked import multiply, multiply_back
from tsgb.models.fast.rotary import Rotary
from tsgb.models.recomputation import recomputed
from tsgb.models.torch_typing import from_numpy

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
"""Class of transformers for each model type that this pass computes."""
POSITIONS = 64
"""Positions whose logits exist at once: 13 MB for 49 thousand words. With fewer, reading the head
takes longer than multiplying by it."""
BACKWARD_POSITIONS = 128
"""Positions whose gradients go back through the head at once: a product with 32 rows takes 1.4
times as long for each of them."""


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
    rotary: Rotary
    """Frequencies of the rotary positions."""

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Read a transformers `LlamaConfig` (or one with the same fields).

        Raises:
            ValueError: Its positions are not computed here.
        """
        head_dim = getattr(config, "head_dim", None)
        return cls(
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim or config.hidden_size // config.num_attention_heads,
            rms_eps=config.rms_norm_eps,
            rotary=Rotary.read(cast("Mapping[str, Any]", vars(config))),
        )

    def lookup(self, rows: Rows, select_M: Ints | None, dtype: torch.dtype) -> Lookup:
        """Return the attention pattern of a layer of this shape."""
        return Lookup(
            rows,
            select_M,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            rotary=self.rotary,
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

    def recomputed(self, layer: int, num_tokens: int, row_tokens: int) -> Sequence[Tensor] | None:
        """Return the parameters in a layer whose activations are not kept for a backward pass.

        None, unless a class says otherwise: they are kept.

        Args:
            layer: number of the layer.
            num_tokens: tokens of the batch.
            row_tokens: tokens of its longest row.
        """
        del layer, num_tokens, row_tokens
        return None

    def keeps_logits(self, num: int) -> bool:
        """Tell whether the logits of so many positions are kept for a backward pass."""
        del num
        return True

    def frozen(self) -> Weights:
        """The same function without gradients, cheaper to call often; until the next update."""
        return self

    def merged(self) -> Weights:
        """The same function, adapter and base as one where memory allows; until the next update."""
        return self


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
    x = F.embedding(rows.ids_N, weights.tensor(EMBEDDING)).float()
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
        parameters = weights.recomputed(layer, len(rows.ids_N), rows.grid.T)
        x = run(x) if parameters is None else recomputed(run, x, parameters)
    x = rms_norm(x, weights.tensor(NORM), shape.rms_eps)
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
    if rows is None and not torch.is_grad_enabled():
        return weights.linear(hidden, "lm_head")
    head = weights.tensor(HEAD)
    return multiply(hidden, head if rows is None else head.index_select(0, rows).to(hidden.dtype))


def token_logps(
    weights: Weights,
    hidden_ME: Tensor,
    ids_M: Tensor,
    temperature: float = 1.0,
    given: Sequence[Tensor] | None = None,
    *,
    entropies: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probability of a token at each position and entropy there, in nats, [M] each.

    Args:
        weights: base, or base with adapter.
        hidden_ME: final hidden states.
        ids_M: the tokens.
        temperature: divides the logits.
        given: the logits, a few positions after the other, where they are known.
        entropies: whether entropies are computed; they are 0 otherwise.
    """
    return cast("Any", _TokenLogps).apply(
        hidden_ME, weights.tensor(HEAD), weights, ids_M, temperature, given, entropies
    )


class _TokenLogps(Function):
    """Log-probabilities and entropies, a few positions at a time.

    The distributions are kept for the backward pass where memory allows, and computed again else.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ME: Tensor,
        head_VE: Tensor,
        weights: Weights,
        ids_M: Tensor,
        temperature: float,
        given: Sequence[Tensor] | None,
        entropies: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.weights, ctx.temperature, ctx.entropies = weights, temperature, entropies
        ctx.chunks = _chunks(len(ids_M), given)
        keeps = given is not None or weights.keeps_logits(len(ids_M))
        kept: list[Tensor] | None = [] if keeps and ctx.needs_input_grad[0] else None
        logp_M = hidden_ME.new_empty(len(ids_M))
        entropy_M = torch.zeros_like(logp_M)
        for number, here in enumerate(ctx.chunks):
            logits_PV = None if given is None else given[number]
            logp_PV = _distributions(weights, hidden_ME[here], temperature, logits_PV)
            logp_M[here] = logp_PV.gather(-1, ids_M[here, None]).squeeze(-1)
            if entropies:
                entropy_M[here] = logp_PV.exp().mul_(logp_PV).sum(-1).neg_()
            if kept is not None:
                kept.append(logp_PV)
        ctx.kept = kept
        ctx.save_for_backward(hidden_ME, head_VE, ids_M, entropy_M)
        return logp_M, entropy_M

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ME, head_VE, ids_M, entropy_M = ctx.saved_tensors
        # With z = logits / T: d logp[i] / dz = 1[i] - p, and dH / dz = -p (log p + H).
        g_logp_M1, g_entropy_M1 = (grad[:, None] / ctx.temperature for grad in grads)
        along_M1 = torch.addcmul(g_logp_M1, g_entropy_M1, entropy_M[:, None]).neg_()
        g_hidden_ME = torch.empty_like(hidden_ME)
        g_head_VE = torch.zeros_like(head_VE) if ctx.needs_input_grad[1] else None
        for numbers, whole in _batches(ctx.chunks):
            g_PV = hidden_ME.new_empty(whole.stop - whole.start, len(head_VE))
            for number in numbers:
                here = ctx.chunks[number]
                if ctx.kept is None:
                    logp_PV = _distributions(ctx.weights, hidden_ME[here], ctx.temperature)
                else:
                    logp_PV = ctx.kept[number]
                part_PV = g_PV[here.start - whole.start : here.stop - whole.start]
                torch.exp(logp_PV, out=part_PV)
                if ctx.entropies:
                    part_PV.mul_(
                        torch.addcmul(along_M1[here], logp_PV, g_entropy_M1[here], value=-1)
                    )
                else:
                    part_PV.mul_(along_M1[here])
            g_PV.scatter_add_(1, ids_M[whole, None], g_logp_M1[whole])
            g_hidden_ME[whole] = multiply_back(g_PV, head_VE)
            if g_head_VE is not None:
                g_head_VE.addmm_(g_PV.t(), hidden_ME[whole])
        return g_hidden_ME, g_head_VE, None, None, None, None, None


def _chunks(num: int, given: Sequence[Tensor] | None) -> list[slice]:
    """Cut positions into pieces: those of the logits that are given, else small ones."""
    if given is None:
        starts = range(0, num, POSITIONS)
        return [slice(start, min(start + POSITIONS, num)) for start in starts]
    ends = accumulate(map(len, given))
    return [slice(end - len(logits), end) for logits, end in zip(given, ends, strict=True)]


def _batches(chunks: Sequence[slice]) -> Iterator[tuple[range, slice]]:
    """Yield the numbers of chunks that go back at once, and all of their positions."""
    first = 0
    for number, here in enumerate(chunks):
        start = chunks[first].start
        if here.stop - start >= BACKWARD_POSITIONS or number == len(chunks) - 1:
            yield range(first, number + 1), slice(start, here.stop)
            first = number + 1


@torch.no_grad()
def _distributions(
    weights: Weights, hidden_PE: Tensor, temperature: float, logits_PV: Tensor | None = None
) -> Tensor:
    """Log-probabilities [P, V] of all words."""
    if logits_PV is None:
        logits_PV = weights.linear(hidden_PE, "lm_head").float()
    return torch.log_softmax(logits_PV if temperature == 1 else logits_PV / temperature, -1)
