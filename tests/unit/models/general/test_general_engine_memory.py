"""Ends of memory in every pass of the general engine: the same numbers from smaller batches.

The backbone refuses calls with more than some tokens, as an allocator would; nothing is patched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet

from tests.unit.models.general.conftest import load_engine, moved_role
from tsgb.config import AttackerConfig, GuardConfig
from tsgb.envs.canary import CanaryEnvironment
from tsgb.errors import ConfigError
from tsgb.models.general.general_engine import LEAST_TOKENS, GeneralEngine
from tsgb.models.out_of_memory import is_out_of_memory
from tsgb.trainer.players import AttackerPlayer, GuardPlayer
from tsgb.types import Split, StreamKind

Directory = Callable[..., Path]
WORLD = CanaryEnvironment(world_seed=0)
TEMPLATE = WORLD.guard_template()
PROMPTS = [p.text for p in WORLD.stream(StreamKind.WIDE, Split.TRAIN, Random(1), 8)]
SCENARIOS = WORLD.scenarios(Split.TRAIN)[:3]
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


class Limit:
    """Lets a module read at most some tokens in a call, forwards or backwards."""

    def __init__(self, engine: GeneralEngine, tokens: int, error: BaseException, when: str) -> None:
        self.refused = 0
        self._tokens, self._error, self._when = tokens, error, when
        module = engine.lm.module
        backbone = getattr(module, module.base_model_prefix)
        backbone.register_forward_hook(self._look, with_kwargs=True)

    def _look(self, _: Any, __: Any, given: dict[str, Any], found: Any) -> None:
        states = found.last_hidden_state
        if given["input_ids"].numel() <= self._tokens:
            return
        if self._when == "forward":
            self._refuse()
        elif states.requires_grad:
            states.register_hook(self._refuse)

    def _refuse(self, _: Any = None) -> None:
        self.refused += 1
        raise self._error


def learn(engine: GeneralEngine) -> tuple[list[str], list[float], list[torch.Tensor]]:
    """One update of either player, a score and the gradients."""
    config = AttackerConfig(group_size=2, max_new_tokens=8, kl=0.1)
    attacker = AttackerPlayer(engine, WORLD, config, moved_role(engine))
    guard = GuardPlayer(
        engine, WORLD, GuardConfig(loss="sampled_pg", kl=0.1), moved_role(engine, 4)
    )
    generator = torch.Generator().manual_seed(0)
    batch = attacker.write(SCENARIOS, 2, generator)
    of_attacker = attacker.learn(batch, [1.0, 0.0, 0.0, 1.0, 0.5, -0.5], 1e-3)
    of_guard, scores = guard.learn(
        PROMPTS,
        [1.0, -2.0] * 4,
        loss_name="sampled_pg",
        replay=(),
        lr=1e-3,
        generator=generator,
    )
    drawn = float(torch.rand(1, generator=generator))
    numbers = [
        *of_attacker.values(),
        *of_guard.values(),
        *scores.tolist(),
        drawn,
    ]
    roles = (attacker, guard)
    gradients = [p.grad for one in roles for p in one.parameters.values() if p.grad is not None]
    return batch.writing.texts, numbers, gradients


def kinds() -> Iterator[ParameterSet]:
    """Each error in each pass; the default run takes the one of a card and the one of a host."""
    kept = {("forward", torch.OutOfMemoryError), ("backward", RuntimeError)}
    for when in ("forward", "backward"):
        for error in ERRORS:
            marks = [] if (when, type(error)) in kept else [pytest.mark.slow]
            yield pytest.param(when, error, marks=marks, id=f"{when}-{type(error).__name__}")


def test_each_error_is_an_end_of_memory() -> None:
    assert all(map(is_out_of_memory, ERRORS))


@pytest.mark.parametrize(("when", "error"), [*kinds()])
def test_smaller_batches_give_the_same_numbers(
    directory: Directory, capsys: pytest.CaptureFixture[str], when: str, error: BaseException
) -> None:
    texts, numbers, gradients = learn(load_engine(directory("qwen2"), micro_batch_tokens=4096))
    engine = load_engine(directory("qwen2"), micro_batch_tokens=4096)
    limit = Limit(engine, 240, error, when)
    found = learn(engine)
    assert limit.refused > 0
    assert LEAST_TOKENS <= engine.micro_batch_tokens < 4096
    assert found[0] == texts
    assert found[1] == pytest.approx(numbers, rel=1e-4, abs=3e-5)
    assert len(found[2]) == len(gradients) > 0
    for mine, other in zip(found[2], gradients, strict=True):
        assert float((mine - other).norm()) <= 4e-5 * float(other.norm()) + 1e-8
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["micro_batch_tokens"] for line in lines] == [
        4096 >> (i + 1) for i in range(len(lines))
    ]


def test_layers_are_computed_again_before_it_gives_up(directory: Directory) -> None:
    engine = load_engine(directory("qwen2"), micro_batch_tokens=2 * LEAST_TOKENS)
    role = moved_role(engine)
    Limit(engine, 0, ERRORS[0], "forward")
    with pytest.raises(ConfigError) as given_up:
        engine.scores(role, TEMPLATE, PROMPTS)
    assert engine.lm.keeps_only_inputs
    assert engine.micro_batch_tokens == LEAST_TOKENS
    assert str(given_up.value) == (
        "memory of cpu ends even with 32 tokens of 'tiny' at a time (CUDA out of memory. Tried to "
        "allocate 20.00 MiB.): name a smaller model, set model.dtype to bfloat16, or take a "
        "machine with more memory"
    )


def test_layers_may_be_computed_again_from_any_update_on(directory: Directory) -> None:
    texts, numbers, gradients = learn(load_engine(directory("gemma3")))
    engine = load_engine(directory("gemma3"), micro_batch_tokens=64)
    moved_role(engine, 9)
    engine.lm.keep_only_inputs()
    found = learn(engine)
    assert found[0] == texts
    assert found[1] == pytest.approx(numbers, rel=1e-4, abs=3e-5)
    for mine, other in zip(found[2], gradients, strict=True):
        assert float((mine - other).norm()) <= 4e-5 * float(other.norm()) + 1e-8


def test_other_errors_are_not_taken_for_an_end_of_memory(directory: Directory) -> None:
    engine = load_engine(directory("qwen2"))
    Limit(engine, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "forward")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        engine.scores(engine.base, TEMPLATE, PROMPTS)
    assert not is_out_of_memory(ValueError("out of memory"))
