"""Training on a card: the numbers of the CPU, and after a stop the same bit for bit."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fakes.miniature import ScriptedTarget
from tests.fakes.small_run import SIZES, goes_on_bit_for_bit
from tests.gpu.conftest import load
from tsgb.config import RunConfig, make_config
from tsgb.envs.canary import CanaryEnvironment
from tsgb.models.weights import load_parameters, snapshot
from tsgb.trainer.loop import Trainer
from tsgb.trainer.players import AttackBatch, AttackerPlayer, GuardPlayer
from tsgb.types import Response, Split, StreamKind

pytestmark = pytest.mark.gpu

WORLD = CanaryEnvironment(world_seed=0)
CHANGES: dict[str, Any] = {
    "attacker": {"sft_batch": 4, "warmup_steps": 2, "max_new_tokens": 8},
    "guard": {"batch": 8},
    "selfplay": {"buffer": 8, "payoff_attacks": 4},
}
CONFIG: RunConfig = make_config(WORLD.profile("smoke"), SIZES, CHANGES)
UPDATES = 5
TOLERANCE = 1e-3
"""Of sums that a card adds up in another order; after a few updates of float32."""


def players(directory: Path, device: torch.device) -> tuple[AttackerPlayer, GuardPlayer]:
    engine = load(directory, device, torch.float32)
    generator = torch.Generator().manual_seed(3)
    return (
        AttackerPlayer(engine, WORLD, CONFIG.attacker, engine.add_role(CONFIG.model, generator)),
        GuardPlayer(engine, WORLD, CONFIG.guard, engine.add_role(CONFIG.model, generator)),
    )


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        scale = float(tensor.abs().max()) or 1.0
        assert float((found[name].cpu() - tensor).abs().max()) <= TOLERANCE * scale, name


def test_updates_are_those_of_the_cpu(card: torch.device, qwen2: Path) -> None:
    """Both players learn from the same texts; what the attacker writes is written on the CPU."""
    here, there = players(qwen2, torch.device("cpu")), players(qwen2, card)
    scenarios = [s for s in WORLD.scenarios(Split.TRAIN) if s.harmful][:4]
    prompts = [p.text for p in WORLD.stream(StreamKind.WIDE, Split.TRAIN, Random(1), 8)]
    group, generator = CONFIG.attacker.group_size, torch.Generator().manual_seed(5)
    for _ in range(UPDATES):
        batch: AttackBatch = here[0].write(scenarios, group, generator)
        rewards = [float(number % 3) for number in range(len(batch.scenarios))]
        metrics = [attacker.learn(batch, rewards, 1e-3) for attacker, _ in (here, there)]
        assert metrics[1] == pytest.approx(metrics[0], rel=TOLERANCE, abs=1e-4)
        scores: list[Tensor] = []
        for _, guard in (here, there):
            _, found = guard.learn(
                prompts,
                [3.0 if number % 2 else -2.0 for number in range(8)],
                loss_name="exact_pg",
                replay=WORLD.corpus("replay", Random(2), 2),
                lr=1e-3,
                generator=torch.Generator(),
            )
            scores.append(found)
        assert torch.allclose(scores[1], scores[0], atol=1e-3)
    for mine, other in zip(here, there, strict=True):
        assert_close(snapshot(other.parameters), snapshot(mine.parameters))


def test_what_is_sampled_is_what_the_cpu_samples(card: torch.device, qwen2: Path) -> None:
    """Random numbers are drawn on the CPU, so only logits differ, and hardly."""
    scenarios = [s for s in WORLD.scenarios(Split.TRAIN) if s.harmful][:8]
    texts = [
        attacker.write(scenarios, 4, torch.Generator().manual_seed(5)).writing.texts
        for attacker, _ in (players(qwen2, torch.device("cpu")), players(qwen2, card))
    ]
    same = [mine == other for mine, other in zip(*texts, strict=True)]
    assert sum(same) >= 0.9 * len(same)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_resumed_run_is_the_same_run(card: torch.device, qwen2: Path, dtype: torch.dtype) -> None:
    def trainer() -> Trainer:
        target = ScriptedTarget(lambda prompt: Response(text=prompt))
        return Trainer(CONFIG, WORLD, load(qwen2, card, dtype), target)

    goes_on_bit_for_bit(trainer)


def test_past_weights_lie_in_the_memory_of_the_machine(card: torch.device, qwen2: Path) -> None:
    target = ScriptedTarget(lambda prompt: Response(text=prompt))
    trainer = Trainer(CONFIG, WORLD, load(qwen2, card, torch.float32), target)
    while not trainer.done:
        trainer.step()
    kept = [*trainer.starts.values(), *trainer.columns.values()]
    assert {tensor.device.type for tensors in kept for tensor in tensors.values()} == {"cpu"}
    load_parameters(trainer.guard.parameters, trainer.columns["sft"])
    for name, tensor in trainer.guard.parameters.items():
        assert tensor.device.type == card.type
        assert torch.equal(tensor.cpu(), trainer.columns["sft"][name])
