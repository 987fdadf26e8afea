"""`tsgb worker run`: one attempt at a run by one process.

It resumes, trains up to a step, writes heartbeats, saves, and writes an exit record at its end.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from tsgb.checkpoint.layout import KEEP_CHECKPOINTS
from tsgb.checkpoint.run import RunLock, RunStore
from tsgb.checkpoint.store import CheckpointStore, PinnedStore
from tsgb.config import RunConfig
from tsgb.data.readable import MAX_TOKENS
from tsgb.data.training import read_training_data, with_training_data
from tsgb.envs.base import Environment
from tsgb.errors import StoreError, TrainingFailed
from tsgb.logging import get_logger
from tsgb.models.registry import ModelRegistry
from tsgb.targets.build import build_surrogate
from tsgb.trainer.loop import Trainer
from tsgb.trainer.state import loading
from tsgb.types import CheckpointRef
from tsgb.worker.build import OnBuild, make_registry, setup_torch
from tsgb.worker.checkpointing import Checkpointer
from tsgb.worker.context import StopSignals, WorkerContext, find_run, read_config
from tsgb.worker.exit_record import outcome_of_error
from tsgb.worker.heartbeat import FLUSH_SECONDS, HeartbeatWriter

OnUpdate = Callable[[Mapping[str, Any]], None]
"""Callback with the metrics of an update."""


def no_update(_metrics: Mapping[str, Any]) -> None:
    """Do nothing after an update."""


def no_build(_model: str, _done: int, _total: int) -> None:
    """Do nothing while a model is built."""


def _log_skipped(line: str) -> None:
    get_logger().warning("checkpoint skipped", reason=line)


class TrainingAttempt:
    """One attempt at a run, in this process."""

    def __init__(
        self,
        run: RunStore,
        config: RunConfig,
        context: WorkerContext,
        signals: StopSignals,
        *,
        attempt: int | None,
        keep: int | None = KEEP_CHECKPOINTS,
        on_update: OnUpdate = no_update,
        on_build: OnBuild = no_build,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Claim the run.

        Args:
            run: The run's documents.
            config: The run's configuration.
            context: Settings of this process.
            signals: Checked after each update.
            attempt: Fencing token; None takes the next free number.
            keep: Number of newest checkpoints that stay; None keeps all but that of step 0.
            on_update: Called after each update.
            on_build: Called while models are built.
            clock: Monotonic seconds.

        Raises:
            LeaseLost: A newer process works on the run.
        """
        self.run = run
        self.config = config
        self.context = context
        self.signals = signals
        self.on_update = on_update
        self.on_build = on_build
        pins = context.worker.resume_pins
        store = CheckpointStore(run) if pins is None else PinnedStore(run, pins)
        self.number = store.claim(attempt)
        self.checkpointer = Checkpointer(
            store,
            config,
            attempt=self.number,
            spool_root=context.worker.cache_dir / "spool",
            keep=keep,
            clock=clock,
        )
        self._clock = clock
        self._heartbeat = HeartbeatWriter(run, f"heartbeats/{self.number:04d}.json")
        self._written_at = -1e9
        self._metrics: list[str] = []
        self._last: dict[str, Any] = {}
        self._useful_seconds = 0.0
        self.trainer: Trainer | None = None
        self._loading = ""
        """Name of the checkpoint that is being loaded, or could not be."""

    def train(self, until_step: int | None) -> CheckpointRef:
        """Resume, train to a step and save.

        Args:
            until_step: Step at which to stop; None trains to the end.

        Raises:
            Interrupted: A signal came; the state is saved.
            TrainingFailed: No further update can be made; what was to be saved is saved.
        """
        trainer = self._prepare()
        total = trainer.total_steps
        target = total if until_step is None else min(until_step, total)
        if self.checkpointer.saved is None:
            # A checkpoint of step 0 shows that the store takes them, before any time is spent.
            self.checkpointer.save_now(trainer, self._metrics_text)
        try:
            self._loop(trainer, target)
        except TrainingFailed:
            self.checkpointer.flush()  # what is being saved is good
            raise
        ref = self.checkpointer.settle(trainer, self._metrics_text)
        self._write_heartbeat(trainer, force=True)
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
            self.checkpointer.after_update(trainer, self._metrics_text, seconds)
            self._write_heartbeat(trainer)
            if self.signals.received is not None:
                grace = self.context.worker.grace_seconds
                self.checkpointer.save_before_exit(trainer, self._metrics_text, grace)
                self._write_heartbeat(trainer, force=True)
                self.signals.check()

    def _prepare(self) -> Trainer:
        registry = make_registry(self.config, self.context, self._building)
        trainer = Trainer(
            self.config,
            training_world(self.run, self.config, registry),
            registry.base(),
            build_surrogate(registry),
            registry.own_target(),
        )
        files = self.checkpointer.resume(_log_skipped)
        if files is not None:
            self._load(trainer, files)
            self._metrics = self.checkpointer.earlier_metrics(trainer.state.step)
        self.trainer = trainer
        # What takes long between two updates, such as a calibration, is no stall.
        registry.tick = partial(self._write_heartbeat, trainer)
        return trainer

    def _load(self, trainer: Trainer, files: Mapping[str, bytes]) -> None:
        """Load the state; the exit record names a checkpoint of the run that does not load."""
        saved = self.checkpointer.saved
        self._loading = "" if saved is None or self.checkpointer.is_spooled else saved.name
        with loading(self.run.run_url if saved is None else saved.url):
            trainer.load(files)
        self._loading = ""

    def _metrics_text(self) -> str:
        return "\n".join(self._metrics) + "\n" * bool(self._metrics)

    def _building(self, model: str, done: int, total: int) -> None:
        self.on_build(model, done, total)
        if self.signals.received is not None:
            self.signals.check()
        if self._clock() - self._written_at >= self._heartbeat.every_seconds or done == total:
            self._written_at = self._clock()
            self._put_heartbeat(0, {"phase": f"build {model}", "built": done, "build_total": total})

    def _write_heartbeat(self, trainer: Trainer, *, force: bool = False) -> None:
        if force or self._clock() - self._written_at >= self._heartbeat.every_seconds:
            self._written_at = self._clock()
            facts = {
                "episode": trainer.state.episode,
                "phase": self._last.get("phase", "start"),
                "round": self._last.get("round", 0),
                "useful_seconds": round(self._useful_seconds, 3),
                **self.checkpointer.facts(),
                "metrics": _rounded(self._last),
            }
            # Within an update the trainer may have counted it already, but it is not done.
            self._put_heartbeat(self._last.get("step", trainer.state.step), facts)
        if force:
            self._heartbeat.flush(FLUSH_SECONDS)

    def _put_heartbeat(self, step: int, facts: Mapping[str, Any]) -> None:
        content: dict[str, Any] = {
            "attempt": self.number,
            "pid": os.getpid(),
            "step": step,
            "total_steps": self.config.total_steps,
            "updated_at": datetime.now(UTC).isoformat(),
            **facts,
        }
        self._heartbeat.put(content)

    def write_exit_record(self, outcome: str, message: str) -> None:
        """Write the exit record; an error is only logged, because the store may be what failed."""
        step = 0 if self.trainer is None else self.trainer.state.step
        saved = self.checkpointer.saved
        record = {
            "outcome": outcome,
            "message": message,
            "step": step,
            "checkpoint": None if saved is None else asdict(saved),
            "ended_at": datetime.now(UTC).isoformat(),
            "useful_seconds": round(self._useful_seconds, 3),
            "peak_memory_bytes": peak_memory_bytes(),
            **({"not_loaded": self._loading} if self._loading else {}),
        }
        try:
            self.run.write_json(f"exits/{self.number:04d}.json", record)
        except StoreError as error:
            get_logger().warning("exit record not written", reason=str(error))


def training_world(run: RunStore, config: RunConfig, registry: ModelRegistry) -> Environment:
    """Return the world of a run, with the user's prompts that its guard learns from.

    Raises:
        CheckpointError: The run's store lacks these prompts, or holds others.
        ConfigError: All of one label are too long.
    """
    if config.train_data is None:
        return registry.env
    prompts = read_training_data(run, config.train_data)
    encode = registry.tokenizer().encode
    env, too_long = with_training_data(registry.env, prompts, config.guard.own_share, encode)
    if too_long:
        get_logger().warning(
            f"{too_long} of {len(prompts)} prompts of the user's have more than {MAX_TOKENS} "
            "tokens and do not train"
        )
    return env


def peak_memory_bytes() -> int:
    """Return the peak resident bytes of this process, mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _rounded(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in metrics.items()}


def train(
    context: WorkerContext,
    resume_path: str,
    *,
    attempt: int | None = None,
    until_step: int | None = None,
    keep: int | None = KEEP_CHECKPOINTS,
    on_update: OnUpdate = no_update,
    on_build: OnBuild = no_build,
) -> CheckpointRef:
    """Train one run to a step; see `TrainingAttempt` for the arguments.

    Raises:
        UsageError: There is no run, or another process of this machine works on it.
        Interrupted: A signal came; the state is saved.
        LeaseLost: A newer process works on the run.
    """
    setup_torch()
    signals = StopSignals.installed()
    run = find_run(context, resume_path)
    config = read_config(run)
    with RunLock(run.run_url):
        worker = TrainingAttempt(
            run,
            config,
            context,
            signals,
            attempt=attempt,
            keep=keep,
            on_update=on_update,
            on_build=on_build,
        )
        try:
            ref = worker.train(until_step)
        except BaseException as error:
            worker.write_exit_record(outcome_of_error(error), f"{type(error).__name__}: {error}")
            raise
        worker.write_exit_record("done", f"trained to step {ref.step}")
    return ref
