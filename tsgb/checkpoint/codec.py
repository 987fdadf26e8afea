"""Tensors, optimizer and generator states <-> bytes and JSON, exactly.

With staging.py the only file of this package that imports torch. It knows no store. Never pickle:
a checkpoint may come from a machine that is not ours. Equal input gives equal bytes, so that a
checkpoint can be compared by its hash.

Optimizer state is stored by parameter *name*: by index, a model that lists its parameters in
another order would silently get its neighbour's moments.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from random import Random
from typing import Any, Protocol, cast

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tsgb.checkpoint.staging import METADATA_KEY, TensorFile
from tsgb.errors import CheckpointError
from tsgb.types import Buffer

_LIKE_PARAMETER = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"})


class Optimizer(Protocol):
    """What torch's optimizers and ours have in common."""

    state: Any
    """Parameter to its named state."""
    param_groups: list[dict[str, Any]]


JsonState = dict[str, Any]
Generator = Random | torch.Generator | np.random.Generator


def encode_tensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None
) -> bytes:
    """Safetensors bytes; the same for equal content, whatever the order of the names.

    Args:
        tensors: By name, of any device, shape and dtype that safetensors knows.
        metadata: Anything JSON can hold.
    """
    return bytes(TensorFile().fill(tensors, metadata or {}))


def decode_tensors(data: Buffer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, in the order of names, and the metadata.

    Raises:
        CheckpointError: These are no safetensors bytes.
    """
    data = bytes(data)  # no copy of what is bytes already
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        header: dict[str, Any] = json.loads(data[8 : 8 + length])
        text: str = header.get("__metadata__", {}).get(METADATA_KEY, "{}")
        metadata = cast("dict[str, Any]", json.loads(text))
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"not a safetensors file: {error}") from error
    return {name: tensors[name] for name in sorted(tensors)}, metadata


def encode_optimizer(optimizer: Optimizer, names: Mapping[str, Tensor]) -> bytes:
    """The whole state of an optimizer, as safetensors bytes; see `optimizer_content`."""
    return encode_tensors(*optimizer_content(optimizer, names))


def optimizer_content(
    optimizer: Optimizer, names: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The whole state of an optimizer, as tensors by name and metadata.

    Args:
        optimizer: Any whose state is tensors and plain numbers.
        names: Its parameters by name, as `dict(model.named_parameters())`; more do no harm.
    """
    name_of = _names(optimizer, names)
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, object] = {}
    for parameter, state in optimizer.state.items():
        for key, value in cast("dict[str, object]", state).items():
            full = f"{name_of[parameter]}|{key}"
            if isinstance(value, Tensor):
                tensors[full] = value
            else:
                scalars[full] = value
    groups = [
        {**group, "params": [name_of[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    return tensors, {"param_groups": groups, "scalars": scalars}


def decode_optimizer(data: Buffer, optimizer: Optimizer, names: Mapping[str, Tensor]) -> None:
    """Put a stored state into an optimizer over parameters of the same names and groups.

    Not by `load_state_dict`, which goes by index and casts the moments to the parameter's dtype.

    Raises:
        CheckpointError: The state belongs to another model or another optimizer.
    """
    tensors, metadata = decode_tensors(data)
    name_of = _names(optimizer, names)
    by_name = {name: parameter for parameter, name in name_of.items()}
    groups: list[dict[str, Any]] = metadata.get("param_groups", [])
    stored = [sorted(group["params"]) for group in groups]
    present = [sorted(name_of[p] for p in group["params"]) for group in optimizer.param_groups]
    if stored != present:
        raise CheckpointError(
            f"the optimizer state is of other parameters ({_difference(stored, present)}): resume "
            "with the configuration that wrote it"
        )
    state: dict[Tensor, dict[str, Any]] = {}
    for full, value in {**tensors, **metadata.get("scalars", {})}.items():
        name, _, key = full.rpartition("|")
        parameter = by_name[name]
        like = key in _LIKE_PARAMETER and isinstance(value, Tensor)
        if like and value.shape != parameter.shape:
            raise CheckpointError(
                f"the optimizer state of {name} has shape {tuple(value.shape)} where the model has "
                f"{tuple(parameter.shape)}: resume with the configuration that wrote it"
            )
        state.setdefault(parameter, {})[key] = value
    for group, kept in zip(optimizer.param_groups, groups, strict=True):
        step_on_device = bool(kept.get("capturable") or kept.get("fused"))
        for key, value in kept.items():
            if key != "params":
                # JSON turns tuples (betas) into lists.
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        for parameter in group["params"]:
            optimizer.state.pop(parameter, None)
            if parameter in state:
                optimizer.state[parameter] = {
                    key: value.to(parameter.device)
                    if isinstance(value, Tensor) and (key != "step" or step_on_device)
                    else value
                    for key, value in state[parameter].items()
                }


def _names(optimizer: Optimizer, names: Mapping[str, Tensor]) -> dict[Tensor, str]:
    """Parameter to name; tensors hash by identity."""
    name_of = {parameter: name for name, parameter in names.items()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in name_of:
                raise ValueError(f"a parameter of shape {tuple(parameter.shape)} has no name")
    return name_of


def _difference(stored: list[list[str]], present: list[list[str]]) -> str:
    old = {name for group in stored for name in group}
    new = {name for group in present for name in group}
    if old == new:
        return "the groups differ"
    return f"{len(old - new)} are gone, {len(new - old)} are new, such as {min(old ^ new)}"


def generator_state(generator: Generator) -> JsonState:
    """The exact state of a generator, as JSON can hold it."""
    if isinstance(generator, Random):
        version, words, gauss = generator.getstate()
        return {"kind": "python", "version": version, "words": list(words), "gauss": gauss}
    if isinstance(generator, torch.Generator):
        raw = generator.get_state().numpy().tobytes()
        return {
            "kind": "torch",
            "device": generator.device.type,
            "state": base64.b64encode(raw).decode("ascii"),
        }
    state = cast("dict[str, Any]", generator.bit_generator.state)
    if state["bit_generator"] != "PCG64":
        raise ValueError(f"{state['bit_generator']} is not PCG64: use numpy.random.default_rng")
    inner = cast("dict[str, int]", state["state"])
    return {
        "kind": "numpy",
        # 128-bit numbers as text: other JSON readers would round them.
        "state": str(inner["state"]),
        "inc": str(inner["inc"]),
        "has_uint32": int(state["has_uint32"]),
        "uinteger": int(state["uinteger"]),
    }


def set_generator_state(generator: Generator, state: Mapping[str, Any]) -> None:
    """Put a generator into a stored state.

    Raises:
        CheckpointError: The state is of another kind of generator.
    """
    expected: str = generator_state(generator)["kind"]
    if state.get("kind") != expected:
        raise CheckpointError(
            f"a generator state of kind {state.get('kind')!r} cannot go into one of {expected!r}: "
            "the checkpoint is from another version"
        )
    if isinstance(generator, Random):
        generator.setstate((state["version"], tuple(state["words"]), state["gauss"]))
    elif isinstance(generator, torch.Generator):
        if state["device"] != generator.device.type:
            raise CheckpointError(
                f"a generator state of device {state['device']!r} cannot go into one of "
                f"{generator.device.type!r}: resume on the kind of device that wrote it"
            )
        raw = bytearray(base64.b64decode(state["state"]))
        generator.set_state(torch.frombuffer(raw, dtype=torch.uint8))
    else:
        generator.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": int(state["state"]), "inc": int(state["inc"])},
            "has_uint32": state["has_uint32"],
            "uinteger": state["uinteger"],
        }
