"""Training through the general engine: stopped and resumed, it goes on bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.miniature import ScriptedTarget
from tests.unit.models.general.conftest import load_engine
from tsgb.config import RunConfig, make_config
from tsgb.envs.canary import CanaryEnvironment
from tsgb.trainer.loop import Trainer
from tsgb.types import Response

SIZES: dict[str, Any] = {
    "profile": "smoke",
    "env": "canary",
    "attacker": {"sft_steps": 2, "sft_batch": 2, "warmup_steps": 1, "max_new_tokens": 6},
    "guard": {"sft_steps": 2, "sft_batch": 4, "batch": 4, "kl": 0.01, "lm_replay": 0.1},
    "selfplay": {"attacker_steps": 2, "guard_steps": 2, "buffer": 4, "payoff_attacks": 2},
    "calibration": {"fpr": 0.3, "delta": 0.3, "num": 8},
}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_resumed_run_is_the_same_run(directory: Callable[..., Path], dtype: torch.dtype) -> None:
    world = CanaryEnvironment(world_seed=0)
    config: RunConfig = make_config(world.profile("smoke"), SIZES)

    def trainer() -> Trainer:
        engine = load_engine(directory("qwen2"), dtype, micro_batch_tokens=512)
        target = ScriptedTarget(lambda prompt: Response(text=prompt))
        return Trainer(config, world, engine, target)

    whole, first = trainer(), trainer()
    while not whole.done:
        metrics = whole.step()
        assert metrics["loss"] == metrics["loss"], "a loss is a number"
    for _ in range(config.total_steps // 2):
        first.step()
    rest = trainer()
    rest.load(first.files(NOW))
    while not rest.done:
        rest.step()
    wanted, found = whole.files(NOW), rest.files(NOW)
    assert wanted.keys() == found.keys()
    for name, data in wanted.items():
        assert bytes(found[name]) == bytes(data), name
