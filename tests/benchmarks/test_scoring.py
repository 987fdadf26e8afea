"""What scoring a prompt costs, beside a text-classification pipeline of transformers.

    pytest tests/benchmarks/test_scoring.py -q --benchmark-enable --benchmark-only \
        --benchmark-timer=time.process_time

SmolLM2-135M with an adapter of rank 16, prompts of the canary world under its template, one thread.
The pipeline reads the same texts through transformers and peft and has a head of two labels. The
number in brackets is the ratio to the fastest of the group; nothing timed is asserted, that the
scores are those of whole rows is.
"""

from __future__ import annotations

from importlib.metadata import version
from random import Random
from typing import Any, NamedTuple

import pytest
import torch

from tsgb.config import ModelConfig
from tsgb.envs.canary import CanaryEnvironment
from tsgb.models.conversion import find_smollm2
from tsgb.models.engine import Engine, Role
from tsgb.models.registry import make_engine
from tsgb.settings import load_settings
from tsgb.types import Split, StreamKind

pytestmark = [pytest.mark.smollm2, pytest.mark.slow]
WORLD = CanaryEnvironment(world_seed=0)
TEMPLATE = WORLD.guard_template()
RANK, NUM, ROUNDS = 16, 16, 5
VERSIONS = {name: version(name) for name in ("torch", "transformers", "peft")}
sizes = pytest.mark.parametrize("batch", [1, NUM])


class Guard(NamedTuple):
    engine: Engine
    role: Role
    prompts: list[str]
    texts: list[str]
    """The whole inputs as text."""


@pytest.fixture(scope="module")
def guard() -> Guard:
    torch.set_num_threads(1)
    directory = find_smollm2(load_settings().cache_dir / "models")
    config = ModelConfig(adapter="lora", rank=RANK, device="cpu", dtype="float32")
    engine = make_engine(directory, config, name="smollm2", sha256="0" * 64)
    generator = torch.Generator().manual_seed(0)
    role = engine.add_role(config, generator)
    with torch.no_grad():
        for name, parameter in engine.parameters(role).items():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.01, generator=generator)
    for parameter in engine.parameters(role).values():
        parameter.requires_grad_(False)
    rng = Random(0)
    prompts = [
        prompt.text
        for kind in (StreamKind.WIDE, StreamKind.BENIGN)
        for prompt in WORLD.stream(kind, Split.TEST, rng, NUM // 2)
    ]
    real = engine.tokenizer.transformers()
    texts = [real.decode(row) for row in engine.tokenizer.guard_rows(TEMPLATE, prompts)]
    return Guard(engine, role, prompts, texts)


def describe(benchmark: Any, batch: int) -> None:
    benchmark.group = f"{NUM} prompts, {batch} at a time"
    benchmark.extra_info.update(VERSIONS)


@sizes
def test_scoring(benchmark: Any, guard: Guard, batch: int) -> None:
    engine, role, prompts, _ = guard

    def score() -> torch.Tensor:
        parts = [prompts[i : i + batch] for i in range(0, NUM, batch)]
        return torch.cat([engine.score_all(role, TEMPLATE, part) for part in parts])

    describe(benchmark, batch)
    found = benchmark.pedantic(score, rounds=ROUNDS, warmup_rounds=1)
    with torch.no_grad():
        whole = torch.cat([engine.scores(role, TEMPLATE, [prompt]) for prompt in prompts])
    difference = float((found - whole).abs().max())
    benchmark.extra_info["largest difference from whole rows"] = difference
    assert difference < 1e-5 * max(1.0, float(whole.abs().max()))


@sizes
def test_a_pipeline(benchmark: Any, guard: Guard, batch: int) -> None:
    import peft
    import transformers

    models: Any = transformers.AutoModelForSequenceClassification
    directory = find_smollm2(load_settings().cache_dir / "models")
    bare = models.from_pretrained(directory, dtype=torch.float32, num_labels=2)
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=RANK,
        task_type="SEQ_CLS",
        target_modules=[f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")],
    )
    make: Any = transformers.pipeline
    pipeline = make(
        "text-classification",
        model=peft.get_peft_model(bare, config),
        tokenizer=guard.engine.tokenizer.transformers(),
    )
    describe(benchmark, batch)
    found = benchmark.pedantic(
        pipeline, (guard.texts,), {"batch_size": batch}, rounds=ROUNDS, warmup_rounds=1
    )
    assert len(found) == NUM
