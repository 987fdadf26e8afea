"""Finds the checkpoint that a person means by a path or URL. Nothing stores a `latest` pointer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from pydantic import SecretStr

from tsgb.checkpoint.cache import FileCache
from tsgb.checkpoint.filesystem import DEADLINE_SECONDS, FileSystem, open_filesystem
from tsgb.checkpoint.layout import CHECKPOINTS, CheckpointName
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import open_run
from tsgb.checkpoint.urls import canonical_url, is_run_id
from tsgb.errors import CheckpointError
from tsgb.types import CheckpointRef

_Reader = TypeVar("_Reader", bound=CheckpointReader)


@dataclass(frozen=True, slots=True)
class CheckpointAddress:
    """What a path or URL says, before anything is asked of a store.

    Example: `CheckpointAddress(base="/runs/r1", name="step-00001200-a0003-1a2b3c4d", newest=False)`
    """

    base: str
    """The run of the checkpoint that is named; without a name a run, or a store of runs."""
    name: str | None
    newest: bool
    """It ends in `/latest`."""


def parse_address(url: str) -> CheckpointAddress:
    """Take a path or URL apart.

    Raises:
        StoreError: It cannot be a store's address.
    """
    base = canonical_url(url)
    parent, _, last = base.rpartition("/")
    newest = last == "latest"
    if newest:
        base = parent
        parent, _, last = base.rpartition("/")
    if parent.endswith(f"/{CHECKPOINTS}") and CheckpointName.parse(last):
        return CheckpointAddress(parent.removesuffix(f"/{CHECKPOINTS}"), last, newest)
    return CheckpointAddress(base, None, newest)


def resolve(
    url: str,
    user: str | None = None,
    password: SecretStr | None = None,
    *,
    manifest_key: SecretStr | None = None,
    on_skip: Callable[[str], None] = lambda _line: None,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> CheckpointRef:
    """The checkpoint that a user means by a path or URL, verified; see `load`."""
    return load(
        url,
        user,
        password,
        manifest_key=manifest_key,
        on_skip=on_skip,
        deadline_seconds=deadline_seconds,
    )[0]


def load(
    url: str,
    user: str | None = None,
    password: SecretStr | None = None,
    *,
    manifest_key: SecretStr | None = None,
    cache: FileCache | None = None,
    names: Collection[str] | None = None,
    on_skip: Callable[[str], None] = lambda _line: None,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> tuple[CheckpointRef, dict[str, bytes]]:
    """Find the checkpoint that a user means by a path or URL, and read it verified.

    Args:
        url: A checkpoint directory, a run, or a store; the latter two, with `/latest` at the end
            or without, mean the newest checkpoint below.
        user: For WebDAV.
        password: For WebDAV.
        manifest_key: Manifests must be signed with it.
        cache: See `open_run`.
        names: Read these files only; None reads all.
        on_skip: Gets one line for each newer checkpoint that does not verify.
        deadline_seconds: See `open_filesystem`.

    Raises:
        CheckpointError: There is none, or none that verifies.
    """

    def open_reader(run_url: str) -> CheckpointReader:
        run = open_run(
            run_url,
            user,
            password,
            manifest_key=manifest_key,
            cache=cache,
            deadline_seconds=deadline_seconds,
        )
        return CheckpointReader(run)

    address = parse_address(url)
    if address.name is not None:
        reader = open_reader(address.base)
        ref = reader.ref(address.name)
        return ref, reader.read(ref, names)
    filesystem = open_filesystem(address.base, user, password, deadline_seconds=deadline_seconds)
    readers = [open_reader(run_url) for run_url in runs_below(filesystem)]
    bad: list[CheckpointError] = []
    for reader in newest_first(readers, bad, on_skip):
        try:
            valid = reader.newest_valid(on_skip, names)
        except CheckpointError as error:
            bad.append(error)
            on_skip(str(error))
            continue
        if valid is not None:
            return valid
    raise no_checkpoint(address.base, bad)


def no_checkpoint(base: str, bad: Sequence[CheckpointError] = ()) -> CheckpointError:
    """The error for a place without a usable checkpoint; `bad`: of its runs that have bad ones."""
    if bad:
        return CheckpointError(f"no usable checkpoint below {base}: {bad[0]}")
    return CheckpointError(
        f"no usable checkpoint below {base}: give a checkpoint directory, a run or a store that "
        "holds one, or train first"
    )


def newest_first(
    readers: Sequence[_Reader],
    bad: list[CheckpointError],
    on_skip: Callable[[str], None],
) -> Sequence[_Reader]:
    """Runs by the time of their newest save: steps and attempts of two runs do not compare."""
    dated: list[tuple[datetime, _Reader]] = []
    for reader in readers:
        try:
            found = reader.newest_manifest()
        except CheckpointError as error:
            bad.append(error)
            on_skip(str(error))
            continue
        if found is not None:
            dated.append((found[1].created_at, reader))
    return [reader for _, reader in sorted(dated, key=lambda item: item[0], reverse=True)]


def runs_below(filesystem: FileSystem) -> Sequence[str]:
    """URLs of the runs in a store, in the order of names; a run is the only one below itself.

    Raises:
        CheckpointError: There is no such directory.
    """
    try:
        names = _directories(filesystem, "")
        if any(map(CheckpointName.parse, names)):
            return [filesystem.url.rpartition("/")[0]]  # the checkpoints directory of a run
        if CHECKPOINTS in names:
            return [filesystem.url]
        runs = [name for name in names if is_run_id(name)]
        return [
            f"{filesystem.url}/{name}"
            for name in runs
            if CHECKPOINTS in _directories(filesystem, name)
        ]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"there is nothing at {filesystem.url}: check the path, or train first"
        ) from error


def _directories(filesystem: FileSystem, path: str) -> Sequence[str]:
    return [entry.name for entry in filesystem.entries(path) if entry.is_dir]
