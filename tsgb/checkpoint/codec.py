"""Tensors, optimizer and generator states <-> bytes and JSON, exactly.

The only file of this package that imports torch. It knows no store. Never pickle:
a checkpoint may come from a machine that is not ours. Equal input gives equal bytes, so that a
checkpoint can be compared by its hash.

A checkpoint's files are laid out in memory once and filled again at each save. The bytes of a
safetensors file are the staging buffer itself: filling it is one copy of the tensors (of the
device, where they live on one), and nothing is serialised afterwards, so that a background thread
can hash and upload while training goes on. The format is the one of safetensors: length of the
header (8 bytes, little endian), JSON header padded with spaces to a multiple of 8, tensors ordered
by falling alignment, then by name.

Optimizer state is stored by parameter *name*: by index, a model that lists its parameters in
another order would silently get its neighbour's moments.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, Protocol, cast

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tsgb.checkpoint.documents import parse_json_object
from tsgb.errors import CheckpointError
from tsgb.types import Buffer

METADATA_KEY = "tsgb"
"""The one metadata key: safetensors writes two or more of them in random order."""

# In the order in which safetensors declares its types, which is the one that it sorts by.
_TYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_ORDER = {dtype: number for number, dtype in enumerate(_TYPES)}
_LIKE_PARAMETER = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"})


class Optimizer(Protocol):
    """The interface that torch's optimizers and ours share."""

    state: Any
    """State by parameter: tensors and plain numbers by name."""
    param_groups: list[dict[str, Any]]
    """Parameters that share their hyperparameters, and these by name."""


JsonState = dict[str, Any]
Generator = Random | torch.Generator | np.random.Generator


class TensorFile:
    """The bytes of one safetensors file.

    >>> file = TensorFile()
    >>> len(file.fill({"w": torch.zeros(3)}, {"step": 1})) == 8 + 88 + 12
    True
    """

    def __init__(self) -> None:
        self._content = bytearray()
        self._views: dict[str, Tensor] = {}
        self._layout: tuple[object, ...] = ()

    def fill(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> memoryview:
        """Copy the tensors in; what an earlier call returned holds the new content then.

        Args:
            tensors: By name, of any device and shape.
            metadata: Anything JSON can hold.

        Returns:
            The whole file, equal for equal content whatever the order of the names.

        Raises:
            ValueError: A type that the format or this writer does not know.
        """
        unknown = [name for name, tensor in tensors.items() if tensor.dtype not in _TYPES]
        if unknown:
            raise ValueError(f"{unknown[0]} is {tensors[unknown[0]].dtype}, which cannot be stored")
        names = sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype], name))
        header = _header({name: tensors[name] for name in names}, metadata)
        layout = (len(header), *((n, tensors[n].dtype, tensors[n].shape) for n in names))
        if layout != self._layout:
            self._lay_out({name: tensors[name] for name in names}, len(header))
            self._layout = layout
        self._content[: len(header)] = header
        with torch.no_grad():
            for name, view in self._views.items():
                view.copy_(tensors[name])
        return memoryview(self._content)

    @property
    def views(self) -> Mapping[str, Tensor]:
        """The tensors of the latest `fill`, by name; they are the file's own memory."""
        return self._views

    def _lay_out(self, tensors: Mapping[str, Tensor], start: int) -> None:
        size = start + sum(t.numel() * t.element_size() for t in tensors.values())
        self._content = bytearray(size)
        self._views = {}
        for name, tensor in tensors.items():
            if tensor.numel():
                flat = torch.frombuffer(
                    self._content, dtype=tensor.dtype, count=tensor.numel(), offset=start
                )
                self._views[name] = flat.view(tensor.shape)
            else:
                self._views[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            start += tensor.numel() * tensor.element_size()


class FrozenTensors(Mapping[str, Tensor]):
    """Tensors that never change again, in this machine's memory, and the file that holds them.

    The tensors are the file's own bytes, so that they are there once, and a save copies nothing.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors, by name, of any device and shape."""
        file = TensorFile()
        self.data = file.fill(tensors, {})
        """The file, in the safetensors format."""
        self._tensors = file.views

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> bytes:
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False)
    content: dict[str, object] = {"__metadata__": {METADATA_KEY: text}}
    start = 0
    for name, tensor in tensors.items():
        stop = start + tensor.numel() * tensor.element_size()
        content[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    header = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def encode_tensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None
) -> bytes:
    """Return safetensors bytes; the same for equal content, whatever the order of the names.

    Args:
        tensors: By name, of any device, shape and dtype that safetensors knows.
        metadata: Anything JSON can hold.
    """
    return bytes(TensorFile().fill(tensors, metadata or {}))


def decode_tensors(data: Buffer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors by name, in the order of names, and the metadata.

    Raises:
        CheckpointError: These are no safetensors bytes.
    """
    data = bytes(data)  # no copy of what is bytes already
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        header: dict[str, Any] = json.loads(data[8 : 8 + length])
        text: str = header.get("__metadata__", {}).get(METADATA_KEY, "{}")
        metadata = parse_json_object(text)
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"not a safetensors file: {error}") from error
    return {name: tensors[name] for name in sorted(tensors)}, metadata


def encode_optimizer(optimizer: Optimizer, names: Mapping[str, Tensor]) -> bytes:
    """Return the whole state of an optimizer as safetensors bytes; see `optimizer_content`."""
    return encode_tensors(*optimizer_content(optimizer, names))


def optimizer_content(
    optimizer: Optimizer, names: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return the whole state of an optimizer, as tensors by name and metadata.

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
    """Put the state of a file into an optimizer; see `restore_optimizer`."""
    restore_optimizer(*decode_tensors(data), optimizer, names)


def restore_optimizer(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    optimizer: Optimizer,
    names: Mapping[str, Tensor],
) -> None:
    """Put a stored state into an optimizer over parameters of the same names and groups.

    `load_state_dict` would go by index and cast the moments to the parameter's dtype.

    Args:
        tensors: As `optimizer_content` gave them.
        metadata: The same.
        optimizer: Whose state is replaced.
        names: Its parameters by name; more do no harm.

    Raises:
        CheckpointError: The state belongs to another model or another optimizer.
    """
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
    """Return the name of each parameter; tensors hash by identity."""
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
    """Return the exact state of a generator, as JSON can hold it."""
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
