"""Memory of an update against the planner, and tokens a second beside TRL, on a card.

    uv run --with trl==1.16.0 pytest tests/gpu/test_cost.py -s

The model has the shape of Qwen2.5-0.5B and random weights. Completions never end early, so both
sides compute as many tokens. Without TRL its side is skipped. The figures that are printed belong
into tsgb/models/README.md, with the card and the day.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.chat_model import save_tokenizer
from tests.gpu.conftest import load
from tsgb.config import AttackerConfig, ModelConfig
from tsgb.envs.canary import CanaryEnvironment
from tsgb.models.device import memory_of
from tsgb.models.files import read_json
from tsgb.models.planner import ModelSizes, TrainingWork, plan_memory
from tsgb.trainer.players import AttackerPlayer
from tsgb.types import Split

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

QWEN_05B: dict[str, Any] = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32_768,
    "vocab_size": 151_936,
}
PROMPTS, GROUP, NEW_TOKENS = 8, 8, 128
WARM_UPDATES, UPDATES = 1, 3
NOT_ALLOCATED = ("overhead", "snapshots")
"""Parts of a plan that torch's allocator does not hold during an update."""


@pytest.fixture(scope="module")
def directory(card: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    made = tmp_path_factory.mktemp("qwen")
    save_tokenizer(made, 1200)
    config = transformers.Qwen2Config(**QWEN_05B, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    with card:
        module: Any = transformers.Qwen2ForCausalLM(config)
    module.to(torch.bfloat16).save_pretrained(made)
    return made


def reward(number: int) -> float:
    """Some spread in every group."""
    return float(number % 3) - 1.0


def our_update(directory: Path, card: torch.device, micro_batch_tokens: int) -> Any:
    """Return a function that does one update of the attacker."""
    engine = load(directory, card, torch.bfloat16)
    engine.micro_batch_tokens = micro_batch_tokens
    engine.tokenizer.stop_ids = (-1,)
    config = AttackerConfig(
        group_size=GROUP, scenarios_per_step=PROMPTS, max_new_tokens=NEW_TOKENS, kl=0.02
    )
    role = engine.add_role(ModelConfig(adapter="lora"), torch.Generator().manual_seed(0))
    world = CanaryEnvironment(world_seed=0)
    player = AttackerPlayer(engine, world, config, role)
    scenarios = [s for s in world.scenarios(Split.TRAIN) if s.harmful][:PROMPTS]
    generator = torch.Generator().manual_seed(0)

    def update() -> int:
        batch = player.write(scenarios, GROUP, generator)
        player.learn(batch, [reward(n) for n in range(PROMPTS * GROUP)], 1e-4)
        return max(len(row) for row in batch.writing.prompts) + NEW_TOKENS

    return update


def test_memory_is_what_the_planner_says(card: torch.device, directory: Path) -> None:
    sizes = ModelSizes.read(read_json(directory / "config.json"))
    assert sizes is not None
    row_tokens = our_update(directory, card, 4096)()
    work = TrainingWork(rows=PROMPTS * GROUP, row_tokens=row_tokens, roles=1)
    plan = plan_memory(sizes, memory_of(card), dtype="bfloat16", work=work)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    our_update(directory, card, plan.micro_batch_tokens)()
    measured = torch.cuda.max_memory_allocated()
    planned = plan.needed - sum(plan.parts[name] for name in NOT_ALLOCATED)
    print(  # noqa: T201 - with -s
        f"{memory_of(card)}: {measured / 1e9:.2f} GB measured, {planned / 1e9:.2f} planned "
        f"({plan.micro_batch_tokens} tokens at a time)"
    )
    assert measured == pytest.approx(planned, rel=0.1)


def test_tokens_a_second(card: torch.device, directory: Path) -> None:
    ours = rate(our_update(directory, card, 8192))
    print(f"{memory_of(card)}: {ours:.0f} tokens/s written and learned from")  # noqa: T201
    pytest.importorskip("trl", reason="TRL is not installed: uv run --with trl==1.16.0 ...")
    theirs = trl_rate(directory)
    print(f"TRL {theirs:.0f} tokens/s, ratio {ours / theirs:.2f}")  # noqa: T201
    assert ours >= theirs


def rate(update: Any) -> float:
    """Tokens that are written in a second of updates, the first one left out."""
    for _ in range(WARM_UPDATES):
        update()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(UPDATES):
        update()
    torch.cuda.synchronize()
    return UPDATES * PROMPTS * GROUP * NEW_TOKENS / (time.perf_counter() - begin)


def trl_rate(directory: Path) -> float:
    """The same of TRL's GRPOTrainer, with its defaults for a card."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    world = CanaryEnvironment(world_seed=0)
    scenarios = [s for s in world.scenarios(Split.TRAIN) if s.harmful][:PROMPTS]
    rows = [{"prompt": list(world.attacker_messages(s))} for s in scenarios]
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_args: Any, **_more: Any) -> None:
            torch.cuda.synchronize()
            seconds.append(-time.perf_counter())

        def on_step_end(self, *_args: Any, **_more: Any) -> None:
            torch.cuda.synchronize()
            seconds[-1] += time.perf_counter()

    def judge(prompts: list[Any], completions: list[Any], **_more: Any) -> list[float]:
        return [reward(number) for number in range(len(prompts))]

    GRPOTrainer(
        model=str(directory),
        reward_funcs=judge,
        args=GRPOConfig(
            output_dir=str(directory / "trl"),
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=NEW_TOKENS,
            generation_kwargs={"min_new_tokens": NEW_TOKENS},
            beta=0.02,
            learning_rate=1e-4,
            max_steps=WARM_UPDATES + UPDATES,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            shuffle_dataset=False,
            seed=0,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(directory),
        peft_config=LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"),
        callbacks=[Clock()],
    ).train()
    return UPDATES * PROMPTS * GROUP * NEW_TOKENS / sum(seconds[WARM_UPDATES:])
