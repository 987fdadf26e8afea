"""Causal attention over packed rows, with rotary positions, as one recorded operation.

Recording its dozen steps one by one costs a tiny model more than the steps; the gradient here is
the textbook one and is checked against autograd in the tests.

Shape letters: B rows, N tokens of all rows, M tokens that ask, P of them in a row, T tokens in a
row, J heads of keys, G heads of queries for each of them, D width of a head.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd import Function

from tsgb.models.fast.packing import Grid, Ints, Rows
from tsgb.models.fast.rotary import Rotary
from tsgb.models.torch_typing import from_numpy, pieces

PLAIN_PAIRS = 128 * 128
"""Up to this many pairs of positions, plain products beat the flash kernel on a CPU (twofold);
beyond, its memory counts."""


@lru_cache(maxsize=64)
def _causal(length: int, dtype: torch.dtype) -> Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)


class Lookup:
    """Who looks at what in one layer: M asking tokens at all earlier tokens of their rows."""

    def __init__(
        self,
        rows: Rows,
        select_M: Ints | None,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rotary: Rotary,
        dtype: torch.dtype,
    ) -> None:
        """Lay the tokens out; see `network.hidden_states` for the arguments."""
        self.J, self.G, self.D = kv_heads, heads // kv_heads, head_dim
        keys = rows.grid
        self.B, self.T = keys.B, keys.T
        cos, sin = rotary.table(head_dim, keys.T, dtype)
        at_N = from_numpy(rows.columns_N)
        self.key_turn = cos.index_select(0, at_N)[:, None], sin.index_select(0, at_N)[:, None]
        self.key_there, self.key_back = keys.moves(2 * kv_heads)
        self.key_shared = keys.shared(2 * kv_heads)
        row_M, column_M = rows.rows_N, rows.columns_N
        cos_M, sin_M = self.key_turn
        if select_M is not None:
            row_M, column_M = row_M[select_M], column_M[select_M]
            at_M = from_numpy(column_M)
            cos_M, sin_M = cos.index_select(0, at_M)[:, None], sin.index_select(0, at_M)[:, None]
        # Queries are scaled where they are turned.
        self.query_turn = cos_M * head_dim**-0.5, sin_M * head_dim**-0.5
        queries = Grid.filled_from_left(np.bincount(row_M, minlength=keys.B))
        self.P = queries.T
        self.query_there, self.query_back = queries.grouped_moves(kv_heads, self.G)
        self.filled = queries.filled(heads, dtype)
        if self.filled is not None:
            filled = self.filled.view(kv_heads, self.G, self.B, self.P)
            self.filled = filled.transpose(1, 2).reshape(-1, 1)
        self.bias = _causal(keys.T, dtype)
        if select_M is not None or self.key_shared is not None:
            at_BP = from_numpy(column_M[queries.source_BT])
            self.bias = self.bias.index_select(0, at_BP.view(-1)).view(self.B, self.P, self.T)
            self.bias = self.bias[:, None]


def attend(q_MC: Tensor, kv_NC: Tensor, lookup: Lookup) -> Tensor:
    """Attention of M tokens, [M, heads * D].

    Args:
        q_MC: their queries, heads side by side.
        kv_NC: keys, then values, of all tokens.
        lookup: who looks at what.
    """
    if lookup.P * lookup.T > PLAIN_PAIRS:
        return attend_recorded(q_MC, kv_NC, lookup)
    if not torch.is_grad_enabled():
        return _forward(q_MC, kv_NC, lookup)[0]
    return cast("Tensor", cast("Any", _Attend).apply(q_MC, kv_NC, lookup))


def attend_recorded(q_MC: Tensor, kv_NC: Tensor, lookup: Lookup) -> Tensor:
    """The same in PyTorch's own operations: slower for short rows, lean for long ones."""
    D, H = lookup.D, lookup.J * lookup.G
    k_NJD, v_NJD = pieces(kv_NC.view(-1, 2 * lookup.J, D), lookup.J, 1)
    q = _halves(q_MC.view(-1, H, D), *lookup.query_turn)
    k = _halves(k_NJD, *lookup.key_turn)
    kv = torch.cat((k, v_NJD), 1).view(-1, D).index_select(0, lookup.key_there)
    k, v = pieces(kv.view(2 * lookup.J, lookup.B, lookup.T, D).transpose(0, 1), lookup.J, 1)
    q = q.reshape(-1, D).index_select(0, lookup.query_there)
    q_BHPD = q.view(lookup.J, lookup.B, lookup.G, lookup.P, D).transpose(0, 1).flatten(1, 2)
    out = F.scaled_dot_product_attention(
        q_BHPD, k, v, attn_mask=lookup.bias, enable_gqa=lookup.G > 1, scale=1.0
    )
    out = out.view(lookup.B, lookup.J, -1, D).transpose(0, 1).reshape(-1, D)
    return out.index_select(0, lookup.query_back).view(-1, H * D)


def keys_and_values(kv_NC: Tensor, lookup: Lookup) -> Tensor:
    """Turned keys, then values, of all tokens as a grid [2 * J, B, T, D]."""
    J, D = lookup.J, lookup.D
    kv = _turn(kv_NC.view(-1, 2 * J, D), *lookup.key_turn, J, 1)
    return kv.view(-1, D).index_select(0, lookup.key_there).view(2 * J, lookup.B, lookup.T, D)


def _halves(x_NCD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x_NCD.chunk(2, -1)
    return x_NCD * cos + torch.cat((-right, left), -1) * sin


def _turn(x_NCD: Tensor, cos: Tensor, sin: Tensor, turned: int, sign: int) -> Tensor:
    """Rotate the first `turned` heads by their token's angle, forwards (1) or backwards (-1)."""
    half = x_NCD.shape[-1] // 2
    out = torch.empty_like(x_NCD)
    here, there = x_NCD[:, :turned], out[:, :turned]
    torch.mul(here, cos, out=there)
    sin = sin[..., :half]
    there[..., :half].addcmul_(here[..., half:], sin, value=-sign)
    there[..., half:].addcmul_(here[..., :half], sin, value=sign)
    if turned < x_NCD.shape[1]:
        out[:, turned:] = x_NCD[:, turned:]
    return out


def _forward(
    q_MC: Tensor, kv_NC: Tensor, lookup: Lookup
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    J, G, D, P, T = lookup.J, lookup.G, lookup.D, lookup.P, lookup.T
    q = _turn(q_MC.view(-1, J * G, D), *lookup.query_turn, J * G, 1).view(-1, D)
    q = q.index_select(0, lookup.query_there).view(-1, G * P, D)
    k, v = keys_and_values(kv_NC, lookup).view(2, -1, T, D).unbind(0)
    scores = torch.bmm(q, k.transpose(1, 2))
    scores.view(J, -1, G, P, T).add_(lookup.bias)
    share = torch.softmax(scores, -1)
    out = torch.bmm(share, v).view(-1, D).index_select(0, lookup.query_back)
    return out.view(-1, J * G * D), q, k, v, share


class _Attend(Function):
    @staticmethod
    def forward(ctx: Any, q_MC: Tensor, kv_NC: Tensor, lookup: Lookup) -> Tensor:
        out, *kept = _forward(q_MC, kv_NC, lookup)
        ctx.lookup = lookup
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        lookup: Lookup = ctx.lookup
        J, G, D, P, T = lookup.J, lookup.G, lookup.D, lookup.P, lookup.T
        q, k, v, share = ctx.saved_tensors
        g = grads[0].reshape(-1, D).index_select(0, lookup.query_there)
        if lookup.filled is not None:
            g.mul_(lookup.filled)
        g = g.view(-1, G * P, D)
        g_share = torch.bmm(g, v.transpose(1, 2))
        # Torch's own backward of softmax; it has no public name.
        softmax_backward: Any = vars(torch)["_softmax_backward_data"]
        g_scores = cast("Tensor", softmax_backward(g_share, share, -1, share.dtype))
        g_q = torch.bmm(g_scores, k).view(-1, D).index_select(0, lookup.query_back)
        g_q = _turn(g_q.view(-1, J * G, D), *lookup.query_turn, J * G, -1)
        g_kv = torch.empty(2, len(k), T, D, dtype=k.dtype)
        product = (
            torch.mul if G * P == 1 else torch.bmm
        )  # the product kernel is slow at outer products
        product(g_scores.transpose(1, 2), q, out=g_kv[0])
        product(share.transpose(1, 2), g, out=g_kv[1])
        # No real token looks at a pad, so a pad's gradient is zero and need not be collected.
        grid = g_kv.view(-1, D)
        g_kv = grid.index_select(0, lookup.key_back)
        if lookup.key_shared is not None:
            slots, tokens = lookup.key_shared
            g_kv.index_add_(0, tokens, grid.index_select(0, slots))
        g_kv = _turn(g_kv.view(-1, 2 * J, D), *lookup.key_turn, J, -1)
        return g_q.view(-1, J * G * D), g_kv.view(-1, 2 * J * D), None
