"""Rows that grow by one token a call: keys and values kept, no gradients.

Shape letters: A rows alive, S slots for tokens, J heads of keys, G heads of queries for each of
them, D width of a head, E width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tsgb.models.attention import rotary_table
from tsgb.models.network import Shape, Weights, hidden_states, logits
from tsgb.models.packing import Rows


class Decoder:
    """Prompts, each several times, and what was appended to them."""

    def __init__(
        self,
        weights: Weights,
        shape: Shape,
        prompts: Sequence[Sequence[int]],
        group: int,
        max_new_tokens: int,
    ) -> None:
        """Read the prompts once and repeat each one `group` times."""
        self._weights, self._shape = weights, shape
        rows = Rows(prompts)
        read: list[Tensor] = []
        self._hidden_AE = hidden_states(weights, shape, rows, rows.last().repeat(group), read)
        self._filled = rows.grid.T
        S = rows.grid.T + max_new_tokens
        heads = torch.cat(read).index_select(1, torch.from_numpy(rows.place_R.repeat(group)))
        # All layers in one tensor, so that dropping rows is one call.
        self._cache_CASD = F.pad(heads, (0, 0, 0, max_new_tokens))
        cos, sin = rotary_table(shape.rope_theta, shape.head_dim, S, self._hidden_AE.dtype)
        half = shape.head_dim // 2
        self._cos, self._sin = cos, torch.cat((-sin[:, :half], sin[:, half:]), 1)
        self._position_A1 = torch.from_numpy(rows.counts_R.repeat(group))[:, None]
        self._bias_AS: Tensor | None = None
        if int(rows.counts_R.min()) < rows.grid.T:
            # Prompts of unequal lengths leave empty slots between prompt and completion.
            slots = torch.arange(S)
            empty = (slots >= self._position_A1) & (slots < rows.grid.T)
            self._bias_AS = torch.zeros(empty.shape, dtype=self._hidden_AE.dtype)
            self._bias_AS.masked_fill_(empty, float("-inf"))

    def logits(self) -> Tensor:
        """Logits [A, V] of each row's next token."""
        return logits(self._weights, self._hidden_AE)

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self._cache_CASD = self._cache_CASD.index_select(1, rows)
        if self._bias_AS is not None:
            self._bias_AS = self._bias_AS.index_select(0, rows)
            self._position_A1 = self._position_A1.index_select(0, rows)

    def feed(self, token_A: Tensor) -> None:
        """Append one token to each row."""
        weights, shape, eps = self._weights, self._shape, self._shape.rms_eps
        J, D, A = shape.kv_heads, shape.head_dim, len(token_A)
        H, G, here, end = shape.heads, shape.heads // J, self._filled, self._filled + 1
        if self._bias_AS is None:
            cos, sin = self._cos[here], self._sin[here]
            bias = None
        else:
            cos, sin = self._cos[self._position_A1], self._sin[self._position_A1]
            self._position_A1 = self._position_A1 + 1
            bias = self._bias_AS[:, None, :end].repeat(J, 1, 1)
        x = F.embedding(token_A, weights.tensor("model.embed_tokens.weight"))
        size = x.shape[-1:]
        for layer in range(shape.layers):
            name = f"model.layers.{layer}"
            h = F.rms_norm(x, size, weights.tensor(f"{name}.input_layernorm.weight"), eps)
            qkv = weights.linear(h, *(f"{name}.self_attn.{p}_proj" for p in "qkv"))
            qkv = qkv.view(A, H + 2 * J, D)
            qk = qkv[:, : H + J]
            qk = torch.addcmul(qk * cos, qk.roll(D // 2, -1), sin)
            cache = self._cache_CASD[2 * J * layer : 2 * J * (layer + 1)]
            cache[:J, :, here] = qk[:, H:].transpose(0, 1)
            cache[J:, :, here] = qkv[:, H + J :].transpose(0, 1)
            q = qk[:, :H].unflatten(1, (J, G)).transpose(0, 1).reshape(J * A, G, D)
            k = cache[:J].view(J * A, -1, D)[:, :end]
            v = cache[J:].view(J * A, -1, D)[:, :end]
            if bias is None:
                scores = torch.bmm(q, k.transpose(1, 2)).mul_(D**-0.5)
            else:
                scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=D**-0.5)
            a = torch.bmm(torch.softmax(scores, -1), v).view(J, A, G * D)
            a = a.transpose(0, 1).reshape(A, H * D)
            x = weights.linear(a, f"{name}.self_attn.o_proj").add_(x)
            h = F.rms_norm(x, size, weights.tensor(f"{name}.post_attention_layernorm.weight"), eps)
            gate = F.silu(weights.linear(h, f"{name}.mlp.gate_proj"))
            gate.mul_(weights.linear(h, f"{name}.mlp.up_proj"))
            x = weights.linear(gate, f"{name}.mlp.down_proj").add_(x)
        self._hidden_AE = F.rms_norm(x, size, weights.tensor("model.norm.weight"), eps)
        self._filled = end
