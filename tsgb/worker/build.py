"""`tsgb worker build`, and the registry from which a worker takes the models of its run."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import torch

from tsgb.config import RunConfig
from tsgb.envs import make_environment
from tsgb.logging import get_logger
from tsgb.models.registry import ModelRegistry
from tsgb.worker.context import StopSignals, WorkerContext, find_run, read_config
from tsgb.worker.heartbeat import HeartbeatWriter

OnBuild = Callable[[str, int, int], None]
"""Callback with a model's name, updates made and updates in all."""


def setup_torch() -> None:
    """Use one thread: two are slower on matrices this small, and results depend on the number."""
    torch.set_num_threads(1)


def make_registry(
    config: RunConfig, context: WorkerContext, on_build: OnBuild, *, evaluates: bool = False
) -> ModelRegistry:
    """Return the models of a run, in the world of its configuration.

    Args:
        config: Configuration of the run.
        context: Settings of this process.
        on_build: Called while a model is built.
        evaluates: Whether its black boxes are asked, too.
    """
    env = make_environment(
        config.env,
        world_seed=config.world_seed,
        world=config.world,
        trust=context.trust,
    )
    cache = context.worker.cache_dir / "models"
    return ModelRegistry(
        env,
        config,
        cache,
        on_build,
        context.hub,
        evaluates=evaluates,
        memory_shares=context.worker.memory_shares,
    )


def build(context: WorkerContext, resume_path: str, part: int, parts: int) -> None:
    """Build one part of the models that a run needs and that are not cached.

    Its heartbeat, `builds/progress-PART.json`, names the model, the updates made and the total.

    Args:
        context: Settings of this process.
        resume_path: URL of the run, or of a store with one run.
        part: Number of the part, from 0.
        parts: Number of parts.

    Raises:
        Interrupted: A signal came.
    """
    setup_torch()
    signals = StopSignals.installed()
    run = find_run(context, resume_path)
    config = read_config(run)
    heartbeat = HeartbeatWriter(run, f"builds/progress-{part}.json")
    written_at = -1e9

    def on_build(model: str, done: int, total: int) -> None:
        nonlocal written_at
        signals.check()
        now = time.monotonic()
        if done == total or now - written_at >= heartbeat.every_seconds:
            written_at = now
            facts = {"phase": f"build {model}", "built": done, "build_total": total}
            heartbeat.put({**facts, "updated_at": datetime.now(UTC).isoformat()})
        if done % 100 == 0 or done == total:
            get_logger().info("building", model=model, done=done, total=total)

    registry = make_registry(config, context, on_build)
    for name in registry.parts(parts)[part]:
        registry.build(name)
