"""Checkpoints of a run: claim, publish, read verified, fall back, prune, resolve.

It knows bytes and names, no torch. Few stores have an atomic step to build a commit on, so there
is none here: every process writes under names of its own, the manifest comes last and is the
commit, and every file is checked against its sha256 on every read. Two processes that both believe
they own a run can therefore waste work, but cannot damage each other's; the older one learns from
the claims that it is the older one, and stops with `LeaseLost`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from pydantic import SecretStr

from tsgb.checkpoint.filesystem import DEADLINE_SECONDS, FileSystem, canonical_url, open_filesystem
from tsgb.checkpoint.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    canonical_json,
    installed_versions,
    sha256_hex,
    utc_now,
)
from tsgb.checkpoint.run import RunLock, RunStore, check_run_id, is_run_id, join_run, open_run
from tsgb.errors import CheckpointError, LeaseLost, StoreError
from tsgb.types import CheckpointRef

__all__ = [
    "CheckpointStore",
    "RunLock",
    "RunStore",
    "check_run_id",
    "join_run",
    "load",
    "open_run",
    "resolve",
]

CHECKPOINTS = "checkpoints"
CLAIMS = "claims"
_CHECKPOINT_NAME = re.compile(r"^step-(\d{8,})-a(\d{4,})-([0-9a-f]{8})$")
_CLAIM_NAME = re.compile(r"^a(\d{4,})-([0-9a-f]{8})$")
_FILE_NAME = re.compile(r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
_READS = 3
"""The wire may lie: a file is called damaged after this many reads."""
_STARTS_LIMIT = 0xFFF
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, order=True)
class _Claim:
    """Who may write: the highest one. A later start of one attempt draws a higher writer."""

    attempt: int
    writer: str

    @property
    def name(self) -> str:
        return f"a{self.attempt:04d}-{self.writer}"

    @classmethod
    def parse(cls, name: str) -> _Claim | None:
        match = _CLAIM_NAME.match(name)
        return match and cls(int(match[1]), match[2])


@dataclass(frozen=True, slots=True, order=True)
class _Place:
    """A checkpoint directory; the order is that of age, newest highest."""

    attempt: int
    step: int
    writer: str

    @property
    def name(self) -> str:
        return f"step-{self.step:08d}-a{self.attempt:04d}-{self.writer}"

    @property
    def claim(self) -> _Claim:
        return _Claim(self.attempt, self.writer)

    @classmethod
    def parse(cls, name: str) -> _Place | None:
        match = _CHECKPOINT_NAME.match(name)
        return match and cls(int(match[2]), int(match[1]), match[3])


class _Invalid(Exception):
    """This checkpoint does not count; the message says why. `committed` if it once did."""

    def __init__(self, reason: str, *, committed: bool) -> None:
        super().__init__(reason)
        self.committed = committed


class CheckpointStore:
    """The checkpoints of one run.

    A reader needs no claim. A writer claims once, then publishes:

    >>> store = CheckpointStore(open_run("memory://docs/run-1"))
    >>> store.claim()
    1
    >>> store.publish(0, 0, {"guard.safetensors": b"..."}, config_sha256="0" * 64).step
    0
    """

    def __init__(self, run: RunStore, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.run = run
        self._clock = clock
        self._claim: _Claim | None = None
        self._written: set[str] = set()
        """Names whose manifest this process has tried to write."""
        self._proven: str | None = None
        """The newest checkpoint that this process has read in full."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.run.run_url!r})"

    # Fencing -----------------------------------------------------------------------------------

    def claim(self, attempt: int | None = None) -> int:
        """Become the writer of this run.

        Args:
            attempt: The fencing token that a coordinator gave out; None takes the next free one.

        Returns:
            The attempt.

        Raises:
            LeaseLost: A higher attempt has been here.
        """
        seen = [*self._claims(), *(place.claim for place in self._places())]
        highest = max((claim.attempt for claim in seen), default=0)
        if attempt is None:
            attempt = highest + 1
        if attempt < highest:
            raise LeaseLost(
                f"attempt {attempt} of run {self.run.run_url} is over: attempt {highest} has "
                "claimed it; stop this process, that one goes on"
            )
        # A machine may start its process again: a later start of one attempt must outrank an
        # earlier one, so the writer's first digits count the starts and the rest make it unique.
        starts = max((int(c.writer[:3], 16) + 1 for c in seen if c.attempt == attempt), default=0)
        if starts > _STARTS_LIMIT:
            raise LeaseLost(f"attempt {attempt} was started {starts} times: begin a new attempt")
        claim = _Claim(attempt, f"{starts:03x}{secrets.token_hex(3)[:5]}")
        record = {"attempt": attempt, "writer": claim.writer, "created_at": f"{self._clock()}"}
        self.run.write_bytes(f"{CLAIMS}/{claim.name}", canonical_json(record))
        self._claim = claim
        self.check_fence()
        return attempt

    @property
    def writer(self) -> str:
        """The unique part of this process's names."""
        return self._own_claim().writer

    def check_fence(self) -> None:
        """Return if this process is still the writer.

        Raises:
            LeaseLost: A newer process has claimed the run.
            StoreError: Our own claim is not there, so the answer cannot be trusted.
        """
        own = self._own_claim()
        claims = self._claims()
        if own not in claims:
            raise StoreError(
                f"claim {own.name} of run {self.run.run_url} has vanished: the run was deleted or "
                "the store answers wrongly; nothing more is written"
            )
        newest = max(claims)
        if newest > own:
            raise LeaseLost(
                f"run {self.run.run_url} was claimed by {newest.name}, which is newer than "
                f"{own.name}: stop this process, that one goes on"
            )

    def _own_claim(self) -> _Claim:
        if self._claim is None:
            raise RuntimeError("claim() comes before anything that writes")
        return self._claim

    def _claims(self) -> Sequence[_Claim]:
        try:
            names = self.run.list(CLAIMS)
        except FileNotFoundError:
            return []
        return [claim for name in names if (claim := _Claim.parse(name))]

    # Writing -----------------------------------------------------------------------------------

    def publish(
        self,
        step: int,
        episode: int,
        files: Mapping[str, bytes],
        config_sha256: str,
        parent: str | None = None,
    ) -> CheckpointRef:
        """Write a checkpoint; it exists once this returns, or not at all.

        A failed call may be repeated with the same files.

        Args:
            step: Optimizer updates done so far.
            episode: Episodes played so far.
            files: Content by file name.
            config_sha256: Of the run's configuration.
            parent: Name of the checkpoint before this one.

        Raises:
            LeaseLost: A newer process owns the run.
            StoreFull: No space; what was committed before is untouched.
            CheckpointError: This process has committed other bytes for this step.
        """
        bad = [name for name in files if not _FILE_NAME.match(name) or name == MANIFEST]
        if bad or not files:
            raise ValueError(f"file names {bad!r} cannot be part of a checkpoint")
        own = self._own_claim()
        place = _Place(own.attempt, step, own.writer)
        manifest = Manifest(
            run_id=self.run.run_id,
            step=step,
            episode=episode,
            attempt=own.attempt,
            writer=own.writer,
            parent=parent,
            files={name: FileRecord.of(data) for name, data in sorted(files.items())},
            versions=installed_versions(),
            config_sha256=config_sha256,
            created_at=self._clock(),
        )
        if place.name in self._written:
            committed = self._earlier_commit(place, manifest)
            if committed is not None:
                return committed
        self.check_fence()
        directory = f"{CHECKPOINTS}/{place.name}"
        for name, data in sorted(files.items()):
            self.run.write_bytes(f"{directory}/{name}", data)
        self._check_sizes(directory, manifest)
        self.check_fence()
        self._written.add(place.name)
        self.run.write_bytes(f"{directory}/{MANIFEST}", manifest.to_bytes())
        try:
            kept, sha256 = self._manifest(place)
        except _Invalid as error:
            raise CheckpointError(
                f"{self.run.run_url}/{directory} was written but cannot be read back: {error}; "
                "the one before it still counts"
            ) from error
        return self._ref(place, kept, sha256)

    def _earlier_commit(self, place: _Place, manifest: Manifest) -> CheckpointRef | None:
        """What an earlier call for this step committed; never written over."""
        try:
            kept, sha256 = self._manifest(place)
        except _Invalid:
            return None
        if kept.files != manifest.files:
            raise CheckpointError(
                f"{place.name} is committed with other content: a committed checkpoint is never "
                "written over; publish the next step"
            )
        return self._ref(place, kept, sha256)

    def _check_sizes(self, directory: str, manifest: Manifest) -> None:
        there = {entry.name: entry.size for entry in self.run.filesystem.entries(directory)}
        for name, record in manifest.files.items():
            size = there.get(name)
            if name not in there or (size is not None and size != record.size):
                raise StoreError(
                    f"{self.run.run_url}/{directory}/{name} has {size} bytes where {record.size} "
                    "were written: the store lost some; nothing was committed"
                )

    def prune(self, keep: int = 3) -> Sequence[str]:
        """Delete all but the newest `keep` checkpoints, and what older writers left unfinished.

        The checkpoint that this process started from stays until it has `keep` of its own: it is
        the only one that was read in full.

        Returns:
            The names of the deleted ones.

        Raises:
            LeaseLost: A newer process owns the run; nothing was deleted.
        """
        if keep < 1:
            raise ValueError("keep must be at least 1")
        own = self._own_claim()
        self.check_fence()
        kept: list[_Place] = []
        old: list[_Place] = []
        for place in self._places():
            if len(kept) >= keep:
                old.append(place)
                continue
            try:
                self._manifest(place)
                kept.append(place)
            except _Invalid as error:
                if not error.committed and place.claim < own:
                    old.append(place)  # nobody will finish it; a damaged one stays as evidence
        if sum(place.claim == own for place in kept) < keep:
            old = [place for place in old if place.name != self._proven]
        old = sorted(place for place in old if place.claim <= own)
        for place in old:
            self._delete(place)
        return [place.name for place in old]

    def _names_in(self, place: _Place) -> Sequence[str]:
        try:
            return self.run.list(f"{CHECKPOINTS}/{place.name}")
        except FileNotFoundError:
            return []

    def _delete(self, place: _Place) -> None:
        # The manifest first: a half deleted checkpoint must not look like a damaged one.
        directory = f"{CHECKPOINTS}/{place.name}"
        self.run.delete(f"{directory}/{MANIFEST}")
        for name in self._names_in(place):
            self.run.delete(f"{directory}/{name}")
        self.run.filesystem.delete_dir(directory)

    # Reading -----------------------------------------------------------------------------------

    def newest(self) -> CheckpointRef | None:
        """The newest committed checkpoint; its files are verified when they are read.

        Returns:
            None only when the run definitely has none: a new run.

        Raises:
            CheckpointError: There are checkpoints, but none that counts.
        """
        found = self.newest_manifest()
        return None if found is None else found[0]

    def newest_manifest(self) -> tuple[CheckpointRef, Manifest] | None:
        """As `newest`, with the manifest."""

        def look(place: _Place) -> tuple[CheckpointRef, Manifest]:
            manifest, sha256 = self._manifest(place)
            return self._ref(place, manifest, sha256), manifest

        return self._first_valid(look, lambda _line: None)

    def newest_valid(
        self, on_skip: Callable[[str], None], names: Collection[str] | None = None
    ) -> tuple[CheckpointRef, dict[str, bytes]] | None:
        """The newest checkpoint whose files all verify, and its files.

        Args:
            on_skip: Gets one line for each newer checkpoint that was skipped, saying why.
            names: Read these files only; None reads all.

        Returns:
            None only when the run definitely has none.

        Raises:
            CheckpointError: There are checkpoints, but none that verifies.
        """

        def look(place: _Place) -> tuple[CheckpointRef, dict[str, bytes]]:
            manifest, sha256 = self._manifest(place)
            return self._ref(place, manifest, sha256), self._files(place, manifest, names)

        return self._first_valid(look, on_skip)

    def read(self, ref: CheckpointRef, names: Collection[str] | None = None) -> dict[str, bytes]:
        """The files of a checkpoint, each verified.

        Raises:
            CheckpointError: It is gone or damaged.
        """
        place = _Place.parse(ref.name)
        try:
            if place is None:
                raise _Invalid("that is no checkpoint's name", committed=False)
            manifest, sha256 = self._manifest(place)
            if sha256 != ref.sha256:
                raise _Invalid("its manifest is not the one that was named", committed=True)
            return self._files(place, manifest, names)
        except _Invalid as error:
            raise CheckpointError(
                f"checkpoint {ref.url} cannot be used: {error}; choose another one or "
                f"{self.run.run_url}/latest"
            ) from error

    def ref(self, name: str) -> CheckpointRef:
        """The reference to a committed checkpoint by its directory name.

        Raises:
            CheckpointError: There is none of that name, or its manifest is damaged.
        """
        place = _Place.parse(name)
        try:
            if place is None:
                raise _Invalid("that is no checkpoint's name", committed=False)
            return self._ref(place, *self._manifest(place))
        except _Invalid as error:
            raise CheckpointError(
                f"checkpoint {self.run.run_url}/{CHECKPOINTS}/{name} cannot be used: {error}; "
                f"choose another one or {self.run.run_url}/latest"
            ) from error

    def _first_valid(
        self, look: Callable[[_Place], _T], on_skip: Callable[[str], None]
    ) -> _T | None:
        places = self._places()
        if not places and self._claim is not None:
            self.check_fence()  # a store that has our claim is the right one, and answers
        nothing_lost = True
        reasons: list[str] = []
        for place in places:
            try:
                found = look(place)
            except _Invalid as error:
                # A run that died in its very first save, of step 0, has lost nothing.
                nothing_lost = nothing_lost and not error.committed and place.step == 0
                reasons.append(f"{place.name}: {error}")
                on_skip(reasons[-1])
                continue
            return found
        if nothing_lost:
            return None
        raise CheckpointError(
            f"none of the {len(places)} checkpoints of {self.run.run_url} can be used, the newest "
            f"because {reasons[0]}: to start over, delete {self.run.run_url}/{CHECKPOINTS}"
        )

    def _places(self) -> Sequence[_Place]:
        """All checkpoint directories, newest first, whether they count or not."""
        try:
            names = self.run.list(CHECKPOINTS)
        except FileNotFoundError:
            return []
        return sorted((place for name in names if (place := _Place.parse(name))), reverse=True)

    def _ref(self, place: _Place, manifest: Manifest, sha256: str) -> CheckpointRef:
        return CheckpointRef(
            run_url=self.run.run_url,
            step=place.step,
            episode=manifest.episode,
            attempt=place.attempt,
            writer=place.writer,
            name=place.name,
            sha256=sha256,
        )

    def _manifest(self, place: _Place) -> tuple[Manifest, str]:
        """The manifest and the sha256 of its bytes."""
        path = f"{CHECKPOINTS}/{place.name}/{MANIFEST}"
        reason = ""
        for _ in range(_READS):
            try:
                data = self.run.read_bytes(path)
                manifest = Manifest.from_bytes(data)
            except FileNotFoundError as error:
                reason = f"it has no {MANIFEST}, so its writer did not finish it"
                raise _Invalid(reason, committed=False) from error
            except ValueError as error:
                if isinstance(error, StoreError):
                    raise
                reason = str(error)
                continue
            if _Place(manifest.attempt, manifest.step, manifest.writer) == place:
                return manifest, sha256_hex(data)
            reason = "it belongs to another checkpoint"
        raise _Invalid(f"{MANIFEST} is damaged: {reason}", committed=True)

    def _files(
        self, place: _Place, manifest: Manifest, names: Collection[str] | None
    ) -> dict[str, bytes]:
        files = {
            name: self._file(place, manifest, name)
            for name in (manifest.files if names is None else names)
        }
        if names is None:
            self._proven = place.name
        return files

    def _file(self, place: _Place, manifest: Manifest, name: str) -> bytes:
        record = manifest.files.get(name)
        if record is None:
            raise _Invalid(f"it holds no {name}", committed=True)
        problem: str | None = None
        for _ in range(_READS):
            try:
                data = self.run.read_bytes(f"{CHECKPOINTS}/{place.name}/{name}")
            except FileNotFoundError as error:
                raise _Invalid(f"{name} is missing", committed=True) from error
            problem = record.mismatch(data)
            if problem is None:
                return data
        raise _Invalid(f"{name} is damaged: {problem}", committed=True)


def resolve(
    url: str,
    user: str | None = None,
    password: SecretStr | None = None,
    *,
    on_skip: Callable[[str], None] = lambda _line: None,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> CheckpointRef:
    """The checkpoint that a user means by a path or URL, verified; see `load`."""
    return load(url, user, password, on_skip=on_skip, deadline_seconds=deadline_seconds)[0]


def load(
    url: str,
    user: str | None = None,
    password: SecretStr | None = None,
    *,
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
        names: Read these files only; None reads all.
        on_skip: Gets one line for each newer checkpoint that does not verify.
        deadline_seconds: See `open_filesystem`.

    Raises:
        CheckpointError: There is none, or none that verifies.
    """

    def open_store(run_url: str) -> CheckpointStore:
        return CheckpointStore(open_run(run_url, user, password, deadline_seconds=deadline_seconds))

    base = canonical_url(url)
    parent, _, last = base.rpartition("/")
    if last == "latest":
        base = parent
        parent, _, last = base.rpartition("/")
    if parent.endswith(f"/{CHECKPOINTS}") and _Place.parse(last):
        store = open_store(parent.removesuffix(f"/{CHECKPOINTS}"))
        ref = store.ref(last)
        return ref, store.read(ref, names)
    if last == CHECKPOINTS:
        base = parent
    filesystem = open_filesystem(base, user, password, deadline_seconds=deadline_seconds)
    stores = [open_store(run_url) for run_url in _runs_below(filesystem)]
    # Steps and attempts of two runs do not compare; their time does.
    dated: list[tuple[datetime, CheckpointStore]] = []
    for store in stores:
        try:
            found = store.newest_manifest()
        except CheckpointError as error:
            on_skip(str(error))
            continue
        if found is not None:
            dated.append((found[1].created_at, store))
    for _, store in sorted(dated, key=lambda item: item[0], reverse=True):
        try:
            valid = store.newest_valid(on_skip, names)
        except CheckpointError as error:
            on_skip(str(error))
            continue
        if valid is not None:
            return valid
    raise CheckpointError(
        f"no usable checkpoint below {base}: give a checkpoint directory, a run or a store that "
        "holds one, or train first"
    )


def _runs_below(filesystem: FileSystem) -> Sequence[str]:
    try:
        names = _directories(filesystem, "")
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
