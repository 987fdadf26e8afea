"""When a worker saves, where to, and what it does when the store is slow, away or full.

It knows the store and the policy, not the training loop: `attempt.py` asks after each update.
A full store is cleared of old checkpoints first; if that is not enough, states go to a spool on
this machine until the store takes them again, and the heartbeat carries an alarm.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tsgb.checkpoint.interval import (
    MAX_UNSAVED,
    EarlierAttempt,
    mean_time_between_failures,
    save_interval,
)
from tsgb.checkpoint.layout import CHECKPOINTS, CLAIMS, CheckpointName, FencingToken
from tsgb.checkpoint.manifest import Manifest
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.saver import Saver, Snapshot
from tsgb.checkpoint.store import CheckpointStore
from tsgb.checkpoint.urls import local_path
from tsgb.config import RunConfig
from tsgb.errors import CheckpointError, ConfigError, StoreError, StoreFull
from tsgb.logging import get_logger
from tsgb.trainer.loop import Trainer
from tsgb.trainer.saving import Stage
from tsgb.types import Buffer, CheckpointRef

KEEP_CHECKPOINTS = 3
LEAST_UNSAVED_SECONDS = 600.0
"""Training never waits for a store that has been silent for less."""
MARGIN_SECONDS = 3.0
"""Kept of the time between a signal and the end, for the exit record."""
METRICS = "metrics.jsonl"
HISTORY = 20
"""Attempts that the time between failures is read from."""

Metrics = Callable[[], str]


class Saves:
    """The durable side of one attempt."""

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
        """Nothing is read or written yet.

        Args:
            store: claimed.
            config: for the interval and the manifest.
            attempt: this process's fencing token.
            spool_root: directory of this machine for states that the store does not take.
            keep: how many of the newest checkpoints stay; None keeps all but that of step 0, and
                makes every save a blocking one, so that none is skipped.
            clock: monotonic seconds.
        """
        self.store = store
        self.run = store.run
        self.config = config
        self.keep = keep
        self.alarm = ""
        """What a person should know; in the heartbeat."""
        self._attempt = attempt
        self._clock = clock
        name = f"{self.run.run_id}-{hashlib.sha256(self.run.run_url.encode()).hexdigest()[:8]}"
        self._spool_path = spool_root / name
        self._spool: CheckpointStore | None = None
        self._origin = self.run
        """Where the state is from that training goes on from."""
        self._saver = Saver(self._commit, Stage, clock)
        self._saved: CheckpointRef | None = None
        self._snapshot_at = clock()
        self._stall_seconds = 0.0
        self._step_seconds = 0.0
        self._mtbf_seconds = 0.0

    @property
    def saved(self) -> CheckpointRef | None:
        """The newest checkpoint in the store."""
        return self._saved

    def resume(self, on_skip: Callable[[str], None]) -> dict[str, bytes] | None:
        """The files to go on from: the newest of the store, or of this machine's spool."""
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
        """Lines of `metrics.jsonl` up to the state that `resume` gave.

        Later ones belong to work that was lost.
        """
        try:
            lines = self._origin.read_text(METRICS).splitlines()
        except FileNotFoundError:
            return []
        kept: list[str] = []
        for line in lines:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                break  # torn: everything after it was written by the same dying process
        return kept

    def after_update(self, trainer: Trainer, metrics: Metrics, step_seconds: float) -> None:
        """Save in the background if it is time.

        Raises:
            StoreError: an earlier save failed for good, or nothing was durable for too long.
            LeaseLost: the run was taken over.
        """
        self._saver.check()
        self._step_seconds = step_seconds
        if not self._due(trainer.state.step):
            return
        if self.keep is None:
            self.save_now(trainer, metrics)
            return
        limit = max(MAX_UNSAVED * self.interval_seconds, LEAST_UNSAVED_SECONDS)
        if self._saver.unsaved_seconds > limit:
            get_logger().warning("waiting for the store", unsaved_seconds=round(limit))
            self.save_now(trainer, metrics)
            return
        begin = self._clock()
        self._saver.submit(lambda stage: self._take(trainer, metrics, stage))
        self._stall_seconds = self._clock() - begin
        self._snapshot_at = begin

    def save_now(self, trainer: Trainer, metrics: Metrics) -> CheckpointRef:
        """Save and return once that is durable.

        Raises:
            StoreFull: the state is on this machine only.
        """
        self._saver.save_now(lambda stage: self._take(trainer, metrics, stage))
        self._snapshot_at = self._clock()
        if self._saved is None or self._saved.step != trainer.state.step:
            raise StoreFull(self.alarm)
        return self._saved

    def settle(self, trainer: Trainer, metrics: Metrics) -> CheckpointRef:
        """Make sure that the present state is in the store."""
        self._saver.drop_waiting()
        self._saver.flush()
        self._saver.check()
        if (
            self._saved is not None
            and self._saved.step == trainer.state.step
            and self._lies_in_the_store(self._saved)
        ):
            return self._saved
        return self.save_now(trainer, metrics)

    def _lies_in_the_store(self, ref: CheckpointRef) -> bool:
        """Whether what may have come from this machine's cache can be read by others too."""
        if ref.writer == self.store.writer or self.run.cache is None:
            return True
        try:
            self.store.without_cache().read(ref)
        except CheckpointError as error:
            get_logger().warning("saving again what the store has lost", reason=str(error))
            return False
        return True

    def before_the_end(self, trainer: Trainer, metrics: Metrics, grace_seconds: float) -> None:
        """The last save, within what is left until the machine goes.

        If the commit under way and another one do not both fit, the first is finished: a whole
        older checkpoint is worth more than half a newer one.
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
        """Between two saves, as it is now."""
        if self.config.checkpoint_interval is not None:
            return self.config.checkpoint_interval * self._step_seconds
        return save_interval(
            self._stall_seconds, self._saver.commit_seconds, self._step_seconds, self._mtbf_seconds
        )

    def facts(self) -> dict[str, Any]:
        """For the heartbeat."""
        return {
            "durable_step": -1 if self._saved is None else self._saved.step,
            "seconds_since_durable": round(self._saver.unsaved_seconds, 1),
            "save_interval_seconds": round(self.interval_seconds, 1),
            **({"alarm": self.alarm} if self.alarm else {}),
        }

    def prune(self) -> Sequence[str]:
        """Keep the newest checkpoints."""
        if self.keep is not None:
            return self.store.prune(self.keep)
        places = [CheckpointName.parse(name) for name in self.run.list(CHECKPOINTS)]
        later = sum(place is not None and place.step > 0 for place in places)
        return self.store.prune(later) if later else []

    def _check_config(self, ref: CheckpointRef, manifest: Manifest) -> None:
        """Whether `config.json` is still what the checkpoint was trained with.

        Only where manifests are signed is another one refused: that file is not signed itself, and
        a newer version, which adds settings, reads an old one as another.
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

    def _take(self, trainer: Trainer, metrics: Metrics, stage: Stage) -> Snapshot:
        files: dict[str, Buffer] = trainer.files(stage=stage)
        return Snapshot(trainer.state.step, trainer.state.episode, files, metrics())

    def _commit(self, snapshot: Snapshot) -> CheckpointRef:
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
    """Earlier attempts, as far as the store tells; a store that does not answer tells nothing."""
    starts: list[EarlierAttempt] = []
    try:
        claims = sorted(claim for name in run.list(CLAIMS) if (claim := FencingToken.parse(name)))
        for claim in claims[-HISTORY - 1 : -1]:  # the last one is ours
            at = datetime.fromisoformat(run.read_json(f"{CLAIMS}/{claim.name}")["created_at"])
            starts.append(EarlierAttempt(at, _was_lost(run, claim.attempt)))
    except (StoreError, FileNotFoundError, KeyError, ValueError):
        return []
    return starts


def _was_lost(run: RunStore, attempt: int) -> bool:
    try:
        return run.read_json(f"exits/{attempt:04d}.json").get("outcome") != "done"
    except FileNotFoundError:
        return True
