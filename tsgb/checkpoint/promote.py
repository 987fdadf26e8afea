"""Promotes checkpoints between a run and the copy of it that a rented machine sees.

`hand_out` writes the checkpoint to go on from where the machine reads it. `promote` copies what the
machine saved into the run, after every byte of it was checked, under a name and a signature of this
process: whatever the machine does later changes nothing of it. A host can still give bad weights
for the updates that it made; it cannot give a file that is no checkpoint of this run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from tsgb.checkpoint.documents import (
    MAX_JSON_BYTES,
    MAX_TEXT_BYTES,
    parse_json_lines,
    printable,
)
from tsgb.checkpoint.filesystem import FileTooLargeError
from tsgb.checkpoint.inspect import CheckpointState, Inspector
from tsgb.checkpoint.layout import (
    CHECKPOINTS,
    CLAIMS,
    KEEP_CHECKPOINTS,
    METRICS,
    PARTS,
    STATE_FILE,
    CheckpointName,
)
from tsgb.checkpoint.manifest import FileRecord, PartRecord
from tsgb.checkpoint.run import RunStore
from tsgb.checkpoint.soundness import Unsound, check_checkpoint, check_file, is_text
from tsgb.checkpoint.store import CheckpointStore
from tsgb.errors import StoreFull, StoreUnreachable
from tsgb.types import CheckpointRef

_T = TypeVar("_T")

MAX_CANDIDATES = 4
"""Number of a machine's newest checkpoints that are looked at; older ones than these are lost."""
_FILES = frozenset(
    {
        "attacker.safetensors",
        "guard.safetensors",
        "optim_attacker.safetensors",
        "optim_guard.safetensors",
        STATE_FILE,
    }
)
"""Files of every checkpoint; one that has others, or lacks one, is none of a run."""
_FIRST_BYTES = 4 << 30
"""Size of the largest first checkpoint, in bytes; a later one grows by a tenth and `_SLACK`."""
_SLACK_BYTES = 64 << 20
_LINE_BYTES = 2048
"""Size of the longest line of metrics, of which there is one an update."""
_MAX_FIGURES = 64
_MAX_FILES = 1024
"""Most files and parts that a checkpoint of a machine may have."""
_MAX_DOCUMENTS = 50
"""Most claims and exit records of earlier attempts that a machine is told of."""
_EXIT_FIELDS = ("attempt", "outcome", "step", "useful_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The bounds within which a machine's checkpoint can be one of the run.

    Example: `Expected(attempt=3, config_sha256="...", last_step=500, ...)`
    """

    attempt: int
    """Number of the attempt that the machine works on."""
    config_sha256: str
    """Fingerprint of the run's configuration, as the flow knows it."""
    last_step: int
    """Updates of the whole training."""
    max_bytes: int
    """Size of the largest checkpoint with its parts, in bytes."""
    adapter: tuple[str, int]
    """Kind and rank of the adapters, as the configuration names them."""
    doubted: frozenset[int] = frozenset()
    """Attempts whose checkpoints count for nothing, since machines cannot go on from them."""


@dataclass(frozen=True, slots=True)
class Handover:
    """The checkpoint that a machine goes on from.

    Example: `hand_out(run, seen).seen.sha256`
    """

    kept: CheckpointRef
    """The checkpoint in the run."""
    seen: CheckpointRef
    """Its copy, where the machine reads it."""


class TrustedStore(CheckpointStore):
    """The checkpoints of one run, without those of attempts that are doubted."""

    def __init__(self, run: RunStore, doubted: Collection[int]) -> None:
        """Wrap a run; nothing is read yet."""
        super().__init__(run)
        self._doubted = frozenset(doubted)

    def _checkpoints(self) -> Sequence[CheckpointName]:
        return [name for name in super()._checkpoints() if name.attempt not in self._doubted]

    def _check_that_nothing_was_saved(self) -> None:
        if not self._doubted:  # else all that was saved may be theirs
            super()._check_that_nothing_was_saved()


def hand_out(
    run: RunStore,
    seen: RunStore,
    doubted: Collection[int] = (),
    earlier: RunStore | None = None,
) -> Handover | None:
    """Copy the newest checkpoint of a run to where a machine goes on from it.

    Claims and exit records of earlier attempts go with it, from which a worker learns how often
    machines are lost.

    Args:
        run: The run in the store of runs.
        seen: The run as the machine sees it.
        doubted: Attempts whose checkpoints are not handed out.
        earlier: The run as the machine before saw it, which may have the same bytes: its server
            copies them if it does not copy from the run.

    Returns:
        The checkpoint; None if the run has none yet.

    Raises:
        CheckpointError: The run has checkpoints, but none that verifies.
    """
    _forget_unfinished(run)
    handover: Handover | None = None
    found = TrustedStore(run, doubted).newest_whole(lambda _line: None)
    if found is not None:
        ref, manifest, files = found
        with suppress(FileTooLargeError):  # a worker goes on without them
            seen.copy_from(run, METRICS, MAX_TEXT_BYTES)
        store = CheckpointStore(seen)
        store.claim(ref.attempt)
        there = {} if earlier is None else _paths_by_hash(earlier, ref.step)
        for name, record in {**manifest.files, **manifest.part_records}.items():
            path = _path_of(record, f"{CHECKPOINTS}/{ref.name}/{name}")
            copied = store.place_copy(ref.step, name, record, run.address(path), run)
            if copied is None and earlier is not None and record.sha256 in there:
                source = earlier.address(there[record.sha256])
                copied = store.place_copy(ref.step, name, record, source, seen)
            files[name] = files[name] if copied is None else copied
        copy = store.publish(ref.step, ref.episode, files, manifest.config_sha256)
        handover = Handover(ref, copy)
    # Afterwards, since a later attempt that saved nothing has claimed the run too.
    tokens = sorted(run.fencing_tokens())[-_MAX_DOCUMENTS:]
    exits = run.attempt_documents("exits")[-_MAX_DOCUMENTS:]
    names = [f"{CLAIMS}/{token.name}" for token in tokens]
    for name in names + [f"exits/{attempt:04d}.json" for attempt in exits]:
        with suppress(FileTooLargeError):
            seen.copy_from(run, name)
    return handover


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
    _forget_unfinished(run)
    told = _Told(seen, note)
    claims = told.read("its claims", seen.fencing_tokens, [])
    if not any(token.attempt == expected.attempt for token in claims):
        return None  # it never came to train
    if any(token.attempt > expected.attempt for token in run.fencing_tokens()):
        return None  # a later attempt has gone on from what there was
    store = TrustedStore(run, expected.doubted)
    store.claim(expected.attempt)
    record = told.read("its exit record", lambda: _exit_figures(seen, expected.attempt), {})
    if record:
        run.write_json(f"exits/{expected.attempt:04d}.json", record)
    before = store.newest_whole(note)
    least = -1 if before is None else before[0].step
    kept = {} if before is None else before[2]
    spare = _newest_before(run, expected)

    def listed() -> list[CheckpointName]:
        return _candidates(seen, expected, least)

    for name in _looked_at(lambda: told.read("its checkpoints", listed, [])):
        files = told.read(
            name.name, lambda name=name: _read(seen, store, name, expected, kept, tick), None
        )
        if files is None:
            store.delete_copies()
            continue
        episode, content = files
        parent = None if before is None else before[0].name
        ref = _publish(
            store, name.step, episode, content, expected.config_sha256, parent, spare=spare
        )
        lines = told.read("its metrics", lambda: _figures(seen, expected.last_step), [])
        _add_metrics(run, lines, least, ref.step)
        store.prune(KEEP_CHECKPOINTS, spare=spare)
        return ref
    return None


def _newest_before(run: RunStore, expected: Expected) -> str:
    """Return the name of the newest checkpoint of an earlier attempt; empty if there is none.

    It stays however often the machine saves: to it the run goes back if nobody can go on from what
    the machine gave.
    """
    for one in Inspector(run).committed(lambda _line: None):
        attempt = one.checkpoint.attempt
        if attempt < expected.attempt and attempt not in expected.doubted:
            return one.checkpoint.name
    return ""


def _looked_at(listed: Callable[[], list[CheckpointName]]) -> Iterator[CheckpointName]:
    """Yield the candidates, newest first, and those that a second list has more.

    A machine at work deletes its older checkpoints. While a slow store is read, all that were
    listed may go, and the machine is honest nevertheless.
    """
    first = listed()
    yield from first
    if first:
        yield from (name for name in listed() if name not in first)


class _Told:
    """Reads what a machine wrote: whatever is wrong with it is a note, and nothing was said."""

    def __init__(self, seen: RunStore, note: Callable[[str], None]) -> None:
        self._seen = seen
        self._note = note

    def read(self, what: str, read: Callable[[], _T], otherwise: _T) -> _T:
        """Return what `read` does; `otherwise` if it raises anything but `StoreUnreachable`."""
        try:
            return read()
        except StoreUnreachable:
            raise
        except Exception as error:  # noqa: BLE001 - a stranger chose the bytes
            reason = printable(f"{type(error).__name__}: {error}"[:300])
            self._note(f"{what} in {self._seen.run_url} is refused: {reason}")
            return otherwise


def _forget_unfinished(run: RunStore) -> None:
    """Delete what a first save left that was cut off, if the run has nothing else.

    The first checkpoint that a run gets from a machine may be of any step, so that an unfinished
    one proves no loss; what it was made of is still where the machine saved it.
    """
    found = Inspector(run).all()
    if not found or any(one.state is not CheckpointState.UNFINISHED for one in found):
        return
    for one in found:
        run.filesystem.delete_dir(one.directory)
    run.filesystem.delete_dir(PARTS)
    run.delete(METRICS)


def _publish(
    store: CheckpointStore,
    step: int,
    episode: int,
    files: Mapping[str, bytes],
    config_sha256: str,
    parent: str | None,
    *,
    spare: str,
) -> CheckpointRef:
    """Publish a checkpoint; where the store is full, after older ones have made room."""
    try:
        return store.publish(step, episode, files, config_sha256, parent)
    except StoreFull:
        if not store.prune(1, spare=spare):
            raise
        return store.publish(step, episode, files, config_sha256, parent)


def _candidates(seen: RunStore, expected: Expected, least: int) -> list[CheckpointName]:
    """Return the newest checkpoints of the attempt beyond a step, newest first."""
    names = [CheckpointName.parse(name) for name in seen.list_if_present(CHECKPOINTS)]
    wanted = [
        name
        for name in names
        if name is not None
        and name.attempt == expected.attempt
        and least < name.step <= expected.last_step
    ]
    return sorted(wanted, reverse=True)[:MAX_CANDIDATES]


def _paths_by_hash(seen: RunStore, step: int) -> dict[str, str]:
    """Return paths of files by sha256, as manifests of a step say that a machine has written."""
    found: dict[str, str] = {}
    try:
        names = map(CheckpointName.parse, seen.list_if_present(CHECKPOINTS))
        wanted = sorted(name for name in names if name is not None and name.step == step)
        for listed in map(Inspector(seen).look, wanted[-MAX_CANDIDATES:]):
            found |= {record.sha256: path for path, record in listed.contents.values()}
    except StoreUnreachable:
        raise
    except Exception:  # noqa: BLE001 - a stranger chose the bytes
        return {}
    return found


def _path_of(record: FileRecord, path: str) -> str:
    """Return the path of a part, or that of a file, which is given."""
    return record.path if isinstance(record, PartRecord) else path


def _read(
    seen: RunStore,
    store: CheckpointStore,
    name: CheckpointName,
    expected: Expected,
    before: Mapping[str, bytes],
    tick: Callable[[], object],
) -> tuple[int, dict[str, bytes]]:
    """Return the episode of a checkpoint, and its files and parts, each of them checked.

    Where one server has both the run and what the machine sees, it copies them into the run first,
    and the copies are checked, which no machine can change: so they need not be sent.

    Raises:
        Unsound: One of them cannot belong to a checkpoint of this run.
        InvalidCheckpoint: One of them is not what its manifest says.
    """
    inspector = Inspector(seen)
    listed = inspector.look(name)
    manifest = listed.manifest
    if manifest is None:
        raise Unsound(listed.reason)
    if manifest.run_id != seen.run_id or manifest.config_sha256 != expected.config_sha256:
        raise Unsound("it is of another run, or of another configuration")
    if listed.files.keys() ^ _FILES:
        raise Unsound(f"its files are not {', '.join(sorted(_FILES))}")
    records: dict[str, FileRecord] = {**listed.files, **listed.parts}
    size = sum(record.size for record in records.values())
    most = min(expected.max_bytes, _most_bytes(before))
    if size > most or len(records) > _MAX_FILES:
        raise Unsound(f"{len(records)} files of {size} bytes are more than this run can have")
    texts = [record.size for file, record in records.items() if is_text(file)]
    if max(texts) > MAX_JSON_BYTES:
        raise Unsound(f"a text of {max(texts)} bytes is more than this run can have")
    files: dict[str, bytes] = {}
    for file, record in records.items():
        same = before.get(file)
        if same is None or record.mismatch(same) is not None:
            path = _path_of(record, f"{listed.directory}/{file}")
            copied = store.place_copy(name.step, file, record, seen.address(path), store.run)
            files[file] = inspector.file(listed, file) if copied is None else copied
            check_file(file, files[file])
            tick()
        else:
            files[file] = same  # as the weights of past rounds, which need not be sent again
    check_checkpoint(files, before, step=manifest.step, adapter=expected.adapter)
    return manifest.episode, files


def _most_bytes(before: Mapping[str, bytes]) -> int:
    if not before:
        return _FIRST_BYTES
    return sum(map(len, before.values())) * 11 // 10 + _SLACK_BYTES


def _figures(seen: RunStore, last_step: int) -> list[dict[str, Any]]:
    """Return the lines of a machine's metrics that hold figures."""
    limit = _LINE_BYTES * (last_step + 32)
    lines = seen.read_text(METRICS, limit).split("\n")[: 2 * last_step + 32]
    found = parse_json_lines("\n".join(line for line in lines if 1 < len(line) <= _LINE_BYTES))
    return [
        line
        for line in found
        if len(line) <= _MAX_FIGURES
        and all(len(name) <= 40 and name.isprintable() for name in line)
        and all(map(_is_figure, line.values()))
    ]


def _add_metrics(run: RunStore, theirs: Sequence[Mapping[str, Any]], least: int, step: int) -> None:
    """Add a machine's lines for the updates up to `step` that the run has no line about."""
    try:
        ours = run.read_text(METRICS, MAX_TEXT_BYTES)
    except FileNotFoundError:
        ours = ""
    lines = [line for line in parse_json_lines(ours) if _step(line) <= least]
    last = max(map(_step, lines), default=-1.0)
    for line in theirs:
        if last < _step(line) <= step:
            last = _step(line)
            lines.append(dict(line))
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
    return value is None or (isinstance(value, int) and abs(value) < 1 << 63)


def _exit_figures(seen: RunStore, attempt: int) -> dict[str, Any]:
    """Return the figures of a worker's exit record; nothing that it says of checkpoints counts."""
    try:
        found = seen.read_json(f"exits/{attempt:04d}.json")
    except FileNotFoundError:
        return {}
    return {key: found[key] for key in _EXIT_FIELDS if key in found and _is_figure(found[key])}
