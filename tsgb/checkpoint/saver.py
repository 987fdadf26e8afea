"""Saves in the background: training stands still for a copy, not for an upload.

At most one snapshot is being committed and one waits; a newer one takes the place of the one that
waits. A commit that fails for good (the run was taken over, the store refuses) is raised in the
training thread at its next look. One that may heal is not: the next snapshot tries again, and
`unsaved_seconds` tells for how long nothing was durable.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from tsgb.errors import StoreUnreachable
from tsgb.logging import get_logger
from tsgb.types import Buffer, CheckpointRef

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after one update, detached from training."""

    step: int
    """Optimizer updates done."""
    episode: int
    """Episodes played."""
    files: Mapping[str, Buffer]
    """Content by file name, valid until their stage is filled again."""
    metrics: str
    """Text of `metrics.jsonl` up to this step."""

    @property
    def num_bytes(self) -> int:
        """Size of all files in bytes."""
        return sum(len(data) for data in self.files.values())


Commit = Callable[[Snapshot], CheckpointRef]


class Saver(Generic[S]):
    """Commits snapshots on a thread of its own.

    Args:
        commit: makes a snapshot durable; called on the saver's thread, or in `save_now` on the
            caller's, never on two at once.
        make_stage: memory for one snapshot; called twice at most.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        commit: Commit,
        make_stage: Callable[[], S],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._commit = commit
        self._make_stage = make_stage
        self._clock = clock
        self._wake = threading.Condition()
        self._free: list[S] = []
        self._num_stages = 0
        self._waiting: tuple[Snapshot, S] | None = None
        self._busy: Snapshot | None = None
        self._busy_since = 0.0
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._durable: CheckpointRef | None = None
        self._durable_at = clock()
        self.commit_seconds = 0.0
        """Seconds that the latest commit took; 0 before the first."""

    @property
    def durable(self) -> CheckpointRef | None:
        """Newest checkpoint that is committed."""
        return self._durable

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being committed."""
        with self._wake:
            return self._busy is None and self._waiting is None

    @property
    def unsaved_seconds(self) -> float:
        """Seconds since the newest durable state was taken."""
        return self._clock() - self._durable_at

    def resume_from(self, ref: CheckpointRef) -> None:
        """Name the checkpoint that was durable before this process began."""
        self._durable, self._durable_at = ref, self._clock()

    def submit(self, take: Callable[[S], Snapshot]) -> None:
        """Take a snapshot now and commit it in the background.

        Args:
            take: copies the state into a stage.

        Raises:
            BaseException: The error that an earlier commit failed with for good.
        """
        self.check()
        stage = self._stage()
        snapshot = take(stage)
        with self._wake:
            self._waiting = (snapshot, stage)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="saver", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def save_now(self, take: Callable[[S], Snapshot]) -> CheckpointRef:
        """Take a snapshot and return once it is durable.

        Raises:
            BaseException: The error that its commit, or the one before, failed with; of a store
                that may heal too.
        """
        self.flush()
        self.check()
        stage = self._stage()
        try:
            ref = self._timed(take(stage))
        finally:
            self._free.append(stage)
        return ref

    def flush(self, timeout_seconds: float | None = None) -> bool:
        """Wait until nothing waits or is being committed; return False if that took too long."""
        with self._wake:
            return self._wake.wait_for(
                lambda: self._busy is None and self._waiting is None, timeout_seconds
            )

    def drop_waiting(self) -> None:
        """Drop the snapshot that waits, if one does."""
        with self._wake:
            if self._waiting is not None:
                self._free.append(self._waiting[1])
                self._waiting = None

    def check(self) -> None:
        """Raise what a commit failed with for good, once."""
        with self._wake:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def seconds_left(self) -> float:
        """Return the seconds until the commit under way should be durable, by the one before.

        0 if none is under way.
        """
        with self._wake:
            if self._busy is None:
                return 0.0
            return max(0.0, self.commit_seconds - (self._clock() - self._busy_since))

    def _stage(self) -> S:
        """Return a stage that nobody reads: free, of the snapshot that waits, or new."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._free or self._waiting is not None or self._num_stages < 2
            )
            if self._free:
                return self._free.pop()
            if self._waiting is not None:
                stage, self._waiting = self._waiting[1], None
                return stage
            self._num_stages += 1
        return self._make_stage()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting is not None)
                if self._waiting is None:
                    continue
                (snapshot, stage), self._waiting = self._waiting, None
                self._busy, self._busy_since = snapshot, self._clock()
            try:
                self._timed(snapshot)
            except StoreUnreachable as error:
                get_logger().warning(
                    "not saved; training goes on, the next save tries again",
                    step=snapshot.step,
                    reason=str(error),
                )
            except BaseException as error:  # noqa: BLE001 - raised again in the training thread
                self._error = error
            with self._wake:
                self._busy = None
                self._free.append(stage)
                self._wake.notify_all()

    def _timed(self, snapshot: Snapshot) -> CheckpointRef:
        begin = self._clock()
        ref = self._commit(snapshot)
        self.commit_seconds = self._clock() - begin
        self._durable, self._durable_at = ref, begin
        return ref
