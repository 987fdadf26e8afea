"""The models of a run, and how torch is set up for them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tsgb.config import RunConfig
from tsgb.envs import make_environment
from tsgb.models.registry import ModelRegistry
from tsgb.worker.places import Places


def setup_torch() -> None:
    """One thread: two on such small matrices are slower than one, and results depend on it."""
    torch.set_num_threads(1)


def make_registry(
    config: RunConfig, places: Places, beat: Callable[[str, int, int], None]
) -> ModelRegistry:
    """The run's world and models."""
    env = make_environment(config.env, world_seed=config.world_seed, trust=places.trust)
    return ModelRegistry(env, config, places.cache_dir / "models", beat)
