"""Reads checkpoints of a run: the newest, one by name, all of them verified.

A checkpoint is its files and their parts, which checkpoints of a run share: the part P of file F is
read as `F/P`. Needs no claim and writes nothing. Unknown is never empty: `None` is only ever the
answer for a run that definitely has no checkpoint; an outage raises, and so do checkpoints that all
turn out bad.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from tsgb.checkpoint.documents import MAX_JSON_BYTES, MAX_TEXT_BYTES
from tsgb.checkpoint.filesystem import FileTooLargeError
from tsgb.checkpoint.layout import CHECKPOINTS, METRICS, PARTS, CheckpointName, PartName
from tsgb.checkpoint.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    PartRecord,
    Untrusted,
    sha256_hex,
)
from tsgb.checkpoint.run import RunStore
from tsgb.errors import CheckpointError, StoreError, StoreUnreachable
from tsgb.types import Buffer, CheckpointRef

READS = 4
"""Number of reads after which a file is called damaged, since the network may flip bits. Two were
too few where every seventh read had a flipped bit."""
_T = TypeVar("_T")


class InvalidCheckpoint(Exception):  # noqa: N818 - a finding: the next older one is tried
    """A checkpoint that does not count; the message says why."""

    def __init__(self, reason: str, *, committed: bool) -> None:
        super().__init__(reason)
        self.committed = committed
        """Whether it counted once, so that something was lost."""


class CheckpointReader:
    """The checkpoints of one run, read only."""

    def __init__(self, run: RunStore) -> None:
        self.run = run
        self._proven: str | None = None
        """Name of the newest checkpoint that this process has read in full."""
        self._stored: dict[str, PartRecord] = {}
        """Parts that this process has read from the store and verified, or written, by sha256."""
        self._recorded: dict[str, PartRecord] = {}
        """Parts that a manifest names and a cache had, by sha256: the store's copy was not read."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.run.run_url!r})"

    def without_cache(self) -> CheckpointReader:
        """Return a reader of the same checkpoints that reads each file from the store."""
        run = self.run
        return CheckpointReader(
            RunStore(run.filesystem, run.run_url, manifest_key=run.manifest_key)
        )

    def newest(self) -> CheckpointRef | None:
        """Return the newest committed checkpoint; its files are verified when they are read.

        Returns:
            None only when the run definitely has none: a new run.

        Raises:
            CheckpointError: There are checkpoints, but none that counts; or none is listed, while
                other documents say that updates were saved.
        """
        found = self.newest_manifest()
        if found is None:
            self._check_that_nothing_was_saved()
            return None
        return found[0]

    def newest_manifest(self) -> tuple[CheckpointRef, Manifest] | None:
        """Return the newest committed checkpoint with its manifest, for who only looks.

        Returns:
            None when none is listed, or only one of step 0 that was never finished. Whether the run
            is new is not asked: nothing may be started on this answer, see `newest`.

        Raises:
            CheckpointError: There are checkpoints, but none that counts.
        """

        def look(checkpoint: CheckpointName) -> tuple[CheckpointRef, Manifest]:
            manifest, sha256 = self._manifest(checkpoint)
            return self._ref(checkpoint, manifest, sha256), manifest

        return self._first_valid(look, lambda _line: None)

    def newest_valid(
        self, on_skip: Callable[[str], None], names: Collection[str] | None = None
    ) -> tuple[CheckpointRef, dict[str, bytes]] | None:
        """Return the newest checkpoint whose files all verify, and its files.

        Args:
            on_skip: Called with one line for each newer checkpoint that was skipped, saying why.
            names: Files to read, each with its parts; None reads all.

        Returns:
            None only when the run definitely has none.

        Raises:
            CheckpointError: There are checkpoints, but none that verifies.
        """
        found = self.newest_whole(on_skip, names)
        return None if found is None else (found[0], found[2])

    def newest_whole(
        self, on_skip: Callable[[str], None], names: Collection[str] | None = None
    ) -> tuple[CheckpointRef, Manifest, dict[str, bytes]] | None:
        """Return what `newest_valid` returns, and the manifest."""

        def look(checkpoint: CheckpointName) -> tuple[CheckpointRef, Manifest, dict[str, bytes]]:
            manifest, sha256 = self._manifest(checkpoint)
            return (
                self._ref(checkpoint, manifest, sha256),
                manifest,
                self._files(checkpoint, manifest, names),
            )

        found = self._first_valid(look, on_skip)
        if found is None:
            self._check_that_nothing_was_saved()
        return found

    def read(self, ref: CheckpointRef, names: Collection[str] | None = None) -> dict[str, bytes]:
        """Return the files of a checkpoint and their parts, each verified.

        Raises:
            CheckpointError: It is gone or damaged.
        """

        def look(checkpoint: CheckpointName) -> dict[str, bytes]:
            manifest, sha256 = self._manifest(checkpoint)
            if sha256 != ref.sha256:
                raise InvalidCheckpoint("its manifest is not the one named", committed=True)
            return self._files(checkpoint, manifest, names)

        return self._only(ref.name, look)

    def ref(self, name: str) -> CheckpointRef:
        """Return the reference to a committed checkpoint by its directory name.

        Raises:
            CheckpointError: There is none of that name, or its manifest is damaged.
        """
        return self._only(
            name, lambda checkpoint: self._ref(checkpoint, *self._manifest(checkpoint))
        )

    def _only(self, name: str, look: Callable[[CheckpointName], _T]) -> _T:
        checkpoint = CheckpointName.parse(name)
        try:
            if checkpoint is not None:
                return look(checkpoint)
            reason = "that is no checkpoint's name"
        except InvalidCheckpoint as error:
            reason = str(error)
        raise CheckpointError(
            f"checkpoint {self.run.run_url}/{CHECKPOINTS}/{name} cannot be used: {reason}; choose "
            f"another one, or {self.run.run_url}/latest"
        )

    def _first_valid(
        self, look: Callable[[CheckpointName], _T], on_skip: Callable[[str], None]
    ) -> _T | None:
        checkpoints = self._checkpoints()
        nothing_lost = True
        reasons: list[str] = []
        for checkpoint in checkpoints:
            try:
                found = look(checkpoint)
            except InvalidCheckpoint as error:
                # A run that died in its very first save, of step 0, has lost nothing.
                nothing_lost = nothing_lost and not error.committed and checkpoint.step == 0
                reasons.append(f"{checkpoint.name}: {error}")
                on_skip(reasons[-1])
                continue
            return found
        if nothing_lost:
            return None
        raise CheckpointError(
            f"none of the {len(checkpoints)} checkpoints of {self.run.run_url} can be used, the "
            f"newest because {reasons[0]}: to start over, delete {self.run.run_url} or choose "
            "another run id"
        )

    def _check_that_nothing_was_saved(self) -> None:
        """Return if a run whose listing names no usable checkpoint is new.

        Raises:
            CheckpointError: Other documents of the run say that updates were saved.
        """
        trace = self._trace_of_saves()
        if trace:
            raise CheckpointError(
                f"run {self.run.run_url} is not new, since {trace}, but no checkpoint of it is "
                f"listed: restore {self.run.run_url}/{CHECKPOINTS}; to start over, delete "
                f"{self.run.run_url}, or choose another run id"
            )

    def _trace_of_saves(self) -> str:
        """Return which document says that an update was saved; empty if none does.

        A run that was killed before its first checkpoint has claims, and perhaps an exit record
        without a checkpoint, but no metrics: they are written from its second checkpoint on.
        """
        try:
            updates = len(self.run.read_bytes(METRICS, MAX_TEXT_BYTES).splitlines())
        except FileNotFoundError:
            updates = 0
        if updates:
            return f"{METRICS} has {updates} updates"
        for attempt in reversed(self.run.attempt_documents("exits")):
            name = f"exits/{attempt:04d}.json"
            try:
                saved = self.run.read_json(name).get("checkpoint")
            except StoreUnreachable:
                raise
            except (FileNotFoundError, StoreError):
                continue  # it says nothing
            step = saved.get("step") if isinstance(saved, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            if isinstance(step, int) and step > 0:
                return f"{name} names a checkpoint of step {step}"
        return ""

    def _checkpoints(self) -> Sequence[CheckpointName]:
        """Return all checkpoint directories, newest first, whether they count or not."""
        names = self.run.list_if_present(CHECKPOINTS)
        return sorted(
            (checkpoint for name in names if (checkpoint := CheckpointName.parse(name))),
            reverse=True,
        )

    def _ref(self, checkpoint: CheckpointName, manifest: Manifest, sha256: str) -> CheckpointRef:
        return CheckpointRef(
            run_url=self.run.run_url,
            step=checkpoint.step,
            episode=manifest.episode,
            attempt=checkpoint.attempt,
            writer=checkpoint.writer,
            name=checkpoint.name,
            sha256=sha256,
        )

    def _manifest(self, checkpoint: CheckpointName) -> tuple[Manifest, str]:
        """Return the manifest and the sha256 of its bytes."""
        path = f"{CHECKPOINTS}/{checkpoint.name}/{MANIFEST}"
        reason = ""
        for _ in range(READS):
            try:
                data = self.run.read_bytes(path, MAX_JSON_BYTES)
            except FileTooLargeError as error:
                raise InvalidCheckpoint(
                    f"{MANIFEST} is damaged: {error}", committed=True
                ) from error
            except FileNotFoundError as error:
                reason = f"it has no {MANIFEST}, so its writer did not finish it"
                raise InvalidCheckpoint(reason, committed=False) from error
            try:
                manifest = Manifest.from_bytes(data, self.run.manifest_key)
            except Untrusted as error:
                raise InvalidCheckpoint(f"{MANIFEST}: {error}", committed=True) from error
            except ValueError as error:
                reason = str(error)
                continue
            if self.run.manifest_key is not None and manifest.run_id != self.run.run_id:
                reason = (
                    f"{MANIFEST}: it is signed for run {manifest.run_id!r}: give it back that name"
                )
                raise InvalidCheckpoint(reason, committed=True)
            if CheckpointName(manifest.attempt, manifest.step, manifest.writer) == checkpoint:
                return manifest, sha256_hex(data)
            reason = "it belongs to another checkpoint"
        raise InvalidCheckpoint(f"{MANIFEST} is damaged: {reason}", committed=True)

    def _files(
        self, checkpoint: CheckpointName, manifest: Manifest, names: Collection[str] | None
    ) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        shared: dict[str, bytes] = {}
        for name in manifest.files if names is None else names:
            files[name] = self._file(checkpoint, manifest, name)
            for part, record in manifest.parts.get(name, {}).items():
                if record.sha256 not in shared:
                    shared[record.sha256] = self._part(f"{name}/{part}", record)
                files[f"{name}/{part}"] = shared[record.sha256]
        if names is None:
            self._proven = checkpoint.name
        return files

    def _file(self, checkpoint: CheckpointName, manifest: Manifest, name: str) -> bytes:
        record = manifest.files.get(name)
        if record is None:
            raise InvalidCheckpoint(f"it holds no {name}", committed=True)
        kept = None if self.run.cache is None else self.run.cache.get(record)
        if kept is not None:
            return kept
        return self._read(f"{CHECKPOINTS}/{checkpoint.name}/{name}", record, name)

    def _part(self, name: str, record: PartRecord) -> bytes:
        """Return a part; if its file is damaged, another process's copy of it does as well."""
        kept = None if self.run.cache is None else self.run.cache.get(record)
        if kept is not None:
            self._recorded[record.sha256] = record
            return kept
        try:
            data = self._read(record.path, record, name)
        except InvalidCheckpoint:
            for other in self._parts_there():
                if other.sha256 == record.sha256 and other.token.name != record.writer:
                    copy = record.model_copy(update={"writer": other.token.name})
                    with suppress(InvalidCheckpoint):
                        data = self._read(copy.path, copy, name)
                        self._stored[copy.sha256] = copy
                        return data
            raise
        self._stored[record.sha256] = record
        return data

    def _parts_there(self) -> Mapping[PartName, int | None]:
        """Return all copies of parts in the store, with sizes in bytes where it tells them."""
        try:
            entries = self.run.filesystem.entries(PARTS)
        except FileNotFoundError:
            return {}
        return {part: e.size for e in entries if (part := PartName.parse(e.name)) and not e.is_dir}

    def _read(self, path: str, record: FileRecord, name: str) -> bytes:
        """Return a file of the store that has the recorded bytes, whatever the cache holds."""
        problem: str | None = None
        for _ in range(READS):
            try:
                data = self.run.read_bytes(path, record.size)
            except FileTooLargeError:
                problem = f"more than the {record.size} bytes that were written"
                continue
            except FileNotFoundError as error:
                raise InvalidCheckpoint(f"{name} is missing", committed=True) from error
            problem = record.mismatch(data)
            if problem is None:
                self._keep(record, data)
                return data
        raise InvalidCheckpoint(f"{name} is damaged: {problem}", committed=True)

    def _keep(self, record: FileRecord, data: Buffer) -> None:
        """Keep a file, to save the next process of this machine a request to the store."""
        if self.run.cache is not None:
            self.run.cache.put(record, data)
