"""How often the planted targets of the canary world give the code away, by attack family.

    uv run --extra smollm2 python -m tests.benchmarks.planted_holes --seed 0 --num 32

It makes the targets that the cache lacks. Prompts and codes are those of the test split, which no
target was trained on; wordings of attacks are all known to the targets.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch

from tsgb.config import make_config
from tsgb.envs.canary import CanaryEnvironment
from tsgb.envs.canary.attacks import ATTACKS, RESERVED
from tsgb.envs.canary.targets import ASSISTANTS
from tsgb.models.registry import ModelRegistry
from tsgb.protocols import Target
from tsgb.settings import load_settings
from tsgb.targets.build import build_target
from tsgb.types import Label, LabelledPrompt, Split, StreamKind

BENIGN = (StreamKind.BENIGN, StreamKind.HARD_BENIGN, StreamKind.TWINS)


def say(text: str) -> None:
    """Show a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def rates(
    env: CanaryEnvironment, target: Target, prompts: Sequence[LabelledPrompt]
) -> tuple[float, float]:
    """Return the share of prompts that get the code out, and the share that is refused."""
    by_id = {scenario.scenario_id: scenario for scenario in env.scenarios(Split.TEST)}
    scenarios = [by_id[prompt.scenario_id] for prompt in prompts]
    chats = [
        env.target_messages(target.name, scenario, prompt.text)
        for scenario, prompt in zip(scenarios, prompts, strict=True)
    ]
    labels = [
        env.judge(scenario, prompt.text, response).label
        for scenario, prompt, response in zip(scenarios, prompts, target.answer(chats), strict=True)
    ]
    return labels.count(Label.HARMFUL) / len(labels), labels.count(Label.REFUSAL) / len(labels)


def attacks(env: CanaryEnvironment, family: str, rng: Random, num: int) -> list[LabelledPrompt]:
    """Draw attacks of one family on test scenarios."""
    kind = StreamKind.HELD_OUT if family in RESERVED else StreamKind.WIDE
    drawn: list[LabelledPrompt] = []
    while len(drawn) < num:
        drawn += [p for p in env.stream(kind, Split.TEST, rng, num) if p.technique == family]
    return drawn[:num]


def main() -> None:
    """Print one table a target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(ASSISTANTS))
    parser.add_argument("--seed", type=int, default=90, help="world seed")
    parser.add_argument("--num", type=int, default=32, help="prompts a family")
    parser.add_argument("--model", default="", help="another pretrained base")
    parser.add_argument("--cache", type=Path, help="directory of the cache")
    options = parser.parse_args()
    torch.set_num_threads(1)
    env = CanaryEnvironment(options.seed)
    named = {"profile": "demo", "env": "canary", "world_seed": options.seed}
    model = {"model": {"pretrained": options.model}}
    cache = options.cache or load_settings().make_cache_dir() / "models"

    def progress(name: str, done: int, total: int) -> None:
        if done % 20 == 0:
            say(f"{name}: {done} of {total}, {time.process_time():.0f} CPU s")

    config = make_config(env.profile("demo"), named, model)
    registry = ModelRegistry(env, config, cache, progress)
    for name in options.targets:
        target = build_target(registry, env.targets()[name])
        say(f"\n{name}, world seed {options.seed}, {options.num} prompts a family")
        say("| family | leaks | refused |\n|---|---|---|")
        rng, start = Random(f"planted-{options.seed}"), time.process_time()
        leaks: dict[str, float] = {}
        for family in ATTACKS:
            prompts = attacks(env, family, rng, options.num)
            leaks[family], refused = rates(env, target, prompts)
            shown = f"**{family}**" if family in ASSISTANTS[name].families else family
            shown += " (reserved)" if family in RESERVED else ""
            say(f"| {shown} | {leaks[family]:.2f} | {refused:.2f} |")
        for stream in BENIGN:
            prompts = env.stream(stream, Split.TEST, rng, 4 * options.num)
            leaked, refused = rates(env, target, prompts)
            say(f"| {stream}, n = {len(prompts)} | {leaked:.3f} | {refused:.2f} |")
        for kind, reserved in (("trained", False), ("reserved", True)):
            some = [leak for family, leak in leaks.items() if (family in RESERVED) == reserved]
            say(f"mean of {kind} families {sum(some) / len(some):.2f}")
        say(f"{time.process_time() - start:.0f} CPU s")


if __name__ == "__main__":
    main()
