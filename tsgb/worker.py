"""One attempt: resume, train to a target, heartbeat, save, obey signals, leave an exit record.

The only process that trains or evaluates. All that passes between it and whoever started it is the
store: config in; heartbeats, checkpoints, metrics, cells and the exit record out. Every command may
be killed at any moment and given again. It reads no environment: places and secrets are arguments.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pydantic import SecretStr

from tsgb.checkpoint.layout import CHECKPOINTS, Place
from tsgb.checkpoint.run import RunLock, RunStore, open_run
from tsgb.checkpoint.store import CheckpointStore
from tsgb.checkpoint.urls import canonical_url
from tsgb.config import RunConfig, parse_config
from tsgb.envs import make_environment
from tsgb.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    LeaseLost,
    StoreError,
    StoreFull,
    UsageError,
)
from tsgb.logging import get_logger
from tsgb.models.zoo import Zoo
from tsgb.trainer.loop import Trainer
from tsgb.types import CheckpointRef

HEARTBEAT_SECONDS = 1.0
KEEP_CHECKPOINTS = 3

OnUpdate = Callable[[Mapping[str, Any]], None]
OnBuild = Callable[[str, int, int], None]
"""Called with (model, updates done, updates in all)."""


def _no_update(_metrics: Mapping[str, Any]) -> None:
    pass


def _no_build(_model: str, _done: int, _total: int) -> None:
    pass


def _skipped(line: str) -> None:
    get_logger().warning("checkpoint skipped", reason=line)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What the environment would say; the command line fills it in."""

    cache_dir: Path
    user: str | None = None
    password: SecretStr | None = None

    def open(self, run_url: str) -> RunStore:
        """A run's documents."""
        return open_run(run_url, self.user, self.password)


class Signals:
    """SIGTERM and SIGINT set a flag, read between two updates; a second one exits at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def install(self) -> None:
        """Take over both signals (main thread only)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number

    def check(self) -> None:
        """Stop here if a signal has come.

        Raises:
            Interrupted: one has.
        """
        if self.received is not None:
            name = signal.Signals(self.received).name
            raise Interrupted(f"stopped by {name}; the same command goes on from here")


def find_run(places: Places, url: str) -> RunStore:
    """The run that a user means by a run or store URL.

    Raises:
        UsageError: there is none, or the store holds several and none is named.
    """
    run = places.open(canonical_url(url))
    try:
        run.read_bytes("config.json")
    except FileNotFoundError:
        pass
    else:
        return run
    candidates: list[str] = []
    try:
        names = run.list("")
    except FileNotFoundError:
        names = list[str]()
    for name in names:
        try:
            run.read_bytes(f"{name}/config.json")
        except (FileNotFoundError, StoreError):
            continue
        candidates.append(name)
    if len(candidates) == 1:
        return places.open(f"{run.run_url}/{candidates[0]}")
    if not candidates:
        raise UsageError(
            f"no run at {run.run_url}: it has no config.json, and no directory below has one; "
            "give the URL of a run, or begin one with `tsgb experiment` or `tsgb train-local`"
        )
    raise UsageError(
        f"{run.run_url} holds {len(candidates)} runs ({', '.join(sorted(candidates)[:6])}): "
        f"name one, as in --resume-path {run.run_url}/{min(candidates)}"
    )


def read_config(run: RunStore) -> RunConfig:
    """The run's configuration."""
    return parse_config(run.read_text("config.json"), f"{run.run_url}/config.json")


def setup_torch() -> None:
    """One thread: two on such small matrices are slower than one, and results depend on it."""
    torch.set_num_threads(1)


def make_zoo(config: RunConfig, places: Places, beat: Callable[[str, int, int], None]) -> Zoo:
    """The run's world and models."""
    env = make_environment(config.env, world_seed=config.world_seed)
    return Zoo(env, config, places.cache_dir / "models", beat)


# -- training ------------------------------------------------------------------------------


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
        on_update: OnUpdate = _no_update,
        on_build: OnBuild = _no_build,
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
        self.keep = keep
        self.on_update = on_update
        self.on_build = on_build
        self.store = CheckpointStore(run)
        self.number = self.store.claim(attempt)
        self._clock = clock
        self._beat_at = -1e9
        self._metrics: list[str] = []
        self._saved: CheckpointRef | None = None
        self._last: dict[str, Any] = {}
        self.trainer: Trainer | None = None

    def train(self, until_step: int | None) -> CheckpointRef:
        """Resume, train to `until_step` (all, if None), save.

        Raises:
            Interrupted: a signal came; the state is saved.
        """
        trainer = self._prepare()
        total = trainer.total_steps
        target = total if until_step is None else min(until_step, total)
        if trainer.state.step < target or self._saved is None:
            self._loop(trainer, target)
        if self._saved is None or self._saved.step < trainer.state.step:
            self._save(trainer)
        self._beat(trainer, force=True)
        if self._saved is None:
            raise CheckpointError("nothing was saved")
        return self._saved

    def _loop(self, trainer: Trainer, target: int) -> None:
        if self._saved is None:
            self._save(trainer)  # step 0 proves the store before time is spent
        interval = self.config.checkpoint_interval
        while trainer.state.step < target:
            begin = self._clock()
            metrics = trainer.step()
            seconds = max(self._clock() - begin, 1e-9)
            metrics["tokens_per_second"] = round(metrics.get("tokens", 0) / seconds, 1)
            self._metrics.append(json.dumps(_rounded(metrics), sort_keys=True))
            self._last = metrics
            self.on_update(metrics)
            self._beat(trainer)
            if trainer.state.step % interval == 0 or trainer.state.step == target:
                self._save(trainer)
            if self.signals.received is not None:
                if self._saved is None or self._saved.step < trainer.state.step:
                    self._save(trainer)
                self._beat(trainer, force=True)
                self.signals.check()

    def _prepare(self) -> Trainer:
        zoo = make_zoo(self.config, self.places, self._building)
        env = make_environment(self.config.env, world_seed=self.config.world_seed)
        trainer = Trainer(self.config, env, zoo.base(), zoo.surrogate())
        found = self.store.newest_valid(_skipped)
        if found is not None:
            self._saved, files = found
            trainer.load(files)
            self._metrics = self._earlier_metrics(self._saved.step)
        self.trainer = trainer
        return trainer

    def _earlier_metrics(self, step: int) -> list[str]:
        """Lines up to the checkpoint; later ones belong to work that was lost."""
        try:
            lines = self.run.read_text("metrics.jsonl").splitlines()
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

    def _save(self, trainer: Trainer) -> None:
        # Before the checkpoint: a line too many is cut when resuming, one too few would be missed.
        self.run.write_text("metrics.jsonl", "\n".join(self._metrics) + "\n" * bool(self._metrics))
        self._saved = self.store.publish(
            trainer.state.step,
            trainer.state.episode,
            trainer.files(),
            self.config.fingerprint,
            None if self._saved is None else self._saved.name,
        )
        self.prune()

    def prune(self) -> None:
        """Keep the newest checkpoints."""
        if self.keep is not None:
            self.store.prune(self.keep)
            return
        places = [Place.parse(name) for name in self.run.list(CHECKPOINTS)]
        later = sum(place is not None and place.step > 0 for place in places)
        if later:
            self.store.prune(later)

    def _building(self, model: str, done: int, total: int) -> None:
        self.on_build(model, done, total)
        if self.signals.received is not None:
            self.signals.check()
        if self._clock() - self._beat_at >= HEARTBEAT_SECONDS or done == total:
            self._beat_at = self._clock()
            self._write_beat(0, {"phase": f"build {model}", "built": done, "build_total": total})

    def _beat(self, trainer: Trainer, *, force: bool = False) -> None:
        if force or self._clock() - self._beat_at >= HEARTBEAT_SECONDS:
            self._beat_at = self._clock()
            facts = {
                "episode": trainer.state.episode,
                "phase": self._last.get("phase", "start"),
                "round": self._last.get("round", 0),
                "durable_step": -1 if self._saved is None else self._saved.step,
                "metrics": _rounded(self._last),
            }
            self._write_beat(trainer.state.step, facts)

    def _write_beat(self, step: int, facts: Mapping[str, Any]) -> None:
        content = {
            "attempt": self.number,
            "pid": os.getpid(),
            "step": step,
            "total_steps": self.config.total_steps,
            "updated_at": datetime.now(UTC).isoformat(),
            **facts,
        }
        try:
            self.run.write_json(f"heartbeats/{self.number:04d}.json", content)
        except StoreFull:
            raise
        except StoreError as error:
            get_logger().warning("heartbeat not written", reason=str(error))

    def leave(self, outcome: str, message: str) -> None:
        """Write the exit record; best effort, since the store may be what failed."""
        step = 0 if self.trainer is None else self.trainer.state.step
        record = {
            "outcome": outcome,
            "message": message,
            "step": step,
            "checkpoint": None if self._saved is None else asdict(self._saved),
            "ended_at": datetime.now(UTC).isoformat(),
        }
        try:
            self.run.write_json(f"exits/{self.number:04d}.json", record)
        except StoreError as error:
            get_logger().warning("exit record not written", reason=str(error))


OUTCOMES: Sequence[tuple[type[BaseException], str]] = (
    (Interrupted, "interrupted"),
    (LeaseLost, "lease_lost"),
    (StoreFull, "disk_full"),
    (CheckpointError, "config"),
    (ConfigError, "config"),
    (BaseException, "crash"),
)


def train(
    places: Places,
    resume_path: str,
    *,
    attempt: int | None = None,
    until_step: int | None = None,
    keep: int | None = KEEP_CHECKPOINTS,
    on_update: OnUpdate = _no_update,
    on_build: OnBuild = _no_build,
) -> CheckpointRef:
    """`tsgb worker run`: train one run to a step; see `Attempt` for the arguments.

    Raises:
        UsageError: no run there, or another process of this machine works on it.
        Interrupted: a signal came; the state is saved.
        LeaseLost: a newer process works on the run.
    """
    setup_torch()
    signals = Signals()
    signals.install()
    run = find_run(places, resume_path)
    config = read_config(run)
    with RunLock(run.run_url):
        worker = Attempt(
            run,
            config,
            places,
            signals,
            attempt=attempt,
            keep=keep,
            on_update=on_update,
            on_build=on_build,
        )
        try:
            ref = worker.train(until_step)
        except BaseException as error:
            outcome = next(name for kind, name in OUTCOMES if isinstance(error, kind))
            worker.leave(outcome, f"{type(error).__name__}: {error}")
            raise
        worker.leave("done", f"trained to step {ref.step}")
    return ref


def build(places: Places, resume_path: str, part: int, parts: int) -> None:
    """`tsgb worker build`: make a share of the models that the run needs."""
    setup_torch()
    signals = Signals()
    signals.install()
    config = read_config(find_run(places, resume_path))

    def beat(model: str, done: int, total: int) -> None:
        signals.check()
        if done % 100 == 0 or done == total:
            get_logger().info("building", model=model, done=done, total=total)

    zoo = make_zoo(config, places, beat)
    for name in zoo.parts(parts)[part]:
        zoo.build(name)


def _rounded(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in metrics.items()}


def evaluate(places: Places, resume_path: str, eval_id: str, part: int, parts: int) -> None:
    """`tsgb worker evaluate`: fill a share of an evaluation's cells.

    Raises:
        Interrupted: a signal came; finished cells are kept.
    """
    from tsgb.eval.runner import Evaluation

    setup_torch()
    signals = Signals()
    signals.install()
    run = find_run(places, resume_path)
    config = read_config(run)
    beat_at = -1e9

    def report(done: int, total: int, label: str) -> None:
        nonlocal beat_at
        now = time.monotonic()
        if now - beat_at >= HEARTBEAT_SECONDS or done == total:
            beat_at = now
            run.write_json(
                f"reports/{eval_id}/progress-{part}.json",
                {
                    "done": done,
                    "total": total,
                    "label": label,
                    "pid": os.getpid(),
                    "updated_at": datetime.now(UTC).isoformat(),
                },
            )

    def building(model: str, done: int, total: int) -> None:
        signals.check()
        report(0, 1, f"build {model} {done}/{total}")

    env = make_environment(config.env, world_seed=config.world_seed)
    zoo = make_zoo(config, places, building)
    evaluation = Evaluation(run, config, env, zoo, eval_id, places.open)
    evaluation.fill(part, parts, report, signals.check)


def report(places: Places, resume_paths: Sequence[str], eval_id: str, command: str = "") -> str:
    """`tsgb worker report`: merge the cells of one or several runs; returns the verdict."""
    from tsgb.eval.merge import Part, merge

    runs = [find_run(places, path) for path in resume_paths]
    parts = [Part(run, read_config(run)) for run in runs]
    first = parts[0].config
    env = make_environment(first.env, world_seed=first.world_seed)
    done = command or (
        f"tsgb experiment --profile {first.profile.value} --env {first.env} --seed {first.seed}"
    )
    return merge(parts, env, eval_id, done).verdict.sentence
