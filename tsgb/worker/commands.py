"""What `tsgb worker` does with models: train, build, evaluate."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from tsgb.checkpoint.run import RunLock
from tsgb.envs import customise
from tsgb.judges.plugins import StrictJudge, load_judge
from tsgb.logging import get_logger
from tsgb.targets.plugins import BlackBoxTarget, load_black_boxes, target_specs
from tsgb.types import CheckpointRef
from tsgb.worker.attempt import (
    FLUSH_SECONDS,
    OUTCOMES,
    Attempt,
    OnBuild,
    OnUpdate,
    no_build,
    no_update,
)
from tsgb.worker.beats import Beats
from tsgb.worker.models import make_registry, setup_torch
from tsgb.worker.places import Places, find_run, read_config
from tsgb.worker.saves import KEEP_CHECKPOINTS
from tsgb.worker.signals import Signals


def train(
    places: Places,
    resume_path: str,
    *,
    attempt: int | None = None,
    until_step: int | None = None,
    keep: int | None = KEEP_CHECKPOINTS,
    on_update: OnUpdate = no_update,
    on_build: OnBuild = no_build,
) -> CheckpointRef:
    """`tsgb worker run`: train one run to a step; see `Attempt` for the arguments.

    Raises:
        UsageError: no run there, or another process of this machine works on it.
        Interrupted: a signal came; the state is saved.
        LeaseLost: a newer process works on the run.
    """
    setup_torch()
    signals = Signals.installed()
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
    signals = Signals.installed()
    config = read_config(find_run(places, resume_path))

    def beat(model: str, done: int, total: int) -> None:
        signals.check()
        if done % 100 == 0 or done == total:
            get_logger().info("building", model=model, done=done, total=total)

    registry = make_registry(config, places, beat)
    for name in registry.parts(parts)[part]:
        registry.build(name)


def evaluate(
    places: Places,
    resume_path: str,
    eval_id: str,
    part: int,
    parts: int,
    *,
    target_class: Sequence[str] = (),
    judge_class: str | None = None,
) -> None:
    """`tsgb worker evaluate`: fill a share of an evaluation's cells.

    Args:
        places: Cache, credentials and trusted modules.
        resume_path: The run.
        eval_id: Names the evaluation.
        part: Which share, from 0.
        parts: Number of shares.
        target_class: The user's black boxes, as `module:attribute`; imported.
        judge_class: The user's judge; imported.

    Raises:
        Interrupted: a signal came; finished cells are kept.
    """
    from tsgb.eval.runner import Evaluation  # statistics and scikit-learn: training needs neither

    setup_torch()
    signals = Signals.installed()
    run = find_run(places, resume_path)
    config = read_config(run)
    run.check_writable()
    beat_at = -1e9
    beats = Beats(run, f"reports/{eval_id}/progress-{part}.json")

    def report(done: int, total: int, label: str) -> None:
        nonlocal beat_at
        now = time.monotonic()
        if now - beat_at >= beats.every_seconds or done == total:
            beat_at = now
            beats.put(
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

    registry = make_registry(config, places, building)
    black_boxes = load_black_boxes(target_class)
    judge = None if judge_class is None else StrictJudge(load_judge(judge_class).made)
    env = customise(registry.env, target_specs(target_class), judge)
    own = {
        name: BlackBoxTarget(name, plugin.made, signals.check)
        for name, plugin in black_boxes.items()
    }
    evaluation = Evaluation(run, config, env, registry, eval_id, places.open, own)
    evaluation.fill(part, parts, report, signals.check)
    beats.flush(FLUSH_SECONDS)
