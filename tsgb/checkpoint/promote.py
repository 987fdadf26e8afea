"""Promotes checkpoints between a run and the copy of it that a rented machine sees.

`hand_out` writes the checkpoint to go on from where the machine reads it. `promote` copies what the
machine saved into the run, after every byte of it was checked, under a name and a signature of this
process: whatever the machine does later changes nothing of it. A host can still give bad weights
for the updates that it made; it cannot give a file that is no checkpoint of this run.

It knows the safetensors format, and no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tsgb.checkpoint.documents import (
    MAX_JSON_BYTES,
    MAX_TEXT_BYTES,
    parse_json_lines,
    parse_json_object,
)
from tsgb.checkpoint.inspect import CheckpointInfo, Inspector
from tsgb.checkpoint.layout import CHECKPOINTS, CLAIMS, METRICS, CheckpointName
from tsgb.checkpoint.reader import CheckpointReader, InvalidCheckpoint
from tsgb.checkpoint.run import RunStore
from tsgb.checkpoint.store import CheckpointStore
from tsgb.errors import StoreError, StoreUnreachable
from tsgb.types import CheckpointRef

KEEP = 3
"""Newest checkpoints that a run keeps."""
MAX_CANDIDATES = 4
"""Number of a machine's newest checkpoints that are looked at; older ones than these are lost."""
_MAX_FILES = 1024
"""Most files and parts that a checkpoint of a machine may have."""
_MAX_DOCUMENTS = 50
"""Most claims and exit records of earlier attempts that a machine is told of."""
_EXIT_FIELDS = ("attempt", "outcome", "step", "useful_seconds")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The bounds within which a machine's checkpoint can be one of the run.

    Example: `Expected(attempt=3, config_sha256="...", last_step=500, max_bytes=10**9)`
    """

    attempt: int
    """Number of the attempt that the machine works on."""
    config_sha256: str
    """Fingerprint of the run's configuration, as the flow knows it."""
    last_step: int
    """Updates of the whole training."""
    max_bytes: int
    """Size of the largest checkpoint with its parts, in bytes."""


class Unsound(ValueError):  # noqa: N818 - a finding about somebody else's bytes
    """A checkpoint of a machine that cannot be one of the run; the message says why."""


def hand_out(run: RunStore, seen: RunStore) -> CheckpointRef | None:
    """Copy the newest checkpoint of a run to where a machine goes on from it.

    Claims and exit records of earlier attempts go with it, from which a worker learns how often
    machines are lost.

    Args:
        run: The run in the store of runs.
        seen: The run as the machine sees it.

    Returns:
        The checkpoint in the run; None if it has none yet.

    Raises:
        CheckpointError: The run has checkpoints, but none that verifies.
    """
    found = CheckpointReader(run).newest_whole(lambda _line: None)
    if found is not None:
        ref, manifest, files = found
        _copy(run, seen, METRICS, MAX_TEXT_BYTES)
        store = CheckpointStore(seen)
        store.claim(ref.attempt)
        store.publish(ref.step, ref.episode, files, manifest.config_sha256)
    # Afterwards, since a later attempt that saved nothing has claimed the run too.
    for token in sorted(run.fencing_tokens())[-_MAX_DOCUMENTS:]:
        _copy(run, seen, f"{CLAIMS}/{token.name}")
    for attempt in run.attempt_documents("exits")[-_MAX_DOCUMENTS:]:
        _copy(run, seen, f"exits/{attempt:04d}.json")
    return None if found is None else found[0]


def promote(
    seen: RunStore,
    run: RunStore,
    expected: Expected,
    *,
    note: Callable[[str], None],
    tick: Callable[[], object] = lambda: None,
) -> CheckpointRef | None:
    """Copy the newest sound checkpoint that a machine saved into the run.

    Args:
        seen: The run as the machine sees it.
        run: The run in the store of runs.
        expected: What the checkpoint must be.
        note: Called with a line for each checkpoint that is refused.
        tick: Called after each file, which may take minutes.

    Returns:
        The checkpoint in the run; None if the machine saved none that is newer and sound.

    Raises:
        StoreError: The run cannot be read or written; `StoreUnreachable` also for the exchange.
    """
    if not any(token.attempt == expected.attempt for token in seen.fencing_tokens()):
        return None  # it never came to train
    if any(token.attempt > expected.attempt for token in run.fencing_tokens()):
        return None  # a later attempt has gone on from what there was
    store = CheckpointStore(run)
    store.claim(expected.attempt)
    _copy_exit(seen, run, expected.attempt)
    before = store.newest_whole(note)
    least = -1 if before is None else before[0].step
    kept = {} if before is None else before[2]
    for listed in _candidates(seen, expected, least):
        try:
            files = _read(seen, listed, expected, kept, tick)
        except StoreUnreachable:
            raise
        except (InvalidCheckpoint, StoreError, Unsound) as error:
            note(f"{listed.checkpoint.name} of attempt {expected.attempt} is refused: {error}")
            continue
        assert listed.manifest is not None
        _copy_metrics(seen, run, least, listed.checkpoint.step)
        ref = store.publish(
            listed.checkpoint.step,
            listed.manifest.episode,
            files,
            expected.config_sha256,
            None if before is None else before[0].name,
        )
        store.prune(KEEP)
        return ref
    return None


def _candidates(seen: RunStore, expected: Expected, least: int) -> list[CheckpointInfo]:
    """Return the newest checkpoints of the attempt beyond a step, newest first."""
    names = [CheckpointName.parse(name) for name in seen.list_if_present(CHECKPOINTS)]
    wanted = [
        name
        for name in names
        if name is not None
        and name.attempt == expected.attempt
        and least < name.step <= expected.last_step
    ]
    inspector = Inspector(seen)
    return [inspector.look(name) for name in sorted(wanted, reverse=True)[:MAX_CANDIDATES]]


def _read(
    seen: RunStore,
    listed: CheckpointInfo,
    expected: Expected,
    before: Mapping[str, bytes],
    tick: Callable[[], object],
) -> dict[str, bytes]:
    """Return all files of a checkpoint and their parts, each of them checked.

    Raises:
        Unsound: One of them cannot belong to a checkpoint of this run.
        InvalidCheckpoint: One of them is not what its manifest says.
    """
    manifest = listed.manifest
    if manifest is None:
        raise Unsound(listed.reason)
    if manifest.run_id != seen.run_id or manifest.config_sha256 != expected.config_sha256:
        raise Unsound("it is of another run, or of another configuration")
    contents = listed.contents
    size = sum(record.size for _, record in contents.values())
    if size > expected.max_bytes or len(contents) > _MAX_FILES:
        raise Unsound(f"{len(contents)} files of {size} bytes are more than this run can have")
    if before and (missing := {name for name in before if "/" not in name} - contents.keys()):
        raise Unsound(f"it lacks {min(missing)}, which the one before it has")
    inspector, files = Inspector(seen), dict[str, bytes]()
    for name, (_, record) in contents.items():
        same = before.get(name)
        if same is None or record.mismatch(same) is not None:
            data = inspector.file(listed, name)
            _check(name, data, same)
            files[name] = data
            tick()
        else:
            files[name] = same  # as the weights of past rounds, which need not be sent again
    return files


def _check(name: str, data: bytes, before: bytes | None) -> None:
    """Return if a file can be what its name says.

    Raises:
        Unsound: It is no such file, has numbers that are not finite, or weights of other shapes
            than those of the checkpoint before.
    """
    if name.partition("/")[0].endswith(".json"):
        try:
            parse_json_object(data)
        except ValueError as error:
            raise Unsound(f"{name}: {error}") from error
        return
    tensors = _tensors(name, data)
    if strange := [tensor for tensor, one in tensors.items() if not _is_finite(one)]:
        raise Unsound(f"{name}: {strange[0][:200]!r} has numbers that are not finite")
    # The state of an optimizer grows with the first update; weights keep their shapes.
    if before is not None and not name.startswith("optim_"):
        shapes, earlier = _shapes(tensors), _shapes(_tensors(name, before))
        if shapes != earlier:
            raise Unsound(f"{name}: its tensors have other names, types or shapes than before")


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: str
    """The format's name of its type."""
    shape: tuple[int, ...]
    """Its shape."""
    data: memoryview
    """Its bytes."""


def _tensors(name: str, data: bytes) -> dict[str, _Tensor]:
    """Return the tensors of a safetensors file, whose bytes must follow each other without a gap.

    The format: https://huggingface.co/docs/safetensors, version 0.3 and later.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        header = parse_json_object(data[8 : 8 + length])
        header.pop("__metadata__", None)
        content = memoryview(data)[8 + length :]
        found = {key: _tensor(content, one) for key, one in header.items()}
        spans = sorted(tuple(one["data_offsets"]) for one in header.values())
    except (ValueError, KeyError, TypeError) as error:
        raise Unsound(f"{name} is no safetensors file") from error
    ends = [0, *(stop for _, stop in spans)]
    if ends != [*(start for start, _ in spans), len(content)]:
        raise Unsound(f"{name} is no safetensors file: its tensors do not fill it")
    return found


def _tensor(content: memoryview, described: Mapping[str, Any]) -> _Tensor:
    shape = tuple(described["shape"])
    start, stop = described["data_offsets"]
    size = _SIZES[described["dtype"]] * math.prod(shape)
    if not all(isinstance(one, int) and one >= 0 for one in (*shape, start, stop)):
        raise ValueError("a size is no count")
    if stop - start != size:
        raise ValueError("its bytes are not those of its shape")
    return _Tensor(described["dtype"], shape, content[start:stop])


def _shapes(tensors: Mapping[str, _Tensor]) -> dict[str, tuple[object, ...]]:
    return {name: (one.dtype, *one.shape) for name, one in tensors.items()}


def _is_finite(tensor: _Tensor) -> bool:
    if tensor.dtype in _WIDE:
        return bool(np.isfinite(np.frombuffer(tensor.data, _WIDE[tensor.dtype])).all())
    if tensor.dtype in _EXPONENT:
        mask = _EXPONENT[tensor.dtype]
        return not bool(((np.frombuffer(tensor.data, "<u2") & mask) == mask).any())
    return True


def _copy_metrics(seen: RunStore, run: RunStore, least: int, step: int) -> None:
    """Add the machine's lines for the updates after `least` up to `step`; others are kept as is."""
    try:
        theirs = seen.read_text(METRICS, MAX_TEXT_BYTES)
    except StoreUnreachable:
        raise
    except (FileNotFoundError, StoreError):
        return
    try:
        ours = run.read_text(METRICS, MAX_TEXT_BYTES)
    except FileNotFoundError:
        ours = ""
    lines = [line for line in parse_json_lines(ours) if _step(line) <= least]
    last = least
    for line in parse_json_lines(theirs):
        if last < _step(line) <= step and all(map(_is_figure, line.values())):
            last = _step(line)
            lines.append(line)
    text = "".join(f"{json.dumps(line, ensure_ascii=True)}\n" for line in lines)
    run.write_text(METRICS, text)


def _step(line: Mapping[str, Any]) -> float:
    step = line.get("step")
    return step if isinstance(step, int) else math.inf


def _is_figure(value: object) -> bool:
    """Return whether a value can stand in a line of the metrics: a number, or a short word."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return len(value) <= 40 and value.isprintable()
    return value is None or isinstance(value, int)


def _copy_exit(seen: RunStore, run: RunStore, attempt: int) -> None:
    """Copy the figures of a worker's exit record; nothing that it says of checkpoints counts."""
    name = f"exits/{attempt:04d}.json"
    try:
        found = seen.read_json(name, MAX_JSON_BYTES)
    except StoreUnreachable:
        raise
    except (FileNotFoundError, StoreError):
        return
    figures = {key: found[key] for key in _EXIT_FIELDS if key in found and _is_figure(found[key])}
    run.write_json(name, figures)


def _copy(run: RunStore, seen: RunStore, name: str, max_bytes: int = MAX_JSON_BYTES) -> None:
    try:
        data = run.read_bytes(name, max_bytes)
    except FileNotFoundError:
        return
    seen.write_bytes(name, data)
