"""Checkpoints of a run: claim, publish, prune; reading is in reader.py, finding in resolve.py.

It knows bytes and names, no torch. Few stores have an atomic step to build a commit on, so there
is none here: every process writes under names of its own, the manifest comes last and is the
commit, and every file is checked against its sha256 on every read. Two processes that both believe
they own a run can therefore waste work, but cannot damage each other's; the older one learns from
the claims that it is the older one, and stops with `LeaseLost`.

Parts are content that never changes once it is there, such as the weights of past rounds. Each is a
file below `parts/`, written once and named in the manifests of all checkpoints that have it. Its
name has the token of the process that wrote it, so the rule above holds for parts too: the next
process refers to them where they are, and never writes over them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from tsgb.checkpoint.documents import canonical_json
from tsgb.checkpoint.filesystem import FileAddress
from tsgb.checkpoint.layout import (
    CHECKPOINTS,
    CLAIMS,
    PARTS,
    CheckpointName,
    FencingToken,
    PartName,
    next_token,
)
from tsgb.checkpoint.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    PartRecord,
    installed_versions,
    utc_now,
)
from tsgb.checkpoint.reader import CheckpointReader, InvalidCheckpoint
from tsgb.checkpoint.resolve import load, resolve
from tsgb.checkpoint.run import RunLock, RunStore, open_run
from tsgb.checkpoint.urls import check_run_id, is_name, join_run
from tsgb.errors import CheckpointError, LeaseLost, StoreError, StoreUnreachable
from tsgb.types import Buffer, CheckpointRef

NONE = "none"
"""Text in the place of hashes where a run has no checkpoint yet."""

__all__ = [
    "NONE",
    "CheckpointReader",
    "CheckpointStore",
    "PinnedStore",
    "RunLock",
    "RunStore",
    "check_run_id",
    "join_run",
    "load",
    "open_run",
    "resolve",
]


class CheckpointStore(CheckpointReader):
    """The checkpoints of one run.

    A reader needs no claim. A writer claims once, then publishes:

    >>> store = CheckpointStore(open_run("memory://docs/run-1"))
    >>> store.claim()
    1
    >>> store.publish(0, 0, {"guard.safetensors": b"..."}, config_sha256="0" * 64).step
    0
    """

    def __init__(self, run: RunStore, *, clock: Callable[[], datetime] = utc_now) -> None:
        super().__init__(run)
        self._clock = clock
        self._token: FencingToken | None = None
        self._written: set[str] = set()
        """Names whose manifest this process has tried to write."""
        self._hashed: dict[str, tuple[Buffer, FileRecord]] = {}
        """Parts that were hashed, by `FILE/PART`: the same memory is not hashed twice."""
        self._wanted: set[str] = set()
        """Paths of the parts that the latest `publish` refers to, committed or not."""
        self._placed: dict[str, bytes] = {}
        """Files that the server copied here and that this process read, by path."""
        self._refused: set[tuple[str, str]] = set()
        """Runs whose account was refused to copy, and from where: it is not asked again."""
        self.bytes_sent = 0
        """Bytes of files and parts that this process has written to the store."""
        self.part_bytes_freed = 0
        """Bytes of the parts that `prune` has deleted, as far as the store tells sizes."""

    def claim(self, attempt: int | None = None) -> int:
        """Become the writer of this run.

        Args:
            attempt: The fencing token that a coordinator gave out; None takes the next free one.

        Returns:
            The attempt.

        Raises:
            LeaseLost: A higher attempt has been here.
        """
        seen = self._seen()
        highest = max((token.attempt for token in seen), default=0)
        if attempt is None:
            attempt = highest + 1
        if attempt < highest:
            raise LeaseLost(
                f"attempt {attempt} of run {self.run.run_url} is over: attempt {highest} has "
                "claimed it; stop this process, that one goes on"
            )
        token = next_token(seen, attempt)
        if token is None:
            raise LeaseLost(f"attempt {attempt} was started too many times: begin a new attempt")
        record = {"attempt": attempt, "writer": token.writer, "created_at": f"{self._clock()}"}
        self.run.write_bytes(f"{CLAIMS}/{token.name}", canonical_json(record))
        self._token = token
        self.check_fence()
        return attempt

    @property
    def writer(self) -> str:
        """Unique part of this process's names."""
        return self._own_token().writer

    def check_fence(self) -> None:
        """Return if this process is still the writer.

        Raises:
            LeaseLost: A newer process has claimed the run.
            StoreError: Our own token is not there, so the answer cannot be trusted.
        """
        own = self._own_token()
        tokens = self.run.fencing_tokens()
        if own not in tokens:
            raise StoreError(
                f"claim {own.name} of run {self.run.run_url} has vanished: the run was deleted or "
                "the store answers wrongly; nothing more is written"
            )
        newest = max(tokens)
        if newest > own:
            raise LeaseLost(
                f"run {self.run.run_url} was claimed by {newest.name}, which is newer than "
                f"{own.name}: stop this process, that one goes on"
            )

    def _check_that_nothing_was_saved(self) -> None:
        if self._token is not None:
            self.check_fence()  # a store that has our token is the right one, and it answers
        super()._check_that_nothing_was_saved()

    def _seen(self) -> Sequence[FencingToken]:
        """Return the tokens of all attempts that claimed this run or published to it."""
        return [
            *self.run.fencing_tokens(),
            *(checkpoint.token for checkpoint in self._checkpoints()),
        ]

    def _own_token(self) -> FencingToken:
        if self._token is None:
            raise RuntimeError("claim() comes before anything that writes")
        return self._token

    def publish(
        self,
        step: int,
        episode: int,
        files: Mapping[str, Buffer],
        config_sha256: str,
        parent: str | None = None,
    ) -> CheckpointRef:
        """Write a checkpoint; it exists once this returns, or not at all.

        A failed call may be repeated with the same files.

        Args:
            step: Optimizer updates done so far.
            episode: Episodes played so far.
            files: Content by file name, and that of its parts by `FILE/PART`. The memory of a part
                must not change: what is given again is taken to be what it was.
            config_sha256: Hash of the run's configuration.
            parent: Name of the checkpoint before this one.

        Raises:
            LeaseLost: A newer process owns the run.
            StoreFull: No space; what was committed before is untouched.
            CheckpointError: This process has committed other bytes for this step.
        """
        parts = {name: data for name, data in files.items() if "/" in name}
        files = {name: files[name] for name in sorted(files.keys() - parts.keys())}
        bad = [name for name in files if not is_name(name) or name == MANIFEST]
        bad += [name for name in parts if not _is_part(name, files)]
        if bad or not files:
            raise ValueError(f"file names {bad!r} cannot be part of a checkpoint")
        own = self._own_token()
        checkpoint = CheckpointName(own.attempt, step, own.writer)
        manifest = Manifest(
            run_id=self.run.run_id,
            step=step,
            episode=episode,
            attempt=own.attempt,
            writer=own.writer,
            parent=parent,
            files={name: FileRecord.of(data) for name, data in files.items()},
            parts=self._part_records(parts),
            versions=installed_versions(),
            config_sha256=config_sha256,
            created_at=self._clock(),
        )
        if checkpoint.name in self._written:
            committed = self._earlier_commit(checkpoint, manifest)
            if committed is not None:
                return committed
        self.check_fence()
        directory = f"{CHECKPOINTS}/{checkpoint.name}"
        manifest = self._place(manifest, parts)
        # The smallest first: a server may take its whole body before it says that there is no such
        # directory yet, and it is sent again then.
        for name, data in sorted(files.items(), key=lambda item: len(item[1])):
            self._send(f"{directory}/{name}", data)
        self._check_sizes(directory, manifest)
        manifest = self._replace_lost(manifest, parts)
        self.check_fence()
        self._written.add(checkpoint.name)
        self.run.write_bytes(f"{directory}/{MANIFEST}", manifest.to_bytes(self.run.manifest_key))
        try:
            kept, sha256 = self._manifest(checkpoint)
        except InvalidCheckpoint as error:
            raise CheckpointError(
                f"{self.run.run_url}/{directory} was written but cannot be read back: {error}; "
                "the one before it still counts"
            ) from error
        for name, data in files.items():
            self._keep(kept.files[name], data)
        for name, record in kept.part_records.items():
            self._keep(record, parts[name])
        return self._ref(checkpoint, kept, sha256)

    def place_copy(
        self, step: int, name: str, record: FileRecord, source: FileAddress, by: RunStore
    ) -> bytes | None:
        """Have the server copy a file for the next checkpoint to where `publish` would write it.

        What the server says proves nothing: the copy is read, and counts if it has the recorded
        bytes. `publish` does not send it again if it is given the memory that this returns.

        Args:
            step: Step of the checkpoint.
            name: Name of the file, or that of a part by `FILE/PART`.
            record: Size and hash.
            source: Where it is.
            by: The run whose server and credentials copy.

        Returns:
            The bytes; None if they are not there, so that they have to be sent.
        """
        own = self._own_token()
        path = f"{CHECKPOINTS}/{CheckpointName(own.attempt, step, own.writer).name}/{name}"
        if "/" in name:
            path = PartRecord(size=record.size, sha256=record.sha256, writer=own.name).path
        if path in self._placed:
            return self._placed[path]
        if (by.run_url, source.root) in self._refused:
            return None
        try:
            is_copied = by.filesystem.copy(source, self.run.address(path))
        except StoreUnreachable:
            raise
        except (FileNotFoundError, StoreError):
            is_copied = False  # who sends the file hears what is wrong
        if not is_copied:
            self._refused.add((by.run_url, source.root))
            return None
        try:
            data = self.run.read_bytes(path, record.size)
        except StoreUnreachable:
            raise
        except (FileNotFoundError, StoreError):
            data = None  # it is too large, or a directory of that name
        if data is not None and record.mismatch(data) is None:
            self._placed[path] = data
            return data
        with suppress(StoreError):
            self.run.delete(path)
        return None

    def delete_copies(self) -> None:
        """Delete what `place_copy` has placed, for a checkpoint that is not published."""
        for path in self._placed:
            self.run.delete(path)
        self._placed.clear()

    def _earlier_commit(
        self, checkpoint: CheckpointName, manifest: Manifest
    ) -> CheckpointRef | None:
        """Return what an earlier call for this step committed; it is never written over."""
        try:
            kept, sha256 = self._manifest(checkpoint)
        except InvalidCheckpoint:
            return None
        if kept.files != manifest.files or _hashes(kept) != _hashes(manifest):
            raise CheckpointError(
                f"{checkpoint.name} is committed with other content: a committed checkpoint is "
                "never written over; publish the next step"
            )
        return self._ref(checkpoint, kept, sha256)

    def _check_sizes(self, directory: str, manifest: Manifest) -> None:
        there = {entry.name: entry.size for entry in self.run.filesystem.entries(directory)}
        for name, record in manifest.files.items():
            size = there.get(name)
            if name not in there or (size is not None and size != record.size):
                raise StoreError(
                    f"{self.run.run_url}/{directory}/{name} has {size} bytes where {record.size} "
                    "were written: the store lost some; nothing was committed"
                )

    def _send(self, path: str, data: Buffer) -> None:
        if self._placed.get(path) is data:
            return
        self.run.write_bytes(path, data)
        self.bytes_sent += len(data)

    def _part_records(self, parts: Mapping[str, Buffer]) -> dict[str, dict[str, PartRecord]]:
        """Return records of parts, by file and part, as if this process had written them all."""
        own = self._own_token().name
        records: dict[str, dict[str, PartRecord]] = {}
        for name, data in sorted(parts.items()):
            known = self._hashed.get(name)
            if known is None or known[0] is not data:
                known = self._hashed[name] = data, FileRecord.of(data)
            file, _, part = name.partition("/")
            record = PartRecord(**known[1].model_dump(), writer=own)
            records.setdefault(file, {})[part] = record
        return records

    def _place(self, manifest: Manifest, parts: Mapping[str, Buffer]) -> Manifest:
        """Write the parts that the store lacks; return the manifest that names where each one is.

        A copy that an earlier process wrote counts once this process has read it, from the store
        itself: one that has rotted must not get into another checkpoint.
        """
        self._wanted = set()
        for name, record in manifest.part_records.items():
            recorded = self._recorded.get(record.sha256)
            if record.sha256 not in self._stored and recorded is not None:
                with suppress(InvalidCheckpoint):
                    self._read(recorded.path, recorded, name)
                    self._stored[record.sha256] = recorded
            if record.sha256 not in self._stored:
                self._wanted.add(record.path)
                self._send(record.path, parts[name])
                self._stored[record.sha256] = record
            self._wanted.add(self._stored[record.sha256].path)
        return self._located(manifest)

    def _replace_lost(self, manifest: Manifest, parts: Mapping[str, Buffer]) -> Manifest:
        """Write parts again that have vanished from the store, or have another size there.

        Raises:
            StoreError: The store loses what is written to it.
        """
        for again in (False, True):
            there = {f"{PARTS}/{part.name}": n for part, n in self._parts_there().items()}
            lost = {
                name: record
                for name, record in manifest.part_records.items()
                if there.get(record.path, -1) not in (record.size, None)
            }
            if not lost:
                break
            if again:
                name, record = next(iter(lost.items()))
                raise StoreError(
                    f"{self.run.run_url}/{record.path} ({name}) does not have the {record.size} "
                    "bytes that were written: the store lost some; nothing was committed"
                )
            for record in lost.values():
                self._stored.pop(record.sha256, None)
            manifest = self._place(
                manifest.model_copy(update={"parts": self._part_records(parts)}), parts
            )
        return manifest

    def _located(self, manifest: Manifest) -> Manifest:
        parts = {
            file: {part: self._stored[record.sha256] for part, record in records.items()}
            for file, records in manifest.parts.items()
        }
        return manifest.model_copy(update={"parts": parts})

    def prune(self, keep: int = 3, *, spare: str = "") -> Sequence[str]:
        """Delete all but the newest `keep` checkpoints, and what older writers left unfinished.

        Parts that no checkpoint refers to any more are deleted after them. The checkpoint that this
        process started from stays until it has `keep` of its own: it is the only one that was read
        in full.

        Args:
            keep: Number of newest checkpoints that stay.
            spare: Name of another one that stays.

        Returns:
            The names of the deleted ones.

        Raises:
            LeaseLost: A newer process owns the run; nothing was deleted.
        """
        if keep < 1:
            raise ValueError("keep must be at least 1")
        own = self._own_token()
        self.check_fence()
        kept: dict[CheckpointName, Manifest] = {}
        old: list[CheckpointName] = []
        checkpoints = self._checkpoints()
        for checkpoint in checkpoints:
            if len(kept) >= keep:
                old.append(checkpoint)
                continue
            try:
                kept[checkpoint] = self._manifest(checkpoint)[0]
            except InvalidCheckpoint as error:
                if not error.committed and checkpoint.token < own:
                    old.append(checkpoint)  # nobody will finish it; a damaged one stays as evidence
        if sum(checkpoint.token == own for checkpoint in kept) < keep:
            old = [checkpoint for checkpoint in old if checkpoint.name != self._proven]
        old = [checkpoint for checkpoint in old if checkpoint.name != spare]
        old = sorted(checkpoint for checkpoint in old if checkpoint.token <= own)
        for checkpoint in old:
            self._delete(checkpoint)
        left = [checkpoint for checkpoint in checkpoints if checkpoint not in old]
        self._delete_unused_parts({checkpoint: kept.get(checkpoint) for checkpoint in left})
        return [checkpoint.name for checkpoint in old]

    def _delete_unused_parts(self, left: Mapping[CheckpointName, Manifest | None]) -> None:
        """Delete the parts that neither a checkpoint nor the latest `publish` refers to.

        None is deleted if a checkpoint's manifest cannot be read, since its parts are unknown then,
        nor if a newer process is at work, which may refer to any of them.

        Args:
            left: The checkpoints that are not deleted, with their manifests where they were read.
        """
        own = self._own_token()
        used = set(self._wanted)
        for checkpoint, known in left.items():
            if checkpoint.token > own:
                return
            try:
                manifest = known or self._manifest(checkpoint)[0]
            except InvalidCheckpoint as error:
                if error.committed:
                    return
                continue
            used |= {record.path for record in manifest.part_records.values()}
        unused = [
            (part, size)
            for part, size in self._parts_there().items()
            if part.token <= own and f"{PARTS}/{part.name}" not in used
        ]
        if unused:
            self.check_fence()
        for part, size in unused:
            self._delete_part(part)
            self.part_bytes_freed += size or 0

    def _delete_part(self, part: PartName) -> None:
        stored = self._stored.get(part.sha256)
        if stored is not None and stored.writer == part.token.name:
            del self._stored[part.sha256]
        self._placed.pop(f"{PARTS}/{part.name}", None)
        self.run.delete(f"{PARTS}/{part.name}")

    def _delete(self, checkpoint: CheckpointName) -> None:
        # The manifest first: a half deleted checkpoint must not look like a damaged one.
        directory = f"{CHECKPOINTS}/{checkpoint.name}"
        self.run.delete(f"{directory}/{MANIFEST}")
        for name in self.run.list_if_present(f"{CHECKPOINTS}/{checkpoint.name}"):
            self.run.delete(f"{directory}/{name}")
        self.run.filesystem.delete_dir(directory)


class PinnedStore(CheckpointStore):
    """The checkpoints of a run that others can write to, who may put theirs among them.

    Those of earlier attempts count only if the hash of their manifest is among the given ones.
    """

    def __init__(self, run: RunStore, pins: str) -> None:
        """Wrap a run; nothing is read yet.

        Args:
            run: The run.
            pins: Hashes of manifests, commas between, or `NONE`.
        """
        super().__init__(run)
        self._pins = frozenset(pins.split(","))

    def _manifest(self, checkpoint: CheckpointName) -> tuple[Manifest, str]:
        manifest, sha256 = super()._manifest(checkpoint)
        if checkpoint.attempt < self._own_token().attempt and sha256 not in self._pins:
            reason = "it is not the one that this machine was told to go on from"
            raise InvalidCheckpoint(reason, committed=True)
        return manifest, sha256


def _is_part(name: str, files: Collection[str]) -> bool:
    """Return whether a name spells a part of one of the files, as `FILE/PART`."""
    file, _, part = name.partition("/")
    return file in files and is_name(part) and part != MANIFEST


def _hashes(manifest: Manifest) -> Mapping[str, str]:
    return {name: record.sha256 for name, record in manifest.part_records.items()}
