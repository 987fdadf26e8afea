"""The weights of a role on a frozen base: a peft LoRA adapter, or whole weights for tiny bases.

Adapters off is the base itself, which is the reference policy of both players: there is never a
second copy of it in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tsgb.models.network import Weights

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
FUSED_PARAMETERS = 20_000_000
"""Bases up to this size keep joined copies of layers that read the same input; larger ones would
pay in memory for what is no longer their bottleneck."""


class BaseWeights:
    """The frozen tensors of a transformers causal LM, by their own names."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self.tensors.setdefault(HEAD, self.tensors[EMBEDDING])
        self._joined: dict[tuple[str, ...], Tensor] = {}
        self._join = sum(t.numel() for t in self.tensors.values()) <= FUSED_PARAMETERS

    @classmethod
    def of(cls, module: nn.Module) -> BaseWeights:
        """Share (not copy) a module's tensors."""
        return cls({name: t.detach() for name, t in module.state_dict().items()})

    def tensor(self, name: str) -> Tensor:
        """See `network.Weights`."""
        return self.tensors[name]

    def linear(self, x: Tensor, *names: str) -> Tensor:
        """See `network.Weights`."""
        if len(names) == 1:
            return F.linear(x, self.tensors[f"{names[0]}.weight"])
        if not self._join:
            return torch.cat([F.linear(x, self.tensors[f"{name}.weight"]) for name in names], -1)
        weight = self._joined.get(names)
        if weight is None:
            weight = torch.cat([self.tensors[f"{name}.weight"] for name in names])
            self._joined[names] = weight
        return F.linear(x, weight)

    def frozen(self) -> BaseWeights:
        """See `Adapter`."""
        return self


class Adapter(Protocol):
    """A role's trainable parameters, and the forward pass through them."""

    parameters: dict[str, nn.Parameter]
    """By the names under which they are saved."""

    def tensor(self, name: str) -> Tensor:
        """See `network.Weights`."""
        ...

    def linear(self, x: Tensor, *names: str) -> Tensor:
        """See `network.Weights`."""
        ...

    def frozen(self) -> Weights:
        """The same function without gradients, cheaper to call often; until the next update."""
        ...


class FullAdapter:
    """Whole weights: starts as a copy of the base."""

    def __init__(self, base: BaseWeights) -> None:
        tied = base.tensors[HEAD] is base.tensors[EMBEDDING]
        self.parameters = {
            name: nn.Parameter(tensor.clone())
            for name, tensor in base.tensors.items()
            if not (tied and name == HEAD)
        }
        self._tied = tied

    @classmethod
    def around(cls, parameters: dict[str, nn.Parameter]) -> FullAdapter:
        """Forward through (and train) a module's own parameters, no copy."""
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

    def frozen(self) -> Weights:
        """See `Adapter`."""
        return BaseWeights({name: p.detach() for name, p in self.parameters.items()})


class LoraAdapter:
    """A peft LoRA adapter on every linear layer; `W x + (alpha / r) B A x`, never merged.

    Merging and unmerging does not restore the bits of the base, so the frozen base stays untouched.
    """

    def __init__(self, base: BaseWeights, module: nn.Module, *, rank: int, role: str) -> None:
        """Take the role's parameters from peft, so that names and initialisation are peft's.

        Args:
            base: shared frozen tensors.
            module: the transformers module (or the PeftModel of an earlier role) to inject into.
            rank: r; alpha = r, so the scale is 1.
            role: adapter name.
        """
        import peft  # not at the top: whole-weight roles do without it, and it imports the compiler

        config = peft.LoraConfig(
            r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        if isinstance(module, peft.PeftModel):
            module.add_adapter(role, config)
            self.module = module
        else:
            self.module = peft.PeftModel(module, config, adapter_name=role)  # pyright: ignore[reportArgumentType]
        self._base = base
        self._scale = 1.0
        self.parameters: dict[str, nn.Parameter] = {}
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        found: dict[str, nn.Parameter] = dict(self.module.named_parameters())
        for name, parameter in found.items():
            if f".lora_A.{role}." not in name:
                continue
            other = found[name.replace(".lora_A.", ".lora_B.")]
            layer = name.removeprefix("base_model.model.").split(".lora_A.")[0]
            self._pairs[layer] = (parameter, other)
            for key, value in ((name, parameter), (name.replace("lora_A", "lora_B"), other)):
                value.requires_grad_(True)
                self.parameters[key.replace(f".{role}.weight", ".weight")] = value

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

    def frozen(self) -> Weights:
        """See `Adapter`."""
        return self

    def _linear(self, x: Tensor, name: str) -> Tensor:
        y = self._base.linear(x, name)
        pair = self._pairs.get(name)
        if pair is None:
            return y
        return y + self._scale * F.linear(F.linear(x, pair[0]), pair[1])


def load_parameters(adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into an adapter, bit for bit.

    Raises:
        KeyError: a parameter is missing in `tensors`.
    """
    with torch.no_grad():
        for name, parameter in adapter.parameters.items():
            parameter.copy_(tensors[name])


def snapshot(adapter: Adapter) -> dict[str, Tensor]:
    """A detached copy of an adapter's parameters."""
    return {name: p.detach().clone() for name, p in adapter.parameters.items()}
