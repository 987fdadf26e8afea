"""Training through the general engine: stopped and resumed, it goes on bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.fakes.miniature import ScriptedTarget
from tests.fakes.small_run import SIZES, goes_on_bit_for_bit
from tests.unit.models.general.conftest import load_engine
from tsgb.config import RunConfig, make_config
from tsgb.envs.canary import CanaryEnvironment
from tsgb.trainer.loop import Trainer
from tsgb.types import Response


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_resumed_run_is_the_same_run(directory: Callable[..., Path], dtype: torch.dtype) -> None:
    world = CanaryEnvironment(world_seed=0)
    config: RunConfig = make_config(world.profile("smoke"), SIZES)

    def trainer() -> Trainer:
        engine = load_engine(directory("qwen2"), dtype, micro_batch_tokens=512)
        target = ScriptedTarget(lambda prompt: Response(text=prompt))
        return Trainer(config, world, engine, target)

    goes_on_bit_for_bit(trainer)
