"""Updates of both players beside TRL's GRPOTrainer: the same chats, sizes and losses in one run.

    uv run --extra smollm2 --with trl==1.16.0 python -m tests.benchmarks.beside_trl attacker
    uv run --extra smollm2 --with trl==1.16.0 python -m tests.benchmarks.beside_trl guard
    uv run --with trl==1.16.0 python -m tests.benchmarks.beside_trl tiny

TRL is no dependency of this project, so its name stands in the command. Each side runs in a process
of its own on one thread; sides take turns, `--rounds` times, so that a machine that becomes busy
burdens all of them. Counted are CPU seconds of an update (writing and learning, the first one left
out) and the peak of resident memory. Completions never end early, so all sides compute as many
tokens. Nothing is asserted.

TRL's defaults compute in bfloat16, and so do the sides that end in -bf16: on a CPU without units
for it (`lscpu` names avx512_bf16 or amx_bf16) they take far longer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tests.fakes.miniature import untrained_model, world
from tsgb.config import AttackerConfig, GuardConfig, ModelConfig
from tsgb.envs.base import Environment
from tsgb.envs.canary import CanaryEnvironment
from tsgb.models.chat_tokenizer import ChatTokenizer
from tsgb.models.conversion import find_smollm2
from tsgb.models.engine import Engine
from tsgb.models.fast.fast_engine import FastEngine
from tsgb.models.fast.pretrained import load_pretrained
from tsgb.models.general.general_engine import GeneralEngine
from tsgb.models.general.loading import load_module
from tsgb.models.planner import MICRO_BATCH_TOKENS
from tsgb.models.registry import make_engine
from tsgb.settings import Settings
from tsgb.trainer.players import AttackerPlayer, GuardPlayer
from tsgb.types import ModelRecipe, Scenario, Split, StreamKind
from tsgb.worker.build import setup_torch

LR = 1e-4
PLAIN: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "model_init_kwargs": {"dtype": "float32"},
}
"""What makes TRL compute in float32 and keep activations; its defaults do neither."""
GENERAL = {"general": torch.float32, "general-bf16": torch.bfloat16}
"""Sides of the general engine, and the dtype of their base."""
LEAN = 2 * 10**9
"""Bytes that `fast-lean` may take: half of a machine with 4 GB."""
VERDICTS = 8
"""Verdicts that TRL samples for a prompt; ours are exact."""


SIDES = ("trl", "trl-defaults", "general", "general-bf16", "fast-lean", "fast", "fast-bf16")


@dataclass(frozen=True, slots=True)
class Case:
    """Sizes of an update."""

    prompts: int
    group: int
    new_tokens: int
    adapter: str
    micro_batch: int
    """Completions that TRL learns from at once."""
    sides: tuple[str, ...]


CASES = {
    "attacker": Case(4, 8, 40, "lora", 16, SIDES),
    "small": Case(2, 8, 40, "lora", 16, ("trl", "general", "fast")),
    "tiny": Case(64, 8, 24, "full", 512, ("trl", "fast")),
    "guard": Case(8, VERDICTS, 1, "lora", 16, SIDES),
}


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def environment(case: str) -> Environment:
    return world() if case == "tiny" else CanaryEnvironment(world_seed=0)


def scenarios(env: Environment, num: int) -> list[Scenario]:
    found = env.scenarios(Split.TRAIN)
    return [found[i % len(found)] for i in range(num)]


def guard_prompts(env: Environment, num: int) -> list[str]:
    return [p.text for p in env.stream(StreamKind.WIDE, Split.TRAIN, Random(1), num)]


def engine(side: str, case: str) -> Engine:
    """Return the engine of a side, whose completions never end."""
    setup_torch()
    if case == "tiny":
        made: Engine = untrained_model(ModelRecipe(width=64, layers=2, heads=4))
    elif side in {"fast", "fast-bf16"}:
        config = ModelConfig(device="cpu", dtype="bfloat16" if side == "fast-bf16" else "float32")
        made = make_engine(smol(), config, name="smol", sha256="0")
    elif side == "fast-lean":
        module, tokenizer = load_pretrained(smol()), ChatTokenizer(smol())
        made = FastEngine(module, tokenizer, name="smol", sha256="0", memory=LEAN)
    else:
        made = GeneralEngine(
            load_module(smol(), torch.device("cpu"), GENERAL[side]),
            ChatTokenizer(smol()),
            name="smol",
            sha256="0",
            directory=smol(),
            micro_batch_tokens=MICRO_BATCH_TOKENS,
        )
    assert isinstance(made, FastEngine) == side.startswith("fast")
    made.tokenizer.stop_ids = (-1,)
    return made


def smol() -> Path:
    return find_smollm2(Settings().cache_dir / "models")


def reward(number: int) -> float:
    """Some spread in every group."""
    return float(number % 3) - 1.0


# -- our side --------------------------------------------------------------------------------------


def our_updates(side: str, name: str, num: int) -> Iterator[float]:
    """Yield CPU seconds of updates."""
    case, env = CASES[name], environment(name)
    made = engine(side, name)
    role = made.add_role(ModelConfig(adapter=case.adapter), torch.Generator().manual_seed(0))
    update = (
        our_guard(case, env, made, role) if name == "guard" else our_attacker(case, env, made, role)
    )
    for _ in range(num):
        start = time.process_time()
        update()
        yield time.process_time() - start


def our_attacker(case: Case, env: Environment, made: Engine, role: Any) -> Callable[[], Any]:
    config = AttackerConfig(
        group_size=case.group,
        scenarios_per_step=case.prompts,
        max_new_tokens=case.new_tokens,
        kl=0.02,
    )
    player = AttackerPlayer(made, env, config, role)
    generator = torch.Generator().manual_seed(0)
    rewards = [reward(number) for number in range(case.prompts * case.group)]

    def update() -> None:
        batch = player.write(scenarios(env, case.prompts), case.group, generator)
        assert batch.num_tokens == case.prompts * case.group * case.new_tokens
        player.learn(batch, rewards, LR)

    return update


def our_guard(case: Case, env: Environment, made: Engine, role: Any) -> Callable[[], Any]:
    player = GuardPlayer(made, env, GuardConfig(batch=case.prompts, lm_replay=0.0, kl=0.02), role)
    prompts = guard_prompts(env, case.prompts)
    gains = [3.0 if number % 2 else -2.0 for number in range(case.prompts)]
    return lambda: player.learn(
        prompts, gains, loss_name="exact_pg", replay=[], lr=LR, generator=torch.Generator()
    )


# -- TRL -------------------------------------------------------------------------------------------


def trl_updates(side: str, name: str, num: int) -> Iterator[float]:
    """Yield CPU seconds of TRL's optimizer steps, each with its own completions."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    setup_torch()
    case, env = CASES[name], environment(name)
    with TemporaryDirectory() as folder:
        directory = Path(folder) if name == "tiny" else smol()
        if name == "tiny":
            engine("fast", name).save_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        rows: list[Any] = [list(env.attacker_messages(s)) for s in scenarios(env, case.prompts)]
        if name == "guard":
            template, own = env.guard_template(), ChatTokenizer(directory)
            ids = own.guard_rows(template, guard_prompts(env, case.prompts))
            rows = [tokenizer.decode(row) for row in ids]
        defaults = side == "trl-defaults"
        completions = case.prompts * case.group
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            **({} if defaults else PLAIN),
            per_device_train_batch_size=case.micro_batch,
            gradient_accumulation_steps=completions // case.micro_batch,
            num_generations=case.group,
            max_completion_length=case.new_tokens,
            generation_kwargs={"min_new_tokens": case.new_tokens},
            beta=0.02,
            learning_rate=LR,
            max_steps=num,
            logging_steps=1000,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            shuffle_dataset=False,
            seed=0,
        )
        lora = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        seconds: list[float] = []

        class Clock(TrainerCallback):
            def on_step_begin(self, *_args: Any, **_more: Any) -> None:
                seconds.append(-time.process_time())

            def on_step_end(self, *_args: Any, **_more: Any) -> None:
                seconds[-1] += time.process_time()

        def judge(prompts: list[Any], completions: list[Any], **_more: Any) -> list[float]:
            return [reward(number) for number in range(len(prompts))]

        trainer = GRPOTrainer(
            model=str(directory),
            reward_funcs=judge,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": row} for row in rows]),
            processing_class=tokenizer,
            peft_config=lora if case.adapter == "lora" else None,
            callbacks=[Clock()],
        )
        trainer.train()
        yield from seconds


# -- both ------------------------------------------------------------------------------------------


def run_side(side: str, case: str, num: int) -> None:
    """Print the figures of one side as JSON."""
    updates = trl_updates if side.startswith("trl") else our_updates
    seconds = list(updates(side, case, num + 1))[1:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    say("FIGURES " + json.dumps({"seconds": seconds, "peak": peak}))


def measure(side: str, case: str, num: int) -> dict[str, Any]:
    """Run a side in a process of its own."""
    command = [sys.executable, "-m", MODULE]
    command += [case, "--side", side, "--updates", str(num)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if not lines:
        sys.exit(f"{side} failed ({done.returncode}):\n{done.stdout}\n{done.stderr}")
    return json.loads(lines[-1].removeprefix("FIGURES "))


MODULE = "tests.benchmarks.beside_trl"


def main() -> None:
    parser = argparse.ArgumentParser(description="Updates beside TRL's GRPOTrainer.")
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--updates", type=int, default=3, help="counted updates a process")
    parser.add_argument("--rounds", type=int, default=2, help="processes a side")
    parser.add_argument("--side", help="measure one side here, and print its figures as JSON")
    parser.add_argument("--sides", nargs="+", help="sides to compare, instead of the case's own")
    given = parser.parse_args()
    if given.side:
        run_side(given.side, given.case, given.updates)
        return
    sides = tuple(given.sides or CASES[given.case].sides)
    packages = ("trl", "torch", "transformers", "peft")
    say(f"{given.case}: {CASES[given.case]}")
    say(f"{platform.platform()}, {', '.join(f'{name} {version(name)}' for name in packages)}")
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(given.rounds):
        for side in sides:
            found[side].append(measure(side, given.case, given.updates))
            say(f"  load {os.getloadavg()[0]:.1f} {side}: {found[side][-1]}")
    seconds = {side: [s for run in runs for s in run["seconds"]] for side, runs in found.items()}
    peer = statistics.median(seconds[sides[0]])
    say(
        f"{'side':14} {'n':>3} {'median s':>9} {'least':>8} {'most':>8} {'ratio':>6} {'peak GB':>8}"
    )
    for side in sides:
        values = seconds[side]
        middle, peak = statistics.median(values), max(run["peak"] for run in found[side])
        say(
            f"{side:14} {len(values):3} {middle:9.3f} {min(values):8.3f} {max(values):8.3f} "
            f"{peer / middle:6.2f} {peak / 1e9:8.2f}"
        )


if __name__ == "__main__":
    main()
