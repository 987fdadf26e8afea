"""What one update costs, beside the same update through transformers and peft.

    pytest tests/benchmarks -q --benchmark-enable --benchmark-only

The number in brackets is the ratio to the fastest of the group, measured in the same run; on a busy
machine add `--benchmark-timer=time.process_time`. Nothing timed is asserted; that both ways compute
the same scores is.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch

from tests.fakes.miniature import untrained_model, world
from tsgb.config import AttackerConfig, GuardConfig, ModelConfig
from tsgb.models.fast.fast_engine import FastEngine
from tsgb.trainer.advantages import leave_one_out
from tsgb.trainer.players import AttackBatch, AttackerPlayer, GuardPlayer
from tsgb.types import ModelRecipe, Split, StreamKind

# The sizes of the glyph world when these benchmarks were written; fixed, so that figures compare.
RECIPE = ModelRecipe(width=64, layers=2, heads=4)
GUARD = GuardConfig(batch=192, lm_replay=0.0, kl=0.0, entropy=0.02)
ATTACKER = AttackerConfig(group_size=4, scenarios_per_step=40, max_new_tokens=17)
LR = 1e-4

general = pytest.mark.slow  # imports transformers and peft
adapters = pytest.mark.parametrize("adapter", ["full", pytest.param("lora", marks=general)])


def traffic() -> tuple[list[str], list[float]]:
    """A batch of prompts and their gains."""
    rng, half = Random(0), GUARD.batch // 2
    drawn = [
        *world().stream(StreamKind.WIDE, Split.TRAIN, rng, half),
        *world().stream(StreamKind.BENIGN, Split.TRAIN, rng, half),
    ]
    return [p.text for p in drawn], [3.0 if p.harmful else -2.0 for p in drawn]


def make_guard(model: FastEngine, adapter: str) -> GuardPlayer:
    made = model.add_role(ModelConfig(adapter=adapter), torch.Generator())
    return GuardPlayer(model, world(), GUARD, made)


def make_attacker(model: FastEngine, adapter: str) -> AttackerPlayer:
    made = model.add_role(ModelConfig(adapter=adapter), torch.Generator())
    return AttackerPlayer(model, world(), ATTACKER, made)


def write(attacker: AttackerPlayer) -> AttackBatch:
    scenarios = world().scenarios(Split.TRAIN)[: ATTACKER.scenarios_per_step]
    generator = torch.Generator().manual_seed(0)
    return attacker.write(scenarios, ATTACKER.group_size, generator)


def rewards(batch: AttackBatch) -> list[float]:
    """Some spread in every group."""
    return [float(index % ATTACKER.group_size) for index in range(len(batch.scenarios))]


def guard_update(adapter: str) -> Callable[[], Any]:
    guard = make_guard(untrained_model(RECIPE), adapter)
    prompts, gains = traffic()
    return lambda: guard.learn(
        prompts, gains, loss_name="exact_pg", replay=[], lr=LR, generator=torch.Generator()
    )


def general_guard_update(adapter: str) -> Callable[[], Any]:
    from tests.benchmarks.general_path import GeneralGuard

    model = untrained_model(RECIPE)
    template = world().guard_template()
    guard = GeneralGuard(model.module, model.tokenizer, adapter=adapter, lr=LR)
    prompts, gains = traffic()
    with torch.no_grad():
        ours = model.scores(model.base, template, prompts)
        torch.testing.assert_close(guard.scores(template, prompts), ours, rtol=1e-4, atol=1e-4)
    return lambda: guard.learn(template, prompts, gains, GUARD)


@adapters
def test_guard_update(benchmark: Any, adapter: str) -> None:
    benchmark.group = f"guard update, {adapter}, {GUARD.batch} prompts"
    benchmark(guard_update(adapter))


@general
@adapters
def test_guard_update_through_transformers(benchmark: Any, adapter: str) -> None:
    benchmark.group = f"guard update, {adapter}, {GUARD.batch} prompts"
    benchmark(general_guard_update(adapter))


@adapters
def test_attacker_writing(benchmark: Any, adapter: str) -> None:
    attacker = make_attacker(untrained_model(RECIPE), adapter)
    benchmark.group = f"attacker writing, {adapter}, 160 prompts"
    benchmark.extra_info["tokens"] = write(attacker).num_tokens
    benchmark(write, attacker)


@general
@adapters
def test_attacker_writing_through_transformers(benchmark: Any, adapter: str) -> None:
    from tests.benchmarks.general_path import GeneralAttacker

    model = untrained_model(RECIPE)
    attacker = GeneralAttacker(model.module, model.tokenizer, adapter=adapter, lr=LR)
    scenarios = world().scenarios(Split.TRAIN)[: ATTACKER.scenarios_per_step]
    chats = [world().attacker_messages(scenario) for scenario in scenarios]
    benchmark.group = f"attacker writing, {adapter}, 160 prompts"
    assert len(benchmark(attacker.write, chats, ATTACKER)) == 160


@adapters
def test_attacker_update(benchmark: Any, adapter: str) -> None:
    attacker = make_attacker(untrained_model(RECIPE), adapter)
    batch = write(attacker)
    benchmark.group = f"attacker update, {adapter}, 160 prompts"
    benchmark(attacker.learn, batch, rewards(batch), LR)


@general
@adapters
def test_attacker_update_through_transformers(benchmark: Any, adapter: str) -> None:
    from tests.benchmarks.general_path import GeneralAttacker

    model = untrained_model(RECIPE)
    batch = write(make_attacker(model, "full"))
    attacker = GeneralAttacker(model.module, model.tokenizer, adapter=adapter, lr=LR)
    advantages = leave_one_out(torch.tensor(rewards(batch)).view(-1, ATTACKER.group_size))
    done = batch.writing
    benchmark.group = f"attacker update, {adapter}, 160 prompts"
    benchmark(
        attacker.learn,
        done.prompts,
        done.ids_NL,
        done.lengths_N,
        done.logp_NL,
        advantages.flatten(),
        ATTACKER,
    )
