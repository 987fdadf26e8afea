"""Rows that grow by one token a call: keys and values kept, no gradients.

Shape letters: A rows alive, S slots for tokens, H heads of queries, J heads of keys, D width of a
head, E width of the model.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tsgb.models.fast.kernels import rms_norm
from tsgb.models.fast.network import (
    EMBEDDING,
    NORM,
    Shape,
    Weights,
    feed_forward,
    hidden_states,
    logits,
)
from tsgb.models.fast.packing import Ints, Rows
from tsgb.models.fast.tape import Tape
from tsgb.models.torch_typing import from_numpy, pieces


class Decoder:
    """Prompts, each several times, and what was appended to them."""

    def __init__(
        self,
        weights: Weights,
        shape: Shape,
        rows: Rows,
        group: int,
        max_new_tokens: int,
        tape: Tape | None = None,
    ) -> None:
        """Read the prompts once and repeat each one `group` times.

        Args:
            weights: base, or base with adapter.
            shape: see `network.Shape`.
            rows: the prompts.
            group: times.
            max_new_tokens: tokens that may be appended.
            tape: keeps what is computed.
        """
        self._tape = tape
        self._weights = weights if tape is None else tape.recorder
        self._shape = shape
        self._alive_A: Ints = np.arange(len(rows.counts_R) * group)
        read: list[Tensor] = []
        self._hidden_AE = hidden_states(self._weights, shape, rows, rows.last().repeat(group), read)
        self._filled = rows.grid.T
        S = rows.grid.T + max_new_tokens
        J, H, D = shape.kv_heads, shape.heads, shape.head_dim
        place_A = from_numpy(rows.place_R.repeat(group))
        # Slots first: a token is appended, and all slots are read, in one piece.
        self._cache_SAJD: list[Tensor] = []
        for layer in read:
            for part_JBTD in pieces(layer, J):
                cache = part_JBTD.new_empty(S, len(place_A), J, D)
                cache[: rows.grid.T] = part_JBTD.index_select(1, place_A).permute(2, 1, 0, 3)
                self._cache_SAJD.append(cache)
        cos, sin = shape.rotary.table(D, S, self._hidden_AE.dtype)
        sin = torch.cat((-sin[:, : D // 2], sin[:, D // 2 :]), 1)
        # Queries are scaled where they are turned.
        scale = torch.tensor([D**-0.5] * H + [1.0] * J)[:, None]
        self._cos = (cos[:, None] * scale).to(cos.dtype)
        self._sin = (sin[:, None] * scale).to(cos.dtype)
        self._position_A = from_numpy(rows.counts_R.repeat(group))
        self._bias_SA: Tensor | None = None
        if int(rows.counts_R.min()) < rows.grid.T:
            # Prompts of unequal lengths leave empty slots between prompt and completion.
            slots = torch.arange(S)[:, None]
            empty = (slots >= self._position_A) & (slots < rows.grid.T)
            self._bias_SA = torch.zeros(empty.shape, dtype=cos.dtype)
            self._bias_SA.masked_fill_(empty, float("-inf"))

    def logits(self) -> Tensor:
        """Logits [A, V] of each row's next token."""
        return logits(self._weights, self._hidden_AE)

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows; what was fed last is lost, so feed next."""
        filled = self._filled
        self._alive_A = self._alive_A[rows.numpy()]
        for number, cache in enumerate(self._cache_SAJD):
            left = cache.new_empty(len(cache), len(rows), *cache.shape[2:])
            torch.index_select(cache[:filled], 1, rows, out=left[:filled])
            self._cache_SAJD[number] = left
        if self._bias_SA is not None:
            self._bias_SA = self._bias_SA.index_select(1, rows)
            self._position_A = self._position_A.index_select(0, rows)

    def feed(self, token_A: Tensor) -> None:
        """Append one token to each row."""
        weights, shape = self._weights, self._shape
        if self._tape is not None:
            self._tape.feed(self._alive_A)
        J, D, A = shape.kv_heads, shape.head_dim, len(token_A)
        H, here, end = shape.heads, self._filled, self._filled + 1
        if self._bias_SA is None:
            cos, sin, bias = self._cos[here], self._sin[here], None
        else:
            cos = self._cos.index_select(0, self._position_A)
            sin = self._sin.index_select(0, self._position_A)
            self._position_A = self._position_A + 1
            bias = self._bias_SA[:end, :, None]
        x = F.embedding(token_A, weights.tensor(EMBEDDING)).float()
        for layer in range(shape.layers):
            name = f"model.layers.{layer}"
            h = rms_norm(x, weights.tensor(f"{name}.input_layernorm.weight"), shape.rms_eps)
            qkv = weights.linear(h, *(f"{name}.self_attn.{p}_proj" for p in "qkv"))
            qkv = qkv.view(A, H + 2 * J, D)
            qk = qkv[:, : H + J]
            qk = torch.addcmul(qk * cos, qk.roll(D // 2, -1), sin)
            keys, values = self._cache_SAJD[2 * layer : 2 * layer + 2]
            keys[here], values[here] = qk[:, H:], qkv[:, H + J :]
            a = _attend(qk[:, :H], keys[:end], values[:end], bias)
            x = weights.linear(a.view(A, H * D), f"{name}.self_attn.o_proj").add_(x)
            x = feed_forward(weights, shape, x, name)
        self._hidden_AE = rms_norm(x, weights.tensor(NORM), shape.rms_eps)
        self._filled = end


def _attend(q_AHD: Tensor, k_SAJD: Tensor, v_SAJD: Tensor, bias_SA1: Tensor | None) -> Tensor:
    """Attention of one token a row over all its slots."""
    S, A, J, D = k_SAJD.shape
    if q_AHD.shape[1] == J:
        # One query a head is an outer sum: plain arithmetic is several times faster than products
        # of such thin matrices, and softmax over the first dimension runs along whole rows.
        scores = (k_SAJD * q_AHD).sum(-1)
        if bias_SA1 is not None:
            scores += bias_SA1
        return (v_SAJD * torch.softmax(scores, 0)[..., None]).sum(0)
    k, v = k_SAJD.view(S, A * J, D).transpose(0, 1), v_SAJD.view(S, A * J, D).transpose(0, 1)
    scores = torch.bmm(q_AHD.reshape(A * J, -1, D), k.transpose(1, 2))
    if bias_SA1 is not None:
        scores.view(A, J, -1, S).add_(bias_SA1.permute(1, 2, 0)[:, None])
    return torch.bmm(torch.softmax(scores, -1), v)
