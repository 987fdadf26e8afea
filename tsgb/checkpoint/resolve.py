"""Finds the checkpoint that a person means by a path or URL. Nothing stores a `latest` pointer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from pydantic import SecretStr

from tsgb.checkpoint.cache import FileCache
from tsgb.checkpoint.filesystem import DEADLINE_SECONDS, FileSystem, open_filesystem
from tsgb.checkpoint.inspect import CheckpointInfo, Inspector
from tsgb.checkpoint.layout import CHECKPOINTS, CheckpointName
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.urls import canonical_url, is_run_id
from tsgb.errors import CheckpointError, UsageError
from tsgb.types import CheckpointRef

_Reader = TypeVar("_Reader", bound=CheckpointReader)


@dataclass(frozen=True, slots=True)
class CheckpointAddress:
    """Meaning of a path or URL, before anything is asked of a store.

    Example: `CheckpointAddress(base="/runs/r1", name="step-00001200-a0003-1a2b3c4d", newest=False)`
    """

    base: str
    """URL of the run of the checkpoint that is named; without a name, of a run or a store."""
    name: str | None
    """Directory name of a checkpoint; None where none is named."""
    newest: bool
    """Whether it ends in `/latest`."""


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
    """Return the checkpoint that a user means by a path or URL, verified; see `load`."""
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
        url: Address of a checkpoint directory, a run, or a store; the latter two, with `/latest` at
            the end or without, mean the newest checkpoint below.
        user: User name for WebDAV.
        password: Password for WebDAV.
        manifest_key: Key that manifests must be signed with.
        cache: Keeps files on this machine; see `open_run`.
        names: Files to read; None reads all.
        on_skip: Called with one line for each newer checkpoint that does not verify.
        deadline_seconds: Seconds for which one call retries; see `open_filesystem`.

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
    """Return the error for an address without a usable checkpoint.

    Args:
        base: URL of a run or store.
        bad: Errors of the runs below it whose checkpoints cannot be used.
    """
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
    """Return runs by the time of their newest save, newest first.

    Steps and attempts of two runs do not compare.
    """
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
    """Return the URLs of the runs in a store, by name; a run is the only one below itself.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLocation:
    """A path or URL and what opens it.

    Example: `StoreLocation(url="https://dav.example.org/tsgb/r1/latest", user="me")`
    """

    url: str
    """Path or URL of a checkpoint, a run or a store."""
    user: str | None = None
    """User name for WebDAV."""
    password: SecretStr | None = None
    """Password for WebDAV."""
    manifest_key: SecretStr | None = None
    """Key that manifests must be signed with; None takes unsigned ones too."""
    deadline_seconds: float = DEADLINE_SECONDS
    """Seconds for which one call retries."""

    def open(self, run_url: str) -> Inspector:
        """Return one run, without a cache: what is told here is told of the store itself."""
        run = open_run(
            run_url,
            self.user,
            self.password,
            manifest_key=self.manifest_key,
            deadline_seconds=self.deadline_seconds,
        )
        return Inspector(run)

    def runs(self) -> Sequence[Inspector]:
        """Return the runs below; of a checkpoint, its run.

        Raises:
            CheckpointError: There is no such directory.
        """
        address = parse_address(self.url)
        if address.name is not None:
            return [self.open(address.base)]
        files = open_filesystem(
            address.base, self.user, self.password, deadline_seconds=self.deadline_seconds
        )
        return [self.open(run_url) for run_url in runs_below(files)]

    def only_run(self) -> RunStore:
        """Return the one run that is meant.

        Raises:
            UsageError: There are several or none, or a checkpoint is named.
        """
        address = parse_address(self.url)
        if address.name is not None or address.newest:
            raise UsageError(f"{self.url} is a checkpoint, not a run: give {address.base}")
        runs = [inspector.run for inspector in self.runs()]
        if len(runs) != 1:
            names = ", ".join(run.run_id for run in runs[:6])
            raise UsageError(
                f"{address.base} holds {len(runs)} runs{f' ({names})' if names else ''}: give the "
                "path or URL of one run"
            )
        return runs[0]

    def listed(self) -> Sequence[CheckpointInfo]:
        """Return all checkpoints that are meant: runs by name, in each the newest first.

        Raises:
            CheckpointError: There is no such directory, or not the one checkpoint that is named.
        """
        address = parse_address(self.url)
        if address.name is not None:
            return [self.open(address.base).named(address.name)]
        if address.newest:
            return [next(self.candidates(lambda _line: None))[1]]
        return [listed for inspector in self.runs() for listed in inspector.all()]

    def candidates(
        self, on_skip: Callable[[str], None]
    ) -> Iterator[tuple[Inspector, CheckpointInfo]]:
        """Yield committed checkpoints that may be meant, best first: one by name, or the newest.

        Args:
            on_skip: Called with one line for each checkpoint that does not count.

        Raises:
            CheckpointError: The one that is named does not count, or there is none at all.
        """
        address = parse_address(self.url)
        if address.name is not None:
            inspector = self.open(address.base)
            listed = inspector.named(address.name)
            inspector.ref(address.name)  # raises where it does not count, and says what to do
            yield inspector, listed
            return
        found = False
        bad: list[CheckpointError] = []
        for inspector in newest_first(self.runs(), bad, on_skip):
            for listed in inspector.committed(on_skip):
                found = True
                yield inspector, listed
        if not found:
            raise no_checkpoint(address.base, bad)
