"""`tsgb worker evaluate`: one part of an evaluation, with a heartbeat of its progress."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from tsgb.checkpoint.run import RunStore
from tsgb.config import RunConfig
from tsgb.envs.base import Environment
from tsgb.errors import UsageError
from tsgb.eval.additions import Additions, spending_file
from tsgb.eval.logged_target import LoggedTargets
from tsgb.eval.ration import OPTION
from tsgb.eval.request import questions_of, read_request
from tsgb.eval.responses import DIRECTORY
from tsgb.eval.runner import Evaluation
from tsgb.models.registry import ModelRegistry
from tsgb.worker.build import make_registry, setup_torch
from tsgb.worker.context import StopSignals, WorkerContext, find_run, read_config
from tsgb.worker.heartbeat import FLUSH_SECONDS, HeartbeatWriter
from tsgb.worker.own_guards import load_guards
from tsgb.worker.own_judge import load_own_judge


class EvaluationProgress:
    """Heartbeat of one part of an evaluation: `reports/ID/progress-0.json`.

    Example: `EvaluationProgress(run, "progress-0.json", signals.check).filled(3, 40, "selfplay")`
    """

    def __init__(
        self,
        run: RunStore,
        name: str,
        check: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write nothing yet.

        Args:
            run: The run that is evaluated.
            name: Path of the heartbeat in the run.
            check: Called at each step; raises to end the evaluation.
            clock: Monotonic seconds.
        """
        self._writer = HeartbeatWriter(run, name)
        self._check = check
        self._clock = clock
        self._written_at = -1e9
        self._cells = (0, 0)
        self._facts: dict[str, Any] = {}

    def filled(self, done: int, total: int, label: str) -> None:
        """Report that `done` of `total` cells are filled, and the name of the next one."""
        self._cells = (done, total)
        self._write({"label": label}, force=done == total)

    def building(self, model: str, done: int, total: int) -> None:
        """Report the updates of a model that is being built before the next cell.

        Raises:
            Interrupted: A signal came.
        """
        self._check()
        facts = {"label": f"build {model}", "phase": f"build {model}"}
        self._write({**facts, "built": done, "build_total": total}, force=False)

    def going_on(self) -> None:
        """Report that the work of the last report goes on.

        A flow takes a worker that reports nothing for `TSGB_STALL_SECONDS` for a stalled one.

        Raises:
            Interrupted: A signal came.
        """
        self._check()
        if self._facts:
            self._write(self._facts, force=False)

    def flush(self) -> None:
        """Wait a few seconds at most until the newest heartbeat is written."""
        self._writer.flush(FLUSH_SECONDS)

    def _write(self, facts: dict[str, Any], *, force: bool) -> None:
        now, self._facts = self._clock(), facts
        if not force and now - self._written_at < self._writer.every_seconds:
            return
        self._written_at = now
        done, total = self._cells
        self._writer.put(
            {
                "done": done,
                "total": total,
                **facts,
                "pid": os.getpid(),
                "updated_at": datetime.now(UTC).isoformat(),
            },
        )


def evaluate(
    context: WorkerContext,
    resume_path: str,
    eval_id: str,
    part: int,
    parts: int,
    *,
    added: Additions | None = None,
) -> None:
    """Fill one part of an evaluation's cells.

    Args:
        context: Settings of this process.
        resume_path: URL of the run, or of a store with one run.
        eval_id: Name of the evaluation.
        part: Number of the part, from 0.
        parts: Number of parts.
        added: The user's black boxes and judge, whose code is imported, and endpoints, which are
            sent their keys; the run's pretrained black boxes take the place of its own.

    Raises:
        Interrupted: A signal came; the filled cells stay in the store.
    """
    setup_torch()
    signals = StopSignals.installed()
    run = find_run(context, resume_path)
    config = read_config(run)
    run.check_writable()
    progress = EvaluationProgress(run, f"reports/{eval_id}/progress-{part}.json", signals.check)
    registry = make_registry(config, context, progress.building, evaluates=True)
    added = replace(added or Additions(), black_boxes=config.model.black_boxes)
    env = added.load_into(registry.env)
    with opened_evaluation(
        run, config, env, registry, eval_id, context, added, progress.going_on
    ) as evaluation:
        evaluation.fill(part, parts, progress.filled, signals.check)
    progress.flush()


@contextmanager
def opened_evaluation(
    run: RunStore,
    config: RunConfig,
    env: Environment,
    registry: ModelRegistry,
    eval_id: str,
    context: WorkerContext,
    added: Additions,
    check: Callable[[], None],
) -> Generator[Evaluation]:
    """Give an evaluation with all that its user adds; what targets answer is kept meanwhile.

    Args:
        run: The run, which has a request of this evaluation.
        config: Its configuration.
        env: Its world, with the added targets and judge class.
        registry: Its models.
        eval_id: Name of the evaluation.
        context: Settings of this process.
        added: What the user adds, whose code is imported, and whose endpoints are sent their keys.
        check: Called while somebody is asked or scores; raises to stop.

    Raises:
        UsageError: Something of the user's cannot be loaded, or lacks its key.
        StoreError: The response log cannot be used.
    """
    request = read_request(run, eval_id)
    if questions_of(request) != added.adaptive:
        raise UsageError(
            f"{OPTION} {added.adaptive}: the request of evaluation {eval_id} has "
            f"{questions_of(request)}: give the same number"
        )
    ledger = spending_file(context.worker.cache_dir, eval_id)
    own = added.load_targets(check, context.keys, ledger)
    load = partial(load_guards, added.guard_choices, env, config, registry, context, check)
    shared = not request.get("fresh")
    directory = context.worker.cache_dir / DIRECTORY
    with LoggedTargets(directory, eval_id, config, shared=shared, check=check) as logged:
        asked = logged.wrap(own.values())
        judge, env, is_apart = load_own_judge(added, env, context, logged, check, ledger, registry)
        yield Evaluation(
            run,
            config,
            env,
            registry,
            eval_id,
            context.open,
            asked,
            load,
            judge,
            judges_attacks=is_apart,
            take_usage=logged.take_usage,
        )
