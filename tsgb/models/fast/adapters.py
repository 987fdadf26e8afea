"""Roles of the fast engine: the frozen base, a LoRA adapter on it, or whole weights beside it.

The base itself is the reference policy of both players: there is never a second copy of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tsgb.models.engine import Role
from tsgb.models.fast.network import EMBEDDING, HEAD, Weights

SMALL_PARAMETERS = 20_000_000
"""Bases up to this size spend memory to save time: joined copies of layers that read the same
input, activations kept for the backward pass, large batches."""


class BaseWeights(Role, Weights):
    """The frozen tensors of a causal LM, by the names that transformers gives them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self.tensors.setdefault(HEAD, self.tensors[EMBEDDING])
        self._joined: dict[tuple[str, ...], Tensor] = {}
        self.small = sum(t.numel() for t in self.tensors.values()) <= SMALL_PARAMETERS

    @classmethod
    def of(cls, module: nn.Module) -> BaseWeights:
        """Share a module's tensors, without a copy."""
        return cls({name: t.detach() for name, t in module.state_dict().items()})

    def tensor(self, name: str) -> Tensor:
        """See `network.Weights`."""
        return self.tensors[name]

    def linear(self, x: Tensor, *names: str) -> Tensor:
        """See `network.Weights`."""
        if len(names) == 1:
            return F.linear(x, self.tensors[f"{names[0]}.weight"])
        if not self.small:
            return torch.cat([F.linear(x, self.tensors[f"{name}.weight"]) for name in names], -1)
        weight = self._joined.get(names)
        if weight is None:
            weight = torch.cat([self.tensors[f"{name}.weight"] for name in names])
            self._joined[names] = weight
        return F.linear(x, weight)

    def recomputed(self, layer: int) -> Sequence[Tensor] | None:  # noqa: ARG002
        """See `network.Weights`; the base is never trained."""
        return None

    def frozen(self) -> BaseWeights:
        """See `network.Weights`."""
        return self


class Adapter(Role, Weights):
    """A role that is trained: its parameters, and the forward pass through them."""

    parameters: dict[str, nn.Parameter]
    """Trainable parameters by the names under which they are saved."""


class FullAdapter(Adapter):
    """Whole weights, which start as a copy of the base."""

    def __init__(self, base: BaseWeights) -> None:
        tied = base.tensors[HEAD].data_ptr() == base.tensors[EMBEDDING].data_ptr()
        self.parameters = {
            name: nn.Parameter(tensor.clone())
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
            return F.linear(x, self.parameters[f"{names[0]}.weight"])
        return F.linear(x, torch.cat([self.parameters[f"{name}.weight"] for name in names]))

    def recomputed(self, layer: int) -> Sequence[Tensor] | None:  # noqa: ARG002
        """See `network.Weights`; whole weights are for small bases."""
        return None

    def frozen(self) -> Weights:
        """See `network.Weights`."""
        return BaseWeights({name: p.detach() for name, p in self.parameters.items()})


class LoraAdapter(Adapter):
    """A LoRA adapter on every linear layer: `W x + B A x`, never merged (Hu et al. 2021).

    Names and shapes are those of a peft adapter with `target_modules="all-linear"` (a test loads it
    into peft), but peft itself would import transformers: 7 CPU seconds and 200 MB a process.
    Merging and unmerging does not restore the bits of the base, so the frozen base stays untouched.
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
        for name, weight in sorted(base.tensors.items()):
            place = name.split(".")
            if "layers" not in place or weight.dim() != 2:
                continue
            layer = name.removesuffix(".weight")
            a = nn.Parameter(weight.new_zeros(rank, weight.shape[1]))
            b = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
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
        parts = [self._linear(x, name) for name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def recomputed(self, layer: int) -> Sequence[Tensor] | None:
        """See `network.Weights`: on a large base, everything but what goes into a layer."""
        return None if self._base.small else self._layers.get(layer)

    def frozen(self) -> Weights:
        """See `network.Weights`."""
        return self

    def _linear(self, x: Tensor, name: str) -> Tensor:
        y = self._base.linear(x, name)
        pair = self._pairs.get(name)
        if pair is None:
            return y
        return y + F.linear(F.linear(x, pair[0]), pair[1])
