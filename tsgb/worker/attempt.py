"""Training of one run by one process: resume, train, heartbeat, save, leave a record."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from tsgb.checkpoint.run import RunStore
from tsgb.checkpoint.store import CheckpointStore
from tsgb.config import RunConfig
from tsgb.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    LeaseLost,
    StoreError,
    StoreFull,
    StoreUnreachable,
)
from tsgb.logging import get_logger
from tsgb.targets.build import build_surrogate
from tsgb.trainer.loop import Trainer
from tsgb.types import CheckpointRef
from tsgb.worker.beats import Beats
from tsgb.worker.models import make_registry
from tsgb.worker.places import Places
from tsgb.worker.saves import KEEP_CHECKPOINTS, Saves
from tsgb.worker.signals import Signals

FLUSH_SECONDS = 5.0
"""For the last heartbeat to arrive."""

OnUpdate = Callable[[Mapping[str, Any]], None]
OnBuild = Callable[[str, int, int], None]
"""Called with (model, updates done, updates in all)."""


def no_update(_metrics: Mapping[str, Any]) -> None:
    """Nobody watches."""


def no_build(_model: str, _done: int, _total: int) -> None:
    """Nobody watches."""


def _skipped(line: str) -> None:
    get_logger().warning("checkpoint skipped", reason=line)


class Attempt:
    """Training of one run by one process."""

    def __init__(
        self,
        run: RunStore,
        config: RunConfig,
        places: Places,
        signals: Signals,
        *,
        attempt: int | None,
        keep: int | None = KEEP_CHECKPOINTS,
        on_update: OnUpdate = no_update,
        on_build: OnBuild = no_build,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Claim the run.

        Args:
            run: its documents.
            config: what is trained.
            places: where models are cached.
            signals: read between two updates.
            attempt: the fencing token; None takes the next free one.
            keep: how many of the newest checkpoints stay; None keeps all but that of step 0.
            on_update: gets the metrics of each update.
            on_build: told about models that are being built.
            clock: monotonic seconds.

        Raises:
            LeaseLost: a newer process works on it.
        """
        self.run = run
        self.config = config
        self.places = places
        self.signals = signals
        self.on_update = on_update
        self.on_build = on_build
        store = CheckpointStore(run)
        self.number = store.claim(attempt)
        self.saves = Saves(
            store,
            config,
            attempt=self.number,
            spool_root=places.cache_dir / "spool",
            keep=keep,
            clock=clock,
        )
        self._clock = clock
        self._beats = Beats(run, f"heartbeats/{self.number:04d}.json")
        self._beat_at = -1e9
        self._metrics: list[str] = []
        self._last: dict[str, Any] = {}
        self._useful_seconds = 0.0
        self.trainer: Trainer | None = None

    def train(self, until_step: int | None) -> CheckpointRef:
        """Resume, train to `until_step` (all, if None), save.

        Raises:
            Interrupted: a signal came; the state is saved.
        """
        trainer = self._prepare()
        total = trainer.total_steps
        target = total if until_step is None else min(until_step, total)
        if self.saves.saved is None:
            # Step 0 proves the store before time is spent.
            self.saves.save_now(trainer, self._metrics_text)
        self._loop(trainer, target)
        ref = self.saves.settle(trainer, self._metrics_text)
        self._beat(trainer, force=True)
        return ref

    def _loop(self, trainer: Trainer, target: int) -> None:
        while trainer.state.step < target:
            begin = self._clock()
            metrics = trainer.step()
            seconds = max(self._clock() - begin, 1e-9)
            self._useful_seconds += seconds
            metrics["seconds"] = seconds
            metrics["tokens_per_second"] = round(metrics.get("tokens", 0) / seconds, 1)
            self._metrics.append(json.dumps(_rounded(metrics), sort_keys=True))
            self._last = metrics
            self.on_update(metrics)
            self.saves.after_update(trainer, self._metrics_text, seconds)
            self._beat(trainer)
            if self.signals.received is not None:
                grace = self.places.grace_seconds
                self.saves.before_the_end(trainer, self._metrics_text, grace)
                self._beat(trainer, force=True)
                self.signals.check()

    def _prepare(self) -> Trainer:
        registry = make_registry(self.config, self.places, self._building)
        trainer = Trainer(self.config, registry.env, registry.base(), build_surrogate(registry))
        files = self.saves.resume(_skipped)
        if files is not None:
            trainer.load(files)
            self._metrics = self.saves.earlier_metrics(trainer.state.step)
        self.trainer = trainer
        return trainer

    def _metrics_text(self) -> str:
        return "\n".join(self._metrics) + "\n" * bool(self._metrics)

    def _building(self, model: str, done: int, total: int) -> None:
        self.on_build(model, done, total)
        if self.signals.received is not None:
            self.signals.check()
        if self._clock() - self._beat_at >= self._beats.every_seconds or done == total:
            self._beat_at = self._clock()
            self._write_beat(0, {"phase": f"build {model}", "built": done, "build_total": total})

    def _beat(self, trainer: Trainer, *, force: bool = False) -> None:
        if force or self._clock() - self._beat_at >= self._beats.every_seconds:
            self._beat_at = self._clock()
            facts = {
                "episode": trainer.state.episode,
                "phase": self._last.get("phase", "start"),
                "round": self._last.get("round", 0),
                "useful_seconds": round(self._useful_seconds, 3),
                **self.saves.facts(),
                "metrics": _rounded(self._last),
            }
            self._write_beat(trainer.state.step, facts)
        if force:
            self._beats.flush(FLUSH_SECONDS)

    def _write_beat(self, step: int, facts: Mapping[str, Any]) -> None:
        content: dict[str, Any] = {
            "attempt": self.number,
            "pid": os.getpid(),
            "step": step,
            "total_steps": self.config.total_steps,
            "updated_at": datetime.now(UTC).isoformat(),
            **facts,
        }
        self._beats.put(content)

    def leave(self, outcome: str, message: str) -> None:
        """Write the exit record; best effort, since the store may be what failed."""
        step = 0 if self.trainer is None else self.trainer.state.step
        record = {
            "outcome": outcome,
            "message": message,
            "step": step,
            "checkpoint": None if self.saves.saved is None else asdict(self.saves.saved),
            "ended_at": datetime.now(UTC).isoformat(),
            "useful_seconds": round(self._useful_seconds, 3),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        try:
            self.run.write_json(f"exits/{self.number:04d}.json", record)
        except StoreError as error:
            get_logger().warning("exit record not written", reason=str(error))


OUTCOMES: Sequence[tuple[type[BaseException], str]] = (
    (Interrupted, "interrupted"),
    (LeaseLost, "lease_lost"),
    (StoreFull, "disk_full"),
    (StoreUnreachable, "store_unreachable"),
    (StoreError, "config"),
    (CheckpointError, "config"),
    (ConfigError, "config"),
    (BaseException, "crash"),
)


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, mapped files among it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _rounded(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in metrics.items()}
