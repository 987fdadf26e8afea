"""Copies a checkpoint to this machine, verified, so that a command can read it there as it was.

The copy is a store of its own with one run in it: `DIR/<run>/config.json`,
`DIR/<run>/checkpoints/<name>/`, the parts that it refers to, in `DIR/<run>/parts/`, and the user's
prompts that the run trains on, if there are any. So the run keeps its name, and whatever takes a
store takes DIR. As in every checkpoint the manifest comes last: a copy that was cut off does not
count, and the same call goes on with the files that are still missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tsgb.checkpoint.documents import MAX_JSON_BYTES, MAX_TEXT_BYTES
from tsgb.checkpoint.filesystem import FileTooLargeError
from tsgb.checkpoint.inspect import CheckpointInfo, Inspector
from tsgb.checkpoint.layout import CHECKPOINTS, PARTS, TRAINING_DATA, CheckpointName
from tsgb.checkpoint.manifest import MANIFEST, FileRecord, sha256_hex
from tsgb.checkpoint.reader import InvalidCheckpoint
from tsgb.checkpoint.resolve import StoreLocation, parse_address
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.urls import is_name, local_path
from tsgb.errors import CheckpointError, UsageError

_CONFIG = "config.json"
"""File of the run's configuration, which says what the weights belong to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullResult:
    """Result of a copy."""

    source: CheckpointInfo
    """Checkpoint that was copied."""
    directory: Path
    """Directory of the copy, on this machine."""
    copied: Mapping[str, int]
    """Size in bytes of each file that this call copied."""
    present: Mapping[str, int]
    """Size in bytes of each file that an earlier call had copied; read and verified again."""
    has_config: bool
    """Whether the run has a configuration, which was copied too."""


def pull(
    source: StoreLocation,
    directory: str,
    *,
    on_skip: Callable[[str], None],
    on_file: Callable[[CheckpointInfo, str, int], None],
) -> PullResult:
    """Copy the checkpoint that is named, or the newest one below that verifies.

    Args:
        source: Checkpoint, run or store.
        directory: Local directory that is empty, missing, or holds this very copy.
        on_skip: Called with one line for each newer checkpoint that does not verify.
        on_file: Called after each file with the checkpoint, the name and the bytes.

    Raises:
        UsageError: The directory is not local, or holds something else; nothing was written.
        CheckpointError: There is nothing to copy.
    """
    target = local_path(directory)
    if target is None:
        raise UsageError(f"{directory} is not a directory of this machine: give a local path")
    for inspector, listed in _begun(source, target, on_skip).candidates(on_skip):
        _check_inside(target, listed)
        _check_free(target, listed)
        run = open_run(str(target / inspector.run.run_id))
        try:
            return _copy(inspector, listed, run, target, on_file)
        except InvalidCheckpoint as error:
            run.filesystem.delete_dir(listed.directory)
            run.filesystem.delete_dir(PARTS)
            on_skip(f"{listed.checkpoint.name}: {error}")
    raise CheckpointError(
        f"no checkpoint of {source.url} verifies, see above: nothing was copied; choose another one"
    )


def _begun(source: StoreLocation, target: Path, on_skip: Callable[[str], None]) -> StoreLocation:
    """Return the checkpoint whose copy was cut off, if there is a newer one; else the source."""
    if parse_address(source.url).name is not None:
        return source
    for inspector in source.runs():
        for path in (target / inspector.run.run_id / CHECKPOINTS).glob("*"):
            begun = CheckpointName.parse(path.name) is not None and not (path / MANIFEST).exists()
            if begun and any(
                item.checkpoint.name == path.name for item in inspector.committed(on_skip)
            ):
                on_skip(f"goes on with the copy of {path.name} that was cut off")
                return replace(source, url=f"{inspector.run.run_url}/{CHECKPOINTS}/{path.name}")
    return source


def _copy(
    source: Inspector,
    listed: CheckpointInfo,
    run: RunStore,
    target: Path,
    on_file: Callable[[CheckpointInfo, str, int], None],
) -> PullResult:
    run.copy_from(source.run, TRAINING_DATA, MAX_TEXT_BYTES)
    has_config = run.copy_from(source.run, _CONFIG)
    copied: dict[str, int] = {}
    present: dict[str, int] = {}
    for name, (path, record) in listed.contents.items():
        if _is_there(run, path, record):
            present[name] = record.size
        else:
            run.write_bytes(path, source.file(listed, name))
            copied[name] = record.size
        on_file(listed, name, record.size)
    try:
        manifest = source.run.read_bytes(f"{listed.directory}/{MANIFEST}", MAX_JSON_BYTES)
    except FileNotFoundError as error:
        raise InvalidCheckpoint("it was deleted meanwhile", committed=False) from error
    if sha256_hex(manifest) != listed.sha256:
        raise InvalidCheckpoint(f"{MANIFEST} changed while it was copied", committed=True)
    run.write_bytes(f"{listed.directory}/{MANIFEST}", manifest)
    return PullResult(
        source=listed,
        directory=target / run.run_id / listed.directory,
        copied=copied,
        present=present,
        has_config=has_config,
    )


def _is_there(run: RunStore, path: str, record: FileRecord) -> bool:
    try:
        return record.mismatch(run.read_bytes(path, record.size)) is None
    except (FileNotFoundError, FileTooLargeError):
        return False


def _check_inside(target: Path, listed: CheckpointInfo) -> None:
    """Return if every file of the copy will lie in the target directory, whatever links are there.

    The names themselves were checked when the manifest was read.
    """
    run = target / listed.run.run_id
    paths = [path for path, _ in listed.contents.values()]
    for path in (run / name for name in (*paths, f"{listed.directory}/{MANIFEST}")):
        if not path.resolve().is_relative_to(target.resolve()):
            raise UsageError(
                f"{path} leads out of {target} to {path.resolve()}: delete the symbolic link, or "
                "give another directory"
            )


def _check_free(target: Path, listed: CheckpointInfo) -> None:
    """Return if every level holds nothing but what leads to this checkpoint, or is part of it."""
    levels = [
        (target, {listed.run.run_id}),
        (target / listed.run.run_id, {_CONFIG, TRAINING_DATA, CHECKPOINTS, PARTS}),
        (
            target / listed.run.run_id / PARTS,
            {record.path.removeprefix(f"{PARTS}/") for record in listed.parts.values()},
        ),
        (target / listed.run.run_id / CHECKPOINTS, {listed.checkpoint.name}),
        (target / listed.run.run_id / listed.directory, {*listed.files, MANIFEST}),
    ]
    for directory, allowed in levels:
        if directory.exists() and not directory.is_dir():
            raise UsageError(f"{directory} is a file: give a directory to copy into")
        names = [path.name for path in directory.iterdir()] if directory.exists() else []
        strange = sorted(name for name in names if name not in allowed and is_name(name))
        if strange:
            raise UsageError(
                f"{directory} holds {strange[0]}, which is no part of a copy of "
                f"{listed.run.run_id}/{listed.checkpoint.name}: give an empty directory, or name "
                "the checkpoint whose copy it is"
            )
