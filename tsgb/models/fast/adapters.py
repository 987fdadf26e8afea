"""Roles of the fast engine: the frozen base, a LoRA adapter on it, or whole weights beside it.

The base itself is the reference policy of both players: there is never a second copy of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd import Function

from tsgb.models.engine import Role
from tsgb.models.fast.budget import Budget
from tsgb.models.fast.network import EMBEDDING, HEAD, Weights
from tsgb.models.fast.prepacked import Linear, linear_of, multiply, multiply_back
from tsgb.models.weights import fingerprint


class BaseWeights(Role, Weights):
    """The frozen tensors of a causal LM, by the names that transformers gives them."""

    def __init__(self, tensors: Mapping[str, Tensor], budget: Budget | None = None) -> None:
        """Share tensors.

        Args:
            tensors: weights by name; a head that is missing is the embedding.
            budget: memory for copies and activations; left out for a base so small that there is
                no need to count.
        """
        self.tensors = dict(tensors)
        self.tensors.setdefault(HEAD, self.tensors[EMBEDDING])
        self.budget = budget
        self.small = budget is None
        self._joined: dict[tuple[str, ...], Affine] = {}
        self._linears: dict[str, Linear] = {}

    @classmethod
    def of(cls, module: nn.Module, budget: Budget | None = None) -> BaseWeights:
        """Share a module's matrices, in its dtype; vectors are small, and float32."""
        tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
        return cls({n: t.float() if t.dim() == 1 else t for n, t in tensors.items()}, budget)

    @property
    def copies(self) -> bool:
        """Whether there is memory for copies of large weights."""
        return self.budget is not None and self.budget.copies

    def tensor(self, name: str) -> Tensor:
        """See `network.Weights`."""
        return self.tensors[name]

    def linear(self, x: Tensor, *names: str) -> Tensor:
        """See `network.Weights`."""
        if self.copies:
            return side_by_side([self._linear(name)(x) for name in names])
        if len(names) == 1 or not self.small:
            return side_by_side([multiply(x, *_layer(self.tensors, name)) for name in names])
        if names not in self._joined:
            self._joined[names] = _join(self.tensors, names)
        return multiply(x, *self._joined[names])

    def _linear(self, name: str) -> Linear:
        if name not in self._linears:
            self._linears[name] = linear_of(*_layer(self.tensors, name))
        return self._linears[name]

    def keeps_logits(self, num: int) -> bool:
        """See `network.Weights`."""
        return self.budget is None or self.budget.keeps_logits(num)


Affine = tuple[Tensor, Tensor | None]
"""Weight [out, in] and bias [out] of a linear layer; none is zero."""


def _layer(tensors: Mapping[str, Tensor], name: str) -> Affine:
    return tensors[f"{name}.weight"], tensors.get(f"{name}.bias")


def _join(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Affine:
    """Return layers on the same input as one; either all of them have a bias, or none."""
    weights, biases = zip(*(_layer(tensors, name) for name in names), strict=True)
    return torch.cat(weights), None if biases[0] is None else torch.cat(biases)


def side_by_side(parts: list[Tensor]) -> Tensor:
    """Return the outputs of several layers on the same input as one tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class Adapter(Role, Weights):
    """A role that is trained: its parameters, and the forward pass through them."""

    parameters: dict[str, nn.Parameter]
    """Trainable parameters by the names under which they are saved."""


class FullAdapter(Adapter):
    """Whole weights, which start as a copy of the base."""

    def __init__(self, base: BaseWeights) -> None:
        tied = base.tensors[HEAD].data_ptr() == base.tensors[EMBEDDING].data_ptr()
        self.parameters = {
            name: nn.Parameter(tensor.to(torch.float32, copy=True))
            for name, tensor in base.tensors.items()
            if not (tied and name == HEAD)
        }
        self._tied = tied

    @classmethod
    def around(cls, parameters: dict[str, nn.Parameter]) -> FullAdapter:
        """Train a module's own parameters in place, without a copy."""
        adapter = cls.__new__(cls)
        adapter.parameters = parameters
        adapter._tied = HEAD not in parameters
        return adapter

    def tensor(self, name: str) -> Tensor:
        """See `network.Weights`."""
        return self.parameters[EMBEDDING if self._tied and name == HEAD else name]

    def linear(self, x: Tensor, *names: str) -> Tensor:
        """See `network.Weights`."""
        if len(names) == 1:
            weight = self.tensor(f"{names[0]}.weight")
            return F.linear(x, weight, self.parameters.get(f"{names[0]}.bias"))
        return F.linear(x, *_join(self.parameters, names))

    def frozen(self) -> Weights:
        """See `network.Weights`."""
        return BaseWeights({name: p.detach() for name, p in self.parameters.items()})


class LoraAdapter(Adapter):
    """A LoRA adapter on every linear layer: `W x + B A x` (Hu et al. 2021).

    Names and shapes are those of a peft adapter with `target_modules="all-linear"` (a test loads it
    into peft), but peft itself would import transformers: 7 CPU seconds and 200 MB a process.
    Merging and unmerging does not restore the bits of the base, so it is merged into a copy.
    """

    def __init__(self, base: BaseWeights, *, rank: int) -> None:
        """Make parameters for `base`; nothing is initialised before `reset`.

        Args:
            base: shared frozen tensors.
            rank: LoRA rank r; alpha = r, so the scale is 1.
        """
        self._base = base
        self.parameters: dict[str, nn.Parameter] = {}
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self._layers: dict[int, list[Tensor]] = {}
        self._merged: MergedLora | None = None
        self._merged_state: tuple[int, ...] = ()
        for name, weight in sorted(base.tensors.items()):
            place = name.split(".")
            if "layers" not in place or weight.dim() != 2:
                continue
            layer = name.removesuffix(".weight")
            a = nn.Parameter(weight.new_zeros(rank, weight.shape[1], dtype=torch.float32))
            b = nn.Parameter(weight.new_zeros(weight.shape[0], rank, dtype=torch.float32))
            self._pairs[layer] = (a, b)
            self.parameters[f"base_model.model.{layer}.lora_A.weight"] = a
            self.parameters[f"base_model.model.{layer}.lora_B.weight"] = b
            self._layers.setdefault(int(place[place.index("layers") + 1]), []).extend((a, b))

    def reset(self, generator: torch.Generator) -> None:
        """Initialise as peft does (A Kaiming-uniform, B zero), from a private generator."""
        for a, b in self._pairs.values():
            bound = (1.0 / a.shape[1]) ** 0.5
            with torch.no_grad():
                a.uniform_(-bound, bound, generator=generator)
                b.zero_()

    def tensor(self, name: str) -> Tensor:
        """See `network.Weights`."""
        return self._base.tensors[name]

    def linear(self, x: Tensor, *names: str) -> Tensor:
        """See `network.Weights`."""
        return side_by_side([self._linear(x, name) for name in names])

    def recomputed(self, layer: int, num_tokens: int, row_tokens: int) -> Sequence[Tensor] | None:
        """See `network.Weights`: on a large base, everything but what goes into a layer."""
        budget = self._base.budget
        if budget is None or budget.keeps(num_tokens, row_tokens):
            return None
        return self._layers.get(layer)

    def keeps_logits(self, num: int) -> bool:
        """See `network.Weights`."""
        return self._base.keeps_logits(num)

    def merged(self) -> Weights:
        """See `network.Weights`; the same object until the next update."""
        if not self._base.copies:
            return self
        state = fingerprint(self.parameters.values())
        if self._merged is None or state != self._merged_state:
            self._merged = None  # frees its memory before another one takes as much
            self._merged, self._merged_state = MergedLora(self), state
        return self._merged

    def adapts(self, name: str) -> bool:
        """Tell whether a linear layer has an adapter."""
        return name in self._pairs

    def bias(self, name: str) -> Tensor | None:
        """Return the bias of a linear layer, which stays frozen."""
        return self._base.tensors.get(f"{name}.bias")

    def pair(self, name: str) -> LoraPair:
        """Return the adapter of a linear layer, and the layer's own weight."""
        return LoraPair(self._base.tensors[f"{name}.weight"], *self._pairs[name])

    def beside(self, name: str) -> Linear:
        """Return a linear layer with its adapter beside it, without gradients."""
        _, a, b = self.pair(name)
        return lambda x: self._base.linear(x, name).addmm_(F.linear(x, a), b.t())

    def _linear(self, x: Tensor, name: str) -> Tensor:
        if not self.adapts(name):
            return self._base.linear(x, name)
        return self.pair(name).apply(x, self.beside(name))


class LoraPair(NamedTuple):
    """A linear layer and its adapter; in and out are the widths of the layer, r is the rank."""

    weight: Tensor
    """[out, in] frozen weight of the layer."""
    a: Tensor
    """[r, in] what reads the input."""
    b: Tensor
    """[out, r] what writes to the output."""

    def apply(self, x_MI: Tensor, run: Linear) -> Tensor:
        """Return `run(x)`, the output of layer and adapter, with the gradient of both."""
        if not torch.is_grad_enabled():
            return run(x_MI)
        return cast("Tensor", cast("Any", _AdaptedLinear).apply(x_MI, run, *self))


class MergedLora(Weights):
    """A LoRA adapter whose matrices are added to copies of the layers, until the next update.

    Beside a layer in bfloat16 they are left as they are: rounded with its weight to 8 bits, a third
    of what an adapter has learned would be lost.
    """

    def __init__(self, adapter: LoraAdapter) -> None:
        self.adapter = adapter
        self._linears: dict[str, Linear] = {}

    def tensor(self, name: str) -> Tensor:
        """See `network.Weights`."""
        return self.adapter.tensor(name)

    def linear(self, x: Tensor, *names: str) -> Tensor:
        """See `network.Weights`."""
        return side_by_side([self._adapted(x, name) for name in names])

    def _adapted(self, x: Tensor, name: str) -> Tensor:
        if not self.adapter.adapts(name):
            return self.adapter.linear(x, name)
        return self.adapter.pair(name).apply(x, self._linear(name))

    @torch.no_grad()
    def _linear(self, name: str) -> Linear:
        if name not in self._linears:
            weight, a, b = self.adapter.pair(name)
            if weight.dtype is torch.float32:
                made = linear_of(torch.addmm(weight, b, a), self.adapter.bias(name))
            else:
                made = self.adapter.beside(name)
            self._linears[name] = made
        return self._linears[name]

    def recomputed(self, layer: int, num_tokens: int, row_tokens: int) -> Sequence[Tensor] | None:
        """See `network.Weights`."""
        return self.adapter.recomputed(layer, num_tokens, row_tokens)

    def keeps_logits(self, num: int) -> bool:
        """See `network.Weights`."""
        return self.adapter.keeps_logits(num)


class _AdaptedLinear(Function):
    """`W x + B A x` as one operation; what is kept for the backward pass is the input alone.

    Shape letters: M tokens, I and O widths of input and output, r rank.
    """

    @staticmethod
    def forward(
        ctx: Any, x_MI: Tensor, run: Linear, weight_OI: Tensor, a_rI: Tensor, b_Or: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x_MI, weight_OI, a_rI, b_Or)
        return run(x_MI)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g_MO,) = grads
        x_MI, weight_OI, a_rI, b_Or = ctx.saved_tensors
        # Products with so few columns are four times as fast with the few as rows.
        g_rM = b_Or.t() @ g_MO.t()
        g_b_rO = F.linear(x_MI, a_rI).t() @ g_MO
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = multiply_back(g_MO, weight_OI).addmm_(g_rM.t(), a_rI)
        return g_x, None, None, g_rM @ x_MI, g_b_rO.t().contiguous()
