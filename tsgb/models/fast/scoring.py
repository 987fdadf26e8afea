"""Verdict scores without gradients, from a template that is read once.

Keys and values of the opening that all prompts share are computed at the first score of a role and
kept until its parameters change.

The way of computing depends on the prompts of a call alone, so a score does not depend on what was
scored before, bit for bit.

Shape letters: N tokens of all rows, R rows, B distinct rows, T tokens in the longest one, P of them
that ask, S tokens of the opening; J heads of keys, G heads of queries for each of them, D width of
a head, E width of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tsgb.models.engine import LEAST_OPENING, Tick
from tsgb.models.fast.adapters import Adapter, BaseWeights
from tsgb.models.fast.kernels import rms_norm
from tsgb.models.fast.network import EMBEDDING, HEAD, NORM, Shape, feed_forward
from tsgb.models.fast.packing import Rows
from tsgb.models.tokenizer import GuardRows
from tsgb.models.torch_typing import from_numpy
from tsgb.models.weights import fingerprint

_BATCH_TOKENS = 1024
"""Tokens that are read at once, padding included, unless a single row has more; bounds memory."""
LONG_PAIRS = 512 * 512
"""Pairs of positions in a row up to which all shares of attention are kept; beyond, memory counts.
"""


class _Past(NamedTuple):
    """Keys and values of an opening in one layer."""

    keys_JDS: Tensor
    """Keys, turned to their positions."""
    values_JSD: Tensor
    """Values."""


class FrozenRole:
    """A role in one state, ready to score."""

    def __init__(self, role: BaseWeights | Adapter, shape: Shape) -> None:
        """Take the weights of a role as they are now."""
        self._role = role
        self._state = _state(role)
        self._shape = shape
        self._weights = role.merged()
        self._opening: list[int] = []
        self._kept: list[_Past] = []

    def is_of(self, role: BaseWeights | Adapter) -> bool:
        """Return whether this is the present state of a role."""
        return role is self._role and _state(role) == self._state

    @torch.no_grad()
    def score_rows(self, asked: GuardRows, tick: Tick) -> Tensor:
        """Return logit(unsafe) - logit(safe) after each row, [R]; `tick` follows each batch."""
        opening = asked.opening if len(asked.opening) >= LEAST_OPENING else []
        opened: list[int] = []
        others: list[int] = []
        for number, row in enumerate(asked.rows):
            begins = len(row) > len(opening) and row[: len(opening)] == opening
            (opened if begins and opening else others).append(number)
        found_R = torch.zeros(len(asked.rows))
        head_2E = (
            self._weights.tensor(HEAD)
            .index_select(0, torch.tensor([asked.unsafe_id, asked.safe_id]))
            .float()
        )
        for numbers, start in ((opened, len(opening)), (others, 0)):
            suffixes = {number: asked.rows[number][start:] for number in numbers}
            for batch in _batches(suffixes):
                rows = Rows([suffixes[number] for number in batch])
                states_RE = self._run(rows, self._past(opening[:start]), None)
                unsafe_R, safe_R = F.linear(states_RE, head_2E).float().unbind(-1)
                found_R[batch] = unsafe_R - safe_R
                tick()
        return found_R

    def _past(self, opening: list[int]) -> list[_Past] | None:
        """Return keys and values of an opening, which are computed once; None for an empty one."""
        if not opening:
            return None
        if self._opening != opening:
            past: list[_Past] = []
            self._run(Rows([opening]), None, past)
            self._opening, self._kept = opening, past
        return self._kept

    def _run(self, rows: Rows, past: list[_Past] | None, kept: list[_Past] | None) -> Tensor:
        """Return the states [R, E] of the rows' last tokens; `kept` gets those of a single row."""
        shape, weights = self._shape, self._weights
        J, H, D = shape.kv_heads, shape.heads, shape.head_dim
        every, ends = _Asking(rows, ends=False), _Asking(rows, ends=True)
        start = 0 if past is None else past[0].values_JSD.shape[1]
        cos, sin = shape.rotary.table(D, start + rows.grid.T, torch.float32)
        at_N = from_numpy(rows.columns_N + start)
        cos_N1D, sin_N1D = cos[at_N][:, None], sin[at_N][:, None].clone()
        sin_N1D[..., : D // 2].neg_()
        source_BT = from_numpy(rows.grid.source_BT)
        x = F.embedding(rows.ids_N, weights.tensor(EMBEDDING)).float()
        for number in range(shape.layers):
            name = f"model.layers.{number}"
            asking = ends if number == shape.layers - 1 else every
            h = rms_norm(x, weights.tensor(f"{name}.input_layernorm.weight"), shape.rms_eps)
            qkv = weights.linear(h, *(f"{name}.self_attn.{part}_proj" for part in "qkv"))
            qkv = qkv.view(-1, H + 2 * J, D)
            qk = _turn(qkv[:, : H + J], cos_N1D, sin_N1D)
            keys_JBDT = qk[:, H:][source_BT].permute(2, 0, 3, 1)
            values_JBTD = qkv[:, H + J :][source_BT].permute(2, 0, 1, 3)
            if kept is not None:
                keys, values = keys_JBDT[:, 0].contiguous(), values_JBTD[:, 0].contiguous()
                kept.append(_Past(keys, values))
            before = None if past is None else past[number]
            a = _attend(qk[:, :H], keys_JBDT, values_JBTD, before, asking)
            if asking is ends:
                x = x.index_select(0, ends.source_BP[:, 0])
            x = weights.linear(a, f"{name}.self_attn.o_proj").add_(x)
            x = feed_forward(weights, shape, x, name)
        x = rms_norm(x, weights.tensor(NORM), shape.rms_eps)
        return x.index_select(0, from_numpy(rows.place_R))


def _batches(rows: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Return the numbers of rows that are read at once: of like lengths, and not too many."""
    batches: list[list[int]] = []
    for number in sorted(rows, key=lambda number: len(rows[number])):
        last = batches[-1] if batches else []
        if last and (len(last) + 1) * len(rows[number]) <= _BATCH_TOKENS:
            last.append(number)
        else:
            batches.append([number])
    return batches


class _Asking:
    """The tokens that ask in a layer: all of them, or the last one of each distinct row."""

    def __init__(self, rows: Rows, *, ends: bool) -> None:
        columns_T = torch.arange(rows.grid.T)
        source_BP, back_M = from_numpy(rows.grid.source_BT), from_numpy(rows.grid.owned_N)
        at_BP = columns_T[None]
        if ends:
            place_R, last_R = from_numpy(rows.place_R), from_numpy(rows.last())
            source_BP = torch.zeros(rows.grid.B, 1, dtype=torch.long)
            source_BP[place_R, 0] = last_R
            back_M = torch.arange(rows.grid.B)
            at_BP = from_numpy(rows.columns_N)[source_BP]
        self.source_BP = source_BP
        """Numbers of the tokens that ask; any at a pad."""
        self.back_M = back_M
        """Slots of the tokens in the grid [B * P]."""
        self.hidden_BPT = columns_T > at_BP[..., None]
        """[B or 1, P, T] True where a token of the row must not be seen."""


def _attend(
    q_NHD: Tensor,
    keys_JBDT: Tensor,
    values_JBTD: Tensor,
    past: _Past | None,
    asking: _Asking,
) -> Tensor:
    """Return what the asking tokens collect from the opening and from their rows, [M, H * D]."""
    J, B, D, T = keys_JBDT.shape
    P = asking.source_BP.shape[1]
    q_BPJGD = q_NHD[asking.source_BP].view(B, P, J, -1, D)
    G, S = q_BPJGD.shape[3], 0 if past is None else past.values_JSD.shape[1]
    q_JBGPD = q_BPJGD.permute(2, 0, 3, 1, 4).mul(D**-0.5)
    if P * (S + T) > LONG_PAIRS:
        return _attend_long(q_JBGPD, keys_JBDT, values_JBTD, past, asking)
    own = torch.bmm(q_JBGPD.reshape(J * B, G * P, D), keys_JBDT.reshape(J * B, D, T))
    own.view(J, B, G, P, T).masked_fill_(asking.hidden_BPT[:, None], float("-inf"))
    values_CTD = values_JBTD.reshape(J * B, T, D)
    if past is None:
        found = torch.bmm(torch.softmax(own, -1), values_CTD)
    else:
        # The opening is the same for all rows: one product, and no copies of it.
        before = torch.bmm(q_JBGPD.reshape(J, B * G * P, D), past.keys_JDS)
        share = torch.softmax(torch.cat((before.view(J * B, G * P, S), own), -1), -1)
        before, own = share[..., :S].reshape(J, B * G * P, S), share[..., S:]
        found = torch.bmm(before, past.values_JSD).view(J * B, G * P, D)
        found = found.baddbmm_(own, values_CTD)
    return _collected(found.view(J, B, G, P, D), asking)


def _attend_long(
    q_JBGPD: Tensor,
    keys_JBDT: Tensor,
    values_JBTD: Tensor,
    past: _Past | None,
    asking: _Asking,
) -> Tensor:
    """Do the same without keeping the shares."""
    B = keys_JBDT.shape[1]
    keys, values = keys_JBDT.permute(1, 0, 3, 2), values_JBTD.transpose(0, 1)
    seen_B1PT = ~asking.hidden_BPT[:, None]
    if past is not None:
        before = past.keys_JDS.transpose(1, 2)
        keys = torch.cat((before.expand(B, -1, -1, -1), keys), 2)
        values = torch.cat((past.values_JSD.expand(B, -1, -1, -1), values), 2)
        seen_B1PT = F.pad(seen_B1PT, (past.values_JSD.shape[1], 0), value=True)
    q_BCPD = q_JBGPD.transpose(0, 1).flatten(1, 2)
    out_BCPD = F.scaled_dot_product_attention(
        q_BCPD, keys, values, attn_mask=seen_B1PT, enable_gqa=True, scale=1.0
    )
    J, _, G, P, D = q_JBGPD.shape
    return _collected(out_BCPD.view(B, J, G, P, D).transpose(0, 1), asking)


def _collected(out_JBGPD: Tensor, asking: _Asking) -> Tensor:
    """Return the results of the asking tokens, heads side by side, [M, H * D]."""
    J, B, G, P, D = out_JBGPD.shape
    out_BPC = out_JBGPD.permute(1, 3, 0, 2, 4).reshape(B * P, J * G * D)
    return out_BPC.index_select(0, asking.back_M)


def _turn(x_NCD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
    """Turn the heads of tokens to their positions (Su et al. 2021); sines carry the signs."""
    half = x_NCD.shape[-1] // 2
    return torch.addcmul(x_NCD * cos_N1D, x_NCD.roll(half, -1), sin_N1D)


def _state(role: BaseWeights | Adapter) -> tuple[int, ...]:
    """Return what changes with the parameters of a role; the base has none."""
    return fingerprint(role.parameters.values()) if isinstance(role, Adapter) else ()
