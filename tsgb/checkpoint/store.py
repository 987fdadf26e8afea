"""Checkpoints of a run: claim, publish, prune; reading is in reader.py, finding in resolve.py.

It knows bytes and names, no torch. Few stores have an atomic step to build a commit on, so there
is none here: every process writes under names of its own, the manifest comes last and is the
commit, and every file is checked against its sha256 on every read. Two processes that both believe
they own a run can therefore waste work, but cannot damage each other's; the older one learns from
the claims that it is the older one, and stops with `LeaseLost`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from tsgb.checkpoint.documents import canonical_json
from tsgb.checkpoint.layout import CHECKPOINTS, CLAIMS, CheckpointName, FencingToken, next_token
from tsgb.checkpoint.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    installed_versions,
    utc_now,
)
from tsgb.checkpoint.reader import CheckpointReader, InvalidCheckpoint
from tsgb.checkpoint.resolve import load, resolve
from tsgb.checkpoint.run import RunLock, RunStore, open_run
from tsgb.checkpoint.urls import check_run_id, is_name, join_run
from tsgb.errors import CheckpointError, LeaseLost, StoreError
from tsgb.types import Buffer, CheckpointRef

__all__ = [
    "CheckpointReader",
    "CheckpointStore",
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
            files: Content by file name.
            config_sha256: Hash of the run's configuration.
            parent: Name of the checkpoint before this one.

        Raises:
            LeaseLost: A newer process owns the run.
            StoreFull: No space; what was committed before is untouched.
            CheckpointError: This process has committed other bytes for this step.
        """
        bad = [name for name in files if not is_name(name) or name == MANIFEST]
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
            files={name: FileRecord.of(data) for name, data in sorted(files.items())},
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
        for name, data in sorted(files.items()):
            self.run.write_bytes(f"{directory}/{name}", data)
        self._check_sizes(directory, manifest)
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
        return self._ref(checkpoint, kept, sha256)

    def _earlier_commit(
        self, checkpoint: CheckpointName, manifest: Manifest
    ) -> CheckpointRef | None:
        """Return what an earlier call for this step committed; it is never written over."""
        try:
            kept, sha256 = self._manifest(checkpoint)
        except InvalidCheckpoint:
            return None
        if kept.files != manifest.files:
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
        own = self._own_token()
        self.check_fence()
        kept: list[CheckpointName] = []
        old: list[CheckpointName] = []
        for checkpoint in self._checkpoints():
            if len(kept) >= keep:
                old.append(checkpoint)
                continue
            try:
                self._manifest(checkpoint)
                kept.append(checkpoint)
            except InvalidCheckpoint as error:
                if not error.committed and checkpoint.token < own:
                    old.append(checkpoint)  # nobody will finish it; a damaged one stays as evidence
        if sum(checkpoint.token == own for checkpoint in kept) < keep:
            old = [checkpoint for checkpoint in old if checkpoint.name != self._proven]
        old = sorted(checkpoint for checkpoint in old if checkpoint.token <= own)
        for checkpoint in old:
            self._delete(checkpoint)
        return [checkpoint.name for checkpoint in old]

    def _delete(self, checkpoint: CheckpointName) -> None:
        # The manifest first: a half deleted checkpoint must not look like a damaged one.
        directory = f"{CHECKPOINTS}/{checkpoint.name}"
        self.run.delete(f"{directory}/{MANIFEST}")
        for name in self.run.list_if_present(f"{CHECKPOINTS}/{checkpoint.name}"):
            self.run.delete(f"{directory}/{name}")
        self.run.filesystem.delete_dir(directory)
