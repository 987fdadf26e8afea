"""A causal LM of transformers with LoRA roles of peft, as functions of token rows.

It knows devices, padding, positions and caches, and no tokenizer or loss.

Shape letters: B rows, T tokens in a row, G prefixes, M positions that are looked at, E width of
the model, V vocabulary, A rows that grow.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from tsgb.errors import ConfigError
from tsgb.models.engine import Role
from tsgb.models.general.batches import MicroBatch, Row

TOLERANCES = {torch.float32: 1e-3}
"""Largest difference of logits that is put down to rounding, in units of their spread, by dtype."""
TOLERANCE = 0.2
"""The same in other dtypes: bfloat16 makes about .03, a wrong position or mask about 1."""
_PEFT_PREFIX = "base_model.model."
_PROBES: list[Row] = [[5, 3, 4, 6, 2, 7, 1, 3, 2], [4, 3, 5, 2, 6]]
"""Rows of different lengths that every vocabulary has."""
_REFUSALS = (AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError)
"""Exceptions of modules that are used in a way that they do not know."""


class LoraRole(Role):
    """An adapter of peft on a module, or the module without one."""

    def __init__(self, name: str, parameters: dict[str, nn.Parameter]) -> None:
        self.name = name
        """Name of the adapter; empty for the base."""
        self.parameters = parameters
        """Trainable parameters by the names under which peft saves them."""


class ReadRows(NamedTuple):
    """Rows that were read from their beginnings, and can go on."""

    states_BE: Tensor
    """[B, E] states of the last tokens."""
    cache: Any
    """Keys and values of each layer."""
    mask_BT: Tensor
    """[B, T] 1 on real tokens, 0 on padding."""
    lengths_B: Tensor
    """[B] tokens of each row."""

    def kept(self) -> ReadRows:
        """Return rows to go on with while this object can be used again; for growing caches."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        return self._replace(cache=cache)

    def spread(self, parents_A: Tensor) -> ReadRows:
        """Return the rows with these numbers, in any number of copies; this object is used up."""
        self.cache.reorder_cache(parents_A)
        return ReadRows(
            self.states_BE[parents_A],
            self.cache,
            self.mask_BT[parents_A],
            self.lengths_B[parents_A],
        )


class CausalLm:
    """A frozen module, its roles, and what they compute on one device."""

    def __init__(self, module: Any, *, gradient_checkpointing: bool = False) -> None:
        """Wrap a module.

        Args:
            module: a `PreTrainedModel` with a language-model head; stays frozen.
            gradient_checkpointing: keep only the inputs of layers for the backward pass.

        Raises:
            ConfigError: What is computed here is not what the module itself computes.
        """
        self.module: Any = module.requires_grad_(False).eval()
        self.base = LoraRole("", {})
        self._roles: list[LoraRole] = []
        self._adapted: Any = None
        self._active = self.base
        name = _backbone_of(module)
        self._backbone: Any = getattr(module, name)
        accepted = inspect.signature(self._backbone.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._cache_name = "cache_params" if "cache_params" in accepted else "past_key_values"
        # The module's own head, with its scale and soft cap, on hidden states that we have.
        self._head: Any = copy.copy(module)
        self._head._modules = {**module._modules, name: _GivenStates(self._backbone)}
        self._checkpointed: list[nn.Module] = []
        self._check()
        if gradient_checkpointing:
            self.keep_only_inputs()

    @property
    def device(self) -> torch.device:
        """Device of the module."""
        return self.module.get_input_embeddings().weight.device

    @property
    def keeps_only_inputs(self) -> bool:
        """Whether only the inputs of layers are kept for backward passes."""
        return bool(self._checkpointed)

    @property
    def shares_prefixes(self) -> bool:
        """Whether a prefix can be read once for several rows, with gradients where they are on."""
        return self._can_share and not (self._checkpointed and torch.is_grad_enabled())

    @cached_property
    def _can_share(self) -> bool:
        """Whether no layer's cache is written in place, which would cut gradients off."""
        layers = self._new_cache().layers
        return all(type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in layers)

    # -- roles -----------------------------------------------------------------------------

    def add_role(self, rank: int, generator: torch.Generator) -> LoraRole:
        """Put an adapter on every linear layer but the head; it changes nothing yet.

        Raises:
            ConfigError: peft cannot adapt the module.
        """
        import peft

        name = f"role{len(self._roles)}"
        config = peft.LoraConfig(
            r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        with self._explained("adapters of peft"):
            if self._adapted is None:
                self._adapted = peft.get_peft_model(self.module, config, adapter_name=name)
            else:
                self._adapted.add_adapter(name, config)
        own = f".{name}."
        parameters = {
            f"{_PEFT_PREFIX}{path.replace(own, '.')}": parameter
            for path, parameter in sorted(dict(self.module.named_parameters()).items())
            if own in path
        }
        _initialise(parameters, generator)
        role = LoraRole(name, parameters)
        self._roles.append(role)
        self._adapted.base_model.enable_adapter_layers()
        self._adapted.base_model.set_adapter(name)
        self._active = role
        self._thaw()
        with torch.no_grad(), self._explained("adapters of peft"):
            self._continued(role, _PROBES[:1], [0])
        return role

    def _activate(self, role: LoraRole) -> None:
        if role is self._active or self._adapted is None:
            return
        tuner = self._adapted.base_model
        if role is self.base:
            tuner.disable_adapter_layers()
        else:
            if self._active is self.base:
                tuner.enable_adapter_layers()
            tuner.set_adapter(role.name)
        self._active = role
        self._thaw()

    def _thaw(self) -> None:
        """Undo that peft freezes inactive adapters: their gradients would be lost silently."""
        for role in self._roles:
            for parameter in role.parameters.values():
                parameter.requires_grad_(True)

    @contextmanager
    def _acting_as(self, role: LoraRole) -> Generator[None]:
        before = self._active
        self._activate(role)
        try:
            yield
        finally:
            self._activate(before)

    def keep_only_inputs(self) -> None:
        """Keep only the inputs of layers for backward passes from now on."""

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            # A layer is computed again as the role that computed it, whoever was active since.
            return nullcontext(), self._acting_as(self._active)

        self.module.activation_checkpointing_enable(
            {"use_reentrant": False, "context_fn": contexts}
        )
        self._checkpointed = [
            module
            for module in self.module.modules()
            if isinstance(module, GradientCheckpointingLayer)
        ]

    # -- rows ------------------------------------------------------------------------------

    def hidden_states(
        self, role: LoraRole, batch: MicroBatch, opening: ReadRows | None = None
    ) -> Tensor:
        """Return the states [M, E] at the batch's positions, row after row, ready for `logits`.

        Args:
            role: the policy.
            batch: rows.
            opening: one row that was read, which all rows without prefixes of their own continue;
                it can be used again.
        """
        self._activate(role)
        # Padding on the right needs no mask: no token looks ahead.
        ids_BT = self._padded(batch.suffixes, left=False)
        T = ids_BT.shape[1]
        cache, given = None, {}
        if batch.prefixes or opening is not None:
            parents = batch.parents if batch.prefixes else [0] * len(batch.suffixes)
            read = self.read(role, batch.prefixes) if opening is None else opening.kept()
            prefix = read.spread(torch.tensor(parents, device=self.device))
            cache = prefix.cache
            given = self._places(
                nn.functional.pad(prefix.mask_BT, (0, T), value=1),
                prefix.lengths_B[:, None] + torch.arange(T, device=self.device),
            )
        states_BTE = self._states(ids_BT, cache, given)
        at_M = torch.tensor(batch.flat_positions(T), device=self.device)
        return states_BTE.flatten(0, 1).index_select(0, at_M)

    def logits(self, hidden_ME: Tensor) -> Tensor:
        """Return the logits [M, V] at hidden states, in float32."""
        return self._head(inputs_embeds=hidden_ME[None]).logits[0].float()

    def read(self, role: LoraRole, rows: Sequence[Row]) -> ReadRows:
        """Read rows so that they can be continued."""
        self._activate(role)
        lengths_B = torch.tensor([len(row) for row in rows], device=self.device)
        # Padding on the left: a sliding window counts slots, not positions.
        ids_BT = self._padded(rows, left=True)
        T = ids_BT.shape[1]
        mask_BT = (torch.arange(T, device=self.device) >= T - lengths_B[:, None]).long()
        cache = self._new_cache()
        given = self._places(mask_BT, (mask_BT.cumsum(1) - 1).clamp(min=0))
        states_BTE = self._states(ids_BT, cache, given)
        return ReadRows(states_BTE[:, -1], cache, mask_BT, lengths_B)

    def go_on(self, role: LoraRole, read: ReadRows, token_A: Tensor) -> ReadRows:
        """Append one token to each row that was read; `read` is used up."""
        self._activate(role)
        mask_AT = nn.functional.pad(read.mask_BT, (0, 1), value=1)
        given = self._places(mask_AT, read.lengths_B[:, None])
        states_A1E = self._states(token_A[:, None], read.cache, given)
        return ReadRows(states_A1E[:, -1], read.cache, mask_AT, read.lengths_B + 1)

    # -- inside ----------------------------------------------------------------------------

    def _states(self, ids_BT: Tensor, cache: Any, given: dict[str, Any]) -> Tensor:
        for layer in self._checkpointed:
            # The flag of the layer alone: nothing inside it may drop anything, and without
            # gradients it would refuse a cache.
            layer.training = torch.is_grad_enabled()
        if cache is not None:
            given = {**given, self._cache_name: cache}
        return self._backbone(
            input_ids=ids_BT, use_cache=cache is not None, **given
        ).last_hidden_state

    def _places(self, mask: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """Say which tokens are real and where they stand; some modules infer the latter."""
        places = {"attention_mask": mask}
        return {**places, "position_ids": positions} if self._takes_positions else places

    def _padded(self, rows: Sequence[Row], *, left: bool) -> Tensor:
        T = max(map(len, rows))
        fill = [[0] * (T - len(row)) for row in rows]
        pairs = zip(fill, map(list, rows), strict=True)
        padded = [pad + row if left else row + pad for pad, row in pairs]
        return torch.tensor(padded, device=self.device)

    def _new_cache(self) -> Any:
        return DynamicCache(config=self.module.config)

    @torch.no_grad()
    def _check(self) -> None:
        """Compare rows that are continued, alone and with others, with what the module computes.

        Raises:
            ConfigError: They differ.
        """
        with self._explained("the cache of transformers"):
            wanted_2V = torch.stack([self._by_module(row) for row in _PROBES])
            alone_2V = torch.cat([self._continued(self.base, [row], [0, 0])[1:] for row in _PROBES])
            padded_2V = self._continued(self.base, _PROBES, [1, 0])
        for found_2V, rows in ((alone_2V, "rows"), (padded_2V.flip(0), "padded rows")):
            error = float((found_2V - wanted_2V).abs().max() / wanted_2V.std())
            if not error < TOLERANCES.get(self.module.dtype, TOLERANCE):
                raise ConfigError(
                    f"a model of type {self._kind!r} does not continue {rows} as it reads them at "
                    "once: it would be computed wrongly, choose another model"
                )

    @property
    def _kind(self) -> str:
        return self.module.config.model_type

    @contextmanager
    def _explained(self, means: str) -> Generator[None]:
        """Turn what a module raises on unknown `means` into one line."""
        try:
            yield
        except _REFUSALS as error:
            reason = str(error).strip().split("\n")[0]
            raise ConfigError(
                f"a model of type {self._kind!r} does not work with {means} ({reason}): choose "
                "another model"
            ) from error

    def _by_module(self, row: Row) -> Tensor:
        return self.module(input_ids=self._padded([row], left=True)).logits[0, -1].float()

    def _continued(self, role: LoraRole, rows: Sequence[Row], parents: list[int]) -> Tensor:
        """Return the logits [A, V] after copies of rows whose last token is appended to them."""
        parents_A = torch.tensor(parents, device=self.device)
        last_B = torch.tensor([row[-1] for row in rows], device=self.device)
        read = self.read(role, [row[:-1] for row in rows]).spread(parents_A)
        return self.logits(self.go_on(role, read, last_B[parents_A]).states_BE)


def _backbone_of(module: Any) -> str:
    """Return the name of the submodule that makes hidden states.

    Raises:
        ConfigError: There is none, or one of several.
    """
    if hasattr(module, module.base_model_prefix):
        return module.base_model_prefix
    names = [name for name, child in module.named_children() if isinstance(child, PreTrainedModel)]
    if len(names) != 1:
        raise ConfigError(
            f"a model of type {module.config.model_type!r} has {len(names) or 'no'} backbones "
            "under its head, it must have one: choose another model"
        )
    return names[0]


class _GivenStates(nn.Module):
    """Stands for a backbone, or a decoder inside it, whose last states are known."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_real", backbone)  # no submodule: its weights have an owner

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _StatesAlone:
        """Return the states that were given as embeddings."""
        return _StatesAlone(last_hidden_state=inputs_embeds)  # pyright: ignore[reportArgumentType]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__dict__["_real"], name)
        return self if isinstance(found, nn.Module) else found


class _StatesAlone(BaseModelOutputWithPast):
    """States without all else that a head may hand on."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@torch.no_grad()
def _initialise(parameters: dict[str, nn.Parameter], generator: torch.Generator) -> None:
    """Initialise as peft does (A Kaiming-uniform, B zero), from a private generator on the CPU."""
    for name, parameter in parameters.items():
        if ".lora_A." in name:
            bound = (1.0 / parameter.shape[1]) ** 0.5
            values = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            parameter.copy_(values.uniform_(-bound, bound, generator=generator))
        else:
            parameter.zero_()
