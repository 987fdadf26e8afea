"""Saves the state of a worker: decides when, and handles a store that is slow, away or full.

The module knows the store and the policy, and not the training loop: `train.py` calls it after each
update. If the store is full, old checkpoints are deleted first. If that is not enough, states are
kept in a spool on this machine until the store takes them again, and the heartbeat has an alarm.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tsgb.checkpoint.documents import parse_json_object
from tsgb.checkpoint.interval import (
    MAX_UNSAVED,
    EarlierAttempt,
    mean_time_between_failures,
    save_interval,
)
from tsgb.checkpoint.layout import CHECKPOINTS, CLAIMS, METRICS, CheckpointName, FencingToken
from tsgb.checkpoint.manifest import Manifest
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.saver import Saver, Snapshot
from tsgb.checkpoint.store import CheckpointStore
from tsgb.checkpoint.urls import local_path
from tsgb.cloud.documents import moment
from tsgb.config import RunConfig
from tsgb.errors import CheckpointError, ConfigError, StoreError, StoreFull
from tsgb.logging import get_logger
from tsgb.trainer.loop import Trainer
from tsgb.trainer.state import CheckpointBuffers
from tsgb.types import Buffer, CheckpointRef

MIN_UNSAVED_SECONDS = 600.0
"""Seconds without a durable checkpoint below which training never waits for the store."""
MARGIN_SECONDS = 3.0
"""Seconds of the time between a signal and the end that are left for the exit record."""
HISTORY = 20
"""Number of earlier attempts from which the time between failures is estimated."""

Metrics = Callable[[], str]
"""Returns the text of `metrics.jsonl` as of now."""


class Checkpointer:
    """Saves the state of one attempt, and finds the state from which it resumes."""

    def __init__(
        self,
        store: CheckpointStore,
        config: RunConfig,
        *,
        attempt: int,
        spool_root: Path,
        keep: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read and write nothing yet.

        Args:
            store: The run's checkpoints, claimed by this attempt.
            config: The run's configuration.
            attempt: Fencing token of this process.
            spool_root: Directory on this machine for states that the store does not take.
            keep: Number of newest checkpoints that stay; None keeps all but that of step 0 and
                makes every save a blocking one, so that none is skipped.
            clock: Monotonic seconds.
        """
        self.store = store
        self.run = store.run
        self.config = config
        self.keep = keep
        self.alarm = ""
        """Problem with the store, for people, in the heartbeat; empty if there is none."""
        self._attempt = attempt
        self._clock = clock
        name = f"{self.run.run_id}-{hashlib.sha256(self.run.run_url.encode()).hexdigest()[:8]}"
        self._spool_path = spool_root / name
        self._spool: CheckpointStore | None = None
        self._origin = self.run
        """Run or spool from which `resume` read the state."""
        self._saver = Saver(self._commit, CheckpointBuffers, clock)
        self._saved: CheckpointRef | None = None
        self._snapshot_at = clock()
        self._stall_seconds = 0.0
        self._step_seconds = 0.0
        self._mtbf_seconds = 0.0
        self._last_save_bytes = 0

    @property
    def saved(self) -> CheckpointRef | None:
        """Newest checkpoint in the store; None before the first one."""
        return self._saved

    @property
    def is_spooled(self) -> bool:
        """Whether `resume` found the state in this machine's spool."""
        return self._origin is not self.run

    def resume(self, on_skip: Callable[[str], None]) -> dict[str, bytes] | None:
        """Return the files of the newest checkpoint, in the store or in this machine's spool.

        Args:
            on_skip: Called with a line about each checkpoint that is damaged.

        Raises:
            ConfigError: The run's signed checkpoint belongs to another configuration.
        """
        found = self.store.newest_whole(on_skip)
        if self.config.checkpoint_interval is None:
            starts = _history(self.run)
            self._mtbf_seconds = mean_time_between_failures(starts, datetime.now(UTC))
        if found is not None:
            self._check_config(found[0], found[1])
            self._saved = found[0]
            self._saver.resume_from(found[0])
        spooled = self._spooled(on_skip)
        if spooled is None or (found is not None and _age(spooled[0]) <= _age(found[0])):
            return None if found is None else found[2]
        get_logger().warning(
            "going on from the spool of this machine", step=spooled[0].step, path=self._spool_path
        )
        self._origin = open_run(str(self._spool_path))
        return spooled[1]

    def earlier_metrics(self, step: int) -> list[str]:
        """Return the lines of `metrics.jsonl` up to a step; later ones are of lost updates."""
        try:
            lines = self._origin.read_text(METRICS).splitlines()
        except FileNotFoundError:
            return []
        kept: list[str] = []
        for line in lines:
            try:
                if parse_json_object(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                break  # torn; the same dying process wrote everything after it
        return kept

    def after_update(self, trainer: Trainer, metrics: Metrics, step_seconds: float) -> None:
        """Save in the background if a save is due.

        Raises:
            StoreError: An earlier save failed permanently, or none was durable for too long.
            LeaseLost: A newer process works on the run.
        """
        self._saver.check()
        self._step_seconds = step_seconds
        if not self._due(trainer.state.step):
            return
        if self.keep is None:
            self.save_now(trainer, metrics)
            return
        limit = max(MAX_UNSAVED * self.interval_seconds, MIN_UNSAVED_SECONDS)
        if self._saver.unsaved_seconds > limit:
            get_logger().warning("waiting for the store", unsaved_seconds=round(limit))
            self.save_now(trainer, metrics)
            return
        begin = self._clock()
        self._saver.submit(lambda stage: self._take(trainer, metrics, stage))
        self._stall_seconds = self._clock() - begin
        self._snapshot_at = begin

    def save_now(self, trainer: Trainer, metrics: Metrics) -> CheckpointRef:
        """Save, and return when the checkpoint is durable.

        Raises:
            StoreFull: The state is only on this machine.
        """
        self._saver.save_now(lambda stage: self._take(trainer, metrics, stage))
        self._snapshot_at = self._clock()
        if self._saved is None or self._saved.step != trainer.state.step:
            raise StoreFull(self.alarm)
        return self._saved

    def flush(self) -> None:
        """Wait until every snapshot that was taken is saved, or its save has failed."""
        self._saver.flush()

    def settle(self, trainer: Trainer, metrics: Metrics) -> CheckpointRef:
        """Save the current state unless the store has it, and return its checkpoint."""
        self._saver.drop_waiting()
        self._saver.flush()
        self._saver.check()
        if (
            self._saved is not None
            and self._saved.step == trainer.state.step
            and self._is_in_store(self._saved)
        ):
            return self._saved
        return self.save_now(trainer, metrics)

    def _is_in_store(self, ref: CheckpointRef) -> bool:
        """Return whether a checkpoint, which may come from the local cache, is in the store."""
        if ref.writer == self.store.writer or self.run.cache is None:
            return True
        try:
            self.store.without_cache().read(ref)
        except CheckpointError as error:
            get_logger().warning("saving again what the store has lost", reason=str(error))
            return False
        return True

    def save_before_exit(self, trainer: Trainer, metrics: Metrics, grace_seconds: float) -> None:
        """Save a last time within the seconds that are left.

        If there is no time for both the commit under way and another one, the first is finished: a
        complete older checkpoint is worth more than half of a newer one.

        Args:
            trainer: The state to save.
            metrics: Returns the text of `metrics.jsonl`.
            grace_seconds: Seconds until the process is killed.
        """
        deadline = self._clock() + grace_seconds - MARGIN_SECONDS
        self._saver.drop_waiting()
        both = self._saver.seconds_left() + self._saver.commit_seconds
        first_in_time = self._saver.flush(max(0.0, deadline - self._clock()))
        self._saver.check()
        if self._saved is not None and self._saved.step == trainer.state.step:
            return
        if first_in_time and both <= grace_seconds - MARGIN_SECONDS:
            self._saver.submit(lambda stage: self._take(trainer, metrics, stage))
            self._saver.flush(max(0.0, deadline - self._clock()))
            self._saver.check()
        if self._saved is None or self._saved.step < trainer.state.step:
            get_logger().warning(
                "not saved in time",
                step=trainer.state.step,
                durable_step=-1 if self._saved is None else self._saved.step,
                grace_seconds=grace_seconds,
            )

    @property
    def interval_seconds(self) -> float:
        """Seconds between two saves, from the configuration or from measurements so far."""
        if self.config.checkpoint_interval is not None:
            return self.config.checkpoint_interval * self._step_seconds
        return save_interval(
            self._stall_seconds, self._saver.commit_seconds, self._step_seconds, self._mtbf_seconds
        )

    def facts(self) -> dict[str, Any]:
        """Return the checkpointing fields of the heartbeat."""
        return {
            "durable_step": -1 if self._saved is None else self._saved.step,
            "seconds_since_durable": round(self._saver.unsaved_seconds, 1),
            "save_interval_seconds": round(self.interval_seconds, 1),
            "last_save_bytes": self._last_save_bytes,
            "saved_bytes": self.store.bytes_sent,
            **({"alarm": self.alarm} if self.alarm else {}),
        }

    def prune(self) -> Sequence[str]:
        """Delete all but the newest checkpoints, and return the names of those deleted."""
        if self.keep is not None:
            return self.store.prune(self.keep)
        names = [CheckpointName.parse(name) for name in self.run.list(CHECKPOINTS)]
        later = sum(name is not None and name.step > 0 for name in names)
        return self.store.prune(later) if later else []

    def _check_config(self, ref: CheckpointRef, manifest: Manifest) -> None:
        """Compare `config.json` with the configuration that the checkpoint was trained with.

        A difference is an error only in a run with signed manifests. Elsewhere it is a warning,
        because a newer version, which adds settings, reads an old file as another configuration.
        """
        if manifest.config_sha256 == self.config.fingerprint:
            return
        problem = (
            f"{self.run.run_url}/config.json is not the configuration that {ref.name} was trained "
            "with"
        )
        if self.run.manifest_key is not None:
            raise ConfigError(
                f"{problem}: restore it, resume with the version that wrote it, or start a new run "
                "with another --run-id"
            )
        get_logger().warning("the configuration has changed", reason=problem)

    def _due(self, step: int) -> bool:
        if self.config.checkpoint_interval is not None:
            return step % self.config.checkpoint_interval == 0
        return self._clock() - self._snapshot_at >= self.interval_seconds

    def _take(self, trainer: Trainer, metrics: Metrics, buffers: CheckpointBuffers) -> Snapshot:
        files: dict[str, Buffer] = trainer.files(buffers=buffers)
        return Snapshot(trainer.state.step, trainer.state.episode, files, metrics())

    def _commit(self, snapshot: Snapshot) -> CheckpointRef:
        sent = self.store.bytes_sent
        try:
            self._saved = self._write(snapshot)
        except StoreFull as error:
            if local_path(self.run.run_url) is not None:
                raise  # there is no other disk to go to
            self.alarm = (
                f"{error}; step {snapshot.step} is kept in {self._spool_path} on this machine only"
            )
            get_logger().error("the store is full", reason=self.alarm)
            spool = self._opened_spool()
            spool.run.write_text(METRICS, snapshot.metrics)
            return self._publish(spool, snapshot)
        if self.alarm:
            get_logger().warning("the store takes checkpoints again", step=snapshot.step)
            self.alarm = ""
        self._last_save_bytes = self.store.bytes_sent - sent
        self._drop_spool()
        self.prune()
        return self._saved

    def _write(self, snapshot: Snapshot) -> CheckpointRef:
        for again in (False, True):
            try:
                # Before the checkpoint: when resuming, a line too many is cut.
                self.run.write_text(METRICS, snapshot.metrics)
                return self._publish(self.store, snapshot)
            except StoreFull:
                if again or self.keep is None or not self.store.prune(1):
                    raise
        raise AssertionError("unreachable")

    def _publish(self, store: CheckpointStore, snapshot: Snapshot) -> CheckpointRef:
        return store.publish(
            snapshot.step,
            snapshot.episode,
            snapshot.files,
            self.config.fingerprint,
            None if self._saved is None else self._saved.name,
        )

    def _opened_spool(self) -> CheckpointStore:
        if self._spool is None:
            spool = CheckpointStore(open_run(str(self._spool_path)))
            spool.claim(self._attempt)
            self._spool = spool
        self._spool.prune(1)
        return self._spool

    def _spooled(
        self, on_skip: Callable[[str], None]
    ) -> tuple[CheckpointRef, dict[str, bytes]] | None:
        if not self._spool_path.is_dir():
            return None
        try:
            return CheckpointReader(open_run(str(self._spool_path))).newest_valid(on_skip)
        except (CheckpointError, StoreError) as error:
            on_skip(str(error))
            return None

    def _drop_spool(self) -> None:
        if self._spool_path.is_dir():
            shutil.rmtree(self._spool_path, ignore_errors=True)
            self._spool = None


def _age(ref: CheckpointRef) -> tuple[int, int]:
    return ref.attempt, ref.step


def _history(run: RunStore) -> list[EarlierAttempt]:
    """Return earlier attempts; none if the store does not answer."""
    starts: list[EarlierAttempt] = []
    try:
        claims = sorted(claim for name in run.list(CLAIMS) if (claim := FencingToken.parse(name)))
        for claim in claims[-HISTORY - 1 : -1]:  # the last one is ours
            at = moment(run.read_json(f"{CLAIMS}/{claim.name}"), "created_at")
            if at is not None:
                starts.append(EarlierAttempt(at, _was_lost(run, claim.attempt)))
    except (StoreError, FileNotFoundError):
        return []
    return starts


def _was_lost(run: RunStore, attempt: int) -> bool:
    try:
        return run.read_json(f"exits/{attempt:04d}.json").get("outcome") != "done"
    except FileNotFoundError:
        return True
