"""Whether the bytes of a stranger's checkpoint can be one of the run, as far as no model is needed.

Each file is looked at by itself first: whether it is a safetensors file of finite numbers, or JSON.
Then all of them together, and beside the checkpoint before: whether a trainer could load it. What
`tsgb/trainer/state.py` reads is checked here, because a checkpoint that loads nowhere would stop
every machine that goes on from it.

It knows the safetensors format, and no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from tsgb.checkpoint.documents import parse_json_object
from tsgb.checkpoint.layout import STATE_FILE

_MAX_HEADER_BYTES = 100_000_000
"""Size of the largest header of a safetensors file, as its library has it."""
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00}
"""Bits that are all set in a number that is not finite, for types of two bytes."""
_SIZES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "I8", "U8"), 1),
}
"""Bytes of a number, by the format's name of its type."""
_WIDE = {"F32": "<f4", "F64": "<f8"}
_ROLES = ("attacker", "guard")
_CURRENT = "current/"
"""Beginning of the names of a role's weights in its file."""
_LIKE_PARAMETER = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"})
"""Parts of an optimizer's state that have the shape of their parameter."""
_CHANGES = frozenset({"selected", "dtype"})
"""What the metadata of weights say that changes within a run: the guard that was selected, and the
type in which a machine had the base."""

Shape = tuple[object, ...]


class Unsound(ValueError):  # noqa: N818 - a finding about somebody else's bytes
    """A checkpoint of a machine that cannot be one of the run; the message says why."""


def is_text(file: str) -> bool:
    """Return whether a file, or a part by `FILE/PART`, is JSON; the others are safetensors."""
    return file.partition("/")[0] == STATE_FILE


def check_file(name: str, data: bytes) -> None:
    """Return if a file, or a part by `FILE/PART`, can be what its name says.

    Raises:
        Unsound: It is no such file, or has numbers that are not finite.
    """
    if is_text(name):
        _check_finite(name, _json(name, data))
        return
    for tensor, one in _Tensors.read(name, data).by_name.items():
        if not _is_finite(one):
            raise Unsound(f"{name}: {tensor[:200]!r} has numbers that are not finite")


def check_checkpoint(
    files: Mapping[str, bytes], before: Mapping[str, bytes], *, step: int, adapter: tuple[str, int]
) -> None:
    """Return if files that were checked one by one make a checkpoint that can be loaded.

    Args:
        files: All files of the checkpoint, and its parts by `FILE/PART`.
        before: Likewise those of the run's newest one; empty where it has none yet.
        step: Step that the manifest names.
        adapter: Kind and rank of the adapters, as the configuration names them.

    Raises:
        Unsound: A part lacks, or does not fit the others or the checkpoint before.
    """
    for role in _ROLES:
        _check_role(role, files, before, adapter)
    _check_state(files, before, step)


# -- weights and optimizers -------------------------------------------------------------------


def _check_role(
    role: str, files: Mapping[str, bytes], before: Mapping[str, bytes], adapter: tuple[str, int]
) -> None:
    name = f"{role}.safetensors"
    weights = _Tensors.read(name, files[name])
    earlier = _Tensors.read(name, before[name]) if name in before else None
    _check_origin(name, weights.about, None if earlier is None else earlier.about, adapter)
    # The state of an optimizer grows with the first update; weights keep their shapes.
    if earlier is not None and weights.shapes() != earlier.shapes():
        raise Unsound(f"{name}: its tensors have other names, types or shapes than before")
    current = weights.shapes(_CURRENT)
    if not current:
        raise Unsound(f"{name}: it has no current weights")
    parts = {
        part.partition("/")[2]: _Tensors.read(part, files[part]).shapes()
        for part in files
        if part.startswith(f"{name}/")
    }
    if any(shapes != current for shapes in parts.values()):
        raise Unsound(f"{name}: a part has other tensors than the current weights")
    groups = {tensor.partition("/")[0] for tensor in weights.by_name} | parts.keys()
    if role == "guard" and (weights.about.get("selected") or "current") not in groups:
        raise Unsound(f"{name}: the guard that was selected is not in it")
    optimizer = f"optim_{role}.safetensors"
    _check_optimizer(optimizer, files[optimizer], before.get(optimizer), current)


def _check_origin(
    name: str,
    about: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    adapter: tuple[str, int],
) -> None:
    """Return if the weights belong to the base, and the adapters, of the run."""
    if (about.get("adapter"), about.get("rank")) != adapter:
        raise Unsound(f"{name}: its adapters are not those of the configuration")
    texts = [about.get("base_sha256"), about.get("selected", ""), about.get("dtype", "")]
    if not all(isinstance(text, str) for text in texts):
        raise Unsound(f"{name}: it does not name its base")
    if before is not None and _without(about, _CHANGES) != _without(before, _CHANGES):
        raise Unsound(f"{name}: it belongs to another base than before")


def _check_optimizer(
    name: str, data: bytes, before: bytes | None, current: Mapping[str, Shape]
) -> None:
    """Return if the state of an optimizer is about the weights of its role."""
    found = _Tensors.read(name, data)
    groups = _groups(name, found.about)
    params = [sorted(group["params"]) for group in groups]
    if not {one for group in params for one in group} <= current.keys():
        raise Unsound(f"{name}: it is about other weights")
    if before is not None:
        earlier = _groups(name, _Tensors.read(name, before).about)
        if params != [sorted(group["params"]) for group in earlier]:
            raise Unsound(f"{name}: it is about other weights than before")
        fixed = frozenset({"params", "lr"})  # the rate follows a schedule
        if [_without(group, fixed) for group in groups] != [_without(g, fixed) for g in earlier]:
            raise Unsound(f"{name}: its settings are others than before")
    _check_moments(name, found, current)


def _check_moments(name: str, found: _Tensors, current: Mapping[str, Shape]) -> None:
    """Return if each weight of an optimizer has the same parts of a state, in its own shape."""
    scalars = found.about.get("scalars", {})
    if not isinstance(scalars, dict):
        raise Unsound(f"{name}: its numbers are none")
    numbers = cast("dict[str, object]", scalars)
    if not all(isinstance(number, int | float) for number in numbers.values()):
        raise Unsound(f"{name}: its numbers are none")
    keys: dict[str, set[str]] = {}
    for full in (*found.by_name, *numbers):
        param, _, key = full.rpartition("|")
        if param not in current:
            raise Unsound(f"{name}: it has a state of other weights")
        keys.setdefault(param, set()).add(key)
        shape = found.by_name[full].shape if full in found.by_name else ()
        if key in _LIKE_PARAMETER and shape != current[param][1:]:
            raise Unsound(f"{name}: a state has not the shape of its weights")
    if any(one != next(iter(keys.values())) for one in keys.values()):
        raise Unsound(f"{name}: the states of some weights lack a part")


def _groups(name: str, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of parameters in the metadata of an optimizer's file."""
    found: object = about.get("param_groups")
    groups = cast("list[object]", found) if isinstance(found, list) else []
    kept = [cast("dict[str, Any]", group) for group in groups if isinstance(group, dict)]
    params: list[object] = [group.get("params") for group in kept]
    if not kept or len(kept) != len(groups) or not all(map(_is_texts, params)):
        raise Unsound(f"{name}: it has no groups of parameters")
    if not all(isinstance(group.get("lr", 0.0), int | float) for group in kept):
        raise Unsound(f"{name}: its learning rate is no number")
    return kept


# -- the trainer's state ----------------------------------------------------------------------


def _check_state(files: Mapping[str, bytes], before: Mapping[str, bytes], step: int) -> None:
    """Return if a trainer's state has the parts of one, and those of the checkpoint before."""
    content = _json(STATE_FILE, files[STATE_FILE])
    parts = [content.get(name) for name in ("state", "python_rng", "torch_rng")]
    if not all(isinstance(part, dict) for part in parts):
        raise Unsound(f"{STATE_FILE} lacks a part")
    state: dict[str, Any] = content["state"]
    if state.get("step") != step:
        raise Unsound(f"{STATE_FILE} is that of another step")
    _check_attacks(files, state)
    if STATE_FILE not in before:
        return
    earlier = _json(STATE_FILE, before[STATE_FILE])
    if content.get("state_version") != earlier.get("state_version"):
        raise Unsound(f"{STATE_FILE} has another version than before")
    if _kinds(content) != _kinds(earlier) or _kinds(state) != _kinds(earlier["state"]):
        raise Unsound(f"{STATE_FILE} has other parts than before")
    for name in ("python_rng", "torch_rng"):
        if _outline(content[name]) != _outline(earlier[name]):
            raise Unsound(f"{STATE_FILE}: the state of a generator is of another kind than before")


def _check_attacks(files: Mapping[str, bytes], state: Mapping[str, Any]) -> None:
    """Return if all attacks, of this round and of earlier ones, have the same fields."""
    attacks = _list(state.get("buffer", []))
    for member in _list(state.get("pool", [])):
        if isinstance(member, str):  # the name of a part
            part = f"{STATE_FILE}/{member}"
            if part not in files:
                raise Unsound(f"{STATE_FILE} names attackers that are not there")
            member = _json(part, files[part])  # noqa: PLW2901 - the part in its place
        fields = cast("dict[str, object]", member) if isinstance(member, dict) else {}
        if fields.keys() != {"name", "attacks"}:
            raise Unsound(f"{STATE_FILE}: an earlier attacker is none")
        attacks += _list(fields["attacks"])
    fields_of = [_kinds(one).keys() for one in attacks]  # none where it is no object
    if any(not fields or fields != fields_of[0] for fields in fields_of):
        raise Unsound(f"{STATE_FILE}: its attacks are none")


def _list(found: object) -> list[object]:
    if not isinstance(found, list):
        raise Unsound(f"{STATE_FILE}: its attacks are no list")
    return list(cast("list[object]", found))


def _kinds(found: object) -> dict[str, str]:
    """Return the kind of each value of an object: numbers of both kinds are one."""
    values = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    return {
        key: "number" if type(value) in {int, float} else type(value).__name__
        for key, value in values.items()
    }


def _outline(found: object) -> object:
    """Return the outline of a generator's state, in which numbers and their lack are alike."""
    if isinstance(found, dict):
        return {key: _outline(one) for key, one in cast("dict[str, object]", found).items()}
    if isinstance(found, list):
        items = cast("list[object]", found)
        return len(items), {str(_outline(one)) for one in items}
    return len(found) if isinstance(found, str) else ""


# -- formats ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: str
    """The format's name of its type."""
    shape: tuple[int, ...]
    """Its shape."""
    data: memoryview
    """Its bytes."""


@dataclass(frozen=True, slots=True)
class _Tensors:
    """A safetensors file, whose bytes must follow each other without a gap.

    The format: https://huggingface.co/docs/safetensors, version 0.3 and later.
    """

    by_name: Mapping[str, _Tensor]
    """Tensors by name."""
    about: Mapping[str, Any]
    """What `codec.py` says of them; empty for a file of another writer."""

    @classmethod
    def read(cls, name: str, data: bytes) -> _Tensors:
        try:
            length = min(int.from_bytes(data[:8], "little"), _MAX_HEADER_BYTES)
            header = parse_json_object(data[8 : 8 + length])
            metadata: dict[str, str] = header.pop("__metadata__", {})
            for text in metadata.values():
                text.encode()  # its library takes nothing but texts
            about = parse_json_object(metadata.get("tsgb", "{}"))
            content = memoryview(data)[8 + length :]
            found = {key: _tensor(content, one) for key, one in header.items()}
            spans = sorted(tuple(one["data_offsets"]) for one in header.values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unsound(f"{name} is no safetensors file") from error
        ends = [0, *(stop for _, stop in spans)]
        if ends != [*(start for start, _ in spans), len(content)]:
            raise Unsound(f"{name} is no safetensors file: its tensors do not fill it")
        _check_finite(name, about)
        return cls(found, about)

    def shapes(self, prefix: str = "") -> dict[str, Shape]:
        """Return type and shape of each tensor whose name begins so, by the rest of the name."""
        return {
            name.removeprefix(prefix): (one.dtype, *one.shape)
            for name, one in self.by_name.items()
            if name.startswith(prefix)
        }


def _tensor(content: memoryview, described: Mapping[str, Any]) -> _Tensor:
    shape = tuple(described["shape"])
    start, stop = described["data_offsets"]
    if len(shape) > 16 or not all(
        type(one) is int and 0 <= one <= len(content) for one in (*shape, start, stop)
    ):
        raise ValueError("a size is no count, or more than the file")  # before they are multiplied
    size = _SIZES[described["dtype"]] * math.prod(shape)
    if stop - start != size:
        raise ValueError("its bytes are not those of its shape")
    return _Tensor(described["dtype"], shape, content[start:stop])


def _is_finite(tensor: _Tensor) -> bool:
    if tensor.dtype in _WIDE:
        return bool(np.isfinite(np.frombuffer(tensor.data, _WIDE[tensor.dtype])).all())
    if tensor.dtype in _EXPONENT:
        mask = _EXPONENT[tensor.dtype]
        return not bool(((np.frombuffer(tensor.data, "<u2") & mask) == mask).any())
    return True


def _json(name: str, data: bytes) -> dict[str, Any]:
    try:
        return parse_json_object(data)
    except ValueError as error:
        raise Unsound(f"{name}: {error}") from error


def _check_finite(name: str, value: object) -> None:
    """Return if no number in a JSON value is infinite or none; its depth is bounded."""
    if isinstance(value, float) and not math.isfinite(value):
        raise Unsound(f"{name} has numbers that are not finite")
    children: Iterable[object] = ()
    if isinstance(value, dict):
        children = cast("dict[str, object]", value).values()
    elif isinstance(value, list):
        children = cast("list[object]", value)
    for one in children:
        _check_finite(name, one)


def _is_texts(found: object) -> bool:
    return isinstance(found, list) and all(
        isinstance(one, str) for one in cast("Sequence[object]", found)
    )


def _without(found: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in names}
