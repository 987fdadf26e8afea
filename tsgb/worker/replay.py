"""`tsgb checkpoint replay`: trains a stretch of a run again, and compares it with what the run has.

A host that trained it may have given other weights than training gives, and no hash tells. All is
done in the memory of this process: nothing is written but the caches of this machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import torch
from torch import Tensor

from tsgb.checkpoint.codec import decode_tensors
from tsgb.checkpoint.inspect import Inspector
from tsgb.checkpoint.layout import STATE_FILE
from tsgb.checkpoint.manifest import installed_versions, utc_now
from tsgb.checkpoint.replays import ReplayRecord, choose_stretch
from tsgb.checkpoint.run import RunStore
from tsgb.targets.build import build_surrogate
from tsgb.trainer.loop import Trainer
from tsgb.trainer.state import loading, read_weights, stored_state
from tsgb.types import Buffer
from tsgb.worker.build import OnBuild, make_registry, setup_torch
from tsgb.worker.context import WorkerContext, read_config
from tsgb.worker.train import OnUpdate, no_build, no_update, training_world

TOLERANCE = 1e-4
"""Greatest deviation that counts as rounding: a seventh of the usual learning rate, which is about
the most that one update moves a weight by."""
_WEIGHTS = ("attacker.safetensors", "guard.safetensors")
_OPTIMIZERS = ("optim_attacker.safetensors", "optim_guard.safetensors")
_NOT_TRAINED = {"timestamp", "state_version"}


@dataclass(frozen=True, slots=True)
class Deviation:
    """The greatest difference between two states.

    Example: `Deviation(0.002, "guard.safetensors/current/layers.0.q.lora_A")`
    """

    greatest: float = 0.0
    """The difference; infinite where something else than a number differs."""
    where: str = ""
    """Path of the value that has it; empty without a difference."""


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """A replay that was done.

    Example: `replay(context, run, updates=4).record.agrees`
    """

    record: ReplayRecord
    """Stretch and deviation, as they are kept in the run."""
    caveats: Sequence[str]
    """Reasons why it may deviate without anybody's fault, in one line each."""


def replay(
    context: WorkerContext,
    run: RunStore,
    updates: int,
    *,
    start: str | None = None,
    tolerance: float = TOLERANCE,
    note: Callable[[str], None] = lambda _line: None,
    on_update: OnUpdate = no_update,
    on_build: OnBuild = no_build,
    clock: Callable[[], datetime] = utc_now,
) -> ReplayResult:
    """Train again from one checkpoint of a run to another, and compare.

    Args:
        context: Settings of this process, and whose modules it may import.
        run: The run of an arm; nothing of it is changed.
        updates: Updates to do again; see `choose_stretch`.
        start: Name of the checkpoint to begin at.
        tolerance: Greatest deviation that counts as rounding.
        note: Called with a line about each checkpoint that does not count.
        on_update: Called after each update.
        on_build: Called while models are built.
        clock: Returns the time.

    Raises:
        UsageError: The run has no two such checkpoints.
        CheckpointError: One of them is damaged or does not load, or the run has no configuration.
        ConfigError: The run's world may not be imported.
    """
    config = read_config(run)
    inspector = Inspector(run)
    committed = {one.checkpoint: one for one in inspector.committed(note)}
    first, last = choose_stretch(committed, updates, start)
    # Both at once: a worker that goes on with the run deletes its older checkpoints.
    begin, end = inspector.ref(first.name), inspector.ref(last.name)
    before, theirs = inspector.read(begin), inspector.read(end)
    setup_torch()
    registry = make_registry(config, context, on_build)
    trainer = Trainer(
        config,
        training_world(run, config, registry),
        registry.base(),
        build_surrogate(registry),
        registry.own_target(),
    )
    with loading(begin.url):
        trainer.load(before)
    while trainer.state.step < end.step:
        on_update(trainer.step())
    with loading(end.url):
        found = deviation(_content(theirs), _content(trainer.files()))
        moved = deviation(_current(before), _current(theirs)).greatest
    record = ReplayRecord(
        start=begin.name,
        stop=end.name,
        start_sha256=begin.sha256,
        stop_sha256=end.sha256,
        first_step=begin.step,
        last_step=end.step,
        total_steps=config.total_steps,
        deviation=found.greatest if math.isfinite(found.greatest) else None,
        where=found.where[:300],
        moved=moved if math.isfinite(moved) else 0.0,
        tolerance=tolerance,
        at=clock(),
    )
    manifest = committed[last].manifest
    versions = {} if manifest is None else manifest.versions
    return ReplayResult(record, [*_caveats(trainer.engine.dtype, versions)])


def deviation(theirs: object, ours: object) -> Deviation:
    """Return the greatest difference of two states: mappings and lists of numbers and tensors.

    Whatever is no number has no measure: where it differs, the difference is infinite.

    >>> deviation({"a": [1.0, 2.0]}, {"a": [1.0, 2.5]})
    Deviation(greatest=0.5, where='a/1')
    """
    found = max(_differences("", theirs, ours), key=lambda one: one.greatest, default=Deviation())
    return found if found.greatest else Deviation()


def _differences(where: str, theirs: object, ours: object) -> Iterator[Deviation]:
    if isinstance(theirs, Tensor) and isinstance(ours, Tensor):
        yield Deviation(_distance(theirs, ours), where)
    elif isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        one, other = cast("Mapping[str, object]", theirs), cast("Mapping[str, object]", ours)
        for name in sorted({*one, *other}):
            path = f"{where}/{name}" if where else name
            if name in one and name in other:
                yield from _differences(path, one[name], other[name])
            else:
                yield Deviation(math.inf, path)
    elif isinstance(theirs, list | tuple) and isinstance(ours, list | tuple):
        these, those = cast("Sequence[object]", theirs), cast("Sequence[object]", ours)
        if len(these) != len(those):
            yield Deviation(math.inf, where)
            return
        for index, pair in enumerate(zip(these, those, strict=True)):
            yield from _differences(f"{where}/{index}", *pair)
    elif isinstance(theirs, float) and isinstance(ours, float):
        distance = abs(theirs - ours)
        alike = theirs == ours or (math.isnan(theirs) and math.isnan(ours))
        yield Deviation(0.0 if alike else math.inf if math.isnan(distance) else distance, where)
    elif theirs != ours:
        yield Deviation(math.inf, where)


def _distance(theirs: Tensor, ours: Tensor) -> float:
    if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        return math.inf
    theirs, ours = theirs.cpu(), ours.cpu()
    if torch.equal(theirs, ours):
        return 0.0
    distance = (theirs.double() - ours.double()).abs().max().item()
    return math.inf if math.isnan(distance) else distance


def _content(files: Mapping[str, Buffer]) -> dict[str, Any]:
    """Return all of a checkpoint that the next update depends on, as tensors and values."""
    found: dict[str, Any] = dict(_weights(files))
    for name in _WEIGHTS:
        _, about = read_weights(files, name)
        found[f"{name}/selected"] = about.get("selected")
    for name in _OPTIMIZERS:
        tensors, layout = decode_tensors(files[name])
        found[name] = {"tensors": tensors, **layout}
    state = stored_state(files)
    found[STATE_FILE] = {key: value for key, value in state.items() if key not in _NOT_TRAINED}
    return found


def _weights(files: Mapping[str, Buffer]) -> dict[str, Any]:
    return {name: read_weights(files, name)[0] for name in _WEIGHTS}


def _current(files: Mapping[str, Buffer]) -> dict[str, Any]:
    return {name: groups["current"] for name, groups in _weights(files).items()}


def _caveats(dtype: str, versions: Mapping[str, str]) -> Iterator[str]:
    yield (
        f"trained again on this machine in {dtype}: another kind of processor or card, or another "
        "dtype, rounds otherwise, so that a difference alone proves no fault"
    )
    here = installed_versions()
    other = [
        f"{name} {version} (here {here.get(name, 'none')})"
        for name, version in versions.items()
        if here.get(name) != version
    ]
    if other:
        yield f"the run was trained with {', '.join(other)}"
