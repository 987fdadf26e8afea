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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeModelOutputWithPast

from tsgb.errors import ConfigError
from tsgb.models.engine import Role
from tsgb.models.general.batches import MicroBatch, Row

_PEFT_PREFIX = "base_model.model."


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
    mask_BT: Tensor | None
    """[B, T] 1 on real tokens, 0 on padding; None without padding."""
    lengths_B: Tensor
    """[B] tokens of each row."""


class CausalLm:
    """A frozen module, its roles, and what they compute on one device."""

    def __init__(self, module: Any, *, gradient_checkpointing: bool = False) -> None:
        """Wrap a module.

        Args:
            module: a `PreTrainedModel` with a language-model head; stays frozen.
            gradient_checkpointing: keep only the inputs of layers for the backward pass.
        """
        self.module: Any = module.requires_grad_(False).eval()
        self.base = LoraRole("", {})
        self._roles: list[LoraRole] = []
        self._adapted: Any = None
        self._active = self.base
        self._takes_positions = "position_ids" in inspect.signature(module.forward).parameters
        name: str = module.base_model_prefix
        self._backbone: Any = getattr(module, name)
        # The module's own head, with its scale and soft cap, on hidden states that we have.
        self._head: Any = copy.copy(module)
        self._head._modules = {**module._modules, name: _GivenStates()}
        # Caches of other kinds are written in place, which cuts gradients off.
        self._can_share = all(
            type(layer) in {DynamicLayer, DynamicSlidingWindowLayer}
            for layer in self._new_cache().layers
        )
        self._checkpointed: list[nn.Module] = []
        if gradient_checkpointing:
            self._keep_only_inputs()

    @property
    def device(self) -> torch.device:
        """Device of the module."""
        return self.module.get_input_embeddings().weight.device

    @property
    def shares_prefixes(self) -> bool:
        """Whether a prefix can be read once for several rows, with gradients where they are on."""
        return self._can_share and not (self._checkpointed and torch.is_grad_enabled())

    # -- roles -----------------------------------------------------------------------------

    def add_role(self, rank: int, generator: torch.Generator) -> LoraRole:
        """Put an adapter on every linear layer but the head; it changes nothing yet.

        Raises:
            ConfigError: peft can adapt no layer of the module.
        """
        import peft

        name = f"role{len(self._roles)}"
        config = peft.LoraConfig(
            r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        try:
            if self._adapted is None:
                self._adapted = peft.get_peft_model(self.module, config, adapter_name=name)
            else:
                self._adapted.add_adapter(name, config)
        except ValueError as error:
            kind: str = self.module.config.model_type
            raise ConfigError(f"peft cannot adapt a model of type {kind!r}: {error}") from error
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

    def _keep_only_inputs(self) -> None:
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

    def hidden_states(self, role: LoraRole, batch: MicroBatch) -> Tensor:
        """Return the states [M, E] at the batch's positions, row after row, ready for `logits`."""
        self._activate(role)
        # Padding on the right needs no mask: no token looks ahead.
        ids_BT = self._padded(batch.suffixes, left=False)
        T = ids_BT.shape[1]
        cache, given = None, {}
        if batch.prefixes:
            prefix = self.read(role, batch.prefixes)
            parents_B = torch.tensor(batch.parents, device=self.device)
            cache = prefix.cache
            cache.reorder_cache(parents_B)
            if prefix.mask_BT is not None:
                given = self._places(
                    nn.functional.pad(prefix.mask_BT[parents_B], (0, T), value=1),
                    prefix.lengths_B[parents_B, None] + torch.arange(T, device=self.device),
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
        lengths = [len(row) for row in rows]
        lengths_B = torch.tensor(lengths, device=self.device)
        # Padding on the left: a sliding window counts slots, not positions.
        ids_BT = self._padded(rows, left=True)
        mask_BT, given = None, {}
        if min(lengths) < max(lengths):
            T = ids_BT.shape[1]
            mask_BT = (torch.arange(T, device=self.device) >= T - lengths_B[:, None]).long()
            given = self._places(mask_BT, (mask_BT.cumsum(1) - 1).clamp(min=0))
        cache = self._new_cache()
        states_BTE = self._states(ids_BT, cache, given)
        return ReadRows(states_BTE[:, -1], cache, mask_BT, lengths_B)

    def go_on(
        self, role: LoraRole, token_A: Tensor, cache: Any, mask_AT: Tensor | None, at_A: Tensor
    ) -> Tensor:
        """Append one token to each row that was read.

        Args:
            role: the policy.
            token_A: the tokens.
            cache: of the rows; it grows.
            mask_AT: 1 on real tokens, the new ones included; None without padding.
            at_A: their positions.

        Returns:
            [A, E] States of the new tokens.
        """
        self._activate(role)
        given = {} if mask_AT is None else self._places(mask_AT, at_A[:, None])
        return self._states(token_A[:, None], cache, given)[:, -1]

    # -- inside ----------------------------------------------------------------------------

    def _states(self, ids_BT: Tensor, cache: Any, given: dict[str, Tensor]) -> Tensor:
        for layer in self._checkpointed:
            # The flag of the layer alone: nothing inside it may drop anything, and without
            # gradients it would refuse a cache.
            layer.training = torch.is_grad_enabled()
        return self._backbone(
            input_ids=ids_BT, past_key_values=cache, use_cache=cache is not None, **given
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


class _GivenStates(nn.Module):
    """Stands for a backbone whose last states are known."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> MoeModelOutputWithPast:
        """Return the states that were given as embeddings."""
        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)  # pyright: ignore[reportArgumentType]


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
